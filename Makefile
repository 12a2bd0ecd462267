# Two commands do all the set-up: `make demo` and `make test`. Both make .venv from requirements.lock.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready

.PHONY: help demo serve test check format acceptance bench-gain bench-throughput bench-wallclock bench-chaos bench-memory bench-fleet lock docs clean

help:  ## Show what there is
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 16

$(READY): requirements.lock pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit("Ratchet needs Python 3.11 or newer; say make PYTHON=python3.x" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --requirement requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	touch $@

demo: $(READY)  ## Make a small program better with the local LM; no key needed
	$(BIN)/ratchet demo

serve: $(READY)  ## Serve the API on port 8004, with SQLite and nothing else
	$(BIN)/ratchet serve

test: $(READY)  ## Run the tests
	$(BIN)/python -m pytest

check: $(READY)  ## Format, lint, types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(READY)  ## Write the files as `make check` wants them
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

acceptance: $(READY)  ## The long tests: more seeds, more kills
	$(BIN)/python -m pytest -m "heavy or not heavy" tests/acceptance

bench-gain: $(READY)  ## Gains on public data with real local LMs; long, resumable
	$(BIN)/python -m bench.gain

bench-throughput: $(READY)  ## CPU time of a program run, beside dspy.Evaluate; QUICK=--quick for a tenth
	$(BIN)/python -m bench.throughput $(QUICK)

bench-wallcbench-fleet: $(READY)  ## 10, 100 and 1000 optimizations at once through `ratchet serve`; MORE=--postgres with two workers
	$(BIN)/python -m bench.fleet $(MORE) $(QUICK)

lock: $(READY)  ## Wall time of optimizations, beside DSPy's, with an LM of 300 ms and 64 slots
	$(BIN)/python -m bench.wallclock $(QUICK)

bench-chaos: $(READY)  ## 40 optimizations through errors, outages and 200 kill -9, beside the same on a calm day
	$(BIN)/python -m bench.chaos $(QUICK)

bench-memory: $(READY)  ## Memory of 20,000 evaluations, and the time to the first LM call
	$(BIN)/python -m bench.memory $(QUICK)

bench-fleet: $(READY)  ## 10, 100 and 1000 optimizations at once through `ratchet serve`; MORE=--postgres with two workers
	$(BIN)/python -m bench.fleet $(MORE) $(QUICK)

lock: $(READY)  ## Resolve pyproject.toml anew into requirements.lock
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --extra local --extra service --group dev --output-file requirements.lock pyproject.toml

docs: $(READY)  ## Write docs/reference/cli.md from the commands
	$(BIN)/python -m typer ratchet.cli.app utils docs --name ratchet \
	  | sed "s/\[bold\]Examples\[\/\]/**Examples**/; s/&#x27;/'/g; s/&lt;/</g; s/&gt;/>/g" > docs/reference/cli.md

clean:  ## Remove what the commands made
	rm -rf .venv .ratchet ratchet-demo .mypy_cache .ruff_cache .pytest_cache .hypothesis

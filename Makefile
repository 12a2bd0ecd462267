# Two commands do all the set-up: `make demo` and `make test`. Both make .venv from requirements.lock.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
TORCH := .venv/.torch
TORCH_VERSION := 2.13.0
TORCH_CPU := 6746dbcbeb526eb61330b76b41ff1b4eb848951103a892eeb080dfa2b264667b
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
# uv needs a sixth of pip's time, but asks no index that only pip was told of. It keeps nothing outside of .venv.
UV := UV_HTTP_RETRIES=1 $(BIN)/uv pip install --quiet --no-cache --python $(BIN)/python
# pip compiles on one core; this does on all. Some packages carry templates that are no Python, which is no failure.
COMPILE := $(BIN)/python -m compileall -qq -j 0 .venv/lib src || true
# Tests start Python hundreds of times, and each start would compile anew.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help demo serve test check format acceptance bench-gain bench-throughput bench-wallclock bench-chaos bench-memory bench-hypervolume bench-surfaces bench-fleet bench-privacy bench-chaos-service audit lock lock-torch docs clean

help:  ## Show what there is
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 16

$(READY): requirements.lock pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit("Ratchet needs Python 3.11 or newer; say make PYTHON=python3.x" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv .venv
	awk '/^uv==/, !/\\$$/' requirements.lock > .venv/uv.lock
	$(PIP) --require-hashes --requirement .venv/uv.lock
	$(UV) --require-hashes --requirement requirements.lock \
	  || { echo "uv could not; now with pip, which takes longer"; \
	       $(PIP) --no-compile --require-hashes --requirement requirements.lock; }
	$(PIP) --no-deps --no-build-isolation --editable .
	touch $@

# The CPU build where a place that pip knows has it; else what the index has, with all it needs.
$(TORCH): $(READY) requirements-torch.lock requirements-torch-index.lock
	$(PIP) --no-deps --require-hashes --requirement requirements-torch.lock 2> /dev/null \
	  || $(PIP) --no-deps --require-hashes --requirement requirements-torch-index.lock
	$(BIN)/python -c 'import torch'
	$(COMPILE)
	touch $@

demo: $(READY)  ## Make a small program better with the local LM; no key needed
	$(BIN)/ratchet demo

serve: $(READY)  ## Serve the API on port 8004, with SQLite and nothing else
	$(BIN)/ratchet serve

# In the order of the files: the longest are among the first, and none is left to one core at the end. On two cores a
# third process works while tests of the other two wait for servers and for time to pass.
test: $(TORCH)  ## Run the tests, on two cores
	$(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder

check: $(READY)  ## Format, lint, types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(READY)  ## Write the files as `make check` wants them
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

acceptance: $(TORCH)  ## The long tests: more seeds, more kills
	$(BIN)/python -m pytest -m "heavy or not heavy" tests/acceptance

bench-gain: $(READY)  ## Gains on public data with real local LMs; long, resumable
	$(BIN)/python -m bench.gain

bench-throughput: $(READY)  ## CPU time of a program run, beside dspy.Evaluate; QUICK=--quick for a tenth
	$(BIN)/python -m bench.throughput $(QUICK)

bench-wallclock: $(READY)  ## Wall time of optimizations, beside DSPy's, with an LM of 300 ms and 64 slots
	$(BIN)/python -m bench.wallclock $(QUICK)

bench-hypervolume: $(READY)  ## Fronts of `genetic` beside those of pymoo's NSGA-II, after as many evaluations
	$(BIN)/python -m bench.hypervolume $(QUICK)

bench-chaos: $(READY)  ## 40 optimizations through errors, outages and 200 kill -9, beside the same on a calm day
	$(BIN)/python -m bench.chaos $(QUICK)

bench-chaos-service: $(READY)  ## 100 optimizations on 3 workers and PostgreSQL, all of which get killed, beside a calm day
	$(BIN)/python -m bench.chaos_service $(QUICK)

bench-memory: $(READY)  ## Memory of 20,000 evaluations, and the time to the first LM call
	$(BIN)/python -m bench.memory $(QUICK)

bench-surfaces: $(TORCH)  ## Evaluations that searches need on recorded response surfaces, beside TPE
	$(BIN)/python -m bench.surfaces $(QUICK)

bench-fleet: $(READY)  ## 10, 100 and 1000 optimizations at once through `ratchet serve`; MORE=--postgres with two workers
	$(BIN)/python -m bench.fleet $(MORE) $(QUICK)

bench-privacy: $(READY)  ## Precision and recall of what finds personal data, on texts whose truth is known
	$(BIN)/python -m bench.privacy

audit: $(READY)  ## Ask whether a locked dependency is known to be vulnerable, or was taken back
	$(BIN)/python tools/audit.py

lock: $(READY)  ## Resolve pyproject.toml anew into requirements.lock
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --extra local --extra privacy --extra service --group dev --output-file requirements.lock pyproject.toml

# One resolution, twice: with the CPU build for Linux, which not every index has, and with what an index has.
lock-torch: $(READY)  ## Resolve PyTorch anew, for the tests of `surrogate`
	echo torch==$(TORCH_VERSION) | $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-annotate --constraint requirements.lock --output-file requirements-torch-index.lock -
	printf 'torch==%s+cpu \\\n    --hash=sha256:%s\n' $(TORCH_VERSION) $(TORCH_CPU) > requirements-torch.lock
	awk '/^[a-z]/ {needed = !/^(cuda|nvidia|torch|triton)/} needed' requirements-torch-index.lock >> requirements-torch.lock

docs: $(READY)  ## Write docs/reference/cli.md from the commands
	$(BIN)/python -m typer ratchet.cli.app utils docs --name ratchet \
	  | sed "s/\[bold\]Examples\[\/\]/**Examples**/; s/&#x27;/'/g; s/&lt;/</g; s/&gt;/>/g" > docs/reference/cli.md

clean:  ## Remove what the commands made
	rm -rf .venv .ratchet ratchet-demo .mypy_cache .ruff_cache .pytest_cache .hypothesis

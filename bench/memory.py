"""Memory of a long optimization, and the time from ``ratchet optimize`` to its first LM call.

    make bench-memory
    python -m bench.memory --quick

20,000 evaluations, 200 candidates on 100 examples, go through the engine's runner, the gateway and a SQLite archive as
every evaluation does, each about 2 kB where it is stored. Then a second process opens the same optimization to go on
with it. The greatest resident memory of both counts. Start-up is measured from the start of the process to the arrival
of its first request at the stub.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import sqlite3
import subprocess
import sys
import tempfile
import time
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bench.child import in_child
from bench.sheet import Bar, Spread, conclude, say, size_of, table
from bench.stub import StubProcess
from ratchet.begin import new_run, resumed_run
from ratchet.bootstrap import open_archive
from ratchet.core.problem import Example
from ratchet.engine.optimize import Optimizer
from ratchet.options import Options
from ratchet.prepare import Given
from ratchet.programs import loop
from ratchet.programs.datasets import Splits
from ratchet.settings import Settings, quiet_libraries
from ratchet.testing.lm_server import LABELS, SIGNATURE, rows

MOST_MB = 400
MOST_SECONDS = 3.0
EXAMPLES = 100
FILLER = "The customer writes at length about something that has nothing to do with the case. " * 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What one process does.

    Attributes:
        resumes: An id, to go on with what is there; empty to begin.
    """

    base: str
    home: str
    candidates: int
    resumes: str = ""


def main_of_child(text: str) -> None:
    """Do what ``text`` says, and print the id and the megabytes it took."""
    quiet_libraries()
    work = Work(**json.loads(text))
    settings = Settings(home=Path(work.home), mlflow=False)
    archive = open_archive(settings)
    at_start = _resident_mb()
    if work.resumes:
        run = resumed_run(work.resumes, Given(), settings, archive)
    else:
        examples = tuple(
            Example(inputs={"text": f"{FILLER}{row['text']}"}, labels={"label": row["label"]})
            for row in rows(EXAMPLES + 4)
        )
        splits = Splits(train=examples[:2], validation=examples[4:], test=examples[2:4])
        options = Options(target=SIGNATURE, module="cot", lm="openai/stub", lm_base=work.base, concurrency=16)
        run = new_run(options, Given(splits=splits), settings, archive)

    async def evaluate() -> int:
        job = run.job()
        runner = Optimizer(job).runner
        rows_seen = 0
        for number in range(work.candidates):
            text = f"Sort the case into one of {LABELS}, version {number}."
            candidate = job.seed.with_instructions("predict", text, origin="bench")
            rows_seen += len(await runner.evaluate(candidate, job.validation))
        run.notebook.flush()
        return rows_seen

    with run.notebook.claimed():
        seen = loop.run(evaluate())
    archive.close()
    print(
        json.dumps({"id": run.id, "rows": seen, "start_mb": at_start, "peak_mb": _peak_mb(), "end_mb": _resident_mb()})
    )


def _peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _resident_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1024**2


def evaluations(stub: StubProcess, candidates: int) -> dict[str, Any]:
    """Megabytes of the process that made the evaluations, and of one that goes on with them."""
    with tempfile.TemporaryDirectory() as home:
        first = in_child("bench.memory", Work(base=stub.base(), home=home, candidates=candidates))
        with closing(sqlite3.connect(Path(home) / "ratchet.db")) as connection:
            lengths = "length(sealed) + length(replies)"
            stored, size = connection.execute(f"SELECT count(*), avg({lengths}) FROM evaluations").fetchone()
        resumed = Work(base=stub.base(), home=home, candidates=candidates, resumes=first["id"])
        again = in_child("bench.memory", resumed)
    say(f"  {stored} evaluations of {size:.0f} bytes: {first['peak_mb']:.0f} MB; resumed {again['peak_mb']:.0f} MB")
    return {"evaluations": stored, "bytes_each": size, "first": first, "resumed": again}


def start_up(stub: StubProcess) -> float:
    """Seconds from the start of ``ratchet optimize`` to its first request."""
    stub.reset()
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data.jsonl"
        data.write_text("".join(json.dumps(row) + "\n" for row in rows(100)), encoding="utf-8")
        command = [sys.executable, "-m", "ratchet", "optimize", SIGNATURE, "--data", str(data), "--max-calls", "60"]
        command += ["--lm", "stub", "--lm-base", stub.base(), "--algorithm", "miprov2", "--force", "--no-mlflow"]
        command += ["--out", str(Path(folder) / "out"), "--json"]
        began = time.time()
        environment = {**os.environ, "RATCHET_HOME": str(Path(folder) / "home")}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"ratchet optimize failed; the last it said: {done.stderr[-3000:]}")
    seconds: float = stub.stats()["first_at"] - began
    say(f"  first request after {seconds:.2f} s")
    return seconds


def main() -> int:
    """Measure, print, keep; 1 when a bar is missed."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.memory", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--evaluations", type=int, default=20_000)
    parser.add_argument("--starts", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="a tenth of the size")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        main_of_child(given.child)
        return 0
    size = size_of(parser, given)
    if given.quick:
        given.evaluations, given.starts = given.evaluations // 10, 2
    with StubProcess() as stub:
        start_up(stub)  # the first start reads the files from the disk
        starts = Spread.of([start_up(stub) for _ in range(given.starts)])
        found = evaluations(stub, given.evaluations // EXAMPLES)
    first, again = found["first"]["peak_mb"], found["resumed"]["peak_mb"]
    text = table(
        ["what", "measured"],
        [
            ["evaluations", found["evaluations"]],
            ["bytes each, as stored", f"{found['bytes_each']:.0f}"],
            ["MB before the first evaluation", f"{found['first']['start_mb']:.0f}"],
            ["MB at most", f"{first:.0f}"],
            ["MB at most, resumed", f"{again:.0f}"],
            ["seconds to the first LM call (spread, n)", starts],
        ],
    )
    bars = [
        Bar(f"{first:.0f} MB at most, under {MOST_MB}", first < MOST_MB),
        Bar(f"{again:.0f} MB at most when resumed, under {MOST_MB}", again < MOST_MB),
        Bar(f"{starts} s to the first LM call, under {MOST_SECONDS:g}", starts.median < MOST_SECONDS),
    ]
    return conclude("memory", text, bars, {**found, "starts": asdict(starts)}, size=size, given=given)


if __name__ == "__main__":
    sys.exit(main())

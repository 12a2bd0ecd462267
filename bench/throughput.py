"""CPU time of one program run, ours beside ``dspy.Evaluate``, against a stub LM that answers at once.

    make bench-throughput
    python -m bench.throughput --quick
    python -m bench.throughput --programs cot --rounds 9 --runs 800

Each measurement is a fresh process that evaluates one program on the same examples and counts its own CPU time, user
and system, all threads. Ours is what an optimization does: the engine's runner, the gateway and a SQLite archive, every
request, reply and evaluation stored; that the rows are in the file is checked each time. DSPy's side stores nothing: no
cache, no history, no progress bar, LiteLLM not loaded, the thread count that needs the least CPU. Both sides use the
same Python function as their metric, and must agree on each score and each output of each example.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import logging
import sqlite3
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import aiohttp
import dspy

from bench.child import in_child
from bench.sheet import Bar, Spread, conclude, say, size_of, table
from bench.stub import StubProcess
from ratchet.begin import new_run
from ratchet.bootstrap import open_archive
from ratchet.core.problem import Example
from ratchet.engine.optimize import Optimizer
from ratchet.options import Options
from ratchet.prepare import Given, prepare
from ratchet.programs import loop
from ratchet.programs.datasets import Splits
from ratchet.programs.dspy_program import plain
from ratchet.run import Run
from ratchet.settings import Settings, collect_rarely, quiet_libraries
from ratchet.storage.memory import MemoryNotebook
from ratchet.testing.lm_server import SIGNATURE, rows

THREADS = (1, 2, 4, 8, 16)
TRIALS = 3
"""Measurements of each of these, to find the one that needs the least CPU."""
WARM = 24
"""Runs before the clock starts, on examples of their own: imports, connections, first-time look-ups."""
BAR = 1 / 3
MODEL, KNOWN_MODEL = "openai/stub", "openai/gpt-4.1-mini"
"""Names of the stub: one DSPy has no price of, as of a local or a new model, and one whose price it finds at once."""


class SyncChain(dspy.Module):  # type: ignore[misc]
    """Three predictors; only ``forward``."""

    def __init__(self) -> None:
        super().__init__()
        self.hint = dspy.Predict("text -> hint")
        self.sort = dspy.ChainOfThought(SIGNATURE.replace("text", "text, hint", 1))
        self.check = dspy.Predict("text, label -> verdict: Literal['sure', 'unsure']")

    def forward(self, text: str) -> dspy.Prediction:
        """Hint, label, verdict."""
        hint = self.hint(text=text).hint
        label = self.sort(text=text, hint=hint).label
        return dspy.Prediction(hint=hint, label=label, verdict=self.check(text=text, label=label).verdict)


class Chain(SyncChain):
    """Three predictors; ``forward`` and ``aforward``."""

    async def aforward(self, text: str) -> dspy.Prediction:
        """Hint, label, verdict."""
        hint = (await self.hint.acall(text=text)).hint
        label = (await self.sort.acall(text=text, hint=hint)).label
        verdict = (await self.check.acall(text=text, label=label)).verdict
        return dspy.Prediction(hint=hint, label=label, verdict=verdict)


PROGRAMS: dict[str, tuple[Callable[[], dspy.Module], int, str]] = {
    "cot": (lambda: dspy.ChainOfThought(SIGNATURE), 1, "ChainOfThought, one predictor"),
    "chain": (Chain, 3, "three predictors, forward and aforward"),
    "sync-chain": (SyncChain, 3, "three predictors, forward only"),
}
"""How each is made, its LM calls per run, and what it is."""


def right(example: Any, prediction: Any, trace: Any = None) -> float:
    """The metric of both sides."""
    return float(example.label == prediction.label)


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What one process measures.

    Attributes:
        side: ``dspy``, ``ours`` (SQLite), ``memory`` (ours without a file) or ``bare`` (aiohttp alone).
        threads: Threads of DSPy; elsewhere requests at once.
    """

    side: str
    program: str
    base: str
    model: str
    threads: int
    runs: int
    body: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What it measured: CPU milliseconds per program run, wall seconds, and score and outputs of each example."""

    cpu_ms: float
    seconds: float
    results: list[Any]


def main_of_child(text: str) -> None:
    """Measure what ``text`` says and print it."""
    quiet_libraries()
    logging.disable(logging.CRITICAL)
    work = Work(**json.loads(text))
    sides = {"dspy": measure_dspy, "ours": measure_ours, "memory": measure_ours, "bare": measure_bare}
    print(json.dumps(asdict(sides[work.side](work))))


def measure_dspy(work: Work) -> Found:
    """``dspy.Evaluate`` as fast as it goes."""
    lm = dspy.LM(work.model, api_base=work.base, api_key="none", cache=False, num_retries=0)
    dspy.configure(lm=lm, disable_history=True)
    program = PROGRAMS[work.program][0]()
    data = [dspy.Example(row).with_inputs("text") for row in rows(WARM + work.runs)]
    evaluate = dspy.Evaluate(devset=data[WARM:], metric=right, num_threads=work.threads)
    evaluate(program, devset=data[:WARM])
    gc.collect()
    cpu, wall = time.process_time(), time.perf_counter()
    found = evaluate(program)
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    results = [[float(score), plain(prediction)] for _, prediction, score in found.results]
    return Found(cpu_ms=cpu * 1e3 / work.runs, seconds=wall, results=results)


def measure_ours(work: Work) -> Found:
    """The engine's runner on a run that is built as every run is, in a process set up as those of our commands are."""
    collect_rarely()
    program = PROGRAMS[work.program][0]()
    data = tuple(
        Example(inputs={"text": row["text"]}, labels={"label": row["label"]}) for row in rows(WARM + work.runs)
    )
    warm, measured = data[:WARM], data[WARM:]
    options = Options(target="bench", lm=work.model, lm_base=work.base, concurrency=work.threads, metric="")
    given = Given(program=program, metric=right, splits=Splits(train=warm, validation=measured, test=warm[:2]))
    with tempfile.TemporaryDirectory() as folder:
        settings = Settings(home=Path(folder), mlflow=False)
        archive = open_archive(settings)
        run = (
            new_run(options, given, settings, archive)
            if work.side == "ours"
            else Run(prepare(options, given, settings), MemoryNotebook(), optimization_id="bench", spent_seconds=0.0)
        )
        clocks: list[float] = []

        async def evaluate() -> list[Any]:
            job = run.job()
            runner = Optimizer(job).runner
            await runner.evaluate(job.seed, warm)
            gc.collect()
            clocks.extend((time.process_time(), time.perf_counter()))
            found = await runner.evaluate(job.seed, measured)
            run.notebook.flush()
            clocks.extend((time.process_time(), time.perf_counter()))
            if work.side == "ours":
                _check_stored(Path(folder) / "ratchet.db", len(data), PROGRAMS[work.program][1])
            return [[row.score, dict(row.prediction or {})] for row in found]

        with run.notebook.claimed():
            results = loop.run(evaluate())
        archive.close()
    cpu, wall = clocks[2] - clocks[0], clocks[3] - clocks[1]
    return Found(cpu_ms=cpu * 1e3 / work.runs, seconds=wall, results=results)


def _check_stored(file: Path, runs: int, calls: int) -> None:
    connection = sqlite3.connect(file)
    stored = connection.execute("SELECT count(*) FROM evaluations").fetchone()[0]
    replies = connection.execute("SELECT count(*) FROM replies WHERE sealed IS NOT NULL").fetchone()[0]
    connection.close()
    if stored != runs or replies != runs * calls:
        raise RuntimeError(f"{stored} of {runs} evaluations and {replies} of {runs * calls} replies are in the file")


def measure_bare(work: Work) -> Found:
    """The same number of requests, of the same size, with nothing around them."""
    body, url = work.body.encode(), f"{work.base}/chat/completions"

    async def post(session: aiohttp.ClientSession, turns: Any) -> None:
        for _ in turns:
            async with session.post(url, data=body, headers={"Content-Type": "application/json"}) as answer:
                json.loads(await answer.read())

    async def measure() -> tuple[float, float]:
        async with aiohttp.ClientSession() as session:
            await post(session, range(WARM))
            gc.collect()
            cpu, wall, turns = time.process_time(), time.perf_counter(), iter(range(work.runs))
            await asyncio.gather(*(post(session, turns) for _ in range(work.threads)))
            return time.process_time() - cpu, time.perf_counter() - wall

    cpu, wall = asyncio.run(measure())
    return Found(cpu_ms=cpu * 1e3 / work.runs, seconds=wall, results=[])


def measure(work: Work) -> Found:
    """What a process of its own measures."""
    with tempfile.TemporaryDirectory() as cache:
        environment = {"DSPY_CACHEDIR": cache, "LITELLM_LOCAL_MODEL_COST_MAP": "true"}
        found = Found(**in_child("bench.throughput", work, **environment))
    say(f"  {work.program:10} {work.side:6} {work.threads:2} at once: {found.cpu_ms:.3f} ms CPU a run")
    return found


def compare(name: str, model: str, stub: StubProcess, given: argparse.Namespace) -> dict[str, Any]:
    """All measurements of one program with one model's name, in turns."""

    def one(side: str, threads: int, **more: Any) -> Found:
        work = Work(side=side, program=name, base=stub.base(), model=model, threads=threads, runs=given.runs, **more)
        return measure(work)

    by_threads = {threads: median(one("dspy", threads).cpu_ms for _ in range(TRIALS)) for threads in THREADS}
    body = stub.sample().decode()
    best = min(by_threads, key=lambda threads: by_threads[threads])
    cpu: dict[str, list[float]] = {"dspy": [], "ours": [], "memory": [], "bare": []}
    expected: list[Any] | None = None
    for number in range(given.rounds):
        order = ["dspy", "ours", "memory"]
        for side in order[::-1] if number % 2 else order:
            found = one(side, best if side == "dspy" else given.concurrency)
            cpu[side].append(found.cpu_ms)
            expected = expected or found.results
            if found.results != expected:
                raise AssertionError(f"{name}: {side} does not agree: {_first_difference(expected, found.results)}")
        cpu["bare"].append(one("bare", given.concurrency, body=body).cpu_ms)
    calls = PROGRAMS[name][1]
    return {
        "program": name,
        "model": model,
        "runs": given.runs,
        "calls_per_run": calls,
        "dspy_by_threads": by_threads,
        "dspy_threads": best,
        "cpu_ms": cpu,
        "bare_per_run": calls * Spread.of(cpu["bare"]).median,
        "ratio": [ours / peer for ours, peer in zip(cpu["ours"], cpu["dspy"], strict=True)],
        "ratio_memory": [ours / peer for ours, peer in zip(cpu["memory"], cpu["dspy"], strict=True)],
        "equal_results": len(expected or []),
    }


def _first_difference(one: list[Any], other: list[Any]) -> str:
    pairs = enumerate(zip(one, other, strict=True))
    return next((f"example {number}: {a} and {b}" for number, (a, b) in pairs if a != b), "different lengths")


def sheet(found: list[dict[str, Any]]) -> str:
    """The measurements as a table."""
    header = [
        *("program", "model", "dspy.Evaluate, ms CPU a run", "threads", "ours, SQLite", "ours, memory", "bare aiohttp"),
        *("ours / dspy (spread, n)", "memory / dspy", "equal results"),
    ]
    lines = []
    for each in found:
        middle = {side: Spread.of(values).median for side, values in each["cpu_ms"].items()}
        lines.append(
            [
                *(
                    each["program"],
                    each["model"],
                    f"{middle['dspy']:.3f}",
                    each["dspy_threads"],
                    f"{middle['ours']:.3f}",
                ),
                *(f"{middle['memory']:.3f}", f"{each['bare_per_run']:.3f}", Spread.of(each["ratio"])),
                *(f"{Spread.of(each['ratio_memory']).median:.3f}", each["equal_results"]),
            ]
        )
    return table(header, lines)


def main() -> int:
    """Measure, print, keep; 1 when the bar is missed."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.throughput", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--programs", default=",".join(PROGRAMS), help="of " + ", ".join(PROGRAMS))
    parser.add_argument("--rounds", type=int, default=9, help="turns of each side")
    parser.add_argument("--runs", type=int, default=400, help="program runs a measurement")
    parser.add_argument("--concurrency", type=int, default=8, help="requests at once of ours and of bare aiohttp")
    parser.add_argument("--quick", action="store_true", help="a tenth of the size")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        main_of_child(given.child)
        return 0
    size = size_of(parser, given)
    if given.quick:
        given.rounds, given.runs = 2, 60
    found, bars = [], []
    names = given.programs.split(",")
    with StubProcess() as stub:
        for name in names:
            say(f"{name}: {PROGRAMS[name][2]}")
            found.append(compare(name, MODEL, stub, given))
            ratio = Spread.of(found[-1]["ratio"])
            bars.append(Bar(f"{name}: ours / dspy.Evaluate {ratio} <= {BAR:.3f}", ratio.median <= BAR))
        if not given.quick:
            say(f"{names[0]}, once more with a model that DSPy knows: for comparison, without a bar")
            found.append(compare(names[0], KNOWN_MODEL, stub, given))
    return conclude("throughput", sheet(found), bars, {"programs": found}, size=size, given=given)


if __name__ == "__main__":
    sys.exit(main())

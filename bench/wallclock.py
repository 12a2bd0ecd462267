"""Wall time of an optimization, ours beside DSPy's, against a stub LM of 300 ms with 64 slots, at equal LM calls.

    make bench-wallclock
    python -m bench.wallclock --quick
    python -m bench.wallclock --duels gepa,gepa-pxn --seeds 1 --metric-calls 800

DSPy's optimizers run as their users run them: plain DSPy, ``dspy.LM`` with its cache on (and empty), 64 threads, their
default arguments but for the budget, which is ``auto="medium"`` for ``dspy.MIPROv2``, some 1,000 calls here, and 2,200
metric calls for ``dspy.GEPA``: about the calls at which 15 % and 3 % of the slots were first seen busy. ``dspy.GEPA``
runs once with one proposal at a time, its default, and once with PxN proposals through ``gepa_kwargs``. Whatever they
call, validation included, is counted by the stub; that number is then the ``max_calls`` of ours, through
``ratchet.optimize`` with 64 requests at once. Both get the same train and validation examples and the same metric. Ours
pays out of the same calls for more: a pre-flight, a sealed test of the winner beside the baseline, everything stored.

The clock of both runs from the call that optimizes to its return; imports are not in it. "Slots busy" is the stub's
time in service over 64 times that. Quality is what the winner's prompts are worth by the stub's rule on fresh cases,
without an LM call, paired over cases.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import math
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import dspy

import ratchet
from bench.child import in_child
from bench.sheet import Bar, Spread, conclude, say, size_of, table
from bench.stub import StubProcess, Weather
from ratchet.core.statistics import Comparison, compare_paired
from ratchet.settings import quiet_libraries
from ratchet.testing.lm_server import SIGNATURE, reply, rows

TRAIN, VALIDATION, TEST = 100, 100, 400
"""Examples; the sealed test is ours alone, and the budget decides how much of it is used."""
FRESH = 10_000
"""Number of the first case that quality is measured on, from the seed's first case on."""
LEAST_BUSY = 0.60
SMALL_MIPROV2: tuple[dict[str, Any], dict[str, Any]] = (
    {"auto": None, "num_candidates": 4},
    {"num_trials": 4, "minibatch_size": 10},
)
"""Arguments of ``dspy.MIPROv2`` and of its ``compile`` for a tenth of the size."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Duel:
    """Two optimizers at equal calls.

    Attributes:
        times: How many times faster ours must be.
    """

    ours: str
    theirs: str
    times: float


DUELS = {
    "miprov2": Duel(ours="miprov2", theirs="dspy.miprov2", times=4.0),
    "gepa": Duel(ours="gepa", theirs="dspy.gepa", times=8.0),
    "gepa-pxn": Duel(ours="gepa", theirs="dspy.gepa, PxN", times=2.0),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What one process optimizes.

    Attributes:
        max_calls: Budget of ours.
        auto: Budget of ``dspy.MIPROv2``; None for 4 trials.
        metric_calls: Budget of ``dspy.GEPA``.
        slots: Threads of DSPy, requests at once of ours.
        pxn: Parents and proposals of each.
    """

    optimizer: str
    base: str
    seed: int
    sizes: tuple[int, int, int]
    slots: int
    max_calls: int | None = None
    auto: str | None = None
    metric_calls: int = 120
    pxn: tuple[int, int] = (4, 4)


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What came of it: seconds of wall and of CPU, and the winner's instructions and demos."""

    seconds: float
    cpu_seconds: float
    instructions: str
    demos: list[dict[str, Any]]
    status: str = ""


def metric(example: Any, prediction: Any, trace: Any = None, pred_name: Any = None, pred_trace: Any = None) -> Any:
    """The metric of both sides; ``dspy.GEPA`` asks for feedback too."""
    right = example.label == prediction.label
    if pred_name is None:
        return float(right)
    return dspy.Prediction(score=float(right), feedback="right" if right else f"the right label is {example.label}")


def data(seed: int, sizes: tuple[int, int, int]) -> list[list[dspy.Example]]:
    """Train, validation and test of one seed."""
    first, parts = 1_000_000 * seed, []
    for size in sizes:
        parts.append([dspy.Example(row).with_inputs("text") for row in rows(size, first=first)])
        first += size
    return parts


def main_of_child(text: str) -> None:
    """Optimize as ``text`` says and print what came of it."""
    quiet_libraries()
    logging.disable(logging.CRITICAL)
    for name in ("gepa", "optuna", "scipy.stats", "ratchet.library"):
        import_module(name)
    given = json.loads(text)
    work = Work(**{**given, "sizes": tuple(given["sizes"]), "pxn": tuple(given["pxn"])})
    peers = {"dspy.miprov2": dspy_miprov2, "dspy.gepa": dspy_gepa, "dspy.gepa, PxN": dspy_gepa}
    optimize = peers.get(work.optimizer, ours)
    with contextlib.redirect_stdout(sys.stderr):  # progress bars
        found = optimize(work)
    print(json.dumps(asdict(found)))


def _task_lm(work: Work, **more: Any) -> dspy.LM:
    return dspy.LM("openai/stub", api_base=work.base, api_key="none", **more)


def _timed(program: dspy.Module, optimize: Callable[[], dspy.Module]) -> Found:
    wall, cpu = time.perf_counter(), time.process_time()
    winner = optimize()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    predictor = winner.predictors()[0]
    return Found(
        seconds=wall,
        cpu_seconds=cpu,
        instructions=predictor.signature.instructions,
        demos=[dict(demo.items()) for demo in predictor.demos],
    )


def dspy_miprov2(work: Work) -> Found:
    """``dspy.MIPROv2`` with its defaults, or with fewer trials."""
    dspy.configure(lm=_task_lm(work))
    program, (train, validation, _) = dspy.Predict(SIGNATURE), data(work.seed, work.sizes)
    budget, more = ({"auto": work.auto}, {}) if work.auto else SMALL_MIPROV2
    optimizer = dspy.MIPROv2(metric=metric, num_threads=work.slots, seed=work.seed + 1, **budget)
    return _timed(program, lambda: optimizer.compile(program, trainset=train, valset=validation, **more))


def dspy_gepa(work: Work) -> Found:
    """``dspy.GEPA`` with its defaults, or with PxN proposals."""
    from gepa.strategies.proposal_sampling import PxNSampling

    dspy.configure(lm=_task_lm(work))
    program, (train, validation, _) = dspy.Predict(SIGNATURE), data(work.seed, work.sizes)
    optimizer = dspy.GEPA(
        metric=metric,
        num_threads=work.slots,
        reflection_lm=_task_lm(work, temperature=1.0),
        seed=work.seed,
        gepa_kwargs={"sampling_strategy": PxNSampling(*work.pxn)} if "PxN" in work.optimizer else None,
        max_metric_calls=work.metric_calls,
    )
    return _timed(program, lambda: optimizer.compile(program, trainset=train, valset=validation))


def ours(work: Work) -> Found:
    """``ratchet.optimize``."""
    program, (train, validation, test) = dspy.Predict(SIGNATURE), data(work.seed, work.sizes)
    status = []

    def optimize() -> dspy.Module:
        outcome = ratchet.optimize(
            program,
            train=train,
            validation=validation,
            test=test,
            metric=metric,
            lm="openai/stub",
            lm_base=work.base,
            algorithm=work.optimizer,
            max_calls=work.max_calls,
            concurrency=work.slots,
            seed=work.seed,
            force=True,
        )
        status.append(outcome.status)
        # The best found, also when the sealed test could not prove its gain: that is what DSPy hands over.
        best = outcome.winner or outcome.baseline
        assert best is not None
        state = best.predictors["self"]
        winner = program.deepcopy()
        winner.signature = winner.signature.with_instructions(state.instructions)
        winner.demos = [dspy.Example(dict(demo)) for demo in state.demos]
        return winner

    found = _timed(program, optimize)
    return Found(**{**asdict(found), "status": status[0]})


def run(work: Work, stub: StubProcess) -> dict[str, Any]:
    """What a process of its own did, with what the stub saw of it."""
    stub.reset()
    with tempfile.TemporaryDirectory() as folder:
        environment = {
            "DSPY_CACHEDIR": str(Path(folder) / "cache"),
            "RATCHET_HOME": str(Path(folder) / "home"),
            "RATCHET_MLFLOW": "false",  # DSPy's side tracks nothing either
        }
        found = in_child("bench.wallclock", work, **environment)
    seen = stub.stats()
    found |= {
        "optimizer": work.optimizer,
        "seed": work.seed,
        "calls": seen["requests"],
        "most_at_once": seen["most_at_once"],
        "in_service_by_second": seen["busy_by_second"],
        "busy": seen["busy_seconds"] / (work.slots * found["seconds"]),
    }
    say(
        f"  seed {work.seed}: {work.optimizer:15} {found['seconds']:6.1f} s, {found['calls']:5} calls, slots "
        f"{found['busy']:.0%} busy, {found['cpu_seconds']:.1f} s CPU {found['status']}"
    )
    say(f"    in service, by second: {' '.join(f'{busy:.0f}' for busy in found['in_service_by_second'][:60])}")
    return found


def qualities(found: dict[str, Any], *, seed: int, cases: int) -> list[float]:
    """Whether the winner is right on each of ``cases`` fresh cases, by the stub's own rule."""
    signature = dspy.Signature(SIGNATURE).with_instructions(found["instructions"])
    demos = [dspy.Example(demo) for demo in found["demos"]]
    adapter = dspy.ChatAdapter()
    scores = []
    for row in rows(cases, first=1_000_000 * seed + FRESH):
        messages = adapter.format(signature, demos, {"text": row["text"]})
        values = adapter.parse(signature, reply({"messages": messages}))
        scores.append(float(values["label"] == row["label"]))
    return scores


def fight(duel: Duel, stub: StubProcess, given: argparse.Namespace) -> dict[str, Any]:
    """One duel, once for each seed, in turns."""
    turns: list[dict[str, Any]] = []
    before: list[float] = []
    after: list[float] = []
    for seed in range(given.seeds):
        work: dict[str, Any] = {"base": stub.base(), "seed": seed, "sizes": given.sizes, "slots": given.slots}
        budget = {"auto": given.auto, "metric_calls": given.metric_calls, "pxn": given.pxn}
        theirs = run(Work(optimizer=duel.theirs, **budget, **work), stub)
        ours = run(Work(optimizer=duel.ours, max_calls=theirs["calls"], **work), stub)
        for side, all_scores in ((theirs, before), (ours, after)):
            scores = qualities(side, seed=seed, cases=given.cases)
            side["quality"] = math.fsum(scores) / given.cases
            all_scores += scores
        turns.append({"seed": seed, "theirs": theirs, "ours": ours})
    return {
        "ours": duel.ours,
        "theirs": duel.theirs,
        "times": duel.times,
        "turns": turns,
        "faster": [turn["theirs"]["seconds"] / turn["ours"]["seconds"] for turn in turns],
        "quality": compare_paired(before, after, seed=0),
    }


def bars(found: dict[str, Any]) -> list[Bar]:
    """What the duel had to show."""
    faster = Spread.of(found["faster"])
    busy = Spread.of([turn["ours"]["busy"] for turn in found["turns"]])
    quality: Comparison = found["quality"]
    name = f"{found['ours']} against {found['theirs']}"
    return [
        Bar(f"{name}: {faster} times faster, at least {found['times']:g}", faster.median >= found["times"]),
        Bar(f"{name}: slots of ours busy {busy}, at least {LEAST_BUSY}", busy.median >= LEAST_BUSY),
        Bar(f"{name}: quality {_said(quality)}, not below 0", quality.interval[1] >= 0),
        Bar(
            f"{name}: no more calls than theirs",
            all(turn["ours"]["calls"] <= turn["theirs"]["calls"] for turn in found["turns"]),
        ),
    ]


def _said(quality: Comparison) -> str:
    low, high = quality.interval
    return f"{quality.effect:+.3f} [{low:+.3f}, {high:+.3f}], n = {quality.n}"


def sheet(found: list[dict[str, Any]]) -> str:
    """The duels as a table."""
    header = [
        *("ours", "theirs", "seconds", "calls", "slots busy", "CPU seconds", "quality", "times faster (spread, n)"),
        "quality, ours - theirs [95 %], n",
    ]
    lines = []
    for each in found:
        pairs = [(turn["ours"], turn["theirs"]) for turn in each["turns"]]

        def middles(what: str, form: str, pairs: list[Any] = pairs) -> str:
            values = [Spread.of([pair[side][what] for pair in pairs]).median for side in (0, 1)]
            return " / ".join(format(value, form) for value in values)

        lines.append(
            [
                *(each["ours"], each["theirs"], middles("seconds", ".1f"), middles("calls", ".0f")),
                *(middles("busy", ".0%"), middles("cpu_seconds", ".1f"), middles("quality", ".3f")),
                *(Spread.of(each["faster"]), _said(each["quality"])),
            ]
        )
    return table(header, lines)


def main() -> int:
    """Measure, print, keep; 1 when a bar is missed."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.wallclock", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--duels", default=",".join(DUELS), help="of " + ", ".join(DUELS))
    parser.add_argument("--seeds", type=int, default=3, help="each seed has examples of its own")
    parser.add_argument("--slots", type=int, default=64, help="requests the stub serves at once, and each side sends")
    parser.add_argument("--latency", type=float, default=0.3, help="mean seconds of an answer, 30 %% more or less")
    parser.add_argument("--auto", default="medium", choices=("light", "medium", "heavy"), help="of dspy.MIPROv2")
    parser.add_argument("--metric-calls", type=int, default=2200, help="of dspy.GEPA")
    parser.add_argument("--pxn", default="4x4", help="parents and proposals of each, for dspy.GEPA with PxN")
    parser.add_argument("--cases", type=int, default=1000, help="fresh cases that quality is measured on, a seed")
    parser.add_argument("--quick", action="store_true", help="one seed, some 100 calls, 8 slots")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        main_of_child(given.child)
        return 0
    size = size_of(parser, given)
    given.pxn = tuple(int(part) for part in given.pxn.split("x"))
    given.sizes = (TRAIN, VALIDATION, TEST)
    if given.quick:
        given.seeds, given.auto, given.metric_calls = 1, None, 120
        given.sizes, given.slots, given.pxn = (30, 20, 60), 8, (2, 2)
    found = []
    with StubProcess(Weather(latency=given.latency, jitter=0.3, slots=given.slots)) as stub:
        for name in given.duels.split(","):
            say(f"{name}: {DUELS[name].ours} against {DUELS[name].theirs}")
            found.append(fight(DUELS[name], stub, given))
    passed = [bar for each in found for bar in bars(each)]
    duels = [{**each, "quality": asdict(each["quality"])} for each in found]
    return conclude("wallclock", sheet(found), passed, {"duels": duels}, size=size, given=given)


if __name__ == "__main__":
    sys.exit(main())

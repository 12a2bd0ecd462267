"""Whole optimizations against the stub server, as the acceptance tests and benches drive them.

with StubServer() as stub:
    outcome = optimize(stub.base, folder, algorithm="gepa", max_calls=100)
assert stub.requests <= 100
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from ratchet.algorithms import NATIVE
from ratchet.begin import new_run, resumed_run
from ratchet.core.errors import BudgetSpent, RatchetError
from ratchet.core.evaluation import Evaluation, Step, Usage
from ratchet.core.problem import Candidate, Example, FieldSpec, PredictorSpec, PredictorState, content_hash
from ratchet.core.request import Constraints, OptimizationRequest, Target
from ratchet.core.result import OptimizationResult
from ratchet.engine.job import Algorithms, Job
from ratchet.engine.optimize import Optimizer
from ratchet.options import Options
from ratchet.prepare import Given, prepare
from ratchet.programs.datasets import Splits
from ratchet.run import Run
from ratchet.settings import Settings
from ratchet.storage.memory import MemoryNotebook
from ratchet.storage.sql import SqlArchive
from ratchet.storage.tables import optimizations, replies
from ratchet.testing.lm import Asked, ScriptedLM
from ratchet.testing.lm_server import LABELS, SIGNATURE, reply, rows

TIMES = {"seconds", "latency_ms", "avg_latency_ms", "latency_comparison", "forecast_minutes"}
COSTS = {"spend", "optimization_id"}


def splits(train: int = 40, validation: int = 40, test: int = 60, *, first: int = 0) -> Splits:
    """Examples of the stub's own task, from case number ``first`` on."""
    parts = []
    for size in (train, validation, test):
        parts.append(
            tuple(
                Example(inputs={"text": row["text"]}, labels={"label": row["label"]}) for row in rows(size, first=first)
            )
        )
        first += size
    return Splits(train=parts[0], validation=parts[1], test=parts[2])


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How an optimization ended.

    Attributes:
        id: Its id.
        status: The status that is stored.
        result: None when it did not come to a result.
        error: What was raised.
        calls: Requests the ledger counted.
        program: Instructions and demos of the program that was handed over.
    """

    id: str
    status: str
    result: OptimizationResult | None
    error: RatchetError | None
    calls: int
    program: Any

    @property
    def essence(self) -> Any:
        """All of the result that does not tell the time, the place or the way it came about."""
        return None if self.result is None else essence(self.result.to_json())


def essence(result: Any) -> Any:
    """``result`` as JSON data, without what two runs of the same optimization may differ in."""
    if isinstance(result, dict):
        return {name: essence(value) for name, value in result.items() if name not in TIMES | COSTS}
    return [essence(value) for value in result] if isinstance(result, list | tuple) else result


def database(folder: Path) -> SqlArchive:
    """The archive in ``folder``; where the command keeps it when that is its home."""
    return SqlArchive(f"sqlite:///{folder / 'ratchet.db'}")


def begin(
    base: str, folder: Path, *, data: Splits | None = None, metric: Callable[..., Any] | None = None, **options: Any
) -> Run:
    """A new optimization, of a one-predictor program if none is named; ``options`` are those of ``Options``."""
    names = options.pop("algorithm", "gepa")
    wanted = {"target": SIGNATURE, "lm": "openai/stub", "seed": 0, "force": True, "concurrency": 4, **options}
    asked = Options(lm_base=base, algorithms=tuple(names.split(",")), **wanted)
    given = Given(splits=data or splits(), metric=metric)
    return new_run(asked, given, Settings(home=folder, mlflow=False), database(folder))


def again(identity: str, folder: Path, *, metric: Callable[..., Any] | None = None) -> Run:
    """The optimization with this id, to be gone on with."""
    return resumed_run(identity, Given(metric=metric), Settings(home=folder, mlflow=False), database(folder))


def carry_out(run: Run, *, retry_seconds: float | None = None) -> Outcome:
    """Carry ``run`` out and tell how it ended; what is not a ``RatchetError`` is raised."""
    if retry_seconds is not None:
        run.gateway.limits = replace(run.gateway.limits, retry_seconds=retry_seconds)
    result, error = None, None
    try:
        result = run.execute()
    except RatchetError as raised:
        error = raised
    archive: SqlArchive = run.notebook.database  # type: ignore[attr-defined]
    best = (result.winner or result.baseline) if result else None
    outcome = Outcome(
        id=run.id,
        status=archive.find(run.id).status,
        result=result,
        error=error,
        calls=run.gateway.calls,
        program=run.program.export(best).dump_state() if isinstance(best, Candidate) else None,
    )
    archive.close()
    return outcome


def optimize(base: str, folder: Path, *, retry_seconds: float | None = None, **options: Any) -> Outcome:
    """Begin an optimization and carry it out."""
    return carry_out(begin(base, folder, **options), retry_seconds=retry_seconds)


def work(base: str, folder: Path, options: dict[str, Any]) -> None:
    """What a process that is going to be killed does: begin, or go on with what is there. SIGINT stops it cleanly."""
    logging.disable(logging.CRITICAL)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # DSPy's progress bars
    known = identity(folder)
    run = again(known, folder) if known else begin(base, folder, **options)
    signal.signal(signal.SIGINT, lambda *_: run.cancel())
    carry_out(run)


def identity(folder: Path) -> str | None:
    """The id of the optimization in ``folder``, if one was begun and its data is kept."""
    if not (folder / "ratchet.db").exists():
        return None
    archive = database(folder)
    found = [each.id for each in archive.list() if archive.open(each.id).examples()]
    archive.close()
    return found[0] if found else None


def recorded(folder: Path) -> Counter[str]:
    """Recorded replies by the stub's hash of the request's body."""
    archive = database(folder)
    with archive.transaction() as connection:
        found = (
            connection.execute(sa.select(sa.func.json_extract(sa.cast(replies.c.sealed, sa.Text), "$.response.id")))
            .scalars()
            .all()
        )
    archive.close()
    return Counter(each.removeprefix("stub-") for each in found if each)


def reserved(folder: Path) -> int:
    """Requests noted as sent."""
    archive = database(folder)
    with archive.transaction() as connection:
        total = connection.execute(sa.select(sa.func.coalesce(sa.func.sum(replies.c.sends), 0))).scalar_one()
    archive.close()
    return int(total)


def status(folder: Path) -> str:
    """The stored status of the one optimization in ``folder``."""
    archive = database(folder)
    with archive.transaction() as connection:
        found = connection.execute(sa.select(optimizations.c.status)).scalars().all()
    archive.close()
    return str(found[0]) if found else ""


# --- problems that nothing can improve ------------------------------------------------------------------------------

HOPELESS = ("example", "prompt")
"""What the score of a hopeless problem depends on: the example alone, or also on every letter of the prompt."""


def share(*parts: object) -> float:
    """A number in [0, 1) that looks random and depends on ``parts`` alone."""
    return int(content_hash([str(part) for part in parts]), 16) / 16**16


def hopeless_run(algorithm: str, depends_on: str, *, seed: int, max_calls: int = 300) -> Run:
    """An optimization, in this process and in memory, of a DSPy program whose true quality is always 0.3."""

    def script(asked: Asked) -> str:
        turns = [{"role": role, "content": text} for role, text in (("system", asked.system), *asked.turns)]
        return reply({"messages": [*turns[:-1], {"role": "user", "content": f"({seed})"}, turns[-1]]}, hopeless=True)

    def by_example(example: Any, prediction: Any, trace: Any = None) -> float:
        return float(share(seed, example.text) < 0.3)

    options = Options(target=SIGNATURE, algorithms=(algorithm,), seed=seed, max_calls=max_calls, force=True)
    given = Given(
        splits=splits(first=1000 * seed), lm=ScriptedLM(script), metric=by_example if depends_on == "example" else None
    )
    return Run(
        prepare(options, given, Settings(mlflow=False)), MemoryNotebook(), optimization_id="null", spent_seconds=0
    )


@dataclass
class Purse:
    """A ledger for programs without LMs: each run and each text costs one call."""

    limit: int
    calls: int = 0
    sends_per_reply: float = 1.0
    stage: str = "start"
    _allowance: int | None = None
    _before: int = 0
    _kept: int = 0

    def begin_stage(self, stage: str, *, allowance: int | None = None, keep_calls: int = 0, **_: float) -> None:
        """Begin a stage."""
        self.stage, self._allowance, self._before, self._kept = stage, allowance, self.calls, keep_calls

    def left(self) -> int | None:
        """Calls the stage may still make."""
        return None if self._allowance is None else self._allowance - (self.calls - self._before)

    def recall(self, keys: tuple[str, ...]) -> None:
        """Nothing is stored, so nothing is recalled."""

    def pay(self) -> None:
        """Make one call.

        Raises:
            BudgetSpent: the limit or the allowance is reached.
        """
        left = self.left()
        if self.calls >= self.limit - self._kept or (left is not None and left <= 0):
            raise BudgetSpent(used=self.calls, limit=self.limit)
        self.calls += 1


@dataclass
class HopelessProgram:
    """A program without an LM whose score is drawn, with mean 0.3, from the example or also from the candidate."""

    seed: int
    depends_on: str
    purse: Purse

    async def run(self, candidate: Candidate, example: Example, *, repeat: int = 0) -> Evaluation:
        """One run."""
        self.purse.pay()
        drawn_from = (
            (self.seed, example.key) if self.depends_on == "example" else (self.seed, candidate.key, example.key)
        )
        score = float(share(*drawn_from) < 0.3)
        right = {"label": example.labels["label"] if score else "none"}
        return Evaluation(
            candidate=candidate.key,
            example=example,
            repeat=repeat,
            score=score,
            feedback="right" if score else "wrong",
            prediction=right,
            trace=(Step(predictor="self", inputs=dict(example.inputs), outputs=right),),
            usage=Usage(calls=1, latency_ms=1.0),
        )

    async def write(self, prompt: str, temperature: float, number: int) -> str:
        """What its reflection LM answers."""
        self.purse.pay()
        return f"```\nLook at the input and think of case {share(self.seed, prompt, number):.6f}.\n```"


def hopeless_search(algorithm: str, depends_on: str, *, seed: int, max_calls: int = 300) -> OptimizationResult:
    """The engine's result for a native algorithm on a small hopeless problem, without DSPy: a hundred take seconds."""
    data = splits(20, 20, 40, first=1000 * seed)
    purse = Purse(limit=max_calls)
    program = HopelessProgram(seed, depends_on, purse)
    start = Candidate(
        predictors={"self": PredictorState(instructions="Given the fields `text`, produce the field `label`.")}
    )
    fields = (FieldSpec(name="text", type="str"),), (FieldSpec(name="label", type="str", choices=LABELS),)
    job = Job(
        id="null",
        request=OptimizationRequest(
            target=Target(id="null"),
            algorithms=(algorithm,),
            constraints=Constraints(max_calls=max_calls),
            seed=seed,
            force=True,
        ),
        program=program,
        seed=start,
        predictors=(PredictorSpec(name="self", inputs=fields[0], outputs=fields[1]),),
        description="Sorts cases.",
        train=data.train,
        validation=data.validation,
        test=data.test,
        write=program.write,
        ledger=purse,
        notebook=MemoryNotebook(),
        algorithms=Algorithms(native={algorithm: NATIVE[algorithm]}, opaque={}),
        concurrency=8,
        emit=lambda event: None,
    )
    return asyncio.run(Optimizer(job).run())

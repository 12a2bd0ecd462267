"""Whole optimizations against the stub server, as the acceptance tests and benches drive them.

with StubServer() as stub:
    outcome = optimize(stub.base, folder, algorithm="gepa", max_calls=100)
assert stub.requests <= 100
"""

from __future__ import annotations

import signal
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from ratchet.bootstrap import Given, Options, Run, new_run, resumed_run
from ratchet.core.errors import RatchetError
from ratchet.core.problem import Candidate, Example
from ratchet.core.result import OptimizationResult
from ratchet.programs.datasets import Splits
from ratchet.settings import Settings
from ratchet.storage.sql import SqlArchive, optimizations, replies
from ratchet.testing_server import SIGNATURE, rows

TIMES = {"seconds", "latency_ms", "avg_latency_ms", "latency_comparison", "forecast_minutes"}
COSTS = {"spend", "optimization_id"}


def splits(train: int = 40, validation: int = 40, test: int = 60) -> Splits:
    """Examples of the stub's own task."""
    parts = []
    first = 0
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
    """The archive in ``folder``."""
    return SqlArchive(f"sqlite:///{folder / 'ratchet.db'}")


def begin(
    base: str, folder: Path, *, data: Splits | None = None, metric: Callable[..., Any] | None = None, **options: Any
) -> Run:
    """A new optimization of a one-predictor program; ``options`` are those of ``Options``."""
    names = options.pop("algorithm", "gepa")
    wanted = {"seed": 0, "force": True, "concurrency": 4, **options}
    asked = Options(target=SIGNATURE, lm="openai/stub", lm_base=base, algorithms=tuple(names.split(",")), **wanted)
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
    archive: SqlArchive = run.notebook._archive  # type: ignore[attr-defined]
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
    with archive._engine.connect() as connection:
        found = connection.execute(sa.select(sa.func.json_extract(replies.c.response, "$.id"))).scalars().all()
    archive.close()
    return Counter(each.removeprefix("stub-") for each in found if each)


def reserved(folder: Path) -> int:
    """Requests noted as sent."""
    archive = database(folder)
    with archive._engine.connect() as connection:
        total = connection.execute(sa.select(sa.func.coalesce(sa.func.sum(replies.c.sends), 0))).scalar_one()
    archive.close()
    return int(total)


def status(folder: Path) -> str:
    """The stored status of the one optimization in ``folder``."""
    archive = database(folder)
    with archive._engine.connect() as connection:
        found = connection.execute(sa.select(optimizations.c.status)).scalars().all()
    archive.close()
    return str(found[0]) if found else ""

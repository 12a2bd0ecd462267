"""One program on one file: the same gateway, runner and store as an optimization, without a search."""

from __future__ import annotations

import csv
import io
import json
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ratchet.core.errors import BadRequest
from ratchet.core.evaluation import Evaluation, Evaluations
from ratchet.core.problem import Example
from ratchet.engine.archive import Event, Optimization
from ratchet.engine.report import Side
from ratchet.engine.runner import Runner
from ratchet.guard import clean_rows, guarded
from ratchet.options import Options
from ratchet.prepare import Given, examples_for, identities, prepare
from ratchet.programs import loop
from ratchet.programs.datasets import Splits, read_rows, without_duplicates
from ratchet.programs.files import written_whole
from ratchet.programs.targets import resolve_target
from ratchet.publish import side
from ratchet.run import Run
from ratchet.settings import Settings
from ratchet.storage.memory import MemoryNotebook
from ratchet.storage.sql import SqlArchive

STAGE = "evaluate"
_AT_ONCE = 50
"""Examples between two tellings of how far it is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """A program about to be run on examples."""

    run: Run
    examples: tuple[Example, ...]
    emit: Callable[[Event], None]

    def execute(self) -> Evaluations:
        """All evaluations, stored; a stop or failure is stored too.

        Raises:
            RatchetError: the world failed, or it was stopped.
        """
        with self.run.telling_of_its_end():
            rows: Evaluations = loop.run(self._evaluate())
        self.run.notebook.set_status("evaluated", result={"baseline_performance": {"quality_score": rows.mean}})
        return rows

    async def _evaluate(self) -> Evaluations:
        run = self.run
        run.gateway.begin_stage(STAGE)
        self.emit(Event(kind="stage", payload={"stage": STAGE}))
        job = run.job()
        runner = Runner(
            run.program, write=job.write, ledger=run.gateway, notebook=run.notebook, concurrency=job.concurrency
        )
        done: list[Evaluation] = []
        for start in range(0, len(self.examples), _AT_ONCE):
            done += await runner.evaluate(run.program.seed, self.examples[start : start + _AT_ONCE])
            mean = Evaluations(tuple(done)).mean
            self.emit(Event(kind="evaluated", payload={"mean": mean, "n": len(done)}))
        return Evaluations(tuple(done))

    def side(self, rows: Evaluations) -> Side:
        """Means with intervals."""
        request = self.run.prepared.request
        return side(rows.rows, success_at=request.success_at, seed=request.seed)


def begin(
    options: Options,
    file: Path,
    settings: Settings,
    archive: SqlArchive,
    *,
    limit: int | None,
    emit: Callable[[Event], None],
) -> Measurement:
    """A measurement, stored and ready to be executed.

    Args:
        file: The examples.
        limit: Take the first ones only.

    Raises:
        UserError: it cannot be carried out; nothing was stored then.
    """
    module = resolve_target(options.target, kind=options.module, instructions=options.instructions).module
    rows = read_rows(file)
    options, cleaner = guarded(options, settings, archive)
    if cleaner is not None:
        rows, report = clean_rows(cleaner, rows)
        emit(Event(kind="note", payload={"message": report.told()}))
    read = examples_for(module, rows, metric=options.metric, rename=dict(options.fields), file=file)
    examples, notes = without_duplicates(read)
    examples = examples[:limit]
    for note in notes:
        emit(Event(kind="note", payload={"message": note}))
    splits = Splits(train=examples, validation=(), test=examples, notes=notes)
    prepared = prepare(options, Given(cleaner=cleaner), settings, splits=splits)
    identity = uuid.uuid4().hex[:12]
    Run(prepared, MemoryNotebook(), optimization_id=identity, spent_seconds=0.0)
    notebook = archive.start(
        Optimization(
            id=identity,
            status="running",
            created_at=datetime.now(UTC),
            request={"options": options.to_json(), "identities": identities(prepared), "kind": "evaluation"},
        )
    )
    notebook.keep_examples({"test": examples})
    run = Run(prepared, notebook, optimization_id=identity, spent_seconds=0.0, emit=emit)
    return Measurement(run=run, examples=examples, emit=emit)


def to_json(measurement: Measurement, rows: Evaluations) -> dict[str, Any]:
    """The measurement as JSON data, every row with it."""
    measured, spend = measurement.side(rows), measurement.run.spend()

    def part(name: str) -> dict[str, Any]:
        measure = getattr(measured, name)
        return {"mean": measure.mean, "interval": measure.interval}

    return {
        "evaluation_id": measurement.run.id,
        "n": len(rows),
        **{name: part(name) for name in ("quality", "success_rate", "cost_usd", "latency_ms")},
        "failures": dict(measured.failures or {}),
        "spend": {"calls": spend.calls, "usd": spend.usd, "seconds": spend.seconds},
        "rows": [row_json(row) for row in rows],
    }


def row_json(row: Evaluation) -> dict[str, Any]:
    """One row as JSON data."""
    return {
        "example": row.example.key,
        "inputs": dict(row.example.inputs),
        "labels": dict(row.example.labels),
        "prediction": None if row.prediction is None else dict(row.prediction),
        "score": row.score,
        "failure": row.failure and f"{row.failure.kind}: {row.failure.message}",
        "feedback": row.feedback,
        "cost_usd": row.usage.cost_usd,
        "latency_ms": round(row.usage.latency_ms, 1),
    }


def write_rows(path: Path, rows: Evaluations) -> None:
    """Write one line per row: CSV when the name ends so, else JSON lines.

    Raises:
        BadRequest: the file cannot be written.
    """
    data = [row_json(row) for row in rows]
    if path.suffix.lower() == ".csv":
        stream = io.StringIO(newline="")
        writer = csv.DictWriter(stream, fieldnames=list(data[0]))
        writer.writeheader()
        for line in data:
            writer.writerow({name: _cell(value) for name, value in line.items()})
        text = stream.getvalue()
    else:
        text = "".join(json.dumps(line, ensure_ascii=False, default=str) + "\n" for line in data)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with written_whole(path) as part:
            part.write_text(text, encoding="utf-8", newline="")
    except OSError as error:
        raise BadRequest(f"{path} cannot be written: {error.strerror}") from error


def _cell(value: Any) -> Any:
    return json.dumps(value, ensure_ascii=False, default=str) if isinstance(value, dict) else value

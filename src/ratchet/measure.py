"""One program on one file: the same gateway, runner and store as an optimization, without a search."""

from __future__ import annotations

import csv
import io
import json
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ratchet.begin import check_unchanged
from ratchet.core.errors import BadRequest
from ratchet.core.evaluation import Evaluation, Evaluations
from ratchet.core.problem import Example
from ratchet.core.result import Status
from ratchet.engine.archive import Event, Optimization
from ratchet.engine.optimize import refuse_hopeless
from ratchet.engine.report import Side
from ratchet.engine.runner import Runner
from ratchet.guard import clean_rows, guarded
from ratchet.options import Options
from ratchet.prepare import Given, examples_for, identities, prepare
from ratchet.programs import loop
from ratchet.programs.datasets import Row, Splits, without_duplicates
from ratchet.programs.files import written_whole
from ratchet.programs.targets import resolve_target
from ratchet.publish import check_folder, side
from ratchet.run import Run
from ratchet.settings import Settings
from ratchet.storage.memory import MemoryNotebook
from ratchet.storage.sql import SqlArchive

STAGE = "evaluate"
KIND = "evaluation"
ROWS = "rows.jsonl"
"""The file of a stored evaluation: one line per example."""
_AT_ONCE = 50
"""Examples between two tellings of how far it is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """A program about to be run on examples."""

    run: Run
    examples: tuple[Example, ...]

    def execute(self) -> Evaluations:
        """All evaluations, stored; a stop or failure is stored too. Rows that are stored already are not run again.

        Raises:
            RatchetError: the world failed, or it was stopped.
            UserError: no run could be scored, because of the metric or the program.
            InUse: another process is working on it.
        """
        run = self.run
        with run.notebook.claimed():
            try:
                run.notebook.set_status("running")
                with run.telling_of_its_end():
                    try:
                        with run.resting():
                            rows: Evaluations = loop.run(self._evaluate())
                    finally:
                        run.gateway.land()
                    refuse_hopeless(rows, of="example")
                kept = {"baseline_performance": {"quality_score": rows.mean}, **self.summary(rows)}
                run.notebook.set_status("evaluated", result=kept)
            finally:
                run.gateway.close()
        return rows

    async def _evaluate(self) -> Evaluations:
        run = self.run
        run.gateway.begin_stage(STAGE)
        before = {(event.kind, event.payload.get("n")) for _, event in run.notebook.events()}

        def tell(kind: str, **payload: Any) -> None:
            run.tell(
                Event(kind=kind, payload={"calls": run.gateway.calls, **payload}),
                keep=(kind, payload.get("n")) not in before,  # one that is resumed goes through its beginning again
            )

        tell("stage", stage=STAGE)
        job = run.job()
        runner = Runner(
            run.program, write=job.write, ledger=run.gateway, notebook=run.notebook, concurrency=job.concurrency
        )
        done: list[Evaluation] = []
        for start in range(0, len(self.examples), _AT_ONCE):
            done += await runner.evaluate(run.program.seed, self.examples[start : start + _AT_ONCE])
            tell("evaluated", mean=Evaluations(tuple(done)).mean, n=len(done))
        return Evaluations(tuple(done))

    def side(self, rows: Evaluations) -> Side:
        """Means with intervals."""
        request = self.run.prepared.request
        return side(rows.rows, success_at=request.success_at, seed=request.seed)

    def summary(self, rows: Evaluations) -> dict[str, Any]:
        """What was measured, as JSON data."""
        measured, spend = self.side(rows), self.run.spend()

        def part(name: str) -> dict[str, Any]:
            measure = getattr(measured, name)
            return {"mean": measure.mean, "interval": measure.interval}

        return {
            "evaluation_id": self.run.id,
            "n": len(rows),
            **{name: part(name) for name in MEASURES},
            "failures": dict(measured.failures or {}),
            "spend": {"calls": spend.calls, "usd": spend.usd, "seconds": spend.seconds},
        }


MEASURES = ("quality", "success_rate", "cost_usd", "latency_ms")


def begin(
    options: Options,
    rows: Sequence[Row],
    settings: Settings,
    archive: SqlArchive,
    *,
    file: str | Path,
    limit: int | None,
    status: Status = "running",
    emit: Callable[[Event], None] = lambda event: None,
) -> Measurement:
    """A measurement, stored and ready to be executed.

    Args:
        rows: The examples.
        file: Where they come from, to be named when one cannot be used.
        limit: Take the first ones only.
        status: How it is stored.

    Raises:
        UserError: it cannot be carried out; nothing was stored then.
    """
    module = resolve_target(options.target, kind=options.module, instructions=options.instructions).module
    options, cleaner = guarded(options, settings, archive)
    if cleaner is not None:
        rows, report = clean_rows(cleaner, rows)
        emit(Event(kind="note", payload={"message": report.told()}))
    read = examples_for(module, rows, metric=options.metric, rename=dict(options.fields), file=file)
    examples, notes = without_duplicates(read)
    examples = examples[:limit]
    for note in notes:
        emit(Event(kind="note", payload={"message": note}))
    prepared = prepare(options, Given(cleaner=cleaner), settings, splits=_splits(examples, notes))
    identity = uuid.uuid4().hex[:12]
    Run(prepared, MemoryNotebook(), optimization_id=identity, spent_seconds=0.0)
    notebook = archive.start(
        Optimization(
            id=identity,
            status=status,
            created_at=datetime.now(UTC),
            request={"options": options.to_json(), "identities": identities(prepared), "kind": KIND},
        )
    )
    notebook.keep_examples({"test": examples})
    run = Run(prepared, notebook, optimization_id=identity, spent_seconds=0.0, emit=emit)
    return Measurement(run=run, examples=examples)


def resumed(identity: str, settings: Settings, archive: SqlArchive) -> Measurement:
    """A measurement that was begun before, ready to go on where it stopped.

    Raises:
        BadRequest: the program, the model or the data is no longer what it was.
    """
    stored = archive.find(identity)
    notebook = archive.open(identity, anew=True)
    options = Options.from_json(stored.request["options"])
    _, cleaner = guarded(options, settings, archive)
    examples = notebook.examples()["test"]
    prepared = prepare(options, Given(cleaner=cleaner), settings, splits=_splits(examples, ()))
    check_unchanged(stored, prepared)
    run = Run(prepared, notebook, optimization_id=identity, spent_seconds=stored.seconds)
    return Measurement(run=run, examples=tuple(examples))


def _splits(examples: Sequence[Example], notes: tuple[str, ...]) -> Splits:
    """All are measured on; ``train`` has them too, as it tells what a task looks like, and nothing learns from it."""
    return Splits(train=tuple(examples), validation=(), test=tuple(examples), notes=notes)


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


def as_lines(data: Sequence[Mapping[str, Any]]) -> str:
    """Rows, one line of JSON each."""
    return "".join(json.dumps(line, ensure_ascii=False, default=str) + "\n" for line in data)


def check_file(path: Path) -> None:
    """Make the folder of ``path``, so that a place that cannot be written to is known before anything is paid.

    Raises:
        BadRequest: it is a folder itself, or cannot be written to.
    """
    if path.is_dir():
        raise BadRequest(f"{path} is a folder; give a file, such as --out {path / 'rows.csv'}")
    check_folder(path.parent)


def write_rows(path: Path, data: Sequence[Mapping[str, Any]]) -> None:
    """Write one line per row: CSV when the name ends so, else JSON lines.

    Raises:
        BadRequest: the file cannot be written.
    """
    if path.suffix.lower() == ".csv":
        stream = io.StringIO(newline="")
        writer = csv.DictWriter(stream, fieldnames=list(data[0]))
        writer.writeheader()
        for line in data:
            writer.writerow({name: _cell(value) for name, value in line.items()})
        text = stream.getvalue()
    else:
        text = as_lines(data)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with written_whole(path) as part:
            part.write_text(text, encoding="utf-8", newline="")
    except OSError as error:
        raise BadRequest(f"{path} cannot be written: {error.strerror}") from error


def _cell(value: Any) -> Any:
    return json.dumps(value, ensure_ascii=False, default=str) if isinstance(value, dict) else value

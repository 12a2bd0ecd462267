"""What the service can be asked for: each a call that its routes, its commands and its tests make alike."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol

from ratchet.admission import check_options, check_target
from ratchet.core.access import Actor
from ratchet.core.errors import BadRequest
from ratchet.engine.archive import Event
from ratchet.options import Options
from ratchet.programs.datasets import read_rows
from ratchet.programs.targets import resolve_target
from ratchet.run import Given, new_run
from ratchet.settings import Settings
from ratchet.storage.audit import Audit, state_hash
from ratchet.storage.jobs import Job, Jobs, Wanted
from ratchet.storage.keys import Keys
from ratchet.storage.shelf import Dataset, Shelf, StoredTarget
from ratchet.storage.sql import SqlArchive, SqlNotebook

FILES: Mapping[str, str] = {
    "certificate": "certificate.json",
    "program": "program.json",
    "report": "report.html",
    "result": "result.json",
}
"""The files of an optimization, by what they are called in an address."""

UPLOADS: Mapping[str, str] = {
    "application/x-ndjson": ".jsonl",
    "application/jsonl": ".jsonl",
    "application/json": ".json",
    "text/csv": ".csv",
    "text/tab-separated-values": ".tsv",
    "application/vnd.apache.parquet": ".parquet",
}
"""The kinds of data that are taken, and how a file of each ends."""


class Queue(Protocol):
    """Where optimizations wait for a worker."""

    def enqueue(self, job: Job) -> None:
        """Have ``job`` worked on."""

    def cancel(self, job: Job) -> None:
        """Take ``job`` out."""

    def close(self) -> None:
        """Give back what it holds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How an optimization is getting on; what is not known yet is None.

    Attributes:
        phase: The stage it is in.
        progress: Share of its budget that is used: of the calls when they are limited, else of the time.
        best_so_far: The best candidate on validation, with its mean and n.
        spend: What it cost so far.
        forecast: What the pre-flight measured and forecast.
        events: The number of the newest event is not below this.
    """

    id: str
    status: str
    wanted: Wanted
    phase: str | None
    progress: float
    best_so_far: Mapping[str, Any] | None
    baseline: Mapping[str, Any] | None
    spend: Mapping[str, Any]
    forecast: Mapping[str, Any] | None
    reason: str


class Desk:
    """Answers for every tenant; nobody is told of another tenant's things.

    Args:
        settings: Of this installation.
        archive: Where optimizations are kept.
        queue: Where they wait.
        clock: Tells the time.
    """

    def __init__(self, settings: Settings, archive: SqlArchive, queue: Queue, *, clock: Callable[[], datetime]) -> None:
        self.settings = settings
        self.clock = clock
        self.audit = Audit(archive, clock=clock)
        self.keys = Keys(archive, self.audit)
        self.jobs = Jobs(archive, self.audit)
        self.shelf = Shelf(archive, self.audit)
        self.archive = archive
        self._queue = queue

    def close(self) -> None:
        """Give back all connections."""
        self._queue.close()
        self.archive.close()

    # --- optimizations -----------------------------------------------------------------------------------------------

    def optimize(
        self,
        actor: Actor,
        options: Options,
        *,
        target: str | Mapping[str, Any],
        data: Mapping[str, str],
        priority: int = 100,
        repeat_key: str | None = None,
    ) -> Job:
        """A new optimization, in the queue.

        Args:
            options: What is asked for; its target and files are not looked at.
            target: A stored target, or how one is built.
            data: Data sets by the name of the option whose file they stand for: ``data``, or ``train`` and so on.
            priority: From 1, which goes first.
            repeat_key: The same key and request give the same optimization.

        Raises:
            UserError: the request cannot be carried out; nothing was stored then.
        """
        fingerprint = state_hash([options.to_json(), target, dict(data), priority]) or ""
        repeat = None if repeat_key is None else (repeat_key, fingerprint)
        known = repeat and self.jobs.repeated(actor.tenant, *repeat)
        if known:
            return self.jobs.find(actor.tenant, known)
        name, spec = ("inline", target) if isinstance(target, Mapping) else self._target(actor, target)
        asked = replace(options, tenant=actor.tenant, **check_target(spec, self.settings))
        check_options(asked, self.settings)
        if not data:
            raise BadRequest("no data was given; give data, or train, validation and test", field="data")
        sets = {part: self.shelf.dataset(actor.tenant, reference) for part, reference in data.items()}
        rows = {part: self.shelf.rows(dataset) for part, dataset in sets.items()}
        run = new_run(asked, Given(rows=rows), self.settings, self.archive, status="queued")
        run.notebook.note(Event(kind="queued", payload={"target": name, "by": actor.name}))
        run.notebook.flush()
        job = self.jobs.submit(
            actor,
            run.id,
            target=name,
            data={part: f"{dataset.name}@{dataset.version}" for part, dataset in sets.items()},
            priority=priority,
            repeat=repeat,
        )
        self._queue.enqueue(job)
        return job

    def _target(self, actor: Actor, reference: str) -> tuple[str, Mapping[str, Any]]:
        stored = self.shelf.target(actor.tenant, reference)
        return f"{stored.name}@{stored.version}", stored.spec

    def stop(self, actor: Actor, identity: str, wanted: Wanted) -> Job:
        """Have an optimization paused or cancelled; what was recorded stays.

        Raises:
            UserError: there is none, or it has come to rest already.
        """
        before = self.jobs.find(actor.tenant, identity)
        job = self.jobs.stop(actor, identity, wanted)
        self._queue.cancel(job) if job.status != "running" else None
        if job.status != before.status:  # nobody works on it who could tell
            notebook = self.archive.open(identity)
            notebook.note(Event(kind="ended", payload={"status": job.status, "reason": ""}))
            notebook.flush()
        return job

    def resume(self, actor: Actor, identity: str) -> Job:
        """Have an optimization go on that was paused or cancelled, or that failed; no recorded reply is paid again.

        Raises:
            UserError: there is none, or it does not wait for that.
        """
        job = self.jobs.resume(actor, identity)
        if job.status == "queued":
            self._queue.enqueue(job)
        return job

    def progress(self, actor: Actor, identity: str) -> Progress:
        """How an optimization is getting on.

        Raises:
            Missing: there is none.
        """
        job = self.jobs.find(actor.tenant, identity)
        told = self.jobs.latest(identity, ("stage", "best", "preflight"))
        options = self.archive.find(identity, settled=False).request["options"]
        spent = SqlNotebook(self.archive, identity).journal.sent(settled=False)
        limit = options["max_calls"]
        share = spent.calls / limit if limit else job.seconds / (60 * options["max_minutes"])
        # What is best first is the program as it is.
        first = next((each for each in self.jobs.events(identity, after=0, limit=40) if each.kind == "best"), None)
        done = job.status in ("improved", "no_proven_gain", "declined")
        return Progress(
            id=identity,
            status=job.status,
            wanted=job.wanted,
            phase=told.get("stage", {}).get("stage"),
            progress=1.0 if done else min(1.0, share),
            best_so_far=_measured(told.get("best")),
            baseline=_measured(first.payload if first else None),
            spend={
                "calls": spent.calls,
                "recorded": spent.recorded,
                "prompt_tokens": spent.prompt_tokens,
                "completion_tokens": spent.completion_tokens,
                "usd": None if spent.unpriced else spent.usd,
                "seconds": job.seconds,
                "by_phase": dict(spent.by_stage),
            },
            forecast=told.get("preflight"),
            reason=job.reason,
        )

    # --- data sets and targets ---------------------------------------------------------------------------------------

    def keep_dataset(self, actor: Actor, name: str, file: Path) -> tuple[Dataset, bool]:
        """A data set read from an uploaded file, and whether it is a new version.

        Raises:
            BadData: a row cannot be used; the message names it.
            BadRequest: the name cannot be used.
        """
        return self.shelf.keep_dataset(actor, name, read_rows(file), size=file.stat().st_size)

    def keep_target(self, actor: Actor, name: str, spec: Mapping[str, Any]) -> tuple[StoredTarget, bool]:
        """A target, and whether it is a new version; it was built once, so that it is known to work.

        Raises:
            UserError: it may not be used, or cannot.
        """
        options = check_target(spec, self.settings)
        kind = options.get("module", "predict")
        resolve_target(options["target"], kind=kind, instructions=options.get("instructions"))
        return self.shelf.keep_target(actor, name, {key: value for key, value in spec.items() if value is not None})


def _measured(payload: Mapping[str, Any] | None) -> dict[str, Any] | None:
    return payload and {name: payload[name] for name in ("candidate", "mean", "n")}  # type: ignore[return-value]

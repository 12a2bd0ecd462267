"""How an optimization of the service is getting on, from what is stored of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ratchet.core.result import ENDED
from ratchet.storage.jobs import Jobs, Wanted
from ratchet.storage.notebook import SqlNotebook
from ratchet.storage.sql import SqlArchive
from ratchet.storage.told import Events


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How an optimization is getting on; what is not known yet is None.

    Attributes:
        phase: The stage it is in.
        progress: Share of its budget that is used: of the calls when they are limited, else of the time.
        best_so_far: The best candidate on validation, with its mean and n.
        spend: What it cost so far.
        forecast: What the pre-flight measured and forecast.
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


def progress(archive: SqlArchive, jobs: Jobs, events: Events, tenant: str, identity: str) -> Progress:
    """How an optimization of a tenant is getting on.

    Raises:
        Missing: it has none with this id.
    """
    with archive.together():
        job = jobs.find(tenant, identity)
        told = events.first_and_latest(identity, ("stage", "best", "preflight"))
        options = archive.find(identity, settled=False).request["options"]
        spent = SqlNotebook(archive, identity).journal.sent(settled=False)
    baseline, best = told.get("best", (None, None))  # what is best first is the program as it is
    _, stage = told.get("stage", (None, {}))
    _, forecast = told.get("preflight", (None, None))
    limit = options["max_calls"]
    share = spent.calls / limit if limit else job.seconds / (60 * options["max_minutes"])
    done = job.status in ENDED
    return Progress(
        id=identity,
        status=job.status,
        wanted=job.wanted,
        phase=stage.get("stage"),
        progress=1.0 if done else min(1.0, share),
        best_so_far=_measured(best),
        baseline=_measured(baseline),
        spend={
            "calls": spent.calls,
            "recorded": spent.recorded,
            "prompt_tokens": spent.prompt_tokens,
            "completion_tokens": spent.completion_tokens,
            "usd": None if spent.unpriced else spent.usd,
            "seconds": job.seconds,
            "by_phase": dict(spent.by_stage),
        },
        forecast=forecast,
        reason=job.reason,
    )


def _measured(payload: Mapping[str, Any] | None) -> dict[str, Any] | None:
    return payload and {name: payload[name] for name in ("candidate", "mean", "n")}  # type: ignore[return-value]

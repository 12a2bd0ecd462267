"""Follows an optimization on a server to its end, and shows how it gets on."""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import dataclass

from rich.console import Console

from ratchet.cli.progress import Progress
from ratchet.client import Client, Json
from ratchet.core.errors import RatchetError
from ratchet.engine.archive import Event

PATIENCE_SECONDS = 5.0
"""How long is waited for a status to follow the last event."""


@dataclass
class _Meter:
    """Calls and dollars of an optimization elsewhere."""

    client: Client
    identity: str
    calls: int = 0
    usd: float | None = 0.0

    def dollars(self) -> float | None:
        """Asked of the server; what it said last when it does not answer."""
        with suppress(RatchetError):  # the stream of events tells what is wrong
            self.usd = self.client.status(self.identity)["spend"]["usd"]
        return self.usd


def watched(client: Client, job: Json, *, name: str = "") -> Json:
    """The optimization once it is at rest; until then its progress is shown, under ``name`` where it has one."""
    identity, asked = job["id"], job["request"]["options"]
    progress = Progress(
        Console(stderr=True), max_calls=asked["max_calls"], max_seconds=float(asked["max_minutes"]) * 60
    )
    meter = _Meter(client, identity)
    with progress:
        progress.tell(f"{name and f'{name}: '}optimization {identity} on {client.url}")
        progress.watch(lambda: meter.calls, meter.dollars, spent_seconds=job["seconds"])
        for event in client.events(identity):
            meter.calls = event.payload.get("calls", meter.calls)
            progress(Event(kind=event.kind, payload=event.payload))
            if event.kind == "ended" and client.optimization(identity)["wanted"] == "pause":
                break  # the stream stays open for whoever waits until it is resumed
    return _rested(client, identity)


def _rested(client: Client, identity: str) -> Json:
    """The optimization; its last event is told a moment before its status is."""
    end = time.monotonic() + PATIENCE_SECONDS
    while True:
        job = client.optimization(identity)
        if job["status"] != "running" or job["wanted"] == "run" or time.monotonic() > end:
            return job
        time.sleep(0.05)

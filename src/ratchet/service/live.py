"""Events as they happen, to as many listeners as there are; a slow one holds up nobody."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager, suppress

from ratchet.core.errors import Missing, StorageUnavailable
from ratchet.desk import Desk
from ratchet.storage.told import Told

PULSE_SECONDS = 0.1
"""How often is looked for new events, once for all listeners."""
PATIENCE_SECONDS = 2.0
"""How long a listener waits before it looks by itself: a database server may show events out of order."""
AT_ONCE = 200
"""Events of one reading; a listener that is slow has no more than this waiting in memory."""


class Pulse:
    """Rings for listeners when something happened in their optimization, in this process or in another."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._bells: dict[str, set[asyncio.Event]] = defaultdict(set)
        self.closed = False

    def close(self) -> None:
        """Let all listeners go: the server stops, and they are to come back to the next one."""
        self.closed = True
        for bells in self._bells.values():
            for bell in bells:
                bell.set()

    async def run(self) -> None:
        """Look for news until cancelled."""
        place: int | None = None
        while True:
            await asyncio.sleep(PULSE_SECONDS)
            if not self._bells:
                place = None
                continue
            with suppress(StorageUnavailable):  # listeners meet it themselves
                if place is None:
                    place = await asyncio.to_thread(self._desk.events.newest_place)
                    changed = set(self._bells)  # something may have happened since they looked
                else:
                    place, changed = await asyncio.to_thread(self._desk.events.news, after=place)
                for identity in changed & self._bells.keys():
                    for bell in self._bells[identity]:
                        bell.set()

    @contextmanager
    def bell(self, identity: str) -> Iterator[asyncio.Event]:
        """What rings when something happened, or might have."""
        bell = asyncio.Event()
        self._bells[identity].add(bell)
        try:
            yield bell
        finally:
            self._bells[identity].discard(bell)
            if not self._bells[identity]:
                del self._bells[identity]


async def follow(desk: Desk, pulse: Pulse, *, tenant: str, identity: str, after: int) -> AsyncIterator[Told | None]:
    """Every event numbered above ``after``, in order; None when nothing happened for a while.

    It ends when the optimization has come to rest and all was told, when it is erased, or when the server stops.
    """
    place: int | None = None
    seen = await asyncio.to_thread(desk.events.of, identity, after=after - 1, limit=1) if after > 0 else []
    complete = bool(seen) and seen[0].kind == "ended"  # whether the last word was said
    with pulse.bell(identity) as bell:
        while not pulse.closed:
            bell.clear()  # before looking, so that nothing that comes now is slept through
            try:
                job = await asyncio.to_thread(desk.jobs.find, tenant, identity)
            except Missing:  # it was erased
                return
            told = await asyncio.to_thread(desk.events.of, identity, after=after, place=place, limit=AT_ONCE)
            for event in told:
                yield event
                after, place = event.sequence, event.place
                complete = event.kind == "ended"
            if told:
                continue
            if job.ended and complete:  # known before the events were read, so that none can have come since
                return
            complete = job.ended  # the last word comes a moment after the status, or never: a worker died between them
            yield None
            with suppress(TimeoutError):
                await asyncio.wait_for(bell.wait(), PATIENCE_SECONDS)

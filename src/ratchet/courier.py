"""Brings what happened to whoever listens: at least once, in order within each optimization.

One process at a time does it, the one that holds the claim; when it dies, another has the claim at once and goes on at
the cursors. A cursor moves after its event arrived: an event that was under way then is delivered again, with the
same id.
"""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Protocol

import sqlalchemy as sa

from ratchet.core.cloudevent import CloudEvent, fits
from ratchet.core.errors import RatchetError, Tampered, where
from ratchet.core.patience import Patience
from ratchet.storage.claims import Claims
from ratchet.storage.outbox import TRAIL, Cursor, DeadLetter, Letter, Outbox, Outlet, Overtaken, Stream

CLAIM = "courier"
LOOK_SECONDS = 0.5
"""How often is looked for what is new."""
LATE_SECONDS, LATE_EVENTS = 30.0, 10_000
"""How far is looked behind what was seen: PostgreSQL may show an event after one with a higher number."""
MOVE_SECONDS = 5.0
"""How often the places of the outlets are kept."""
TOLD = 1_000
"""Lines that are not said again."""


class Undelivered(Exception):
    """An event was not taken.

    Args:
        message: Why.
        gone: Whether nothing will ever be taken there again.
        wait_seconds: How long not to try again, as whoever should have taken it says.
    """

    def __init__(self, message: str, *, gone: bool = False, wait_seconds: float = 0.0) -> None:
        super().__init__(message)
        self.gone = gone
        self.wait_seconds = wait_seconds


class Sink(Protocol):
    """Takes events."""

    async def send(self, event: CloudEvent) -> None:
        """Deliver one event.

        Raises:
            Undelivered: it was not taken.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class Door:
    """A way out: where events of an outlet go.

    Attributes:
        sink: Takes them.
        patience: With it.
        at_once: Streams that are delivered side by side.
    """

    sink: Sink
    patience: Patience
    at_once: int = 16


@dataclass
class _Waiting:
    """A stream with something to deliver.

    Attributes:
        failures: How often, without a break, it could not even be tried.
    """

    stream: Stream
    last: int
    cursor: Cursor | None = None
    due: datetime | None = None
    failures: int = 0
    task: asyncio.Task[None] | None = None


@dataclass
class _Line:
    """What is to be delivered to one outlet.

    Attributes:
        waiting: Streams with something to deliver.
        done: Up to where other streams were delivered.
        ill: Whether the last event was not taken.
    """

    outlet: Outlet
    door: Door
    ill: bool = False
    waiting: dict[str, _Waiting] = field(default_factory=dict)
    done: dict[str, int] = field(default_factory=dict)

    def mark(self, stream: Stream, last: int) -> None:
        """Note that the newest of ``stream`` stands at ``last``."""
        if self.outlet.tenant not in (None, stream.tenant) or self.done.get(stream.name, -1) >= last:
            return
        found = self.waiting.setdefault(stream.name, _Waiting(stream=stream, last=last))
        found.last = max(found.last, last)

    def floor(self, *, trail: bool, newest: int, known: int) -> int:
        """Up to where everything was delivered, or has a cursor from which it will be.

        Args:
            newest: Where what was seen ends.
            known: What was kept before; it holds while a cursor is not known yet.
        """
        mine = [each for each in self.waiting.values() if each.stream.is_trail == trail]
        places = [each.cursor.place if each.cursor else known for each in mine]
        return max(known, min([newest, *places]))


class Courier:
    """Delivers; each process may have one, and one of all is at work.

    Args:
        outbox: What is to be delivered.
        claims: Say which courier is at work.
        door: The way out of an outlet; None where there is none here.
        chores: What whoever is at work also does at each look.
        closing: Awaited at the end.
        clock: Tells the time.
        rng: Spreads tries.
        say: Told what an operator should know.
    """

    def __init__(
        self,
        outbox: Outbox,
        claims: Claims,
        *,
        door: Callable[[Outlet], Door | None],
        chores: Sequence[Callable[[], None]] = (),
        closing: Sequence[Callable[[], Awaitable[None]]] = (),
        clock: Callable[[], datetime],
        rng: random.Random,
        say: Callable[[str], None],
    ) -> None:
        self._outbox = outbox
        self._claims = claims
        self._door = door
        self._chores = chores
        self._closing = closing
        self._clock = clock
        self._rng = rng
        self._say = say
        self._told: deque[str] = deque(maxlen=TOLD)
        self._lines: dict[str, _Line] = {}
        self._seen: deque[tuple[float, int]] = deque()
        self._entry = 0
        self._moved = 0.0
        self._redelivering: set[asyncio.Task[None]] = set()
        self._holding = self._overtaken = False
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    # --- its life ----------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin, in a thread."""
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), name="ratchet-courier", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop; what is under way is delivered again by another."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    async def _run(self) -> None:
        try:
            while not self._stop.is_set():
                await self.turn()
                await asyncio.sleep(LOOK_SECONDS)
        finally:
            await self.stop()

    async def turn(self) -> None:
        """Look, if this one is at work or can be."""
        if self._overtaken:
            self._say("somebody else has delivered events too, or a webhook was changed: beginning anew")
            await self._let_go()
        if not await self._went_well("events wait", self._look_if_held()):
            await self._let_go()

    async def _look_if_held(self) -> None:
        if self._holding or self._claims.take(CLAIM):
            self._holding = True
            await self.look()

    async def _went_well(self, what: str, work: Awaitable[None]) -> bool:
        """Whether it did; what went wrong is told, and everything else goes on."""
        try:
            await work
        except (RatchetError, sa.exc.SQLAlchemyError) as error:
            self._tell(f"{what}: {error}")
        except Exception as error:  # the outermost turn of a look, a stream and a chore, which calls what users wrote
            self._tell(f"{what}, by a bug:\n{where(error)}")
        else:
            return True
        return False

    async def stop(self) -> None:
        """Leave what is under way to another, and close all connections."""
        await self._let_go()
        for close in self._closing:
            await close()

    async def _let_go(self) -> None:
        """Forget everything but what is kept, and let another have the claim."""
        under_way = [each.task for line in self._lines.values() for each in line.waiting.values() if each.task]
        for task in [*under_way, *self._redelivering]:
            task.cancel()
        await asyncio.gather(*under_way, *self._redelivering, return_exceptions=True)
        self._lines.clear()
        self._seen.clear()
        self._overtaken = False
        if self._holding:
            self._holding = False
            self._claims.release(CLAIM)

    def _tell(self, line: str) -> None:
        """Say ``line``, but not again and again."""
        if line not in self._told:
            self._told.append(line)
            self._say(line)

    # --- one look ----------------------------------------------------------------------------------------------------

    async def look(self) -> None:
        """See what is new, and begin to deliver what is due."""
        for chore in self._chores:
            await self._went_well("a chore is left undone", asyncio.to_thread(chore))
        outlets = {outlet.id: outlet for outlet in self._outbox.active()}
        for gone in self._lines.keys() - outlets.keys():
            for each in self._lines.pop(gone).waiting.values():
                if each.task is not None:
                    each.task.cancel()
        if outlets:
            self._discover(outlets)
        now = self._clock()
        for line in self._lines.values():
            self._begin(line, now)
        self._redeliver(now)
        self._keep_places()
        await asyncio.sleep(0)

    async def settle(self) -> None:
        """Wait until nothing is under way."""
        while tasks := [*self._redelivering] + [
            each.task for line in self._lines.values() for each in line.waiting.values() if each.task
        ]:
            await asyncio.gather(*tasks, return_exceptions=True)
            await asyncio.sleep(0)

    def _discover(self, outlets: dict[str, Outlet]) -> None:
        new = []
        for identity, outlet in outlets.items():
            if identity not in self._lines and (door := self._door(outlet)) is not None:
                new.append(_Line(outlet, door))
        newest, entry = self._outbox.newest()
        if self._lines:
            changed = self._outbox.changed(place=self._looked_behind(), entry=self._entry)
            for stream, last in changed.items():
                for line in self._lines.values():
                    line.mark(stream, last)
        for line in new:
            place = line.outlet.place
            for stream, last in self._outbox.changed(place=place, entry=line.outlet.entry).items():
                line.mark(stream, last)
            self._lines[line.outlet.id] = line
            self._seen.append((time.monotonic(), max(place, newest - LATE_EVENTS)))
        self._entry = entry
        self._seen.append((time.monotonic(), newest))
        while len(self._seen) > 1 and self._seen[1][0] < time.monotonic() - LATE_SECONDS:
            self._seen.popleft()

    def _looked_behind(self) -> int:
        """Everything up to here was seen, long enough ago that nothing can turn up before it."""
        return min(place for _, place in self._seen)

    def _begin(self, line: _Line, now: datetime) -> None:
        under_way = sum(each.task is not None for each in line.waiting.values())
        # An endpoint that may be down is tried with one stream at a time, whichever has waited longest.
        free = (1 if line.ill else line.door.at_once) - under_way
        due = [each for each in line.waiting.values() if each.task is None and (each.due is None or each.due <= now)]
        for each in sorted(due, key=lambda each: each.due or now)[: max(0, free)]:
            each.task = asyncio.create_task(self._deliver(line, each))

    async def _deliver(self, line: _Line, waiting: _Waiting) -> None:
        """Bring a stream's events, until one is not taken or there are no more."""
        try:
            if await self._went_well(f"events of {waiting.stream.name} wait", self._bring(line, waiting)):
                waiting.failures = 0
            else:
                waiting.failures += 1
                waiting.due = self._clock() + line.door.patience.wait(waiting.failures, self._rng)
        finally:
            waiting.task = None

    async def _bring(self, line: _Line, waiting: _Waiting) -> None:
        try:
            waiting.due = await self._bring_all(line, waiting)
        except Overtaken:
            self._overtaken = True
            return
        place = waiting.cursor.place if waiting.cursor else -1
        if waiting.due is None and place >= waiting.last:
            line.done[waiting.stream.name] = place
            line.waiting.pop(waiting.stream.name, None)

    async def _bring_all(self, line: _Line, waiting: _Waiting) -> datetime | None:
        """When to come again; None when everything was taken."""
        stream = waiting.stream
        cursor = waiting.cursor = self._outbox.cursor(line.outlet, stream)
        if cursor.next_at is not None and cursor.next_at > self._clock():
            return cursor.next_at
        passed: Letter | None = None  # behind the cursor, and of no interest
        while letters := self._letters(stream, _behind(cursor, passed)):
            for letter in letters:
                passed = letter
                if letter.event is None or not fits(letter.event.type, line.outlet.types):
                    continue
                cursor = waiting.cursor = await self._try(line, cursor, letter, letter.event)
                if cursor.next_at is not None:
                    return cursor.next_at
                passed = None
        if passed is not None:
            waiting.cursor = self._outbox.delivered(cursor, passed)
        return None

    def _letters(self, stream: Stream, cursor: Cursor) -> list[Letter]:
        """What stands behind ``cursor``: of some that are not all as they were written, the first alone.

        Raises:
            Tampered: the first was changed.
        """
        try:
            return self._outbox.letters(stream, cursor)
        except Tampered:
            return self._outbox.letters(stream, cursor, limit=1)

    async def _try(self, line: _Line, cursor: Cursor, letter: Letter, event: CloudEvent) -> Cursor:
        patience, attempt = line.door.patience, cursor.attempts + 1
        try:
            await line.door.sink.send(event)
            line.ill = False
        except Undelivered as error:
            line.ill = True
            if patience.attempts is not None and attempt >= patience.attempts:
                return self._outbox.bury(cursor, letter, now=self._clock(), error=str(error))
            next_at = self._clock() + patience.wait(attempt, self._rng, asked_seconds=error.wait_seconds)
            return self._outbox.failed(cursor, next_at=next_at, error=str(error))
        return self._outbox.delivered(cursor, letter)

    # --- dead letters ------------------------------------------------------------------------------------------------

    def _redeliver(self, now: datetime) -> None:
        if self._redelivering:  # one round after another, so that none is tried twice at once
            return
        rounds: dict[tuple[str, str], list[DeadLetter]] = {}
        for dead in self._outbox.wanted_again(now=now):
            rounds.setdefault((dead.outlet, dead.stream), []).append(dead)
        for (outlet, _), found in rounds.items():
            if outlet in self._lines:
                task = asyncio.create_task(self._retry(self._lines[outlet], found))
                self._redelivering.add(task)
                task.add_done_callback(self._redelivering.discard)

    async def _retry(self, line: _Line, found: list[DeadLetter]) -> None:
        await self._went_well("dead letters wait", self._bring_again(line, found))

    async def _bring_again(self, line: _Line, found: list[DeadLetter]) -> None:
        patience = line.door.patience
        for dead in found:
            try:
                event = self._outbox.exhume(dead)
                if event is not None:
                    await line.door.sink.send(event)
            except (Undelivered, Tampered) as error:
                attempt = dead.attempts + 1
                over = patience.attempts is not None and attempt >= patience.attempts
                next_at = None if over else self._clock() + patience.wait(attempt, self._rng)
                self._outbox.put_off(dead, next_at=next_at, error=str(error))
                return
            self._outbox.settle(dead)

    # --- what is kept ------------------------------------------------------------------------------------------------

    def _keep_places(self) -> None:
        if not self._lines or time.monotonic() - self._moved < MOVE_SECONDS:
            return
        self._moved = time.monotonic()
        seen = self._looked_behind()
        for line in self._lines.values():
            before = line.outlet
            place = line.floor(trail=False, newest=seen, known=before.place)
            entry = line.floor(trail=True, newest=self._entry, known=before.entry)
            if (place, entry) != (before.place, before.entry):
                self._outbox.move(before.id, place=place, entry=entry)
                line.outlet = replace(before, place=place, entry=entry)
            line.done = {
                name: at for name, at in line.done.items() if at > (entry if name.startswith(TRAIL) else place)
            }


def _behind(cursor: Cursor, passed: Letter | None) -> Cursor:
    return cursor if passed is None else replace(cursor, place=passed.place, sequence=passed.sequence)

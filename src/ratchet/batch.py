"""Many optimizations in one request, and requests that come back by the clock."""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any, Protocol
from zoneinfo import ZoneInfo

from croniter import CroniterError, croniter

from ratchet.core.access import Actor
from ratchet.core.errors import BadRequest, Conflict, Missing, UserError
from ratchet.options import Options, Order
from ratchet.storage.audit import state_hash
from ratchet.storage.cycles import Cycle, Cycles, Overlap, Schedule, Schedules
from ratchet.storage.jobs import AT_REST, Job, Wanted

MOST = 200
"""Optimizations of one cycle."""

_FIELD = re.compile(r"(?:[0-9*,/#-]|[A-Za-z]{3}|[lL])+")
"""A field of a cron expression; what is random in croniter's language is not taken."""


class Counter(Protocol):
    """Where a single optimization is asked for."""

    def check(
        self, actor: Actor, options: Options, *, target: str | Mapping[str, Any], data: Mapping[str, str]
    ) -> None:
        """See whether ``optimize`` would take it.

        Raises:
            UserError: it would not.
        """

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
        """Put it in the queue."""

    def stop(self, actor: Actor, identity: str, wanted: Wanted) -> Job:
        """Have it stopped."""


class Batch:
    """Cycles and schedules.

    Args:
        counter: Where each optimization is asked for.
        cycles, schedules: Where they are kept.
        timetable: Told which schedules there are, whenever that changes.
        clock: Tells the time.
    """

    def __init__(
        self,
        counter: Counter,
        cycles: Cycles,
        schedules: Schedules,
        *,
        timetable: Callable[[Sequence[Schedule]], None],
        clock: Callable[[], datetime],
    ) -> None:
        self._counter = counter
        self.cycles = cycles
        self.schedules = schedules
        self._timetable = timetable
        self._clock = clock

    # --- cycles ------------------------------------------------------------------------------------------------------

    def start(
        self,
        actor: Actor,
        orders: Sequence[Order],
        *,
        name: str = "",
        repeat_key: str | None = None,
        identity: str | None = None,
        schedule: str | None = None,
    ) -> Cycle:
        """A new cycle, with all its optimizations in the queue; all of them, or none when one cannot be carried out.

        Args:
            repeat_key: The same key and request give the same cycle.
            identity: Its id; the same id gives the same cycle, gone on with where it was left.

        Raises:
            UserError: one of them cannot be carried out; the message says which.
        """
        if not 1 <= len(orders) <= MOST:
            raise BadRequest(f"a cycle has {len(orders)} optimizations; give 1 to {MOST}", field="optimizations")
        if repeat_key is not None:
            identity = _derived(actor.tenant, repeat_key)
        fingerprint = state_hash([name, *(order.to_json() for order in orders)]) or ""
        known = None if identity is None else self._known(actor.tenant, identity)
        if known is None:
            self._check(actor, orders)
        cycle = self.cycles.begin(
            actor,
            identity or uuid.uuid4().hex[:12],
            name=name,
            fingerprint=fingerprint,
            size=len(orders),
            schedule=schedule,
        )
        if sum(cycle.statuses.values()) < cycle.size:
            for position, order in enumerate(orders):
                job = self._counter.optimize(
                    actor,
                    order.options,
                    target=order.target,
                    data=order.data,
                    priority=order.priority,
                    repeat_key=f"cycle {cycle.id} {position}",
                )
                self.cycles.join(cycle.id, position, job.id)
        return self.cycles.find(actor.tenant, cycle.id)

    def _known(self, tenant: str, identity: str) -> Cycle | None:
        with suppress(Missing):
            return self.cycles.find(tenant, identity)
        return None

    def _check(self, actor: Actor, orders: Sequence[Order]) -> None:
        for position, order in enumerate(orders):
            try:
                self._counter.check(actor, order.options, target=order.target, data=order.data)
            except UserError as error:
                field = f"optimizations.{position}.{error.values.get('field', '')}".rstrip(".")
                raise type(error)(
                    f"optimizations.{position}: {error}", field=field, value=error.values.get("value")
                ) from error

    def cancel(self, actor: Actor, identity: str) -> Cycle:
        """Stop all optimizations of a cycle that have not come to rest.

        Raises:
            Missing: this tenant has no such cycle.
        """
        self.cycles.find(actor.tenant, identity)
        stopped = []
        for member in self.cycles.members(actor.tenant, identity):
            if member.status not in AT_REST:
                with suppress(Conflict):  # it has come to rest meanwhile
                    self._counter.stop(actor, member.id, "cancel")
                    stopped.append(member.id)
        if stopped:
            self.cycles.note_cancel(actor, identity, stopped)
        return self.cycles.find(actor.tenant, identity)

    # --- schedules ---------------------------------------------------------------------------------------------------

    def add(
        self, actor: Actor, orders: Sequence[Order], *, name: str, cron: str, timezone: str = "UTC", overlap: Overlap
    ) -> Schedule:
        """A new schedule; what it will ask for could be carried out now.

        Raises:
            UserError: the time is none, or an optimization cannot be carried out.
        """
        check_time(cron, timezone, now=self._clock())
        if not 1 <= len(orders) <= MOST:
            raise BadRequest(f"a cycle has {len(orders)} optimizations; give 1 to {MOST}", field="optimizations")
        self._check(actor, orders)
        plain = [order.to_json() for order in orders]
        schedule = self.schedules.add(actor, name=name, cron=cron, timezone=timezone, overlap=overlap, orders=plain)
        self.keep_timetable()
        return schedule

    def remove(self, actor: Actor, identity: str) -> None:
        """Begin no more cycles; those that were begun go on.

        Raises:
            Missing: this tenant has no such schedule.
        """
        self.schedules.remove(actor, identity)
        self.keep_timetable()

    def switch(self, actor: Actor, identity: str, *, paused: bool) -> Schedule:
        """Have a schedule wait, or go on with the next time.

        Raises:
            Missing: this tenant has no such schedule.
        """
        schedule = self.schedules.switch(actor, identity, paused=paused)
        self.keep_timetable()
        return schedule

    def keep_timetable(self) -> None:
        """Tell which schedules there are."""
        self._timetable(self.schedules.all())

    def next_at(self, schedule: Schedule) -> datetime | None:
        """When its next cycle begins; None while it is paused."""
        return None if schedule.paused else next_tick(schedule.cron, schedule.timezone, self._clock())

    def missed(self, *, grace_seconds: float) -> list[tuple[Schedule, datetime]]:
        """The newest time of each schedule that should have been done with for ``grace_seconds`` and is not."""
        now, found = self._clock(), []
        for schedule in self.schedules.all():
            if schedule.paused:
                continue
            tick = last_tick(schedule.cron, schedule.timezone, now)
            due = tick.isoformat() > max(schedule.since, schedule.last_tick or "")
            if due and (now - tick).total_seconds() > grace_seconds:
                found.append((schedule, tick))
        return found

    def tick(self, identity: str, at: datetime) -> str:
        """Do what a schedule asks for at ``at``, and tell what came of it; a second time changes nothing."""
        try:
            schedule = self.schedules.find(None, identity)
        except Missing:
            return "removed"
        at = at.astimezone(UTC)
        text = at.isoformat()
        if schedule.paused or text <= schedule.since:
            return "not wanted"
        if text <= (schedule.last_tick or ""):
            return "done with"
        if next_tick(schedule.cron, schedule.timezone, at) <= self._clock():
            return "missed"  # the newest of those that were missed is enough
        return self._do(schedule, text)

    def start_waiting(self) -> None:
        """Begin the cycles that waited for the one before them."""
        for schedule in self.schedules.waiting():
            if schedule.waiting_tick is not None and not self._is_running(schedule):
                self._do(schedule, schedule.waiting_tick)

    def _do(self, schedule: Schedule, tick: str) -> str:
        actor = Actor(
            name=f"schedule {schedule.id}", tenant=schedule.tenant, role="developer", origin="the service itself"
        )
        identity = _derived(schedule.id, tick)
        if schedule.last_cycle != identity and self._is_running(schedule):
            waiting = schedule.overlap == "queue"
            outcome = f"{'waits for' if waiting else 'left out:'} cycle {schedule.last_cycle}, which still runs"
            action = "wait" if waiting else "skip"
            self.schedules.note(actor, schedule, action, tick=tick, outcome=outcome, waiting=waiting)
            return action
        orders = [Order.from_json(order) for order in schedule.orders]
        try:
            cycle = self.start(actor, orders, name=schedule.name, identity=identity, schedule=schedule.id)
        except UserError as error:
            self.schedules.note(actor, schedule, "refuse", tick=tick, outcome=str(error))
            return "refuse"
        self.schedules.note(actor, schedule, "run", tick=tick, outcome=f"began cycle {cycle.id}", cycle=cycle.id)
        return "run"

    def _is_running(self, schedule: Schedule) -> bool:
        if schedule.last_cycle is None:
            return False
        return any(member.status not in AT_REST for member in self.cycles.members(schedule.tenant, schedule.last_cycle))


def _derived(*parts: str) -> str:
    """An id that is the same for the same parts."""
    return (state_hash(list(parts)) or "")[:16]


def check_time(cron: str, timezone: str, *, now: datetime) -> None:
    """See whether a schedule can have this time.

    Raises:
        BadRequest: it is none, or never comes.

    >>> check_time("0 3 * * mon", "Europe/Berlin", now=datetime(2026, 1, 1, tzinfo=UTC))
    >>> check_time("0 3 * *", "UTC", now=datetime(2026, 1, 1, tzinfo=UTC))
    Traceback (most recent call last):
    ratchet.core.errors.BadRequest: cron is '0 3 * *'; give minute, hour, day, month and day of the week
    """
    try:
        ZoneInfo(timezone)
    except (ValueError, OSError) as error:  # ZoneInfoNotFoundError is a KeyError, and caught below
        raise _no_zone(timezone) from error
    except KeyError as error:
        raise _no_zone(timezone) from error
    parts = cron.split()
    if len(parts) != 5 or not all(_FIELD.fullmatch(part) for part in parts) or not croniter.is_valid(cron):
        raise BadRequest(
            f"cron is {cron!r}; give minute, hour, day, month and day of the week", field="cron", value=cron
        )
    try:
        next_tick(cron, timezone, now)
    except CroniterError as error:
        raise BadRequest(f"cron is {cron!r}, which never comes; give a time that does", field="cron") from error


def _no_zone(timezone: str) -> BadRequest:
    return BadRequest(f"timezone is {timezone!r}; give a name such as Europe/Berlin", field="timezone", value=timezone)


def next_tick(cron: str, timezone: str, after: datetime) -> datetime:
    """The first time behind ``after``, in UTC.

    >>> next_tick("30 2 * * *", "Europe/Berlin", datetime(2026, 7, 1, tzinfo=UTC)).isoformat()
    '2026-07-01T00:30:00+00:00'
    """
    found: datetime = croniter(cron, after.astimezone(ZoneInfo(timezone))).get_next(datetime)
    return found.astimezone(UTC)


def last_tick(cron: str, timezone: str, until: datetime) -> datetime:
    """The last time not behind ``until``, in UTC.

    >>> last_tick("0 0 * * *", "UTC", datetime(2026, 7, 1, tzinfo=UTC)).isoformat()
    '2026-07-01T00:00:00+00:00'
    """
    zone = ZoneInfo(timezone)
    if croniter.match(cron, until.astimezone(zone)) and until.second == 0 and until.microsecond == 0:
        return until.astimezone(UTC)
    found: datetime = croniter(cron, until.astimezone(zone)).get_prev(datetime)
    return found.astimezone(UTC)

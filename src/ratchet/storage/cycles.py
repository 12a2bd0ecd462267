"""Cycles: many optimizations that were asked for at once, and schedules that ask for them again and again."""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, cast, get_args

import sqlalchemy as sa

from ratchet.core.access import Actor
from ratchet.core.errors import Conflict
from ratchet.storage.audit import Audited, state_hash
from ratchet.storage.jobs import AT_REST, jobs, listed, standing
from ratchet.storage.statements import newest_first, the_row
from ratchet.storage.tables import optimizations
from ratchet.storage.texts import Texts, Words

metadata = sa.MetaData()

cycles = sa.Table(
    "cycles",
    metadata,
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("id", sa.String(32), nullable=False, unique=True),
    sa.Column("tenant", sa.String(64), nullable=False, index=True),
    sa.Column("name", Words, nullable=False),
    sa.Column("created_at", sa.String(32), nullable=False),
    sa.Column("created_by", sa.String(200), nullable=False),
    sa.Column("fingerprint", sa.String(64), nullable=False),
    sa.Column("size", sa.Integer, nullable=False),
    sa.Column("schedule", sa.String(16)),
    sa.Column("completed_at", sa.String(32), index=True),
    sa.Column("outcome", sa.Text),
)
members = sa.Table(
    "cycle_members",
    metadata,
    sa.Column("cycle", sa.String(32), primary_key=True),
    sa.Column("position", sa.Integer, primary_key=True),
    sa.Column("optimization", sa.String(32), nullable=False),
)
schedules = sa.Table(
    "schedules",
    metadata,
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("id", sa.String(16), nullable=False, unique=True),
    sa.Column("tenant", sa.String(64), nullable=False, index=True),
    sa.Column("name", Words, nullable=False),
    sa.Column("cron", sa.String(200), nullable=False),
    sa.Column("timezone", sa.String(64), nullable=False),
    sa.Column("overlap", sa.String(16), nullable=False),
    sa.Column("orders", sa.Text, nullable=False),
    sa.Column("sealed", sa.LargeBinary),
    sa.Column("paused", sa.Boolean, nullable=False),
    sa.Column("created_at", sa.String(32), nullable=False),
    sa.Column("created_by", sa.String(200), nullable=False),
    sa.Column("since", sa.String(32), nullable=False),
    sa.Column("last_tick", sa.String(32)),
    sa.Column("last_cycle", sa.String(32)),
    sa.Column("waiting_tick", sa.String(32)),
    sa.Column("outcome", Words, nullable=False),
)
ORDERS = Texts(schedules, "orders", at=("id",), of="id", owner="schedule")
"""What a schedule asks for may hold whole programs."""

Overlap = Literal["skip", "queue"]
OVERLAPS: tuple[Overlap, ...] = get_args(Overlap)
"""What is done when the last cycle of a schedule still runs: leave this one out, or begin it afterwards."""

MOST_SCHEDULES = 200
"""Schedules of one tenant."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """An optimization of a cycle."""

    position: int
    id: str
    target: str
    status: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Cycle:
    """Optimizations that were asked for at once.

    Attributes:
        size: How many they are.
        schedule: The schedule that asked for them.
        completed_at: When all had come to rest.
        statuses: How many stand how.
    """

    id: str
    tenant: str
    name: str
    created_at: str
    created_by: str
    size: int
    schedule: str | None
    completed_at: str | None
    statuses: Mapping[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """When a cycle is begun.

    Attributes:
        cron: Minute, hour, day, month, day of the week, in ``timezone``.
        overlap: What is done when the last cycle still runs.
        orders: The optimizations, as JSON data.
        since: When it was made, or resumed; nothing before is caught up with.
        last_tick: The newest time that is done with.
        last_cycle: The cycle it began last.
        waiting_tick: A time whose cycle begins when the last one is complete.
        outcome: What came of the last time.
    """

    id: str
    tenant: str
    name: str
    cron: str
    timezone: str
    overlap: Overlap
    orders: Sequence[Mapping[str, Any]]
    paused: bool
    created_at: str
    created_by: str
    since: str
    last_tick: str | None
    last_cycle: str | None
    waiting_tick: str | None
    outcome: str


class Cycles(Audited):
    """All cycles."""

    tables = (metadata,)

    def begin(
        self, actor: Actor, identity: str, *, name: str, fingerprint: str, size: int, schedule: str | None
    ) -> Cycle:
        """A new cycle without optimizations yet; the one there is when it was begun before.

        Raises:
            Conflict: another request was made under this id.
        """
        with self._audit.change(actor) as change:
            row = change.connection.execute(cycles.select().where(cycles.c.id == identity)).mappings().first()
            if row is not None and (row["tenant"], row["fingerprint"]) != (actor.tenant, fingerprint):
                raise Conflict(
                    "the idempotency key was used for another request; give each request a key of its own",
                    field="Idempotency-Key",
                )
            if row is None:
                values = {"name": name, "size": size, "schedule": schedule, "fingerprint": fingerprint}
                more = {"id": identity, "tenant": actor.tenant, "created_at": change.now, "created_by": actor.name}
                change.connection.execute(cycles.insert().values(**values, **more))
                change.note("cycle.create", identity, after=values)
            return self._cycle(change.connection, actor.tenant, identity)

    def join(self, identity: str, position: int, optimization: str) -> None:
        """Have an optimization in a cycle; a second time changes nothing."""
        values = {"cycle": identity, "position": position, "optimization": optimization}
        with self._archive.transaction() as connection:
            this = (members.c.cycle == identity, members.c.position == position)
            if connection.execute(sa.select(members.c.position).where(*this)).first() is None:
                connection.execute(members.insert().values(**values))

    def find(self, tenant: str, identity: str) -> Cycle:
        """One cycle of a tenant.

        Raises:
            Missing: it has none with this id.
        """
        with self._archive.transaction() as connection:
            return self._cycle(connection, tenant, identity)

    def members(self, tenant: str, identity: str) -> list[Member]:
        """The optimizations of a cycle, in the order they were asked for."""
        query = (
            sa.select(members.c.position, jobs, optimizations.c.status)
            .join(jobs, jobs.c.id == members.c.optimization)
            .join(optimizations, optimizations.c.id == members.c.optimization)
            .where(members.c.cycle == identity, jobs.c.tenant == tenant)
            .order_by(members.c.position)
        )
        with self._archive.transaction() as connection:
            rows = [listed(self._archive, connection, row) for row in connection.execute(query).mappings().all()]
        return [
            Member(
                position=row["position"],
                id=row["id"],
                target=row["target"],
                status=standing(row),
                reason=row["reason"],
            )
            for row in rows
        ]

    def page(self, tenant: str, *, before: int | None, limit: int) -> list[tuple[int, Cycle]]:
        """Numbered cycles, the newest first, those numbered below ``before``."""
        query = newest_first(cycles, cycles.c.tenant == tenant, before=before, limit=limit)
        with self._archive.transaction() as connection:
            rows = connection.execute(query).mappings().all()
            found = self._statuses(connection, [row["id"] for row in rows])
        return [(row["number"], _cycle(row, found.get(row["id"], {}))) for row in rows]

    def note_cancel(self, actor: Actor, identity: str, stopped: Sequence[str]) -> None:
        """Tell that its optimizations were stopped."""
        with self._audit.change(actor) as change:
            change.note("cycle.cancel", identity, after={"optimizations": list(stopped)})

    def settle(self, actor: Actor) -> list[str]:
        """Complete the cycles whose optimizations have all come to rest, and tell which they are."""
        at_rest = sa.case((sa.and_(optimizations.c.status.in_(AT_REST), jobs.c.settled == jobs.c.attempt), 1), else_=0)
        query = (
            sa.select(cycles.c.id, cycles.c.tenant)
            .join(members, members.c.cycle == cycles.c.id)
            .join(jobs, jobs.c.id == members.c.optimization)
            .join(optimizations, optimizations.c.id == members.c.optimization)
            .where(cycles.c.completed_at.is_(None))
            .group_by(cycles.c.id, cycles.c.tenant, cycles.c.size)
            .having(sa.func.sum(at_rest) == cycles.c.size)
        )
        with self._archive.transaction() as connection:
            ready = connection.execute(query).all()
        for row in ready:
            mine = Actor(name=actor.name, tenant=row.tenant, role=actor.role, origin=actor.origin)
            with self._audit.change(mine) as change:
                statuses = self._statuses(change.connection, [row.id]).get(row.id, {})
                listed = [each.optimization for each in self._listed(change.connection, row.id)]
                outcome = {"statuses": statuses, "optimizations": listed}
                this = (cycles.c.id == row.id, cycles.c.completed_at.is_(None))
                done = change.connection.execute(
                    cycles.update().where(*this).values(completed_at=change.now, outcome=json.dumps(outcome))
                )
                if done.rowcount:
                    change.note("cycle.complete", row.id, after=outcome)
        return [row.id for row in ready]

    def told(self, entry: Mapping[str, Any]) -> dict[str, Any]:
        """What an entry of the trail about a cycle is told with."""
        query = cycles.select().where(cycles.c.id == entry["object"], cycles.c.tenant == entry["tenant"])
        with self._archive.transaction() as connection:
            row = connection.execute(query).mappings().one()
        told = {"name": row["name"], "size": row["size"], "schedule": row["schedule"]}
        return {**told, **(json.loads(row["outcome"]) if entry["action"] == "cycle.complete" else {})}

    def _listed(self, connection: sa.Connection, identity: str) -> Sequence[Any]:
        query = members.select().where(members.c.cycle == identity).order_by(members.c.position)
        return connection.execute(query).all()

    def _statuses(self, connection: sa.Connection, identities: list[str]) -> dict[str, dict[str, int]]:
        query = (
            sa.select(members.c.cycle, jobs.c.settled, jobs.c.attempt, optimizations.c.status)
            .join(jobs, jobs.c.id == members.c.optimization)
            .join(optimizations, optimizations.c.id == members.c.optimization)
            .where(members.c.cycle.in_(identities))
        )
        found: dict[str, dict[str, int]] = {}
        for row in connection.execute(query).mappings():
            counts = found.setdefault(row["cycle"], {})
            counts[standing(row)] = counts.get(standing(row), 0) + 1
        return found

    def _cycle(self, connection: sa.Connection, tenant: str, identity: str) -> Cycle:
        row = the_row(connection, cycles, "cycle", tenant, identity)
        return _cycle(row, self._statuses(connection, [identity]).get(identity, {}))


class Schedules(Audited):
    """All schedules."""

    tables = (metadata,)

    def add(
        self,
        actor: Actor,
        *,
        name: str,
        cron: str,
        timezone: str,
        overlap: Overlap,
        orders: Sequence[Mapping[str, Any]],
    ) -> Schedule:
        """A new schedule.

        Raises:
            Conflict: the tenant has too many.
        """
        identity = uuid.uuid4().hex[:12]
        with self._audit.change(actor) as change:
            mine = sa.select(sa.func.count()).where(schedules.c.tenant == actor.tenant)
            if int(change.connection.execute(mine).scalar() or 0) >= MOST_SCHEDULES:
                raise Conflict(f"there are {MOST_SCHEDULES} schedules already; remove one first")
            told = {"name": name, "cron": cron, "timezone": timezone, "overlap": overlap}
            row = {
                "id": identity,
                "tenant": actor.tenant,
                "orders": list(orders),
                "paused": False,
                "created_at": change.now,
                "created_by": actor.name,
                "since": change.now,
                "outcome": "",
                **told,
            }
            box = self._archive.vault.make(change.connection, ORDERS.owner(row), tenant=actor.tenant)
            change.connection.execute(schedules.insert().values(**ORDERS.hide(box, row)))
            change.note("schedule.create", identity, after={**told, "orders": state_hash(list(orders))})
            return self._schedule(change.connection, actor.tenant, identity)

    def find(self, tenant: str | None, identity: str) -> Schedule:
        """One schedule of a tenant; None for the tenant is for workers, which work for all.

        Raises:
            Missing: it has none with this id.
        """
        with self._archive.transaction() as connection:
            return self._schedule(connection, tenant, identity)

    def page(self, tenant: str, *, before: int | None, limit: int) -> list[tuple[int, Schedule]]:
        """Numbered schedules, the newest first, those numbered below ``before``."""
        query = newest_first(schedules, schedules.c.tenant == tenant, before=before, limit=limit)
        with self._archive.transaction() as connection:
            rows = connection.execute(query).mappings().all()
            found = self._schedules(connection, rows)
        return [(row["number"], each) for row, each in zip(rows, found, strict=True)]

    def all(self) -> list[Schedule]:
        """The schedules of all tenants."""
        with self._archive.transaction() as connection:
            return self._schedules(connection, connection.execute(schedules.select()).mappings().all())

    def waiting(self) -> list[Schedule]:
        """Those of which a time waits for the cycle before it."""
        query = schedules.select().where(schedules.c.waiting_tick.is_not(None), schedules.c.paused.is_(False))
        with self._archive.transaction() as connection:
            return self._schedules(connection, connection.execute(query).mappings().all())

    def _schedules(self, connection: sa.Connection, rows: Sequence[sa.RowMapping]) -> list[Schedule]:
        return [_schedule(row) for row in self._archive.shown(connection, ORDERS, rows)]

    def remove(self, actor: Actor, identity: str) -> None:
        """Begin no more cycles; those that were begun go on.

        Raises:
            Missing: this tenant has no such schedule.
        """
        with self._audit.change(actor) as change:
            schedule = self._schedule(change.connection, actor.tenant, identity)
            change.connection.execute(schedules.delete().where(schedules.c.id == identity))
            self._archive.vault.destroy(change.connection, f"{ORDERS.kind}:{identity}")
            change.note("schedule.delete", identity, before={"name": schedule.name, "cron": schedule.cron})

    def switch(self, actor: Actor, identity: str, *, paused: bool) -> Schedule:
        """Have a schedule wait, or go on with the next time.

        Raises:
            Missing: this tenant has no such schedule.
        """
        with self._audit.change(actor) as change:
            before = self._schedule(change.connection, actor.tenant, identity)
            if before.paused != paused:
                values = {"paused": paused, "waiting_tick": None, **({} if paused else {"since": change.now})}
                change.connection.execute(schedules.update().where(schedules.c.id == identity).values(**values))
                verb = "pause" if paused else "resume"
                change.note(f"schedule.{verb}", identity, before={"paused": before.paused}, after={"paused": paused})
            return self._schedule(change.connection, actor.tenant, identity)

    def note(
        self,
        actor: Actor,
        schedule: Schedule,
        action: str,
        *,
        tick: str,
        outcome: str,
        cycle: str | None = None,
        waiting: bool = False,
    ) -> None:
        """Keep what came of a time, and tell it in the trail."""
        newest = max(tick, schedule.last_tick or "")
        values: dict[str, Any] = {
            "last_tick": newest,
            "outcome": outcome,
            "waiting_tick": tick if waiting else None,
            **({} if cycle is None else {"last_cycle": cycle}),
        }
        with self._audit.change(actor) as change:
            change.connection.execute(schedules.update().where(schedules.c.id == schedule.id).values(**values))
            change.note(f"schedule.{action}", schedule.id, after=values)

    def _schedule(self, connection: sa.Connection, tenant: str | None, identity: str) -> Schedule:
        return self._schedules(connection, [the_row(connection, schedules, "schedule", tenant, identity)])[0]


def _cycle(row: sa.RowMapping, statuses: Mapping[str, int]) -> Cycle:
    names = [field.name for field in fields(Cycle) if field.name != "statuses"]
    return Cycle(**{name: row[name] for name in names}, statuses=statuses)


def _schedule(row: Mapping[str, Any]) -> Schedule:
    values = {field.name: row[field.name] for field in fields(Schedule)}
    return Schedule(**{**values, "overlap": cast(Overlap, row["overlap"])})

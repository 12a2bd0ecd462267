"""What is still to be told, to whom: a place in the events and the audit trail for everybody who listens.

Both are written in one transaction with what they tell. So they are the outbox themselves: nothing is written twice,
and what was not delivered yet is whatever stands behind a listener's cursor. ``docs/decisions/0017`` says more.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa

from ratchet.core.cloudevent import BOOKKEEPING, CloudEvent, type_of_action, type_of_event
from ratchet.core.errors import Conflict, Missing
from ratchet.storage.audit import trail
from ratchet.storage.jobs import jobs
from ratchet.storage.sql import SqlArchive
from ratchet.storage.statements import newest_first
from ratchet.storage.tables import events
from ratchet.storage.texts import Words
from ratchet.storage.told import Events

metadata = sa.MetaData()

outlets = sa.Table(
    "outlets",
    metadata,
    sa.Column("id", sa.String(32), primary_key=True),
    sa.Column("tenant", sa.String(64)),
    sa.Column("types", sa.Text, nullable=False),
    sa.Column("active", sa.Boolean, nullable=False),
    sa.Column("since_place", sa.Integer, nullable=False),
    sa.Column("since_entry", sa.Integer, nullable=False),
    sa.Column("place", sa.Integer, nullable=False),
    sa.Column("entry", sa.Integer, nullable=False),
)
cursors = sa.Table(
    "cursors",
    metadata,
    sa.Column("outlet", sa.String(32), primary_key=True),
    sa.Column("stream", sa.String(220), primary_key=True),
    sa.Column("place", sa.Integer, nullable=False),
    sa.Column("sequence", sa.Integer, nullable=False),
    sa.Column("attempts", sa.Integer, nullable=False),
    sa.Column("next_at", sa.String(32)),
    sa.Column("error", Words, nullable=False),
)
dead_letters = sa.Table(
    "dead_letters",
    metadata,
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("outlet", sa.String(32), nullable=False, index=True),
    sa.Column("stream", sa.String(220), nullable=False),
    sa.Column("place", sa.Integer, nullable=False),
    sa.Column("sequence", sa.Integer, nullable=False),
    sa.Column("event", sa.String(100), nullable=False),
    sa.Column("type", sa.String(100), nullable=False),
    sa.Column("subject", sa.String(200), nullable=False),
    sa.Column("at", sa.String(32), nullable=False),
    sa.Column("attempts", sa.Integer, nullable=False),
    sa.Column("error", Words, nullable=False),
    sa.Column("again", sa.Boolean, nullable=False),
    sa.Column("next_at", sa.String(32)),
    sa.UniqueConstraint("outlet", "stream", "place"),
)

TRAIL = "audit/"
"""How the streams begin that come from the audit trail: one for each thing that it tells of."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outlet:
    """Somebody who listens.

    Attributes:
        tenant: Whose events it gets; None for everybody's.
        types: Patterns of the types it gets.
        since_place, since_entry: Where the events and the trail stood when it began to listen.
        place, entry: What stands not behind these was delivered, or the cursor of its stream says what was.
    """

    id: str
    tenant: str | None
    types: tuple[str, ...]
    since_place: int
    since_entry: int
    place: int
    entry: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Stream:
    """Events that are delivered in order: those of one optimization, or those of one other thing."""

    tenant: str
    name: str

    @property
    def is_trail(self) -> bool:
        """Whether it comes from the audit trail."""
        return self.name.startswith(TRAIL)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cursor:
    """How far an outlet is in a stream.

    Attributes:
        place, sequence: Of the last event that is done with.
        attempts: How often the next one was tried.
        next_at: When it is tried again; None for at once.
        kept: Whether it was stored already.
    """

    outlet: str
    stream: str
    place: int
    sequence: int
    attempts: int = 0
    next_at: datetime | None = None
    error: str = ""
    kept: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Letter:
    """An event on its way, and where it stands; no event for what nobody is told."""

    place: int
    sequence: int
    event: CloudEvent | None


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadLetter:
    """An event that was given up, until somebody asks for it again.

    Attributes:
        event: Its id.
        again: Whether it is to be tried again.
    """

    number: int
    outlet: str
    stream: str
    place: int
    sequence: int
    event: str
    type: str
    subject: str
    at: str
    attempts: int
    error: str
    again: bool
    next_at: str | None


class Overtaken(Exception):
    """Somebody else delivers to the same outlet."""


class Outbox:
    """What everybody who listens is still to be told.

    Args:
        archive: The database.
        tell: The events of optimizations.
        source: The ``source`` of all events.
        details: What an entry of the trail does not say itself, by the kind of thing.
    """

    def __init__(
        self,
        archive: SqlArchive,
        tell: Events,
        *,
        source: str,
        details: Mapping[str, Callable[[Mapping[str, Any]], Mapping[str, Any]]] | None = None,
    ) -> None:
        self._archive = archive
        self._tell = tell
        self._source = source
        self._details = details or {}
        archive.make(metadata)

    # --- who listens -------------------------------------------------------------------------------------------------

    def begin(self, connection: sa.Connection, identity: str, tenant: str | None, types: Sequence[str]) -> None:
        """Have an outlet listen from now on."""
        place = int(connection.execute(sa.select(sa.func.max(events.c.number))).scalar() or 0)
        entry = int(connection.execute(sa.select(sa.func.max(trail.c.number))).scalar() or 0)
        connection.execute(
            outlets.insert().values(
                id=identity,
                tenant=tenant,
                types=json.dumps(list(types)),
                active=True,
                since_place=place,
                since_entry=entry,
                place=place,
                entry=entry,
            )
        )

    def ensure(self, identity: str, tenant: str | None, types: Sequence[str]) -> None:
        """Have an outlet listen, from now on where it did not yet."""
        with self._archive.transaction() as connection:
            if connection.execute(sa.select(outlets.c.id).where(outlets.c.id == identity)).first() is None:
                self.begin(connection, identity, tenant, types)

    def end(self, connection: sa.Connection, identity: str) -> None:
        """Forget an outlet, with all it was still to be told."""
        connection.execute(dead_letters.delete().where(dead_letters.c.outlet == identity))
        connection.execute(cursors.delete().where(cursors.c.outlet == identity))
        connection.execute(outlets.delete().where(outlets.c.id == identity))

    def switch(self, connection: sa.Connection, identity: str, *, active: bool) -> None:
        """Have an outlet wait, or go on where it is; what was tried is tried anew at once."""
        connection.execute(outlets.update().where(outlets.c.id == identity).values(active=active))
        if active:
            this = cursors.c.outlet == identity
            connection.execute(cursors.update().where(this).values(attempts=0, next_at=None))

    def active(self) -> list[Outlet]:
        """All who listen now."""
        with self._archive.transaction() as connection:
            rows = connection.execute(outlets.select().where(outlets.c.active).order_by(outlets.c.id)).mappings().all()
        names = Outlet.__dataclass_fields__
        return [
            Outlet(**{name: row[name] for name in names} | {"types": tuple(json.loads(row["types"]))}) for row in rows
        ]

    def move(self, identity: str, *, place: int, entry: int) -> None:
        """Keep that everything up to here was delivered, or has a cursor."""
        with self._archive.transaction() as connection:
            connection.execute(outlets.update().where(outlets.c.id == identity).values(place=place, entry=entry))

    # --- what is new -------------------------------------------------------------------------------------------------

    def newest(self) -> tuple[int, int]:
        """Where the newest event and the newest entry of the trail stand."""
        with self._archive.transaction() as connection:
            return (
                int(connection.execute(sa.select(sa.func.max(events.c.number))).scalar() or 0),
                int(connection.execute(sa.select(sa.func.max(trail.c.number))).scalar() or 0),
            )

    def changed(self, *, place: int, entry: int) -> dict[Stream, int]:
        """The streams with something behind these places, each with where its newest stands."""
        last = sa.func.max(events.c.number).label("last")
        told = (
            sa.select(events.c.optimization_id, jobs.c.tenant, last)
            .join(jobs, jobs.c.id == events.c.optimization_id)
            .where(events.c.number > place)
            .group_by(events.c.optimization_id, jobs.c.tenant)
        )
        noted = (
            sa.select(trail.c.tenant, trail.c.object, sa.func.max(trail.c.number).label("last"))
            .where(trail.c.number > entry, trail.c.action.not_like("optimization.%"))
            .group_by(trail.c.tenant, trail.c.object)
        )
        with self._archive.transaction() as connection:
            found = {
                Stream(tenant=row.tenant, name=row.optimization_id): int(row.last) for row in connection.execute(told)
            }
            for row in connection.execute(noted):
                found[Stream(tenant=row.tenant, name=f"{TRAIL}{row.object}")] = int(row.last)
        return found

    def letters(self, stream: Stream, cursor: Cursor, *, limit: int = 100) -> list[Letter]:
        """What stands behind ``cursor``, in order."""
        if stream.is_trail:
            return self._entries(stream, trail.c.number > cursor.place, limit)
        place = cursor.place if cursor.place else None
        told = self._tell.of(stream.name, after=cursor.sequence, place=place, limit=limit)
        found = []
        for each in told:
            event = None
            if each.kind not in BOOKKEEPING:
                event = CloudEvent(
                    id=f"evt_{stream.name}_{each.sequence}",
                    source=self._source,
                    type=type_of_event(each.kind, each.payload),
                    subject=stream.name,
                    time=_rfc3339(each.at),
                    tenant=stream.tenant,
                    sequence=each.sequence,
                    data=each.payload,
                )
            found.append(Letter(place=each.place, sequence=each.sequence, event=event))
        return found

    def _entries(self, stream: Stream, where: sa.ColumnElement[bool], limit: int) -> list[Letter]:
        this = (trail.c.tenant == stream.tenant, trail.c.object == stream.name.removeprefix(TRAIL))
        query = trail.select().where(*this, where, trail.c.action.not_like("optimization.%"))
        with self._archive.transaction() as connection:
            rows = connection.execute(query.order_by(trail.c.number).limit(limit)).mappings().all()
        found = []
        for row in rows:
            details = self._details.get(row["action"].partition(".")[0])
            data = {name: row[name] for name in ("who", "action", "before", "after")}
            event = CloudEvent(
                id=f"evt_{row['hash'][:24]}",
                source=self._source,
                type=type_of_action(row["action"]),
                subject=row["object"],
                time=_rfc3339(row["at"]),
                tenant=row["tenant"],
                sequence=row["number"],
                data={**data, **(details(dict(row)) if details else {})},
            )
            found.append(Letter(place=row["number"], sequence=row["number"], event=event))
        return found

    # --- how far everybody is ----------------------------------------------------------------------------------------

    def cursor(self, outlet: Outlet, stream: Stream) -> Cursor:
        """How far ``outlet`` is in ``stream``: at first, where the stream stood when it began to listen."""
        with self._archive.transaction() as connection:
            row = self._cursor(connection, outlet.id, stream.name)
            if row is not None:
                return row
            if stream.is_trail:
                return Cursor(outlet=outlet.id, stream=stream.name, place=outlet.since_entry, sequence=0)
            before = sa.select(sa.func.count(), sa.func.max(events.c.number)).where(
                events.c.optimization_id == stream.name, events.c.number <= outlet.since_place
            )
            sequence, place = connection.execute(before).one()
        return Cursor(outlet=outlet.id, stream=stream.name, place=int(place or 0), sequence=int(sequence))

    def _cursor(self, connection: sa.Connection, outlet: str, stream: str) -> Cursor | None:
        query = cursors.select().where(cursors.c.outlet == outlet, cursors.c.stream == stream)
        row = connection.execute(query).mappings().first()
        if row is None:
            return None
        next_at = None if row["next_at"] is None else datetime.fromisoformat(row["next_at"])
        return Cursor(**{**row, "next_at": next_at}, kept=True)

    def delivered(self, cursor: Cursor, letter: Letter) -> Cursor:
        """``cursor`` behind ``letter``, which is done with.

        Raises:
            Overtaken: the cursor is not where it was.
        """
        with self._archive.transaction() as connection:
            return self._put(
                connection,
                cursor,
                replace(cursor, place=letter.place, sequence=letter.sequence, attempts=0, next_at=None, error=""),
            )

    def failed(self, cursor: Cursor, *, next_at: datetime, error: str) -> Cursor:
        """``cursor`` before an event that was tried in vain.

        Raises:
            Overtaken: the cursor is not where it was.
        """
        with self._archive.transaction() as connection:
            return self._put(
                connection, cursor, replace(cursor, attempts=cursor.attempts + 1, next_at=next_at, error=error)
            )

    def bury(self, cursor: Cursor, letter: Letter, *, now: datetime, error: str) -> Cursor:
        """``cursor`` behind an event that is given up.

        Raises:
            Overtaken: the cursor is not where it was.
        """
        assert letter.event is not None
        event = letter.event
        with self._archive.transaction() as connection:
            moved = self._put(
                connection,
                cursor,
                replace(cursor, place=letter.place, sequence=letter.sequence, attempts=0, next_at=None, error=""),
            )
            connection.execute(
                dead_letters.insert().values(
                    outlet=cursor.outlet,
                    stream=cursor.stream,
                    place=letter.place,
                    sequence=letter.sequence,
                    event=event.id,
                    type=event.type[:100],
                    subject=event.subject,
                    at=_text(now),
                    attempts=cursor.attempts + 1,
                    error=error,
                    again=False,
                )
            )
        return moved

    def _put(self, connection: sa.Connection, before: Cursor, after: Cursor) -> Cursor:
        values = {
            "place": after.place,
            "sequence": after.sequence,
            "attempts": after.attempts,
            "next_at": None if after.next_at is None else _text(after.next_at),
            "error": after.error,
        }
        if not before.kept:
            try:
                connection.execute(cursors.insert().values(outlet=before.outlet, stream=before.stream, **values))
            except sa.exc.IntegrityError as error:
                raise Overtaken from error
            return replace(after, kept=True)
        done = connection.execute(
            cursors.update()
            .where(
                cursors.c.outlet == before.outlet,
                cursors.c.stream == before.stream,
                cursors.c.place == before.place,
                cursors.c.attempts == before.attempts,
            )
            .values(**values)
        )
        if done.rowcount != 1:
            raise Overtaken
        return after

    # --- dead letters ------------------------------------------------------------------------------------------------

    def dead(self, outlet: str, *, before: int | None, limit: int) -> list[DeadLetter]:
        """The events that were given up, the newest first, those numbered below ``before``."""
        query = newest_first(dead_letters, dead_letters.c.outlet == outlet, before=before, limit=limit)
        with self._archive.transaction() as connection:
            return [DeadLetter(**row) for row in connection.execute(query).mappings()]

    def again(self, connection: sa.Connection, outlet: str, event: str | None) -> int:
        """Have dead letters tried again, all or one, and how many they are.

        Raises:
            Missing: there is no such event among them.
            Conflict: the outlet is paused.
        """
        this = dead_letters.c.outlet == outlet
        if event is not None:
            this = sa.and_(this, dead_letters.c.event == event)
        if not connection.execute(sa.select(outlets.c.active).where(outlets.c.id == outlet)).scalar():
            raise Conflict(f"webhook {outlet} is paused; resume it first", value=outlet)
        done = connection.execute(dead_letters.update().where(this).values(again=True, attempts=0, next_at=None))
        if event is not None and not done.rowcount:
            raise Missing(f"there is no dead letter {event!r}", value=event)
        return done.rowcount

    def wanted_again(self, *, now: datetime, limit: int = 200) -> list[DeadLetter]:
        """Those that are to be tried now, in the order of their events."""
        due = sa.or_(dead_letters.c.next_at.is_(None), dead_letters.c.next_at <= _text(now))
        query = (
            dead_letters.select()
            .join(outlets, outlets.c.id == dead_letters.c.outlet)
            .where(dead_letters.c.again, due, outlets.c.active)
            .order_by(dead_letters.c.stream, dead_letters.c.place)
            .limit(limit)
        )
        with self._archive.transaction() as connection:
            return [DeadLetter(**row) for row in connection.execute(query).mappings()]

    def exhume(self, dead: DeadLetter) -> CloudEvent | None:
        """The event that a dead letter is of; None when it was erased."""
        if dead.stream.startswith(TRAIL):
            query = sa.select(trail.c.tenant).where(trail.c.number == dead.place)
        else:
            query = sa.select(jobs.c.tenant).where(jobs.c.id == dead.stream)
        with self._archive.transaction() as connection:
            tenant = connection.execute(query).scalar()
        if tenant is None:
            return None
        stream = Stream(tenant=tenant, name=dead.stream)
        if stream.is_trail:
            found = self._entries(stream, trail.c.number == dead.place, 1)
        else:
            at = Cursor(outlet=dead.outlet, stream=dead.stream, place=0, sequence=dead.sequence - 1)
            found = self.letters(stream, at, limit=1)
        return found[0].event if found else None

    def settle(self, dead: DeadLetter) -> None:
        """Strike a dead letter off: it was delivered after all."""
        with self._archive.transaction() as connection:
            connection.execute(dead_letters.delete().where(dead_letters.c.number == dead.number))

    def put_off(self, dead: DeadLetter, *, next_at: datetime | None, error: str) -> None:
        """Keep that it was tried in vain; None for no more tries."""
        again = next_at is not None
        values = {"attempts": dead.attempts + 1, "error": error, "again": again}
        with self._archive.transaction() as connection:
            connection.execute(
                dead_letters.update()
                .where(dead_letters.c.number == dead.number)
                .values(**values, next_at=None if next_at is None else _text(next_at))
            )


def _text(at: datetime) -> str:
    """So that texts sort as times."""
    return at.astimezone(UTC).isoformat(timespec="microseconds")


def _rfc3339(at: str) -> str:
    return at.replace("+00:00", "Z")

"""The audit trail: every change, by whom and from where, each entry bound to the one before it by its hash."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, ClassVar

import sqlalchemy as sa

from ratchet.core.access import Actor
from ratchet.core.errors import TrailBroken
from ratchet.core.problem import canonical
from ratchet.storage.sql import SqlArchive
from ratchet.storage.statements import newest_first

metadata = sa.MetaData()

trail = sa.Table(
    "audit",
    metadata,
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("at", sa.String(32), nullable=False),
    sa.Column("tenant", sa.String(64), nullable=False, index=True),
    sa.Column("who", sa.String(200), nullable=False),
    sa.Column("origin", sa.String(200), nullable=False),
    sa.Column("action", sa.String(64), nullable=False),
    sa.Column("object", sa.String(200), nullable=False),
    sa.Column("before", sa.String(64)),
    sa.Column("after", sa.String(64)),
    sa.Column("previous", sa.String(64), nullable=False),
    sa.Column("hash", sa.String(64), nullable=False),
)
head = sa.Table(
    "audit_head",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("number", sa.Integer, nullable=False),
    sa.Column("hash", sa.String(64), nullable=False),
)

FIRST = "0" * 64
"""What stands before the first entry."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One entry.

    Attributes:
        number: From 1, without a gap, over all tenants.
        at: When, in UTC.
        who, origin: Who did it, and from where.
        action, object: What was done, and to what.
        before, after: SHA-256 of the object's state; None where there was none.
        previous: The hash of the entry before.
        hash: SHA-256 of all the above.
    """

    number: int
    at: str
    tenant: str
    who: str
    origin: str
    action: str
    object: str
    before: str | None
    after: str | None
    previous: str
    hash: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """The newest entry; note it down elsewhere, and nobody can shorten or rewrite the trail unseen."""

    number: int
    hash: str


def state_hash(state: Any) -> str | None:
    """SHA-256 of a state as JSON data; None of None."""
    return None if state is None else hashlib.sha256(canonical(state).encode()).hexdigest()


def _seal(values: dict[str, Any]) -> str:
    return hashlib.sha256(canonical({name: values[name] for name in values if name != "hash"}).encode()).hexdigest()


class Change:
    """A transaction whose changes go into the trail with it, or not at all."""

    def __init__(self, connection: sa.Connection, actor: Actor, now: datetime, *, at: Head) -> None:
        self.connection = connection
        self.now = now.astimezone(UTC).isoformat()
        self._actor = actor
        self._head = at

    def note(self, action: str, thing: str, *, before: Any = None, after: Any = None) -> None:
        """Have ``action`` on ``thing`` in the trail, with the hashes of its states as JSON data."""
        values: dict[str, Any] = {
            "number": self._head.number + 1,
            "at": self.now,
            "tenant": self._actor.tenant,
            "who": self._actor.name,
            "origin": self._actor.origin,
            "action": action,
            "object": thing,
            "before": state_hash(before),
            "after": state_hash(after),
            "previous": self._head.hash,
        }
        values["hash"] = _seal(values)
        self.connection.execute(trail.insert().values(**values))
        self._head = Head(number=values["number"], hash=values["hash"])
        self.connection.execute(head.update().values(number=self._head.number, hash=self._head.hash))


class Audited:
    """Things in a database of which every change is in the audit trail.

    Args:
        archive: The database.
        audit: Where changes are told.

    Attributes:
        tables: Where they are kept.
    """

    tables: ClassVar[tuple[sa.MetaData, ...]]

    def __init__(self, archive: SqlArchive, audit: Audit) -> None:
        self._archive = archive
        self._audit = audit
        for tables in self.tables:
            archive.make(tables)


class Audit:
    """The trail of one database.

    Args:
        archive: The database.
        clock: Tells the time.
    """

    def __init__(self, archive: SqlArchive, *, clock: Callable[[], datetime]) -> None:
        self._archive = archive
        self._clock = clock
        archive.make(metadata)
        with suppress(sa.exc.IntegrityError), archive.transaction() as connection:  # another process was quicker
            if connection.execute(sa.select(head.c.id)).first() is None:
                connection.execute(head.insert().values(id=1, number=0, hash=FIRST))

    @contextmanager
    def change(self, actor: Actor) -> Iterator[Change]:
        """A transaction in the name of ``actor``; one at a time, over all processes."""
        with self._archive.transaction() as connection:
            # Writing first takes the lock, so that nobody else reads the head before this is done.
            connection.execute(head.update().values(number=head.c.number))
            row = connection.execute(sa.select(head.c.number, head.c.hash)).one()
            yield Change(connection, actor, self._clock(), at=Head(number=row.number, hash=row.hash))

    def entries(self, tenant: str, *, before: int | None = None, limit: int = 50) -> list[Entry]:
        """A tenant's entries, the newest first, those numbered below ``before``."""
        query = newest_first(trail, trail.c.tenant == tenant, before=before, limit=limit)
        with self._archive.transaction() as connection:
            return [Entry(**row) for row in connection.execute(query).mappings()]

    def verify(self, *, expected: str | None = None) -> Head:
        """The newest entry, after every entry was checked against the one before it.

        Args:
            expected: The hash of an entry that was noted down earlier; it must still be there.

        Raises:
            TrailBroken: an entry was edited, removed, added or moved; the message says which.
        """
        number, previous, seen = 0, FIRST, expected is None
        with self._archive.transaction() as connection:
            for row in connection.execute(trail.select().order_by(trail.c.number)).mappings():
                number += 1
                if row["number"] != number:
                    raise TrailBroken(f"entry {number} of the audit trail is missing; the next one is {row['number']}")
                if row["previous"] != previous:
                    raise TrailBroken(f"entry {number} of the audit trail does not follow on the one before it")
                if row["hash"] != _seal(dict(row)):
                    raise TrailBroken(f"entry {number} of the audit trail was changed")
                previous = row["hash"]
                seen = seen or previous == expected
            last = connection.execute(sa.select(head.c.number, head.c.hash)).one()
        if (last.number, last.hash) != (number, previous):
            raise TrailBroken(f"the audit trail ends with entry {number}, and {last.number} were written")
        if not seen:
            raise TrailBroken(f"no entry of the audit trail has the hash {expected}")
        return Head(number=number, hash=previous)

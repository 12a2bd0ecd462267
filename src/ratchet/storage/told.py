"""What is told of optimizations: their events, each numbered within its optimization and placed among all."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from ratchet.storage.sql import SqlArchive
from ratchet.storage.tables import EVENT, events


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """An event as it is sent: numbered from 1 without a gap in its optimization.

    Attributes:
        place: Where it stands among all events; from there on is looked for what comes next.
    """

    sequence: int
    place: int
    at: str
    kind: str
    payload: Mapping[str, Any]


class Events:
    """The events of all optimizations, as they are read while others write them."""

    def __init__(self, archive: SqlArchive) -> None:
        self._archive = archive

    def of(self, identity: str, *, after: int, place: int | None = None, limit: int = 500) -> list[Told]:
        """Events numbered above ``after``, in order.

        Args:
            place: Where number ``after`` stands, when that is known; looking for it costs more the further it is.
        """
        query = events.select().where(events.c.optimization_id == identity).order_by(events.c.number).limit(limit)
        query = query.offset(after) if place is None else query.where(events.c.number > place)
        with self._archive.transaction() as connection:
            rows = self._archive.shown(connection, EVENT, connection.execute(query).mappings().all())
        return [
            Told(
                sequence=number,
                place=row["number"],
                at=row["at"],
                kind=row["kind"],
                payload=row["payload"],
            )
            for number, row in enumerate(rows, start=after + 1)
        ]

    def news(self, *, after: int) -> tuple[int, set[str]]:
        """Where the newest event stands, and which optimizations had events after ``after``."""
        query = sa.select(events.c.optimization_id, sa.func.max(events.c.number).label("last"))
        with self._archive.transaction() as connection:
            rows = connection.execute(query.where(events.c.number > after).group_by(events.c.optimization_id)).all()
        return max((row.last for row in rows), default=after), {row.optimization_id for row in rows}

    def newest_place(self) -> int:
        """Where the newest of all events stands."""
        with self._archive.transaction() as connection:
            return int(connection.execute(sa.select(sa.func.max(events.c.number))).scalar() or 0)

    def first_and_latest(
        self, identity: str, kinds: tuple[str, ...]
    ) -> dict[str, tuple[Mapping[str, Any], Mapping[str, Any]]]:
        """The payloads of the oldest and the newest event of each of these kinds."""
        number = events.c.number
        ends = (
            sa.select(sa.func.min(number).label("first"), sa.func.max(number).label("last"))
            .where(events.c.optimization_id == identity, events.c.kind.in_(kinds))
            .group_by(events.c.kind)
            .subquery()
        )
        query = events.select().join(ends, sa.or_(number == ends.c.first, number == ends.c.last)).order_by(number)
        with self._archive.transaction() as connection:
            rows = self._archive.shown(connection, EVENT, connection.execute(query).mappings().all())
        found: dict[str, tuple[Mapping[str, Any], Mapping[str, Any]]] = {}
        for row in rows:
            first, _ = found.get(row["kind"], (row["payload"], None))
            found[row["kind"]] = first, row["payload"]
        return found

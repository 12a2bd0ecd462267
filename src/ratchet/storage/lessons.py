"""Lessons, in memory and in a SQL database."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa

from ratchet.core.errors import UnknownName
from ratchet.core.lesson import Lesson
from ratchet.core.problem import canonical
from ratchet.storage.sql import SqlArchive
from ratchet.storage.tables import metadata
from ratchet.storage.texts import Texts, Words

lessons = sa.Table(
    "lessons",
    metadata,
    sa.Column("tenant", sa.String(128), primary_key=True),
    sa.Column("id", sa.String(32), primary_key=True),
    sa.Column("created_at", sa.String(32), nullable=False, index=True),
    sa.Column("lesson", Words, nullable=False),
    sa.Column("sealed", sa.LargeBinary),
)

LESSON = Texts(lessons, "lesson", at=("id",), of="tenant", owner="lessons")
"""All lessons of a tenant are under one key."""


def place_of(lesson: Lesson) -> tuple[str, str]:
    """Where a lesson stands among those of its tenant: time and id."""
    return lesson.created_at.isoformat(), lesson.id


@dataclass
class MemoryLessons:
    """Lessons for as long as the process lives."""

    kept: dict[tuple[str, str], Lesson] = field(default_factory=dict)

    def keep(self, lesson: Lesson) -> None:
        """Keep a lesson; one with the same id and tenant is replaced."""
        self.kept[lesson.tenant, lesson.id] = lesson

    def lessons(self, tenant: str, *, limit: int = 500, before: tuple[str, str] | None = None) -> list[Lesson]:
        """The newest first, those older than ``before`` (time and id)."""
        own = [each for each in self.kept.values() if each.tenant == tenant]
        older = [each for each in own if before is None or place_of(each) < before]
        return sorted(older, key=place_of, reverse=True)[:limit]

    def find(self, lesson_id: str, tenant: str) -> Lesson:
        """One lesson; a unique beginning of its id will do."""
        return _the_one(lesson_id, [each for each in self.lessons(tenant) if each.id.startswith(lesson_id)])

    def forget(self, tenant: str, *, lesson_id: str | None = None) -> int:
        """Remove one lesson, or all of a tenant; how many that were."""
        gone = self.lessons(tenant, limit=len(self.kept)) if lesson_id is None else [self.find(lesson_id, tenant)]
        for each in gone:
            del self.kept[tenant, each.id]
        return len(gone)


class SqlLessons:
    """Lessons in the database of an archive.

    Raises:
        StorageUnavailable: the database refuses.
    """

    def __init__(self, archive: SqlArchive) -> None:
        self._archive = archive
        archive.make(metadata)

    def keep(self, lesson: Lesson) -> None:
        """Keep a lesson; one with the same id and tenant is replaced."""
        values = {
            "tenant": lesson.tenant,
            "id": lesson.id,
            "created_at": lesson.created_at.isoformat(),
            "lesson": canonical(lesson.to_json()),
        }
        some = lessons.select().where(lessons.c.tenant == lesson.tenant).limit(1)
        with self._archive.transaction() as connection:
            whole = connection.execute(some).first() is None
        box = self._archive.vault.writing(LESSON.owner(values), tenant=lesson.tenant, whole=whole)
        with self._archive.transaction() as connection:
            connection.execute(lessons.delete().where(_this(lesson.id, lesson.tenant)))
            connection.execute(lessons.insert().values(**LESSON.hide(box, values)))

    def lessons(self, tenant: str, *, limit: int = 500, before: tuple[str, str] | None = None) -> list[Lesson]:
        """The newest first, those older than ``before`` (time and id)."""
        query = lessons.select().where(lessons.c.tenant == tenant)
        if before is not None:
            at, identity = before
            older = sa.and_(lessons.c.created_at == at, lessons.c.id < identity)
            query = query.where(sa.or_(lessons.c.created_at < at, older))
        query = query.order_by(lessons.c.created_at.desc(), lessons.c.id.desc()).limit(limit)
        with self._archive.transaction() as connection:
            return self._shown(connection, query)

    def find(self, lesson_id: str, tenant: str) -> Lesson:
        """One lesson; a unique beginning of its id will do."""
        begins = sa.func.substr(lessons.c.id, 1, len(lesson_id)) == lesson_id
        query = lessons.select().where(lessons.c.tenant == tenant, begins)
        query = query.order_by(sa.func.length(lessons.c.id)).limit(2)
        with self._archive.transaction() as connection:
            return _the_one(lesson_id, self._shown(connection, query))

    def _shown(self, connection: sa.Connection, query: sa.Select[Any]) -> list[Lesson]:
        rows = self._archive.shown(connection, LESSON, connection.execute(query).mappings().all())
        return [Lesson.from_json(json.loads(row["lesson"])) for row in rows]

    def forget(self, tenant: str, *, lesson_id: str | None = None) -> int:
        """Remove one lesson, or all of a tenant; how many that were."""
        which = lessons.c.tenant == tenant
        if lesson_id is not None:
            which = _this(self.find(lesson_id, tenant).id, tenant)
        with self._archive.transaction() as connection:
            return connection.execute(lessons.delete().where(which)).rowcount


def _this(lesson_id: str, tenant: str) -> sa.ColumnElement[bool]:
    return sa.and_(lessons.c.tenant == tenant, lessons.c.id == lesson_id)


def _the_one(lesson_id: str, found: list[Lesson]) -> Lesson:
    exact = [each for each in found if each.id == lesson_id]
    if (len(found) != 1 and not exact) or not lesson_id:
        problem = "more than one lesson begins" if found and lesson_id else "there is no lesson"
        raise UnknownName(f"{problem} with id {lesson_id!r}; `ratchet lessons list` shows them")
    return (exact or found)[0]

"""Erasure: the data key destroyed and the rows deleted; what stays is who erased what, and when."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from ratchet.core.access import Actor
from ratchet.core.errors import BadRequest, Conflict, Missing
from ratchet.core.result import ENDED
from ratchet.storage.audit import Audit
from ratchet.storage.jobs import GOES_ON, files, jobs, repeats
from ratchet.storage.lessons import lessons
from ratchet.storage.privacy import cleaned
from ratchet.storage.shelf import FIELDS, SPEC, Shelf, datasets, parts
from ratchet.storage.sql import SqlArchive
from ratchet.storage.tables import OWNER, candidates, evaluations, events, examples, optimizations, replies
from ratchet.storage.texts import Texts

AT_REST = (*ENDED, *GOES_ON)
"""How an optimization stands that can be erased; any other is worked on, or will be."""

SWEEP = "retention"
"""The claim of whoever erases what is old."""

HOUSE = "default"
"""The tenant whose retention holds for what a command began, which belongs to no tenant."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Retention:
    """After how many days things are erased; 0 for never.

    Attributes:
        days: For tenants that are not named.
        of: For those that are.
    """

    days: float = 0.0
    of: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def parse(cls, text: str) -> Retention:
        """From ``30``, or ``30,TENANT=7``; empty is never.

        Raises:
            BadRequest: it is written otherwise.

        >>> kept = Retention.parse("30,lab=7,archive=0")
        >>> kept.tenant("acme"), kept.tenant("lab"), kept.tenant("archive")
        (30.0, 7.0, 0.0)
        """
        found: dict[str, float] = {}
        for entry in (part.strip() for part in text.split(",") if part.strip()):
            tenant, _, number = entry.rpartition("=")
            days = float(number) if number.strip().replace(".", "", 1).isdigit() else -1.0
            if not 0 <= days < 100_000:
                raise BadRequest(
                    f"RATCHET_RETENTION_DAYS has {entry!r}; write a number of days, or TENANT=DAYS, with commas between"
                )
            found[tenant.strip()] = days
        return cls(days=found.pop("", 0.0), of=found)

    def tenant(self, tenant: str) -> float:
        """Days for a tenant."""
        return self.of.get(tenant, self.days)

    @property
    def some(self) -> bool:
        """Whether anything is ever erased."""
        return self.days > 0 or any(self.of.values())


class Eraser:
    """Erases things of one database.

    Args:
        archive: The database.
        audit: Where it is told.
        shelf: Data sets and targets.
        runs: The folder where commands leave the files of an optimization when they are told no other.
        also: Further tables with things of an optimization, named in their column ``optimization_id``.
    """

    def __init__(
        self, archive: SqlArchive, audit: Audit, shelf: Shelf, *, runs: Path, also: Sequence[sa.Table] = ()
    ) -> None:
        self._also = also
        self._archive = archive
        self._audit = audit
        self._shelf = shelf
        self._runs = runs
        for tables in (jobs.metadata, lessons.metadata, cleaned.metadata):
            archive.make(tables)

    # --- one thing ---------------------------------------------------------------------------------------------------

    def optimization(self, actor: Actor, identity: str, *, action: str = "optimization.erase") -> None:
        """Erase an optimization: its data, candidates, evaluations, replies, files, and the lesson it taught.

        Args:
            actor: Of the optimization's own tenant, or of any when no tenant has it.

        Raises:
            Missing: there is none.
            Conflict: it waits or is worked on.
        """
        self._erase_optimization(actor, identity, action=action)
        self._archive.scrub()

    def _erase_optimization(self, actor: Actor, identity: str, *, action: str) -> None:
        self._at_rest(actor, identity)
        if not self._archive.claims.take(identity):
            raise Conflict(f"{identity} cannot be erased: it is being worked on; cancel it first", value=identity)
        try:
            self._archive.pen.flush()
            with self._audit.change(actor) as change:
                change.note(action, identity, before=self._at_rest(actor, identity, change.connection))
                self._delete_optimization(change.connection, actor.tenant, identity)
        finally:
            self._archive.claims.release(identity)
        self._archive.forget(identity)
        shutil.rmtree(self._runs / identity, ignore_errors=True)

    def check(self, actor: Actor, identity: str) -> None:
        """Raise what ``optimization`` would, as things stand."""
        self._at_rest(actor, identity)

    def dataset(self, actor: Actor, reference: str, *, action: str = "dataset.erase") -> None:
        """Erase a version of a data set; optimizations keep the rows that they were given.

        Raises:
            Missing: the actor's tenant has none.
        """
        self._erase_dataset(actor, reference, action=action)
        self._archive.scrub()

    def _erase_dataset(self, actor: Actor, reference: str, *, action: str) -> None:
        self._kept(actor, FIELDS, "data set", reference, action)

    def target(self, actor: Actor, reference: str, *, action: str = "target.erase") -> None:
        """Erase a version of a target.

        Raises:
            Missing: the actor's tenant has none.
        """
        self._kept(actor, SPEC, "target", reference, action)
        self._archive.scrub()

    def optimizations_on(self, tenant: str, dataset: str) -> list[str]:
        """Ids of the tenant's optimizations that were given rows of a version of a data set.

        Raises:
            Missing: the tenant has none.
        """
        with self._archive.transaction() as connection:
            row = self._shelf._find(connection, datasets, "data set", tenant, dataset)
            named = jobs.c.data.contains(f'"{row["name"]}@{row["version"]}"', autoescape=True)
            query = sa.select(jobs.c.id).where(jobs.c.tenant == tenant, named).order_by(jobs.c.created_at)
            return list(connection.execute(query).scalars())

    def tenant_of(self, identity: str) -> str | None:
        """Whose an optimization is; None when a command began it."""
        with self._archive.transaction() as connection:
            return connection.execute(sa.select(jobs.c.tenant).where(jobs.c.id == identity)).scalar()

    # --- what is old -------------------------------------------------------------------------------------------------

    def sweep(self, actor: Actor, retention: Retention, *, now: datetime) -> int:
        """Erase what is older than its tenant lets it be; how many things that were.

        What waits or is worked on stays until it is at rest. Targets stay: they are programs, not data.
        """
        if not retention.some or not self._archive.claims.take(SWEEP):
            return 0
        try:
            done = sum(
                self._swept(actor, rows, erase, retention, now)
                for rows, erase in (
                    (self._optimizations(), self._erase_optimization),
                    (self._rows(datasets, datasets.c.erased_at.is_(None)), self._erase_dataset),
                    (self._rows(lessons), self._erase_lesson),
                )
            )
            if done:
                self._archive.scrub()
            return done
        finally:
            self._archive.claims.release(SWEEP)

    def _swept(
        self, actor: Actor, rows: list[Any], erase: Callable[..., None], retention: Retention, now: datetime
    ) -> int:
        done = 0
        for row in rows:
            tenant = row.tenant or HOUSE
            days = retention.tenant(tenant)
            made = datetime.fromisoformat(row.created_at).astimezone(UTC)
            if days and made < now - timedelta(days=days):
                with suppress(Conflict, Missing):  # it is worked on, or another process was quicker
                    erase(replace(actor, tenant=tenant), row.id, action="retention.erase")
                    done += 1
        return done

    def _optimizations(self) -> list[Any]:
        query = sa.select(optimizations.c.id, optimizations.c.created_at, jobs.c.tenant)
        with self._archive.transaction() as connection:
            return list(
                connection.execute(query.join_from(optimizations, jobs, jobs.c.id == optimizations.c.id, isouter=True))
            )

    def _rows(self, table: sa.Table, *which: sa.ColumnElement[bool]) -> list[Any]:
        with self._archive.transaction() as connection:
            return list(connection.execute(sa.select(table.c.id, table.c.created_at, table.c.tenant).where(*which)))

    def _erase_lesson(self, actor: Actor, identity: str, *, action: str) -> None:
        this = sa.and_(lessons.c.tenant == actor.tenant, lessons.c.id == identity)
        with self._audit.change(actor) as change:
            if change.connection.execute(lessons.delete().where(this)).rowcount:
                change.note(action, f"lesson {identity}", before={"id": identity})

    # --- within a transaction ----------------------------------------------------------------------------------------

    def _at_rest(self, actor: Actor, identity: str, connection: sa.Connection | None = None) -> dict[str, Any]:
        """What the trail tells of an optimization that can be erased."""
        if connection is None:
            with self._archive.transaction() as connection:
                return self._at_rest(actor, identity, connection)
        of = (jobs.c.tenant, jobs.c.settled, jobs.c.attempt, jobs.c.target, jobs.c.data)
        query = sa.select(optimizations.c.id, optimizations.c.status, optimizations.c.created_at, *of)
        query = query.join_from(optimizations, jobs, jobs.c.id == optimizations.c.id, isouter=True)
        row = connection.execute(query.where(optimizations.c.id == identity)).mappings().first()
        if row is None or row["tenant"] not in (actor.tenant, None):
            raise Missing(f"there is no optimization {identity!r}", value=identity)
        # One without a tenant has no queue; whether a process works on it, its claim says.
        if row["tenant"] is not None and (row["status"] not in AT_REST or row["settled"] != row["attempt"]):
            raise Conflict(f"{identity} cannot be erased: it waits or is worked on; cancel it first", value=identity)
        return {name: row[name] for name in ("id", "status", "created_at", "target", "data")}

    def _delete_optimization(self, connection: sa.Connection, tenant: str, identity: str) -> None:
        for table in (examples, candidates, evaluations, replies, events, files, *self._also):
            connection.execute(table.delete().where(table.c.optimization_id == identity))
        connection.execute(repeats.delete().where(repeats.c.object == identity))
        connection.execute(lessons.delete().where(lessons.c.id == identity, lessons.c.tenant == tenant))
        for table in (jobs, optimizations):
            connection.execute(table.delete().where(table.c.id == identity))
        self._archive.vault.destroy(connection, f"{OWNER}:{identity}")

    def _kept(self, actor: Actor, texts: Texts, what: str, reference: str, action: str) -> None:
        table = texts.table
        with self._audit.change(actor) as change:
            row = self._shelf._find(change.connection, table, what, actor.tenant, reference)
            blank = dict.fromkeys(texts.names, "") | {texts.into: None, "erased_at": change.now}
            change.connection.execute(table.update().where(table.c.id == row["id"]).values(**blank))
            for rows in (parts, cleaned):
                change.connection.execute(rows.delete().where(rows.c.dataset_id == row["id"]))
            self._archive.vault.destroy(change.connection, texts.owner(row))
            change.note(action, f"{row['name']}@{row['version']}", before={"hash": row["hash"]})

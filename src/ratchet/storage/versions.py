"""Versions: the proven winners of a target, and which of them is its champion."""

from __future__ import annotations

import uuid
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Literal

import sqlalchemy as sa

from ratchet.core.access import Actor
from ratchet.core.errors import Conflict, Stale
from ratchet.storage.audit import Audited, Change
from ratchet.storage.statements import newest_first, the_row

metadata = sa.MetaData()

versions = sa.Table(
    "versions",
    metadata,
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("id", sa.String(16), nullable=False, unique=True),
    sa.Column("tenant", sa.String(64), nullable=False),
    sa.Column("target", sa.String(100), nullable=False),
    sa.Column("version", sa.Integer, nullable=False),
    sa.Column("optimization_id", sa.String(32), nullable=False, unique=True),
    sa.Column("candidate", sa.String(16), nullable=False),
    sa.Column("created_at", sa.String(32), nullable=False),
    sa.Column("created_by", sa.String(200), nullable=False),
    sa.UniqueConstraint("tenant", "target", "version"),
)
reigns = sa.Table(  # the newest that was not rolled back is the champion's
    "reigns",
    metadata,
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("tenant", sa.String(64), nullable=False),
    sa.Column("target", sa.String(100), nullable=False),
    sa.Column("version_id", sa.String(16), nullable=False),
    sa.Column("began_at", sa.String(32), nullable=False),
    sa.Column("began_by", sa.String(200), nullable=False),
    sa.Column("rolled_back_at", sa.String(32)),
    sa.Index("reigns_of_target", "tenant", "target"),
)

State = Literal["challenger", "champion", "history"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Version:
    """A candidate that was registered for a target.

    Attributes:
        target: The name of the target.
        version: From 1, in the order they were registered.
        optimization_id, candidate: What proved it, and its key there.
        state: ``challenger`` until it is promoted, ``champion`` while it is in use, ``history`` afterwards.
        changes: How often the champion of its target has changed so far.
    """

    id: str
    target: str
    version: int
    optimization_id: str
    candidate: str
    created_at: str
    created_by: str
    state: State
    changes: int

    @property
    def tag(self) -> str:
        """Changes whenever the champion of its target does."""
        return f'"{self.id}.{self.changes}"'


class Versions(Audited):
    """All versions."""

    tables = (metadata,)

    def register(self, actor: Actor, *, target: str, optimization_id: str, candidate: str) -> Version:
        """A new challenger for ``target``; the same one when this optimization has one already."""
        with self._audit.change(actor) as change:
            query = sa.select(versions.c.id).where(versions.c.optimization_id == optimization_id)
            known = change.connection.execute(query).scalar()
            if known is not None:
                return self._version(change.connection, actor.tenant, known)
            mine = sa.and_(versions.c.tenant == actor.tenant, versions.c.target == target)
            newest = change.connection.execute(sa.select(sa.func.max(versions.c.version)).where(mine)).scalar() or 0
            identity = uuid.uuid4().hex[:12]
            values = {"target": target, "version": newest + 1, "candidate": candidate}
            more = {"optimization_id": optimization_id, "created_at": change.now, "created_by": actor.name}
            row = {"id": identity, "tenant": actor.tenant, **values, **more}
            change.connection.execute(versions.insert().values(**row))
            change.note("version.register", identity, after={**values, "state": "challenger"})
            return self._version(change.connection, actor.tenant, identity)

    def promote(self, actor: Actor, identity: str, *, expected: Collection[str] | None = None) -> Version:
        """Make it the champion of its target; the one before becomes history.

        Args:
            expected: One of these is its tag still; None does not ask.

        Raises:
            Missing: this tenant has no such version.
            Stale: somebody else changed the champion meanwhile.
        """
        with self._audit.change(actor) as change:
            version = self._version(change.connection, actor.tenant, identity)
            _see(version, expected)
            if version.state == "champion":
                return version
            self._note(change, actor, version, "version.promote", after=identity)
            values = {"tenant": actor.tenant, "target": version.target, "version_id": identity}
            change.connection.execute(reigns.insert().values(began_at=change.now, began_by=actor.name, **values))
            return self._version(change.connection, actor.tenant, identity)

    def rollback(self, actor: Actor, identity: str, *, expected: Collection[str] | None = None) -> Version | None:
        """Take a champion back; the version that is champion again, None when it is the program as it was kept.

        Args:
            expected: One of these is the tag of the champion still; None does not ask.

        Raises:
            Missing: this tenant has no such version.
            Conflict: it is not the champion.
            Stale: somebody else changed the champion meanwhile.
        """
        with self._audit.change(actor) as change:
            version = self._version(change.connection, actor.tenant, identity)
            _see(version, expected)
            if version.state != "champion":
                raise Conflict(f"version {identity} is not the champion of {version.target}: it is {version.state}")
            now, *before = self._stack(change.connection, actor.tenant, version.target)
            last = before[0].version_id if before else None
            self._note(change, actor, version, "version.rollback", after=last)
            undone = reigns.update().where(reigns.c.number == now.number)
            change.connection.execute(undone.values(rolled_back_at=change.now))
            return None if last is None else self._version(change.connection, actor.tenant, last)

    def find(self, tenant: str, identity: str) -> Version:
        """One version of a tenant.

        Raises:
            Missing: it has none with this id.
        """
        with self._archive.transaction() as connection:
            return self._version(connection, tenant, identity)

    def champion(self, tenant: str, target: str) -> Version | None:
        """The champion of a target; None for the program as it was kept."""
        with self._archive.transaction() as connection:
            stack = self._stack(connection, tenant, target)
            return self._version(connection, tenant, stack[0].version_id) if stack else None

    def page(
        self, tenant: str, *, before: int | None, limit: int, target: str | None = None
    ) -> list[tuple[int, Version]]:
        """Numbered versions, the newest first, those numbered below ``before``; of one target when it is named."""
        query = newest_first(versions, versions.c.tenant == tenant, before=before, limit=limit)
        if target is not None:
            query = query.where(versions.c.target == target)
        with self._archive.transaction() as connection:
            rows = connection.execute(query).mappings().all()
            return [(row["number"], self._version(connection, tenant, row["id"])) for row in rows]

    # --- within a transaction ----------------------------------------------------------------------------------------

    def _version(self, connection: sa.Connection, tenant: str, identity: str) -> Version:
        row = the_row(connection, versions, "version", tenant, identity)
        reigned = self._reigns(connection, tenant, row["target"])
        top = next((each.version_id for each in reigned if each.rolled_back_at is None), None)
        state: State = "history" if any(each.version_id == identity for each in reigned) else "challenger"
        return Version(
            **{name: row[name] for name in Version.__dataclass_fields__ if name not in ("state", "changes")},
            state="champion" if top == identity else state,
            changes=len(reigned) + sum(each.rolled_back_at is not None for each in reigned),
        )

    def _reigns(self, connection: sa.Connection, tenant: str, target: str) -> list[sa.Row[Any]]:
        """All reigns of a target, the newest first."""
        query = reigns.select().where(reigns.c.tenant == tenant, reigns.c.target == target)
        return list(connection.execute(query.order_by(reigns.c.number.desc())))

    def _stack(self, connection: sa.Connection, tenant: str, target: str) -> list[sa.Row[Any]]:
        """The reigns that were not rolled back, the newest first."""
        return [each for each in self._reigns(connection, tenant, target) if each.rolled_back_at is None]

    def _note(self, change: Change, actor: Actor, version: Version, action: str, *, after: str | None) -> None:
        stack = self._stack(change.connection, actor.tenant, version.target)
        was = {"target": version.target, "champion": stack[0].version_id if stack else None}
        change.note(action, version.id, before=was, after={**was, "champion": after})


def _see(version: Version, expected: Collection[str] | None) -> None:
    if expected is not None and version.tag not in expected and "*" not in expected:
        raise Stale(
            f"the champion of {version.target} was changed meanwhile; look at it again, and send its ETag",
            field="If-Match",
            value=version.tag,
        )

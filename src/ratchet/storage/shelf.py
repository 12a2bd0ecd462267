"""Data sets and targets that were brought to the service: named, versioned, hashed, never changed."""

from __future__ import annotations

import gzip
import json
import re
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import sqlalchemy as sa

from ratchet.core.access import Actor
from ratchet.core.errors import BadRequest, Missing
from ratchet.programs.datasets import Row
from ratchet.storage.audit import Audited, Change, state_hash
from ratchet.storage.envelope import Box
from ratchet.storage.privacy import Cleaned
from ratchet.storage.privacy import metadata as privacy
from ratchet.storage.statements import newest_first
from ratchet.storage.texts import Texts

metadata = sa.MetaData()


def _kept(name: str, *columns: sa.Column[Any]) -> sa.Table:
    return sa.Table(
        name,
        metadata,
        sa.Column("number", sa.Integer, primary_key=True, autoincrement=True),
        sa.Column("id", sa.String(16), nullable=False, unique=True),
        sa.Column("tenant", sa.String(64), nullable=False),
        sa.Column("name", sa.String(100), nullable=False),
        sa.Column("version", sa.Integer, nullable=False),
        sa.Column("hash", sa.String(64), nullable=False),
        sa.Column("created_at", sa.String(32), nullable=False),
        sa.Column("created_by", sa.String(200), nullable=False),
        *columns,
        sa.Column("sealed", sa.LargeBinary),
        sa.Column("erased_at", sa.String(32)),  # its number is never given again
        sa.UniqueConstraint("tenant", "name", "version"),
    )


datasets = _kept(
    "datasets",
    sa.Column("rows", sa.Integer, nullable=False),
    sa.Column("bytes", sa.Integer, nullable=False),
    sa.Column("fields", sa.Text, nullable=False),
)
targets = _kept("targets", sa.Column("spec", sa.Text, nullable=False))
parts = sa.Table(
    "dataset_parts",
    metadata,
    sa.Column("dataset_id", sa.String(16), primary_key=True),
    sa.Column("part", sa.Integer, primary_key=True),
    sa.Column("content", sa.LargeBinary, nullable=False),
)

FIELDS = Texts(datasets, "fields", at=("id",), of="id", owner="dataset")
SPEC = Texts(targets, "spec", at=("id",), of="id", owner="target")

ROWS_PER_PART = 1000
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
"""What a data set or a target may be called; ``NAME@3`` is its third version."""


VERSION = re.compile(r"[1-9][0-9]{0,8}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Dataset:
    """One version of a data set.

    Attributes:
        hash: SHA-256 over its rows in order.
        rows: How many there are.
        bytes: How many were uploaded.
        fields: The columns of its first row.
    """

    id: str
    name: str
    version: int
    hash: str
    created_at: str
    created_by: str
    rows: int
    bytes: int
    fields: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredTarget:
    """One version of a target.

    Attributes:
        spec: How it is built: ``signature`` with ``module`` and ``instructions``, ``program``, or ``import_path``.
    """

    id: str
    name: str
    version: int
    hash: str
    created_at: str
    created_by: str
    spec: Mapping[str, Any]


Kept = TypeVar("Kept", Dataset, StoredTarget)


def check_shelf_name(name: str) -> None:
    """Refuse a name that a data set or a target cannot have.

    Raises:
        BadRequest: it is one.
    """
    if not NAME.fullmatch(name):
        raise BadRequest(
            f"name is {name!r}; give letters, digits, '.', '-' and '_', at most 100", field="name", value=name
        )


class Shelf(Audited):
    """All data sets and targets."""

    tables = (metadata, privacy)

    # --- data sets ---------------------------------------------------------------------------------------------------

    def keep_dataset(
        self, actor: Actor, name: str, rows: Sequence[Row], *, size: int, cleaned: Cleaned | None = None
    ) -> tuple[Dataset, bool]:
        """A new version, and True; or the newest one, and False, when its rows are the same.

        Args:
            cleaned: How they were cleaned.

        Raises:
            BadRequest: the name cannot be used.
        """
        digest = state_hash([row.fields for row in rows])
        with self._audit.change(actor) as change:
            newest = self._newest(change, datasets, actor.tenant, name)
            if newest is not None and newest["hash"] == digest and newest["erased_at"] is None:
                return self._datasets(change.connection, [newest])[0], False
            more = {"rows": len(rows), "bytes": size, "fields": list(rows[0].fields)}
            row, box = self._add(change, FIELDS, actor, name, newest, hash=digest, **more)
            for part, start in enumerate(range(0, len(rows), ROWS_PER_PART)):
                some = [[row.number, row.fields] for row in rows[start : start + ROWS_PER_PART]]
                content = gzip.compress(json.dumps(some).encode(), mtime=0)
                values = {"dataset_id": row["id"], "part": part, "content": box.seal(content, _part(part), press=False)}
                change.connection.execute(parts.insert().values(**values))
            change.note("dataset.create", f"{name}@{row['version']}", after={"hash": digest})
            if cleaned is not None:
                cleaned.note(change, box, row["id"], f"{name}@{row['version']}")
            return _dataset(row), True

    def dataset(self, tenant: str, reference: str) -> Dataset:
        """A data set by its id, ``NAME`` for its newest version, or ``NAME@VERSION``.

        Raises:
            Missing: there is none.
        """
        with self._archive.transaction() as connection:
            return self._datasets(connection, [self._find(connection, datasets, "data set", tenant, reference)])[0]

    def rows(self, dataset: Dataset) -> list[Row]:
        """Its rows, in order."""
        query = sa.select(parts).where(parts.c.dataset_id == dataset.id).order_by(parts.c.part)
        box = self._archive.vault.box(f"dataset:{dataset.id}")
        with self._archive.transaction() as connection:
            contents = [
                json.loads(gzip.decompress(box.open(bytes(row.content), _part(row.part))))
                for row in connection.execute(query)
            ]
        return [Row(number=number, fields=fields) for content in contents for number, fields in content]

    def datasets(self, tenant: str, *, before: int | None, limit: int) -> list[tuple[int, Dataset]]:
        """Numbered data sets, the newest first, those numbered below ``before``."""
        with self._archive.transaction() as connection:
            rows = self._page(connection, datasets, tenant, before, limit)
            found = self._datasets(connection, rows)
        return [(row["number"], each) for row, each in zip(rows, found, strict=True)]

    def _datasets(self, connection: sa.Connection, rows: Sequence[sa.RowMapping]) -> list[Dataset]:
        return [_dataset(row) for row in self._archive.shown(connection, FIELDS, rows)]

    # --- targets -----------------------------------------------------------------------------------------------------

    def keep_target(self, actor: Actor, name: str, spec: Mapping[str, Any]) -> tuple[StoredTarget, bool]:
        """A new version, and True; or the newest one, and False, when it is built the same way.

        Raises:
            BadRequest: the name cannot be used.
        """
        digest = state_hash(dict(spec))
        with self._audit.change(actor) as change:
            newest = self._newest(change, targets, actor.tenant, name)
            if newest is not None and newest["hash"] == digest and newest["erased_at"] is None:
                return self._targets(change.connection, [newest])[0], False
            row, _ = self._add(change, SPEC, actor, name, newest, hash=digest, spec=dict(spec))
            change.note("target.create", f"{name}@{row['version']}", after={"hash": digest})
            return _target(row), True

    def target(self, tenant: str, reference: str) -> StoredTarget:
        """A target by its id, ``NAME`` for its newest version, or ``NAME@VERSION``.

        Raises:
            Missing: there is none.
        """
        with self._archive.transaction() as connection:
            return self._targets(connection, [self._find(connection, targets, "target", tenant, reference)])[0]

    def targets(self, tenant: str, *, before: int | None, limit: int) -> list[tuple[int, StoredTarget]]:
        """Numbered targets, the newest first, those numbered below ``before``."""
        with self._archive.transaction() as connection:
            rows = self._page(connection, targets, tenant, before, limit)
            found = self._targets(connection, rows)
        return [(row["number"], each) for row, each in zip(rows, found, strict=True)]

    def _targets(self, connection: sa.Connection, rows: Sequence[sa.RowMapping]) -> list[StoredTarget]:
        return [_target(row) for row in self._archive.shown(connection, SPEC, rows)]

    # --- both --------------------------------------------------------------------------------------------------------

    def _newest(self, change: Change, table: sa.Table, tenant: str, name: str) -> sa.RowMapping | None:
        check_shelf_name(name)
        query = table.select().where(table.c.tenant == tenant, table.c.name == name).order_by(table.c.version.desc())
        return change.connection.execute(query.limit(1)).mappings().first()

    def _add(
        self, change: Change, texts: Texts, actor: Actor, name: str, newest: sa.RowMapping | None, **values: Any
    ) -> tuple[dict[str, Any], Box]:
        version = 1 if newest is None else newest["version"] + 1
        known = {"tenant": actor.tenant, "name": name, "version": version, "created_by": actor.name}
        row = {"id": uuid.uuid4().hex[:12], "created_at": change.now, **known, **values}
        box = self._archive.vault.make(change.connection, texts.owner(row), tenant=actor.tenant)
        change.connection.execute(texts.table.insert().values(**texts.hide(box, row)))
        return row, box

    def _find(
        self, connection: sa.Connection, table: sa.Table, what: str, tenant: str, reference: str
    ) -> sa.RowMapping:
        name, at, version = reference.partition("@")
        query = table.select().where(table.c.tenant == tenant, table.c.erased_at.is_(None))
        query = query.order_by(table.c.version.desc()).limit(1)
        if at:
            number = int(version) if VERSION.fullmatch(version) else -1
            query = query.where(table.c.name == name, table.c.version == number)
        else:
            query = query.where(sa.or_(table.c.id == reference, table.c.name == reference))
        row = connection.execute(query).mappings().first()
        if row is None:
            raise Missing(f"there is no {what} {reference!r}; give an id, a name, or NAME@VERSION", value=reference)
        return row

    def _page(
        self, connection: sa.Connection, table: sa.Table, tenant: str, before: int | None, limit: int
    ) -> Sequence[sa.RowMapping]:
        there = (table.c.tenant == tenant, table.c.erased_at.is_(None))
        return connection.execute(newest_first(table, *there, before=before, limit=limit)).mappings().all()


def _part(part: int) -> str:
    """Where a part of a data set stands."""
    return f"dataset_parts.content/{part}"


def _values(row: Mapping[str, Any], kind: type[Any]) -> dict[str, Any]:
    return {name: row[name] for name in kind.__dataclass_fields__}


def _dataset(row: Mapping[str, Any]) -> Dataset:
    return Dataset(**{**_values(row, Dataset), "fields": tuple(row["fields"])})


def _target(row: Mapping[str, Any]) -> StoredTarget:
    return StoredTarget(**_values(row, StoredTarget))

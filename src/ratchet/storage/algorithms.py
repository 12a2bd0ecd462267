"""Algorithms behind a URL that a tenant's operator registered with the service."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from ratchet.core.access import Actor
from ratchet.programs.remote_algorithm import Address
from ratchet.storage.audit import Audited
from ratchet.storage.sql import SqlArchive

metadata = sa.MetaData()

custom_algorithms = sa.Table(
    "custom_algorithms",
    metadata,
    sa.Column("tenant", sa.String(64), primary_key=True),
    sa.Column("name", sa.String(64), primary_key=True),
    sa.Column("url", sa.Text, nullable=False),
    sa.Column("secret_env", sa.String(100)),
    sa.Column("promises", sa.Text, nullable=False),
    sa.Column("created_at", sa.String(32), nullable=False),
    sa.Column("created_by", sa.String(200), nullable=False),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Registered:
    """A registered algorithm.

    Attributes:
        promises: What was found when it was registered: each promise of the contract, and whether it was kept.
    """

    name: str
    address: Address
    promises: Sequence[Mapping[str, Any]]
    created_at: str
    created_by: str


def addresses(archive: SqlArchive, tenant: str) -> dict[str, Address]:
    """The addresses that a tenant registered, by name."""
    archive.make(metadata)
    query = custom_algorithms.select().where(custom_algorithms.c.tenant == tenant)
    with archive.transaction() as connection:
        return {row.name: Address(url=row.url, secret_env=row.secret_env) for row in connection.execute(query)}


class Algorithms(Audited):
    """All algorithms that were registered with the service."""

    tables = (metadata,)

    def register(
        self, actor: Actor, name: str, address: Address, promises: Sequence[Mapping[str, Any]]
    ) -> tuple[Registered, bool]:
        """Keep ``address`` under ``name``, in place of an earlier one; and whether there was none."""
        with self._audit.change(actor) as change:
            this = sa.and_(custom_algorithms.c.tenant == actor.tenant, custom_algorithms.c.name == name)
            before = change.connection.execute(custom_algorithms.select().where(this)).mappings().first()
            change.connection.execute(custom_algorithms.delete().where(this))
            values = {"name": name, "url": address.url, "secret_env": address.secret_env}
            more = {"promises": json.dumps([dict(each) for each in promises]), "created_by": actor.name}
            row = {"tenant": actor.tenant, "created_at": change.now, **values, **more}
            change.connection.execute(custom_algorithms.insert().values(**row))
            was = None if before is None else {field: before[field] for field in values}
            change.note("algorithm.register", name, before=was, after=values)
        return _registered(row), before is None

    def page(self, tenant: str, *, after: str, limit: int) -> list[Registered]:
        """What a tenant registered, by name, those whose names come after ``after``."""
        query = custom_algorithms.select().where(custom_algorithms.c.tenant == tenant)
        query = query.where(custom_algorithms.c.name > after).order_by(custom_algorithms.c.name).limit(limit)
        with self._archive.transaction() as connection:
            return [_registered(row) for row in connection.execute(query).mappings()]


def _registered(row: Mapping[str, Any] | sa.RowMapping) -> Registered:
    return Registered(
        name=row["name"],
        address=Address(url=row["url"], secret_env=row["secret_env"]),
        promises=json.loads(row["promises"]),
        created_at=row["created_at"],
        created_by=row["created_by"],
    )

"""Keys of pseudonyms, one for each set of data, and how stored data sets were cleaned."""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from ratchet.core.errors import Missing
from ratchet.storage.audit import Change
from ratchet.storage.envelope import Box
from ratchet.storage.sql import SqlArchive
from ratchet.storage.texts import Texts

metadata = sa.MetaData()

keys = sa.Table(
    "pseudonym_keys",
    metadata,
    sa.Column("tenant", sa.String(128), primary_key=True),
    sa.Column("set", sa.String(300), primary_key=True),
    sa.Column("key", sa.LargeBinary, nullable=False),
)
cleaned = sa.Table(
    "dataset_privacy",
    metadata,
    sa.Column("dataset_id", sa.String(16), primary_key=True),
    sa.Column("policy", sa.Text, nullable=False),
    sa.Column("report", sa.Text, nullable=False),
    sa.Column("sealed", sa.LargeBinary),
)
CLEANED = Texts(cleaned, "policy", "report", at=("dataset_id",), of="dataset_id", owner="dataset")


class PseudonymKeys:
    """The keys under which pseudonyms are computed; without its key, no pseudonym of a set can be told or tried again.

    Args:
        archive: The database.
    """

    def __init__(self, archive: SqlArchive) -> None:
        self._archive = archive
        archive.make(metadata)

    def key(self, tenant: str, name: str) -> bytes:
        """The key of the set ``name``, made when it is asked for first."""
        return self._find(tenant, name) or self._make(tenant, name)

    def known(self, tenant: str, name: str) -> bytes:
        """The key of the set ``name``, which was made before.

        Raises:
            Missing: it was removed.
        """
        found = self._find(tenant, name)
        if found is None:
            raise Missing(
                f"the key of the pseudonyms of {name!r} was removed, so nothing can go on with them", value=name
            )
        return found

    def forget(self, tenant: str, name: str) -> bool:
        """Remove a key for good, and with it the way from an original to its pseudonym; whether there was one."""
        query = keys.delete().where(keys.c.tenant == tenant, keys.c.set == name)
        with self._archive.transaction() as connection:
            return connection.execute(query).rowcount > 0

    def _find(self, tenant: str, name: str) -> bytes | None:
        query = sa.select(keys.c.key).where(keys.c.tenant == tenant, keys.c.set == name)
        with self._archive.transaction() as connection:
            row = connection.execute(query).first()
        if row is None:
            return None
        key = self._archive.vault.box(_owner(tenant)).open(bytes(row.key), _place(name))
        return bytes.fromhex(key.decode())

    def _make(self, tenant: str, name: str) -> bytes:
        box = self._archive.vault.writing(_owner(tenant), tenant=tenant, whole=True)
        key = box.seal(secrets.token_hex(32).encode(), _place(name))
        with suppress(sa.exc.IntegrityError), self._archive.transaction() as connection:  # another was quicker
            connection.execute(keys.insert().values(tenant=tenant, set=name, key=key))
        made = self._find(tenant, name)
        assert made is not None
        return made


@dataclass(frozen=True, slots=True, kw_only=True)
class Cleaned:
    """How a data set was cleaned before it was kept.

    Attributes:
        policy: The policy, as JSON data.
        report: What was found, as JSON data; None where nothing was looked for.
    """

    policy: Mapping[str, Any]
    report: Mapping[str, Any] | None

    def note(self, change: Change, box: Box, dataset_id: str, thing: str) -> None:
        """Keep it beside the data set, and tell the audit trail how much was found, and of what kinds."""
        values = {"dataset_id": dataset_id, "policy": self.policy, "report": self.report}
        change.connection.execute(cleaned.insert().values(**CLEANED.hide(box, values)))
        if self.report is not None:
            found = Counter[str]()
            for kinds in self.report["found"].values():
                found.update({kind: each["count"] for kind, each in kinds.items()})
            told = ", ".join(f"{kind} {count}" for kind, count in sorted(found.items())) or "nothing found"
            change.note("dataset.clean", f"{thing}: {told}"[:200], after=self.report)


def how_cleaned(archive: SqlArchive, dataset_id: str) -> Cleaned | None:
    """How a data set was cleaned; None for one that was kept before anybody asked."""
    query = cleaned.select().where(cleaned.c.dataset_id == dataset_id)
    with archive.transaction() as connection:
        found = archive.shown(connection, CLEANED, connection.execute(query).mappings().all())
    return Cleaned(policy=found[0]["policy"], report=found[0]["report"] or None) if found else None


def _owner(tenant: str) -> str:
    return f"pseudonyms:{tenant}"


def _place(name: str) -> str:
    """Where the key of a set stands."""
    return f"pseudonym_keys.key/{name}"

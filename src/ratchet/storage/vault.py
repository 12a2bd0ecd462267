"""The vault: a data key for each thing that can be erased by itself, wrapped by a master key.

Whoever destroys the data key has erased the thing, wherever copies of its rows may be.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa

from ratchet.core.errors import KeyUnavailable
from ratchet.storage.envelope import KEY_BYTES, Box
from ratchet.storage.ring import KeyRing, Master

metadata = sa.MetaData()

data_keys = sa.Table(
    "data_keys",
    metadata,
    sa.Column("owner", sa.String(200), primary_key=True),
    sa.Column("tenant", sa.String(128), nullable=False, index=True),
    sa.Column("wrapped", sa.LargeBinary, nullable=False),
    sa.Column("master", sa.String(64), nullable=False, index=True),
    sa.Column("fingerprint", sa.String(16), nullable=False),  # of the master key
    sa.Column("whole", sa.Integer, nullable=False),  # 0: rows from before there was a key may stand in plain text
    sa.Column("created_at", sa.String(32), nullable=False),
)

AT_HAND = 5_000
"""Unwrapped data keys that are kept in memory, 2.7 kB each."""
ASKED_AT_ONCE = 500
"""Owners of one query."""


def place_of(owner: str, tenant: str, *, whole: bool) -> str:
    """What a wrapped key is bound to."""
    return f"data_keys/{owner}/{tenant}/{int(whole)}"


class Vault:
    """All data keys of one database.

    Args:
        transaction: Begins one.
        ring: The master keys; None keeps everything in plain text, for tests.
    """

    def __init__(self, transaction: Callable[[], AbstractContextManager[sa.Connection]], ring: KeyRing | None) -> None:
        self.ring = ring
        self._transaction = transaction
        self._boxes: dict[str, Box] = {}

    # --- for whoever stores things -----------------------------------------------------------------------------------

    def seal(self, owner: str, text: str, place: str, *, tenant: str = "") -> bytes:
        """``text`` as it is stored, for a column of binary type.

        Args:
            owner: Whose data key it is under, ``KIND:ID``; it is made when there is none yet.
            place: Table, column and row, such as ``outbox.payload/17``; elsewhere it does not open.
            tenant: Whose it is.
        """
        return self.writing(owner, tenant=tenant, whole=True).seal(text.encode("utf-8", "surrogatepass"), place)

    def open(self, owner: str, stored: bytes, place: str) -> str:
        """What ``seal`` was given.

        Raises:
            Tampered: it was changed or moved.
            KeyUnavailable: its key is not here.
        """
        return self.box(owner).open(stored, place).decode("utf-8", "surrogatepass")

    # --- boxes -------------------------------------------------------------------------------------------------------

    def make(self, connection: sa.Connection, owner: str, *, tenant: str, whole: bool = True) -> Box:
        """A box with a new data key, for a new owner; it is there when the transaction of ``connection`` is."""
        if self.ring is None:
            return Box(owner, None, whole=False)
        key = secrets.token_bytes(KEY_BYTES)
        now = datetime.now(UTC).isoformat()
        values = {"owner": owner, "tenant": tenant, "whole": int(whole), "created_at": now}
        values |= wrapped(self.ring.first, key, owner=owner, tenant=tenant, whole=whole)
        connection.execute(data_keys.insert().values(**values))
        return Box(owner, key, whole=whole)

    def box(self, owner: str) -> Box:
        """The box of an owner; one that seals nothing when there is no data key.

        Raises:
            KeyUnavailable: its master key is not here.
        """
        return self._boxes.get(owner) or self._boxes_of([owner])[owner]

    def boxes(self, connection: sa.Connection, owners: Iterable[str]) -> dict[str, Box]:
        """The boxes of many owners, within a transaction."""
        wanted = set(owners)
        found = {owner: self._boxes[owner] for owner in wanted if owner in self._boxes}
        missing = sorted(wanted - found.keys())
        for start in range(0, len(missing), ASKED_AT_ONCE):
            query = data_keys.select().where(data_keys.c.owner.in_(missing[start : start + ASKED_AT_ONCE]))
            for row in connection.execute(query).mappings():
                found[row["owner"]] = self._unwrapped(row)
        return {owner: found.get(owner) or Box(owner, None, whole=False) for owner in wanted}

    def writing(self, owner: str, *, tenant: str = "", whole: bool = False) -> Box:
        """The box of an owner, with a data key in any case: one from before there were keys is given one.

        Args:
            owner, tenant: See ``seal``.
            whole: Whether nothing of it is stored yet, when there is no key.
        """
        box = self._boxes.get(owner)
        if box is not None:
            return box
        if self.ring is None:
            return Box(owner, None, whole=False)
        with self._transaction() as connection:
            this = data_keys.select().where(data_keys.c.owner == owner)
            row = connection.execute(this).mappings().first()
        if row is None:
            try:
                with self._transaction() as connection:
                    self.make(connection, owner, tenant=tenant, whole=whole)
            except sa.exc.IntegrityError:
                pass  # another process was quicker
            with self._transaction() as connection:
                row = connection.execute(this).mappings().one()
        return self._unwrapped(row)

    def make_whole(self, connection: sa.Connection, owner: str) -> None:
        """Have nothing of ``owner`` taken in plain text any more."""
        this = data_keys.c.owner == owner
        row = connection.execute(data_keys.select().where(this)).mappings().one()
        assert self.ring is not None
        key = unwrapped(self.ring, row)
        values = wrapped(self.ring.first, key, owner=owner, tenant=row["tenant"], whole=True)
        connection.execute(data_keys.update().where(this).values(whole=1, **values))

    def destroy(self, connection: sa.Connection, owner: str) -> None:
        """Make what is sealed for ``owner`` unreadable for good."""
        connection.execute(data_keys.delete().where(data_keys.c.owner == owner))
        self.forget(owner)

    def forget(self, owner: str) -> None:
        """Look for the data key in the database the next time."""
        self._boxes.pop(owner, None)

    def known(self) -> tuple[str, ...]:
        """The owners whose keys are at hand."""
        return tuple(self._boxes)

    def there(self, connection: sa.Connection, owners: Iterable[str]) -> set[str]:
        """Those of ``owners`` that have a data key."""
        wanted, found = list(owners), set[str]()
        for start in range(0, len(wanted), ASKED_AT_ONCE):
            query = sa.select(data_keys.c.owner).where(data_keys.c.owner.in_(wanted[start : start + ASKED_AT_ONCE]))
            found.update(connection.execute(query).scalars())
        return found

    def _boxes_of(self, owners: Iterable[str]) -> dict[str, Box]:
        with self._transaction() as connection:
            return self.boxes(connection, owners)

    def _unwrapped(self, row: sa.RowMapping) -> Box:
        box = Box(row["owner"], unwrapped(self.ring, row), whole=bool(row["whole"]))
        if len(self._boxes) >= AT_HAND:
            self._boxes.clear()
        self._boxes[row["owner"]] = box
        return box


def wrapped(master: Master, key: bytes, *, owner: str, tenant: str, whole: bool) -> dict[str, Any]:
    """The columns of a data key that say how it is wrapped."""
    place = place_of(owner, tenant, whole=whole)
    return {"wrapped": master.wrap(key, place), "master": master.id, "fingerprint": master.print}


def unwrapped(ring: KeyRing | None, row: sa.RowMapping) -> bytes:
    """The data key in a row.

    Raises:
        KeyUnavailable: its master key is not here.
        Tampered: the row was changed.
    """
    if ring is None:
        raise KeyUnavailable(
            f"{row['owner']} is encrypted under the master key {row['master']}, and no master key was given; "
            "set RATCHET_KEYS or RATCHET_KEYS_FILE"
        )
    master = ring.find(row["master"], row["fingerprint"], owner=row["owner"])
    place = place_of(row["owner"], row["tenant"], whole=bool(row["whole"]))
    return master.unwrap(bytes(row["wrapped"]), place, owner=row["owner"])

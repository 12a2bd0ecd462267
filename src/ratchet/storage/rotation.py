"""Rotation: every data key under the newest master key, while others read and write; and old databases brought in."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import sqlalchemy as sa

from ratchet.core.access import Actor
from ratchet.core.errors import Conflict, KeyUnavailable
from ratchet.storage.audit import Audit
from ratchet.storage.cycles import ORDERS
from ratchet.storage.envelope import is_envelope
from ratchet.storage.jobs import REASON, files
from ratchet.storage.lessons import LESSON
from ratchet.storage.privacy import CLEANED
from ratchet.storage.ring import KeyRing, new_master
from ratchet.storage.shelf import FIELDS, SPEC, parts
from ratchet.storage.sql import SqlArchive
from ratchet.storage.tables import OWNER, PRIVATE
from ratchet.storage.texts import Texts
from ratchet.storage.vault import data_keys, unwrapped, wrapped

AT_ONCE = 200
"""Data keys, or rows, of one transaction."""

TEXTS: tuple[Texts, ...] = (*PRIVATE, REASON, FIELDS, SPEC, LESSON, CLEANED, ORDERS)
"""All that is private in tables; files and data sets are whole envelopes beside them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MasterUse:
    """One master key, and how much hangs on it.

    Attributes:
        here: Whether it is in the ring; what hangs on one that is not cannot be read.
        first: Whether it wraps what is new.
        data_keys: How many it wraps.
    """

    id: str
    fingerprint: str
    here: bool
    first: bool
    data_keys: int


class Rotation:
    """Changes of the keys of one database.

    Args:
        archive: The database; it has a ring.
        audit: Where changes are told.

    Raises:
        Conflict: the archive has no master keys.
    """

    def __init__(self, archive: SqlArchive, audit: Audit) -> None:
        if archive.vault.ring is None:
            raise Conflict("this database was opened without master keys; set RATCHET_KEYS or RATCHET_KEYS_FILE")
        self._ring: KeyRing = archive.vault.ring
        self._archive = archive
        self._audit = audit
        for texts in TEXTS:
            archive.make(texts.table.metadata)

    def status(self) -> list[MasterUse]:
        """Every master key that is in the ring or that something hangs on, the newest first."""
        query = sa.select(data_keys.c.master, data_keys.c.fingerprint, sa.func.count().label("n"))
        with self._archive.transaction() as connection:
            used = connection.execute(query.group_by(data_keys.c.master, data_keys.c.fingerprint)).all()
        counts = {(row.master, row.fingerprint): int(row.n) for row in used}
        masters = [(each.id, each.print) for each in self._ring.masters()]
        return [
            MasterUse(
                id=name,
                fingerprint=fingerprint,
                here=(name, fingerprint) in masters,
                first=(name, fingerprint) == masters[0],
                data_keys=counts.get((name, fingerprint), 0),
            )
            for name, fingerprint in [*masters, *sorted(counts.keys() - set(masters))]
        ]

    def rotate(self, actor: Actor) -> int:
        """Put every data key under the first master key; how many were not yet.

        The master keys in a file are given a new first one, unless an earlier rotation did not come to its end: then
        that one is finished. A killed rotation leaves every data key under one master key or the other, and both are
        in the ring.

        Raises:
            KeyUnavailable: something hangs on a master key that is not here.
            Conflict: nothing would change: the keys are in ``RATCHET_KEYS``, and all hangs on the first.
        """
        uses = self.status()
        lost = [use for use in uses if not use.here]
        if lost:
            raise KeyUnavailable(
                f"{lost[0].data_keys} data keys are under the master key {lost[0].id} (fingerprint "
                f"{lost[0].fingerprint}), which is not in {self._ring.source}; put it back, or delete what is under it"
            )
        if not any(use.data_keys for use in uses[1:]):
            if self._ring.file is None:
                raise Conflict(
                    "all data keys are under the first master key of RATCHET_KEYS already; put a new one before it, "
                    "in every process, and rotate again"
                )
            before, master = self._ring.first, new_master()
            self._ring.put_first(master)
            with self._audit.change(actor) as change:
                names = [{"id": each.id, "fingerprint": each.print} for each in (before, master)]
                change.note("vault.new_master", master.id, before=names[0], after=names[1])
        first, done = self._ring.first, 0
        while moved := self._move_some():
            done += moved
        with self._audit.change(actor) as change:
            change.note("vault.rotate", first.id, after={"id": first.id, "fingerprint": first.print, "moved": done})
        self._archive.scrub()
        return done

    def _move_some(self) -> int:
        """Wrap some data keys anew; how many."""
        first = self._ring.first
        others = sa.or_(data_keys.c.master != first.id, data_keys.c.fingerprint != first.print)
        moved = 0
        with self._archive.transaction() as connection:
            for row in connection.execute(data_keys.select().where(others).limit(AT_ONCE)).mappings().all():
                owner, tenant, whole = row["owner"], row["tenant"], bool(row["whole"])
                values = wrapped(first, unwrapped(self._ring, row), owner=owner, tenant=tenant, whole=whole)
                # Not when another process changed it meanwhile: then it is there at the next turn, or gone.
                this = sa.and_(data_keys.c.owner == owner, data_keys.c.wrapped == row["wrapped"])
                connection.execute(data_keys.update().where(this).values(**values))
                moved += 1
        return moved

    def drop(self, actor: Actor, identity: str) -> None:
        """Take an old master key out of the file.

        Raises:
            Conflict: something hangs on it, or it is not one of the older ones in the file.
        """
        held = sum(use.data_keys for use in self.status() if use.id == identity)
        if held:
            raise Conflict(f"{held} data keys are under the master key {identity}; `ratchet vault rotate` moves them")
        self._ring.drop(identity)
        with self._audit.change(actor) as change:
            change.note("vault.drop_master", identity, before={"id": identity})

    def encrypt(self, actor: Actor) -> int:
        """Seal what was stored before there were envelopes; how many rows that were.

        Each owner is done in one transaction, after which nothing of it may stand in plain text.
        """
        done = 0
        for owner, tenant in list(self._plain_owners()):
            done += self._seal_all(owner, tenant)
        if done:
            with self._audit.change(actor) as change:
                change.note("vault.encrypt", "database", after={"rows": done})
            self._archive.scrub()
        return done

    def _plain_owners(self) -> Iterator[tuple[str, str]]:
        """Owners without a data key, or with rows from before they had one; optimizations at rest alone."""
        with self._archive.transaction() as connection:
            whole = set(connection.execute(sa.select(data_keys.c.owner).where(data_keys.c.whole == 1)).scalars())
            known: dict[str, str] = {}
            for texts in (*PRIVATE[:1], FIELDS, SPEC, LESSON, ORDERS):
                names = {texts.key, *(("tenant",) if "tenant" in texts.table.c else ())}
                for row in connection.execute(
                    sa.select(*(texts.table.c[name] for name in names)).distinct()
                ).mappings():
                    known[texts.owner(row)] = row.get("tenant", "")
        yield from ((owner, tenant) for owner, tenant in known.items() if owner not in whole)

    def _seal_all(self, owner: str, tenant: str) -> int:
        kind, _, identity = owner.partition(":")
        if kind == OWNER and not self._archive.claims.take(identity):
            return 0  # it is being worked on; the next turn finds it at rest
        try:
            self._archive.pen.flush()
            self._archive.vault.writing(owner, tenant=tenant)
            with self._archive.transaction() as connection:
                return self._seal_within(connection, owner)
        finally:
            self._archive.vault.forget(owner)
            if kind == OWNER:
                self._archive.claims.release(identity)

    def _seal_within(self, connection: sa.Connection, owner: str) -> int:
        kind, _, identity = owner.partition(":")
        box, done = self._archive.vault.boxes(connection, [owner])[owner], 0
        for texts in TEXTS:
            if texts.kind == kind:
                this = sa.and_(texts.table.c[texts.key] == identity, texts.table.c[texts.into].is_(None))
                for row in connection.execute(texts.table.select().where(this)).mappings().all():
                    if any(row[name] for name in texts.names):
                        same = sa.and_(*(column == row[column.name] for column in texts.table.primary_key))
                        hidden = texts.hide(box, texts.show(box, row))
                        values = {name: hidden[name] for name in (*texts.names, texts.into)}
                        connection.execute(texts.table.update().where(same).values(**values))
                        done += 1
        for table, of, place in ((files, "optimization", "name"), (parts, "dataset", "part")):
            if of == kind:
                for row in connection.execute(table.select().where(table.c[f"{of}_id"] == identity)).mappings().all():
                    content = bytes(row["content"])
                    if not is_envelope(content):
                        same = sa.and_(*(column == row[column.name] for column in table.primary_key))
                        sealed = box.seal(content, f"{table.name}.content/{row[place]}", press=table is files)
                        connection.execute(table.update().where(same).values(content=sealed))
                        done += 1
        self._archive.vault.make_whole(connection, owner)
        return done

"""A SQL database: its connections, transactions and tables, and what this process keeps of it; SQLite by default."""

from __future__ import annotations

import asyncio
import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from filelock import FileLock
from sqlalchemy.dialects import postgresql, sqlite

from ratchet.core.errors import InUse, StorageUnavailable
from ratchet.programs.journal import Reply
from ratchet.storage.claims import Claims, FileClaims, MemoryClaims, ServerClaims
from ratchet.storage.envelope import Box
from ratchet.storage.pen import Pen
from ratchet.storage.ring import KeyRing
from ratchet.storage.statements import ManyRows, Statements
from ratchet.storage.tables import OWNER, REPLY, metadata
from ratchet.storage.texts import Row, Texts
from ratchet.storage.vault import Vault, data_keys
from ratchet.storage.vault import metadata as vault_metadata

ROWS_AT_ONCE = 50
"""Rows of one INSERT."""

NOTHING = Box("nobody", None, whole=False)

BUSY_MS = 30_000
"""How long a write waits for another process's on SQLite."""

POOL_SECONDS = 120.0
"""How long a thread waits for one of the connections: a thousand optimizations may begin at the same moment."""

SHARED_AT_HAND = 4096
"""Shared replies that are kept in memory, the newest."""


class _Thread(threading.local):
    connection: sa.Connection | None = None
    """Of what this thread does together."""


class Database:
    """One database, which stores share.

    Args:
        url: A SQLAlchemy URL, such as ``sqlite:///ratchet.db``.
        ring: The master keys; None keeps everything in plain text, as a test may want it.

    Attributes:
        vault: The data keys.
        claims: What this process holds.
        pen: Writes what is written often.
        statements: What that is.
        unscrubbed: Whether files of the database may still hold what was deleted.

    Raises:
        StorageUnavailable: the database cannot be opened or refuses a write.
        KeyUnavailable: it is encrypted, and there is no master key.
    """

    def __init__(self, url: str, *, ring: KeyRing | None = None) -> None:
        self._url = sa.make_url(url)
        self._here = _Thread()
        self._on_server = self._url.get_backend_name() == "postgresql"
        in_memory = not self._on_server and self._url.database in (None, "", ":memory:")
        self.folder: Path | None = None
        if not self._on_server and not in_memory:
            self.folder = Path(str(self._url.database)).parent / "locks"
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise StorageUnavailable(f"the folder {self.folder} cannot be made: {error.strerror}") from error
        patience = {} if in_memory else {"pool_timeout": POOL_SECONDS}
        # A server may have been started again since a connection was used last; a file may not.
        # Errors end in logs, and the values of a statement do not belong there.
        self._engine = sa.create_engine(self._url, pool_pre_ping=self._on_server, hide_parameters=True, **patience)
        if not self._on_server:
            sa.event.listen(self._engine, "connect", _tune_sqlite)
        with self._alone():
            with self.transaction() as connection:
                _wait_for_makers(connection)
                for tables in (metadata, vault_metadata):
                    tables.create_all(connection)
                _add_columns(connection, metadata)
                empty = connection.execute(sa.select(data_keys.c.owner).limit(1)).first() is None
            if ring is not None and empty:
                ring.make()
            elif ring is not None:
                ring.masters()  # a new file would hide that the old one is lost
        self.vault = Vault(self.transaction, ring)
        self.statements = Statements(postgresql.insert if self._on_server else sqlite.insert)
        self.claims = self._claims()
        self.unscrubbed = False
        self._made: set[sa.MetaData] = set()
        self._many: dict[sqlite.Insert, ManyRows] = {}
        self.pen = Pen(self._transact)
        self._shared: OrderedDict[str, tuple[str, Reply]] = OrderedDict()
        self._late: tuple[Future[None], asyncio.Future[None]] | None = None

    def late(self, safe: Future[None]) -> asyncio.Future[None]:
        """``safe`` for the running loop: one wake-up of it for all who wait for the same transaction."""
        loop, late = asyncio.get_running_loop(), self._late
        if late is None or late[0] is not safe or late[1].get_loop() is not loop:
            late = self._late = (safe, asyncio.wrap_future(safe, loop=loop))
        return late[1]

    def _claims(self) -> Claims:
        if self.folder is not None:
            return FileClaims(self.folder)
        return ServerClaims(self._engine, lost=self._lost) if self._on_server else MemoryClaims()

    def _lost(self, name: str) -> None:
        self.pen.revoke(name, InUse(f"another process has taken up {name} meanwhile"))

    def make(self, tables: sa.MetaData) -> None:
        """Make ``tables`` where they are not there yet."""
        if tables in self._made:
            return
        with self._alone(), self.transaction() as connection:
            _wait_for_makers(connection)
            tables.create_all(connection)
            _add_columns(connection, tables)
        self._made.add(tables)

    def _alone(self) -> AbstractContextManager[Any]:
        """Keeps other processes from making the same tables at the same time."""
        return nullcontext() if self.folder is None else FileLock(self.folder / "tables.lock")

    def _transact(self, parts: Sequence[tuple[sa.Executable, list[Mapping[str, Any]]]]) -> None:
        # Who writes here holds a claim on what is written of.
        held = self.claims.writing() if isinstance(self.claims, ServerClaims) else self.transaction()
        with held as connection:
            for statement, rows in parts:
                if isinstance(statement, sqlite.Insert):
                    self._insert_many(connection, statement, rows)
                else:
                    connection.execute(statement, rows)

    def _insert_many(self, connection: sa.Connection, statement: sqlite.Insert, rows: list[Mapping[str, Any]]) -> None:
        """Insert ``rows`` with one statement for many of them.

        Python's SQLite driver lets go of the interpreter for each statement; beside a busy event loop, getting it back
        costs many times what the row does.
        """
        many = self._many.get(statement)
        if many is None:
            many = self._many[statement] = ManyRows(statement, list(rows[0]), connection.dialect)
        for start in range(0, len(rows), ROWS_AT_ONCE):
            connection.exec_driver_sql(*many.sql(rows[start : start + ROWS_AT_ONCE]))

    @contextmanager
    def transaction(self) -> Iterator[sa.Connection]:
        """All or nothing of what is done in it; within ``together`` a part of that.

        Raises:
            StorageUnavailable: the database refused.
        """
        if self._here.connection is not None:
            yield self._here.connection
            return
        try:
            with self._engine.begin() as connection:
                yield connection
        except (sa.exc.DatabaseError, sa.exc.InterfaceError) as error:
            if isinstance(error, sa.exc.IntegrityError | sa.exc.ProgrammingError):
                raise  # our mistake, not the database's
            raise StorageUnavailable(f"the database {self._url.render_as_string()} refused: {error.orig}") from error
        except sa.exc.TimeoutError as error:
            raise StorageUnavailable(f"no connection to the database was free for {POOL_SECONDS:g} s") from error

    @contextmanager
    def together(self) -> Iterator[None]:
        """One transaction for all that this thread reads in it: one way to the database's server and back per query."""
        with self.transaction() as connection:
            self._here.connection = connection
            try:
                yield
            finally:
                self._here.connection = None

    @contextmanager
    def reading(self) -> Iterator[sa.Connection]:
        """A transaction that finds all that was written so far, by the pen too."""
        self.pen.flush()
        with self.transaction() as connection:
            yield connection

    def close(self) -> None:
        """Write what is waiting, and give back the connections."""
        self.pen.close()
        self.claims.close()
        self._engine.dispose()

    def share(self, name: str, reply: Reply, *, by: str) -> None:
        """Have ``reply`` of ``by`` at hand for other optimizations of this process, also before it is safe."""
        self._shared[name] = by, reply
        if len(self._shared) > SHARED_AT_HAND:
            self._shared.popitem(last=False)

    def shared_reply(self, name: str) -> Reply | None:
        """A reply that was shared as ``name``."""
        at_hand = self._shared.get(name)  # asked once: another thread may forget it meanwhile
        if at_hand is not None:
            return at_hand[1]
        with self.transaction() as connection:
            row = connection.execute(self.statements.shared, {"name": name}).mappings().first()
            return None if row is None else reply_of(self.shown(connection, REPLY, [row])[0])

    def scrub(self) -> None:
        """Have the database's files hold nothing of what was deleted, unless others are in the way just now."""
        clean = self._vacuum_keys if self._on_server else self._empty_log
        try:
            with self._engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
                self.unscrubbed = not clean(connection)
        except sa.exc.DBAPIError:
            self.unscrubbed = True

    def _vacuum_keys(self, connection: sa.Connection) -> bool:
        connection.exec_driver_sql("SET lock_timeout = '2s'")
        try:
            # Not a plain VACUUM: it leaves the bytes of what was deleted until others take their place.
            connection.exec_driver_sql("VACUUM (FULL) data_keys")
        finally:
            connection.exec_driver_sql("RESET lock_timeout")
        return True

    def _empty_log(self, connection: sa.Connection) -> bool:
        connection.exec_driver_sql("PRAGMA busy_timeout=500")  # who writes meanwhile waits for this
        try:
            return connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)").scalar() == 0
        finally:
            connection.exec_driver_sql(f"PRAGMA busy_timeout={BUSY_MS}")

    def forget(self, optimization_id: str) -> None:
        """Let go of what this process remembers of an optimization that was erased."""
        self.vault.forget(f"{OWNER}:{optimization_id}")
        for name in [name for name, (by, _) in list(self._shared.items()) if by == optimization_id]:
            self._shared.pop(name, None)

    def forget_erased(self) -> None:
        """Let go of what this process remembers of things that another one erased, and of what is left in files."""
        if self.unscrubbed:
            self.scrub()
        known = self.vault.known()
        with self.transaction() as connection:
            there = self.vault.there(connection, known)
        for owner in set(known) - there:
            kind, _, of = owner.partition(":")
            self.forget(of) if kind == OWNER else self.vault.forget(owner)

    def shown(self, connection: sa.Connection, texts: Texts, rows: Sequence[Row]) -> list[dict[str, Any]]:
        """Rows with what is private in them."""
        # No key is asked for where there is nothing to open: what waits can be seen and stopped without one.
        boxes = self.vault.boxes(connection, {texts.owner(row) for row in rows if texts.some(row)})
        return [texts.show(boxes.get(texts.owner(row), NOTHING), row) for row in rows]


def reply_of(row: Mapping[str, Any]) -> Reply:
    """The reply in a row of ``replies``, opened."""
    return Reply(
        key=row["key"],
        role=row["role"],
        stage=row["stage"],
        response=row["response"],
        prompt_tokens=row["prompt_tokens"],
        completion_tokens=row["completion_tokens"],
        cost_usd=row["cost_usd"],
        latency_ms=row["latency_ms"],
    )


def _wait_for_makers(connection: sa.Connection) -> None:
    """Let nobody else make tables on this server until the transaction ends."""
    if connection.dialect.name == "postgresql":
        connection.execute(sa.text("SELECT pg_advisory_xact_lock(hashtextextended('tables', 0))"))


def _add_columns(connection: sa.Connection, tables: sa.MetaData) -> None:
    """Give a database of an earlier version the columns that came later; they may all be empty."""
    for table in tables.sorted_tables:
        there = {column["name"] for column in sa.inspect(connection).get_columns(table.name)}
        for column in table.columns:
            if column.name not in there:
                kind = column.type.compile(connection.dialect)
                unless = "IF NOT EXISTS " if connection.dialect.name == "postgresql" else ""  # others start too
                connection.execute(sa.text(f"ALTER TABLE {table.name} ADD COLUMN {unless}{column.name} {kind}"))


def _tune_sqlite(connection: Any, _record: object) -> None:
    # WAL survives a killed process with NORMAL; FULL would only add an fsync per reply against power loss.
    cursor = connection.cursor()
    # What is deleted is overwritten, so that a data key that was destroyed is in no file any more.
    for pragma in ("journal_mode=WAL", "synchronous=NORMAL", f"busy_timeout={BUSY_MS}", "secure_delete=ON"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()

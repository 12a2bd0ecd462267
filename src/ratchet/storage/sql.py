"""The archive in a SQL database, through SQLAlchemy; SQLite by default."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from filelock import FileLock
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.sql.compiler import SQLCompiler

from ratchet.core.errors import InUse, StorageUnavailable, UnknownName
from ratchet.engine.archive import Optimization
from ratchet.programs.journal import Reply
from ratchet.storage.claims import Claims, FileClaims, MemoryClaims, ServerClaims
from ratchet.storage.envelope import Box
from ratchet.storage.notebook import SqlNotebook, reply_of
from ratchet.storage.pen import Pen
from ratchet.storage.ring import KeyRing
from ratchet.storage.tables import (
    ERROR,
    OWNER,
    REPLY,
    REQUEST,
    RESULT,
    metadata,
)
from ratchet.storage.tables import candidates as candidates
from ratchet.storage.tables import evaluations as evaluations
from ratchet.storage.tables import events as events
from ratchet.storage.tables import examples as examples
from ratchet.storage.tables import optimizations as optimizations
from ratchet.storage.tables import replies as replies
from ratchet.storage.texts import Row, Texts
from ratchet.storage.texts import Words as Words
from ratchet.storage.vault import Vault, data_keys
from ratchet.storage.vault import metadata as vault_metadata

SEALED = ("sealed_error", "sealed_result")
ROWS_AT_ONCE = 50
"""Rows of one INSERT."""

NOTHING = Box("nobody", None, whole=False)

BUSY_MS = 30_000
"""How long a write waits for another process's on SQLite."""

POOL_SECONDS = 120.0
"""How long a thread waits for one of the connections: a thousand optimizations may begin at the same moment."""

SHARED_AT_HAND = 4096
"""Shared replies that are kept in memory, the newest."""


class SqlArchive:
    """All optimizations in one database.

    Args:
        url: A SQLAlchemy URL, such as ``sqlite:///ratchet.db``.
        ring: The master keys; None keeps everything in plain text, as a test may want it.

    Raises:
        StorageUnavailable: the database cannot be opened or refuses a write.
        KeyUnavailable: it is encrypted, and there is no master key.
    """

    def __init__(self, url: str, *, ring: KeyRing | None = None) -> None:
        self._url = sa.make_url(url)
        self.folder: Path | None = None
        if self._url.get_backend_name() == "sqlite" and self._url.database not in (None, "", ":memory:"):
            self.folder = Path(str(self._url.database)).parent / "locks"
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise StorageUnavailable(f"the folder {self.folder} cannot be made: {error.strerror}") from error
        # A server may have been started again since a connection was used last; a file may not.
        pre_ping = self._url.get_backend_name() != "sqlite"
        patience = {} if self._url.database in (None, "", ":memory:") else {"pool_timeout": POOL_SECONDS}
        # Errors end in logs, and the values of a statement do not belong there.
        self._engine = sa.create_engine(self._url, pool_pre_ping=pre_ping, hide_parameters=True, **patience)
        if self._url.get_backend_name() == "sqlite":
            sa.event.listen(self._engine, "connect", _tune_sqlite)
        with self._alone():
            with self._writing() as connection:
                _wait_for_makers(connection)
                for tables in (metadata, vault_metadata):
                    tables.create_all(connection)
                _add_columns(connection, metadata)
                empty = connection.execute(sa.select(data_keys.c.owner).limit(1)).first() is None
            if ring is not None and empty:
                ring.make()
            elif ring is not None:
                ring.masters()  # a new file would hide that the old one is lost
        self.vault = Vault(self._writing, ring)
        self._statements = _Statements(
            postgresql.insert if self._url.get_backend_name() == "postgresql" else sqlite.insert
        )
        self.claims = self._claims()
        self.unscrubbed = False
        self._made: set[int] = set()
        self._many: dict[int, _ManyRows] = {}
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
        return (
            ServerClaims(self._engine, lost=self._lost)
            if self._url.get_backend_name() == "postgresql"
            else MemoryClaims()
        )

    def _lost(self, name: str) -> None:
        self.pen.revoke(name, InUse(f"another process has taken up {name} meanwhile"))

    def make(self, tables: sa.MetaData) -> None:
        """Make ``tables`` where they are not there yet."""
        if id(tables) in self._made:
            return
        with self._alone(), self._writing() as connection:
            _wait_for_makers(connection)
            tables.create_all(connection)
            _add_columns(connection, tables)
        self._made.add(id(tables))

    def transaction(self) -> AbstractContextManager[sa.Connection]:
        """All or nothing of what is done in it.

        Raises:
            StorageUnavailable: the database refused.
        """
        return self._writing()

    def _alone(self) -> AbstractContextManager[Any]:
        """Keeps other processes from making the same tables at the same time."""
        return nullcontext() if self.folder is None else FileLock(self.folder / "tables.lock")

    def _transact(self, parts: Sequence[tuple[sa.Executable, list[Mapping[str, Any]]]]) -> None:
        # Who writes here holds a claim on what is written of.
        held = self.claims.writing() if isinstance(self.claims, ServerClaims) else self._writing()
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
        many = self._many.get(id(statement))
        if many is None:
            many = self._many[id(statement)] = _ManyRows(statement, list(rows[0]), connection.dialect)
        for start in range(0, len(rows), ROWS_AT_ONCE):
            connection.exec_driver_sql(*many.sql(rows[start : start + ROWS_AT_ONCE]))

    @contextmanager
    def _writing(self) -> Iterator[sa.Connection]:
        try:
            with self._engine.begin() as connection:
                yield connection
        except (sa.exc.DatabaseError, sa.exc.InterfaceError) as error:
            if isinstance(error, sa.exc.IntegrityError | sa.exc.ProgrammingError):
                raise  # our mistake, not the database's
            raise StorageUnavailable(f"the database {self._url.render_as_string()} refused: {error.orig}") from error
        except sa.exc.TimeoutError as error:
            raise StorageUnavailable(f"no connection to the database was free for {POOL_SECONDS:g} s") from error

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
        if name in self._shared:
            return self._shared[name][1]
        with self._writing() as connection:
            row = connection.execute(self._statements.shared, {"name": name}).mappings().first()
            return None if row is None else reply_of(self._shown(connection, REPLY, [row])[0])

    def scrub(self) -> bool:
        """Have the database's files hold nothing of what was deleted; False when others are in the way just now."""
        on_server = self._url.get_backend_name() == "postgresql"
        try:
            with self._engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
                if not on_server:
                    connection.exec_driver_sql("PRAGMA busy_timeout=500")  # who writes meanwhile waits for this
                    self.unscrubbed = connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)").scalar() != 0
                    connection.exec_driver_sql(f"PRAGMA busy_timeout={BUSY_MS}")
                    return not self.unscrubbed
                try:
                    connection.exec_driver_sql("SET lock_timeout = '2s'")
                    # Not a plain VACUUM: it leaves the bytes of what was deleted until others take their place.
                    connection.exec_driver_sql("VACUUM (FULL) data_keys")
                finally:
                    connection.exec_driver_sql("RESET lock_timeout")
        except sa.exc.DBAPIError:
            self.unscrubbed = True
        else:
            self.unscrubbed = False
        return not self.unscrubbed

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
        with self._writing() as connection:
            there = self.vault.there(connection, known)
        for owner in set(known) - there:
            kind, _, of = owner.partition(":")
            self.forget(of) if kind == OWNER else self.vault.forget(owner)

    def identity(self, beginning: str) -> str:
        """The id of the one optimization whose id begins so.

        Raises:
            UnknownName: there is none, or more than one.
        """
        with self._reading() as connection:
            return str(self._row(connection, beginning)["id"])

    def _shown(self, connection: sa.Connection, texts: Texts, rows: Sequence[Row]) -> list[dict[str, Any]]:
        """Rows with what is private in them."""
        # No key is asked for where there is nothing to open: what waits can be seen and stopped without one.
        boxes = self.vault.boxes(connection, {texts.owner(row) for row in rows if texts.some(row)})
        return [texts.show(boxes.get(texts.owner(row), NOTHING), row) for row in rows]

    @contextmanager
    def _reading(self) -> Iterator[sa.Connection]:
        self.pen.flush()
        with self._writing() as connection:
            yield connection

    def start(self, optimization: Optimization) -> SqlNotebook:
        """Begin a new optimization."""
        values = {
            "id": optimization.id,
            "created_at": optimization.created_at.astimezone(UTC).isoformat(),  # so that texts sort as times
            "status": optimization.status,
            "request": dict(optimization.request),
            "result": None if optimization.result is None else dict(optimization.result),
            "error": optimization.error or None,
            "seconds": optimization.seconds,
        }
        tenant = str(dict(optimization.request.get("options") or {}).get("tenant") or "")
        with self._writing() as connection:
            box = self.vault.make(connection, f"{OWNER}:{optimization.id}", tenant=tenant)
            for texts in (REQUEST, RESULT, ERROR):
                values = texts.hide(box, values)
            connection.execute(optimizations.insert().values(**values))
        return SqlNotebook(self, optimization.id)

    def open(self, optimization_id: str, *, anew: bool = False) -> SqlNotebook:
        """The notebook of one there is.

        Args:
            anew: Begin anew after something of it could not be kept. Only for who works on it: whoever merely looks
                would hide from the one at work that rows were lost.
        """
        found = self.identity(optimization_id)
        if anew:
            self.pen.forgive(found)
        return SqlNotebook(self, found)

    def find(self, optimization_id: str, *, settled: bool = True) -> Optimization:
        """One optimization; a unique beginning of its id will do.

        Args:
            settled: Wait for what is still being written.
        """
        with self._reading() if settled else self._writing() as connection:
            return self._optimizations(connection, [self._row(connection, optimization_id)])[0]

    def _row(self, connection: sa.Connection, optimization_id: str) -> sa.RowMapping:
        # Not LIKE: to SQLite it is blind to case. The shortest first: an id in full may begin another one.
        query = optimizations.select().where(
            sa.func.substr(optimizations.c.id, 1, len(optimization_id)) == optimization_id
        )
        rows = connection.execute(query.order_by(sa.func.length(optimizations.c.id)).limit(2)).mappings().all()
        if rows and rows[0]["id"] == optimization_id:
            return rows[0]
        if len(rows) != 1 or not optimization_id:
            problem = "more than one optimization begins" if len(rows) > 1 else "there is no optimization"
            raise UnknownName(f"{problem} with id {optimization_id!r}; `ratchet list` shows them")
        return rows[0]

    def _optimizations(self, connection: sa.Connection, rows: Sequence[sa.RowMapping]) -> list[Optimization]:
        found: Sequence[Any] = rows
        for texts in (REQUEST, RESULT, ERROR):
            found = self._shown(connection, texts, found)
        return [_optimization(row) for row in found]

    def list(self, *, limit: int = 50) -> list[Optimization]:
        """The newest first."""
        query = optimizations.select().order_by(optimizations.c.created_at.desc()).limit(limit)
        with self._reading() as connection:
            return self._optimizations(connection, connection.execute(query).mappings().all())


class _ManyRows:
    """An INSERT of one row as an INSERT of many."""

    def __init__(self, statement: sqlite.Insert, columns: list[str], dialect: sa.Dialect) -> None:
        compiled = statement.compile(dialect=dialect, column_keys=columns)
        assert isinstance(compiled, SQLCompiler)
        self._columns = list(compiled.positiontup or ())
        assert set(self._columns) == set(columns), "every value stands in VALUES"
        processors = compiled._bind_processors
        self._processors = [processors.get(name) for name in self._columns]
        self._group = f"({', '.join('?' * len(columns))})"
        self._before, found, self._after = compiled.string.partition(self._group)
        assert found, compiled.string

    def sql(self, rows: Sequence[Mapping[str, Any]]) -> tuple[str, tuple[Any, ...]]:
        """The statement for ``rows``, and its values."""
        groups = ", ".join([self._group] * len(rows))
        values: list[Any] = []
        for row in rows:
            for name, process in zip(self._columns, self._processors, strict=True):
                values.append(row[name] if process is None else process(row[name]))  # type: ignore[operator]
        return f"{self._before}{groups}{self._after}", tuple(values)


class _Statements:
    """What is written often, in the words of one database."""

    def __init__(self, insert: Callable[[sa.Table], sqlite.Insert | postgresql.Insert]) -> None:
        first = insert(replies)
        again = {
            "sends": replies.c.sends + first.excluded.sends,
            "usd_reserved": replies.c.usd_reserved + first.excluded.usd_reserved,
        }
        self.reserve = first.on_conflict_do_update(index_elements=["optimization_id", "key"], set_=again)
        told = ("response", "sealed", "prompt_tokens", "completion_tokens", "cost_usd", "latency_ms", "shared")
        self.record = first.on_conflict_do_update(
            index_elements=["optimization_id", "key"], set_={name: first.excluded[name] for name in told}
        )
        self.borrow = insert(replies).on_conflict_do_nothing()
        self.shared = replies.select().where(replies.c.shared == sa.bindparam("name")).limit(1)
        self.example = insert(examples).on_conflict_do_nothing()
        self.candidate = insert(candidates).on_conflict_do_nothing()
        self.evaluation = insert(evaluations).on_conflict_do_nothing()
        self.event = insert(events)
        self.status = (
            optimizations.update()
            .where(optimizations.c.id == sa.bindparam("of"))
            .values({name: sa.bindparam(f"new_{name}") for name in ("status", "error", "result", *SEALED)})
        )
        self.seconds = (
            optimizations.update()
            .where(optimizations.c.id == sa.bindparam("of"))
            .values(seconds=optimizations.c.seconds + sa.bindparam("more"))
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


def _optimization(row: Mapping[str, Any]) -> Optimization:
    return Optimization(
        id=row["id"],
        status=row["status"],
        created_at=datetime.fromisoformat(row["created_at"]),
        request=row["request"],
        result=row["result"],
        error=row["error"],
        seconds=row["seconds"],
    )

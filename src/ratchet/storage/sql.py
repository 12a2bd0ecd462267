"""The archive in a SQL database, through SQLAlchemy; SQLite by default."""

from __future__ import annotations

import asyncio
import json
import re
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson
import sqlalchemy as sa
from filelock import FileLock
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.sql.compiler import SQLCompiler

from ratchet.core.errors import InUse, StorageUnavailable, UnknownName
from ratchet.core.evaluation import Evaluation, Failure, Step, Usage
from ratchet.core.problem import Candidate, Example
from ratchet.engine.archive import Event, Optimization
from ratchet.programs.journal import Reply, Role, Sent
from ratchet.storage.claims import Claims, FileClaims, MemoryClaims, ServerClaims
from ratchet.storage.pen import Pen

ROWS_AT_ONCE = 50
"""Rows of one INSERT."""

POOL_SECONDS = 120.0
"""How long a thread waits for one of the connections: a thousand optimizations may begin at the same moment."""

SHARED_AT_HAND = 4096
"""Shared replies that are kept in memory, the newest."""

metadata = sa.MetaData()

_UNSTORABLE = re.compile("[\ud800-\udfff]")


def _text(value: object) -> str:
    """``value`` as JSON that every database stores: what UTF-8 cannot carry is escaped, all else stays readable."""
    with suppress(TypeError):  # orjson takes no surrogates, large integers, keys that are no text, nor other objects
        quick = orjson.dumps(value)
        if b"null" not in quick:  # it may have been NaN
            return quick.decode()
    text = json.dumps(value, ensure_ascii=False, default=str)
    return _UNSTORABLE.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


class Words(sa.TypeDecorator[str]):
    """Text as LMs and users write it; as JSON when it holds what a database refuses, and so begins with a quote."""

    impl = sa.Text
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: sa.Dialect) -> str | None:
        """What is stored."""
        if value is None or not (value.startswith('"') or "\0" in value or _UNSTORABLE.search(value)):
            return value
        return _text(value)

    def process_result_value(self, value: str | None, dialect: sa.Dialect) -> str | None:
        """What was given."""
        return str(json.loads(value)) if value is not None and value.startswith('"') else value


optimizations = sa.Table(
    "optimizations",
    metadata,
    sa.Column("id", sa.String(32), primary_key=True),
    sa.Column("created_at", sa.String(32), nullable=False, index=True),
    sa.Column("status", sa.String(32), nullable=False),
    sa.Column("request", sa.Text, nullable=False),
    sa.Column("result", sa.Text),
    sa.Column("error", Words, nullable=False, default=""),
    sa.Column("seconds", sa.Float, nullable=False, default=0.0),
)
examples = sa.Table(
    "examples",
    metadata,
    sa.Column("optimization_id", sa.String(32), primary_key=True),
    sa.Column("split", sa.String(16), primary_key=True),
    sa.Column("position", sa.Integer, primary_key=True),
    sa.Column("inputs", sa.Text, nullable=False),
    sa.Column("labels", sa.Text, nullable=False),
)
candidates = sa.Table(
    "candidates",
    metadata,
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("optimization_id", sa.String(32), nullable=False),
    sa.Column("key", sa.String(16), nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("parents", sa.Text, nullable=False),
    sa.Column("origin", Words, nullable=False),
    sa.Column("stage", sa.String(64), nullable=False),
    sa.UniqueConstraint("optimization_id", "key"),
)
evaluations = sa.Table(
    "evaluations",
    metadata,
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("optimization_id", sa.String(32), nullable=False),
    sa.Column("candidate", sa.String(16), nullable=False),
    sa.Column("example", sa.String(16), nullable=False),
    sa.Column("repeat", sa.Integer, nullable=False),
    sa.Column("stage", sa.String(64), nullable=False),
    sa.Column("score", sa.Float),
    sa.Column("failure_kind", sa.String(16)),
    sa.Column("failure_message", Words),
    sa.Column("feedback", Words, nullable=False),
    sa.Column("prediction", sa.Text),
    sa.Column("trace", sa.Text, nullable=False),
    sa.Column("calls", sa.Integer, nullable=False),
    sa.Column("prompt_tokens", sa.Integer, nullable=False),
    sa.Column("completion_tokens", sa.Integer, nullable=False),
    sa.Column("cost_usd", sa.Float),
    sa.Column("latency_ms", sa.Float, nullable=False),
    sa.Column("replies", sa.Text, nullable=False),
    sa.UniqueConstraint("optimization_id", "candidate", "example", "repeat"),
)
replies = sa.Table(
    "replies",
    metadata,
    sa.Column("optimization_id", sa.String(32), primary_key=True),
    sa.Column("key", sa.String(16), primary_key=True),
    sa.Column("role", sa.String(16), nullable=False),
    sa.Column("stage", sa.String(64), nullable=False),
    sa.Column("sends", sa.Integer, nullable=False),
    sa.Column("usd_reserved", sa.Float, nullable=False),
    sa.Column("response", sa.Text),
    sa.Column("prompt_tokens", sa.Integer, nullable=False, default=0),
    sa.Column("completion_tokens", sa.Integer, nullable=False, default=0),
    sa.Column("cost_usd", sa.Float),
    sa.Column("latency_ms", sa.Float, nullable=False, default=0.0),
    sa.Column("shared", sa.String(16), index=True),
)
events = sa.Table(
    "events",
    metadata,
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("optimization_id", sa.String(32), nullable=False, index=True),
    sa.Column("at", sa.String(32), nullable=False),
    sa.Column("kind", sa.String(64), nullable=False),
    sa.Column("payload", sa.Text, nullable=False),
)


class SqlArchive:
    """All optimizations in one database.

    Args:
        url: A SQLAlchemy URL, such as ``sqlite:///ratchet.db``.

    Raises:
        StorageUnavailable: the database cannot be opened or refuses a write.
    """

    def __init__(self, url: str) -> None:
        self._url = sa.make_url(url)
        self.folder: Path | None = None
        if self._url.get_backend_name() == "sqlite" and self._url.database not in (None, "", ":memory:"):
            self.folder = Path(str(self._url.database)).parent / "locks"
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise StorageUnavailable(f"the folder {self.folder} cannot be made: {error.strerror}") from error
        # A server may have been started again since a connection was used last; a file may not.
        patience = {} if self._url.database in (None, "", ":memory:") else {"pool_timeout": POOL_SECONDS}
        self._engine = sa.create_engine(self._url, pool_pre_ping=self._url.get_backend_name() != "sqlite", **patience)
        if self._url.get_backend_name() == "sqlite":
            sa.event.listen(self._engine, "connect", _tune_sqlite)
        with self._alone(), self._writing() as connection:
            _wait_for_makers(connection)
            metadata.create_all(connection)
            _add_columns(connection)
        self._statements = _Statements(
            postgresql.insert if self._url.get_backend_name() == "postgresql" else sqlite.insert
        )
        self.claims = self._claims()
        self._many: dict[int, _ManyRows] = {}
        self.pen = Pen(self._transact)
        self._shared: OrderedDict[str, Reply] = OrderedDict()
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
        with self._alone(), self._writing() as connection:
            _wait_for_makers(connection)
            tables.create_all(connection)

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

    def share(self, name: str, reply: Reply) -> None:
        """Have ``reply`` at hand for other optimizations of this process, before it is safe and some time after."""
        self._shared[name] = reply
        if len(self._shared) > SHARED_AT_HAND:
            self._shared.popitem(last=False)

    def shared_reply(self, name: str) -> Reply | None:
        """A reply that was shared as ``name``."""
        if name in self._shared:
            return self._shared[name]
        with self._writing() as connection:
            row = connection.execute(self._statements.shared, {"name": name}).mappings().first()
        return None if row is None else _reply(row)

    @contextmanager
    def _reading(self) -> Iterator[sa.Connection]:
        self.pen.flush()
        with self._writing() as connection:
            yield connection

    def start(self, optimization: Optimization) -> SqlNotebook:
        """Begin a new optimization."""
        with self._writing() as connection:
            connection.execute(
                optimizations.insert().values(
                    id=optimization.id,
                    created_at=optimization.created_at.astimezone(UTC).isoformat(),  # so that texts sort as times
                    status=optimization.status,
                    request=_text(dict(optimization.request)),
                    result=None if optimization.result is None else _text(dict(optimization.result)),
                    error=optimization.error,
                    seconds=optimization.seconds,
                )
            )
        return SqlNotebook(self, optimization.id)

    def open(self, optimization_id: str, *, anew: bool = False) -> SqlNotebook:
        """The notebook of one there is.

        Args:
            anew: Begin anew after something of it could not be kept. Only for who works on it: whoever merely looks
                would hide from the one at work that rows were lost.
        """
        found = self.find(optimization_id).id
        if anew:
            self.pen.forgive(found)
        return SqlNotebook(self, found)

    def find(self, optimization_id: str, *, settled: bool = True) -> Optimization:
        """One optimization; a unique beginning of its id will do.

        Args:
            settled: Wait for what is still being written.
        """
        # Not LIKE: to SQLite it is blind to case. The shortest first: an id in full may begin another one.
        query = optimizations.select().where(
            sa.func.substr(optimizations.c.id, 1, len(optimization_id)) == optimization_id
        )
        with self._reading() if settled else self._writing() as connection:
            rows = connection.execute(query.order_by(sa.func.length(optimizations.c.id)).limit(2)).mappings().all()
        if rows and rows[0]["id"] == optimization_id:
            return _optimization(rows[0])
        if len(rows) != 1 or not optimization_id:
            problem = "more than one optimization begins" if len(rows) > 1 else "there is no optimization"
            raise UnknownName(f"{problem} with id {optimization_id!r}; `ratchet list` shows them")
        return _optimization(rows[0])

    def list(self, *, limit: int = 50) -> list[Optimization]:
        """The newest first."""
        query = optimizations.select().order_by(optimizations.c.created_at.desc()).limit(limit)
        with self._reading() as connection:
            return [_optimization(row) for row in connection.execute(query).mappings()]


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
        told = ("response", "prompt_tokens", "completion_tokens", "cost_usd", "latency_ms", "shared")
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
            .values(
                status=sa.bindparam("new_status"), error=sa.bindparam("new_error"), result=sa.bindparam("new_result")
            )
        )
        self.seconds = (
            optimizations.update()
            .where(optimizations.c.id == sa.bindparam("of"))
            .values(seconds=optimizations.c.seconds + sa.bindparam("more"))
        )


class SqlJournal:
    """The replies of one optimization."""

    def __init__(self, archive: SqlArchive, optimization_id: str) -> None:
        self._archive = archive
        self._id = optimization_id
        self._unsafe: dict[str, tuple[Reply, Future[None]]] = {}

    def find(self, key: str) -> Reply | None:
        """The recorded reply, if there is one."""
        if key in self._unsafe:
            return self._unsafe[key][0]
        this = sa.and_(replies.c.optimization_id == self._id, replies.c.key == key)
        with self._archive._writing() as connection:
            row = connection.execute(replies.select().where(this)).mappings().first()
        if row is None or row["response"] is None:
            return None
        return _reply(row)

    def reserve(self, key: str, *, role: Role, stage: str, usd: float) -> None:
        """Note that a request is about to be sent; called again for each retry."""
        values = {
            "optimization_id": self._id,
            "key": key,
            "role": role,
            "stage": stage,
            "sends": 1,
            "usd_reserved": usd,
            "prompt_tokens": 0,
            "completion_tokens": 0,
            "latency_ms": 0.0,
        }
        self._archive.pen.write(self._id, self._archive._statements.reserve, values)

    def record(self, reply: Reply, *, shared: str | None = None) -> None:
        """Keep a reply; its reservation is settled."""
        values = {"optimization_id": self._id, "sends": 0, "usd_reserved": 0.0, "shared": shared, **_columns(reply)}
        if shared is not None:
            self._archive.share(shared, reply)
        self._archive.pen.write(self._id, self._archive._statements.record, values)
        self._remember(reply)

    def borrow(self, shared: str, key: str, *, stage: str) -> Reply | None:
        """A reply that another optimization shared, kept here as ``key`` from now on."""
        found = self._archive.shared_reply(shared)
        if found is None:
            return None
        reply = replace(found, key=key, stage=stage)
        values = {"optimization_id": self._id, "sends": 0, "usd_reserved": 0.0, "shared": None, **_columns(reply)}
        self._archive.pen.write(self._id, self._archive._statements.borrow, values)
        self._remember(reply)
        return reply

    def _remember(self, reply: Reply) -> None:
        """Have ``reply`` at hand until it is safe."""
        self._unsafe[reply.key] = (reply, self._archive.pen.settled(self._id))
        while self._unsafe and next(iter(self._unsafe.values()))[1].done():
            del self._unsafe[next(iter(self._unsafe))]

    async def durable(self) -> None:
        """Wait until everything noted so far would survive a crash."""
        safe = self._archive.pen.settled(self._id)
        if safe.done():
            return safe.result()
        await asyncio.shield(self._archive.late(safe))
        return self._archive.pen.check(self._id)

    def stages(self) -> dict[str, str]:
        """Keys of all recorded replies, and the stage that asked first."""
        query = sa.select(replies.c.key, replies.c.stage)
        query = query.where(replies.c.optimization_id == self._id, replies.c.response.is_not(None))
        with self._archive._reading() as connection:
            return {row.key: row.stage for row in connection.execute(query)}

    def sent(self, *, settled: bool = True) -> Sent:
        """Totals over everything noted so far.

        Args:
            settled: Wait for what is still being written.
        """
        recorded, paid = replies.c.response.is_not(None), replies.c.sends > 0
        query = sa.select(
            replies.c.stage,
            sa.func.sum(replies.c.sends).label("calls"),
            sa.func.sum(sa.case((recorded, 1), else_=0)).label("recorded"),
            sa.func.sum(sa.case((sa.and_(recorded, ~paid), 1), else_=0)).label("borrowed"),
            sa.func.sum(sa.case((paid, replies.c.prompt_tokens), else_=0)).label("prompt_tokens"),
            sa.func.sum(sa.case((paid, replies.c.completion_tokens), else_=0)).label("completion_tokens"),
            sa.func.sum(sa.case((paid, sa.func.coalesce(replies.c.cost_usd, 0.0)), else_=0.0)).label("usd"),
            sa.func.sum(sa.case((recorded, 0.0), else_=replies.c.usd_reserved)).label("usd_lost"),
            sa.func.sum(sa.case((sa.and_(recorded, paid, replies.c.cost_usd.is_(None)), 1), else_=0)).label("unpriced"),
        ).where(replies.c.optimization_id == self._id)
        with self._archive._reading() if settled else self._archive._writing() as connection:
            rows = connection.execute(query.group_by(replies.c.stage)).mappings().all()
        totals = {
            name: sum(row[name] for row in rows)
            for name in (
                "calls",
                "recorded",
                "borrowed",
                "prompt_tokens",
                "completion_tokens",
                "usd",
                "usd_lost",
                "unpriced",
            )
        }
        return Sent(**totals, by_stage={row["stage"]: row["calls"] for row in rows})


class SqlNotebook:
    """All that is kept of one optimization."""

    def __init__(self, archive: SqlArchive, optimization_id: str) -> None:
        self._archive = archive
        self._id = optimization_id
        self.journal = SqlJournal(archive, optimization_id)

    @contextmanager
    def claimed(self) -> Iterator[None]:
        """Hold it for this process; a killed process lets go of it.

        Raises:
            InUse: another process holds it.
        """
        if not self._archive.claims.take(self._id):
            raise InUse(f"another process is working on {self._id}; wait for it, or end it first")
        try:
            yield
        finally:
            self._archive.claims.release(self._id)

    def keep_examples(self, splits: Mapping[str, Sequence[Example]]) -> None:
        """Keep the data as it was split; a second call changes nothing."""
        there = sa.select(examples.c.position).where(examples.c.optimization_id == self._id).limit(1)
        with self._archive._reading() as connection:
            if connection.execute(there).first() is not None:
                return
            for split, rows in splits.items():
                for position, example in enumerate(rows):
                    values = {
                        "optimization_id": self._id,
                        "split": split,
                        "position": position,
                        "inputs": _text(dict(example.inputs)),
                        "labels": _text(dict(example.labels)),
                    }
                    connection.execute(self._archive._statements.example, values)

    def examples(self) -> dict[str, tuple[Example, ...]]:
        """The splits that were kept, in order."""
        query = examples.select().where(examples.c.optimization_id == self._id).order_by(examples.c.position)
        splits: dict[str, list[Example]] = {}
        with self._archive._reading() as connection:
            for row in connection.execute(query).mappings():
                example = Example(inputs=json.loads(row["inputs"]), labels=json.loads(row["labels"]))
                splits.setdefault(row["split"], []).append(example)
        return {split: tuple(rows) for split, rows in splits.items()}

    def keep_candidate(self, candidate: Candidate, *, stage: str) -> None:
        """Keep a candidate the first time it is seen."""
        values = {
            "optimization_id": self._id,
            "key": candidate.key,
            "state": _text(candidate.state()),
            "parents": _text(list(candidate.parents)),
            "origin": candidate.origin,
            "stage": stage,
        }
        self._archive.pen.write(self._id, self._archive._statements.candidate, values)

    def candidates(self) -> list[tuple[Candidate, str]]:
        """Candidates and the stage that made them, in the order they were first seen."""
        query = candidates.select().where(candidates.c.optimization_id == self._id).order_by(candidates.c.number)
        with self._archive._reading() as connection:
            return [
                (
                    Candidate.from_state(
                        json.loads(row["state"]), parents=json.loads(row["parents"]), origin=row["origin"]
                    ),
                    row["stage"],
                )
                for row in connection.execute(query).mappings()
            ]

    def keep_evaluation(self, evaluation: Evaluation, *, stage: str) -> None:
        """Keep an evaluation; one that is already there stays as it is."""
        failure, usage = evaluation.failure, evaluation.usage
        values = {
            "optimization_id": self._id,
            "candidate": evaluation.candidate,
            "example": evaluation.example.key,
            "repeat": evaluation.repeat,
            "stage": stage,
            "score": evaluation.score,
            "failure_kind": failure and failure.kind,
            "failure_message": failure and failure.message,
            "feedback": evaluation.feedback,
            "prediction": None if evaluation.prediction is None else _text(dict(evaluation.prediction)),
            "trace": _text([_step(step) for step in evaluation.trace]),
            "replies": _text(list(evaluation.replies)),
            "calls": usage.calls,
            "prompt_tokens": usage.prompt_tokens,
            "completion_tokens": usage.completion_tokens,
            "cost_usd": usage.cost_usd,
            "latency_ms": usage.latency_ms,
        }
        self._archive.pen.write(self._id, self._archive._statements.evaluation, values)

    def evaluations(self) -> Iterable[tuple[Evaluation, str]]:
        """Evaluations and the stage that first asked for them, in the order they were kept."""
        known = {example.key: example for split in self.examples().values() for example in split}
        query = evaluations.select().where(evaluations.c.optimization_id == self._id).order_by(evaluations.c.number)
        with self._archive._reading() as connection:
            for row in connection.execute(query).mappings():
                yield _evaluation(row, known[row["example"]]), row["stage"]

    def note(self, event: Event) -> None:
        """Append to the events."""
        values = {
            "optimization_id": self._id,
            "at": datetime.now(UTC).isoformat(),
            "kind": event.kind,
            "payload": _text(dict(event.payload)),
        }
        self._archive.pen.write(self._id, self._archive._statements.event, values)

    def events(self, *, after: int = 0) -> list[tuple[int, Event]]:
        """Numbered events, from 1."""
        query = events.select().where(events.c.optimization_id == self._id).order_by(events.c.number)
        with self._archive._reading() as connection:
            rows = connection.execute(query).mappings().all()
        return [
            (number, Event(kind=row["kind"], payload=json.loads(row["payload"])))
            for number, row in enumerate(rows, start=1)
            if number > after
        ]

    def add_seconds(self, seconds: float) -> None:
        """Add wall time spent on it."""
        self._archive.pen.write(self._id, self._archive._statements.seconds, {"of": self._id, "more": seconds})

    def flush(self) -> None:
        """Wait until everything kept so far would survive a crash.

        Raises:
            StorageUnavailable: it cannot be kept.
        """
        self._archive.pen.flush(self._id)

    def set_status(self, status: str, *, error: str = "", result: Mapping[str, Any] | None = None) -> None:
        """Move it to another status."""
        told = None if result is None else _text(dict(result))
        values = {"of": self._id, "new_status": status, "new_error": error, "new_result": told}
        self._archive.pen.write(self._id, self._archive._statements.status, values)
        self.flush()


def _wait_for_makers(connection: sa.Connection) -> None:
    """Let nobody else make tables on this server until the transaction ends."""
    if connection.dialect.name == "postgresql":
        connection.execute(sa.text("SELECT pg_advisory_xact_lock(hashtextextended('tables', 0))"))


def _add_columns(connection: sa.Connection) -> None:
    """Give a database of an earlier version the columns that came later; they may all be empty."""
    for table in metadata.sorted_tables:
        there = {column["name"] for column in sa.inspect(connection).get_columns(table.name)}
        for column in table.columns:
            if column.name not in there:
                kind = column.type.compile(connection.dialect)
                connection.execute(sa.text(f"ALTER TABLE {table.name} ADD COLUMN {column.name} {kind}"))


def _tune_sqlite(connection: Any, _record: object) -> None:
    # WAL survives a killed process with NORMAL; FULL would only add an fsync per reply against power loss.
    cursor = connection.cursor()
    for pragma in ("journal_mode=WAL", "synchronous=NORMAL", "busy_timeout=30000"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _optimization(row: sa.RowMapping) -> Optimization:
    return Optimization(
        id=row["id"],
        status=row["status"],
        created_at=datetime.fromisoformat(row["created_at"]),
        request=json.loads(row["request"]),
        result=None if row["result"] is None else json.loads(row["result"]),
        error=row["error"],
        seconds=row["seconds"],
    )


def _columns(reply: Reply) -> dict[str, Any]:
    return {
        "key": reply.key,
        "role": reply.role,
        "stage": reply.stage,
        "response": _text(reply.response),
        "prompt_tokens": reply.prompt_tokens,
        "completion_tokens": reply.completion_tokens,
        "cost_usd": reply.cost_usd,
        "latency_ms": reply.latency_ms,
    }


def _reply(row: sa.RowMapping) -> Reply:
    return Reply(
        key=row["key"],
        role=row["role"],
        stage=row["stage"],
        response=json.loads(row["response"]),
        prompt_tokens=row["prompt_tokens"],
        completion_tokens=row["completion_tokens"],
        cost_usd=row["cost_usd"],
        latency_ms=row["latency_ms"],
    )


def _step(step: Step) -> dict[str, Any]:
    return {"predictor": step.predictor, "inputs": dict(step.inputs), "outputs": dict(step.outputs), "raw": step.raw}


def _evaluation(row: sa.RowMapping, example: Example) -> Evaluation:
    failure = Failure(kind=row["failure_kind"], message=row["failure_message"]) if row["failure_kind"] else None
    return Evaluation(
        candidate=row["candidate"],
        example=example,
        repeat=row["repeat"],
        score=row["score"],
        failure=failure,
        feedback=row["feedback"],
        prediction=None if row["prediction"] is None else json.loads(row["prediction"]),
        trace=tuple(Step(**step) for step in json.loads(row["trace"])),
        usage=Usage(
            calls=row["calls"],
            prompt_tokens=row["prompt_tokens"],
            completion_tokens=row["completion_tokens"],
            cost_usd=row["cost_usd"],
            latency_ms=row["latency_ms"],
        ),
        replies=tuple(json.loads(row["replies"])),
    )

"""What is written often, in the words of one database; many rows with one statement; the questions every room asks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from operator import itemgetter
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.sql.compiler import SQLCompiler

from ratchet.core.errors import Missing
from ratchet.storage.tables import ERROR, RESULT, candidates, evaluations, events, examples, optimizations, replies


class Statements:
    """The statements.

    Args:
        insert: Begins an INSERT of this database.
    """

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
        stands = ("status", "error", "result", ERROR.into, RESULT.into)
        self.status = (
            optimizations.update()
            .where(optimizations.c.id == sa.bindparam("of"))
            .values({name: sa.bindparam(f"new_{name}") for name in stands})
        )
        self.seconds = (
            optimizations.update()
            .where(optimizations.c.id == sa.bindparam("of"))
            .values(seconds=optimizations.c.seconds + sa.bindparam("more"))
        )


class ManyRows:
    """An INSERT of one row as an INSERT of many."""

    def __init__(self, statement: sqlite.Insert, columns: list[str], dialect: sa.Dialect) -> None:
        compiled = statement.compile(dialect=dialect, column_keys=columns)
        assert isinstance(compiled, SQLCompiler)
        self._columns = list(compiled.positiontup or ())
        assert set(self._columns) == set(columns), "every value stands in VALUES"
        processors = compiled._bind_processors
        self._values = itemgetter(*self._columns)
        found_processors = ((place, processors.get(name)) for place, name in enumerate(self._columns))
        self._processors = [(place, process) for place, process in found_processors if process is not None]
        self._group = f"({', '.join('?' * len(columns))})"
        self._before, found, self._after = compiled.string.partition(self._group)
        assert found, compiled.string

    def sql(self, rows: Sequence[Mapping[str, Any]]) -> tuple[str, tuple[Any, ...]]:
        """The statement for ``rows``, and its values."""
        groups = ", ".join([self._group] * len(rows))
        values: list[Any] = []
        for row in rows:
            start = len(values)
            values += self._values(row)
            for place, process in self._processors:
                values[start + place] = process(values[start + place])  # type: ignore[operator]
        return f"{self._before}{groups}{self._after}", tuple(values)


def newest_first(
    table: sa.Table, *which: sa.ColumnElement[bool], before: int | None, limit: int
) -> sa.Select[tuple[Any, ...]]:
    """Asks for the numbered rows that are ``which``, the newest first, those numbered below ``before``."""
    query = table.select().where(*which).order_by(table.c.number.desc()).limit(limit)
    return query if before is None else query.where(table.c.number < before)


def the_row(connection: sa.Connection, table: sa.Table, what: str, tenant: str | None, identity: str) -> sa.RowMapping:
    """The row with this id; None for the tenant is for workers, which work for all.

    Args:
        what: What it is a row of, in the words of the error.

    Raises:
        Missing: the tenant has none.
    """
    query = table.select().where(table.c.id == identity)
    if tenant is not None:
        query = query.where(table.c.tenant == tenant)
    row = connection.execute(query).mappings().first()
    if row is None:
        raise Missing(f"there is no {what} {identity!r}", value=identity)
    return row

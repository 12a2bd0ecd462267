"""The archive in a SQL database, through SQLAlchemy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa

from ratchet.core.errors import UnknownName
from ratchet.engine.archive import Optimization
from ratchet.storage.database import Database
from ratchet.storage.notebook import SqlNotebook
from ratchet.storage.tables import ERROR, OWNER, REQUEST, RESULT, optimizations


class SqlArchive(Database):
    """All optimizations in one database."""

    def identity(self, beginning: str) -> str:
        """The id of the one optimization whose id begins so.

        Raises:
            UnknownName: there is none, or more than one.
        """
        with self.reading() as connection:
            return str(self._row(connection, beginning)["id"])

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
        with self.transaction() as connection:
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
        with self.reading() if settled else self.transaction() as connection:
            return self._optimizations(connection, [self._row(connection, optimization_id)])[0]

    def _row(self, connection: sa.Connection, optimization_id: str) -> sa.RowMapping:
        query = optimizations.select()
        if row := connection.execute(query.where(optimizations.c.id == optimization_id)).mappings().first():
            return row
        # Not LIKE: to SQLite it is blind to case.
        beginning = sa.func.substr(optimizations.c.id, 1, len(optimization_id))
        rows = connection.execute(query.where(beginning == optimization_id).limit(2)).mappings().all()
        if len(rows) != 1 or not optimization_id:
            problem = "more than one optimization begins" if len(rows) > 1 else "there is no optimization"
            raise UnknownName(f"{problem} with id {optimization_id!r}; `ratchet list` shows them")
        return rows[0]

    def _optimizations(self, connection: sa.Connection, rows: Sequence[sa.RowMapping]) -> list[Optimization]:
        found: Sequence[Any] = rows
        for texts in (REQUEST, RESULT, ERROR):
            found = self.shown(connection, texts, found)
        return [_optimization(row) for row in found]

    def list(self, *, limit: int = 50) -> list[Optimization]:
        """The newest first."""
        query = optimizations.select().order_by(optimizations.c.created_at.desc()).limit(limit)
        with self.reading() as connection:
            return self._optimizations(connection, connection.execute(query).mappings().all())


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

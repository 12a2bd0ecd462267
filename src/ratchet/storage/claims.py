"""What one process holds and no other can; a process that dies lets go of all it held.

Whether a worker is alive is therefore a question to the operating system or the database server, not to a clock.
"""

from __future__ import annotations

import threading
from contextlib import suppress
from pathlib import Path
from typing import Protocol

import sqlalchemy as sa
from filelock import FileLock, Timeout


class Claims(Protocol):
    """Names that are held."""

    def take(self, name: str) -> bool:
        """Hold ``name``; False when it is held already, here or elsewhere."""

    def release(self, name: str) -> None:
        """Let go of ``name``."""

    def close(self) -> None:
        """Let go of everything."""


class FileClaims:
    """Held by locks on files, for processes on one machine."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._held: dict[str, FileLock] = {}

    def take(self, name: str) -> bool:
        """Hold ``name``."""
        lock = FileLock(self._folder / f"{name}.lock", thread_local=False)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            return False
        self._held[name] = lock
        return True

    def release(self, name: str) -> None:
        """Let go of ``name``."""
        self._held.pop(name).release()

    def close(self) -> None:
        """Let go of everything."""
        for name in list(self._held):
            self.release(name)


class MemoryClaims:
    """Held in this process alone, for a database that only it has."""

    def __init__(self) -> None:
        self._held: set[str] = set()
        self._lock = threading.Lock()

    def take(self, name: str) -> bool:
        """Hold ``name``."""
        with self._lock:
            if name in self._held:
                return False
            self._held.add(name)
            return True

    def release(self, name: str) -> None:
        """Let go of ``name``."""
        self._held.discard(name)

    def close(self) -> None:
        """Let go of everything."""
        self._held.clear()


class ServerClaims:
    """Held by PostgreSQL's advisory locks, all of a process in one session.

    A session that broke is begun anew, and what was held is taken again.
    """

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine
        self._connection: sa.Connection | None = None
        self._held: set[str] = set()
        self._lock = threading.Lock()

    def take(self, name: str) -> bool:
        """Hold ``name``."""
        with self._lock:
            if name in self._held or not self._ask("pg_try_advisory_lock", name):  # a session may lock twice
                return False
            self._held.add(name)
            return True

    def release(self, name: str) -> None:
        """Let go of ``name``."""
        with self._lock:
            self._held.discard(name)
            self._ask("pg_advisory_unlock", name)

    def close(self) -> None:
        """Let go of everything."""
        with self._lock:
            self._held.clear()
            if self._connection is not None:
                self._connection.invalidate()  # given back to the pool, the session would keep its locks
                self._connection.close()
                self._connection = None

    def _ask(self, function: str, name: str) -> bool:
        statement = sa.text(f"SELECT {function}(hashtextextended(:name, 0))")
        try:
            return bool(self._session().execute(statement, {"name": name}).scalar())
        except sa.exc.DBAPIError:
            self._begin_anew()
            return bool(self._session().execute(statement, {"name": name}).scalar())

    def _session(self) -> sa.Connection:
        if self._connection is None:
            self._connection = self._engine.connect().execution_options(isolation_level="AUTOCOMMIT")
        return self._connection

    def _begin_anew(self) -> None:
        if self._connection is not None:
            with suppress(sa.exc.SQLAlchemyError):
                self._connection.close()
        self._connection = None
        for name in self._held:
            self._session().execute(sa.text("SELECT pg_try_advisory_lock(hashtextextended(:name, 0))"), {"name": name})

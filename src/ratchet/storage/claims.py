"""What one process holds and no other can; a process that dies lets go of all it held.

Whether a worker is alive is therefore a question to the operating system or the database server, not to a clock.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Protocol

import sqlalchemy as sa
from filelock import FileLock, Timeout

from ratchet.core.errors import InUse, StorageUnavailable

RETAKING_SECONDS = (0.05, 0.1, 0.2, 0.4)
"""Waits for what somebody else holds for a moment, when claims are taken again."""
FRESH_SECONDS = 0.5
"""A session that was used so lately is taken to be alive."""


class Claims(Protocol):
    """Names that are held."""

    def take(self, name: str) -> bool:
        """Hold ``name``; False when it is held already, here or elsewhere."""

    def release(self, name: str) -> None:
        """Let go of ``name``."""

    def keep(self) -> None:
        """Take again what was lost without being let go of."""

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

    def keep(self) -> None:
        """Nothing is lost: the locks are this process's own."""

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

    def keep(self) -> None:
        """Nothing is lost."""

    def close(self) -> None:
        """Let go of everything."""
        self._held.clear()


class ServerClaims:
    """Held by PostgreSQL's advisory locks, all of a process in one session.

    A session that breaks loses its locks; the next one takes them again. What somebody else has taken by then is lost.
    Who holds a claim writes in ``writing``, which is the same session: so nobody writes who does not hold any more.

    Args:
        engine: Makes the session.
        lost: Told of each claim that was lost, before anything else is written.

    Raises:
        StorageUnavailable: by all but ``release`` and ``close``, when the server does not answer.
    """

    def __init__(self, engine: sa.Engine, *, lost: Callable[[str], None] = lambda name: None) -> None:
        self._engine = engine
        self._tell_lost = lost
        self._connection: sa.Connection | None = None
        self._used = 0.0
        self._held: set[str] = set()
        self._lock = threading.Lock()

    def take(self, name: str) -> bool:
        """Hold ``name``."""
        with self._lock:
            self._keep()
            if name in self._held:  # a session may lock twice
                return False
            try:
                taken = self._ask(_TAKE, name)
            except StorageUnavailable:  # the server may have been started again since the session was used last
                self._keep()
                taken = self._ask(_TAKE, name)
            if taken:
                self._held.add(name)
            return taken

    def release(self, name: str) -> None:
        """Let go of ``name``."""
        with self._lock:
            if name not in self._held:  # it was lost
                return
            self._held.discard(name)
            with suppress(StorageUnavailable):  # a session that broke has let go of it
                self._ask(_RELEASE, name)

    def keep(self) -> None:
        """Take again what was lost."""
        with self._lock:
            self._keep()

    @contextmanager
    def writing(self) -> Iterator[sa.Connection]:
        """A transaction of whoever holds claims here.

        Raises:
            InUse: a claim was lost; nothing was written then.
        """
        with self._lock:
            lost = self._keep()
            if lost:
                raise InUse(f"others have taken up {', '.join(sorted(lost))} meanwhile")
            assert self._connection is not None
            try:
                with self._connection.begin():
                    yield self._connection
            except (sa.exc.IntegrityError, sa.exc.ProgrammingError):
                raise  # our mistake, not the database's
            except sa.exc.DBAPIError as error:
                self._end()
                raise StorageUnavailable(f"the database server does not answer: {error.orig}") from error
            self._used = time.monotonic()

    def close(self) -> None:
        """Let go of everything."""
        with self._lock:
            self._held.clear()
            with suppress(StorageUnavailable):  # the server notices a session's end a moment later
                self._ask(_RELEASE_ALL)
            self._end()

    def _keep(self) -> set[str]:
        """Have a session; what was lost with the last one."""
        if self._connection is not None and time.monotonic() - self._used > FRESH_SECONDS:
            with suppress(StorageUnavailable):
                self._ask(sa.text("SELECT true"))
        if self._connection is not None:
            return set()
        try:
            self._connection = self._engine.connect()
        except sa.exc.DBAPIError as error:
            raise StorageUnavailable(f"the database server does not answer: {error.orig}") from error
        missing = {name for name in self._held if not self._ask(_TAKE, name)}
        for seconds in RETAKING_SECONDS:  # the session that broke may not be gone yet, a roll call may be under way
            if missing:
                time.sleep(seconds)
                missing = {name for name in missing if not self._ask(_TAKE, name)}
        self._held -= missing
        for name in missing:
            self._tell_lost(name)
        return missing

    def _ask(self, statement: sa.TextClause, name: str | None = None) -> bool:
        if self._connection is None:
            raise StorageUnavailable("the session with the database server broke")
        try:
            with self._connection.begin():
                answer = bool(self._connection.execute(statement, {"name": name} if name else {}).scalar())
        except sa.exc.DBAPIError as error:
            self._end()
            raise StorageUnavailable(f"the database server does not answer: {error.orig}") from error
        self._used = time.monotonic()
        return answer

    def _end(self) -> None:
        if self._connection is not None:
            with suppress(sa.exc.SQLAlchemyError):
                self._connection.invalidate()  # given back to the pool, the session would keep its locks
                self._connection.close()
            self._connection = None


_TAKE = sa.text("SELECT pg_try_advisory_lock(hashtextextended(:name, 0))")
_RELEASE_ALL = sa.text("SELECT true FROM pg_advisory_unlock_all()")
_RELEASE = sa.text("SELECT pg_advisory_unlock(hashtextextended(:name, 0))")

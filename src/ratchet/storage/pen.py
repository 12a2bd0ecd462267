"""Writes to a database in the order they were asked for, many in one transaction, in a thread of its own.

A transaction costs about the same for one row and for fifty. Whoever writes does not wait; whoever must know that what
was written is safe waits for ``settled``. A crash leaves a beginning of what was written, never a part with holes.
Within a transaction the rows of one statement go together, in their order: no statement here minds what another one of
the same transaction did before it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from typing import Any

import sqlalchemy as sa

from ratchet.core.errors import RatchetError, StorageUnavailable

GATHERING_SECONDS = 0.004
"""How long a write waits for others to share its transaction."""

Write = tuple[str, sa.Executable, Mapping[str, Any]]
"""Who writes, the statement, and its values."""


class Pen:
    """The one writer of a database in this process.

    Args:
        transact: Carries out statements, each with its rows, in one transaction.

    A transaction that fails is lost for everyone who wrote in it: each of them gets its error at the next turn.
    """

    def __init__(self, transact: Callable[[Sequence[tuple[sa.Executable, list[Mapping[str, Any]]]]], None]) -> None:
        self._transact = transact
        self._waiting: list[Write] = []
        self._safe: Future[None] = _done()
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._failed: dict[str, RatchetError] = {}
        self._thread: threading.Thread | None = None
        self._closed = False

    def write(self, who: str, statement: sa.Executable, values: Mapping[str, Any]) -> None:
        """Have ``statement`` carried out soon.

        Raises:
            RatchetError: something that ``who`` wrote before could not be kept.
        """
        with self._lock:
            self._check(who)
            if not self._waiting:
                self._safe = Future()
            self._waiting.append((who, statement, values))
            if self._thread is None:
                self._closed = False
                self._thread = threading.Thread(target=self._serve, name="ratchet-pen", daemon=True)
                self._thread.start()
            if len(self._waiting) == 1:
                self._changed.notify_all()

    def settled(self, who: str) -> Future[None]:
        """Done when everything written so far is safe; it raises what ``write`` would."""
        with self._lock:
            self._check(who)
            return self._safe

    def flush(self, who: str | None = None) -> None:
        """Wait until everything written so far is safe.

        Raises:
            RatchetError: something that ``who`` wrote could not be kept; None asks for nobody's.
        """
        with suppress(RatchetError):
            self._safe.result()
        if who is not None:
            with self._lock:
                self._check(who)

    def revoke(self, who: str, error: RatchetError) -> None:
        """Have everything that ``who`` writes from now on refused with ``error``."""
        with self._lock:
            self._failed[who] = error

    def forgive(self, who: str) -> None:
        """Let ``who`` begin anew after something of theirs could not be kept."""
        with self._lock:
            self._failed.pop(who, None)

    def check(self, who: str) -> None:
        """Raise what ``write`` would."""
        with self._lock:
            self._check(who)

    def close(self) -> None:
        """Write what is waiting, and end the thread; another write begins another one."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            thread = self._thread
        if thread is not None:
            thread.join()

    def _check(self, who: str) -> None:
        if who in self._failed:
            raise self._failed[who]

    def _serve(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._closed)
                if not self._waiting:
                    self._thread = None  # not before: two threads would write out of order
                    return
            time.sleep(GATHERING_SECONDS)
            with self._changed:
                batch, self._waiting = self._waiting, []
                safe = self._safe
            parts: dict[int, tuple[sa.Executable, list[Mapping[str, Any]]]] = {}
            for _, statement, values in batch:
                parts.setdefault(id(statement), (statement, []))[1].append(values)
            try:
                self._transact(list(parts.values()))
            except Exception as error:  # the thread's outermost turn: whoever waits must hear of it, whatever it is
                cause = error if isinstance(error, RatchetError) else StorageUnavailable(f"a write failed: {error!r}")
                with self._changed:
                    self._failed |= dict.fromkeys({who for who, _, _ in batch}, cause)
                safe.set_exception(cause)
            else:
                safe.set_result(None)


def _done() -> Future[None]:
    future: Future[None] = Future()
    future.set_result(None)
    return future

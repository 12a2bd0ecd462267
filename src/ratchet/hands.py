"""How many threads of this process compute at once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Semaphore
from types import TracebackType


class Hands:
    """Lets only so many threads at it at once; a context manager that waits for its turn.

    A thousand optimizations that begin or end in the same moment are no faster for it: they would wait for the
    interpreter and for a connection to the database instead, and so would every request to the API.

    Args:
        count: Threads at once.
    """

    def __init__(self, count: int) -> None:
        self._free = Semaphore(count)

    def __enter__(self) -> None:
        """Wait for a turn."""
        self._free.acquire()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Let another one at it."""
        self._free.release()

    @contextmanager
    def resting(self) -> Iterator[None]:
        """Within a turn: let others at it for as long as this thread only waits for something."""
        self._free.release()
        try:
            yield
        finally:
            self._free.acquire()

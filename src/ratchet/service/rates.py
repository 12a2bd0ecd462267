"""How many requests a key may make: so many in a minute, at once or spread over it."""

from __future__ import annotations

import math
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from ratchet.core.errors import TooMany

KNOWN = 10_000
"""Keys that are remembered; of more, those that were quiet longest are taken for new."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """What a key may still do.

    Attributes:
        limit: Requests per minute.
        remaining: Requests that may be made at once.
        reset_seconds: Until ``remaining`` is ``limit`` again, when none is made.
    """

    limit: int
    remaining: int
    reset_seconds: int

    @property
    def headers(self) -> dict[str, str]:
        """As it is told with every answer."""
        told = {"Limit": self.limit, "Remaining": self.remaining, "Reset": self.reset_seconds}
        return {f"RateLimit-{name}": str(value) for name, value in told.items()}


class Rates:
    """A bucket of requests for each key, which fills as time goes; each process has its own.

    Args:
        clock: Seconds.

    >>> rates = Rates(clock=lambda: 0.0)
    >>> rates.take("ada", 2)
    Grant(limit=2, remaining=1, reset_seconds=30)
    """

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._levels: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, who: str, per_minute: int) -> Grant:
        """Count a request.

        Raises:
            TooMany: it is one too many; the values say when the next one may come.
        """
        now = self._clock()
        with self._lock:
            level, then = self._levels.pop(who, (float(per_minute), now))
            level = min(float(per_minute), level + (now - then) * per_minute / 60)
            allowed = level >= 1
            level -= allowed
            self._levels[who] = (level, now)
            if len(self._levels) > KNOWN:
                self._levels.popitem(last=False)
        reset = math.ceil((per_minute - level) * 60 / per_minute)
        grant = Grant(limit=per_minute, remaining=int(level), reset_seconds=reset)
        if not allowed:
            wait = max(1, math.ceil((1 - level) * 60 / per_minute))
            raise TooMany(
                f"this key may make {per_minute} requests a minute; wait {wait} s, or have its rate raised",
                grant=grant,
                retry_after=wait,
            )
        return grant

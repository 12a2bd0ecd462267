"""How often, and how soon, something that failed for no lasting reason is tried again."""

from __future__ import annotations

import random
from dataclasses import dataclass
from datetime import timedelta


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How often, and how soon, something is tried again.

    Attributes:
        attempts: Tries before it is given up; None for any number.
        first_seconds, most_seconds: The wait doubles from the one to the other.
    """

    attempts: int | None = 16
    first_seconds: float = 1.0
    most_seconds: float = 3600.0

    def wait(self, attempt: int, rng: random.Random, *, asked_seconds: float = 0.0) -> timedelta:
        """How long to wait after the ``attempt``-th try; half of it is chance, so that not all come at once.

        Args:
            asked_seconds: Not less than this, which was asked for, up to the limit.
        """
        full = min(self.most_seconds, self.first_seconds * 2.0 ** min(attempt - 1, 40))
        return timedelta(seconds=max(full * rng.uniform(0.5, 1.0), min(asked_seconds, self.most_seconds)))


def retry_after(text: str | None) -> float | None:
    """The seconds that a ``Retry-After`` header asks for; None where it names a date, or nothing that can be read.

    >>> [retry_after(text) for text in (" 12 ", "Fri, 31 Dec 1999 23:59:59 GMT", "²", None)]
    [12.0, None, None, None]
    """
    text = (text or "").strip()
    return float(text) if text.isascii() and text.isdigit() else None

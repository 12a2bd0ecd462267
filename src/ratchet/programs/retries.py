"""Which failures of an LM are worth another try, when, and for how long."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

from dspy.utils.exceptions import LMTimeoutError, LMTransportError, is_retryable_lm_error

from ratchet.programs.ledger import Limits
from ratchet.programs.line import Line

UNLUCKY = 5
"""How many times its patience, or its time for an answer, a request is tried again while others are answered."""

ASKED, ASKED_FIRST = 3.0, 1.1
"""How many times our patience an LM may ask to be left alone: one that has answered before, and one that has not."""

PASSING = frozenset({404, 409, 425})
"""Refusals that say something of the server's hour and not of the request, from an LM that has answered before."""

LONGEST_WAIT = 1800.0
"""Seconds for an answer of an LM that is known to be alive: one in this process, on a machine that may be busy."""


class Retries:
    """The patience of one optimization.

    Args:
        clock: Seconds.
    """

    def __init__(self, *, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._rng = random.Random(0)

    def pause(self, limits: Limits, line: Line, error: Exception, attempt: int, since: float) -> float | None:
        """Seconds to wait before the next try; None when the line is to be given up.

        Args:
            attempt: How many tries there were before the one that failed with ``error``.
            since: When the first of them was sent that failed, a reading of the clock.
        """
        line.failed(error)
        hint = getattr(error, "retry_after", None)
        # A hint of 0 is not taken at its word for ever: it would be a thousand requests in a second.
        first, growth = (0.5, 2**attempt) if hint is None else (0.01, 2 ** min(attempt, 12))
        wait: float = max(hint or 0.0, min(8.0, first * growth) * self._rng.uniform(0.75, 1.25))
        unreached = not line.answered and isinstance(error, LMTransportError)
        patience = min(limits.retry_seconds, limits.first_retry_seconds if unreached else math.inf)
        if isinstance(error, LMTimeoutError):
            patience = max(patience, 2 * line.longest_seconds)
        asked, until = hint or 0.0, self._clock() + wait
        # While others get answers the LM is alive, and only this request is out of luck. Who asks to be left alone for
        # a while is not silent.
        silent, unlucky = until - asked - max(since, line.answered_at), until - since
        longest = max(patience, for_answer(limits, line)) if isinstance(error, LMTimeoutError) else patience
        in_vain = (
            not (is_retryable_lm_error(error) or passes(line, error))
            or silent > patience
            or unlucky > UNLUCKY * longest
            or asked > patience * (ASKED if line.answered else ASKED_FIRST)
        )
        return None if in_vain else wait


def for_answer(limits: Limits, line: Line) -> float:
    """Seconds to wait for an answer."""
    if line.alive:
        return max(limits.timeout_seconds, LONGEST_WAIT)
    return limits.timeout_seconds if line.answered else limits.first_timeout_seconds


def passes(line: Line, error: Exception) -> bool:
    """Whether ``error`` is a refusal that may be of this hour only."""
    return line.wrote and getattr(error, "status", None) in PASSING

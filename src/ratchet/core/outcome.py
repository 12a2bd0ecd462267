"""How one optimization went, for analytics."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """One optimization.

    Attributes:
        algorithm: What was asked for, names with '+' between them.
        created_at: ISO time in UTC.
        improvement: Relative change of quality on the sealed test in percent; None when that was not measured.
        usd: Dollars; None when a price is not known.
        latencies_ms: Of its program runs.
    """

    target: str
    algorithm: str
    created_at: str
    status: str
    improvement: float | None
    calls: int
    prompt_tokens: int
    completion_tokens: int
    usd: float | None
    seconds: float
    latencies_ms: Sequence[float]

"""How optimizations went: per target, algorithm and time; each number from stored evaluations, or None."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from ratchet.core.outcome import Outcome
from ratchet.core.result import ENDED

Window = Literal["all", "month", "day"]
LETTERS: dict[Window, int] = {"all": 0, "month": 7, "day": 10}
"""How much of an ISO date names the window it is in."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Mean:
    """A mean and over how many; None over none."""

    mean: float | None
    n: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantiles:
    """Quantiles of how long a program run took, in milliseconds; None over none."""

    p50: float | None
    p90: float | None
    p99: float | None
    n: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Totals:
    """What was spent in all; no dollars when a price is not known."""

    calls: int
    prompt_tokens: int
    completion_tokens: int
    usd: float | None
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """How the optimizations of one target by one algorithm went in one window.

    Attributes:
        window: The month or day they were asked for in; None for all time that was asked about.
        optimizations: How many there are.
        improved: Share of those with a verdict that proved a gain.
        improvement_percentage: Over those whose sealed test was opened, the ones without a proven gain too.
    """

    target: str
    algorithm: str
    window: str | None
    optimizations: int
    improved: Mean
    improvement_percentage: Mean
    spend: Totals
    latency_ms: Quantiles


def figures(outcomes: Iterable[Outcome], *, window: Window) -> list[Figures]:
    """One for each target, algorithm and window, in the order of their names."""
    groups: dict[tuple[str, str, str], list[Outcome]] = defaultdict(list)
    for each in outcomes:
        groups[each.target, each.algorithm, each.created_at[: LETTERS[window]]].append(each)
    return [_figures(*key, rows) for key, rows in sorted(groups.items())]


def _figures(target: str, algorithm: str, window: str, rows: Sequence[Outcome]) -> Figures:
    prices = [row.usd for row in rows]
    return Figures(
        target=target,
        algorithm=algorithm,
        window=window or None,
        optimizations=len(rows),
        improved=_mean([float(row.status == "improved") for row in rows if row.status in ENDED]),
        improvement_percentage=_mean([row.improvement for row in rows if row.improvement is not None]),
        spend=Totals(
            calls=sum(row.calls for row in rows),
            prompt_tokens=sum(row.prompt_tokens for row in rows),
            completion_tokens=sum(row.completion_tokens for row in rows),
            usd=None if None in prices else sum(price for price in prices if price is not None),
            seconds=sum(row.seconds for row in rows),
        ),
        latency_ms=_quantiles([latency for row in rows for latency in row.latencies_ms]),
    )


def _mean(values: Sequence[float]) -> Mean:
    """The mean of ``values``.

    >>> _mean([1.0, 0.0]), _mean([])
    (Mean(mean=0.5, n=2), Mean(mean=None, n=0))
    """
    return Mean(mean=sum(values) / len(values) if values else None, n=len(values))


def _quantiles(values: Sequence[float]) -> Quantiles:
    if not values:
        return Quantiles(p50=None, p90=None, p99=None, n=0)
    p50, p90, p99 = (float(each) for each in np.quantile(np.asarray(values), (0.5, 0.9, 0.99)))
    return Quantiles(p50=p50, p90=p90, p99=p99, n=len(values))

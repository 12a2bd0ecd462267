"""Whether a candidate reaches the values that were asked for: with its whole interval, not only with its mean."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ratchet.core.evaluation import Evaluations
from ratchet.core.request import MetricName, Objective
from ratchet.core.statistics import mean_interval


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """How a candidate stands to one target value.

    Attributes:
        interval: The 95 % interval of its mean; None when it cannot be told: a price is not known, or there is one run.
    """

    metric: MetricName
    target_value: float
    interval: tuple[float, float] | None
    n: int

    @property
    def reached(self) -> bool:
        """Whether all of the interval is on the good side of the target value."""
        if self.interval is None:
            return False
        low, high = self.interval
        return high <= self.target_value if self.metric in ("cost", "latency") else low >= self.target_value

    def __str__(self) -> str:
        found = "not measured" if self.interval is None else f"[{self.interval[0]:.4g}, {self.interval[1]:.4g}]"
        verdict = "reached" if self.reached else "not proven to be reached"
        return f"{self.metric} of {self.target_value:g} is {verdict} ({found}, n = {self.n})"


def standings(
    evaluations: Evaluations, objectives: Sequence[Objective], *, success_at: float, seed: int
) -> tuple[Standing, ...]:
    """How a candidate stands to each target value; empty when there are none.

    Args:
        evaluations: Its runs.
        objectives: Those without a target value are left out.
        success_at: The score from which a run succeeds.
        seed: Of the resamples.
    """
    return tuple(
        Standing(
            metric=each.metric,
            target_value=each.target_value,
            interval=_interval(each.metric, evaluations, success_at, seed),
            n=len(evaluations),
        )
        for each in objectives
        if each.target_value is not None
    )


def _interval(metric: MetricName, rows: Evaluations, success_at: float, seed: int) -> tuple[float, float] | None:
    if len(rows) < 2:
        return None
    match metric:
        case "quality_score":
            return mean_interval(rows.scores, seed=seed)
        case "success_rate":
            return mean_interval([float(row.succeeded(success_at)) for row in rows], seed=seed)
        case "latency":
            return mean_interval([row.usage.latency_ms for row in rows], seed=seed, highest=math.inf)
        case "cost":
            costs = [row.usage.cost_usd for row in rows if row.usage.cost_usd is not None]
            return mean_interval(costs, seed=seed, highest=math.inf) if len(costs) == len(rows) else None

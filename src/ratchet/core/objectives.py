"""How much better one measurement is than another, per objective and in one number."""

from __future__ import annotations

from collections.abc import Sequence

from ratchet.core.evaluation import Evaluations
from ratchet.core.request import MetricName, Objective


def gains(
    after: Evaluations, before: Evaluations, metrics: Sequence[MetricName], *, success_at: float
) -> tuple[float, ...]:
    """The gain of ``after`` over ``before`` in each of ``metrics``; 0 is no change, higher is better.

    Quality and success count their difference, cost and latency the share that is saved. What was not measured (an
    unknown price) counts nothing.
    """
    return tuple(_gain(metric, after, before, success_at) for metric in metrics)


def weighted_gain(
    after: Evaluations, before: Evaluations, objectives: Sequence[Objective], *, success_at: float
) -> float:
    """The gains of ``after`` over ``before``, weighted and added; higher is better."""
    each = gains(after, before, [objective.metric for objective in objectives], success_at=success_at)
    return sum(objective.weight * gain for objective, gain in zip(objectives, each, strict=True))


def _gain(metric: MetricName, after: Evaluations, before: Evaluations, success_at: float) -> float:
    match metric:
        case "quality_score":
            return after.mean - before.mean
        case "success_rate":
            return after.success_rate(success_at) - before.success_rate(success_at)
        case "cost":
            return _saved(before.cost_usd, after.cost_usd)
        case "latency":
            return _saved(before.latency_ms, after.latency_ms)


def _saved(before: float | None, after: float | None) -> float:
    return (before - after) / before if before and after is not None else 0.0

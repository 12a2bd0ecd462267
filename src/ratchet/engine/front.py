"""The front: candidates that were validated in full and that no other one beats in everything."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ratchet.core.evaluation import Evaluations
from ratchet.core.pareto import knee, most_at_no_loss, pareto_front
from ratchet.core.problem import Candidate
from ratchet.core.request import METRICS, MetricName, OptimizationRequest
from ratchet.core.result import Front, FrontPoint, Performance, TradeOff, performance

LEAST_FOR_A_KNEE = 3
"""Of two points neither lies between ends."""


def front_of(validated: Mapping[Candidate, Evaluations], *, baseline: Candidate, request: OptimizationRequest) -> Front:
    """The front of ``validated``; empty unless something besides the baseline was validated.

    It is over quality and whatever else was asked for; where that is nothing, over quality and cost, since among equals
    the cheaper is better. What was not measured of everyone (an unknown price), or costs everyone nothing, is left out.

    Args:
        validated: Evaluations on all of validation; of equal candidates the first is kept.
        baseline: The candidate that nothing should be worse than.
        request: What was asked for.
    """
    if baseline not in validated or len(validated) < 2:
        return Front()
    measured = {
        each: performance(rows, success_at=request.success_at, split="validation") for each, rows in validated.items()
    }
    metrics = _metrics(list(measured.values()), asked={objective.metric for objective in request.weighted})
    distinct = {_point(measured[each], metrics): each for each in reversed(measured)}
    points = sorted(list(distinct)[place] for place in pareto_front(list(distinct)))[::-1]
    named = _trade_offs(points, metrics, floor=_point(measured[baseline], metrics)[0])
    return Front(
        objectives=metrics,
        points=tuple(
            FrontPoint(
                candidate=distinct[point].key,
                origin=distinct[point].origin,
                performance=measured[distinct[point]],
                trade_offs=tuple(name for name, place in named.items() if place == number),
            )
            for number, point in enumerate(points)
        ),
        baseline=measured[baseline],
        validated=len(validated),
    )


def _metrics(everyone: Sequence[Performance], *, asked: set[MetricName]) -> tuple[MetricName, ...]:
    wanted = {"quality_score", *(asked if asked & {"cost", "latency"} else {*asked, "cost"})}
    costs = [each.avg_cost_per_task for each in everyone]
    if None in costs or not any(costs):
        wanted.discard("cost")
    return tuple(metric for metric in METRICS if metric in wanted)


def _point(measured: Performance, metrics: Sequence[MetricName]) -> tuple[float, ...]:
    """What was measured in ``metrics``, turned so that higher is better; quality first."""
    values = {
        "quality_score": measured.quality_score,
        "success_rate": measured.success_rate,
        "cost": _negative(measured.avg_cost_per_task),
        "latency": _negative(measured.avg_latency_ms),
    }
    return tuple(value for metric in metrics if (value := values[metric]) is not None)


def _negative(value: float | None) -> float | None:
    return None if value is None else -value


def _trade_offs(
    points: Sequence[tuple[float, ...]], metrics: Sequence[MetricName], *, floor: float
) -> dict[TradeOff, int | None]:
    """Places in ``points``, whose best quality comes first."""
    named: dict[TradeOff, int | None] = {"best": 0}
    if len(points) >= LEAST_FOR_A_KNEE:
        named["knee"] = knee(points)
    if "cost" in metrics:
        named["cheapest"] = most_at_no_loss(points, of=metrics.index("cost"), floor=floor)
    if "latency" in metrics:
        named["fastest"] = most_at_no_loss(points, of=metrics.index("latency"), floor=floor)
    return named

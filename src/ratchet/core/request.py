"""What is asked for: the target, the objectives, the constraints."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Real
from typing import Any, Literal

from ratchet.core.errors import BadRequest

TargetType = Literal["agent", "workflow", "component"]
Scope = Literal["individual", "population", "cross_domain"]
MetricName = Literal["success_rate", "quality_score", "cost", "latency"]

METRICS: tuple[MetricName, ...] = ("quality_score", "success_rate", "cost", "latency")
SHORT = {"quality": "quality_score", "success": "success_rate"}
"""What a user may call a metric instead."""


def is_number(value: object) -> bool:
    """Whether ``value`` is a finite number; a text that looks like one is none.

    >>> is_number(5), is_number("5"), is_number(float("nan"))
    (True, False, False)
    """
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def objectives_of(given: Any) -> tuple[tuple[str, float], ...]:
    """Metric names and weights, from a text, a mapping or pairs.

    Raises:
        BadRequest: it is none of these, or names a metric twice.

    >>> objectives_of("quality:1,cost:0.2")
    (('quality_score', 1.0), ('cost', 0.2))
    >>> objectives_of({"quality": 1}) == objectives_of((("quality", 1),))
    True
    """
    pairs: Any = given.items() if isinstance(given, Mapping) else given
    if isinstance(given, str):
        parts = (part.strip().partition(":") for part in given.split(","))
        pairs = [(name, weight or 1) for name, _, weight in parts]
    try:
        found = tuple((SHORT.get(name, name), float(weight)) for name, weight in pairs)
    except (TypeError, ValueError):
        raise BadRequest(f"the objectives {given!r} are not understood; give NAME:WEIGHT such as quality:1") from None
    if len(dict(found)) < len(found):
        raise BadRequest(f"the objectives {given!r} name a metric twice; give each one weight")
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What is to be made better."""

    id: str
    type: TargetType = "component"
    scope: Scope = "individual"


@dataclass(frozen=True, slots=True, kw_only=True)
class Objective:
    """One thing to make better. Quality and success go up, cost and latency go down.

    Attributes:
        metric: What is measured.
        weight: Its share in the choice between candidates; at least 0.
        target_value: The value to reach, in the metric's own unit (share, share, dollars, milliseconds); optional.

    Raises:
        BadRequest: the metric is unknown or the weight is negative or no number.
    """

    metric: MetricName
    weight: float = 1.0
    target_value: float | None = None

    def __post_init__(self) -> None:
        if self.metric not in METRICS:
            raise BadRequest(f"objective {self.metric!r} is not known; choose from {', '.join(METRICS)}")
        if not is_number(self.weight) or self.weight < 0:
            raise BadRequest(f"the weight of objective {self.metric} is {self.weight}; give a number of at least 0")
        if self.target_value is not None and not (is_number(self.target_value) and self.target_value >= 0):
            raise BadRequest(
                f"the target value of objective {self.metric} is {self.target_value}; give a number of at least 0"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Constraints:
    """Limits that are never passed, and what counts as a gain.

    Attributes:
        max_optimization_time: Seconds.
        min_improvement_threshold: Relative gain in quality from which a proven gain is worth promoting (0.05 = 5 %).
        max_resource_usage: Share of a worker's slots, at most 1; the service heeds it.
        max_calls: LM calls sent, over task LM, reflection LM, judge and retries; None for no limit.
        max_usd: Dollars; None for no limit.

    Raises:
        BadRequest: a limit is not a positive number.
    """

    max_optimization_time: float = 7200.0
    min_improvement_threshold: float = 0.05
    max_resource_usage: float = 0.2
    max_calls: int | None = None
    max_usd: float | None = None

    def __post_init__(self) -> None:
        for name in ("max_optimization_time", "max_resource_usage", "max_calls", "max_usd"):
            value = getattr(self, name)
            if value is not None and not (is_number(value) and value > 0):
                raise BadRequest(f"{name} is {value!r}; give a number above 0, or leave it out")
        if not is_number(self.min_improvement_threshold) or self.min_improvement_threshold < 0:
            raise BadRequest(
                f"min_improvement_threshold is {self.min_improvement_threshold!r}; give a share such as 0.05"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimizationRequest:
    """One optimization as it was asked for."""

    target: Target
    objectives: tuple[Objective, ...] = (Objective(metric="quality_score"),)
    algorithms: tuple[str, ...] = ("portfolio",)
    constraints: Constraints = Constraints()
    seed: int = 0
    success_at: float = 1.0
    force: bool = False

    def __post_init__(self) -> None:
        if not self.objectives or sum(objective.weight for objective in self.objectives) <= 0:
            raise BadRequest("no objective has a weight above 0; give for example --objective quality:1")
        if not self.algorithms:
            raise BadRequest("no algorithm was named; leave --algorithm out for the default")
        if type(self.seed) is not int or self.seed < 0:
            raise BadRequest(f"seed is {self.seed!r}; give a whole number of at least 0")
        if not is_number(self.success_at) or self.success_at <= 0:
            raise BadRequest(
                f"success_at is {self.success_at!r}; give the score from which a run succeeds, such as 1.0"
            )

    @property
    def weighted(self) -> tuple[Objective, ...]:
        """The objectives that count: those with a weight above 0."""
        return tuple(objective for objective in self.objectives if objective.weight > 0)

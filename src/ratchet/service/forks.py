"""The body of a request to fork an optimization."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import ConfigDict, Field

from ratchet.service.schemas import Body, ObjectiveBody, Positive, Text, target_values

LIMITS = {"max_calls": "max_calls", "max_usd": "max_usd", "min_improvement_threshold": "min_improvement"}
"""Constraints as a request names them, and as ``Options`` do."""

AS_THEY_ARE: tuple[str, ...] = ("metric", "reflection_lm", "judge_lm", "success_at", "seed", "concurrency", "force")


class ForkLimits(Body):
    """Limits of the new one; what is left out stays as it was."""

    max_optimization_time: Annotated[float | None, Field(gt=0, le=604800, description="Seconds.")] = None
    min_improvement_threshold: Annotated[float | None, Field(ge=0, allow_inf_nan=False)] = None
    max_resource_usage: Annotated[float | None, Field(gt=0, le=1, description="Share of a worker's slots.")] = None
    max_calls: Annotated[int | None, Field(gt=0, le=10_000_000)] = None
    max_usd: Positive | None = None


class ForkBody(Body):
    """What shall be different; what is left out stays as it was. Null takes a limit, or an LM of its own, away."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"from_stage": "search", "seed": 1, "constraints": {"max_calls": 800}}, {}]}
    )
    from_stage: Annotated[
        Text | None,
        Field(description="From this stage on, replies of the first one are not used; left out, all of them are."),
    ] = None
    metric: Text | None = None
    rubric: Annotated[str | None, Field(min_length=1, max_length=20000)] = None
    objectives: Annotated[list[ObjectiveBody] | None, Field(min_length=1, max_length=4)] = None
    algorithms: Annotated[list[Text] | None, Field(min_length=1, max_length=10)] = None
    constraints: ForkLimits = ForkLimits()
    reflection_lm: Text | None = None
    judge_lm: Text | None = None
    success_at: Positive | None = None
    seed: Annotated[int | None, Field(ge=0, lt=2**31)] = None
    concurrency: Annotated[int | None, Field(ge=1, le=1024)] = None
    force: bool | None = None
    priority: Annotated[int, Field(ge=1, le=1000, description="1 goes first.")] = 100

    def changes(self) -> dict[str, Any]:
        """What the desk takes."""
        given, limits = self.model_fields_set, self.constraints
        found = {name: getattr(self, name) for name in AS_THEY_ARE if name in given}
        found = {name: value for name, value in found.items() if value is not None or name.endswith("_lm")}
        if self.metric is not None or self.rubric is not None:  # a metric brings its rubric along, or has none
            found["rubric"] = self.rubric
        if self.objectives is not None:
            found["objectives"] = tuple((each.metric, each.weight) for each in self.objectives)
            found["target_values"] = target_values(self.objectives)
        if self.algorithms is not None:
            found["algorithms"] = tuple(self.algorithms)
        if limits.max_resource_usage is not None:
            found["max_resource_usage"] = limits.max_resource_usage
        if limits.max_optimization_time is not None:
            found["max_minutes"] = limits.max_optimization_time / 60
        for name, option in LIMITS.items():
            value = getattr(limits, name)
            if name in limits.model_fields_set and (value is not None or name != "min_improvement_threshold"):
                found[option] = value
        return found

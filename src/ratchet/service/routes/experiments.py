"""Experiments between versions of a target."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Literal

from fastapi import Response
from pydantic import BaseModel, ConfigDict, Field

from ratchet.core.access import Actor
from ratchet.core.request import MetricName
from ratchet.desk import Desk
from ratchet.service import schemas
from ratchet.service.access import Operator, TheDesk, Viewer
from ratchet.service.routes.frame import PREFIX, Cursor, Limit, new_router
from ratchet.storage.experiments import Arm, Experiment

router = new_router("experiments")


class ArmBody(schemas.Body):
    """One side of an experiment."""

    version: Annotated[schemas.Text | None, Field(description="The id of a version; null: the program as it was kept.")]
    share: Annotated[float, Field(gt=0, lt=1, description="Of the traffic; all shares add up to 1.")]


class NewExperiment(schemas.Body):
    """An experiment."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "target": "sorter",
                    "metric": "quality_score",
                    "arms": [{"version": None, "share": 0.5}, {"version": "5b0c7d1e9f24", "share": 0.5}],
                }
            ]
        }
    )
    target: Annotated[schemas.Text, Field(description="Id or name of a kept target.")]
    metric: MetricName = "quality_score"
    arms: Annotated[list[ArmBody], Field(min_length=2, max_length=10)]


class PerformanceOut(BaseModel):
    """Means over the examples of one split; null where it was not measured."""

    success_rate: float | None
    avg_cost_per_task: float | None
    avg_latency_ms: float | None
    quality_score: float | None
    failed: int | None
    n: int
    split: str | None


class ArmOut(BaseModel):
    """One side of an experiment, with what is known of it."""

    version: str | None
    share: float
    live: Annotated[PerformanceOut | None, Field(description="On live traffic; null: none has come yet.")] = None
    sealed_test: Annotated[PerformanceOut | None, Field(description="On the sealed test that proved this version.")]


class ExperimentOut(BaseModel):
    """An experiment, and what was measured so far."""

    id: str
    target: str
    metric: MetricName
    state: Literal["planned"]
    arms: list[ArmOut]
    created_at: str
    created_by: str

    @classmethod
    def of(cls, experiment: Experiment, desk: Desk, actor: Actor) -> ExperimentOut:
        """As JSON."""
        arms = []
        for arm in experiment.arms:
            measured = desk.measured(actor, arm.version)
            sealed = None if measured is None else PerformanceOut(**asdict(measured))
            arms.append(ArmOut(version=arm.version, share=arm.share, sealed_test=sealed))
        names = set(cls.model_fields) - {"arms"}
        return cls(arms=arms, **{name: getattr(experiment, name) for name in names})


@router.post("/experiments", status_code=201)
def plan(body: NewExperiment, response: Response, desk: TheDesk, actor: Operator) -> ExperimentOut:
    """Plan an experiment; it is stored, and nothing sends it traffic yet."""
    arms = [Arm(version=arm.version, share=arm.share) for arm in body.arms]
    experiment = desk.plan_experiment(actor, target=body.target, metric=body.metric, arms=arms)
    response.headers["Location"] = f"{PREFIX}/experiments/{experiment.id}"
    return ExperimentOut.of(experiment, desk, actor)


@router.get("/experiments")
def experiments(desk: TheDesk, actor: Viewer, cursor: Cursor = None, limit: Limit = 50) -> schemas.Page[ExperimentOut]:
    """Experiments, the newest first."""
    found = desk.experiments.page(actor.tenant, before=schemas.number_of(cursor), limit=limit)
    more = schemas.to_cursor(found[-1][0]) if len(found) == limit else None
    return schemas.Page(items=[ExperimentOut.of(experiment, desk, actor) for _, experiment in found], next=more)


@router.get("/experiments/{identity}")
def experiment(identity: str, desk: TheDesk, actor: Viewer) -> ExperimentOut:
    """One experiment."""
    return ExperimentOut.of(desk.experiments.find(actor.tenant, identity), desk, actor)

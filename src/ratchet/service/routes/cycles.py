"""Cycles and schedules: many optimizations in one request, now or by the clock."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from fastapi import Header, Response
from pydantic import BaseModel, ConfigDict, Field, model_validator

from ratchet.core.errors import BadRequest
from ratchet.desk import Desk
from ratchet.options import Order
from ratchet.service import schemas
from ratchet.service.access import Developer, Operator, TheDesk, Viewer
from ratchet.service.routes.frame import PREFIX, Cursor, Limit, new_router
from ratchet.storage.cycles import Cycle, Member, Overlap, Schedule

router = new_router("cycles")

Name = Annotated[str, Field(max_length=100)]
_CYCLE: dict[str, Any] = {
    "name": "nightly",
    "defaults": {"lm": "openai/gpt-4.1-mini", "constraints": {"max_calls": 400}},
    "optimizations": [
        {"target": {"id": "sorter"}, "data": "mails"},
        {"target": {"id": "sorter"}, "data": "tickets", "metric": "f1"},
    ],
}
_SCHEDULE: dict[str, Any] = {"cron": "30 2 * * mon", "timezone": "Europe/Berlin", "overlap": "skip"}


class Defaults(schemas.OptimizeBody):
    """What requests of a cycle have in common."""

    target: schemas.TargetReference | None = None  # type: ignore[assignment]


class CycleBody(schemas.Body):
    """Many requests to make a program better; what ``defaults`` say holds where one says nothing else."""

    model_config = ConfigDict(json_schema_extra={"examples": [_CYCLE]})
    name: Name = ""
    defaults: Defaults = Defaults()
    optimizations: Annotated[list[schemas.OptimizeBody], Field(min_length=1, max_length=200)]

    @model_validator(mode="before")
    @classmethod
    def with_defaults(cls, given: Any) -> Any:
        """Give each request what it does not say itself."""
        if not isinstance(given, Mapping):
            return given
        defaults, asked = given.get("defaults") or {}, given.get("optimizations")
        if not isinstance(defaults, Mapping) or not isinstance(asked, Sequence) or isinstance(asked, str):
            return given
        full = [{**_merged(defaults, each)} if isinstance(each, Mapping) else each for each in asked]
        return {**given, "optimizations": full}

    def orders(self) -> list[Order]:
        """What the desk takes."""
        return [_order(each) for each in self.optimizations]


class ScheduleBody(schemas.Body):
    """A cycle, or one optimization, that comes back by the clock."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"name": "nightly", **_SCHEDULE, "cycle": _CYCLE},
                {
                    **_SCHEDULE,
                    "optimization": {"target": {"id": "sorter"}, "data": "mails", "lm": "openai/gpt-4.1-mini"},
                },
            ]
        }
    )
    name: Name = ""
    cron: Annotated[str, Field(min_length=9, max_length=100, description="Minute, hour, day, month, day of the week.")]
    timezone: Annotated[str, Field(min_length=1, max_length=64)] = "UTC"
    overlap: Annotated[
        Overlap, Field(description="When the last cycle still runs: leave out, or begin afterwards.")
    ] = "skip"
    cycle: CycleBody | None = None
    optimization: schemas.OptimizeBody | None = None

    def orders(self) -> list[Order]:
        """What the desk takes.

        Raises:
            BadRequest: neither a cycle nor an optimization is given, or both are.
        """
        if self.optimization is not None and self.cycle is None:
            return [_order(self.optimization)]
        if self.cycle is not None and self.optimization is None:
            return self.cycle.orders()
        raise BadRequest("give cycle or optimization, one of them", field="cycle")


class MemberOut(BaseModel):
    """An optimization of a cycle."""

    position: int
    id: str
    target: str
    status: str
    reason: str

    @classmethod
    def of(cls, member: Member) -> MemberOut:
        """As JSON."""
        return cls(**{name: getattr(member, name) for name in cls.model_fields})


class CycleOut(BaseModel):
    """A cycle."""

    id: str
    name: str
    status: Annotated[str, Field(description="`running`, or `completed` when all optimizations have come to rest.")]
    size: int
    statuses: Annotated[dict[str, int], Field(description="How many optimizations stand how.")]
    schedule: Annotated[str | None, Field(description="The schedule that asked for it.")]
    created_at: str
    created_by: str
    completed_at: str | None
    optimizations: list[MemberOut] | None = None

    @classmethod
    def of(cls, cycle: Cycle, members: Sequence[Member] | None = None) -> CycleOut:
        """As JSON."""
        names = set(cls.model_fields) - {"status", "statuses", "optimizations"}
        return cls(
            **{name: getattr(cycle, name) for name in names},
            status="running" if cycle.completed_at is None else "completed",
            statuses=dict(cycle.statuses),
            optimizations=None if members is None else [MemberOut.of(member) for member in members],
        )


class ScheduleOut(BaseModel):
    """A schedule."""

    id: str
    name: str
    cron: str
    timezone: str
    overlap: Overlap
    paused: bool
    optimizations: Annotated[int, Field(description="How many a cycle has.")]
    next_at: Annotated[str | None, Field(description="When the next cycle begins; null while it is paused.")]
    last_tick: Annotated[str | None, Field(description="The newest time that is done with.")]
    last_cycle: str | None
    outcome: Annotated[str, Field(description="What came of that time.")]
    created_at: str
    created_by: str

    @classmethod
    def of(cls, schedule: Schedule, desk: Desk) -> ScheduleOut:
        """As JSON."""
        names = set(cls.model_fields) - {"optimizations", "next_at"}
        next_at = desk.batch.next_at(schedule)
        return cls(
            **{name: getattr(schedule, name) for name in names},
            optimizations=len(schedule.orders),
            next_at=None if next_at is None else next_at.isoformat(),
        )


@router.post("/cycles", status_code=202)
def start(
    body: CycleBody,
    response: Response,
    desk: TheDesk,
    actor: Developer,
    repeat_key: Annotated[str | None, Header(alias="Idempotency-Key", min_length=1, max_length=200)] = None,
) -> CycleOut:
    """Begin many optimizations: all of them, or none when one cannot be carried out."""
    cycle = desk.batch.start(actor, body.orders(), name=body.name, repeat_key=repeat_key)
    response.headers["Location"] = f"{PREFIX}/cycles/{cycle.id}"
    return CycleOut.of(cycle, desk.batch.cycles.members(actor.tenant, cycle.id))


@router.get("/cycles")
def cycles(desk: TheDesk, actor: Viewer, cursor: Cursor = None, limit: Limit = 50) -> schemas.Page[CycleOut]:
    """Cycles, the newest first."""
    found = desk.batch.cycles.page(actor.tenant, before=schemas.number_of(cursor), limit=limit)
    more = schemas.to_cursor(found[-1][0]) if len(found) == limit else None
    return schemas.Page(items=[CycleOut.of(cycle) for _, cycle in found], next=more)


@router.get("/cycles/{identity}")
def cycle(identity: str, desk: TheDesk, actor: Viewer) -> CycleOut:
    """One cycle: how many of its optimizations stand how, and each of them."""
    found = desk.batch.cycles.find(actor.tenant, identity)
    return CycleOut.of(found, desk.batch.cycles.members(actor.tenant, identity))


@router.post("/cycles/{identity}/cancel", status_code=202)
def cancel(identity: str, desk: TheDesk, actor: Developer) -> CycleOut:
    """Stop all its optimizations that have not come to rest, soon."""
    found = desk.batch.cancel(actor, identity)
    return CycleOut.of(found, desk.batch.cycles.members(actor.tenant, identity))


@router.post("/schedules", status_code=201)
def add(body: ScheduleBody, response: Response, desk: TheDesk, actor: Operator) -> ScheduleOut:
    """Have a cycle, or one optimization, begun by the clock; a name stands for the newest version at that time."""
    schedule = desk.batch.add(
        actor, body.orders(), name=body.name, cron=body.cron, timezone=body.timezone, overlap=body.overlap
    )
    response.headers["Location"] = f"{PREFIX}/schedules/{schedule.id}"
    return ScheduleOut.of(schedule, desk)


@router.get("/schedules")
def schedules(desk: TheDesk, actor: Operator, cursor: Cursor = None, limit: Limit = 50) -> schemas.Page[ScheduleOut]:
    """Schedules, the newest first."""
    found = desk.batch.schedules.page(actor.tenant, before=schemas.number_of(cursor), limit=limit)
    more = schemas.to_cursor(found[-1][0]) if len(found) == limit else None
    return schemas.Page(items=[ScheduleOut.of(schedule, desk) for _, schedule in found], next=more)


@router.get("/schedules/{identity}")
def schedule(identity: str, desk: TheDesk, actor: Operator) -> ScheduleOut:
    """One schedule, and what came of it last."""
    return ScheduleOut.of(desk.batch.schedules.find(actor.tenant, identity), desk)


@router.delete("/schedules/{identity}", status_code=204)
def remove(identity: str, desk: TheDesk, actor: Operator) -> None:
    """Begin no more cycles; those that were begun go on."""
    desk.batch.remove(actor, identity)


@router.post("/schedules/{identity}/pause")
def pause(identity: str, desk: TheDesk, actor: Operator) -> ScheduleOut:
    """Begin no cycles for now."""
    return ScheduleOut.of(desk.batch.switch(actor, identity, paused=True), desk)


@router.post("/schedules/{identity}/resume")
def resume(identity: str, desk: TheDesk, actor: Operator) -> ScheduleOut:
    """Go on with the next time; what was left out meanwhile is not caught up with."""
    return ScheduleOut.of(desk.batch.switch(actor, identity, paused=False), desk)


def _merged(defaults: Mapping[str, Any], asked: Mapping[str, Any]) -> dict[str, Any]:
    """``asked``, with ``defaults`` where it says nothing; in ``constraints`` limit by limit."""
    merged = {**defaults, **asked}
    limits = defaults.get("constraints"), asked.get("constraints")
    if all(isinstance(each, Mapping) for each in limits):
        merged["constraints"] = {**limits[0], **limits[1]}  # type: ignore[dict-item]
    return merged


def _order(body: schemas.OptimizeBody) -> Order:
    return Order(options=body.options(), target=body.chosen_target(), data=body.sets(), priority=body.priority)

"""How optimizations went, from what is stored of them."""

from __future__ import annotations

from dataclasses import asdict
from datetime import UTC, timedelta
from typing import Annotated, Literal

from fastapi import Query
from pydantic import AwareDatetime, BaseModel, BeforeValidator

from ratchet.core.errors import BadRequest
from ratchet.service.access import TheDesk, Viewer
from ratchet.service.routes.frame import new_router

router = new_router("analytics")

RECENT = timedelta(days=30)


def _a_date(value: str) -> str:
    """Refuse a number: Pydantic would take it for seconds, or milliseconds, since 1970."""
    if "-" not in value.lstrip("-"):
        raise ValueError("give a time such as 2026-01-31T12:00:00Z")
    return value


Time = Annotated[AwareDatetime, BeforeValidator(_a_date)]


class MeanOut(BaseModel):
    """A mean and over how many; null over none."""

    mean: float | None
    n: int


class TotalsOut(BaseModel):
    """What was spent in all; null dollars when a price is not known."""

    calls: int
    prompt_tokens: int
    completion_tokens: int
    usd: float | None
    seconds: float


class QuantilesOut(BaseModel):
    """Milliseconds of program runs; null over none."""

    p50: float | None
    p90: float | None
    p99: float | None
    n: int


class FiguresOut(BaseModel):
    """How the optimizations of one target by one algorithm went in one window."""

    target: str
    algorithm: str
    window: str | None
    optimizations: int
    improved: MeanOut
    improvement_percentage: MeanOut
    spend: TotalsOut
    latency_ms: QuantilesOut


class AnalyticsOut(BaseModel):
    """Figures, and of which time."""

    since: str
    until: str
    figures: list[FiguresOut]


@router.get("/analytics/performance")
def performance(
    desk: TheDesk,
    actor: Viewer,
    since: Annotated[Time | None, Query(description="30 days before `until` if left out.")] = None,
    until: Annotated[Time | None, Query(description="Now if left out.")] = None,
    target: Annotated[str | None, Query(max_length=100, description="The name of a target.")] = None,
    algorithm: Annotated[str | None, Query(max_length=500, description="As asked for; `+` between several.")] = None,
    window: Annotated[Literal["all", "month", "day"], Query(description="In one, or by month or day.")] = "all",
) -> AnalyticsOut:
    """How many optimizations proved a gain, how much it was, what was spent, and how long program runs took."""
    try:
        end = (until or desk.clock() + timedelta(seconds=1)).astimezone(UTC)
        begin = (since or end - RECENT).astimezone(UTC)
    except OverflowError as error:
        raise BadRequest("since or until is at the end of all time; give one nearer to now", field="since") from error
    found = desk.performance(actor, since=begin, until=end, target=target, algorithm=algorithm, window=window)
    answers = [FiguresOut.model_validate(asdict(each)) for each in found]
    return AnalyticsOut(since=begin.isoformat(), until=end.isoformat(), figures=answers)

"""Lessons: what optimizations taught, and the next ones begin with."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from ratchet.core.lesson import Lesson, WarmStart
from ratchet.service import schemas
from ratchet.service.access import Operator, TheDesk, Viewer
from ratchet.service.routes.frame import Cursor, Limit, new_router
from ratchet.storage.lessons import place_of

router = new_router("lessons")


class FeaturesOut(BaseModel):
    """What the task was like; null where it was not measured."""

    train: int
    validation: int
    predictors: int
    output: Annotated[str, Field(description="`choice`, `value` or `text`.")]
    inputs: list[str]
    outputs: list[str]
    lm: str
    headroom: float | None
    noise: float | None


class BoughtOut(BaseModel):
    """An edit, and the validation gain that is lost without it; null where that was not measured."""

    edit: str
    gain: float | None
    interval: tuple[float, float] | None
    n: int


class AlgorithmProgressOut(BaseModel):
    """How far an algorithm carried the best validation mean, and with how many runs."""

    algorithm: str
    runs: int
    gain: float


class LessonOut(BaseModel):
    """What one optimization taught, without the text of any example unless that was allowed."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "id": "1a2b3c4d5e6f",
                    "tenant": "default",
                    "created_at": "2026-01-01T00:00:00+00:00",
                    "features": {
                        "train": 40,
                        "validation": 40,
                        "predictors": 1,
                        "output": "choice",
                        "inputs": ["text"],
                        "outputs": ["label"],
                        "lm": "openai/gpt-4.1-mini",
                        "headroom": 0.5,
                        "noise": None,
                    },
                    "status": "improved",
                    "warm_start": "nothing known",
                    "baseline": 0.5,
                    "validation_gain": 0.25,
                    "gain": 0.22,
                    "bought": [{"edit": "self: 2 demos added", "gain": 0.1, "interval": [0.02, 0.2], "n": 40}],
                    "progress": [{"algorithm": "gepa", "runs": 240, "gain": 0.25}],
                    "failures": {"unparseable": 3},
                    "instructions": {"self": "Sort the message."},
                    "demos": {},
                    "calls": 286,
                    "usd": None,
                    "seconds": 41.5,
                }
            ]
        }
    )
    id: Annotated[str, Field(description="That of the optimization.")]
    tenant: str
    created_at: str
    features: FeaturesOut
    status: str
    warm_start: Annotated[WarmStart, Field(description="Whether it used earlier lessons itself.")]
    baseline: float | None
    validation_gain: float | None
    gain: Annotated[float | None, Field(description="On the sealed test; null where it was not measured.")]
    bought: list[BoughtOut]
    progress: list[AlgorithmProgressOut]
    failures: Annotated[dict[str, int], Field(description="Runs that failed, by kind.")]
    instructions: dict[str, str]
    demos: dict[str, list[dict[str, Any]]]
    calls: int
    usd: float | None
    seconds: float

    @classmethod
    def of(cls, lesson: Lesson) -> LessonOut:
        """As JSON."""
        return cls.model_validate(lesson.to_json())


@router.get("/lessons")
def lessons(desk: TheDesk, actor: Viewer, cursor: Cursor = None, limit: Limit = 50) -> schemas.Page[LessonOut]:
    """Lessons, the newest first."""
    before = None
    if cursor is not None:
        at, identity = schemas.of_cursor(cursor, 2)
        before = (at, identity)
    found = desk.lessons.lessons(actor.tenant, limit=limit, before=before)
    more = schemas.to_cursor(*place_of(found[-1])) if len(found) == limit else None
    return schemas.Page(items=[LessonOut.of(each) for each in found], next=more)


@router.get("/lessons/{identity}")
def lesson(identity: str, desk: TheDesk, actor: Viewer) -> LessonOut:
    """What one optimization taught: the task, what each edit bought, what each algorithm brought, kept prompts."""
    return LessonOut.of(desk.lesson(actor, identity))


@router.delete("/lessons/{identity}", status_code=204)
def forget(identity: str, desk: TheDesk, actor: Operator) -> None:
    """Forget it for good; the optimization that taught it stays, and so does the audit entry."""
    desk.eraser.lesson(actor, identity)

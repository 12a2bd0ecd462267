"""Versions: proven winners, one of them the champion of its target."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import Query, Response
from pydantic import BaseModel, ConfigDict, JsonValue

from ratchet.desk import FILES
from ratchet.service import schemas
from ratchet.service.access import Operator, TheDesk, Viewer
from ratchet.service.routes.frame import CHANGED, Cursor, Limit, new_router
from ratchet.service.tags import Expected
from ratchet.storage.versions import Version

router = new_router("versions")

EXAMPLE: dict[str, JsonValue] = {
    "id": "5b0c7d1e9f24",
    "target": "sorter",
    "version": 2,
    "optimization": "c0ffee123456",
    "candidate": "0123456789abcdef",
    "state": "challenger",
    "created_at": "2026-01-01T00:00:00+00:00",
    "created_by": "worker machine-1-abc",
}


class VersionOut(BaseModel):
    """A candidate that was registered for a target."""

    model_config = ConfigDict(json_schema_extra={"examples": [EXAMPLE]})

    id: str
    target: str
    version: int
    optimization: str
    candidate: str
    state: Literal["challenger", "champion", "history"]
    created_at: str
    created_by: str

    @classmethod
    def of(cls, version: Version) -> VersionOut:
        """As JSON."""
        names = set(cls.model_fields) - {"optimization"}
        return cls(optimization=version.optimization_id, **{name: getattr(version, name) for name in names})


class ChampionOut(BaseModel):
    """What a target uses now."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"target": "sorter", "champion": None}]})

    target: str
    champion: VersionOut | None
    """None: the program as it was kept."""


@router.get("/versions")
def versions(
    desk: TheDesk,
    actor: Viewer,
    cursor: Cursor = None,
    limit: Limit = 50,
    target: Annotated[str | None, Query(max_length=100, description="The name of a target.")] = None,
) -> schemas.Page[VersionOut]:
    """Versions, the newest first."""
    found = desk.versions.page(actor.tenant, before=schemas.number_of(cursor), limit=limit, target=target)
    more = schemas.to_cursor(found[-1][0]) if len(found) == limit else None
    return schemas.Page(items=[VersionOut.of(version) for _, version in found], next=more)


@router.get("/versions/{identity}")
def version(identity: str, response: Response, desk: TheDesk, actor: Viewer) -> VersionOut:
    """One version; its ETag changes whenever the champion of its target does."""
    found = desk.versions.find(actor.tenant, identity)
    response.headers["ETag"] = found.tag
    return VersionOut.of(found)


@router.get(
    "/versions/{identity}/program",
    response_class=Response,
    responses={200: {"content": {"application/json": {}}, "description": "Plain `dspy.Module.load` reads it."}},
)
def program(identity: str, desk: TheDesk, actor: Viewer) -> Response:
    """The program that this version is."""
    found = desk.versions.find(actor.tenant, identity)
    content = desk.jobs.file(actor.tenant, found.optimization_id, FILES["program"])
    return Response(content, media_type="application/json", headers={"X-Content-Type-Options": "nosniff"})


@router.post("/versions/{identity}/promote", responses=CHANGED)
def promote(identity: str, response: Response, desk: TheDesk, actor: Operator, expected: Expected) -> VersionOut:
    """Make it the champion of its target; send `If-Match` so that nobody else's change is overridden unseen."""
    found = desk.versions.promote(actor, identity, expected=expected)
    response.headers["ETag"] = found.tag
    return VersionOut.of(found)


@router.post("/versions/{identity}/rollback", responses=CHANGED)
def rollback(identity: str, desk: TheDesk, actor: Operator, expected: Expected) -> ChampionOut:
    """Take this champion back: what was there before it is in use again."""
    taken_back = desk.versions.find(actor.tenant, identity)
    champion = desk.versions.rollback(actor, identity, expected=expected)
    return ChampionOut(target=taken_back.target, champion=None if champion is None else VersionOut.of(champion))

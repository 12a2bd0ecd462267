"""What the routes have in common."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query

from ratchet.service import problems, schemas
from ratchet.service.tags import TaggedRoute

PREFIX = "/api/v1"
Cursor = Annotated[str | None, Query(max_length=200, description="The `next` of an earlier page.")]
Limit = Annotated[int, Query(ge=1, le=500)]


def _problems(*codes: int) -> dict[int | str, dict[str, Any]]:
    return {
        code: {"model": schemas.ProblemOut, "content": {problems.MEDIA_TYPE: {}}, "description": problems.TITLES[code]}
        for code in codes
    }


_PROBLEMS = _problems(400, 401, 403, 404, 409, 413, 422, 429, 503)
CHANGED = _problems(412)
"""For routes that take `If-Match`."""


def new_router(tag: str) -> APIRouter:
    """A router of API v1; its routes stand under ``tag`` in the OpenAPI document."""
    return APIRouter(prefix=PREFIX, tags=[tag], responses=_PROBLEMS, route_class=TaggedRoute)

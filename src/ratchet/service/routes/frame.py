"""The frame of every route: its prefix, its tag, how pages are asked for."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query

from ratchet.service import problems, schemas
from ratchet.service.tags import TaggedRoute

PREFIX = "/api/v1"
Cursor = Annotated[str | None, Query(max_length=200, description="The `next` of an earlier page.")]
Limit = Annotated[int, Query(ge=1, le=500)]


def refusals(*codes: int) -> dict[int | str, dict[str, Any]]:
    """How the OpenAPI document tells of problems with these statuses."""
    return {code: {"model": schemas.ProblemOut, "description": problems.TITLES[code]} for code in codes}


_PROBLEMS = refusals(400, 401, 403, 404, 408, 409, 413, 422, 429, 503)
CHANGED = refusals(412)
"""For routes that take `If-Match`."""


def new_router(tag: str) -> APIRouter:
    """A router of API v1; its routes stand under ``tag`` in the OpenAPI document."""
    return APIRouter(prefix=PREFIX, tags=[tag], responses=_PROBLEMS, route_class=TaggedRoute)

"""Targets: kept, versioned."""

from __future__ import annotations

from fastapi import Response

from ratchet.service import schemas
from ratchet.service.access import Developer, Operator, TheDesk, Viewer
from ratchet.service.routes.frame import PREFIX, Cursor, Limit, new_router

router = new_router("targets")


@router.post(
    "/targets",
    status_code=201,
    responses={200: {"model": schemas.TargetOut, "description": "It is there already."}},
)
def keep_target(body: schemas.NewTarget, response: Response, desk: TheDesk, actor: Developer) -> schemas.TargetOut:
    """Keep a target: an inline signature, a saved program, or an import path that an operator allows."""
    target, new = desk.keep_target(actor, body.name, body.spec())
    response.status_code = 201 if new else 200
    response.headers["Location"] = f"{PREFIX}/targets/{target.id}"
    return schemas.TargetOut.of(target)


@router.get("/targets")
def targets(desk: TheDesk, actor: Viewer, cursor: Cursor = None, limit: Limit = 50) -> schemas.Page[schemas.TargetOut]:
    """Targets in all versions, the newest first."""
    found = desk.shelf.targets(actor.tenant, before=schemas.number_of(cursor), limit=limit)
    more = schemas.to_cursor(found[-1][0]) if len(found) == limit else None
    return schemas.Page(items=[schemas.TargetOut.of(target) for _, target in found], next=more)


@router.get("/targets/{reference}")
def target(reference: str, desk: TheDesk, actor: Viewer) -> schemas.TargetOut:
    """One target, by id, NAME (its newest version) or NAME@VERSION."""
    return schemas.TargetOut.of(desk.shelf.target(actor.tenant, reference))


@router.delete("/targets/{reference}", status_code=204)
def erase_target(reference: str, desk: TheDesk, actor: Operator) -> None:
    """Erase one version for good; its number is not given again. The audit entry stays."""
    desk.eraser.target(actor, reference)

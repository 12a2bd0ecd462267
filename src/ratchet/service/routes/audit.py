"""The audit trail."""

from __future__ import annotations

from typing import Annotated, Any, cast

from fastapi import Query
from pydantic import BaseModel, ConfigDict, Field

from ratchet.core.errors import TrailBroken
from ratchet.service import schemas
from ratchet.service.access import Operator, TheDesk
from ratchet.service.routes.frame import Cursor, Limit, new_router

router = new_router("audit")

_HOLDS: dict[str, Any] = {"holds": True, "number": 17, "hash": "9f86d081884c7d65" * 4, "broken": None, "reason": ""}
_BROKEN: dict[str, Any] = {
    "holds": False,
    "number": None,
    "hash": None,
    "broken": 12,
    "reason": "entry 12 of the audit trail was changed",
}


class VerificationOut(BaseModel):
    """Whether the audit trail, of all tenants, holds as it was written."""

    model_config = ConfigDict(json_schema_extra={"examples": [_HOLDS, _BROKEN]})
    holds: bool
    number: Annotated[int | None, Field(description="That of this tenant's newest entry, if the trail holds.")]
    hash: Annotated[str | None, Field(description="Its hash, to be noted down elsewhere; it binds all before it.")]
    broken: Annotated[int | None, Field(description="The number of the first entry that does not hold.")]
    reason: Annotated[str, Field(description="What is wrong with it.")]


@router.get("/audit")
def audit(desk: TheDesk, actor: Operator, cursor: Cursor = None, limit: Limit = 50) -> schemas.Page[schemas.EntryOut]:
    """The audit trail of this tenant, the newest entry first."""
    entries = desk.audit.entries(actor.tenant, before=schemas.number_of(cursor), limit=limit)
    more = schemas.to_cursor(entries[-1].number) if len(entries) == limit else None
    return schemas.Page(items=[schemas.EntryOut.of(entry) for entry in entries], next=more)


@router.get("/audit/verification")
def verification(
    desk: TheDesk,
    actor: Operator,
    expected: Annotated[
        str | None, Query(pattern="^[0-9a-f]{64}$", description="A hash that was noted down; it must be there.")
    ] = None,
) -> VerificationOut:
    """Read the whole trail, and check that no entry was edited, removed, added or moved.

    The trail is one chain over all tenants; of the others' entries no more is told than that one does not hold.
    """
    try:
        newest = desk.verify_trail(actor, expected=expected)
    except TrailBroken as error:
        broken = cast(int | None, error.values.get("number"))
        return VerificationOut(holds=False, number=None, hash=None, broken=broken, reason=str(error))
    return VerificationOut(
        holds=True,
        number=None if newest is None else newest.number,
        hash=None if newest is None else newest.hash,
        broken=None,
        reason="",
    )

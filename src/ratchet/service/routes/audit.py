"""The audit trail."""

from __future__ import annotations

from ratchet.service import schemas
from ratchet.service.access import Operator, TheDesk
from ratchet.service.routes.frame import Cursor, Limit, new_router

router = new_router("audit")


@router.get("/audit")
def audit(desk: TheDesk, actor: Operator, cursor: Cursor = None, limit: Limit = 50) -> schemas.Page[schemas.EntryOut]:
    """The audit trail of this tenant, the newest entry first."""
    entries = desk.audit.entries(actor.tenant, before=schemas.number_of(cursor), limit=limit)
    more = schemas.to_cursor(entries[-1].number) if len(entries) == limit else None
    return schemas.Page(items=[schemas.EntryOut.of(entry) for entry in entries], next=more)

"""API keys of the tenant: made, listed and revoked by its admins."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated, Any

from fastapi import Response
from pydantic import BaseModel, ConfigDict, Field

from ratchet.core.access import Role
from ratchet.service import schemas
from ratchet.service.access import Admin, TheDesk
from ratchet.service.routes.frame import Cursor, Limit, new_router
from ratchet.storage.keys import Key

router = new_router("keys")

_OUT: dict[str, Any] = {
    "id": "0a1b2c3d4e5f",
    "name": "ci",
    "tenant": "default",
    "role": "developer",
    "created_at": "2026-01-01T00:00:00+00:00",
    "created_by": "key 5f4e3d2c1b0a (ops)",
    "expires_at": "2026-01-31T00:00:00+00:00",
    "revoked_at": None,
    "requests_per_minute": None,
}


class NewKey(schemas.Body):
    """A key to make, for the tenant of whoever asks."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"name": "ci", "role": "developer", "days": 30}]})
    name: Annotated[str, Field(min_length=1, max_length=100, description="What it is for.")]
    role: Role = "developer"
    days: Annotated[float | None, Field(gt=0, le=36500, description="Days until it expires; never if left out.")] = None
    requests_per_minute: Annotated[
        int | None, Field(ge=1, lt=2**31, description="What it may ask; what every key may if left out.")
    ] = None


class KeyOut(BaseModel):
    """What is known of a key; its text is not told again."""

    model_config = ConfigDict(json_schema_extra={"examples": [_OUT]})
    id: str
    name: str
    tenant: str
    role: Role
    created_at: str
    created_by: str
    expires_at: Annotated[str | None, Field(description="When it ends by itself; null for never.")]
    revoked_at: Annotated[str | None, Field(description="When it was taken back.")]
    requests_per_minute: int | None

    @classmethod
    def of(cls, key: Key) -> KeyOut:
        """As JSON."""
        return cls(**_of(key))


class CreatedKey(KeyOut):
    """A new key, with its text; it is shown only now."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{**_OUT, "key": "rk_0a1b2c3d4e5f_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"}]}
    )
    key: str


@router.post("/keys", status_code=201)
def create(body: NewKey, response: Response, desk: TheDesk, actor: Admin) -> CreatedKey:
    """Make a key for this tenant; its text in the answer is shown only now.

    `Idempotency-Key` is not heeded: to give the same answer again, the text would have to be kept, and here only its
    hash is. Whoever asks twice has two keys; one whose answer was lost is held by nobody, and is best revoked.
    """
    expires_at = None if body.days is None else desk.clock() + timedelta(days=body.days)
    key, text = desk.keys.create(
        actor,
        name=body.name,
        tenant=actor.tenant,
        role=body.role,
        expires_at=expires_at,
        requests_per_minute=body.requests_per_minute,
    )
    response.headers["Cache-Control"] = "no-store"
    return CreatedKey(**_of(key), key=text)


@router.get("/keys")
def keys(desk: TheDesk, actor: Admin, cursor: Cursor = None, limit: Limit = 50) -> schemas.Page[KeyOut]:
    """The keys of this tenant, the oldest first, with those that expired or were revoked."""
    after = None
    if cursor is not None:
        at, identity = schemas.of_cursor(cursor, 2)
        after = (at, identity)
    found = desk.keys.list(tenant=actor.tenant, after=after, limit=limit)
    more = schemas.to_cursor(found[-1].created_at, found[-1].id) if len(found) == limit else None
    return schemas.Page(items=[KeyOut.of(key) for key in found], next=more)


@router.delete("/keys/{identity}")
def revoke(identity: str, desk: TheDesk, actor: Admin) -> KeyOut:
    """Take a key of this tenant back, at once and for good; it stays in the list, as revoked."""
    return KeyOut.of(desk.keys.revoke(actor, identity, tenant=actor.tenant))


def _of(key: Key) -> dict[str, Any]:
    return {name: getattr(key, name) for name in KeyOut.model_fields}

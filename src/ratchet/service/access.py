"""Who asks: the key of a request, and what it may do."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import Depends
from fastapi.security import APIKeyHeader, HTTPBearer
from starlette.requests import HTTPConnection

from ratchet.core.access import Actor, Role, allows
from ratchet.core.errors import Denied, TooMany
from ratchet.desk import Desk
from ratchet.service.problems import Unauthenticated
from ratchet.service.rates import Rates
from ratchet.service.tokens import Tokens
from ratchet.storage.keys import PREFIX

_BEARER = HTTPBearer(
    auto_error=False, description="A key from `ratchet keys create`, or a token of the identity provider."
)
_HEADER = APIKeyHeader(name="X-API-Key", auto_error=False, description="A key from `ratchet keys create`.")


def desk_of(connection: HTTPConnection) -> Desk:
    """The desk that the app was made for."""
    found = connection.app.state.desk
    assert isinstance(found, Desk)
    return found


async def _desk(connection: HTTPConnection) -> Desk:
    return desk_of(connection)  # one that is not async would cost a thread


def actor_of(connection: HTTPConnection, role: Role) -> Actor:
    """Whoever asks.

    Raises:
        Unauthenticated: no key was given, or none that holds.
        Denied: the key's role is not enough.
        TooMany: the key made too many requests.
    """
    desk = desk_of(connection)
    scheme, _, bearer = connection.headers.get("authorization", "").partition(" ")
    text = bearer.strip() if scheme.lower() == "bearer" else connection.headers.get("x-api-key", "")
    if not text:
        raise Unauthenticated("no key was given; send it as 'Authorization: Bearer KEY' or 'X-API-Key: KEY'")
    origin = connection.client.host if connection.client else "unknown"
    tokens: Tokens | None = connection.app.state.tokens
    rate = desk.settings.key_rate
    if tokens is not None and not text.startswith(PREFIX):
        actor = tokens.actor(text, origin=origin)
    elif (key := desk.keys.find(text, now=desk.clock())) is not None:
        rate = key.requests_per_minute or rate
        actor = Actor(name=f"key {key.id} ({key.name})", tenant=key.tenant, role=key.role, origin=origin)
    else:
        actor = None
    if actor is None:
        raise Unauthenticated("this key is not known, has expired or was revoked; `ratchet keys create` makes one")
    _count(connection, actor, rate)
    if not allows(actor.role, role):
        raise Denied(f"this takes the role {role}, and {actor.name} is of a {actor.role}; ask for another key")
    return actor


def _count(connection: HTTPConnection, actor: Actor, rate: int) -> None:
    rates: Rates = connection.app.state.rates
    try:
        connection.state.grant = rates.take(f"{actor.tenant} {actor.name}", rate)
    except TooMany as error:
        connection.state.grant = error.values["grant"]
        raise


def needs(role: Role) -> Any:
    """A dependency: whoever asks, when their role is at least ``role``."""

    def actor(
        connection: HTTPConnection, _bearer: Annotated[Any, Depends(_BEARER)], _header: Annotated[Any, Depends(_HEADER)]
    ) -> Actor:
        return actor_of(connection, role)

    actor.role = role  # type: ignore[attr-defined]
    return Depends(actor)


Viewer = Annotated[Actor, needs("viewer")]
Developer = Annotated[Actor, needs("developer")]
Operator = Annotated[Actor, needs("operator")]
Admin = Annotated[Actor, needs("admin")]
TheDesk = Annotated[Desk, Depends(_desk)]

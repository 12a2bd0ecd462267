"""Does on a server what ``house`` does here: keys and the audit trail."""

from __future__ import annotations

from ratchet.cli.remote.connection import check_tenant, client_of
from ratchet.client import Json
from ratchet.core.errors import TrailBroken
from ratchet.settings import Settings


def create_key(name: str, *, role: str, tenant: str, days: float | None, rate: int | None, settings: Settings) -> Json:
    """A new key of the own tenant, with its text."""
    check_tenant(tenant)
    with client_of(settings) as client:
        return client.create_key(name, role=role, days=days, requests_per_minute=rate)


def keys(settings: Settings) -> list[Json]:
    """The keys of the own tenant."""
    with client_of(settings) as client:
        return [*client.keys()]


def verify_trail(expected: str | None, settings: Settings) -> Json:
    """The newest entry of the own tenant, after the trail was checked.

    Raises:
        TrailBroken: it does not hold.
    """
    with client_of(settings) as client:
        told = client.verify_audit(expected=expected)
    if not told["holds"]:
        raise TrailBroken(told["reason"], number=told["broken"])
    return {name: told[name] for name in ("holds", "number", "hash")}


def revoke_key(identity: str, settings: Settings) -> Json:
    """A key of the own tenant, taken back."""
    with client_of(settings) as client:
        return client.revoke_key(identity)

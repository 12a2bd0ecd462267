"""What the commands about keys and the audit trail ask on this machine; ``remote`` asks a server the same."""

from __future__ import annotations

from dataclasses import asdict
from datetime import timedelta

from ratchet.bootstrap import open_desk
from ratchet.calls import Json
from ratchet.service.serve import here
from ratchet.settings import Settings


def create_key(name: str, *, role: str, tenant: str, days: float | None, rate: int | None, settings: Settings) -> Json:
    """A new key, with its text."""
    desk = open_desk(settings)
    key, text = desk.keys.create(
        here("ratchet keys"),
        name=name,
        tenant=tenant,
        role=role,
        expires_at=None if days is None else desk.clock() + timedelta(days=days),
        requests_per_minute=rate,
    )
    return {**asdict(key), "key": text}


def keys(settings: Settings) -> list[Json]:
    """The keys of all tenants."""
    return [asdict(key) for key in open_desk(settings).keys.list()]


def verify_trail(expected: str | None, settings: Settings) -> Json:
    """The newest entry, after the trail was checked."""
    return {"holds": True, **asdict(open_desk(settings).audit.verify(expected=expected))}


def revoke_key(identity: str, settings: Settings) -> Json:
    """A key, taken back."""
    return asdict(open_desk(settings).keys.revoke(here("ratchet keys"), identity))

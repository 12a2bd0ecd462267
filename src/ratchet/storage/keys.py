"""API keys: shown once, stored as hashes."""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from dataclasses import dataclass
from datetime import UTC, datetime

import sqlalchemy as sa

from ratchet.core.access import ROLES, Actor, Role
from ratchet.core.errors import BadRequest, Missing
from ratchet.storage.audit import Audited

metadata = sa.MetaData()

api_keys = sa.Table(
    "api_keys",
    metadata,
    sa.Column("id", sa.String(16), primary_key=True),
    sa.Column("name", sa.String(100), nullable=False),
    sa.Column("tenant", sa.String(64), nullable=False, index=True),
    sa.Column("role", sa.String(16), nullable=False),
    sa.Column("hash", sa.String(64), nullable=False),
    sa.Column("created_at", sa.String(32), nullable=False),
    sa.Column("created_by", sa.String(200), nullable=False),
    sa.Column("expires_at", sa.String(32)),
    sa.Column("revoked_at", sa.String(32)),
    sa.Column("requests_per_minute", sa.Integer),
)

TENANT = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
PREFIX = "rk"
"""How every key begins, so that a scanner for leaked secrets can find it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """What is known of a key; its secret half is not.

    Attributes:
        expires_at: When it ends by itself; None for never.
        revoked_at: When it was taken back.
        requests_per_minute: What it may ask; None for what every key may.
    """

    id: str
    name: str
    tenant: str
    role: Role
    created_at: str
    created_by: str
    expires_at: str | None
    revoked_at: str | None
    requests_per_minute: int | None = None


class Keys(Audited):
    """All keys."""

    tables = (metadata,)

    def create(
        self,
        actor: Actor,
        *,
        name: str,
        tenant: str,
        role: str,
        expires_at: datetime | None = None,
        requests_per_minute: int | None = None,
    ) -> tuple[Key, str]:
        """A new key, and its text; nobody can tell the text again.

        Raises:
            BadRequest: the role, the tenant or the name cannot be used.
        """
        if role not in ROLES:
            raise BadRequest(f"role is {role!r}; choose from {', '.join(ROLES)}", field="role")
        if not TENANT.fullmatch(tenant):
            raise BadRequest(f"tenant is {tenant!r}; give letters, digits, - and _, at most 64", field="tenant")
        if not name or len(name) > 100:
            raise BadRequest(f"name is {name!r}; give 1 to 100 characters", field="name")
        if requests_per_minute is not None and requests_per_minute < 1:
            raise BadRequest(f"rate is {requests_per_minute}; give at least 1 request a minute", field="rate")
        identity, secret = secrets.token_hex(6), secrets.token_urlsafe(32)
        with self._audit.change(actor) as change:
            key = Key(
                id=identity,
                name=name,
                tenant=tenant,
                role=role,
                created_at=change.now,
                created_by=actor.name,
                expires_at=None if expires_at is None else expires_at.astimezone(UTC).isoformat(),
                revoked_at=None,
                requests_per_minute=requests_per_minute,
            )
            values = {field: getattr(key, field) for field in key.__dataclass_fields__}
            change.connection.execute(api_keys.insert().values(**values, hash=_hash(secret)))
            change.note("key.create", identity, after=values)
        return key, f"{PREFIX}_{identity}_{secret}"

    def find(self, text: str, *, now: datetime) -> Key | None:
        """The key with this text, unless there is none, it has expired, or it was revoked."""
        prefix, _, rest = text.partition("_")
        identity, _, secret = rest.partition("_")
        if prefix != PREFIX:
            return None
        with self._archive.transaction() as connection:
            row = connection.execute(api_keys.select().where(api_keys.c.id == identity)).mappings().first()
        # A key has 256 random bits: a plain hash of it cannot be searched through, as that of a password can.
        if row is None or not hmac.compare_digest(row["hash"], _hash(secret)):
            return None
        key = _key(row)
        expired = key.expires_at is not None and key.expires_at <= now.astimezone(UTC).isoformat()
        return None if expired or key.revoked_at is not None else key

    def list(self, *, tenant: str | None = None) -> list[Key]:
        """All keys, the oldest first; those of one tenant when it is named."""
        query = api_keys.select().order_by(api_keys.c.created_at, api_keys.c.id)
        if tenant is not None:
            query = query.where(api_keys.c.tenant == tenant)
        with self._archive.transaction() as connection:
            return [_key(row) for row in connection.execute(query).mappings()]

    def revoke(self, actor: Actor, identity: str) -> Key:
        """Take a key back, at once and for good.

        Raises:
            Missing: there is no such key.
        """
        with self._audit.change(actor) as change:
            this = api_keys.c.id == identity
            row = change.connection.execute(api_keys.select().where(this)).mappings().first()
            if row is None:
                raise Missing(f"there is no key {identity!r}; `ratchet keys list` shows them")
            if row["revoked_at"] is None:
                change.connection.execute(api_keys.update().where(this).values(revoked_at=change.now))
                before = {name: row[name] for name in Key.__dataclass_fields__}
                change.note("key.revoke", identity, before=before, after={**before, "revoked_at": change.now})
            again = change.connection.execute(api_keys.select().where(this)).mappings().one()
        return _key(again)


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def _key(row: sa.RowMapping) -> Key:
    return Key(**{name: row[name] for name in Key.__dataclass_fields__})

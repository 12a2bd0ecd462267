"""Webhooks: where a tenant wants its events sent, each with a secret that signs them."""

from __future__ import annotations

import base64
import json
import secrets
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, fields
from datetime import datetime, timedelta

import sqlalchemy as sa

from ratchet.core.access import Actor
from ratchet.core.errors import Conflict
from ratchet.storage.audit import Audit
from ratchet.storage.outbox import DeadLetter, Outbox
from ratchet.storage.sealing import PLAIN, Sealer
from ratchet.storage.sql import SqlArchive
from ratchet.storage.statements import newest_first, the_row
from ratchet.storage.texts import Words

metadata = sa.MetaData()

webhooks = sa.Table(
    "webhooks",
    metadata,
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("id", sa.String(16), nullable=False, unique=True),
    sa.Column("tenant", sa.String(64), nullable=False, index=True),
    sa.Column("url", sa.String(2000), nullable=False),
    sa.Column("types", sa.Text, nullable=False),
    sa.Column("secret", sa.Text, nullable=False),
    sa.Column("created_at", sa.String(32), nullable=False),
    sa.Column("created_by", sa.String(200), nullable=False),
    sa.Column("paused", sa.Boolean, nullable=False),
    sa.Column("reason", Words, nullable=False),
    sa.Column("failing_since", sa.String(32)),
    sa.Column("error", Words, nullable=False),
)

MOST = 100
"""Webhooks of one tenant."""
PREFIX = "whsec_"
"""How every secret begins, as Standard Webhooks has it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Webhook:
    """Where events go.

    Attributes:
        types: Patterns of the types that are sent.
        paused, reason: Whether nothing is sent for now, and why.
        failing_since: When it began to fail without a break; None when the last event arrived.
        error: What it failed with last.
    """

    id: str
    tenant: str
    url: str
    types: tuple[str, ...]
    created_at: str
    created_by: str
    paused: bool
    reason: str
    failing_since: str | None
    error: str


class Webhooks:
    """All webhooks.

    Args:
        archive: The database.
        audit: Where changes are told.
        outbox: What they are still to be told.
        sealer: How secrets are stored.
    """

    def __init__(self, archive: SqlArchive, audit: Audit, outbox: Outbox, *, sealer: Sealer = PLAIN) -> None:
        self._archive = archive
        self._audit = audit
        self._outbox = outbox
        self._sealer = sealer
        archive.make(metadata)

    def add(self, actor: Actor, *, url: str, types: Sequence[str]) -> tuple[Webhook, str]:
        """A webhook that gets what happens from now on, and its secret; it is not shown again.

        Raises:
            Conflict: the tenant has too many.
        """
        identity, secret = uuid.uuid4().hex[:12], new_secret()
        with self._audit.change(actor) as change:
            mine = sa.select(sa.func.count()).where(webhooks.c.tenant == actor.tenant)
            if int(change.connection.execute(mine).scalar() or 0) >= MOST:
                raise Conflict(f"there are {MOST} webhooks already; remove one first")
            told = {"url": url, "types": list(types)}
            change.connection.execute(
                webhooks.insert().values(
                    id=identity,
                    tenant=actor.tenant,
                    url=url,
                    types=json.dumps(list(types)),
                    secret=self._sealer.seal(secret),
                    created_at=change.now,
                    created_by=actor.name,
                    paused=False,
                    reason="",
                    error="",
                )
            )
            change.note("webhook.create", identity, after=told)
            self._outbox.begin(change.connection, identity, actor.tenant, types)
            return self._webhook(change.connection, actor.tenant, identity), secret

    def find(self, tenant: str, identity: str) -> Webhook:
        """One webhook of a tenant.

        Raises:
            Missing: it has none with this id.
        """
        with self._archive.transaction() as connection:
            return self._webhook(connection, tenant, identity)

    def page(self, tenant: str, *, before: int | None, limit: int) -> list[tuple[int, Webhook]]:
        """Numbered webhooks, the newest first, those numbered below ``before``."""
        query = newest_first(webhooks, webhooks.c.tenant == tenant, before=before, limit=limit)
        with self._archive.transaction() as connection:
            return [(row["number"], _webhook(row)) for row in connection.execute(query).mappings()]

    def remove(self, actor: Actor, identity: str) -> None:
        """Forget a webhook, with its secret and its dead letters.

        Raises:
            Missing: this tenant has no such webhook.
        """
        with self._audit.change(actor) as change:
            webhook = self._webhook(change.connection, actor.tenant, identity)
            change.connection.execute(webhooks.delete().where(webhooks.c.id == identity))
            self._outbox.end(change.connection, identity)
            change.note("webhook.delete", identity, before={"url": webhook.url, "types": list(webhook.types)})

    def pause(self, actor: Actor, identity: str, reason: str) -> Webhook:
        """Send nothing until it is resumed; what happens meanwhile is sent then.

        Raises:
            Missing: this tenant has no such webhook.
        """
        return self._switch(actor, identity, paused=True, reason=reason)

    def resume(self, actor: Actor, identity: str) -> Webhook:
        """Send again, from where it was paused.

        Raises:
            Missing: this tenant has no such webhook.
        """
        return self._switch(actor, identity, paused=False, reason="")

    def _switch(self, actor: Actor, identity: str, *, paused: bool, reason: str) -> Webhook:
        with self._audit.change(actor) as change:
            before = self._webhook(change.connection, actor.tenant, identity)
            if before.paused == paused:
                return before
            values = {"paused": paused, "reason": reason, **({} if paused else {"failing_since": None, "error": ""})}
            change.connection.execute(webhooks.update().where(webhooks.c.id == identity).values(**values))
            self._outbox.switch(change.connection, identity, active=not paused)
            verb = "pause" if paused else "resume"
            change.note(f"webhook.{verb}", identity, before={"paused": before.paused}, after={"paused": paused})
            return self._webhook(change.connection, actor.tenant, identity)

    def dead(self, tenant: str, identity: str, *, before: int | None = None, limit: int = 50) -> list[DeadLetter]:
        """The events that were given up, the newest first.

        Raises:
            Missing: this tenant has no such webhook.
        """
        self.find(tenant, identity)
        return self._outbox.dead(identity, before=before, limit=limit)

    def redeliver(self, actor: Actor, identity: str, event: str | None = None) -> int:
        """Have dead letters tried again, all or one, and how many they are.

        Raises:
            Missing: this tenant has no such webhook, or it has no such dead letter.
            Conflict: it is paused.
        """
        with self._audit.change(actor) as change:
            self._webhook(change.connection, actor.tenant, identity)
            count = self._outbox.again(change.connection, identity, event)
            if count:
                change.note("webhook.redeliver", identity, after={"events": count, "event": event})
            return count

    # --- what whoever delivers needs ---------------------------------------------------------------------------------

    def secret(self, identity: str) -> str:
        """What signs the events of a webhook."""
        with self._archive.transaction() as connection:
            query = sa.select(webhooks.c.secret).where(webhooks.c.id == identity)
            return self._sealer.open(connection.execute(query).scalar_one())

    def address(self, identity: str) -> str:
        """Where its events go."""
        with self._archive.transaction() as connection:
            return str(connection.execute(sa.select(webhooks.c.url).where(webhooks.c.id == identity)).scalar_one())

    def note_arrival(self, identity: str) -> None:
        """Keep that an event arrived."""
        with self._archive.transaction() as connection:
            connection.execute(webhooks.update().where(webhooks.c.id == identity).values(failing_since=None, error=""))

    def note_failure(self, actor: Actor, identity: str, error: str, *, now: datetime, patience: timedelta) -> None:
        """Keep that an event did not arrive; pause the webhook when none has for longer than ``patience``."""
        with self._archive.transaction() as connection:
            this = webhooks.c.id == identity
            row = connection.execute(sa.select(webhooks.c.tenant, webhooks.c.failing_since).where(this)).first()
            if row is None:
                return
            since = row.failing_since or now.isoformat()
            connection.execute(webhooks.update().where(this).values(failing_since=since, error=error))
        if now - datetime.fromisoformat(since) >= patience:
            mine = Actor(name=actor.name, tenant=row.tenant, role=actor.role, origin=actor.origin)
            self.pause(mine, identity, f"nothing has arrived since {since}; the last error: {error}")

    def _webhook(self, connection: sa.Connection, tenant: str, identity: str) -> Webhook:
        return _webhook(the_row(connection, webhooks, "webhook", tenant, identity))


def new_secret() -> str:
    """256 random bits as a secret of Standard Webhooks."""
    return PREFIX + base64.b64encode(secrets.token_bytes(32)).decode()


def _webhook(row: sa.RowMapping) -> Webhook:
    names = [field.name for field in fields(Webhook)]
    return Webhook(**{name: row[name] for name in names} | {"types": tuple(json.loads(row["types"]))})

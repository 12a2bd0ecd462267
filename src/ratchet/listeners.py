"""Webhooks as they are asked for: checked before they are kept, and tried on request."""

from __future__ import annotations

import asyncio
import re
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from ratchet.core.access import Actor
from ratchet.core.cloudevent import CloudEvent
from ratchet.core.errors import BadRequest
from ratchet.courier import Undelivered
from ratchet.programs.hosts import OpenHosts
from ratchet.settings import Settings
from ratchet.storage.webhooks import Webhook, Webhooks
from ratchet.webhook import Postman

EVERYTHING = ("ratchet.*",)
PING = "ratchet.webhook.ping"
PING_SECONDS = 10.0

_PATTERN = re.compile(r"(ratchet|\*)(\.[a-z_*]{1,60}){0,4}")
_LONGEST_URL = 2000


@dataclass(frozen=True, slots=True, kw_only=True)
class Pong:
    """What came of a ping.

    Attributes:
        event: The id of what was sent.
        delivered: Whether it was taken.
        status: What was answered; None where nothing was, or what was is told in ``error``.
        error: Why it was not taken.
    """

    event: str
    delivered: bool
    status: int | None = None
    error: str = ""


def hosts_of(settings: Settings) -> OpenHosts:
    """Where webhooks may lead."""
    return OpenHosts.from_text(settings.webhook_hosts, settings.webhook_allow)


class Listeners:
    """What the service can be asked for about webhooks.

    Args:
        settings: Of this installation.
        webhooks: Where they are kept.
        clock: Tells the time.
    """

    def __init__(self, settings: Settings, webhooks: Webhooks, *, clock: Callable[[], datetime]) -> None:
        self._settings = settings
        self._webhooks = webhooks
        self._clock = clock

    def add(self, actor: Actor, *, url: str, types: Sequence[str] = EVERYTHING) -> tuple[Webhook, str]:
        """A webhook that gets what happens from now on, and its secret; it is not shown again.

        Raises:
            UserError: the address may not be called, or a type cannot be.
        """
        if len(url) > _LONGEST_URL:
            raise BadRequest(f"url has {len(url)} characters; give at most {_LONGEST_URL}", field="url")
        for pattern in types:
            if not _PATTERN.fullmatch(pattern):
                raise BadRequest(
                    f"events names {pattern!r}, which no type of event fits; give a type, or a pattern such as "
                    "ratchet.optimization.*",
                    field="events",
                    value=pattern,
                )
        hosts_of(self._settings).check(url)
        return self._webhooks.add(actor, url=url, types=types)

    def ping(self, actor: Actor, identity: str) -> Pong:
        """Send an event that tells nothing, now and once.

        Raises:
            Missing: this tenant has no such webhook.
        """
        webhook = self._webhooks.find(actor.tenant, identity)
        event = CloudEvent(
            id=f"evt_ping_{uuid.uuid4().hex[:12]}",
            source=self._settings.event_source,
            type=PING,
            subject=identity,
            time=self._clock().astimezone(UTC).isoformat().replace("+00:00", "Z"),
            tenant=actor.tenant,
            sequence=1,
            data={"webhook": identity},
        )
        try:
            status = asyncio.run(self._post(webhook, event))
        except Undelivered as error:
            return Pong(event=event.id, delivered=False, error=str(error))
        return Pong(event=event.id, delivered=True, status=status)

    async def _post(self, webhook: Webhook, event: CloudEvent) -> int:
        postman = Postman(hosts_of(self._settings), clock=self._clock, seconds=PING_SECONDS)
        try:
            return await postman.post(webhook.url, self._webhooks.secret(webhook.id), event)
        finally:
            await postman.close()

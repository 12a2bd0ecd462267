"""Webhooks and schedules of the database here, asked as ``ratchet.Client`` asks a server, with the same answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from pydantic import ValidationError

from ratchet.calls import Json
from ratchet.core.access import Actor
from ratchet.core.errors import BadRequest
from ratchet.desk import Desk
from ratchet.service.routes.cycles import ScheduleBody, ScheduleOut
from ratchet.service.routes.webhooks import DeadLetterOut, WebhookOut

MOST = 500
"""Of a list."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeskHere:
    """What a desk tells and does by itself, for one tenant."""

    desk: Desk
    actor: Actor

    def add_webhook(self, url: str, *, events: Sequence[str]) -> Json:
        """A webhook, with its secret."""
        webhook, secret = self.desk.listeners.add(self.actor, url=url, types=events)
        return {**WebhookOut.of(webhook).model_dump(), "secret": secret}

    def webhooks(self) -> list[Json]:
        """All webhooks, the newest first."""
        found = self.desk.webhooks.page(self.actor.tenant, before=None, limit=MOST)
        return [WebhookOut.of(webhook).model_dump() for _, webhook in found]

    def remove_webhook(self, identity: str) -> None:
        """Send nothing more to it."""
        self.desk.webhooks.remove(self.actor, identity)

    def resume_webhook(self, identity: str) -> None:
        """Send it what it has not got."""
        self.desk.webhooks.resume(self.actor, identity)

    def ping_webhook(self, identity: str) -> Json:
        """What came of an event that is sent now to try it."""
        return asdict(self.desk.listeners.ping(self.actor, identity))

    def dead_letters(self, webhook: str) -> list[Json]:
        """The events that a webhook never took."""
        found = self.desk.webhooks.dead(self.actor.tenant, webhook, limit=MOST)
        return [DeadLetterOut.of(dead).model_dump() for dead in found]

    def redeliver(self, webhook: str, *, event: str | None = None) -> Json:
        """Try dead letters again: one of them, or all."""
        return {"events": self.desk.webhooks.redeliver(self.actor, webhook, event)}

    def add_schedule(self, **schedule: Any) -> Json:
        """A cycle that comes back by the clock.

        Raises:
            BadRequest: a field cannot be used.
        """
        try:
            body = ScheduleBody.model_validate(schedule)
        except ValidationError as error:
            first = error.errors()[0]
            raise BadRequest(f"{'.'.join(map(str, first['loc'])) or 'it'}: {first['msg']}") from error
        kept = self.desk.batch.add(
            self.actor, body.orders(), name=body.name, cron=body.cron, timezone=body.timezone, overlap=body.overlap
        )
        return ScheduleOut.of(kept, self.desk).model_dump()

    def schedules(self) -> list[Json]:
        """All schedules, the newest first."""
        found = self.desk.batch.schedules.page(self.actor.tenant, before=None, limit=MOST)
        return [ScheduleOut.of(schedule, self.desk).model_dump() for _, schedule in found]

    def remove_schedule(self, identity: str) -> None:
        """Take a schedule away; what it began goes on."""
        self.desk.batch.remove(self.actor, identity)

    def pause_schedule(self, identity: str) -> None:
        """Have a schedule begin nothing for now."""
        self.desk.batch.switch(self.actor, identity, paused=True)

    def resume_schedule(self, identity: str) -> Json:
        """Have a schedule go on."""
        return ScheduleOut.of(self.desk.batch.switch(self.actor, identity, paused=False), self.desk).model_dump()

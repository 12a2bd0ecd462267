"""Webhooks: where events are sent."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

from fastapi import Response
from pydantic import BaseModel, ConfigDict, Field

from ratchet.service import schemas
from ratchet.service.access import Operator, TheDesk
from ratchet.service.routes.frame import PREFIX, Cursor, Limit, new_router
from ratchet.storage.outbox import DeadLetter
from ratchet.storage.webhooks import Webhook

router = new_router("webhooks")

_ID = "3f0c1d2e4b5a"
_ID_OUT: dict[str, Any] = {
    "id": _ID,
    "url": "https://hooks.example.org/ratchet",
    "events": ["ratchet.optimization.completed", "ratchet.optimization.failed"],
    "created_at": "2026-01-01T00:00:00+00:00",
    "created_by": "key 0a1b2c3d4e5f (ops)",
    "paused": False,
    "reason": "",
    "failing_since": None,
    "error": "",
}


class NewWebhook(schemas.Body):
    """Where events are to be sent."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "url": "https://hooks.example.org/ratchet",
                    "events": ["ratchet.optimization.completed", "ratchet.optimization.failed"],
                }
            ]
        }
    )
    url: Annotated[str, Field(min_length=1, max_length=2000, description="https, and public unless allowed.")]
    events: list[Annotated[str, Field(min_length=1, max_length=100)]] = Field(
        ["ratchet.*"], min_length=1, max_length=50, description="Types of events, with * for any part."
    )


class WebhookOut(BaseModel):
    """A webhook; its secret is not told again."""

    model_config = ConfigDict(json_schema_extra={"examples": [_ID_OUT]})
    id: str
    url: str
    events: list[str]
    created_at: str
    created_by: str
    paused: bool
    reason: Annotated[str, Field(description="Why it is paused.")]
    failing_since: Annotated[str | None, Field(description="Nothing has arrived since; null when the last event did.")]
    error: Annotated[str, Field(description="What it failed with last.")]

    @classmethod
    def of(cls, webhook: Webhook) -> WebhookOut:
        """As JSON."""
        return cls(**_of(webhook))


class CreatedWebhook(WebhookOut):
    """A new webhook, with the secret that signs what it gets; it is shown only now."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{**_ID_OUT, "secret": "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSwAAAAAAAAAAA="}]}
    )
    secret: str


class DeadLetterOut(BaseModel):
    """An event that was given up."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "event": "evt_1a2b3c4d5e6f_17",
                    "type": "ratchet.optimization.completed",
                    "subject": "1a2b3c4d5e6f",
                    "at": "2026-01-01T09:00:00+00:00",
                    "attempts": 16,
                    "error": "it answered 500",
                    "again": False,
                }
            ]
        }
    )
    event: Annotated[str, Field(description="Its id, as `redeliver` takes it.")]
    type: str
    subject: str
    at: Annotated[str, Field(description="When it was given up.")]
    attempts: int
    error: str
    again: Annotated[bool, Field(description="Whether it is being tried again.")]

    @classmethod
    def of(cls, dead: DeadLetter) -> DeadLetterOut:
        """As JSON."""
        return cls(**{name: getattr(dead, name) for name in cls.model_fields})


class Redeliver(schemas.Body):
    """Which dead letters are to be tried again."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"event": "evt_1a2b3c4d5e6f_17"}, {}]})
    event: Annotated[
        str | None, Field(pattern=r"^evt_\w{1,90}$", description="One of them; all when it is left out.")
    ] = None


class RedeliverOut(BaseModel):
    """How many are tried again."""

    events: int


class PongOut(BaseModel):
    """What came of a ping."""

    event: str
    delivered: bool
    status: int | None
    error: str


@router.post("/webhooks", status_code=201)
def add(body: NewWebhook, response: Response, desk: TheDesk, actor: Operator) -> CreatedWebhook:
    """Have events sent to an address from now on; the secret in the answer is shown only now."""
    webhook, secret = desk.listeners.add(actor, url=body.url, types=body.events)
    response.headers["Location"] = f"{PREFIX}/webhooks/{webhook.id}"
    return CreatedWebhook(**_of(webhook), secret=secret)


@router.get("/webhooks")
def webhooks(desk: TheDesk, actor: Operator, cursor: Cursor = None, limit: Limit = 50) -> schemas.Page[WebhookOut]:
    """Webhooks, the newest first."""
    found = desk.webhooks.page(actor.tenant, before=schemas.number_of(cursor), limit=limit)
    more = schemas.to_cursor(found[-1][0]) if len(found) == limit else None
    return schemas.Page(items=[WebhookOut.of(webhook) for _, webhook in found], next=more)


@router.get("/webhooks/{identity}")
def webhook(identity: str, desk: TheDesk, actor: Operator) -> WebhookOut:
    """One webhook, and how it is getting on."""
    return WebhookOut.of(desk.webhooks.find(actor.tenant, identity))


@router.delete("/webhooks/{identity}", status_code=204)
def remove(identity: str, desk: TheDesk, actor: Operator) -> None:
    """Send nothing more; its dead letters go with it."""
    desk.webhooks.remove(actor, identity)


@router.post("/webhooks/{identity}/pause")
def pause(identity: str, desk: TheDesk, actor: Operator) -> WebhookOut:
    """Send nothing for now; what happens meanwhile is sent after `resume`."""
    return WebhookOut.of(desk.webhooks.pause(actor, identity, f"paused by {actor.name}"))


@router.post("/webhooks/{identity}/resume")
def resume(identity: str, desk: TheDesk, actor: Operator) -> WebhookOut:
    """Send again, from where it was paused, also when it was paused because nothing arrived."""
    return WebhookOut.of(desk.webhooks.resume(actor, identity))


@router.post("/webhooks/{identity}/ping")
def ping(identity: str, desk: TheDesk, actor: Operator) -> PongOut:
    """Send an event of type `ratchet.webhook.ping` now, once, and tell what came of it."""
    return PongOut(**asdict(desk.listeners.ping(actor, identity)))


@router.get("/webhooks/{identity}/dead")
def dead(
    identity: str, desk: TheDesk, actor: Operator, cursor: Cursor = None, limit: Limit = 50
) -> schemas.Page[DeadLetterOut]:
    """Events that were given up after too many tries, the newest first."""
    found = desk.webhooks.dead(actor.tenant, identity, before=schemas.number_of(cursor), limit=limit)
    more = schemas.to_cursor(found[-1].number) if len(found) == limit else None
    return schemas.Page(items=[DeadLetterOut.of(each) for each in found], next=more)


@router.post("/webhooks/{identity}/redeliver", status_code=202)
def redeliver(identity: str, desk: TheDesk, actor: Operator, body: Redeliver) -> RedeliverOut:
    """Try dead letters again, one or all; they come after what was delivered meanwhile."""
    return RedeliverOut(events=desk.webhooks.redeliver(actor, identity, body.event))


def _of(webhook: Webhook) -> dict[str, Any]:
    values = {name: getattr(webhook, name) for name in WebhookOut.model_fields if name != "events"}
    return {**values, "events": list(webhook.types)}

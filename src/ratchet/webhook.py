"""Sends events to webhooks, signed as Standard Webhooks has it; the only place that calls addresses of users."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from collections.abc import Callable
from datetime import datetime, timedelta
from functools import cached_property

import aiohttp
import orjson

from ratchet.core.access import Actor
from ratchet.core.cloudevent import CloudEvent
from ratchet.core.errors import Tampered, UserError
from ratchet.core.patience import retry_after
from ratchet.courier import Undelivered
from ratchet.programs.hosts import OpenHosts, new_session
from ratchet.storage.webhooks import PREFIX, Webhooks

MEDIA_TYPE = "application/cloudevents+json; charset=utf-8"
PATIENCE_SECONDS = 15.0
"""How long an endpoint may take to answer."""
DEAD_AFTER = timedelta(days=3)
"""An endpoint at which nothing arrived for so long is paused."""


def sign(secret: str, identity: str, timestamp: int, body: bytes) -> str:
    """The value of ``webhook-signature``.

    Args:
        secret: ``whsec_`` and base64.
        identity: The value of ``webhook-id``.
        timestamp: The value of ``webhook-timestamp``: seconds since 1970.

    References:
        Standard Webhooks 1.0.0, "Signature scheme".

    >>> secret, body = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", b'{"test": 2432232314}'
    >>> sign(secret, "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, body)
    'v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE='
    """
    key = base64.b64decode(secret.removeprefix(PREFIX))
    mac = hmac.new(key, f"{identity}.{timestamp}.".encode() + body, hashlib.sha256)
    return f"v1,{base64.b64encode(mac.digest()).decode()}"


def body_of(event: CloudEvent) -> bytes:
    """The event as it is sent."""
    try:
        return orjson.dumps(event.to_json())
    except TypeError:  # half a character, which an LM may write, or a number of more than 64 bits
        return json.dumps(event.to_json(), default=str).encode()


class Postman:
    """Posts events.

    Args:
        hosts: Where they may go.
        seconds: How long an endpoint may take to answer.
        clock: Tells the time.

    It follows no redirection, uses no proxy and keeps no cookies: nothing that an endpoint answers leads elsewhere.
    """

    def __init__(self, hosts: OpenHosts, *, clock: Callable[[], datetime], seconds: float = PATIENCE_SECONDS) -> None:
        self._hosts = hosts
        self._clock = clock
        self._seconds = seconds
        self._session: aiohttp.ClientSession | None = None

    async def post(self, url: str, secret: str, event: CloudEvent) -> int:
        """Post one event; the status of the answer.

        Raises:
            Undelivered: it was not taken.
        """
        if self._session is None:
            self._session = new_session(self._hosts.resolver(), seconds=self._seconds)
        body, timestamp = body_of(event), int(self._clock().timestamp())
        headers = {
            "Content-Type": MEDIA_TYPE,
            "User-Agent": "ratchet",
            "webhook-id": event.id,
            "webhook-timestamp": str(timestamp),
            "webhook-signature": sign(secret, event.id, timestamp, body),
        }
        try:
            target = self._hosts.check(url)
            async with self._session.post(target, data=body, headers=headers, allow_redirects=False) as reply:
                if 200 <= reply.status < 300:
                    await reply.content.read(4096)  # so that the connection can be used again
                    return reply.status
                status, later = reply.status, retry_after(reply.headers.get("Retry-After"))
        except UserError as error:
            raise Undelivered(str(error)) from error
        except TimeoutError as error:
            raise Undelivered(f"no answer in {self._seconds:g} s") from error
        except (aiohttp.ClientError, OSError, ValueError) as error:
            cause = error.os_error if isinstance(error, aiohttp.ClientConnectorError) else error
            raise Undelivered(f"{type(cause).__name__}: {cause}"[:300]) from error
        if 300 <= status < 400:
            raise Undelivered(
                f"it answered {status}, a redirection, and none is followed; give the address it leads to"
            )
        raise Undelivered(f"it answered {status}", gone=status == 410, wait_seconds=later or 0.0)

    async def close(self) -> None:
        """Close the connections."""
        if self._session is not None:
            await self._session.close()
            self._session = None


class WebhookSink:
    """One webhook, to whoever delivers.

    Args:
        identity: Its id.
        webhooks: Keeps how it is getting on.
        postman: Posts to it.
        actor: Who pauses it.
        clock: Tells the time.
        dead_after: How long nothing may arrive before it is paused.
    """

    def __init__(
        self,
        identity: str,
        webhooks: Webhooks,
        postman: Postman,
        *,
        actor: Actor,
        clock: Callable[[], datetime],
        dead_after: timedelta = DEAD_AFTER,
    ) -> None:
        self._id = identity
        self._webhooks = webhooks
        self._postman = postman
        self._actor = actor
        self._clock = clock
        self._dead_after = dead_after
        self._well: bool | None = None

    async def send(self, event: CloudEvent) -> None:
        """Deliver one event.

        Raises:
            Undelivered: it was not taken.
        """
        try:
            await self._post(event)
        except Undelivered as error:
            self._well = False
            patience = timedelta(0) if error.gone else self._dead_after
            self._webhooks.note_failure(self._actor, self._id, str(error), now=self._clock(), patience=patience)
            raise
        if not self._well:
            self._webhooks.note_arrival(self._id)
            self._well = True

    async def _post(self, event: CloudEvent) -> None:
        try:
            url, secret = self._address
        except Tampered as error:
            raise Undelivered(str(error)) from error
        await self._postman.post(url, secret, event)

    @cached_property
    def _address(self) -> tuple[str, str]:
        """Where to post, and what signs it; looked up with the first event, so that it fails alone when it does."""
        return self._webhooks.address(self._id), self._webhooks.secret(self._id)

"""Publishes events to NATS JetStream; loaded only where it is configured."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import nats
from nats.aio.client import Client
from nats.errors import Error
from nats.js import JetStreamContext
from nats.js.api import StreamConfig
from nats.js.errors import NoStreamResponseError

from ratchet.core.cloudevent import CloudEvent
from ratchet.courier import Undelivered
from ratchet.webhook import MEDIA_TYPE, body_of

STREAM, SUBJECTS = "RATCHET", "ratchet.>"
DUPLICATES_SECONDS = 3600.0
"""How long the server knows an event again, where the stream is made by us."""
PATIENCE_SECONDS = 5.0


def subject_of(event: CloudEvent) -> str:
    """Where an event is published: its tenant, and its type without ``ratchet.``."""
    return f"ratchet.{event.tenant}.{event.type.removeprefix('ratchet.')}"


class JetStreamSink:
    """A JetStream server.

    Args:
        url: Of the server, such as ``nats://127.0.0.1:4222``.
        seconds: How long it may take to answer.

    The stream is made when nothing takes the subjects yet. A connection that breaks is made anew with the next event.
    """

    def __init__(self, url: str, *, seconds: float = PATIENCE_SECONDS) -> None:
        self._url = url
        self._seconds = seconds
        self._client: Client | None = None
        self._stream: JetStreamContext | None = None
        self._connecting = asyncio.Lock()

    async def send(self, event: CloudEvent) -> None:
        """Publish one event, and wait until the server keeps it.

        Raises:
            Undelivered: it does not.
        """
        try:
            stream = await self._ready()
            try:
                await self._publish(stream, event)
            except NoStreamResponseError:  # nothing keeps this subject yet
                made = StreamConfig(name=STREAM, subjects=[SUBJECTS], duplicate_window=DUPLICATES_SECONDS)
                await stream.add_stream(made)
                await self._publish(stream, event)
        except (Error, OSError, TimeoutError) as error:
            await self.close()
            raise Undelivered(f"NATS: {type(error).__name__}: {error}"[:300]) from error

    async def _publish(self, stream: JetStreamContext, event: CloudEvent) -> None:
        headers = {"Nats-Msg-Id": event.id, "Content-Type": MEDIA_TYPE}
        await stream.publish(subject_of(event), body_of(event), timeout=self._seconds, headers=headers)

    async def _ready(self) -> JetStreamContext:
        async with self._connecting:
            if self._stream is not None and self._client is not None and self._client.is_connected:
                return self._stream
            await self.close()

            async def quiet(*_: object) -> None:
                """What went wrong is told by whatever was under way."""

            self._client = await nats.connect(
                self._url,
                allow_reconnect=False,
                connect_timeout=int(self._seconds),
                error_cb=quiet,
                disconnected_cb=quiet,
                closed_cb=quiet,
            )
            self._stream = self._client.jetstream(timeout=self._seconds)
            return self._stream

    async def close(self) -> None:
        """Close the connection."""
        client, self._client, self._stream = self._client, None, None
        if client is not None:
            with suppress(Error, OSError, TimeoutError):
                await client.close()

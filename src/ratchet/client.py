"""The service from Python.

from ratchet import Client

with Client("http://127.0.0.1:8004", key="rk_...") as client:
    client.upload("mails", "mails.jsonl")
    job = client.optimize(target={"spec": {"signature": "text -> label"}}, data="mails", lm="openai/gpt-4.1-mini")
    for event in client.events(job["id"]):
        print(event.sequence, event.kind, event.payload)
    print(client.wait(job["id"])["status"])

``AsyncClient`` has the same methods, to be awaited. What they can ask for is ``ratchet.calls.Service``.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import TracebackType

import httpx

from ratchet.calls import (
    NEWS_SECONDS,
    RETRIES,
    Call,
    Json,
    Listening,
    Patience,
    Service,
    StreamedEvent,
    checked,
    read_json,
    unreachable,
)

__all__ = ["AsyncClient", "Client", "Json", "StreamedEvent"]

PAGE = 500
"""Items asked for at once."""
CHUNK = 2**18
"""Bytes of a file that are sent at once."""
_STREAM = httpx.Timeout(NEWS_SECONDS)


def _headers(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}", "User-Agent": "ratchet"}


def _page(call: Call, cursor: str | None) -> Call:
    place = {} if cursor is None else {"cursor": cursor}
    return replace(call, params={**call.params, "limit": PAGE, **place})


class Client(Service[Json, bytes, Iterator[Json]]):
    """The service, for code that waits.

    Args:
        url: Where the server listens.
        key: A key from ``ratchet keys create``.
        timeout_seconds: Patience with one request.
        retry_seconds: Waited before each new try.
        transport: What sends requests; for tests.

    Every method raises:
        UserError: the server refused; its words say what to mend.
        StorageUnavailable: the server cannot be reached, or its database.
    """

    def __init__(
        self,
        url: str = "http://127.0.0.1:8004",
        *,
        key: str,
        timeout_seconds: float = 30.0,
        retry_seconds: Sequence[float] = RETRIES,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self.url = url
        self._retry_seconds = retry_seconds
        self._http = httpx.Client(base_url=url, headers=_headers(key), timeout=timeout_seconds, transport=transport)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Give back the connections."""
        self._http.close()

    def ask(self, call: Call) -> Json:
        """The answer to a request that has no method of its own here; see ``ratchet.calls.call``."""
        return read_json(self._send(call))

    def _content(self, call: Call) -> bytes:
        return checked(self._send(call)).content

    def _items(self, call: Call) -> Iterator[Json]:
        cursor: str | None = None
        while True:
            page = self.ask(_page(call, cursor))
            yield from page["items"]
            cursor = page["next"]
            if cursor is None:
                return

    def _send(self, call: Call) -> httpx.Response:
        patience = Patience(self._retry_seconds)
        while True:
            try:
                with ExitStack() as stack:
                    content = call.content
                    body = stack.enter_context(content.open("rb")) if isinstance(content, Path) else content
                    response = self._http.request(
                        call.method, call.path, params=call.params, headers=call.headers, content=body
                    )
                seconds = patience.after_answer(response, call)
                if seconds is None:
                    return response
            except httpx.TransportError as error:
                seconds = patience.after_error(error, call)
                if seconds is None:
                    raise unreachable(self.url, error) from error
            time.sleep(seconds)

    def events(self, identity: str, *, after: int = 0) -> Iterator[StreamedEvent]:
        """Every event numbered above ``after``, in order and once, until it comes to rest; also across a restart."""
        listening = Listening(identity, after, Patience(self._retry_seconds))
        while True:
            call = listening.stream()
            try:
                with self._http.stream(call.method, call.path, params=call.params, timeout=_STREAM) as response:
                    seconds = listening.patience.after_answer(response, call)
                    if seconds is None:
                        if not response.is_success:
                            response.read()
                        checked(response)
                        for line in response.iter_lines():
                            event = listening.take(line)
                            if event is not None:
                                yield event
                if seconds is None:
                    if listening.is_over(self.optimization(identity)):
                        return
                    seconds = listening.patience.after_silence()
            except httpx.TransportError as error:
                seconds = listening.patience.after_error(error, call)
                if seconds is None:
                    raise unreachable(self.url, error) from error
            time.sleep(seconds)

    def wait(self, identity: str) -> Json:
        """The optimization, once it has come to rest."""
        for _ in self.events(identity):
            pass
        return self.optimization(identity)


class AsyncClient(Service[Awaitable[Json], Awaitable[bytes], AsyncIterator[Json]]):
    """The service, for code on an event loop; see ``Client``."""

    def __init__(
        self,
        url: str = "http://127.0.0.1:8004",
        *,
        key: str,
        timeout_seconds: float = 30.0,
        retry_seconds: Sequence[float] = RETRIES,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self.url = url
        self._retry_seconds = retry_seconds
        self._http = httpx.AsyncClient(
            base_url=url, headers=_headers(key), timeout=timeout_seconds, transport=transport
        )

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Give back the connections."""
        await self._http.aclose()

    async def ask(self, call: Call) -> Json:
        """The answer to a request that has no method of its own here; see ``ratchet.calls.call``."""
        return read_json(await self._send(call))

    async def _content(self, call: Call) -> bytes:
        return checked(await self._send(call)).content

    async def _items(self, call: Call) -> AsyncIterator[Json]:
        cursor: str | None = None
        while True:
            page = await self.ask(_page(call, cursor))
            for item in page["items"]:
                yield item
            cursor = page["next"]
            if cursor is None:
                return

    async def _send(self, call: Call) -> httpx.Response:
        patience = Patience(self._retry_seconds)
        while True:
            try:
                body = _chunks(call.content) if isinstance(call.content, Path) else call.content
                response = await self._http.request(
                    call.method, call.path, params=call.params, headers=call.headers, content=body
                )
                seconds = patience.after_answer(response, call)
                if seconds is None:
                    return response
            except httpx.TransportError as error:
                seconds = patience.after_error(error, call)
                if seconds is None:
                    raise unreachable(self.url, error) from error
            await asyncio.sleep(seconds)

    async def events(self, identity: str, *, after: int = 0) -> AsyncIterator[StreamedEvent]:
        """Every event numbered above ``after``, in order and once, until it comes to rest; also across a restart."""
        listening = Listening(identity, after, Patience(self._retry_seconds))
        while True:
            call = listening.stream()
            try:
                async with self._http.stream(call.method, call.path, params=call.params, timeout=_STREAM) as response:
                    seconds = listening.patience.after_answer(response, call)
                    if seconds is None:
                        if not response.is_success:
                            await response.aread()
                        checked(response)
                        async for line in response.aiter_lines():
                            event = listening.take(line)
                            if event is not None:
                                yield event
                if seconds is None:
                    if listening.is_over(await self.optimization(identity)):
                        return
                    seconds = listening.patience.after_silence()
            except httpx.TransportError as error:
                seconds = listening.patience.after_error(error, call)
                if seconds is None:
                    raise unreachable(self.url, error) from error
            await asyncio.sleep(seconds)

    async def wait(self, identity: str) -> Json:
        """The optimization, once it has come to rest."""
        async for _ in self.events(identity):
            pass
        return await self.optimization(identity)


async def _chunks(file: Path) -> AsyncIterator[bytes]:
    """A file, read beside the event loop."""
    with await asyncio.to_thread(file.open, "rb") as opened:
        while chunk := await asyncio.to_thread(opened.read, CHUNK):
            yield chunk

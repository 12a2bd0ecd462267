"""The service from Python.

from ratchet import Client

with Client("http://127.0.0.1:8004", key="rk_...") as client:
    client.upload("mails", "mails.jsonl")
    job = client.optimize(target={"spec": {"signature": "text -> label"}}, data="mails", lm="openai/gpt-4.1-mini")
    for event in client.events(job["id"]):
        print(event.sequence, event.kind, event.payload)
    print(client.wait(job["id"])["status"])

``AsyncClient`` has the same methods, to be awaited.
"""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, cast

import httpx

from ratchet.core.errors import (
    BadRequest,
    Conflict,
    Denied,
    Missing,
    RatchetError,
    StorageUnavailable,
    TooLarge,
)

PREFIX = "/api/v1"
RETRIES = (0.1, 0.3, 1.0, 3.0)
"""Seconds before each new try. Every call may be made again: it does once what it does, however often it is asked."""
NEWS_SECONDS = 30.0
"""The server says every few seconds that nothing is new; a stream that is silent for so long is begun anew."""

KINDS: Mapping[str, str] = {
    ".jsonl": "application/x-ndjson",
    ".ndjson": "application/x-ndjson",
    ".json": "application/json",
    ".csv": "text/csv",
    ".tsv": "text/tab-separated-values",
    ".parquet": "application/vnd.apache.parquet",
}

ERRORS: Mapping[int, type[RatchetError]] = {
    401: Denied,
    403: Denied,
    404: Missing,
    409: Conflict,
    413: TooLarge,
    429: StorageUnavailable,
    502: StorageUnavailable,
    503: StorageUnavailable,
    504: StorageUnavailable,
}

Json = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamedEvent:
    """An event of an optimization; numbered from 1 without a gap."""

    sequence: int
    at: str
    kind: str
    payload: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One request, as both clients send it."""

    method: str
    path: str
    params: Mapping[str, Any] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    content: bytes | None = None


def _json_call(path: str, body: Mapping[str, Any], **headers: str) -> Call:
    return Call(
        method="POST",
        path=path,
        headers={"Content-Type": "application/json", **headers},
        content=json.dumps({name: value for name, value in body.items() if value is not None}).encode(),
    )


def _upload(name: str, file: str | Path) -> Call:
    path = Path(file)
    if path.suffix.lower() not in KINDS:
        raise BadRequest(f"{path} is of a kind that is not taken; give one of {', '.join(KINDS)}")
    headers = {"Content-Type": KINDS[path.suffix.lower()]}
    return Call(
        method="POST", path=f"{PREFIX}/datasets", params={"name": name}, headers=headers, content=path.read_bytes()
    )


def _optimize(request: Mapping[str, Any], idempotency_key: str | None) -> Call:
    headers = {"Idempotency-Key": idempotency_key or uuid.uuid4().hex}
    return _json_call(f"{PREFIX}/optimize", request, **headers)


def _of(identity: str, what: str = "", method: str = "GET") -> Call:
    return Call(method=method, path=f"{PREFIX}/optimizations/{identity}" + (f"/{what}" if what else ""))


def _worth_a_retry(response: httpx.Response) -> bool:
    return response.status_code in (429, 502, 503, 504)


def _read(response: httpx.Response) -> Json:
    """The answer as JSON data.

    Raises:
        RatchetError: the server refused; its own words say why.
    """
    if response.is_success:
        return cast(Json, response.json())
    try:
        problem = response.json()
        message, errors = str(problem["detail"]), problem.get("errors") or [{}]
    except (ValueError, KeyError, TypeError):
        message, errors = f"the server answered {response.status_code}", [{}]
    kind = ERRORS.get(response.status_code, BadRequest if response.status_code < 500 else RatchetError)
    raise kind(message, **errors[0])


def _unreachable(url: str, error: httpx.TransportError | StorageUnavailable) -> StorageUnavailable:
    return (
        error
        if isinstance(error, StorageUnavailable)
        else StorageUnavailable(f"{url} cannot be reached: {type(error).__name__} {error}")
    )


class _Lines:
    """Events out of the lines of an event stream."""

    def __init__(self, after: int) -> None:
        self.after = after
        self.ended = False

    def take(self, line: str) -> StreamedEvent | None:
        """The event that ``line`` tells, if it tells one."""
        if not line.startswith("data: "):
            return None
        event = StreamedEvent(**json.loads(line[6:]))
        self.after, self.ended = event.sequence, event.kind == "ended"
        return event


class Client:
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
        headers = {"Authorization": f"Bearer {key}"}
        self._url = url
        self._retry_seconds = retry_seconds
        self._http = httpx.Client(base_url=url, headers=headers, timeout=timeout_seconds, transport=transport)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Give back the connections."""
        self._http.close()

    def upload(self, name: str, file: str | Path) -> Json:
        """The data set that ``file`` became."""
        return self._ask(_upload(name, file))

    def keep_target(self, name: str, **spec: Any) -> Json:
        """The target kept as ``name``; ``spec`` has ``signature``, ``program`` or ``import_path``."""
        return self._ask(_json_call(f"{PREFIX}/targets", {"name": name, **spec}))

    def optimize(self, *, idempotency_key: str | None = None, **request: Any) -> Json:
        """A new optimization; ``request`` has the fields of ``POST /api/v1/optimize``."""
        return self._ask(_optimize(request, idempotency_key))

    def optimizations(self, *, status: str | None = None) -> Iterator[Json]:
        """All optimizations, the newest first."""
        cursor: str | None = None
        while True:
            params = {"limit": 100, "cursor": cursor, "status": status}
            given = {name: value for name, value in params.items() if value is not None}
            page = self._ask(Call(method="GET", path=f"{PREFIX}/optimizations", params=given))
            yield from page["items"]
            cursor = page["next"]
            if cursor is None:
                return

    def optimization(self, identity: str) -> Json:
        """One optimization, with its result once there is one."""
        return self._ask(_of(identity))

    def status(self, identity: str) -> Json:
        """How it is getting on."""
        return self._ask(_of(identity, "status"))

    def pause(self, identity: str) -> Json:
        """Stop it for now, soon."""
        return self._ask(_of(identity, "pause", "POST"))

    def resume(self, identity: str) -> Json:
        """Have it go on."""
        return self._ask(_of(identity, "resume", "POST"))

    def cancel(self, identity: str) -> Json:
        """Stop it, soon."""
        return self._ask(_of(identity, "cancel", "POST"))

    def certificate(self, identity: str) -> Json:
        """Its signed certificate."""
        return self._ask(_of(identity, "certificate"))

    def program(self, identity: str) -> Json:
        """The program to use from now on, as ``dspy.Module.load_state`` takes it."""
        return self._ask(_of(identity, "program"))

    def events(self, identity: str, *, after: int = 0) -> Iterator[StreamedEvent]:
        """Every event numbered above ``after``, in order and once, until it comes to rest; also across a restart."""
        lines, waits = _Lines(after), iter(self._retry_seconds)
        call = _of(identity, "events")
        while True:
            try:
                timeout = httpx.Timeout(NEWS_SECONDS, read=NEWS_SECONDS)
                asked = {"after": lines.after}
                with self._http.stream(call.method, call.path, params=asked, timeout=timeout) as response:
                    if not response.is_success:
                        response.read()
                        _read(response)
                    for line in response.iter_lines():
                        waits = iter(self._retry_seconds)
                        event = lines.take(line)
                        if event is not None:
                            yield event
                if lines.ended:
                    return
            except (httpx.TransportError, StorageUnavailable) as error:
                seconds = next(waits, None)
                if seconds is None:
                    raise _unreachable(self._url, error) from error
                time.sleep(seconds)

    def wait(self, identity: str) -> Json:
        """The optimization, once it has come to rest."""
        for _ in self.events(identity):
            pass
        return self.optimization(identity)

    def _ask(self, call: Call) -> Json:
        waits = iter(self._retry_seconds)
        while True:
            seconds = next(waits, None)
            try:
                response = self._http.request(
                    call.method, call.path, params=call.params, headers=call.headers, content=call.content
                )
                if seconds is None or not _worth_a_retry(response):
                    return _read(response)
            except httpx.TransportError as error:
                if seconds is None:
                    raise _unreachable(self._url, error) from error
            time.sleep(seconds)


class AsyncClient:
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
        headers = {"Authorization": f"Bearer {key}"}
        self._url = url
        self._retry_seconds = retry_seconds
        self._http = httpx.AsyncClient(base_url=url, headers=headers, timeout=timeout_seconds, transport=transport)

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Give back the connections."""
        await self._http.aclose()

    async def upload(self, name: str, file: str | Path) -> Json:
        """The data set that ``file`` became."""
        return await self._ask(await asyncio.to_thread(_upload, name, file))

    async def keep_target(self, name: str, **spec: Any) -> Json:
        """The target kept as ``name``."""
        return await self._ask(_json_call(f"{PREFIX}/targets", {"name": name, **spec}))

    async def optimize(self, *, idempotency_key: str | None = None, **request: Any) -> Json:
        """A new optimization."""
        return await self._ask(_optimize(request, idempotency_key))

    async def optimizations(self, *, status: str | None = None) -> AsyncIterator[Json]:
        """All optimizations, the newest first."""
        cursor: str | None = None
        while True:
            params = {"limit": 100, "cursor": cursor, "status": status}
            given = {name: value for name, value in params.items() if value is not None}
            page = await self._ask(Call(method="GET", path=f"{PREFIX}/optimizations", params=given))
            for item in page["items"]:
                yield item
            cursor = page["next"]
            if cursor is None:
                return

    async def optimization(self, identity: str) -> Json:
        """One optimization, with its result once there is one."""
        return await self._ask(_of(identity))

    async def status(self, identity: str) -> Json:
        """How it is getting on."""
        return await self._ask(_of(identity, "status"))

    async def pause(self, identity: str) -> Json:
        """Stop it for now, soon."""
        return await self._ask(_of(identity, "pause", "POST"))

    async def resume(self, identity: str) -> Json:
        """Have it go on."""
        return await self._ask(_of(identity, "resume", "POST"))

    async def cancel(self, identity: str) -> Json:
        """Stop it, soon."""
        return await self._ask(_of(identity, "cancel", "POST"))

    async def certificate(self, identity: str) -> Json:
        """Its signed certificate."""
        return await self._ask(_of(identity, "certificate"))

    async def program(self, identity: str) -> Json:
        """The program to use from now on."""
        return await self._ask(_of(identity, "program"))

    async def events(self, identity: str, *, after: int = 0) -> AsyncIterator[StreamedEvent]:
        """Every event numbered above ``after``, in order and once, until it comes to rest; also across a restart."""
        lines, waits = _Lines(after), iter(self._retry_seconds)
        call = _of(identity, "events")
        while True:
            try:
                timeout = httpx.Timeout(NEWS_SECONDS, read=NEWS_SECONDS)
                asked = {"after": lines.after}
                async with self._http.stream(call.method, call.path, params=asked, timeout=timeout) as response:
                    if not response.is_success:
                        await response.aread()
                        _read(response)
                    async for line in response.aiter_lines():
                        waits = iter(self._retry_seconds)
                        event = lines.take(line)
                        if event is not None:
                            yield event
                if lines.ended:
                    return
            except (httpx.TransportError, StorageUnavailable) as error:
                seconds = next(waits, None)
                if seconds is None:
                    raise _unreachable(self._url, error) from error
                await asyncio.sleep(seconds)

    async def wait(self, identity: str) -> Json:
        """The optimization, once it has come to rest."""
        async for _ in self.events(identity):
            pass
        return await self.optimization(identity)

    async def _ask(self, call: Call) -> Json:
        waits = iter(self._retry_seconds)
        while True:
            seconds = next(waits, None)
            try:
                response = await self._http.request(
                    call.method, call.path, params=call.params, headers=call.headers, content=call.content
                )
                if seconds is None or not _worth_a_retry(response):
                    return _read(response)
            except httpx.TransportError as error:
                if seconds is None:
                    raise _unreachable(self._url, error) from error
            await asyncio.sleep(seconds)

"""The way to an agent that speaks A2A, by the protocol's own SDK; loaded only where an agent is of that kind.

The message has the texts in its metadata and, where the spec says so, data beside the text. A reply is read as JSON:
``text`` (all text parts), ``data`` (the first data part), ``state`` and ``metadata``.
"""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack
from typing import Any

import httpx
from a2a.client import A2ACardResolver, Client, ClientConfig, ClientFactory
from a2a.client.errors import A2AClientError, A2AClientTimeoutError, AgentCardResolutionError
from a2a.types.a2a_pb2 import Message, Part, Role, SendMessageRequest, StreamResponse, TaskState
from a2a.utils.constants import VERSION_HEADER
from a2a.utils.errors import A2AError, InternalError
from dspy.utils.exceptions import (
    LMConfigurationError,
    LMError,
    LMInvalidRequestError,
    LMServerError,
    LMTimeoutError,
    LMTransportError,
)
from google.protobuf.json_format import MessageToDict, ParseDict
from google.protobuf.struct_pb2 import Struct, Value

from ratchet.core.patience import retry_after
from ratchet.programs.agent_faults import QUOTED, failed, too_long
from ratchet.programs.agent_spec import AgentSpec
from ratchet.programs.loop import at_exit

DONE = (TaskState.TASK_STATE_COMPLETED, TaskState.TASK_STATE_INPUT_REQUIRED)
"""States in which a task has an answer; an agent that asks back has answered as well as it could."""


class _TooLong(Exception):
    """A reply with more bytes than allowed."""


class _Elsewhere(Exception):
    """A request to another host than the one in the spec."""


class _Bounded(httpx.AsyncHTTPTransport):
    """Talks to one host only, and reads no more of a reply than allowed."""

    def __init__(self, url: str, most: int) -> None:
        super().__init__()
        self._allowed = _place(httpx.URL(url))
        self._most = most

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """The reply to ``request``."""
        if _place(request.url) != self._allowed:
            raise _Elsewhere(str(request.url))
        response = await super().handle_async_request(request)
        response.stream = _Counted(response.stream, self._most)
        return response


def _place(url: httpx.URL) -> tuple[str, str, int | None]:
    return url.scheme, url.host, url.port


class _Counted(httpx.AsyncByteStream):
    def __init__(self, stream: Any, most: int) -> None:
        self._stream, self._most = stream, most

    async def __aiter__(self) -> AsyncIterator[bytes]:
        size = 0
        async for part in self._stream:
            size += len(part)
            if size > self._most:
                raise _TooLong
            yield part

    async def aclose(self) -> None:
        """Let the connection go."""
        await self._stream.aclose()


class A2A:
    """Messages to one agent, whose card is fetched once per event loop."""

    def __init__(self, spec: AgentSpec) -> None:
        self._spec = spec
        self._clients: dict[asyncio.AbstractEventLoop, asyncio.Task[Client]] = {}

    async def exchange(self, body: Any) -> str:
        """The reply to a message, as JSON.

        Raises:
            LMError: there is none.
        """
        spec = self._spec
        request = SendMessageRequest(message=_message(body))
        try:
            async with asyncio.timeout(spec.timeout_seconds):
                client = await self._client()
                last: StreamResponse | None = None
                async for event in client.send_message(request):
                    last = event
        except TimeoutError as error:
            raise LMTimeoutError(f"no answer in {spec.timeout_seconds:g} s", model=spec.name) from error
        except (A2AError, httpx.HTTPError, _TooLong, _Elsewhere) as error:
            raise self._meaning(error) from error
        if last is None:
            raise LMServerError("the agent sent no event", model=spec.name)
        return self._read(last)

    async def _client(self) -> Client:
        """The client, made by the first who needs it; one that could not be made is made anew."""
        loop = asyncio.get_running_loop()
        task = self._clients.get(loop)
        if task is None or (task.done() and (task.cancelled() or task.exception() is not None)):
            task = self._clients[loop] = asyncio.ensure_future(self._connected())
        return await asyncio.shield(task)

    async def _connected(self) -> Client:
        spec = self._spec
        http = httpx.AsyncClient(
            transport=_Bounded(spec.url, spec.max_reply_bytes),
            headers={VERSION_HEADER: "1.0", **spec.secrets()},
            timeout=spec.timeout_seconds,
            follow_redirects=False,
        )
        async with AsyncExitStack() as otherwise:
            otherwise.push_async_callback(http.aclose)
            card = await A2ACardResolver(http, spec.url).get_agent_card()
            otherwise.pop_all()
        at_exit(http.aclose)
        config = ClientConfig(httpx_client=http, streaming=False, supported_protocol_bindings=["JSONRPC", "HTTP+JSON"])
        try:
            return ClientFactory(config).create(card)
        except ValueError as error:
            raise A2AClientError(f"the agent's card cannot be used: {error}") from error

    def _meaning(self, error: BaseException) -> LMError:
        """What an error says of whose fault it is."""
        spec, cause = self._spec, error.__cause__
        chain = [each for each in (error, cause, getattr(cause, "__cause__", None)) if each is not None]
        for each in chain:
            if isinstance(each, _TooLong):
                return too_long(spec)
            if isinstance(each, _Elsewhere):
                return LMConfigurationError(
                    f"the agent's card sends to {each}, another host than that of the url in the spec; "
                    "if that is right, give the other host as url",
                    model=spec.name,
                )
            if isinstance(each, httpx.HTTPStatusError):
                reply = each.response
                text = reply.text if reply.is_stream_consumed else reply.reason_phrase
                return failed(spec, reply.status_code, text, wait=retry_after(reply.headers.get("Retry-After")))
            if isinstance(each, A2AClientTimeoutError | httpx.TimeoutException):
                return LMTimeoutError(f"no answer in {spec.timeout_seconds:g} s", model=spec.name)
            if isinstance(each, httpx.RequestError):
                return LMTransportError(str(each) or type(each).__name__, model=spec.name)
        if isinstance(error, AgentCardResolutionError):
            return LMConfigurationError(f"no agent's card at {spec.url}: {error}", model=spec.name)
        if isinstance(error, InternalError):
            return LMServerError(str(error)[:QUOTED], model=spec.name)
        return LMInvalidRequestError(f"{type(error).__name__}: {error}"[:QUOTED], model=spec.name)

    def _read(self, event: StreamResponse) -> str:
        """An event as the JSON that outputs are pointed at in.

        Raises:
            LMInvalidRequestError: the agent failed at the task, or refused it.
        """
        state, metadata = "completed", Struct()
        if event.HasField("task"):
            task = event.task
            parts = [part for artifact in task.artifacts for part in artifact.parts] or list(task.status.message.parts)
            metadata.CopyFrom(task.metadata)
            state = TaskState.Name(task.status.state).removeprefix("TASK_STATE_").lower()
            if task.status.state not in DONE:
                said = " ".join(part.text for part in task.status.message.parts if part.text)
                raise LMInvalidRequestError(f"the task is {state}: {said[:QUOTED]}", model=self._spec.name)
        else:
            parts = list(event.message.parts)
            metadata.CopyFrom(event.message.metadata)
        data = [MessageToDict(part.data) for part in parts if part.HasField("data")]
        found = {
            "text": "\n".join(part.text for part in parts if part.HasField("text")),
            "data": data[0] if data else None,
            "state": state,
            "metadata": MessageToDict(metadata),
        }
        return json.dumps(found, ensure_ascii=False)


def _message(body: Any) -> Message:
    """A body (``text``, ``data``, ``metadata``) as a message."""
    fields = body if isinstance(body, Mapping) else {"text": body}
    parts = []
    if fields.get("text") is not None:
        parts.append(Part(text=str(fields["text"])))
    if fields.get("data") is not None:
        parts.append(Part(data=ParseDict(fields["data"], Value())))
    message = Message(role=Role.ROLE_USER, message_id=str(uuid.uuid4()), parts=parts)
    if fields.get("metadata"):
        message.metadata.CopyFrom(ParseDict(fields["metadata"], Struct()))
    return message

"""The LM that programs and DSPy's optimizers see: it behaves as the user's own, and goes through the gateway."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from functools import wraps
from typing import Any

import dspy
from dspy._vendor.lm15.result import response_to_events
from dspy._vendor.lm15.types import StreamEvent
from dspy.clients._deprecation import adapter_message_call
from dspy.lm15 import Request, Response

from ratchet.core.errors import RatchetError
from ratchet.programs.gateway import Ask, Gateway
from ratchet.programs.ledger import Halt
from ratchet.programs.line import BESIDE, Line, LmCall, current_call
from ratchet.programs.outgoing import outgoing
from ratchet.programs.replies import response_of


def _leaving(gateway: Gateway, line: Line, request: Request) -> Request:
    """``request`` as it may leave.

    Raises:
        Halt: it could not be made so, and nothing more leaves: an optimizer would take another error for a bad prompt.
    """
    try:
        return outgoing(line, request)
    except RatchetError as error:
        gateway.halt(error)
        raise Halt(error) from error


class _Door:
    """The engine DSPy calls in a thread; what DSPy asks of an engine's capabilities is answered by the line."""

    def __init__(self, gateway: Gateway, line: Line) -> None:
        self.gateway = gateway
        self.line = line

    def __deepcopy__(self, memo: object) -> _Door:
        return self

    def __getattr__(self, name: str) -> Any:
        if name.startswith("support"):
            return getattr(self.line, name)
        raise AttributeError(name)

    def complete(self, request: Request) -> Response:
        """The reply to ``request``."""
        request = _leaving(self.gateway, self.line, request)
        return response_of(self.gateway.fetch(self.line, Ask(self.line.key(request), request)))

    def stream(self, request: Request) -> Iterator[StreamEvent]:
        """The reply to ``request``, whole, as DSPy reads one that comes in parts."""
        yield from response_to_events(self.complete(request))

    def close(self) -> None:
        """Nothing to close: connections belong to the line's own LM."""


class _AsyncDoor:
    """The engine DSPy awaits."""

    def __init__(self, gateway: Gateway, line: Line) -> None:
        self.gateway = gateway
        self.line = line

    def __deepcopy__(self, memo: object) -> _AsyncDoor:
        return self

    async def complete(self, request: Request) -> Response:
        """The reply to ``request``."""
        if self.line.clean is not None:  # long prompts take a while, and others are on this loop
            request = await asyncio.to_thread(_leaving, self.gateway, self.line, request)
        return response_of(await self.gateway.afetch(self.line, Ask(self.line.key(request), request)))

    async def stream(self, request: Request) -> AsyncIterator[StreamEvent]:
        """The reply to ``request``, whole, as DSPy reads one that comes in parts."""
        for event in response_to_events(await self.complete(request)):
            yield event

    async def aclose(self) -> None:
        """Nothing to close."""


class GatewayLM(dspy.LM):  # type: ignore[misc]
    """An LM as programs and DSPy's optimizers see it: it behaves as ``lm`` and goes through ``gateway``."""

    def __init__(self, gateway: Gateway, lm: dspy.BaseLM, line: Line) -> None:
        from dspy.clients.backend_selection import CLIENT_KEYS

        kwargs = {name: value for name, value in lm.kwargs.items() if name not in CLIENT_KEYS}
        if "max_completion_tokens" in kwargs:
            kwargs["max_tokens"] = kwargs.pop("max_completion_tokens")
        for name in BESIDE:
            kwargs.pop(name, None)
        super().__init__(
            lm.model,
            model_type=getattr(lm, "model_type", "chat"),
            cache=False,
            num_retries=0,
            engine=_Door(gateway, line),
            async_engine=_AsyncDoor(gateway, line),
            **kwargs,
        )
        self.gateway = gateway
        self.line = line

    def __deepcopy__(self, memo: object) -> GatewayLM:
        return self

    def __call__(self, prompt: Any = None, **kwargs: Any) -> Any:
        """Call the LM, noting the rollout it was called with."""
        token = current_call.set(LmCall(rollout={**self.kwargs, **kwargs}.get("rollout_id")))
        try:
            return super().__call__(prompt, **kwargs)
        finally:
            current_call.reset(token)

    async def acall(self, prompt: Any = None, **kwargs: Any) -> Any:
        """Await the LM, noting the rollout it was called with."""
        token = current_call.set(LmCall(rollout={**self.kwargs, **kwargs}.get("rollout_id")))
        try:
            return await super().acall(prompt, **kwargs)
        finally:
            current_call.reset(token)


_call, _acall = dspy.BaseLM.__call__, dspy.BaseLM.acall


def _door_of(lm: dspy.BaseLM) -> dspy.BaseLM | None:
    """The way out of the run in which ``lm`` is called; None outside of runs, and for one that is such a way."""
    door = None if isinstance(lm, GatewayLM) else dspy.settings.get("ratchet_door")
    return None if door is None else door(lm)


@wraps(_call)
def _called(self: dspy.BaseLM, prompt: Any = None, *, messages: Any = None, **options: Any) -> Any:
    if (door := _door_of(self)) is None:
        return _call(self, prompt, messages=messages, **options)
    with adapter_message_call(door, messages):
        return door(prompt, messages=messages, **options)


@wraps(_acall)
async def _awaited(self: dspy.BaseLM, prompt: Any = None, *, messages: Any = None, **options: Any) -> Any:
    if (door := _door_of(self)) is None:
        return await _acall(self, prompt, messages=messages, **options)
    with adapter_message_call(door, messages):
        return await door.acall(prompt, messages=messages, **options)


# A program may hold an LM where nobody finds it before it runs: in its file, in a closure, in ``dspy.context``. No
# limit would hold for such a one, so DSPy's LMs ask whether they are called in a run.
dspy.BaseLM.__call__, dspy.BaseLM.acall = _called, _awaited

"""A scripted LM that ships with Ratchet: a ``dspy.LM`` that answers from a function, without a server."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import dspy
from dspy.lm15 import Message, Request, Response, Usage

from ratchet.testing.lm_server import reply


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A request as a script reads it.

    Attributes:
        system: The system message.
        turns: Role and text of each message after it.
        number: How many requests came before this one.
        request: The whole of it.
    """

    system: str
    turns: tuple[tuple[str, str], ...]
    number: int
    request: Request

    @property
    def last(self) -> str:
        """The text of the last message."""
        return self.turns[-1][1]

    def by_the_rule(self) -> str:
        """What ``ratchet.testing.lm_server`` answers."""
        turns = [{"role": role, "content": text} for role, text in self.turns]
        return reply({"messages": [{"role": "system", "content": self.system}, *turns]})


Script = Callable[[Asked], "str | Exception"]
"""Says what is answered; an exception is raised. Engines raise the errors of ``dspy.lm15``."""


@dataclass
class Engine:
    """The engine behind a ``ScriptedLM``, for threads; it writes down what was asked.

    Attributes:
        script: Says what is answered.
        seconds: How long an answer takes.
        log: What was asked, in order.
        most_at_once: The most requests that were under way at one time.
    """

    script: Script = Asked.by_the_rule
    seconds: float = 0.0
    log: list[Asked] = field(default_factory=list)
    most_at_once: int = 0
    supports_response_schema: bool = False
    supports_function_calling: bool = False
    _at_once: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __deepcopy__(self, memo: object) -> Engine:
        return self

    def arrived(self, request: Request) -> Asked:
        """Write ``request`` down."""
        system = request.system or ""
        asked = Asked(
            system=system if isinstance(system, str) else "".join(getattr(part, "text", "") for part in system),
            turns=tuple(
                (message.role, "".join(getattr(part, "text", "") for part in message.parts))
                for message in request.messages
            ),
            number=len(self.log),
            request=request,
        )
        with self._lock:
            self.log.append(asked)
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
        return asked

    def answered(self, asked: Asked) -> Response:
        """The script's answer."""
        with self._lock:
            self._at_once -= 1
        text = self.script(asked)
        if isinstance(text, Exception):
            raise text
        size = len(asked.system) + sum(len(turn) for _, turn in asked.turns)
        return Response(
            id=None,
            model=asked.request.model,
            message=Message.assistant(text),
            finish_reason="stop",
            usage=Usage(input_tokens=size // 4, output_tokens=len(text) // 4, total_tokens=size // 4 + len(text) // 4),
        )

    def complete(self, request: Request) -> Response:
        """The answer to ``request``."""
        asked = self.arrived(request)
        time.sleep(self.seconds)
        return self.answered(asked)

    def close(self) -> None:
        """Nothing to close."""


class AsyncEngine:
    """The same engine, for tasks."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def __deepcopy__(self, memo: object) -> AsyncEngine:
        return self

    async def complete(self, request: Request) -> Response:
        """The answer to ``request``."""
        asked = self.engine.arrived(request)
        await asyncio.sleep(self.engine.seconds)
        return self.engine.answered(asked)

    async def aclose(self) -> None:
        """Nothing to close."""


class ScriptedLM(dspy.LM):  # type: ignore[misc]
    """An LM that answers from a function, by default by the rule of ``ratchet.testing.lm_server``.

    Args:
        script: Says what is answered.
        seconds: How long an answer takes.
        model: Its name.
        options: What any ``dspy.LM`` takes.

    >>> lm = ScriptedLM(lambda asked: f"You said {asked.last}.")
    >>> lm("hello")
    ['You said hello.']
    >>> len(lm.log)
    1
    """

    def __init__(
        self, script: Script = Asked.by_the_rule, *, seconds: float = 0.0, model: str = "scripted/lm", **options: Any
    ) -> None:
        self.script = Engine(script=script, seconds=seconds)
        super().__init__(
            model,
            cache=False,
            num_retries=0,
            engine=self.script,
            async_engine=AsyncEngine(self.script),
            **options,
        )

    @property
    def log(self) -> list[Asked]:
        """What was asked, in order, over all copies of this LM."""
        return self.script.log


def fields(**values: object) -> str:
    """An answer in the form of DSPy's ChatAdapter.

    >>> print(fields(label="amber"))
    [[ ## label ## ]]
    amber
    <BLANKLINE>
    [[ ## completed ## ]]
    """
    parts = [f"[[ ## {name} ## ]]\n{value}" for name, value in values.items()]
    return "\n\n".join([*parts, "[[ ## completed ## ]]"])

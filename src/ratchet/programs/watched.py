"""Tells whoever watches (``telemetry.observer``) of each request to an LM, sent or known before."""

from __future__ import annotations

from collections.abc import Callable

from ratchet.programs import telemetry
from ratchet.programs.journal import Reply
from ratchet.programs.line import Line


class Watched:
    """Tells whoever watches of one request with all its retries."""

    __slots__ = ("_began", "_clock", "_line", "_observer", "reply", "retries")

    def __init__(self, line: Line, clock: Callable[[], float]) -> None:
        self._line, self._clock, self._observer = line, clock, telemetry.observer
        self.reply: Reply | None = None
        self.retries = 0
        self._began = 0.0

    def __enter__(self) -> Watched:
        if self._observer is not None:
            self._began = self._clock()
            self._observer.request_started(model=self._line.model, role=self._line.role)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._observer is None:
            return
        reply = self.reply
        self._observer.request_ended(
            model=self._line.model,
            role=self._line.role,
            status=telemetry.OK if kind is None else kind.__name__,
            seconds=self._clock() - self._began,
            prompt_tokens=reply.prompt_tokens if reply else 0,
            completion_tokens=reply.completion_tokens if reply else 0,
            cost_usd=reply.cost_usd if reply else None,
            retries=self.retries,
            cached=False,
        )


def watch_recorded(line: Line, reply: Reply) -> None:
    """Tell whoever watches of a request that was not sent, because its reply was known."""
    if telemetry.observer is not None:
        telemetry.observer.request_started(model=line.model, role=line.role)
        telemetry.observer.request_ended(
            model=line.model,
            role=line.role,
            status=telemetry.OK,
            seconds=0.0,
            prompt_tokens=reply.prompt_tokens,
            completion_tokens=reply.completion_tokens,
            cost_usd=reply.cost_usd,
            retries=0,
            cached=True,
        )

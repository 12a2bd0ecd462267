"""A search driven by hand, one answer at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from ratchet.core.algorithm import Algorithm, Evaluate, Generate, Reply, Request, Start, Tell, Together, Wait
from ratchet.core.problem import Candidate

Part: TypeAlias = Evaluate | Generate


class ByHand:
    """Answers a search in the order in which it asked, so that a test reads what it asks for next.

    Attributes:
        asked: What it asked for since the last answer, each part of a ``Together`` by itself.
        finalists: What it returned; None while it goes on.

    >>> from ratchet.core.algorithm import generate
    >>> def rewrite(name):
    ...     text = yield from generate(f"Rewrite {name}.")
    ...     return [text]
    >>> search = ByHand(rewrite("answer"))
    >>> search.asked
    [Generate(prompt='Rewrite answer.', temperature=1.0, n=1)]
    >>> search.answer(lambda part: ("Be brief.",))
    []
    >>> search.finalists
    ['Be brief.']
    """

    def __init__(self, search: Algorithm) -> None:
        self._search = search
        self._started: list[Part | Together] = []
        self._open: Part | Together | None = None
        self._ticket: int | None = None
        self.finalists: Sequence[Candidate] | None = None
        self.asked: list[Part] = []
        self._go_on(None)

    def answer(self, reply: Callable[[Part], Any]) -> list[Part]:
        """Answer what the search waits for, each part with ``reply`` of it; what it asks for then."""
        work = self._open
        assert work is not None, "the search has ended"
        answered = [reply(each) for each in work.requests] if isinstance(work, Together) else reply(work)
        self._go_on(answered if self._ticket is None else (self._ticket, answered))
        return self.asked

    def _go_on(self, reply: Reply) -> None:
        self.asked, self._open, self._ticket = [], None, None
        while self._open is None:
            try:
                request: Request = self._search.send(reply)
            except StopIteration as end:
                self.finalists = end.value
                return
            match request:
                case Start(work):
                    self._started.append(work)
                    self._ask(work)
                    reply = len(self._started)
                case Wait(among):
                    self._ticket = min(among or range(1, 1 + len(self._started)))
                    self._open = self._started[self._ticket - 1]
                case Tell():
                    reply = None
                case _:
                    self._open = request
                    self._ask(request)

    def _ask(self, work: Part | Together) -> None:
        self.asked += work.requests if isinstance(work, Together) else (work,)

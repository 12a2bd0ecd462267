"""The contract between an algorithm and whoever drives it.

An algorithm is a generator: it yields a request and receives the reply. It does no I/O, so it reads like the paper's
pseudo-code, is tested by hand with ``send``, and resumes after a crash by replaying recorded replies.

>>> from ratchet.core.problem import Candidate, PredictorState
>>> seed = Candidate(predictors={"answer": PredictorState(instructions="Answer.")})
>>> def one_rewrite(problem, *, rng):
...     text = yield from generate("Write better instructions.")
...     return [seed.with_instructions("answer", text, origin="one rewrite")]
>>> search = one_rewrite(None, rng=None)
>>> next(search)
Generate(prompt='Write better instructions.', temperature=1.0, n=1)
>>> try:
...     search.send(("Answer in one word.",))
... except StopIteration as end:
...     end.value[0].predictors["answer"].instructions
'Answer in one word.'
"""

from __future__ import annotations

import heapq
import random
from collections import deque
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeAlias, TypeVar, cast

from ratchet.core.errors import BrokenContract, BudgetSpent
from ratchet.core.evaluation import Evaluations
from ratchet.core.problem import Candidate, Example, Problem


@dataclass(frozen=True, slots=True)
class Evaluate:
    """Run ``candidate`` on ``examples``; the reply is ``Evaluations``, one row per example and repeat, in order.

    Raises into the generator:
        BudgetSpent: the budget does not pay for it.
    """

    candidate: Candidate
    examples: tuple[Example, ...]
    repeats: int = 1


@dataclass(frozen=True, slots=True)
class Generate:
    """Ask the reflection LM; the reply is a tuple of ``n`` texts. Asking the same prompt again gives another answer."""

    prompt: str
    temperature: float = 1.0
    n: int = 1


@dataclass(frozen=True, slots=True)
class Together:
    """Carry out ``requests`` concurrently; the reply is the list of their replies, in order."""

    requests: tuple[Evaluate | Generate, ...]


@dataclass(frozen=True, slots=True)
class Start:
    """Begin to carry out ``request`` and go on at once; the reply is its ticket, an int greater than any before.

    What is still under way when the algorithm ends is called off.

    Raises into the generator:
        BudgetSpent: the budget does not pay for it, next to what is under way; it was not begun.
    """

    request: Evaluate | Generate | Together


@dataclass(frozen=True, slots=True)
class Wait:
    """Wait for what was started; the reply is (ticket, reply) of what is done first among the tickets ``among``.

    Without ``among`` all that is under way is waited for. Each ticket is handed over once. Which one is done first is
    written down, so that a resumed search sees the same order; a search that only waits for one ticket at a time does
    not depend on the order at all.

    Raises into the generator:
        BudgetSpent: the budget ended while a ticket was under way; ``values["ticket"]`` tells which.
    """

    among: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Tell:
    """Say in the result, and to whoever watches, why the search does what it does; free, and the reply is None."""

    text: str
    data: Mapping[str, Any] = field(default_factory=dict)


Request: TypeAlias = Evaluate | Generate | Together | Start | Wait | Tell
Reply: TypeAlias = Any
Algorithm: TypeAlias = Generator[Request, Reply, Sequence[Candidate]]
"""Yields requests, receives replies, returns its finalists, best first."""

T = TypeVar("T")
A = TypeVar("A")
B = TypeVar("B")
Steps: TypeAlias = Generator[Request, Reply, T]
"""A part of an algorithm that gives back a ``T``; run it with ``yield from``."""


class Search(Protocol):
    """How an algorithm is started: a function of the problem and a seeded source of randomness."""

    def __call__(self, problem: Problem, *, rng: random.Random) -> Algorithm: ...


def evaluate(candidate: Candidate, examples: Sequence[Example], *, repeats: int = 1) -> Steps[Evaluations]:
    """Evaluations of ``candidate`` on ``examples``."""
    return cast(Evaluations, (yield Evaluate(candidate, tuple(examples), repeats)))


def generate(prompt: str, *, temperature: float = 1.0) -> Steps[str]:
    """One text from the reflection LM."""
    texts = yield Generate(prompt, temperature)
    return cast(str, texts[0])


def together(requests: Sequence[Evaluate | Generate]) -> Steps[list[Any]]:
    """Replies to ``requests``, which run concurrently."""
    if not requests:
        return []
    return cast(list[Any], (yield Together(tuple(requests))))


def start(request: Evaluate | Generate | Together) -> Steps[int]:
    """The ticket of ``request``, which is under way from now on.

    >>> def two_texts(problem, *, rng):
    ...     short = yield from start(Generate("Be brief."))
    ...     long = yield from start(Generate("Be thorough."))
    ...     first, texts = yield from wait()
    ...     print("brief" if first == short else "thorough", texts)
    ...     yield from wait(long if first == short else short)
    ...     return []
    >>> search = two_texts(None, rng=None)
    >>> next(search)
    Start(request=Generate(prompt='Be brief.', temperature=1.0, n=1))
    >>> search.send(1)
    Start(request=Generate(prompt='Be thorough.', temperature=1.0, n=1))
    >>> search.send(2)
    Wait(among=())
    >>> search.send((2, ("A long text.",)))
    thorough ('A long text.',)
    Wait(among=(1,))
    """
    return cast(int, (yield Start(request)))


def wait(*among: int) -> Steps[tuple[int, Any]]:
    """Ticket and reply of what is done first among these tickets; of all that is under way when none are given."""
    return cast(tuple[int, Any], (yield Wait(among)))


def tell(text: str, **data: Any) -> Steps[None]:
    """Have ``text`` stand among the result's notes; ``data`` says the same to programs."""
    yield Tell(text, data)


@dataclass(slots=True)
class _Part(Generic[T]):
    """A part under way: the tickets it started and those it waits for, and whether it wants the bare reply."""

    steps: Steps[T]
    started: set[int] = field(default_factory=set)
    waits_for: tuple[int, ...] = ()
    bare: bool = True


class Timetable:
    """When things would be done if all runs and texts took the same time.

    Runs begin in the order in which they were asked for, as soon as one of the slots is free; texts need no slot. Time
    is counted in runs and stands at the end of what was taken up last.

    >>> from ratchet.core.problem import PredictorState
    >>> seed = Candidate(predictors={"answer": PredictorState(instructions="Answer.")})
    >>> three = tuple(Example(inputs={"question": number}, labels={}) for number in range(3))
    >>> table = Timetable(slots=2)
    >>> table.add(1, Evaluate(seed, three))
    >>> table.add(2, Generate("Write better instructions."))
    >>> table.first([1, 2]), table.first([1])
    ((2,), (1,))
    """

    def __init__(self, slots: int) -> None:
        self._free = [0.0] * slots
        self._done: dict[int, float] = {}
        self._now = 0.0

    def add(self, ticket: int, work: Evaluate | Generate | Together) -> None:
        """Note that ``work`` is under way from now on."""
        done = self._now
        for part in work.requests if isinstance(work, Together) else (work,):
            if isinstance(part, Generate):
                done = max(done, self._now + 1)
                continue
            for _ in range(len(part.examples) * part.repeats):
                end = max(self._now, heapq.heappop(self._free)) + 1
                heapq.heappush(self._free, end)
                done = max(done, end)
        self._done[ticket] = done

    def first(self, among: Sequence[int]) -> tuple[int]:
        """What is done first of ``among``, as the one to wait for; time goes on to then."""
        ticket = min(among, key=lambda each: (self._done[each], each))
        self._now = max(self._now, self._done.pop(ticket))
        return (ticket,)


class Parts(Generic[T]):
    """Parts of an algorithm that are under way side by side; each goes on as soon as its own request is answered.

    A part may ask for whatever an algorithm may. When the budget does not pay for it, ``BudgetSpent`` is raised into
    that part; a part that does not catch it ends, and ``begin`` or ``next_result`` raises it. The others stay as they
    are.

    Args:
        slots: When given, replies are taken up in the order in which they would be done if all runs and texts took
            equally long and so many could be under way at once. What comes of it then does not depend on time, and
            little is lost by it. Else whatever is done first is taken up first.
    """

    def __init__(self, *, slots: int | None = None) -> None:
        self._timetable = None if slots is None else Timetable(slots)
        self._begun = 0
        self._under_way: dict[int, _Part[T]] = {}
        self._ended: deque[tuple[int, T]] = deque()

    def __len__(self) -> int:
        return len(self._under_way) + len(self._ended)

    def begin(self, steps: Steps[T]) -> Steps[int]:
        """Begin a part; its number, from 0."""
        number = self._begun
        self._begun += 1
        self._under_way[number] = _Part(steps)
        yield from self._go_on(number, None)
        return number

    def next_result(self) -> Steps[tuple[int, T]]:
        """Number and result of the next part that ends. There must be one under way."""
        while not self._ended:
            tickets = sorted(ticket for part in self._under_way.values() for ticket in part.waits_for)
            try:
                ticket, reply = yield from wait(*(self._timetable.first(tickets) if self._timetable else tickets))
            except BudgetSpent as spent:
                yield from self._go_on(self._taken(spent.values["ticket"]), spent)
                continue
            number = self._taken(ticket)
            yield from self._go_on(number, reply if self._under_way[number].bare else (ticket, reply))
        return self._ended.popleft()

    def _taken(self, ticket: object) -> int:
        """The part that waited for ``ticket``."""
        number = next(number for number, part in self._under_way.items() if ticket in part.waits_for)
        self._under_way[number].started.discard(cast(int, ticket))
        return number

    def _go_on(self, number: int, reply: Any) -> Steps[None]:
        """Hand ``reply`` to a part, or raise it there, until it waits for something."""
        part = self._under_way.pop(number)  # a part that raises is not under way any more
        while True:
            try:
                raised = isinstance(reply, BudgetSpent)
                request = part.steps.throw(reply) if raised else part.steps.send(reply)
            except StopIteration as end:
                self._ended.append((number, end.value))
                return
            if isinstance(request, Wait):
                part.waits_for, part.bare = request.among or tuple(part.started), False
                if not part.waits_for:
                    raise BrokenContract("a part waits, and it has nothing under way")
                break
            try:
                if isinstance(request, Tell):
                    reply = yield request
                    continue
                if not isinstance(request, Start):
                    part.waits_for, part.bare = ((yield from self._start(request)),), True
                    break
                reply = yield from self._start(request.request)
                part.started.add(reply)
            except BudgetSpent as spent:
                reply = spent
        self._under_way[number] = part

    def _start(self, work: Evaluate | Generate | Together) -> Steps[int]:
        ticket = yield from start(work)
        if self._timetable is not None:
            self._timetable.add(ticket, work)
        return ticket


def in_parallel(parts: Sequence[Steps[T]]) -> Steps[list[T]]:
    """Run several parts of an algorithm side by side and give back their results, in order.

    Each part goes on as soon as its own request is answered. An exception that a part does not catch ends all parts.
    """
    under_way: Parts[T] = Parts()
    for part in parts:
        yield from under_way.begin(part)
    results: dict[int, T] = {}
    while under_way:
        number, result = yield from under_way.next_result()
        results[number] = result
    return [results[number] for number in range(len(parts))]


def both(first: Steps[A], second: Steps[B]) -> Steps[tuple[A, B]]:
    """Run two parts of an algorithm side by side and give back what each of them gives."""
    parts: list[Steps[Any]] = [first, second]
    a, b = yield from in_parallel(parts)
    return a, b

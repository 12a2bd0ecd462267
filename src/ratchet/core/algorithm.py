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

import random
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias, TypeVar, cast

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


Request: TypeAlias = Evaluate | Generate | Together
Reply: TypeAlias = Any
Algorithm: TypeAlias = Generator[Request, Reply, Sequence[Candidate]]
"""Yields requests, receives replies, returns its finalists, best first."""

T = TypeVar("T")
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


def in_parallel(parts: Sequence[Steps[T]]) -> Steps[list[T]]:
    """Run several parts of an algorithm side by side and give back their results, in order.

    Each turn gathers what every unfinished part asks for into one ``Together``. An exception thrown into the search
    ends all parts.
    """
    results: dict[int, T] = {}
    replies: dict[int, Any] = dict.fromkeys(range(len(parts)))
    while replies:
        asked: dict[int, Request] = {}
        for index, reply in replies.items():
            try:
                asked[index] = parts[index].send(reply)
            except StopIteration as end:
                results[index] = end.value
        flat: list[Evaluate | Generate] = []
        for request in asked.values():
            flat.extend(request.requests if isinstance(request, Together) else (request,))
        answers = iter((yield from together(flat)))
        replies = {
            index: [next(answers) for _ in request.requests] if isinstance(request, Together) else next(answers)
            for index, request in asked.items()
        }
    return [results[index] for index in range(len(parts))]

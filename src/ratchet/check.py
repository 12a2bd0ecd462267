"""Whether an algorithm keeps its promises: it is run on synthetic problems, without an LM."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from ratchet.core.algorithm import Search
from ratchet.core.errors import BrokenContract, BrokenProtocol, BudgetSpent
from ratchet.core.problem import Candidate
from ratchet.programs.remote_algorithm import Link, RemoteAlgorithm, broken, read_answer
from ratchet.testing import AlgorithmConformance, Order, SyntheticProblem

GAIN = "test_the_toy_problem_is_solved_with_most_seeds"
"""The one promise that is about how good a search is; the others say that it can be used at all."""
AGAIN = "a turn that comes twice gets the same answer"
"""What a server promises beside; one that does not is in order until an answer is lost on the way."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Promise:
    """One promise of ``AlgorithmConformance``, or of a server, and whether it was kept.

    Attributes:
        what: The promise.
        kept: Whether it was.
        where: When it was not: turn, what was found, what was expected.
        required: Whether an algorithm that does not keep it is refused.
    """

    what: str
    kept: bool
    where: str = ""
    required: bool = True


def check(search: Search, name: str) -> Iterator[Promise]:
    """Each promise, as soon as it is known whether ``search`` keeps it.

    A server that broke its protocol is not asked again: it may hang, and would do so each time.

    >>> def stubborn(problem, *, rng):
    ...     return [problem.seed]
    ...     yield
    >>> [promise.what for promise in check(stubborn, "stubborn") if not promise.kept]
    ['the toy problem is solved with most seeds']
    """
    conformance = _Conformance(search, name)
    for method in [each for each in vars(AlgorithmConformance) if each.startswith("test_")]:
        what, required = method.removeprefix("test_").replace("_", " "), method != GAIN
        conformance.toy = None
        try:
            getattr(conformance, method)()
        except (AssertionError, BrokenContract, BudgetSpent) as error:
            where = str(error) if not isinstance(error, BudgetSpent) else f"{name} let the end of the budget pass"
            yield Promise(what=what, kept=False, where=f"{where}{conformance.problem}", required=required)
            if isinstance(error, BrokenProtocol):
                return
        else:
            yield Promise(what=what, kept=True, required=required)
    if isinstance(search, RemoteAlgorithm):
        yield asked_twice(search)


def asked_twice(search: RemoteAlgorithm) -> Promise:
    """Whether a server can be sent a turn again whose answer was lost."""
    link = _Twice(**{each.name: getattr(search.link, each.name) for each in fields(Link)})
    try:
        SyntheticProblem(runs=100).solve(RemoteAlgorithm(link=link, identity=f"{search.identity}-twice"))
    except (BrokenContract, BudgetSpent) as error:
        return Promise(what=AGAIN, kept=False, where=str(error), required=False)
    return Promise(what=AGAIN, kept=True, required=False)


class _Twice(Link):
    """Sends each message again, as if its answer had been lost."""

    __slots__ = ()

    def exchange(self, message: Mapping[str, Any]) -> bytes:
        """The answer that came both times."""
        first, again = super().exchange(message), super().exchange(message)
        turn = message["turn"]
        if read_answer(self.url, turn, first) != read_answer(self.url, turn, again):
            raise broken(self.url, turn, "answer", "it is another one when the same message comes again; keep the last")
        return again


class _Conformance(AlgorithmConformance):
    """Remembers the problem under way."""

    toy: SyntheticProblem | None = None

    def __init__(self, search: Search, name: str) -> None:
        self.search = search
        self._name = name

    @property
    def name(self) -> str:
        """What the algorithm is called in messages."""
        return self._name

    def solved(self, toy: SyntheticProblem, *, seed: int = 0, order: Order | None = None) -> Sequence[Candidate]:
        """The finalists."""
        self.toy = toy
        return super().solved(toy, seed=seed, order=order)

    @property
    def problem(self) -> str:
        """The problem under way, in words."""
        toy = self.toy
        if toy is None:
            return ""
        words = [f"seed {toy.seed}", f"{toy.runs} runs", f"{toy.n_train} + {toy.n_validation} examples"]
        words += [f"predictors {', '.join(toy.predictors)}"]
        words += [f"{toy.fails:.0%} of the runs fail"] if toy.fails else []
        words += ["hopeless"] if toy.hopeless else []
        words += [f"the reflection LM writes {toy.texts[0][:20]!r}"] if toy.texts else []
        words += [f"the budget ends at request {toy.stop_at}"] if toy.stop_at is not None else []
        return f" [on a synthetic problem: {'; '.join(words)}]"

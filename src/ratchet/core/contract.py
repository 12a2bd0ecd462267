"""An eye on every turn of a search that is not Ratchet's own: what the contract does not allow is told at once."""

from __future__ import annotations

import traceback
from collections.abc import Generator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from ratchet.core.algorithm import Algorithm, Evaluate, Generate, Search, Start, Tell, Together, Wait
from ratchet.core.errors import BrokenContract, BudgetSpent, RatchetError
from ratchet.core.problem import Candidate, PredictorState, Problem

PATIENCE = 10
"""How often a search may ask for more after it was told that the budget is spent."""
IDLE_TURNS = 10_000
"""How many turns in a row may ask for nothing new."""
REQUESTS = "Evaluate, Generate, Together, Start, Wait or Tell"


def watched(search: Search, name: str) -> Search:
    """``search``, stopped with ``BrokenContract`` at the first turn that breaks the contract.

    The message names the algorithm, the turn (the first request is turn 1), what was found and what was expected.

    >>> def liar(problem, *, rng):
    ...     yield "a better prompt, please"
    >>> seed = Candidate(predictors={"answer": PredictorState(instructions="Answer.")})
    >>> from ratchet.core.problem import Budget
    >>> problem = Problem(seed=seed, predictors=(), train=(), validation=(), budget=Budget(runs=10))
    >>> next(watched(liar, "liar")(problem, rng=None))
    Traceback (most recent call last):
    ratchet.core.errors.BrokenContract: liar, turn 1: it yielded 'a better prompt, please'; expected Evaluate, ...
    """

    def search_watched(problem: Problem, *, rng: Any) -> Algorithm:
        watch = _Watch(name, problem)
        algorithm = watch.begun(search, rng)
        reply: Any = None
        try:
            while True:
                watch.turn += 1
                try:
                    spent = isinstance(reply, BudgetSpent)
                    request = algorithm.throw(reply) if spent else algorithm.send(reply)
                except StopIteration as end:
                    return watch.finalists(end.value)
                except RatchetError:
                    raise
                except Exception as error:  # foreign code
                    raise watch.raised(error) from error
                watch.look_at(request)
                if isinstance(request, Tell):
                    request = Tell(request.text)  # what stands in its data is between Ratchet's own parts
                try:
                    reply = yield request
                except BudgetSpent as error:
                    reply = error
                    watch.refused(error)
                else:
                    watch.answered(request, reply)
        finally:
            with suppress(Exception):  # foreign code may do anything when it is closed; it has had its say
                algorithm.close()

    return search_watched


class _Watch:
    """What one search has done so far."""

    def __init__(self, name: str, problem: Problem) -> None:
        self.name, self.problem, self.turn = name, problem, 0
        self._examples = frozenset((*problem.train, *problem.validation))
        self._known = {problem.seed.key}
        self._asked: set[tuple[str, str, int]] = set()
        self._tickets: set[int] = set()
        self._idle = self._refusals = 0

    def broken(self, found: str, expected: str) -> BrokenContract:
        """What to raise."""
        return BrokenContract(f"{self.name}, turn {self.turn}: {found}; expected {expected}", turn=self.turn)

    def begun(self, search: Search, rng: Any) -> Generator[Any, Any, Any]:
        """The search, begun.

        Raises:
            BrokenContract: it is no generator.
        """
        self.turn = 1
        try:
            algorithm = search(self.problem, rng=rng)
        except RatchetError:
            raise
        except Exception as error:  # foreign code
            raise self.raised(error) from error
        if not isinstance(algorithm, Generator):
            raise self.broken(f"calling it gave {_short(algorithm)}", "a generator: a function that yields requests")
        self.turn = 0
        return algorithm

    def raised(self, error: Exception) -> BrokenContract:
        """What to raise when the search raised."""
        frames = traceback.extract_tb(error.__traceback__)
        place = f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""
        return self.broken(f"it raised {type(error).__name__}: {error}{place}", "a request or the finalists")

    def refused(self, spent: BudgetSpent) -> None:
        """Note that the budget did not pay for what was asked.

        Raises:
            BrokenContract: it was told often enough.
        """
        self._tickets.discard(spent.values.get("ticket", 0))
        self._refusals += 1
        if self._refusals > PATIENCE:
            raise self.broken(f"it went on asking after {PATIENCE} times BudgetSpent", "its finalists")

    def answered(self, request: Any, reply: Any) -> None:
        """Keep book of the tickets."""
        if isinstance(request, Start):
            self._tickets.add(reply)
        elif isinstance(request, Wait):
            self._tickets.discard(reply[0])

    def look_at(self, request: Any) -> None:
        """See whether the contract allows ``request``.

        Raises:
            BrokenContract: it does not.
        """
        before = len(self._asked)
        new = False
        match request:
            case Wait(among):
                if not self._tickets:
                    raise self.broken("it yielded Wait, and nothing is under way", "a Start before it")
                if unknown := set(among) - self._tickets:
                    raise self.broken(
                        f"it waits for the tickets {sorted(unknown)}", f"some of {sorted(self._tickets)}, each once"
                    )
            case Start(work):
                new = self._parts(work, within="Start")
            case Tell(text):
                if not isinstance(text, str):
                    raise self.broken(f"Tell.text is {_short(text)}", "a text")
            case _:
                new = self._parts(request)
        self._idle = 0 if new or len(self._asked) > before else self._idle + 1
        if self._idle > IDLE_TURNS:
            raise self.broken(f"it asked for nothing new in {IDLE_TURNS} turns", "something new, or its finalists")

    def _parts(self, work: Any, within: str = "") -> bool:
        """See to the parts of ``work``; whether it asks for texts, which are always new."""
        match work:
            case Evaluate():
                self._evaluate(work)
                return False
            case Generate():
                self._generate(work)
                return True
            case Together(requests) if isinstance(requests, tuple) and requests and within != "Together":
                texts = [self._parts(each, within="Together") for each in requests]
                return any(texts)
        allowed = {"": REQUESTS, "Start": "Evaluate, Generate or Together", "Together": "Evaluate or Generate"}[within]
        raise self.broken(f"it yielded {_short(work)}{' in a ' + within if within else ''}", allowed)

    def _evaluate(self, work: Evaluate) -> None:
        if not isinstance(work.candidate, Candidate):
            raise self.broken(f"Evaluate.candidate is {_short(work.candidate)}", "a Candidate")
        self._candidate(work.candidate, "Evaluate.candidate")
        if not isinstance(work.examples, tuple) or not work.examples:
            raise self.broken(f"Evaluate.examples is {_short(work.examples)}", "a tuple of at least one Example")
        for index, example in enumerate(work.examples):
            if example not in self._examples:
                raise self.broken(
                    f"Evaluate.examples[{index}] is {_short(example)}", "an example of problem.train or .validation"
                )
        if type(work.repeats) is not int or work.repeats < 1:
            raise self.broken(f"Evaluate.repeats is {_short(work.repeats)}", "a whole number of at least 1")
        self._asked.update((work.candidate.key, one.key, n) for one in work.examples for n in range(work.repeats))

    def _generate(self, work: Generate) -> None:
        if not isinstance(work.prompt, str) or not work.prompt.strip():
            raise self.broken(f"Generate.prompt is {_short(work.prompt)}", "a text")
        if not isinstance(work.temperature, int | float) or not 0 <= work.temperature <= 2:
            raise self.broken(f"Generate.temperature is {_short(work.temperature)}", "a number from 0 to 2")
        if type(work.n) is not int or work.n < 1:
            raise self.broken(f"Generate.n is {_short(work.n)}", "a whole number of at least 1")

    def _candidate(self, candidate: Candidate, where: str) -> None:
        """See whether ``candidate`` is one of this program's, with known parents."""
        if candidate.key in self._known:
            return
        seed = self.problem.seed
        if list(candidate.predictors) != list(seed.predictors):
            raise self.broken(f"{where} has the predictors {list(candidate.predictors)}", f"{list(seed.predictors)}")
        if not candidate.parents or not self._known.issuperset(candidate.parents):
            raise self.broken(
                f"{where} has the parents {candidate.parents}",
                "keys of candidates seen before: make children with with_instructions, with_demos, with_predictors",
            )
        if not candidate.origin:
            raise self.broken(f"{where} has no origin", "what made it, in a few words")
        for name, state in candidate.predictors.items():
            self._state(state, name, f"{where}.predictors[{name!r}]")
        self._known.add(candidate.key)

    def _state(self, state: PredictorState, name: str, where: str) -> None:
        """See whether what differs from the seed has a place in the prompt; the seed is the user's own affair."""
        before = self.problem.seed.predictors[name]
        if state.instructions != before.instructions and not (
            isinstance(state.instructions, str) and state.instructions.strip()
        ):
            raise self.broken(f"{where}.instructions is {_short(state.instructions)}", "a text")
        spec = next((each for each in self.problem.predictors if each.name == name), None)
        fields = {each.name for each in (*spec.inputs, *spec.outputs)} if spec is not None else None
        if state.demos != before.demos and spec is not None and not spec.takes_demos:
            raise self.broken(f"{where} has {len(state.demos)} demos", "none: they have no place in its prompt")
        for index, demo in enumerate(state.demos):
            if demo not in before.demos and not (demo and (fields is None or fields.issuperset(demo))):
                expected = f"values of some of {sorted(fields)}" if fields is not None else "at least one field"
                raise self.broken(f"{where}.demos[{index}] has the fields {sorted(demo)}", expected)

    def finalists(self, found: Any) -> Sequence[Candidate]:
        """What the search returned.

        Raises:
            BrokenContract: these are no finalists.
        """
        what = "its finalists: a sequence of at least one Candidate, best first, each once"
        if not isinstance(found, Sequence) or not found or not all(isinstance(each, Candidate) for each in found):
            raise self.broken(f"it returned {_short(found)}", what)
        for index, each in enumerate(found):
            self._candidate(each, f"finalists[{index}]")
        if len({each.key for each in found}) < len(found):
            raise self.broken("it returned a finalist twice", what)
        return list(found)


def _short(value: object, longest: int = 120) -> str:
    """``value`` as it may stand in a message."""
    text = repr(value)
    return text if len(text) <= longest else f"{text[: longest - 3]}..."

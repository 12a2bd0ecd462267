"""An eye on every turn of a search that is not Ratchet's own: what the contract does not allow is told at once."""

from __future__ import annotations

import math
import threading
import time
import traceback
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import Future, wait
from contextlib import suppress
from contextvars import copy_context
from itertools import count
from pathlib import Path
from typing import Any

from ratchet.core.algorithm import Algorithm, Evaluate, Generate, Search, Start, Tell, Together, Wait
from ratchet.core.errors import BrokenContract, BudgetSpent, RatchetError
from ratchet.core.problem import Candidate, PredictorState, Problem

PATIENCE = 10
"""How often a search may ask for more after it was told that the budget is spent."""
IDLE_TURNS = 10_000
"""How many turns in a row may ask for nothing new."""
POLL_SECONDS = 0.1
"""How often it is looked whether a turn under way is to be ended."""
FOREIGN = (Exception, SystemExit, KeyboardInterrupt)
"""What foreign code may raise; the loop that all optimizations share must not end with it."""
TEXT = "a text that can be written as UTF-8"
PLAIN = "JSON: texts, finite numbers, integers of at most 64 bits, lists and objects of these"
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
                except FOREIGN as error:
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
                    reply = _whole(reply)
        finally:
            with suppress(*FOREIGN):  # foreign code may do anything when it is closed; it has had its say
                algorithm.close()

    return search_watched


def limited(search: Search, name: str, *, seconds: float, check: Callable[[], None]) -> Search:
    """``search``, each turn of which ends in time; one that hangs is left behind in a thread.

    Args:
        search: One that may block.
        name: What it is called in messages.
        seconds: Patience with one turn.
        check: Raises when nobody waits for the search any more.
    """

    def search_limited(problem: Problem, *, rng: Any) -> Algorithm:
        algorithm = search(problem, rng=rng)
        reply: Any = None
        for turn in count(1):
            taken = _taken(algorithm, reply)
            until = time.monotonic() + seconds
            while not wait([taken], POLL_SECONDS).done:
                check()
                if time.monotonic() > until:
                    found = f"it took longer than {seconds:g} seconds (RATCHET_ALGORITHM_SECONDS)"
                    raise BrokenContract(
                        f"{name}, turn {turn}: {found}; expected a request or the finalists", turn=turn
                    )
            request = taken.result()
            if isinstance(request, StopIteration):
                break
            try:
                reply = yield request
            except BudgetSpent as error:
                reply = error
            except GeneratorExit:
                algorithm.close()
                raise
        finalists: Sequence[Candidate] = request.value
        return finalists

    return search_limited


def _taken(algorithm: Algorithm, reply: Any) -> Future[Any]:
    """What ``algorithm`` asks for after ``reply``, or the ``StopIteration`` it ends with."""
    future = Future[Any]()

    def take() -> None:
        try:
            future.set_result(algorithm.throw(reply) if isinstance(reply, BudgetSpent) else algorithm.send(reply))
        except StopIteration as end:
            future.set_result(end)
        except BaseException as error:  # whoever waits gets it
            future.set_exception(error)

    # None of a pool: the end of the process waits for those.
    threading.Thread(target=copy_context().run, args=(take,), name="ratchet-turn", daemon=True).start()
    return future


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
        except FOREIGN as error:
            raise self.raised(error) from error
        if not isinstance(algorithm, Generator):
            raise self.broken(f"calling it gave {_short(algorithm)}", "a generator: a function that yields requests")
        self.turn = 0
        return algorithm

    def raised(self, error: BaseException) -> BrokenContract:
        """What to raise when the search raised.

        Raises:
            KeyboardInterrupt: it is that of the user, which comes to the main thread.
        """
        if isinstance(error, KeyboardInterrupt) and threading.current_thread() is threading.main_thread():
            raise error
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
                if not _is_text(text):
                    raise self.broken(f"Tell.text is {_short(text)}", TEXT)
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
        if not _is_text(work.prompt) or not work.prompt.strip():
            raise self.broken(f"Generate.prompt is {_short(work.prompt)}", TEXT)
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
        if not _is_text(candidate.origin):
            raise self.broken(f"{where}.origin is {_short(candidate.origin)}", TEXT)
        for name, state in candidate.predictors.items():
            self._state(state, name, f"{where}.predictors[{name!r}]")
        self._known.add(candidate.key)

    def _state(self, state: PredictorState, name: str, where: str) -> None:
        """See whether what differs from the seed has a place in the prompt; the seed is the user's own affair."""
        before = self.problem.seed.predictors[name]
        if state.instructions != before.instructions and not (
            _is_text(state.instructions) and state.instructions.strip()
        ):
            raise self.broken(f"{where}.instructions is {_short(state.instructions)}", TEXT)
        spec = next((each for each in self.problem.predictors if each.name == name), None)
        fields = {each.name for each in (*spec.inputs, *spec.outputs)} if spec is not None else None
        if state.demos != before.demos and spec is not None and not spec.takes_demos:
            raise self.broken(f"{where} has {len(state.demos)} demos", "none: they have no place in its prompt")
        for index, demo in enumerate(state.demos):
            if demo not in before.demos and not (demo and (fields is None or fields.issuperset(demo))):
                expected = f"values of some of {sorted(fields)}" if fields is not None else "at least one field"
                raise self.broken(f"{where}.demos[{index}] has the fields {sorted(demo)}", expected)
            if demo not in before.demos and not _is_plain(demo):
                raise self.broken(f"{where}.demos[{index}] is {_short(demo)}", PLAIN)

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


def _is_text(value: object) -> bool:
    """Whether ``value`` is a text that can be stored and sent."""
    try:
        return isinstance(value, str) and value.encode() is not None
    except UnicodeEncodeError:
        return False


def _is_plain(value: object) -> bool:
    """Whether ``value`` is JSON that every reader takes."""
    match value:
        case None | bool():
            return True
        case int():
            return -(2**63) <= value < 2**63
        case float():
            return math.isfinite(value)
        case Mapping():
            return all(_is_text(name) and _is_plain(each) for name, each in value.items())
        case list() | tuple():
            return all(map(_is_plain, value))
    return _is_text(value)


def _whole(reply: Any) -> Any:
    """``reply`` without half characters, which an LM may write and a search may not hand on."""
    match reply:
        case str():
            return reply.encode("utf-8", "replace").decode()
        case list():
            return [_whole(each) for each in reply]
        case tuple():
            return tuple(_whole(each) for each in reply)
    return reply


def _short(value: object, longest: int = 120) -> str:
    """``value`` as it may stand in a message."""
    try:
        text = repr(value)
    except FOREIGN:  # of an object of the search's own, or of an integer with too many digits
        text = f"of type {type(value).__name__}"
    return text if len(text) <= longest else f"{text[: longest - 3]}..."

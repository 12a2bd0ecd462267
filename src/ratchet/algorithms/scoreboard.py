"""What a demo or prompt search has measured, at what cost, and the race it is measured in.

References:
    Jamieson, Talwalkar, "Non-stochastic Best Arm Identification and Hyperparameter Optimization", 2016,
    arXiv 1502.07943, fig. 3 (successive halving).
    Maron, Moore, "Hoeffding Races", NeurIPS 1994 (who can no longer win stops; see ``ratchet.core.racing``).
"""

from __future__ import annotations

import math
import random
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import pairwise

from ratchet.algorithms.demos import (
    DemoSet,
    Pools,
    even,
    labelled_demo,
    labelled_pool,
    labels_are_complete,
    traced_pool,
)
from ratchet.core.algorithm import Evaluate, Generate, Steps, Together, evaluate, start, together, wait
from ratchet.core.errors import BudgetSpent
from ratchet.core.evaluation import Evaluations
from ratchet.core.problem import Candidate, Example, Problem, canonical
from ratchet.core.racing import Race

FIRST_ROWS = 4
"""Examples of the first rung. Candidates differ so much that many on few examples find more than few on many: see
docs/decisions/0006."""
BOOTSTRAP_SHARE = 0.2
TRACES_PER_DEMO = 8
SHOWN_TO_THE_TEACHER = 8
FINALISTS = 4
LEADERS = 3
"""Candidates that are validated in full: the best on a few examples is often not the best on all."""
STOP_ERROR = 0.05
"""Probability that a race stops the best of its candidates."""
WAVES = 2
"""Runs under way in a race, in slots: a slot that is done early has more to do."""
LEAST_BLOCK = 4
"""Examples that a candidate of a race is run on before it is looked at again."""
LEAVE = 0.25
"""Share of a rung that may be under way when the next is decided."""
_PRIOR_ROWS = 5.0
"""A gain is averaged with this many imagined rows of no gain, so that a lucky minibatch does not win."""


class Scoreboard:
    """What is known of each candidate on the validation examples, and how many runs were spent to know it.

    The seed runs on whatever any candidate runs on, so every gain is over the seed on the same examples.

    Attributes:
        problem: What is being improved.
        validation: Its distinct validation examples.
        runs_used: Program runs and reflection texts asked for so far; a text costs about one run. An evaluation asked
            for again costs nothing.
        under_way: Runs that were begun and not taken up.
        stopped: Candidates that a race stopped since they could not win any more. They are never run again, never
            complete and never finalists.
    """

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.runs_used = 0
        self.under_way = 0
        self.stopped: set[Candidate] = set()
        self._paid: set[tuple[Candidate, Example]] = set()
        self._scores: dict[Candidate, dict[Example, float]] = {problem.seed: {}}
        self._begun: deque[tuple[int, list[Evaluate]]] = deque()
        self.validation = tuple(dict.fromkeys(problem.validation))

    @property
    def runs_left(self) -> int:
        """Runs the budget still pays for."""
        return self.problem.budget.runs - self.runs_used

    def missing(self, candidate: Candidate, examples: Sequence[Example]) -> tuple[Example, ...]:
        """Those of ``examples`` that ``candidate`` was not run on."""
        return tuple(example for example in examples if (candidate, example) not in self._paid)

    def cost(self, candidates: Sequence[Candidate], examples: Sequence[Example]) -> int:
        """The runs that ``candidates`` and the seed need on those of ``examples`` they have not met."""
        return self.price(dict.fromkeys((self.problem.seed, *candidates), examples))

    def price(self, entrants: Mapping[Candidate, Sequence[Example]]) -> int:
        """The runs that ``entrants`` need, each on examples of its own, and the seed on all of them."""
        met = tuple(dict.fromkeys(example for examples in entrants.values() for example in examples))
        return sum(len(self.missing(each, examples)) for each, examples in {**entrants, self.problem.seed: met}.items())

    def begin(self, candidate: Candidate, examples: Sequence[Example]) -> Steps[None]:
        """Begin to run ``candidate`` and the seed on those of ``examples`` they have not met; ``take_up`` ends it."""
        asked = {each: self.missing(each, examples) for each in dict.fromkeys((self.problem.seed, candidate))}
        requests = [self._paid_for(each, fresh) for each, fresh in asked.items() if fresh]
        if not requests:
            return
        ticket = yield from start(Together(tuple(requests)))
        self._begun.append((ticket, requests))
        self.under_way += sum(len(request.examples) for request in requests)

    def take_up(self) -> Steps[None]:
        """Wait for the runs that were begun first. Replies are taken in this order, so that time decides nothing."""
        ticket, requests = self._begun.popleft()
        self.under_way -= sum(len(request.examples) for request in requests)
        _, replies = yield from wait(ticket)
        for request, rows in zip(requests, replies, strict=True):
            self._learn(request.candidate, rows)

    def finish(self) -> Steps[None]:
        """Wait for all that is under way: it is paid. Where even that is not, what there is must do."""
        with suppress(BudgetSpent):
            while self._begun:
                yield from self.take_up()

    def _paid_for(self, candidate: Candidate, examples: tuple[Example, ...]) -> Evaluate:
        self._pay(candidate, examples)
        return Evaluate(candidate, examples)

    def _learn(self, candidate: Candidate, rows: Evaluations) -> None:
        known = self._scores.setdefault(candidate, {})
        known |= {row.example: row.counted for row in rows}

    def explore(self, candidate: Candidate, examples: Sequence[Example]) -> Steps[Evaluations]:
        """Run ``candidate`` on training examples."""
        self._pay(candidate, examples)
        return (yield from evaluate(candidate, examples))

    def ask(self, prompts: Sequence[str]) -> Steps[list[str]]:
        """One text from the reflection LM for each of ``prompts``, all at once, as far as the budget goes."""
        paid = prompts[: max(0, self.runs_left)]
        self.runs_used += len(paid)
        replies = yield from together([Generate(prompt) for prompt in paid])
        return [texts[0] for texts in replies]

    def begin_text(self, prompt: str) -> Steps[int | None]:
        """The ticket of a text from the reflection LM, which is under way; None where the budget is spent."""
        if self.runs_left < 1:
            return None
        self.runs_used += 1
        return (yield from start(Generate(prompt)))

    def _pay(self, candidate: Candidate, examples: Sequence[Example]) -> None:
        fresh = {(candidate, example) for example in examples} - self._paid
        self._paid |= fresh
        self.runs_used += len(fresh)

    def scores(self, candidate: Candidate) -> Mapping[Example, float]:
        """What ``candidate`` scored, in the order in which it was run."""
        return self._scores.get(candidate, {})

    def gain(self, candidate: Candidate) -> float:
        """Mean score minus the seed's on the same examples, shrunk towards 0 where few are known; higher is better."""
        seed = self._scores[self.problem.seed]
        gains = [score - seed[example] for example, score in self.scores(candidate).items()]
        return sum(gains) / (len(gains) + _PRIOR_ROWS)

    def is_complete(self, candidate: Candidate) -> bool:
        """Whether the candidate was run on all of validation."""
        return self.scores(candidate).keys() >= set(self.validation)

    def ranked(self, candidates: Sequence[Candidate]) -> list[Candidate]:
        """``candidates``, highest gain first; of equals the shortest first, since it is the cheapest to run."""
        return sorted(candidates, key=lambda each: (-self.gain(each), len(canonical(each.state())), each.key))

    def better(self) -> list[Candidate]:
        """All that gained over the seed and were not stopped, highest gain first."""
        return self.ranked([each for each in self._scores if each not in self.stopped and self.gain(each) > 0.0])

    def finalists(self) -> list[Candidate]:
        """Those that beat the seed, best first: by mean on all of validation, then by gain on what they ran on."""
        better = sorted(self.better(), key=lambda candidate: not self.is_complete(candidate))
        return better[:FINALISTS] or [self.problem.seed]

    def best_complete(self) -> Candidate:
        """The best of those that were run on all of validation; the seed where there is none."""
        complete = [each for each in self._scores if self.is_complete(each)]
        return self.ranked([*complete, self.problem.seed])[0]


class Contest:
    """A race in which whoever can no longer win over the whole of validation is stopped, at ``STOP_ERROR`` at most.

    Rivals are the seed, the best candidate that was complete when the contest began, and the entrants themselves. What
    an entrant had scored before counts, but is no evidence: for that it may have been chosen.

    Args:
        board: Where scores are kept.
        most: The most candidates that ever take part; the error is shared out among so many.
    """

    def __init__(self, board: Scoreboard, *, most: int) -> None:
        self._board = board
        self._rivals = list(dict.fromkeys((board.problem.seed, board.best_complete())))
        self._most = most + len(self._rivals)
        self._before: dict[Candidate, int] = {}

    def run(self, entrants: Mapping[Candidate, Sequence[Example]], *, leave: float = 0.0) -> Steps[None]:
        """Run ``entrants``, in turn and a block at a time, so that the slots are always full.

        Args:
            entrants: Who runs on what, in this order; who was stopped does not. The seed runs on all of it too.
            leave: Share of these runs, or of as many as there are slots, that may still be under way when it ends; no
                more than there are slots. What comes next is decided without them, and no slot waits for the slowest.
        """
        board = self._board
        for each in entrants:
            self._before.setdefault(each, len(board.scores(each)))
        todo = {each: board.missing(each, examples) for each, examples in entrants.items()}
        runs, level = sum(map(len, todo.values())), 0
        left = leave * max(runs, board.problem.slots)
        while True:
            racing = [each for each in entrants if each not in board.stopped]
            waiting = [each for each in racing if todo[each]]
            if waiting and board.under_way < WAVES * board.problem.slots:
                each = max(waiting, key=lambda each: len(todo[each]))
                block = max(LEAST_BLOCK, math.ceil(board.problem.slots / len(waiting)))
                begun, todo[each] = todo[each][:block], todo[each][block:]
                yield from board.begin(each, begun)
                continue
            if not waiting and board.under_way <= min(left, board.problem.slots):
                return
            yield from board.take_up()
            reached = min((len(board.scores(each)) for each in racing), default=0)
            if reached > level:
                level = reached
                board.stopped |= {each for each in racing if self._is_lost(each)}

    def _is_lost(self, candidate: Candidate) -> bool:
        board = self._board
        if board.is_complete(candidate):
            return False
        rules = Race(entrants=self._most, alpha=STOP_ERROR, highest=max(1.0, board.problem.success_at))
        known = board.scores(candidate)
        everyone = dict.fromkeys((*self._rivals, *self._before))
        rivals = [each for each in everyone if each != candidate and board.scores(each).keys() >= known.keys()]
        if not all(rules.covers(board.scores(each).values()) for each in (candidate, *rivals)):
            return False
        to_come = [example for example in board.validation if example not in known]

        def ahead(rival: Candidate) -> tuple[float, int, str]:
            scores = board.scores(rival)
            return sum(scores[example] for example in known), len(scores), rival.key

        complete = [each for each in rivals if board.is_complete(each)]
        for rival in {max(group, key=ahead) for group in (rivals, complete) if group}:
            theirs = board.scores(rival)
            if rules.is_lost(
                list(known.values()),
                [theirs[example] for example in known],
                leader_left=[theirs.get(example) for example in to_come],
                known_before=self._before[candidate],
            ):
                return True
        return False


def gather(board: Scoreboard, *, rng: random.Random, runs: int, max_demos: int) -> Steps[Pools]:
    """The demos there are: from the labels, and from up to ``runs`` runs on training examples.

    The program runs with labelled demos where those are complete, since it then succeeds more often; on examples that
    are not among those demos, since it would only copy the answer. Where labels tell every output of every predictor a
    trace would repeat them, and no run is spent.
    """
    problem = board.problem
    labelled = labelled_pool(problem)
    complete = [spec for spec in problem.predictors if labels_are_complete(spec, labelled[spec.name])]
    runs = min(runs, board.runs_left, TRACES_PER_DEMO * max_demos)
    if len(complete) == sum(spec.takes_demos for spec in problem.predictors) or runs < 1:
        return Pools(labelled=labelled)
    held = even(problem.train, size=min(max_demos, SHOWN_TO_THE_TEACHER), rng=rng) if complete else []
    shown = {spec.name: tuple(filter(None, (labelled_demo(spec, example) for example in held))) for spec in complete}
    teacher = with_demo_set(problem.seed, shown, origin="bootstrap: teacher")
    free = [example for example in problem.train if example not in set(held)]
    if not free:
        return Pools(labelled=labelled)
    rows = yield from board.explore(teacher, even(free, size=runs, rng=rng))
    return Pools(labelled=labelled, traced=traced_pool(problem, rows, rng=rng))


def with_demo_set(candidate: Candidate, demos: DemoSet, *, origin: str) -> Candidate:
    """``candidate`` with other demos for the predictors in ``demos``; itself when they change nothing."""
    changed = {name: replace(candidate.predictors[name], demos=tuple(shown)) for name, shown in demos.items()}
    child = candidate.with_predictors(changed, origin=origin)
    return candidate if child == candidate else child


def race(board: Scoreboard, candidates: Sequence[Candidate], order: Sequence[Example]) -> Steps[None]:
    """Successive halving: all on a first stretch of ``order``, the better half on twice of it, and so on to the end.

    As many candidates start, in the order given, as the runs that are left can carry to the end; when they do not even
    carry two, the race is shorter. Who can no longer win stops at once.
    """
    entrants = [each for each in dict.fromkeys(candidates) if each != board.problem.seed]
    sizes = rungs(len(order), entrants=len(entrants), runs=board.runs_left - board.cost([], order))
    while sizes and len(_entering(board, entrants, order, sizes)) < min(2, len(entrants)):
        sizes = sizes[:-1]
    entrants = _entering(board, entrants, order, sizes)
    contest = Contest(board, most=len(entrants))
    for size in sizes:
        while entrants and board.cost(entrants, order[:size]) > board.runs_left:
            entrants = entrants[:-1]
        if not entrants:
            break
        yield from contest.run(dict.fromkeys(entrants, order[:size]), leave=LEAVE)
        racing = [each for each in entrants if each not in board.stopped]
        entrants = board.ranked(racing)[: max(1, len(entrants) // 2)]
    yield from board.finish()
    yield from validate_leaders(board, order)


def validate_leaders(
    board: Scoreboard,
    order: Sequence[Example],
    *,
    most: int = LEADERS,
    leaders: Callable[[], Sequence[Candidate]] | None = None,
) -> Steps[None]:
    """Run the leaders on all of ``order``, while the runs last, until ``most`` of them are complete.

    As many run side by side as fill the slots; each stops when it can no longer be the best.

    Args:
        board: Where scores are kept.
        order: The validation examples.
        most: How many leaders to make complete.
        leaders: Who leads as things stand, best first, without those that were stopped; by gain when left out.
    """
    while True:
        chosen: list[Candidate] = []
        for each in (leaders or board.better)()[:most]:
            full = board.cost(chosen, order) - board.cost([], order) >= board.problem.slots
            if not board.is_complete(each) and not full and board.cost([*chosen, each], order) <= board.runs_left:
                chosen.append(each)
        if not chosen:
            return
        yield from Contest(board, most=len(chosen)).run(dict.fromkeys(chosen, order))


def rungs(n_examples: int, *, entrants: int, runs: int) -> list[int]:
    """How many examples each rung of a race has in all: twice those of the one before, up to all of them.

    The first has ``FIRST_ROWS``, or twice, four times ... as many where ``runs`` carry all ``entrants`` even so.

    >>> rungs(40, entrants=20, runs=200), rungs(40, entrants=4, runs=150)
    ([4, 8, 16, 40], [32, 40])
    """
    sizes = _doubled(n_examples, FIRST_ROWS)
    while sizes[0] < n_examples and fare(entrants, larger := _doubled(n_examples, 2 * sizes[0])) <= runs:
        sizes = larger
    return sizes


def _doubled(n_examples: int, first: int) -> list[int]:
    sizes = [min(first, n_examples)]
    while sizes[-1] < n_examples:
        sizes.append(2 * sizes[-1] if 2 * sizes[-1] <= 0.75 * n_examples else n_examples)
    return sizes


def fare(entrants: int, sizes: Sequence[int]) -> int:
    """The runs of a race in which the better half of ``entrants`` goes on after each rung."""
    return sum(max(1, entrants >> rung) * (end - start) for rung, (start, end) in enumerate(pairwise([0, *sizes])))


def _entering(
    board: Scoreboard, candidates: Sequence[Candidate], order: Sequence[Example], sizes: Sequence[int]
) -> list[Candidate]:
    """The first so many candidates whose race over ``sizes`` can be paid."""

    def price(n: int) -> int:
        return sum(
            board.cost(candidates[: max(1, n >> rung)], order[start:end])
            for rung, (start, end) in enumerate(pairwise([0, *sizes]))
        )

    n = len(candidates)
    while n and price(n) > board.runs_left:
        n -= 1
    return list(candidates[:n])

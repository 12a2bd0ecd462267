"""What a demo or prompt search has measured, at what cost, and the race it is measured in.

References:
    Jamieson, Talwalkar, "Non-stochastic Best Arm Identification and Hyperparameter Optimization", 2016,
    arXiv 1502.07943, fig. 3 (successive halving).
"""

from __future__ import annotations

import random
from collections.abc import Sequence
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
from ratchet.core.algorithm import Evaluate, Generate, Steps, evaluate, together
from ratchet.core.evaluation import Evaluations
from ratchet.core.problem import Candidate, Example, Problem, canonical

MINIBATCH = (10, 20)
BOOTSTRAP_SHARE = 0.2
TRACES_PER_DEMO = 8
FINALISTS = 4
_PRIOR_ROWS = 5.0
"""A gain is averaged with this many imagined rows of no gain, so that a lucky minibatch does not win."""


class Scoreboard:
    """What is known of each candidate on the validation examples, and how many runs were spent to know it.

    The seed runs on whatever any candidate runs on, so every gain is over the seed on the same examples.

    Attributes:
        problem: What is being improved.
        runs_used: Program runs and reflection texts spent so far; a text costs about one run. An evaluation asked for
            again costs nothing.
    """

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.runs_used = 0
        self._paid: set[tuple[Candidate, Example]] = set()
        self._scores: dict[Candidate, dict[Example, float]] = {problem.seed: {}}
        self._validation = tuple(dict.fromkeys(problem.validation))

    @property
    def runs_left(self) -> int:
        """Runs the budget still pays for."""
        return self.problem.budget.runs - self.runs_used

    def cost(self, candidates: Sequence[Candidate], examples: Sequence[Example]) -> int:
        """The runs that ``measure`` would spend."""
        entrants = {self.problem.seed, *candidates}
        return sum((each, example) not in self._paid for each in entrants for example in examples)

    def measure(self, candidates: Sequence[Candidate], examples: Sequence[Example]) -> Steps[None]:
        """Run ``candidates`` and the seed on those of ``examples`` they have not met, all at once."""
        missing = {
            each: tuple(example for example in examples if (each, example) not in self._paid)
            for each in dict.fromkeys((self.problem.seed, *candidates))
        }
        requests = [Evaluate(candidate, fresh) for candidate, fresh in missing.items() if fresh]
        for request, rows in zip(requests, (yield from together(requests)), strict=True):
            known = self._scores.setdefault(request.candidate, {})
            known |= {row.example: row.counted for row in rows}
            self._pay(request.candidate, request.examples)

    def explore(self, candidate: Candidate, examples: Sequence[Example]) -> Steps[Evaluations]:
        """Run ``candidate`` on training examples."""
        rows = yield from evaluate(candidate, examples)
        self._pay(candidate, examples)
        return rows

    def ask(self, prompts: Sequence[str]) -> Steps[list[str]]:
        """One text from the reflection LM for each of ``prompts``, all at once, as far as the budget goes."""
        paid = prompts[: max(0, self.runs_left)]
        replies = yield from together([Generate(prompt) for prompt in paid])
        self.runs_used += len(paid)
        return [texts[0] for texts in replies]

    def _pay(self, candidate: Candidate, examples: Sequence[Example]) -> None:
        fresh = {(candidate, example) for example in examples} - self._paid
        self._paid |= fresh
        self.runs_used += len(fresh)

    def gain(self, candidate: Candidate) -> float:
        """Mean score minus the seed's on the same examples, shrunk towards 0 where few are known; higher is better."""
        seed = self._scores[self.problem.seed]
        gains = [score - seed[example] for example, score in self._scores.get(candidate, {}).items()]
        return sum(gains) / (len(gains) + _PRIOR_ROWS)

    def is_complete(self, candidate: Candidate) -> bool:
        """Whether the candidate was run on all of validation."""
        return self._scores.get(candidate, {}).keys() >= set(self._validation)

    def ranked(self, candidates: Sequence[Candidate]) -> list[Candidate]:
        """``candidates``, highest gain first; of equals the shortest first, since it is the cheapest to run."""
        return sorted(candidates, key=lambda each: (-self.gain(each), len(canonical(each.state())), each.key))

    def better(self) -> list[Candidate]:
        """All that gained over the seed, highest gain first."""
        return self.ranked([candidate for candidate in self._scores if self.gain(candidate) > 0.0])

    def finalists(self) -> list[Candidate]:
        """Those that beat the seed, best first: by mean on all of validation, then by gain on what they ran on."""
        better = sorted(self.better(), key=lambda candidate: not self.is_complete(candidate))
        return better[:FINALISTS] or [self.problem.seed]


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
    if len(complete) == len(problem.predictors) or runs < 1:
        return Pools(labelled=labelled)
    held = even(problem.train, size=max_demos, rng=rng) if complete else []
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
    carry two, the race is shorter.
    """
    entrants = [each for each in dict.fromkeys(candidates) if each != board.problem.seed]
    rungs = _rungs(len(order))
    while rungs and len(_entering(board, entrants, order, rungs)) < min(2, len(entrants)):
        rungs = rungs[:-1]
    entrants = _entering(board, entrants, order, rungs)
    for size in rungs:
        while entrants and board.cost(entrants, order[:size]) > board.runs_left:
            entrants = entrants[:-1]
        if not entrants:
            break
        yield from board.measure(entrants, order[:size])
        entrants = board.ranked(entrants)[: max(1, len(entrants) // 2)]
    yield from validate_leaders(board, order)


def validate_leaders(board: Scoreboard, order: Sequence[Example], *, most: int = 3) -> Steps[None]:
    """Run the highest gains on all of ``order``, while the runs last, until ``most`` of the leaders are complete."""
    while waiting := [
        each
        for each in board.better()[:most]
        if not board.is_complete(each) and board.cost([each], order) <= board.runs_left
    ]:
        yield from board.measure(waiting[:1], order)


def minibatch_size(n_examples: int) -> int:
    """A quarter of the examples, between 10 and 20 where there are so many."""
    low, high = MINIBATCH
    return min(n_examples, max(low, min(high, n_examples // 4)))


def _rungs(n_examples: int) -> list[int]:
    sizes = [minibatch_size(n_examples)]
    while sizes[-1] < n_examples:
        sizes.append(min(2 * sizes[-1], n_examples))
    return sizes


def _entering(
    board: Scoreboard, candidates: Sequence[Candidate], order: Sequence[Example], rungs: Sequence[int]
) -> list[Candidate]:
    """The first so many candidates whose race over ``rungs`` can be paid."""

    def fare(n: int) -> int:
        return sum(
            board.cost(candidates[: max(1, n >> rung)], order[start:end])
            for rung, (start, end) in enumerate(pairwise([0, *rungs]))
        )

    n = len(candidates)
    while n and fare(n) > board.runs_left:
        n -= 1
    return list(candidates[:n])

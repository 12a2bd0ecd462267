"""GEPA: instructions rewritten by reflecting on traces, parents chosen from the Pareto front of single examples."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import combinations

from ratchet.algorithms.instruction import is_code, read_instruction
from ratchet.algorithms.pool import Offspring, Pool, Promise
from ratchet.algorithms.reflection import quotes, reflection_prompt
from ratchet.algorithms.runs import Runs
from ratchet.core.algorithm import Algorithm, Parts, Steps, both, generate
from ratchet.core.errors import BudgetSpent
from ratchet.core.evaluation import Evaluations
from ratchet.core.problem import Candidate, Example, Problem

LONGEST_INSTRUCTIONS = 4000
"""Characters; a longer rewrite is a reflection LM that lost its thread."""
ROUND = 4
"""Proposals of which one child is validated, the most promising, and one may be a merge."""
ROUND_SHARE = 1 / 10
"""Share of the runs left that may go into validating more of a round's children."""
ATTEMPTS = 2
"""Texts asked of the reflection LM for one child; a text is counted like a run."""
FEWEST = 3
"""Training examples that a parent and its child are compared on, at least, when what is left carries no more."""
PARTS = 40
"""As large a part of the budget, at least, are these."""
AHEAD = 2
"""Generations that may be built on a child that passed its minibatch before it is validated."""
ENOUGH = 2
"""Failures from which on a parent's known runs are enough to reflect on, while it is run on a minibatch."""
IDLE = 20
"""Proposals in a row that used no run after which there is nothing left to learn from."""


def gepa(
    problem: Problem,
    *,
    rng: random.Random,
    minibatch: int = 6,
    proposals: int | None = None,
    merge: bool = True,
    shown: int = 4,
    finalists: int = 3,
    temperature: float = 1.0,
) -> Algorithm:
    """The candidates with the best mean validation score, best first; the seed alone when nothing beat it.

    Several proposals are under way at once: run the parent on a minibatch and reflect, then run the child on the same
    minibatch. A child that beats its parent may be a parent at once. The most promising are run on validation, while
    others are proposed, each time on twice as many examples, until they are behind the best or through; else a parent
    is the best or drawn from the front, as they are known then. Runs are counted before they are asked for; what was
    seen once is not asked for again. Replies are taken up in the order in which equally long runs would be done, so
    that the result depends on the seed and the replies alone and not on which of them was faster.

    Args:
        problem: What to improve.
        rng: Source of every choice; the same seed and replies give the same search.
        minibatch: Training examples a parent and its child are compared on.
        proposals: Proposals under way at once; see ``at_once`` for how many there are when it is left out.
        merge: Whether one proposal of a round may combine two candidates instead of rewriting one.
        shown: Most runs shown in one reflection prompt, the worst first.
        finalists: Most candidates given back.
        temperature: Sampling temperature of the reflection LM.

    References:
        Agrawal et al., "GEPA: Reflective Prompt Evolution Can Outperform Reinforcement Learning", 2025,
        arXiv:2507.19457: Algorithm 1 (the loop), Algorithm 2 (candidate selection), appendix (system-aware merge).
        Where budgets are small and slots many we depart from it (docs/decisions/0005 and 0021): proposals side by side,
        some of them from children that are not validated yet; minibatches that return to what the parent failed;
        validation of the most promising children only, and of those no longer than they may win; and the best is a
        parent more often than its share of the front.
    """
    pool = Pool(problem=problem, runs=Runs(limit=problem.budget.runs))
    proposing = Proposing(
        pool=pool,
        rng=rng,
        minibatches=Minibatches(problem.train, rng),
        minibatch=minibatch,
        proposals=at_once(problem, minibatch) if proposals is None else proposals,
        merge=merge,
        shown=shown,
        temperature=temperature,
    )
    under_way: Parts[None] = Parts(slots=problem.slots)
    steps: Steps[None] | None = pool.validate(problem.seed)
    while not pool.solved:
        try:
            while steps is not None:
                yield from under_way.begin(steps)
                steps = proposing.next_steps()
            if not under_way:
                break
            yield from under_way.next_result()
        except BudgetSpent:
            # Our count is an estimate of the driver's. What is being validated is still worth waiting for.
            pool.runs.close()
        steps = proposing.next_steps()
    return pool.finalists(finalists)


def at_once(problem: Problem, minibatch: int) -> int:
    """How many proposals to have under way.

    Enough to keep the slots busy; but of all proposals that the budget pays for no more side by side than one after
    another, since none can learn from those beside it.

    >>> from ratchet.testing import SyntheticProblem
    >>> [at_once(SyntheticProblem(runs=2300, slots=slots).problem, 6) for slots in (2, 8, 64)]
    [1, 2, 11]
    >>> [at_once(SyntheticProblem(runs=runs, slots=64).problem, 6) for runs in (20, 200, 1000)]
    [1, 3, 7]
    """
    validation = len(problem.validation)
    affordable = (problem.budget.runs - validation) / (2 * minibatch + 1 + validation / ROUND)
    return min(1 + problem.slots // minibatch, max(1, round(math.sqrt(max(0.0, affordable)))))


class Minibatches:
    """Draws from ``examples``, all of which come up once before any comes up again."""

    def __init__(self, examples: Sequence[Example], rng: random.Random) -> None:
        self._stream = self._epochs(list(dict.fromkeys(examples)), rng)

    @staticmethod
    def _epochs(examples: list[Example], rng: random.Random) -> Iterator[Example]:
        while examples:
            yield from rng.sample(examples, len(examples))

    def draw(self, size: int, *, focus: Sequence[Example] = ()) -> list[Example]:
        """``focus`` and then the next others, ``size`` in all; there must be as many different examples."""
        drawn = dict.fromkeys(focus)
        while len(drawn) < size:
            drawn.setdefault(next(self._stream))
        return list(drawn)


@dataclass(slots=True, kw_only=True)
class Proposing:
    """Decides what is begun next: children of the pool's candidates, and the validation of those that are promising."""

    pool: Pool
    rng: random.Random
    minibatches: Minibatches
    minibatch: int
    proposals: int
    merge: bool
    shown: int
    temperature: float
    waiting: list[Offspring] = field(default_factory=list)  # to be validated, the most promising first
    fresh: list[Candidate] = field(default_factory=list)  # to be built on before that, the oldest first
    built_on: Counter[str] = field(default_factory=Counter)  # proposals from those, by key
    promises: list[Promise] = field(default_factory=list)  # of the proposals under way
    races: list[Promise] = field(default_factory=list)  # of the validations under way
    barren: int = 0  # proposals in a row that gave no child
    due: float = 0.0  # validations that the proposals so far are worth
    since_merge: int = 0  # proposals begun
    idle: int = 0  # proposals in a row that ended without a run having been asked for
    asked: int = 0  # runs that had been when the last one ended
    tried: set[str] = field(default_factory=set)  # keys of the children that were run
    turns: dict[str, int] = field(default_factory=dict)  # by candidate: place of the predictor to rewrite next

    def next_steps(self) -> Steps[None] | None:
        """What is to be begun now, if anything."""
        size, free = self.size(), self.pool.runs.left - self.promised
        due = self.due >= 1 or not (size or self.promises)
        if self.waiting and due and free >= len(self.pool.problem.validation):
            self.due = max(0.0, self.due - 1)
            return self.validate(self.waiting.pop(0).child)
        if size and len(self.promises) < self.most_at_once and self.idle < IDLE:
            return self.propose(size)
        return None

    @property
    def most_at_once(self) -> int:
        """More proposals side by side the longer none gave a child: there is nothing new that they could wait for."""
        return self.proposals + min(self.barren, 2 * self.pool.problem.slots // self.minibatch)

    @property
    def promised(self) -> int:
        """The most that the proposals and validations under way may still use."""
        return sum(each.runs for each in (*self.promises, *self.races))

    def size(self) -> int:
        """Examples of the next minibatch, so that the child's validation can be paid as well; 0 for no proposal."""
        spare = self.pool.runs.left - self.promised - len(self.pool.problem.validation) - ATTEMPTS
        size = min(self.minibatch, len(set(self.pool.problem.train)))
        if spare >= 2 * size:
            return size
        # A smaller one tells less and takes as long: nothing under way may leave enough for a whole one, and it must be
        # worth a part of the budget.
        least = max(FEWEST, self.pool.problem.budget.runs // PARTS) if self.tried else 1
        return spare // 2 if not self.promises and spare // 2 >= least else 0

    def propose(self, size: int) -> Steps[None]:
        """One proposal; a child that passes is put where the promising wait."""
        runs = self.pool.runs
        self.promises.append(promise := Promise(2 * size + ATTEMPTS))
        try:
            merged = next(iter(self.desirable_merges()), None) if self.since_merge >= ROUND - 1 else None
            self.since_merge = 0 if merged else self.since_merge + 1
            offspring = yield from (
                self.combine(merged, size, promise) if merged else self.mutate(self.parent(), size, promise)
            )
        finally:
            self.promises.remove(promise)
        self.idle = 0 if len(runs.asked) > self.asked else self.idle + 1
        self.asked = len(runs.asked)
        self.due += max(1, int(runs.left * ROUND_SHARE) // len(self.pool.problem.validation)) / ROUND
        self.barren = 0 if offspring else self.barren + 1
        if offspring is not None:
            self.pool.passed[offspring.child.key] = offspring
            self.waiting.append(offspring)
            self.waiting.sort(key=lambda each: each.promise, reverse=True)
            if offspring.ahead <= AHEAD:
                self.fresh.append(offspring.child)

    def validate(self, child: Candidate) -> Steps[None]:
        """Have a child run its race; what that saves, others may use."""
        validation = self.pool.problem.validation
        self.races.append(promise := Promise(len(validation)))
        try:
            self.due += yield from self.pool.race(child, self.rng.sample(validation, len(validation)), promise)
        finally:
            self.races.remove(promise)

    def parent(self) -> Candidate:
        """The child that passed last, as long as it is not validated; a few times, and then one of the front."""
        most = max(2, self.proposals // 2 + 1)
        raced = self.pool.members.keys() | self.pool.stopped
        self.fresh = [each for each in self.fresh if each.key not in raced and self.built_on[each.key] < most]
        if not self.fresh:
            return self.pool.select(self.rng)
        self.built_on[self.fresh[-1].key] += 1
        return self.fresh[-1]

    def mutate(self, parent: Candidate, size: int, promise: Promise) -> Steps[Offspring | None]:
        """A child with one predictor rewritten, if that beats ``parent`` on a minibatch (body of Algorithm 1).

        When enough failures of the parent are known, they are reflected on while it is run on the minibatch.
        """
        runs, predictor = self.pool.runs, self.next_predictor(parent)
        failed = runs.below(parent, self.pool.problem.train, self.pool.perfect)
        told = self.rng.sample(failed, min(len(failed), self.shown))
        batch = self.minibatches.draw(size, focus=told[: size // 2])
        promise.runs = size + ATTEMPTS
        if len(told) >= ENOUGH:
            reflecting = self.reflect(parent, predictor, runs.known(parent, told))
            before, child = yield from both(runs.evaluate(parent, batch), reflecting)
        else:
            before = yield from runs.evaluate(parent, batch)
            if min(before.scores) >= self.pool.perfect:
                return None
            child = yield from self.reflect(parent, predictor, before)
        if child is None:
            return None
        promise.runs = 0
        after = yield from runs.evaluate(child, batch)
        return self.passed(child, after, [before], [parent])

    def combine(self, merged: Candidate, size: int, promise: Promise) -> Steps[Offspring | None]:
        """``merged``, if it beats both its parents on validation examples on which they differ."""
        pool = self.pool
        parents = [pool.members[key] for key in merged.parents]
        scores = [pool.scores(parent) for parent in parents]
        contested = [index for index, (a, b) in enumerate(zip(*scores, strict=True)) if a != b]
        batch = [pool.problem.validation[index] for index in self.rng.sample(contested, min(len(contested), size))]
        self.tried.add(merged.key)
        promise.runs = 0
        after = yield from pool.runs.evaluate(merged, batch)
        return self.passed(merged, after, [pool.runs.known(parent, batch) for parent in parents], parents)

    def passed(
        self, child: Candidate, after: Evaluations, before: Sequence[Evaluations], parents: Sequence[Candidate]
    ) -> Offspring | None:
        """The gate: ``child`` goes on when it is strictly better than each of its parents was."""
        gain = after.mean - max(each.mean for each in before)
        if gain <= 0:
            return None
        return Offspring(
            child=child,
            promise=max(self.pool.expected(parent) for parent in parents) + gain,
            ahead=1 + max(self.pool.ahead(parent) for parent in parents),
        )

    def next_predictor(self, parent: Candidate) -> str:
        """Round robin over the predictors."""
        names = list(parent.predictors)
        turn = self.turns.get(parent.key, 0)
        self.turns[parent.key] = turn + 1
        return names[turn % len(names)]

    def reflect(self, parent: Candidate, predictor: str, before: Evaluations) -> Steps[Candidate | None]:
        """A child with new instructions, or None; of two attempts one that quotes no example is preferred."""
        prompt = reflection_prompt(self.pool.problem, parent, predictor, before, shown=self.shown)
        fallback = None
        for _ in range(ATTEMPTS):
            self.pool.runs.pay(1)
            text = read_instruction((yield from generate(prompt, temperature=self.temperature)))
            if text is None or len(text) > LONGEST_INSTRUCTIONS or is_code(text):
                continue
            child = parent.with_instructions(predictor, text, origin=f"gepa: rewrite of {predictor}")
            if not self.is_new(child):
                continue
            fallback = child
            if not quotes(text, before):
                break
        if fallback is not None:
            self.tried.add(fallback.key)
            self.turns[fallback.key] = list(parent.predictors).index(predictor) + 1
        return fallback

    def is_new(self, child: Candidate) -> bool:
        """Whether ``child`` was not run before."""
        return child.key not in self.tried and child.key not in self.pool.members

    def desirable_merges(self) -> list[Candidate]:
        """New children of two candidates of the front, in random order; none when merging is off."""
        if not self.merge:
            return []
        front = [self.pool.members[key] for key in self.pool.counts]
        merged = [child for i, j in combinations(front, 2) for child in self.merges_of(i, j) if self.is_new(child)]
        return self.rng.sample(merged, len(merged))

    def merges_of(self, i: Candidate, j: Candidate) -> list[Candidate]:
        """``i`` and ``j`` merged over each common ancestor that neither is worse than (appendix, Merge)."""
        pool = self.pool
        of_i, of_j = pool.ancestors(i), pool.ancestors(j)
        if i.key in of_j or j.key in of_i or pool.scores(i) == pool.scores(j):
            return []
        better, worse = (i, j) if pool.mean(i) >= pool.mean(j) else (j, i)
        shared = [member for key, member in pool.members.items() if key in of_i & of_j]
        return [
            child
            for ancestor in shared
            if pool.mean(ancestor) <= pool.mean(worse) and (child := merge_of(ancestor, better, worse)) is not None
        ]


def merge_of(ancestor: Candidate, better: Candidate, worse: Candidate) -> Candidate | None:
    """Each predictor from the side that changed it, from ``better`` if both did; None unless both sides give one.

    >>> from ratchet.core.problem import PredictorState
    >>> seed = Candidate(predictors={name: PredictorState(instructions="?") for name in ("ask", "answer")})
    >>> one = seed.with_instructions("ask", "Ask well.", origin="by hand")
    >>> other = seed.with_instructions("answer", "Be brief.", origin="by hand")
    >>> [state.instructions for state in merge_of(seed, one, other).predictors.values()]
    ['Ask well.', 'Be brief.']
    >>> merge_of(seed, one, one.with_instructions("ask", "Ask.", origin="by hand")) is None
    True
    """
    predictors = {
        name: worse.predictors[name] if state == ancestor.predictors[name] else state
        for name, state in better.predictors.items()
    }
    child = Candidate(predictors=predictors, parents=(better.key, worse.key), origin="gepa: merge")
    return None if child in (better, worse) else child

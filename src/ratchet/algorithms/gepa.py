"""GEPA: instructions rewritten by reflecting on traces, parents chosen from the Pareto front of single examples."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import combinations

from ratchet.algorithms.instruction import is_code, read_instruction
from ratchet.algorithms.reflection import quotes, reflection_prompt
from ratchet.algorithms.runs import Runs
from ratchet.core.algorithm import Algorithm, Parts, Steps, both, generate
from ratchet.core.errors import BudgetSpent
from ratchet.core.evaluation import Evaluations
from ratchet.core.pareto import pareto_front
from ratchet.core.problem import Candidate, Example, Problem
from ratchet.core.racing import Race

LONGEST_INSTRUCTIONS = 4000
"""Characters; a longer rewrite is a reflection LM that lost its thread."""
ROUND = 4
"""Proposals of which one child is validated, the most promising, and one may be a merge."""
ROUND_SHARE = 1 / 10
"""Share of the runs left that may go into validating more of a round's children."""
ATTEMPTS = 2
"""Texts asked of the reflection LM for one child; a text is counted like a run."""
FIRST_BLOCK = 8
"""Validation examples that a promising child is run on first; as many as there are slots when those are more."""
STOP_ERROR = 0.5
"""Most probability that a child which would be the best is stopped on the way: another costs less than certainty."""
FEWEST = 3
"""Training examples that a parent and its child are compared on, at least, when what is left carries no more."""
PARTS = 40
"""As large a part of the budget, at least, are these."""
GREEDY = 0.5
"""Share of the parents that are the best there is; the others are drawn from the front."""
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


@dataclass(slots=True)
class Pool:
    """The candidates that were run on all of validation: P and S of Algorithm 1."""

    problem: Problem
    runs: Runs
    members: dict[str, Candidate] = field(default_factory=dict)  # by key, oldest first
    passed: dict[str, Offspring] = field(default_factory=dict)  # children that beat their parents, by key
    stopped: set[str] = field(default_factory=set)  # keys of those that were stopped on the way
    solved: bool = False  # whether one is perfect on all of validation
    counts: dict[str, int] = field(default_factory=dict)  # how often each candidate of the front is best, by key

    @property
    def perfect(self) -> float:
        """The score that leaves nothing to learn: metrics end at 1 unless success asks for more."""
        return max(1.0, self.problem.success_at)

    @property
    def best(self) -> Candidate:
        """The member with the best mean, the oldest of equals."""
        return max(self.members.values(), key=self.mean)

    def validate(self, candidate: Candidate) -> Steps[None]:
        """Run ``candidate`` on all of validation and take it in."""
        rows = yield from self.runs.evaluate(candidate, self.problem.validation)
        self.members[candidate.key] = candidate
        self.solved = self.solved or min(rows.scores) >= self.perfect
        members = list(self.members.values())
        counts = best_counts([self.scores(member) for member in members])
        self.counts = {members[index].key: count for index, count in counts.items()}

    def race(self, candidate: Candidate, rows: Sequence[Example], promise: Promise) -> Steps[float]:
        """Validate ``candidate``, unless it is stopped on the way; the share of ``rows`` that was saved.

        Args:
            rows: All of validation, in the order in which it is run on them.
        """
        upto = max(FIRST_BLOCK, self.problem.slots)
        while upto < len(rows):
            promise.runs = len(rows) - upto
            yield from self.runs.evaluate(candidate, rows[:upto])
            if self.members and self.is_lost(candidate, rows, upto):  # none when the seed is still being validated
                self.stopped.add(candidate.key)
                return 1 - upto / len(rows)
            upto *= 2
        promise.runs = 0
        yield from self.validate(candidate)
        return 0.0

    def is_lost(self, candidate: Candidate, rows: Sequence[Example], n: int) -> bool:
        """Whether ``candidate``, which was run on the first ``n`` of ``rows``, will hardly be ahead of the best."""
        own, best = self.runs.known(candidate, rows[:n]).scores, self.runs.known(self.best, rows).scores
        rules = Race(entrants=2, alpha=STOP_ERROR, highest=self.perfect)
        return rules.covers((*own, *best)) and rules.is_lost(own, best[:n], leader_left=best[n:])

    def scores(self, candidate: Candidate) -> tuple[float, ...]:
        """The candidate's validation scores. Shape (n_validation,)."""
        return self.runs.known(candidate, self.problem.validation).scores

    def mean(self, candidate: Candidate) -> float:
        """The candidate's mean validation score; higher is better."""
        return self.runs.known(candidate, self.problem.validation).mean

    def select(self, rng: random.Random) -> Candidate:
        """A parent: the best, or one of the front, drawn in proportion to how often it is best (Algorithm 2)."""
        if not self.counts:  # the seed is still being validated
            return self.problem.seed
        if rng.random() < GREEDY:
            return self.best
        return self.members[rng.choices(list(self.counts), weights=list(self.counts.values()))[0]]

    def expected(self, candidate: Candidate) -> float:
        """The mean validation score of a member, and of a child that passed what its minibatch promises."""
        return self.mean(candidate) if candidate.key in self.members else self.passed[candidate.key].promise

    def ahead(self, candidate: Candidate) -> int:
        """Generations since the last that was validated, counted by what is known now."""
        return 0 if candidate.key in self.members else self.passed[candidate.key].ahead

    def ancestors(self, candidate: Candidate) -> set[str]:
        """Keys of all that ``candidate`` descends from."""
        found: set[str] = set()
        for key in candidate.parents:
            parent = self.passed[key].child if key in self.passed else self.members.get(key)
            if parent is not None:
                found |= {key} | self.ancestors(parent)
        return found

    def finalists(self, n: int) -> list[Candidate]:
        """The best ``n`` that beat the seed in mean, best first, or else the seed."""
        seed = self.problem.seed
        ranked = sorted(self.members.values(), key=self.mean, reverse=True)
        return [member for member in ranked if self.mean(member) > self.mean(seed)][:n] or [seed]


def best_counts(scores: Sequence[Sequence[float]]) -> dict[int, int]:
    """On how many examples each candidate of the Pareto front is best: f of Algorithm 2.

    A candidate is pruned when another is nowhere worse and somewhere better, or is best wherever it is best and
    elsewhere besides.

    Args:
        scores: Score of each candidate on each example, higher is better. Shape (n_candidates, n_examples).

    >>> best_counts([(1.0, 0.0, 0.0), (1.0, 1.0, 0.0), (0.0, 0.0, 1.0)])
    {1: 2, 2: 1}
    """
    best = [max(column) for column in zip(*scores, strict=True)]
    front = pareto_front(scores)
    wins = [[score == top for score, top in zip(scores[index], best, strict=True)] for index in front]
    return {front[place]: sum(wins[place]) for place in pareto_front(wins)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Offspring:
    """A child that beat its parents on a minibatch.

    Attributes:
        promise: What its mean validation score is expected to be.
        ahead: Generations since the last that was validated when it was made.
    """

    child: Candidate
    promise: float
    ahead: int


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


@dataclass(slots=True, eq=False)
class Promise:
    """The most runs that a proposal or a validation under way may still ask for."""

    runs: int


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

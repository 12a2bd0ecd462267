"""The candidates that were run on all of validation, and the race by which a child becomes one of them."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

from ratchet.algorithms.runs import Runs
from ratchet.core.algorithm import Steps
from ratchet.core.pareto import pareto_front
from ratchet.core.problem import Candidate, Example, Problem
from ratchet.core.racing import Race

FIRST_BLOCK = 8
"""Validation examples that a promising child is run on first; as many as there are slots when those are more."""
STOP_ERROR = 0.5
"""Most probability that a child which would be the best is stopped on the way: another costs less than certainty."""
GREEDY = 0.5
"""Share of the parents that are the best there is; the others are drawn from the front."""


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


@dataclass(slots=True, eq=False)
class Promise:
    """The most runs that a proposal or a validation under way may still ask for."""

    runs: int


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

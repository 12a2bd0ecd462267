"""Genetic: a population of prompts evolved by LM crossover and mutation, chosen by NSGA-II over what was asked for.

References:
    Guo et al., "Connecting Large Language Models with Evolutionary Algorithms Yields Powerful Prompt Optimizers", 2023,
    arXiv 2309.08532 (EvoPrompt: the GA and DE steps, carried out by an LM).
    Deb et al., "A Fast and Elitist Multiobjective Genetic Algorithm: NSGA-II", IEEE TEC 6, 2002.
    Durillo et al., "On the Effect of the Steady-State Selection Scheme in Multi-Objective Genetic Algorithms", 2009.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, field

from ratchet.algorithms.demos import MAX_DEMOS, spread
from ratchet.algorithms.runs import Runs
from ratchet.algorithms.scoreboard import BOOTSTRAP_SHARE, FINALISTS, FIRST_ROWS, LEADERS, Scoreboard, gather
from ratchet.algorithms.variation import FOUNDERS, Rates, Variation, essence
from ratchet.core.algorithm import Algorithm, Parts, Steps
from ratchet.core.errors import BudgetSpent
from ratchet.core.objectives import gains
from ratchet.core.pareto import crowded_order, dominates, pareto_front
from ratchet.core.problem import Candidate, Example, Problem, canonical

BIRTHS = 40
"""Children a search makes before a child is first run on more than ``FIRST_ROWS`` examples."""
MOST_ROWS = 24
"""The most examples a child is first run on."""
LEAST_MEMBERS = 8
PROMOTED = 0.5
"""Runs that go into members that lead, as a share of those that go into children."""
IDLE = 20
"""Births in a row that made nothing new after which there is nothing left to try."""
PRIOR_ROWS = 5.0
"""A gain is averaged with this many imagined rows of no gain, so that a lucky child does not win."""


def genetic(
    problem: Problem,
    *,
    rng: random.Random,
    max_demos: int = MAX_DEMOS,
    population: int | None = None,
    temperature: float = 1.0,
) -> Algorithm:
    """The candidates no other one is better than in everything, the greatest weighted gain first.

    Births are under way side by side: two or more members of the population are crossed, by the reflection LM or demo
    by demo, and the child is run on the first examples of validation. It joins the population, of which the worst
    leaves at once: there are no generations to wait for. Those that lead are run on twice as many examples, again and
    again up to all of them, so that in the end they are measured in full. Every gain is over the seed on the same
    examples. Which operator is next is drawn by how often its children beat their parents so far, and how high in the
    population they came. Replies are taken up in the order they were asked for, so that the result depends on the seed
    and the replies alone.

    Args:
        problem: What to improve; its objectives are what the population is chosen by.
        rng: Source of randomness.
        max_demos: The most demos a predictor gets.
        population: Members; when left out as many as suit the budget.
        temperature: Sampling temperature of the reflection LM.
    """
    board = Scoreboard(problem)
    try:
        pools = yield from gather(board, rng=rng, runs=int(BOOTSTRAP_SHARE * problem.budget.runs), max_demos=max_demos)
    except BudgetSpent:
        return [problem.seed]
    runs = Runs(limit=board.runs_left)
    order = spread(problem.validation, rng=rng)
    sizes = Sizes.of(runs.left, validation=len(order), slots=problem.slots, population=population)
    herd = Population(problem=problem, runs=runs, order=order, size=sizes.population)
    variation = Variation(problem, pools, rng=rng, pay=runs.pay, max_demos=max_demos, temperature=temperature)
    breeding = Breeding(
        herd=herd,
        sizes=sizes,
        variation=variation,
        rng=rng,
        rates=Rates(variation.operators),
        tried={essence(problem.seed)},
    )
    under_way: Parts[None] = Parts(slots=problem.slots)
    steps: Steps[None] | None = herd.run(problem.seed, len(order))
    while not herd.solved:
        try:
            while steps is not None:
                yield from under_way.begin(steps)
                steps = breeding.next_steps()
            if not under_way:
                break
            yield from under_way.next_result()
        except BudgetSpent:
            # Our count is an estimate of the driver's. What was asked for is still worth waiting for.
            runs.close()
        steps = breeding.next_steps()
    return herd.finalists()


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """How large everything is.

    Attributes:
        block: Examples that a child is first run on.
        population: Members of the population.
        at_once: Births under way side by side.

    >>> Sizes.of(400, validation=30, slots=8), Sizes.of(1200, validation=1, slots=64).population
    (Sizes(block=7, population=8, at_once=4), 24)
    """

    block: int
    population: int
    at_once: int

    @classmethod
    def of(cls, runs: int, *, validation: int, slots: int, population: int | None = None) -> Sizes:
        """Sizes that suit a budget of ``runs``, ``validation`` examples and so many slots."""
        spare = max(0, runs - (1 + LEADERS) * validation)
        block = min(validation, max(FIRST_ROWS, min(MOST_ROWS, spare // BIRTHS)))
        births = spare // (block + 1)
        return cls(
            block=block,
            population=population or max(LEAST_MEMBERS, round(math.sqrt(births))),
            # None can learn from those beside it: of all births no more side by side than one after another.
            at_once=min(2 + math.ceil(slots / block), max(1, round(math.sqrt(births)))),
        )


@dataclass(slots=True, kw_only=True)
class Population:
    """The candidates that may have children, and what is known of all that ever were.

    Attributes:
        problem: What is improved.
        runs: What was run and what may be.
        order: The validation examples; everyone is run on a beginning of them.
        size: Members at most.
        members: As NSGA-II prefers them, the best first.
        born: Everyone who was run, by key.
        rows: On how many examples each was run, by key.
        measured: Gains by key and number of examples; what was run does not change.
        solved: Whether nothing is left to gain.
    """

    problem: Problem
    runs: Runs
    order: tuple[Example, ...]
    size: int
    members: list[Candidate] = field(default_factory=list)
    born: dict[str, Candidate] = field(default_factory=dict)
    rows: dict[str, int] = field(default_factory=dict)
    measured: dict[tuple[str, int], tuple[float, ...]] = field(default_factory=dict)
    solved: bool = False

    def run(self, candidate: Candidate, rows: int) -> Steps[None]:
        """Run ``candidate`` on the first ``rows`` examples; it competes for a place by what is known then."""
        known = yield from self.runs.evaluate(candidate, self.order[:rows])
        self.born[candidate.key], self.rows[candidate.key] = candidate, rows
        contenders = list(dict.fromkeys([*self.members, candidate]))
        preferred = crowded_order([self.gains(each) for each in contenders])
        self.members = [contenders[place] for place in preferred[: self.size]]
        perfect = max(1.0, self.problem.success_at)
        self.solved |= self.quality_alone and self.is_complete(candidate) and min(known.scores) >= perfect

    @property
    def quality_alone(self) -> bool:
        """Whether a perfect score leaves nothing to gain."""
        return all(objective.metric in ("quality_score", "success_rate") for objective in self.problem.objectives)

    def is_complete(self, candidate: Candidate) -> bool:
        """Whether ``candidate`` was run on all of validation."""
        return self.rows.get(candidate.key) == len(self.order)

    def gains(self, candidate: Candidate, *, rows: int | None = None) -> tuple[float, ...]:
        """Gain over the seed in each objective on the examples known, or ``rows`` of them; fewer shrink towards 0."""
        n = self.rows[candidate.key] if rows is None else rows
        if (candidate.key, n) not in self.measured:
            after, before = (self.runs.known(each, self.order[:n]) for each in (candidate, self.problem.seed))
            metrics = [objective.metric for objective in self.problem.objectives]
            each = gains(after, before, metrics, success_at=self.problem.success_at)
            self.measured[candidate.key, n] = tuple(n / (n + PRIOR_ROWS) * gain for gain in each)
        return self.measured[candidate.key, n]

    def weighted(self, candidate: Candidate) -> float:
        """The gains in one number, by the weights that were asked for."""
        pairs = zip(self.problem.objectives, self.gains(candidate), strict=True)
        return sum(objective.weight * gain for objective, gain in pairs)

    def worth(self, child: Candidate) -> float:
        """How far up in the population ``child`` stands, 1 for the first; 0 where it dominates none of its parents."""
        parents = [self.gains(self.born[key]) for key in child.parents]
        if child not in self.members or not any(dominates(self.gains(child), parent) for parent in parents):
            return 0.0
        return 1.0 - self.members.index(child) / self.size

    def leading(self) -> list[Candidate]:
        """The member with the greatest weighted gain, and then those that NSGA-II prefers."""
        return list(dict.fromkeys([max(self.members, key=self.weighted), *self.members])) if self.members else []

    def finalists(self) -> list[Candidate]:
        """Those measured in full that no other one dominates; where only the seed was, the best that promise a gain."""
        seed = self.problem.seed
        ranked = sorted(
            (each for each in self.born.values() if each != seed),
            key=lambda each: (-self.weighted(each), len(canonical(each.state())), each.key),
        )
        complete = [each for each in ranked if self.is_complete(each)]
        if not complete:
            return [each for each in ranked if self.weighted(each) > 0.0][:FINALISTS] or [seed]
        distinct = {self.gains(each): each for each in reversed([seed, *complete])}
        front = [list(distinct)[place] for place in pareto_front(list(distinct))]
        return sorted((distinct[point] for point in front), key=self.weighted, reverse=True)


@dataclass(slots=True, kw_only=True)
class Breeding:
    """Decides what is begun next: a birth, or more runs of a member that leads."""

    herd: Population
    sizes: Sizes
    variation: Variation
    rng: random.Random
    rates: Rates
    tried: set[str]  # the essence of all children, and the seed's
    births: int = 0  # begun
    under_way: int = 0  # births
    bred: int = 0  # runs that children were first run on
    promoted: int = 0  # runs of members that lead
    in_flight: set[str] = field(default_factory=set)  # keys of members that are being run
    idle: int = 0  # births in a row that made nothing new

    def next_steps(self) -> Steps[None] | None:
        """What is to be begun now, if anything."""
        runs, left = self.herd.runs, self.herd.runs.left - self.under_way * (self.sizes.block + 1)
        leading = [each for each in self.herd.leading() if not self.herd.is_complete(each)]
        to_finish = sum(len(self.herd.order) - self.herd.rows[each.key] for each in leading[:LEADERS])
        breeds = self.idle < IDLE and self.herd.members and left > self.sizes.block + to_finish
        due = self.promoted <= PROMOTED * self.bred if breeds else not self.under_way
        for each in leading[:LEADERS]:
            if due and each.key not in self.in_flight and self.more(each) <= left:
                return self.promote(each)
        if breeds and self.under_way < self.sizes.at_once and runs.left > 0:
            return self.birth()
        return None

    def more(self, candidate: Candidate) -> int:
        """The runs of the next rung: as many as it had, and all that is left where little is left."""
        had, most = self.herd.rows[candidate.key], len(self.herd.order)
        return had if 2 * had <= 0.75 * most else most - had

    def promote(self, candidate: Candidate) -> Steps[None]:
        """Run a member on more examples."""
        more = self.more(candidate)
        self.promoted += more
        self.in_flight.add(candidate.key)
        try:
            yield from self.herd.run(candidate, self.herd.rows[candidate.key] + more)
        finally:
            self.in_flight.discard(candidate.key)

    def birth(self) -> Steps[None]:
        """Make one child and run it; what it is worth is its operator's reward."""
        herd = self.herd
        founding = self.births < self.sizes.population
        founders = [each for each in FOUNDERS if each in self.variation.operators]
        operator = founders[self.births % len(founders)] if founding else self.rates.draw(self.rng)
        self.births += 1
        self.under_way += 1
        try:
            members = [herd.problem.seed] if founding else herd.members
            child = yield from self.variation.child(operator, members)
            worth = 0.0
            self.idle += 1
            if child is not None and (said := essence(child)) not in self.tried:
                self.idle = 0
                self.tried.add(said)
                self.bred += self.sizes.block
                yield from herd.run(child, self.sizes.block)
                worth = herd.worth(child)
            self.rates.reward(operator, worth)
        finally:
            self.under_way -= 1

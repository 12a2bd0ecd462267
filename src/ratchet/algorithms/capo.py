"""CAPO: instructions and demos evolve together; children race against their parents a block of examples at a time.

A population is kept. Each generation the LM crosses the instructions of two parents and changes the result a little;
the child's demos are drawn from both parents', and one comes or goes. Children and parents race over blocks of
validation examples that all of them meet in the same order: who has lost, pair by pair, to as many as may survive is
run no further. A long prompt pays a small penalty, so that of two that are equally good the short one survives.

Where a few hundred runs are all there is we depart from the paper. The first generation is large and meets one block
only, of which few survive; each later one meets a block more, where the paper shows every child up to ten. On recorded
surfaces this finds more than an even population does (``bench/surfaces.py``). The paired test is one that may be
looked at after every block (``ratchet.core.racing``); the paper takes the t-test.

References:
    Zehle, Schlager, Heiss, Feurer, "CAPO: Cost-Aware Prompt Optimization", 2025, arXiv 2504.16005: Algorithm 1 (the
    loop), Algorithm 2 (racing), sec. 3 (crossover, mutation, length penalty).
    Birattari et al., "A Racing Algorithm for Configuring Metaheuristics", GECCO 2002 (F-race, where the race is from).
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Protocol

from ratchet.algorithms.demos import MAX_CHARACTERS, MAX_DEMOS, Pools, demo_sets, even, labelled_demo, spread
from ratchet.algorithms.instruction import accepted, is_usable, job_prompt, read_instruction
from ratchet.algorithms.miprov2 import TIPS
from ratchet.algorithms.scoreboard import (
    BOOTSTRAP_SHARE,
    LEADERS,
    LEAST_BLOCK,
    Scoreboard,
    gather,
    validate_leaders,
    with_demo_set,
)
from ratchet.algorithms.space import Combination, Space
from ratchet.core.algorithm import Algorithm, Steps
from ratchet.core.errors import BudgetSpent
from ratchet.core.problem import Candidate, Example, Fields, PredictorState, Problem, canonical
from ratchet.core.racing import evidence_of_loss

ALPHA = 0.2
"""Level of one paired test; the paper's. A single test does not stop a candidate: it takes as many as survive."""
LENGTH_PENALTY = 0.01
"""Score that a prompt pays that is as long as the longest of the first generation; a shorter one pays in proportion."""
POPULATION = 4
LEAST_CHILDREN, MOST_CHILDREN = 4, 8
RUNS_PER_CHILD = 400
"""Runs of the budget for which a generation has one child more."""
FIRST_SHARE = 0.2
"""Share of the runs for the first look at the first generation, of which there are so many as it pays for."""
MOST_FIRST = 40
BLOCKS = 12
"""Blocks that validation is cut into, when it is large enough for blocks of ``LEAST_BLOCK``."""
SHOWN = 6
"""Right answers shown to the LM that crosses or changes instructions."""
IDLE = 3
"""Generations in a row without a new child after which the search ends."""


class Variation(Protocol):
    """Where candidates come from."""

    def first(self, count: int) -> Steps[list[Candidate]]:
        """The first generation: up to ``count`` candidates."""
        ...

    def children(self, parents: Sequence[Candidate], count: int) -> Steps[list[Candidate]]:
        """Up to ``count`` children of ``parents``, best parents first."""
        ...


def capo(problem: Problem, *, rng: random.Random, max_demos: int = MAX_DEMOS) -> Algorithm:
    """The candidates that survived, best first.

    Args:
        problem: What to improve.
        rng: Source of randomness.
        max_demos: The most demos a predictor gets.
    """
    board = Scoreboard(problem)
    with suppress(BudgetSpent):
        runs = int(BOOTSTRAP_SHARE * problem.budget.runs)
        pools = yield from gather(board, rng=rng, runs=runs, max_demos=max_demos)
        variation = Rewriting(board=board, pools=pools, rng=rng, max_demos=max_demos)
        yield from evolve(board, variation, spread(problem.validation, rng=rng))
    yield from board.finish()
    return board.finalists()


# The loop


def evolve(board: Scoreboard, variation: Variation, order: Sequence[Example]) -> Steps[None]:
    """Let generations follow one another while the budget pays for them; then validate the leaders in full."""
    block = max(LEAST_BLOCK, min(len(order) // BLOCKS, board.runs_left // (20 * BLOCKS)))
    begin = max(2 * POPULATION, min(MOST_FIRST, int(FIRST_SHARE * board.runs_left) // block))
    leaders = max(1, min(LEADERS, board.runs_left // (4 * len(order))))
    brood = max(LEAST_CHILDREN, min(MOST_CHILDREN, board.runs_left // RUNS_PER_CHILD))
    reach, idle = block, 0
    first = new(board, (yield from variation.first(begin)))
    racing = Racing(board=board, block=block, longest=max(map(length, first), default=1))
    population = yield from racing.race(first, order[:reach], survivors=POPULATION)
    while population and idle < IDLE:
        reach = min(len(order), reach + block)
        kept = min(leaders, len(population)) * (len(order) - reach)
        if board.cost(population, order[:reach]) + brood * (reach + 2) > board.runs_left - kept:
            break
        children = new(board, (yield from variation.children(population, brood)))
        idle = 0 if children else idle + 1
        population = yield from racing.race([*population, *children], order[:reach], survivors=POPULATION)
    yield from validate_leaders(board, order, most=leaders)


def new(board: Scoreboard, candidates: Sequence[Candidate]) -> list[Candidate]:
    """Those of ``candidates`` that were never run; the seed runs anyway."""
    distinct = dict.fromkeys(candidates)
    return [each for each in distinct if each != board.problem.seed and not board.scores(each)]


def length(candidate: Candidate) -> int:
    """Characters of the candidate's instructions and demos."""
    return len(canonical(candidate.state()))


@dataclass(frozen=True, slots=True, kw_only=True)
class Racing:
    """The rules of the races.

    Attributes:
        board: Where scores are kept.
        block: Examples that all in the race are run on before anyone is looked at.
        longest: Characters of a prompt that pays the whole ``LENGTH_PENALTY``.
    """

    board: Scoreboard
    block: int
    longest: int

    def race(
        self, entrants: Sequence[Candidate], order: Sequence[Example], *, survivors: int
    ) -> Steps[list[Candidate]]:
        """The best ``survivors`` of ``entrants`` on ``order``, best first; whom the budget cannot carry is left out."""
        board, racing = self.board, list(entrants)
        for start in range(0, len(order), self.block):
            stretch = order[start : start + self.block]
            while racing and board.cost(racing, stretch) > board.runs_left:
                racing.pop()
            for each in racing:
                yield from board.begin(each, stretch)
            while board.under_way:
                yield from board.take_up()
            lost = {each for each in racing if self.lost_to(each, racing) >= survivors}
            racing = [each for each in racing if each not in lost]
        return sorted(racing, key=lambda each: (-self.worth(each), each.key))[:survivors]

    def worth(self, candidate: Candidate) -> float:
        """The candidate's gain less what its length costs; higher is better."""
        return self.board.gain(candidate) - self.penalty(candidate)

    def penalty(self, candidate: Candidate) -> float:
        """What the candidate's length costs."""
        return LENGTH_PENALTY * min(1.0, length(candidate) / self.longest)

    def lost_to(self, candidate: Candidate, others: Sequence[Candidate]) -> int:
        """How many of ``others`` are better than ``candidate``, by a paired test on what both were run on."""
        return sum(self.beats(other, candidate) for other in others if other != candidate)

    def beats(self, one: Candidate, other: Candidate) -> bool:
        """Whether ``one`` is better than ``other`` on all of validation, with ``ALPHA`` for an error."""
        ours, theirs = self.board.scores(one), self.board.scores(other)
        shared = [example for example in theirs if example in ours]
        ahead = self.penalty(other) - self.penalty(one)
        leads = [(ours[example] - theirs[example] + ahead) / (1 + LENGTH_PENALTY) for example in shared]
        if sum(leads) <= 0 or max(map(abs, leads)) > 1:  # beyond 1 the metric has a range that is not known
            return False
        return evidence_of_loss(leads, left=len(self.board.validation) - len(shared)) >= 1 / ALPHA


# Variation by an LM


@dataclass(slots=True, kw_only=True)
class Rewriting:
    """Instructions written, crossed and changed by the reflection LM; demos drawn, crossed and changed with them."""

    board: Scoreboard
    pools: Pools
    rng: random.Random
    max_demos: int

    def first(self, count: int) -> Steps[list[Candidate]]:
        """The seed's instructions and proposals of the LM, each with demo sets of different sizes."""
        problem = self.board.problem
        proposals = max(2, min(len(TIPS), count // (2 * len(problem.predictors))))
        asked = [
            (spec.name, self._prompt(spec.name, problem.seed.predictors[spec.name].instructions, wish=tip))
            for tip in TIPS[:proposals]
            for spec in problem.predictors
        ]
        texts = yield from self.board.ask([prompt for _, prompt in asked] if problem.train else [])
        options = accepted(problem, [(name, text) for (name, _), text in zip(asked, texts, strict=False)])
        sets = demo_sets(problem, self.pools, rng=self.rng, count=count, max_demos=self.max_demos)
        found = []
        for number in range(count):
            changed = {
                name: replace(state, instructions=options[name][number % len(options[name])])
                for name, state in problem.seed.predictors.items()
            }
            child = problem.seed.with_predictors(changed, origin="capo: first generation")
            demos = sets[number % len(sets)] if sets else {}
            found.append(replace(with_demo_set(child, demos, origin=child.origin), parents=(problem.seed.key,)))
        return found

    def children(self, parents: Sequence[Candidate], count: int) -> Steps[list[Candidate]]:
        """Crossed and then changed; all texts of one kind are asked for at once."""
        problem, rng = self.board.problem, self.rng
        pairs = [rng.sample(parents, 2) if len(parents) > 1 else [parents[0]] * 2 for _ in range(count)]
        places = [rng.choice(problem.predictors).name for _ in pairs]
        texts = [
            [each.predictors[name].instructions for each in pair] for pair, name in zip(pairs, places, strict=True)
        ]
        crossed = yield from self._asked(
            [self._crossing(name, *both) for name, both in zip(places, texts, strict=True)], [both[0] for both in texts]
        )
        changed = yield from self._asked(
            [self._prompt(name, text, wish=rng.choice(TIPS)) for name, text in zip(places, crossed, strict=True)],
            crossed,
        )
        return [self._child(*row) for row in zip(pairs, places, changed, strict=True)]

    def _asked(self, prompts: Sequence[str], otherwise: Sequence[str]) -> Steps[list[str]]:
        """Instructions that the LM wrote; where it wrote none that can be used, those in ``otherwise``."""
        replies = yield from self.board.ask(prompts)
        read = [read_instruction(text) for text in replies] + [None] * (len(prompts) - len(replies))
        return [text if text and is_usable(text) else old for text, old in zip(read, otherwise, strict=True)]

    def _prompt(self, predictor: str, now: str, *, wish: str, about: Sequence[str] = ()) -> str:
        problem = self.board.problem
        spec = problem.predictor(predictor)
        shown = even(problem.train, size=SHOWN, rng=self.rng)
        answers = [labelled_demo(spec, example) or example.fields for example in shown]
        return job_prompt(spec, now=now, examples=answers, wish=wish, about=about)

    def _crossing(self, predictor: str, one: str, other: str) -> str:
        about = (f"Other instructions for the same job: {other[:1000]}",) if other != one else ()
        return self._prompt(predictor, one, about=about, wish="Merge what is best in all instructions into one text.")

    def _child(self, pair: Sequence[Candidate], place: str, instructions: str) -> Candidate:
        """A child of ``pair`` with ``instructions`` in one place; the rest of it is from either parent."""
        states = {}
        for name in pair[0].predictors:
            kept = self.rng.choice(pair).predictors[name].instructions
            demos = self._demos(name, [each.predictors[name].demos for each in pair])
            states[name] = PredictorState(instructions=instructions if name == place else kept, demos=demos)
        parents = tuple(dict.fromkeys(each.key for each in pair))
        return Candidate(predictors=states, parents=parents, origin=f"capo: cross and change {place}")

    def _demos(self, predictor: str, both: Sequence[Sequence[Fields]]) -> tuple[Fields, ...]:
        """As many as the parents have on average, drawn from both; then one more, one less or none, and shuffled."""
        rng = self.rng
        union = list({canonical(demo): demo for demos in both for demo in demos}.values())
        drawn = rng.sample(union, min(len(union), round(sum(map(len, both)) / 2)))
        shown = {canonical(demo) for demo in drawn}
        traced = [run[predictor] for run in self.pools.traced if predictor in run]
        fresh = [demo for demo in (*self.pools.labelled.get(predictor, ()), *traced) if canonical(demo) not in shown]
        step = rng.choice((-1, 0, 1))
        if step > 0 and fresh and len(drawn) < self.max_demos:
            drawn.append(rng.choice(fresh))
        elif step < 0 and drawn:
            drawn.pop()
        rng.shuffle(drawn)
        while sum(len(canonical(demo)) for demo in drawn) > MAX_CHARACTERS:
            drawn.pop()
        return tuple(drawn)


# Variation within given options


@dataclass(slots=True, kw_only=True)
class Recombining:
    """Combinations of given options: a child has each option from either parent, and one of them may be changed."""

    board: Scoreboard
    space: Space
    rng: random.Random

    def first(self, count: int) -> Steps[list[Candidate]]:
        """Random combinations in which every option occurs, as far as ``count`` goes."""
        return [self.space.candidate(each) for each in self.space.draw(count, rng=self.rng)]
        yield

    def children(self, parents: Sequence[Candidate], count: int) -> Steps[list[Candidate]]:
        """Children that were not run yet; there may be fewer than ``count``."""
        chosen = {made: combination for combination, made in self.space.made.items()}
        found: dict[Candidate, None] = {}
        for _ in range(20 * count):
            pair = [chosen[each] for each in (self.rng.choices(parents, k=2))]
            child = self.space.candidate(self._child(pair))
            if len(found) < count and new(self.board, [child]):
                found.setdefault(child)
        return list(found)
        yield

    def _child(self, pair: Sequence[Combination]) -> Combination:
        child = [self.rng.choice(options) for options in zip(*pair, strict=True)]
        if pair[0] == pair[1] or self.rng.random() < 0.5:
            place = self.rng.randrange(len(child))
            child[place] = self.rng.randrange(list(self.space.sizes.values())[place])
        return tuple(child)

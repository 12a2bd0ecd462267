"""MIPROv2: propose instructions and demo sets, then let a Bayesian search find the combination.

Three steps, as in the paper: bootstrap demos (sec. 4.1), propose instructions grounded in the data, the program and the
demos (sec. 4.2), and search the combinations on minibatches with a Bayesian model, validating the best in full (sec.
4.3). The third differs from the paper where a few hundred runs are all there is:

* The model is not TPE but random effects: a combination's mean score is the sum of what its instructions do, what its
  demos do and what only the two together do; so is what they do to one example. Combinations share instructions and
  demos, so each run tells of many. TPE needs some ten trials before it knows anything, and a budget has not many more.
* Minibatches are small, and what is run next is decided between them: the combinations with the highest upper
  confidence bounds, so that one that promises much is run on more and more examples. Combinations that have demos in
  common meet other examples, since demos act on an example much alike whatever instructions they stand beside.

On synthetic surfaces this finds more than TPE at every budget from 100 to 1000 runs, on a recorded one from 200 on:
docs/decisions/0006.

References:
    Opsahl-Ong et al., "Optimizing Instructions and Demonstrations for Multi-Stage Language Model Programs", 2024,
    arXiv 2406.11695.
    Henderson, "Best Linear Unbiased Estimation and Prediction under a Selection Model", Biometrics 31, 1975 (effects).
    Desautels, Krause, Burdick, "Parallelizing Exploration-Exploitation Tradeoffs in Gaussian Process Bandit
    Optimization", JMLR 15, 2014 (a batch of trials at once).
    Jamieson, Talwalkar, "Non-stochastic Best Arm Identification and Hyperparameter Optimization", 2016,
    arXiv 1502.07943 (how many to begin with).
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

import numpy as np

from ratchet.algorithms.demos import MAX_DEMOS, DemoSet, demo_sets, even, labelled_demo, spread
from ratchet.algorithms.effects import posterior
from ratchet.algorithms.instruction import accepted, job_prompt, read_instruction, shortened
from ratchet.algorithms.scoreboard import (
    BOOTSTRAP_SHARE,
    LEADERS,
    Contest,
    Scoreboard,
    fare,
    gather,
    rungs,
    validate_leaders,
)
from ratchet.algorithms.space import POOL, Combination, Space
from ratchet.core.algorithm import Algorithm, Steps, wait
from ratchet.core.errors import BudgetSpent
from ratchet.core.problem import Candidate, Example, Fields, PredictorSpec, Problem

TIPS = (
    "Say what each possible answer means and how to tell it from the others.",
    "State the task in one plain sentence, then the form of the answer.",
    "Say for each field of the answer how to find it in the input, and what to do when it is not there.",
    "Name the mistakes that are easy to make here and how to avoid them.",
    "Give a short procedure of numbered steps that ends in the answer.",
    "Be brief: leave out every word that does not help.",
)
"""What a proposal should do, the most useful first."""

SHOWN = 8
"""Examples of right answers shown to the reflection LM."""

MAX_SETS = 16
CAUTION = 1.5
"""Standard deviations that the bound by which trials are chosen lies above the mean."""
SEED_RUNS = 3
"""The seed is run on all of validation where the budget is so many times that."""
LEAVE = 1.0
"""Share of a turn, or of the slots, that may be under way when the next is decided; docs/decisions/0006 says why."""
TURNS = 24
"""About how often a search looks at the model."""
ANSWERS = 2
"""Answers that proposals take, one after the other: the summary of the data, and they themselves."""


def miprov2(problem: Problem, *, rng: random.Random, max_demos: int = MAX_DEMOS) -> Algorithm:
    """The best combination of proposed instructions and demo sets, chosen per predictor.

    Args:
        problem: What to improve.
        rng: Source of randomness.
        max_demos: The most demos a predictor gets.
    """
    board = Scoreboard(problem)
    with suppress(BudgetSpent):
        runs = int(BOOTSTRAP_SHARE * problem.budget.runs)
        pools = yield from gather(board, rng=rng, runs=runs, max_demos=max_demos)
        plan = Plan.of(problem, runs=board.runs_left)
        sets = demo_sets(problem, pools, rng=rng, count=plan.sets, max_demos=max_demos)
        order = spread(problem.validation, rng=rng)
        first = Space.of(problem.seed, accepted(problem, []), sets)
        alone = first.draw(plan.alone, rng=rng)
        orders = turned(board, plan, order)
        summary = yield from summarise(board, rng=rng)  # asked for first, so that no run is in its way
        yield from begin(board, [first.candidate(each) for each in alone], plan, orders)
        instructions = yield from propose(board, sets, summary, rng=rng, count=plan.proposals)
        yield from search(board, Space.of(problem.seed, instructions, sets), alone, plan, order, orders, rng=rng)
    yield from board.finish()
    return board.finalists()


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How the budget is divided; the numbers of options follow from the trials that fit.

    Attributes:
        block: Examples that a combination is run on at a time.
        turn: Runs between two looks at the model, at least; no fewer than there are slots.
        trials: Combinations that are tried before the model chooses: half of those that a race by successive halving
            would begin with.
        alone: Demo sets that are tried with the seed's own instructions while others are being written.
        opening: Examples that each of these is run on, so that the slots are full until then.
        sets: Demo sets to draw.
        proposals: Instructions to propose per predictor.
    """

    block: int
    turn: int
    trials: int
    alone: int
    opening: int
    sets: int
    proposals: int

    @classmethod
    def of(cls, problem: Problem, *, runs: int) -> Plan:
        """The plan for ``problem`` when ``runs`` are left.

        >>> from ratchet.testing import SyntheticProblem
        >>> Plan.of(SyntheticProblem(n_validation=40).problem, runs=247)
        Plan(block=4, turn=8, trials=9, alone=4, opening=4, sets=9, proposals=4)
        """
        n, parts = len(set(problem.validation)), len(problem.predictors)
        most = min(POOL, ((1 + len(TIPS)) * (1 + MAX_SETS)) ** parts - 1)
        runs -= n + 1 + len(TIPS) * parts
        sizes = rungs(n, entrants=most, runs=runs)
        while len(sizes) > 1 and fare(2, sizes) > runs:
            sizes = sizes[:-1]
        raced = max((count for count in range(1, most + 1) if fare(count, sizes) <= runs), default=1)
        sets = max(2, min(MAX_SETS, raced // 2))
        blocks = ANSWERS * problem.slots // sizes[0]
        alone = max(1, min(sets, raced // 2, blocks))
        return cls(
            block=sizes[0],
            turn=max(problem.slots, runs // TURNS),
            trials=max(1, raced // 2),
            alone=alone,
            opening=min(n, sizes[0] * max(1, blocks // alone)),
            sets=sets,
            proposals=max(2, min(len(TIPS), raced // (4 * parts))),
        )


# Step 2: propose instructions


def summarise(board: Scoreboard, *, rng: random.Random) -> Steps[int | None]:
    """The ticket of a text that says what the data is; None where there is no data, or no budget for it."""
    train = board.problem.train
    return (yield from board.begin_text(summary_prompt(even(train, size=5, rng=rng)))) if train else None


def propose(
    board: Scoreboard, sets: Sequence[DemoSet], summarised: int | None, *, rng: random.Random, count: int
) -> Steps[dict[str, list[str]]]:
    """Each predictor's own instructions and up to ``count`` proposals, each with another tip and other demos.

    Args:
        board: Where scores are kept.
        sets: The demo sets there are.
        summarised: The ticket of ``summarise``.
        rng: Source of randomness.
        count: The most proposals for each predictor.
    """
    problem = board.problem
    if not problem.train:
        return accepted(problem, [])
    texts = () if summarised is None else (yield from wait(summarised))[1]
    summary = (read_instruction(texts[0]) if texts else None) or ""
    prompts = []
    for spec in problem.predictors:
        for number, tip in enumerate(TIPS[:count]):
            shown = sets[number % len(sets)].get(spec.name, ()) if sets else _answers(problem, spec, rng)
            prompts.append((spec.name, proposal_prompt(problem, spec, summary=summary, demos=shown, tip=tip)))
    texts = yield from board.ask([prompt for _, prompt in prompts])
    return accepted(problem, [(name, text) for (name, _), text in zip(prompts, texts, strict=False)])


def _answers(problem: Problem, spec: PredictorSpec, rng: random.Random) -> list[Fields]:
    """Right answers of training examples, where the labels hold them."""
    return [demo for each in even(problem.train, size=SHOWN, rng=rng) if (demo := labelled_demo(spec, each))]


def summary_prompt(examples: Sequence[Example]) -> str:
    """What the reflection LM is asked for a summary of the data."""
    return "\n".join(
        (
            "Here are examples of a data set:",
            *(shortened(example.fields) for example in examples),
            "In at most three sentences: what is the task, what do the inputs have in common, what do right answers "
            "look like?",
        )
    )


def proposal_prompt(problem: Problem, spec: PredictorSpec, *, summary: str, demos: Sequence[Fields], tip: str) -> str:
    """What the reflection LM is asked for new instructions of one predictor."""
    others = [each.name for each in problem.predictors if each.name != spec.name]
    return job_prompt(
        spec,
        now=problem.seed.predictors[spec.name].instructions,
        examples=demos[:SHOWN],
        wish=tip,
        about=(
            f"The program: {problem.description[:600]}" if problem.description else "",
            f"The data: {summary[:600]}" if summary else "",
            f"Other steps of the program: {', '.join(others)}." if others else "",
        ),
    )


# Step 3: search the combinations


class Turned:
    """The examples in another order for each candidate, so that what has options in common meets different examples.

    Instructions and demos act on an example much alike whatever they stand beside: a second candidate with the same
    demos tells little on the same examples, and as much again on others. See docs/decisions/0006.

    Args:
        order: The validation examples.
        step: How many examples further on each candidate begins; 0 for one order for all.
    """

    def __init__(self, order: Sequence[Example], *, step: int) -> None:
        self._order, self._step = tuple(order), step
        self._begins: dict[Candidate, int] = {}

    def first(self, candidate: Candidate, size: int) -> tuple[Example, ...]:
        """The first ``size`` examples of ``candidate``."""
        at = self._begins.setdefault(candidate, len(self._begins)) * self._step % len(self._order)
        return (*self._order[at:], *self._order[:at])[:size]


def turned(board: Scoreboard, plan: Plan, order: Sequence[Example]) -> Turned:
    """Orders of the examples; one for all where the budget does not carry the seed on all of them."""
    return Turned(order, step=plan.block if board.runs_left >= SEED_RUNS * len(order) else 0)


def begin(board: Scoreboard, candidates: Sequence[Candidate], plan: Plan, orders: Turned) -> Steps[None]:
    """Begin the first trials; and the seed on all of validation, where that is no great part of the budget."""
    for each in candidates:
        examples = orders.first(each, plan.opening)
        if board.cost([each], examples) <= board.runs_left // 2:
            yield from board.begin(each, examples)
    if candidates and board.runs_left >= SEED_RUNS * len(board.validation):
        yield from board.begin(board.problem.seed, board.validation)


def search(
    board: Scoreboard,
    space: Space,
    alone: Sequence[Combination],
    plan: Plan,
    order: Sequence[Example],
    orders: Turned,
    *,
    rng: random.Random,
) -> Steps[None]:
    """Try many combinations on few examples; run those that promise most on more; validate the leaders in full."""
    contest = Contest(board, most=4 * plan.trials)
    drawn = [*alone, *space.draw(plan.trials - len(alone), rng=rng, but=alone)]
    first = {each: orders.first(each, plan.block) for each in map(space.candidate, drawn)}
    while first and board.price(first) > board.runs_left:
        first.popitem()
    yield from contest.run(first, leave=LEAVE)
    while chosen := promising(board, space, plan, order, orders, rng=rng):
        yield from contest.run(chosen, leave=LEAVE)
    yield from board.finish()
    yield from validate_leaders(board, order, leaders=lambda: leading(board, believed(board, space, rng=rng), space))


def leading(board: Scoreboard, beliefs: Sequence[Belief], space: Space) -> list[Candidate]:
    """Who is believed to be better than the seed and may still win, best first."""
    found = [space.candidate(each.combination) for each in beliefs if each.gain > 0.0]
    return [each for each in found if each not in board.stopped]


def promising(
    board: Scoreboard,
    space: Space,
    plan: Plan,
    order: Sequence[Example],
    orders: Turned,
    *,
    rng: random.Random,
) -> dict[Candidate, Sequence[Example]]:
    """The candidates with the highest bounds, each with some examples more, for one turn.

    What it takes to run the one that leads on all examples is left. A turn that would fill fewer than half of the slots
    is not taken: it lasts as long as any, and the leaders can use what it costs.
    """
    beliefs = believed(board, space, rng=rng)
    leaders = leading(board, beliefs, space)[:1]
    room = board.runs_left - sum(len(board.missing(each, order)) for each in leaders)
    chosen: dict[Candidate, Sequence[Example]] = {}
    spent = 0
    for belief in sorted(beliefs, key=lambda each: -each.bound):
        candidate = space.candidate(belief.combination)
        if candidate in board.stopped or candidate == space.seed:
            continue
        missing = board.missing(candidate, orders.first(candidate, len(order)))[: plan.block]
        price = board.price({candidate: missing})
        if not missing or price > room - spent:
            continue
        chosen[candidate] = missing
        spent += price
        if spent >= plan.turn:
            break
    return chosen if spent >= board.problem.slots // 2 else {}


# What is believed


@dataclass(frozen=True, slots=True)
class Belief:
    """What is believed of one combination.

    Attributes:
        gain: Its mean score minus the seed's.
        bound: What the gain may well be: ``CAUTION`` standard deviations more.
    """

    combination: Combination
    gain: float
    bound: float


def believed(board: Scoreboard, space: Space, *, rng: random.Random) -> list[Belief]:
    """What is believed of the combinations one can choose from, highest gain first."""
    known = {each: scores for each, made in space.made.items() if (scores := board.scores(made))}
    known[space.unchanged] = board.scores(space.seed)
    near = sorted(known, key=lambda each: (-board.gain(space.candidate(each)), each))[:LEADERS]
    pool = list(dict.fromkeys([*known, *space.some(rng, near=near)]))
    mean, sd = posterior(pool, known, kinds=[what for what, _ in space.sizes])
    # Rounded: an order that hangs on the last bit may be another one on another machine.
    gain = np.round(mean - mean[pool.index(space.unchanged)], 9)
    bound = np.round(gain + CAUTION * sd, 9)
    beliefs = [Belief(each, float(gain[at]), float(bound[at])) for at, each in enumerate(pool)]
    return sorted(beliefs, key=lambda each: (-each.gain, each.combination))

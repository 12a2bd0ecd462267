"""Random search: random rewrites of the instructions times random demo sets, raced on validation.

What any cleverer search has to beat: it learns nothing from one candidate about the next.

References:
    Bergstra, Bengio, "Random Search for Hyper-Parameter Optimization", JMLR 13, 2012.
    Zhou et al., "Large Language Models Are Human-Level Prompt Engineers", 2023, arXiv 2211.01910 (resampling).
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace

from ratchet.algorithms.demos import MAX_DEMOS, demo_sets, even, spread
from ratchet.algorithms.instruction import accepted, job_prompt
from ratchet.algorithms.scoreboard import BOOTSTRAP_SHARE, Scoreboard, gather, race
from ratchet.core.algorithm import Algorithm, Steps
from ratchet.core.errors import BudgetSpent
from ratchet.core.problem import Candidate, Example, Fields, PredictorSpec, Problem

EXAMPLES = 6
"""Examples shown to the reflection LM."""

Options = Mapping[str, Sequence[str]]
"""Instructions to choose from, per predictor; the seed's own first."""


def random_search(
    problem: Problem, *, rng: random.Random, max_demos: int = MAX_DEMOS, rewrites: int = 5, draws: int = 24
) -> Algorithm:
    """The best of many random pairs of instructions and demos.

    Args:
        problem: What to improve.
        rng: Source of randomness.
        max_demos: The most demos a predictor gets.
        rewrites: How many rewrites to ask for, over all predictors; at least one for each.
        draws: The most candidates to race; a small budget races fewer.
    """
    board = Scoreboard(problem)
    with suppress(BudgetSpent):
        runs = int(BOOTSTRAP_SHARE * problem.budget.runs)
        pools = yield from gather(board, rng=rng, runs=runs, max_demos=max_demos)
        demos = [{}, *demo_sets(problem, pools, rng=rng, count=draws, max_demos=max_demos)]
        instructions = yield from rewrite(board, rng=rng, count=max(1, rewrites // len(problem.predictors)))
        candidates = [_draw(problem.seed, instructions, rng.choice(demos), rng) for _ in range(draws)]
        yield from race(board, candidates, spread(problem.validation, rng=rng))
    yield from board.finish()
    return board.finalists()


def rewrite(board: Scoreboard, *, rng: random.Random, count: int) -> Steps[dict[str, list[str]]]:
    """Each predictor's own instructions and up to ``count`` rewrites of them."""
    problem = board.problem
    prompts = [
        (spec.name, rewrite_prompt(problem, spec, even(problem.train, size=EXAMPLES, rng=rng)))
        for spec in problem.predictors
        for _ in range(count)
    ]
    texts = yield from board.ask([prompt for _, prompt in prompts])
    return accepted(problem, [(name, text) for (name, _), text in zip(prompts, texts, strict=False)])


def rewrite_prompt(problem: Problem, spec: PredictorSpec, examples: Sequence[Example]) -> str:
    """What the reflection LM is asked for other instructions."""
    return job_prompt(
        spec,
        now=problem.seed.predictors[spec.name].instructions,
        examples=[example.fields for example in examples],
        wish="Say what the job is and how to do it well.",
    )


def _draw(
    seed: Candidate, instructions: Options, demos: Mapping[str, Sequence[Fields]], rng: random.Random
) -> Candidate:
    changed = {
        name: replace(state, instructions=rng.choice(instructions[name]), demos=tuple(demos.get(name, state.demos)))
        for name, state in seed.predictors.items()
    }
    return seed.with_predictors(changed, origin="random search: random instructions and demos")

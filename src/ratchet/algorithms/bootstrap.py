"""Demo search: draw many demo sets, race them on the validation examples, keep the best.

References:
    Khattab et al., "DSPy: Compiling Declarative Language Model Calls into Self-Improving Pipelines", 2023,
    arXiv 2310.03714 (BootstrapFewShotWithRandomSearch).
"""

from __future__ import annotations

import random
from contextlib import suppress

from ratchet.algorithms.demos import MAX_DEMOS, demo_sets, spread
from ratchet.algorithms.scoreboard import BOOTSTRAP_SHARE, Scoreboard, gather, race, with_demo_set
from ratchet.core.algorithm import Algorithm
from ratchet.core.errors import BudgetSpent
from ratchet.core.problem import Problem


def bootstrap(problem: Problem, *, rng: random.Random, max_demos: int = MAX_DEMOS, sets: int = 16) -> Algorithm:
    """The seed's instructions with the demo sets that did best.

    Args:
        problem: What to improve.
        rng: Source of randomness.
        max_demos: The most demos a predictor gets.
        sets: The most demo sets to race; a small budget races fewer.
    """
    board = Scoreboard(problem)
    with suppress(BudgetSpent):
        pools = yield from gather(board, rng=rng, runs=int(BOOTSTRAP_SHARE * problem.budget.runs), max_demos=max_demos)
        drawn = demo_sets(problem, pools, rng=rng, count=sets, max_demos=max_demos)
        candidates = [
            with_demo_set(problem.seed, demos, origin=f"bootstrap: demo set {number}")
            for number, demos in enumerate(drawn, 1)
        ]
        yield from race(board, candidates, spread(problem.validation, rng=rng))
    yield from board.finish()
    return board.finalists()

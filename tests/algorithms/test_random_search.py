"""Random search on a problem whose truth is known."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from ratchet.algorithms.random_search import random_search
from ratchet.core.algorithm import Algorithm, Evaluate, Generate
from ratchet.core.errors import BudgetSpent
from ratchet.core.problem import Budget, Problem
from ratchet.testing import SyntheticProblem
from ratchet.testing.by_hand import ByHand


@pytest.mark.parametrize("predictors", [("answer",), ("plan", "answer")])
@pytest.mark.parametrize("seed", range(4))
def test_it_improves_the_toy_problem(seed: int, predictors: tuple[str, ...]) -> None:
    toy = SyntheticProblem(seed=seed, predictors=predictors)
    assert toy.quality(toy.solve(random_search, seed=seed)[0]) > 0.5 > toy.quality(toy.problem.seed)


def test_the_same_seed_gives_the_same_finalists() -> None:
    first, second = (SyntheticProblem(fails=0.1).solve(random_search, seed=7) for _ in range(2))
    assert [each.key for each in first] == [each.key for each in second]


@pytest.mark.parametrize("runs", [1, 15, 40, 61, 100, 137, 400])
def test_no_more_runs_than_the_budget_are_asked_for(runs: int) -> None:
    toy = SyntheticProblem(runs=runs)
    toy.solve(never_stopped)
    assert toy.runs_used + toy.texts_used <= runs


def never_stopped(problem: Problem, *, rng: random.Random) -> Algorithm:
    """The search; the test fails when the driver has to stop it."""
    search, reply = random_search(problem, rng=rng), None
    while True:
        try:
            request = search.send(reply)
        except StopIteration as end:
            return list(end.value)
        try:
            reply = yield request
        except BudgetSpent:
            pytest.fail("it asked for more than the budget")


def test_a_limit_reached_early_leaves_the_finalists_so_far() -> None:
    toy = SyntheticProblem(runs=300)
    finalists = toy.solve(lambda problem, *, rng: random_search(replace(problem, budget=Budget(runs=10_000)), rng=rng))
    assert toy.quality(finalists[0]) > 0.5


def test_a_hopeless_problem_gives_back_the_seed() -> None:
    toy = SyntheticProblem(hopeless=True)
    assert toy.solve(random_search) == [toy.problem.seed]


def test_failed_runs_do_not_stop_the_search() -> None:
    toy = SyntheticProblem(fails=0.3)
    assert toy.quality(toy.solve(random_search)[0]) > 0.3


def test_it_shows_the_reflection_lm_the_instructions_and_uses_only_what_can_be_used() -> None:
    toy = SyntheticProblem()
    search = ByHand(random_search(toy.problem, rng=random.Random(0), rewrites=4))
    prompts = [each.prompt for each in search.asked if isinstance(each, Generate)]
    assert len(prompts) == 4
    assert all("Answer the question." in prompt and "`question` (str)" in prompt for prompt in prompts)

    texts = iter(("", "```\nAnswer the question.\n```", "x" * 4001, "Be right."))
    race = search.answer(lambda _: (next(texts),))
    used = {each.candidate.predictors["answer"].instructions for each in race if isinstance(each, Evaluate)}
    assert used == {"Answer the question.", "Be right."}

"""Demo search on a problem whose truth is known."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from ratchet.algorithms.bootstrap import bootstrap
from ratchet.algorithms.scoreboard import Scoreboard
from ratchet.core.algorithm import Algorithm, Evaluate, Generate
from ratchet.core.errors import BudgetSpent
from ratchet.core.evaluation import Evaluation, Evaluations, Step
from ratchet.core.problem import Budget, Example, FieldSpec, Problem
from ratchet.testing import SyntheticProblem
from ratchet.testing.by_hand import ByHand


def test_a_scoreboard_asks_for_no_run_twice() -> None:
    toy = SyntheticProblem()
    board = Scoreboard(toy.problem)
    child = toy.problem.seed.with_instructions("answer", "Use skill-1.", origin="by hand")
    first, second = toy.problem.validation[:4], toy.problem.validation[:6]
    assert board.cost([child], second) == 12

    def measured() -> Algorithm:
        yield from board.begin(child, first)
        assert (board.runs_used, board.cost([child], second), board.under_way) == (8, 4, 8)
        yield from board.begin(child, first)
        yield from board.finish()
        return [child]

    asking = ByHand(measured())
    assert [len(each.examples) for each in asking.asked if isinstance(each, Evaluate)] == [4, 4]
    asking.answer(lambda part: answer(toy, part))
    assert asking.finalists == [child]
    assert (board.runs_used, board.under_way) == (8, 0)
    assert list(board.scores(child)) == list(first)


@pytest.mark.parametrize("predictors", [("answer",), ("plan", "answer")])
@pytest.mark.parametrize("seed", range(4))
def test_demos_solve_what_the_seed_cannot(seed: int, predictors: tuple[str, ...]) -> None:
    toy = SyntheticProblem(seed=seed, predictors=predictors)
    assert toy.quality(toy.solve(bootstrap, seed=seed)[0]) > 0.5 > toy.quality(toy.problem.seed)


def test_the_same_seed_gives_the_same_finalists() -> None:
    first, second = (SyntheticProblem(fails=0.1).solve(bootstrap, seed=7) for _ in range(2))
    assert [each.key for each in first] == [each.key for each in second]


@pytest.mark.parametrize("runs", [1, 15, 40, 61, 100, 137, 400])
def test_no_more_runs_than_the_budget_are_asked_for(runs: int) -> None:
    toy = SyntheticProblem(runs=runs)
    toy.solve(never_stopped)
    assert toy.runs_used <= runs


def never_stopped(problem: Problem, *, rng: random.Random) -> Algorithm:
    """The search; the test fails when the driver has to stop it."""
    search, reply = bootstrap(problem, rng=rng), None
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
    toy = SyntheticProblem(runs=260)
    finalists = toy.solve(lambda problem, *, rng: bootstrap(replace(problem, budget=Budget(runs=10_000)), rng=rng))
    assert toy.quality(finalists[0]) > 0.5


def test_a_hopeless_problem_gives_back_the_seed() -> None:
    toy = SyntheticProblem(hopeless=True)
    assert toy.solve(bootstrap) == [toy.problem.seed]


def test_failed_runs_do_not_stop_the_search() -> None:
    toy = SyntheticProblem(fails=0.3)
    assert toy.quality(toy.solve(bootstrap)[0]) > 0.3


def test_outputs_nobody_labelled_are_bootstrapped_from_training_runs_that_succeeded() -> None:
    toy = SyntheticProblem(predictors=("plan", "answer"), n_train=80)
    problem = with_an_unlabelled_plan(toy.problem)
    search = ByHand(bootstrap(problem, rng=random.Random(0), sets=4))
    (request,) = search.asked
    assert isinstance(request, Evaluate)
    assert len(request.examples) <= 0.2 * problem.budget.runs
    teacher = request.candidate.predictors
    assert not teacher["plan"].demos
    copied = {demo["question"] for demo in teacher["answer"].demos}
    assert copied
    assert copied.isdisjoint(example.inputs["question"] for example in request.examples)

    went_well = request.examples[:3]
    race = search.answer(lambda _: Evaluations(tuple(planned(each, each in went_well) for each in request.examples)))
    plans = [each.candidate.predictors["plan"].demos for each in race if isinstance(each, Evaluate)]
    shown = {demo["question"] for demos in plans for demo in demos}
    assert shown == {example.inputs["question"] for example in went_well}
    assert {demo["plan"] for demos in plans for demo in demos} == {"look it up"}


def with_an_unlabelled_plan(problem: Problem) -> Problem:
    plan, answer = problem.predictors
    return replace(problem, predictors=(replace(plan, outputs=(FieldSpec(name="plan", type="str"),)), answer))


def planned(example: Example, well: bool) -> Evaluation:
    steps = (
        Step(predictor="plan", inputs=example.inputs, outputs={"plan": "look it up"}),
        Step(predictor="answer", inputs=example.inputs, outputs=example.labels),
    )
    return Evaluation(candidate="teacher", example=example, score=float(well), trace=steps)


def answer(toy: SyntheticProblem, request: Evaluate | Generate) -> Evaluations:
    assert isinstance(request, Evaluate)
    return Evaluations(tuple(toy.run(request.candidate, example) for example in request.examples))

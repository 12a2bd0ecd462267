"""MIPROv2 on a problem whose truth is known."""

from __future__ import annotations

import itertools
import random
from dataclasses import replace

import pytest

from ratchet.algorithms.miprov2 import SHOWN, TIPS, Space, Tpe, miprov2
from ratchet.core.algorithm import Algorithm, Evaluate, Generate, Together
from ratchet.core.errors import BudgetSpent
from ratchet.core.evaluation import Evaluations
from ratchet.core.problem import Budget, FieldSpec, Problem
from ratchet.testing import SyntheticProblem


@pytest.mark.parametrize("predictors", [("answer",), ("plan", "answer")])
@pytest.mark.parametrize("seed", range(4))
def test_it_improves_the_toy_problem(seed: int, predictors: tuple[str, ...]) -> None:
    toy = SyntheticProblem(seed=seed, predictors=predictors)
    assert toy.quality(toy.solve(miprov2, seed=seed)[0]) > 0.5 > toy.quality(toy.problem.seed)


def test_the_same_seed_gives_the_same_finalists() -> None:
    first, second = (SyntheticProblem(fails=0.1).solve(miprov2, seed=7) for _ in range(2))
    assert [each.key for each in first] == [each.key for each in second]


@pytest.mark.parametrize("runs", [1, 15, 40, 61, 100, 137, 400])
def test_no_more_runs_than_the_budget_are_asked_for(runs: int) -> None:
    toy = SyntheticProblem(runs=runs)
    toy.solve(never_stopped)
    assert toy.runs_used + toy.texts_used <= runs


def never_stopped(problem: Problem, *, rng: random.Random) -> Algorithm:
    """The search; the test fails when the driver has to stop it."""
    search, reply = miprov2(problem, rng=rng), None
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
    finalists = toy.solve(lambda problem, *, rng: miprov2(replace(problem, budget=Budget(runs=10_000)), rng=rng))
    assert toy.quality(finalists[0]) > 0.5


def test_a_hopeless_problem_gives_back_the_seed() -> None:
    toy = SyntheticProblem(hopeless=True)
    assert toy.solve(miprov2) == [toy.problem.seed]


def test_failed_runs_do_not_stop_the_search() -> None:
    toy = SyntheticProblem(fails=0.3)
    assert toy.quality(toy.solve(miprov2)[0]) > 0.3


def test_proposals_are_grounded_in_data_program_fields_and_demos_and_only_usable_ones_are_tried() -> None:
    toy = SyntheticProblem()
    mood = FieldSpec(name="answer", type="Literal", choices=("calm", "angry"))
    problem = replace(toy.problem, predictors=(replace(toy.problem.predictors[0], outputs=(mood,)),))
    search = miprov2(problem, rng=random.Random(0))

    request = next(search)
    assert isinstance(request, Together)
    (summary,) = prompts_of(request)
    assert sum(example.inputs["question"] in summary for example in problem.train) == 5

    request = search.send([("Questions about moods.",)])
    assert isinstance(request, Together)
    prompts = prompts_of(request)
    assert len(prompts) == len(set(prompts)) == 6
    for prompt, tip in itertools.product(prompts, ("Questions about moods.", problem.description, "calm, angry")):
        assert tip in prompt
    assert {tip for tip in TIPS for prompt in prompts if tip in prompt} == set(TIPS)
    shown = [sum(example.inputs["question"] in prompt for example in problem.train) for prompt in prompts]
    assert all(1 <= count <= SHOWN for count in shown)
    assert max(map(len, prompts)) < 1500

    texts = ["", "```\nAnswer the question.\n```", "x" * 4001, "Be right.", "```\nBe right.\n```", "Be quick."]
    request = search.send([(text,) for text in texts])
    tried: set[str] = set()
    for _ in range(3):
        assert isinstance(request, Together)
        asked = [each for each in request.requests if isinstance(each, Evaluate)]
        tried |= {each.candidate.predictors["answer"].instructions for each in asked}
        request = search.send(
            [Evaluations(tuple(toy.run(each.candidate, example) for example in each.examples)) for each in asked]
        )
    assert tried == {"Answer the question.", "Be right.", "Be quick."}


def prompts_of(request: Together) -> list[str]:
    return [each.prompt for each in request.requests if isinstance(each, Generate)]


def test_the_trials_of_one_batch_meet_the_same_examples() -> None:
    toy = SyntheticProblem(runs=200, n_validation=40)
    batches: list[Together] = []

    def watched(problem: Problem, *, rng: random.Random) -> Algorithm:
        search = miprov2(problem, rng=rng)
        request = next(search)
        while True:
            if isinstance(request, Together) and isinstance(request.requests[0], Evaluate):
                batches.append(request)
            try:
                request = search.send((yield request))
            except StopIteration as end:
                return list(end.value)

    toy.solve(watched)
    first = [each for each in batches[0].requests if isinstance(each, Evaluate)]
    assert len(first) == 5
    assert {each.examples for each in first} == {first[0].examples}
    assert first[0].candidate == toy.problem.seed


def test_option_zero_of_every_choice_is_the_seed() -> None:
    seed = SyntheticProblem().problem.seed
    space = Space.of(seed, {"answer": ["Answer the question.", "Be right."]}, [{"answer": ({"question": "q"},)}])
    assert space.candidate(dict.fromkeys(space.sizes, 0)) is seed
    assert space.candidate(dict.fromkeys(space.sizes, 1)).predictors["answer"].demos == ({"question": "q"},)
    assert set(space.sizes.values()) == {2}


def test_tpe_learns_which_options_are_good() -> None:
    sizes = {("instructions", "answer"): 6, ("demos", "answer"): 6}
    tpe = Tpe(sizes, first=[], seed=0)
    late: list[int] = []
    for turn in range(20):
        for trial in tpe.ask(3):
            total = sum(trial.chosen.values())
            tpe.tell(trial, float(total))
            if turn >= 15:
                late.append(total)
    assert sum(late) / len(late) > 7


def test_with_nothing_to_choose_from_no_run_is_spent() -> None:
    toy = SyntheticProblem()
    assert toy.solve(lambda problem, *, rng: miprov2(replace(problem, train=()), rng=rng)) == [toy.problem.seed]
    assert toy.runs_used == 0

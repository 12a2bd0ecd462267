"""MIPROv2 on a problem whose truth is known."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ratchet.algorithms.effects import posterior
from ratchet.algorithms.miprov2 import SHOWN, TIPS, miprov2
from ratchet.algorithms.space import Space
from ratchet.core.algorithm import Algorithm, Evaluate, Generate
from ratchet.core.errors import BudgetSpent
from ratchet.core.evaluation import Evaluations
from ratchet.core.problem import Budget, FieldSpec, Problem
from ratchet.testing import SyntheticProblem
from ratchet.testing.by_hand import ByHand


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
    search = ByHand(miprov2(problem, rng=random.Random(0)))

    summary = next(each.prompt for each in search.asked if isinstance(each, Generate))
    assert sum(example.inputs["question"] in summary for example in problem.train) == 5

    prompts = prompts_of(search.answer(lambda _: ("Questions about moods.",)))
    assert len(prompts) == len(set(prompts)) >= 2
    for prompt, tip in itertools.product(prompts, ("Questions about moods.", problem.description, "calm, angry")):
        assert tip in prompt
    assert {tip for tip in TIPS for prompt in prompts if tip in prompt} == set(TIPS[: len(prompts)])
    shown = [sum(example.inputs["question"] in prompt for example in problem.train) for prompt in prompts]
    assert all(1 <= count <= SHOWN for count in shown)
    assert max(map(len, prompts)) < 1500

    texts = itertools.cycle(["", "Be right.", "```\nBe right.\n```", "x" * 4001, "Be quick."])
    tried: set[str] = set()
    asked = search.answer(lambda _: (next(texts),))
    while search.finalists is None:
        tried |= {each.candidate.predictors["answer"].instructions for each in asked if isinstance(each, Evaluate)}
        asked = search.answer(lambda part: run(toy, part))
    assert tried == {"Answer the question.", "Be right.", "Be quick."}


def prompts_of(asked: Sequence[Evaluate | Generate]) -> list[str]:
    return [each.prompt for each in asked if isinstance(each, Generate)]


def run(toy: SyntheticProblem, part: Evaluate | Generate) -> Evaluations:
    assert isinstance(part, Evaluate)
    return Evaluations(tuple(toy.run(part.candidate, example) for example in part.examples))


def test_the_first_trials_meet_different_examples_and_the_seed_all_of_them() -> None:
    toy = SyntheticProblem(runs=200, n_validation=40)
    search = ByHand(miprov2(toy.problem, rng=random.Random(0)))
    asked = [each for each in search.asked if isinstance(each, Evaluate)]
    texts = itertools.count()
    while not [each for each in asked if each.candidate != toy.problem.seed]:
        more = search.answer(lambda part: run(toy, part) if isinstance(part, Evaluate) else (f"Be {next(texts)}.",))
        asked += [each for each in more if isinstance(each, Evaluate)]
    first = [each for each in asked if each.candidate != toy.problem.seed]
    assert {len(each.examples) for each in first} == {4}
    met = [example for each in first for example in each.examples]
    assert len(first) > 1
    assert len(met) == len(set(met))
    seen_by_the_seed = {example for each in asked if each.candidate == toy.problem.seed for example in each.examples}
    assert seen_by_the_seed >= set(met)


def test_option_zero_of_every_choice_is_the_seed() -> None:
    seed = SyntheticProblem().problem.seed
    space = Space.of(seed, {"answer": ["Answer the question.", "Be right."]}, [{"answer": ({"question": "q"},)}])
    assert space.candidate(space.unchanged) is seed
    assert space.candidate((1, 1)).predictors["answer"].demos == ({"question": "q"},)
    assert list(space.sizes.values()) == [2, 2]


def test_the_model_learns_from_each_run_about_the_combinations_it_shares_options_with() -> None:
    examples = SyntheticProblem().problem.validation[:8]
    pool: list[tuple[int, ...]] = list(itertools.product(range(3), range(3)))
    good: dict[tuple[int, ...], float] = {(1, 0): 1.0, (0, 1): 1.0, (0, 0): 0.0, (2, 0): 0.0}
    known = {each: dict.fromkeys(examples, score) for each, score in good.items()}
    mean, sd = posterior(pool, known, kinds=["instructions", "demos"])
    at = {each: mean[place] for place, each in enumerate(pool)}
    assert max(at, key=lambda each: at[each] if each not in known else -9.0) == (1, 1)
    assert at[1, 2] > at[2, 2]
    unknown = [sd[place] for place, each in enumerate(pool) if each not in known]
    assert min(unknown) > max(sd[place] for place, each in enumerate(pool) if each in known)


@given(st.randoms(use_true_random=False))
def test_the_model_does_not_mind_the_order_of_combinations_and_examples(rng: random.Random) -> None:
    examples = SyntheticProblem().problem.validation[:6]
    pool: list[tuple[int, ...]] = list(itertools.product(range(2), range(3)))
    known = {each: {example: rng.random() for example in rng.sample(examples, 4)} for each in pool[:4]}
    other = {each: dict(rng.sample(list(known[each].items()), 4)) for each in rng.sample(list(known), 4)}
    kinds = ["instructions", "demos"]
    for one, two in zip(posterior(pool, known, kinds=kinds), posterior(pool, other, kinds=kinds), strict=True):
        assert one == pytest.approx(two)


def test_where_nothing_is_known_all_combinations_are_believed_alike() -> None:
    mean, sd = posterior([(0, 0), (0, 1)], {}, kinds=["instructions", "demos"])
    assert mean.tolist() == [0.0, 0.0]
    assert sd.tolist() == [1.0, 1.0]


def test_with_nothing_to_choose_from_no_run_is_spent() -> None:
    toy = SyntheticProblem()
    assert toy.solve(lambda problem, *, rng: miprov2(replace(problem, train=()), rng=rng)) == [toy.problem.seed]
    assert toy.runs_used == 0

"""`genetic` crosses what it has, keeps what is better in something, and gives back the whole front."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import pytest

from ratchet.algorithms.demos import Pools, labelled_pool
from ratchet.algorithms.genetic import Sizes, genetic
from ratchet.algorithms.variation import LEAST_RATE, Rates, Variation
from ratchet.core.algorithm import Algorithm, Generate
from ratchet.core.evaluation import Evaluation, Evaluations
from ratchet.core.objectives import gains
from ratchet.core.pareto import dominates
from ratchet.core.problem import Candidate, Example, Problem, canonical
from ratchet.core.request import MetricName, Objective
from ratchet.testing import SyntheticProblem, VirtualTime


@dataclass
class Priced(SyntheticProblem):
    """Every character of a prompt costs, and takes time."""

    metrics: tuple[MetricName, ...] = ("quality_score", "cost")

    @property
    def problem(self) -> Problem:
        return replace(super().problem, objectives=tuple(Objective(metric=metric) for metric in self.metrics))

    def run(self, candidate: Candidate, example: Example, repeat: int = 0) -> Evaluation:
        row = super().run(candidate, example, repeat)
        length = len(canonical(candidate.state()))
        return replace(row, usage=replace(row.usage, cost_usd=1e-6 * length, latency_ms=100 + length**0.5))


def measured(toy: SyntheticProblem, candidate: Candidate) -> Evaluations:
    return Evaluations(tuple(toy.run(candidate, example) for example in toy.problem.validation))


def places(toy: Priced, candidates: Sequence[Candidate]) -> list[tuple[float, ...]]:
    seed = measured(toy, toy.problem.seed)
    return [gains(measured(toy, each), seed, toy.metrics, success_at=1.0) for each in candidates]


# --- what comes back --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("metrics", [("quality_score", "cost"), ("quality_score", "success_rate", "cost", "latency")])
@pytest.mark.parametrize("seed", range(3))
def test_the_whole_front_comes_back_and_nothing_on_it_is_dominated(metrics: tuple[MetricName, ...], seed: int) -> None:
    toy = Priced(seed=seed, n_train=16, runs=500, metrics=metrics)
    finalists = toy.solve(genetic, seed=seed)
    found = places(toy, finalists)
    assert not any(dominates(a, b) for a in found for b in found)
    assert len(set(found)) == len(found) > 1
    everyone = places(toy, list(dict.fromkeys(toy.evaluated)))
    assert max(quality for quality, *_ in found) >= 0.9 * max(quality for quality, *_ in everyone)
    assert [sum(each) for each in found] == sorted((sum(each) for each in found), reverse=True)


def test_for_quality_alone_one_candidate_comes_back_and_the_seed_where_nothing_is_better() -> None:
    toy = SyntheticProblem()
    (best,) = toy.solve(genetic)
    assert measured(toy, best).mean > 0.8
    hopeless = SyntheticProblem(hopeless=True)
    assert hopeless.solve(genetic) == [hopeless.problem.seed]


def test_the_search_ends_once_everything_is_right() -> None:
    toy = SyntheticProblem(skills=2, runs=2000)
    (best,) = toy.solve(genetic)
    assert measured(toy, best).mean == 1.0
    assert toy.runs_used < 500


def test_a_program_as_good_as_can_be_is_made_cheaper() -> None:
    toy = Priced(skills=1, runs=300)
    told = toy.problem.seed.with_instructions("answer", f"Use skill-0. {'Think. ' * 200}", origin="by hand")

    def from_there(problem: Problem, *, rng: random.Random) -> Algorithm:
        return (yield from genetic(replace(problem, seed=replace(told, parents=())), rng=rng))

    finalists = toy.solve(from_there)
    cost = {each: measured(toy, each).cost_usd or 0.0 for each in (told, *finalists)}
    right = [each for each in finalists if measured(toy, each).mean == 1.0]
    assert min(cost[each] for each in right) < 0.5 * cost[told]


# --- how it searches --------------------------------------------------------------------------------------------------


def test_most_children_are_stopped_after_a_few_examples_and_the_best_are_measured_in_full() -> None:
    toy = SyntheticProblem(runs=400, n_train=8, capacity=3)
    rows: Counter[str] = Counter()
    run = toy.run

    def counted(candidate: Candidate, example: Example, repeat: int = 0) -> Evaluation:
        rows[candidate.key] += 1
        return run(candidate, example, repeat)

    toy.run = counted  # type: ignore[method-assign]
    finalists = toy.solve(genetic)
    assert all(rows[each.key] == toy.n_validation for each in finalists)
    first = Sizes.of(400, validation=30, slots=8).block
    assert sum(n == first for n in rows.values()) > len(rows) / 2


@pytest.mark.parametrize("slots", [2, 8, 32])
def test_slots_stay_busy(slots: int) -> None:
    toy = SyntheticProblem(runs=1500, n_validation=60, fails=0.1, slots=slots, n_train=8, capacity=3)
    clock = VirtualTime(slots=slots, text_seconds=1.0)
    toy.solve(genetic, order=clock)
    assert clock.share > 0.6


def test_a_population_may_be_given() -> None:
    few, many = (SyntheticProblem(runs=300, n_train=8, capacity=3) for _ in range(2))
    few.solve(partial(genetic, population=2))
    many.solve(partial(genetic, population=30))
    assert few.evaluated != many.evaluated


# --- children ---------------------------------------------------------------------------------------------------------


def variation(toy: SyntheticProblem, *, seed: int = 0) -> Variation:
    problem = toy.problem
    pools = Pools(labelled=labelled_pool(problem))
    return Variation(problem, pools, rng=random.Random(seed), pay=lambda texts: None, max_demos=8, temperature=1.0)


def parents(toy: SyntheticProblem, n: int) -> list[Candidate]:
    seed = toy.problem.seed
    pool = labelled_pool(toy.problem)["answer"]
    return [
        seed.with_instructions("answer", f"Instructions {number}.", origin="by hand").with_demos(
            "answer", pool[2 * number : 2 * number + 4], origin="by hand"
        )
        for number in range(n)
    ]


def child(made: Variation, operator: str, members: Sequence[Candidate], text: str = "") -> tuple[str, Candidate | None]:
    """What the LM was asked, if it was, and the child."""
    steps = made.child(operator, members)
    asked = ""
    try:
        request = next(steps)
        assert isinstance(request, Generate)
        asked = request.prompt
        steps.send((text,))
    except StopIteration as end:
        return asked, end.value
    raise AssertionError("one text makes one child")


@pytest.mark.parametrize(("operator", "shown"), [("crossover", 2), ("differential", 3)])
def test_the_lm_is_shown_what_it_crosses_and_the_child_descends_from_it(operator: str, shown: int) -> None:
    members = parents(SyntheticProblem(), 4)
    asked, made = child(variation(SyntheticProblem()), operator, members, "```\nBe wise.\n```")
    assert made is not None
    assert made.predictors["answer"].instructions == "Be wise."
    assert len(made.parents) >= shown
    for each in members:
        if each.key in made.parents:
            assert each.predictors["answer"].instructions in asked


def test_what_the_lm_wrote_must_be_instructions() -> None:
    for text in ("", "def answer(text):\n    return 1", "x" * 9000):
        assert child(variation(SyntheticProblem()), "rewrite", parents(SyntheticProblem(), 2), text)[1] is None


def test_parts_come_from_either_parent() -> None:
    toy = SyntheticProblem(predictors=("plan", "answer"))
    one, other = (
        toy.problem.seed.with_predictors(
            {name: replace(state, instructions=f"{n} {name}") for name, state in toy.problem.seed.predictors.items()},
            origin="by hand",
        )
        for n in ("one", "other")
    )
    seen = set()
    for seed in range(20):
        _, made = child(variation(toy, seed=seed), "recombine", [one, other])
        if made is not None:
            seen.add(tuple(state.instructions for state in made.predictors.values()))
            assert set(made.parents) == {one.key, other.key}
    assert seen == {("one plan", "other answer"), ("other plan", "one answer")}


def test_crossed_demos_keep_what_both_parents_show() -> None:
    members = parents(SyntheticProblem(), 2)
    sets = [{canonical(dict(demo)) for demo in each.predictors["answer"].demos} for each in members]
    for seed in range(20):
        _, made = child(variation(SyntheticProblem(), seed=seed), "cross demos", members)
        assert made is not None
        shown = {canonical(dict(demo)) for demo in made.predictors["answer"].demos}
        assert sets[0] & sets[1] <= shown
        assert len(shown - sets[0] - sets[1]) <= 1
        assert 3 <= len(shown) <= 5


def test_shorter_prompts_are_tried_only_where_cost_or_latency_counts() -> None:
    thrifty = {"shorten", "drop demos"}
    assert not thrifty & set(variation(SyntheticProblem()).operators)
    assert thrifty <= set(variation(Priced()).operators)
    _, made = child(variation(Priced()), "drop demos", parents(Priced(), 1))
    assert made is not None
    assert len(made.predictors["answer"].demos) < 4


def test_an_operator_that_does_well_is_used_more_and_none_dies_out() -> None:
    rates = Rates(["good", "bad", "ugly"])
    for _ in range(200):
        rates.reward("good", 1.0)
        rates.reward("bad", 0.1)
        rates.reward("ugly", 0.0)
    now = rates.now()
    assert sum(now.values()) == pytest.approx(1.0)
    assert now["good"] > now["bad"] > now["ugly"] >= LEAST_RATE
    for name in now:
        for _ in range(500):
            rates.reward(name, 0.0)
    assert sum(rates.now().values()) == pytest.approx(1.0)

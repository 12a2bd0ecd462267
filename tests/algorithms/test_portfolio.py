"""Several algorithms under one budget: what opens, who goes on, and who pays."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import replace

import pytest

from ratchet.algorithms.portfolio import ARMS, portfolio
from ratchet.core.algorithm import Algorithm, Evaluate, Search, evaluate, generate, start
from ratchet.core.features import Advice
from ratchet.core.problem import Candidate, Problem
from ratchet.core.request import Objective
from ratchet.testing import SyntheticProblem


def with_skills(candidate: Candidate, *skills: int, origin: str = "by hand") -> Candidate:
    text = " ".join(f"skill-{number}" for number in skills)
    return candidate.with_instructions("answer", text, origin=origin)


def searched(toy: SyntheticProblem, arms: Mapping[str, Search], *, advice: Advice | None = None) -> list[Candidate]:
    def search(problem: Problem, *, rng: random.Random) -> Algorithm:
        return portfolio(problem, rng=rng, arms=arms, advice=advice or Advice())

    return list(toy.solve(search))


def learner(seeds: list[Candidate], costs: int = 60) -> Search:
    """Learns one skill more in each stage, and uses its runs up."""

    def search(problem: Problem, *, rng: random.Random) -> Algorithm:
        seeds.append(problem.seed)
        knows = problem.seed.predictors["answer"].instructions.count("skill-")
        child = with_skills(problem.seed, *range(knows + 1), origin="learner")
        yield from evaluate(child, problem.validation)
        for number in range(costs - len(problem.validation)):
            yield from generate(f"{len(seeds)}/{number}")
        return [child]

    return search


def idler(seeds: list[Candidate], costs: int = 60) -> Search:
    """Uses its runs up and finds nothing."""

    def search(problem: Problem, *, rng: random.Random) -> Algorithm:
        seeds.append(problem.seed)
        for number in range(costs):
            yield from generate(f"idle {len(seeds)}/{number}")
        return [problem.seed]

    return search


def test_each_stage_begins_with_the_best_so_far() -> None:
    seeds: list[Candidate] = []
    toy = SyntheticProblem(runs=700, capacity=6)
    best = searched(toy, {"learner": learner(seeds)})[0]
    assert len(seeds) == 6  # all six skills, one a stage; then there is nothing left to learn
    assert [seed.predictors["answer"].instructions.count("skill-") for seed in seeds] == list(range(6))
    assert toy.quality(best) == 1.0


def test_money_goes_to_whoever_gains() -> None:
    learned: list[Candidate] = []
    idle: list[Candidate] = []
    searched(SyntheticProblem(runs=900, capacity=6), {"idler": idler(idle), "learner": learner(learned)})
    assert len(learned) > 2 * len(idle)


def test_who_gains_no_more_hands_over() -> None:
    fading: list[Candidate] = []

    def once(problem: Problem, *, rng: random.Random) -> Algorithm:
        """Learns at once what it can, and nothing later."""
        fading.append(problem.seed)
        child = with_skills(problem.seed, 0, 1, origin="once")
        yield from evaluate(child, problem.validation)
        for number in range(30):
            yield from generate(f"{len(fading)}/{number}")
        return [child]

    learned: list[Candidate] = []
    toy = SyntheticProblem(runs=900, capacity=6)
    best = searched(toy, {"once": once, "learner": learner(learned)})[0]
    assert toy.quality(best) > 0.6
    assert len(learned) >= 3


def test_what_is_known_of_a_stages_seed_costs_it_nothing() -> None:
    toy = SyntheticProblem(seed=1, runs=400, skills=14, capacity=5, classes=3)
    searched(toy, ARMS)
    assert 380 <= toy.runs_used + toy.texts_used <= 400


def test_a_stage_that_asks_for_too_much_is_ended_and_its_runs_under_way_count() -> None:
    def greedy(problem: Problem, *, rng: random.Random) -> Algorithm:
        child = with_skills(problem.seed, 0, 1, 2, origin="greedy")
        yield from start(Evaluate(child, problem.validation))
        while True:
            yield from generate("more")

    toy = SyntheticProblem(runs=200)
    best = searched(toy, {"greedy": greedy})[0]
    assert best.origin == "greedy"
    assert toy.texts_used + toy.runs_used <= 200


@pytest.mark.parametrize(
    ("lm", "predictors", "then"),
    [
        (
            "local:/models/qwen2.5-0.5b.gguf",
            ("answer",),
            "then miprov2, gepa, capo, genetic, since an LM of 0.5 billion parameters",
        ),
        (
            "openai/gpt-4.1-mini",
            ("plan", "answer"),
            "then gepa, miprov2, capo, genetic, since traces tell which of 2 predictors",
        ),
        (
            "openai/gpt-4.1-mini",
            ("answer",),
            "then gepa, miprov2, capo, genetic, since a rewrite learns from what went wrong",
        ),
    ],
)
def test_it_says_what_it_begins_with_and_why(lm: str, predictors: tuple[str, ...], then: str) -> None:
    toy = SyntheticProblem(predictors=predictors)

    def search(problem: Problem, *, rng: random.Random) -> Algorithm:
        return portfolio(replace(problem, lm=lm), rng=rng)

    toy.solve(search)
    assert toy.told[0] == "portfolio: bootstrap opens, since good demos need hardly any search"
    assert then in toy.told[1]
    assert "portfolio: bootstrap had" in toy.told[2]


def test_where_cost_counts_too_a_search_that_keeps_a_front_is_first() -> None:
    toy = SyntheticProblem(runs=300)
    objectives = (Objective(metric="quality_score", weight=1.0), Objective(metric="latency", weight=0.1))

    def search(problem: Problem, *, rng: random.Random) -> Algorithm:
        return portfolio(replace(problem, objectives=objectives), rng=rng)

    toy.solve(search)
    assert "then genetic, miprov2, gepa, capo, since quality is not all that counts" in toy.told[1]


def test_without_training_examples_no_demos_open() -> None:
    toy = SyntheticProblem(n_train=0)
    toy.solve(portfolio)
    assert toy.told[0] == "portfolio: there is nothing to make demos of, so that bootstrap does not open"


def test_where_demos_have_no_place_none_open() -> None:
    toy = SyntheticProblem()

    def search(problem: Problem, *, rng: random.Random) -> Algorithm:
        specs = tuple(replace(spec, takes_demos=False) for spec in problem.predictors)
        return portfolio(replace(problem, predictors=specs), rng=rng)

    toy.solve(search)
    assert toy.told[0] == "portfolio: demos have no place in any of its prompts, so that bootstrap does not open"
    assert not any("bootstrap had" in line for line in toy.told)


def test_what_helped_elsewhere_is_tried_first_and_kept_only_when_it_helps() -> None:
    toy = SyntheticProblem(runs=200, capacity=6)
    seed = toy.problem.seed
    good, bad = with_skills(seed, *range(6), origin="lesson"), with_skills(seed, origin="lesson, wrong")
    best = searched(toy, ARMS, advice=Advice(candidates=(bad, good), order=("gepa",), why=("as it went before",)))[0]
    assert best == good
    assert toy.told[0] == "as it went before"
    assert "then gepa, miprov2, capo, genetic, since so it went best on tasks like this one" in toy.told[2]
    assert toy.told[3].startswith("portfolio: lessons had")


def test_the_finalists_are_the_front_first() -> None:
    def two(problem: Problem, *, rng: random.Random) -> Algorithm:
        short = with_skills(problem.seed, 0, 1, origin="short")
        long = problem.seed.with_instructions("answer", "skill-0 skill-1 and many words more", origin="long")
        best = with_skills(problem.seed, 0, 1, 2, origin="best")
        for each in (short, long, best):
            yield from evaluate(each, problem.validation)
        return [best]

    found = searched(SyntheticProblem(runs=200), {"two": two})
    assert [each.origin for each in found] == ["best", "short", "long"]

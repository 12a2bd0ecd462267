"""A search ends when what was asked for is reached with all of its interval; the sealed test tells again."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Sequence

import pytest

from ratchet.core.algorithm import Algorithm, Search, evaluate
from ratchet.core.errors import BadRequest, Cancelled
from ratchet.core.evaluation import Evaluation, Evaluations, Usage
from ratchet.core.problem import Candidate, Example, Problem
from ratchet.core.request import MetricName, Objective
from ratchet.core.result import OptimizationResult
from ratchet.engine.aim import standings
from ratchet.testing import SyntheticProblem
from ratchet.testing.engine import House


def taught(problem: Problem, skills: int) -> Candidate:
    """The seed, told of the first so many skills."""
    (name,) = problem.seed.predictors
    text = " ".join(f"skill-{number}" for number in range(skills))
    return problem.seed.with_instructions(name, text, origin=f"taught {skills}")


def teacher(*skills: int) -> Search:
    """An algorithm that tries candidates of so many skills, and puts the last forward."""

    def search(problem: Problem, *, rng: random.Random) -> Algorithm:
        for number in skills:
            yield from evaluate(taught(problem, number), problem.validation)
        return [taught(problem, skills[-1])]

    return search


def house(target_value: float | None, *skills: int, before: House | None = None) -> House:
    """An optimization that is to reach a quality."""
    objectives = (Objective(metric="quality_score", target_value=target_value),)
    native = {"first": teacher(*skills), "second": teacher(1)}
    return House(SyntheticProblem(capacity=6), native=native, objectives=objectives, before=before, minimise=False)


def tried(place: House) -> set[str]:
    """Origins of the candidates that the searches ran."""
    return {candidate.origin for stage, candidate, _, _ in place.program.ran if stage.startswith("search")}


def test_a_search_goes_on_until_what_was_asked_for_is_reached_and_no_further() -> None:
    place = house(0.5, 2, 6, 4)
    result = place.optimized()
    assert tried(place) == {"taught 2", "taught 6"}
    assert result.status == "improved"
    assert result.winner is not None
    assert result.winner.origin == "taught 6"
    notes = result.optimization_details.notes
    assert any(note.startswith("the search ended") and "quality_score of 0.5 is reached" in note for note in notes)
    assert any(note.startswith("on the sealed test, quality_score of 0.5 is reached") for note in notes)


@pytest.mark.parametrize("target_value", [None, 1.0])
def test_a_search_that_does_not_reach_it_goes_on_to_its_end(target_value: float | None) -> None:
    place = house(target_value, 2, 4)
    result = place.optimized()
    assert tried(place) == {"taught 2", "taught 4", "taught 1"}
    told = [note for note in result.optimization_details.notes if "quality_score" in note]
    assert [note for note in told if "not proven to be reached" in note] == told
    assert len(told) == (target_value is not None)


def test_a_program_that_has_what_is_asked_for_is_not_searched_at_all() -> None:
    place = house(0.0, 6)
    result = place.optimized()
    assert tried(place) == set()
    assert result.status == "no_proven_gain"


def essence(result: OptimizationResult) -> object:
    return result.status, result.winner, result.comparison, result.optimization_details.notes


@pytest.mark.parametrize("dies_after", range(5, 250, 20))
def test_one_that_was_killed_anywhere_ends_in_the_same_place(dies_after: int) -> None:
    calm = house(0.5, 2, 6, 4).optimized()
    killed = house(0.5, 2, 6, 4)
    killed.program.dies_after = dies_after
    with contextlib.suppress(Cancelled):
        killed.optimized()
    again = house(0.5, 2, 6, 4, before=killed)
    assert essence(again.optimized()) == essence(calm)


def rows(scores: Sequence[float], *, cost_usd: float | None = 0.001) -> Evaluations:
    return Evaluations(
        tuple(
            Evaluation(
                candidate="c",
                example=Example(inputs={"n": number}, labels={}),
                score=score,
                usage=Usage(calls=1, cost_usd=cost_usd, latency_ms=100.0 + number),
            )
            for number, score in enumerate(scores)
        )
    )


@pytest.mark.parametrize(
    ("metric", "value", "reached"),
    [
        ("quality_score", 0.6, True),
        ("quality_score", 0.85, False),
        ("success_rate", 0.6, True),
        ("success_rate", 0.85, False),
        ("latency", 120.0, True),
        ("latency", 108.0, False),
        ("cost", 0.002, True),
        ("cost", 0.0001, False),
    ],
)
def test_the_whole_interval_must_be_on_the_good_side(metric: MetricName, value: float, reached: bool) -> None:
    objective = Objective(metric=metric, target_value=value)
    (found,) = standings(rows([1.0] * 18 + [0.0] * 2), [objective, Objective(metric="cost")], success_at=1.0, seed=0)
    assert (found.reached, found.n) == (reached, 20)
    assert ("not proven" in str(found)) == (not reached)


def test_what_was_not_measured_is_not_reached() -> None:
    for measured, metric in ((rows([1.0] * 9, cost_usd=None), "cost"), (rows([1.0]), "quality_score")):
        (found,) = standings(measured, [Objective(metric=metric, target_value=0.0)], success_at=1.0, seed=0)  # type: ignore[arg-type]
        assert (found.interval, found.reached) == (None, False)
    with pytest.raises(BadRequest, match="target value"):
        Objective(metric="cost", target_value=-1.0)

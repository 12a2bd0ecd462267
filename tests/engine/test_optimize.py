"""One optimization from request to decision, with everything around it in memory."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest

from ratchet.algorithms import NATIVE
from ratchet.core.algorithm import Algorithm, Search, evaluate, generate
from ratchet.core.errors import BadMetric, BrokenContract, Cancelled, UserError
from ratchet.core.evaluation import Evaluation, Evaluations, Failure, Usage
from ratchet.core.problem import Candidate, Problem
from ratchet.core.request import Objective, OptimizationRequest, Target
from ratchet.core.result import OptimizationResult
from ratchet.engine.hygiene import edits
from ratchet.engine.optimize import utility
from ratchet.testing import SyntheticProblem
from ratchet.testing.engine import House


def taught(problem: Problem, skills: int, *, more: str = "") -> Candidate:
    """The seed, told of the first so many skills."""
    text = " ".join(f"skill-{number}" for number in range(skills)) + more
    child = problem.seed
    for name in child.predictors:
        child = Candidate(
            predictors=child.with_instructions(name, text, origin="").predictors,
            parents=(problem.seed.key,),
            origin=f"taught {skills}",
        )
    return child


def teacher(*skills: int) -> Search:
    """An algorithm that puts forward candidates of so many skills."""

    def search(problem: Problem, *, rng: random.Random) -> Algorithm:
        for number in skills:
            yield from evaluate(taught(problem, number), problem.validation)
        return [taught(problem, number) for number in skills]

    return search


def toy(**changed: Any) -> SyntheticProblem:
    return SyntheticProblem(**{"capacity": 6, **changed})


def nothing_found(problem: Problem, *, rng: random.Random) -> Algorithm:
    """An algorithm that gives the seed back."""
    yield from evaluate(problem.seed, problem.validation)
    return [problem.seed]


# --- the outcomes -------------------------------------------------------------------------------------------------


def test_a_real_gain_is_proven_on_the_sealed_test() -> None:
    house = House(toy(), native={"teacher": teacher(3, 6)})
    result = house.optimized()
    assert result.status == "improved"
    assert result.winner == taught(house.toy.problem, 6)
    assert result.baseline == house.toy.problem.seed
    before, after, comparison = result.baseline_performance, result.optimized_performance, result.comparison
    assert comparison is not None
    assert (before.split, after.split, before.n, after.n, comparison.n) == ("test", "test", 60, 60, 60)
    assert (before.quality_score, after.quality_score, comparison.effect) == (0.0, 1.0, 1.0)
    assert comparison.interval[0] > 0
    assert result.statistical_significance == comparison.p_value < 0.05
    assert result.improvement_percentage is None  # from nothing no percentage leads anywhere
    assert result.optimization_details.algorithm_used == "teacher"
    assert result.optimization_details.key_improvements == (
        "answer: instructions rewritten (20 to 47 characters); "
        "it bought +1.000 [+0.773, +1.000] on 30 validation examples",
    )
    assert [(step.origin, step.validation) for step in result.optimization_details.lineage] == [
        ("seed", 0.0),
        ("taught 6", 1.0),
    ]
    assert OptimizationResult.from_json(result.to_json()) == result


def test_a_gain_in_percent_is_relative_to_the_baseline() -> None:
    class Half(SyntheticProblem):
        def run(self, candidate: Candidate, example: Any, repeat: int = 0) -> Evaluation:
            row = super().run(candidate, example, repeat)
            return replace(row, score=0.4 + 0.4 * row.counted)

    result = House(Half(capacity=6), native={"teacher": teacher(6)}).optimized()
    assert result.status == "improved"
    assert result.improvement_percentage == pytest.approx(100.0)


@pytest.mark.parametrize("name", sorted(NATIVE))
def test_what_cannot_improve_is_never_called_improved(name: str) -> None:
    for seed in range(4):
        result = House(toy(seed=seed, hopeless=True), native={name: NATIVE[name]}, seed=seed).optimized()
        assert result.status == "no_proven_gain"


def test_luck_on_validation_is_not_proof() -> None:
    class Noisy(SyntheticProblem):
        def run(self, candidate: Candidate, example: Any, repeat: int = 0) -> Evaluation:
            row = super().run(candidate, example, repeat)
            return replace(row, score=float(random.Random(candidate.key + example.key).random() < 0.5))

    def lottery(problem: Problem, *, rng: random.Random) -> Algorithm:
        tickets = [taught(problem, 1, more=f" ticket {number}") for number in range(8)]
        for each in tickets:
            yield from evaluate(each, problem.validation)
        return tickets

    result = House(Noisy(), native={"lottery": lottery}).optimized()
    assert result.status == "no_proven_gain"
    assert result.winner is not None
    assert result.comparison is not None
    assert result.comparison.p_value >= 0.05
    assert result.reason.startswith("no proven gain on the sealed test")


def test_a_search_that_finds_nothing_leaves_the_sealed_test_sealed() -> None:
    house = House(toy(), native={"nothing": nothing_found})
    result = house.optimized()
    assert (result.status, result.winner, result.comparison) == ("no_proven_gain", None, None)
    assert "nothing better" in result.reason
    assert result.baseline_performance.split == "validation"
    assert result.optimized_performance.quality_score is None
    assert not {example for _, _, example, _ in house.program.ran} & set(house.test)


def test_a_proven_gain_below_the_threshold_is_not_an_improvement() -> None:
    class Slight(SyntheticProblem):
        def run(self, candidate: Candidate, example: Any, repeat: int = 0) -> Evaluation:
            row = super().run(candidate, example, repeat)
            return replace(row, score=0.5 + 0.1 * row.counted + 0.01 * random.Random(example.key).random())

    result = House(Slight(capacity=6), native={"teacher": teacher(6)}, min_improvement=0.3).optimized()
    assert result.status == "no_proven_gain"
    assert "smaller than the 30% asked for" in result.reason
    assert result.statistical_significance is not None
    assert result.statistical_significance < 0.05


# --- what is declined ---------------------------------------------------------------------------------------------


def perfect(row: Evaluation) -> Evaluation:
    return replace(row, score=1.0, failure=None)


def nearly(row: Evaluation) -> Evaluation:
    return replace(row, score=0.98)


DECLINED: list[tuple[Callable[[Evaluation], Evaluation] | None, dict[str, Any], str]] = [
    (perfect, {}, "already has the best possible score"),
    (nearly, {"min_improvement": 0.1}, "less than the 10.0% asked for"),
    (lambda row: replace(row, score=0.7), {"n_test": 4}, "give more test data or more calls"),
    (None, {"max_calls": 10}, "fewer than one candidate needs"),
]


@pytest.mark.parametrize(("mends", "options", "why"), DECLINED)
def test_what_cannot_pay_is_declined_before_it_is_paid(
    mends: Callable[[Evaluation], Evaluation] | None, options: dict[str, Any], why: str
) -> None:
    house = House(toy(), native={"teacher": teacher(6)}, **options)
    if mends:
        house.program.mends = mends
    result = house.optimized()
    assert result.status == "declined"
    assert why in result.reason
    assert "--force" in result.reason
    assert result.winner is None
    assert {stage for stage, *_ in house.program.ran} == {"baseline"}
    assert result.baseline_performance.split == "validation"


@pytest.mark.parametrize(("mends", "options", "why"), DECLINED)
def test_what_is_forced_is_tried_all_the_same(
    mends: Callable[[Evaluation], Evaluation] | None, options: dict[str, Any], why: str
) -> None:
    house = House(toy(), native={"teacher": teacher(6)}, force=True, **options)
    if mends:
        house.program.mends = mends
    result = house.optimized()
    assert result.status in ("improved", "no_proven_gain")
    preflight = result.optimization_details.preflight
    assert any(why in objection for objection in preflight["objections"])


def test_a_budget_too_small_for_the_baseline_is_declined() -> None:
    result = House(toy(), native={"teacher": teacher(6)}, max_calls=3).optimized()
    assert result.status == "declined"
    assert "before the baseline was measured" in result.reason
    assert result.baseline_performance.quality_score is None


@pytest.mark.parametrize(
    ("failure", "error"),
    [("metric", BadMetric), ("raised", UserError), ("refused", UserError)],
)
def test_a_baseline_that_fails_altogether_is_the_users_to_mend(failure: Any, error: type[Exception]) -> None:
    house = House(toy(), native={"teacher": teacher(6)})
    house.program.mends = lambda row: replace(row, score=None, failure=Failure(kind=failure, message="KeyError: 'x'"))
    with pytest.raises(error, match="KeyError: 'x'"):
        house.optimized()
    assert not any(event.kind == "best" for event in house.events)  # a failure is not a score


def test_a_baseline_whose_answers_cannot_be_parsed_can_still_be_improved() -> None:
    house = House(toy(), native={"teacher": teacher(6)})
    seed = house.toy.problem.seed.key
    house.program.mends = lambda row: (
        replace(row, score=None, failure=Failure(kind="unparseable", message="?")) if row.candidate == seed else row
    )
    result = house.optimized()
    assert result.status == "improved"
    assert result.baseline_performance.failed == 60


# --- the sealed test ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(NATIVE))
def test_the_sealed_test_is_opened_once_for_two_candidates_and_no_algorithm_sees_it(name: str) -> None:
    given: list[Problem] = []

    def watched(problem: Problem, *, rng: random.Random) -> Algorithm:
        given.append(problem)
        return NATIVE[name](problem, rng=rng)

    house = House(toy(), native={name: watched}, max_calls=900)
    result = house.optimized()
    assert result.status == "improved"
    assert result.winner is not None
    opened = [(candidate.key, example.key) for stage, candidate, example, _ in house.program.ran if stage == "test"]
    sealed = [example.key for example in house.test]
    both = (house.toy.problem.seed.key, result.winner.key)
    assert sorted(opened) == sorted((candidate, example) for candidate in both for example in sealed)
    before = [example for stage, _, example, _ in house.program.ran if stage != "test"]
    assert not set(before) & set(house.test)
    assert [stage for stage, _ in house.ledger.stages].count("test") == 1
    assert house.ledger.stages[-1][0] == "test"
    (problem,) = given
    assert not {*problem.train, *problem.validation} & set(house.test)
    assert not [each for each in house.asked if any(example.inputs["question"] in each for example in house.test)]


def test_a_sealed_test_that_cannot_be_paid_in_full_is_judged_on_the_pairs_there_are() -> None:
    house = House(toy(), native={"teacher": teacher(6)}, max_calls=None)

    class Cut(type(house.ledger)):  # type: ignore[misc]
        def begin_stage(self, stage: str, **more: Any) -> None:
            super().begin_stage(stage, **more)
            if stage == "test":
                self.limit = self.calls + 60 + 25

    house.ledger.__class__ = Cut
    result = house.optimized()
    assert result.comparison is not None
    assert 20 <= result.comparison.n <= 25
    assert result.status == "improved"
    assert any("the sealed test ended at" in note for note in result.optimization_details.notes)


def test_a_sealed_test_that_cannot_be_paid_at_all_proves_nothing() -> None:
    house = House(toy(), native={"teacher": teacher(6)}, max_calls=None)

    class Cut(type(house.ledger)):  # type: ignore[misc]
        def begin_stage(self, stage: str, **more: Any) -> None:
            super().begin_stage(stage, **more)
            if stage == "test":
                self.limit = self.calls + 10

    house.ledger.__class__ = Cut
    result = house.optimized()
    assert (result.status, result.comparison) == ("no_proven_gain", None)
    assert "could not be paid for" in result.reason
    assert result.winner == taught(house.toy.problem, 6)


# --- budgets ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(NATIVE))
@pytest.mark.parametrize("max_calls", [1, 40, 90, 150, 333])
def test_no_limit_is_ever_passed(name: str, max_calls: int) -> None:
    for predictors in (("answer",), ("plan", "answer")):
        house = House(toy(predictors=predictors), native={name: NATIVE[name]}, max_calls=max_calls, force=True)
        house.optimized()
        assert house.ledger.calls <= max_calls


def test_a_search_that_lets_the_end_of_the_budget_pass_leaves_the_best_it_had_validated() -> None:
    def endless(problem: Problem, *, rng: random.Random) -> Algorithm:
        for number in range(10_000):
            yield from evaluate(taught(problem, 1 + number % 6, more=f" v{number}"), problem.validation)
        return []

    house = House(toy(), native={"endless": endless})
    result = house.optimized()
    assert result.status == "improved"
    assert result.winner is not None
    assert result.winner.origin == "taught 6"
    assert result.optimization_details.algorithm_used == "endless"
    assert house.ledger.calls <= 600


def test_a_finalist_without_budget_for_its_validation_is_left_out_and_told_of() -> None:
    def spender(problem: Problem, *, rng: random.Random) -> Algorithm:
        yield from evaluate(taught(problem, 3), problem.validation)
        number = 0
        while number < 10_000:
            number += 1
            try:
                yield from generate(f"another text, please: {number}")
            except Exception:
                break
        return [taught(problem, 6), taught(problem, 3)]

    house = House(toy(), native={"spender": spender})
    result = house.optimized()
    assert result.winner == taught(house.toy.problem, 3)
    assert any(taught(house.toy.problem, 6).key in note for note in result.optimization_details.notes)


def test_algorithms_share_the_budget_and_each_starts_from_the_best_so_far() -> None:
    seen: list[tuple[str, Problem]] = []

    def watched(name: str, search: Search) -> Search:
        def start(problem: Problem, *, rng: random.Random) -> Algorithm:
            seen.append((name, problem))
            return search(problem, rng=rng)

        return start

    def all_of_it(problem: Problem, *, rng: random.Random) -> Algorithm:
        number = 0
        while True:
            number += 1
            try:
                yield from generate(f"text {number}")
            except Exception:
                return [problem.seed]

    house = House(
        toy(),
        native={
            "first": watched("first", teacher(2)),
            "second": watched("second", all_of_it),
            "third": watched("third", teacher(4)),
        },
        max_calls=800,
        minimise=False,
    )
    result = house.optimized()
    assert [name for name, _ in seen] == ["first", "second", "third"]
    problem = house.toy.problem
    assert [each.seed for _, each in seen] == [problem.seed, taught(problem, 2), taught(problem, 2)]
    allowances = {stage: allowance for stage, allowance in house.ledger.stages if stage.startswith("search")}
    first, second, third = (allowance or 0 for allowance in allowances.values())
    plan = house.optimizer.plan
    assert plan is not None
    assert first == pytest.approx(plan.search_calls / 3, abs=4)
    assert second > first  # what the first left over
    assert third == pytest.approx(second, abs=1)
    assert result.winner is not None
    assert result.winner.parents == (taught(problem, 2).key,)
    assert result.optimization_details.algorithm_used == "third"
    assert [step.origin for step in result.optimization_details.lineage] == ["seed", "taught 2", "taught 4"]


def test_when_nothing_is_left_to_gain_the_next_algorithm_is_not_run() -> None:
    house = House(toy(), native={"first": teacher(6), "second": teacher(5)})
    result = house.optimized()
    assert any("second and what follows it was not run" in note for note in result.optimization_details.notes)
    assert not [stage for stage, _ in house.ledger.stages if "second" in stage]


def test_an_algorithm_that_breaks_the_contract_is_named() -> None:
    def broken(problem: Problem, *, rng: random.Random) -> Algorithm:
        yield "please"  # type: ignore[misc]
        return [problem.seed]

    with pytest.raises(BrokenContract, match="'please'"):
        House(toy(), native={"broken": broken}).optimized()


# --- algorithms that own their loop --------------------------------------------------------------------------------


def test_an_algorithm_that_owns_its_loop_is_validated_like_any_other() -> None:
    def opaque(problem: Problem, *, seed: int, on_candidate: Callable[[Candidate, float], None]) -> Sequence[Candidate]:
        assert seed > 0
        on_candidate(taught(problem, 6), 0.9)
        return [taught(problem, 3), taught(problem, 6)]

    house = House(toy(), opaque={"dspy.opaque": opaque})
    result = house.optimized()
    assert (result.status, result.winner) == ("improved", taught(house.toy.problem, 6))
    assert result.optimization_details.algorithm_used == "dspy.opaque"
    stages = [stage for stage, _ in house.ledger.stages]
    assert stages[-4:] == ["search 1: dspy.opaque, validation", "shortlist", "polish", "test"]
    assert [event.payload["mean"] for event in house.events if event.kind == "best"][:2] == [0.0, 0.9]


def test_an_algorithm_that_owns_its_loop_and_finds_nothing_gains_nothing() -> None:
    def opaque(problem: Problem, *, seed: int, on_candidate: Callable[[Candidate, float], None]) -> Sequence[Candidate]:
        return []

    assert House(toy(), opaque={"dspy.opaque": opaque}).optimized().status == "no_proven_gain"


# --- objectives ---------------------------------------------------------------------------------------------------


def dear(candidate: Candidate) -> float:
    """A dollar per skill."""
    return 1.0 + candidate.predictors["answer"].instructions.count("skill")


@pytest.mark.parametrize(
    ("objectives", "skills"),
    [
        ((Objective(metric="quality_score"),), 6),
        ((Objective(metric="quality_score"), Objective(metric="cost", weight=0.01)), 6),
        ((Objective(metric="quality_score"), Objective(metric="cost", weight=0.07)), 3),
        ((Objective(metric="success_rate"),), 6),
        ((Objective(metric="quality_score"), Objective(metric="latency", weight=0.07)), 3),
        ((Objective(metric="quality_score"), Objective(metric="latency", weight=9.0)), None),
    ],
)
def test_the_shortlist_weighs_the_objectives(objectives: tuple[Objective, ...], skills: int | None) -> None:
    house = House(toy(skills=6), native={"teacher": teacher(3, 6)}, objectives=objectives)
    metrics = {each.metric for each in objectives}
    house.program.cost_usd = dear if "cost" in metrics else lambda candidate: None
    house.program.latency_ms = dear if "latency" in metrics else lambda candidate: 1.0
    house.program.mends = lambda row: replace(row, score=1.0 if row.score == 1.0 else 0.1)
    # With so steep a price for six skills, three of them pay where the weight is high.
    if metrics - {"quality_score", "success_rate"}:
        three = taught(house.toy.problem, 3).key
        house.program.mends = lambda row: replace(
            row, score=0.1 if row.candidate == house.toy.problem.seed.key else 0.85 if row.candidate == three else 0.9
        )
    result = house.optimized()
    assert result.winner == (None if skills is None else taught(house.toy.problem, skills))


def test_cost_and_latency_are_compared_with_intervals_too() -> None:
    house = House(toy(), native={"teacher": teacher(6)})
    house.program.cost_usd = dear
    house.program.latency_ms = lambda candidate: 700.0 - 100.0 * dear(candidate)
    result = house.optimized()
    assert result.cost_comparison is not None
    assert result.cost_comparison.effect == pytest.approx(6.0)
    assert result.latency_comparison is not None
    assert result.latency_comparison.effect == pytest.approx(-600.0)
    assert result.optimized_performance.avg_cost_per_task == 7.0


def test_an_unknown_price_is_not_zero() -> None:
    house = House(toy(), native={"teacher": teacher(6)})
    house.program.cost_usd = lambda candidate: None
    result = house.optimized()
    assert result.status == "improved"
    assert result.cost_comparison is None
    assert result.optimized_performance.avg_cost_per_task is None
    assert result.optimization_details.preflight["forecast_usd"] is None


def test_utility_counts_what_is_saved_and_ignores_what_was_not_measured() -> None:
    example = SyntheticProblem().example(0)

    def rows(score: float, cost: float | None, latency: float) -> Evaluations:
        usage = Usage(cost_usd=cost, latency_ms=latency)
        return Evaluations((Evaluation(candidate="c", example=example, score=score, usage=usage),))

    request = OptimizationRequest(
        target=Target(id="x"),
        objectives=(
            Objective(metric="quality_score", weight=1.0),
            Objective(metric="success_rate", weight=0.5),
            Objective(metric="cost", weight=0.2),
            Objective(metric="latency", weight=0.1),
        ),
    )
    before = rows(0.5, 4.0, 100.0)
    assert utility(before, before, request) == 0.0
    assert utility(rows(1.0, 3.0, 50.0), before, request) == pytest.approx(0.5 + 0.5 + 0.2 * 0.25 + 0.1 * 0.5)
    assert utility(rows(1.0, None, 100.0), before, request) == pytest.approx(1.0)
    assert utility(rows(1.0, 3.0, 100.0), rows(0.5, None, 100.0), request) == pytest.approx(1.0)
    assert utility(rows(0.5, 8.0, 100.0), before, request) == pytest.approx(-0.2)


# --- stopped and resumed ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(NATIVE))
def test_a_run_killed_anywhere_resumes_to_the_same_result_without_repeating_work(name: str) -> None:
    whole = House(toy(fails=0.05), native={name: NATIVE[name]}, max_calls=400)
    expected = whole.optimized()
    for crash_after in (1, 33, 120, 200, 390):
        crashed = House(toy(fails=0.05), native={name: NATIVE[name]}, max_calls=400)
        crashed.program.dies_after = crash_after
        with contextlib.suppress(Cancelled):
            crashed.optimized()
        resumed = House(toy(fails=0.05), native={name: NATIVE[name]}, max_calls=400, before=crashed)
        assert resumed.optimized() == expected
        rows = [(candidate.key, example.key, repeat) for _, candidate, example, repeat in resumed.program.ran]
        done = [(candidate.key, example.key, repeat) for _, candidate, example, repeat in crashed.program.ran]
        assert not set(rows) & set(done)
        assert resumed.ledger.calls == whole.ledger.calls


# --- what changed -------------------------------------------------------------------------------------------------


def test_edits_say_what_changed() -> None:
    seed = toy(predictors=("plan", "answer")).problem.seed
    child = seed.with_instructions("plan", "Plan.", origin="x").with_demos("answer", [{"a": 1}, {"a": 2}], origin="x")
    later = child.with_demos("answer", [{"a": 2}], origin="x")

    def said(before: Candidate, after: Candidate) -> tuple[str, ...]:
        return tuple(edit.said for edit in edits(before, after))

    assert said(seed, seed) == ()
    assert said(seed, child) == ("plan: instructions rewritten (20 to 5 characters)", "answer: 2 demos added")
    assert said(child, later) == ("answer: 1 demos removed",)

"""A result is computed from evaluations, and comes back from JSON as it was."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ratchet.core.evaluation import Evaluation, Evaluations, Failure, Usage
from ratchet.core.problem import Candidate, Example, PredictorState
from ratchet.core.result import (
    Ancestor,
    Details,
    Front,
    FrontPoint,
    OptimizationResult,
    Performance,
    Spend,
    performance,
)
from ratchet.core.statistics import compare_paired

SEED = Candidate(predictors={"answer": PredictorState(instructions="Answer.", demos=({"q": "ä", "a": None},))})
NUMBER = st.floats(allow_nan=False, allow_infinity=False)
TEXT = st.text(max_size=12)
PERFORMANCE = st.builds(
    Performance,
    success_rate=st.none() | NUMBER,
    avg_cost_per_task=st.none() | NUMBER,
    avg_latency_ms=st.none() | NUMBER,
    quality_score=st.none() | NUMBER,
    failed=st.none() | st.integers(0, 9),
    n=st.integers(0, 900),
    split=st.none() | st.sampled_from(["validation", "test"]),
)
SPEND = st.builds(
    Spend,
    calls=st.integers(0),
    usd=st.none() | NUMBER,
    seconds=NUMBER,
    by_phase=st.dictionaries(TEXT, st.integers(0), max_size=3),
)
COMPARISON = st.none() | st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=2, max_size=6).map(
    lambda pairs: compare_paired([a for a, _ in pairs], [b for _, b in pairs], seed=0, draws=50)
)
CANDIDATE = st.none() | TEXT.map(lambda text: SEED.with_instructions("answer", text, origin=f"from {text}"))
DETAILS = st.builds(
    Details,
    algorithm_used=st.none() | TEXT,
    iterations=st.integers(0),
    key_improvements=st.lists(TEXT, max_size=2).map(tuple),
    lineage=st.lists(
        st.builds(
            Ancestor,
            candidate=TEXT,
            parents=st.lists(TEXT, max_size=2).map(tuple),
            origin=TEXT,
            validation=st.none() | NUMBER,
        ),
        max_size=2,
    ).map(tuple),
    spend=SPEND,
    preflight=st.dictionaries(TEXT, st.none() | NUMBER | st.lists(TEXT, max_size=2), max_size=3),
    notes=st.lists(TEXT, max_size=2).map(tuple),
)
FRONT = st.builds(
    Front,
    objectives=st.lists(st.sampled_from(["quality_score", "cost", "latency"]), max_size=2).map(tuple),
    points=st.lists(
        st.builds(
            FrontPoint,
            candidate=TEXT,
            origin=TEXT,
            performance=PERFORMANCE,
            trade_offs=st.lists(st.sampled_from(["best", "knee"]), max_size=2).map(tuple),
        ),
        max_size=2,
    ).map(tuple),
    baseline=st.none() | PERFORMANCE,
    validated=st.integers(0, 9),
)
RESULTS = st.builds(
    OptimizationResult,
    optimization_id=TEXT,
    status=st.sampled_from(["improved", "no_proven_gain", "declined", "failed", "cancelled", "running"]),
    reason=TEXT,
    baseline_performance=PERFORMANCE,
    optimized_performance=PERFORMANCE,
    improvement_percentage=st.none() | NUMBER,
    statistical_significance=st.none() | NUMBER,
    comparison=COMPARISON,
    cost_comparison=COMPARISON,
    latency_comparison=COMPARISON,
    baseline=CANDIDATE,
    winner=CANDIDATE,
    optimization_details=DETAILS,
    front=FRONT,
)


@given(RESULTS)
def test_a_result_comes_back_from_json_as_it_was(result: OptimizationResult) -> None:
    data = json.loads(json.dumps(result.to_json()))
    again = OptimizationResult.from_json(data)
    assert again == result
    assert again.to_json() == result.to_json()
    for before, after in ((result.baseline, again.baseline), (result.winner, again.winner)):
        if before is not None:
            assert after is not None
            assert (after.state(), after.parents, after.origin) == (before.state(), before.parents, before.origin)


def test_a_result_of_before_there_were_fronts_is_read() -> None:
    result = OptimizationResult(optimization_id="x", status="failed")
    data = {name: value for name, value in result.to_json().items() if name != "front"}
    assert OptimizationResult.from_json(data) == result


def test_the_json_carries_the_fields_of_the_plan() -> None:
    data = OptimizationResult(optimization_id="x", status="failed").to_json()
    assert {
        "optimization_id",
        "status",
        "baseline_performance",
        "optimized_performance",
        "improvement_percentage",
        "statistical_significance",
        "optimization_details",
    } <= data.keys()
    assert {"success_rate", "avg_cost_per_task", "avg_latency_ms", "quality_score"} <= data[
        "baseline_performance"
    ].keys()
    assert {"algorithm_used", "iterations", "key_improvements", "lineage", "spend"} <= data[
        "optimization_details"
    ].keys()


def test_what_was_not_measured_is_none() -> None:
    result = OptimizationResult(optimization_id="x", status="declined")
    measured: list[Any] = [
        result.improvement_percentage,
        result.statistical_significance,
        result.comparison,
        result.winner,
        result.baseline_performance.quality_score,
        result.optimized_performance.success_rate,
        result.optimized_performance.avg_cost_per_task,
    ]
    assert measured == [None] * len(measured)


# --- performance --------------------------------------------------------------------------------------------------


def row(score: float | None, *, cost_usd: float | None = 0.5, latency_ms: float = 10.0) -> Evaluation:
    return Evaluation(
        candidate="c",
        example=Example(inputs={"q": 1}, labels={}),
        score=score,
        failure=None if score is not None else Failure(kind="raised", message="it broke"),
        usage=Usage(calls=1, cost_usd=cost_usd, latency_ms=latency_ms),
    )


def test_a_performance_is_the_means_of_its_evaluations() -> None:
    rows = Evaluations((row(1.0), row(0.5, cost_usd=1.5), row(None, latency_ms=40.0), row(0.8)))
    found = performance(rows, success_at=0.8, split="test")
    assert (found.success_rate, found.failed, found.n, found.split) == (0.5, 1, 4, "test")
    assert (found.avg_cost_per_task, found.avg_latency_ms) == (0.75, 17.5)
    assert found.quality_score == pytest.approx(0.575)


def test_a_failed_run_never_succeeds_however_low_success_begins() -> None:
    assert performance(Evaluations((row(None), row(0.0))), success_at=0.0, split="test").success_rate == 0.5


def test_one_unknown_price_makes_the_mean_unknown() -> None:
    assert (
        performance(Evaluations((row(1.0), row(1.0, cost_usd=None))), success_at=1, split="test").avg_cost_per_task
        is None
    )
    assert (Usage(cost_usd=1.0) + Usage(cost_usd=None)).cost_usd is None
    assert (Usage(cost_usd=1.0, calls=1) + Usage(cost_usd=0.5, calls=2)) == Usage(cost_usd=1.5, calls=3)


def test_there_is_no_mean_of_nothing() -> None:
    with pytest.raises(ValueError, match="Evaluations of nothing"):
        Evaluations(())


@given(st.permutations(range(5)))
def test_the_order_of_examples_does_not_matter(order: list[int]) -> None:
    rows = [row(score) for score in (0.1, 0.2, 0.3, None, 1.0)]
    found = performance(Evaluations(tuple(rows[place] for place in order)), success_at=0.3, split="test")
    expected = performance(Evaluations(tuple(rows)), success_at=0.3, split="test")
    assert found.quality_score == pytest.approx(expected.quality_score)
    assert (found.success_rate, found.failed, found.avg_cost_per_task) == (0.4, 1, 0.5)

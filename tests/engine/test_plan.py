"""What an optimization can afford, and whether it can prove anything."""

from __future__ import annotations

import json
import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ratchet.core.evaluation import Evaluation, Evaluations, Usage
from ratchet.engine.plan import DEFAULT_RUNS, LEAST_TEST, LEAST_VALIDATION, Plan, look_ahead, make_plan
from ratchet.testing import SyntheticProblem


def plan(max_calls: int | None = 400, *, calls_per_run: float = 1.0, spent: int = 4, n: int = 500) -> Plan:
    return make_plan(max_calls=max_calls, spent=spent, calls_per_run=calls_per_run, validation=n, test=n, concurrency=8)


def scored(*scores: float, cost_usd: float | None = 0.01) -> Evaluations:
    toy = SyntheticProblem()
    usage = Usage(calls=1, cost_usd=cost_usd, latency_ms=600.0)
    return Evaluations(
        tuple(
            Evaluation(candidate="c", example=toy.example(number), score=score, usage=usage)
            for number, score in enumerate(scores)
        )
    )


# --- the plan -----------------------------------------------------------------------------------------------------


@given(
    st.integers(30, 5000),
    st.floats(0.0, 7.0),
    st.integers(2, 400),
    st.integers(2, 400),
    st.integers(1, 32),
)
def test_the_parts_of_a_plan_fit_into_the_limit(
    max_calls: int, calls_per_run: float, validation: int, test: int, concurrency: int
) -> None:
    spent = math.ceil(4 * max(1.0, calls_per_run))
    made = make_plan(
        max_calls=max_calls,
        spent=spent,
        calls_per_run=calls_per_run,
        validation=validation,
        test=test,
        concurrency=concurrency,
    )
    assert 2 <= made.validation <= validation
    assert 2 <= made.test <= test
    assert made.proof_calls >= 2 * made.test * made.calls_per_run
    if made.search_calls > 0:
        whole = spent + made.validation * made.calls_per_run + made.search_calls + made.proof_calls + made.slack_calls
        assert whole <= max_calls + 1
    assert made.search_runs * made.calls_per_run <= made.search_calls


def test_more_calls_are_more_search_and_more_proof() -> None:
    plans = [plan(calls) for calls in (60, 120, 240, 480, 960)]
    for smaller, larger in pairwise(plans):
        assert smaller.search_calls < larger.search_calls
        assert smaller.test <= larger.test
        assert smaller.validation <= larger.validation


def test_a_third_of_the_calls_is_kept_for_the_proof() -> None:
    made = plan(1000)
    assert made.proof_calls == pytest.approx(0.35 * 1000, rel=0.02)
    assert made.validation == pytest.approx(100, abs=1)


def test_small_budgets_keep_a_proof_that_can_prove_something() -> None:
    made = plan(160)
    assert (made.validation, made.test) == (LEAST_VALIDATION, 27)
    assert plan(110).test == LEAST_TEST


def test_a_program_of_many_calls_gets_fewer_runs() -> None:
    assert plan(400, calls_per_run=4.0).search_runs < plan(400).search_runs / 3


def test_a_program_that_makes_no_call_is_planned_as_if_it_made_one() -> None:
    assert plan(400, calls_per_run=0.0) == plan(400, calls_per_run=1.0)


def test_without_a_limit_the_search_has_its_default_and_the_test_is_used_whole() -> None:
    made = plan(None, calls_per_run=2.0, n=300)
    assert (made.validation, made.test, made.search_runs) == (100, 300, DEFAULT_RUNS)
    assert made.proof_calls == 2 * 300 * 2
    assert made.slack_calls == 0


def test_slack_is_for_what_one_crash_can_lose() -> None:
    assert [plan(calls).slack_calls for calls in (100, 400, 10_000)] == [2, 8, 16]


# --- the look ahead -----------------------------------------------------------------------------------------------


def looked(baseline: Evaluations, *, calls: int | None = 400, min_improvement: float = 0.05, n: int = 500) -> object:
    return look_ahead(
        baseline, [], plan(calls, n=n), spent=30, concurrency=8, min_improvement=min_improvement
    ).objections


def test_room_noise_and_forecast_are_computed_from_what_was_measured() -> None:
    made = plan(400)
    found = look_ahead(
        scored(*[1.0, 0.0] * 10),
        [[1.0, 0.0], [1.0, 1.0]],
        made,
        spent=30,
        concurrency=8,
        min_improvement=0.05,
    )
    assert (found.baseline, found.headroom) == (0.5, 0.5)
    assert found.noise == pytest.approx(0.5)
    assert 0 < found.minimum_detectable_effect < 0.5
    assert found.test_examples == made.test
    assert found.forecast_calls == 30 + made.search_calls + made.proof_calls
    runs = made.search_runs + 2 * made.test
    assert found.forecast_usd == pytest.approx(0.01 * runs)
    assert found.forecast_minutes == pytest.approx(runs * 0.6 / 8 / 60)
    assert found.objections == ()
    assert json.loads(json.dumps(found.to_json())) == found.to_json()


def test_what_was_not_measured_is_none() -> None:
    found = look_ahead(scored(0.5, 1.5, cost_usd=None), [], plan(400), spent=30, concurrency=8, min_improvement=0.05)
    assert (found.noise, found.forecast_usd, found.headroom) == (None, None, None)
    assert found.objections == ()


@pytest.mark.parametrize(
    ("scores", "options", "why"),
    [
        ([1.0] * 20, {}, "already has the best possible score"),
        ([1.0] * 19 + [0.9], {}, "even a perfect score would be an improvement of 0.5%"),
        ([0.9] * 20, {"n": 8}, "give more test data"),
        ([0.5] * 20, {"calls": 12}, "raise --max-calls"),
    ],
)
def test_each_objection_says_what_is_wrong(scores: list[float], options: dict[str, int], why: str) -> None:
    objections = looked(scored(*scores), **options)
    assert why in str(objections)


def test_a_bigger_test_sees_smaller_gains() -> None:
    effects = [
        look_ahead(
            scored(*[1.0, 0.0] * 10), [], plan(None, n=n), spent=30, concurrency=8, min_improvement=0.05
        ).minimum_detectable_effect
        for n in (20, 80, 320)
    ]
    assert effects == sorted(effects, reverse=True)

"""A result's front holds what was measured in full and nothing that another candidate makes pointless."""

from __future__ import annotations

import json
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from ratchet.algorithms import NATIVE
from ratchet.core.evaluation import Evaluation, Evaluations, Usage
from ratchet.core.pareto import dominates
from ratchet.core.problem import Candidate, Example, PredictorState, canonical
from ratchet.core.request import MetricName, Objective, OptimizationRequest, Target
from ratchet.core.result import Front, FrontPoint, OptimizationResult, Performance
from ratchet.engine.front import front_of
from ratchet.engine.optimize import Optimizer
from ratchet.testing import SyntheticProblem
from ratchet.testing.engine import House

SEED = Candidate(predictors={"answer": PredictorState(instructions="Answer.")})
Row = tuple[float, float | None, float]
"""Score, dollars and milliseconds."""


def candidate(number: int) -> Candidate:
    return SEED if number == 0 else SEED.with_instructions("answer", f"Answer {number}.", origin=f"number {number}")


def asked(*metrics: MetricName) -> OptimizationRequest:
    return OptimizationRequest(
        target=Target(id="t"), objectives=tuple(Objective(metric=metric) for metric in metrics or ("quality_score",))
    )


def validated(*rows: Row) -> dict[Candidate, Evaluations]:
    """The seed and others, each run on one example."""
    return {
        candidate(number): Evaluations(
            (
                Evaluation(
                    candidate=candidate(number).key,
                    example=Example(inputs={"q": 1}, labels={}),
                    score=score,
                    usage=Usage(calls=1, cost_usd=cost_usd, latency_ms=latency_ms),
                ),
            )
        )
        for number, (score, cost_usd, latency_ms) in enumerate(rows)
    }


def place(measured: Performance, front: Front) -> tuple[float, ...]:
    values: dict[str, float | None] = {
        "quality_score": measured.quality_score,
        "success_rate": measured.success_rate,
        "cost": measured.avg_cost_per_task and -measured.avg_cost_per_task,
        "latency": measured.avg_latency_ms and -measured.avg_latency_ms,
    }
    return tuple(values[name] or 0.0 for name in front.objectives)


def named(front: Front, name: str) -> FrontPoint | None:
    return next((point for point in front.points if name in point.trade_offs), None)


coarse = st.integers(1, 4).map(float)


@given(
    st.lists(st.tuples(coarse, coarse, coarse), min_size=2, max_size=9),
    st.sets(st.sampled_from(["quality_score", "success_rate", "cost", "latency"]), min_size=1),
)
def test_no_point_is_dominated_and_every_candidate_is_matched_by_a_point(
    rows: list[Row], metrics: set[MetricName]
) -> None:
    everyone = validated(*rows)
    front = front_of(everyone, baseline=SEED, request=asked(*metrics))
    points = [place(point.performance, front) for point in front.points]
    assert len(set(points)) == len(points)
    assert not any(dominates(a, b) for a in points for b in points)
    for rows_of_one in everyone.values():
        one = front_of({SEED: rows_of_one, candidate(99): rows_of_one}, baseline=SEED, request=asked(*metrics))
        assert one.baseline is not None
        here = place(one.baseline, front)
        assert any(point == here or dominates(point, here) for point in points)


@given(st.lists(st.tuples(coarse, coarse, coarse), min_size=2, max_size=9))
def test_nothing_named_for_being_cheap_or_fast_is_worse_than_the_baseline(rows: list[Row]) -> None:
    front = front_of(validated(*rows), baseline=SEED, request=asked("quality_score", "cost", "latency"))
    for name, part in (("cheapest", 1), ("fastest", 2)):
        chosen = named(front, name)
        assert chosen is not None
        assert (chosen.performance.quality_score or 0.0) >= rows[0][0]
        figure = (chosen.performance.avg_cost_per_task, chosen.performance.avg_latency_ms)[part - 1]
        assert figure == min(row[part] or 0.0 for row in rows if row[0] >= rows[0][0])
    best = named(front, "best")
    assert best is front.points[0]
    assert best.performance.quality_score == max(score for score, _, _ in rows)


def test_the_point_that_gives_up_least_of_everything_is_the_knee() -> None:
    everyone = validated((0.1, 1.0, 1.0), (0.8, 1.5, 1.0), (0.9, 9.0, 1.0))
    knee = named(front_of(everyone, baseline=SEED, request=asked("quality_score", "cost")), "knee")
    assert knee is not None
    assert knee.candidate == candidate(1).key


def test_a_request_for_quality_alone_prefers_the_cheaper_of_equals_and_leaves_latency_out() -> None:
    front = front_of(validated((0.5, 2.0, 9.0), (0.8, 3.0, 5.0), (0.8, 2.5, 7.0)), baseline=SEED, request=asked())
    assert front.objectives == ("quality_score", "cost")
    assert [point.candidate for point in front.points] == [candidate(2).key, SEED.key]


def test_an_unknown_price_or_none_at_all_is_no_objective() -> None:
    for rows in ([(0.5, 2.0, 9.0), (0.8, None, 5.0)], [(0.5, 0.0, 9.0), (0.8, 0.0, 5.0)]):
        front = front_of(validated(*rows), baseline=SEED, request=asked("quality_score", "cost"))
        assert front.objectives == ("quality_score",)
        assert [point.candidate for point in front.points] == [candidate(1).key]
        assert named(front, "cheapest") is None


def test_where_only_the_baseline_was_validated_there_is_no_front() -> None:
    assert front_of(validated((0.5, 1.0, 1.0)), baseline=SEED, request=asked()) == Front()
    assert front_of({}, baseline=SEED, request=asked()) == Front()


@settings(max_examples=6, deadline=None)
@given(st.integers(0, 1000))
def test_a_whole_optimization_ends_with_a_front_of_what_it_stored(seed: int) -> None:
    objectives = (Objective(metric="quality_score"), Objective(metric="cost", weight=0.2))
    toy = SyntheticProblem(seed=seed, n_train=16)
    house = House(toy, native={"genetic": NATIVE["genetic"]}, max_calls=500, objectives=objectives, force=True)
    house.program.cost_usd = lambda candidate: 1e-6 * len(canonical(candidate.state()))
    result = house.optimized()
    front = result.front
    points = [place(point.performance, front) for point in front.points]
    assert not any(dominates(a, b) for a in points for b in points)
    assert front.objectives == ("quality_score", "cost")
    assert len(front.points) > 1
    stored: dict[str, list[float]] = {}
    in_validation = set(house.optimizer.validation)
    for row, _ in house.notebook.evaluations():
        if row.example in in_validation and row.repeat == 0:
            stored.setdefault(row.candidate, []).append(row.counted)
    for point in front.points:
        assert point.performance.n == len(stored[point.candidate]) == len(in_validation)
        assert point.performance.quality_score == sum(stored[point.candidate]) / len(in_validation)
    assert result.winner is None or result.winner.key in {point.candidate for point in front.points}
    assert OptimizationResult.from_json(json.loads(json.dumps(result.to_json()))).front == front


def test_a_program_that_is_perfect_is_still_made_cheaper() -> None:
    toy = SyntheticProblem(skills=1, texts=("Your task is to use skill-0.",))
    told = f"Answer the question. {'Think of everything that you know about it. ' * 9} Use skill-0."
    house = House(
        toy,
        native={"genetic": NATIVE["genetic"]},
        objectives=(Objective(metric="quality_score"), Objective(metric="cost")),
        force=True,
    )
    perfect = house.job.seed.with_instructions("answer", told, origin="seed")
    house.optimizer = Optimizer(replace(house.job, seed=perfect))
    house.program.cost_usd = lambda candidate: 1e-6 * len(canonical(candidate.state()))
    front = house.optimized().front
    assert front.baseline is not None
    cheapest = named(front, "cheapest")
    assert cheapest is not None
    assert cheapest.performance.quality_score == front.baseline.quality_score == 1.0
    assert (cheapest.performance.avg_cost_per_task or 0.0) < 0.5 * (front.baseline.avg_cost_per_task or 0.0)

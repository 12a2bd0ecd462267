"""What lessons advise, when they are left aside, and what their advice is measured to be worth."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ratchet.analytics.knowledge import Start, advise, is_held_out, start_of, uplift
from ratchet.core.features import TaskFeatures, parameters, similarity
from ratchet.core.lesson import Bought, Lesson, Progress
from ratchet.core.problem import Candidate, Example, FieldSpec, PredictorSpec, PredictorState

SEED = Candidate(predictors={"sort": PredictorState(instructions="Sort the mail.")})
SPECS = (
    PredictorSpec(
        name="sort", inputs=(FieldSpec(name="mail", type="str"),), outputs=(FieldSpec(name="queue", type="str"),)
    ),
)
TASK = TaskFeatures(
    train=40, validation=20, predictors=1, output="choice", inputs=("mail",), outputs=("queue",), lm="qwen-0.5b"
)
OTHER = TaskFeatures(
    train=4000, validation=20, predictors=3, output="text", inputs=("question",), outputs=("essay",), lm="big-70b"
)


def lesson(name: str = "1a2b", **more: Any) -> Lesson:
    values: dict[str, Any] = {
        "id": name,
        "tenant": "default",
        "created_at": datetime(2026, 1, 2, tzinfo=UTC),
        "features": TASK,
        "status": "improved",
        "warm_start": "nothing known",
        "validation_gain": 0.2,
        "gain": 0.1,
        "instructions": {"sort": "Sort the mail by who must answer."},
        "progress": (Progress(algorithm="miprov2", runs=100, gain=0.1), Progress(algorithm="gepa", runs=50, gain=0.2)),
    }
    return Lesson(**{**values, **more})


def begun(optimization: str, *lessons: Lesson, hidden: tuple[Example, ...] = ()) -> Start:
    return start_of(optimization, lessons, TASK, seed=SEED, predictors=SPECS, hidden=hidden)


def warm(*lessons: Lesson) -> Start:
    """A start with lessons, of an optimization that is not held out."""
    return begun(next(str(number) for number in range(100) if not is_held_out(str(number))), *lessons)


def test_a_task_like_an_earlier_one_begins_with_what_helped_there() -> None:
    start = warm(lesson())
    assert start.state == "on"
    assert [each.predictors["sort"].instructions for each in start.advice.candidates] == [
        "Sort the mail by who must answer."
    ]
    assert start.advice.candidates[0].parents == (SEED.key,)
    assert start.advice.order == ("gepa", "miprov2")  # 0.2 in 50 runs is more than 0.1 in 100
    assert "prompts of lesson 1a2b (100% alike; it gained +0.200 there)" in start.advice.why[0]


def test_a_task_of_another_kind_begins_anew() -> None:
    assert warm(lesson(features=OTHER)).state == "nothing known"
    assert warm().state == "nothing known"


def test_what_gained_nothing_is_not_tried_again() -> None:
    idle = (Progress(algorithm="gepa", runs=100, gain=0.0),)
    assert warm(lesson(validation_gain=0.0, progress=idle)).state == "nothing known"
    assert warm(lesson(validation_gain=None, progress=idle)).state == "nothing known"


def test_at_most_three_candidates_are_made_the_most_similar_first() -> None:
    near = [lesson(str(number), instructions={"sort": f"Way {number}."}) for number in range(4)]
    far = lesson("far", features=replace(TASK, lm="other", train=4), instructions={"sort": "Another way."})
    candidates = warm(far, *near).advice.candidates
    assert len(candidates) == 3
    assert all("far" not in each.origin for each in candidates)


def test_prompts_go_to_the_predictor_of_the_same_name_or_to_the_only_one() -> None:
    assert warm(lesson(instructions={"other": "Way."})).advice.candidates[0].predictors["sort"].instructions == "Way."
    two = Candidate(predictors={**SEED.predictors, "plan": PredictorState(instructions="Plan.")})
    advice = advise([lesson()], TASK, seed=two, predictors=SPECS)
    assert advice.candidates[0].predictors["plan"].instructions == "Plan."
    assert advise([lesson(instructions={"x": "X.", "y": "Y."})], TASK, seed=two, predictors=SPECS).candidates == ()


def test_no_demo_is_taken_over_that_shows_a_validation_or_test_example() -> None:
    demos = tuple({"mail": f"mail {number}", "queue": "billing"} for number in range(3))
    hidden = (Example(inputs={"mail": "mail 1"}, labels={"queue": "billing"}),)
    advice = advise([lesson(demos={"sort": demos})], TASK, seed=SEED, predictors=SPECS, hidden=hidden)
    assert [demo["mail"] for demo in advice.candidates[0].predictors["sort"].demos] == ["mail 0", "mail 2"]


def test_demos_of_other_fields_do_not_fit() -> None:
    advice = advise([lesson(demos={"sort": ({"letter": "x", "queue": "y"},)})], TASK, seed=SEED, predictors=SPECS)
    assert advice.candidates[0].predictors["sort"].demos == ()


def test_one_of_ten_optimizations_leaves_lessons_aside_and_says_so() -> None:
    held = [number for number in range(2000) if is_held_out(str(number))]
    assert 150 < len(held) < 250
    start = begun(str(held[0]), lesson())
    assert (start.state, start.advice.candidates, start.advice.order) == ("held out", (), ())
    assert "left aside here by chance" in start.advice.why[0]


def test_a_start_and_a_lesson_come_back_from_their_json() -> None:
    start = warm(lesson())
    assert Start.from_json(start.to_json()) == start
    assert Start.from_json(None).state == "off"
    bought = (Bought(edit="a", gain=0.1, interval=(0.0, 0.2), n=20), Bought(edit="b"))
    kept = lesson(bought=bought, failures={"raised": 2}, demos={"sort": ({"mail": "m", "queue": "q"},)})
    assert Lesson.from_json(kept.to_json()) == kept


def test_the_worth_of_warm_starts_is_measured_against_those_held_out() -> None:
    gains = {"on": (0.2, 0.3, 0.25), "held out": (0.1, 0.12), "nothing known": (0.9,), "off": (0.9,)}
    lessons = [lesson(warm_start=state, gain=gain) for state, each in gains.items() for gain in each]
    worth = uplift([*lessons, lesson(warm_start="on", gain=None)])
    assert worth.effect == pytest.approx(0.14)
    assert (worth.warm, worth.held_out) == (3, 2)
    assert worth.interval is not None
    # scipy.stats.ttest_ind([.2, .3, .25], [.1, .12], equal_var=False).confidence_interval()
    assert worth.interval == pytest.approx((0.0287988, 0.2512012), abs=1e-6)


def test_what_was_not_measured_is_none() -> None:
    assert uplift([lesson(warm_start="on")]).effect is None
    assert uplift([lesson(warm_start="on"), lesson(warm_start="held out")]).interval is None


FEATURES = st.builds(
    TaskFeatures,
    train=st.integers(0, 500),
    validation=st.integers(2, 100),
    predictors=st.integers(1, 4),
    output=st.sampled_from(("choice", "value", "text")),
    inputs=st.lists(st.sampled_from("abc"), max_size=2).map(tuple),
    lm=st.sampled_from(("", "qwen-0.5b", "qwen-7b", "gpt")),
    headroom=st.none() | st.floats(0, 1),
)


@given(FEATURES, FEATURES)
def test_similarity_is_a_share_the_same_both_ways_and_whole_for_equals(one: TaskFeatures, other: TaskFeatures) -> None:
    assert 0.0 <= similarity(one, other) <= 1.0
    assert similarity(one, other) == pytest.approx(similarity(other, one))
    assert similarity(one, one) == pytest.approx(1.0)


def test_a_model_of_the_same_name_is_the_nearest() -> None:
    small, large = replace(TASK, lm="qwen-1.5b"), replace(TASK, lm="qwen-72b")
    assert similarity(TASK, TASK) > similarity(TASK, small) > similarity(TASK, large)
    assert parameters("local:/m/qwen2.5-coder-0.5b-instruct-q4_k_m.gguf") == 0.5

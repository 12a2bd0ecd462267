"""A metric gives a score in [0, 1] and words that help, or fails by name."""

from __future__ import annotations

import asyncio
import math
from pathlib import Path
from typing import Any

import dspy
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ratchet.core.errors import BadMetric, BudgetSpent, MetricFailed, UnknownName
from ratchet.core.problem import Example
from ratchet.programs.comparisons import FIELD_METRICS, last_number, same
from ratchet.programs.metrics import (
    METRICS,
    Metric,
    MetricResult,
    ascore,
    dspy_example,
    dspy_prediction,
    resolve_metric,
    score,
)


def judged(metric: str, expected: object, got: object) -> MetricResult:
    example = Example(inputs={"q": "?"}, labels={"answer": expected})
    return score(resolve_metric(metric, labels=["answer"]), example, dspy_prediction({"answer": got}))


# --- by name


@pytest.mark.parametrize(
    ("metric", "expected", "got", "value", "feedback"),
    [
        ("exact_match", "location", " Location. ", 1.0, "Correct."),
        ("exact_match", "location", "human", 0.0, "expected 'location', got 'human'"),
        ("exact_match", "the end", "end", 0.0, "expected 'the end', got 'end'"),
        ("exact_match", ["a", 1], ["A", 1.0], 1.0, "Correct."),
        ("exact_match", {"a": [1, 2]}, {"a": [2, 1]}, 0.0, 'expected {"a":[1,2]}, got {"a":[2,1]}'),
        ("f1", "the cat sat", "A cat, sat down!", 0.8, "expected 'the cat sat', got 'A cat, sat down!'"),
        ("numeric", 1200, "So it is $1,200.00 in all.", 1.0, "Correct."),
        ("numeric", "50%", "it was 20 and is 50 %", 1.0, "Correct."),
        ("numeric", -3, "about 3", 0.0, "expected the number -3, got 3"),
        ("numeric", 3, "none", 0.0, "expected the number 3, but there is no number in 'none'"),
        ("numeric:tolerance=0.5", 3, "3.4", 1.0, "Correct."),
        ("contains", "Ada Lovelace", "It was ada  lovelace, I think.", 1.0, "Correct."),
        ("contains", ["red", "blue"], "a red one", 0.5, "'a red one' does not contain 'blue'"),
        ("contains", ["\x1b", "?"], ["\x1b", "really?"], 1.0, "Correct."),
        ("multi_label", ["a", "b"], "b, c", 0.5, "missing 'a'; wrongly given 'c'"),
        ("multi_label:measure=jaccard", "a; b", '["B", "c"]', 1 / 3, "missing 'a'; wrongly given 'c'"),
        ("multi_label", [], "", 1.0, "Correct."),
        (
            "json_fields",
            {"a": 1, "b": {"c": "x"}},
            '```json\n{"a": 1, "b": {"c": "y"}}\n```',
            0.5,
            "b.c: expected 'x', got 'y'",
        ),
        ("json_fields", {"a": [1, 2]}, {"a": [1]}, 0.5, "a: expected 2 items, got 1"),
        ("json_fields", {"a": 1}, "sorry", 0.0, "expected {\"a\":1}, got 'sorry'"),
    ],
)
def test_each_metric_gives_a_score_and_says_why(
    metric: str, expected: object, got: object, value: float, feedback: str
) -> None:
    result = judged(metric, expected, got)
    assert result.score == pytest.approx(value)
    assert result.feedback == feedback


def test_several_fields_are_averaged_and_named_but_exact_match_wants_all() -> None:
    example = Example(inputs={"q": "?"}, labels={"order": "A-1", "queue": "billing", "level": "hard"})
    prediction = dspy_prediction({"order": "a-1", "queue": "returns"})
    share = resolve_metric("json_fields", labels=["order", "queue", "level"], outputs=["order", "queue"])
    assert share.fields == ("order", "queue")
    assert score(share, example, prediction) == MetricResult(
        score=0.5, feedback="queue: expected 'billing', got 'returns'"
    )
    assert score(resolve_metric("exact_match:order,queue", labels=["order", "queue"]), example, prediction).score == 0.0
    assert score(resolve_metric("exact_match:order", labels=["order", "queue"]), example, prediction).score == 1.0
    missing = score(resolve_metric("exact_match:level", labels=["level"]), example, prediction)
    assert missing == MetricResult(score=0.0, feedback="level: expected 'hard', got nothing")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


@settings(deadline=None)
@given(metric=st.sampled_from(sorted(FIELD_METRICS)), expected=json_values, got=json_values)
def test_scores_are_bounded_and_a_right_answer_scores_one(metric: str, expected: Any, got: Any) -> None:
    try:
        result = judged(metric, expected, got)
        right = judged(metric, expected, expected)
    except MetricFailed:
        assert metric == "numeric"
        assert last_number(expected) is None
        return
    assert 0.0 <= result.score <= 1.0
    assert result.feedback
    assert right == MetricResult(score=1.0, feedback="Correct.")


@settings(deadline=None)
@given(a=json_values, b=json_values)
def test_sameness_goes_both_ways(a: Any, b: Any) -> None:
    assert same(a, a)
    assert same(a, b) == same(b, a)


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("A-48213", 48213),
        ("3-5", 5),
        ("-7", -7),
        ("= −7.5 °C", -7.5),
        ("-$1,234.50", -1234.5),
        ("1,2,3", 3),
        ("1.5e3", 1500),
        (".25", 0.25),
        ("It is 42.", 42),
        ("Step 2: 10 apples", 10),
        (True, None),
        ("", None),
    ],
)
def test_the_last_number_of_a_text_is_found(text: object, number: float | None) -> None:
    assert last_number(text) == number


@pytest.mark.parametrize(
    ("expected", "got", "equal"),
    [
        ("-5", "5", False),
        (".5", "5", False),
        ("C++", "C", False),
        ("“Paris”", "paris", True),
        (3, "3", True),
        (True, "true", True),
        (True, 1, False),
        (None, "", True),
        ([1], "[1]", True),
        (["a"], ["a", "b"], False),
        ("?", "!", False),
    ],
)
def test_values_are_the_same_when_they_mean_the_same(expected: object, got: object, equal: bool) -> None:
    assert same(expected, got) is equal


def test_a_name_that_is_not_there_lists_what_is() -> None:
    with pytest.raises(
        UnknownName, match=r"no metric 'exact_mach'; did you mean 'exact_match'\? There are exact_match"
    ):
        resolve_metric("exact_mach", labels=["a"])
    with pytest.raises(UnknownName, match=METRICS[-1]):
        resolve_metric("nonsense", labels=["a"])
    with pytest.raises(UnknownName, match="the data has no label 'b'; it has a"):
        resolve_metric("f1:b", labels=["a"])
    with pytest.raises(UnknownName, match="the program gives no 'a'; it gives b"):
        resolve_metric("f1:a", labels=["a"], outputs=["b"])


def test_a_metric_without_what_it_needs_is_refused() -> None:
    with pytest.raises(BadMetric, match=r"no output of the program \(b\) is a label in the data \(a\); rename"):
        resolve_metric("f1", labels=["a"], outputs=["b"])
    with pytest.raises(BadMetric, match="there is no option 'slack'; there are tolerance"):
        resolve_metric("numeric:a,slack=1", labels=["a"])
    with pytest.raises(BadMetric, match="tolerance=-1 cannot be used: it must be 0 or more"):
        resolve_metric("numeric:a,tolerance=-1", labels=["a"])
    with pytest.raises(BadMetric, match="measure=f2 cannot be used: it must be f1 or jaccard"):
        resolve_metric("multi_label:measure=f2", labels=["a"])


def test_a_label_that_cannot_be_scored_fails_and_is_no_zero() -> None:
    with pytest.raises(MetricFailed, match="the label 'many' has no number in it"):
        judged("numeric", "many", "3")
    with pytest.raises(MetricFailed, match="no label 'answer'"):
        score(
            resolve_metric("f1", labels=["answer"]),
            Example(inputs={"q": 1}, labels={}),
            dspy_prediction({"answer": "x"}),
        )


# --- metrics of users

USER = """
import dspy

def two(example, prediction): return example.answer == prediction.answer
def three(example, prediction, trace=None): return 0.25 if trace is None else True
def five(example, prediction, trace, pred_name, pred_trace): return dspy.Prediction(score=0.5, feedback="half")
def starred(*arguments): return len(arguments) / 10
async def later(example, prediction): return {"score": 0.75, "feedback": None}
def pair(example, prediction): return 1, "fine"
def looks(example, prediction): return sorted(example.inputs().keys()) == ["q"] and example.labels().answer == "x"
def one(example): return 1.0
def six(example, prediction, trace, name, part, more): return 1.0
def keyword(example, prediction, *, strict): return 1.0
class Kind: pass
number = 3
"""


@pytest.fixture
def user_file(tmp_path: Path) -> Path:
    path = tmp_path / "mine.py"
    path.write_text(USER, encoding="utf-8")
    return path


EXAMPLE = Example(inputs={"q": "?"}, labels={"answer": "x"})
RIGHT = dspy_prediction({"answer": "x"})


@pytest.mark.parametrize(
    ("function", "result"),
    [
        ("two", MetricResult(score=1.0)),
        ("three", MetricResult(score=0.25)),
        ("five", MetricResult(score=0.5, feedback="half")),
        ("starred", MetricResult(score=0.5)),
        ("later", MetricResult(score=0.75)),
        ("pair", MetricResult(score=1.0, feedback="fine")),
        ("looks", MetricResult(score=1.0)),
    ],
)
async def test_a_users_metric_is_called_with_what_it_takes(
    user_file: Path, function: str, result: MetricResult
) -> None:
    metric = resolve_metric(f"{user_file}:{function}", labels=["answer"])
    assert await ascore(metric, EXAMPLE, RIGHT) == result
    assert score(metric, EXAMPLE, RIGHT) == result  # also under a running loop
    assert await asyncio.to_thread(score, metric, EXAMPLE, RIGHT) == result


@pytest.mark.parametrize(
    ("function", "says"),
    [
        ("one", "it takes 1"),
        ("six", r"nothing is given for \['more'\]"),
        ("keyword", r"nothing is given for \['strict'\]"),
        ("Kind", "is the class Kind"),
        ("number", "is a int"),
    ],
)
def test_a_users_metric_that_cannot_be_called_is_refused(user_file: Path, function: str, says: str) -> None:
    with pytest.raises(BadMetric, match=says):
        resolve_metric(f"{user_file}:{function}", labels=["answer"])


def test_a_users_metric_that_is_not_there_is_told(user_file: Path, tmp_path: Path) -> None:
    with pytest.raises(UnknownName, match="has no 'tow'; it has two"):
        resolve_metric(f"{user_file}:tow", labels=["answer"])
    with pytest.raises(UnknownName, match="is not there"):
        resolve_metric(f"{tmp_path}/no.py:two", labels=["answer"])
    with pytest.raises(UnknownName, match="cannot be imported"):
        resolve_metric("no_such_package.module:two", labels=["answer"])
    with pytest.raises(UnknownName, match="names no function"):
        resolve_metric(str(user_file), labels=["answer"])
    broken = tmp_path / "broken.py"
    broken.write_text("1 / 0", encoding="utf-8")
    with pytest.raises(BadMetric, match="ZeroDivisionError"):
        resolve_metric(f"{broken}:two", labels=["answer"])


def returning(value: object) -> Metric:
    return Metric(name="mine", function=lambda *_: value)


@pytest.mark.parametrize(
    "value", [None, math.nan, math.inf, -0.1, "0.5", [], {}, {"score": None}, (1, 2, 3), dspy.Prediction(feedback="no")]
)
async def test_what_is_no_number_fails_and_is_no_score(value: object) -> None:
    with pytest.raises(MetricFailed, match="metric mine returned"):
        score(returning(value), EXAMPLE, RIGHT)
    with pytest.raises(MetricFailed):
        await ascore(returning(value), EXAMPLE, RIGHT)


@pytest.mark.parametrize("value", [1, True, 1.0, np.float32(1), np.bool_(True), dspy.Prediction(score=1)])
def test_every_kind_of_number_is_a_score(value: object) -> None:
    assert score(returning(value), EXAMPLE, RIGHT) == MetricResult(score=1.0)


@pytest.mark.filterwarnings("ignore::RuntimeWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
async def test_a_metric_with_an_event_loop_of_its_own_gets_a_thread() -> None:
    async def asked() -> float:
        return 0.5

    turns = iter(range(20))
    metric = Metric(name="mine", function=lambda *_: asyncio.run(asked()) if next(turns) % 2 else 1.0, in_thread=True)
    scores = [(await ascore(metric, EXAMPLE, RIGHT)).score for _ in range(12)]
    assert set(scores) == {0.5, 1.0}


async def test_a_metric_that_raises_fails_with_its_cause_and_the_worlds_failures_pass_through() -> None:
    def raises(*_: Any) -> float:
        raise KeyError("speed")

    async def raises_later(*_: Any) -> float:
        raise StopIteration

    def spent(*_: Any) -> float:
        raise BudgetSpent(used=1, limit=1)

    with pytest.raises(MetricFailed, match="metric mine raised KeyError: 'speed'"):
        await ascore(Metric(name="mine", function=raises, in_thread=True), EXAMPLE, RIGHT)
    with pytest.raises(MetricFailed, match="metric mine raised"):
        score(Metric(name="mine", function=raises_later), EXAMPLE, RIGHT)
    with pytest.raises(BudgetSpent):
        score(Metric(name="mine", function=spent), EXAMPLE, RIGHT)


def test_awkward_field_names_reach_the_metric() -> None:
    example = dspy_example(Example(inputs={"base": 1, "inputs": 2}, labels={"labels": 3}))
    assert dict(example.items()) == {"base": 1, "inputs": 2, "labels": 3}
    assert dict(dspy_prediction({"base": 1, "score": 2}).items()) == {"base": 1, "score": 2}


# --- a judge


def judge_lm(value: object) -> dspy.LM:
    return dspy.utils.DummyLM([{"feedback": "Too vague.", "score": str(value)}] * 4)


async def test_a_judge_grades_by_the_rubric_and_says_why(tmp_path: Path) -> None:
    rubric = tmp_path / "rubric.md"
    rubric.write_text("A good answer names the city.", encoding="utf-8")
    lm = judge_lm(0.4)
    metric = resolve_metric(f"llm_judge:{rubric}", labels=["answer"], judge_lm=lm)
    assert score(metric, EXAMPLE, RIGHT) == MetricResult(score=0.4, feedback="Too vague.")
    assert await ascore(metric, EXAMPLE, RIGHT) == MetricResult(score=0.4, feedback="Too vague.")
    assert "names the city" in str(lm.history[-1]["messages"])
    with pytest.raises(MetricFailed, match=r"the judge gave 7\.0"):
        score(resolve_metric(f"llm_judge:{rubric}", labels=[], judge_lm=judge_lm(7)), EXAMPLE, RIGHT)


def test_a_judge_may_be_given_its_rubric_in_words() -> None:
    lm = judge_lm(0.4)
    metric = resolve_metric("llm_judge", labels=["answer"], judge_lm=lm, rubric="A good answer rhymes.")
    assert score(metric, EXAMPLE, RIGHT).score == 0.4
    assert "A good answer rhymes." in str(lm.history[-1]["messages"])


def test_a_judge_without_rubric_or_lm_is_refused(tmp_path: Path) -> None:
    rubric = tmp_path / "rubric.md"
    with pytest.raises(BadMetric, match="llm_judge needs a rubric"):
        resolve_metric("llm_judge", labels=[], judge_lm=judge_lm(1))
    with pytest.raises(UnknownName, match="there is no file"):
        resolve_metric(f"llm_judge:{rubric}", labels=[], judge_lm=judge_lm(1))
    rubric.write_text(" ", encoding="utf-8")
    with pytest.raises(BadMetric, match="is empty"):
        resolve_metric(f"llm_judge:{rubric}", labels=[], judge_lm=judge_lm(1))
    with pytest.raises(BadMetric, match="needs a judge LM"):
        resolve_metric(f"llm_judge:{rubric}", labels=[])

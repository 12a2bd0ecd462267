"""Examples and candidates are what their content is."""

from __future__ import annotations

import json
from datetime import date
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ratchet.core.problem import Candidate, Example, PredictorState, canonical, content_hash

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
FIELDS = st.dictionaries(st.text(min_size=1, max_size=6), JSON, max_size=4)
STATES = st.builds(PredictorState, instructions=st.text(), demos=st.lists(FIELDS, max_size=3).map(tuple))
CANDIDATES = st.builds(
    Candidate,
    predictors=st.dictionaries(st.text(min_size=1, max_size=6), STATES, min_size=1, max_size=3),
    parents=st.lists(st.text(max_size=4), max_size=2).map(tuple),
    origin=st.text(max_size=9),
)


def reordered(value: Any) -> Any:
    """The same JSON value with the keys of every object the other way round."""
    if isinstance(value, dict):
        return {name: reordered(part) for name, part in reversed(value.items())}
    return [reordered(part) for part in value] if isinstance(value, list) else value


@given(JSON)
def test_equal_values_have_one_text_and_one_hash(value: Any) -> None:
    assert canonical(reordered(value)) == canonical(value)
    assert content_hash(reordered(value)) == content_hash(value)
    assert json.loads(canonical(value)) == value
    assert len(content_hash(value)) == 16


@given(JSON, JSON)
def test_different_texts_have_different_hashes(one: Any, other: Any) -> None:
    assert (content_hash(one) == content_hash(other)) == (canonical(one) == canonical(other))


@given(FIELDS, FIELDS)
def test_an_example_keeps_its_key_through_json(inputs: Any, labels: Any) -> None:
    example = Example(inputs=inputs, labels=labels)
    stored = json.loads(json.dumps({"inputs": inputs, "labels": labels}))
    again = Example(inputs=reordered(stored["inputs"]), labels=stored["labels"])
    assert (again, again.key, hash(again)) == (example, example.key, hash(example))
    assert len({again, example}) == 1


def test_an_input_is_not_a_label() -> None:
    assert Example(inputs={"a": 1}, labels={"b": 2}) != Example(inputs={"a": 1, "b": 2}, labels={})
    assert Example(inputs={"a": 1}, labels={}) != Example(inputs={"a": "1"}, labels={})
    assert Example(inputs={"a": 1}, labels={}).fields == {"a": 1}
    assert Example(inputs={"a": 1}, labels={}) != "a"


def test_what_json_has_no_word_for_is_hashed_as_its_text() -> None:
    assert content_hash({"at": date(2026, 1, 2)}) == content_hash({"at": "2026-01-02"})
    assert content_hash(("a", 1)) == content_hash(["a", 1])
    assert content_hash("half a \ud800 pair") != content_hash("half a ? pair")


@given(CANDIDATES)
def test_a_candidate_is_what_its_state_says(candidate: Candidate) -> None:
    state = json.loads(json.dumps(candidate.state()))
    again = Candidate.from_state(state, parents=list(candidate.parents), origin=candidate.origin)
    assert (again, again.key, hash(again)) == (candidate, candidate.key, hash(candidate))
    assert (again.parents, again.origin, again.state()) == (candidate.parents, candidate.origin, candidate.state())


@given(CANDIDATES)
def test_where_a_candidate_comes_from_does_not_change_what_it_is(candidate: Candidate) -> None:
    other = Candidate(predictors=candidate.predictors, parents=("elsewhere",), origin="another way")
    assert other == candidate
    assert other.key == candidate.key


@given(CANDIDATES, st.text(), st.lists(FIELDS, max_size=2))
def test_a_child_differs_in_what_was_changed_and_in_nothing_else(
    candidate: Candidate, text: str, demos: list[dict[str, Any]]
) -> None:
    name = next(iter(candidate.predictors))
    for child in (
        candidate.with_instructions(name, text, origin="by hand"),
        candidate.with_demos(name, demos, origin="by hand"),
    ):
        assert (child.parents, child.origin) == ((candidate.key,), "by hand")
        assert list(child.predictors) == list(candidate.predictors)
        assert all(child.predictors[each] == candidate.predictors[each] for each in child.predictors if each != name)
        assert (child == candidate) == (canonical(child.state()) == canonical(candidate.state()))
    assert candidate.with_instructions(name, text, origin="x").predictors[name].instructions == text
    assert candidate.with_demos(name, demos, origin="x").predictors[name].demos == tuple(demos)


def test_a_predictor_that_is_not_there_cannot_be_changed() -> None:
    candidate = Candidate(predictors={"answer": PredictorState(instructions="Answer.")})
    with pytest.raises(KeyError, match="plan"):
        candidate.with_instructions("plan", "x", origin="x")
    with pytest.raises(KeyError, match="plan"):
        candidate.with_demos("plan", [], origin="x")
    with pytest.raises(KeyError, match="no predictor named"):
        candidate.with_predictors({"plan": PredictorState(instructions="x")}, origin="x")


def test_instructions_and_demos_cannot_be_mistaken_for_each_other() -> None:
    states = [
        PredictorState(instructions="a"),
        PredictorState(instructions="a", demos=({},)),
        PredictorState(instructions="a", demos=({"a": "b"},)),
        PredictorState(instructions="a", demos=({"a": "b"}, {"a": "b"})),
        PredictorState(instructions="", demos=({"a": "b"},)),
    ]
    keys = {Candidate(predictors={name: state}).key for state in states for name in ("one", "other")}
    assert len(keys) == 10

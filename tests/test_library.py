"""``ratchet.optimize`` as a call."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import dspy
import pytest

import ratchet
from ratchet.core.errors import BadData, BadRequest, LmUnavailable, UnknownName
from ratchet.prepare import examples_for
from ratchet.programs.datasets import Row
from ratchet.testing.lm_server import MAGIC, SIGNATURE, StubServer, rows


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RATCHET_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("RATCHET_MLFLOW", "false")


@pytest.fixture
def stub() -> Iterator[StubServer]:
    with StubServer() as server:
        yield server


def lm(server: StubServer) -> dspy.LM:
    return dspy.LM("openai/stub", api_base=server.base, api_key="none", cache=False)


def right(example: dspy.Example, prediction: dspy.Prediction, trace: object = None) -> bool:
    return bool(example.label == prediction.label)


BUDGET: dict[str, Any] = {"algorithm": "gepa", "max_calls": 300}


def test_importing_ratchet_imports_nothing_heavy() -> None:
    code = "import ratchet, sys; print({'dspy', 'numpy', 'sqlalchemy', 'mlflow', 'typer'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"


def test_the_outcome_is_a_result_with_a_better_program_ready_to_use(stub: StubServer) -> None:
    program = dspy.Predict(SIGNATURE)
    before = program.signature.instructions
    seen: list[str] = []
    examples = [dspy.Example(**row).with_inputs("text") for row in rows(200)]
    with dspy.context(lm=lm(stub)):
        outcome = ratchet.optimize(
            program, examples, metric=right, on_event=lambda event: seen.append(event.kind), **BUDGET
        )
        answer = outcome.program(text="Please sort case #4.")
    assert isinstance(outcome, ratchet.OptimizationResult)
    assert outcome.status == "improved"
    assert outcome.comparison is not None
    assert outcome.comparison.interval[0] > 0
    assert MAGIC in outcome.program.signature.instructions
    assert answer.label in ("amber", "birch", "coral")
    assert program.signature.instructions == before
    assert {"stage", "plan", "best"} <= set(seen)
    assert ratchet.OptimizationResult.from_json(outcome.to_json()).comparison == outcome.comparison


def test_it_works_inside_a_running_event_loop(stub: StubServer) -> None:
    async def notebook() -> ratchet.Outcome:
        return ratchet.optimize(dspy.Predict(SIGNATURE), rows(200), metric="exact_match", lm=lm(stub), **BUDGET)

    assert asyncio.run(notebook()).status == "improved"


def test_splits_of_the_caller_are_kept(stub: StubServer) -> None:
    outcome = ratchet.optimize(
        dspy.Predict(SIGNATURE),
        train=rows(60),
        validation=rows(40, first=60),
        test=rows(50, first=100),
        metric="exact_match",
        lm=lm(stub),
        **BUDGET,
    )
    assert outcome.comparison is not None
    assert outcome.comparison.n == 50


def test_without_a_proven_gain_the_program_stays_as_it_was(stub: StubServer) -> None:
    stub.hopeless = True
    program = dspy.Predict(SIGNATURE)
    outcome = ratchet.optimize(program, rows(200), metric="exact_match", lm=lm(stub), **BUDGET)
    assert outcome.status == "no_proven_gain"
    assert outcome.program.signature.instructions == program.signature.instructions
    assert outcome.program is not program


def test_a_dead_lm_raises_its_cause(stub: StubServer) -> None:
    stub.status = 401
    with pytest.raises(LmUnavailable, match="401"):
        ratchet.optimize(dspy.Predict(SIGNATURE), rows(200), metric="exact_match", lm=lm(stub), **BUDGET)


def test_what_cannot_be_used_is_named() -> None:
    program = dspy.Predict(SIGNATURE)
    with pytest.raises(BadRequest, match=r"dspy\.Module"):
        ratchet.optimize("program", rows(200), metric="exact_match")
    with pytest.raises(BadData, match="example 2"):
        ratchet.optimize(program, [{"text": "a"}, 3], metric="exact_match")
    with pytest.raises(BadData, match="no examples"):
        ratchet.optimize(program, [], metric="exact_match")
    with pytest.raises(BadRequest, match="no LM"):
        ratchet.optimize(program, rows(200), metric="exact_match")
    with pytest.raises(UnknownName, match="gepo"):
        ratchet.optimize(program, rows(200), metric="exact_match", algorithm="gepo")
    with pytest.raises(UnknownName, match="gepo"):
        ratchet.optimize(program, rows(200), metric="exact_match", algorithm=["gepa", "gepo"])
    with pytest.raises(BadRequest, match="colour"):
        ratchet.optimize(program, rows(200), metric="exact_match", colour="red")
    wrong: dict[str, Any] = {"seed": -1, "max_calls": "100", "max_minutes": "5", "objectives": 3}
    for option, value in wrong.items():
        with pytest.raises(BadRequest, match=repr(value)):
            ratchet.optimize(program, rows(200), metric="exact_match", lm="openai/stub", **{option: value})


def built(data: Iterable[Mapping[str, Any]], *inputs: str) -> list[dspy.Example]:
    return [dspy.Example(**row).with_inputs(*inputs) for row in data]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (
            built(({**row, "hint": row["label"]} for row in rows(20)), "text", "hint"),
            "label 'label' equals input 'hint'",
        ),
        (built([*rows(20), {"text": "a", "label": None}], "text"), "line 21: label 'label' is empty"),
        (built([{"text": "a"}, *rows(20)], "text"), "line 1: label field 'label' is missing"),
        (built([*rows(20), {"label": "amber", "txt": "a"}], "text", "txt"), "line 21: input field 'text' is missing"),
        ([*rows(20), {"text": "a", "label": float("nan")}], "line 21: label 'label' is empty"),
    ],
)
def test_examples_of_the_caller_are_checked_as_those_of_a_file(data: Any, words: str) -> None:
    with pytest.raises(BadData, match=words):
        ratchet.optimize(dspy.Predict(SIGNATURE), data, metric="exact_match", lm="openai/stub")


def numbered(*data: Mapping[str, Any]) -> list[Row]:
    return [Row(number=number, fields=row) for number, row in enumerate(data, 1)]


class Relay(dspy.Module):  # type: ignore[misc]  # dspy is untyped
    """Takes ``text``; its first predictor takes more."""

    def __init__(self) -> None:
        super().__init__()
        self.look = dspy.Predict("text, shelf -> found")
        self.sort = dspy.Predict(SIGNATURE)

    def forward(self, **inputs: Any) -> dspy.Prediction:
        self.look(text=inputs["text"], shelf="all")
        return self.sort(text=inputs["text"])


def test_inputs_a_program_does_not_name_are_those_the_caller_names() -> None:
    with pytest.raises(BadRequest, match="no LM"):  # the next thing to be looked at
        ratchet.optimize(Relay(), built(rows(40), "text"), metric="exact_match")


def test_a_label_the_metric_names_must_be_in_every_row() -> None:
    data = numbered({"text": "a", "note": 1}, *rows(2))
    with pytest.raises(BadData, match="line 1: label field 'label' is missing"):
        examples_for(dspy.Predict(SIGNATURE), data, metric="exact_match:label", rename={}, file="d.jsonl")


@pytest.mark.parametrize("metric", ["json_fields", "score.py:metric", "exact_match:label"])
def test_a_column_that_is_not_scored_may_repeat_an_input(metric: str) -> None:
    data = numbered(*({**row, "raw": row["text"]} for row in rows(20)))
    assert len(examples_for(dspy.Predict(SIGNATURE), data, metric=metric, rename={}, file="d.jsonl")) == 20


def test_what_is_scored_does_not_depend_on_the_first_example(stub: StubServer) -> None:
    outcome = ratchet.optimize(
        dspy.Predict(SIGNATURE),
        train=[{"text": "without a label"}, *rows(30)],
        validation=rows(30, first=30),
        test=rows(60, first=60),
        metric="json_fields",
        lm=lm(stub),
        algorithm=["gepa"],
        max_calls=20,
        objectives={"quality": 1},
    )
    assert outcome.status == "declined"

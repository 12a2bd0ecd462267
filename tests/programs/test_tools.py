"""What tools say of themselves: where it stands, how it is read back, and whose it is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import dspy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ratchet.algorithms.instruction import read_instruction
from ratchet.algorithms.reflection import reflection_prompt
from ratchet.core.errors import BadRequest
from ratchet.core.evaluation import Evaluation, Evaluations, Failure, Step
from ratchet.core.problem import Budget, Candidate, Example, PredictorState, Problem
from ratchet.programs.dspy_program import applied, specs_of, state_of
from ratchet.programs.targets import load_program, save_program
from ratchet.programs.tools import MARK, Calls


def search(query: str, most: int = 3) -> str:
    """Searches the archive."""
    return query


def add(a: int, b: int) -> int:
    """Adds."""
    return a + b


AGENT = dspy.ReAct("question -> answer", tools=[search, add])
TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=60)
MARKED = st.tuples(TEXT, TEXT).map(lambda parts: f"\n{MARK}\n".join(parts))
INSTRUCTIONS = st.one_of(TEXT, MARKED, TEXT.map(lambda text: f"{text}{MARK}")).map(read_instruction)


def candidate(**texts: str) -> Candidate:
    """The agent's own state with other texts."""
    state = state_of(AGENT, tune_tools=True)
    return Candidate(predictors={**state, **{name: PredictorState(instructions=text) for name, text in texts.items()}})


def test_the_state_of_an_agent_applied_to_it_changes_nothing() -> None:
    assert applied(AGENT, candidate()).dump_state() == AGENT.dump_state()
    assert list(candidate().predictors) == [
        "react",
        "extract.predict",
        "tool:search",
        "tool:search.query",
        "tool:search.most",
        "tool:add",
        "tool:add.a",
        "tool:add.b",
    ]


@settings(max_examples=40)
@given(INSTRUCTIONS.filter(bool), TEXT, TEXT)
def test_texts_that_are_applied_are_read_back_as_they_were(react: Any, tool: str, argument: str) -> None:
    wanted = candidate(**{"react": react, "tool:search": tool, "tool:search.query": argument})
    module = applied(AGENT, wanted)
    assert Candidate(predictors=state_of(module, tune_tools=True)) == wanted
    assert Candidate(predictors=state_of(applied(module, wanted), tune_tools=True)) == wanted
    instructions = module.react.signature.instructions
    assert all(f"({n}) {name}" in instructions for n, name in ((1, "search"), (2, "add"), (3, "finish")))
    assert AGENT.tools["search"].desc == "Searches the archive."


def test_plain_dspy_loads_what_is_in_instructions(tmp_path: Path) -> None:
    wanted = candidate(**{"tool:search": "Finds letters by words.", "tool:search.query": "One to three words."})
    applied(AGENT, wanted).save(str(tmp_path / "program.json"))
    again = dspy.ReAct("question -> answer", tools=[search, add])
    again.load(str(tmp_path / "program.json"))
    assert "Finds letters by words." in again.react.signature.instructions
    assert Candidate(predictors=state_of(again, tune_tools=True)) == wanted
    assert applied(again, wanted).dump_state() == again.dump_state()
    other = candidate(**{"tool:search": "Other."})
    assert "Finds letters" not in applied(again, other).react.signature.instructions


def test_a_file_with_something_else_than_descriptions_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "program.json"
    save_program(AGENT, path, None)
    state = json.loads(path.read_text())
    for wrong in ([1], {"tool:search": 7}):
        path.write_text(json.dumps({**state, "ratchet": {"tools": wrong}}))
        with pytest.raises(BadRequest, match="tools"):
            load_program(path, dspy.ReAct("question -> answer", tools=[search, add]))


def test_a_tool_that_agents_share_is_there_once_and_two_of_one_name_are_told_apart() -> None:
    class Two(dspy.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            shared = dspy.Tool(add)
            self.one = dspy.ReAct("question -> answer", tools=[shared, search])
            self.other = dspy.ReAct("question -> answer", tools=[shared, search])
            self.frozen = dspy.ReAct("question -> answer", tools=[country])
            self.frozen._compiled = True

    names = [name for name in state_of(Two(), tune_tools=True) if "tool:" in name and "." not in name.split("tool:")[1]]
    assert names == ["tool:add", "one.tool:search", "other.tool:search"]


def country(city: str) -> str:
    """The country of a city."""
    return city


@given(st.lists(st.booleans(), max_size=8))
def test_calls_stand_where_they_happened(events: list[bool]) -> None:
    calls = Calls([])
    steps: list[Step] = []
    order: list[Step] = []
    for number, is_call in enumerate(events):
        step = Step(predictor=str(number), inputs={}, outputs={})
        order.append(step)
        if is_call:
            calls.steps.append((len(steps), step))
        else:
            steps.append(step)
    assert calls.among(tuple(steps)) == tuple(order)


def told(*rows: Evaluation) -> str:
    """What the reflection LM reads of ``rows`` to rewrite the description of ``search``."""
    problem = Problem(
        seed=candidate(), predictors=specs_of(AGENT, tune_tools=True), train=(), validation=(), budget=Budget(runs=9)
    )
    return reflection_prompt(problem, candidate(), "tool:search", Evaluations(rows))


EXAMPLE = Example(inputs={"question": "Who wrote it?"}, labels={"answer": "Ada"})


def test_a_description_is_rewritten_with_the_calls_in_view() -> None:
    thought = Step(predictor="react", inputs={"question": "Who wrote it?"}, outputs={"next_tool_name": "search"})
    call = Step(predictor="tool:search", inputs={"query": "it"}, outputs={"result": "nothing found"})
    part = Step(predictor="tool:search.query", inputs={"query": "it"}, outputs={"result": "nothing found"})
    prompt = told(
        Evaluation(
            candidate="c", example=EXAMPLE, score=0.0, feedback="Too short a query.", trace=(thought, call, part)
        )
    )
    assert "the description of the tool `search`" in prompt
    assert "Searches the archive." in prompt
    assert prompt.count("nothing found") == 1
    assert "HERE: query=it -> result=nothing found" in prompt
    assert "step react: next_tool_name=search" in prompt
    assert "feedback: Too short a query." in prompt
    assert "Your task is" not in prompt


def test_it_is_told_that_a_tool_was_not_called_or_why_a_run_failed() -> None:
    assert "not used in this run" in told(Evaluation(candidate="c", example=EXAMPLE, score=0.0))
    failed = Evaluation(candidate="c", example=EXAMPLE, failure=Failure(kind="raised", message="no key"))
    assert "failed (raised): no key" in told(failed)


@pytest.mark.parametrize("steps", [11, 12, 13, 60])
def test_of_a_long_run_the_beginning_and_the_end_are_told(steps: int) -> None:
    trace = tuple(Step(predictor="react", inputs={}, outputs={"n": f"n{number}."}) for number in range(steps))
    prompt = told(Evaluation(candidate="c", example=EXAMPLE, score=0.0, trace=trace))
    assert f"({steps - 12} steps are left out)" in prompt or steps <= 12
    assert prompt.count("step react") == min(steps, 12)
    assert "n=n0." in prompt
    assert f"n=n{steps - 1}." in prompt

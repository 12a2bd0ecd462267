"""A ``dspy.Module`` as a program: its state as a Candidate, and what a run of it becomes."""

from __future__ import annotations

import asyncio
import enum
import inspect
import threading
import time
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any, Literal

import dspy
import pytest
from dspy import lm15
from hypothesis import given
from hypothesis import strategies as st

from ratchet.algorithms.instruction import read_instruction
from ratchet.core.errors import BudgetSpent, LmUnavailable, UserError
from ratchet.core.evaluation import Evaluation
from ratchet.core.problem import Candidate, Example, PredictorState
from ratchet.programs.dspy_program import (
    DspyProgram,
    applied,
    input_names,
    output_names,
    specs_of,
    state_of,
)
from ratchet.programs.gateway import Gateway
from ratchet.programs.ledger import Limits
from ratchet.programs.line import Line, Price
from ratchet.programs.metrics import Metric, resolve_metric, user_metric
from ratchet.storage.memory import MemoryJournal
from ratchet.testing.lm import Asked, ScriptedLM, fields
from ratchet.testing.lm_server import StubServer, completion

SIGNATURE = "text -> label: Literal['amber', 'birch', 'coral']"
CASE = Example(inputs={"text": "Please sort case #1."}, labels={"label": "birch"})


def right(asked: Asked) -> str:
    return fields(label="birch") if "label" in asked.system else asked.by_the_rule()


def program(
    module: dspy.Module,
    script: Callable[[Asked], str | Exception] = right,
    *,
    metric: Metric | None = None,
    journal: MemoryJournal | None = None,
    lm: dspy.BaseLM | None = None,
    limits: Limits | None = None,
    timeout_seconds: float | None = None,
    price: Price | None = None,
    labels: Sequence[str] = ("label",),
) -> DspyProgram:
    lm = lm or ScriptedLM(script)
    return DspyProgram(
        module,
        gateway=Gateway(journal or MemoryJournal(), limits or Limits()),
        task=Line(lm, "task", price=price),
        task_lm=lm,
        adapter=None,
        metric=metric or resolve_metric("exact_match", labels=list(labels)),
        timeout_seconds=timeout_seconds,
    )


def ran(
    each: DspyProgram, example: Example = CASE, *, candidate: Candidate | None = None, repeat: int = 0
) -> Evaluation:
    return asyncio.run(each.run(candidate or each.seed, example, repeat=repeat))


class Colour(enum.Enum):
    RED = "red"


class Planned(dspy.Module):  # type: ignore[misc]
    """Two predictors, and only ``forward``."""

    def __init__(self) -> None:
        super().__init__()
        self.plan = dspy.Predict("text -> plan")
        self.sort = dspy.ChainOfThought("text, plan -> label: Literal['amber', 'birch', 'coral']")

    def forward(self, text: str) -> dspy.Prediction:
        return self.sort(text=text, plan=self.plan(text=text).plan)


class Awaited(dspy.Module):  # type: ignore[misc]
    """Only ``aforward``."""

    def __init__(self) -> None:
        super().__init__()
        self.sort = dspy.Predict(SIGNATURE)

    async def aforward(self, text: str, hint: str = "") -> dspy.Prediction:
        return await self.sort.acall(text=f"{text}{hint}")


class Wrong(dspy.Module):  # type: ignore[misc]
    """Calls its predictor and then does ``what``."""

    def __init__(self, what: Callable[[dspy.Prediction], Any]) -> None:
        super().__init__()
        self.sort = dspy.Predict(SIGNATURE)
        self.what = what

    def forward(self, text: str) -> Any:
        return self.what(self.sort(text=text))


def country_of(city: str) -> str:
    """The country of a city."""
    return {"Paris": "France"}[city]


def agent(asked: Asked) -> str:
    if "next_tool_name" not in asked.system:
        return fields(reasoning="I looked it up.", country="France" if "France" in asked.last else "Spain")
    if "observation_0" in asked.last:
        return fields(next_thought="That is it.", next_tool_name="finish", next_tool_args="{}")
    return fields(next_thought="I look it up.", next_tool_name="country_of", next_tool_args='{"city": "Paris"}')


def planner(asked: Asked) -> str:
    return fields(plan="Count.") if "`plan` (str):" in asked.system.split("output fields")[1] else labelled(asked)


def labelled(asked: Asked) -> str:
    return fields(reasoning="One modulo three.", label="birch")


# --- programs of every kind ---------------------------------------------------------------------------------------


def test_a_predict_is_run_and_scored() -> None:
    row = ran(program(dspy.Predict(SIGNATURE), price=Price(prompt=1.0, completion=1.0)))
    assert (row.score, row.failure, row.prediction) == (1.0, None, {"label": "birch"})
    (step,) = row.trace
    assert (step.predictor, step.inputs, step.outputs) == ("self", CASE.inputs, {"label": "birch"})
    assert row.usage.calls == len(row.replies) == 1
    assert row.usage.prompt_tokens > row.usage.completion_tokens > 0
    assert row.usage.cost_usd == pytest.approx((row.usage.prompt_tokens + row.usage.completion_tokens) / 1e6)


def test_a_chain_of_thought_keeps_its_reasoning_in_the_trace() -> None:
    row = ran(program(dspy.ChainOfThought(SIGNATURE), labelled))
    assert row.score == 1.0
    assert row.trace[0].predictor == "predict"
    assert row.trace[0].outputs == {"reasoning": "One modulo three.", "label": "birch"}


def test_an_agent_with_a_tool_leaves_a_step_for_each_turn() -> None:
    each = program(dspy.ReAct("city -> country", tools=[country_of]), agent, labels=("country",))
    row = ran(each, Example(inputs={"city": "Paris"}, labels={"country": "France"}))
    assert row.score == 1.0
    assert [step.predictor for step in row.trace] == ["react", "react", "extract.predict"]
    assert row.trace[0].outputs["next_tool_args"] == {"city": "Paris"}
    assert "France" in row.trace[1].inputs["trajectory"]
    assert row.usage.calls == 3


def test_a_module_with_only_forward_is_run_with_all_its_predictors() -> None:
    each = program(Planned(), planner)
    row = ran(each)
    assert row.score == 1.0
    assert [step.predictor for step in row.trace] == ["plan", "sort.predict"]
    assert row.trace[1].inputs == {"text": CASE.inputs["text"], "plan": "Count."}
    assert (input_names(Planned()), output_names(Planned())) == (("text",), ("label",))


def test_a_module_with_only_aforward_is_awaited() -> None:
    row = ran(program(Awaited()))
    assert (row.score, [step.predictor for step in row.trace]) == (1.0, ["sort"])
    assert input_names(Awaited()) == ("text",)


def test_many_runs_at_once_keep_their_traces_apart() -> None:
    each = program(Planned(), planner)
    examples = [Example(inputs={"text": f"case #{n}"}, labels={"label": "birch"}) for n in range(12)]

    async def together() -> list[Evaluation]:
        return await asyncio.gather(*(each.run(each.seed, example) for example in examples))

    for row, example in zip(asyncio.run(together()), examples, strict=True):
        assert [step.inputs["text"] for step in row.trace] == [example.inputs["text"]] * 2
        assert row.usage.calls == 2


def test_another_repeat_asks_anew_and_the_same_one_does_not() -> None:
    lm = ScriptedLM(lambda asked: fields(label=("amber", "birch", "coral")[asked.number % 3]))
    each = program(dspy.Predict(SIGNATURE), lm=lm)
    labels = [(ran(each, repeat=repeat).prediction or {})["label"] for repeat in (0, 1, 2, 1, 0)]
    assert labels == ["amber", "birch", "coral", "birch", "amber"]
    assert len(lm.log) == 3


def test_what_is_run_is_the_candidate() -> None:
    lm = ScriptedLM(right)
    each = program(dspy.Predict(SIGNATURE), lm=lm)
    candidate = each.seed.with_instructions("self", "Take the case number.", origin="by hand").with_demos(
        "self", [{"text": "case #77", "label": "coral"}], origin="by hand"
    )
    row = ran(each, candidate=candidate)
    assert row.candidate == candidate.key
    assert "Take the case number." in lm.log[0].system
    assert [text.count("#77") for _, text in lm.log[0].turns] == [1, 0, 0]
    assert "coral" in lm.log[0].turns[1][1]


def test_predictors_with_an_lm_of_their_own_go_through_the_gateway() -> None:
    module = Planned()
    own, task = ScriptedLM(planner, model="scripted/own"), ScriptedLM(planner)
    module.plan.set_lm(own)
    each = program(module, lm=task, limits=Limits(calls=3))
    assert ran(each).usage.calls == 2
    assert (len(own.log), len(task.log)) == (1, 1)
    assert ran(each).usage.calls == 2
    assert (len(own.log), len(task.log)) == (1, 1)
    with pytest.raises(BudgetSpent):
        ran(each, Example(inputs={"text": "another"}, labels={"label": "amber"}))
    assert len(own.log) + len(task.log) == 3
    assert module.plan.lm is own


def test_the_users_own_module_is_never_changed() -> None:
    module = Planned()
    module.plan.demos = [dspy.Example(text="a", plan="b")]
    before = module.dump_state()
    each = program(module, planner)
    other = each.seed.with_instructions("plan", "Otherwise.", origin="by hand").with_demos("plan", [], origin="by hand")
    ran(each, candidate=other)
    exported = each.export(other)
    assert module.dump_state() == before
    assert module.plan.lm is None
    assert exported.plan.signature.instructions == "Otherwise."
    assert exported.plan.lm is None
    exported.plan.demos.append({"text": "later"})
    assert each.export(other).plan.demos == []


def test_a_module_without_predictors_is_refused() -> None:
    class Nothing(dspy.Module):  # type: ignore[misc]
        def forward(self, text: str) -> dspy.Prediction:
            return dspy.Prediction(label=text)

    with pytest.raises(UserError, match="Nothing has no predictors"):
        program(Nothing())


def test_specs_name_types_descriptions_and_choices() -> None:
    class Sort(dspy.Signature):  # type: ignore[misc]
        """Sort it."""

        text: str = dspy.InputField(desc="a message")
        hints: list[str] = dspy.InputField()
        label: Literal["amber", "birch"] = dspy.OutputField()

    (spec,) = specs_of(dspy.Predict(Sort))
    assert [(field.name, field.type, field.description) for field in spec.inputs] == [
        ("text", "str", "a message"),
        ("hints", "list[str]", ""),
    ]
    assert spec.outputs[0].choices == ("amber", "birch")


# --- failures -----------------------------------------------------------------------------------------------------


def test_an_answer_that_cannot_be_parsed_is_a_failure_with_what_was_written() -> None:
    row = ran(program(dspy.Predict(SIGNATURE), lambda asked: "I would say it is birch, roughly."))
    assert row.failure is not None
    assert (row.score, row.failure.kind, row.prediction) == (None, "unparseable", None)
    assert "label" in row.failure.message
    (step,) = row.trace
    assert (step.predictor, step.inputs, step.outputs) == ("self", CASE.inputs, {})
    assert step.raw == "I would say it is birch, roughly."
    assert row.usage.calls >= 1


def test_a_later_predictor_that_cannot_be_parsed_is_named_after_those_that_could() -> None:
    row = ran(program(Planned(), lambda asked: "nothing" if "`label`" in asked.system else planner(asked)))
    assert row.failure is not None
    assert row.failure.kind == "unparseable"
    assert [(step.predictor, bool(step.outputs), step.raw) for step in row.trace] == [
        ("plan", True, ""),
        ("sort.predict", False, "nothing"),
    ]


@pytest.mark.parametrize("label", ["oak", "", "['birch'"])
def test_a_choice_that_is_none_is_unparseable(label: str) -> None:
    row = ran(program(dspy.Predict(SIGNATURE), lambda asked: fields(label=label)))
    assert row.failure is not None
    assert row.failure.kind == "unparseable"


def test_a_program_that_raises_is_a_failure_with_its_trace() -> None:
    row = ran(program(Wrong(lambda prediction: 1 / 0)))
    assert row.failure is not None
    assert (row.score, row.failure.kind) == (None, "raised")
    assert "ZeroDivisionError" in row.failure.message
    assert row.trace[0].outputs == {"label": "birch"}
    assert row.usage.calls == 1


def test_a_program_that_returns_no_prediction_is_a_failure() -> None:
    row = ran(program(Wrong(lambda prediction: prediction.label)))
    assert row.failure is not None
    assert row.failure.kind == "raised"
    assert "returned str" in row.failure.message


def _ends(error: BaseException) -> Any:
    raise error


@pytest.mark.parametrize("error", [SystemExit(3), StopIteration("no more"), asyncio.CancelledError()])
@pytest.mark.parametrize("where", ["forward", "aforward", "metric"])
def test_what_would_end_us_is_a_failure_like_any_other(error: BaseException, where: str) -> None:
    class Leaves(Awaited):
        async def aforward(self, text: str, hint: str = "") -> dspy.Prediction:
            await super().aforward(text, hint)
            raise error

    if where == "metric":
        each = program(dspy.Predict(SIGNATURE), metric=user_metric(lambda *_: _ends(error)))
    else:
        each = program(Wrong(lambda _: _ends(error)) if where == "forward" else Leaves())
    row = ran(each)
    assert row.failure is not None
    assert row.failure.kind == ("metric" if where == "metric" else "raised")
    assert type(error).__name__ in row.failure.message


def test_what_a_program_does_to_its_inputs_is_forgotten() -> None:
    class Takes(dspy.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.sort = dspy.Predict(SIGNATURE)

        def forward(self, parts: list[str]) -> dspy.Prediction:
            return self.sort(text=parts.pop(0))

    case = Example(inputs={"parts": ["Please sort case #1."]}, labels={"label": "birch"})
    each = program(
        Takes(),
        metric=user_metric(lambda example, prediction, trace=None: example["parts"].pop() == "Please sort case #1."),
    )
    assert [ran(each, case, repeat=repeat).score for repeat in range(3)] == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("where", ["context", "called", "awaited", "metric"])
def test_an_lm_that_shows_up_in_a_run_goes_through_the_gateway_too(where: str) -> None:
    stray = ScriptedLM(lambda asked: fields(label="birch"), model="stray/lm")
    within = dspy.Predict(SIGNATURE)

    async def asked() -> Any:
        return await stray.acall("hello")

    def uses(prediction: Any) -> Any:
        if where == "context":
            with dspy.context(lm=stray):
                within(text="x")
        else:
            stray("hello") if where == "called" else asyncio.run(asked())
        return prediction

    if where == "metric":
        each = program(dspy.Predict(SIGNATURE), metric=user_metric(lambda *_: bool(stray("hello"))))
    else:
        each = program(Wrong(uses))
    rows = [ran(each), ran(each)]
    assert [(row.score, row.failure) for row in rows] == [(1.0, None)] * 2
    assert len(stray.log) == 1
    assert each._gateway.calls == 2
    assert [line.model for line in each.lines] == ["stray/lm"]


def test_lms_that_each_run_makes_anew_have_one_line() -> None:
    def makes(prediction: Any) -> Any:
        dspy.LM("openai/stub", api_base=stub.base, api_key="k", cache=False)("hello")
        return prediction

    with StubServer() as stub:
        each = program(Wrong(makes))
        assert [ran(each).score for _ in range(3)] == [1.0] * 3
        assert stub.requests == 1
    assert len(each.lines) == 1


def test_an_lm_that_can_only_be_called_is_called_in_a_thread() -> None:
    class Plain(dspy.BaseLM):  # type: ignore[misc]
        def forward(self, prompt: Any = None, messages: Any = None, **_: Any) -> Any:
            return completion({"messages": messages}, "", fields(label="birch"))

    assert ran(program(dspy.Predict(SIGNATURE), lm=Plain("plain/lm"))).score == 1.0


def test_demos_show_an_enum_and_a_date_as_dspy_does() -> None:
    predictor = dspy.Predict(dspy.Signature({"text": (str, dspy.InputField()), "colour": (Colour, dspy.OutputField())}))
    predictor.demos = [dspy.Example(text=datetime(2024, 1, 2, 3, 4), colour=Colour.RED)]
    (demo,) = state_of(predictor)["self"].demos
    assert demo == {"text": "2024-01-02T03:04:00", "colour": "red"}


def test_a_program_that_takes_too_long_is_a_failure() -> None:
    class Slow(Awaited):
        async def aforward(self, text: str, hint: str = "") -> dspy.Prediction:
            prediction = await super().aforward(text, hint)
            await asyncio.sleep(600)
            return prediction

    started = time.monotonic()
    row = ran(program(Slow(), timeout_seconds=1.5))
    assert time.monotonic() - started < 30
    assert row.failure is not None
    assert (row.score, row.failure.kind) == (None, "timeout")
    assert row.trace[0].outputs == {"label": "birch"}


@pytest.mark.parametrize("where", ["program", "metric"])
def test_one_that_never_returns_ends_with_the_time_there_is(where: str) -> None:
    stopped = threading.Event()

    def hangs(found: Any) -> Any:
        stopped.wait(60)
        return found

    limits = Limits(deadline=time.monotonic() + 1.0)
    if where == "metric":
        each = program(dspy.Predict(SIGNATURE), metric=user_metric(lambda *_: hangs(1.0)), limits=limits)
    else:
        each = program(Wrong(hangs), limits=limits)
    started = time.monotonic()
    with pytest.raises(BudgetSpent, match="time limit"):
        ran(each)
    assert time.monotonic() - started < 30
    stopped.set()


def test_a_prompt_the_lm_refuses_is_a_failure() -> None:
    row = ran(program(dspy.Predict(SIGNATURE), lambda asked: lm15.ContextLengthError("the prompt is too long")))
    assert row.failure is not None
    assert (row.score, row.failure.kind) == (None, "refused")
    assert "the prompt is too long" in row.failure.message


@pytest.mark.parametrize("returned", [float("nan"), -1.0, "good", None])
def test_a_metric_without_a_number_is_a_failure(returned: object) -> None:
    row = ran(program(dspy.Predict(SIGNATURE), metric=user_metric(lambda example, prediction, trace=None: returned)))
    assert row.failure is not None
    assert (row.score, row.failure.kind) == (None, "metric")
    assert row.prediction == {"label": "birch"}
    assert row.trace[0].outputs == {"label": "birch"}


def test_a_metric_that_raises_is_a_failure() -> None:
    def broken(example: Any, prediction: Any, trace: Any = None) -> float:
        raise KeyError("colour")

    row = ran(program(dspy.Predict(SIGNATURE), metric=user_metric(broken)))
    assert row.failure is not None
    assert row.failure.kind == "metric"
    assert "colour" in row.failure.message


def test_a_failure_of_the_world_is_never_a_score() -> None:
    with pytest.raises(LmUnavailable, match="wrong key"):
        ran(program(dspy.Predict(SIGNATURE), lambda asked: lm15.AuthError("wrong key")))


def test_a_program_that_swallows_a_dead_lm_is_stopped_all_the_same() -> None:
    class Brave(Awaited):
        async def aforward(self, text: str, hint: str = "") -> dspy.Prediction:
            try:
                return await super().aforward(text, hint)
            except BaseException:
                return dspy.Prediction(label="birch")

    with pytest.raises(LmUnavailable, match="wrong key"):
        ran(program(Brave(), lambda asked: lm15.AuthError("wrong key")))


def test_halves_of_surrogate_pairs_in_an_answer_do_no_harm() -> None:
    row = ran(program(dspy.Predict("text -> label"), lambda asked: fields(label="bir\udc80ch")))
    assert row.prediction == {"label": "bir?ch"}


# --- feedback, latency, replay ------------------------------------------------------------------------------------


def test_feedback_of_a_metric_is_kept() -> None:
    def judge(example: Any, prediction: Any, trace: Any = None) -> dspy.Prediction:
        return dspy.Prediction(score=0.25, feedback=f"{prediction.label} is not quite {example.label}")

    row = ran(program(dspy.Predict(SIGNATURE), metric=user_metric(judge)))
    assert (row.score, row.feedback) == (0.25, "birch is not quite birch")


def test_a_replayed_run_equals_the_first_but_for_the_time_outside_the_lm() -> None:
    journal = MemoryJournal()
    first = ran(program(Planned(), lm=ScriptedLM(planner, seconds=0.15), journal=journal))
    silent = ScriptedLM(lambda asked: lm15.AuthError("nothing may be sent"))
    second = ran(program(Planned(), lm=silent, journal=journal))
    assert (second.score, second.prediction, second.trace) == (first.score, first.prediction, first.trace)
    assert second.replies == first.replies
    recorded = sum(reply.latency_ms for reply in map(journal.find, first.replies) if reply)
    assert recorded >= 300
    assert min(first.usage.latency_ms, second.usage.latency_ms) >= recorded
    assert silent.log == []


def test_waiting_for_a_free_slot_is_not_latency() -> None:
    each = program(dspy.Predict(SIGNATURE), lm=ScriptedLM(right, seconds=0.1), limits=Limits(concurrency=1))
    examples = [Example(inputs={"text": f"case #{n}"}, labels={"label": "birch"}) for n in range(6)]

    async def together() -> list[Evaluation]:
        return await asyncio.gather(*(each.run(each.seed, example) for example in examples))

    started = time.monotonic()
    latencies = [row.usage.latency_ms for row in asyncio.run(together())]
    whole = (time.monotonic() - started) * 1e3
    assert min(latencies) >= 100
    assert sum(latencies) < 2.5 * whole  # had each counted the time it waited for the others, it would be 3.5 times


# --- state --------------------------------------------------------------------------------------------------------

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
NAMES = st.sampled_from(["text", "plan", "label", "base", "self", "items", "demos", "augmented", "größe"])
DEMOS = st.lists(st.dictionaries(NAMES, JSON, max_size=4), max_size=3).map(tuple)
INSTRUCTIONS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1).map(read_instruction).filter(bool)


@given(st.tuples(INSTRUCTIONS, DEMOS), st.tuples(INSTRUCTIONS, DEMOS))
def test_a_candidate_that_is_applied_is_read_back_as_it_was(plan: Any, sort: Any) -> None:
    candidate = Candidate(
        predictors={
            "plan": PredictorState(instructions=plan[0], demos=plan[1]),
            "sort.predict": PredictorState(instructions=sort[0], demos=sort[1]),
        }
    )
    module = applied(PLANNED, candidate)
    assert Candidate(predictors=state_of(module)) == candidate
    assert Candidate(predictors=state_of(applied(module, candidate))) == candidate


PLANNED = Planned()


@given(st.text())
def test_instructions_an_lm_wrote_are_in_the_form_in_which_dspy_keeps_them(text: str) -> None:
    read = read_instruction(text)
    assert read is None or inspect.cleandoc(read) == read == read.strip() != ""

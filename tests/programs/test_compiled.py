"""A compiled prompt sends what DSPy sends, to the byte, under the same key; what it cannot hold goes DSPy's way."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any, Literal

import dspy
import pytest
from dspy._vendor.lm15.serde import request_to_dict
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ratchet.programs.compiled import CompiledPredict, Prompt, Template, compile_predictors
from ratchet.programs.gateway import Gateway
from ratchet.programs.gateway_lm import GatewayLM
from ratchet.programs.ledger import Limits
from ratchet.programs.line import Line
from ratchet.storage.memory import MemoryJournal
from ratchet.testing.lm import Asked, ScriptedLM, fields
from ratchet.testing.lm_server import SIGNATURE, StubServer

ADAPTERS = {"chat": dspy.ChatAdapter, "json": dspy.JSONAdapter, "xml": dspy.XMLAdapter}
TYPES: dict[str, Any] = {
    "str": str,
    "int": int,
    "list[str]": list[str],
    "dict[str, int]": dict[str, int],
    "bool": bool,
    "str | None": str | None,
}
VALUES: dict[str, Any] = {"str": "one", "label": "a", "list[str]": ["x", "y"], "int": 3}

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=30) | st.sampled_from(
    ["", " ", "\n", "[[ ## answer ## ]]", "{}", '"', "\\", "</text>", "é\u2028\x00\x1f", "  two  spaces ", "RATCHET"]
)
plain_data = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**40), 2**40) | st.floats(allow_nan=False) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=5,
)


@st.composite
def signatures(draw: st.DrawFn) -> type[dspy.Signature]:
    """Signatures with one to three inputs and one or two outputs of all kinds."""
    given_fields: dict[str, Any] = {}
    for number in range(draw(st.integers(1, 3))):
        given_fields[f"input_{number}"] = (
            TYPES[draw(st.sampled_from(sorted(TYPES)))],
            dspy.InputField(desc=draw(st.sampled_from(["", "what to read"]))),
        )
    given_fields["answer"] = (str, dspy.OutputField())
    if draw(st.booleans()):
        given_fields["label"] = (Literal["a", "b"], dspy.OutputField())
    found: type[dspy.Signature] = dspy.Signature(given_fields, draw(texts.filter(str.strip)))
    return found


class Both:
    """One predictor twice, DSPy's way and compiled, each before an LM that writes down what it is asked."""

    def __init__(self, predictor: dspy.Predict, adapter: dspy.Adapter, **options: Any) -> None:
        self.adapter = adapter
        self.outside = ScriptedLM(_answer, **options)
        self.journal = MemoryJournal()
        gateway = Gateway(self.journal, Limits())
        self.lm = GatewayLM(gateway, self.outside, Line(self.outside, "task"))
        self.ordinary = predictor
        self.compiled = compile_predictors(predictor.deepcopy())
        assert type(self.compiled) is CompiledPredict

    def call(self, predictor: dspy.Predict, inputs: dict[str, Any], **more: Any) -> Any:
        quiet = {"disable_history": True, "warn_on_type_mismatch": False, "callbacks": []}
        with dspy.context(lm=self.lm, adapter=self.adapter, **quiet, **more):
            try:
                return predictor(**inputs).toDict()
            except Exception as error:
                return f"{type(error).__name__}: {error}"

    def requests(self) -> list[str]:
        return [json.dumps(request_to_dict(asked.request), sort_keys=True) for asked in self.outside.log]

    @property
    def prompt(self) -> Prompt | None:
        """What was compiled."""
        found: Prompt | None = self.compiled.__dict__["_ratchet_prompt"].prompt
        return found


def _answer(asked: Asked) -> str:
    if asked.request.config.response_format is not None or "JSON object" in asked.last:
        return '{"answer": "fine", "label": "b"}'
    if "<answer>" in asked.system:
        return "<answer>\nfine\n</answer>\n<label>\nb\n</label>"
    return fields(answer="fine", label="b")


@pytest.mark.parametrize("name", ADAPTERS)
@given(data=st.data())
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_what_is_sent_is_what_dspy_sends(name: str, data: st.DataObject) -> None:
    signature = data.draw(signatures())
    configs: list[dict[str, Any]] = [{}, {"temperature": 0.3}, {"max_tokens": 7}]
    predictor = dspy.Predict(signature, **data.draw(st.sampled_from(configs)))
    names = list(signature.fields)
    demo = st.dictionaries(st.sampled_from(names), plain_data, min_size=1)
    predictor.demos = [dspy.Example(**each) for each in data.draw(st.lists(demo, max_size=3))]
    both = Both(predictor, ADAPTERS[name]())
    for inputs in data.draw(
        st.lists(st.fixed_dictionaries(dict.fromkeys(signature.input_fields, plain_data)), max_size=3)
    ):
        first = both.call(both.ordinary, inputs)
        sent = both.requests()
        again = both.call(both.compiled, inputs)
        assert again == first
        assert both.requests() == sent  # the journal knew it: the key is the same
    fresh = Both(predictor, ADAPTERS[name]())
    alone = Both(predictor, ADAPTERS[name]())
    inputs = data.draw(st.fixed_dictionaries(dict.fromkeys(signature.input_fields, plain_data)))
    fresh.call(fresh.ordinary, inputs)
    alone.call(alone.compiled, inputs)
    assert alone.requests() == fresh.requests()
    assert fresh.journal.requests.keys() == alone.journal.requests.keys()


@pytest.mark.parametrize("name", ADAPTERS)
def test_plain_predictors_are_compiled(name: str) -> None:
    both = Both(dspy.Predict("text, hints: list[str] -> answer, label: Literal['a', 'b']"), ADAPTERS[name]())
    both.call(both.compiled, {"text": "one", "hints": ["x", "y"]})
    assert both.prompt is not None
    assert both.call(both.compiled, {"text": "two", "hints": []})["label"] == "b"


@pytest.mark.parametrize(
    ("predictor", "inputs", "options"),
    [
        (dspy.Predict("image: dspy.Image -> answer"), {"image": dspy.Image(url="http://127.0.0.1/x.png")}, {}),
        (
            dspy.Predict("history: dspy.History, text -> answer"),
            {"history": dspy.History(messages=[{"text": "hi", "answer": "ho"}]), "text": "you"},
            {},
        ),
        (dspy.Predict("tools: list[dspy.Tool], text -> answer"), {"tools": [dspy.Tool(len)], "text": "x"}, {}),
        (dspy.Predict("text -> answer", n=2), {"text": "x"}, {}),
        (dspy.Predict("text -> answer"), {"text": "x"}, {"n": 2, "temperature": 1.0}),
    ],
    ids=["image", "history", "tools", "two completions", "an LM of two completions"],
)
def test_what_is_unusual_goes_dspys_way(predictor: Any, inputs: dict[str, Any], options: dict[str, Any]) -> None:
    both = Both(predictor, dspy.ChatAdapter(), **options)
    first = both.call(both.ordinary, inputs)
    sent = both.requests()
    assert sent
    assert both.call(both.compiled, inputs) == first
    assert both.requests() == sent
    assert both.prompt is None


@pytest.mark.parametrize(
    "inputs",
    [
        {},
        {"text": "x", "extra": "y"},
        {"text": object()},
        {"text": "lone \ud800"},
        {"text": "<<CUSTOM-TYPE-START-IDENTIFIER>>"},
    ],
    ids=["missing", "extra", "no plain data", "no Unicode", "a marker of DSPy's"],
)
def test_awkward_inputs_end_as_with_dspy(inputs: dict[str, Any]) -> None:
    both = Both(dspy.Predict("text -> answer"), dspy.ChatAdapter())
    both.call(both.compiled, {"text": "usual"})
    assert both.prompt is not None
    first = both.call(both.ordinary, inputs)
    sent = both.requests()
    again = both.call(both.compiled, inputs)
    assert str(again).partition(" object at ")[0] == str(first).partition(" object at ")[0]
    assert both.requests() == sent


def test_a_changed_predictor_is_compiled_anew() -> None:
    both = Both(dspy.Predict("text -> answer"), dspy.ChatAdapter())
    both.call(both.compiled, {"text": "x"})
    for predictor in (both.ordinary, both.compiled):
        predictor.signature = predictor.signature.with_instructions("Do it otherwise.")
        predictor.demos = [dspy.Example(text="a", answer="b")]
    both.call(both.ordinary, {"text": "x"})
    sent = both.requests()
    assert "Do it otherwise." in sent[-1]
    both.call(both.compiled, {"text": "x"})
    assert both.requests() == sent


@pytest.mark.parametrize(
    "change",
    [
        lambda each: setattr(each.signature, "instructions", "Changed in place."),
        lambda each: each.demos.__setitem__(0, dspy.Example(text="c", answer="d")),
        lambda each: each.demos[0].__setitem__("answer", "changed"),
        lambda each: each.config.__setitem__("temperature", 0.7),
    ],
)
def test_what_a_program_changes_in_place_is_sent(change: Callable[[dspy.Predict], None]) -> None:
    signature = dspy.Signature("text -> answer", "Do it.")
    both = Both(dspy.Predict(signature), dspy.ChatAdapter())
    for predictor in (both.ordinary, both.compiled):
        predictor.signature = predictor.signature.with_instructions("Do it.")  # one of its own
        predictor.demos = [dspy.Example(text="a", answer="b")]
        both.call(predictor, {"text": "x"})
        change(predictor)
    both.call(both.ordinary, {"text": "x"})
    sent = both.requests()
    assert len(sent) == 2
    both.call(both.compiled, {"text": "x"})
    assert both.requests() == sent


def test_a_predictor_that_was_asked_can_be_copied_without_a_word(caplog: pytest.LogCaptureFixture) -> None:
    both = Both(dspy.Predict("text -> answer"), dspy.ChatAdapter())
    both.call(both.compiled, {"text": "x"})
    copy = both.compiled.deepcopy()
    copy.demos = [dspy.Example(text="a", answer="b")]
    both.call(copy, {"text": "y"})
    assert both.compiled.demos == []
    assert not caplog.records


def test_the_rollout_of_a_run_is_part_of_the_key() -> None:
    both = Both(dspy.Predict("text -> answer"), dspy.ChatAdapter())
    for rollout in (None, 1, 2, 1):
        both.call(both.compiled, {"text": "x"}, ratchet_rollout=rollout)
    assert len(both.outside.log) == 3
    both.call(both.ordinary, {"text": "x"}, ratchet_rollout=2)
    assert len(both.outside.log) == 3


def test_an_answer_that_cannot_be_read_is_asked_for_as_json_as_dspy_does() -> None:
    both = Both(dspy.Predict("text -> answer, label: Literal['a', 'b']"), dspy.ChatAdapter())
    both.outside.script.script = lambda asked: (
        "no fields" if "JSON" not in asked.last else '{"answer": "x", "label": "a"}'
    )
    found = both.call(both.compiled, {"text": "x"})
    assert found == {"answer": "x", "label": "a"}
    assert len(both.outside.log) == 2
    assert both.call(both.ordinary, {"text": "x"}) == found
    assert len(both.outside.log) == 2


def test_traces_are_kept_as_dspy_keeps_them() -> None:
    both = Both(dspy.Predict("text -> answer"), dspy.ChatAdapter())
    traces: list[list[Any]] = [[], []]
    for predictor, trace in zip((both.ordinary, both.compiled), traces, strict=True):
        both.call(predictor, {"text": "x"}, trace=trace)
    (one,), (other,) = traces
    assert (one[0], other[0]) == (both.ordinary, both.compiled)
    assert (one[1], one[2].toDict()) == (other[1], other[2].toDict())


@pytest.mark.parametrize("name", ADAPTERS)
def test_over_http_the_bodies_are_the_same_bytes(stub: StubServer, name: str) -> None:
    lm = dspy.LM("openai/stub", api_base=stub.base, api_key="none", cache=False, num_retries=0, temperature=0.0)
    cases = [{"text": f'case #{number} "é\n\u2028' + "\\" * number} for number in range(4)]
    with dspy.context(lm=lm, adapter=ADAPTERS[name]()):
        plain = [dspy.ChainOfThought(SIGNATURE)(**case).toDict() for case in cases]
    bodies = stub.log[-4:]
    gateway = Gateway(MemoryJournal(), Limits())
    ours = GatewayLM(gateway, lm, Line(lm, "task"))
    program = compile_predictors(dspy.ChainOfThought(SIGNATURE))

    async def all_of_them() -> list[Any]:
        return [(await program.acall(**case)).toDict() for case in cases]

    with dspy.context(lm=ours, adapter=ADAPTERS[name](), disable_history=True):
        assert asyncio.run(all_of_them()) == plain
    assert program.predict.__dict__["_ratchet_prompt"].prompt is not None
    assert stub.log[-4:] == bodies


@given(st.lists(texts, min_size=3, max_size=3))
def test_a_template_puts_each_input_in_its_place(values: list[str]) -> None:
    marks = [f"RATCHETxINPUTx{number}xTEHCTAR" for number in range(3)]
    template = Template.of(f"a {marks[2]} b {marks[0]}{marks[1]} c", 3)
    assert template is not None
    assert template.filled(values) == f"a {values[2]} b {values[0]}{values[1]} c"
    assert Template.of(f"a {marks[0]} b", 3) is None
    assert Template.of(marks[0], 1) is None

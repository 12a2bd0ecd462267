"""Every kind of target is really optimized: a gain on the sealed test, made by the text that had to change.

The LM is a script. It gives a right answer where the part under test says ``MAGIC``, and a wrong one else; the
reflection LM always writes it.
"""

from __future__ import annotations

import base64
import json
import re
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import dspy
import pydantic
import pytest

import ratchet
from ratchet.begin import new_run
from ratchet.core.errors import BadRequest
from ratchet.core.problem import Example
from ratchet.core.result import OptimizationResult
from ratchet.options import Options
from ratchet.prepare import Given
from ratchet.programs.datasets import Splits
from ratchet.programs.dspy_program import input_names, output_names, state_of
from ratchet.programs.targets import save_program
from ratchet.programs.tools import MARK
from ratchet.run import Run
from ratchet.settings import Settings
from ratchet.testing.a2a import served
from ratchet.testing.agent import TEXT, AgentServer
from ratchet.testing.lm import Asked, ScriptedLM, fields
from ratchet.testing.lm_server import LABELS, MAGIC, SIGNATURE, StubServer
from ratchet.testing.runs import begin, database, splits

Script = Callable[[Asked], "str | Exception"]
REWRITE = f"Your task is to take the case number {MAGIC} the number of choices."
DATA = splits(train=12, validation=10, test=24)


def number(text: str) -> int:
    """The number of the case in a text, and 1 where there is none: 1 is right for one label in three."""
    return int((re.findall(r"#(\d+)", text) or ["1"])[-1])


def label(asked: Asked, *, right: bool) -> str:
    """An answer about the case in the last message, in the form of all output fields that were asked for."""
    return LABELS[(number(asked.last) + (not right)) % 3]


def outputs(asked: Asked) -> str:
    """The part of the system message that names the output fields."""
    return asked.system.partition("Your output fields are:")[2].partition("All interactions")[0]


def by_magic(asked: Asked) -> str:
    """Right where the instructions say the word."""
    return fields(reasoning="So it is.", label=label(asked, right=MAGIC in asked.system))


def optimized(
    module: dspy.Module,
    script: Script,
    home: Path,
    *,
    data: Splits = DATA,
    algorithm: str = "gepa",
    max_calls: int = 400,
    rewrite: str = REWRITE,
    **options: Any,
) -> tuple[OptimizationResult, Run]:
    """The result of a small optimization of ``module``."""
    asked = Options(
        target="tests:module",
        algorithms=(algorithm,),
        max_calls=max_calls,
        force=True,
        concurrency=4,
        **options,
    )
    given = Given(
        program=module,
        splits=data,
        lm=ScriptedLM(script),
        reflection_lm=ScriptedLM(lambda asked: rewrite, model="scripted/reflection"),
    )
    run = new_run(asked, given, Settings(home=home, mlflow=False), database(home))
    return run.execute(), run


def gained(result: OptimizationResult, *changed: str) -> None:
    """The sealed test proves a gain, and some of ``changed``, and nothing else, is what was changed."""
    assert result.status == "improved", result.reason
    assert result.comparison is not None
    assert result.comparison.effect > 0.2
    assert result.winner is not None
    assert result.baseline is not None
    before, after = result.baseline.predictors, result.winner.predictors
    found = {name for name in after if after[name] != before[name]}
    assert found, "nothing changed"
    assert found <= set(changed)


# --- agents with tools ------------------------------------------------------------------------------------------------


def lookup(case: int) -> str:
    """Looks something up."""
    return f"{LABELS[case % 3]}"


def tool_user(asked: Asked, *, called: Callable[[Asked], bool]) -> str:
    """A ReAct agent that calls its tool where ``called`` says so, and knows the answer only from there."""
    if "next_tool_name" not in outputs(asked):
        told = next((each for each in LABELS if f"»\n{each}\n" in asked.last or f"\n{each}\n" in asked.last), None)
        return fields(reasoning="So it is.", label=told or label(asked, right=False))
    if "observation_0" in asked.last or not called(asked):
        return fields(next_thought="Done.", next_tool_name="finish", next_tool_args="{}")
    case = number(asked.turns[-1][1].partition("trajectory")[0])
    return fields(next_thought="I look.", next_tool_name="lookup", next_tool_args=f'{{"case": {case}}}')


def described(asked: Asked) -> bool:
    """Whether the description of the tool, and not something else, says the word."""
    return any("whose description is" in line and MAGIC in line for line in asked.system.split("\n"))


def argument_described(asked: Asked) -> bool:
    return any(
        "It takes arguments" in line and MAGIC in line.partition("</desc>")[2] for line in asked.system.split("\n")
    )


def instructed(asked: Asked) -> bool:
    return "lookup, whose description" in asked.system and MAGIC in asked.system and not described(asked)


def test_react_has_its_instructions_tuned_and_never_loses_its_tools(tmp_path: Path) -> None:
    module = dspy.ReAct(SIGNATURE, tools=[lookup])
    result, run = optimized(module, lambda asked: tool_user(asked, called=instructed), tmp_path)
    gained(result, "react", "extract.predict")
    assert run.program.seed.predictors["react"].instructions.count(MARK) == 1
    assert result.winner is not None
    text = run.program.export(result.winner).react.signature.instructions
    assert text.startswith(REWRITE)
    assert "(1) lookup, whose description is <desc>Looks something up.</desc>" in text
    assert "(2) finish" in text


def test_react_has_the_descriptions_of_its_tools_tuned_on_demand(tmp_path: Path) -> None:
    module = dspy.ReAct(SIGNATURE, tools=[lookup])
    result, run = optimized(
        module,
        lambda asked: tool_user(asked, called=described),
        tmp_path,
        tune_tools=True,
        max_calls=900,
        rewrite=f"Takes a case number {MAGIC} the number of labels.",
    )
    gained(result, "tool:lookup", "tool:lookup.case", "react", "extract.predict")
    assert result.winner is not None
    assert MAGIC in result.winner.predictors["tool:lookup"].instructions
    better = run.program.export(result.winner)
    assert MAGIC in better.tools["lookup"].desc
    assert module.tools["lookup"].desc == "Looks something up."
    # Plain DSPy keeps it: the list of tools is a part of the instructions.
    better.save(str(tmp_path / "plain.json"))
    loaded = dspy.ReAct(SIGNATURE, tools=[lookup])
    loaded.load(str(tmp_path / "plain.json"))
    assert loaded.react.signature.instructions == better.react.signature.instructions
    assert state_of(loaded, tune_tools=True) == dict(result.winner.predictors)
    called = [step for row, _ in run.notebook.evaluations() for step in row.trace if step.predictor == "tool:lookup"]
    assert called
    assert all(step.outputs["result"] in LABELS for step in called)


def test_react_has_the_descriptions_of_arguments_tuned_on_demand(tmp_path: Path) -> None:
    result, run = optimized(
        dspy.ReAct(SIGNATURE, tools=[lookup]),
        lambda asked: tool_user(asked, called=argument_described),
        tmp_path,
        tune_tools=True,
        max_calls=900,
        rewrite=f"The case number {MAGIC} the number of labels.",
    )
    gained(result, "tool:lookup", "tool:lookup.case", "react", "extract.predict")
    assert result.winner is not None
    assert MAGIC in run.program.export(result.winner).tools["lookup"].args["case"]["description"]


def test_a_program_without_tools_has_no_descriptions_to_tune(tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match="has no tools"):
        optimized(dspy.Predict(SIGNATURE), by_magic, tmp_path, tune_tools=True)


class Librarian(dspy.Module):  # type: ignore[misc]
    """Hands its tools over with every call, so that they are in no instructions; a tool is a method of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.tools = [dspy.Tool(self.search)]
        self.choose = dspy.Predict("text, tools: list[dspy.Tool] -> call: bool")
        self.answer = dspy.Predict("text, found -> label: Literal['amber', 'birch', 'coral']")

    def search(self, text: str) -> str:
        """Searches."""
        return LABELS[number(text) % 3]

    def forward(self, text: str) -> dspy.Prediction:
        wanted = self.choose(text=text, tools=self.tools).call
        return self.answer(text=text, found=self.tools[0](text=text) if wanted else "nothing")


def librarian(asked: Asked) -> str:
    if "`call`" in outputs(asked):
        return fields(call=MAGIC in asked.last)
    found = next((each for each in LABELS if f"\n{each}" in asked.last), None)
    return fields(label=found or label(asked, right=False))


def test_tools_that_are_no_part_of_instructions_are_kept_beside_the_state(tmp_path: Path) -> None:
    words = f"Finds the label: the case number {MAGIC} the number of labels."
    result, run = optimized(Librarian(), librarian, tmp_path, tune_tools=True, max_calls=900, rewrite=words)
    gained(result, "choose", "answer", "tool:search", "tool:search.text")
    assert result.winner is not None
    assert MAGIC in result.winner.predictors["tool:search"].instructions
    better = run.program.export(run.program.seed.with_instructions("tool:search", words, origin="by hand"))
    save_program(better, tmp_path / "program.json", None)
    plain = Librarian()
    plain.load(str(tmp_path / "program.json"))
    assert plain.tools[0].desc == "Searches."  # DSPy's state has no place for it
    assert ratchet.load_program(tmp_path / "program.json", Librarian()).tools[0].desc == words


def function_caller(asked: Asked) -> str:
    """A ReActV2 agent that looks the answer up where the description of the tool says the word."""
    whole = "\n".join(text for _, text in asked.turns)
    found = re.search(r'"value": "(\w+)"', whole)
    name, args = "submit", {"label": found[1] if found else LABELS[(number(whole) + 1) % 3]}
    if not found and MAGIC in whole:
        name, args = "lookup_text", {"case": str(number(whole))}
    call = json.dumps({"tool_calls": [{"name": name, "args": args}]})
    return fields(next_thought="So.", tool_calls=call)


def lookup_text(case: str) -> str:
    """Looks something up."""
    return lookup(int(case))


def test_react_v2_has_the_descriptions_of_its_tools_tuned_on_demand(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = dspy.ReActV2("text -> label", tools=[lookup_text])
    assert (input_names(module), output_names(module)) == (("text",), ("label",))
    result, _ = optimized(module, function_caller, tmp_path, tune_tools=True, max_calls=900)
    gained(result, "react", "tool:lookup_text", "tool:lookup_text.case")
    assert result.winner is not None
    assert any(MAGIC in state.instructions for name, state in result.winner.predictors.items() if "tool:" in name)


def test_rlm_is_known_by_its_signature_and_keeps_its_tools() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = dspy.RLM("text -> label", tools=[lookup], interpreter_factory=Calculator)
    assert (input_names(module), output_names(module)) == (("text",), ("label",))
    assert list(state_of(module, tune_tools=True)) == ["generate_action", "extract"]


# --- compositions -----------------------------------------------------------------------------------------------------


class Workflow(dspy.Module):  # type: ignore[misc]
    """Several steps, in a list and in a dict; only ``forward``."""

    def __init__(self) -> None:
        super().__init__()
        self.steps = [dspy.Predict("text -> notes")]
        self.experts = {"sort it": dspy.ChainOfThought("text, notes -> label: Literal['amber', 'birch', 'coral']")}

    def forward(self, text: str) -> dspy.Prediction:
        notes = "; ".join(step(text=text).notes for step in self.steps)
        return self.experts["sort it"](text=text, notes=notes)


def workflow(asked: Asked) -> str:
    if "`notes`" in outputs(asked):
        return fields(notes="noted" if MAGIC in asked.system else "hm")
    return fields(reasoning="So it is.", label=label(asked, right="\nnoted" in asked.last))


def test_a_workflow_of_several_steps_is_tuned_where_it_fails(tmp_path: Path) -> None:
    result, _ = optimized(Workflow(), workflow, tmp_path, max_calls=700)
    gained(result, "steps[0]", "experts['sort it'].predict")
    assert result.winner is not None
    assert MAGIC in result.winner.predictors["steps[0]"].instructions


class Retriever:
    """A retriever with a connection that cannot be copied."""

    def __init__(self) -> None:
        self.connection = threading.Lock()

    def __call__(self, text: str) -> list[str]:
        return [f"The label of this case is {LABELS[number(text) % 3]}."]


class Rag(dspy.Module):  # type: ignore[misc]
    """Retrieves, then answers; its predictors stand in a list beside the connection."""

    def __init__(self) -> None:
        super().__init__()
        self.retriever = Retriever()
        self.predictors_held = [dspy.Predict("context: list[str], text -> label: Literal['amber', 'birch', 'coral']")]

    def forward(self, text: str) -> dspy.Prediction:
        return self.predictors_held[0](context=self.retriever(text), text=text)


def reader(asked: Asked) -> str:
    told = next(each for each in LABELS if f"of this case is {each}" in asked.last)
    return fields(label=told if MAGIC in asked.system else LABELS[(LABELS.index(told) + 1) % 3])


def test_rag_keeps_its_retriever_and_is_never_changed_itself(tmp_path: Path) -> None:
    module = Rag()
    before = module.dump_state()
    result, run = optimized(module, reader, tmp_path)
    gained(result, "predictors_held[0]")
    assert module.dump_state() == before
    assert result.winner is not None
    assert run.program.export(result.winner).retriever.connection is module.retriever.connection


class Clerk(dspy.Module):  # type: ignore[misc]
    """An agent of its own that others call."""

    def __init__(self) -> None:
        super().__init__()
        self.sort = dspy.Predict(SIGNATURE)

    async def aforward(self, text: str) -> dspy.Prediction:
        return await self.sort.acall(text=text)

    def forward(self, text: str) -> dspy.Prediction:
        return self.sort(text=text)


class Office(dspy.Module):  # type: ignore[misc]
    """Two desks share one clerk; the boss has an LM of his own and calls the desk as a tool."""

    def __init__(self, own: dspy.BaseLM) -> None:
        super().__init__()
        self.clerk = Clerk()
        self.desks = {"left": self.clerk, "right": self.clerk}
        self.boss = dspy.ReAct(SIGNATURE, tools=[self.lookup])
        self.big = own

    def lookup(self, case: int) -> str:
        """Asks the clerk."""
        return str(self.desks["right"](text=f"#{case}").label)

    def forward(self, text: str) -> dspy.Prediction:
        with dspy.context(lm=self.big):
            return self.boss(text=text)


def office(asked: Asked) -> str:
    if "trajectory" in asked.system:
        return tool_user(asked, called=lambda asked: True)
    return fields(label=label(asked, right=MAGIC in asked.system))


def test_several_agents_share_a_clerk_that_is_counted_once(tmp_path: Path) -> None:
    own = ScriptedLM(office, model="scripted/own")
    module = Office(own)
    result, run = optimized(module, office, tmp_path, max_calls=1500)
    gained(result, "clerk.sort", "boss.react", "boss.extract.predict")
    assert result.winner is not None
    assert MAGIC in result.winner.predictors["clerk.sort"].instructions
    assert list(run.program.seed.predictors) == ["clerk.sort", "boss.react", "boss.extract.predict"]
    # The boss's own LM goes through the gateway as well: what is in the ledger is what was sent.
    sent = run.notebook.journal.sent().calls
    assert sent <= 1500
    assert len(own.log) < sent
    assert len(own.log) + sum(len(lm.log) for lm in _task_lms(run)) == sent


def _task_lms(run: Run) -> list[Any]:
    return [each.lm for each in (run.prepared.task, run.prepared.reflection) if each is not None]


def test_a_module_with_only_aforward_is_tuned(tmp_path: Path) -> None:
    class Awaited(dspy.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.sort = dspy.ChainOfThought(SIGNATURE)

        async def aforward(self, text: str) -> dspy.Prediction:
            return await self.sort.acall(text=text)

    result, _ = optimized(Awaited(), by_magic, tmp_path)
    gained(result, "sort.predict")


def test_a_frozen_part_is_run_and_left_alone(tmp_path: Path) -> None:
    frozen = Clerk()
    frozen._compiled = True
    own = ScriptedLM(lambda asked: fields(label="noted"), model="scripted/own")
    frozen.sort.lm = own

    class Wrapped(dspy.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.first = dspy.Predict("text -> notes")
            self.frozen = frozen
            self.frozen.sort.signature = dspy.Signature("text -> label")
            self.sort = dspy.Predict("text, hint -> label: Literal['amber', 'birch', 'coral']")

        def forward(self, text: str) -> dspy.Prediction:
            return self.sort(text=text, hint=self.frozen(text=text).label)

    result, run = optimized(Wrapped(), by_magic, tmp_path)
    gained(result, "sort", "first")
    assert list(run.program.seed.predictors) == ["first", "sort"]
    assert len(own.log) == sum(1 for reply in run.notebook.journal.stages() if reply) - sum(
        len(lm.log) for lm in _task_lms(run)
    )


# --- DSPy's own modules -----------------------------------------------------------------------------------------------


class Calculator:
    """An interpreter that knows ``print(3 + 4)`` and nothing else."""

    def __init__(self) -> None:
        self.tools: dict[str, Any] = {}

    def start(self) -> None:
        return

    def execute(self, code: str, variables: Any = None) -> Any:
        return LABELS[number(code) % 3] if "#" in code else ""

    def shutdown(self) -> None:
        return

    def __call__(self, code: str, variables: Any = None) -> Any:
        return self.execute(code, variables)


def programmer(asked: Asked) -> str:
    if "generated_code" in outputs(asked):
        right = MAGIC in asked.system
        return fields(
            reasoning="So it is.",
            generated_code=f"```python\nprint('#{number(asked.last.partition('trajectory')[0])}')\n```"
            if right
            else "1 1",
            finished=True,
        )
    told = next((each for each in LABELS if each in asked.last.partition("Respond with")[0]), None)
    return fields(reasoning="So it is.", label=told or label(asked, right=False))


def test_code_act_is_tuned(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        module = dspy.CodeAct(SIGNATURE, tools=[lookup], interpreter_factory=Calculator)
    assert (input_names(module), output_names(module)) == (("text",), ("label",))
    result, run = optimized(module, programmer, tmp_path, max_calls=700)
    gained(result, "codeact", "extractor.predict")
    assert MARK in run.program.seed.predictors["codeact"].instructions


def test_program_of_thought_is_tuned(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        module = dspy.ProgramOfThought(SIGNATURE, interpreter_factory=Calculator, max_iters=1)
    assert (input_names(module), output_names(module)) == (("text",), ("label",))
    result, _ = optimized(module, by_generated_code, tmp_path, max_calls=900)
    gained(result, "code_generate.predict", "code_regenerate.predict", "generate_output.predict")


def by_generated_code(asked: Asked) -> str:
    if "generated_code" in outputs(asked):
        return programmer(asked)
    return fields(reasoning="So it is.", label=label(asked, right=MAGIC in asked.system))


def well_formed(inputs: Any, prediction: dspy.Prediction) -> float:
    """The reward: something was said."""
    return float(bool(prediction.label))


@pytest.mark.parametrize("wrapper", [dspy.Refine, dspy.BestOfN])
def test_the_program_within_a_wrapper_is_tuned(tmp_path: Path, wrapper: type[dspy.Module]) -> None:
    module = wrapper(module=dspy.ChainOfThought(SIGNATURE), N=2, reward_fn=well_formed, threshold=1.0)
    assert (input_names(module), output_names(module)) == (("text",), ("label",))
    result, run = optimized(module, by_magic, tmp_path)
    gained(result, "module.predict")
    assert all(row.trace[0].predictor == "module.predict" for row, _ in run.notebook.evaluations())


def test_a_wrapper_forgets_the_failures_of_other_runs(tmp_path: Path) -> None:
    seen: set[str] = set()

    def strict(inputs: Any, prediction: dspy.Prediction) -> float:
        if inputs["text"] in seen:
            return 1.0
        seen.add(inputs["text"])
        raise ValueError("not at once")

    module = dspy.BestOfN(module=dspy.ChainOfThought(SIGNATURE), N=2, reward_fn=strict, threshold=1.0, fail_count=1)
    data = Splits(train=DATA.train[:8], validation=DATA.validation[:8], test=DATA.test[:8])
    _, run = optimized(module, by_magic, tmp_path, data=data, max_calls=80, algorithm="bootstrap")
    assert len(seen) > 4
    assert not [row.failure for row, _ in run.notebook.evaluations() if row.failure]


# --- inputs and outputs of every type ---------------------------------------------------------------------------------


class Report(pydantic.BaseModel):
    label: Literal["amber", "birch", "coral"]
    tags: list[str] = []


def test_typed_outputs_are_compared_field_by_field(tmp_path: Path) -> None:
    class Typed(dspy.Signature):  # type: ignore[misc]
        text: str = dspy.InputField()
        report: Report = dspy.OutputField()

    data = _mapped(lambda each: Example(inputs=each.inputs, labels={"report": {**each.labels, "tags": []}}))

    def script(asked: Asked) -> str:
        return fields(report=Report(label=label(asked, right=MAGIC in asked.system)).model_dump_json())  # type: ignore[arg-type]

    result, _ = optimized(dspy.Predict(Typed), script, tmp_path, data=data, metric="json_fields")
    assert result.winner is not None
    assert MAGIC in result.winner.predictors["self"].instructions
    assert result.comparison is not None
    assert result.comparison.effect > 0.2


def test_a_conversation_so_far_is_an_input(tmp_path: Path) -> None:
    class Talk(dspy.Signature):  # type: ignore[misc]
        history: dspy.History = dspy.InputField()
        text: str = dspy.InputField()
        label: Literal["amber", "birch", "coral"] = dspy.OutputField()

    past = {"messages": [{"text": "Hello.", "label": "amber"}]}
    data = _mapped(lambda each: Example(inputs={**each.inputs, "history": past}, labels=each.labels))
    seen: list[int] = []

    def script(asked: Asked) -> str:
        seen.append(len(asked.turns))
        return by_magic(asked)

    result, _ = optimized(dspy.Predict(Talk), script, tmp_path, data=data)
    gained(result, "self")
    assert set(seen) == {3}  # the turn before, its answer, and the question


def test_an_image_is_an_input(tmp_path: Path) -> None:
    class Look(dspy.Signature):  # type: ignore[misc]
        picture: dspy.Image = dspy.InputField()
        text: str = dspy.InputField()
        label: Literal["amber", "birch", "coral"] = dspy.OutputField()

    dot = base64.b64encode(b"\x89PNG\r\n\x1a\n").decode()
    url = f"data:image/png;base64,{dot}"
    data = _mapped(lambda each: Example(inputs={**each.inputs, "picture": url}, labels=each.labels))
    kinds: set[str] = set()

    def script(asked: Asked) -> str:
        kinds.update(type(part).__name__ for part in asked.request.messages[-1].parts)
        return by_magic(asked)

    result, run = optimized(dspy.Predict(Look), script, tmp_path, data=data)
    gained(result, "self")
    assert "ImagePart" in kinds
    demo = {"picture": url, "text": "#1", "label": "birch"}
    shown = run.program.seed.with_demos("self", [demo], origin="by hand")
    module = run.program.export(shown)
    assert isinstance(module.demos[0]["picture"], dspy.Image)
    assert run.program.state_of(module) == dict(shown.predictors)


def _mapped(change: Callable[[Example], Example]) -> Splits:
    return Splits(
        train=tuple(map(change, DATA.train)),
        validation=tuple(map(change, DATA.validation)),
        test=tuple(map(change, DATA.test)),
    )


# --- remote agents ----------------------------------------------------------------------------------------------------


def called(target: Path, **options: Any) -> tuple[OptimizationResult, Run]:
    """The result of a small optimization of the agent whose spec is at ``target``."""
    with StubServer() as writer:
        wanted = {"lm": None, "reflection_lm": "openai/stub", "max_calls": 160, **options}
        run = begin(writer.base, target.parent, data=DATA, target=str(target), **wanted)
        return run.execute(), run


def test_an_http_agent_is_tuned_from_its_spec(tmp_path: Path) -> None:
    target = tmp_path / "agent.json"
    with AgentServer() as agent:
        target.write_text(json.dumps(agent.spec()))
        result, run = called(target)
    gained(result, "system")
    texts = {body["components"]["system"] for body in agent.asked}
    assert TEXT in texts
    assert len(texts) > 1
    assert all(body["inputs"].keys() == {"text"} for body in agent.asked)
    sent = run.notebook.journal.sent()
    assert agent.requests < sent.calls == sent.recorded <= 160
    assert sent.unpriced > 0
    assert run.spend().usd is None  # unknown is not 0
    assert all(row.usage.cost_usd is None and row.usage.calls == 1 for row, _ in run.notebook.evaluations())


def test_a_chat_endpoint_is_tuned_from_a_yaml_spec(tmp_path: Path) -> None:
    with AgentServer() as agent:
        (tmp_path / "agent.yaml").write_text(
            f"kind: openai\nurl: {agent.base}\nmodel: small\ncomponents: {{system: Sort the case.}}\ninputs: [text]\n"
            "outputs:\n  label: {at: '/choices/0/message/content#/label', choices: [amber, birch, coral]}\n"
        )
        result, run = called(tmp_path / "agent.yaml")
    gained(result, "system")
    body = agent.asked[0]
    assert body["model"] == "small"
    assert body["messages"][0] == {"role": "system", "content": "Sort the case."}
    assert body["messages"][1]["role"] == "user"
    assert run.program.specs[0].outputs[0].choices == ("amber", "birch", "coral")
    assert run.notebook.journal.sent().prompt_tokens > 0


def test_an_a2a_agent_is_tuned_from_its_spec(tmp_path: Path) -> None:
    target = tmp_path / "agent.json"
    with served() as agent:
        target.write_text(json.dumps(agent.spec()))
        result, run = called(target)
    gained(result, "system")
    assert agent.sorter.asked[0]["components"] == {"system": TEXT}
    assert len(agent.sorter.asked) < run.notebook.journal.sent().calls <= 160
    assert run.spend().usd is None


# --- the table --------------------------------------------------------------------------------------------------------


def test_every_row_of_the_table_has_its_test_and_every_kind_its_row() -> None:
    table = Path(__file__).parents[2] / "docs" / "reference" / "targets.md"
    rows = re.findall(r"^\|.*\| `(test_\w+)` \|$", table.read_text(encoding="utf-8"), re.MULTILINE)
    tests = {name for name in globals() if name.startswith("test_") and "tuned" in name}
    assert len(rows) == len(set(rows))
    assert tests <= set(rows)
    assert set(rows) <= globals().keys()

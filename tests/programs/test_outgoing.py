"""What leaves for a reflection LM or a judge is cleaned; what a program asks its own LM is not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from dspy.lm15 import Message, Request
from dspy.lm15 import TextPart as Text
from dspy.lm15 import ToolCallPart as Calling
from dspy.lm15 import ToolResultPart as Told

from ratchet.begin import new_run, resumed_run
from ratchet.core.errors import BadData
from ratchet.options import Options
from ratchet.prepare import Given
from ratchet.programs.line import Line
from ratchet.programs.outgoing import outgoing
from ratchet.run import Run
from ratchet.settings import Settings
from ratchet.testing.lm import Asked, ScriptedLM, fields
from ratchet.testing.runs import carry_out, database

SECRET = "jane.roe@example.org"
NAME = "Amadou Diallo"


def hidden(text: str) -> str:
    return text.replace(SECRET, "***")


def test_every_text_of_a_request_is_cleaned_and_nothing_else() -> None:
    request = Request(
        model="m",
        system=f"Ask {SECRET}",
        messages=(
            Message.user(f"I am {SECRET}"),
            Message(
                role="assistant",
                parts=(Text(f"so {SECRET}"), Calling(id=SECRET, name="mail", input={"to": [SECRET], "n": 1})),
            ),
            Message(role="tool", parts=(Told(id=SECRET, content=(Text(f"no {SECRET}"),)),)),
        ),
    )
    sent = outgoing(Line(ScriptedLM(), "reflection", clean=hidden), request)
    assert sent.system == "Ask ***"
    assert sent.messages[0].parts[0].text == "I am ***"
    assert sent.messages[1].parts[0].text == "so ***"
    assert sent.messages[1].parts[1] == Calling(id=SECRET, name="mail", input={"to": ["***"], "n": 1})
    assert sent.messages[2].parts[0] == Told(id=SECRET, content=(Text("no ***"),))
    assert outgoing(Line(ScriptedLM(), "task"), request) is request


def about(case: int) -> dict[str, str]:
    return {"text": f"#{case} from {SECRET}", "answer": f"{NAME} {case % 3}"}


def begun(folder: Path, task: ScriptedLM, reflection: ScriptedLM, algorithm: str) -> Run:
    """An optimization whose program says something personal that no row holds."""
    file = folder / "mails.jsonl"
    file.write_text("".join(json.dumps(about(case)) + "\n" for case in range(90)), encoding="utf-8")
    options = Options(
        target="text -> answer",
        data=str(file),
        algorithms=(algorithm,),
        max_calls=150,
        force=True,
        concurrency=4,
        pii={"default": "pseudonymise", "names": [NAME]},
    )
    given = Given(lm=task, reflection_lm=reflection)
    return new_run(options, given, Settings(home=folder, mlflow=False), database(folder))


@pytest.mark.parametrize("algorithm", ["gepa", "dspy.gepa"])
def test_a_reflection_lm_is_told_nothing_personal_that_rows_or_replies_hold(tmp_path: Path, algorithm: str) -> None:
    invented = "li.wei@example.net"
    task = ScriptedLM(lambda asked: fields(answer=f"Write to {invented}, not to {NAME}"), model="scripted/task")
    reflection = ScriptedLM(lambda asked: "```\nAnswer with the name.\n```", model="scripted/reflection")
    run = begun(tmp_path, task, reflection, algorithm)
    assert carry_out(run).error is None
    asked = [f"{each.system} {each.turns}" for each in reflection.log]
    assert asked
    assert not any(secret in text for text in asked for secret in (SECRET, NAME, invented))
    assert run.prepared.cleaner is not None
    said = run.prepared.cleaner.prompt(f"{invented} {NAME}").split()
    assert all(each in "".join(asked) for each in said)  # what it says of it stands there under its pseudonym
    assert not any(secret in f"{each.system} {each.turns}" for each in task.log for secret in (SECRET, NAME))


def test_a_resumed_optimization_asks_the_very_same_and_pays_nothing_again(tmp_path: Path) -> None:
    def answer(asked: Asked) -> str:
        return fields(answer=f"Write to {SECRET}")

    first = ScriptedLM(lambda asked: "Answer with the name.", model="scripted/reflection")
    run = begun(tmp_path, ScriptedLM(answer, model="scripted/task"), first, "gepa")
    assert carry_out(run).error is None
    sent = run.notebook.journal.sent().calls
    archive = database(tmp_path)
    archive.open(run.id).set_status("cancelled")
    task, again = ScriptedLM(answer, model="scripted/task"), ScriptedLM(model="scripted/reflection")
    given = Given(lm=task, reflection_lm=again)
    # Under another setting than it was begun under.
    resumed = resumed_run(run.id, given, Settings(home=tmp_path, mlflow=False, pii="redact"), archive)
    assert carry_out(resumed).error is None
    assert first.log
    assert (again.log, task.log) == ([], [])
    assert resumed.notebook.journal.sent().calls == sent


@pytest.mark.parametrize("algorithm", ["gepa", "dspy.gepa"])
def test_what_cannot_be_cleaned_is_not_sent_and_ends_the_optimization(tmp_path: Path, algorithm: str) -> None:
    def refuse(text: str) -> str:
        raise BadData("the pattern of SLOW took more than 2 s on one text; give a simpler one")

    task = ScriptedLM(lambda asked: fields(answer="nobody"), model="scripted/task")
    reflection = ScriptedLM(lambda asked: "Answer.", model="scripted/reflection")
    run = begun(tmp_path, task, reflection, algorithm)
    assert run.reflection is not None
    run.reflection.line.clean = refuse
    outcome = carry_out(run)
    assert (outcome.status, reflection.log) == ("failed", [])
    assert "the pattern of SLOW" in str(outcome.error)


def test_what_is_stored_of_an_optimization_holds_nothing_personal_of_its_rows(tmp_path: Path) -> None:
    task = ScriptedLM(lambda asked: fields(answer="nobody"), model="scripted/task")
    run = begun(tmp_path, task, ScriptedLM(lambda asked: "Answer.", model="scripted/reflection"), "gepa")
    assert "EMAIL_ADDRESS 90" in run.prepared.splits.notes[0]
    assert carry_out(run).error is None
    archive = database(tmp_path)
    notebook = archive.open(run.id)
    kept = f"{archive.find(run.id)} {notebook.examples()} {notebook.evaluations()} {notebook.events()}"
    assert "#42 from person-" in kept
    assert not any(secret.casefold() in kept.casefold() for secret in (SECRET, NAME))
    for file in tmp_path.glob("ratchet.db*"):  # and what of it is not compressed
        assert not any(secret.encode() in file.read_bytes() for secret in (SECRET, NAME))


def test_without_a_policy_an_lm_is_asked_as_ever(tmp_path: Path) -> None:
    file = tmp_path / "mails.jsonl"
    file.write_text("".join(json.dumps(about(case)) + "\n" for case in range(60)), encoding="utf-8")
    options = Options(target="text -> answer", data=str(file), algorithms=("gepa",), force=True)
    run = new_run(options, Given(lm=ScriptedLM()), Settings(home=tmp_path, mlflow=False), database(tmp_path))
    assert run.prepared.cleaner is None
    assert SECRET in run.prepared.splits.train[0].inputs["text"]

"""What ``docs/howto/write-an-algorithm.md`` and the protocol's page say is done here as it stands there."""

from __future__ import annotations

import json
import os
import re
import shlex
import socket
import string
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from ratchet.cli.app import app
from ratchet.core.algorithm import Evaluate
from ratchet.core.evaluation import Evaluation, Evaluations, Step, Usage
from ratchet.core.problem import Budget, Candidate, Example, FieldSpec, PredictorSpec, PredictorState, Problem
from ratchet.programs.messages import Answer, Words, problem_json
from ratchet.testing.lm_server import SIGNATURE, StubServer, rows
from ratchet.testing.ports import free_port

DOCS = Path(__file__).parents[1] / "docs"
FENCE = re.compile(r"^```(\w+)(?: (\w+)=(\S+))?\n(.*?)^```$", re.MULTILINE | re.DOTALL)
HOWTO = FENCE.findall((DOCS / "howto" / "write-an-algorithm.md").read_text(encoding="utf-8"))
PROTOCOL = FENCE.findall((DOCS / "reference" / "algorithm-protocol.md").read_text(encoding="utf-8"))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with all files of the how-to, and data; its package is installed there."""
    for _, kind, name, text in HOWTO:
        if kind == "file":
            (tmp_path / name).write_text(text, encoding="utf-8")
    (tmp_path / "cases.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows(200)), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("RATCHET_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("RATCHET_NO_MLFLOW", "1")
    monkeypatch.setenv("SIGNATURE", SIGNATURE)
    yield tmp_path
    for name in ("climb", "test_climb", "look"):
        sys.modules.pop(name, None)


def console(*, starting: str) -> list[str]:
    """The lines of the console block whose first line begins so."""
    (block,) = [text for kind, _, _, text in HOWTO if kind == "console" and text.startswith(f"$ {starting}")]
    return [line.removeprefix("$ ") for line in block.splitlines()]


def run(line: str) -> str:
    """What a ``ratchet`` line of the page prints."""
    command, *arguments = shlex.split(string.Template(line).substitute(os.environ))
    assert command == "ratchet"
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    return done.stdout


def test_the_function_is_checked_used_and_compared_as_the_page_says(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with StubServer() as stub:
        monkeypatch.setenv("RATCHET_LM", "stub")
        monkeypatch.setenv("RATCHET_LM_BASE", stub.base)
        checked, optimized, compared = [run(line) for line in console(starting="ratchet algorithms check climb.py")]
    assert "climb.py:climb keeps the contract" in checked
    assert "improved" in optimized
    assert "climb.py:climb is better" in compared


def test_the_pytest_class_and_the_synthetic_problem_run_as_the_page_says(folder: Path) -> None:
    pytest_run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "test_climb.py", "-p", "no:cacheprovider"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert pytest_run.returncode == 0, pytest_run.stdout
    assert " passed" in pytest_run.stdout
    looked = subprocess.run([sys.executable, "look.py"], capture_output=True, text=True, check=True).stdout
    before, after = re.findall(r"\d\.\d+", looked)
    assert float(after) > float(before)


def test_the_entry_point_of_the_page_is_found_by_its_name(folder: Path) -> None:
    project = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
    installed = folder / f"{project['name']}-{project['version']}.dist-info"
    installed.mkdir()
    (installed / "METADATA").write_text(f"Name: {project['name']}\nVersion: {project['version']}\n")
    lines = [
        f"[{group}]\n{name} = {value}"
        for group, each in project["entry-points"].items()
        for name, value in each.items()
    ]
    (installed / "entry_points.txt").write_text("\n".join(lines))
    assert {"name": "climb", "kind": "package", "what": "climb 1.0, climb:climb"} in json.loads(
        run("ratchet algorithms --json")
    )
    assert "climb" not in sys.modules
    assert "climb keeps the contract" in run("ratchet algorithms check climb")


def test_the_server_runs_beside_the_built_ins_as_the_page_says(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    export, begin, *lines = console(starting="export")
    assert "RATCHET_ALGORITHM_HOSTS=127.0.0.1" in export
    monkeypatch.setenv("CLIMB_SECRET", "0f" * 32)
    monkeypatch.setenv("RATCHET_ALGORITHM_HOSTS", "127.0.0.1")
    port = str(free_port())
    _, file, _, _ = begin.split()
    server = subprocess.Popen([sys.executable, file, port], stderr=subprocess.DEVNULL)
    try:
        until = time.monotonic() + 20
        while socket.socket().connect_ex(("127.0.0.1", int(port))) and time.monotonic() < until:
            time.sleep(0.05)
        with StubServer() as stub:
            monkeypatch.setenv("RATCHET_LM", "stub")
            monkeypatch.setenv("RATCHET_LM_BASE", stub.base)
            told = [run(line.replace("9000", port)) for line in lines]
    finally:
        server.kill()
        server.wait()
    assert "web keeps the contract" in told[1]
    upper = told[2].partition("difference in quality")[0]
    table = {line.split()[0]: line for line in upper.splitlines() if line.strip()}
    for name in ("gepa", "climb.py:climb", "web"):
        assert "improved" in table[name]


# --- the protocol's page ----------------------------------------------------------------------------------------------


def problem() -> Problem:
    field = FieldSpec(name="question", type="str")
    return Problem(
        seed=Candidate(predictors={"answer": PredictorState(instructions="Answer.")}),
        predictors=(
            PredictorSpec(
                name="answer", inputs=(field,), outputs=(FieldSpec(name="label", type="str", choices=("a", "b")),)
            ),
        ),
        train=(Example(inputs={"question": "Why?"}, labels={"label": "a"}),),
        validation=(Example(inputs={"question": "How?"}, labels={"label": "b"}),),
        budget=Budget(runs=400),
    )


def shape(value: Any) -> Any:
    """Names and kinds of what is in JSON data; keys and numbers left aside."""
    if isinstance(value, dict):
        return {name: shape(each) for name, each in value.items()}
    if isinstance(value, list):
        return [shape(each) for each in value]
    return "number" if isinstance(value, int | float) and not isinstance(value, bool) else type(value).__name__


@pytest.mark.parametrize(("kind", "text"), [(kind, text) for _, part, kind, text in PROTOCOL if part == "answer"])
def test_every_answer_on_the_page_is_read(kind: str, text: str) -> None:
    answer = Answer.model_validate(json.loads(text))
    request = answer.request.model_fields_set if answer.request is not None else set()
    assert kind in request | answer.model_fields_set


def test_the_messages_on_the_page_have_the_fields_of_those_that_are_sent() -> None:
    messages = {kind: json.loads(text) for _, part, kind, text in PROTOCOL if part == "message"}
    assert messages.keys() == {"start", "reply", "spent"}
    assert shape(messages["start"]["problem"]) == shape(problem_json(problem()))
    row = Evaluation(
        candidate=problem().seed.key,
        example=problem().train[0],
        score=0.0,
        feedback="expected a",
        prediction={"label": "b"},
        trace=(Step(predictor="answer", inputs={"question": "Why?"}, outputs={"label": "b"}),),
        usage=Usage(calls=1, prompt_tokens=80, completion_tokens=4, cost_usd=None, latency_ms=310.0),
    )
    told = Words(problem()).reply(Evaluate(problem().seed, problem().train), Evaluations((row,)))
    assert shape(messages["reply"]["reply"]) == shape(json.loads(json.dumps(told)))

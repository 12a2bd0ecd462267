"""One optimization learns from another, through the whole engine and the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from ratchet.analytics.knowledge import is_held_out
from ratchet.cli.app import app
from ratchet.run import Run
from ratchet.storage.lessons import SqlLessons
from ratchet.storage.sql import SqlArchive
from ratchet.testing.lm_server import StubServer
from ratchet.testing.runs import again, begin, carry_out, database, splits


def begun(stub: StubServer, folder: Path, **options: Any) -> Run:
    """An optimization that is not held out."""
    while True:
        run = begin(stub.base, folder, **{"algorithm": "auto", "max_calls": 300, **options})
        if not is_held_out(run.id):
            return run


def lessons(folder: Path, tenant: str = "default") -> list[Any]:
    archive = database(folder)
    found = SqlLessons(archive).lessons(tenant)
    archive.close()
    return found


def told(folder: Path, monkeypatch: pytest.MonkeyPatch, *words: str) -> str:
    monkeypatch.setenv("RATCHET_HOME", str(folder))
    done = CliRunner().invoke(app, ["lessons", *words])
    assert done.exit_code == 0, done.output
    return done.output


def test_the_second_optimization_begins_with_what_the_first_taught(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with StubServer() as stub:
        first = carry_out(begun(stub, tmp_path))
        assert first.result is not None
        assert first.status == "improved"
        taught = lessons(tmp_path)[0]
        assert (taught.id, taught.warm_start, taught.status) == (first.id, "nothing known", "improved")
        assert first.result.comparison is not None
        assert taught.gain == first.result.comparison.effect
        assert taught.progress
        assert taught.features.lm == "openai/stub"
        assert taught.calls > 0
        assert taught.demos == {}

        run = begun(stub, tmp_path, seed=1)
        assert run.start.state == "on"
        second = carry_out(run)
        assert second.result is not None
        assert any("warm start:" in note for note in second.result.optimization_details.notes)
        assert lessons(tmp_path)[0].warm_start == "on"

        cold = begun(stub, tmp_path, warm_start=False)
        other = begun(stub, tmp_path, tenant="other")
    assert (cold.start.state, other.start.state) == ("off", "nothing known")

    out = told(tmp_path, monkeypatch, "list")
    assert first.id in out
    assert "what it is worth was not measured yet (n = 1 with, 0 held out)" in out
    assert json.loads(told(tmp_path, monkeypatch, "list", "--json"))["uplift"]["effect"] is None
    assert "-> label (choice), 1 predictors, 40 training examples" in told(tmp_path, monkeypatch, "show", first.id)
    told(tmp_path, monkeypatch, "forget", first.id)
    assert len(lessons(tmp_path)) == 1
    told(tmp_path, monkeypatch, "forget", "--all")
    assert lessons(tmp_path) == []
    assert CliRunner().invoke(app, ["lessons", "forget"]).exit_code == 2


def test_a_resumed_optimization_begins_as_it_began(tmp_path: Path) -> None:
    with StubServer() as stub:
        carry_out(begun(stub, tmp_path))
        run = begun(stub, tmp_path, seed=2)
        archive: SqlArchive = run.notebook.database  # type: ignore[attr-defined]
        SqlLessons(archive).forget("default")
        resumed = again(run.id, tmp_path)
    assert run.start.state == "on"
    assert resumed.start == run.start


@pytest.mark.parametrize("may_quote", [False, True])
def test_a_lesson_holds_text_of_examples_only_when_it_may(may_quote: bool, tmp_path: Path) -> None:
    data = splits()
    with StubServer() as stub:
        run = begun(stub, tmp_path, data=data, algorithm="bootstrap", lessons_may_quote=may_quote)
        outcome = carry_out(run)
    assert outcome.result is not None
    assert outcome.result.winner is not None
    assert any(state.demos for state in outcome.result.winner.predictors.values())
    kept = json.dumps(lessons(tmp_path)[0].to_json())
    assert any(example.inputs["text"] in kept for example in data.train) == may_quote

"""The command line, from a user's words to files, exit codes and sentences."""

from __future__ import annotations

import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from ratchet.cli.app import app
from ratchet.testing.lm_server import MAGIC, SIGNATURE, StubServer, rows

COMMANDS = ("optimize", "evaluate", "list", "show", "resume", "verify", "algorithms", "demo")
FILES = {"result.json", "program.json", "certificate.json", "report.html"}


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installation of its own for each test."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RATCHET_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("RATCHET_NO_MLFLOW", "1")
    return tmp_path / "home"


@pytest.fixture
def stub() -> Iterator[StubServer]:
    with StubServer() as server:
        yield server


def write(path: Path, data: Sequence[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in data), encoding="utf-8")
    return str(path)


@pytest.fixture
def data(tmp_path: Path) -> str:
    return write(tmp_path / "cases.jsonl", rows(200))


def ratchet(*arguments: object) -> Result:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert "Traceback" not in result.output
    return result


def lm(server: StubServer) -> tuple[str, ...]:
    return ("--lm", "stub", "--lm-base", server.base)


def optimize(server: StubServer, data: str, *more: object) -> Result:
    budget = ("--max-calls", 300, "--algorithm", "gepa")
    return ratchet("optimize", SIGNATURE, "--data", data, *lm(server), *budget, *more)


def stored() -> list[dict[str, Any]]:
    listed: list[dict[str, Any]] = json.loads(ratchet("list", "--json").stdout)
    return listed


# --- the main job -----------------------------------------------------------------------------------------------------


def test_one_command_makes_a_program_better_within_its_calls_and_writes_the_proof(
    stub: StubServer, data: str, tmp_path: Path
) -> None:
    done = optimize(stub, data, "--out", tmp_path / "out")
    assert done.exit_code == 0, done.output
    assert "improved" in done.stdout
    for word in ("quality", "success rate", "cost per run", "latency", "p = ", "n = ", "calls", "tokens", "unknown"):
        assert word in done.stdout
    assert {file.name for file in (tmp_path / "out").iterdir()} == FILES
    assert stub.requests <= 300
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert result["status"] == "improved"
    assert result["optimization_details"]["spend"]["calls"] == stub.requests
    assert MAGIC in (tmp_path / "out" / "program.json").read_text()


def test_what_a_metric_prints_goes_to_standard_error(stub: StubServer, data: str, tmp_path: Path) -> None:
    metric = tmp_path / "chatty.py"
    metric.write_text(
        "def chatty(example, prediction, trace=None):\n"
        "    print('looking at', example.label)\n"
        "    return float(example.label == prediction.label)\n",
        encoding="utf-8",
    )
    done = optimize(stub, data, "--max-calls", 60, "--json", "--metric", f"{metric}:chatty")
    assert json.loads(done.stdout)["optimization_details"]["spend"]["calls"] > 0
    assert "looking at" in done.stderr
    told = ratchet("list")
    assert json.loads(done.stdout)["optimization_id"] in told.stdout


def test_json_is_all_there_is_on_standard_output(stub: StubServer, data: str, home: Path) -> None:
    result = json.loads(optimize(stub, data, "--json").stdout)
    assert result["status"] == "improved"
    assert {Path(file).name for file in result["files"]} == FILES
    assert Path(result["files"][0]).parent == home / "runs" / result["optimization_id"]


def test_what_cannot_be_improved_is_told_so_and_ends_with_0(data: str, tmp_path: Path) -> None:
    with StubServer(hopeless=True) as hopeless:
        done = optimize(hopeless, data, "--json", "--out", tmp_path / "out")
    assert done.exit_code == 0
    result = json.loads(done.stdout)
    assert result["status"] == "no_proven_gain"
    program = json.loads((tmp_path / "out" / "program.json").read_text())
    assert program["signature"]["instructions"] == result["baseline"]["predictors"]["self"]["instructions"]


def test_a_hopeless_budget_is_declined_with_the_reason_and_without_a_certificate(
    stub: StubServer, data: str, tmp_path: Path
) -> None:
    done = optimize(stub, data, "--max-calls", 30, "--out", tmp_path / "out")
    assert done.exit_code == 0
    assert "declined" in done.stdout
    assert "--force" in done.stdout
    assert not (tmp_path / "out" / "certificate.json").exists()


def test_flags_are_read_from_the_environment(stub: StubServer, data: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"LM": "stub", "LM_BASE": stub.base, "DATA": data, "MAX_CALLS": "30", "JSON": "1"}.items():
        monkeypatch.setenv(f"RATCHET_{name}", value)
    assert json.loads(ratchet("optimize", SIGNATURE).stdout)["status"] == "declined"
    assert stub.requests <= 30


def test_columns_are_mapped_to_fields(stub: StubServer, tmp_path: Path) -> None:
    renamed = write(tmp_path / "r.jsonl", [{"body": row["text"], "class": row["label"]} for row in rows(200)])
    done = optimize(stub, renamed, "--map", "text=body", "--map", "label=class", "--max-calls", 30)
    assert done.exit_code == 0, done.output


def test_an_optimization_is_a_run_in_mlflow(
    stub: StubServer, data: str, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RATCHET_NO_MLFLOW")
    result = json.loads(optimize(stub, data, "--max-calls", 30, "--json").stdout)
    with closing(sqlite3.connect(home / "mlflow.db")) as database:
        tags = dict(database.execute("select key, value from tags").fetchall())
    assert tags["ratchet.optimization_id"] == result["optimization_id"]
    assert tags["ratchet.status"] == "declined"


def test_a_dead_mlflow_is_told_and_stops_nothing(stub: StubServer, data: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RATCHET_NO_MLFLOW")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    done = optimize(stub, data, "--max-calls", 30)
    assert done.exit_code == 0
    assert "MLflow" in done.stderr


# --- reading ----------------------------------------------------------------------------------------------------------


def test_an_optimization_is_listed_and_shown_with_what_changed_in_its_prompts(stub: StubServer, data: str) -> None:
    optimize(stub, data)
    (only,) = stored()
    assert only["status"] == "improved"
    assert only["id"] in ratchet("list").stdout
    shown = ratchet("show", only["id"][:6])
    assert "sealed test" in shown.stdout
    diff = ratchet("show", only["id"], "--diff").stdout
    assert re.search(rf"^\+.*{MAGIC}", diff, re.MULTILINE)
    assert json.loads(ratchet("show", only["id"], "--diff", "--json").stdout)["diff"]["self"]["after"].count(MAGIC) == 1


def test_the_trade_offs_of_an_optimization_are_shown(stub: StubServer, data: str, tmp_path: Path) -> None:
    options = ("--algorithm", "genetic", "--objective", "quality:1,cost:0.1,latency:0.1", "--price", "1,2")
    optimize(stub, data, *options, "--out", tmp_path / "out")
    (only,) = stored()
    shown = ratchet("show", only["id"], "--front").stdout
    front = json.loads(ratchet("show", only["id"], "--front", "--json").stdout)["front"]
    assert front["objectives"] == ["quality_score", "cost", "latency"]
    assert f"{len(front['points'])} of {front['validated']} candidates" in shown
    for name in ("best quality", "cheapest at no loss", "fastest at no loss", "cost per run"):
        assert name in shown
    for point in front["points"]:
        assert point["candidate"] in shown
    assert len(front["points"]) > 1
    assert "Trade-offs between the objectives" in (tmp_path / "out" / "report.html").read_text()
    assert json.loads((tmp_path / "out" / "result.json").read_text())["front"] == front


def test_what_was_declined_has_no_trade_offs(stub: StubServer, data: str) -> None:
    optimize(stub, data, "--max-calls", 30)
    shown = ratchet("show", stored()[0]["id"], "--front")
    assert shown.exit_code == 0
    assert "there is no front" in shown.stderr


def test_an_optimization_that_has_ended_is_published_again_without_a_call(
    stub: StubServer, data: str, tmp_path: Path
) -> None:
    optimize(stub, data)
    sent = stub.requests
    again = ratchet("resume", stored()[0]["id"], "--out", tmp_path / "again")
    assert again.exit_code == 0
    assert {file.name for file in (tmp_path / "again").iterdir()} == FILES
    assert stub.requests == sent


def test_a_program_is_evaluated_and_each_row_is_written(stub: StubServer, data: str, tmp_path: Path) -> None:
    arguments = ("evaluate", SIGNATURE, "--data", data, "--limit", 40, *lm(stub))
    measured = json.loads(ratchet(*arguments, "--json", "--out", tmp_path / "rows.csv").stdout)
    assert stub.requests == measured["n"] == len(measured["rows"]) == 40
    low, high = measured["quality"]["interval"]
    assert low < measured["quality"]["mean"] < high
    assert measured["cost_usd"]["mean"] is None
    assert len((tmp_path / "rows.csv").read_text().splitlines()) == 41
    assert stored()[0]["status"] == "evaluated"
    assert "success rate" in ratchet(*arguments).stdout


def test_unreadable_answers_are_counted_as_failures_by_kind(data: str) -> None:
    with StubServer(garbage=1.0) as garbage:
        done = ratchet("evaluate", SIGNATURE, "--data", data, "--limit", 10, *lm(garbage), "--json")
    measured = json.loads(done.stdout)
    assert measured["failures"] == {"unparseable": 10}
    assert "10 of 10 runs failed; the first: unparseable" in done.stderr
    assert all(row["score"] is None for row in measured["rows"])


def test_an_evaluation_of_which_nothing_can_be_scored_says_why(stub: StubServer, data: str, tmp_path: Path) -> None:
    arguments = ("evaluate", SIGNATURE, "--data", data, "--limit", 5)
    (tmp_path / "score.py").write_text("def metric(example, prediction):\n    raise ValueError('no such thing')\n")
    by_metric = ratchet(*arguments, *lm(stub), "--metric", f"{tmp_path / 'score.py'}:metric")
    stub.status = 400
    by_lm = ratchet(*arguments, *lm(stub))
    assert (by_metric.exit_code, by_lm.exit_code) == (2, 2)
    assert "no such thing" in by_metric.stderr
    assert "400" in by_lm.stderr
    assert [each["status"] for each in stored()] == ["failed", "failed"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--lm", "stub", "--lm-base", "notaurl"], "'notaurl'"),
        (["--lm", "stub", "--lm-base", "ftp://host"], "'ftp://host'"),
        (["--lm", "local:fake.gguf"], "fake.gguf cannot be run as a model"),
        (["--lm", "openai/stub", "--out", "."], ". is a folder"),
        (["--lm", "openai/stub", "--out", "cases.jsonl/rows.csv"], "cases.jsonl cannot be written to"),
    ],
)
def test_an_evaluation_that_cannot_work_is_refused_before_a_call(
    arguments: list[str], words: str, data: str, tmp_path: Path
) -> None:
    (tmp_path / "fake.gguf").write_bytes(b"no weights")
    done = ratchet("evaluate", SIGNATURE, "--data", data, *arguments)
    assert done.exit_code == 2, done.output
    assert words in done.stderr
    assert stored() == []


def test_a_certificate_that_is_not_there_is_wrong_usage() -> None:
    done = ratchet("verify", "nofile.json")
    assert done.exit_code == 2
    assert "nofile.json is not there" in done.stderr


def test_every_algorithm_is_listed() -> None:
    listed = json.loads(ratchet("algorithms", "--json").stdout)
    assert {"auto", "gepa", "miprov2", "bootstrap", "random_search", "dspy.gepa"} <= {each["name"] for each in listed}
    assert all(each["name"] in ratchet("algorithms").stdout for each in listed)


def test_nothing_stored_is_no_error_and_makes_no_folder(home: Path) -> None:
    assert stored() == []
    assert ratchet("list").exit_code == 0
    assert not home.exists()


@pytest.mark.parametrize("command", COMMANDS)
def test_every_help_has_examples(command: str) -> None:
    page = ratchet(command, "--help")
    assert page.exit_code == 0
    assert "Examples" in page.stdout


def test_help_is_quick_and_imports_nothing_heavy() -> None:
    code = (
        "import sys; from typer.testing import CliRunner; from ratchet.cli.app import app; "
        "assert CliRunner().invoke(app, ['--help']).exit_code == 0; "
        "print({'dspy', 'numpy', 'sqlalchemy', 'mlflow', 'pydantic', 'ratchet.run'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


# --- what goes wrong --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["no_such_module:program"], "no_such_module"),
        (["nothing"], "target"),
        ([SIGNATURE, "--metric", "exact_macht"], "exact_match"),
        ([SIGNATURE, "--algorithm", "gepo"], "gepo"),
        ([SIGNATURE, "--adapter", "yaml"], "yaml"),
        ([SIGNATURE, "--module", "agent"], "predict, cot"),
        ([SIGNATURE, "--objective", "beauty:1"], "beauty"),
        ([SIGNATURE, "--objective", "quality:much"], "quality:much"),
        ([SIGNATURE, "--objective", "quality:1,quality_score:2"], "name a metric twice"),
        ([SIGNATURE, "--price", "cheap"], "--price"),
        ([SIGNATURE, "--price", "nan,1"], "--price"),
        ([SIGNATURE, "--seed", "-1"], "seed is -1"),
        ([SIGNATURE, "--temperature", "-3"], "temperature is -3.0"),
        ([SIGNATURE, "--max-tokens", "0"], "max_tokens is 0"),
        ([SIGNATURE, "--lm-timeout", "0"], "lm_timeout is 0.0"),
        ([SIGNATURE, "--map", "text"], "--map"),
        ([SIGNATURE, "--map", "text=body"], "body"),
        ([SIGNATURE, "--max-calls", "0"], "max_calls"),
        ([SIGNATURE, "--max-usd", "1"], "--price"),
        (["question -> label"], "question"),
        ([SIGNATURE, "--nonsense"], "--nonsense"),
    ],
)
def test_wrong_usage_ends_with_2_says_what_is_wrong_and_stores_nothing(
    arguments: list[str], words: str, stub: StubServer, data: str
) -> None:
    done = ratchet("optimize", *arguments, "--data", data, *lm(stub))
    assert done.exit_code == 2, done.output
    assert words in re.sub(r"\x1b\[[0-9;]*m", "", done.stderr)
    assert stub.requests == 0
    assert stored() == []


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("bad.jsonl", '{"text": "a", "label": "amber"}\n{"text": \n', "bad.jsonl, line 2"),
        ("bad.csv", "text,label\na,amber\nb\n", "bad.csv, line 3"),
        ("first.jsonl", '{"text": "a"}\n{"text": "b", "label": "amber"}\n', "line 1: label field 'label' is missing"),
        ("lacks.jsonl", '{"text": "a", "label": "amber"}\n{"label": "amber"}\n', "lacks.jsonl, line 2"),
        ("empty.jsonl", "", "no rows"),
        ("tiny.jsonl", '{"text": "a", "label": "amber"}\n{"text": "b", "label": "amber"}\n', "example"),
        ("bad.xlsx", "x", ".xlsx"),
    ],
)
def test_a_bad_file_is_told_with_name_and_line(
    name: str, text: str, words: str, stub: StubServer, tmp_path: Path
) -> None:
    (tmp_path / name).write_text(text)
    done = optimize(stub, str(tmp_path / name))
    assert done.exit_code == 2
    assert words in done.stderr
    assert stored() == []


def test_a_file_that_is_not_there_is_told(stub: StubServer) -> None:
    done = optimize(stub, "nowhere.jsonl")
    assert done.exit_code == 2
    assert "nowhere.jsonl" in done.stderr


def test_a_model_without_a_provider_is_told(data: str) -> None:
    done = ratchet("optimize", SIGNATURE, "--data", data, "--lm", "gpt-something")
    assert done.exit_code == 2
    assert "openai/gpt-something" in done.stderr


@pytest.mark.parametrize("body", ["raise ValueError('no such thing')", "return float('nan')", "return 'good'"])
def test_a_metric_that_gives_no_number_fails_with_its_words(
    body: str, stub: StubServer, data: str, tmp_path: Path
) -> None:
    (tmp_path / "score.py").write_text(f"def metric(example, prediction, trace=None):\n    {body}\n")
    done = optimize(stub, data, "--metric", f"{tmp_path / 'score.py'}:metric")
    assert done.exit_code == 2
    assert "metric" in done.stderr
    assert "ratchet resume" not in done.stderr  # it would be refused again
    assert stored()[0]["status"] == "failed"


def test_an_lm_that_refuses_fails_the_optimization_with_its_cause(data: str, tmp_path: Path) -> None:
    with StubServer(status=401) as dead:
        done = optimize(dead, data, "--out", tmp_path / "out")
    assert done.exit_code == 1
    assert "401" in done.stderr
    assert "ratchet resume" in done.stderr
    (only,) = stored()
    assert only["status"] == "failed"
    assert "LmUnavailable" in only["error"]
    assert list((tmp_path / "out").iterdir()) == []


def test_a_folder_that_cannot_be_written_to_is_told_before_anything_is_paid(stub: StubServer, data: str) -> None:
    Path("file").write_text("")
    done = optimize(stub, data, "--out", "file")
    assert done.exit_code == 2
    assert "file" in done.stderr
    assert stub.requests == 0


@pytest.mark.parametrize("algorithm", ["gepa", "dspy.gepa", "dspy.miprov2"])
def test_ctrl_c_stops_cleanly_and_resume_goes_on(algorithm: str, data: str) -> None:
    with StubServer(latency=0.05) as slow:
        arguments = ["optimize", SIGNATURE, "--data", data, *lm(slow), "--max-calls", "400", "--algorithm", algorithm]
        process = subprocess.Popen(
            [sys.executable, "-m", "ratchet", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONUNBUFFERED": "1"},
        )
        give_up = time.monotonic() + 60
        while slow.requests < 60 and time.monotonic() < give_up:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, told = process.communicate(timeout=30)
        assert process.returncode == 130, told
        (only,) = stored()
        assert only["status"] == "cancelled"
        assert f"ratchet resume {only['id']}" in told
        assert "Traceback" not in told
        slow.latency = 0.0
        done = ratchet("resume", only["id"], "--json")
        assert done.exit_code == 0, done.output
        spend = json.loads(done.stdout)["optimization_details"]["spend"]
        assert spend["calls"] == slow.requests <= 400

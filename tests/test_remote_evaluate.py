"""``ratchet --server URL evaluate``: the same numbers and rows there as here, through stops and kills."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from ratchet.cli.app import app
from ratchet.client import Client
from ratchet.core.errors import Conflict, Missing
from ratchet.testing.lm_server import SIGNATURE, StubServer
from ratchet.testing.service import data
from ratchet.testing.serving import ServingProcess

N = 120


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, serving: ServingProcess) -> Path:
    """A folder with data, an installation of its own, and an operator's key for the server."""
    (tmp_path / "mails.jsonl").write_bytes(data(N))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RATCHET_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("RATCHET_NO_MLFLOW", "1")
    for name, value in serving.environment_for("operator").items():
        monkeypatch.setenv(name, value)
    return tmp_path


def ratchet(*words: object, code: int = 0) -> Result:
    result = CliRunner().invoke(app, [str(word) for word in words])
    assert "Traceback (most" not in result.output
    assert result.exit_code == code, result.output
    return result


def evaluate(stub: StubServer, *more: object, code: int = 0, source: str = "mails.jsonl") -> Result:
    task = ("--data", source, "--lm", "openai/stub", "--lm-base", stub.base)
    return ratchet("evaluate", SIGNATURE, *task, *more, code=code)


def lasting(told: dict[str, Any]) -> dict[str, Any]:
    """Without what differs from one run to the next."""
    rows = [{name: value for name, value in row.items() if name != "latency_ms"} for row in told["rows"]]
    return {name: told[name] for name in told if name not in ("evaluation_id", "latency_ms", "spend")} | {"rows": rows}


def test_it_measures_there_what_it_measures_here(stub: StubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    there = json.loads(evaluate(stub, "--seed", 1, "--json", "--out", "there.csv").stdout)
    monkeypatch.delenv("RATCHET_SERVER")
    local = json.loads(evaluate(stub, "--seed", 1, "--json", "--out", "here.csv").stdout)
    assert lasting(there) == lasting(local)
    assert (there["n"], len(there["rows"])) == (N, N)
    assert there["quality"]["mean"] is not None
    lines = [Path(f"{place}.csv").read_text().splitlines() for place in ("there", "here")]
    assert len(lines[0]) == len(lines[1]) == N + 1
    assert lines[0][0] == lines[1][0]


def test_what_is_kept_there_can_be_measured_and_looked_at_later(stub: StubServer, serving: ServingProcess) -> None:
    with Client(serving.url, key=serving.key("operator")) as client:
        client.upload("kept", "mails.jsonl")
    done = evaluate(stub, "--limit", 30, source="kept@1")
    assert "30 examples" in done.stdout
    listed = json.loads(ratchet("list", "--json").stdout)[0]
    assert listed["status"] == "evaluated"
    assert "quality" in ratchet("show", listed["id"]).stdout
    assert "30 examples" in ratchet("watch", listed["id"]).stdout
    ratchet("watch", listed["id"], "--out", "again")
    assert len(Path("again/rows.jsonl").read_text().splitlines()) == 30
    assert "cannot be resumed" not in ratchet("resume", listed["id"]).stderr
    with Client(serving.url, key=serving.key("operator")) as client:
        with pytest.raises(Missing, match="certificate"):
            client.certificate(listed["id"])
        with pytest.raises(Conflict, match="it is an evaluation"):
            client.fork(listed["id"])
        assert client.status(listed["id"])["progress"] == 1.0
        assert [event.kind for event in client.events(listed["id"])] == [
            *("queued", "begun", "stage", "evaluated", "ended")
        ]
        stored = list(client.evaluations(listed["id"]))
        assert len(stored) == 30
    assert "is erased" in ratchet("delete", listed["id"]).stderr


def test_one_that_fails_there_fails_here_and_goes_on_when_it_is_resumed(stub: StubServer) -> None:
    stub.status = 401
    try:
        failed = evaluate(stub, "--seed", 2, "--json", code=1)
    finally:
        stub.status = 200
    told = json.loads(failed.stdout)
    assert (told["status"], "401" in told["error"]) == ("failed", True)
    assert json.loads(ratchet("resume", told["optimization_id"], "--json").stdout)["n"] == N


def test_one_whose_server_is_killed_goes_on_and_no_recorded_reply_is_paid_twice(tmp_path: Path) -> None:
    with StubServer(latency=0.05) as slow:
        body: dict[str, Any] = {"target": {"spec": {"signature": SIGNATURE}}, "lm": "openai/stub", "lm_base": slow.base}
        with ServingProcess(tmp_path / "server", lm_base=slow.base) as first:
            key = first.key("developer")
            with Client(first.url, key=key) as client:
                client.upload("mails", tmp_path / "mails.jsonl")
                job = client.evaluate(**body, data="mails", concurrency=4)["id"]
                until = time.monotonic() + 60
                while client.status(job)["spend"]["recorded"] < 40 and time.monotonic() < until:
                    time.sleep(0.02)
        assert 40 <= slow.requests < N  # leaving the block kills it
        with ServingProcess(tmp_path / "server", lm_base=slow.base) as second, Client(second.url, key=key) as client:
            assert client.wait(job)["status"] == "evaluated"
            found = client.optimization(job)["result"]
            counts = [event.payload["n"] for event in client.events(job) if event.kind == "evaluated"]
            assert len(client.file(job, "rows").splitlines()) == found["n"] == N
        assert counts == sorted(set(counts))
        assert slow.requests <= N + 4  # what was under way when it was killed is asked again

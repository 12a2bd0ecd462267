"""``ratchet --server URL compare``: the same table there as here, of optimizations that are begun once."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner, Result

from ratchet.cli.app import app
from ratchet.cli.remote.contest import contest
from ratchet.client import Client
from ratchet.contest import BASELINE, Contender, Contest
from ratchet.core.errors import BadRequest, Cancelled
from ratchet.options import Options
from ratchet.testing.lm_server import SIGNATURE, StubServer, rows
from ratchet.testing.serving import ServingProcess


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, serving: ServingProcess) -> Path:
    """A folder with data, an installation of its own, and an operator's key for the server."""
    (tmp_path / "cases.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows(200)))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RATCHET_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("RATCHET_NO_MLFLOW", "1")
    for name, value in serving.environment_for("operator").items():
        monkeypatch.setenv(name, value)
    return tmp_path


@pytest.fixture
def client(serving: ServingProcess) -> Iterator[Client]:
    with Client(serving.url, key=serving.key("operator")) as client:
        yield client


def command_line(stub: StubServer, *algorithms: str, seed: int = 0) -> list[str]:
    task = ("--data", "cases.jsonl", "--lm", "openai/stub", "--lm-base", stub.base, "--max-calls", "240")
    return ["compare", SIGNATURE, *algorithms, *task, "--seed", str(seed), "--json"]


def command(stub: StubServer, *algorithms: str, seed: int = 0) -> Result:
    result = CliRunner().invoke(app, command_line(stub, *algorithms, seed=seed))
    assert "Traceback (most" not in result.output
    return result


def compare(stub: StubServer, *algorithms: str, seed: int = 0) -> Contest:
    done = command(stub, *algorithms, seed=seed)
    assert done.exit_code == 0, done.output
    return Contest.from_json(json.loads(done.stdout))


def compare_options(client: Client, stub: StubServer, *, seed: int) -> Contest:
    """The same as a call, of one algorithm."""
    options = Options(
        target=SIGNATURE, data="cases.jsonl", lm="openai/stub", lm_base=stub.base, max_calls=240, seed=seed
    )
    return contest(client, options, ["gepa"])


def measured(contender: Contender) -> Contender:
    """Without what is another's on another machine: ids, times and who paid for a shared reply."""
    unlike: dict[str, Any] = {"optimization_id": "", "seconds": 0.0, "calls": 0, "usd": None}
    return replace(contender, **unlike, latency_ms=Contender(name="").latency_ms)


def test_it_finds_there_what_it_finds_here(stub: StubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    there = compare(stub, "gepa", "random_search,bootstrap")
    monkeypatch.delenv("RATCHET_SERVER")
    found = compare(stub, "gepa", "random_search,bootstrap")
    assert there.n == found.n > 0
    assert [each.name for each in there.contenders] == [BASELINE, "gepa", "random_search,bootstrap"]
    assert [measured(each) for each in there.contenders] == [measured(each) for each in found.contenders]
    assert there.pairs == found.pairs
    assert there.pairs[0].comparison is not None


def test_the_numbers_are_those_of_the_certificate_and_nobody_began_with_lessons(
    stub: StubServer, client: Client
) -> None:
    found = compare(stub, "gepa", "bootstrap", seed=1)
    gepa = found.contenders[1]
    job = client.optimization(gepa.optimization_id)
    assert found.pairs[0].comparison is not None
    assert found.pairs[0].comparison.effect == client.certificate(job["id"])["payload"]["comparison"]["effect"]
    assert job["request"]["options"]["warm_start"] is False
    assert 0 < gepa.calls <= 240
    assert {each["id"] for each in client.cycle(found.id)["optimizations"]} == {
        each.optimization_id for each in found.contenders[1:]
    }


def test_a_second_call_begins_nothing_and_sends_nothing(stub: StubServer, client: Client) -> None:
    first = compare(stub, "gepa", "bootstrap", seed=2)
    sent, jobs = stub.requests, len([*client.optimizations()])
    assert compare(stub, "gepa", "bootstrap", seed=2) == first
    assert (stub.requests, len([*client.optimizations()])) == (sent, jobs)


def test_one_that_was_erased_is_run_anew_and_the_others_are_not(stub: StubServer, client: Client) -> None:
    first = compare(stub, "gepa", "bootstrap", seed=3)
    client.erase(first.contenders[2].optimization_id)
    again = compare(stub, "gepa", "bootstrap", seed=3)
    assert again.contenders[1] == first.contenders[1]
    assert again.contenders[2].optimization_id != first.contenders[2].optimization_id
    assert measured(again.contenders[2]) == measured(first.contenders[2])


def test_ctrl_c_leaves_them_running_and_the_same_command_goes_on(stub: StubServer, client: Client) -> None:
    before = len([*client.optimizations()])
    stub.latency = 0.2
    try:
        words = command_line(stub, "gepa", "bootstrap", seed=5)
        process = subprocess.Popen(
            [sys.executable, "-m", "ratchet", *words],
            env={**os.environ, "PYTHONWARNINGS": "ignore"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert process.stderr is not None
        for line in process.stderr:
            if "calls" in line:
                process.send_signal(signal.SIGINT)
                break
        _, rest = process.communicate(timeout=60)
        gepa, bootstrap = [*client.optimizations()][: len([*client.optimizations()]) - before][::-1]
        client.pause(gepa["id"])
    finally:
        stub.latency = 0.0
    assert process.returncode == 130, rest
    assert f"They are: {gepa['id']} {bootstrap['id']}" in rest
    assert client.wait(bootstrap["id"])["status"] == "improved"
    found = compare(stub, "gepa", "bootstrap", seed=5)
    assert [each.optimization_id for each in found.contenders] == ["", gepa["id"], bootstrap["id"]]


def test_one_that_somebody_stops_meanwhile_is_told(stub: StubServer, client: Client) -> None:
    stub.latency = 0.2
    try:
        with ThreadPoolExecutor() as pool:
            running = pool.submit(compare_options, client, stub, seed=6)
            until = time.monotonic() + 30
            while not (jobs := [*client.optimizations(status="running")]) and time.monotonic() < until:
                time.sleep(0.05)
            client.cancel(jobs[0]["id"])
            with pytest.raises(Cancelled, match=rf"gepa \({jobs[0]['id']}\) is cancelled; the same command goes on"):
                running.result(timeout=60)
    finally:
        stub.latency = 0.0


def test_a_name_that_is_not_known_begins_nothing(stub: StubServer, client: Client) -> None:
    before = len([*client.optimizations()])
    for algorithms, told in ((["gepa", "gepo"], "gepo"), (["gepa", "climb.py:climb"], "code of this machine")):
        done = command(stub, *algorithms)
        assert done.exit_code == 2
        assert told in done.stderr
    assert len([*client.optimizations()]) == before


def test_when_all_fail_that_is_told_and_the_same_command_tries_again(stub: StubServer) -> None:
    stub.status = 401
    try:
        failed = command(stub, "bootstrap", "gepa", seed=4)
    finally:
        stub.status = 200
    assert failed.exit_code == 1
    assert "no algorithm came to a result. bootstrap: " in failed.stderr
    assert "401" in failed.stderr
    assert compare(stub, "bootstrap", "gepa", seed=4).pairs


# --- what a server may answer -----------------------------------------------------------------------------------------


def test_names_stand_for_the_versions_of_now() -> None:
    asked: list[Any] = []

    def answer(request: httpx.Request) -> httpx.Response:
        if request.method == "POST":
            asked.append(json.loads(request.content)["optimizations"])
            return httpx.Response(422, json={"detail": "that will do"})
        if request.url.path.endswith("custom"):
            return httpx.Response(200, json={"items": [], "next": None})
        return httpx.Response(200, json={"id": f"version of {request.url.path.rpartition('/')[2]}"})

    options = Options(target="sorter", data="mails", max_calls=10)
    with Client(key="k", transport=httpx.MockTransport(answer)) as client, pytest.raises(BadRequest, match="will do"):
        contest(client, options, ["gepa", "capo,bootstrap"])
    assert [each["algorithms"] for each in asked[0]] == [["gepa"], ["capo", "bootstrap"]]
    for each in asked[0]:
        assert (each["data"], each["target"]) == ("version of mails", {"id": "version of sorter"})
        assert each["constraints"]["max_calls"] == 10

"""The client says what the server says, tries again what may be tried again, and loses no event."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from ratchet import AsyncClient, Client
from ratchet.calls import PREFIX, call
from ratchet.core.errors import BadRequest, Conflict, Denied, Missing, RatchetError, StorageUnavailable, TooMany
from ratchet.service.app import create_app
from ratchet.testing.service import actor, data, request
from ratchet.testing.serving import ServingThread


@pytest.fixture
def served(tmp_path: Path) -> Iterator[ServingThread]:
    served = ServingThread(tmp_path / "home")
    served.start()
    yield served
    served.stop()
    served.desk.close()


@pytest.fixture
def mails(tmp_path: Path) -> Path:
    file = tmp_path / "mails.jsonl"
    file.write_bytes(data())
    return file


def test_a_request_goes_there_and_back(served: ServingThread, mails: Path) -> None:
    with Client(served.url, key=served.key) as client:
        assert client.upload("mails", mails)["rows"] == 60
        assert client.keep_target("t", signature="a -> b")["version"] == 1
        jobs = [client.optimize(**request(seed=seed)) for seed in range(3)]
        assert client.optimization(jobs[0]["id"])["status"] == "queued"
        assert client.status(jobs[0]["id"])["progress"] == 0
        assert [client.pause(jobs[0]["id"])["status"], client.resume(jobs[0]["id"])["status"]] == ["paused", "queued"]
        assert client.cancel(jobs[0]["id"])["status"] == "cancelled"
        assert client.wait(jobs[0]["id"])["status"] == "cancelled"
        assert {job["id"] for job in client.optimizations()} == {job["id"] for job in jobs}
        assert [job["id"] for job in client.optimizations(status="cancelled")] == [jobs[0]["id"]]


def test_a_refusal_is_the_error_it_is(served: ServingThread, mails: Path) -> None:
    with Client(served.url, key=served.key) as client:
        with pytest.raises(Missing, match="nothing"):
            client.optimization("nothing")
        client.upload("mails", mails)
        job = client.optimize(idempotency_key="k", **request())["id"]
        with pytest.raises(Missing, match="certificate"):
            client.certificate(job)
        with pytest.raises(BadRequest, match="magic") as refused:
            client.optimize(**request(algorithms=["magic"]))
        assert refused.value.values == {"status": 422}
        with pytest.raises(Conflict):
            client.optimize(idempotency_key="k", **request(seed=2))
        with pytest.raises(BadRequest, match=r"\.jsonl"):
            client.upload("mails", "mails.txt")
    with Client(served.url, key="rk_wrong_key") as client, pytest.raises(Denied, match="not known"):
        client.optimization("nothing")


def test_events_come_in_order_and_once_though_the_server_is_started_again(served: ServingThread, mails: Path) -> None:
    with Client(served.url, key=served.key) as client:
        client.upload("mails", mails)
        job = client.optimize(**request())["id"]
        served.tell(job, 20)
        seen = []
        for event in client.events(job):
            seen.append(event.sequence)
            if event.sequence == 10:
                served.stop()
                served.start()
            if event.sequence == 21:
                served.tell(job, 20)
            if event.sequence == 41:
                served.desk.stop(actor(), job, "cancel")
        assert seen == list(range(1, 43))
        assert [event.sequence for event in client.events(job, after=40)] == [41, 42]


async def test_the_same_can_be_awaited(served: ServingThread, mails: Path) -> None:
    async with AsyncClient(served.url, key=served.key) as client:
        await client.upload("mails", mails)
        await client.keep_target("t", signature="a -> b")
        job = (await client.optimize(**request()))["id"]
        assert (await client.status(job))["status"] == "queued"
        assert (await client.pause(job))["status"] == "paused"
        assert (await client.resume(job))["status"] == "queued"
        waiting = asyncio.create_task(client.wait(job))
        await asyncio.sleep(0.05)
        assert (await client.cancel(job))["status"] == "cancelled"
        assert (await waiting)["status"] == "cancelled"
        assert [item["id"] async for item in client.optimizations()] == [job]
        with pytest.raises(Missing):
            await client.program(job)
        with pytest.raises(Missing):
            await client.certificate("nothing")


def test_what_failed_for_a_moment_is_asked_again_and_done_once() -> None:
    keys: list[str] = []

    def answer(asked: httpx.Request) -> httpx.Response:
        keys.append(asked.headers["idempotency-key"])
        if len(keys) == 1:
            raise httpx.ConnectError("no route")
        return httpx.Response(503 if len(keys) == 2 else 202, json={"id": "a", "detail": "not now"})

    with Client(key="k", transport=httpx.MockTransport(answer)) as client:
        assert client.optimize(data="mails") == {"id": "a", "detail": "not now"}
    assert len(keys) == 3
    assert len(set(keys)) == 1


def test_what_is_done_with_personal_data_goes_in_a_header(mails: Path) -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        assert "Jane" not in str(request.url)
        return httpx.Response(201, json=json.loads(request.headers["Ratchet-Privacy"]))

    policy = {"default": "pseudonymise", "names": ["Jane Roe", "Zoë Müller"]}
    with Client(key="k", transport=httpx.MockTransport(answer)) as client:
        assert client.upload("mails", mails, privacy=policy) == policy


def test_a_server_that_is_not_there_is_told() -> None:
    def answer(asked: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("no route")

    with Client(key="k", retry_seconds=(0.0, 0.0), transport=httpx.MockTransport(answer)) as client:
        for ask in (lambda: client.status("a"), lambda: list(client.events("a"))):
            with pytest.raises(StorageUnavailable, match="cannot be reached"):
                ask()


# --- what can be asked for --------------------------------------------------------------------------------------------

ASKS: dict[str, Callable[[Any], Any]] = {
    "optimize": lambda client: client.optimize(data="mails"),
    "evaluate": lambda client: client.evaluate(data="mails", limit=5),
    "optimizations": lambda client: client.optimizations(status="failed"),
    "optimization": lambda client: client.optimization("a"),
    "status": lambda client: client.status("a"),
    "pause": lambda client: client.pause("a"),
    "resume": lambda client: client.resume("a"),
    "cancel": lambda client: client.cancel("a"),
    "fork": lambda client: client.fork("a", from_stage="search"),
    "candidates": lambda client: client.candidates("a"),
    "evaluations": lambda client: client.evaluations("a"),
    "certificate": lambda client: client.certificate("a"),
    "program": lambda client: client.program("a"),
    "report": lambda client: client.report("a"),
    "file": lambda client: client.file("a", "rows"),
    "events": lambda client: client.events("a"),
    "wait": lambda client: client.wait("a"),
    "upload": lambda client: client.upload("mails", "mails.jsonl"),
    "datasets": lambda client: client.datasets(),
    "dataset": lambda client: client.dataset("mails@1"),
    "keep_target": lambda client: client.keep_target("t", signature="a -> b"),
    "targets": lambda client: client.targets(),
    "target": lambda client: client.target("t"),
    "erase": lambda client: client.erase("a"),
    "erase_dataset": lambda client: client.erase_dataset("mails", with_optimizations=True),
    "erase_target": lambda client: client.erase_target("t"),
    "start_cycle": lambda client: client.start_cycle(optimizations=[]),
    "cycles": lambda client: client.cycles(),
    "cycle": lambda client: client.cycle("c"),
    "cancel_cycle": lambda client: client.cancel_cycle("c"),
    "add_schedule": lambda client: client.add_schedule(cron="0 2 * * *", cycle={}),
    "schedules": lambda client: client.schedules(),
    "schedule": lambda client: client.schedule("s"),
    "pause_schedule": lambda client: client.pause_schedule("s"),
    "resume_schedule": lambda client: client.resume_schedule("s"),
    "remove_schedule": lambda client: client.remove_schedule("s"),
    "add_webhook": lambda client: client.add_webhook("https://hooks.example.org/r"),
    "webhooks": lambda client: client.webhooks(),
    "webhook": lambda client: client.webhook("w"),
    "remove_webhook": lambda client: client.remove_webhook("w"),
    "pause_webhook": lambda client: client.pause_webhook("w"),
    "resume_webhook": lambda client: client.resume_webhook("w"),
    "ping_webhook": lambda client: client.ping_webhook("w"),
    "dead_letters": lambda client: client.dead_letters("w"),
    "redeliver": lambda client: client.redeliver("w", event="evt_1"),
    "versions": lambda client: client.versions(target="t"),
    "version": lambda client: client.version("v"),
    "version_program": lambda client: client.version_program("v"),
    "promote": lambda client: client.promote("v", if_match='"1"'),
    "rollback": lambda client: client.rollback("v"),
    "algorithms": lambda client: client.algorithms(),
    "registered_algorithms": lambda client: client.registered_algorithms(),
    "register_algorithm": lambda client: client.register_algorithm("climb", "https://a.example", secret_env="S"),
    "withdraw_algorithm": lambda client: client.withdraw_algorithm("climb"),
    "lessons": lambda client: client.lessons(),
    "lesson": lambda client: client.lesson("a"),
    "forget_lesson": lambda client: client.forget_lesson("a"),
    "experiments": lambda client: client.experiments(),
    "experiment": lambda client: client.experiment("e"),
    "plan_experiment": lambda client: client.plan_experiment(target="t", arms=[]),
    "performance": lambda client: client.performance(target="t", window="day"),
    "verify_audit": lambda client: client.verify_audit(expected="0" * 64),
    "create_key": lambda client: client.create_key("ci", role="viewer", days=30, requests_per_minute=10),
    "keys": lambda client: client.keys(),
    "revoke_key": lambda client: client.revoke_key("k"),
    "audit": lambda client: client.audit(),
    "ask": lambda client: client.ask(call("GET", "openapi.json")),
}


class Recorder:
    """Answers everything, and remembers what was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str, bytes]] = []

    def __call__(self, asked: httpx.Request) -> httpx.Response:
        self.asked.append((asked.method, asked.url.raw_path.decode(), asked.content))
        return httpx.Response(200, json={"items": [{"id": "a"}], "next": None, "status": "cancelled"})

    async def awaited(self, asked: httpx.Request) -> httpx.Response:
        await asked.aread()
        return self(asked)


async def test_both_clients_ask_the_same_for_every_method(mails: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(mails.parent)
    public = {name for name in dir(Client) if not name.startswith("_")} - {"close"}
    assert public == set(ASKS) == {name for name in dir(AsyncClient) if not name.startswith("_")} - {"close"}
    for ask in ASKS.values():
        waited, awaited = Recorder(), Recorder()
        with Client(key="k", transport=httpx.MockTransport(waited)) as client:
            answer = ask(client)
            answer = list(answer) if isinstance(answer, Iterator) else answer
        async with AsyncClient(key="k", transport=httpx.MockTransport(awaited.awaited)) as client:
            told = ask(client)
            told = [each async for each in told] if isinstance(told, AsyncIterator) else await told
        assert answer == told
        assert waited.asked == awaited.asked
        assert waited.asked


def test_every_route_has_a_method(served: ServingThread, mails: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(mails.parent)
    recorder = Recorder()
    with Client(key="k", transport=httpx.MockTransport(recorder)) as client:
        for ask in ASKS.values():
            answer = ask(client)
            _ = list(answer) if isinstance(answer, Iterator) else answer
    asked = {(method, path.partition("?")[0]) for method, path, _ in recorder.asked}
    for template, methods in create_app(served.desk).openapi()["paths"].items():
        for method in methods:
            if template.startswith(PREFIX):
                pattern = re.sub(r"\{\w+\}", "[^/]+", template)
                assert any(each == method.upper() and re.fullmatch(pattern, path) for each, path in asked), template


def test_algorithms_experiments_and_figures_are_asked_for(served: ServingThread) -> None:
    with Client(served.url, key=served.key) as client:
        assert "gepa" in {each["name"] for each in client.algorithms()}
        assert client.performance(window="month")["figures"] == []
        assert list(client.experiments()) == list(client.registered_algorithms()) == list(client.versions()) == []
        with pytest.raises(RatchetError, match="RATCHET_ALGORITHM_HOSTS"):
            client.register_algorithm("climb", "https://algorithms.example.com/climb")
        with pytest.raises(Missing):
            client.plan_experiment(target="none", arms=[{"version": None, "share": 0.5}] * 2)


def test_files_of_an_optimization_come_as_they_are(served: ServingThread, mails: Path) -> None:
    with Client(served.url, key=served.key) as client:
        client.upload("mails", mails)
        job = client.optimize(**request())["id"]
        served.desk.jobs.keep_file(job, "report.html", "<p>é</p>".encode())
        assert client.report(job) == "<p>é</p>".encode()
        assert [each["name"] for each in client.datasets()] == ["mails"]
        assert client.dataset("mails@1")["rows"] == 60
        assert list(client.candidates(job)) == list(client.evaluations(job)) == list(client.targets()) == []
        assert [entry["action"] for entry in client.audit()][-1] == "key.create"
        assert client.optimization(job)["request"]["options"]["max_calls"] == 300


# --- what may be tried again ------------------------------------------------------------------------------------------


def answering(*answers: httpx.Response | Exception) -> tuple[Client, list[httpx.Request]]:
    """A client whose server gives these answers in turn, and what it was asked."""
    left, asked = list(answers), []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request)
        found = left.pop(0)
        if isinstance(found, Exception):
            raise found
        return found

    return Client(key="k", retry_seconds=(0.0, 0.0, 0.0), transport=httpx.MockTransport(answer)), asked


@pytest.mark.parametrize("lost", [httpx.ReadTimeout("slow"), httpx.Response(502), httpx.Response(504)])
def test_what_is_not_repeatable_is_not_sent_again_when_it_may_have_been_done(lost: httpx.Response | Exception) -> None:
    client, asked = answering(lost, httpx.Response(200, json={}))
    with client, pytest.raises(StorageUnavailable):
        client.rollback("v")
    assert len(asked) == 1


@pytest.mark.parametrize("refused", [httpx.ConnectError("no"), httpx.Response(503), httpx.Response(429)])
def test_what_is_not_repeatable_is_sent_again_when_it_cannot_have_been_done(
    refused: httpx.Response | Exception,
) -> None:
    client, asked = answering(refused, httpx.Response(200, json={"target": "t"}))
    with client:
        assert client.rollback("v") == {"target": "t"}
    assert len(asked) == 2


def test_a_file_is_sent_whole_again(mails: Path) -> None:
    client, asked = answering(httpx.ReadError("gone"), httpx.Response(502), httpx.Response(201, json={"rows": 60}))
    with client:
        assert client.upload("mails", mails) == {"rows": 60}
    assert [each.read() for each in asked][1:] == [mails.read_bytes()] * 2


def test_a_server_is_left_alone_for_as_long_as_it_asks() -> None:
    client, asked = answering(
        httpx.Response(429, headers={"Retry-After": "1"}),
        httpx.Response(200, json={"id": "a"}),
        httpx.Response(429, headers={"Retry-After": "3600"}, json={"detail": "an hour"}),
    )
    with client:
        began = time.monotonic()
        assert client.optimization("a") == {"id": "a"}
        assert time.monotonic() - began >= 1
        with pytest.raises(TooMany, match="an hour"):
            client.optimization("a")
    assert len(asked) == 3


def test_an_answer_that_is_no_problem_document_is_an_error_all_the_same() -> None:
    client, _ = answering(
        httpx.Response(500, text="<html>"),
        httpx.Response(404, json={"detail": "Not Found"}),
        httpx.Response(
            422, json={"detail": "no", "errors": [{"field": "data", "value": 1, "remedy": "x", "message": 2}]}
        ),
    )
    with client:
        with pytest.raises(RatchetError, match="answered 500"):
            client.optimization("a")
        with pytest.raises(Missing, match="older than this client"):
            list(client.versions())
        with pytest.raises(BadRequest, match="no") as refused:
            client.optimize()
        assert refused.value.values == {"status": 422, "field": "data", "value": 1, "remedy": "x"}


def stream(*sequences: int, kind: str = "evaluated") -> httpx.Response:
    lines = [f"data: {json.dumps({'sequence': each, 'at': '', 'kind': kind, 'payload': {}})}\n\n" for each in sequences]
    return httpx.Response(200, text=": nothing new\n\n" + "".join(lines))


def test_a_stream_goes_on_behind_what_was_heard_through_refusals_and_silence() -> None:
    client, asked = answering(
        stream(1, 2),
        httpx.Response(200, json={"status": "running"}),
        httpx.Response(503),
        httpx.ReadError("gone"),
        stream(3),
        httpx.Response(200, json={"status": "running"}),
        stream(4, kind="ended"),
        httpx.Response(200, json={"status": "failed"}),
    )
    with client:
        assert [event.sequence for event in client.events("a")] == [1, 2, 3, 4]
    assert [each.url.params.get("after") for each in asked] == ["0", None, "2", "2", "2", None, "3", None]


def test_a_stream_behind_the_last_event_ends_at_once() -> None:
    client, asked = answering(stream(), httpx.Response(200, json={"status": "improved"}))
    with client:
        assert list(client.events("a", after=9)) == []
    assert len(asked) == 2


def test_a_last_word_of_before_a_resume_is_not_the_last() -> None:
    client, _ = answering(
        stream(1, kind="ended"),
        httpx.Response(200, json={"status": "running"}),
        stream(2, kind="ended"),
        httpx.Response(200, json={"status": "improved"}),
    )
    with client:
        assert [event.sequence for event in client.events("a")] == [1, 2]

"""The client says what the server says, tries again what may be tried again, and loses no event."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from ratchet import AsyncClient, Client
from ratchet.core.errors import BadRequest, Conflict, Denied, Missing, StorageUnavailable
from ratchet.testing_service import actor, data, request
from ratchet.testing_serving import ServingThread


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


def test_a_server_that_is_not_there_is_told() -> None:
    def answer(asked: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("no route")

    with Client(key="k", retry_seconds=(0.0, 0.0), transport=httpx.MockTransport(answer)) as client:
        for ask in (lambda: client.status("a"), lambda: list(client.events("a"))):
            with pytest.raises(StorageUnavailable, match="cannot be reached"):
                ask()

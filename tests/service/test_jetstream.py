"""Events on NATS JetStream, with a real server that is killed."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import nats
import pytest
from nats.js.api import ConsumerConfig, DeliverPolicy, StreamConfig

from ratchet.bootstrap import new_courier
from ratchet.courier import Courier
from ratchet.engine.archive import Event
from ratchet.testing.nats import NatsServer
from ratchet.testing.service import House


@pytest.fixture
def server(tmp_path: Path) -> Iterator[NatsServer]:
    with NatsServer(tmp_path / "jetstream") as server:
        yield server


async def published(server: NatsServer) -> list[tuple[str, str, dict[str, Any]]]:
    """Subject, message id and event of what the stream holds and gives within a while, in order."""
    client = await nats.connect(server.url)
    stream = client.jetstream()
    try:
        count = (await stream.stream_info("RATCHET")).state.messages
    except nats.js.errors.NotFoundError:
        count = 0
    found: list[tuple[str, str, dict[str, Any]]] = []
    if count:
        config = ConsumerConfig(deliver_policy=DeliverPolicy.ALL)
        reader = await stream.pull_subscribe("ratchet.>", stream="RATCHET", config=config)
        with suppress(nats.errors.TimeoutError):  # a server that was just started may take its time
            while len(found) < count:
                for message in await reader.fetch(count - len(found), timeout=5):
                    assert message.headers is not None
                    found.append((message.subject, message.headers["Nats-Msg-Id"], json.loads(message.data)))
                    await message.ack()
    await client.close()
    return found


async def until(server: NatsServer, n: int) -> list[tuple[str, str, dict[str, Any]]]:
    end = time.monotonic() + 20
    while len(found := await published(server)) < n:
        assert time.monotonic() < end, found
    return found


def begin(house: House) -> str:
    house.upload()
    return str(house.optimize().json()["id"])


def note(house: House, job: str, *kinds: str) -> None:
    notebook = house.desk.archive.open(job)
    for kind in kinds:
        notebook.note(Event(kind=kind, payload={"kind": kind}))
    notebook.flush()


def started(house: House, server: NatsServer) -> Courier:
    house.desk.settings.nats_url = server.url
    courier = new_courier(house.desk, house.desk.settings, say=lambda line: None)
    courier.start()
    return courier


async def test_events_are_published_in_order_and_survive_a_server_that_is_killed(
    house: House, server: NatsServer
) -> None:
    courier = started(house, server)
    jobs = [begin(house), begin(house)]
    for job in jobs:
        note(house, job, "begun", "best")
    before = await until(server, 7)
    server.kill()
    for job in jobs:
        note(house, job, "evaluated", "done", "ended")
    time.sleep(0.7)
    server.start()
    house.clock.now = house.clock.now.replace(year=2027)  # so that nothing waits for its next try
    found = await until(server, 11)
    courier.close()
    assert found[: len(before)] == before
    assert len({identity for _, identity, _ in found}) == len(found)
    for job in jobs:
        mine = [event for _, _, event in found if event["subject"] == job]
        assert [int(event["sequence"]) for event in mine] == [1, 2, 3, 4, 6]
    assert {subject for subject, _, event in found if event["subject"] == jobs[0]} == {
        f"ratchet.default.optimization.{kind}" for kind in ("queued", "begun", "best", "evaluated", "None")
    }
    assert ("ratchet.default.dataset.created", "mails@1") in {
        (subject, event["subject"]) for subject, _, event in found
    }


async def test_an_event_that_is_sent_twice_is_kept_once(house: House, server: NatsServer) -> None:
    courier = started(house, server)
    job = begin(house)
    note(house, job, "begun")
    before = await until(server, 3)
    courier.close()
    desk = house.desk
    with desk.archive.transaction() as connection:
        desk.outbox.end(connection, "nats")  # as if nothing had been kept of what was sent
        desk.outbox.begin(connection, "nats", None, ["*"])
        connection.exec_driver_sql("UPDATE outlets SET since_place = 0, place = 0")
    courier = started(house, server)
    note(house, job, "best")
    found = await until(server, 4)
    courier.close()
    assert found[:3] == before
    assert [event["type"] for _, _, event in found[3:]] == ["ratchet.optimization.best"]


async def test_a_stream_that_takes_the_subjects_already_is_used(house: House, server: NatsServer) -> None:
    client = await nats.connect(server.url)
    await client.jetstream().add_stream(StreamConfig(name="RATCHET", subjects=["ratchet.default.>"], max_msgs=1))
    await client.close()
    courier = started(house, server)
    begin(house)
    await until(server, 1)
    courier.close()
    client = await nats.connect(server.url)
    assert (await client.jetstream().stream_info("RATCHET")).config.max_msgs == 1
    await client.close()

"""Events in order, from wherever a listener left off."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from typing import Any

import pytest
from starlette.testclient import WebSocketDenialResponse

from ratchet.engine.archive import Event
from ratchet.service.live import AT_ONCE, Pulse, follow
from ratchet.testing.service import House, actor


def begun(house: House) -> str:
    house.upload()
    return str(house.optimize().json()["id"])


def note(house: House, job: str, n: int, *, first: int = 0) -> None:
    notebook = house.desk.archive.open(job)
    for number in range(first, first + n):
        notebook.note(Event(kind="evaluated", payload={"n": number}))
    notebook.flush()


def end(house: House, job: str) -> None:
    house.desk.stop(actor(), job, "cancel")


def of_stream(text: str) -> list[dict[str, Any]]:
    """Events of an event stream."""
    found = []
    for block in text.split("\n\n"):
        lines = dict(line.split(": ", 1) for line in block.splitlines() if not line.startswith(":"))
        if lines:
            event = json.loads(lines["data"])
            assert (str(event["sequence"]), event["kind"]) == (lines["id"], lines["event"])
            found.append(event)
    return found


def test_a_stream_tells_everything_and_ends_with_the_optimization(house: House) -> None:
    job = begun(house)
    note(house, job, 2 * AT_ONCE + 10)
    end(house, job)
    events = of_stream(house.ask("GET", f"/api/v1/optimizations/{job}/events").text)
    assert [event["sequence"] for event in events] == list(range(1, 2 * AT_ONCE + 13))
    assert [event["kind"] for event in events[:2]] == ["queued", "evaluated"]
    assert (events[-1]["kind"], events[-1]["payload"]["status"]) == ("ended", "cancelled")


@pytest.mark.parametrize("way", ["after", "Last-Event-ID"])
def test_whoever_comes_back_gets_what_they_have_not_seen(house: House, way: str) -> None:
    job = begun(house)
    note(house, job, 20)
    end(house, job)
    address = f"/api/v1/optimizations/{job}/events"
    asked: dict[str, Any] = {"params": {"after": 7}} if way == "after" else {"headers": {"Last-Event-ID": "7"}}
    assert [event["sequence"] for event in of_stream(house.ask("GET", address, **asked).text)] == list(range(8, 23))
    with house.client.websocket_connect(
        f"/ws/optimizations/{job}?after=7", headers={"X-API-Key": house.keys["default", "viewer"]}
    ) as socket:
        assert [socket.receive_json()["sequence"] for _ in range(15)] == list(range(8, 23))
        assert socket.receive()["code"] == 1000


def test_what_happens_while_somebody_listens_is_told_at_once(house: House) -> None:
    job = begun(house)
    with house.client.websocket_connect(
        f"/ws/optimizations/{job}", headers={"Authorization": f"Bearer {house.keys['default', 'viewer']}"}
    ) as socket:
        assert socket.receive_json()["kind"] == "queued"
        for number in range(5):
            note(house, job, 1, first=number)
            began = time.monotonic()
            assert socket.receive_json()["payload"] == {"n": number}
            assert time.monotonic() - began < 1.5  # a pulse; well below the patience of a listener that sleeps through
        end(house, job)
        assert socket.receive_json()["kind"] == "ended"


def test_many_listeners_slow_ones_too_get_all_in_order_while_writers_write(house: House) -> None:
    job = begun(house)
    other = str(house.optimize(seed=1).json()["id"])
    n, pulse = 400, Pulse(house.desk)

    def write() -> None:
        for number in range(n // 20):
            note(house, job, 20, first=20 * number)
            note(house, other, 3)
        end(house, job)

    async def listen(pause: float, after: int) -> list[int]:
        seen = []
        async for told in follow(house.desk, pulse, tenant="default", identity=job, after=after):
            if told is not None:
                seen.append(told.sequence)
                if pause and told.sequence % 50 == 0:
                    await asyncio.sleep(pause)
        return seen

    async def all_of_them() -> list[list[int]]:
        beat = asyncio.create_task(pulse.run())
        writer = threading.Thread(target=write)
        writer.start()
        heard = await asyncio.gather(*(listen(0.05 * (number % 3), number) for number in range(12)))
        beat.cancel()
        writer.join()
        return heard

    heard = asyncio.run(all_of_them())
    for after, seen in enumerate(heard):
        assert seen == list(range(after + 1, n + 3))


def test_a_server_that_stops_lets_its_listeners_go(house: House) -> None:
    job = begun(house)
    address = f"/ws/optimizations/{job}"
    with house.client.websocket_connect(address, headers={"X-API-Key": house.keys["default", "viewer"]}) as socket:
        assert socket.receive_json()["kind"] == "queued"
        house.client.portal.call(house.client.app.state.pulse.close)  # type: ignore
        assert socket.receive()["code"] == 1012
    assert of_stream(house.ask("GET", f"/api/v1/optimizations/{job}/events").text) == []


def test_a_number_that_makes_no_sense_is_refused(house: House) -> None:
    job = begun(house)
    assert house.ask("GET", f"/api/v1/optimizations/{job}/events", params={"after": -1}).status_code == 422
    with (
        pytest.raises(WebSocketDenialResponse) as denied,
        house.client.websocket_connect(
            f"/ws/optimizations/{job}?after=-1", headers={"X-API-Key": house.keys["default", "viewer"]}
        ),
    ):
        pytest.fail("it was let in")
    assert denied.value.status_code == 422

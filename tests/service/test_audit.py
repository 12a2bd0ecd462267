"""The trail holds as it was written, and in no other way."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from ratchet.core.errors import TrailBroken
from ratchet.desk import Desk
from ratchet.storage.audit import FIRST, head, trail
from ratchet.testing.service import Clock, House, RecordingQueue, actor, desk_in

TAMPERINGS = {
    "who did it": "UPDATE audit SET who = 'nobody' WHERE number = 3",
    "when": "UPDATE audit SET at = '2020' WHERE number = 3",
    "from where": "UPDATE audit SET origin = 'elsewhere' WHERE number = 3",
    "what": "UPDATE audit SET action = 'key.read' WHERE number = 3",
    "to what": "UPDATE audit SET object = 'else' WHERE number = 3",
    "the state after": "UPDATE audit SET after = NULL WHERE number = 3",
    "whose it is": "UPDATE audit SET tenant = 'other' WHERE number = 3",
    "a hash": "UPDATE audit SET hash = 'f' WHERE number = 3",
    "an entry goes": "DELETE FROM audit WHERE number = 3",
    "the first goes": "DELETE FROM audit WHERE number = 1",
    "the last goes": "DELETE FROM audit WHERE number = 5",
    "all go": "DELETE FROM audit",
    "two change places": "UPDATE audit SET number = CASE number WHEN 2 THEN -4 WHEN 4 THEN -2 END "
    "WHERE number IN (2, 4); UPDATE audit SET number = -number WHERE number < 0",
    "one goes and the rest move up": "DELETE FROM audit WHERE number = 2; "
    "UPDATE audit SET number = -(number - 1) WHERE number > 2; UPDATE audit SET number = -number WHERE number < 0",
}


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    desk = desk_in(tmp_path, queue=RecordingQueue(), clock=Clock())
    for number in range(5):
        desk.keys.create(actor(), name=f"key {number}", tenant="default", role="viewer")
    yield desk
    desk.close()


def test_a_trail_that_nobody_touched_holds(desk: Desk) -> None:
    newest = desk.audit.verify()
    assert newest.number == 5
    assert desk.audit.verify(expected=newest.hash) == newest
    assert desk.audit.entries("default")[0].hash == newest.hash


@pytest.mark.parametrize("change", TAMPERINGS)
def test_whatever_is_changed_is_found(desk: Desk, change: str) -> None:
    with desk.archive.transaction() as connection:
        for statement in TAMPERINGS[change].split("; "):
            connection.execute(sa.text(statement))
    with pytest.raises(TrailBroken, match=r"entry \d|ends with entry \d"):
        desk.audit.verify()


def test_a_trail_that_was_written_anew_is_found_by_a_hash_that_was_noted_down(desk: Desk) -> None:
    noted = desk.audit.entries("default")[2].hash
    with desk.archive.transaction() as connection:
        connection.execute(trail.delete())
        connection.execute(head.update().values(number=0, hash=FIRST))
    desk.keys.create(actor(), name="another history", tenant="default", role="viewer")
    desk.audit.verify()
    with pytest.raises(TrailBroken, match=noted):
        desk.audit.verify(expected=noted)


def test_what_fails_leaves_no_entry(desk: Desk) -> None:
    def fails() -> None:
        with desk.audit.change(actor()) as change:
            change.note("key.create", "x", after={})
            raise KeyError("halfway")

    with pytest.raises(KeyError):
        fails()
    assert desk.audit.verify().number == 5


def test_writers_in_many_threads_make_one_chain(desk: Desk) -> None:
    def write(number: int) -> None:
        for turn in range(5):
            desk.keys.create(actor(), name=f"{number}/{turn}", tenant="default", role="viewer")

    threads = [threading.Thread(target=write, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert desk.audit.verify().number == 35


def test_every_change_over_http_is_told_with_who_what_and_where(house: House) -> None:
    house.upload()
    house.ask("POST", "/api/v1/targets", json={"name": "t", "signature": "a -> b"})
    job = house.optimize().json()["id"]
    for action in ("pause", "resume", "cancel"):
        assert house.ask("POST", f"/api/v1/optimizations/{job}/{action}").status_code == 202
    told = house.ask("GET", "/api/v1/audit", params={"limit": 6}).json()
    entries = told["items"][::-1]
    assert [(entry["action"], entry["object"]) for entry in entries] == [
        ("dataset.create", "mails@1"),
        ("target.create", "t@1"),
        ("optimization.create", job),
        ("optimization.pause", job),
        ("optimization.resume", job),
        ("optimization.cancel", job),
    ]
    for entry in entries:
        assert entry["who"].endswith("(admin)")
        assert entry["origin"] == "testclient"
    assert entries[3]["before"] != entries[3]["after"]
    older = house.ask("GET", "/api/v1/audit", params={"cursor": told["next"], "limit": 6}).json()["items"]
    assert [entry["number"] for entry in older] == [entries[0]["number"] - n for n in range(1, len(older) + 1)]

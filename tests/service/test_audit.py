"""The trail holds as it was written, and in no other way."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from ratchet.core.errors import TrailBroken
from ratchet.desk import Desk
from ratchet.storage.audit import FIRST, _seal, head, trail
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


def test_the_first_entry_that_does_not_hold_is_named(desk: Desk) -> None:
    with desk.archive.transaction() as connection:
        connection.execute(sa.text("UPDATE audit SET who = 'nobody' WHERE number IN (3, 5)"))
    with pytest.raises(TrailBroken) as broken:
        desk.audit.verify()
    assert broken.value.values == {"number": 3}


def test_an_entry_that_was_added_behind_the_last_is_found(desk: Desk) -> None:
    with desk.archive.transaction() as connection:
        last = connection.execute(trail.select().where(trail.c.number == 5)).mappings().one()
        values = {**last, "number": 6, "previous": last["hash"], "action": "key.read"}
        sealed = {**values, "hash": _seal(values)}
        connection.execute(trail.insert().values(**sealed))
    with pytest.raises(TrailBroken, match="ends with entry 6, and 5 were written") as broken:
        desk.audit.verify()
    assert broken.value.values == {"number": 6}


def test_a_trail_that_others_write_meanwhile_holds(desk: Desk) -> None:
    stop = threading.Event()

    def write() -> None:
        while not stop.is_set():
            desk.keys.create(actor(), name="busy", tenant="default", role="viewer")

    writers = [threading.Thread(target=write) for _ in range(2)]
    for writer in writers:
        writer.start()
    try:
        numbers = [desk.audit.verify().number]
        while numbers[-1] < numbers[0] + 20:
            numbers.append(desk.audit.verify().number)
    finally:
        stop.set()
        for writer in writers:
            writer.join()
    assert numbers == sorted(numbers)


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


def test_a_tenant_is_told_that_the_trail_holds_and_of_its_own_entries_alone(house: House) -> None:
    address = "/api/v1/audit/verification"
    assert house.ask("GET", address, tenant="other").json() == {
        "holds": True,
        "number": None,
        "hash": None,
        "broken": None,
        "reason": "",
    }
    house.upload()
    house.ask("POST", "/api/v1/targets", json={"name": "t", "signature": "a -> b"}, tenant="other")
    for tenant in ("default", "other"):
        newest = house.ask("GET", "/api/v1/audit", tenant=tenant).json()["items"][0]
        told = house.ask("GET", address, tenant=tenant, role="operator").json()
        assert (told["holds"], told["number"], told["hash"]) == (True, newest["number"], newest["hash"])
        assert house.ask("GET", address, params={"expected": told["hash"]}).json()["holds"]


def test_a_tenant_is_told_which_entry_does_not_hold_and_nothing_of_what_is_in_it(house: House) -> None:
    house.upload(tenant="other")
    with house.desk.archive.transaction() as connection:
        connection.execute(sa.text("UPDATE audit SET object = 'forged@1' WHERE object = 'mails@1'"))
        number = connection.execute(sa.text("SELECT number FROM audit WHERE object = 'forged@1'")).scalar()
    house.upload()
    told = house.ask("GET", "/api/v1/audit/verification")
    assert told.status_code == 200
    assert told.json() == {
        "holds": False,
        "number": None,
        "hash": None,
        "broken": number,
        "reason": f"entry {number} of the audit trail was changed",
    }


def test_a_hash_that_is_not_there_is_told_and_what_is_no_hash_refused(house: House) -> None:
    address = "/api/v1/audit/verification"
    told = house.ask("GET", address, params={"expected": "f" * 64}).json()
    assert (told["holds"], told["broken"]) == (False, None)
    assert "f" * 64 in told["reason"]
    assert house.ask("GET", address, params={"expected": "f"}).status_code == 422

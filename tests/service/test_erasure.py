"""What is erased is gone, from every file and every answer; that it was erased is told for ever."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa

from ratchet.core.errors import BadRequest, Missing, UnknownName
from ratchet.service.app import keep_forgetting
from ratchet.storage.erasure import SWEEP, Retention
from ratchet.storage.lessons import SqlLessons
from ratchet.storage.vault import data_keys
from ratchet.testing.service import House, actor, data
from ratchet.testing.vault import SECRET, fill, read, shelve

Remains = Callable[[], list[str]]


@pytest.fixture
def keys(house: House) -> Callable[[], dict[str, bytes]]:
    """The wrapped data keys there are, by owner."""

    def keys() -> dict[str, bytes]:
        with house.desk.archive.transaction() as connection:
            return {row.owner: bytes(row.wrapped) for row in connection.execute(sa.select(data_keys))}

    return keys


def stored(house: House) -> bytes:
    """All bytes of the database's files."""
    return b"".join(file.read_bytes() for file in house.desk.settings.home.glob("ratchet.db*"))


def test_an_erased_optimization_is_gone_and_the_trail_tells_of_it(
    house: House, keys: Callable[[], dict[str, bytes]]
) -> None:
    fill(house.desk.archive)
    fill(house.desk.archive, "other")
    folder = house.desk.settings.home / "runs" / "0a1b"
    folder.mkdir(parents=True)
    (folder / "report.html").write_text(SECRET)
    wrapped = keys()["optimization:0a1b"]
    assert wrapped in stored(house)
    address = "/api/v1/optimizations/0a1b"
    assert house.ask("GET", address, role="viewer").json()["reason"] == SECRET
    answer = house.ask("DELETE", address, role="operator")
    assert (answer.status_code, answer.content) == (204, b"")
    for path in ("", "/status", "/candidates", "/evaluations", "/program", "/events"):
        assert house.ask("GET", f"{address}{path}").status_code == 404
    assert house.ask("DELETE", address).status_code == 404
    assert wrapped not in stored(house)
    assert not folder.exists()
    assert "optimization:0a1b" not in keys()
    assert house.desk.archive.shared_reply("0a1b-0") is None
    with pytest.raises(UnknownName):
        SqlLessons(house.desk.archive).find("0a1b", "default")
    with pytest.raises(UnknownName):
        house.desk.archive.find("0a1b")
    entry = house.ask("GET", "/api/v1/audit", role="operator").json()["items"][0]
    assert (entry["action"], entry["object"], entry["after"]) == ("optimization.erase", "0a1b", None)
    assert "operator" in entry["who"]
    assert len(entry["before"]) == 64
    house.desk.audit.verify()
    assert house.desk.archive.find("other").error == SECRET


def test_nothing_is_erased_while_it_waits_or_is_worked_on(house: House) -> None:
    house.upload()
    job = house.optimize().json()["id"]
    address = f"/api/v1/optimizations/{job}"
    answer = house.ask("DELETE", address)
    assert answer.status_code == 409
    assert "cancel it first" in answer.json()["detail"]
    house.ask("POST", f"{address}/cancel")
    with house.desk.archive.open(job).claimed():
        assert house.ask("DELETE", address).status_code == 409
    assert house.ask("DELETE", address).status_code == 204


def test_an_idempotency_key_of_an_erased_optimization_begins_another(house: House) -> None:
    house.upload()
    headers = {"Idempotency-Key": "once"}
    job = house.optimize(headers=headers).json()["id"]
    house.ask("POST", f"/api/v1/optimizations/{job}/cancel")
    assert house.ask("DELETE", f"/api/v1/optimizations/{job}").status_code == 204
    again = house.optimize(headers=headers)
    assert again.status_code == 202
    assert again.json()["id"] != job


def test_an_erased_data_set_is_gone_and_its_number_is_not_given_again(
    house: House, keys: Callable[[], dict[str, bytes]]
) -> None:
    first = house.upload(content=data(10)).json()
    house.upload(content=data(20))
    wrapped = keys()[f"dataset:{first['id']}"]
    assert house.ask("DELETE", "/api/v1/datasets/mails@1").status_code == 204
    for reference in ("mails@1", first["id"]):
        assert house.ask("GET", f"/api/v1/datasets/{reference}").status_code == 404
    assert wrapped not in stored(house)
    assert [each["version"] for each in house.ask("GET", "/api/v1/datasets").json()["items"]] == [2]
    assert house.ask("DELETE", "/api/v1/datasets/mails").status_code == 204
    assert house.ask("GET", "/api/v1/datasets/mails").status_code == 404
    again = house.upload(content=data(20))
    assert (again.status_code, again.json()["version"]) == (201, 3)
    entry = next(e for e in house.desk.audit.entries("default") if e.action == "dataset.erase")
    assert (entry.object, entry.after) == ("mails@2", None)


def test_a_data_set_is_erased_with_all_that_was_optimized_on_it_when_asked(house: House) -> None:
    house.upload()
    house.upload("others")
    jobs = [house.optimize().json()["id"] for _ in range(2)]
    other = house.optimize(data="others").json()["id"]
    address = "/api/v1/datasets/mails@1?with_optimizations=true"
    house.ask("POST", f"/api/v1/optimizations/{jobs[0]}/cancel")
    assert house.ask("DELETE", address).status_code == 409
    assert house.ask("GET", f"/api/v1/optimizations/{jobs[0]}").status_code == 200
    house.ask("POST", f"/api/v1/optimizations/{jobs[1]}/cancel")
    assert house.ask("DELETE", address).status_code == 204
    for job in jobs:
        assert house.ask("GET", f"/api/v1/optimizations/{job}").status_code == 404
    assert house.ask("GET", f"/api/v1/optimizations/{other}").status_code == 200


def test_an_erased_target_is_gone(house: House) -> None:
    body = {"name": "sort", "signature": "a -> b"}
    target = house.ask("POST", "/api/v1/targets", json=body).json()
    assert house.ask("DELETE", f"/api/v1/targets/{target['id']}").status_code == 204
    assert house.ask("GET", "/api/v1/targets/sort").status_code == 404
    again = house.ask("POST", "/api/v1/targets", json=body)
    assert (again.status_code, again.json()["version"]) == (201, 2)


def test_what_another_process_erased_is_forgotten(house: House, tmp_path: Path) -> None:
    archive = house.desk.archive
    fill(archive)
    fill(archive, "other")
    assert archive.shared_reply("0a1b-0") is not None
    with archive.transaction() as connection:
        connection.execute(data_keys.delete().where(data_keys.c.owner == "optimization:0a1b"))
        for table in ("replies", "optimizations"):
            column = "id" if table == "optimizations" else "optimization_id"
            connection.execute(sa.text(f"DELETE FROM {table} WHERE {column} = '0a1b'"))
    archive.forget_erased()
    assert archive.shared_reply("0a1b-0") is None
    assert archive.shared_reply("other-0") is not None
    assert "optimization:0a1b" not in archive.vault.known()


async def test_a_server_without_a_worker_forgets_what_was_erased_elsewhere(house: House) -> None:
    archive = house.desk.archive
    fill(archive)
    with archive.transaction() as connection:
        connection.execute(data_keys.delete().where(data_keys.c.owner == "optimization:0a1b"))
    assert "optimization:0a1b" in archive.vault.known()
    forgetting = asyncio.create_task(keep_forgetting(archive, seconds=0.01))
    async with asyncio.timeout(5):
        while "optimization:0a1b" in archive.vault.known():
            await asyncio.sleep(0.01)
    forgetting.cancel()


def test_what_is_older_than_its_tenant_wants_is_erased(house: House) -> None:
    desk = house.desk
    fill(desk.archive)
    shelve(desk.archive)
    house.upload(tenant="other")
    kept = house.upload().json()["id"]
    waiting = house.optimize().json()["id"]
    everything = read(desk.archive)
    retention = Retention.parse("30,other=0")
    assert desk.eraser.sweep(actor(), retention, now=house.clock.now + timedelta(days=29)) == 0
    later = datetime.now(UTC) + timedelta(days=31)
    assert desk.archive.claims.take(SWEEP)
    assert desk.eraser.sweep(actor(), retention, now=later) == 0  # another process is at it
    desk.archive.claims.release(SWEEP)
    assert desk.eraser.sweep(actor(), retention, now=later) >= 2
    assert desk.eraser.sweep(actor(), retention, now=later) == 0
    with pytest.raises(Missing):
        desk.jobs.find("default", "0a1b")
    for reference in ("mails", kept):
        with pytest.raises(Missing):
            desk.shelf.dataset("default", reference)
    assert everything["target"] == desk.shelf.target("default", "sort").spec
    assert desk.shelf.dataset("other", "mails").version == 1
    assert desk.jobs.find("default", waiting).status == "queued"
    told = {entry.action for entry in desk.audit.entries("default")}
    assert "retention.erase" in told


def test_without_retention_everything_stays(house: House) -> None:
    fill(house.desk.archive)
    far = datetime.now(UTC) + timedelta(days=10_000)
    assert house.desk.eraser.sweep(actor(), Retention.parse(""), now=far) == 0
    assert house.desk.jobs.find("default", "0a1b").reason == SECRET


@pytest.mark.parametrize("text", ["x", "-1", "a=b", "a=", "1e9", "5 days"])
def test_a_retention_that_makes_no_sense_is_refused(text: str) -> None:
    with pytest.raises(BadRequest, match="RATCHET_RETENTION_DAYS"):
        Retention.parse(text)


def test_a_reader_in_the_way_only_puts_off_that_the_key_is_overwritten(
    house: House, keys: Callable[[], dict[str, bytes]]
) -> None:
    archive = house.desk.archive
    fill(archive)
    wrapped = keys()["optimization:0a1b"]
    with closing(sqlite3.connect(house.desk.settings.home / "ratchet.db")) as reader:
        rows = reader.execute("SELECT * FROM evaluations")
        rows.fetchone()
        assert house.ask("DELETE", "/api/v1/optimizations/0a1b").status_code == 204
        assert archive.unscrubbed
        rows.close()
    archive.forget_erased()
    assert not archive.unscrubbed
    assert wrapped not in stored(house)

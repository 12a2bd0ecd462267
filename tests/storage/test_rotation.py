"""A rotation loses nothing: not beside writers, not killed, not on PostgreSQL."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
import sqlalchemy as sa

from ratchet.core.errors import Conflict, KeyUnavailable
from ratchet.engine.archive import Event, Optimization
from ratchet.storage.audit import Audit
from ratchet.storage.ring import KeyRing, new_master
from ratchet.storage.rotation import Rotation
from ratchet.storage.sql import SqlArchive
from ratchet.storage.vault import data_keys
from ratchet.testing.postgres import PostgresServer, a_postgres, programs
from ratchet.testing.service import Clock, actor
from ratchet.testing.vault import SECRET, fill, read, shelve

KINDS = ["sqlite", *(["postgresql"] if programs() is not None else [])]
Opened = Callable[..., SqlArchive]


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer | None]:
    if programs() is None:
        yield None
        return
    with a_postgres() as server:
        yield server


@pytest.fixture(params=KINDS)
def url(request: pytest.FixtureRequest, tmp_path: Path, server: PostgresServer | None) -> str:
    if request.param == "sqlite" or server is None:
        return f"sqlite:///{tmp_path / 'ratchet.db'}"
    engine = sa.create_engine(server.url, isolation_level="AUTOCOMMIT")
    name = f"test_{abs(hash(tmp_path)) % 10**9}"
    with engine.connect() as connection:
        connection.exec_driver_sql(f"CREATE DATABASE {name}")
    engine.dispose()
    return server.url.replace("/postgres", f"/{name}")


@pytest.fixture
def opened(url: str, tmp_path: Path) -> Iterator[Opened]:
    archives: list[SqlArchive] = []

    def opened(ring: KeyRing | None = None) -> SqlArchive:
        archives.append(SqlArchive(url, ring=ring or KeyRing(file=tmp_path / "master.keys")))
        return archives[-1]

    yield opened
    for archive in archives:
        archive.close()


def rotation_of(archive: SqlArchive) -> Rotation:
    return Rotation(archive, Audit(archive, clock=Clock()))


def begin(archive: SqlArchive, name: str) -> None:
    request = {"options": {}, "secret": SECRET}
    archive.start(Optimization(id=name, status="running", created_at=datetime.now(UTC), request=request))


def test_everything_is_under_the_new_key_and_is_read_as_before(opened: Opened) -> None:
    archive, other = opened(), opened()
    fill(archive)
    shelve(archive)
    before, rotation = read(other), rotation_of(archive)
    old = rotation.status()[0]
    assert rotation.rotate(actor()) == old.data_keys == 5
    new, left = rotation.status()
    assert (new.data_keys, new.first, left.id, left.data_keys, left.here) == (5, True, old.id, 0, True)
    fill(other, "later")  # by a process that was there before
    assert rotation.status()[0].data_keys == 6
    rotation.drop(actor(), old.id)
    assert read(opened()) == read(other) == before
    assert [use.id for use in rotation.status()] == [new.id]
    audit = Audit(archive, clock=Clock())
    told = [entry.action for entry in audit.entries("default") if entry.action.startswith("vault")]
    assert told == ["vault.drop_master", "vault.rotate", "vault.new_master"]
    audit.verify()


def test_a_master_key_that_something_hangs_on_is_not_dropped(opened: Opened) -> None:
    archive = opened()
    fill(archive)
    rotation = rotation_of(archive)
    with pytest.raises(Conflict, match="older"):
        rotation.drop(actor(), "nothing")
    old = rotation.status()[0]
    assert archive.vault.ring is not None
    archive.vault.ring.put_first(new_master())
    with pytest.raises(Conflict, match=f"2 data keys are under the master key {old.id}; `ratchet vault rotate`"):
        rotation.drop(actor(), old.id)


def test_an_interrupted_rotation_is_finished_before_a_new_key_is_made(opened: Opened) -> None:
    archive = opened()
    fill(archive)
    assert archive.vault.ring is not None
    archive.vault.ring.put_first(new_master())
    rotation = rotation_of(archive)
    assert rotation.rotate(actor()) == 2
    assert [use.data_keys for use in rotation.status()] == [2, 0]


def test_keys_in_the_environment_are_rotated_when_a_new_one_stands_first(opened: Opened) -> None:
    a, b = ("a:" + "A" * 43 + "="), ("b:" + "B" * 43 + "=").replace("B=", "A=")
    fill(opened(KeyRing(a)))
    with pytest.raises(Conflict, match="put a new one before it"):
        rotation_of(opened(KeyRing(a))).rotate(actor())
    assert rotation_of(opened(KeyRing(f"{b},{a}"))).rotate(actor()) == 2
    assert opened(KeyRing(b)).find("0a1b").error == SECRET
    use = rotation_of(opened(KeyRing(a))).status()[-1]
    assert (use.id, use.here, use.data_keys) == ("b", False, 2)
    with pytest.raises(KeyUnavailable, match=r"2 data keys are under the master key b .*not in RATCHET_KEYS"):
        rotation_of(opened(KeyRing(a))).rotate(actor())


def test_a_rotation_beside_writers_loses_nothing(opened: Opened) -> None:
    writers, stop = 3, threading.Event()
    written: dict[int, list[str]] = {number: [] for number in range(writers)}
    failed: list[BaseException] = []

    def write(number: int, archive: SqlArchive) -> None:
        try:
            while not stop.is_set():
                name = f"w{number}n{len(written[number])}"
                begin(archive, name)
                notebook = archive.open(name)
                for _ in range(5):
                    notebook.note(Event(kind="said", payload={"text": SECRET}))
                notebook.set_status("failed", error=SECRET)
                written[number].append(name)
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=write, args=(number, opened())) for number in range(writers)]
    for thread in threads:
        thread.start()
    rotation = rotation_of(opened())
    for _ in range(4):
        time.sleep(0.15)
        rotation.rotate(actor())
    stop.set()
    for thread in threads:
        thread.join()
    assert failed == []
    rotation.rotate(actor())
    for use in rotation.status()[1:]:
        if use.data_keys == 0:
            rotation.drop(actor(), use.id)
    fresh = opened()
    names = [name for some in written.values() for name in some]
    assert len(names) >= 10
    for name in names:
        assert fresh.find(name).error == SECRET
        assert [event.payload for _, event in fresh.open(name).events()] == [{"text": SECRET}] * 5


ROTATE = """
import sys
from datetime import UTC, datetime
from pathlib import Path
from ratchet.core.access import Actor
from ratchet.storage import rotation
from ratchet.storage.audit import Audit
from ratchet.storage.ring import KeyRing
from ratchet.storage.sql import SqlArchive
rotation.AT_ONCE = 5
archive = SqlArchive(sys.argv[1], ring=KeyRing(file=Path(sys.argv[2])))
print("ready", flush=True)
somebody = Actor(name="a", tenant="default", role="admin", origin="a test")
rotation.Rotation(archive, Audit(archive, clock=lambda: datetime.now(UTC))).rotate(somebody)
"""


@pytest.mark.parametrize("url", ["sqlite"], indirect=True)
def test_a_rotation_that_is_killed_goes_on_where_it_was(opened: Opened, url: str, tmp_path: Path) -> None:
    archive, names = opened(), [f"n{number:03}" for number in range(80)]
    for name in names:
        begin(archive, name)
    rotation = rotation_of(archive)
    before = rotation.status()[0]
    in_the_midst = 0
    for _ in range(2):
        command = [sys.executable, "-c", ROTATE, url, str(tmp_path / "master.keys")]
        process = subprocess.Popen(command, stdout=subprocess.PIPE)
        assert process.stdout is not None
        process.stdout.readline()
        while process.poll() is None:
            with archive.transaction() as connection:
                left = connection.execute(
                    sa.select(sa.func.count()).select_from(data_keys).where(data_keys.c.master == before.id)
                ).scalar_one()
            if left < 60:
                break
        process.kill()
        process.communicate()
        in_the_midst += any(use.data_keys for use in rotation.status()[1:])
        fresh = opened()
        assert all(fresh.find(name).request["secret"] == SECRET for name in names)
    assert in_the_midst > 0
    assert sum(use.data_keys for use in rotation.status()) == len(names)
    rotation.rotate(actor())
    if rotation.status()[0].data_keys == 0:  # that one made a new key
        rotation.rotate(actor())
    first, *older = rotation.status()
    assert first.data_keys == len(names)
    for use in older:
        rotation.drop(actor(), use.id)
    fresh = opened()
    assert all(fresh.find(name).request["secret"] == SECRET for name in names)

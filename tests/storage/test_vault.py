"""In the database what is private is encrypted, and nobody changes, moves or replaces it unseen."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from ratchet.core.errors import KeyUnavailable, StorageUnavailable, Tampered
from ratchet.storage.audit import Audit
from ratchet.storage.jobs import files
from ratchet.storage.privacy import PseudonymKeys
from ratchet.storage.ring import KeyRing, new_master
from ratchet.storage.rotation import TEXTS, Rotation
from ratchet.storage.shelf import parts
from ratchet.storage.sql import SqlArchive
from ratchet.storage.texts import Texts
from ratchet.storage.vault import data_keys
from ratchet.testing.service import Clock, actor
from ratchet.testing.vault import SECRET, age, fill, leaks, read, reply, shelve

Opened = Callable[..., SqlArchive]


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Opened]:
    archives: list[SqlArchive] = []

    def opened(*, ring: KeyRing | None = None, plain: bool = False) -> SqlArchive:
        chosen = None if plain else ring or KeyRing(file=tmp_path / "master.keys")
        archives.append(SqlArchive(f"sqlite:///{tmp_path / 'ratchet.db'}", ring=chosen))
        return archives[-1]

    yield opened
    for archive in archives:
        archive.close()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a filled database."""
    folder = tmp_path_factory.mktemp("filled")
    archive = SqlArchive(f"sqlite:///{folder / 'ratchet.db'}", ring=KeyRing(file=folder / "master.keys"))
    fill(archive)
    shelve(archive)
    archive.close()
    return folder


@pytest.fixture
def filled(opened: Opened, whole: Path, tmp_path: Path) -> SqlArchive:
    """A copy of it."""
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    return opened()


def change(archive: SqlArchive, table: sa.Table, **values: Any) -> None:
    """Behind our back."""
    with archive.transaction() as connection:
        connection.execute(table.update().values(**values))


def test_nothing_private_is_in_the_files_and_all_of_it_comes_back(opened: Opened, tmp_path: Path) -> None:
    archive = opened()
    fill(archive)
    shelve(archive)
    assert leaks(tmp_path) == []
    archive.close()
    assert leaks(tmp_path) == []
    found = read(opened())
    assert all(SECRET in str(value) for value in found.values()), found


def test_without_master_keys_it_is_in_the_files(opened: Opened, tmp_path: Path) -> None:
    """So that the test above could fail."""
    archive = opened(plain=True)
    fill(archive)
    archive.close()
    assert leaks(tmp_path) == [str(tmp_path / "ratchet.db")]


def place(texts: Texts) -> str:
    return f"{texts.table.name}.{texts.into}"


@pytest.mark.parametrize("texts", TEXTS, ids=place)
def test_private_texts_that_were_changed_are_noticed(opened: Opened, filled: SqlArchive, texts: Texts) -> None:
    with filled.transaction() as connection:
        stored = connection.execute(sa.select(texts.table.c[texts.into])).scalars().first()
    assert stored is not None
    change(filled, texts.table, **{texts.into: stored[:-1] + bytes([stored[-1] ^ 1])})
    with pytest.raises(Tampered, match=f"{texts.table.name}.*was changed or moved"):
        read(opened())


@pytest.mark.parametrize("texts", TEXTS, ids=place)
def test_plain_text_in_place_of_an_envelope_is_noticed(opened: Opened, filled: SqlArchive, texts: Texts) -> None:
    for values in ({texts.into: b"{}"}, {texts.into: None, texts.names[0]: "{}"}):
        change(filled, texts.table, **values)
        with pytest.raises(Tampered, match=f"{texts.table.name}.*plain text"):
            read(opened())


@pytest.mark.parametrize(
    "texts", [each for each in TEXTS if each.table.name in ("examples", "replies", "events")], ids=place
)
def test_an_envelope_that_was_moved_to_another_row_is_noticed(opened: Opened, filled: SqlArchive, texts: Texts) -> None:
    with filled.transaction() as connection:
        stored = connection.execute(sa.select(texts.table.c[texts.into])).scalars().first()
    change(filled, texts.table, **{texts.into: stored})
    with pytest.raises(Tampered, match="was changed or moved"):
        read(opened())


def test_an_envelope_of_another_optimization_is_noticed(opened: Opened) -> None:
    archive = opened()
    fill(archive, "one")
    fill(archive, "two")
    shelve(archive)
    with archive.transaction() as connection:
        stored = connection.execute(sa.select(files.c.content).where(files.c.optimization_id == "two")).scalars().one()
    change(archive, files, content=stored)
    assert read(archive, "two")["file"] == SECRET
    with pytest.raises(Tampered, match=r"files\.content/program\.json of optimization:one"):
        read(archive, "one")


@pytest.mark.parametrize("table", [files, parts])
def test_files_and_rows_of_data_sets_that_were_changed_are_noticed(filled: SqlArchive, table: sa.Table) -> None:
    for content, what in ((b"{}", "plain text"), (b"\xa1" + bytes(40), "changed or moved")):
        change(filled, table, content=content)
        with pytest.raises(Tampered, match=what):
            read(filled)


def test_a_wrapped_key_that_was_changed_is_noticed(opened: Opened) -> None:
    fill(opened())
    shelve(opened())
    for values in ({"tenant": "other"}, {"whole": 0}, {"wrapped": b"\xa1" + bytes(60)}):
        archive = opened()
        change(archive, data_keys, **values)
        with pytest.raises(Tampered, match="wrapped key of optimization:0a1b"):
            archive.find("0a1b")


def test_a_lost_or_wrong_master_key_is_named_with_the_remedy(opened: Opened, tmp_path: Path) -> None:
    archive = opened()
    fill(archive)
    assert archive.vault.ring is not None
    master = archive.vault.ring.first
    (tmp_path / "master.keys").rename(tmp_path / "away")
    with pytest.raises(KeyUnavailable, match=r"master\.keys, is not there; put it back"):
        opened()
    other = KeyRing("other:" + "A" * 43 + "=")
    with pytest.raises(KeyUnavailable, match=f"optimization:0a1b is under the master key {master.id}.*put it back"):
        opened(ring=other).find("0a1b")
    with pytest.raises(StorageUnavailable):  # so a worker waits for the key, and fails nothing
        opened(ring=KeyRing(f"{master.id}:" + "A" * 43 + "=")).find("0a1b")
    with pytest.raises(KeyUnavailable, match="no master key was given"):
        opened(plain=True).find("0a1b")
    (tmp_path / "away").rename(tmp_path / "master.keys")
    assert opened().find("0a1b").error == SECRET


def test_a_data_key_that_is_gone_leaves_nothing_to_read(opened: Opened) -> None:
    archive = opened()
    fill(archive)
    with archive.transaction() as connection:
        connection.execute(data_keys.delete())
    with pytest.raises(KeyUnavailable, match="its data key is not in this database"):
        opened().find("0a1b")


def test_others_may_keep_texts_of_their_own(opened: Opened, tmp_path: Path) -> None:
    archive = opened()
    sealed = archive.vault.seal("webhook:1", SECRET, "outbox.payload/17", tenant="default")
    assert SECRET.encode() not in sealed
    assert opened().vault.open("webhook:1", sealed, "outbox.payload/17") == SECRET
    with pytest.raises(Tampered):
        archive.vault.open("webhook:1", sealed, "outbox.payload/18")


def test_a_database_from_before_is_read_gone_on_with_and_then_encrypted(opened: Opened, tmp_path: Path) -> None:
    archive = opened(plain=True)
    fill(archive)
    shelve(archive)
    before = read(archive)
    age(archive)
    archive.close()
    archive = opened()
    assert read(archive) == before
    fill(archive, "new")
    archive.open("0a1b").journal.record(reply("k0"), shared="0a1b-0")
    archive.open("0a1b").flush()
    assert leaks(tmp_path)
    rotation = Rotation(archive, Audit(archive, clock=Clock()))
    assert rotation.encrypt(actor()) > 10
    assert rotation.encrypt(actor()) == 0
    assert read(archive) == read(opened()) == before
    archive.close()
    assert leaks(tmp_path) == []
    archive = opened()
    change(archive, TEXTS[0].table, sealed_request=None, request="{}")
    with pytest.raises(Tampered, match="plain text"):
        archive.find("0a1b")


def test_what_is_being_worked_on_is_encrypted_later(opened: Opened) -> None:
    archive = opened(plain=True)
    fill(archive)
    age(archive)
    archive = opened()
    rotation = Rotation(archive, Audit(archive, clock=Clock()))
    with opened().open("0a1b").claimed():
        assert rotation.encrypt(actor()) == 1  # the lesson
    assert rotation.encrypt(actor()) > 10


def test_a_new_process_takes_the_newest_master_key(opened: Opened, tmp_path: Path) -> None:
    archive = opened()
    master = new_master()
    KeyRing(file=tmp_path / "master.keys").put_first(master)
    fill(archive)
    with archive.transaction() as connection:
        assert set(connection.execute(sa.select(data_keys.c.master)).scalars()) == {master.id}


def test_the_keys_of_pseudonyms_are_sealed_too(opened: Opened, tmp_path: Path) -> None:
    key = PseudonymKeys(opened()).key("default", "mails")
    stored = b"".join(file.read_bytes() for file in tmp_path.glob("ratchet.db*"))
    assert key not in stored
    assert key.hex().encode() not in stored
    assert PseudonymKeys(opened()).key("default", "mails") == key

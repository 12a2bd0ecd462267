"""Every archive keeps the promises of an archive."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from ratchet.core.errors import BadRequest, StorageUnavailable
from ratchet.engine.archive import Archive, Event
from ratchet.storage.memory import MemoryArchive
from ratchet.storage.ring import KeyRing
from ratchet.storage.sql import SqlArchive
from ratchet.testing import ArchiveConformance


class TestMemoryArchive(ArchiveConformance):
    @pytest.fixture(autouse=True)
    def _storage(self) -> None:
        self.archive = MemoryArchive()

    def opened(self) -> Archive:
        return self.archive


class TestSqlArchive(ArchiveConformance):
    @pytest.fixture(autouse=True)
    def _storage(self, tmp_path: Path) -> Iterator[None]:
        self.url = f"sqlite:///{tmp_path}/kept/ratchet.db"
        self.archives: list[SqlArchive] = []
        yield
        for archive in self.archives:
            archive.close()

    def opened(self) -> Archive:
        self.archives.append(SqlArchive(self.url))
        return self.archives[-1]

    def test_what_one_process_holds_another_cannot(self) -> None:
        with self.begun().claimed(), pytest.raises(BadRequest, match="0a1b2c"), self.opened().open("0a1b2c").claimed():
            pytest.fail("it was held twice")

    def test_whoever_merely_looks_does_not_hide_that_rows_were_lost(self) -> None:
        notebook = self.begun()
        archive = self.archives[0]
        archive.pen.revoke("0a1b2c", StorageUnavailable("the disk is full"))
        archive.open("0a1b2c")
        with pytest.raises(StorageUnavailable, match="the disk is full"):
            notebook.note(Event(kind="late"))
        archive.open("0a1b2c", anew=True).note(Event(kind="anew"))
        assert [event.kind for _, event in notebook.events()] == ["anew"]

    def test_a_database_that_is_none_is_named(self, tmp_path: Path) -> None:
        (tmp_path / "broken.db").write_text("this is no database, and long enough to be taken for one" * 20)
        with pytest.raises(StorageUnavailable, match=r"broken\.db"):
            SqlArchive(f"sqlite:///{tmp_path}/broken.db")

    def test_a_folder_that_cannot_be_made_is_named(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("a file where a folder should be")
        with pytest.raises(StorageUnavailable, match="file/kept/locks cannot be made: Not a directory"):
            SqlArchive(f"sqlite:///{tmp_path}/file/kept/ratchet.db")


class TestSealedSqlArchive(TestSqlArchive):
    """The same promises, with everything that is private in envelopes."""

    def opened(self) -> Archive:
        ring = KeyRing(file=Path(self.url.removeprefix("sqlite:///")).parent / "master.keys")
        self.archives.append(SqlArchive(self.url, ring=ring))
        return self.archives[-1]

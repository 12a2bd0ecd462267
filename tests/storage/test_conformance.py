"""Every archive keeps the promises of an archive."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from ratchet.engine.archive import Archive
from ratchet.storage.memory import MemoryArchive
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

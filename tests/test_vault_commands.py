"""The commands about what is stored: its keys, and how it is erased."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from ratchet.bootstrap import open_archive
from ratchet.cli.app import app
from ratchet.core.errors import UnknownName
from ratchet.settings import Settings
from ratchet.storage.audit import Audit
from ratchet.storage.sql import SqlArchive
from ratchet.testing.service import Clock
from ratchet.testing.vault import SECRET, age, fill, leaks, read, shelve


@pytest.fixture
def ratchet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("RATCHET_HOME", str(tmp_path))

    def call(*words: str, code: int = 0) -> str:
        done = CliRunner().invoke(app, [*words], env={"RATCHET_DEBUG": ""})
        assert done.exit_code == code, done.output
        return done.output

    return call


def archive_in(home: Path) -> SqlArchive:
    return open_archive(Settings(home=home))


def test_keys_are_shown_rotated_and_dropped(ratchet: Any, tmp_path: Path) -> None:
    archive = archive_in(tmp_path)
    fill(archive)
    archive.close()
    old = json.loads(ratchet("vault", "status", "--json"))[0]
    assert (old["data_keys"], old["first"]) == (2, True)
    assert f"ratchet vault drop {old['id']}" in ratchet("vault", "rotate")
    assert "ratchet vault status" in ratchet("vault", "drop", "nothing", code=2)
    assert "may be dropped" in ratchet("vault", "status")
    ratchet("vault", "drop", old["id"])
    assert old["id"] not in ratchet("vault", "status")
    archive = archive_in(tmp_path)
    assert archive.find("0a1b").error == SECRET
    archive.close()


def test_a_lost_key_is_one_line_with_the_remedy(ratchet: Any, tmp_path: Path) -> None:
    archive = archive_in(tmp_path)
    fill(archive)
    archive.close()
    (tmp_path / "master.keys").unlink()
    told = ratchet("show", "0a1b", code=1)
    assert "master.keys, is not there; put it back" in told.replace("\n", " ")
    assert not (tmp_path / "master.keys").exists()


def test_a_database_from_before_is_encrypted(ratchet: Any, tmp_path: Path) -> None:
    archive = SqlArchive(f"sqlite:///{tmp_path / 'ratchet.db'}")
    fill(archive)
    shelve(archive)
    before = read(archive)
    age(archive)
    archive.close()
    assert leaks(tmp_path)
    ratchet("vault", "encrypt")
    assert leaks(tmp_path) == []
    archive = archive_in(tmp_path)
    assert read(archive) == before
    archive.close()


def test_an_optimization_is_erased_by_the_beginning_of_its_id(ratchet: Any, tmp_path: Path) -> None:
    archive = archive_in(tmp_path)
    fill(archive)
    fill(archive, "other")
    archive.close()
    assert "0a1b is erased" in ratchet("delete", "0a")
    assert "no optimization" in ratchet("delete", "0a", code=2)
    archive = archive_in(tmp_path)
    with pytest.raises(UnknownName):
        archive.find("0a1b")
    assert archive.find("other").error == SECRET
    assert "optimization.erase" in [entry.action for entry in Audit(archive, clock=Clock()).entries("default")]
    archive.close()
    assert "holds" in ratchet("audit", "verify")

"""The commands of the service, but for those that serve."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from typer.testing import CliRunner

from ratchet.cli.app import app
from ratchet.storage.sql import SqlArchive


@pytest.fixture
def ratchet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("RATCHET_HOME", str(tmp_path))

    def call(*words: str, code: int = 0) -> str:
        done = CliRunner().invoke(app, [*words], env={"RATCHET_DEBUG": ""})
        assert done.exit_code == code, done.output
        return done.stdout if code == 0 else done.output

    return call


def test_keys_are_made_listed_and_revoked(ratchet: Any) -> None:
    text = ratchet("keys", "create", "ci", "--role", "viewer", "--tenant", "lab").strip()
    assert text.startswith("rk_")
    made = json.loads(ratchet("keys", "create", "short", "--days", "1", "--json"))
    listed = json.loads(ratchet("keys", "list", "--json"))
    assert [(key["name"], key["role"], key["tenant"]) for key in listed] == [
        ("ci", "viewer", "lab"),
        ("short", "developer", "default"),
    ]
    assert text.rpartition("_")[2] not in json.dumps(listed)
    assert listed[1]["expires_at"] is not None
    ratchet("keys", "revoke", made["id"])
    assert "revoked" in ratchet("keys", "list")
    assert "nothing" in ratchet("keys", "revoke", "nothing", code=2)
    assert "viewer, developer" in ratchet("keys", "create", "x", "--role", "king", code=2)


def test_the_audit_trail_is_verified(ratchet: Any, tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        ratchet("keys", "create", name)
    head = json.loads(ratchet("audit", "verify", "--json"))
    assert head["number"] == 3
    assert head["hash"] in ratchet("audit", "verify", "--expect", head["hash"])
    archive = SqlArchive(f"sqlite:///{tmp_path / 'ratchet.db'}")
    with archive.transaction() as connection:
        connection.execute(sa.text("UPDATE audit SET who = 'nobody' WHERE number = 2"))
    archive.close()
    assert "entry 2 of the audit trail was changed" in ratchet("audit", "verify", code=1)


def test_a_public_address_without_a_key_is_refused(ratchet: Any) -> None:
    assert "ratchet keys create" in ratchet("serve", "--host", "0.0.0.0", code=2)

"""The commands for webhooks and schedules: the same on this machine and on a server."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from ratchet.cli.app import app
from ratchet.settings import Settings
from ratchet.storage.sql import SqlArchive
from ratchet.testing.service import BASE, Clock, RecordingQueue, actor, data, desk_in, request
from ratchet.testing.serving import ServingThread
from ratchet.testing.webhooks import Receiver


@pytest.fixture(params=["here", "there"])
def ratchet(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    for name, value in (("HOME", str(tmp_path)), ("WEBHOOK_ALLOW", "127.0.0.1"), ("LM_BASES", BASE)):
        monkeypatch.setenv(f"RATCHET_{name}", value)

    def call(*words: str, code: int = 0) -> str:
        done = CliRunner().invoke(app, [*words], env={"RATCHET_DEBUG": ""})
        assert done.exit_code == code, done.output
        return done.stdout if code == 0 else done.output

    if request.param == "here":
        yield call
        return
    served = ServingThread(tmp_path, webhook_allow="127.0.0.1")
    served.start()
    monkeypatch.setenv("RATCHET_SERVER", served.url)
    monkeypatch.setenv("RATCHET_API_KEY", served.key)
    yield call
    served.stop()
    served.desk.close()


def test_webhooks_are_added_listed_pinged_and_removed(ratchet: Any) -> None:
    with Receiver() as receiver:
        secret = ratchet("webhooks", "add", receiver.url, "--event", "ratchet.cycle.*").strip()
        assert secret.startswith("whsec_")
        (found,) = json.loads(ratchet("webhooks", "list", "--json"))
        assert (found["url"], found["events"], found["paused"]) == (receiver.url, ["ratchet.cycle.*"], False)
        assert found["id"] in ratchet("webhooks", "list")
        assert "arrived: 204" in ratchet("webhooks", "ping", found["id"])
        receiver.answer = lambda event: 500
        assert "it answered 500" in ratchet("webhooks", "ping", found["id"], code=1)
    assert ratchet("webhooks", "dead", found["id"]) == ""
    ratchet("webhooks", "redeliver", found["id"])
    ratchet("webhooks", "resume", found["id"])
    ratchet("webhooks", "remove", found["id"], "--tenant", "other", code=2)
    if "RATCHET_SERVER" in os.environ:
        assert "that of the key" in ratchet("webhooks", "list", "--tenant", "other", code=2)
    else:
        assert json.loads(ratchet("webhooks", "list", "--json", "--tenant", "other")) == []
    ratchet("webhooks", "remove", found["id"])
    assert json.loads(ratchet("webhooks", "list", "--json")) == []
    assert "not public" in ratchet("webhooks", "add", "https://10.0.0.1/", code=2)


def test_schedules_are_added_listed_paused_and_removed(ratchet: Any, tmp_path: Path) -> None:
    desk = desk_in(tmp_path, queue=RecordingQueue(), clock=Clock())
    assert isinstance(desk.archive, SqlArchive)
    assert Settings().home == tmp_path
    (tmp_path / "mails.jsonl").write_bytes(data())
    desk.keep_dataset(actor(), "mails", tmp_path / "mails.jsonl")
    desk.close()
    file = tmp_path / "nightly.json"
    file.write_text(json.dumps({"cron": "0 3 * * *", "optimization": request()}))
    made = json.loads(ratchet("schedules", "add", str(file), "--json"))
    (found,) = json.loads(ratchet("schedules", "list", "--json"))
    assert found == made
    ratchet("schedules", "pause", made["id"])
    assert "paused" in ratchet("schedules", "list")
    ratchet("schedules", "resume", made["id"])
    ratchet("schedules", "remove", made["id"])
    assert json.loads(ratchet("schedules", "list", "--json")) == []
    file.write_text(json.dumps({"cron": "0 3 * * *"}))
    assert "give cycle or optimization" in ratchet("schedules", "add", str(file), code=2)
    for text, told in (("{", "is no JSON"), ("[]", "is no JSON object"), ('{"cron": "0 3 * * *", "x": 1}', "x")):
        file.write_text(text)
        assert told in ratchet("schedules", "add", str(file), code=2)

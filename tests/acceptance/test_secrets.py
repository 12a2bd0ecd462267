"""What is private is in no file of the service: not in its databases, not in MLflow, not in its logs."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from ratchet.testing.lm_server import SIGNATURE, StubServer, rows
from ratchet.testing.ports import free_port
from ratchet.testing.vault import SECRET, leaks


class Server:
    """``ratchet serve`` on a free port, with its log and its temporary files below ``folder``."""

    def __init__(self, folder: Path, base: str) -> None:
        self.folder, self.base = folder, base
        self.port = free_port()
        (folder / "tmp").mkdir()
        self.log = folder / "log"
        variables = {
            "RATCHET_HOME": str(folder / "home"),
            "RATCHET_LM_BASES": base,
            "TMPDIR": str(folder / "tmp"),
            "DSPY_CACHEDIR": str(folder / "cache"),
            "PYTHONWARNINGS": "ignore",
        }
        command = [sys.executable, "-m", "ratchet", "serve", "--port", str(self.port)]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(command, env={**os.environ, **variables}, stdout=log, stderr=log)
        end = time.monotonic() + 60
        while "listening" not in self.log.read_text():
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < end
            time.sleep(0.05)
        line = next(line for line in self.log.read_text().splitlines() if "admin key" in line)
        self.key = line.split()[-1]

    def ask(self, method: str, path: str, body: bytes | None = None, kind: str = "application/json") -> Any:
        """The answer as JSON; of a problem, too."""
        asked = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", data=body, method=method)
        asked.add_header("Authorization", f"Bearer {self.key}")
        asked.add_header("Content-Type", kind)
        for _ in range(100):
            try:
                with urllib.request.urlopen(asked, timeout=30) as answer:
                    return json.loads(answer.read() or b"null")
            except urllib.error.HTTPError as problem:
                return json.loads(problem.read())
            except OSError:
                time.sleep(0.05)
        return pytest.fail("it never answered")

    def ended(self, job: str) -> Any:
        """The optimization, once it has come to rest."""
        end = time.monotonic() + 90
        while time.monotonic() < end:
            found = self.ask("GET", f"/api/v1/optimizations/{job}")
            if found["status"] not in ("queued", "running"):
                return found
            time.sleep(0.05)
        return pytest.fail(f"it stayed {found['status']}: {self.log.read_text()}")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with StubServer() as stub:
        server = Server(tmp_path, stub.base)
        yield server
        server.process.kill()
        server.process.wait()


def tracked(store: Path) -> bool:
    """Whether MLflow has the whole run."""
    if not store.exists():
        return False
    with closing(sqlite3.connect(f"file:{store}?mode=ro", uri=True)) as mlflow:
        return bool(mlflow.execute("SELECT count(*) FROM runs WHERE status = 'FINISHED'").fetchone()[0])


def test_no_secret_is_in_any_file(server: Server) -> None:
    lines = [{"text": f"{row['text']} {SECRET}", "label": row["label"]} for row in rows(80)]
    upload = "".join(json.dumps(line) + "\n" for line in lines).encode()
    server.ask("POST", "/api/v1/datasets?name=mails", upload, "application/x-ndjson")
    broken = json.dumps({"text": SECRET}).encode() + b"\n{" + SECRET.encode()
    assert server.ask("POST", "/api/v1/datasets?name=broken", broken, "application/x-ndjson")["status"] == 422
    target = {"name": "sort", "signature": SIGNATURE, "instructions": f"Sort the mails of {SECRET}."}
    server.ask("POST", "/api/v1/targets", json.dumps(target).encode())
    asked = {
        "target": {"id": "sort"},
        "data": "mails",
        "lm": "openai/stub",
        "lm_base": server.base,
        "algorithms": ["bootstrap"],
        "constraints": {"max_calls": 250},
        "concurrency": 4,
        "force": True,
    }
    job = server.ask("POST", "/api/v1/optimize", json.dumps(asked).encode())["id"]
    found = server.ended(job)
    assert found["status"] in ("improved", "no_proven_gain"), found

    # It is there, for whoever may see it.
    for what in ("candidates", "program"):
        assert SECRET in json.dumps(server.ask("GET", f"/api/v1/optimizations/{job}/{what}"), ensure_ascii=False), what
    assert SECRET in str(server.ask("GET", "/api/v1/targets/sort"))

    home = server.folder / "home"
    end = time.monotonic() + 90
    while not tracked(home / "mlflow.db"):  # it may be slower than the optimization
        assert time.monotonic() < end
        time.sleep(0.1)
    with closing(sqlite3.connect(f"file:{home / 'ratchet.workflows.db'}?mode=ro", uri=True)) as workflows:
        assert workflows.execute("SELECT count(*) FROM workflow_status").fetchone()[0] == 1
    assert leaks(server.folder) == []
    server.process.kill()  # what was in its write-ahead logs stays there
    server.process.wait()
    assert (home / "ratchet.db-wal").exists()
    assert leaks(server.folder) == []
    assert not list((server.folder / "tmp").iterdir())

"""A server is killed at work: started again, it loses nothing, repeats nothing, and pays for nothing twice."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from websockets.asyncio.client import connect

from ratchet.storage.sql import SqlArchive
from ratchet.testing.lm_server import StubServer
from ratchet.testing.ports import free_port
from ratchet.testing.service import data, request

Ask = Callable[..., Any]


class Server:
    """``ratchet serve`` on a free port."""

    def __init__(self, home: Path, base: str) -> None:
        self.home = home
        self.port = free_port()
        self.key = ""
        self._base = base
        self._process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        """Until it is ready."""
        self._process = subprocess.Popen(
            [sys.executable, "-m", "ratchet", "serve", "--port", str(self.port)],
            env={
                **os.environ,
                "RATCHET_HOME": str(self.home),
                "RATCHET_MLFLOW": "false",
                "RATCHET_LM_BASES": self._base,
                "PYTHONWARNINGS": "ignore",
            },
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self._process.stderr is not None
        for line in self._process.stderr:
            if "admin key" in line:
                self.key = line.split()[-1]
            if "listening" in line:
                break
        end = time.monotonic() + 60
        while time.monotonic() < end:
            try:
                self.ask("GET", "/readyz")
                return
            except OSError:
                time.sleep(0.05)
        pytest.fail("it never became ready")

    def send(self, number: int) -> int:
        """A signal; the exit code."""
        assert self._process is not None
        self._process.send_signal(number)
        self._process.communicate(timeout=60)
        return self._process.returncode

    def close(self) -> None:
        """End it, if it still runs."""
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.communicate()

    def ask(self, method: str, path: str, *, body: bytes | None = None, kind: str = "application/json") -> Any:
        """The answer as JSON."""
        asked = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", data=body, method=method)
        asked.add_header("Authorization", f"Bearer {self.key}")
        asked.add_header("Content-Type", kind)
        with urllib.request.urlopen(asked, timeout=30) as answer:
            return json.loads(answer.read())

    def until(self, job: str, holds: Callable[[Any], bool]) -> Any:
        """The optimization, once ``holds`` says so of it."""
        end = time.monotonic() + 60
        while time.monotonic() < end:
            found = self.ask("GET", f"/api/v1/optimizations/{job}")
            if holds(found):
                return found
            time.sleep(0.02)
        return pytest.fail(f"it stayed {found['status']}")

    def optimize(self) -> str:
        """A request in the queue."""
        return str(
            self.ask(
                "POST",
                "/api/v1/optimize",
                body=json.dumps(request(self._base, constraints={"max_calls": 150})).encode(),
            )["id"]
        )

    async def listen(self, job: str, *, after: int, until: Callable[[Any], bool]) -> list[Any]:
        """Events as they come, until ``until`` says so or the server ends."""
        address = f"ws://127.0.0.1:{self.port}/ws/optimizations/{job}?after={after}"
        seen: list[Any] = []
        async with connect(address, additional_headers={"Authorization": f"Bearer {self.key}"}) as socket:
            async for message in socket:
                seen.append(json.loads(message))
                if until(seen[-1]):
                    break
        return seen


@pytest.fixture
def stub() -> Iterator[StubServer]:
    with StubServer(latency=0.02) as stub:
        yield stub


@pytest.fixture
def server(tmp_path: Path, stub: StubServer) -> Iterator[Server]:
    server = Server(tmp_path / "home", stub.base)
    server.start()
    yield server
    server.close()


def test_a_killed_server_goes_on_where_it_was(server: Server, stub: StubServer) -> None:
    server.ask("POST", "/api/v1/datasets?name=mails", body=data(80), kind="application/x-ndjson")
    job = server.optimize()
    seen = asyncio.run(server.listen(job, after=0, until=lambda event: event["payload"].get("calls", 0) > 50))
    server.send(signal.SIGKILL)
    while stub.at_once:
        time.sleep(0.001)
    archive = SqlArchive(f"sqlite:///{server.home / 'ratchet.db'}")
    lost = stub.requests - len(archive.open(job).journal.stages())
    archive.close()
    assert lost <= 4  # what was under way

    server.start()
    rest = asyncio.run(server.listen(job, after=seen[-1]["sequence"], until=lambda event: False))
    events = seen + rest
    assert [event["sequence"] for event in events] == list(range(1, len(events) + 1))
    assert [event["kind"] for event in events].count("begun") == 2
    assert events[-1]["kind"] == "ended"
    done = server.until(job, lambda now: now["status"] not in ("queued", "running"))
    assert done["status"] in ("improved", "no_proven_gain")
    assert done["attempt"] == 1
    certificate = server.ask("GET", f"/api/v1/optimizations/{job}/certificate")
    assert certificate["payload"]["optimization_id"] == job

    spend = done["result"]["optimization_details"]["spend"]
    assert stub.requests == spend["recorded"] + lost  # nothing that was recorded was paid again
    assert stub.requests <= spend["calls"] <= 150
    assert server.send(signal.SIGTERM) == 0
    verified = subprocess.run(
        [sys.executable, "-m", "ratchet", "audit", "verify"],
        env={**os.environ, "RATCHET_HOME": str(server.home), "PYTHONWARNINGS": "ignore"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert verified.stdout.startswith("holds: ")

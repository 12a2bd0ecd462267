"""An algorithm behind a URL: kill -9 in the midst, and the resumed search is the same, no reply paid for twice."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from ratchet.core.errors import BrokenProtocol
from ratchet.testing.algorithm_server import AlgorithmServer
from ratchet.testing.lm_server import StubServer
from ratchet.testing.runs import again, carry_out, identity, optimize, recorded, reserved, status

CALLS = 200
WORK = """
import json, sys
from pathlib import Path
from ratchet.testing.runs import work
work(sys.argv[1], Path(sys.argv[2]), json.loads(sys.argv[3]))
"""


@pytest.fixture(autouse=True)
def _settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RATCHET_ALGORITHM_HOSTS", "127.0.0.1")
    monkeypatch.setenv("RATCHET_ALGORITHM_SECRET", "a shared secret")


def kill(stub: StubServer, folder: Path, algorithm: str, *, after: int) -> None:
    """Begin, or go on, in a process of its own, and kill it once the stub has counted ``after`` requests."""
    options = json.dumps({"algorithm": algorithm, "max_calls": CALLS, "concurrency": 4})
    process = subprocess.Popen([sys.executable, "-c", WORK, stub.base, str(folder), options])
    while stub.requests < after and process.poll() is None:
        time.sleep(0.001)
    assert process.poll() is None, "it was done before it could be killed"
    os.kill(process.pid, signal.SIGKILL)
    process.wait()


def test_killed_twice_it_resumes_to_the_same_result_and_pays_for_nothing_twice(tmp_path: Path) -> None:
    with AlgorithmServer() as server:
        with StubServer() as calm:
            expected = optimize(calm.base, tmp_path / "calm", algorithm=server.url, max_calls=CALLS, concurrency=4)
        server.messages.clear()
        folder = tmp_path / "killed"
        with StubServer(latency=0.01) as stub:
            for moment in (60, 90):
                kill(stub, folder, server.url, after=moment)
            known = identity(folder)
            assert known is not None
            lost = Counter(stub.seen) - recorded(folder)
            resumed = carry_out(again(known, folder))
            assert not stub.seen - recorded(folder) - lost
            assert stub.requests <= reserved(folder) <= CALLS
    assert resumed.status == expected.status
    assert resumed.program == expected.program
    assert resumed.essence == expected.essence
    assert Counter(each["kind"] for each in server.messages)["start"] == 3
    assert len({each["session"] for each in server.messages}) == 1


def test_a_server_that_changed_in_the_meantime_is_told_and_nothing_is_mixed(tmp_path: Path) -> None:
    with AlgorithmServer() as server, StubServer(latency=0.01) as stub:
        kill(stub, tmp_path, server.url, after=70)
        server.lies = lambda answer: {**answer, "state": "another version"}
        known = identity(tmp_path)
        assert known is not None
        resumed = carry_out(again(known, tmp_path))
    assert isinstance(resumed.error, BrokenProtocol)
    assert "another one than before the interruption" in str(resumed.error)
    assert status(tmp_path) == "failed"

"""kill -9 at any moment: resumed, it ends in the same result, and no recorded reply is paid for twice."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import pytest

from ratchet.algorithms import NATIVE
from ratchet.bootstrap import open_archive
from ratchet.prepare import known_algorithms
from ratchet.settings import Settings
from ratchet.testing.lm_server import StubServer
from ratchet.testing.runs import Outcome, again, begin, carry_out, identity, optimize, recorded, reserved, status, work

LATENCY = 0.01
"""Seconds each answer takes, so that there is something under way when the process is killed."""
DSPY = ("dspy.gepa", "dspy.miprov2", "dspy.bootstrap_random_search")

forked = multiprocessing.get_context("forkserver")
forked.set_forkserver_preload(["ratchet.testing.runs", "gepa", "optuna"])


def asked(algorithm: str, max_calls: int) -> dict[str, Any]:
    """The options of every run here: 4 requests at once, which is what one kill can lose."""
    return {"algorithm": algorithm, "max_calls": max_calls, "concurrency": 4}


def undisturbed(algorithm: str, folder: Path, *, max_calls: int) -> Outcome:
    """How it ends when nobody kills it."""
    with StubServer(latency=LATENCY) as stub:
        return optimize(stub.base, folder, **asked(algorithm, max_calls))


def interrupt(stub: StubServer, folder: Path, options: dict[str, Any], *, after: int, number: int) -> bool:
    """Begin or go on in a process, and send it a signal once the stub has counted ``after`` requests.

    Returns:
        Whether it was still at work then.
    """
    process: ForkServerProcess = forked.Process(target=work, args=(stub.base, folder, options))
    process.start()
    while stub.requests < after and process.is_alive():
        time.sleep(0.001)
    alive = process.is_alive()
    if alive and process.pid is not None:
        os.kill(process.pid, number)
    process.join()
    while stub.at_once:  # what was under way when it was killed
        time.sleep(0.001)
    return alive


def paid_twice(stub: StubServer, folder: Path, *, lost: Counter[str]) -> Counter[str]:
    """Requests that came to the stub more often than there are recorded and lost ones of them."""
    return stub.seen - recorded(folder) - lost


def check_killed(
    algorithm: str, folder: Path, expected: Outcome, *, moments: list[int], max_calls: int, slack: int
) -> None:
    """Kill at each of ``moments`` (requests counted by the stub), resume, and compare."""
    options = asked(algorithm, max_calls)
    with StubServer(latency=LATENCY) as stub:
        for moment in moments:
            interrupt(stub, folder, options, after=moment, number=signal.SIGKILL)
        lost = Counter(stub.seen)
        known = identity(folder)
        if known:
            lost -= recorded(folder)
        run = again(known, folder) if known else begin(stub.base, folder, **options)
        resumed = carry_out(run)
        assert not paid_twice(stub, folder, lost=lost)
        assert lost.total() <= slack
        assert stub.requests <= reserved(folder) <= max_calls
    assert resumed.status == expected.status
    assert resumed.program == expected.program
    assert resumed.essence == expected.essence


@pytest.mark.parametrize("algorithm", [*NATIVE, *DSPY])
def test_a_killed_run_resumes_to_the_same_result(algorithm: str, tmp_path: Path) -> None:
    expected = undisturbed(algorithm, tmp_path / "undisturbed", max_calls=200)
    moment = random.Random(algorithm).randrange(20, 110)
    check_killed(algorithm, tmp_path / "killed", expected, moments=[moment], max_calls=200, slack=4)


def test_a_run_killed_twice_resumes_to_the_same_result(tmp_path: Path) -> None:
    expected = undisturbed("dspy.gepa,gepa", tmp_path / "undisturbed", max_calls=400)
    check_killed("dspy.gepa,gepa", tmp_path / "killed", expected, moments=[60, 150], max_calls=400, slack=8)


@pytest.mark.parametrize("algorithm", ["gepa", "dspy.gepa"])
def test_ctrl_c_stops_cleanly_and_the_run_can_be_resumed(algorithm: str, tmp_path: Path) -> None:
    expected = undisturbed(algorithm, tmp_path / "undisturbed", max_calls=200)
    folder = tmp_path / "stopped"
    with StubServer(latency=5 * LATENCY) as stub:  # so that it is still at work when the signal comes
        assert interrupt(stub, folder, asked(algorithm, 200), after=50, number=signal.SIGINT)
        assert status(folder) == "cancelled"
        assert stub.seen == recorded(folder)  # what was under way was waited for, and kept
        known = identity(folder)
        assert known is not None
        resumed = carry_out(again(known, folder))
        assert stub.seen == recorded(folder)
    assert (resumed.status, resumed.essence) == (expected.status, expected.essence)


@pytest.mark.heavy
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("algorithm", known_algorithms())
def test_twenty_kills_at_random_moments(algorithm: str, tmp_path: Path) -> None:
    expected = undisturbed(algorithm, tmp_path / "undisturbed", max_calls=300)
    rng = random.Random(algorithm)
    for turn in range(20):
        moment = rng.randrange(1, expected.calls)
        check_killed(algorithm, tmp_path / f"{turn}", expected, moments=[moment], max_calls=300, slack=4)


@pytest.mark.heavy
@pytest.mark.parametrize("algorithm", ["gepa", "dspy.gepa", "dspy.miprov2"])
def test_the_command_resumes_what_was_killed(
    algorithm: str, tmp_path: Path, command: Callable[..., subprocess.Popen[str]]
) -> None:
    results = []
    for name, kill in (("undisturbed", False), ("killed", True)):
        folder = tmp_path / name
        with StubServer(latency=LATENCY) as stub:
            process = command(folder, stub.base, algorithm)
            if kill:
                while stub.requests < 100:
                    time.sleep(0.001)
                process.kill()
                process.communicate()
                (known,) = open_archive(Settings(home=folder / "home")).list()
                process = command(folder, stub.base, None, known.id)
            out, err = process.communicate(timeout=120)
            assert process.returncode == 0, err
            assert stub.requests <= 400
        results.append(json.loads(out))
    told = [(each["status"], each["winner"], each["comparison"]) for each in results]
    assert told[0] == told[1]

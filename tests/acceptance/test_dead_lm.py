"""A dead LM fails the optimization with its cause, soon, and nothing is made up."""

from __future__ import annotations

import json
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from ratchet.core.errors import LmUnavailable
from ratchet.prepare import known_algorithms
from ratchet.testing.lm_server import StubServer
from ratchet.testing.runs import Outcome, optimize

Command = Callable[..., "subprocess.Popen[str]"]

DEATHS = ("closed port", "always 500", "hangs", "dies in the search", "rate-limited for ever")


@contextmanager
def dying(death: str) -> Iterator[str]:
    """The address of an LM that dies in this way."""
    if death == "closed port":
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            yield f"http://127.0.0.1:{free.getsockname()[1]}/v1"
        return
    stub = {
        "always 500": StubServer(status=500),
        "hangs": StubServer(hang=True),
        "dies in the search": StubServer(die_after=40),
        "rate-limited for ever": StubServer(status=429),
    }[death]
    with stub:
        yield stub.base


def killed(death: str, algorithm: str, folder: Path) -> Outcome:
    """How an optimization with little patience ends; it has some with an LM that is alive at first."""
    patience = 30.0 if death == "dies in the search" else 1.0
    with dying(death) as base:
        return optimize(
            base, folder, algorithm=algorithm, max_calls=400, concurrency=8, lm_timeout=patience, retry_seconds=1.5
        )


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Outcome]:
    """Every death under every algorithm; all wait for their LM at the same time."""
    every = [(death, algorithm) for death in DEATHS for algorithm in known_algorithms()]
    folders = [tmp_path_factory.mktemp("dead") for _ in every]  # here: the factory's first use is not safe in threads
    with ThreadPoolExecutor(16) as pool:
        ended = pool.map(lambda each, folder: killed(each[0], each[1], folder), every, folders)
        return dict(zip(every, ended, strict=True))


@pytest.mark.parametrize("algorithm", known_algorithms())
@pytest.mark.parametrize("death", DEATHS)
def test_it_fails_and_names_the_lm(death: str, algorithm: str, outcomes: dict[tuple[str, str], Outcome]) -> None:
    outcome = outcomes[death, algorithm]
    if death == "dies in the search" and outcome.calls <= 40:  # done before the LM died
        assert outcome.error is None
        assert outcome.result is not None
        return
    assert outcome.status == "failed"
    assert isinstance(outcome.error, LmUnavailable)
    assert "the task LM openai/stub" in str(outcome.error) or "the reflection LM openai/stub" in str(outcome.error)
    assert outcome.result is None


def test_a_limit_used_up_by_retries_is_the_lms_failure(tmp_path: Path) -> None:
    with StubServer(status=500) as stub:
        outcome = optimize(stub.base, tmp_path, max_calls=6, retry_seconds=30.0)
        assert stub.requests <= 6
    assert isinstance(outcome.error, LmUnavailable)


# --- as a user sees it ------------------------------------------------------------------------------------------------


def check_failed(process: subprocess.Popen[str], out: str, err: str) -> None:
    """Exit code 1, one plain sentence with the cause, no numbers."""
    assert process.returncode == 1, err
    assert "LM openai/stub" in out + err
    assert "Traceback" not in out + err
    if out:
        told = json.loads(out)
        assert told["status"] == "failed"
        assert "comparison" not in told or told["comparison"] is None


def test_the_command_fails_when_nobody_listens(tmp_path: Path, command: Command) -> None:
    with dying("closed port") as base:
        started = time.monotonic()
        process = command(tmp_path, base, "gepa")
        out, err = process.communicate(timeout=120)
    assert time.monotonic() - started < 60
    check_failed(process, out, err)


@pytest.mark.heavy
@pytest.mark.parametrize("death", DEATHS)
@pytest.mark.parametrize(
    "algorithms", [known_algorithms()[:3], known_algorithms()[3:6], known_algorithms()[6:9], known_algorithms()[9:]]
)
def test_the_command_fails_for_every_algorithm(
    death: str, algorithms: tuple[str, ...], tmp_path: Path, command: Command
) -> None:
    with dying(death) as base:
        bases = [base] * len(algorithms)
        stubs = [StubServer(die_after=40).start() for _ in algorithms] if death == "dies in the search" else []
        bases = [stub.base for stub in stubs] or bases
        started = time.monotonic()
        work = [command(tmp_path / name, at, name) for name, at in zip(algorithms, bases, strict=True)]
        said = [process.communicate(timeout=200) for process in work]
        seconds = time.monotonic() - started
        asked = [stub.requests for stub in stubs]
        for stub in stubs:
            stub.close()
    for number, (process, (out, err)) in enumerate(zip(work, said, strict=True)):
        if stubs and asked[number] <= 40 and process.returncode == 0:
            continue  # done before the LM died
        check_failed(process, out, err)
    assert seconds < 60

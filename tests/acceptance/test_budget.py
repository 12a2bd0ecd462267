"""No limit on calls is ever passed, whatever the algorithm, and the best program so far is handed over."""

from __future__ import annotations

from pathlib import Path

import pytest

from ratchet.core.problem import Candidate
from ratchet.prepare import known_algorithms
from ratchet.testing.lm_server import StubServer
from ratchet.testing.runs import Outcome, optimize, reserved

ENDS = {"improved", "no_proven_gain", "declined"}


def run(algorithm: str, folder: Path, *, max_calls: int, flaky: float = 0.0) -> tuple[Outcome, int]:
    """How it ended, and how many requests the stub counted."""
    with StubServer(flaky=flaky) as stub:
        outcome = optimize(stub.base, folder, algorithm=algorithm, max_calls=max_calls)
        return outcome, stub.requests


def check(outcome: Outcome, requests: int, folder: Path, *, max_calls: int) -> None:
    """The limit held, the ledger is right, the status is honest, a program is there."""
    assert requests <= max_calls
    assert outcome.calls == reserved(folder) == requests
    assert outcome.error is None
    assert outcome.result is not None
    assert outcome.status == outcome.result.status
    assert outcome.status in ENDS
    assert outcome.program["signature"]["instructions"]
    if outcome.status == "improved":
        assert isinstance(outcome.result.winner, Candidate)
        assert outcome.result.comparison is not None
        assert outcome.result.comparison.p_value < 0.05


@pytest.mark.parametrize("max_calls", [24, 150])
@pytest.mark.parametrize("algorithm", known_algorithms())
def test_the_stub_counts_no_more_requests_than_were_allowed(algorithm: str, max_calls: int, tmp_path: Path) -> None:
    outcome, requests = run(algorithm, tmp_path, max_calls=max_calls)
    check(outcome, requests, tmp_path, max_calls=max_calls)


@pytest.mark.parametrize("algorithm", known_algorithms())
def test_retries_count_too(algorithm: str, tmp_path: Path) -> None:
    outcome, requests = run(algorithm, tmp_path, max_calls=60, flaky=0.2)
    check(outcome, requests, tmp_path, max_calls=60)


@pytest.mark.heavy
@pytest.mark.parametrize("flaky", [0.0, 0.2])
@pytest.mark.parametrize("max_calls", [1, 9, 24, 60, 150, 300])
@pytest.mark.parametrize("algorithm", known_algorithms())
def test_no_limit_is_passed_at_any_size(algorithm: str, max_calls: int, flaky: float, tmp_path: Path) -> None:
    outcome, requests = run(algorithm, tmp_path, max_calls=max_calls, flaky=flaky)
    check(outcome, requests, tmp_path, max_calls=max_calls)


def test_algorithms_one_after_another_share_one_limit(tmp_path: Path) -> None:
    outcome, requests = run("dspy.gepa,random_search,dspy.miprov2", tmp_path, max_calls=150)
    check(outcome, requests, tmp_path, max_calls=150)

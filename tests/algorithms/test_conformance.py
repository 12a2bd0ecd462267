"""Every algorithm of the catalogue keeps the promises of an algorithm."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from ratchet.algorithms import NATIVE
from ratchet.testing import AlgorithmConformance


class TestEveryAlgorithm(AlgorithmConformance):
    @pytest.fixture(params=sorted(NATIVE), autouse=True)
    def _algorithm(self, request: pytest.FixtureRequest) -> None:
        self.search = NATIVE[request.param]


FINALISTS = """
from ratchet.algorithms import NATIVE
from ratchet.testing import SyntheticProblem
for name, search in sorted(NATIVE.items()):
    toy = SyntheticProblem(predictors=("plan", "answer"), classes=3, fails=0.1)
    print(name, [each.key for each in toy.solve(search)], [each.key for each in toy.evaluated])
"""


def test_another_process_with_the_same_seed_searches_the_same() -> None:
    """A resumed run starts in a new process, in which sets and hashes are in another order."""
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", FINALISTS],
            env={**os.environ, "PYTHONHASHSEED": seed},
            stdout=subprocess.PIPE,
            text=True,
        )
        for seed in ("1", "2")
    ]
    first, second = (process.communicate()[0] for process in processes)
    assert first == second
    assert first.count("\n") == len(NATIVE)

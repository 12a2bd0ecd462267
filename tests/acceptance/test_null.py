"""What cannot be improved is not reported as improved."""

from __future__ import annotations

import pytest

from ratchet.algorithms import NATIVE
from ratchet.prepare import known_algorithms
from ratchet.programs.teleprompter import TELEPROMPTERS
from ratchet.testing.runs import HOPELESS, hopeless_run, hopeless_search


@pytest.mark.parametrize("depends_on", HOPELESS)
@pytest.mark.parametrize("algorithm", NATIVE)
def test_a_native_algorithm_claims_no_gain_in_95_of_100_seeds(algorithm: str, depends_on: str) -> None:
    seeds = 100 if depends_on == "prompt" else 10  # by the example alone no score can change
    results = [hopeless_search(algorithm, depends_on, seed=seed, max_calls=140) for seed in range(seeds)]
    assert sum(result.status == "improved" for result in results) <= seeds * 0.05
    assert all(result.status in ("improved", "no_proven_gain") for result in results)
    if depends_on == "prompt":  # the sealed test was what refused them
        assert sum(result.comparison is not None for result in results) >= 30


@pytest.mark.parametrize("algorithm", TELEPROMPTERS)
def test_an_optimizer_of_dspy_claims_no_gain(algorithm: str) -> None:
    """Three seeds here, since each costs a second; ``bench/null.py`` runs a hundred."""
    statuses = [hopeless_run(algorithm, "prompt", seed=seed).execute().status for seed in range(3)]
    assert statuses == ["no_proven_gain"] * 3
    assert hopeless_run(algorithm, "example", seed=0, max_calls=150).execute().status == "no_proven_gain"


@pytest.mark.heavy
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("depends_on", HOPELESS)
@pytest.mark.parametrize("algorithm", known_algorithms())
def test_a_hundred_whole_optimizations_claim_at_most_five_gains(algorithm: str, depends_on: str) -> None:
    statuses = [hopeless_run(algorithm, depends_on, seed=seed).execute().status for seed in range(100)]
    assert statuses.count("improved") <= 5

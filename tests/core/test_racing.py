"""A race stops who has lost, and by mistake the best as seldom as it says: properties, and simulated error rates."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ratchet.algorithms.demos import spread
from ratchet.core.problem import Example
from ratchet.core.racing import Race, cannot_pass, evidence_of_loss

scores = st.lists(st.sampled_from([0.0, 0.25, 0.5, 1.0]), max_size=6)
leads = st.lists(st.sampled_from([-1.0, -0.5, 0.0, 0.25, 1.0]), min_size=1, max_size=20)

# What is sure


@given(lead=st.sampled_from([-2.0, -0.25, 0.0, 0.5, 1.0, 2.75, 6.0]), left=scores)
def test_who_cannot_pass_is_behind_even_with_the_best_score_on_all_that_is_left(lead: float, left: list[float]) -> None:
    best_end = len(left) - lead - math.fsum(left)  # the candidate's total minus the leader's
    assert cannot_pass(lead, left, highest=1.0) == (best_end <= 0)


@given(candidate=scores, data=st.data())
def test_who_is_ahead_at_the_end_is_never_lost_for_sure(candidate: list[float], data: st.DataObject) -> None:
    leader = data.draw(st.lists(st.sampled_from([0.0, 0.5, 1.0]), min_size=len(candidate), max_size=len(candidate)))
    if math.fsum(candidate) > math.fsum(leader):
        race = Race(entrants=2, alpha=1e-9)  # no bet ever pays so much in so few examples
        for n in range(len(candidate) + 1):
            assert not race.is_lost(candidate[:n], leader[:n], leader_left=leader[n:])


def test_what_the_leader_has_still_to_run_may_turn_out_as_bad_as_can_be() -> None:
    race = Race(entrants=2, alpha=1e-9)
    assert race.is_lost([0.0, 0.0], [1.0, 1.0], leader_left=[1.0, 0.0])
    assert not race.is_lost([0.0, 0.0], [1.0, 1.0], leader_left=[1.0, None, None, None])


# The bet


@given(leads=leads, left=st.integers(0, 20))
def test_evidence_never_shrinks_as_more_is_seen(leads: list[float], left: int) -> None:
    """So that looking after every example is the same as looking once at the end."""
    n = len(leads)
    seen = [evidence_of_loss(leads[:t], left=left + n - t) for t in range(n + 1)]
    assert seen[0] == 1.0
    assert seen == sorted(seen)


@given(leads=leads, left=st.integers(0, 20))
def test_infinite_evidence_means_that_the_leader_is_ahead_whatever_comes(leads: list[float], left: int) -> None:
    if math.isinf(evidence_of_loss(leads, left=left)):
        assert math.fsum(leads) >= left - 1e-9 or any(
            math.fsum(leads[:t]) >= left + len(leads) - t - 1e-9 for t in range(len(leads))
        )


@given(leads=leads)
def test_nobody_has_evidence_against_one_who_won_every_pair(leads: list[float]) -> None:
    assert evidence_of_loss([-abs(lead) for lead in leads], left=5) == 1.0


@given(leads=leads, left=st.integers(5, 40), ahead=st.floats(0, 4))
def test_a_lead_from_before_is_no_evidence_but_makes_the_end_harder_to_reach(
    leads: list[float], left: int, ahead: float
) -> None:
    assert evidence_of_loss(leads, left=left, ahead=ahead) >= evidence_of_loss(leads, left=left) - 1e-9
    assert evidence_of_loss([], left=left, ahead=ahead) == 1.0


@settings(max_examples=30)
@given(candidate=st.lists(st.booleans(), min_size=8, max_size=8), n=st.integers(0, 8))
def test_the_range_of_the_scores_makes_no_difference(candidate: list[bool], n: int) -> None:
    leader = [1.0, 1.0, 0.0, 1.0, 1.0, 1.0, 0.0, 1.0]
    unit = Race(entrants=3).is_lost([float(won) for won in candidate[:n]], leader[:n], leader_left=leader[n:])
    tens = Race(entrants=3, lowest=-10.0, highest=10.0).is_lost(
        [20.0 * won - 10 for won in candidate[:n]],
        [20 * score - 10 for score in leader[:n]],
        leader_left=[20 * score - 10 for score in leader[n:]],
    )
    assert unit == tens


def test_what_makes_no_sense_is_refused() -> None:
    for kwargs in ({"entrants": 1}, {"entrants": 2, "alpha": 1.0}, {"entrants": 2, "lowest": 1.0}):
        with pytest.raises(ValueError):
            Race(**kwargs)
    race = Race(entrants=2)
    with pytest.raises(ValueError, match="equal lengths"):
        race.is_lost([1.0], [], leader_left=[])
    with pytest.raises(ValueError, match=r"1\.5"):
        race.is_lost([1.5], [1.0], leader_left=[])
    with pytest.raises(ValueError):
        evidence_of_loss([1.1], left=3)


# How often the best is stopped

RACES = 2000
N = 60


def stopped_by_mistake(table: np.ndarray, *, alpha: float, known_before: int = 0) -> bool:
    """Whether the best row of ``table`` (entrants, examples in the order they are run) is stopped by any other.

    Evidence never shrinks and surety cannot err, so one look at the end is a look after every example.
    """
    best = int(table.sum(axis=1).argmax())
    at_stake = (len(table) - 1) / alpha
    for other, row in enumerate(table):
        if other != best and row.sum() < table[best].sum():
            against = row - table[best]
            ahead = float(against[:known_before].sum())
            if evidence_of_loss(list(against[known_before:]), left=0, ahead=ahead) >= at_stake:
                return True
    return False


def shared_difficulty(rng: np.random.Generator, *, entrants: int, n: int = N, spread: float = 0.03) -> np.ndarray:
    """Scores of candidates that differ little on examples that differ much. Shape (entrants, n)."""
    chance = rng.uniform(0.1, 0.9, size=n) + rng.normal(0, spread, size=(entrants, 1))
    return (rng.random((entrants, n)) < chance).astype(float)


@pytest.mark.parametrize("entrants", [2, 10])
@pytest.mark.parametrize("alpha", [0.05, 0.2])
def test_the_best_is_stopped_by_mistake_at_most_at_alpha(entrants: int, alpha: float) -> None:
    rng = np.random.default_rng(entrants)
    mistakes = sum(
        stopped_by_mistake(shared_difficulty(rng, entrants=entrants), alpha=alpha) for _ in range(RACES // entrants)
    )
    assert mistakes <= alpha * RACES / entrants


def test_the_level_is_kept_even_where_the_best_is_ahead_by_one_example_only() -> None:
    """The hardest case: the leader wins as many pairs as it loses, less one, and the order alone decides."""
    rng = np.random.default_rng(0)
    pairs = np.array([1.0] * 20 + [-1.0] * 21 + [0.0] * 19)
    mistakes = sum(evidence_of_loss(list(rng.permutation(pairs)), left=0) >= 20 for _ in range(RACES))
    assert 0 < mistakes <= 0.05 * RACES


def test_the_level_is_kept_for_one_who_was_chosen_for_his_luck() -> None:
    """A leader chosen among twenty equals by its first ten rows: these count in the total, but are no evidence."""
    rng = np.random.default_rng(1)
    mistakes, unguarded = 0, 0
    for _ in range(RACES // 2):
        table = shared_difficulty(rng, entrants=20, spread=0.0)
        lucky = int(table[:, :10].sum(axis=1).argmax())
        pair = np.stack([table[lucky], table[(lucky + 1) % 20]])
        if pair[1].sum() > pair[0].sum():
            mistakes += stopped_by_mistake(pair, alpha=0.05, known_before=10)
            unguarded += stopped_by_mistake(pair, alpha=0.05)
    assert mistakes <= 0.05 * RACES / 2
    assert mistakes <= unguarded


def in_balanced_order(table: np.ndarray, kinds: Sequence[int], rng: random.Random) -> np.ndarray:
    """Columns in the order that the algorithms use: every stretch holds about the same share of each kind."""
    examples = [Example(inputs={"n": n}, labels={"kind": f"k{kind}"}) for n, kind in enumerate(kinds)]
    place = {example: n for n, example in enumerate(examples)}
    return table[:, [place[example] for example in spread(examples, rng=rng)]]


def test_a_balanced_order_makes_mistakes_rarer() -> None:
    """One of two is good at one class and bad at the other: in a random order a run of its bad class can stop it."""
    rng, shuffle = np.random.default_rng(2), random.Random(2)
    kinds = [n % 2 for n in range(N)]
    balanced = at_random = 0
    for _ in range(RACES // 2):
        chance = np.where(np.array(kinds) == 0, [[0.95], [0.1]], [[0.1], [0.95]])
        table = (rng.random((2, N)) < chance).astype(float)
        table[1, int((table[1] == 0).argmax())] = 1.0  # one of them is a little better
        balanced += stopped_by_mistake(in_balanced_order(table, kinds, shuffle), alpha=0.05)
        at_random += stopped_by_mistake(table[:, rng.permutation(N)], alpha=0.05)
    assert balanced <= at_random <= 0.05 * RACES / 2
    assert balanced <= 0.005 * RACES / 2


def test_who_is_much_worse_is_mostly_stopped_before_half_of_the_examples() -> None:
    rng, race = np.random.default_rng(3), Race(entrants=2)
    halfway = 0
    for _ in range(100):
        good, bad = ((rng.random(N) < chance).astype(float) for chance in (0.9, 0.4))
        halfway += race.is_lost(list(bad[: N // 2]), list(good[: N // 2]), leader_left=list(good[N // 2 :]))
    assert halfway >= 95

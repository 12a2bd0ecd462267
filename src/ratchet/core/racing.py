"""Racing: stop running a candidate that can no longer win.

Candidate and leader are compared on the same examples, pair by pair. What is left of a race is a finite set of
examples that come in random order, so the question is about this set alone: will the candidate's total be above the
leader's when every example has been run? There are two ways to say no before that. ``cannot_pass`` is sure: even
if everything left were won, it would not be enough. ``evidence_of_loss`` bets: one coin is staked on the leader and
multiplied with every example. While the candidate is in truth at least as good, no strategy can make many coins out of
one, so a large sum is evidence against it.

References:
    Waudby-Smith, Ramdas, "Estimating means of bounded random variables by betting", JRSS B 86, 2024 (arXiv
    2010.09686): the capital process, and its form for sampling without replacement.
    Maron, Moore, "Hoeffding Races", NeurIPS 1994: the race, and the union bound over its candidates.
    Ville, "Étude critique de la notion de collectif", 1939: the inequality that lets one look after every example.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

STAKES = (0.3, 0.5, 0.7, 0.9)
"""Shares of the coin that are staked, side by side; the mean of the capitals is as good as the best, less a factor of
four at most."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Race:
    """The rules of one race.

    The best of the candidates is stopped by mistake with probability ``alpha`` at most, however often one looks: it can
    only lose to one of ``entrants - 1`` others, and to each with probability ``alpha / (entrants - 1)``. This holds
    when the examples come in random order. Where each stretch of the order holds about the same share of every class,
    mistakes are rarer still in simulation (``tests/core/test_racing.py``), though no theorem says so.

    Attributes:
        entrants: Candidates in the race, the leader among them.
        alpha: Probability that the best one is stopped.
        lowest: The worst score there is.
        highest: The best score there is.

    >>> race = Race(entrants=2)
    >>> race.is_lost([0] * 6, [1] * 6, leader_left=[1, 0] * 10)
    True
    >>> race.is_lost([0, 0, 1], [1, 1, 0], leader_left=[1, 0] * 10)
    False
    """

    entrants: int
    alpha: float = 0.05
    lowest: float = 0.0
    highest: float = 1.0

    def __post_init__(self) -> None:
        if self.entrants < 2:
            raise ValueError(f"a race needs at least 2 candidates, not {self.entrants}")
        if not 0 < self.alpha < 1:
            raise ValueError(f"alpha must be between 0 and 1, not {self.alpha}")
        if not self.lowest < self.highest:
            raise ValueError(f"the best score must be above the worst: {self.highest} and {self.lowest}")

    def covers(self, scores: Iterable[float]) -> bool:
        """Whether all of ``scores`` are within the range; of a metric beyond it nothing is known of what is to come."""
        return all(self.lowest <= score <= self.highest for score in scores)

    def is_lost(
        self,
        candidate: Sequence[float],
        leader: Sequence[float],
        *,
        leader_left: Sequence[float | None],
        known_before: int = 0,
    ) -> bool:
        """Whether the candidate can be stopped: its total surely or almost surely ends no higher than the leader's.

        Args:
            candidate: Its scores so far, in the order in which the examples were run. Shape (n,).
            leader: The leader's scores on the same examples. Shape (n,).
            leader_left: The leader's scores on the examples that the candidate has still to run, in any order; None
                where it has still to run them itself.
            known_before: How many of the n examples were run before the entrants were chosen by what they scored on
                them. They count in the totals, but no bet is made on them: who is chosen for his luck has none to show.

        Raises:
            ValueError: unequal lengths, or a score outside the race's range.
        """
        if len(candidate) != len(leader):
            raise ValueError(f"pairs need equal lengths: {len(candidate)} and {len(leader)}")
        scores = (*candidate, *leader, *(score for score in leader_left if score is not None))
        if not self.covers(scores):
            raise ValueError(f"scores {min(scores)} to {max(scores)} are not within {self.lowest} and {self.highest}")
        leads = [ours - theirs for ours, theirs in zip(leader, candidate, strict=True)]
        worst = [self.lowest if score is None else score for score in leader_left]
        if cannot_pass(math.fsum(leads), worst, highest=self.highest):
            return True
        span = self.highest - self.lowest
        evidence = evidence_of_loss(
            [lead / span for lead in leads[known_before:]],
            left=len(leader_left),
            ahead=math.fsum(leads[:known_before]) / span,
        )
        return evidence >= (self.entrants - 1) / self.alpha


def cannot_pass(lead: float, leader_left: Sequence[float], *, highest: float) -> bool:
    """Whether the leader's total stays at least as high even if the candidate scores ``highest`` on all that is left.

    Args:
        lead: The leader's total minus the candidate's, on what both have run.
        leader_left: What the leader scores, at least, on each of the other examples.
        highest: The best score there is.

    >>> cannot_pass(2, [1, 1, 0, 0], highest=1), cannot_pass(1, [1, 1, 0, 0], highest=1)
    (True, False)
    """
    return lead >= math.fsum(highest - score for score in leader_left)


def evidence_of_loss(leads: Sequence[float], *, left: int, ahead: float = 0.0) -> float:
    """The most coins that one coin, bet on the leader, has become; with 20, alpha is 1/20.

    With x = (1 + lead) / 2 of each pair, the candidate is at least as good on all N = n + ``left`` pairs if their mean
    of x is at most m = (1 - ahead / N) / 2. Were it so, the next x of a random order would be expected to be at most
    m_i = (N m - x_1 - ... - x_(i-1)) / (N - i + 1), and with a stake of c the capital

        K_t = (1 + c (x_1 / m_1 - 1)) * ... * (1 + c (x_t / m_t - 1))

    would not grow on average. By Ville's inequality the largest K_t reaches 1/alpha with probability alpha at most, and
    so does the mean over several stakes.

    Args:
        leads: The leader's score minus the candidate's per pair, in the order they were run, in [-1, 1]. Shape (n,).
        left: Pairs that are still to be run.
        ahead: The leader's total minus the candidate's from before the first of ``leads``.

    Returns:
        1 or more; infinite where the candidate is behind whatever comes.

    Raises:
        ValueError: a lead outside [-1, 1].

    >>> [round(evidence_of_loss([1.0] * n, left=20), 1) for n in (0, 2, 4, 6)]
    [1.0, 2.7, 9.3, 41.5]
    """
    if not len(leads):
        return 1.0
    x = (1.0 + np.asarray(leads, dtype=np.float64)) / 2
    if x.min() < 0 or x.max() > 1:
        raise ValueError("a lead is not within -1 and 1")
    n = len(x)
    before = np.concatenate([[0.0], np.cumsum(x)[:-1]])
    expected = ((n + left - ahead) / 2 - before) / (n + left - np.arange(n))
    if ((behind := expected <= 0) & (x > 0)).any():
        return math.inf
    ratio = np.divide(x, expected, out=np.zeros(n), where=~behind)
    capital = np.cumprod(1 + np.asarray(STAKES)[:, None] * (ratio - 1), axis=1).mean(axis=0)
    return max(1.0, float(capital.max()))

"""What scores tell of combinations that share instructions and demos: a model of random effects.

A combination's mean score is the sum of what its instructions do, what its demos do and what only the two together do;
so is what they do to one example. Everything is normal, so that all of it is linear algebra.

References:
    Henderson, "Best Linear Unbiased Estimation and Prediction under a Selection Model", Biometrics 31, 1975.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product

import numpy as np
from numpy.typing import NDArray

from ratchet.algorithms.space import Combination
from ratchet.core.problem import Example

Array = NDArray[np.float64]

ROW_SHARE = 0.4
SHARES = ((ROW_SHARE, 0.1, 0.4), (ROW_SHARE, 0.1, 0.1), (ROW_SHARE, 0.3, 0.1))
"""Shares of a score's variance that are the example's (easy for all or hard for all), that are what an instruction
does to an example, and what demos do to it; the rest is the score's own. On TREC 0.39, 0.00 and 0.46 were measured."""
CONSTANT = 0.25
"""Variance of the constant that all candidates share, in that of a score."""
SPREADS = (0.1, 0.2, 0.4)
SHAPES = ((0.65, 0.65, 0.4), (0.4, 0.8, 0.45), (0.8, 0.4, 0.45))
"""Standard deviations, in those of a score, that effects may have: one of SPREADS times one of SHAPES, the latter for
instructions, demos and the two together. How well each explains the scores says how much it is believed."""
LEAST_WEIGHT = 0.01
"""A model that is so much less likely than the likeliest is not heard."""


def posterior(
    pool: Sequence[Combination], known: Mapping[Combination, Mapping[Example, float]], *, kinds: Sequence[str]
) -> tuple[Array, Array]:
    """Posterior mean and standard deviation of each combination's mean score, up to a constant.

    The score of combination k on example j is m_k + e_kj. m_k is the sum of a constant, an effect of each of k's
    options and one of k alone; e_kj the sum of what is the example's, what k's options do to the example, and noise.
    All are normal. Let C be the covariance of m, S the rows of C that belong to the known ones, and P and h what the
    scores tell of m (see ``told``). Then

        mean = S' (I + P C)^-1 h,   covariance = C - S' (I + P C)^-1 P S

    Each of the prior's spreads and shares counts by its likelihood.

    Args:
        pool: The combinations.
        known: Scores per combination and example; the combinations are in ``pool``.
        kinds: Whether each choice is of "instructions" or of "demos".

    Returns:
        Mean and standard deviation. Shape (len(pool),) each.

    References:
        Henderson 1975 (best linear unbiased prediction), without the inverse of C.
    """
    if not any(known.values()):
        return np.zeros(len(pool)), np.ones(len(pool))
    options = np.array(pool)
    at = [pool.index(each) for each in known]
    same = options[:, None, :] == options[None, at, :]
    alike = np.stack(
        [
            same[:, :, [each == "instructions" for each in kinds]].mean(axis=2),
            same[:, :, [each == "demos" for each in kinds]].mean(axis=2),
            same.all(axis=2),
        ]
    )  # (kinds of effects, pool, known)
    priors = np.array([(spread, *shape) for spread, shape in product(SPREADS, SHAPES)])
    models = []
    for shares in SHARES:
        p, h, variance, fit = told(list(known.values()), alike[:, at], shares=shares)
        effects = variance * (priors[:, :1] * priors[:, 1:]) ** 2  # (priors, kinds of effects)
        c = CONSTANT * variance + np.tensordot(effects, alike[:, at], axes=1)  # (priors, known, known)
        grown = np.eye(len(at)) + p @ c
        solved = np.linalg.solve(grown, np.broadcast_to(np.column_stack([h, p]), (len(priors), len(at), 1 + len(at))))
        evidence = fit + ((c @ solved[:, :, :1])[:, :, 0] @ h - np.linalg.slogdet(grown)[1]) / 2
        models += [(*each, variance) for each in zip(evidence, effects, solved, strict=True)]
    best = max(evidence for evidence, *_ in models)
    mean, square, weights = np.zeros(len(pool)), np.zeros(len(pool)), 0.0
    for evidence, effects, solved, variance in models:
        if (weight := float(np.exp(evidence - best))) < LEAST_WEIGHT:
            continue
        s = CONSTANT * variance + np.tensordot(effects, alike, axes=1)  # (pool, known)
        own = s @ solved[:, 0]
        mean += weight * own
        square += weight * (CONSTANT * variance + effects.sum() - ((s @ solved[:, 1:]) * s).sum(axis=1) + own**2)
        weights += weight
    mean /= weights
    return mean, np.sqrt(np.maximum(square / weights - mean**2, 0.0))


def told(
    scores: Sequence[Mapping[Example, float]], alike: Array, *, shares: tuple[float, float, float]
) -> tuple[Array, Array, float, float]:
    """What scores tell of the mean scores m of those who have them: precision P, and h = P times the best estimate.

    Given m, examples are independent of each other. On example j the scores y_j of those who were run on it, picked by
    N_j, have the mean N_j m and the covariance R_j: of any two the example's variance, and that of what the options
    they have in common do to the example. So the likelihood of m is, up to a factor, exp(h' m - m' P m / 2), where

        P = sum_j N_j' R_j^-1 N_j,   h = sum_j N_j' R_j^-1 y_j

    Args:
        scores: Score per example, of each candidate; there is one at least. Scores are taken from their mean.
        alike: How alike any two are in instructions, in demos, and in all. Shape (3, len(scores), len(scores)).
        shares: Of the variance that is the example's, the instructions' and the demos'.

    Returns:
        P, shape (len(scores), len(scores)); h, shape (len(scores),); the variance of the scores; and the logarithm of
        the likelihood's factor.
    """
    examples = {example: at for at, example in enumerate(dict.fromkeys(each for rows in scores for each in rows))}
    table = np.full((len(scores), len(examples)), np.nan)
    for row, found in enumerate(scores):
        for example, score in found.items():
            table[row, examples[example]] = score
    there = ~np.isnan(table)
    y = np.where(there, table - np.nanmean(table), 0.0)
    variance = max(float((y**2).sum() / there.sum()), 1e-6)
    by_row, by_instructions, by_demos = shares
    r = by_row + by_instructions * alike[0] + by_demos * alike[1] + (1 - sum(shares)) * alike[2]
    p, h, fit = np.zeros((len(scores), len(scores))), np.zeros(len(scores)), 0.0
    patterns, which = np.unique(there, axis=1, return_inverse=True)
    for number, pattern in enumerate(patterns.T):
        ran = np.flatnonzero(pattern)
        rows = y[np.ix_(ran, np.flatnonzero(which.ravel() == number))]
        r_j = variance * r[np.ix_(ran, ran)]
        inverse = np.linalg.inv(r_j)
        p[np.ix_(ran, ran)] += rows.shape[1] * inverse
        told_of = inverse @ rows
        h[ran] += told_of.sum(axis=1)
        fit -= (rows.shape[1] * np.linalg.slogdet(r_j)[1] + (rows * told_of).sum()) / 2
    return p, h, variance, fit

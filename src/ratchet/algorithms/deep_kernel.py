"""A Gaussian process over instructions and demos whose kernel is learned: small networks, then Matern kernels.

One network reads the embedding of the instructions, one that of the demos, and a third what both of them say. The
covariance of two candidates is the sum of three Matern kernels, one on the output of each network: what the
instructions do, what the demos do, and what only the two together do. Networks and scales are fitted by the marginal
likelihood of the scores.

PyTorch is imported when a model is fitted, and not before. Weights are drawn from a generator of their own and
computation is in one thread, so that nothing global is changed and the same scores give the same model.

References:
    Schneider et al., "Hyperband-based Bayesian Optimization for Black-box Prompt Selection", 2025, arXiv 2412.07820,
    sec. 4.1 (the structural-aware deep kernel).
    Wilson et al., "Deep Kernel Learning", AISTATS 2016, eqs. (5)-(7).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

HIDDEN, FEATURES = 16, 8
CONSTANT = 0.25
"""Variance of the constant that all candidates share, in that of a score."""
AMPLITUDES = (0.15, 0.15, 0.08)
"""Standard deviations, in those of a score, that the effects of instructions, demos and both together are expected to
have; the fit moves them."""
AMPLITUDE_SD = 0.7
"""How far they may move: standard deviation of their logarithms."""
WEIGHT_DECAY = 10.0
"""Precision of the prior that holds weights where they began, in units of the scale they were drawn with. A weak one
learns the noise of the few scores there are: docs/decisions/0011."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """How a model is fitted.

    Attributes:
        device: Where: "cpu", or a PyTorch device such as "cuda".
        steps: Steps of Adam from the first weights.
        more_steps: Steps from the weights of an earlier fit to the scores there are now.
        rate: Its learning rate.
        seed: Seeds the first weights.
    """

    device: str = "cpu"
    steps: int = 30
    more_steps: int = 5
    rate: float = 0.02
    seed: int = 0


Learned = tuple[Array, ...]
"""How far a fit has moved each weight and amplitude."""


def posterior(
    instructions: Array,
    demos: Array,
    *,
    known: Sequence[int],
    precision: Array,
    told: Array,
    variance: float,
    fit: Fit,
    learned: Learned = (),
) -> tuple[Array, Array, Learned]:
    """Posterior mean and covariance of each candidate's mean score, up to a constant.

    With C the covariance of the known candidates and S that of the known with all, the likelihood
    exp(h' m - m' P m / 2) of the known means m gives

        mean = S' (I + P C)^-1 h,   covariance = C_all - S' (I + P C)^-1 P S
        log marginal likelihood = (h' C (I + P C)^-1 h - log det(I + P C)) / 2 + a constant

    Args:
        instructions: Embedding of each candidate's instructions. Shape (n, d).
        demos: Embedding of each candidate's demos. Shape (n, e).
        known: Which candidates have scores.
        precision: P. Shape (len(known), len(known)).
        told: h. Shape (len(known),).
        variance: The variance of a score; scales the prior.
        fit: How the model is fitted.
        learned: Where an earlier fit ended, to go on from there.

    Returns:
        Mean, shape (n,), covariance, shape (n, n), and what was learned.
    """
    import torch

    with _one_thread(torch):
        kind = {"dtype": torch.float64, "device": fit.device}
        x = [torch.tensor(_centred(part), **kind) for part in (instructions, demos)]
        p, h = torch.tensor(precision * variance, **kind), torch.tensor(told * variance**0.5, **kind)
        at = torch.tensor(list(known), device=fit.device)
        weights = _drawn(torch, [each.shape[1] for each in x], fit)
        shapes: list[tuple[int, ...]] = [*(tuple(each.shape) for each in weights), (len(AMPLITUDES),)]
        begin = learned or tuple(np.zeros(shape) for shape in shapes)
        *moved, amplitudes = (torch.tensor(each, requires_grad=True, **kind) for each in begin)
        eye = torch.eye(len(known), **kind)
        descent = torch.optim.Adam([*moved, amplitudes], lr=fit.rate)

        def covariance(parts: Sequence[Any]) -> Any:
            now = [start + scale * move for (start, scale), move in zip(_scaled(weights), moved, strict=True)]
            scales = torch.tensor(AMPLITUDES, **kind) * torch.exp(AMPLITUDE_SD * amplitudes)
            features = _features(torch, parts, now)
            kernels = [scale**2 * _matern(torch, each) for scale, each in zip(scales, features, strict=True)]
            return CONSTANT + sum(kernels)

        near = [each[at] for each in x]
        for _ in range(fit.more_steps if learned else fit.steps):
            descent.zero_grad()
            c = covariance(near)
            grown = eye + p @ c
            fitted = h @ c @ torch.linalg.solve(grown, h)
            evidence = (fitted - torch.linalg.slogdet(grown)[1]) / 2
            prior = (amplitudes**2).sum() / 2 + WEIGHT_DECAY * sum((move**2).sum() for move in moved) / 2
            (prior - evidence).backward()
            descent.step()
        with torch.no_grad():
            c = covariance(x)
            s = c[at]
            solved = torch.linalg.solve(eye + p @ s[:, at], torch.cat([h[:, None], p @ s], dim=1))
            mean = s.T @ solved[:, 0]
            left = c - s.T @ solved[:, 1:]
            ends = tuple(each.cpu().numpy() for each in (*moved, amplitudes))
        return mean.cpu().numpy() * variance**0.5, left.cpu().numpy() * variance, ends


@contextmanager
def _one_thread(torch: Any) -> Iterator[None]:
    """Sums in one thread are the same sums every time; and searches side by side do not fight for the cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _centred(embeddings: Array) -> Array:
    """Embeddings less their mean and at a mean square of 1: prompts share most of their words."""
    centred = embeddings - embeddings.mean(axis=0)
    return np.asarray(centred / max(float(np.sqrt((centred**2).mean())), 1e-9))


def _drawn(torch: Any, widths: Sequence[int], fit: Fit) -> list[Any]:
    """First weights of the three networks, each of two layers."""
    generator = torch.Generator().manual_seed(fit.seed)
    shapes = []
    for width in (*widths, 2 * FEATURES):
        shapes += [(width, HIDDEN), (HIDDEN, FEATURES)]
    return [
        (torch.randn(*shape, generator=generator, dtype=torch.float64) / shape[0] ** 0.5).to(fit.device)
        for shape in shapes
    ]


def _scaled(weights: Sequence[Any]) -> list[tuple[Any, float]]:
    return [(each, each.shape[0] ** -0.5) for each in weights]


def _features(torch: Any, parts: Sequence[Any], weights: Sequence[Any]) -> list[Any]:
    """What each of the three networks makes of the candidates. Shape (n, FEATURES) each."""
    one, other = (_network(torch, part, weights[2 * at : 2 * at + 2]) for at, part in enumerate(parts))
    return [one, other, _network(torch, torch.cat([one, other], dim=1), weights[4:6])]


def _network(torch: Any, x: Any, weights: Sequence[Any]) -> Any:
    return torch.tanh(x @ weights[0]) @ weights[1] * 2


def _matern(torch: Any, features: Any) -> Any:
    """Matern 5/2 with a length of sqrt(FEATURES); Rasmussen and Williams 2006, eq. (4.17)."""
    squares = (features**2).sum(dim=1)
    squared = (squares[:, None] + squares - 2 * features @ features.T).clamp_min(1e-12) * (5 / FEATURES)
    r = torch.sqrt(squared)
    return (1 + r + squared / 3) * torch.exp(-r)

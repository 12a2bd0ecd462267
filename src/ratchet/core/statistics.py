"""Statistics of a gain: paired comparison, power, noise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """A paired difference, after minus before, with all that is needed to judge it.

    Attributes:
        effect: Mean difference.
        interval: Confidence interval of the mean difference.
        confidence: Level of ``interval``.
        p_value: Two-sided p of "no difference".
        n: Pairs.
        method: How interval and p were computed, with draws and seed.
    """

    effect: float
    interval: tuple[float, float]
    confidence: float
    p_value: float
    n: int
    method: str


def compare_paired(
    before: Sequence[float], after: Sequence[float], *, seed: int, confidence: float = 0.95, draws: int = 10_000
) -> Comparison:
    raise NotImplementedError


def minimum_detectable_effect(n: int, *, sd: float, alpha: float = 0.05, power: float = 0.8) -> float:
    raise NotImplementedError

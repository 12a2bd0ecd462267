"""Dominance and fronts; every objective is maximized."""

from __future__ import annotations

from collections.abc import Sequence


def dominates(a: Sequence[float], b: Sequence[float]) -> bool:
    """Whether ``a`` is nowhere worse than ``b`` and somewhere better.

    Args:
        a: Objective values, higher is better. Shape (n_objectives,).
        b: Objective values of the same objectives. Shape (n_objectives,).

    >>> dominates((1.0, 2.0), (1.0, 1.0))
    True
    >>> dominates((1.0, 2.0), (2.0, 1.0)), dominates((1.0, 1.0), (1.0, 1.0))
    (False, False)
    """
    pairs = list(zip(a, b, strict=True))
    return all(x >= y for x, y in pairs) and any(x > y for x, y in pairs)


def pareto_front(points: Sequence[Sequence[float]]) -> list[int]:
    """Indices of the points that no other point dominates, in order; equal points stand or fall together.

    Args:
        points: Objective values, higher is better. Shape (n_points, n_objectives).

    >>> pareto_front([(0.0, 3.0), (1.0, 1.0), (2.0, 2.0)])
    [0, 2]
    """
    return [index for index, point in enumerate(points) if not any(dominates(other, point) for other in points)]

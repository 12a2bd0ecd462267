"""Dominance, fronts and their volume, and the points of a front worth naming; every objective is maximized."""

from __future__ import annotations

import math
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


def nondominated_sort(points: Sequence[Sequence[float]]) -> list[list[int]]:
    """Indices of the points by rank: those that nothing dominates, those that only these dominate, and so on.

    Args:
        points: Objective values, higher is better. Shape (n_points, n_objectives).

    References:
        Deb et al., "A Fast and Elitist Multiobjective Genetic Algorithm: NSGA-II", IEEE TEC 6, 2002, section III A.

    >>> nondominated_sort([(0.0, 3.0), (1.0, 1.0), (2.0, 2.0), (0.0, 1.0)])
    [[0, 2], [1], [3]]
    """
    below = [[other for other, that in enumerate(points) if dominates(point, that)] for point in points]
    above = [0] * len(points)
    for dominated in below:
        for index in dominated:
            above[index] += 1
    ranks = []
    front = [index for index, count in enumerate(above) if count == 0]
    while front:
        ranks.append(front)
        for index in front:
            for dominated_index in below[index]:
                above[dominated_index] -= 1
        freed = {other for index in front for other in below[index]}
        front = sorted(index for index in freed if above[index] == 0)
    return ranks


def crowding_distance(points: Sequence[Sequence[float]]) -> list[float]:
    """How far each point is from its neighbours on either side, summed over the objectives; higher is lonelier.

    Each objective is scaled to its range over ``points``; the ends of a range are infinitely far.

    Args:
        points: Objective values of one rank. Shape (n_points, n_objectives).

    References:
        Deb et al., 2002, section III B.

    >>> crowding_distance([(0.0, 4.0), (1.0, 3.0), (4.0, 0.0)])
    [inf, 2.0, inf]
    """
    distance = [0.0] * len(points)
    for values in zip(*points, strict=True):
        order = sorted(range(len(points)), key=lambda index: values[index])
        distance[order[0]] = distance[order[-1]] = math.inf
        span = values[order[-1]] - values[order[0]]
        for before, index, after in zip(order, order[1:], order[2:], strict=False):
            distance[index] += (values[after] - values[before]) / span if span else 0.0
    return distance


def crowded_order(points: Sequence[Sequence[float]]) -> list[int]:
    """Indices of the points as NSGA-II prefers them: by rank, and within a rank the lonelier first.

    Args:
        points: Objective values, higher is better. Shape (n_points, n_objectives).

    References:
        Deb et al., 2002, section III B, the crowded-comparison operator.

    >>> crowded_order([(2.0,), (5.0,), (3.0,)])
    [1, 2, 0]
    """
    order = []
    for rank in nondominated_sort(points):
        lonely = crowding_distance([points[index] for index in rank])
        order += [index for _, index in sorted(zip(lonely, rank, strict=True), key=lambda pair: (-pair[0], pair[1]))]
    return order


def hypervolume(points: Sequence[Sequence[float]], reference: Sequence[float]) -> float:
    """Volume dominated by ``points`` and bounded by ``reference``; higher is better. Exact.

    The last objective is cut into slices, and each is as high as it is and as wide as the volume of the points that
    reach it. Made for fronts of up to some hundred points and few objectives.

    Args:
        points: Objective values, higher is better. Shape (n_points, n_objectives).
        reference: A point no better than any of ``points``. Shape (n_objectives,).

    Raises:
        ValueError: a point is worse than ``reference`` in some objective.

    References:
        While, Hingston, Barone, Huband, "A faster algorithm for calculating hypervolume", IEEE TEC 10, 2006 (HSO).

    >>> hypervolume([(2.0, 1.0), (1.0, 2.0)], (0.0, 0.0))
    3.0
    """
    for point in points:
        if any(value < least for value, least in zip(point, reference, strict=True)):
            raise ValueError(f"the point {tuple(point)} is worse than the reference {tuple(reference)}")
    distinct = list(dict.fromkeys(tuple(point) for point in points))
    return _volume([distinct[index] for index in pareto_front(distinct)], tuple(reference))


def _volume(points: Sequence[tuple[float, ...]], reference: tuple[float, ...]) -> float:
    if not points:
        return 0.0
    if len(reference) == 1:
        return max(point[0] for point in points) - reference[0]
    high_to_low = sorted(points, key=lambda point: point[-1], reverse=True)
    if len(reference) == 2:
        volume, reached = 0.0, reference[0]
        for x, y in high_to_low:
            volume += max(0.0, x - reached) * (y - reference[1])
            reached = max(reached, x)
        return volume
    volume = 0.0
    floors = [*(point[-1] for point in high_to_low[1:]), reference[-1]]
    for n, (point, floor) in enumerate(zip(high_to_low, floors, strict=True), start=1):
        if point[-1] > floor:
            shadows = [each[:-1] for each in high_to_low[:n]]
            volume += (point[-1] - floor) * _volume([shadows[i] for i in pareto_front(shadows)], reference[:-1])
    return volume


def knee(front: Sequence[Sequence[float]]) -> int:
    """Index of the point of ``front`` that gives up least of everything, each objective scaled to its range over it.

    It is the point farthest beyond the plane through the best of each objective.

    Args:
        front: Objective values of points of which none dominates another. Shape (n_points, n_objectives).

    Raises:
        ValueError: there is no point.

    References:
        Das, "On characterizing the 'knee' of the Pareto curve based on normal-boundary intersection", Structural
        Optimization 18, 1999.

    >>> knee([(0.0, 10.0), (0.8, 9.0), (1.0, 0.0)])
    1
    """
    if not front:
        raise ValueError("a front without points has no knee")
    shares = [0.0] * len(front)
    for values in zip(*front, strict=True):
        low, span = min(values), max(values) - min(values)
        shares = [share + ((value - low) / span if span else 0.0) for share, value in zip(shares, values, strict=True)]
    return max(range(len(front)), key=lambda index: shares[index])


def most_at_no_loss(front: Sequence[Sequence[float]], *, of: int, floor: float) -> int | None:
    """Index of the point with the most of objective ``of`` among those whose first objective is at least ``floor``.

    Of equals the one with more of the first objective. None when no point reaches ``floor``.

    >>> most_at_no_loss([(0.5, 9.0), (0.7, 5.0), (0.8, 1.0)], of=1, floor=0.6)
    1
    """
    enough = [index for index, point in enumerate(front) if point[0] >= floor]
    return max(enough, key=lambda index: (front[index][of], front[index][0]), default=None)

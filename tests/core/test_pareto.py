"""Fronts hold no dominated point, ranks come in order, and volumes are those of a reference implementation."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pymoo.indicators.hv import HV
from pymoo.operators.survival.rank_and_crowding.metrics import calc_crowding_distance
from pymoo.util.nds.non_dominated_sorting import NonDominatedSorting

from ratchet.core.pareto import (
    crowded_order,
    crowding_distance,
    dominates,
    hypervolume,
    knee,
    most_at_no_loss,
    nondominated_sort,
    pareto_front,
)

Points = list[tuple[float, ...]]


def points(*, least: int = 0, coarse: bool = True) -> st.SearchStrategy[Points]:
    """Points of two to four objectives; coarse ones are often equal in some."""
    value = st.integers(0, 5).map(float) if coarse else st.floats(0, 10)
    return st.integers(1, 4).flatmap(lambda n: st.lists(st.tuples(*[value] * n), min_size=least, max_size=14))


def origin(found: Points) -> tuple[float, ...]:
    return (0.0,) * (len(found[0]) if found else 1)


@given(points())
def test_nothing_in_a_front_is_dominated_and_everything_else_is(found: Points) -> None:
    front = [found[index] for index in pareto_front(found)]
    assert not any(dominates(a, b) for a in found for b in front)
    assert all(point in front or any(dominates(each, point) for each in front) for point in found)


@given(points())
def test_every_rank_is_the_front_of_what_is_left(found: Points) -> None:
    left = list(range(len(found)))
    for rank in nondominated_sort(found):
        assert rank == [left[index] for index in pareto_front([found[index] for index in left])]
        left = [index for index in left if index not in rank]
    assert left == []


@given(points(least=1))
def test_ranks_are_those_of_the_reference(found: Points) -> None:
    expected = NonDominatedSorting().do(-np.array(found))
    assert [sorted(rank) for rank in expected] == nondominated_sort(found)


def test_crowding_is_that_of_the_reference() -> None:
    rng = random.Random(0)
    for n_objectives in (2, 3):
        found = [tuple(rng.random() for _ in range(n_objectives)) for _ in range(12)]
        # Its authors divide by the number of objectives.
        expected = calc_crowding_distance(np.array(found)) * n_objectives
        assert crowding_distance(found) == pytest.approx(list(expected))


@given(points(least=1))
def test_the_ends_of_every_objective_are_infinitely_lonely(found: Points) -> None:
    distance = crowding_distance(found)
    for values in zip(*found, strict=True):
        assert any(distance[i] == math.inf for i, value in enumerate(values) if value == min(values))
        assert any(distance[i] == math.inf for i, value in enumerate(values) if value == max(values))
    assert min(distance) >= 0


@given(points())
def test_who_dominates_is_preferred(found: Points) -> None:
    order = crowded_order(found)
    assert sorted(order) == list(range(len(found)))
    place = {index: at for at, index in enumerate(order)}
    assert all(place[a] < place[b] for a in place for b in place if dominates(found[a], found[b]))


# --- volumes ----------------------------------------------------------------------------------------------------------


@given(points(least=1, coarse=False))
def test_a_volume_is_that_of_the_reference(found: Points) -> None:
    expected = HV(ref_point=np.zeros(len(found[0])))(-np.array(found))
    assert hypervolume(found, origin(found)) == pytest.approx(float(expected), abs=1e-9)


@given(points(least=1), st.randoms(use_true_random=False))
def test_order_repeats_and_dominated_points_do_not_matter(found: Points, rng: random.Random) -> None:
    front = [found[index] for index in pareto_front(found)]
    shuffled = rng.sample(found + front, len(found) + len(front))
    assert hypervolume(shuffled, origin(found)) == pytest.approx(hypervolume(front, origin(found)))


@given(points(least=2))
def test_another_point_never_takes_away(found: Points) -> None:
    without = hypervolume(found[1:], origin(found))
    volume = hypervolume(found, origin(found))
    assert volume >= without - 1e-9
    if any(dominates(each, found[0]) for each in found[1:]):
        assert volume == pytest.approx(without)


@given(st.lists(st.floats(0, 9), min_size=1, max_size=5))
def test_one_point_is_a_box(point: list[float]) -> None:
    assert hypervolume([point], [0.0] * len(point)) == pytest.approx(math.prod(point))
    assert hypervolume([], [0.0] * len(point)) == 0.0


def test_a_point_below_the_reference_is_refused() -> None:
    with pytest.raises(ValueError, match="worse than the reference"):
        hypervolume([(1.0, -0.1)], (0.0, 0.0))


# --- points worth naming ----------------------------------------------------------------------------------------------


def front_of(found: Points) -> Sequence[tuple[float, ...]]:
    return [found[index] for index in pareto_front(found)]


@given(points(least=1), st.floats(0.1, 10), st.floats(-5, 5))
def test_a_knee_does_not_depend_on_units(found: Points, scale: float, shift: float) -> None:
    front = list(dict.fromkeys(front_of(found)))
    stretched = [(scale * point[0] + shift, *point[1:]) for point in front]
    shares = [knee_share(front, index) for index in (knee(front), knee(stretched))]
    assert shares[0] == pytest.approx(shares[1])
    assert shares[0] == pytest.approx(max(knee_share(front, index) for index in range(len(front))))


def knee_share(front: Sequence[tuple[float, ...]], index: int) -> float:
    """How much of every range a point has, added up."""
    total = 0.0
    for values in zip(*front, strict=True):
        low, high = min(values), max(values)
        total += (values[index] - low) / (high - low) if high > low else 0.0
    return total


@given(points(least=1), st.floats(0, 6))
def test_the_cheapest_at_no_loss_loses_nothing_and_nothing_cheaper_does(found: Points, floor: float) -> None:
    front, of = front_of(found), len(found[0]) - 1
    chosen = most_at_no_loss(front, of=of, floor=floor)
    enough = [point for point in front if point[0] >= floor]
    if chosen is None:
        assert enough == []
    else:
        assert front[chosen] in enough
        assert front[chosen][of] == max(point[of] for point in enough)


def test_an_empty_front_has_no_knee() -> None:
    with pytest.raises(ValueError, match="without points"):
        knee([])

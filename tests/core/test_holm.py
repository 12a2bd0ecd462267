"""Holm's correction."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ratchet.core.statistics import holm

P_VALUES = st.lists(st.floats(0, 1), min_size=1, max_size=12)


def test_it_is_what_one_computes_by_hand() -> None:
    # Sorted: 0.005 * 4, 0.011 * 3, 0.02 * 2, 0.04 * 1; the last two are 0.04 alike.
    assert holm([0.04, 0.005, 0.02, 0.011]) == pytest.approx((0.04, 0.02, 0.04, 0.033))


def test_a_smaller_product_after_a_larger_one_takes_the_larger() -> None:
    # 0.01 * 3 = 0.03, 0.02 * 2 = 0.04, and 0.03 * 1 = 0.03 is raised to 0.04.
    assert holm([0.03, 0.01, 0.02]) == pytest.approx((0.04, 0.03, 0.04))


def test_one_comparison_and_none_need_no_correction() -> None:
    assert holm([0.03]) == (0.03,)
    assert holm([]) == ()


@pytest.mark.parametrize("bad", [-0.1, 1.1, float("nan")])
def test_what_is_no_p_value_is_refused(bad: float) -> None:
    with pytest.raises(ValueError, match="no p-value"):
        holm([0.5, bad])


@given(P_VALUES)
def test_it_lies_between_no_correction_and_bonferronis(p_values: list[float]) -> None:
    for before, after in zip(p_values, holm(p_values), strict=True):
        assert before <= after <= min(1.0, len(p_values) * before)


@given(P_VALUES)
def test_it_keeps_the_order_of_strength(p_values: list[float]) -> None:
    pairs = sorted(zip(p_values, holm(p_values), strict=True))
    corrected = [after for _, after in pairs]
    assert corrected == sorted(corrected)


@given(P_VALUES, st.randoms(use_true_random=False))
def test_the_order_in_which_they_are_given_does_not_matter(p_values: list[float], rng: object) -> None:
    order = list(range(len(p_values)))
    rng.shuffle(order)  # type: ignore[attr-defined]
    whole = holm(p_values)
    assert holm([p_values[index] for index in order]) == pytest.approx([whole[index] for index in order])

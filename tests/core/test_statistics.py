"""Statistics against SciPy, against what must hold for any scores, and against simulated truth."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Callable
from functools import cache

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

from ratchet.core.statistics import (
    Comparison,
    compare_paired,
    mean_interval,
    minimum_detectable_effect,
    noise_sd,
    relative_change,
    sample_size,
    sd_of_difference,
)

Array = NDArray[np.float64]
Pairs = Callable[[np.random.Generator, int], tuple[Array, Array]]

SCORES = st.one_of(
    st.sampled_from([0.0, 1.0]),
    st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0]),
    st.integers(0, 1000).map(lambda k: k / 1000),
)
PAIRS = st.one_of(
    st.lists(st.tuples(st.sampled_from([0.0, 1.0]), st.sampled_from([0.0, 1.0])), min_size=2, max_size=40),
    st.lists(st.tuples(SCORES, SCORES), min_size=2, max_size=40),
)


def _compare(before: Array, after: Array, *, seed: int = 0, draws: int = 10_000) -> Comparison:
    return compare_paired(before.tolist(), after.tolist(), seed=seed, draws=draws)


# Against SciPy


@pytest.mark.parametrize(("better", "worse"), [(7, 0), (12, 3), (1, 1), (0, 5), (30, 14), (9, 10)])
def test_binary_scores_get_mcnemars_exact_p(better: int, worse: int) -> None:
    before = [0] * better + [1] * worse + [0] * 6 + [1] * 6
    after = [1] * better + [0] * worse + [0] * 6 + [1] * 6
    expected = stats.binomtest(better, better + worse, 0.5).pvalue
    comparison = compare_paired(before, after, seed=0)
    assert comparison.p_value == pytest.approx(expected, rel=1e-12)
    assert comparison.effect == (better - worse) / len(before)


@pytest.mark.parametrize("seed", range(4))
def test_few_graded_scores_get_scipys_exact_permutation_p(seed: int) -> None:
    rng = np.random.default_rng(seed)
    before, after = rng.choice([0, 0.25, 0.5, 1], 10), rng.choice([0, 0.5, 0.75, 1], 10)
    reference = stats.permutation_test(
        (before, after), lambda x, y: np.mean(y - x), permutation_type="samples", n_resamples=np.inf
    )
    assert _compare(before, after).p_value == pytest.approx(reference.pvalue, rel=1e-9)


def test_many_graded_scores_get_scipys_permutation_p_within_the_error_of_the_draws() -> None:
    rng = np.random.default_rng(5)
    before = rng.uniform(size=60)
    after = before + rng.normal(0.05, 0.2, 60)
    reference = stats.permutation_test(
        (before, after),
        lambda x, y, axis: np.mean(y - x, axis=axis),
        permutation_type="samples",
        vectorized=True,
        rng=1,
    )
    assert _compare(before, after).p_value == pytest.approx(reference.pvalue, abs=0.015)


def test_a_p_value_from_draws_is_never_zero() -> None:
    before = np.linspace(0.0, 0.4, 50)
    comparison = _compare(before, before + np.linspace(0.3, 0.5, 50), draws=999)
    assert comparison.p_value == 1 / 1000


def test_tangos_interval_ends_where_the_likelihood_says() -> None:
    n, better, worse = 60, 20, 5
    low, high = compare_paired(
        [0] * better + [1] * worse + [1] * (n - better - worse),
        [1] * better + [0] * worse + [1] * (n - better - worse),
        seed=0,
    ).interval
    for delta in (low, high):
        worse_share = np.linspace(max(0.0, -delta), (1 - delta) / 2, 400_001)[1:-1]
        same = 1 - 2 * worse_share - delta
        likelihood = better * np.log(worse_share + delta) + worse * np.log(worse_share)
        likelihood += (n - better - worse) * np.log(same)
        q = worse_share[np.argmax(likelihood)]
        z = (better - worse - n * delta) / math.sqrt(n * (2 * q + delta - delta**2))
        assert abs(z) == pytest.approx(stats.norm.ppf(0.975), abs=1e-3)


def test_without_skew_or_ties_the_interval_is_close_to_scipys() -> None:
    rng = np.random.default_rng(1)
    before = rng.uniform(size=80)
    after = before + rng.normal(0.1, 0.2, 80)
    low, high = _compare(before, after).interval
    t = stats.ttest_rel(after, before).confidence_interval()
    bca = stats.bootstrap((after - before,), np.mean, rng=np.random.default_rng(0)).confidence_interval
    for reference in (t, bca):
        assert low == pytest.approx(reference.low, abs=0.006)
        assert high == pytest.approx(reference.high, abs=0.006)


@pytest.mark.parametrize(("successes", "n"), [(0, 20), (8, 10), (150, 150), (37, 90)])
def test_the_interval_of_a_success_rate_is_wilsons(successes: int, n: int) -> None:
    reference = stats.binomtest(successes, n).proportion_ci(method="wilson")
    low, high = mean_interval([1] * successes + [0] * (n - successes), seed=0)
    assert low == pytest.approx(reference.low, abs=1e-12)
    assert high == pytest.approx(reference.high, abs=1e-12)


# For any scores


@settings(max_examples=60, deadline=None)
@given(PAIRS, st.integers(0, 5))
def test_intervals_widen_with_confidence(pairs: list[tuple[float, float]], seed: int) -> None:
    before, after = zip(*pairs, strict=True)
    narrow, wide = (
        compare_paired(before, after, seed=seed, confidence=level, draws=200).interval for level in (0.8, 0.95)
    )
    assert wide[0] <= narrow[0] <= narrow[1] <= wide[1]
    assert (
        mean_interval(after, seed=seed, draws=200, confidence=0.95)[1]
        >= (mean_interval(after, seed=seed, draws=200, confidence=0.8)[1])
    )


@settings(max_examples=60, deadline=None)
@given(PAIRS, st.randoms(use_true_random=False))
def test_the_order_of_pairs_does_not_matter(pairs: list[tuple[float, float]], random: object) -> None:
    shuffled = list(pairs)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    first, second = (compare_paired(*zip(*p, strict=True), seed=3, draws=200) for p in (pairs, shuffled))
    assert first == second


@settings(max_examples=60, deadline=None)
@given(PAIRS)
def test_swapping_before_and_after_mirrors_the_comparison(pairs: list[tuple[float, float]]) -> None:
    before, after = zip(*pairs, strict=True)
    there, back = compare_paired(before, after, seed=3, draws=200), compare_paired(after, before, seed=3, draws=200)
    assert back.effect == -there.effect
    assert back.interval == pytest.approx((-there.interval[1], -there.interval[0]), abs=1e-12)
    assert back.p_value == there.p_value


@settings(max_examples=60, deadline=None)
@given(PAIRS, st.sampled_from([0.25, 2.0, 128.0]))
def test_scores_in_another_unit_give_the_same_p_and_a_scaled_interval(
    pairs: list[tuple[float, float]], unit: float
) -> None:
    before, after = (np.array(column) for column in zip(*pairs, strict=True))
    assume((before != after).any())
    one, other = (_compare(k * before, k * after, seed=3, draws=200) for k in (1.0, unit))
    assert other.p_value == one.p_value
    assert other.effect == pytest.approx(unit * one.effect, abs=1e-9)
    assert other.interval == pytest.approx((unit * one.interval[0], unit * one.interval[1]), rel=1e-9, abs=1e-9)


@settings(max_examples=100, deadline=None)
@given(PAIRS, st.sampled_from([0.9, 0.95]))
def test_the_interval_holds_the_effect_and_claims_nothing_that_p_does_not(
    pairs: list[tuple[float, float]], confidence: float
) -> None:
    before, after = zip(*pairs, strict=True)
    comparison = compare_paired(before, after, seed=0, confidence=confidence, draws=200)
    low, high = comparison.interval
    assert low <= comparison.effect <= high
    assert all(map(math.isfinite, (low, high)))
    assert 0 < comparison.p_value <= 1
    if comparison.p_value >= 1 - confidence:
        assert low <= 0 <= high


def test_no_difference_anywhere_is_no_effect_with_an_interval_of_its_own_width() -> None:
    comparison = compare_paired([1.0] * 50, [1.0] * 50, seed=0)
    assert (comparison.effect, comparison.p_value) == (0.0, 1.0)
    z2 = stats.norm.ppf(0.975) ** 2
    assert comparison.interval == pytest.approx((-z2 / (50 + z2), z2 / (50 + z2)))
    assert compare_paired([70.0] * 50, [70.0] * 50, seed=0).interval == pytest.approx(
        (-70 * z2 / (50 + z2), 70 * z2 / (50 + z2))
    )


@pytest.mark.parametrize(
    ("before", "after"), [([1.0], [0.0]), ([], []), ([1, 0], [1]), ([1, math.nan], [1, 0]), ([1, 0], [math.inf, 0])]
)
def test_pairs_that_cannot_be_compared_are_refused(before: list[float], after: list[float]) -> None:
    with pytest.raises(ValueError):
        compare_paired(before, after, seed=0)


def test_the_method_names_what_was_done() -> None:
    rng = np.random.default_rng(0)
    before, after = rng.uniform(size=(2, 30))
    assert _compare(before, after, seed=7, draws=500).method == (
        "sign-flip test, 500 draws, seed 7; interval: inverted sign-flip test widened by the studentized bootstrap, "
        "500 draws, seed 7"
    )
    assert "all 64 flips" in compare_paired([0.1] * 6, [0.2, 0.3, 0.4, 0.5, 0.6, 0.7], seed=0).method


def test_an_amount_that_never_varies_has_no_interval_around_it_but_a_perfect_score_has() -> None:
    assert mean_interval([0.0] * 30, seed=0, highest=math.inf) == (0.0, 0.0)
    assert mean_interval([1.0] * 30, seed=0)[0] < 0.9
    assert mean_interval([0.9, 1.0, 1.0, 0.2], seed=0, highest=1.0)[1] == 1.0


@pytest.mark.parametrize("values", [[], [0.5], [0.5, -0.1], [math.nan, 1.0]])
def test_a_mean_without_an_interval_is_refused(values: list[float]) -> None:
    with pytest.raises(ValueError):
        mean_interval(values, seed=0)


def test_relative_change_of_nothing_is_not_a_number() -> None:
    assert relative_change(0.0, 0.4) is None
    assert relative_change(0.4, 0.3) == pytest.approx(-25.0)


# Power and noise


@given(st.floats(0.01, 0.9), st.floats(0.05, 1.0), st.sampled_from([0.05, 0.01]), st.sampled_from([0.8, 0.9]))
def test_sample_size_is_the_first_n_whose_detectable_effect_is_small_enough(
    effect: float, sd: float, alpha: float, power: float
) -> None:
    n = sample_size(effect, sd=sd, alpha=alpha, power=power)
    assert minimum_detectable_effect(n, sd=sd, alpha=alpha, power=power) <= effect * (1 + 1e-9)
    assert minimum_detectable_effect(n - 1, sd=sd, alpha=alpha, power=power) > effect * (1 - 1e-9)


def test_the_detectable_effect_is_detected_as_often_as_promised() -> None:
    rng = np.random.default_rng(0)
    for n in (20, 80):
        before = rng.uniform(size=(1000, n))
        after = before + rng.normal(minimum_detectable_effect(n, sd=0.3), 0.3, (1000, n))
        proven = np.mean([_compare(before[run], after[run], seed=run, draws=500).p_value < 0.05 for run in range(1000)])
        assert 0.76 < proven < 0.84


def test_too_few_pairs_detect_nothing_at_all() -> None:
    assert minimum_detectable_effect(5, sd=0.1) == math.inf
    assert sample_size(10.0, sd=0.1) == 6
    assert compare_paired([0.0] * 5, [1.0] * 5, seed=0).p_value > 0.05
    with pytest.raises(ValueError):
        sample_size(0.0, sd=0.1)


def test_noise_is_pooled_within_examples_and_unknown_without_repeats() -> None:
    rng = np.random.default_rng(0)
    runs = rng.uniform(size=(400, 1)) + rng.normal(0, 0.1, (400, 3))
    assert noise_sd([tuple(row) for row in runs]) == pytest.approx(0.1, abs=0.005)
    assert noise_sd([[0.3], [0.9]]) is None


@settings(max_examples=40, deadline=None)
@given(st.floats(0.05, 0.95), st.floats(0.0, 1.0), st.integers(0, 99))
def test_the_guess_is_not_below_the_spread_of_an_uncorrelated_gain(share: float, gain: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    before = (rng.random(4000) < share).astype(float).tolist()
    after = (rng.random(4000) < share + gain * (1 - share)).astype(float).tolist()
    assert sd_of_difference(before) >= float(np.std(np.subtract(after, before))) - 0.02
    assert sd_of_difference(before, headroom=0.0) <= sd_of_difference(before) + 1e-12


# Simulated truth


def _binary(better: float, worse: float) -> Pairs:
    def draw(rng: np.random.Generator, n: int) -> tuple[Array, Array]:
        what, right = rng.random(n), rng.random(n) < 0.6
        before = np.where(what < better, False, np.where(what < better + worse, True, right))
        return before.astype(float), np.where(what < better + worse, ~before, before).astype(float)

    return draw


def _shifted(change: Callable[[np.random.Generator, int], Array], *, share: float = 1.0) -> Pairs:
    def draw(rng: np.random.Generator, n: int) -> tuple[Array, Array]:
        before = rng.uniform(size=n)
        return before, before + (rng.random(n) < share) * change(rng, n)

    return draw


def _graded(*after: float) -> Pairs:
    def draw(rng: np.random.Generator, n: int) -> tuple[Array, Array]:
        return rng.choice([0, 0.5, 1], n, p=[0.2, 0.3, 0.5]), rng.choice([0, 0.5, 1], n, p=after)

    return draw


TRUTHS: dict[str, tuple[Pairs, float]] = {
    "binary, few change": (_binary(0.10, 0.02), 0.08),
    "binary, many change": (_binary(0.30, 0.10), 0.20),
    "binary, nothing gained": (_binary(0.15, 0.15), 0.0),
    "graded, nothing gained": (_graded(0.2, 0.3, 0.5), 0.0),
    "graded, gained": (_graded(0.1, 0.2, 0.7), 0.15),
    "continuous, gained": (lambda rng, n: (rng.beta(1, 1, n), rng.beta(2, 1, n)), 1 / 6),
    "continuous, nothing gained": (_shifted(lambda rng, n: rng.normal(0, 0.2, n)), 0.0),
    "skewed amounts": (lambda rng, n: (rng.exponential(1, n), rng.exponential(1.5, n)), 0.5),
    "three in ten change": (_shifted(lambda rng, n: rng.uniform(-1, 1, n), share=0.3), 0.0),
}
SPARSE: dict[str, tuple[Pairs, float]] = {
    "binary, hardly any change": (_binary(0.02, 0.02), 0.0),
    "one in ten changes": (_shifted(lambda rng, n: rng.uniform(-1, 1, n), share=0.1), 0.0),
    "one in seven gains": (_shifted(lambda rng, n: rng.uniform(0.2, 1, n), share=0.15), 0.09),
    "one in twenty gains": (_shifted(lambda rng, n: rng.uniform(0.2, 1, n), share=0.05), 0.03),
}
RUNS = 1000


@cache
def _simulated(name: str, n: int) -> tuple[float, float, float]:
    """Coverage of the 95 % interval, share of claimed gains, and share where p claims and the interval does not."""
    pairs, truth = {**TRUTHS, **SPARSE}[name]
    rng = np.random.default_rng(20)
    held = claimed = apart = 0
    for run in range(RUNS):
        before, after = pairs(rng, n)
        comparison = _compare(before, after, seed=run, draws=399)
        low, high = comparison.interval
        held += low <= truth <= high
        claimed += comparison.p_value < 0.05 and low > 0
        apart += comparison.p_value < 0.05 and low <= 0 <= high
    return held / RUNS, claimed / RUNS, apart / RUNS


@pytest.mark.parametrize("n", [30, 150])
@pytest.mark.parametrize("name", TRUTHS)
def test_a_95_percent_interval_holds_the_truth_in_95_percent_of_draws(name: str, n: int) -> None:
    coverage, _, apart = _simulated(name, n)
    assert 0.93 <= coverage <= (0.975 if n == 150 else 0.985)
    assert apart <= 0.05


@pytest.mark.parametrize("n", [20, 80])
@pytest.mark.parametrize("name", SPARSE)
def test_where_hardly_anything_changes_the_interval_is_wide_rather_than_wrong(name: str, n: int) -> None:
    assert _simulated(name, n)[0] >= 0.94


@pytest.mark.parametrize("n", [30, 150])
@pytest.mark.parametrize("name", [name for name, (_, truth) in TRUTHS.items() if truth == 0])
def test_a_gain_that_is_not_there_is_claimed_in_at_most_3_percent_of_draws(name: str, n: int) -> None:
    assert _simulated(name, n)[1] <= 0.03


@pytest.mark.parametrize("n", [20, 80])
def test_hardly_any_change_is_not_claimed_as_a_gain_either(n: int) -> None:
    assert max(_simulated(name, n)[1] for name, (_, truth) in SPARSE.items() if truth == 0) <= 0.03


@pytest.mark.parametrize("n", [20, 150])
@pytest.mark.parametrize(
    ("name", "draw", "truth", "highest"),
    [
        ("success rate", lambda rng, n: (rng.random(n) < 0.7).astype(float), 0.7, 1.0),
        ("graded score", lambda rng, n: rng.choice([0, 0.5, 1], n, p=[0.2, 0.3, 0.5]), 0.65, 1.0),
        ("continuous score", lambda rng, n: rng.beta(5, 2, n), 5 / 7, 1.0),
        ("latency", lambda rng, n: rng.lognormal(6, 0.6, n), math.exp(6.18), math.inf),
        ("cost", lambda rng, n: 0.001 * rng.gamma(2, 1, n), 0.002, math.inf),
    ],
)
def test_the_interval_of_a_mean_holds_it_in_95_percent_of_draws(
    name: str, draw: Callable[[np.random.Generator, int], Array], truth: float, highest: float, n: int
) -> None:
    rng = np.random.default_rng(21)
    intervals = [mean_interval(draw(rng, n).tolist(), seed=run, draws=399, highest=highest) for run in range(RUNS)]
    assert 0.93 <= np.mean([low <= truth <= high for low, high in intervals]) <= 0.985


def test_importing_the_core_does_not_import_scipy() -> None:
    code = "import sys, ratchet.core.statistics; raise SystemExit('scipy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

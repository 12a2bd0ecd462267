"""Statistics of a gain: paired comparison, power, noise.

Intervals were chosen by simulated coverage at n = 20..150, which ``tests/core/test_statistics.py`` repeats. Left
aside: BCa (holds the truth in 84-92 % of draws when most differences are zero), Student's t (88-92 % on skewed amounts)
and the studentized bootstrap alone (86-92 % when most differences are zero).

No method sees what a sample does not hold. Where rare large losses (one example in ten) cancel small gains everywhere
else, one sample of twenty in eight holds no loss, and a gain is claimed in 13 % of draws at n = 20, in 2 % at n = 40.
Where they cancel small gains on 15 % of the examples, it is 8 % at n = 40 and 3 % at n = 150.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Interval = tuple[float, float]

ENUMERATED = 16
"""Up to this many non-zero differences all their sign flips are enumerated: 65,536."""

FEW = 15
"""With fewer non-zero differences a bootstrap sees too few of them to tell the spread of the unseen ones."""

_CHUNK = 2_000_000  # random numbers held at once


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
    """How much higher ``after`` is than ``before``, pair by pair.

    p is that of the sign-flip permutation test: exact where all differences have one size (McNemar's exact test) or
    few are not zero, else from ``draws`` random flips, counting the observed one. The interval is, for scores of two
    values, Tango's score interval; else the inverted sign-flip test (the quantiles of random subsets' means: Hartigan's
    typical values), widened by the studentized bootstrap against skew. Where few differences are not zero, it is
    widened away from zero by the t interval that knows of one more pair in each direction, as far apart as any two of
    the scores (the idea of Bonett and Price). Where p is not below ``1 - confidence`` the interval reaches to 0, so
    that it never claims what p does not; the reverse is rare, and a gain should be claimed only when both agree.
    Where no pair differs, the interval is Tango's of no change in either direction, in units of the scores' spread (or,
    where all are one value, of that value): about 3.8 / n to either side.

    The order of the pairs does not matter, and swapping ``before`` and ``after`` mirrors the result exactly.

    Args:
        before: Baseline scores, higher is better. Shape (n,).
        after: Scores on the same examples, in the same order. Shape (n,).
        seed: Seeds the random flips and resamples.
        confidence: Level of the interval.
        draws: Random flips, and as many resamples.

    Raises:
        ValueError: fewer than two pairs, unequal lengths, a score that is not finite, or a level outside (0, 1).

    References:
        Phipson and Smyth, "Permutation p-values should never be zero", 2010, eq. (2).
        McNemar, "Note on the sampling error of the difference between correlated proportions", 1947; exact form.
        Tango, "Equivalence test and confidence interval for the difference in proportions for the paired-sample
        design", Statistics in Medicine 17, 1998: the score test and its inversion.
        Hartigan, "Using subsample values as typical values", JASA 64, 1969, theorem 1.
        Hall, "Theoretical comparison of bootstrap confidence intervals", Annals of Statistics 16, 1988 (percentile-t).
        Bonett and Price, "Adjusted Wald confidence interval for a difference of binomial proportions based on paired
        data", JEBS 37, 2012.

    >>> gain = compare_paired([0, 0, 0, 0, 0, 0, 0, 1, 1, 1], [1, 1, 1, 1, 1, 1, 1, 1, 1, 1], seed=0)
    >>> gain.effect, gain.p_value, [round(end, 3) for end in gain.interval]
    (0.7, 0.015625, [0.228, 0.892])
    >>> gain.method
    'exact McNemar test (7 better, 0 worse); Tango score interval'
    """
    b, a = _finite(before), _finite(after)
    if len(b) != len(a):
        raise ValueError(f"pairs need equal lengths: {len(b)} before, {len(a)} after")
    if len(b) < 2:
        raise ValueError(f"a comparison needs at least 2 pairs, not {len(b)}")
    if draws < 1:
        raise ValueError(f"at least 1 draw, not {draws}")
    alpha = _alpha(confidence)
    values = np.unique(np.concatenate([b, a]))
    span = float(values[-1] - values[0])
    differences = np.sort(a - b)
    differences[np.abs(differences) <= 1e-9 * span] = 0.0
    n, changed = len(differences), int(np.count_nonzero(differences))
    effect = math.fsum(differences) / n
    if abs(effect) <= 1e-9 * span:
        effect = 0.0
    ends: Interval
    if not changed:
        width = _tango(n, 0, 0, alpha)[1] * (span or float(np.abs(values).max()) or 1.0)
        ends, p_value, method = (-width, width), 1.0, "no pair differs; Tango score interval"
    elif len(values) == 2:
        better, worse = int((differences > 0).sum()), int((differences < 0).sum())
        p_value = _mcnemar(better, worse)
        low, high = _tango(n, better, worse, alpha)
        ends = (low * span, high * span)
        method = f"exact McNemar test ({better} better, {worse} worse); Tango score interval"
    else:
        # Counting from the side on which the mean lies makes a swap of before and after mirror the result exactly.
        seen = differences if effect >= 0 else -differences[::-1]
        ends, p_value, method = _flips(seen, span=span, alpha=alpha, seed=seed, draws=draws)
        if effect < 0:
            ends = (-ends[1], -ends[0])
        elif effect == 0:
            ends = (-max(-ends[0], ends[1]), max(-ends[0], ends[1]))
    if p_value >= alpha:
        ends = (min(ends[0], 0.0), max(ends[1], 0.0))
    return Comparison(
        effect=effect,
        interval=(min(ends[0], effect), max(ends[1], effect)),
        confidence=confidence,
        p_value=p_value,
        n=n,
        method=method,
    )


def mean_interval(
    values: Sequence[float],
    *,
    seed: int,
    confidence: float = 0.95,
    draws: int = 10_000,
    highest: float | None = None,
) -> tuple[float, float]:
    """Confidence interval of one mean of values that are never negative.

    Wilson's score interval where all values are 0 or 1; else the wider of Student's t and the studentized bootstrap on
    either side, kept within what a mean can be. Where few values differ from the commonest one, Student's t that knows
    of one more pair of values, as far apart as the furthest.

    Args:
        values: Scores, dollars or milliseconds, each at least 0. Shape (n,).
        seed: Seeds the resamples.
        confidence: Level of the interval.
        draws: Resamples.
        highest: What a value can at most be. ``math.inf`` says that the values are amounts (dollars, milliseconds), for
            which a 0 or 1 is a number like any other. None: values that are all 0 or 1 are successes, others amounts.

    Raises:
        ValueError: no value (or one, when it is an amount), a value not finite or out of range, or a level outside
            (0, 1).

    References:
        Wilson, "Probable inference, the law of succession, and statistical inference", JASA 22, 1927.
        Hall, "Theoretical comparison of bootstrap confidence intervals", Annals of Statistics 16, 1988 (percentile-t).

    >>> [round(end, 4) for end in mean_interval([1] * 8 + [0] * 2, seed=0)]
    [0.4902, 0.9433]
    >>> mean_interval([0.0, 0.0, 0.0], seed=0, highest=math.inf)
    (0.0, 0.0)
    """
    x = np.sort(_finite(values))
    alpha = _alpha(confidence)
    n = len(x)
    top = math.inf if highest is None else highest
    if n and (x[0] < 0 or x[-1] > top):
        raise ValueError(f"values from {x[0]} to {x[-1]} are not within 0 and {top}")
    if n and highest != math.inf and bool(np.isin(x, (0.0, 1.0)).all()):
        return _wilson(int(x.sum()), n, alpha)
    if n < 2:
        raise ValueError(f"an interval needs at least 2 values, not {n}")
    if x[0] == x[-1]:
        return float(x[0]), float(x[0])
    careful = _student(x, alpha, extra=2.0 * float(x[-1] - x[0]) ** 2)
    if n - int(np.unique(x, return_counts=True)[1].max()) < FEW:
        low, high = careful
    else:
        boot = _studentized(x, alpha=alpha, rng=np.random.default_rng(seed), draws=draws, widest=careful)
        low, high = _hull(_student(x, alpha), boot)
    return max(low, 0.0), min(high, top)


def relative_change(before_mean: float, after_mean: float) -> float | None:
    """Change from ``before_mean`` to ``after_mean`` in percent of it; None when it is 0.

    >>> relative_change(0.5, 0.75)
    50.0
    """
    if before_mean == 0:
        return None
    return 100.0 * (after_mean - before_mean) / abs(before_mean)


def holm(p_values: Sequence[float]) -> tuple[float, ...]:
    """Each p-value, corrected for being one of several, in the order given; lower is stronger.

    A family in which those at or below alpha are called differences calls a false one with a chance of at most alpha,
    however the tests depend on each other.

    Args:
        p_values: One per comparison, each in [0, 1].

    Raises:
        ValueError: a value is not in [0, 1].

    References:
        Holm, "A simple sequentially rejective multiple test procedure", Scandinavian Journal of Statistics 6, 1979.

    >>> [round(p, 3) for p in holm([0.01, 0.04, 0.03, 0.005])]
    [0.03, 0.06, 0.06, 0.02]
    """
    if bad := [p for p in p_values if not 0.0 <= p <= 1.0]:
        raise ValueError(f"{bad[0]} is no p-value")
    corrected, highest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda each: p_values[each])):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[index]))
        corrected[index] = highest
    return tuple(corrected)


def minimum_detectable_effect(n: int, *, sd: float, alpha: float = 0.05, power: float = 0.8) -> float:
    """The smallest mean difference that ``n`` pairs prove with probability ``power``.

    sd * (z(1 - alpha/2) + z(power)) / sqrt(n - z(1 - alpha/2)**2 / 2): the two-sided paired t test's normal
    approximation with Guenther's correction. Infinite where 2**(1 - n), the smallest p of a sign-flip test, is not
    below ``alpha``.

    Args:
        n: Pairs.
        sd: Standard deviation of the differences.
        alpha: Two-sided level.
        power: Probability of proving an effect of this size.

    References:
        Guenther, "Sample size formulas for normal theory t tests", The American Statistician 35, 1981.

    >>> round(minimum_detectable_effect(100, sd=0.5), 4)
    0.1414
    """
    z, both = _z(alpha, power, sd)
    if n < 1 or 2.0 ** (1 - n) >= alpha:
        return math.inf
    return sd * both / math.sqrt(n - z * z / 2)


def sample_size(effect: float, *, sd: float, alpha: float = 0.05, power: float = 0.8) -> int:
    """The fewest pairs that prove a mean difference of ``effect`` with probability ``power``.

    The inverse of ``minimum_detectable_effect``.

    Args:
        effect: Mean difference to prove; its sign does not matter.
        sd: Standard deviation of the differences.
        alpha: Two-sided level.
        power: Probability of proving it.

    Raises:
        ValueError: ``effect`` is 0, which no number of pairs proves.

    >>> sample_size(0.05, sd=0.5)
    787
    """
    z, both = _z(alpha, power, sd)
    if effect == 0 or not math.isfinite(effect):
        raise ValueError(f"no number of pairs proves an effect of {effect}")
    least = math.floor(1 - math.log2(alpha)) + 1  # the first n with 2**(1 - n) < alpha
    return max(least, math.ceil(float((both * sd / effect) ** 2) + z * z / 2 - 1e-9))


def noise_sd(repeats: Sequence[Sequence[float]]) -> float | None:
    """Standard deviation of a score when the same example is run again, pooled over examples.

    sqrt(sum of squared deviations from each example's own mean / (runs - examples)), over examples run at least twice.

    Args:
        repeats: Per example, the scores of its runs.

    Returns:
        The pooled deviation; None when no example was run twice.

    >>> noise_sd([[0.0, 1.0], [1.0, 1.0], [0.5]])
    0.5
    """
    squares, degrees = 0.0, 0
    for scores in repeats:
        if len(scores) >= 2:
            x = _finite(scores)
            squares += float(((x - x.mean()) ** 2).sum())
            degrees += len(x) - 1
    return math.sqrt(squares / degrees) if degrees else None


def sd_of_difference(before: Sequence[float], *, headroom: float | None = None, top: float = 1.0) -> float:
    """An upper guess of the standard deviation of after minus before, when only ``before`` is known.

    sqrt(v + m (top - m)), v being the variance of ``before`` and m the mean in [mean(before), mean(before) + headroom]
    that makes it largest: top/2 or the end nearer to it. It is exceeded only if the optimized program scores worse on
    average than the baseline, or does well just where the baseline fails (a negative correlation): m (top - m) is the
    largest variance of scores in [0, top] with mean m, and a correlation of 0 adds the variances.

    Args:
        before: Baseline scores in [0, top]. Shape (n,).
        headroom: The largest gain of the mean thought possible; None: all that is left, ``top - mean(before)``.
        top: The best score.

    Raises:
        ValueError: no score, a score outside [0, top], or a negative headroom.

    References:
        Bhatia and Davis, "A better bound on the variance", The American Mathematical Monthly 107, 2000, theorem 1.

    >>> round(sd_of_difference([1, 1, 1, 0, 0, 1, 1, 0, 1, 1]), 4)
    0.6481
    """
    x = _finite(before)
    if not len(x) or x.min() < 0 or x.max() > top:
        raise ValueError(f"baseline scores must be there and within 0 and {top}")
    mean = float(x.mean())
    left = top - mean if headroom is None else min(headroom, top - mean)
    if left < 0:
        raise ValueError(f"headroom cannot be negative: {left}")
    m = min(max(top / 2, mean), mean + left)
    return math.sqrt(float(x.var()) + m * (top - m))


def _finite(scores: Sequence[float]) -> Array:
    x = np.asarray(scores, dtype=np.float64)
    if x.ndim != 1:
        raise ValueError(f"scores must be one row of numbers, not of shape {x.shape}")
    if not np.isfinite(x).all():
        raise ValueError("a score is not a finite number")
    return x


def _alpha(confidence: float) -> float:
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must be between 0 and 1, not {confidence}")
    return round(1.0 - confidence, 12)  # 0.05, not 0.050000000000000044, so that p == 0.05 is judged as it reads


def _z(alpha: float, power: float, sd: float) -> tuple[float, float]:
    if not (0 < alpha < 1 and 0 < power < 1 and sd >= 0):
        raise ValueError(f"alpha {alpha} and power {power} must be within 0 and 1, and sd {sd} not negative")
    z = NormalDist().inv_cdf(1 - alpha / 2)
    return z, z + NormalDist().inv_cdf(power)


def _hull(first: Interval, second: Interval) -> Interval:
    return min(first[0], second[0]), max(first[1], second[1])


def _mcnemar(better: int, worse: int) -> float:
    """Two-sided exact p that ``better`` and ``worse`` are halves of their sum."""
    changed = better + worse
    tail = sum(math.comb(changed, k) for k in range(min(better, worse) + 1))
    return min(1.0, 2 * tail / (1 << changed))


def _tango(n: int, better: int, worse: int, alpha: float) -> Interval:
    """Tango (1998): the differences in proportions that the score test does not reject."""
    z = NormalDist().inv_cdf(1 - alpha / 2)
    effect = (better - worse) / n

    def score(delta: float) -> float:  # falls in delta
        a, b, c = 2 * n, (2 * n - better + worse) * delta - better - worse, -worse * delta * (1 - delta)
        q21 = (math.sqrt(max(b * b - 4 * a * c, 0.0)) - b) / (2 * a)  # share that got worse, were delta the truth
        variance = n * (2 * q21 + delta * (1 - delta))
        gap = better - worse - n * delta
        return gap / math.sqrt(variance) if variance > 1e-15 else math.copysign(math.inf, gap) if gap else 0.0

    def where(low: float, high: float, level: float) -> float:
        for _ in range(60):
            middle = (low + high) / 2
            low, high = (middle, high) if score(middle) > level else (low, middle)
        return (low + high) / 2

    return (where(-1.0, effect, z) if effect > -1 else -1.0, where(effect, 1.0, -z) if effect < 1 else 1.0)


def _wilson(successes: int, n: int, alpha: float) -> Interval:
    z = NormalDist().inv_cdf(1 - alpha / 2)
    share = successes / n
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return (0.0 if successes == 0 else middle - half, 1.0 if successes == n else middle + half)


def _student(x: Array, alpha: float, *, extra: float = 0.0) -> Interval:
    """Student's interval of the mean, with ``extra`` added to the sum of squares."""
    from scipy.special import stdtrit

    n, mean = len(x), math.fsum(x) / len(x)
    half = float(stdtrit(n - 1, 1 - alpha / 2)) * math.sqrt((float(((x - mean) ** 2).sum()) + extra) / (n - 1) / n)
    return mean - half, mean + half


def _studentized(x: Array, *, alpha: float, rng: np.random.Generator, draws: int, widest: Interval) -> Interval:
    """Hall's percentile-t interval of the mean, at most twice as far out as ``widest``: resamples without spread give
    ends without a limit."""
    n, mean, sd = len(x), float(x.mean()), float(x.std(ddof=1))
    t = np.empty(draws)
    for start in range(0, draws, step := max(1, _CHUNK // n)):
        sample = x[rng.integers(0, n, (min(step, draws - start), n))]
        gap, spread = sample.mean(axis=1) - mean, sample.std(axis=1, ddof=1)
        flat = spread <= 1e-9 * sd
        t[start : start + step] = gap / np.where(flat, 1.0, spread)
        t[start : start + step][flat & (gap > 0)] = np.inf
        t[start : start + step][flat & (gap < 0)] = -np.inf
    low, high = np.quantile(t, (alpha / 2, 1 - alpha / 2), method="inverted_cdf")
    reach = widest[1] - widest[0]
    return max(mean - float(high) * sd, mean - reach), min(mean - float(low) * sd, mean + reach)


def _flips(d: Array, *, span: float, alpha: float, seed: int, draws: int) -> tuple[Interval, float, str]:
    """Interval, p and method from sign flips of ``d``, which is sorted and whose mean is not below 0.

    Were theta < mean(d) the truth, flipping the signs of d - theta in a subset F gives a sum at least as far out as
    the observed one exactly if the mean of d in F, or outside F, is at most theta; and the mirror image above mean(d).
    So the same subsets give p and interval.
    """
    rng = np.random.default_rng(seed)
    n = len(d)
    below = np.empty(2 * draws)
    for start in range(0, draws, step := max(1, _CHUNK // n)):
        flipped = rng.integers(0, 2, (min(step, draws - start), n)).astype(np.float64)
        size = flipped.sum(axis=1)
        with np.errstate(invalid="ignore"):
            below[2 * start : 2 * start + len(size)] = flipped @ d / size
            below[2 * start + len(size) : 2 * start + 2 * len(size)] = (1.0 - flipped) @ d / (n - size)
    below[np.abs(below) <= 1e-9 * span] = 0.0
    low_means = np.sort(np.where(np.isnan(below), -np.inf, below))  # the empty subset counts against every theta
    high_means = np.sort(np.where(np.isnan(below), np.inf, below))
    rank = math.ceil(alpha * (draws + 1) - 1)  # the least number of subsets with which p(theta) >= alpha
    careful = _student(d, alpha, extra=2 * span * span)
    inverted = _hull(careful, (float(d[0]), float(d[-1])))  # stands where no flip, so no confidence, is rare enough
    if rank >= 1 and math.isfinite(low_means[rank - 1]):
        inverted = float(low_means[rank - 1]), float(high_means[-rank])

    changed = d[d != 0]
    sizes = np.abs(changed)
    if np.allclose(sizes, sizes[0], rtol=1e-9, atol=0.0):
        p_value = _mcnemar(int((changed > 0).sum()), int((changed < 0).sum()))
        test = "exact sign-flip test"
    elif len(changed) <= ENUMERATED:
        sums = np.zeros(1)
        for difference in changed:
            sums = np.concatenate([sums, sums + difference])
        total = float(changed.sum())
        p_value = float(np.mean(np.abs(total - 2 * sums) >= abs(total) - 1e-9 * span))
        test = f"sign-flip test, all {len(sums)} flips"
    elif d.mean() <= 1e-9 * span:
        p_value, test = 1.0, f"sign-flip test, {draws} draws, seed {seed}"
    else:
        p_value = (1 + int(np.searchsorted(low_means, 0.0, side="right"))) / (draws + 1)
        test = f"sign-flip test, {draws} draws, seed {seed}"

    if len(changed) < FEW:
        ends = (inverted[0], max(inverted[1], careful[1]))
        widened = "widened by one more pair of either sign"
    else:
        ends = _hull(inverted, _studentized(d, alpha=alpha, rng=rng, draws=draws, widest=careful))
        widened = "widened by the studentized bootstrap"
    ends = (max(ends[0], -span), min(ends[1], span))
    return ends, p_value, f"{test}; interval: inverted sign-flip test {widened}, {draws} draws, seed {seed}"

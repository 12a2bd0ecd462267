"""Drawings of the report: SVG that needs no script."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ratchet.core.problem import Candidate
from ratchet.core.result import Front, FrontPoint, Performance, TradeOff
from ratchet.core.statistics import Comparison
from ratchet.engine.page import (
    NOT_MEASURED,
    UNKNOWN,
    Show,
    as_count,
    as_milliseconds,
    as_number,
    as_percent,
    as_score,
    as_usd,
    signed,
    table,
    text,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class PairedExample:
    """One test example under both candidates; scores as they are counted, a failed run as 0.

    Attributes:
        label: A few words by which a reader knows the example.
        failure_before: Kind of failure of the baseline's run, or None.
        failure_after: Kind of failure of the optimized run, or None.
    """

    label: str
    before: float
    after: float
    failure_before: str | None = None
    failure_after: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CurvePoint:
    """The best mean validation score known after so many LM calls."""

    calls: int
    best: float


def svg(width: int, height: int, inside: str, *, label: str = "") -> str:
    """A drawing; one without a label is a bar that takes any width, whose numbers stand beside it in words."""
    what = f'role="img" aria-label="{label}"' if label else 'aria-hidden="true" preserveAspectRatio="none"'
    return f'<svg viewBox="0 0 {width} {height}" {what}>{inside}</svg>'


def ticks_of(low: float, high: float, *, about: int = 5) -> list[float]:
    """Round numbers within [low, high], a step of 1, 2 or 5 times a power of ten apart.

    >>> ticks_of(0.0, 1.0)
    [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    """
    if high <= low:
        return [low]
    power = 10.0 ** math.floor(math.log10((high - low) / about))
    step = next(power * k for k in (1, 2, 5, 10) if (high - low) / (power * k) <= about + 1e-9)
    return [round(k * step, 12) for k in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def _margin(values: Sequence[float]) -> tuple[float, float]:
    """The ends of an axis that ``values`` lie well within."""
    low, high = min(values), max(values)
    margin = 0.1 * (high - low) or 0.05 * abs(high) or 0.05
    return low - margin, high + margin


def interval_plot(comparison: Comparison) -> str:
    low, high = comparison.interval
    reach = max(abs(low), abs(high), 1e-9)
    left, right = min(low - reach * 0.1, -reach * 0.35), max(high + reach * 0.1, reach * 0.35)

    def x(value: float) -> float:
        return 20 + 680 * (value - left) / (right - left)

    ticks = "".join(
        f'<text x="{x(tick):.1f}" y="44" class="tick">{signed(as_number(tick)) if tick else "0"}</text>'
        f'<line class="grid" x1="{x(tick):.1f}" x2="{x(tick):.1f}" y1="26" y2="31"/>'
        for tick in ticks_of(left, right)
    )
    return svg(
        720,
        50,
        f'<line class="axis" x1="20" x2="700" y1="26" y2="26"/>{ticks}'
        f'<line class="zero" x1="{x(0):.1f}" x2="{x(0):.1f}" y1="2" y2="31"/>'
        f'<line class="bar" x1="{x(low):.1f}" x2="{x(high):.1f}" y1="14" y2="14"/>'
        f'<circle class="dot" cx="{x(comparison.effect):.1f}" cy="14" r="6"/>',
        label="Effect on quality with its interval, against no difference",
    )


def curve_plot(curve: Sequence[CurvePoint]) -> str:
    if not curve:
        return f"<p>{NOT_MEASURED}</p>"
    low, high = min(point.best for point in curve), max(point.best for point in curve)
    margin = (high - low) * 0.12 or 0.05
    low, high, last = low - margin, high + margin, max(curve[-1].calls, 1)

    def x(calls: float) -> float:
        return 56 + 630 * calls / last

    def y(best: float) -> float:
        return 210 - 190 * (best - low) / (high - low)

    grid = "".join(
        f'<line class="grid" x1="56" x2="686" y1="{y(tick):.1f}" y2="{y(tick):.1f}"/>'
        f'<text class="tick end" x="48" y="{y(tick) + 4:.1f}">{as_number(tick)}</text>'
        for tick in ticks_of(low, high)
    ) + "".join(f'<text class="tick" x="{x(tick):.1f}" y="228">{as_number(tick)}</text>' for tick in ticks_of(0, last))
    path = f"M{x(curve[0].calls):.1f} {y(curve[0].best):.1f}" + "".join(
        f"H{x(point.calls):.1f}V{y(point.best):.1f}" for point in curve[1:]
    )
    dots = "".join(
        f'<circle class="dot" cx="{x(point.calls):.1f}" cy="{y(point.best):.1f}" r="3.5">'
        f"<title>{as_score(point.best)} after {as_count(point.calls)} LM calls</title></circle>"
        for point in curve
    )
    first, final = curve[0], curve[-1]
    drawn = svg(
        720,
        250,
        f'{grid}<path class="line" d="{path}"/>{dots}<text class="tick" x="371" y="247">LM calls</text>',
        label="Best validation score so far against LM calls",
    )
    return (
        f"{drawn}\n<p><small>From {as_score(first.best)} after {as_count(first.calls)} LM calls "
        f"to {as_score(final.best)} after {as_count(final.calls)}. "
        "Chosen by this score, so it flatters; the sealed test does not.</small></p>"
    )


_TRADE_OFFS: dict[TradeOff, str] = {
    "best": "best quality",
    "knee": "knee",
    "cheapest": "cheapest at no loss",
    "fastest": "fastest at no loss",
}


def front_plot(front: Front, *, chosen: Candidate | None) -> str:
    """Quality against cost, or latency where cost is no objective, and a row for each point of the front."""
    by_cost = "cost" in front.objectives

    def names(point: FrontPoint) -> str:
        said = [_TRADE_OFFS[name] for name in point.trade_offs]
        return ", ".join([*said, *(["sealed test"] if chosen and point.candidate == chosen.key else [])])

    def cells(measured: Performance) -> str:
        values: tuple[tuple[float | None, Show], ...] = (
            (measured.quality_score, as_score),
            (measured.success_rate, as_percent),
            (measured.avg_cost_per_task, as_usd),
            (measured.avg_latency_ms, as_milliseconds),
        )
        return "".join(f"<td>{UNKNOWN if value is None else show(value)}</td>" for value, show in values)

    def place(measured: Performance) -> tuple[float, float]:
        x = measured.avg_cost_per_task if by_cost else measured.avg_latency_ms
        return x or 0.0, measured.quality_score or 0.0

    known = [place(point.performance) for point in front.points]
    everything = [*known, *([place(front.baseline)] if front.baseline else [])]
    (left, right), (low, high) = (_margin([point[axis] for point in everything]) for axis in (0, 1))

    def x(value: float) -> float:
        return 56 + 630 * (value - left) / (right - left)

    def y(value: float) -> float:
        return 210 - 190 * (value - low) / (high - low)

    show: Show = as_usd if by_cost else as_milliseconds
    drawn = "".join(
        f'<line class="grid" x1="56" x2="686" y1="{y(tick):.1f}" y2="{y(tick):.1f}"/>'
        f'<text class="tick end" x="48" y="{y(tick) + 4:.1f}">{as_number(tick)}</text>'
        for tick in ticks_of(low, high)
    ) + "".join(
        f'<text class="tick" x="{x(tick):.1f}" y="228">{show(tick)}</text>' for tick in ticks_of(left, right, about=4)
    )
    if len(front.objectives) == 2:  # of more, a drawing is only a shadow
        drawn += f'<path class="line" d="M{" L".join(f"{x(a):.1f} {y(b):.1f}" for a, b in sorted(known))}"/>'
    if front.baseline:
        a, b = place(front.baseline)
        drawn += (
            f'<g class="same"><circle class="hollow" cx="{x(a):.1f}" cy="{y(b):.1f}" r="6">'
            f"<title>baseline: {as_score(b)} at {show(a)}</title></circle></g>"
        )
    for point, (a, b) in zip(front.points, known, strict=True):
        drawn += (
            f'<circle class="dot" cx="{x(a):.1f}" cy="{y(b):.1f}" r="3.5"><title>{text(point.candidate)}: '
            f"{as_score(b)} at {show(a)}</title></circle>"
        )
        if said := names(point):
            drawn += f'<text class="tick" x="{x(a):.1f}" y="{y(b) - 9:.1f}">{said}</text>'
    axis = "cost per run" if by_cost else "latency"
    plot = svg(
        720,
        250,
        f'{drawn}<text class="tick" x="371" y="247">{axis}</text>',
        label=f"Quality against {axis} of the candidates of the front",
    )
    rows = "".join(
        f'<tr><th scope="row"><code>{text(point.candidate)}</code><small>{names(point)}</small></th>'
        f"{cells(point.performance)}</tr>\n"
        for point in front.points
    )
    if front.baseline:
        rows += f'<tr><th scope="row">baseline</th>{cells(front.baseline)}</tr>\n'
    n = front.baseline.n if front.baseline else 0
    return (
        f"{plot}\n{table(('', 'Quality', 'Success', 'Cost per run', 'Latency'), rows)}\n<p><small>{len(front.points)} "
        f"of {front.validated} candidates that were run on all {n} validation examples; no other one is at least as "
        "good in everything and better in something. Hollow: baseline. They were chosen by these figures, so they "
        "flatter.</small></p>"
    )


def pairs_plot(pairs: Sequence[PairedExample]) -> str:
    if not pairs:
        return f"<p>{NOT_MEASURED}</p>"
    ordered = sorted(pairs, key=lambda pair: (pair.after - pair.before, pair.before))
    groups = {
        "better": [pair for pair in ordered if pair.after > pair.before],
        "same": [pair for pair in ordered if pair.after == pair.before],
        "worse": [pair for pair in ordered if pair.after < pair.before],
    }
    names = {"better": "improved", "same": "unchanged", "worse": "worse"}
    counts = "".join(
        f'<span class="{group}"><b>{len(members)}</b> {names[group]}</span>' for group, members in groups.items()
    )
    shares, at = "", 0.0
    for group in ("worse", "same", "better"):
        width = 720 * len(groups[group]) / len(pairs)
        shares += f'<rect class="{group}" x="{at:.2f}" width="{max(0.0, width - 1.5):.2f}" height="10"/>'
        at += width
    low = min(0.0, *(min(pair.before, pair.after) for pair in pairs))
    high = max(1.0, *(max(pair.before, pair.after) for pair in pairs))
    gap = 640 / len(pairs)
    radius = min(4.0, max(1.2, gap * 0.42))

    def y(score: float) -> float:
        return 200 - 184 * (score - low) / (high - low)

    drawn = "".join(
        f'<line class="grid" x1="52" x2="708" y1="{y(tick):.1f}" y2="{y(tick):.1f}"/>'
        f'<text class="tick end" x="44" y="{y(tick) + 4:.1f}">{as_number(tick)}</text>'
        for tick in ticks_of(low, high)
    )
    for place, pair in enumerate(ordered):
        x = 60 + gap * (place + 0.5)
        group = "better" if pair.after > pair.before else "worse" if pair.after < pair.before else "same"
        drawn += (
            f'<g class="{group}"><title>{text(pair.label)}: {_outcome(pair.before, pair.failure_before)} to '
            f"{_outcome(pair.after, pair.failure_after)}</title>"
        )
        if group != "same":
            drawn += (
                f'<line class="stem" x1="{x:.1f}" x2="{x:.1f}" y1="{y(pair.before):.1f}" y2="{y(pair.after):.1f}"/>'
            )
            drawn += f'<circle class="hollow" cx="{x:.1f}" cy="{y(pair.before):.1f}" r="{radius:.1f}"/>'
        drawn += f'<circle class="full" cx="{x:.1f}" cy="{y(pair.after):.1f}" r="{radius:.1f}"/></g>'
    strip = svg(720, 10, shares)
    plot = svg(720, 212, drawn, label="Score of each test example before and after, worst change first")
    return (
        f'<p class="counts">{counts}</p>\n<div class="strip">{strip}</div>\n{plot}\n<p><small>{len(pairs)} test '
        "examples, ordered from the largest loss to the largest gain. Hollow: baseline; filled: optimized. A failed "
        "run counts 0.</small></p>"
    )


def _outcome(score: float, failure: str | None) -> str:
    return as_score(score) if failure is None else f"failed ({text(failure)})"

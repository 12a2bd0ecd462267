"""Report: what came of an optimization, as one HTML page that needs nothing but itself."""

from __future__ import annotations

import difflib
import html
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TypeAlias

from ratchet.core.problem import Candidate, Fields, canonical
from ratchet.core.result import Front, FrontPoint, Performance, Status, TradeOff
from ratchet.core.statistics import Comparison

NOT_MEASURED = '<span class="none">not measured</span>'
UNKNOWN = '<span class="none">unknown</span>'

_Show: TypeAlias = Callable[[float], str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Measure:
    """A mean over the sealed test and its confidence interval; None where it was not measured."""

    mean: float | None = None
    interval: tuple[float, float] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """One candidate on the sealed test.

    Attributes:
        quality: Mean score; failed runs count 0.
        success_rate: Share of runs that succeeded, from 0 to 1.
        cost_usd: Dollars per run.
        latency_ms: Milliseconds per run.
        failures: Failed runs per kind; None when nothing was run.
    """

    quality: Measure = Measure()
    success_rate: Measure = Measure()
    cost_usd: Measure = Measure()
    latency_ms: Measure = Measure()
    failures: Mapping[str, int] | None = None


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


@dataclass(frozen=True, slots=True, kw_only=True)
class PhaseSpend:
    """What one phase spent; None where it is not known."""

    phase: str
    calls: int | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    usd: float | None = None
    seconds: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """The limits of the budget; None where there is none."""

    calls: int | None = None
    tokens: int | None = None
    usd: float | None = None
    seconds: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LineageStep:
    """One ancestor of the chosen candidate, or the candidate itself.

    Attributes:
        candidate: Its key.
        origin: What made it.
        validation: Its mean validation score.
    """

    candidate: str
    origin: str
    validation: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """All that the page shows. What is None was not measured, and the page says so.

    Attributes:
        optimization_id: Which optimization.
        target: What was to be made better.
        status: How it ended.
        created_at: When the report was made.
        algorithm: What searched; None when no search ran.
        reason: The verdict in a sentence.
        comparison: Quality on the sealed test, optimized minus baseline, paired.
        success_comparison: Success rate, the same way.
        cost_comparison: Dollars per run, the same way.
        latency_comparison: Milliseconds per run, the same way.
        phases: Spend per phase, in order.
        total: Spend over all phases.
        curve: Improvements of the best validation score, in order.
        pairs: The test examples, if the sealed test was opened.
        before: The baseline.
        after: The chosen candidate; None when the baseline stays.
        lineage: From the seed to the chosen candidate.
        certificate: The certificate's file name; None when none was signed.
        front: Trade-offs between the objectives, on validation; it holds a point.
        notes: What a reader should know besides.
    """

    optimization_id: str
    target: str
    status: Status
    created_at: datetime
    algorithm: str | None = None
    reason: str = ""
    comparison: Comparison | None = None
    success_comparison: Comparison | None = None
    cost_comparison: Comparison | None = None
    latency_comparison: Comparison | None = None
    baseline: Side = Side()
    optimized: Side = Side()
    phases: tuple[PhaseSpend, ...] = ()
    total: PhaseSpend = PhaseSpend(phase="total")
    limits: Limits = Limits()
    curve: tuple[CurvePoint, ...] = ()
    pairs: tuple[PairedExample, ...] = ()
    before: Candidate | None = None
    after: Candidate | None = None
    lineage: tuple[LineageStep, ...] = ()
    certificate: str | None = None
    front: Front | None = None
    notes: tuple[str, ...] = ()


def render(report: Report) -> str:
    """The report as one HTML page: no script, no file or address outside itself, light and dark.

    >>> from datetime import UTC
    >>> page = render(Report(optimization_id="o-1", target="qa", status="declined", created_at=datetime.now(UTC)))
    >>> page.count("not measured") > 8, "<script" in page
    (True, False)
    """
    title = f"{text(report.target)} · {_VERDICT[report.status][0]}"
    sections = (
        _section("Measured on the sealed test", _measures(report)),
        _section("Test examples, before and after", _pairs(report.pairs)),
        _section("Best validation score against LM calls", _curve(report.curve)),
        _section("Trade-offs between the objectives", _front(report.front, chosen=report.after))
        if report.front
        else "",
        _section("What changed in the prompts", _changes(report.before, report.after)),
        _section("Lineage of the chosen candidate", _lineage(report.lineage)),
        _section("Failed runs by kind", _failures(report.baseline, report.optimized)),
        _section("Spend against budget", _spend(report)),
        _section("Notes", "".join(f"<p>{text(note)}</p>" for note in report.notes)) if report.notes else "",
        _section("Check it again", _recheck(report.certificate)),
    )
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n"
        f'<meta name="color-scheme" content="light dark">\n<title>{title}</title>\n<style>{_STYLE}</style>\n</head>\n'
        f"<body>\n<main>\n{_head(report)}\n{''.join(sections)}</main>\n</body>\n</html>\n"
    )


# Words and numbers


def text(value: object) -> str:
    """``value`` as HTML text, fit for an attribute too.

    >>> text('<b title="x">')
    '&lt;b title=&quot;x&quot;&gt;'
    """
    plain = str(value).encode("utf-8", "replace").decode()  # a lone surrogate cannot be written to a file
    return html.escape(re.sub(r"[\x00-\x08\x0b\x0c\x0e-\x1f]", "\ufffd", plain), quote=True)


def _score(value: float) -> str:
    return _minus(f"{value:.3f}")


def _percent(value: float) -> str:
    return _minus(f"{100 * value:.1f} %")


def _points(value: float) -> str:
    return _minus(f"{100 * value:.1f} points")


def _usd(value: float) -> str:
    """Dollars with three digits that count, but no fewer than cents.

    >>> _usd(12.3456), _usd(0.000123456), _usd(0.0)
    ('$12.35', '$0.000123', '$0.00')
    """
    digits = 2 if value == 0 else max(2, 2 - math.floor(math.log10(abs(value))))
    return _minus(f"{'-' if value < 0 else ''}${abs(value):,.{digits}f}")


def _milliseconds(value: float) -> str:
    return _minus(f"{value:,.0f} ms" if abs(value) >= 10 else f"{value:.2f} ms")


def _seconds(value: float) -> str:
    return f"{value:,.1f} s"


def _count(value: float) -> str:
    return f"{value:,.0f}"


def _minus(number: str) -> str:
    return "0" + number[2:] if re.fullmatch(r"-0(\.0*)?", number) else number.replace("-", "\N{MINUS SIGN}")


def _signed(number: str) -> str:
    return number if number.startswith("\N{MINUS SIGN}") else f"+{number}"


def _p(value: float) -> str:
    return "p &lt; 0.0001" if value < 0.0001 else f"p = {value:.4f}"


# The page's parts

_VERDICT: dict[Status, tuple[str, str]] = {
    "improved": ("Improved", "A gain was proven on examples that no search has seen."),
    "no_proven_gain": ("No proven gain", "What was measured can be chance. The baseline stays."),
    "declined": ("Declined", "The pre-flight found no way to prove a gain, so no search was paid for."),
    "failed": ("Failed", "The optimization stopped before it had a result. Nothing was changed."),
    "cancelled": ("Cancelled", "The optimization was stopped on request. Nothing was changed."),
    "running": ("Running", "The optimization has not ended yet."),
    "queued": ("Queued", "The optimization waits for a worker."),
    "paused": ("Paused", "The optimization was paused on request, and can go on."),
}


def _section(title: str, body: str) -> str:
    return f"<section>\n<h2>{title}</h2>\n{body}\n</section>\n"


def _head(report: Report) -> str:
    word, meaning = _VERDICT[report.status]
    made = text(report.created_at.strftime("%Y-%m-%d %H:%M %Z").strip())
    by = f" · searched by {text(report.algorithm)}" if report.algorithm else ""
    reason = f'<p class="reason">{text(report.reason)}</p>' if report.reason else ""
    return (
        f'<header class="{report.status}">\n<p class="about">Ratchet · {text(report.target)}{by}</p>\n'
        f"<h1><span>{word}.</span> {meaning}</h1>\n{reason}\n{_effect(report.comparison)}\n"
        f'<p class="about">{text(report.optimization_id)} · {made}</p>\n</header>'
    )


def _effect(comparison: Comparison | None) -> str:
    if comparison is None:
        return f'<p class="effect">Effect on quality: {NOT_MEASURED}</p>'
    low, high = comparison.interval
    return (
        f'<p class="effect">Effect on quality <strong>{_signed(_score(comparison.effect))}</strong>, '
        f"{100 * comparison.confidence:g} % interval {_signed(_score(low))} to {_signed(_score(high))}, "
        f"{_p(comparison.p_value)}, n = {comparison.n}</p>\n{_interval_plot(comparison)}\n"
        f'<p class="method">{text(comparison.method)}</p>'
    )


def _measures(report: Report) -> str:
    rows = (
        ("Quality", "higher is better", "quality", _score, _score, report.comparison),
        ("Success rate", "higher is better", "success_rate", _percent, _points, report.success_comparison),
        ("Cost per run", "lower is better", "cost_usd", _usd, _usd, report.cost_comparison),
        ("Latency", "lower is better", "latency_ms", _milliseconds, _milliseconds, report.latency_comparison),
    )
    body = ""
    for name, better, part, show, show_change, comparison in rows:
        cells = "".join(
            f"<td>{_measure(getattr(side, part), show)}</td>" for side in (report.baseline, report.optimized)
        )
        change = NOT_MEASURED
        if comparison is not None:
            low, high = (_signed(show_change(end)) for end in comparison.interval)
            change = f"{_signed(show_change(comparison.effect))}<small>{low} to {high}</small>"
        body += f'<tr><th scope="row">{name}<small>{better}</small></th>{cells}<td>{change}</td></tr>\n'
    return _table(("", "Baseline", "Optimized", "Paired change"), body)


def _measure(measure: Measure, show: _Show) -> str:
    if measure.mean is None:
        return NOT_MEASURED
    if measure.interval is None:
        return show(measure.mean)
    return f"{show(measure.mean)}<small>{show(measure.interval[0])} to {show(measure.interval[1])}</small>"


def _table(heads: Sequence[str], body: str, foot: str = "") -> str:
    cells = "".join(f'<th scope="col">{head}</th>' if head else "<td></td>" for head in heads)
    foot = foot and f"<tfoot>\n{foot}</tfoot>\n"
    return f'<div class="wide"><table>\n<thead><tr>{cells}</tr></thead>\n<tbody>\n{body}</tbody>\n{foot}</table></div>'


def _spend(report: Report) -> str:
    def row(phase: PhaseSpend) -> str:
        values: tuple[tuple[float | None, _Show], ...] = (
            (phase.calls, _count),
            (phase.prompt_tokens, _count),
            (phase.completion_tokens, _count),
            (phase.usd, _usd),
            (phase.seconds, _seconds),
        )
        cells = "".join(f"<td>{UNKNOWN if value is None else show(value)}</td>" for value, show in values)
        return f'<tr><th scope="row">{text(phase.phase)}</th>{cells}</tr>\n'

    total, limits = report.total, report.limits
    tokens = (
        None
        if total.prompt_tokens is None or total.completion_tokens is None
        else total.prompt_tokens + total.completion_tokens
    )
    meters = "".join(
        _meter(name, used, limit, show)
        for name, used, limit, show in (
            ("LM calls", total.calls, limits.calls, _count),
            ("Tokens", tokens, limits.tokens, _count),
            ("USD", total.usd, limits.usd, _usd),
            ("Time", total.seconds, limits.seconds, _seconds),
        )
    )
    heads = ("", "LM calls", "Prompt tokens", "Completion tokens", "USD", "Seconds")
    return f'<div class="meters">\n{meters}</div>\n' + _table(heads, "".join(map(row, report.phases)), row(total))


def _meter(name: str, used: float | None, limit: float | None, show: _Show) -> str:
    shown = UNKNOWN if used is None else show(used)
    against = "no limit" if limit is None else f"of {show(limit)}"
    bar = ""
    if used is not None and limit:
        share = 100 * min(1.0, max(0.0, used / limit))
        used_up = f'<rect class="used" width="{share:.2f}" height="4"/>'
        bar = _svg(100, 4, f'<rect class="track" width="100" height="4"/>{used_up}')
    return f"<div><small>{name}</small><b>{shown}</b> <small>{against}</small>{bar}</div>\n"


def _failures(baseline: Side, optimized: Side) -> str:
    if baseline.failures is None and optimized.failures is None:
        return f"<p>{NOT_MEASURED}</p>"
    kinds = sorted({*(baseline.failures or {}), *(optimized.failures or {})})

    def row(name: str, counts: Sequence[int | None]) -> str:
        cells = "".join(f"<td>{NOT_MEASURED if count is None else _count(count)}</td>" for count in counts)
        return f'<tr><th scope="row">{text(name)}</th>{cells}</tr>\n'

    sides = (baseline.failures, optimized.failures)
    body = "".join(row(kind, [None if side is None else side.get(kind, 0) for side in sides]) for kind in kinds)
    foot = row("all failed runs", [None if side is None else sum(side.values()) for side in sides])
    return _table(("", "Baseline", "Optimized"), body, foot)


def _lineage(lineage: Sequence[LineageStep]) -> str:
    if not lineage:
        return '<p class="none">No candidate was chosen: the baseline stays.</p>'
    steps = "".join(
        f"<li><b>{text(step.origin)}</b> <code>{text(step.candidate)}</code><small>mean on validation "
        f"{NOT_MEASURED if step.validation is None else _score(step.validation)}</small></li>\n"
        for step in lineage
    )
    return f'<ol class="lineage">\n{steps}</ol>'


def _recheck(certificate: str | None) -> str:
    if certificate is None:
        return "<p>No certificate was signed for this optimization, so there is none to check.</p>"
    return (
        "<p>The comparison above is signed. This command checks the signature and says what was signed:</p>\n"
        f"<pre><code>ratchet verify {text(certificate)}</code></pre>"
    )


# Prompts


def _changes(before: Candidate | None, after: Candidate | None) -> str:
    if before is None or after is None:
        return '<p class="none">Nothing was changed: the baseline stays.</p>'
    if before == after:
        return '<p class="none">Nothing was changed: the chosen candidate is the baseline.</p>'
    body = ""
    for name in dict.fromkeys([*before.predictors, *after.predictors]):
        old, new = before.predictors.get(name), after.predictors.get(name)
        if old == new:
            body += f"<h3><code>{text(name)}</code> <small>unchanged</small></h3>\n"
            continue
        wording = word_diff(old.instructions if old else "", new.instructions if new else "")
        demos = _demos(old.demos if old else (), new.demos if new else ())
        body += f'<h3><code>{text(name)}</code></h3>\n<div class="prompt">{wording}</div>\n{demos}'
    return body


def word_diff(before: str, after: str) -> str:
    """``after`` as HTML, with what it lost against ``before`` in ``del`` and what it gained in ``ins``.

    >>> word_diff("Answer the question.", "Answer in one word.")
    'Answer <del>the question</del><ins>in one word</ins>.'
    """
    old, new = (re.findall(r"\w+|\s+|[^\w\s]", side) for side in (before, after))
    written, lost, gained = "", "", ""
    for kind, i, j, k, m in difflib.SequenceMatcher(None, old, new, autojunk=False).get_opcodes():
        # A lone space between two changes would cut them into single words that nobody can read.
        if kind != "equal" or ("".join(old[i:j]).isspace() and i > 0 and j < len(old)):
            lost, gained = lost + "".join(old[i:j]), gained + "".join(new[k:m])
        else:
            written += _changed(lost, gained) + text("".join(old[i:j]))
            lost, gained = "", ""
    return written + _changed(lost, gained)


def _changed(lost: str, gained: str) -> str:
    if lost == gained:
        return text(lost)
    return (f"<del>{text(lost)}</del>" if lost else "") + (f"<ins>{text(gained)}</ins>" if gained else "")


def _demos(before: Sequence[Fields], after: Sequence[Fields]) -> str:
    old, new = ({canonical(dict(demo)): demo for demo in demos} for demos in (before, after))
    removed, added = [old[key] for key in old if key not in new], [new[key] for key in new if key not in old]
    kept = len(new) - len(added)
    counts = f"demos: {len(added)} added, {len(removed)} removed, {kept} kept"
    shown = "".join(
        f"<{tag}>{text(json.dumps(dict(demo), ensure_ascii=False, indent=1, default=str))}</{tag}>"
        for tag, demos in (("del", removed), ("ins", added))
        for demo in demos
    )
    if not shown:
        return f"<p><small>{counts}</small></p>\n"
    return f'<details open>\n<summary>{counts}</summary>\n<div class="demos">{shown}</div>\n</details>\n'


# Plots


def _svg(width: int, height: int, inside: str, *, label: str = "") -> str:
    """A drawing; one without a label is a bar that takes any width, whose numbers stand beside it in words."""
    what = f'role="img" aria-label="{label}"' if label else 'aria-hidden="true" preserveAspectRatio="none"'
    return f'<svg viewBox="0 0 {width} {height}" {what}>{inside}</svg>'


def _ticks(low: float, high: float, *, about: int = 5) -> list[float]:
    """Round numbers within [low, high], a step of 1, 2 or 5 times a power of ten apart.

    >>> _ticks(0.0, 1.0)
    [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    """
    if high <= low:
        return [low]
    power = 10.0 ** math.floor(math.log10((high - low) / about))
    step = next(power * k for k in (1, 2, 5, 10) if (high - low) / (power * k) <= about + 1e-9)
    return [round(k * step, 12) for k in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def _plain(value: float) -> str:
    return _minus(f"{value:,.10g}")


def _interval_plot(comparison: Comparison) -> str:
    low, high = comparison.interval
    reach = max(abs(low), abs(high), 1e-9)
    left, right = min(low - reach * 0.1, -reach * 0.35), max(high + reach * 0.1, reach * 0.35)

    def x(value: float) -> float:
        return 20 + 680 * (value - left) / (right - left)

    ticks = "".join(
        f'<text x="{x(tick):.1f}" y="44" class="tick">{_signed(_plain(tick)) if tick else "0"}</text>'
        f'<line class="grid" x1="{x(tick):.1f}" x2="{x(tick):.1f}" y1="26" y2="31"/>'
        for tick in _ticks(left, right)
    )
    return _svg(
        720,
        50,
        f'<line class="axis" x1="20" x2="700" y1="26" y2="26"/>{ticks}'
        f'<line class="zero" x1="{x(0):.1f}" x2="{x(0):.1f}" y1="2" y2="31"/>'
        f'<line class="bar" x1="{x(low):.1f}" x2="{x(high):.1f}" y1="14" y2="14"/>'
        f'<circle class="dot" cx="{x(comparison.effect):.1f}" cy="14" r="6"/>',
        label="Effect on quality with its interval, against no difference",
    )


def _curve(curve: Sequence[CurvePoint]) -> str:
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
        f'<text class="tick end" x="48" y="{y(tick) + 4:.1f}">{_plain(tick)}</text>'
        for tick in _ticks(low, high)
    ) + "".join(f'<text class="tick" x="{x(tick):.1f}" y="228">{_plain(tick)}</text>' for tick in _ticks(0, last))
    path = f"M{x(curve[0].calls):.1f} {y(curve[0].best):.1f}" + "".join(
        f"H{x(point.calls):.1f}V{y(point.best):.1f}" for point in curve[1:]
    )
    dots = "".join(
        f'<circle class="dot" cx="{x(point.calls):.1f}" cy="{y(point.best):.1f}" r="3.5">'
        f"<title>{_score(point.best)} after {_count(point.calls)} LM calls</title></circle>"
        for point in curve
    )
    first, final = curve[0], curve[-1]
    drawn = _svg(
        720,
        250,
        f'{grid}<path class="line" d="{path}"/>{dots}<text class="tick" x="371" y="247">LM calls</text>',
        label="Best validation score so far against LM calls",
    )
    return (
        f"{drawn}\n<p><small>From {_score(first.best)} after {_count(first.calls)} LM calls to {_score(final.best)} "
        f"after {_count(final.calls)}. Chosen by this score, so it flatters; the sealed test does not.</small></p>"
    )


_TRADE_OFFS: dict[TradeOff, str] = {
    "best": "best quality",
    "knee": "knee",
    "cheapest": "cheapest at no loss",
    "fastest": "fastest at no loss",
}


def _front(front: Front, *, chosen: Candidate | None) -> str:
    """Quality against cost, or latency where cost is no objective, and a row for each point of the front."""
    by_cost = "cost" in front.objectives

    def names(point: FrontPoint) -> str:
        said = [_TRADE_OFFS[name] for name in point.trade_offs]
        return ", ".join([*said, *(["sealed test"] if chosen and point.candidate == chosen.key else [])])

    def cells(measured: Performance) -> str:
        values: tuple[tuple[float | None, _Show], ...] = (
            (measured.quality_score, _score),
            (measured.success_rate, _percent),
            (measured.avg_cost_per_task, _usd),
            (measured.avg_latency_ms, _milliseconds),
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

    show: _Show = _usd if by_cost else _milliseconds
    drawn = "".join(
        f'<line class="grid" x1="56" x2="686" y1="{y(tick):.1f}" y2="{y(tick):.1f}"/>'
        f'<text class="tick end" x="48" y="{y(tick) + 4:.1f}">{_plain(tick)}</text>'
        for tick in _ticks(low, high)
    ) + "".join(
        f'<text class="tick" x="{x(tick):.1f}" y="228">{show(tick)}</text>' for tick in _ticks(left, right, about=4)
    )
    if len(front.objectives) == 2:  # of more, a drawing is only a shadow
        drawn += f'<path class="line" d="M{" L".join(f"{x(a):.1f} {y(b):.1f}" for a, b in sorted(known))}"/>'
    if front.baseline:
        a, b = place(front.baseline)
        drawn += (
            f'<g class="same"><circle class="hollow" cx="{x(a):.1f}" cy="{y(b):.1f}" r="6">'
            f"<title>baseline: {_score(b)} at {show(a)}</title></circle></g>"
        )
    for point, (a, b) in zip(front.points, known, strict=True):
        drawn += (
            f'<circle class="dot" cx="{x(a):.1f}" cy="{y(b):.1f}" r="3.5"><title>{text(point.candidate)}: {_score(b)} '
            f"at {show(a)}</title></circle>"
        )
        if said := names(point):
            drawn += f'<text class="tick" x="{x(a):.1f}" y="{y(b) - 9:.1f}">{said}</text>'
    axis = "cost per run" if by_cost else "latency"
    plot = _svg(
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
        f"{plot}\n{_table(('', 'Quality', 'Success', 'Cost per run', 'Latency'), rows)}\n<p><small>{len(front.points)} "
        f"of {front.validated} candidates that were run on all {n} validation examples; no other one is at least as "
        "good in everything and better in something. Hollow: baseline. They were chosen by these figures, so they "
        "flatter.</small></p>"
    )


def _margin(values: Sequence[float]) -> tuple[float, float]:
    """The ends of an axis that ``values`` lie well within."""
    low, high = min(values), max(values)
    margin = 0.1 * (high - low) or 0.05 * abs(high) or 0.05
    return low - margin, high + margin


def _pairs(pairs: Sequence[PairedExample]) -> str:
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
        f'<text class="tick end" x="44" y="{y(tick) + 4:.1f}">{_plain(tick)}</text>'
        for tick in _ticks(low, high)
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
    strip = _svg(720, 10, shares)
    plot = _svg(720, 212, drawn, label="Score of each test example before and after, worst change first")
    return (
        f'<p class="counts">{counts}</p>\n<div class="strip">{strip}</div>\n{plot}\n<p><small>{len(pairs)} test '
        "examples, ordered from the largest loss to the largest gain. Hollow: baseline; filled: optimized. A failed "
        "run counts 0.</small></p>"
    )


def _outcome(score: float, failure: str | None) -> str:
    return _score(score) if failure is None else f"failed ({text(failure)})"


_STYLE = """
:root{--paper:#fbfbf9;--card:#fff;--ink:#1d2129;--soft:#666c78;--line:#e4e5e2;--better:#0b7a75;--worse:#b4531a;
--same:#a9adb5;--accent:#2d55b8;--ins:#d9f0ec;--del:#fae3d6}
@media (prefers-color-scheme:dark){:root{--paper:#14161a;--card:#1b1e24;--ink:#e7e8ea;--soft:#9aa1ad;--line:#2d313a;
--better:#4fc3b8;--worse:#ef9a63;--same:#6b717d;--accent:#8aabf5;--ins:#123f3c;--del:#4a2a18}}
*{box-sizing:border-box}
body{margin:0;background:var(--paper);color:var(--ink);font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,
"Helvetica Neue",Arial,sans-serif;font-variant-numeric:tabular-nums}
main{max-width:820px;margin:0 auto;padding:48px 24px 72px}
header{border-left:5px solid var(--same);padding:2px 0 2px 24px;margin-bottom:48px}
header.improved{border-color:var(--better)}header.failed{border-color:var(--worse)}
h1{font-size:1.85rem;line-height:1.25;font-weight:500;letter-spacing:-.012em;margin:.3em 0 .5em;text-wrap:balance}
h1 span{font-weight:700}.improved h1 span{color:var(--better)}.failed h1 span{color:var(--worse)}
h2{font-size:.82rem;font-weight:650;letter-spacing:.045em;text-transform:uppercase;color:var(--soft);margin:0 0 16px}
h3{font-size:1rem;margin:20px 0 8px}h3 small{font-weight:400;margin-left:6px}h3:first-of-type{margin-top:0}
p{margin:.5em 0}small,.about,.method{color:var(--soft);font-size:.84rem}
.effect{font-size:1.08rem;margin-top:1em}.effect strong{font-size:1.3rem}.none{color:var(--soft);font-style:italic}
section{background:var(--card);border:1px solid var(--line);border-radius:10px;padding:24px 28px;margin:0 0 20px}
.wide{overflow-x:auto}table{border-collapse:collapse;width:100%}
th,td{padding:10px 8px;text-align:right;vertical-align:top;border-top:1px solid var(--line);font-weight:400}
th:first-child,td:first-child{text-align:left;padding-left:0}tr>:last-child{padding-right:0}
thead :is(th,td){border:0;padding-top:0;color:var(--soft);font-size:.84rem}tbody th{font-weight:600}
tfoot :is(th,td){font-weight:650;border-top:2px solid var(--line)}td small,th small{display:block;font-weight:400}
.meters{display:grid;grid-template-columns:repeat(auto-fit,minmax(150px,1fr));gap:20px;margin-bottom:24px}
.meters div>small:first-child{display:block}.meters b{font-size:1.2rem}.meters svg{height:4px;margin-top:6px}
svg{display:block;width:100%;height:auto;overflow:visible}.strip svg{height:10px;margin-bottom:18px}
.axis,.grid{stroke:var(--line)}.zero{stroke:var(--soft);stroke-dasharray:3 3}.bar{stroke:var(--accent);stroke-width:4;
stroke-linecap:round}.dot{fill:var(--accent)}.line{fill:none;stroke:var(--accent);stroke-width:2;stroke-linejoin:round}
.tick{fill:var(--soft);font-size:12px;text-anchor:middle}.end{text-anchor:end}
.track{fill:var(--line)}.used{fill:var(--accent)}
rect.better{fill:var(--better)}rect.worse{fill:var(--worse)}rect.same{fill:var(--same)}
g.better{stroke:var(--better);fill:var(--better)}g.worse{stroke:var(--worse);fill:var(--worse)}
g.same{stroke:var(--same);fill:var(--same)}.stem{opacity:.45;stroke-width:1.5}.hollow{fill:var(--card);stroke-width:1.2}
.full{stroke:none}.counts span{margin-right:24px}.counts b{font-size:1.4rem}
span.better b{color:var(--better)}span.worse b{color:var(--worse)}span.same b{color:var(--soft)}
code,pre,.prompt,.demos{font-family:ui-monospace,"SF Mono",Menlo,Consolas,"DejaVu Sans Mono",monospace;font-size:.86rem}
.prompt,.demos,pre{white-space:pre-wrap;overflow-wrap:anywhere;background:var(--paper);border-radius:6px;
padding:14px 16px;margin:0}
ins{background:var(--ins);text-decoration:none;border-radius:3px}del{background:var(--del);color:var(--soft);
border-radius:3px}.demos :is(ins,del){display:block;padding:6px 10px}.demos :is(ins,del)+:is(ins,del){margin-top:6px}
details{margin-top:10px}summary{cursor:pointer;color:var(--soft);font-size:.84rem;margin-bottom:8px}
.lineage{list-style:none;margin:0;padding:0}.lineage li{position:relative;padding:0 0 18px 26px}
.lineage li::before{content:"";position:absolute;left:2px;top:7px;width:10px;height:10px;border-radius:50%;
background:var(--accent)}.lineage li::after{content:"";position:absolute;left:6px;top:20px;bottom:-4px;width:2px;
background:var(--line)}.lineage li:last-child{padding-bottom:0}.lineage li:last-child::after{display:none}
.lineage code{color:var(--soft);margin-left:6px}.lineage small{display:block}
@media print{body{background:#fff}section{break-inside:avoid}}
@media (max-width:560px){main{padding:28px 14px}section{padding:18px 16px}}
"""

"""Report: what came of an optimization, as one HTML page that needs nothing but itself."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from ratchet.core.problem import Candidate, Fields, canonical
from ratchet.core.result import Front, Status
from ratchet.core.statistics import Comparison
from ratchet.engine.drawing import CurvePoint, PairedExample, curve_plot, front_plot, interval_plot, pairs_plot, svg
from ratchet.engine.page import (
    NOT_MEASURED,
    UNKNOWN,
    Show,
    as_count,
    as_milliseconds,
    as_p,
    as_percent,
    as_points,
    as_score,
    as_seconds,
    as_usd,
    signed,
    table,
    text,
)


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
        _section("Test examples, before and after", pairs_plot(report.pairs)),
        _section("Best validation score against LM calls", curve_plot(report.curve)),
        _section("Trade-offs between the objectives", front_plot(report.front, chosen=report.after))
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


# The page's parts

_VERDICT: dict[Status, tuple[str, str]] = {
    "improved": ("Improved", "A gain was proven on examples that no search has seen."),
    "no_proven_gain": ("No proven gain", "What was measured can be chance. The baseline stays."),
    "declined": ("Declined", "The pre-flight found no way to prove a gain, so no search was paid for."),
    "evaluated": ("Evaluated", "The program was measured as it is. Nothing was changed."),
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
        f'<p class="effect">Effect on quality <strong>{signed(as_score(comparison.effect))}</strong>, '
        f"{100 * comparison.confidence:g} % interval {signed(as_score(low))} to {signed(as_score(high))}, "
        f"{as_p(comparison.p_value)}, n = {comparison.n}</p>\n{interval_plot(comparison)}\n"
        f'<p class="method">{text(comparison.method)}</p>'
    )


def _measures(report: Report) -> str:
    rows = (
        ("Quality", "higher is better", "quality", as_score, as_score, report.comparison),
        ("Success rate", "higher is better", "success_rate", as_percent, as_points, report.success_comparison),
        ("Cost per run", "lower is better", "cost_usd", as_usd, as_usd, report.cost_comparison),
        ("Latency", "lower is better", "latency_ms", as_milliseconds, as_milliseconds, report.latency_comparison),
    )
    body = ""
    for name, better, part, show, show_change, comparison in rows:
        cells = "".join(
            f"<td>{_measure(getattr(side, part), show)}</td>" for side in (report.baseline, report.optimized)
        )
        change = NOT_MEASURED
        if comparison is not None:
            low, high = (signed(show_change(end)) for end in comparison.interval)
            change = f"{signed(show_change(comparison.effect))}<small>{low} to {high}</small>"
        body += f'<tr><th scope="row">{name}<small>{better}</small></th>{cells}<td>{change}</td></tr>\n'
    return table(("", "Baseline", "Optimized", "Paired change"), body)


def _measure(measure: Measure, show: Show) -> str:
    if measure.mean is None:
        return NOT_MEASURED
    if measure.interval is None:
        return show(measure.mean)
    return f"{show(measure.mean)}<small>{show(measure.interval[0])} to {show(measure.interval[1])}</small>"


def _spend(report: Report) -> str:
    def row(phase: PhaseSpend) -> str:
        values: tuple[tuple[float | None, Show], ...] = (
            (phase.calls, as_count),
            (phase.prompt_tokens, as_count),
            (phase.completion_tokens, as_count),
            (phase.usd, as_usd),
            (phase.seconds, as_seconds),
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
            ("LM calls", total.calls, limits.calls, as_count),
            ("Tokens", tokens, limits.tokens, as_count),
            ("USD", total.usd, limits.usd, as_usd),
            ("Time", total.seconds, limits.seconds, as_seconds),
        )
    )
    heads = ("", "LM calls", "Prompt tokens", "Completion tokens", "USD", "Seconds")
    return f'<div class="meters">\n{meters}</div>\n' + table(heads, "".join(map(row, report.phases)), row(total))


def _meter(name: str, used: float | None, limit: float | None, show: Show) -> str:
    shown = UNKNOWN if used is None else show(used)
    against = "no limit" if limit is None else f"of {show(limit)}"
    bar = ""
    if used is not None and limit:
        share = 100 * min(1.0, max(0.0, used / limit))
        used_up = f'<rect class="used" width="{share:.2f}" height="4"/>'
        bar = svg(100, 4, f'<rect class="track" width="100" height="4"/>{used_up}')
    return f"<div><small>{name}</small><b>{shown}</b> <small>{against}</small>{bar}</div>\n"


def _failures(baseline: Side, optimized: Side) -> str:
    if baseline.failures is None and optimized.failures is None:
        return f"<p>{NOT_MEASURED}</p>"
    kinds = sorted({*(baseline.failures or {}), *(optimized.failures or {})})

    def row(name: str, counts: Sequence[int | None]) -> str:
        cells = "".join(f"<td>{NOT_MEASURED if count is None else as_count(count)}</td>" for count in counts)
        return f'<tr><th scope="row">{text(name)}</th>{cells}</tr>\n'

    sides = (baseline.failures, optimized.failures)
    body = "".join(row(kind, [None if side is None else side.get(kind, 0) for side in sides]) for kind in kinds)
    foot = row("all failed runs", [None if side is None else sum(side.values()) for side in sides])
    return table(("", "Baseline", "Optimized"), body, foot)


def _lineage(lineage: Sequence[LineageStep]) -> str:
    if not lineage:
        return '<p class="none">No candidate was chosen: the baseline stays.</p>'
    steps = "".join(
        f"<li><b>{text(step.origin)}</b> <code>{text(step.candidate)}</code><small>mean on validation "
        f"{NOT_MEASURED if step.validation is None else as_score(step.validation)}</small></li>\n"
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

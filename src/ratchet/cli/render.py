"""Results as tables on a terminal."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console, Group
from rich.markup import escape
from rich.table import Table

from ratchet.cli.output import results
from ratchet.cli.progress import clock
from ratchet.contest import Contest
from ratchet.core.result import OptimizationResult, Performance
from ratchet.core.statistics import Comparison
from ratchet.engine.archive import Optimization
from ratchet.engine.report import Measure, Side

NOT_MEASURED, UNKNOWN = "not measured", "unknown"
WIDE = 100
VERDICTS = {
    "improved": "[bold green]improved[/]",
    "no_proven_gain": "[bold yellow]no proven gain[/]",
    "declined": "[bold yellow]declined[/]",
    "failed": "[bold red]failed[/]",
    "cancelled": "[yellow]cancelled[/]",
    "running": "[blue]running[/]",
    "queued": "[blue]queued[/]",
    "paused": "[yellow]paused[/]",
    "evaluated": "[green]evaluated[/]",
    "compared": "[green]compared[/]",
}

Show = Callable[[float], str]


def score(value: float) -> str:
    """A quality."""
    return f"{value:.3f}"


def percent(value: float) -> str:
    """A share."""
    return f"{100 * value:.1f} %"


def usd(value: float) -> str:
    """Dollars; small ones with the digits that count.

    >>> usd(0.0), usd(0.0001234), usd(12.5)
    ('$0.00', '$0.000123', '$12.50')
    """
    digits = 2 if value == 0 else max(2, 2 - math.floor(math.log10(abs(value))))
    return f"${value:,.{digits}f}"


def milliseconds(value: float) -> str:
    """A latency."""
    return f"{value:,.0f} ms"


_ROWS: tuple[tuple[str, str, Show], ...] = (
    ("quality", "quality", score),
    ("success rate", "success_rate", percent),
    ("cost per run", "cost_usd", usd),
    ("latency", "latency_ms", milliseconds),
)


def _joint() -> str:
    """What stands between a figure and its interval: a narrow terminal gets two lines."""
    return " " if not results().isatty() or shutil.get_terminal_size().columns >= WIDE else "\n"


def _measured(measure: Measure, show: Show, *, none: str) -> str:
    if measure.mean is None:
        return none
    if measure.interval is None:
        return show(measure.mean)
    return f"{show(measure.mean)}{_joint()}[dim]\\[{show(measure.interval[0])}, {show(measure.interval[1])}][/]"


def _change(comparison: Comparison | None, show: Show) -> str:
    if comparison is None:
        return ""
    low, high = comparison.interval

    def signed(value: float) -> str:
        return f"{'-' if value < 0 else '+'}{show(abs(value))}"

    return f"{signed(comparison.effect)}{_joint()}[dim]\\[{signed(low)}, {signed(high)}][/]"


def _table(*heads: str) -> Table:
    table = Table(*heads, box=box.SIMPLE_HEAD, pad_edge=False)
    for column in table.columns[1:]:
        column.justify = "right"
    return table


def result_view(result: OptimizationResult, sides: tuple[Side, Side], files: Sequence[Path] = ()) -> Group:
    """One optimization's outcome."""
    reason = result.reason.removeprefix(result.status.replace("_", " ")).lstrip(": ")  # the verdict is said once
    parts: list[Any] = [f"{VERDICTS[result.status]}: {escape(reason)}"]
    comparisons = (result.comparison, None, result.cost_comparison, result.latency_comparison)
    if result.comparison is not None:
        table = _table("sealed test, 95 % intervals", "baseline", "optimized", "change")
        for (name, part, show), comparison in zip(_ROWS, comparisons, strict=True):
            none = UNKNOWN if part == "cost_usd" else NOT_MEASURED
            cells = (_measured(getattr(side, part), show, none=none) for side in sides)
            table.add_row(name, *cells, _change(comparison, show))
        relative = result.improvement_percentage
        parts += [
            table,
            f"effect {result.comparison.effect:+.3f}"
            + (f" ({relative:+.1f} %)" if relative is not None else "")
            + f", p = {result.comparison.p_value:.4g}, n = {result.comparison.n} ({escape(result.comparison.method)})",
        ]
    elif result.baseline_performance.quality_score is not None:
        parts.append(_baseline(result.baseline_performance))
    details = result.optimization_details
    if details.algorithm_used:
        parts.append(f"found by {details.algorithm_used} among {details.iterations} candidates")
    parts += [f"  {escape(line)}" for line in details.key_improvements]
    parts += [f"[dim]note: {escape(note)}[/]" for note in details.notes]
    spend = details.spend
    parts.append(
        f"spent: {spend.calls} calls, {spend.prompt_tokens + spend.completion_tokens:,} tokens "
        f"({spend.prompt_tokens:,} in, {spend.completion_tokens:,} out), "
        f"{UNKNOWN + ' dollars' if spend.usd is None else usd(spend.usd)}, {clock(spend.seconds)}"
    )
    if files:
        parts.append(f"written to {escape(str(files[0].parent))}: {', '.join(file.name for file in files)}")
    return Group(*parts)


def _baseline(measured: Performance) -> str:
    return (
        f"baseline on {measured.n} {measured.split} examples: quality {measured.quality_score:.3f}, "
        f"success rate {percent(measured.success_rate or 0.0)}, {measured.failed} failed; "
        "the sealed test was not opened"
    )


def side_view(side: Side, *, n: int, title: str) -> Table:
    """One program's measurement."""
    table = _table(title, "mean, 95 % interval")
    for name, part, show in _ROWS:
        none = UNKNOWN if part == "cost_usd" else NOT_MEASURED
        table.add_row(name, _measured(getattr(side, part), show, none=none))
    failures = side.failures or {}
    told = ", ".join(f"{count} {kind}" for kind, count in sorted(failures.items())) or "none"
    table.add_row("failed runs", f"{sum(failures.values())} of {n} ({told})" if failures else told)
    return table


def contest_view(contest: Contest) -> Group:
    """Algorithms side by side."""
    table = Table(
        f"sealed test, n = {contest.n}", "quality", "calls", "dollars", "time", "verdict", box=box.SIMPLE_HEAD
    )
    for column in table.columns[1:5]:
        column.justify = "right"
    for each in contest.contenders:
        own = each.optimization_id != ""
        table.add_row(
            escape(each.name),
            _measured(each.quality, score, none=NOT_MEASURED),
            str(each.calls) if own else "",
            (UNKNOWN if each.usd is None else usd(each.usd)) if own else "",
            clock(each.seconds) if own else "",
            VERDICTS.get(each.status, each.status) + (f": {escape(each.reason)}" if each.status == "failed" else ""),
        )
    pairs = Table("pair", "difference in quality", "p", "p (Holm)", "verdict", box=box.SIMPLE_HEAD)
    for column in pairs.columns[1:4]:
        column.justify = "right"
    for pair in contest.pairs:
        names = f"{escape(pair.after)} - {escape(pair.before)}"
        if pair.comparison is None or pair.p_holm is None:
            pairs.add_row(names, "", "", "", "the same program")
            continue
        better = pair.after if pair.comparison.effect > 0 else pair.before
        pairs.add_row(
            names,
            _change(pair.comparison, score),
            f"{pair.comparison.p_value:.4g}",
            f"{pair.p_holm:.4g}",
            f"[bold]{escape(better)} is better[/]" if pair.p_holm < 0.05 else "no proven difference",
        )
    return Group(table, pairs, f"stored as {contest.id}; each optimization: ratchet show ID (--json names them)")


def list_view(optimizations: Sequence[Optimization]) -> Table:
    """Optimizations, one per row."""
    table = Table("id", "begun", "status", "target", "algorithm", "baseline", "optimized", "p", box=box.SIMPLE_HEAD)
    for each in optimizations:
        result, options = each.result or {}, each.request["options"]
        before = (result.get("baseline_performance") or {}).get("quality_score")
        after = (result.get("optimized_performance") or {}).get("quality_score")
        p = result.get("statistical_significance")
        table.add_row(
            each.id,
            each.created_at.strftime("%Y-%m-%d %H:%M"),
            VERDICTS.get(each.status, each.status),
            escape(_short(options["target"])),
            "" if each.status == "evaluated" else ",".join(options["algorithms"]),
            "" if before is None else score(before),
            "" if after is None else score(after),
            "" if p is None else "<0.0001" if p < 0.0001 else f"{p:.4f}",
        )
    return table


def _short(text: str, longest: int = 40) -> str:
    return text if len(text) <= longest else f"{text[: longest - 3]}..."


def diff_view(changes: Mapping[str, Mapping[str, Any]]) -> Group:
    """What changed in the prompts."""
    import difflib
    import json

    parts: list[Any] = []
    for name, change in changes.items():
        parts.append(f"[bold]{escape(name)}[/]")
        before, after = (str(change[side]).splitlines() for side in ("before", "after"))
        if before == after:
            parts.append("  [dim]instructions unchanged[/]")
        else:
            for line in difflib.ndiff(before, after):
                if not line.startswith("?"):
                    color = {"+": "green", "-": "red"}.get(line[0], "dim")
                    parts.append(f"[{color}]{escape(line)}[/]")
        for mark, color, kind in (("+", "green", "demos_added"), ("-", "red", "demos_removed")):
            parts += [
                f"[{color}]{mark} demo {escape(json.dumps(demo, ensure_ascii=False, default=str))}[/]"
                for demo in change[kind]
            ]
    return Group(*parts or ["nothing was changed"])


def show(view: Any) -> None:
    """Print to standard output; a pipe gets lines that are not cut."""
    console = Console(file=results(), highlight=False)
    if not console.is_terminal:
        console = Console(file=results(), highlight=False, width=160)
    console.print(view)

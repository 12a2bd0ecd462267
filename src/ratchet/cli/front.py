"""A Pareto front on a terminal: a table, and quality against cost or latency drawn with letters."""

from __future__ import annotations

import string
from collections.abc import Sequence

from rich import box
from rich.console import Group
from rich.markup import escape
from rich.table import Table

from ratchet.cli.render import NOT_MEASURED, UNKNOWN, Show, milliseconds, percent, score, usd
from ratchet.core.problem import Candidate
from ratchet.core.result import Front, Performance

WIDTH, HEIGHT = 60, 12
NAMES = {
    "best": "best quality",
    "knee": "knee",
    "cheapest": "cheapest at no loss",
    "fastest": "fastest at no loss",
}
BASELINE, CROWD = "o", "*"
"""Marks of the baseline and of points that a letter has no room for."""

Mark = tuple[float, float, str]
"""Where something is drawn, from left to right and from bottom to top, and the character."""


def front_view(front: Front, *, chosen: Candidate | None, baseline: Candidate | None) -> Group:
    """The front of an optimization.

    Args:
        front: It must hold a point.
        chosen: The candidate that went to the sealed test, if any did.
        baseline: The baseline.
    """
    table = Table("", "candidate", "quality", "success", "cost per run", "latency", "", "made by", box=box.SIMPLE_HEAD)
    for column in table.columns[2:6]:
        column.justify = "right"
    for letter, point in zip(letters(len(front.points)), front.points, strict=True):
        said = [NAMES[name] for name in point.trade_offs]
        said += ["sealed test"] if chosen and point.candidate == chosen.key else []
        origin = "baseline" if baseline and point.candidate == baseline.key else point.origin
        table.add_row(letter, point.candidate, *_figures(point.performance), ", ".join(said), escape(origin))
    assert front.baseline is not None
    if baseline and baseline.key not in {point.candidate for point in front.points}:
        table.add_row(BASELINE, baseline.key, *_figures(front.baseline), "", "baseline")
    compared = ", ".join(name.removesuffix("_score").replace("_", " ") for name in front.objectives)
    return Group(
        f"front over {compared}: {len(front.points)} of {front.validated} candidates, on {front.baseline.n} validation "
        "examples",
        table,
        escape(_drawn(front)),
        "[dim]measured where the candidates were chosen, so it flatters; only the sealed test proves[/]",
    )


def letters(n: int) -> list[str]:
    """A letter for each of ``n`` points, then asterisks."""
    named = [each for each in string.ascii_letters if each != BASELINE]
    return [*named[:n], *[CROWD] * (n - len(named))]


def _figures(measured: Performance) -> list[str]:
    shows: tuple[tuple[float | None, Show, str], ...] = (
        (measured.quality_score, score, NOT_MEASURED),
        (measured.success_rate, percent, NOT_MEASURED),
        (measured.avg_cost_per_task, usd, UNKNOWN),
        (measured.avg_latency_ms, milliseconds, NOT_MEASURED),
    )
    return [none if value is None else show(value) for value, show, none in shows]


def _drawn(front: Front) -> str:
    by_cost = "cost" in front.objectives
    name, show = ("cost per run", usd) if by_cost else ("latency", milliseconds)

    def across(measured: Performance) -> float | None:
        return measured.avg_cost_per_task if by_cost else measured.avg_latency_ms

    drawn = [] if front.baseline is None else [(front.baseline, BASELINE)]
    drawn += [(point.performance, mark) for point, mark in zip(front.points, letters(len(front.points)), strict=True)]
    marks = [
        (x, measured.quality_score, mark)
        for measured, mark in drawn
        if (x := across(measured)) is not None and measured.quality_score is not None
    ]
    return scatter(marks, x_name=name, y_name="quality", show_x=show, show_y=score)


def scatter(marks: Sequence[Mark], *, x_name: str, y_name: str, show_x: Show, show_y: Show) -> str:
    """``marks`` in a frame; what is drawn later hides what was drawn at the same place before.

    >>> marks = [(0.0, 0.0, "a"), (1.0, 0.5, "b"), (2.0, 1.0, "c")]
    >>> drawn = scatter(marks, x_name="cost", y_name="quality", show_x=str, show_y=str).splitlines()
    >>> drawn[0].strip(), drawn[1].split(), drawn[HEIGHT].split()[:2]
    ('quality', ['1.0', '│', 'c'], ['0.0', '│a'])
    """
    (left, right), (low, high) = _ends([x for x, _, _ in marks]), _ends([y for _, y, _ in marks])
    rows = [[" "] * WIDTH for _ in range(HEIGHT)]
    for x, y, mark in marks:
        row, column = (HEIGHT - 1) * (high - y) / (high - low), (WIDTH - 1) * (x - left) / (right - left)
        rows[round(row)][round(column)] = mark
    ends = {0: show_y(high), HEIGHT - 1: show_y(low)}
    margin = max(len(end) for end in ends.values())
    body = [f"{ends.get(number, ''):>{margin}} │{''.join(row)}".rstrip() for number, row in enumerate(rows)]
    gap = WIDTH - len(show_x(left)) - len(show_x(right))
    foot = f"{show_x(left)}{x_name:^{gap}}{show_x(right)}"
    return "\n".join([f"{'':>{margin}} {y_name}", *body, f"{'':>{margin}} └{'─' * WIDTH}", f"{'':>{margin}}  {foot}"])


def _ends(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    return (low, high) if high > low else (low - 0.5, high + 0.5)

"""What bench-gain says of several tasks and several seeds at once."""

from __future__ import annotations

from typing import Any

from bench.gain import spread, summary


def row(task: str, algorithm: str, baseline: float, optimized: float, p: float) -> dict[str, Any]:
    return {
        "task": task,
        "algorithm": algorithm,
        "baseline": baseline,
        "optimized": optimized,
        "effect": optimized - baseline,
        "p_value": p,
    }


def test_gains_are_summed_up_over_the_tasks_that_were_run_and_peers_are_met_where_both_were() -> None:
    rows = [
        row("one", "auto", 0.5, 0.6, 0.01),
        row("two", "auto", 0.4, 0.3, 0.01),
        row("three", "auto", 0.0, 0.5, 0.001),
        row("one", "dspy.gepa", 0.5, 0.5, 1.0),
        row("two", "dspy.gepa", 0.4, 0.3, 0.5),
    ]
    assert summary(rows).splitlines()[2:] == [
        "| auto | 3 | -2.5% | 2 of 3 | 1, 1, 0 (+0.050) |",
        "| dspy.gepa | 2 | -12.5% | 0 of 2 | - |",
    ]


def test_seeds_are_told_apart_where_there_is_more_than_one() -> None:
    rows = [row("one", "auto", 0.5, optimized, 0.5) for optimized in (0.6, 0.5, 0.55)]
    alone = row("one", "dspy.gepa", 0.5, 0.5, 1.0)
    assert spread([*rows, alone]).splitlines()[2:] == ["| one | auto | 3 | 0.550 | 0.500 | 0.600 |"]
    assert spread([alone]) == ""

"""What the sealed test says, and how a result tells it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from ratchet.core.evaluation import Evaluations
from ratchet.core.problem import Candidate
from ratchet.core.request import OptimizationRequest
from ratchet.core.result import Ancestor, OptimizationResult, Spend, Status, performance
from ratchet.core.statistics import Comparison, compare_paired, relative_change


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What the sealed test says of a candidate.

    Attributes:
        change: Change of the mean score in percent; None where the baseline's is 0.
    """

    status: Status
    reason: str
    comparison: Comparison
    change: float | None


def judged(before: Evaluations, after: Evaluations, request: OptimizationRequest) -> Verdict:
    """``improved`` when p < 0.05, the interval lies above 0, and the gain is as large as was asked for."""
    comparison = compare_paired(before.scores, after.scores, seed=request.seed)
    change = relative_change(before.mean, after.mean)
    threshold = request.constraints.min_improvement_threshold
    is_proven = comparison.p_value < 0.05 and comparison.interval[0] > 0
    is_enough = change is None or change / 100 >= threshold
    low, high = comparison.interval
    figures = f"{comparison.effect:+.3f} [{low:+.3f}, {high:+.3f}], p = {comparison.p_value:.2g}, n = {comparison.n}"
    if not is_proven:
        reason = f"no proven gain on the sealed test: {figures}"
    elif not is_enough:
        reason = f"the gain is proven but smaller than the {threshold:.0%} asked for: {figures}"
    else:
        reason = f"proven gain on the sealed test: {figures}"
    status: Status = "improved" if is_proven and is_enough else "no_proven_gain"
    return Verdict(status=status, reason=reason, comparison=comparison, change=change)


def proven(
    result: OptimizationResult,
    verdict: Verdict,
    before: Evaluations,
    after: Evaluations,
    request: OptimizationRequest,
) -> OptimizationResult:
    """``result`` with what was measured on the sealed test."""
    return replace(
        result,
        baseline_performance=performance(before, success_at=request.success_at, split="test"),
        optimized_performance=performance(after, success_at=request.success_at, split="test"),
        improvement_percentage=verdict.change,
        statistical_significance=verdict.comparison.p_value,
        comparison=verdict.comparison,
        cost_comparison=_compare_costs(before, after, seed=request.seed),
        latency_comparison=compare_paired(
            [row.usage.latency_ms for row in before], [row.usage.latency_ms for row in after], seed=request.seed
        ),
    )


def _compare_costs(before: Evaluations, after: Evaluations, *, seed: int) -> Comparison | None:
    costs = [[row.usage.cost_usd for row in rows] for rows in (before, after)]
    known = [[cost for cost in row if cost is not None] for row in costs]
    if len(known[0]) < len(before) or len(known[1]) < len(after) or not any((*known[0], *known[1])):
        return None  # a price is not known, or there is none: a local model costs nothing either way
    return compare_paired(known[0], known[1], seed=seed)


def lineage(
    winner: Candidate, stored: Mapping[str, Candidate], *, validation: Callable[[Candidate], float | None]
) -> tuple[Ancestor, ...]:
    """From the seed to the winner.

    Args:
        winner: Where it ends.
        stored: Candidates by key.
        validation: The mean on validation, where it was measured in full.
    """
    chain: list[Candidate] = []
    waiting, seen = [winner], set()
    while waiting:
        candidate = waiting.pop(0)
        if candidate.key in seen:
            continue
        seen.add(candidate.key)
        chain.append(candidate)
        waiting += [stored[parent] for parent in candidate.parents if parent in stored]
    return tuple(
        Ancestor(candidate=each.key, parents=each.parents, origin=each.origin, validation=validation(each))
        for each in reversed(chain)
    )


def with_spend(result: OptimizationResult, spend: Spend) -> OptimizationResult:
    """``result`` with the ledger's figures in it."""
    return replace(result, optimization_details=replace(result.optimization_details, spend=spend))

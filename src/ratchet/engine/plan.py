"""How much of everything an optimization can afford, and whether it can prove anything."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ratchet.core.evaluation import Evaluations
from ratchet.core.statistics import minimum_detectable_effect, noise_sd, sd_of_difference

PROOF_SHARE = 0.35
"""Share of the calls that is kept for the sealed test: below it the proof is too weak to show what the search found."""
VALIDATION_SHARE = 0.10
LEAST_VALIDATION, LEAST_TEST = 20, 20
SLACK_SHARE = 0.02
DEFAULT_RUNS = 1_000
"""Program runs of a search without a limit on calls."""
PROBE = 4
"""Examples run first, at least, to learn how many calls one run takes."""
CALLS_PER_PROBE = 25
"""Calls of the budget for each example of a larger probe."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Sizes of the parts of one optimization, in examples and in LM calls.

    Attributes:
        validation: Validation examples used.
        test: Sealed test examples used, each once for the baseline and once for the chosen candidate.
        calls_per_run: LM calls of one program run, as measured.
        search_calls: Calls the search may use, over all algorithms.
        proof_calls: Calls kept for the sealed test.
        slack_calls: Calls kept for retries and for requests lost in a crash.
    """

    validation: int
    test: int
    calls_per_run: float
    search_calls: int
    proof_calls: int
    slack_calls: int

    @property
    def search_runs(self) -> int:
        """Program runs the search is expected to pay for."""
        return int(self.search_calls / self.calls_per_run)


def probe_size(n_validation: int, slots: int, max_calls: int | None) -> int:
    """Examples on which calls per run are measured before anything is planned.

    A few; more where they are a small part of the budget and what is left of the baseline, the rest of validation and
    ``PROBE`` examples once more, then fills the slots.

    >>> probe_size(100, 64, 1000), probe_size(100, 64, 400), probe_size(40, 1, 400), probe_size(3, 8, None)
    (40, 16, 4, 3)
    """
    over = (n_validation + PROBE) % slots
    return min(n_validation, max(PROBE, over if max_calls is None else min(over, max_calls // CALLS_PER_PROBE)))


def make_plan(
    *, max_calls: int | None, spent: int, calls_per_run: float, validation: int, test: int, concurrency: int
) -> Plan:
    """The plan under a limit of calls.

    Args:
        max_calls: The limit; None for the default amount of search.
        spent: Calls that were needed to measure ``calls_per_run``.
        calls_per_run: LM calls of one program run.
        validation: Validation examples there are.
        test: Sealed test examples there are.
        concurrency: Requests that may be lost in one crash.
    """
    per_run = max(1.0, calls_per_run)
    if max_calls is None:
        runs = math.ceil(DEFAULT_RUNS * per_run)
        used = min(validation, 100)
        return Plan(
            validation=used,
            test=test,
            calls_per_run=per_run,
            search_calls=runs,
            proof_calls=math.ceil(2 * test * per_run),
            slack_calls=0,
        )
    runs_in_all = (max_calls - spent) / per_run
    used = int(min(validation, max(min(LEAST_VALIDATION, runs_in_all * 0.15), runs_in_all * VALIDATION_SHARE)))
    sealed = int(min(test, max(min(LEAST_TEST, runs_in_all * 0.2), runs_in_all * PROOF_SHARE / 2)))
    used, sealed = max(2, used), max(2, sealed)
    proof = math.ceil(2 * sealed * per_run)
    slack = min(2 * concurrency, math.ceil(SLACK_SHARE * max_calls))
    search = max_calls - spent - math.ceil(used * per_run) - proof - slack
    return Plan(
        validation=used,
        test=sealed,
        calls_per_run=per_run,
        search_calls=max(0, search),
        proof_calls=proof,
        slack_calls=slack,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Preflight:
    """What a few calls say about whether the optimization can pay.

    Attributes:
        baseline: Mean validation score of the program as it is.
        headroom: How far the mean can rise; None when the metric's scores pass 1, so that its top is not known.
        noise: Standard deviation of repeated scores of one example; None when it was not measured.
        minimum_detectable_effect: The gain that the sealed test would show with 80 % probability.
        test_examples: Sealed pairs that this holds for.
        forecast_calls: LM calls expected in all.
        forecast_usd: Dollars expected; None when a price is not known.
        forecast_minutes: Minutes expected.
        objections: Why it should not be begun; empty when it should.
    """

    baseline: float
    headroom: float | None
    noise: float | None
    minimum_detectable_effect: float
    test_examples: int
    forecast_calls: int
    forecast_usd: float | None
    forecast_minutes: float
    objections: tuple[str, ...] = ()

    def to_json(self) -> Mapping[str, Any]:
        """The pre-flight as JSON data."""
        return {**asdict(self), "objections": list(self.objections)}


def look_ahead(
    baseline: Evaluations,
    repeats: Sequence[Sequence[float]],
    plan: Plan,
    *,
    spent: int,
    concurrency: int,
    min_improvement: float,
) -> Preflight:
    """The pre-flight's findings, all computed from the evaluations handed in."""
    top = 1.0 if max(baseline.scores) <= 1.0 else None
    headroom = None if top is None else top - baseline.mean
    effect = minimum_detectable_effect(plan.test, sd=sd_of_difference(baseline.scores, top=top or max(baseline.scores)))
    runs = plan.search_runs + 2 * plan.test
    cost = baseline.cost_usd
    objections = []
    if headroom is not None and headroom <= 1e-9:
        objections.append("the program already has the best possible score on every validation example")
    elif headroom is not None and headroom < min_improvement * baseline.mean:
        objections.append(
            f"even a perfect score would be an improvement of {headroom / baseline.mean:.1%}, "
            f"less than the {min_improvement:.1%} asked for"
        )
    elif headroom is not None and effect > headroom:
        objections.append(
            f"with {plan.test} sealed test examples only a gain of {effect:.3f} would be seen, and the room is "
            f"{headroom:.3f}; give more test data or more calls"
        )
    if plan.search_runs < plan.validation:
        objections.append(
            f"the budget leaves {plan.search_calls} calls for the search, fewer than one candidate needs; "
            "raise --max-calls"
        )
    return Preflight(
        baseline=baseline.mean,
        headroom=headroom,
        noise=noise_sd(repeats),
        minimum_detectable_effect=effect,
        test_examples=plan.test,
        forecast_calls=spent + plan.search_calls + plan.proof_calls,
        forecast_usd=None if cost is None else cost * runs,
        forecast_minutes=baseline.latency_ms * runs / concurrency / 60_000,
        objections=tuple(objections),
    )

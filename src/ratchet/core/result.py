"""What came out: OptimizationResult and its parts, and their JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from ratchet.core.evaluation import Evaluations
from ratchet.core.problem import Candidate
from ratchet.core.request import MetricName
from ratchet.core.statistics import Comparison

Status = Literal["improved", "no_proven_gain", "declined", "failed", "cancelled", "running", "queued", "paused"]
"""How an optimization stands. Only ``improved`` claims a gain."""
ENDED: tuple[Status, ...] = ("improved", "no_proven_gain", "declined")
"""How one stands that came to a result."""
TradeOff = Literal["best", "knee", "cheapest", "fastest"]
"""A point of a front worth naming: the best quality; the one that gives up least of everything; and the cheapest and
the fastest of those whose quality is not below the baseline's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Performance:
    """Means over one split, each computed from stored evaluations; None where it was not measured.

    Attributes:
        success_rate: Share of runs that succeeded.
        avg_cost_per_task: Dollars per run; None when a price is not known.
        avg_latency_ms: Milliseconds per run.
        quality_score: Mean score; failed runs count 0.
        failed: Runs that ended in a Failure.
        n: Runs.
        split: The split it was measured on: ``test`` is the sealed one.
    """

    success_rate: float | None = None
    avg_cost_per_task: float | None = None
    avg_latency_ms: float | None = None
    quality_score: float | None = None
    failed: int | None = None
    n: int = 0
    split: str | None = None


def performance(evaluations: Evaluations, *, success_at: float, split: str) -> Performance:
    """The one way a ``Performance`` is made."""
    return Performance(
        success_rate=evaluations.success_rate(success_at),
        avg_cost_per_task=evaluations.cost_usd,
        avg_latency_ms=evaluations.latency_ms,
        quality_score=evaluations.mean,
        failed=evaluations.failed,
        n=len(evaluations),
        split=split,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Spend:
    """What was spent.

    Attributes:
        calls: LM calls sent, retries included.
        recorded: Distinct replies recorded.
        usd: Dollars; None when a price is not known.
        seconds: Wall seconds, over all resumes.
        by_phase: Calls per phase.
    """

    calls: int = 0
    recorded: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    usd: float | None = 0.0
    seconds: float = 0.0
    by_phase: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ancestor:
    """One step of a lineage."""

    candidate: str
    parents: tuple[str, ...]
    origin: str
    validation: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Details:
    """How the result was reached.

    Attributes:
        algorithm_used: The algorithm that made the chosen candidate; None when none beat the baseline.
        iterations: Candidates evaluated.
        key_improvements: What changed from the baseline's prompts to the chosen ones, one line per edit.
        lineage: From the seed to the chosen candidate.
        spend: What it cost.
        preflight: What the pre-flight measured and forecast.
        notes: What a reader should know: rows dropped, limits reached, finalists skipped.
    """

    algorithm_used: str | None = None
    iterations: int = 0
    key_improvements: tuple[str, ...] = ()
    lineage: tuple[Ancestor, ...] = ()
    spend: Spend = Spend()
    preflight: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class FrontPoint:
    """A candidate of the front.

    Attributes:
        candidate: Its key.
        origin: What made it.
        performance: What was measured of it on validation.
        trade_offs: What it is named for, if anything.
    """

    candidate: str
    origin: str
    performance: Performance
    trade_offs: tuple[TradeOff, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Front:
    """The candidates that no other one is at least as good as in everything and better in something.

    They were chosen by what was measured here, so it flatters them; only the sealed test proves.

    Attributes:
        objectives: What they were compared in.
        points: The best quality first; of equals there is one.
        baseline: The baseline on the same examples; None when there is no front.
        validated: Candidates that were run on all of validation.
    """

    objectives: tuple[MetricName, ...] = ()
    points: tuple[FrontPoint, ...] = ()
    baseline: Performance | None = None
    validated: int = 0

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Front:
        """The front whose fields ``data`` holds."""
        points = (
            FrontPoint(
                **{
                    **point,
                    "performance": Performance(**point["performance"]),
                    "trade_offs": tuple(point["trade_offs"]),
                }
            )
            for point in data["points"]
        )
        return cls(
            objectives=tuple(data["objectives"]),
            points=tuple(points),
            baseline=None if data["baseline"] is None else Performance(**data["baseline"]),
            validated=data["validated"],
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimizationResult:
    """The outcome of one optimization; every number in it was computed from stored evaluations.

    Attributes:
        comparison: Quality on the sealed test, chosen minus baseline, paired.
        cost_comparison: Dollars per run, the same way; None when a price is not known.
        latency_comparison: Milliseconds per run, the same way.
        improvement_percentage: Relative change of ``quality_score``; None when not measured or the baseline is 0.
        statistical_significance: The p-value of ``comparison``.
        reason: The verdict in a sentence.
        front: Trade-offs between the objectives, as measured on validation.
    """

    optimization_id: str
    status: Status
    reason: str = ""
    baseline_performance: Performance = Performance()
    optimized_performance: Performance = Performance()
    improvement_percentage: float | None = None
    statistical_significance: float | None = None
    comparison: Comparison | None = None
    cost_comparison: Comparison | None = None
    latency_comparison: Comparison | None = None
    baseline: Candidate | None = None
    winner: Candidate | None = None
    optimization_details: Details = Details()
    front: Front = Front()

    def to_json(self) -> dict[str, Any]:
        """The result as JSON data; candidates as their states."""
        data = {name: getattr(self, name) for name in self.__dataclass_fields__ if name not in ("baseline", "winner")}
        for name, value in data.items():
            if hasattr(value, "__dataclass_fields__"):
                data[name] = asdict(value)
        for name in ("baseline", "winner"):
            candidate: Candidate | None = getattr(self, name)
            data[name] = candidate and {
                "key": candidate.key,
                "parents": list(candidate.parents),
                "origin": candidate.origin,
                "predictors": candidate.state(),
            }
        return data

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> OptimizationResult:
        """The result that ``to_json`` came from."""
        values = dict(data)
        for name in ("baseline_performance", "optimized_performance"):
            values[name] = Performance(**values[name])
        for name in ("comparison", "cost_comparison", "latency_comparison"):
            if values[name] is not None:
                values[name] = Comparison(**{**values[name], "interval": tuple(values[name]["interval"])})
        for name in ("baseline", "winner"):
            if values[name] is not None:
                part = values[name]
                values[name] = Candidate.from_state(part["predictors"], parents=part["parents"], origin=part["origin"])
        details = dict(values["optimization_details"])
        details["spend"] = Spend(**details["spend"])
        details["lineage"] = tuple(
            Ancestor(**{**step, "parents": tuple(step["parents"])}) for step in details["lineage"]
        )
        for name in ("key_improvements", "notes"):
            details[name] = tuple(details[name])
        values["optimization_details"] = Details(**details)
        if "front" in values:  # results of before there was one are read too
            values["front"] = Front.from_json(values["front"])
        return cls(**values)

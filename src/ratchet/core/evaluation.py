"""Evaluation, Failure and Evaluations: the one source of every number."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ratchet.core.problem import Example, Fields

FailureKind = Literal["unparseable", "raised", "timeout", "refused", "metric"]
"""What the program did wrong: its output could not be parsed; it raised; it ran out of its own time; the LM refused the
request as such (too long, not allowed); or the metric raised or gave no finite number for its output."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """A run the program itself failed; it is counted as not succeeded and is never a score."""

    kind: FailureKind
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """What one predictor was given and answered during a run.

    ``outputs`` is empty and ``raw`` holds the LM's text when the answer could not be parsed.
    """

    predictor: str
    inputs: Fields
    outputs: Fields
    raw: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What a run used. ``cost_usd`` is None when a price is not known."""

    calls: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost_usd: float | None = 0.0
    latency_ms: float = 0.0

    def __add__(self, other: Usage) -> Usage:
        unknown = self.cost_usd is None or other.cost_usd is None
        return Usage(
            calls=self.calls + other.calls,
            prompt_tokens=self.prompt_tokens + other.prompt_tokens,
            completion_tokens=self.completion_tokens + other.completion_tokens,
            cost_usd=None if unknown else (self.cost_usd or 0.0) + (other.cost_usd or 0.0),
            latency_ms=self.latency_ms + other.latency_ms,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """One candidate run on one example.

    Attributes:
        candidate: The candidate's key.
        example: What it was run on.
        repeat: 0 for the first run; higher for independent repeats.
        score: The metric's value, higher is better, or None when ``failure`` says why there is none.
        feedback: What the metric said in words; may be empty.
        prediction: The program's output fields.
        trace: Each predictor's inputs and outputs, in the order they ran.
        usage: Calls, tokens, dollars and latency of this run.
        replies: Journal keys of the LM replies this run used.
    """

    candidate: str
    example: Example
    repeat: int = 0
    score: float | None = None
    failure: Failure | None = None
    feedback: str = ""
    prediction: Fields | None = None
    trace: tuple[Step, ...] = ()
    usage: Usage = Usage()
    replies: tuple[str, ...] = ()

    @property
    def counted(self) -> float:
        """The score as it enters a mean: a failed run counts 0, the worst a metric can give."""
        return 0.0 if self.score is None else self.score

    def succeeded(self, success_at: float) -> bool:
        """Whether the run has a score and it reaches ``success_at``."""
        return self.score is not None and self.score >= success_at


@dataclass(frozen=True, slots=True)
class Evaluations(Sequence[Evaluation]):
    """Evaluations of one candidate, in the order of the examples asked for. Never empty."""

    rows: tuple[Evaluation, ...]

    def __post_init__(self) -> None:
        if not self.rows:
            raise ValueError("Evaluations of nothing: there is no mean of zero rows")

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Any) -> Any:
        return self.rows[index]

    def __iter__(self) -> Iterator[Evaluation]:
        return iter(self.rows)

    @property
    def scores(self) -> tuple[float, ...]:
        """Each row's counted score: failed runs are 0."""
        return tuple(row.counted for row in self.rows)

    @property
    def mean(self) -> float:
        """Mean counted score; higher is better."""
        return sum(self.scores) / len(self.rows)

    @property
    def failed(self) -> int:
        """How many rows are failures."""
        return sum(row.failure is not None for row in self.rows)

    def success_rate(self, success_at: float) -> float:
        """Share of rows that succeeded."""
        return sum(row.succeeded(success_at) for row in self.rows) / len(self.rows)

    @property
    def cost_usd(self) -> float | None:
        """Mean dollars per run, or None when a price is not known."""
        costs = [row.usage.cost_usd for row in self.rows]
        known = [cost for cost in costs if cost is not None]
        return sum(known) / len(known) if len(known) == len(costs) else None

    @property
    def latency_ms(self) -> float:
        """Mean milliseconds per run."""
        return sum(row.usage.latency_ms for row in self.rows) / len(self.rows)

    @property
    def calls(self) -> float:
        """Mean LM calls per run."""
        return sum(row.usage.calls for row in self.rows) / len(self.rows)

"""What one optimization works with."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from ratchet.core.algorithm import Search
from ratchet.core.problem import Candidate, Example, PredictorSpec, Problem
from ratchet.core.request import OptimizationRequest
from ratchet.engine.archive import Event, Notebook
from ratchet.engine.runner import Ledger, Program


class StagedLedger(Ledger, Protocol):
    """The gateway, as the engine needs it."""

    @property
    def calls(self) -> int:
        """Calls sent so far, over all processes."""

    @property
    def sends_per_reply(self) -> float:
        """Calls this process had to send for one reply; 1 without retries."""

    def begin_stage(
        self,
        stage: str,
        *,
        allowance: int | None = None,
        keep_calls: int = 0,
        keep_usd: float = 0.0,
        keep_seconds: float = 0.0,
    ) -> None:
        """Begin a stage with an allowance of calls, leaving some for later stages."""


class OpaqueSearch(Protocol):
    """An algorithm that owns its loop; it runs in a thread and gives back its finalists."""

    def __call__(
        self, problem: Problem, *, seed: int, on_candidate: Callable[[Candidate, float], None]
    ) -> Sequence[Candidate]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Algorithms:
    """The algorithms of one optimization, by name and in order; each either a generator or one that owns its loop.

    Attributes:
        native: Generators.
        opaque: Those that own their loop.
        aside: Names of generators that are not Ratchet's own: they may block, and so take their turns in a thread.
    """

    native: Mapping[str, Search]
    opaque: Mapping[str, OpaqueSearch]
    aside: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """All that one optimization works with; built once, in ``ratchet.run``.

    Attributes:
        id: The optimization's id.
        request: What was asked for.
        program: Runs candidates.
        seed: The program's own state.
        predictors: Its predictors.
        description: Its source or purpose.
        train: Examples to learn from.
        validation: Examples to choose by.
        test: The sealed test; only ``_prove`` opens it.
        write: Asks the reflection LM.
        ledger: The budget.
        notebook: Where everything is kept.
        algorithms: What the names in the request stand for.
        concurrency: Rows under way at once.
        emit: Told of every event.
        notes: What the data's preparation had to say.
        lm: Name of the task LM.
        minimise: Whether what is of no use in the chosen prompts is left out.
        max_prompt_tokens: The longest prompt there may be; None for any.
    """

    id: str
    request: OptimizationRequest
    program: Program
    seed: Candidate
    predictors: tuple[PredictorSpec, ...]
    description: str
    train: tuple[Example, ...]
    validation: tuple[Example, ...]
    test: tuple[Example, ...]
    write: Callable[[str, float, int], Any]
    ledger: StagedLedger
    notebook: Notebook
    algorithms: Algorithms
    concurrency: int
    emit: Callable[[Event], None]
    notes: tuple[str, ...] = ()
    lm: str = ""
    minimise: bool = True
    max_prompt_tokens: int | None = None

"""The engine's surroundings in memory: carry out a whole optimization of a ``SyntheticProblem`` without an LM.

>>> from ratchet.testing import SyntheticProblem
>>> def by_hand(problem, *, rng):
...     return [problem.seed.with_instructions("answer", " ".join(f"skill-{n}" for n in range(6)), origin="by hand")]
...     yield
>>> house = House(SyntheticProblem(capacity=6), native={"by hand": by_hand})
>>> house.optimized().status
'improved'
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ratchet.core.algorithm import Search
from ratchet.core.errors import BudgetSpent, Cancelled
from ratchet.core.evaluation import Evaluation
from ratchet.core.problem import Candidate, Example, content_hash
from ratchet.core.request import Constraints, OptimizationRequest, Target
from ratchet.core.result import OptimizationResult
from ratchet.engine.archive import Event
from ratchet.engine.job import Algorithms, Job, OpaqueSearch
from ratchet.engine.optimize import Optimizer
from ratchet.storage.memory import MemoryNotebook
from ratchet.testing import SyntheticProblem


@dataclass
class MemoryLedger:
    """A budget of calls, kept as the gateway keeps it: distinct replies count, and stages leave what later ones need.

    Attributes:
        limit: Calls in all; None for no limit.
        calls: Calls so far.
        sends_per_reply: Calls that one reply takes.
        stage: The stage under way.
        stages: All stages, with their allowances.
        replies: Replies there are, with the stage that asked first.
    """

    limit: int | None = None
    calls: int = 0
    sends_per_reply: float = 1.0
    stage: str = "start"
    stages: list[tuple[str, int | None]] = field(default_factory=list)
    replies: dict[str, str] = field(default_factory=dict)
    _keep: int = 0
    _seen: set[str] = field(default_factory=set)
    _past: set[str] = field(default_factory=set)
    _owed: set[str] = field(default_factory=set)

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
        self._past |= self._seen
        self.stage, self._keep, self._seen = stage, keep_calls, set()
        self.stages.append((stage, allowance))
        # An earlier process paid for these: they have their place before anything new has.
        self._owed = {key for key, asked in self.replies.items() if asked == stage} - self._past

    def left(self) -> int | None:
        """Replies the stage may still ask for; None for no limit."""
        allowance = self.stages[-1][1] if self.stages else None
        return None if allowance is None else allowance - len(self._seen)

    def recall(self, keys: tuple[str, ...]) -> None:
        """Count the replies of a stored evaluation.

        Raises:
            BudgetSpent: the stage's allowance does not hold them.
        """
        for key in keys:
            self._admit(key)

    def ask(self, key: str) -> None:
        """Send for a reply, unless it is there.

        Raises:
            BudgetSpent: a limit does not allow it.
        """
        self._admit(key)
        if key in self.replies:
            return
        if self.limit is not None and self.calls + 1 > self.limit - self._keep:
            raise BudgetSpent(f"{self.calls} of {self.limit} calls are used and {self._keep} are kept")
        self.calls += 1
        self.replies[key] = self.stage

    def _admit(self, key: str) -> None:
        if key in self._seen or key in self._past:
            return
        left = self.left()
        if left is not None and left - len(self._owed - {key}) < 1:
            raise BudgetSpent(f"{self.stage} used its calls")
        self._seen.add(key)
        self._owed.discard(key)


@dataclass
class SyntheticProgram:
    """Runs candidates of a ``SyntheticProblem``, one call per predictor.

    Attributes:
        cost_usd: Dollars of a run of a candidate.
        latency_ms: Its milliseconds.
        mends: Changes an evaluation before it is handed over.
        turns: Turns of the event loop that one call takes; anything else than one each shuffles what is done first.
        dies_after: When given, everything is cancelled once so many calls were made.
        ran: Stage, candidate, example and repeat of each run, in order.
    """

    toy: SyntheticProblem
    ledger: MemoryLedger
    cost_usd: Callable[[Candidate], float | None] = lambda candidate: 0.001
    latency_ms: Callable[[Candidate], float] = lambda candidate: 100.0
    mends: Callable[[Evaluation], Evaluation] = lambda evaluation: evaluation
    turns: Callable[[], int] = lambda: 1
    dies_after: int | None = None
    ran: list[tuple[str, Candidate, Example, int]] = field(default_factory=list)

    async def run(self, candidate: Candidate, example: Example, *, repeat: int = 0) -> Evaluation:
        """One scored run.

        Raises:
            BudgetSpent: a limit does not allow it.
            Cancelled: ``dies_after`` calls were made.
        """
        if self.dies_after is not None and self.ledger.calls >= self.dies_after:
            raise Cancelled("the program was told to die here")
        keys = tuple(content_hash([candidate.key, example.key, repeat, name]) for name in candidate.predictors)
        for key in keys:
            self.ledger.ask(key)
            await self.take_time()
        self.ran.append((self.ledger.stage, candidate, example, repeat))
        row = self.toy.run(candidate, example, repeat)
        usage = replace(row.usage, cost_usd=self.cost_usd(candidate), latency_ms=self.latency_ms(candidate))
        return self.mends(replace(row, usage=usage, replies=keys))

    async def take_time(self) -> None:
        """What one call takes."""
        for _ in range(self.turns()):
            await asyncio.sleep(0)


class House:
    """One optimization of a ``SyntheticProblem``, with all that it needs.

    Args:
        toy: What is optimized.
        native: Generators by name.
        opaque: Algorithms that own their loop, by name.
        algorithms: Names in the request; all there are where left out.
        max_calls: The limit.
        n_test: Examples in the sealed test.
        before: The same optimization in an earlier process, whose notebook and replies are taken over.
        minimise, max_prompt_tokens: See ``ratchet.engine.optimize.Job``.
        request: Whatever else an ``OptimizationRequest`` takes.
    """

    def __init__(
        self,
        toy: SyntheticProblem,
        *,
        native: Mapping[str, Search] | None = None,
        opaque: Mapping[str, OpaqueSearch] | None = None,
        algorithms: Sequence[str] | None = None,
        max_calls: int | None = 600,
        min_improvement: float = 0.05,
        n_test: int = 60,
        notebook: MemoryNotebook | None = None,
        before: House | None = None,
        minimise: bool = True,
        max_prompt_tokens: int | None = None,
        **request: Any,
    ) -> None:
        problem = toy.problem
        first = toy.n_train + toy.n_validation
        self.toy = toy
        self.notebook: MemoryNotebook = before.notebook if before else notebook or MemoryNotebook()
        self.ledger = MemoryLedger(limit=max_calls)
        if before:
            self.ledger.calls, self.ledger.replies = before.ledger.calls, dict(before.ledger.replies)
        self.program = SyntheticProgram(toy, self.ledger)
        self.events: list[Event] = []
        self.test = tuple(toy.example(first + number) for number in range(n_test))
        self.asked: list[str] = []
        self.job = Job(
            id="house",
            request=OptimizationRequest(
                target=Target(id="synthetic"),
                algorithms=tuple(algorithms or (*(native or {}), *(opaque or {}))),
                constraints=Constraints(max_calls=max_calls, min_improvement_threshold=min_improvement),
                **request,
            ),
            program=self.program,
            seed=problem.seed,
            predictors=problem.predictors,
            description=problem.description,
            train=problem.train,
            validation=problem.validation,
            test=self.test,
            write=self._write,
            ledger=self.ledger,
            notebook=self.notebook,
            algorithms=Algorithms(native=dict(native or {}), opaque=dict(opaque or {})),
            concurrency=4,
            emit=self.events.append,
            minimise=minimise,
            max_prompt_tokens=max_prompt_tokens,
        )
        self.optimizer = Optimizer(self.job)

    async def _write(self, prompt: str, temperature: float, number: int) -> str:
        self.ledger.ask(content_hash([prompt, temperature, number]))
        await self.program.take_time()
        self.asked.append(prompt)
        return self.toy.generate(prompt, number)

    def optimized(self) -> OptimizationResult:
        """What came of it."""
        return asyncio.run(self.optimizer.run())

"""Carries out what algorithms ask for: each row once, concurrently, within the stage's budget."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from ratchet.core.algorithm import Algorithm, Evaluate, Generate, Request, Together
from ratchet.core.errors import BrokenContract, BudgetSpent
from ratchet.core.evaluation import Evaluation, Evaluations
from ratchet.core.problem import Candidate, Example
from ratchet.engine.archive import Notebook

RowKey = tuple[str, str, int]


class Program(Protocol):
    """Runs a candidate on one example."""

    async def run(self, candidate: Candidate, example: Example, *, repeat: int = 0) -> Evaluation:
        """One scored run."""


class Ledger(Protocol):
    """The stage's budget, as the runner needs it."""

    @property
    def stage(self) -> str:
        """The stage under way."""

    def left(self) -> int | None:
        """Replies the stage may still ask for; None for no limit."""

    def recall(self, keys: tuple[str, ...]) -> None:
        """Count the replies of a stored evaluation.

        Raises:
            BudgetSpent: the stage's allowance does not hold them.
        """


class Runner:
    """Evaluates candidates and asks the reflection LM, remembering every row.

    Args:
        program: Runs one row.
        write: Asks the reflection LM: prompt, temperature, and a number that tells equal prompts apart.
        ledger: The stage's budget.
        notebook: Where rows are kept; rows it holds are not run again.
        on_evaluations: Told of each finished evaluation request.
        concurrency: Rows under way at once.
    """

    def __init__(
        self,
        program: Program,
        *,
        write: Callable[[str, float, int], Any],
        ledger: Ledger,
        notebook: Notebook,
        on_evaluations: Callable[[Candidate, Evaluations], None] = lambda candidate, evaluations: None,
        concurrency: int = 8,
    ) -> None:
        self._program = program
        self._write = write
        self._ledger = ledger
        self._notebook = notebook
        self._on_evaluations = on_evaluations
        self._slots = asyncio.Semaphore(concurrency)
        self._under_way: dict[RowKey, asyncio.Task[Evaluation]] = {}
        self._stored = {(row.candidate, row.example.key, row.repeat): row for row, _ in notebook.evaluations()}
        # What an earlier process stored is not known before it is asked for again: the replay must take every turn that
        # the first run took.
        self._rows: dict[RowKey, Evaluation] = {}
        self._candidates: dict[str, Candidate] = {}
        self._texts = 0
        self.calls_per_run = 1.0

    def known(self, candidate: Candidate, examples: Sequence[Example]) -> Evaluations | None:
        """The rows of ``candidate`` on ``examples``, or None when one was not asked for yet."""
        rows = [self._rows.get((candidate.key, example.key, 0)) for example in examples]
        return Evaluations(tuple(row for row in rows if row)) if rows and all(rows) else None

    def stored(self, candidate: Candidate, example: Example) -> Evaluation | None:
        """The row of ``candidate`` on ``example``, also when the request it belonged to was not paid for in full."""
        return self._stored.get((candidate.key, example.key, 0))

    def best_known(self, examples: Sequence[Example]) -> Candidate | None:
        """The candidate with the greatest mean among those with rows on all of ``examples``."""
        means = {
            candidate.key: (known.mean, candidate)
            for candidate in self._candidates.values()
            if (known := self.known(candidate, examples))
        }
        return max(means.values(), key=lambda pair: (pair[0], pair[1].key))[1] if means else None

    async def evaluate(self, candidate: Candidate, examples: Sequence[Example], *, repeats: int = 1) -> Evaluations:
        """Evaluations of ``candidate``; rows there are already are not run again.

        Raises:
            RatchetError: the world failed, or the budget does not allow it.
        """
        if candidate.key not in self._candidates:
            self._notebook.keep_candidate(candidate, stage=self._ledger.stage)
            self._candidates[candidate.key] = candidate
        tasks = [
            asyncio.ensure_future(self._row(candidate, example, repeat))
            for example in examples
            for repeat in range(repeats)
        ]
        try:
            rows = await asyncio.gather(*tasks)
        except BaseException:
            for task in tasks:
                task.cancel()
            # Also those that were begun: what they ask must not be counted by the next stage.
            keys = [(candidate.key, example.key, repeat) for example in examples for repeat in range(repeats)]
            begun = [self._under_way[key] for key in keys if key in self._under_way]
            await asyncio.gather(*tasks, *begun, return_exceptions=True)
            raise
        for row in rows:
            self._rows[row.candidate, row.example.key, row.repeat] = row
        evaluations = Evaluations(tuple(rows))
        self._on_evaluations(candidate, evaluations)
        return evaluations

    async def _row(self, candidate: Candidate, example: Example, repeat: int) -> Evaluation:
        key = (candidate.key, example.key, repeat)
        if key in self._stored:
            self._ledger.recall(self._stored[key].replies)
            return self._stored[key]
        if key not in self._under_way:
            task = self._under_way[key] = asyncio.ensure_future(self._fresh(candidate, example, repeat))
            # Whoever asked may be gone when it ends; its outcome is looked at all the same.
            task.add_done_callback(lambda done: done.cancelled() or done.exception())
        return await asyncio.shield(self._under_way[key])

    async def _fresh(self, candidate: Candidate, example: Example, repeat: int) -> Evaluation:
        key = (candidate.key, example.key, repeat)
        try:
            async with self._slots:
                row = await self._program.run(candidate, example, repeat=repeat)
            self._notebook.keep_evaluation(row, stage=self._ledger.stage)
            self._stored[key] = row
            return row
        finally:
            del self._under_way[key]

    def _needs(self, request: Request) -> float:
        """Calls ``request`` is expected to cost."""
        match request:
            case Evaluate(candidate, examples, repeats):
                keys = {(candidate.key, example.key, repeat) for example in examples for repeat in range(repeats)}
                return self.calls_per_run * sum(key not in self._rows for key in keys)
            case Generate():
                return request.n
            case Together(requests):
                return sum(self._needs(each) for each in requests)

    async def answer(self, request: Request) -> Any:
        """The reply to what an algorithm yielded.

        Raises:
            BudgetSpent: the stage's budget does not pay for all of it; nothing of it was begun.
            BrokenContract: it is nothing the contract knows.
        """
        if not isinstance(request, Evaluate | Generate | Together):
            raise BrokenContract(f"an algorithm yielded {request!r}; it may yield Evaluate, Generate or Together")
        left = self._ledger.left()
        if left is not None and self._needs(request) > left:
            raise BudgetSpent(f"{self._ledger.stage} has {left} calls left")
        return await self._carry_out(request)

    async def _carry_out(self, request: Request) -> Any:
        match request:
            case Evaluate(candidate, examples, repeats):
                return await self.evaluate(candidate, examples, repeats=repeats)
            case Generate(prompt, temperature, n):
                first = self._texts + 1
                self._texts += n
                return tuple(
                    await asyncio.gather(*(self._write(prompt, temperature, first + each) for each in range(n)))
                )
            case Together(requests):
                return await _all(*(self._carry_out(each) for each in requests))

    async def drive(self, algorithm: Algorithm) -> list[Candidate] | None:
        """The finalists of ``algorithm``; None when it ended with the budget and gave none.

        Raises:
            BrokenContract: it returned no candidates.
            RatchetError: the world failed.
        """
        self._texts = 0
        try:
            request = next(algorithm)
            while True:
                try:
                    reply = await self.answer(request)
                except BudgetSpent as spent:
                    request = algorithm.throw(spent)
                else:
                    request = algorithm.send(reply)
        except StopIteration as end:
            finalists = list(end.value or [])
        except BudgetSpent:
            return None
        if not finalists or not all(isinstance(each, Candidate) for each in finalists):
            raise BrokenContract(f"an algorithm must return its finalists, best first; it returned {finalists!r}")
        return finalists


async def _all(*parts: Any) -> list[Any]:
    """Like ``gather``, but the others are over when one raises."""
    tasks = [asyncio.ensure_future(part) for part in parts]
    try:
        return list(await asyncio.gather(*tasks))
    except BaseException:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        raise

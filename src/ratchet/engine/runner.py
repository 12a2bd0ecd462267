"""Carries out what algorithms ask for: each row once, side by side in one pool of slots, within the stage's budget.

A search that starts several things and waits for them must see the same after a crash as it saw before. So all it can
notice is decided by what was handed over to it. Which ticket is done first is noted before its reply goes out, and so
is a ticket that the budget did not carry to its end. What is left of the budget is counted from replies that were
handed over and from estimates for what is under way; how far that has come, which is chance, has no say.
"""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

from ratchet.core.algorithm import Algorithm, Evaluate, Generate, Reply, Request, Start, Tell, Together, Wait
from ratchet.core.errors import BrokenContract, BudgetSpent
from ratchet.core.evaluation import Evaluation, Evaluations
from ratchet.core.problem import Candidate, Example
from ratchet.engine.archive import Event, Notebook

RowKey = tuple[str, str, int]
Work: TypeAlias = Evaluate | Generate | Together


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


@dataclass(frozen=True, slots=True)
class _Ticket:
    """Work that was started and is not handed over yet."""

    work: Work
    rows: frozenset[RowKey]
    texts: int
    task: asyncio.Task[Any]


class Runner:
    """Evaluates candidates and asks the reflection LM, remembering every row.

    Args:
        program: Runs one row.
        write: Asks the reflection LM: prompt, temperature, and a number that tells equal prompts apart.
        ledger: The stage's budget.
        notebook: Where rows are kept; rows it holds are not run again.
        on_evaluations: Told of each evaluation request that is handed over.
        on_tell: Told of what an algorithm says of its search.
        concurrency: Rows under way at once; they begin in the order in which they were started.
    """

    def __init__(
        self,
        program: Program,
        *,
        write: Callable[[str, float, int], Any],
        ledger: Ledger,
        notebook: Notebook,
        on_evaluations: Callable[[Candidate, Evaluations], None] = lambda candidate, evaluations: None,
        on_tell: Callable[[Tell], None] = lambda told: None,
        concurrency: int = 8,
    ) -> None:
        self._program = program
        self._write = write
        self._ledger = ledger
        self._notebook = notebook
        self._on_evaluations = on_evaluations
        self._on_tell = on_tell
        self._slots = asyncio.Semaphore(concurrency)
        self._under_way: dict[RowKey, asyncio.Task[None]] = {}
        self._running: set[RowKey] = set()
        self._stored = {(row.candidate, row.example.key, row.repeat): row for row, _ in notebook.evaluations()}
        # What an earlier process stored is not known before it is asked for again: the replay must take every turn that
        # the first run took.
        self._rows: dict[RowKey, Evaluation] = {}
        self._candidates: dict[str, Candidate] = {}
        self._asked: Counter[str] = Counter()
        self.calls_per_run = 1.0
        self.called_off = False
        # tickets
        self._tickets: dict[int, _Ticket] = {}
        self._done: list[int] = []
        self._failed: list[int] = []
        self._news = asyncio.Event()
        self._order: dict[str, deque[int]] = defaultdict(deque)
        self._refused: set[tuple[str, int]] = set()
        for _, event in notebook.events():
            match event:
                case Event(kind="done", payload={"stage": stage, "ticket": ticket}):
                    self._order[stage].append(ticket)
                case Event(kind="refused", payload={"stage": stage, "ticket": ticket}):
                    self._refused.add((stage, ticket))
        # the stage's budget
        self._stage = ""
        self._allowance: int | None = None
        self._begun = 0
        self._used = 0
        self._spent = False
        self._counted: set[str] = set()

    def known(self, candidate: Candidate, examples: Sequence[Example]) -> Evaluations | None:
        """The rows of ``candidate`` on ``examples``, or None when one was not asked for yet."""
        rows = [self._rows.get((candidate.key, example.key, 0)) for example in examples]
        return Evaluations(tuple(row for row in rows if row)) if rows and all(rows) else None

    def stored(self, candidate: Candidate, example: Example) -> Evaluation | None:
        """The row of ``candidate`` on ``example``, also when the request it belonged to was not paid for in full."""
        return self._stored.get((candidate.key, example.key, 0))

    def best_known(self, examples: Sequence[Example]) -> Candidate | None:
        """The candidate with the greatest mean among those with rows on all of ``examples``."""
        known = self.all_known(examples)
        return max(known, key=lambda pair: (pair[1].mean, pair[0].key))[0] if known else None

    def all_known(self, examples: Sequence[Example]) -> list[tuple[Candidate, Evaluations]]:
        """All candidates with rows on all of ``examples``, in the order in which they were first asked for."""
        known = ((candidate, self.known(candidate, examples)) for candidate in self._candidates.values())
        return [(candidate, rows) for candidate, rows in known if rows is not None]

    def left(self) -> int | None:
        """Calls of the stage's allowance that what was handed over has left; None for no allowance."""
        self._see_stage()
        if self._allowance is None:
            return None
        return 0 if self._spent else max(0, self._allowance - self._used)

    def end_stage(self) -> None:
        """Have the stage's budget be spent: nothing more is begun in it."""
        self._see_stage()
        self._spent = True

    async def evaluate(self, candidate: Candidate, examples: Sequence[Example], *, repeats: int = 1) -> Evaluations:
        """Evaluations of ``candidate``; rows there are already are not run again.

        Raises:
            RatchetError: the world failed, or the budget does not allow it.
        """
        self._see_stage()
        ticket = self._begin(Evaluate(candidate, tuple(examples), repeats))
        evaluations: Evaluations = await self._result(ticket)
        return evaluations

    async def answer(self, request: Work) -> Any:
        """The reply to what an algorithm yielded.

        Raises:
            BudgetSpent: the stage's budget does not pay for all of it.
            BrokenContract: it is nothing the contract knows.
        """
        return await self._hand_over(self.start(request))

    async def drive(self, algorithm: Algorithm, *, aside: bool = False) -> list[Candidate] | None:
        """The finalists of ``algorithm``; None when it ended with the budget and gave none.

        What it left under way is called off; ``called_off`` says afterwards whether there was anything.

        Args:
            algorithm: The search.
            aside: Whether it takes its turns in a thread, because it may block and others must not wait for it.

        Raises:
            BrokenContract: it returned no candidates.
            RatchetError: the world failed.
        """
        self._asked.clear()
        reply: Reply = None
        try:
            while not isinstance(turn := await _turn(algorithm, reply, aside=aside), _End):
                try:
                    reply = await self._reply(turn)
                except BudgetSpent as spent:
                    reply = spent
            finalists = list(turn.value or [])
        except BudgetSpent:
            return None
        finally:
            self.called_off = bool(self._tickets)
            algorithm.close()
            await self._call_off()
        if not finalists or not all(isinstance(each, Candidate) for each in finalists):
            raise BrokenContract(f"an algorithm must return its finalists, best first; it returned {finalists!r}")
        return finalists

    async def _reply(self, request: Request) -> Any:
        match request:
            case Start(work):
                return self.start(work)
            case Tell():
                return self._on_tell(request)
            case Wait(among):
                ticket = await self._first(among or tuple(self._tickets))
                return ticket, await self._hand_over(ticket)
            case _:
                return await self.answer(request)

    # --- tickets -----------------------------------------------------------------------------------------------------

    def start(self, work: Work) -> int:
        """The ticket of ``work``, which is under way from now on.

        Raises:
            BudgetSpent: the stage's budget does not pay for all of it; nothing of it was begun.
            BrokenContract: it is nothing the contract knows.
        """
        requests = work.requests if isinstance(work, Together) else (work,)
        if not all(isinstance(each, Evaluate | Generate) for each in requests):
            raise BrokenContract(
                f"an algorithm yielded {work!r}; it may yield Evaluate, Generate or Together, these in a Start, or Wait"
            )
        left, (rows, texts) = self.left(), _parts(work)
        expected = {key for each in self._tickets.values() for key in each.rows if key not in self._rows}
        needs = self.calls_per_run * sum(key not in self._rows and key not in expected for key in rows) + texts
        promised = self.calls_per_run * len(expected) + sum(each.texts for each in self._tickets.values())
        if left is not None and needs and needs + promised > left:
            raise BudgetSpent(f"{self._stage} has {left} calls left, and {promised:g} of them are promised")
        return self._begin(work)

    async def _first(self, among: tuple[int, ...]) -> int:
        """The ticket to be handed over next: as it is noted, or else the one that is done first."""
        if not among or not self._tickets.keys() >= set(among):
            raise BrokenContract(f"an algorithm waits for {list(among)}; under way is {list(self._tickets)}")
        if len(among) == 1:
            return among[0]
        if self._order[self._stage]:
            ticket = self._order[self._stage].popleft()
            if ticket not in among:
                raise BrokenContract(
                    f"number {ticket} was done next before {self._stage} was interrupted, and now it is not under way: "
                    "the algorithm, or Ratchet, is not the same as then; begin anew"
                )
            return ticket
        await self._until(lambda: any(each in among for each in self._done))
        ticket = next(each for each in self._done if each in among)
        # The notebook keeps its order: whatever follows from this is kept, or sent to an LM, only after it is safe.
        self._notebook.note(Event(kind="done", payload={"stage": self._stage, "ticket": ticket}))
        return ticket

    async def _hand_over(self, ticket: int) -> Any:
        """The reply to a ticket, for an algorithm.

        Raises:
            BudgetSpent: the budget did not carry it to its end.
        """
        try:
            return await self._result(ticket)
        except BudgetSpent as spent:
            if (self._stage, ticket) not in self._refused:
                self._refused.add((self._stage, ticket))
                self._notebook.note(Event(kind="refused", payload={"stage": self._stage, "ticket": ticket}))
            self._spent = True
            raise BudgetSpent(str(spent), ticket=ticket) from spent

    async def _result(self, ticket: int) -> Any:
        """The reply to a ticket, which is counted and known from now on."""
        try:
            await self._until(lambda: ticket in self._done)
        except asyncio.CancelledError:
            await self._call_off()
            raise
        self._done.remove(ticket)
        ended = self._tickets.pop(ticket)
        work, reply = ended.work, ended.task.result()
        for part, answer in zip(_requests(work), reply if isinstance(work, Together) else [reply], strict=True):
            if isinstance(part, Evaluate):
                self._learn(answer)
                self._on_evaluations(part.candidate, answer)
            else:
                self._used += len(answer)
        return reply

    def _learn(self, rows: Evaluations) -> None:
        for row in rows:
            key = (row.candidate, row.example.key, row.repeat)
            if key not in self._rows:
                self._rows[key] = row
                self._used += len(set(row.replies) - self._counted) if row.replies else row.usage.calls
                self._counted.update(row.replies)

    async def _until(self, condition: Callable[[], bool]) -> None:
        """Wait until tickets that are done make ``condition`` true.

        Raises:
            RatchetError: the world failed some ticket, be it one that nobody waits for yet.
        """
        while not self._failed and not condition():
            self._news.clear()
            await self._news.wait()
        if self._failed:
            ticket = self._failed.pop(0)
            self._done.remove(ticket)
            self._tickets.pop(ticket).task.result()

    def _see_stage(self) -> None:
        """Begin to count anew when another stage has begun."""
        if self._ledger.stage != self._stage:
            self._stage, self._allowance = self._ledger.stage, self._ledger.left()
            self._begun, self._used, self._spent = 0, 0, False

    # --- carrying it out ---------------------------------------------------------------------------------------------

    def _begin(self, work: Work) -> int:
        """Let ``work`` be under way. Its rows stand in line for a slot when this returns."""
        self._begun += 1
        ticket = self._begun
        rows, texts = _parts(work)
        refused = (self._stage, ticket) in self._refused
        parts = [self._tasks(part, refused=refused) for part in _requests(work)]
        task = asyncio.ensure_future(self._refuse() if refused else self._carry_out(ticket, work, parts))
        self._tickets[ticket] = _Ticket(work, frozenset(rows), texts, task)
        task.add_done_callback(lambda done: self._landed(ticket, done))
        return ticket

    async def _refuse(self) -> None:
        raise BudgetSpent(f"{self._stage} used its calls before it was interrupted")

    def _landed(self, ticket: int, task: asyncio.Task[Any]) -> None:
        """Take note that ``ticket`` is done, unless it was called off."""
        if ticket not in self._tickets:
            return
        self._done.append(ticket)
        if task.cancelled() or (task.exception() is not None and not isinstance(task.exception(), BudgetSpent)):
            self._failed.append(ticket)
        self._news.set()

    def _tasks(self, part: Evaluate | Generate, *, refused: bool) -> list[asyncio.Task[Any]]:
        """The tasks that ``part`` waits for: rows that are not stored, some of them under way already, or texts."""
        if isinstance(part, Generate):
            # Equal prompts are told apart by a number of their own, which other prompts' order cannot change.
            first = self._asked[part.prompt] + 1
            self._asked[part.prompt] += part.n
            numbers = () if refused else range(first, first + part.n)
            return [_watched(self._write(part.prompt, part.temperature, number)) for number in numbers]
        if part.candidate.key not in self._candidates:
            self._notebook.keep_candidate(part.candidate, stage=self._stage)
            self._candidates[part.candidate.key] = part.candidate
        tasks = []
        for example in () if refused else part.examples:
            for repeat in range(part.repeats):
                key = (part.candidate.key, example.key, repeat)
                if key not in self._stored:
                    if key not in self._under_way:
                        self._under_way[key] = _watched(self._row(part.candidate, example, repeat))
                    tasks.append(self._under_way[key])
        return tasks

    async def _row(self, candidate: Candidate, example: Example, repeat: int) -> None:
        """Run one row and keep it."""
        key = (candidate.key, example.key, repeat)
        async with self._slots:
            self._running.add(key)
            try:
                row = await self._program.run(candidate, example, repeat=repeat)
                self._notebook.keep_evaluation(row, stage=self._ledger.stage)
                self._stored[key] = row
            finally:
                self._running.discard(key)
                del self._under_way[key]

    async def _carry_out(self, ticket: int, work: Work, parts: Sequence[Sequence[asyncio.Task[Any]]]) -> Any:
        """The reply to ``work``, whose parts wait for these tasks."""
        tasks = list(dict.fromkeys(task for part in parts for task in part))
        async with AsyncExitStack() as otherwise:
            otherwise.push_async_callback(self._leave, ticket, tasks)
            for key in dict.fromkeys(_parts(work)[0]):
                if key in self._stored and key not in self._rows:
                    self._ledger.recall(self._stored[key].replies)
            if tasks:
                await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
            errors = [error for task in tasks if task.done() and (error := task.exception()) is not None]
            if errors:
                raise next((error for error in errors if not isinstance(error, BudgetSpent)), errors[0])
            otherwise.pop_all()
        replies = [
            Evaluations(tuple(self._stored[key] for key in _parts(part)[0]))
            if isinstance(part, Evaluate)
            else tuple(task.result() for task in tasks)
            for part, tasks in zip(_requests(work), parts, strict=True)
        ]
        return replies if isinstance(work, Together) else replies[0]

    async def _leave(self, ticket: int, tasks: Sequence[asyncio.Task[Any]]) -> None:
        """Call off what nobody else waits for. What was begun is waited for, since it is paid for, and kept."""
        wanted = {key for number, each in self._tickets.items() if number != ticket for key in each.rows}
        shared = {task for key, task in self._under_way.items() if key in wanted}
        mine = {task for task in tasks if task not in shared and not task.done()}
        self._drop([key for key, task in self._under_way.items() if task in mine])
        if mine:
            await asyncio.wait(mine)

    async def _call_off(self) -> None:
        """End all that is under way, in the way of ``_leave``: the next stage will count nothing of it."""
        ending = [each.task for each in self._tickets.values()]
        self._tickets.clear()
        self._done.clear()
        self._failed.clear()
        for task in ending:
            task.cancel()
        ending += self._under_way.values()
        self._drop(list(self._under_way))
        if ending:
            await asyncio.wait(ending)

    def _drop(self, keys: Sequence[RowKey]) -> None:
        """Forget those of the rows that wait for a slot."""
        for key in keys:
            if key not in self._running:
                self._under_way.pop(key).cancel()


@dataclass(frozen=True, slots=True)
class _End:
    """What an algorithm returned."""

    value: Sequence[Candidate] | None


async def _turn(algorithm: Algorithm, reply: Reply, *, aside: bool) -> Request | _End:
    """What ``algorithm`` asks for after ``reply``, or its end."""

    def take() -> Request | _End:
        try:
            return algorithm.throw(reply) if isinstance(reply, BudgetSpent) else algorithm.send(reply)
        except StopIteration as end:
            return _End(end.value)

    if not aside:
        return take()
    taking = asyncio.ensure_future(asyncio.to_thread(take))
    try:
        return await asyncio.shield(taking)
    finally:
        await asyncio.wait([taking])  # also when it is called off: a generator cannot be closed in the midst of a turn


def _requests(work: Work) -> tuple[Evaluate | Generate, ...]:
    return work.requests if isinstance(work, Together) else (work,)


def _parts(work: Work) -> tuple[list[RowKey], int]:
    """The rows that ``work`` asks for, in order, and the number of texts."""
    rows, texts = list[RowKey](), 0
    for part in _requests(work):
        if isinstance(part, Evaluate):
            rows += [(part.candidate.key, each.key, n) for each in part.examples for n in range(part.repeats)]
        else:
            texts += part.n
    return rows, texts


def _watched(work: Any) -> asyncio.Task[Any]:
    """``work`` as a task. Whoever asked may be gone when it ends; its outcome is looked at all the same."""
    task: asyncio.Task[Any] = asyncio.ensure_future(work)
    task.add_done_callback(lambda done: done.cancelled() or done.exception())
    return task

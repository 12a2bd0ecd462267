"""What is started goes on side by side, is handed over as it is done, and is replayed in the same order."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ratchet.algorithms import NATIVE
from ratchet.core.algorithm import (
    Algorithm,
    Evaluate,
    Generate,
    Start,
    Steps,
    Together,
    Wait,
    evaluate,
    generate,
    in_parallel,
    start,
    wait,
)
from ratchet.core.errors import BrokenContract, BudgetSpent, LmUnavailable, StorageUnavailable
from ratchet.core.evaluation import Evaluation
from ratchet.core.problem import Candidate, Example, content_hash
from ratchet.engine.archive import Event
from ratchet.engine.runner import Runner
from ratchet.storage.memory import MemoryNotebook
from ratchet.testing import SyntheticProblem
from ratchet.testing.engine import MemoryLedger, SyntheticProgram


class Mortal(MemoryNotebook):
    """A notebook that refuses everything after so many writes, as a killed process would leave it."""

    writes_left: float = float("inf")

    def live(self, writes: float) -> None:
        self.writes_left = writes

    def write(self) -> None:
        if self.writes_left <= 0:
            raise StorageUnavailable("killed")
        self.writes_left -= 1

    def keep_candidate(self, candidate: Candidate, *, stage: str) -> None:
        self.write()
        super().keep_candidate(candidate, stage=stage)

    def keep_evaluation(self, evaluation: Evaluation, *, stage: str) -> None:
        self.write()
        super().keep_evaluation(evaluation, stage=stage)

    def note(self, event: Event) -> None:
        self.write()
        super().note(event)


class Program(SyntheticProgram):
    """Writes down when runs begin and end; ``lasts`` says how many turns a run takes, ``dead`` which one fails."""

    lasts: Callable[[Candidate, Example], int] | None = None
    dead: Example | None = None

    def __init__(self, toy: SyntheticProblem, ledger: MemoryLedger) -> None:
        super().__init__(toy, ledger)
        self.begun: list[tuple[str, Example, int]] = []
        self.under_way = 0
        self.most = 0

    async def run(self, candidate: Candidate, example: Example, *, repeat: int = 0) -> Evaluation:
        self.begun.append((candidate.key, example, repeat))
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        try:
            for _ in range(self.lasts(candidate, example) if self.lasts else 0):
                await asyncio.sleep(0)
            if example == self.dead:
                raise LmUnavailable("the LM is dead")
            return await super().run(candidate, example, repeat=repeat)
        finally:
            self.under_way -= 1


class House:
    """A runner with all it needs; what is done first is shuffled with ``chance`` when that is given."""

    def __init__(
        self,
        *,
        notebook: MemoryNotebook | None = None,
        concurrency: int = 4,
        allowance: int | None = None,
        chance: int | None = None,
        before: House | None = None,
        predictors: tuple[str, ...] = ("answer",),
    ) -> None:
        self.toy = SyntheticProblem(fails=0.1, predictors=predictors)
        self.ledger = MemoryLedger()
        if before:
            self.ledger.calls, self.ledger.replies = before.ledger.calls, dict(before.ledger.replies)
        self.ledger.begin_stage("search", allowance=allowance)
        self.program = Program(self.toy, self.ledger)
        if chance is not None:
            rng = random.Random(chance)
            self.program.turns = lambda: rng.choice((0, 1, 1, 2, 5, 20))
        self.notebook: MemoryNotebook = before.notebook if before else notebook or MemoryNotebook()
        self.written: list[str] = []
        self.runner = Runner(
            self.program,
            write=self._write,
            ledger=self.ledger,
            notebook=self.notebook,
            concurrency=concurrency,
        )
        self.seed = self.toy.problem.seed
        self.examples = self.toy.problem.train
        self.child = self.seed.with_instructions("answer", "Use skill-1.", origin="by hand")

    async def _write(self, prompt: str, temperature: float, number: int) -> str:
        self.ledger.ask(f"{prompt} {number}")
        await self.program.take_time()
        self.written.append(f"{prompt} {number}")
        return f"{prompt} {number}"

    def noted(self, kind: str) -> list[int]:
        return [event.payload["ticket"] for _, event in self.notebook.events() if event.kind == kind]

    async def drive(self, algorithm: Algorithm) -> list[Candidate] | None:
        return await self.runner.drive(algorithm)


def start_all(requests: Iterable[Evaluate | Generate | Together]) -> Steps[list[int]]:
    tickets = []
    for request in requests:
        tickets.append((yield from start(request)))
    return tickets


# --- order -------------------------------------------------------------------------------------------------------


async def test_what_is_done_first_is_handed_over_first_and_noted() -> None:
    house = House()
    house.program.lasts = lambda candidate, example: 50 if candidate == house.seed else 0
    taken: list[tuple[int, Any]] = []

    def two(slow: Candidate, fast: Candidate) -> Algorithm:
        tickets = yield from start_all(Evaluate(each, house.examples[:2]) for each in (slow, fast))
        assert tickets == sorted(tickets)
        taken.append((yield from wait()))
        taken.append((yield from wait()))
        assert [ticket for ticket, _ in taken] == tickets[::-1]
        return [fast]

    assert await house.drive(two(house.seed, house.child)) == [house.child]
    assert [rows[0].candidate for _, rows in taken] == [house.child.key, house.seed.key]
    assert house.noted("done") == [2]  # for the second there was no choice


async def test_a_ticket_that_is_waited_for_by_itself_needs_no_note() -> None:
    house = House(chance=0)

    def in_turn() -> Algorithm:
        tickets = yield from start_all(Generate(f"text {number}") for number in range(5))
        for number, ticket in enumerate(tickets):
            assert (yield from wait(ticket)) == (ticket, (f"text {number} 1",))
        return [house.seed]

    await house.drive(in_turn())
    assert house.notebook.events() == []


async def test_of_several_tickets_those_not_asked_for_stay_under_way() -> None:
    house = House()

    def some() -> Algorithm:
        first, second, third = yield from start_all(Generate(text) for text in "abc")
        assert (yield from wait(second, third))[0] == second
        assert (yield from wait(first, third))[0] == first
        assert (yield from wait())[0] == third
        return [house.seed]

    await house.drive(some())


async def test_rows_begin_in_the_order_in_which_they_were_started() -> None:
    house = House(concurrency=1)

    def several() -> Algorithm:
        yield from start(Evaluate(house.seed, house.examples[:3]))
        yield from start(Together((Generate("a"), Evaluate(house.child, house.examples[:2]))))
        yield from start(Evaluate(house.seed, house.examples[3:5]))
        for _ in range(3):
            yield from wait()
        return [house.seed]

    await house.drive(several())
    seed, child = house.seed.key, house.child.key
    assert [key for key, *_ in house.program.begun] == [seed] * 3 + [child] * 2 + [seed] * 2


async def test_all_tickets_share_one_pool_of_slots_and_keep_it_busy() -> None:
    house = House(concurrency=3)
    house.program.lasts = lambda candidate, example: 3

    def several() -> Algorithm:
        for number in range(4):
            yield from start(Evaluate(house.seed, house.examples[5 * number : 5 * number + 5]))
        yield from evaluate(house.child, house.examples[:5])
        assert house.program.most == 3
        return [house.seed]

    await house.drive(several())
    assert house.program.most == 3


async def test_rows_that_are_under_way_for_another_ticket_are_not_run_twice() -> None:
    house = House(concurrency=2)
    replies: list[Any] = []

    def shared() -> Algorithm:
        one = yield from start(Evaluate(house.seed, house.examples[:6]))
        other = yield from start(Evaluate(house.seed, house.examples[3:9]))
        replies.append((yield from wait(other))[1])
        replies.append((yield from wait(one))[1])
        return [house.seed]

    await house.drive(shared())
    assert len(house.program.begun) == 9
    assert list(replies[0])[:3] == list(replies[1])[3:]


NOTHING: list[Any] = ["please", Start(Generate("a")), None]


@pytest.mark.parametrize("asked", [Wait(), Wait((1,)), Wait((7,)), *(Start(each) for each in NOTHING)])
async def test_a_wait_for_nothing_and_a_start_of_nothing_break_the_contract(asked: Wait | Start) -> None:
    house = House()

    def broken() -> Algorithm:
        yield asked
        return [house.seed]

    def again() -> Algorithm:
        ticket = yield from start(Generate("a"))
        yield from wait(ticket)
        yield from wait(ticket)
        return [house.seed]

    for algorithm in (broken(), again()):
        with pytest.raises(BrokenContract):
            await house.drive(algorithm)


# --- parts of an algorithm ---------------------------------------------------------------------------------------


async def test_a_part_goes_on_as_soon_as_its_own_request_is_answered() -> None:
    house = House(concurrency=8)
    house.program.lasts = lambda candidate, example: 500 if candidate == house.seed else 0
    ended: list[str] = []

    def part(name: str, candidate: Candidate, steps: int) -> Steps[str]:
        for number in range(steps):
            yield from evaluate(candidate, house.examples[2 * number : 2 * number + 2])
        ended.append(name)
        return name

    def search() -> Algorithm:
        parts = [part("slow", house.seed, 1), part("fast", house.child, 9), part("none", house.child, 0)]
        assert (yield from in_parallel(parts)) == ["slow", "fast", "none"]
        return [house.seed]

    await house.drive(search())
    assert ended == ["none", "fast", "slow"]


# --- the budget --------------------------------------------------------------------------------------------------


async def test_what_is_under_way_is_counted_as_estimated_and_what_was_handed_over_as_it_was() -> None:
    house = House(allowance=10)
    house.runner.calls_per_run = 2.0

    def careful() -> Algorithm:
        first = yield from start(Evaluate(house.seed, house.examples[:3]))  # 6 of 10 promised
        yield from start(Evaluate(house.seed, house.examples[1:4]))  # one more row: 8
        text = yield from start(Generate("a", n=2))  # 10
        with pytest.raises(BudgetSpent):
            yield from start(Generate("b"))
        yield from start(Evaluate(house.seed, house.examples[:2]))  # nothing new
        yield from wait(first)  # 3 of 10 used, 4 promised
        yield from generate("b", temperature=0.5)
        yield from start(Evaluate(house.seed, house.examples[4:5]))
        with pytest.raises(BudgetSpent):
            yield from start(Generate("c"))
        yield from wait(text)
        return [house.seed]

    await house.drive(careful())
    assert house.runner.left() == 10 - 3 - 1 - 2


async def test_whether_a_start_is_refused_does_not_depend_on_how_far_the_others_are() -> None:
    def greedy(house: House, granted: list[bool]) -> Algorithm:
        rng = random.Random(0)
        tickets: list[int] = []
        for _ in range(60):
            if tickets and rng.random() < 0.5:
                yield from wait(tickets.pop(0))
            rows, text = Evaluate(house.seed, tuple(rng.sample(house.examples, 3))), Generate(f"{rng.random()}")
            try:
                tickets.append((yield from start(text if rng.random() < 0.3 else rows)))
                granted.append(True)
            except BudgetSpent:
                granted.append(False)
        return [house.seed]

    async def granted(chance: int) -> list[bool]:
        house = House(allowance=60, chance=chance, predictors=("plan", "answer"))
        house.runner.calls_per_run = 3.0  # too much: it takes two calls, or one
        told: list[bool] = []
        await house.drive(greedy(house, told))
        return told

    first = await granted(0)
    assert True in first[first.index(False) :]
    for chance in range(1, 8):
        assert await granted(chance) == first


async def test_a_ticket_that_the_budget_does_not_carry_to_its_end_is_told_of_when_it_is_waited_for() -> None:
    house = House(allowance=10, concurrency=1)
    house.runner.calls_per_run = 0.5  # too little: it takes one call
    told: list[object] = []

    def believing() -> Algorithm:
        first = yield from start(Evaluate(house.seed, house.examples[:8]))
        second = yield from start(Evaluate(house.seed, house.examples[8:16]))
        yield from wait(first)
        try:
            yield from wait()
        except BudgetSpent as spent:
            told.append(spent.values["ticket"])
        assert told == [second]
        with pytest.raises(BudgetSpent):
            yield from start(Generate("a"))
        known = yield from evaluate(house.seed, house.examples[:8])  # costs nothing
        assert len(known) == 8
        return [house.seed]

    assert await house.drive(believing()) == [house.seed]
    assert house.noted("refused") == [2]
    assert (house.ledger.calls, house.runner.left()) == (10, 0)
    # The replay knows that it was refused, and does not try again, even if there were more to spend now.
    again = House(before=house, allowance=100)
    again.runner.calls_per_run = 0.5
    told.clear()
    assert await again.drive(believing()) == [house.seed]
    assert again.program.begun == []


async def test_what_is_left_is_counted_anew_in_each_stage() -> None:
    house = House(allowance=10)
    await house.runner.answer(Evaluate(house.seed, house.examples[:6]))
    assert house.runner.left() == 4
    house.ledger.begin_stage("later", allowance=3)
    assert house.runner.left() == 3
    await house.runner.answer(Evaluate(house.seed, house.examples[4:8]))
    assert house.runner.left() == 1


# --- the end -----------------------------------------------------------------------------------------------------


async def test_when_an_algorithm_ends_what_was_begun_is_kept_and_the_rest_is_not_begun() -> None:
    house = House(concurrency=3)
    house.program.lasts = lambda candidate, example: 5

    def hasty() -> Algorithm:
        yield from start(Evaluate(house.seed, house.examples[:20]))
        yield from start(Generate("late"))
        yield from generate("soon")
        return [house.seed]

    assert await house.drive(hasty()) == [house.seed]
    assert house.runner.called_off
    assert house.program.under_way == 0
    begun = len(house.program.begun)
    assert begun == 3
    calls = house.ledger.calls
    house.ledger.begin_stage("later", allowance=30)
    for _ in range(100):
        await asyncio.sleep(0)
    assert (len(house.program.begun), house.ledger.calls, house.ledger.left()) == (begun, calls, 30)
    assert len(list(house.notebook.evaluations())) == begun
    assert house.runner.known(house.seed, house.examples[:1]) is None  # nobody was told
    await house.runner.answer(Evaluate(house.seed, house.examples[:20]))
    assert len(house.program.begun) == 20  # what was kept is not run again


async def test_an_algorithm_that_waited_for_everything_leaves_nothing_to_call_off() -> None:
    house = House()

    def patient() -> Algorithm:
        yield from start(Generate("a"))
        yield from wait()
        return [house.seed]

    await house.drive(patient())
    assert not house.runner.called_off


async def test_when_the_world_fails_a_ticket_nobody_waits_for_the_search_ends_with_the_cause() -> None:
    house = House(concurrency=2)
    house.program.dead = house.examples[15]
    house.program.lasts = lambda candidate, example: 1000 if candidate == house.child else 1

    def unaware() -> Algorithm:
        yield from start(Evaluate(house.seed, house.examples[10:20]))
        yield from evaluate(house.child, house.examples[:1])
        return [house.seed]

    with pytest.raises(LmUnavailable):
        await house.drive(unaware())
    assert house.program.under_way == 0


async def test_a_search_that_is_cancelled_leaves_nothing_under_way() -> None:
    house = House(concurrency=2)
    house.program.lasts = lambda candidate, example: 50

    def endless() -> Algorithm:
        yield from start(Evaluate(house.seed, house.examples[:20]))
        yield from evaluate(house.child, house.examples)
        return [house.seed]

    for work in (house.drive(endless()), house.runner.evaluate(house.child, house.examples)):
        task = asyncio.ensure_future(work)
        for _ in range(20):
            await asyncio.sleep(0)
        assert house.program.under_way == 2
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert house.program.under_way == 0


# --- the replay --------------------------------------------------------------------------------------------------


def gambler(house: House, log: list[object], *, steps: int = 30) -> Algorithm:
    """Keeps several things under way and lets all that it is told, and when, decide what it does next."""

    def chance() -> random.Random:
        return random.Random(content_hash(log))

    def request() -> Evaluate | Generate | Together:
        rng = chance()
        child = house.seed.with_instructions("answer", f"Use skill-{rng.randrange(5)}.", origin="gamble")
        rows = Evaluate(child, tuple(rng.sample(house.examples, rng.randint(1, 6))), rng.choice((1, 1, 2)))
        text = Generate(f"prompt {rng.randrange(3)}", n=rng.choice((1, 1, 3)))
        return rng.choice((rows, rows, text, Together((text, rows, text))))

    under_way: list[int] = []
    for _ in range(steps):
        rng = chance()
        try:
            match rng.randrange(4):
                case 0 | 1 if len(under_way) < 8:
                    under_way.append((yield from start(request())))
                    log.append(under_way[-1])
                case 2:
                    reply = yield request()
                    log.append(repr(reply))
                case _ if under_way:
                    among = rng.sample(under_way, rng.randint(0, len(under_way)))
                    ticket, reply = yield from wait(*among)
                    under_way.remove(ticket)
                    log.append((ticket, repr(reply)))
                case _:
                    log.append("nothing")
        except BudgetSpent as spent:
            under_way = [each for each in under_way if each != spent.values.get("ticket")]
            log.append(f"spent, {len(under_way)} under way")
    return [house.seed.with_instructions("answer", content_hash(log), origin="gamble")]


@settings(deadline=None, max_examples=40)
@given(
    lives=st.lists(st.integers(0, 100), max_size=4),
    chances=st.lists(st.integers(0, 10**6), min_size=5, max_size=5),
    allowance=st.sampled_from([None, 30, 80]),
    estimate=st.sampled_from([0.5, 1.0, 2.0]),
)
def test_killed_anywhere_a_search_sees_again_what_it_saw_and_then_goes_on(
    lives: list[int], chances: list[int], allowance: int | None, estimate: float
) -> None:
    """What it saw before it was killed is the beginning of what it sees in its next life; the last one is replayed."""
    notebook = Mortal()
    house: House | None = None
    seen: list[object] = []
    found: Sequence[Candidate] | None = None
    paid: set[tuple[str, Example, int]] = set()
    for life, chance in zip([*lives, float("inf")], chances, strict=False):
        notebook.live(life)
        house = House(notebook=notebook, before=house, allowance=allowance, chance=chance)
        house.runner.calls_per_run = estimate
        log: list[object] = []
        with contextlib.suppress(StorageUnavailable):
            found = asyncio.run(house.drive(gambler(house, log)))
        both = min(len(log), len(seen))
        assert log[:both] == seen[:both]
        seen = max(log, seen, key=len)
        assert not paid & set(house.program.begun)
        paid = {(row.candidate, row.example, row.repeat) for row, _ in notebook.evaluations()}
        assert allowance is None or len(house.ledger._seen) <= allowance
    assert house is not None
    assert found is not None
    again = House(before=house, allowance=allowance, chance=0)
    again.runner.calls_per_run = estimate
    log = []
    assert asyncio.run(again.drive(gambler(again, log))) == found
    assert log == seen
    assert not paid & set(again.program.begun)


@pytest.mark.parametrize("name", sorted(NATIVE))
@pytest.mark.parametrize("concurrency", [2, 32])
def test_what_our_algorithms_find_does_not_depend_on_what_was_done_first_nor_on_being_killed(
    name: str, concurrency: int
) -> None:
    """The same as undisturbed, however long each call takes: in a calm world, an uneven one, and after three kills."""

    def search(house: House) -> list[Candidate] | None:
        toy = SyntheticProblem(runs=200, slots=concurrency)
        return asyncio.run(house.drive(NATIVE[name](toy.problem, rng=random.Random(0))))

    calm = search(House(concurrency=concurrency, allowance=200))
    assert calm
    for chance in range(3):
        assert search(House(concurrency=concurrency, allowance=200, chance=chance)) == calm
    notebook, house = Mortal(), None
    for life, writes in enumerate((40, 120, 50, float("inf"))):
        notebook.live(writes)
        house = House(notebook=notebook, before=house, concurrency=concurrency, allowance=200, chance=10 + life)
        with contextlib.suppress(StorageUnavailable):
            found = search(house)
    assert found == calm


async def test_a_search_that_is_not_the_same_as_before_is_told_so() -> None:
    def some(house: House, tickets: int) -> Algorithm:
        yield from start_all(Generate(f"text {number}") for number in range(tickets))
        for _ in range(tickets):
            yield from wait()
        return [house.seed]

    house = House()
    turns = iter(range(60, 0, -10))
    house.program.turns = lambda: next(turns)
    await house.drive(some(house, 6))
    assert house.noted("done") == [6, 5, 4, 3, 2]
    again = House(before=house)
    with pytest.raises(BrokenContract, match="begin anew"):
        await again.drive(some(again, 3))

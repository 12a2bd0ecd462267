"""The runner carries out what algorithms ask for: each row once, concurrently, within the budget."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from typing import Any

import pytest

from ratchet.algorithms import NATIVE
from ratchet.core.algorithm import Algorithm, Evaluate, Generate, Together, evaluate
from ratchet.core.errors import BrokenContract, BudgetSpent, LmUnavailable
from ratchet.core.evaluation import Evaluation, Evaluations
from ratchet.core.problem import Candidate, Example
from ratchet.engine.runner import Runner
from ratchet.storage.memory import MemoryNotebook
from ratchet.testing import SyntheticProblem
from ratchet.testing.engine import MemoryLedger, SyntheticProgram


class Watched(SyntheticProgram):
    """Counts how many runs are under way, and fails where it is told to."""

    under_way = 0
    most = 0
    seconds = 0.0
    dead: Example | None = None

    async def run(self, candidate: Candidate, example: Example, *, repeat: int = 0) -> Evaluation:
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        try:
            await asyncio.sleep(self.seconds)
            if example == self.dead:
                raise LmUnavailable("the LM is dead")
            return await super().run(candidate, example, repeat=repeat)
        finally:
            self.under_way -= 1


class House:
    def __init__(
        self, *, notebook: MemoryNotebook | None = None, concurrency: int = 4, allowance: int | None = None
    ) -> None:
        self.toy = SyntheticProblem(fails=0.1)
        self.ledger = MemoryLedger()
        self.ledger.begin_stage("search", allowance=allowance)
        self.program = Watched(self.toy, self.ledger)
        self.notebook = notebook or MemoryNotebook()
        self.told: list[tuple[Candidate, Evaluations]] = []
        self.written: list[tuple[str, float, int]] = []
        self.runner = Runner(
            self.program,
            write=self._write,
            ledger=self.ledger,
            notebook=self.notebook,
            on_evaluations=lambda candidate, rows: self.told.append((candidate, rows)),
            concurrency=concurrency,
        )
        self.seed = self.toy.problem.seed
        self.examples = self.toy.problem.train
        self.child = self.seed.with_instructions("answer", "Use skill-1.", origin="by hand")

    async def _write(self, prompt: str, temperature: float, number: int) -> str:
        self.ledger.ask(f"{prompt} {number}")
        self.written.append((prompt, temperature, number))
        return f"{prompt} {number}"


async def test_rows_come_in_the_order_asked_for_with_their_repeats() -> None:
    house = House()
    rows = await house.runner.evaluate(house.seed, house.examples[:5], repeats=2)
    assert [(row.example, row.repeat) for row in rows] == [(each, n) for each in house.examples[:5] for n in range(2)]
    assert [row.score for row in rows] == [house.toy.run(house.seed, row.example, row.repeat).score for row in rows]


async def test_no_row_is_run_twice() -> None:
    house = House()
    first = await house.runner.evaluate(house.seed, house.examples[:5])
    again = await house.runner.evaluate(house.seed, [*house.examples[3:8], house.examples[3]])
    assert len(house.program.ran) == 8
    assert list(again)[:2] == list(first)[3:]
    assert again[0] is again[5]


async def test_the_same_row_asked_for_side_by_side_is_run_once() -> None:
    house = House()
    one = Evaluate(house.seed, house.examples[:6])
    replies = await house.runner.answer(Together((one, one, Evaluate(house.seed, house.examples[3:9]))))
    assert len(house.program.ran) == 9
    assert replies[0] == replies[1]


async def test_no_more_rows_than_slots_are_under_way() -> None:
    house = House(concurrency=3)
    house.program.seconds = 0.002
    await house.runner.answer(
        Together(tuple(Evaluate(each, house.examples[:10]) for each in (house.seed, house.child)))
    )
    assert house.program.most == 3


async def test_rows_and_candidates_are_kept_with_their_stage() -> None:
    house = House()
    await house.runner.evaluate(house.seed, house.examples[:3])
    house.ledger.begin_stage("later")
    await house.runner.evaluate(house.seed, house.examples[:4])
    await house.runner.evaluate(house.child, house.examples[:1])
    assert [(each.key, stage) for each, stage in house.notebook.candidates()] == [
        (house.seed.key, "search"),
        (house.child.key, "later"),
    ]
    assert [stage for _, stage in house.notebook.evaluations()] == ["search"] * 3 + ["later"] * 2
    assert [(candidate.key, len(rows)) for candidate, rows in house.told] == [
        (house.seed.key, 3),
        (house.seed.key, 4),
        (house.child.key, 1),
    ]


async def test_stored_rows_are_not_run_again_and_count_as_they_did() -> None:
    before = House()
    rows = await before.runner.evaluate(before.seed, before.examples[:6])
    resumed = House(notebook=before.notebook, allowance=8)
    assert resumed.runner.known(resumed.seed, resumed.examples[:6]) is None  # before it is asked for again
    assert await resumed.runner.evaluate(resumed.seed, resumed.examples[:6]) == rows
    assert resumed.runner.known(resumed.seed, resumed.examples[:6]) == rows
    assert resumed.program.ran == []
    assert resumed.ledger.left() == 2
    with pytest.raises(BudgetSpent):
        await resumed.runner.answer(Evaluate(resumed.seed, resumed.examples[6:9]))


async def test_what_is_known_is_all_or_nothing() -> None:
    house = House()
    rows = await house.runner.evaluate(house.seed, house.examples[:3])
    assert house.runner.known(house.seed, house.examples[:3]) == rows
    assert house.runner.known(house.seed, house.examples[:4]) is None
    assert house.runner.known(house.child, house.examples[:1]) is None
    assert house.runner.known(house.seed, []) is None


async def test_the_best_known_is_among_those_that_were_run_on_everything() -> None:
    house = House()
    assert house.runner.best_known(house.examples[:20]) is None
    better = house.seed.with_instructions("answer", "skill-1 skill-2 skill-3", origin="by hand")
    best = house.seed.with_instructions("answer", "skill-1 skill-2 skill-3 skill-4", origin="by hand")
    for each in (house.seed, better):
        await house.runner.evaluate(each, house.examples[:20])
    await house.runner.evaluate(best, house.examples[:19])
    assert house.runner.best_known(house.examples[:20]) == better


# --- budgets and errors -------------------------------------------------------------------------------------------


async def test_a_request_that_cannot_be_paid_for_is_not_begun() -> None:
    house = House(allowance=5)
    await house.runner.answer(Evaluate(house.seed, house.examples[:3]))
    for request in (
        Evaluate(house.seed, house.examples[3:6]),
        Evaluate(house.seed, house.examples[3:5], repeats=2),
        Together((Generate("a"), Generate("b", n=2))),
    ):
        with pytest.raises(BudgetSpent):
            await house.runner.answer(request)
    assert (len(house.program.ran), house.written) == (3, [])
    await house.runner.answer(Evaluate(house.seed, house.examples[:5]))  # three of them are there
    assert len(house.program.ran) == 5


async def test_runs_that_take_several_calls_count_as_several() -> None:
    house = House(allowance=10)
    house.runner.calls_per_run = 3.0
    with pytest.raises(BudgetSpent):
        await house.runner.answer(Evaluate(house.seed, house.examples[:4]))
    assert house.program.ran == []


async def test_when_the_world_fails_the_other_rows_are_over_too() -> None:
    house = House(concurrency=2)
    house.program.seconds = 0.01
    house.program.dead = house.examples[1]
    with pytest.raises(LmUnavailable):
        await house.runner.answer(Together((Evaluate(house.seed, house.examples[:20]), Generate("a"))))
    assert house.program.under_way == 0
    ran = len(house.program.ran)
    await asyncio.sleep(0.05)
    assert len(house.program.ran) == ran
    assert all(row.example != house.program.dead for row, _ in house.notebook.evaluations())


async def test_rows_that_were_done_when_the_budget_ended_are_not_lost() -> None:
    house = House()
    house.ledger.limit = 7
    with pytest.raises(BudgetSpent):
        await house.runner.evaluate(house.seed, house.examples[:12])
    kept = [row for row, _ in house.notebook.evaluations()]
    assert len(kept) == 7
    assert all(house.runner.stored(house.seed, row.example) == row for row in kept)
    assert house.runner.known(house.seed, [kept[0].example]) is None
    house.ledger.limit = None
    await house.runner.evaluate(house.seed, house.examples[:12])
    assert len(house.program.ran) == 12


# --- texts --------------------------------------------------------------------------------------------------------


async def test_the_same_prompt_asked_again_gives_another_text() -> None:
    house = House()
    first = await house.runner.answer(Generate("write", 0.7, n=3))
    second = await house.runner.answer(Together((Generate("write"), Generate("write"))))
    assert first == ("write 1", "write 2", "write 3")
    assert second == [("write 4",), ("write 5",)]
    assert house.written[0] == ("write", 0.7, 1)


async def test_each_algorithm_counts_its_texts_from_the_start_so_that_a_replay_is_exact() -> None:
    house = House()

    def writer() -> Algorithm:
        texts = yield Generate("write")
        return [house.seed.with_instructions("answer", texts[0], origin="written")]

    first, second = await house.runner.drive(writer()), await house.runner.drive(writer())
    assert first == second
    assert house.ledger.calls == 1


# --- driving ------------------------------------------------------------------------------------------------------


async def test_an_algorithm_is_driven_to_its_finalists() -> None:
    house = House()

    def climb() -> Algorithm:
        before = yield from evaluate(house.seed, house.examples)
        after = yield from evaluate(house.child, house.examples)
        return [house.child if after.mean > before.mean else house.seed]

    assert await house.runner.drive(climb()) == [house.child]


async def test_the_end_of_the_budget_is_thrown_into_the_algorithm() -> None:
    house = House(allowance=45)

    def careful() -> Algorithm:
        best = house.seed
        try:
            for each in (house.seed, house.child):
                yield from evaluate(each, house.examples)
                best = each
        except BudgetSpent:
            return [best]
        return [house.child]

    def careless() -> Algorithm:
        yield from evaluate(house.child, house.examples)
        return [house.child]

    assert await house.runner.drive(careful()) == [house.seed]
    assert await house.runner.drive(careless()) is None


@pytest.mark.parametrize("asked", ["please", None, 7, Evaluate])
async def test_a_request_the_contract_does_not_know_is_named(asked: Any) -> None:
    def broken() -> Algorithm:
        yield asked
        return []

    with pytest.raises(BrokenContract, match="it may yield Evaluate, Generate or Together, these in a Start, or Wait"):
        await House().runner.drive(broken())


@pytest.mark.parametrize("returned", [None, [], ["a prompt"], [None]])
async def test_an_algorithm_without_finalists_is_named(returned: Any) -> None:
    def broken() -> Algorithm:
        yield from evaluate(house.seed, house.examples[:1])
        finalists: Sequence[Candidate] = returned
        return finalists

    house = House()
    with pytest.raises(BrokenContract, match="must return its finalists"):
        await house.runner.drive(broken())


async def test_the_same_search_over_the_same_rows_is_the_same() -> None:
    for search in NATIVE.values():
        first = House()
        found = await first.runner.drive(search(first.toy.problem, rng=random.Random(3)))
        stored = {(row.candidate, row.example.key, row.repeat) for row, _ in first.notebook.evaluations()}
        again = House(notebook=first.notebook)
        assert await again.runner.drive(search(again.toy.problem, rng=random.Random(3))) == found
        ran = {(candidate.key, example.key, repeat) for _, candidate, example, repeat in again.program.ran}
        assert not ran & stored
        assert not ran or first.runner.called_off  # only what was called off is begun once more

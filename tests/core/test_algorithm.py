"""Parts of an algorithm run side by side, each at its own pace, and are driven by hand with ``send``."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ratchet.core.algorithm import (
    Generate,
    Parts,
    Start,
    Steps,
    Together,
    Wait,
    generate,
    in_parallel,
    start,
    together,
    wait,
)
from ratchet.core.errors import BrokenContract, BudgetSpent


class Driver:
    """Answers each text with itself; ``choose`` says what is done first, ``spent_at`` which starts are refused."""

    def __init__(
        self,
        choose: Callable[[Sequence[int]], int] = min,
        *,
        spent_at: Sequence[int] = (),
        lost: Sequence[int] = (),
    ) -> None:
        self.choose, self.spent_at, self.lost = choose, spent_at, lost
        self.under_way: dict[int, Any] = {}
        self.started: list[str] = []
        self.begun = 0

    def reply(self, request: Any) -> Any:
        if isinstance(request, Start):
            self.begun += 1
            if self.begun in self.spent_at:
                raise BudgetSpent("no more")
            self.under_way[self.begun] = request.request
            self.started.append(text_of(request.request))
            return self.begun
        if isinstance(request, Wait):
            ticket = self.choose(request.among or tuple(self.under_way))
            asked = self.under_way.pop(ticket)
            if ticket in self.lost:
                raise BudgetSpent("it did not last", ticket=ticket)
            return ticket, texts(asked)
        return texts(request)

    def drive(self, steps: Steps[Any]) -> Any:
        reply: Any = None
        try:
            while True:
                request = steps.throw(reply) if isinstance(reply, BudgetSpent) else steps.send(reply)
                try:
                    reply = self.reply(request)
                except BudgetSpent as spent:
                    reply = spent
        except StopIteration as end:
            return end.value


def text_of(request: Any) -> str:
    return " ".join(map(text_of, request.requests)) if isinstance(request, Together) else request.prompt


def texts(request: Any) -> Any:
    return [texts(each) for each in request.requests] if isinstance(request, Together) else (request.prompt,)


def asking(*prompts: str) -> Steps[str]:
    """The texts to ``prompts``, asked for one after another."""
    answers = []
    for prompt in prompts:
        answers.append((yield from generate(prompt)))
    return " ".join(answers)


def test_each_part_goes_on_when_its_own_request_is_answered() -> None:
    driver = Driver(max)
    found = driver.drive(in_parallel([asking("a1", "a2", "a3"), asking("b1", "b2"), asking()]))
    assert found == ["a1 a2 a3", "b1 b2", ""]
    assert driver.started == ["a1", "b1", "b2", "a2", "a3"]  # the last that was started was always done first


@given(st.integers(0, 1000), st.lists(st.integers(0, 4), max_size=6))
def test_results_come_in_the_order_of_the_parts_whatever_is_done_first(seed: int, lengths: list[int]) -> None:
    names = [[f"{part}.{step}" for step in range(length)] for part, length in enumerate(lengths)]
    for slots in (None, 1, 3):
        driver = Driver(random.Random(seed).choice)

        def all_parts(slots: int | None = slots) -> Steps[dict[int, str]]:
            parts: Parts[str] = Parts(slots=slots)
            for each in names:
                yield from parts.begin(asking(*each))
            results = {}
            while parts:
                number, result = yield from parts.next_result()
                results[number] = result
            return results

        expected = [" ".join(each) for each in names]
        assert driver.drive(all_parts()) == dict(enumerate(expected))
        assert driver.drive(in_parallel([asking(*each) for each in names])) == expected


def test_with_slots_the_order_in_which_things_are_done_changes_nothing() -> None:
    def search() -> Steps[list[str]]:
        parts: Parts[str] = Parts(slots=4)
        for name in "abc":
            yield from parts.begin(asking(f"{name}1", f"{name}2"))
        ended = []
        while parts:
            ended.append((yield from parts.next_result())[1])
        return ended

    for choose in (min, max):
        driver = Driver(choose)
        assert driver.drive(search()) == ["a1 a2", "b1 b2", "c1 c2"]
        assert driver.started == ["a1", "b1", "c1", "a2", "b2", "c2"]


def test_parts_may_themselves_start_wait_and_run_parts() -> None:
    def own(name: str) -> Steps[str]:
        first = yield from start(Generate(f"{name}1"))
        second = yield from start(Generate(f"{name}2"))
        plain = yield from generate(f"{name}3")
        early, late = (yield from wait()), (yield from wait())
        assert {early[0], late[0]} == {first, second}
        return f"{early[1][0]} {late[1][0]} {plain}"

    def nested(name: str) -> Steps[str]:
        both = yield from in_parallel([asking(f"{name}1"), own(f"{name}.")])
        return " | ".join(both) + " | " + " ".join(each[0] for each in (yield from together([Generate(name)])))

    assert Driver(min).drive(in_parallel([own("a"), nested("b")])) == ["a1 a2 a3", "b1 | b.1 b.2 b.3 | b"]
    assert Driver(max).drive(in_parallel([own("a"), nested("b")])) == ["a2 a1 a3", "b1 | b.2 b.1 b.3 | b"]


def test_a_part_that_waits_for_nothing_breaks_the_contract() -> None:
    def idle() -> Steps[str]:
        yield from wait()
        return ""

    with pytest.raises(BrokenContract, match="nothing under way"):
        Driver().drive(in_parallel([asking("a"), idle()]))


@pytest.mark.parametrize("ends", [{"spent_at": (3,)}, {"lost": (2,)}])
def test_a_spent_budget_is_raised_into_the_part_that_asked_and_ends_all_when_it_is_not_caught(ends: Any) -> None:
    def careful(name: str) -> Steps[str]:
        try:
            return (yield from asking(f"{name}1", f"{name}2"))
        except BudgetSpent:
            return f"{name} did without"

    assert Driver(**ends).drive(in_parallel([careful("a"), careful("b")])) in (
        ["a did without", "b1 b2"],
        ["a1 a2", "b did without"],
    )
    with pytest.raises(BudgetSpent):
        Driver(**ends).drive(in_parallel([asking("a1", "a2"), asking("b1", "b2")]))


@pytest.mark.parametrize("ends", [{"spent_at": (3,)}, {"lost": (2,)}])
def test_the_other_parts_are_as_they_were_when_one_was_ended_by_a_spent_budget(ends: Any) -> None:
    def search() -> Steps[list[str]]:
        parts: Parts[str] = Parts()
        ended = []
        for name in "ab":
            yield from parts.begin(asking(f"{name}1", f"{name}2"))
        while parts:
            try:
                ended.append((yield from parts.next_result())[1])
            except BudgetSpent:
                ended.append("spent")
        return ended

    assert sorted(Driver(**ends).drive(search())) in (["a1 a2", "spent"], ["b1 b2", "spent"])

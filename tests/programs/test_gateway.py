"""The one door to every LM: what is sent, what is remembered, what is refused."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import dspy
import pytest
from dspy import lm15
from dspy.utils.exceptions import LMInvalidRequestError

from ratchet.core.errors import BudgetSpent, Cancelled, LmUnavailable, RatchetError
from ratchet.engine.archive import Optimization
from ratchet.programs.gateway import Gateway, Receipt
from ratchet.programs.gateway_lm import GatewayLM
from ratchet.programs.journal import Reply
from ratchet.programs.ledger import Halt, Limits
from ratchet.programs.line import Line, Price
from ratchet.storage.memory import MemoryJournal
from ratchet.storage.sql import SqlArchive
from ratchet.testing.lm import Asked, ScriptedLM, fields
from ratchet.testing.lm_server import StubServer


def _optimization(name: str) -> Optimization:
    return Optimization(id=name, status="running", created_at=datetime.now(UTC), request={})


class House:
    """A gateway, its journal, and a scripted LM behind it."""

    def __init__(
        self,
        script: Callable[[Asked], str | Exception] = lambda asked: f"answer {asked.number}",
        *,
        journal: Any = None,
        price: Price | None = None,
        seconds: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
        shared_as: str | None = None,
        **limits: Any,
    ) -> None:
        self.journal = journal or MemoryJournal()
        self.outside = ScriptedLM(script, seconds=seconds)
        self.gateway = Gateway(self.journal, Limits(**limits), clock=clock)
        self.line = Line(self.outside, "task", price=price, shared_as=shared_as)
        self.lm = GatewayLM(self.gateway, self.outside, self.line)

    @property
    def sent(self) -> int:
        return len(self.outside.log)

    def ask(self, prompt: str = "hello", **options: Any) -> str:
        return str(self.lm(prompt, **options)[0])

    def outcome(self, prompt: str = "hello", **options: Any) -> str | RatchetError:
        """The answer, or what halted it."""
        try:
            return self.ask(prompt, **options)
        except Halt as halt:
            return halt.cause

    async def aask(self, prompt: str = "hello", **options: Any) -> str:
        return str((await self.lm.acall(prompt, **options))[0])


async def sending(house: House) -> asyncio.Task[str]:
    """A task whose request is under way."""
    task = asyncio.create_task(house.aask())
    while not house.sent:
        await asyncio.sleep(0.001)
    return task


async def aoutcome(house: House, prompt: str) -> str | RatchetError:
    try:
        return await house.aask(prompt)
    except Halt as halt:
        return halt.cause


# --- one request, one sending -------------------------------------------------------------------------------------


def test_equal_requests_of_many_threads_are_sent_once() -> None:
    house = House(seconds=0.05)
    with ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(lambda _: house.ask(), range(12)))
    assert answers == ["answer 0"] * 12
    assert house.sent == house.gateway.calls == house.journal.sent().calls == 1


async def test_equal_requests_of_many_tasks_are_sent_once() -> None:
    house = House(seconds=0.05)
    assert set(await asyncio.gather(*(house.aask() for _ in range(12)))) == {"answer 0"}
    assert house.sent == 1


async def test_a_task_and_a_thread_share_one_sending() -> None:
    house = House(seconds=0.1)
    both = await asyncio.gather(*(asyncio.to_thread(house.ask) for _ in range(3)), *(house.aask() for _ in range(3)))
    assert set(both) == {"answer 0"}
    assert house.sent == 1


async def test_who_gives_up_waiting_for_a_shared_answer_takes_it_from_nobody() -> None:
    house = House(seconds=0.2)
    pilot = await sending(house)
    passenger, other = (asyncio.ensure_future(house.aask()) for _ in range(2))
    await asyncio.sleep(0.05)
    passenger.cancel()
    assert [await pilot, await other] == ["answer 0"] * 2
    assert passenger.cancelled()
    assert house.sent == 1


async def test_when_the_one_who_sent_gives_up_the_others_still_get_an_answer() -> None:
    house = House(seconds=0.2)
    pilot = await sending(house)
    passenger, thread = asyncio.ensure_future(house.aask()), asyncio.ensure_future(asyncio.to_thread(house.ask))
    await asyncio.sleep(0.05)
    pilot.cancel()
    first, second = await asyncio.gather(passenger, thread)
    assert first == second
    assert pilot.cancelled()
    assert house.sent == 1  # it was paid for, so it is waited for


def test_a_journal_that_holds_the_reply_spares_the_sending() -> None:
    before = House()
    answers = [before.ask(prompt) for prompt in ("a", "b", "a")]
    resumed = House(lambda asked: "another answer", journal=before.journal)
    assert [resumed.ask(prompt) for prompt in ("a", "b", "a")] == answers == ["answer 0", "answer 1", "answer 0"]
    assert resumed.sent == 0
    assert resumed.gateway.calls == before.gateway.calls == 2


def test_each_rollout_has_a_reply_of_its_own() -> None:
    house = House()
    answers = [house.ask(rollout_id=rollout, temperature=1.0) for rollout in (None, 1, 2, 1)]
    assert answers == ["answer 0", "answer 1", "answer 2", "answer 1"]
    with dspy.context(ratchet_rollout=1):
        assert house.ask(temperature=1.0) == "answer 3"
    assert house.ask(temperature=1.0) == "answer 0"


def test_several_completions_of_one_call_differ_and_are_remembered() -> None:
    house = House()
    assert house.lm("hello", n=3, temperature=1.0) == ["answer 0", "answer 1", "answer 2"]
    assert house.lm("hello", n=3, temperature=1.0) == ["answer 0", "answer 1", "answer 2"]
    assert asyncio.run(house.lm.acall("hello", n=3, temperature=1.0)) == ["answer 0", "answer 1", "answer 2"]
    assert house.sent == 3


def test_the_same_words_to_two_roles_are_two_requests() -> None:
    house = House()
    judge = GatewayLM(house.gateway, house.outside, Line(house.outside, "judge"))
    assert (house.ask(), judge("hello")) == ("answer 0", ["answer 1"])


def test_temperature_and_other_options_are_part_of_the_request() -> None:
    house = House()
    assert len({house.ask(temperature=0.0), house.ask(temperature=0.7), house.ask(max_tokens=9)}) == 3
    assert house.outside.log[1].request.config.temperature == 0.7


# --- what other optimizations know ----------------------------------------------------------------------------------


def test_a_repeatable_reply_is_shared_between_optimizations_and_is_no_call(tmp_path: Path) -> None:
    archive = SqlArchive(f"sqlite:///{tmp_path}/ratchet.db")
    houses = [House(journal=archive.start(_optimization(name)).journal, shared_as="model 1") for name in ("aa", "bb")]
    answers = [house.ask(temperature=0.0) for house in houses]
    assert answers == ["answer 0", "answer 0"]
    assert [house.sent for house in houses] == [1, 0]
    first, second = (house.journal.sent() for house in houses)
    assert (first.calls, first.recorded, first.borrowed) == (1, 1, 0)
    assert (second.calls, second.recorded, second.borrowed, second.prompt_tokens) == (0, 1, 1, 0)
    resumed = House(journal=houses[1].journal, shared_as="another model by now")
    assert resumed.ask(temperature=0.0) == "answer 0"
    assert resumed.sent == 0
    archive.close()


@pytest.mark.parametrize("options", [{}, {"temperature": 0.7}])
def test_what_is_not_repeatable_is_asked_again(options: dict[str, Any]) -> None:
    journal = MemoryJournal()
    house = House(journal=journal, shared_as="model 1")
    assert house.ask(temperature=0.0) == "answer 0"
    other = House(lambda asked: "another", journal=MemoryJournal(shared=journal.shared), shared_as="model 1")
    assert other.ask(**options) == "another"


def test_a_refusal_is_shared_with_nobody(tmp_path: Path) -> None:
    archive = SqlArchive(f"sqlite:///{tmp_path}/ratchet.db")
    first, second = (archive.start(_optimization(name)).journal for name in ("aa", "bb"))
    house = House(lambda asked: lm15.InvalidRequestError("not today"), journal=first, shared_as="model 1")
    with pytest.raises(LMInvalidRequestError, match="not today"):
        house.ask(temperature=0.0)
    assert House(journal=second, shared_as="model 1").ask(temperature=0.0) == "answer 0"
    archive.close()


@pytest.mark.parametrize("shared_as", [None, "model 2"])
def test_another_model_or_none_that_is_known_shares_nothing(shared_as: str | None) -> None:
    journal = MemoryJournal()
    House(journal=journal, shared_as="model 1").ask(temperature=0.0)
    other = House(lambda asked: "another", journal=MemoryJournal(shared=journal.shared), shared_as=shared_as)
    assert other.ask(temperature=0.0) == "another"


def test_a_borrowed_reply_takes_its_place_in_the_allowance() -> None:
    journal = MemoryJournal()
    house = House(journal=journal, shared_as="model 1")
    house.ask("a", temperature=0.0)
    other = House(journal=MemoryJournal(shared=journal.shared), shared_as="model 1")
    other.gateway.begin_stage("search", allowance=1)
    assert other.ask("a", temperature=0.0) == "answer 0"
    assert isinstance(other.outcome("b", temperature=0.0), BudgetSpent)
    assert other.gateway.calls == 0


# --- who stands in --------------------------------------------------------------------------------------------------


def test_another_model_stands_in_for_one_that_is_given_up() -> None:
    house = House(lambda asked: lm15.AuthError("no"))
    spare = ScriptedLM(lambda asked: f"the spare heard {asked.last}", model="spare/lm")
    house.line.stand_in = Line(spare, "task")
    assert house.ask("a") == "the spare heard a"
    assert spare.log[0].request.model == "spare/lm"
    assert (house.sent, house.gateway.calls) == (1, 2)
    house.gateway.check()


def test_one_that_was_given_up_is_left_alone_for_a_while() -> None:
    now = [0.0]
    house = House(lambda asked: lm15.AuthError("no") if now[0] < 100 else "back", clock=lambda: now[0])
    house.line.stand_in = Line(ScriptedLM(lambda asked: "the spare", model="spare/lm"), "task")
    assert [house.ask(prompt) for prompt in "abc"] == ["the spare"] * 3
    assert house.sent == 1
    now[0] = 200.0
    assert house.ask("d") == "back"


def test_when_nobody_is_left_to_stand_in_the_last_cause_is_told() -> None:
    house = House(lambda asked: lm15.AuthError("no"))
    house.line.stand_in = Line(ScriptedLM(lambda asked: lm15.BillingError("pay first"), model="spare/lm"), "task")
    cause = house.outcome()
    assert isinstance(cause, LmUnavailable)
    assert "spare/lm" in str(cause)
    assert "pay first" in str(cause)


# --- limits -------------------------------------------------------------------------------------------------------


async def test_the_limit_of_calls_is_never_passed_from_threads_and_tasks_at_once() -> None:
    house = House(seconds=0.002, calls=25)
    outcomes = await asyncio.gather(
        *(asyncio.to_thread(house.outcome, f"thread {number}") for number in range(30)),
        *(aoutcome(house, f"task {number}") for number in range(30)),
    )
    refused = [each for each in outcomes if isinstance(each, BudgetSpent)]
    assert (house.sent, house.gateway.calls, len(refused)) == (25, 25, 35)
    assert house.gateway.exhausted
    assert isinstance(house.outcome("one more"), BudgetSpent)
    assert house.ask(house.outside.log[0].last) == "answer 0"


def test_retries_count_as_calls() -> None:
    house = House(lambda asked: lm15.ServerError("busy", retry_after=0.0), calls=4)
    assert isinstance(house.outcome(), LmUnavailable)  # the LM is what failed; that the calls ran out is its doing
    assert house.sent == house.journal.sent().calls == 4


def test_calls_of_earlier_processes_count() -> None:
    before = House(calls=3)
    before.ask("a")
    before.journal.reserve("lost in a crash", role="task", stage="start", usd=0.0)
    resumed = House(journal=before.journal, calls=3)
    assert resumed.ask("b")
    assert isinstance(resumed.outcome("c"), BudgetSpent)
    assert resumed.sent == 1


def test_calls_kept_for_later_are_left() -> None:
    house = House(calls=5)
    house.gateway.begin_stage("search", keep_calls=3)
    assert [isinstance(house.outcome(f"{n}"), BudgetSpent) for n in range(4)] == [False] * 2 + [True] * 2
    house.gateway.begin_stage("test")
    assert [house.outcome(f"late {n}") for n in range(3)] == ["answer 2", "answer 3", "answer 4"]


def test_dollars_are_reserved_before_they_are_spent() -> None:
    price = Price(prompt=0.0, completion=1_000_000.0)  # a dollar per token written
    house = House(price=price, usd=250.0)
    assert house.ask("a", max_tokens=100) == "answer 0"
    assert house.ask("b", max_tokens=100) == "answer 1"
    assert house.journal.sent().usd == 4.0  # two tokens each: what was reserved beyond that is free again
    assert isinstance(house.outcome("c", max_tokens=247), BudgetSpent)
    assert house.ask("c", max_tokens=246) == "answer 2"
    assert house.journal.sent().usd <= 250.0


async def test_the_limit_of_dollars_is_never_passed_from_threads_and_tasks_at_once() -> None:
    price = Price(prompt=0.0, completion=1_000_000.0)
    house = House(lambda asked: "x" * 4 * 10, price=price, usd=105.0, seconds=0.002)
    outcomes = await asyncio.gather(
        *(asyncio.to_thread(house.outcome, f"thread {n}", max_tokens=10) for n in range(20)),
        *(house.lm.acall(f"task {n}", max_tokens=10) for n in range(20)),
        return_exceptions=True,
    )
    assert house.sent == 10
    assert house.journal.sent().usd == 100.0
    assert sum(isinstance(each, BudgetSpent | Halt) for each in outcomes) == 30


def test_what_a_tokenizer_makes_of_it_is_never_more_than_was_reserved() -> None:
    house = House(price=Price(prompt=1_000_000.0, completion=0.0), usd=1e9)
    house.ask("漢字" * 300)
    (asked,) = house.outside.log
    assert house.line.reservation(asked.request) >= len(("漢字" * 300).encode())


def test_an_answer_without_a_bound_is_expected_to_be_as_long_as_the_longest_so_far() -> None:
    house = House(lambda asked: "x" * 4 * 9000, price=Price(prompt=0.0, completion=1_000_000.0))
    house.ask("a")
    assert house.line.reservation(house.outside.log[0].request) == 9000.0


def test_dollars_of_a_request_lost_in_a_crash_stay_spent() -> None:
    journal = MemoryJournal()
    journal.reserve("lost", role="task", stage="start", usd=90.0)
    house = House(journal=journal, price=Price(prompt=0.0, completion=1_000_000.0), usd=100.0)
    assert isinstance(house.outcome(max_tokens=11), BudgetSpent)
    assert house.ask(max_tokens=10)


def test_nothing_is_sent_after_the_deadline() -> None:
    now = [0.0]
    house = House(clock=lambda: now[0], deadline=100.0)
    house.gateway.begin_stage("search", keep_seconds=30.0)
    assert house.ask("a") == "answer 0"
    now[0] = 70.1
    assert isinstance(house.outcome("b"), BudgetSpent)
    assert house.ask("a") == "answer 0"
    house.gateway.begin_stage("test")
    assert house.ask("b") == "answer 1"
    now[0] = 100.1
    assert isinstance(house.outcome("c"), BudgetSpent)
    assert house.sent == 2


def test_no_more_requests_are_under_way_at_once_than_allowed() -> None:
    house = House(seconds=0.01, concurrency=3)
    with ThreadPoolExecutor(12) as pool:
        list(pool.map(lambda n: house.ask(f"{n}"), range(12)))
    assert house.outside.script.most_at_once == 3

    async def many() -> None:
        await asyncio.gather(*(house.aask(f"task {n}") for n in range(12)))

    asyncio.run(many())
    assert house.outside.script.most_at_once == 3


# --- stages -------------------------------------------------------------------------------------------------------


def searched(house: House) -> list[str | RatchetError]:
    """A baseline and a search that asks for more than its allowance, some of it twice and some of it known before."""
    house.gateway.begin_stage("baseline")
    answers = [house.outcome(f"{n}") for n in range(3)]
    house.gateway.begin_stage("search", allowance=4)
    return answers + [house.outcome(f"{n}") for n in (0, 1, 3, 4, 3, 5, 4, 6, 7, 2, 8, 3)]


def test_an_allowance_counts_distinct_replies_that_no_earlier_stage_had() -> None:
    house = House()
    answers = searched(house)
    refused = [isinstance(each, BudgetSpent) for each in answers[3:]]
    assert refused == [False] * 8 + [True, False, True, False]
    assert (house.gateway.used, house.gateway.left()) == (4, 0)


@pytest.mark.parametrize("crash_after", range(8))
def test_a_resumed_stage_ends_where_the_undisturbed_one_would(crash_after: int) -> None:
    whole = House()
    expected = [str(each) for each in searched(whole)]

    def dies(asked: Asked) -> str | Exception:
        return lm15.AuthError("gone") if asked.number >= crash_after else f"answer {asked.number}"

    crashed = House(dies)
    searched(crashed)
    assert crashed.journal.sent().recorded == min(crash_after, whole.sent)
    resumed = House(lambda asked: f"answer {asked.number + crash_after}", journal=crashed.journal)
    assert [str(each) for each in searched(resumed)] == expected
    assert resumed.sent == whole.sent - crash_after


def test_recalled_replies_of_stored_evaluations_count_too() -> None:
    house = House()
    house.gateway.begin_stage("search", allowance=3)
    house.gateway.recall(("a", "b"))
    house.gateway.recall(("b",))
    assert house.gateway.left() == 1
    assert house.ask("c") == "answer 0"
    assert isinstance(house.outcome("d"), BudgetSpent)


# --- errors -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [lm15.RateLimitError, lm15.ServerError, lm15.TransportError, lm15.TimeoutError])
@pytest.mark.parametrize("way", ["thread", "task"])
def test_what_may_pass_is_tried_again(error: type[lm15.LM15Error], way: str) -> None:
    house = House(lambda asked: error("try later", retry_after=0.0) if asked.number < 2 else "at last")
    assert (house.ask() if way == "thread" else asyncio.run(house.aask())) == "at last"
    assert house.sent == house.gateway.calls == 3
    assert house.journal.sent().recorded == 1


@pytest.mark.parametrize("way", ["thread", "task"])
def test_a_server_that_says_when_to_come_back_is_heeded(way: str) -> None:
    times: list[float] = []

    def busy(asked: Asked) -> str | Exception:
        times.append(time.monotonic())
        return lm15.RateLimitError("slow down", retry_after=0.15) if asked.number == 0 else "now"

    house = House(busy)
    assert (house.ask() if way == "thread" else asyncio.run(house.aask())) == "now"
    assert times[1] - times[0] >= 0.15


def test_one_that_answered_before_may_ask_for_more_than_our_patience() -> None:
    def busy(asked: Asked) -> str | Exception:
        return lm15.RateLimitError("one a minute", retry_after=0.3) if asked.number == 1 else f"answer {asked.number}"

    house = House(busy, retry_seconds=0.2)
    assert [house.ask(prompt) for prompt in "ab"] == ["answer 0", "answer 2"]


def test_a_request_that_timed_out_twice_does_not_end_what_others_are_answered_in() -> None:
    now = [0.0]

    def unlucky(asked: Asked) -> str | Exception:
        if asked.number not in (1, 2, 3):
            return "fine"
        now[0] += 180.0
        house.line.succeeded(now[0])  # somebody else is answered
        late: Exception = lm15.TimeoutError("no answer", retry_after=0.0)
        return late

    def clock() -> float:
        now[0] += 0.01
        return now[0]

    house = House(unlucky, clock=clock)
    assert [house.ask("lucky"), house.ask("unlucky")] == ["fine", "fine"]
    assert house.sent == 5


def test_a_refusal_of_the_hour_is_tried_again_once_there_was_an_answer() -> None:
    def moved(asked: Asked) -> str | Exception:
        return lm15.InvalidRequestError("not here", status=404) if asked.number == 1 else f"answer {asked.number}"

    house = House(moved)
    assert [house.ask(prompt) for prompt in "ab"] == ["answer 0", "answer 2"]


def test_one_that_refuses_everything_is_not_asked_again() -> None:
    house = House(lambda asked: lm15.InvalidRequestError("not here", status=404))
    for prompt in "ab":
        with pytest.raises(LMInvalidRequestError, match="not here"):
            house.ask(prompt)
    assert house.sent == 2


async def test_who_leaves_while_standing_in_line_is_not_paid_for() -> None:
    house = House(seconds=0.2, concurrency=1)
    first = await sending(house)
    second = asyncio.create_task(house.aask("second"))
    await asyncio.sleep(0.02)
    second.cancel()
    await first
    await asyncio.sleep(0.05)
    assert house.sent == house.gateway.calls == 1


@pytest.mark.parametrize("body", [b"<html>busy</html>", b"", b'{"choices": [{"mess', b"[]"])
def test_what_is_no_answer_is_asked_for_again(body: bytes) -> None:
    class Half(StubServer):
        def answer(self, raw: bytes) -> Any:
            answered = super().answer(raw)
            return (200, body) if self.requests == 1 else answered

    with Half() as stub:
        lm = dspy.LM("openai/stub", api_base=stub.base, api_key="k", cache=False)
        gateway = Gateway(MemoryJournal(), Limits())
        assert GatewayLM(gateway, lm, Line(lm, "task"))("hello")
        assert stub.requests == 2


def test_a_server_that_says_never_is_given_up_at_once() -> None:
    house = House(lambda asked: lm15.RateLimitError("come back tomorrow", retry_after=86_400.0), retry_seconds=5.0)
    cause = house.outcome()
    assert isinstance(cause, LmUnavailable)
    assert "come back tomorrow" in str(cause)
    assert house.sent == 1


@pytest.mark.parametrize("error", [lm15.AuthError, lm15.BillingError, lm15.UnsupportedModelError])
def test_what_cannot_pass_ends_everything_and_is_not_tried_again(error: type[lm15.LM15Error]) -> None:
    house = House(lambda asked: error("no"))
    cause = house.outcome()
    assert isinstance(cause, LmUnavailable)
    assert "scripted/lm" in str(cause)
    assert "no" in str(cause)
    assert isinstance(house.outcome("anything else"), LmUnavailable)
    assert house.sent == 1
    with pytest.raises(LmUnavailable):
        house.gateway.check()


@pytest.mark.parametrize("error", [lm15.InvalidRequestError, lm15.ContextLengthError])
@pytest.mark.parametrize("way", ["thread", "task"])
def test_a_refused_prompt_is_the_programs_own_affair(error: type[lm15.LM15Error], way: str) -> None:
    house = House(lambda asked: error("too long") if asked.last == "long" else "fine")
    with pytest.raises(LMInvalidRequestError, match="too long"):
        house.ask("long") if way == "thread" else asyncio.run(house.aask("long"))
    assert house.ask("short") == "fine"
    assert house.sent == 2
    house.gateway.check()


def test_an_engine_that_breaks_is_named() -> None:
    house = House(lambda asked: ZeroDivisionError("a bug"))
    cause = house.outcome()
    assert isinstance(cause, LmUnavailable)
    assert "a bug" in str(cause)


def test_a_halt_passes_through_programs_that_catch_every_exception() -> None:
    house = House(calls=1)
    house.ask("first")

    class Careless(dspy.Module):  # type: ignore[misc]
        def forward(self) -> str:
            try:
                return house.ask("second")
            except Exception:
                return "never mind"

    with pytest.raises(Halt) as caught:
        Careless()()
    assert isinstance(caught.value.cause, BudgetSpent)


def test_dspys_own_evaluation_does_not_turn_a_spent_budget_into_zeros() -> None:
    house = House(calls=2)
    program = dspy.Predict("question -> answer")
    devset = [dspy.Example(question=f"{n}", answer="x").with_inputs("question") for n in range(6)]
    evaluate = dspy.Evaluate(devset=devset, metric=lambda *_: 1.0, num_threads=2, max_errors=100)
    with dspy.context(lm=house.lm), pytest.raises(Halt):
        evaluate(program)
    assert house.sent == 2


def test_who_waits_for_a_request_that_is_refused_learns_why() -> None:
    house = House(lambda asked: lm15.AuthError("no"), seconds=0.05)
    with ThreadPoolExecutor(4) as pool:
        causes = list(pool.map(lambda _: house.outcome(), range(4)))
    assert {type(cause) for cause in causes} == {LmUnavailable}
    assert house.sent == 1


def test_after_a_cancel_nothing_is_sent_nor_handed_out() -> None:
    house = House()
    house.ask("known")
    house.gateway.cancel()
    assert isinstance(house.outcome("known"), Cancelled)
    assert isinstance(house.outcome("new"), Cancelled)
    assert house.sent == 1


async def test_after_a_cancel_nobody_waits_for_what_is_under_way() -> None:
    house = House(seconds=0.5)
    task = await sending(house)
    began = time.monotonic()
    house.gateway.cancel()
    with pytest.raises(Halt) as caught:
        await task
    assert isinstance(caught.value.cause, Cancelled)
    assert time.monotonic() - began < 0.4


def test_a_journal_that_cannot_be_written_ends_everything() -> None:
    class Full(MemoryJournal):
        def record(self, reply: Reply, *, shared: str | None = None) -> None:
            raise RatchetError("the disk is full")

    house = House(journal=Full())
    assert str(house.outcome()) == "the disk is full"
    assert str(house.outcome("more")) == "the disk is full"
    assert house.sent == 1


@pytest.mark.parametrize("way", ["thread", "task"])
async def test_a_journal_that_cannot_be_read_ends_everything_and_nobody_waits_for_ever(way: str) -> None:
    class Away(MemoryJournal):
        away = False

        def find(self, key: str) -> Reply | None:
            if self.away:
                raise RatchetError("the database does not answer")
            return super().find(key)

    journal = Away()
    House(journal=journal).ask("known")
    house = House(journal=journal)
    journal.away = True
    for prompt in ("known", "new"):
        outcome = await (asyncio.to_thread(house.outcome, prompt) if way == "thread" else aoutcome(house, prompt))
        assert str(outcome) == "the database does not answer"
    assert house.sent == 0


# --- prices and receipts ------------------------------------------------------------------------------------------


def test_an_unknown_price_is_none_and_not_zero() -> None:
    house = House()
    receipt = Receipt()
    with dspy.context(ratchet_receipt=receipt):
        house.ask()
    (reply,) = (request.reply for request in house.journal.requests.values())
    assert reply is not None
    assert reply.cost_usd is None
    assert receipt.usage.cost_usd is None
    assert house.line.price is None
    assert (house.journal.sent().unpriced, house.journal.sent().usd) == (1, 0.0)


def test_a_given_price_is_what_a_reply_costs() -> None:
    house = House(lambda asked: "x" * 40, price=Price(prompt=1_000_000.0, completion=2_000_000.0))
    receipt = Receipt()
    with dspy.context(ratchet_receipt=receipt):
        house.ask("y" * 80)
    assert (receipt.usage.prompt_tokens, receipt.usage.completion_tokens) == (20, 10)
    assert receipt.usage.cost_usd == house.journal.sent().usd == 40.0


def test_a_receipt_of_replayed_replies_equals_the_first() -> None:
    first, second = Receipt(), Receipt()
    before = House(seconds=0.02)
    with dspy.context(ratchet_receipt=first):
        before.ask("a")
        before.lm("b", n=2, temperature=1.0)
    resumed = House(journal=before.journal)
    with dspy.context(ratchet_receipt=second):
        resumed.ask("a")
        resumed.lm("b", n=2, temperature=1.0)
    assert (second.usage, second.keys, second.texts) == (first.usage, first.keys, first.texts)
    assert first.usage.calls == 3
    assert first.usage.latency_ms >= 60.0
    assert resumed.sent == 0


def test_copies_of_the_lm_go_through_the_same_gateway() -> None:
    house = House(calls=3)
    copies = [house.lm.copy(temperature=0.5), dspy.Predict("a -> b").deepcopy() and house.lm]
    assert [copy("hello")[0] for copy in copies] == ["answer 0", "answer 1"]
    assert house.gateway.calls == 2


def test_threads_that_begin_together_cannot_outrun_the_ledger() -> None:
    house = House(calls=8)
    barrier = threading.Barrier(16)

    def ask(number: int) -> str | RatchetError:
        barrier.wait()
        return house.outcome(f"{number}")

    with ThreadPoolExecutor(16) as pool:
        outcomes = list(pool.map(ask, range(16)))
    assert sum(isinstance(each, BudgetSpent) for each in outcomes) == 8
    assert house.sent == 8


# --- what DSPy can do -------------------------------------------------------------------------------------------------


def test_options_of_the_body_are_sent() -> None:
    bodies: list[dict[str, Any]] = []

    class Noting(StubServer):
        def answer_to(self, body: dict[str, Any], digest: str, *, unreadable: bool) -> tuple[int, dict[str, Any]]:
            bodies.append(body)
            return super().answer_to(body, digest, unreadable=unreadable)

    with Noting() as stub:
        lm = dspy.LM(
            "openai/stub",
            api_base=stub.base,
            api_key="k",
            cache=False,
            extra_body={"chat_template_kwargs": {"enable_thinking": False}},
            drop_params=True,
        )
        assert GatewayLM(Gateway(MemoryJournal(), Limits()), lm, Line(lm, "task"))("hello")
    assert bodies[0]["chat_template_kwargs"] == {"enable_thinking": False}


async def test_a_program_may_stream() -> None:
    house = House(lambda asked: fields(answer="a long answer"))
    streamed = dspy.streamify(dspy.Predict("text -> answer"))
    with dspy.context(lm=house.lm):
        chunks = [chunk async for chunk in streamed(text="x")]
    assert chunks[-1].answer == "a long answer"
    assert house.sent == house.gateway.calls == 1

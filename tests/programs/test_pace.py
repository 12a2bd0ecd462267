"""How fast a provider is asked: the window, the rates, the quiet, the breaker, and the fair line before them.

Time is virtual: the loop's clock jumps to the next timer, and a loop on which nothing can happen any more fails the
test, so a waiter who is never served is found out.
"""

from __future__ import annotations

import asyncio
import math
import random
import selectors
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ratchet.core.errors import BadRequest, LmUnavailable
from ratchet.programs.flow import LONGEST_QUIET, SPREAD, THROTTLED, TIMED_OUT, Breaker, Bucket, Gate, RoundRobin, Window
from ratchet.programs.pace import Pace, Paces, Terms

R = TypeVar("R")

MINUTE = 60.0 - 1e-6
"""Seconds; what is a minute apart to the last bit belongs to two minutes."""


class Skip(selectors.DefaultSelector):
    """Waits for nothing: where it would wait, it sets the clock forward."""

    now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if not ready:
            assert timeout is not None, "somebody waits for what will never happen"
            self.now += timeout
        return ready


class VirtualTime(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self.skip = Skip()
        super().__init__(self.skip)

    def time(self) -> float:
        return self.skip.now


def live(story: Callable[[], Awaitable[R]]) -> R:
    """What ``story`` returns, played in virtual time."""

    async def told() -> R:
        return await story()

    with asyncio.Runner(loop_factory=VirtualTime) as runner:
        return runner.run(told())


def now() -> float:
    return asyncio.get_running_loop().time()


class House:
    """A pace and what went through it; to be made while a loop runs.

    Attributes:
        began: When each request was sent, and on whose account.
        most: The most that were under way at once.
    """

    def __init__(self, *, breaker: Breaker | None = None, **terms: Any) -> None:
        self.pace = Pace(Terms(**terms), clock=asyncio.get_running_loop().time, breaker=breaker)
        self.began: list[tuple[float, Any]] = []
        self.most = 0

    async def ask(
        self,
        tenant: Any = "a",
        *,
        seconds: float = 1.0,
        outcome: str = "answer",
        hint: float | None = None,
        tokens: float = 0.0,
        patience: float = math.inf,
    ) -> None:
        """One request that takes ``seconds`` and ends in ``outcome``."""
        async with self.pace.turn(tenant, tokens=tokens, patience_seconds=patience) as turn:
            self.began.append((now(), tenant))
            self.most = max(self.most, self.pace.under_way)
            await asyncio.sleep(seconds)
            match outcome:
                case "answer":
                    turn.succeeded(seconds, tokens)
                case "throttled":
                    turn.throttled(hint)
                case "timed out":
                    turn.timed_out()
                case "failed":
                    turn.failed()
                case "raised":
                    raise ZeroDivisionError

    @property
    def times(self) -> list[float]:
        return [when for when, _ in self.began]

    @property
    def tenants(self) -> list[Any]:
        return [tenant for _, tenant in self.began]

    def at_rest(self) -> bool:
        snapshot = self.pace.snapshot()
        return (snapshot.under_way, snapshot.waiting) == (0, 0)


# --- the window ---------------------------------------------------------------------------------------------------


def succeed(window: Window, times: int, latency: float = 0.3) -> None:
    for _ in range(times):
        window.begin()
        window.succeeded(latency, under_way=window.slots)


def test_a_window_starts_at_its_maximum_and_never_grows_beyond_it() -> None:
    window = Window(8)
    succeed(window, 100)
    assert window.slots == 8


def test_a_window_grows_by_one_per_window_of_successes() -> None:
    window = Window(64, start=4)
    for _ in range(20):
        before = window.size
        succeed(window, window.slots)
        assert 0.75 < window.size - before <= 1


@pytest.mark.parametrize(("factor", "left"), [(THROTTLED, 14), (TIMED_OUT, 10)])
def test_a_window_shrinks_once_for_all_that_was_sent_before_it_shrank(factor: float, left: int) -> None:
    window = Window(20)
    numbers = [window.begin() for _ in range(20)]
    assert [window.overloaded(number, factor) for number in reversed(numbers)] == [True] + [False] * 19
    assert window.slots == left
    assert window.overloaded(window.begin(), factor)


def test_a_window_never_falls_below_one_request() -> None:
    window = Window(5)
    for _ in range(50):
        window.overloaded(window.begin(), TIMED_OUT)
    assert window.slots == 1


def test_a_window_that_is_not_used_does_not_grow() -> None:
    window = Window(64, start=10)
    for _ in range(100):
        window.begin()
        window.succeeded(0.3, under_way=4)
    assert window.slots == 10


def test_a_window_stops_growing_while_answers_are_far_slower_than_the_best() -> None:
    window = Window(64, start=8)
    succeed(window, 40, latency=0.3)
    grown = window.size
    assert grown > 11
    succeed(window, 2 * window.slots, latency=0.9)  # the first of these windows is judged when it has ended
    stopped = window.size
    succeed(window, 100, latency=0.9)
    assert window.size == stopped
    assert window.crowded
    succeed(window, 2 * window.slots, latency=0.4)
    assert window.size > stopped


def test_a_slow_answer_among_quick_ones_does_not_stop_the_window() -> None:
    window = Window(64, start=8)
    for number in range(200):
        window.begin()
        window.succeeded(0.3 if number % 4 else 9.0, under_way=window.slots)
    assert window.slots > 16


def test_slower_answers_become_usual_after_a_while() -> None:
    window = Window(200, start=8)
    succeed(window, 20, latency=0.3)
    succeed(window, 2_000, latency=3.0)
    assert not window.crowded
    assert window.slots > 20


def test_a_refusal_says_nothing_of_speed() -> None:
    window = Window(64, start=8)
    for _ in range(20):
        succeed(window, 8, latency=1.0)
        window.begin()
        window.succeeded(None, under_way=window.slots)
    assert not window.crowded
    assert window.slots > 12


def test_a_window_of_nothing_is_refused() -> None:
    for maximum, start in [(0, None), (8, 9), (8, 0)]:
        with pytest.raises(BadRequest):
            Window(maximum, start=start)


@given(
    maximum=st.integers(1, 100),
    events=st.lists(st.tuples(st.sampled_from(["ok", THROTTLED, TIMED_OUT]), st.integers(1, 30), st.floats(0, 9))),
)
def test_whatever_happens_the_window_stays_within_its_bounds(
    maximum: int, events: Sequence[tuple[str | float, int, float]]
) -> None:
    window = Window(maximum)
    last_decrease = 0
    for what, count, latency in events:
        numbers = [window.begin() for _ in range(count)]
        for number in numbers:
            before = window.size
            if isinstance(what, str):
                window.succeeded(latency, under_way=window.slots)
                assert before <= window.size <= before + 1 / before + 1e-9
            elif window.overloaded(number, what):
                assert number > last_decrease
                last_decrease = numbers[-1]
                assert window.size == max(1.0, before * what)
            else:
                assert number <= last_decrease
            assert 1 <= window.size <= maximum
            assert window.slots == int(window.size + 1e-9)


# --- rates --------------------------------------------------------------------------------------------------------


@given(
    per_minute=st.integers(1, 2_000),
    asks=st.lists(st.tuples(st.floats(0, 20), st.integers(1, 40)), min_size=1, max_size=60),
)
def test_no_minute_has_more_than_its_allowance(per_minute: int, asks: Sequence[tuple[float, int]]) -> None:
    bucket = Bucket(per_minute, now=0.0)
    time, taken = 0.0, []
    for gap, amount in asks:
        amount = min(amount, math.floor(bucket.capacity))
        time += gap
        while wait := bucket.wait(amount, time):
            time += max(wait, 1e-6)
        bucket.take(amount, time)
        taken.append((time, amount))
    for start, _ in taken:
        assert sum(amount for when, amount in taken if start <= when < start + MINUTE) <= per_minute


@pytest.mark.parametrize("per_minute", [1, 6, 60, 600, 6_000])
def test_almost_all_of_a_minutes_allowance_can_be_used(per_minute: int) -> None:
    bucket = Bucket(per_minute, now=0.0)
    time, taken = 0.0, 0
    while time < 600:
        if wait := bucket.wait(1, time):
            time += max(wait, 1e-6)
        else:
            bucket.take(1, time)
            taken += 1
    assert 0.98 * 10 * per_minute <= taken <= 10 * per_minute + 1


def test_what_is_larger_than_the_bucket_goes_when_it_is_full_and_is_waited_off() -> None:
    bucket = Bucket(600, now=0.0)
    assert bucket.wait(500, 0.0) == 0.0
    bucket.take(500, 0.0)
    assert 49 < bucket.wait(1, 0.0) < 51


def test_tokens_are_corrected_when_they_are_known() -> None:
    guessed, known = Bucket(6_000, now=0.0), Bucket(6_000, now=0.0)
    guessed.take(20, 0.0)
    guessed.correct(300 - 20)
    known.take(300, 0.0)
    assert guessed.wait(50, 1.0) == known.wait(50, 1.0) > 0
    guessed.correct(-1e9)
    assert guessed.wait(101, 1.0) == 0.0  # however much is given back, it holds no more than its capacity
    guessed.take(100, 1.0)
    assert guessed.wait(50, 1.0) > 0


def test_a_rate_of_nothing_is_refused() -> None:
    with pytest.raises(BadRequest):
        Bucket(0, now=0.0)


def test_requests_keep_to_the_rate_of_requests() -> None:
    async def story() -> list[float]:
        house = House(concurrency=50, requests_per_minute=60)
        await asyncio.gather(*(house.ask(number % 3, seconds=0.1) for number in range(90)))
        assert house.at_rest()
        return house.times

    times = live(story)
    assert max(sum(start <= when < start + MINUTE for when in times) for start in times) <= 60
    assert times[-1] == pytest.approx(89, rel=0.02)


def test_requests_keep_to_the_rate_of_tokens_that_were_used_not_guessed() -> None:
    async def story() -> float:
        house = House(concurrency=50, tokens_per_minute=6_000)

        async def ask() -> None:
            async with house.pace.turn("a", tokens=10) as turn:
                turn.succeeded(0.1, tokens=100)

        await asyncio.gather(*(ask() for _ in range(60)))
        return now()

    assert live(story) == pytest.approx(60, rel=0.05)


# --- Retry-After --------------------------------------------------------------------------------------------------


def test_after_a_retry_after_nothing_is_sent_until_it_has_passed_and_then_not_all_at_once() -> None:
    async def story() -> list[float]:
        house = House(concurrency=10)
        first = [asyncio.create_task(house.ask(seconds=0.1, outcome="throttled", hint=5.0)) for _ in range(10)]
        await asyncio.sleep(0.05)
        others = [asyncio.create_task(house.ask(number % 3)) for number in range(7)]
        await asyncio.gather(*first, *others)
        assert house.at_rest()
        return house.times

    times = live(story)
    assert times[:10] == [0.0] * 10
    reopened = times[10:]
    assert 5.1 <= reopened[0] <= 5.1 + 0.5 + SPREAD
    assert reopened[-1] - reopened[0] <= 2 * SPREAD
    assert len(set(reopened)) == 7


def test_a_retry_after_is_believed_for_two_minutes_at_most() -> None:
    async def story() -> float:
        house = House(concurrency=4)
        await house.ask(seconds=0.0, outcome="throttled", hint=86_400.0)
        await house.ask()
        return house.times[-1]

    assert LONGEST_QUIET <= live(story) <= 1.1 * LONGEST_QUIET + SPREAD


def test_a_shorter_hint_does_not_cut_a_longer_one() -> None:
    gate = Gate(random.Random(0))
    gate.shut(10.0, 0.0, crowd=4)
    gate.shut(1.0, 0.0, crowd=4)
    assert gate.wait(1.2) >= 8.8


def test_a_gate_is_out_of_force_when_the_crowd_has_passed() -> None:
    gate, time = Gate(random.Random(0)), 0.0
    gate.shut(1.0, time, crowd=20)
    for _ in range(20):
        assert gate.in_force
        time += gate.wait(time)
        gate.passed(time)
    assert not gate.in_force
    assert 1.0 <= time <= 1.1 + 2 * SPREAD


def test_without_a_hint_only_the_window_shrinks() -> None:
    async def story() -> tuple[list[float], int]:
        house = House(concurrency=10)
        await house.ask(seconds=0.0, outcome="throttled")
        await asyncio.gather(*(house.ask() for _ in range(10)))
        return house.times, house.most

    times, most = live(story)
    assert times == [0.0] * 8 + [1.0] * 3
    assert most == 7


# --- the breaker --------------------------------------------------------------------------------------------------


def test_a_breaker_opens_after_two_windows_of_failures_with_no_success_between() -> None:
    breaker = Breaker()
    for number in range(15):
        breaker.failed(number, 0.0, slots=8, probe=False)
    assert breaker.succeeded(15) is False
    for number in range(16, 31):
        breaker.failed(number, 1.0, slots=8, probe=False)
        assert breaker.state == "closed"
    breaker.failed(31, 2.0, slots=8, probe=False)
    assert (breaker.state, breaker.opened_since) == ("open", 2.0)


def test_a_window_that_shrinks_meanwhile_does_not_open_it_sooner() -> None:
    breaker = Breaker()
    breaker.failed(0, 0.0, slots=100, probe=False)
    for number in range(1, 199):
        breaker.failed(number, 0.0, slots=1, probe=False)
    assert breaker.opened_since is None
    breaker.failed(199, 0.0, slots=1, probe=False)
    assert breaker.opened_since == 0.0


def test_answers_to_what_was_sent_before_the_outage_do_not_hide_it() -> None:
    breaker = Breaker(failures=4)
    for number in range(10, 14):
        breaker.failed(number, 0.0, slots=1, probe=False)
        assert breaker.succeeded(number - 5) is False
    assert breaker.state == "open"
    assert breaker.succeeded(9) is False
    assert breaker.succeeded(14) is True


def test_probes_go_one_at_a_time_after_pauses_that_double() -> None:
    breaker, time, pauses = Breaker(failures=1), 0.0, []
    for number in range(2):
        breaker.failed(number, time, slots=1, probe=False)
    assert breaker.opened_since == 0.0
    for number in range(2, 9):
        pauses.append(breaker.wait(time))
        time += breaker.wait(time)
        assert breaker.begin()
        assert (breaker.state, breaker.wait(time)) == ("half-open", math.inf)
        breaker.failed(number, time, slots=1, probe=True)
    assert pauses == [0.5, 1.0, 2.0, 4.0, 8.0, 8.0, 8.0]
    assert breaker.opened_since == 0.0
    assert breaker.succeeded(9)
    assert (breaker.state, breaker.wait(time), breaker.begin()) == ("closed", 0.0, False)


def test_a_probe_that_says_nothing_leaves_its_place_to_another() -> None:
    breaker = Breaker(failures=1)
    for number in range(2):
        breaker.failed(number, 0.0, slots=1, probe=False)
    breaker.begin()
    breaker.dropped(probe=True)
    assert breaker.wait(1.0) == 0.0


@dataclass
class Outages:
    """A provider that is gone at times; who asks tries again until there is an answer."""

    house: House
    gone: Sequence[tuple[float, float]]
    sent: int = 0

    def down(self) -> bool:
        return any(start <= now() < end for start, end in self.gone)

    async def ask(self, tenant: int, rng: random.Random) -> None:
        for attempt in range(100):
            async with self.house.pace.turn(tenant) as turn:
                self.sent += 1
                began = now()
                await asyncio.sleep(0.005 if self.down() else rng.uniform(0.2, 0.4))
                if not self.down():
                    return turn.succeeded(now() - began)
                turn.failed()
            await asyncio.sleep(min(8.0, 0.5 * 2**attempt) * rng.uniform(0.75, 1.25))
        raise AssertionError("a hundred tries")


def test_optimizations_outlast_two_outages_without_wasting_many_requests() -> None:
    async def story() -> tuple[float, int, float]:
        house = House(concurrency=16)
        provider, rng = Outages(house, gone=[(3.0, 23.0), (30.0, 50.0)]), random.Random(0)

        async def optimization(tenant: int) -> None:
            for _ in range(20):
                await asyncio.gather(*(provider.ask(tenant, rng) for _ in range(4)))

        await asyncio.gather(*(optimization(tenant) for tenant in range(10)))
        assert house.at_rest()
        assert house.pace.opened_since is None
        return now(), provider.sent - 800, house.pace.window.size

    seconds, wasted, window = live(story)
    assert seconds < 40 + 800 * 0.3 / 16 + 2 * 8.5 + 5
    assert wasted < 2 * (2 * 16 + 16 + 8)
    assert window == 16


def test_those_who_outlasted_an_outage_do_not_all_go_at_once() -> None:
    async def story() -> list[float]:
        house = House(concurrency=8, breaker=Breaker(failures=1))
        await asyncio.gather(*(house.ask(seconds=0.0, outcome="failed") for _ in range(16)))
        assert house.pace.opened_since == 0.0
        await asyncio.gather(*(house.ask(number % 3) for number in range(9)))
        return house.times[16:]

    probe, *others = live(story)
    assert probe == 0.5
    assert len(set(others)) == 8
    assert all(1.5 <= when <= 1.5 + 2 * SPREAD for when in others)


@pytest.mark.parametrize("how", ["raises", "is cancelled", "is cancelled when called"])
def test_a_probe_that_comes_to_nothing_holds_nobody_up(how: str) -> None:
    async def story() -> float:
        house = House(concurrency=1, breaker=Breaker(failures=1))
        for _ in range(2):
            await house.ask(seconds=0.0, outcome="failed")
        probe = asyncio.create_task(house.ask(outcome="raised"))
        other = asyncio.create_task(house.ask())
        if how == "is cancelled":
            await asyncio.sleep(1.0)
            probe.cancel()
        elif how == "is cancelled when called":
            while not house.pace.under_way:
                await asyncio.sleep(0.5)
            probe.cancel()
        await asyncio.gather(probe, other, return_exceptions=True)
        assert house.at_rest()
        return house.times[-1]

    assert 0.5 <= live(story) <= 1.5


def test_who_waits_for_a_silent_provider_is_sent_away_when_its_patience_is_at_an_end() -> None:
    async def story() -> tuple[House, list[list[tuple[float, str]]]]:
        house = House(concurrency=1, breaker=Breaker(failures=1))

        async def ask(tenant: str, arrives: float, patience: float = 10.0) -> tuple[float, str] | None:
            await asyncio.sleep(arrives)
            try:
                await house.ask(tenant, patience=patience, seconds=0.1, outcome="failed")
            except LmUnavailable as error:
                return now(), str(error)
            return None

        await ask("a", 0.0)
        await ask("a", 0.0)
        assert house.pace.opened_since == 0.2
        asked = await asyncio.gather(
            *(ask("early", 0.0) for _ in range(20)),
            *(ask("late", 12.0) for _ in range(20)),
            *(ask("patient", 0.0, math.inf) for _ in range(20)),
        )
        assert house.at_rest()
        return house, [[each for each in asked[start : start + 20] if each] for start in (0, 20, 40)]

    house, (early, late, patient) = live(story)
    sent = Counter(house.tenants)
    assert (len(early) + sent["early"], len(late) + sent["late"], len(patient), sent["patient"]) == (20, 20, 0, 20)
    assert sent["early"] <= 4
    assert sent["late"] <= 2
    assert all(10.2 <= when <= 10.2 + 8.1 for when, _ in early)
    assert all(22.2 <= when <= 22.2 + 8.1 for when, _ in late)
    assert all("the LM has not answered for" in said for _, said in early + late)


# --- the line -----------------------------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.integers(0, 4), st.booleans()), max_size=200))
def test_tenants_who_wait_are_served_evenly_and_each_in_its_order(events: Sequence[tuple[int, bool]]) -> None:
    line, waiting, numbers = RoundRobin[int](), dict[int, list[int]](), iter(range(1_000))
    served_since: dict[tuple[int, int], Counter[int]] = {}
    for tenant, joins in events:
        if joins or not line:
            number = next(numbers)
            line.join(tenant, number)
            waiting.setdefault(tenant, []).append(number)
        else:
            item = line.pop()
            served = next(tenant for tenant, items in waiting.items() if item in items)
            assert waiting[served].pop(0) == item
            for pair, count in served_since.items():
                if served in pair:
                    count[served] += 1
                    assert abs(count[pair[0]] - count[pair[1]]) <= 1
        both = {(a, b) for a in waiting for b in waiting if a < b and waiting[a] and waiting[b]}
        served_since = {pair: served_since.get(pair, Counter()) for pair in both}
        assert len(line) == sum(map(len, waiting.values()))


def test_who_leaves_the_line_leaves_no_trace() -> None:
    line = RoundRobin[str]()
    for tenant, item in [("a", "a1"), ("b", "b1"), ("a", "a2"), ("c", "c1")]:
        line.join(tenant, item)
    assert line.leave("a", "a1")
    assert line.leave("b", "b1")
    assert not line.leave("b", "b1")
    assert (len(line), line.first(), line.of("b"), line.everyone()) == (2, "a2", (), (("a", "a2"), ("c", "c1")))
    assert [line.pop(), line.pop(), len(line)] == ["a2", "c1", 0]


def test_a_free_slot_is_taken_without_a_task_switch() -> None:
    pace = Pace(Terms(concurrency=1))
    with pytest.raises(StopIteration):  # a coroutine that ends without having given way
        pace.turn("a").__aenter__().send(None)
    assert pace.snapshot().under_way == 1


def test_no_slot_stays_free_while_somebody_waits() -> None:
    async def story() -> tuple[float, int]:
        house = House(concurrency=4)
        await asyncio.gather(*(house.ask(number % 3) for number in range(60)))
        return now(), house.most

    assert live(story) == (15.0, 4)


def test_a_late_tenant_does_not_wait_for_the_long_line_of_another() -> None:
    async def story() -> list[str]:
        house = House(concurrency=2)
        many = [asyncio.create_task(house.ask("many")) for _ in range(100)]
        await asyncio.sleep(0.5)
        await asyncio.gather(*(house.ask("few") for _ in range(3)))
        for task in many:
            task.cancel()
        return house.tenants

    assert live(story)[2:8] == ["many", "few", "many", "few", "many", "few"]


def test_a_waiter_who_is_cancelled_leaves_the_line() -> None:
    async def story() -> None:
        house = House(concurrency=1)
        first = asyncio.create_task(house.ask())
        await asyncio.sleep(0.1)
        gone, stays = asyncio.create_task(house.ask("b")), asyncio.create_task(house.ask("b"))
        await asyncio.sleep(0.1)
        gone.cancel()
        await asyncio.gather(first, stays)
        assert gone.cancelled()
        assert house.times == [0.0, 1.0]
        assert house.at_rest()

    live(story)


def test_a_waiter_who_is_called_and_cancelled_in_one_breath_passes_its_turn_on() -> None:
    async def story() -> None:
        house = House(concurrency=1, requests_per_minute=60, tokens_per_minute=600)
        async with house.pace.turn("a") as turn:
            called, other = (asyncio.create_task(house.ask("b", tokens=8)) for _ in range(2))
            await asyncio.sleep(2.0)
            turn.succeeded(2.0)  # calls
            assert house.pace.under_way == 1
            called.cancel()
            await asyncio.sleep(0.0)
        await other
        assert called.cancelled()
        assert house.times == [2.0]  # what the rates were charged was given back
        assert house.at_rest()

    live(story)


def test_who_is_cancelled_before_it_learns_that_it_was_called_does_not_block_the_line() -> None:
    async def story() -> None:
        house = House(concurrency=1)
        async with house.pace.turn("a") as turn:
            gone, other = (asyncio.create_task(house.ask("b")) for _ in range(2))
            await asyncio.sleep(1.0)
            gone.cancel()
            turn.succeeded(1.0)
        await other
        assert house.times == [1.0]
        assert house.at_rest()

    live(story)


def test_nobody_overtakes_who_waits_for_more_tokens_than_there_are() -> None:
    async def story() -> list[Any]:
        house = House(concurrency=9, tokens_per_minute=6_000)
        await house.ask("first", seconds=0.0, tokens=100)
        large = asyncio.create_task(house.ask("large", tokens=90))
        await asyncio.sleep(0.1)
        await asyncio.gather(large, house.ask("small"))
        return house.tenants

    assert live(story) == ["first", "large", "small"]


@pytest.mark.parametrize("how", ["cancelled", "sent away"])
def test_when_who_is_next_goes_away_the_one_behind_is_called_as_soon_as_it_may(how: str) -> None:
    async def story() -> float:
        house = House(concurrency=9, tokens_per_minute=6_000)
        await house.ask("first", seconds=0.0, tokens=200)
        large, small = (asyncio.create_task(house.ask(name, tokens=n)) for name, n in [("large", 100), ("small", 20)])
        await asyncio.sleep(0.1)
        if how == "cancelled":
            large.cancel()
        else:
            house.pace.dismiss("large", lambda: LmUnavailable("stopped"))
        await asyncio.gather(large, small, return_exceptions=True)
        assert house.tenants == ["first", "small"]
        return house.times[1]

    assert live(story) == pytest.approx(1.2, abs=0.05)


def test_a_tenants_waiters_can_be_sent_away_together() -> None:
    async def story() -> None:
        lost: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: lost.append(context))
        house = House(concurrency=1)
        first = asyncio.create_task(house.ask("a"))
        await asyncio.sleep(0.1)
        gone = [asyncio.create_task(house.ask("a")) for _ in range(3)]
        other = asyncio.create_task(house.ask("b"))
        await asyncio.sleep(0.1)
        house.pace.dismiss("a", lambda: LmUnavailable("stopped"))
        gone[0].cancel()
        causes = await asyncio.gather(*gone, return_exceptions=True)
        assert [type(cause) for cause in causes] == [asyncio.CancelledError, LmUnavailable, LmUnavailable]
        assert causes[1] is not causes[2]
        await asyncio.gather(first, other)
        assert house.tenants == ["a", "b"]
        assert house.at_rest()
        assert not lost

    live(story)


def test_a_turn_that_was_not_used_says_nothing_and_is_given_back() -> None:
    async def story() -> None:
        house = House(concurrency=8)
        for _ in range(50):
            with pytest.raises(ZeroDivisionError):
                await house.ask(outcome="raised")
        assert house.pace.snapshot().window == 8
        assert house.pace.opened_since is None
        assert house.at_rest()

    live(story)


def test_only_the_first_word_on_a_turn_counts() -> None:
    async def story() -> None:
        house = House(concurrency=8)
        async with house.pace.turn("a") as turn:
            turn.succeeded(1.0)
            turn.throttled(60.0)
            turn.timed_out()
            turn.failed()
        assert house.pace.snapshot().window == 8
        assert house.at_rest()
        assert house.pace.under_way == 0

    live(story)


def test_an_alarm_does_not_outlive_its_event_loop() -> None:
    pace = Pace(Terms(concurrency=4, requests_per_minute=1), clock=lambda: 0.0)

    async def interrupted() -> None:
        async with pace.turn("a") as turn:
            turn.succeeded(1.0)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(pace.turn("a").__aenter__(), 0.01)

    async def again() -> None:
        pace._requests = None
        async with pace.turn("a") as turn:
            turn.succeeded(1.0)

    live(interrupted)
    assert pace._alarm is None
    live(again)


OUTCOMES = ["answer", "answer", "answer", "throttled", "timed out", "failed", "raised"]

REQUESTS = st.lists(
    st.fixed_dictionaries(
        {
            "tenant": st.integers(0, 3),
            "arrives": st.floats(0, 5),
            "seconds": st.floats(0, 3),
            "outcome": st.sampled_from(OUTCOMES),
            "hint": st.none() | st.floats(0, 300),
            "tokens": st.floats(0, 500),
            "gives_up": st.none() | st.floats(0, 20),
        }
    ),
    min_size=1,
    max_size=40,
)


@given(
    requests=REQUESTS,
    concurrency=st.integers(1, 5),
    per_minute=st.none() | st.integers(10, 600),
    tokens_per_minute=st.none() | st.integers(1_000, 100_000),
)
def test_never_too_many_at_once_and_everybody_is_served_in_the_end(
    requests: Sequence[dict[str, Any]], concurrency: int, per_minute: int | None, tokens_per_minute: int | None
) -> None:
    async def story() -> None:
        house = House(
            concurrency=concurrency,
            requests_per_minute=per_minute,
            tokens_per_minute=tokens_per_minute,
            breaker=Breaker(failures=3),
        )

        async def ask(arrives: float, gives_up: float | None, **what: Any) -> None:
            await asyncio.sleep(arrives)
            asking = asyncio.create_task(house.ask(**what))
            if gives_up is not None:
                await asyncio.sleep(gives_up)
                asking.cancel()
            await asking

        done = await asyncio.gather(*(ask(**each) for each in requests), return_exceptions=True)
        assert all(isinstance(each, asyncio.CancelledError | ZeroDivisionError | None) for each in done)
        patient = sum(each["gives_up"] is None for each in requests)
        assert len(house.began) >= patient
        assert house.most <= concurrency
        assert house.at_rest()
        if per_minute is not None:
            for start in house.times:
                assert sum(start <= when < start + MINUTE for when in house.times) <= per_minute

    live(story)


@given(
    waiting=st.lists(st.integers(0, 4), min_size=2, max_size=60),
    concurrency=st.integers(1, 6),
    seed=st.integers(0, 1_000),
)
def test_tenants_get_equally_many_turns_while_they_wait(waiting: Sequence[int], concurrency: int, seed: int) -> None:
    async def story() -> list[int]:
        house, rng = House(concurrency=concurrency), random.Random(seed)
        busy = [asyncio.create_task(house.ask("busy", seconds=rng.random())) for _ in range(concurrency)]
        await asyncio.sleep(0)
        await asyncio.gather(
            *busy,
            *(
                house.ask(tenant, seconds=rng.random(), outcome=rng.choice(["answer", "answer", "throttled"]))
                for tenant in waiting
            ),
        )
        return house.tenants[concurrency:]

    served, left = Counter[int](), Counter(waiting)
    for tenant in live(story):
        served[tenant] += 1
        left[tenant] -= 1
        counts = [served[each] for each in left if left[each]]
        assert not counts or max(counts) - min(counts) <= 1
        assert all(served[tenant] <= served[each] + 1 for each in left if left[each])


# --- one pace per provider ----------------------------------------------------------------------------------------


def test_optimizations_that_ask_one_provider_share_its_pace() -> None:
    paces = Paces()
    one = paces.of("https://a/v1", "gpt", Terms(concurrency=8))
    assert paces.of("https://a/v1", "gpt", Terms(concurrency=8)) is one
    assert paces.of("https://a/v1", "other", Terms(concurrency=8)) is not one
    assert paces.of("https://b/v1", "gpt", Terms(concurrency=8)) is not one
    assert set(paces.snapshots()) == {("https://a/v1", "gpt"), ("https://a/v1", "other"), ("https://b/v1", "gpt")}


def test_windows_add_up_and_the_strictest_rates_hold() -> None:
    paces = Paces()
    pace = paces.of("", "gpt", Terms(concurrency=8, requests_per_minute=100))
    paces.of("", "gpt", Terms(concurrency=64, requests_per_minute=500, tokens_per_minute=9_000))
    paces.of("", "gpt", Terms(concurrency=2, tokens_per_minute=20_000))
    assert pace.terms == Terms(concurrency=74, requests_per_minute=100, tokens_per_minute=9_000)
    assert pace.snapshot().window == 74
    pace.leave(Terms(concurrency=64, requests_per_minute=500, tokens_per_minute=9_000))
    assert pace.terms == Terms(concurrency=10, requests_per_minute=100, tokens_per_minute=9_000)
    assert pace.snapshot().window == 10


def test_a_window_that_shrank_does_not_jump_when_another_optimization_states_a_larger_one() -> None:
    window = Window(10)
    window.overloaded(window.begin(), TIMED_OUT)
    window.bound(40)
    assert (window.maximum, window.slots) == (40, 5)


def test_who_waits_is_let_in_when_the_window_is_widened() -> None:
    async def story() -> float:
        house = House(concurrency=1)
        asking = [asyncio.create_task(house.ask()) for _ in range(4)]
        await asyncio.sleep(0.5)
        house.pace.agree(Terms(concurrency=8 - house.pace.terms.concurrency))
        await asyncio.gather(*asking)
        return now()

    assert live(story) == 1.5


def test_a_snapshot_says_how_things_stand() -> None:
    async def story() -> None:
        house = House(concurrency=2, breaker=Breaker(failures=2))
        asking = [asyncio.create_task(house.ask(outcome="failed")) for _ in range(6)]
        await asyncio.sleep(0.5)
        snapshot = house.pace.snapshot()
        assert (snapshot.window, snapshot.under_way, snapshot.waiting, snapshot.state) == (2, 2, 4, "closed")
        await asyncio.sleep(1.7)  # the failure that opened it was the last of four; the fifth had just been sent
        snapshot = house.pace.snapshot()
        assert (snapshot.under_way, snapshot.waiting, snapshot.state, snapshot.opened_since) == (1, 1, "open", 2.0)
        await asyncio.sleep(0.5)
        snapshot = house.pace.snapshot()
        assert (snapshot.under_way, snapshot.waiting, snapshot.state) == (2, 0, "half-open")
        await asyncio.gather(*asking)

    live(story)

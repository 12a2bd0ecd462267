"""How fast one provider may be asked: an adaptive window, rates, quiet when it asks for quiet, and a breaker.

One ``Pace`` stands before one provider - an API address and a model - and all optimizations of a process share it:

    async with pace.turn("optimization 7", tokens=900) as turn:  # waits until one more request may be sent
        began = clock()
        response = await send(request)
        turn.succeeded(clock() - began, tokens=1_040)  # or throttled(retry_after), timed_out(), failed()

The parts (``Window``, ``Bucket``, ``Gate``, ``Breaker``, ``RoundRobin``) only decide: they hold no timer and are told
the time. ``Pace`` puts them together on one event loop, on which all its methods must be called; so there is no lock.

References:
    Chiu, Jain, "Analysis of the Increase and Decrease Algorithms for Congestion Avoidance in Computer Networks",
        Computer Networks and ISDN Systems 17, 1989: why additive increase and multiplicative decrease.
    Brakmo, Peterson, "TCP Vegas: End to End Congestion Avoidance on a Global Internet", IEEE JSAC 13(8), 1995, and
        Netflix's concurrency-limits (Gradient2Limit), 2018: latency above the best seen means a queue.
    Nagle, "On Packet Switches with Infinite Storage", RFC 970, 1985: fair queueing by round robin.
    Nygard, "Release It!", 2007, section 5.2: the circuit breaker.
"""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable
from dataclasses import dataclass, replace
from typing import Generic, Literal, TypeVar

from ratchet.core.errors import BadRequest, LmUnavailable

THROTTLED = 0.7
"""What an overload leaves of the window: CUBIC's beta (RFC 9438, section 4.6)."""
TIMED_OUT = 0.5
"""What a timeout leaves: silence says more than a refusal, so half, as in RFC 5681, eq. (4)."""
FAR = 2.0
"""How many times the best latency the present one may be before the window stops growing."""
RECENT = 32
"""How many windows' worth of successes the best latency is taken over: what was longer ago may be another workload."""
FEWEST = 8
"""Successes a latency is judged on at least: the lowest of fewer says little, as answers differ in length."""
BURST_SECONDS = 1.0
"""How much of a minute's allowance may go at once. Providers enforce 60 a minute as 1 a second, too."""
LONGEST_QUIET = 120.0
"""Seconds that a ``Retry-After`` is believed."""
SPREAD = 0.1
"""Seconds over which those are let through who waited for a provider to take requests again."""
SHORTEST_ALARM = 0.001
"""Seconds a timer is set for at least, so that a rounding error does not wake us again and again."""

Tenant = Hashable
T = TypeVar("T", bound=Hashable)


class Window:
    """How many requests may be under way: it grows while they succeed and shrinks when the provider is overloaded.

    Chiu and Jain's linear control with a_I = 1 per window of successes, b_I = 1, a_D = 0 and b_D = 0.7 or 0.5. It
    shrinks once per window of requests: what was sent before the last decrease causes no other (RFC 6582's "recover").
    It does not grow while the lowest latency of a window's worth of successes is far above the lowest of late, which
    means that requests queue at the provider; nor while less than half of it is in use.

    Args:
        maximum: What it never grows beyond.
        start: What it starts at; the maximum unless told, because users say what they may have.

    Attributes:
        size: The window as a real number, at least 1.
        slots: Its whole part: how many requests may be under way.

    >>> window = Window(10)
    >>> first, second = window.begin(), window.begin()
    >>> window.overloaded(first, THROTTLED), window.overloaded(second, THROTTLED), window.slots
    (True, False, 7)
    >>> for _ in range(8):
    ...     window.succeeded(0.3, under_way=7)
    >>> window.slots
    8
    """

    __slots__ = ("_begun", "_best", "_left", "_lowest", "_lows", "_recover", "crowded", "maximum", "size", "slots")

    def __init__(self, maximum: int, *, start: int | None = None) -> None:
        self.maximum = maximum
        self.size = float(maximum if start is None else start)
        if not 1 <= self.size <= maximum:
            raise BadRequest(f"a window of {self.size:.0f} of {maximum} requests makes no sense")
        self.slots = int(self.size)
        self.crowded = False
        self._begun = 0
        self._recover = 0
        self._lows: deque[float] = deque(maxlen=RECENT)
        self._best = math.inf
        self._lowest = math.inf
        self._left = max(FEWEST, self.slots)

    def begin(self) -> int:
        """The number of a request that is now sent."""
        self._begun += 1
        return self._begun

    def succeeded(self, latency_seconds: float | None, *, under_way: int) -> None:
        """Note an answer; ``under_way`` counts the request itself, no latency means that it tells nothing of speed."""
        if latency_seconds is not None:
            if latency_seconds < self._lowest:
                self._lowest = latency_seconds
            self._left -= 1
            if not self._left:
                self._judge_latency()
        if self.size < self.maximum and not self.crowded and 2 * under_way >= self.slots:
            self._resize(self.size + 1.0 / self.size)

    def _judge_latency(self) -> None:
        self._lows.append(self._lowest)
        self._best = min(self._lows)
        self.crowded = self._lowest > FAR * self._best
        self._lowest = math.inf
        self._left = max(FEWEST, self.slots)

    def overloaded(self, number: int, factor: float) -> bool:
        """Shrink to ``factor`` of the size because request ``number`` met an overload; whether it did."""
        if number <= self._recover:
            return False
        self._recover = self._begun
        self._resize(self.size * factor)
        return True

    def bound(self, maximum: int) -> None:
        """Change the maximum; a window that stood at the old one stands at the new one."""
        full, self.maximum = self.size >= self.maximum, maximum
        if full or self.size > maximum:
            self._resize(float(maximum))

    def _resize(self, size: float) -> None:
        self.size = min(float(self.maximum), max(1.0, size))
        self.slots = int(self.size + 1e-9)  # ten times 1/10 is a little less than 1


class Bucket:
    """A token bucket: what may be taken per minute, a second's worth of it at once.

    In any minute at most ``per_minute`` is taken, as long as nothing taken is larger than ``capacity``. What is larger
    goes when the bucket is full; the debt is waited off.

    >>> bucket = Bucket(120, now=0.0)
    >>> bucket.take(1, now=0.0), bucket.take(1, now=0.0)
    (None, None)
    >>> round(bucket.wait(1, now=0.0), 3), bucket.wait(1, now=0.51)
    (0.504, 0.0)
    """

    __slots__ = ("_level", "_per_second", "_then", "capacity", "per_minute")

    def __init__(self, per_minute: float, *, now: float) -> None:
        if not per_minute > 0:
            raise BadRequest(f"{per_minute} per minute makes no sense")
        self.per_minute = per_minute
        self.capacity = max(1.0, per_minute * BURST_SECONDS / 60)
        # A full bucket and a minute's refill together: less than per_minute + 1, that is per_minute whole ones.
        self._per_second = (per_minute + 1 - self.capacity) / 60
        self._level = self.capacity
        self._then = now

    def wait(self, amount: float, now: float) -> float:
        """Seconds until ``amount`` may be taken; 0 for now."""
        self._fill(now)
        short = min(amount, self.capacity) - self._level
        return short / self._per_second if short > 1e-9 else 0.0

    def take(self, amount: float, now: float) -> None:
        """Take ``amount``, into debt if need be."""
        self._fill(now)
        self._level -= amount

    def correct(self, more: float) -> None:
        """Say that what was taken was ``more`` than was thought, or less if negative."""
        self._level -= more

    def _fill(self, now: float) -> None:
        self._level = min(self.capacity, self._level + (now - self._then) * self._per_second)
        self._then = now


class Gate:
    """Shut for as long as the provider asked for; when it opens, those who waited do not all go at once.

    Attributes:
        in_force: Whether it holds anybody up.
    """

    __slots__ = ("_file", "_gap", "_rng", "_until", "in_force")

    def __init__(self, rng: random.Random) -> None:
        self.in_force = False
        self._rng = rng
        self._until = -math.inf
        self._file = 0
        self._gap = 0.0

    def shut(self, seconds: float, now: float, *, crowd: int) -> None:
        """Shut for ``seconds`` and a little more, then spread the first ``crowd`` over about ``SPREAD`` seconds."""
        self.in_force = True
        self._file = crowd
        self._gap = SPREAD / crowd
        self._until = max(self._until, now + min(max(seconds, 0.0), LONGEST_QUIET) * self._rng.uniform(1.0, 1.1))

    def wait(self, now: float) -> float:
        """Seconds until one may go through; 0 for now."""
        return max(0.0, self._until - now) if self.in_force else 0.0

    def passed(self, now: float) -> None:
        """Note that one went through."""
        if self.in_force:
            self._file -= 1
            self._until = now + self._rng.uniform(0.0, 2 * self._gap)
            self.in_force = self._file > 0


class Breaker:
    """Stops asking a provider that does not answer, and finds out with one request at a time when it does again.

    It opens after many failures in a row, with no success between. Then one probe at a time is let through, after
    pauses that double; a success closes it. How long the failures went on does not matter: an address that refuses
    connections fails hundreds of times a second, each time a paid call of somebody's budget, while to open in error
    costs no more than the first pause. An answer to a request that was sent before the first of the failures says
    nothing of what came after, so slow answers from before an outage do not hide it.

    Args:
        failures: How many in a row at least; never fewer than two windows, or one lost window would open it.
        first_pause: Seconds from opening to the first probe.
        longest_pause: Seconds between two probes at most.

    Attributes:
        opened_since: When it opened, a reading of the clock; None while it is closed.
        probing: Whether a probe is under way.
    """

    __slots__ = (
        "_count",
        "_failures",
        "_first",
        "_first_pause",
        "_longest_pause",
        "_needed",
        "_next_probe",
        "_pause",
        "opened_since",
        "probing",
    )

    def __init__(self, *, failures: int = 10, first_pause: float = 0.5, longest_pause: float = 8.0) -> None:
        self.opened_since: float | None = None
        self.probing = False
        self._failures, self._first_pause, self._longest_pause = failures, first_pause, longest_pause
        self._count = self._first = self._needed = 0
        self._pause = self._next_probe = 0.0

    @property
    def state(self) -> Literal["closed", "open", "half-open"]:
        """Where it stands; half-open while a probe is under way."""
        if self.opened_since is None:
            return "closed"
        return "half-open" if self.probing else "open"

    def wait(self, now: float) -> float:
        """Seconds until one may be sent; infinity while a probe is under way."""
        if self.opened_since is None:
            return 0.0
        return math.inf if self.probing else max(0.0, self._next_probe - now)

    def begin(self) -> bool:
        """Note that a request is sent; whether it is a probe."""
        if self.opened_since is None:
            return False
        self.probing = True
        return True

    def succeeded(self, number: int) -> bool:
        """Note an answer to request ``number``; whether it closed the breaker."""
        if not self._count or number < self._first:
            return False
        self._count = 0
        if self.opened_since is None:
            return False
        self.opened_since = None
        self.probing = False
        return True

    def failed(self, number: int, now: float, *, slots: int, probe: bool) -> None:
        """Note that the provider did not do what request ``number`` asked; ``slots`` is the window."""
        if self.opened_since is not None:
            if probe and self.probing:
                self.probing = False
                self._pause = min(self._longest_pause, 2 * self._pause)
                self._next_probe = now + self._pause
            return
        if not self._count:
            self._first = number
            self._needed = max(self._failures, 2 * slots)  # of now: overloads shrink the window before they are enough
        self._count += 1
        if self._count >= self._needed:
            self.opened_since = now
            self._pause = self._first_pause
            self._next_probe = now + self._pause

    def dropped(self, *, probe: bool) -> None:
        """Note that a request ended in no way that says anything of the provider; another may probe in its stead."""
        if probe:
            self.probing = False


class RoundRobin(Generic[T]):
    """Who waits. One of each tenant in turn, first come first served within one; each method takes constant time.

    Two tenants who both wait all the time are served equally often, give or take one.

    >>> line = RoundRobin[str]()
    >>> for tenant, item in [("a", "a1"), ("a", "a2"), ("b", "b1"), ("a", "a3")]:
    ...     line.join(tenant, item)
    >>> [line.pop() for _ in range(len(line))]
    ['a1', 'b1', 'a2', 'a3']
    """

    __slots__ = ("_length", "_lines")

    def __init__(self) -> None:
        # Ordered, because a plain dict whose first key is taken again and again is searched from its start each time.
        self._lines: OrderedDict[Tenant, OrderedDict[T, None]] = OrderedDict()
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def join(self, tenant: Tenant, item: T) -> None:
        """Stand at the end of the tenant's line."""
        self._lines.setdefault(tenant, OrderedDict())[item] = None
        self._length += 1

    def leave(self, tenant: Tenant, item: T) -> bool:
        """Go away without having been served; whether ``item`` still stood there."""
        line = self._lines.get(tenant)
        if line is None or item not in line:
            return False
        del line[item]
        self._length -= 1
        if not line:
            del self._lines[tenant]
        return True

    def first(self) -> T:
        """Who is next."""
        return next(iter(next(iter(self._lines.values()))))

    def pop(self) -> T:
        """Serve who is next; its tenant goes to the end of the round."""
        tenant, line = next(iter(self._lines.items()))
        item, _ = line.popitem(last=False)
        self._length -= 1
        if line:
            self._lines.move_to_end(tenant)
        else:
            del self._lines[tenant]
        return item

    def of(self, tenant: Tenant) -> tuple[T, ...]:
        """All who wait for ``tenant``."""
        return tuple(self._lines.get(tenant, ()))

    def everyone(self) -> tuple[tuple[Tenant, T], ...]:
        """All who wait, and for whom."""
        return tuple((tenant, item) for tenant, line in self._lines.items() for item in line)


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """On what terms one provider may be asked.

    Attributes:
        concurrency: Requests under way at once, at most.
        start: How many at first; the maximum unless told.
        requests_per_minute: None for no limit.
        tokens_per_minute: Tokens of prompts and answers together; None for no limit.
    """

    concurrency: int = 8
    start: int | None = None
    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """How a provider is being asked right now.

    Attributes:
        window: Requests that may be under way.
        under_way: Requests that are.
        waiting: Requests that wait for their turn.
        state: Of the breaker.
        opened_since: When the breaker opened, a reading of the clock; None while it is closed.
    """

    window: float
    under_way: int
    waiting: int
    state: Literal["closed", "open", "half-open"]
    opened_since: float | None


class Turn:
    """One request's turn; ``async with`` waits for it and gives it back.

    What became of the request is said once, and ends the turn. A turn that ends without that, because the request was
    never sent or its task was cancelled, says nothing of the provider.
    """

    __slots__ = ("_pace", "_patience", "_since", "_under_way", "called", "number", "probe", "tenant", "tokens")

    def __init__(self, pace: Pace, tenant: Tenant, tokens: float, patience: float) -> None:
        self.tenant = tenant
        self.tokens = tokens
        self.number = 0
        self.probe = False
        self.called: asyncio.Future[None] | None = None
        self._pace = pace
        self._patience = patience
        self._since = 0.0
        self._under_way = False

    async def __aenter__(self) -> Turn:
        if not self._pace._enter(self):
            await self._pace._wait(self)
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._under_way:
            self._pace._dropped(self)

    def succeeded(self, latency_seconds: float | None, tokens: float | None = None) -> None:
        """It was answered.

        Args:
            latency_seconds: From sending to the whole answer; None when that says nothing of the provider's speed, as
                when it refused this very request.
            tokens: Of prompt and answer; None when not known.
        """
        if self._under_way:
            self._pace._succeeded(self, latency_seconds, tokens)

    def throttled(self, retry_after_seconds: float | None = None) -> None:
        """The provider has too much to do (429, or 503 and 529 for overload), and may have said when to come back."""
        if self._under_way:
            self._pace._failed(self, THROTTLED, retry_after_seconds)

    def timed_out(self) -> None:
        """No answer came in time."""
        if self._under_way:
            self._pace._failed(self, TIMED_OUT, None)

    def failed(self) -> None:
        """The provider could not be reached, or broke while answering (500, 502)."""
        if self._under_way:
            self._pace._failed(self, None, None)

    def _overdue(self, opened: float, now: float) -> bool:
        return now - max(opened, self._since) > self._patience


class Pace:
    """Lets requests to one provider through, as fast as it can take them and in fair turns.

    Args:
        terms: On what terms it may be asked.
        name: How errors name it.
        clock: Seconds; ``loop.time`` of the event loop or a clock that goes as fast.
        rng: For the jitter.
        breaker: Another than the usual one.
    """

    def __init__(
        self,
        terms: Terms,
        *,
        name: str = "the LM",
        clock: Callable[[], float] = time.monotonic,
        rng: random.Random | None = None,
        breaker: Breaker | None = None,
    ) -> None:
        self.name = name
        self.under_way = 0
        self.window = Window(terms.concurrency, start=terms.start)
        self._clock = clock
        self._line = RoundRobin[Turn]()
        self._gate = Gate(rng or random.Random(0))
        self._breaker = breaker or Breaker()
        self._requests: Bucket | None = None
        self._tokens: Bucket | None = None
        self._alarm: asyncio.TimerHandle | None = None
        self._set(terms)

    def agree(self, terms: Terms) -> None:
        """Take up the terms of one more optimization: its concurrency is added, and the smallest rates hold.

        How much a provider can take shows by how it answers, so everybody may bring what they were granted; a rate is a
        promise, so the strictest holds. ``start`` is heeded for the first only.
        """
        self._set(
            replace(
                self.terms,
                concurrency=self.terms.concurrency + terms.concurrency,
                requests_per_minute=_smaller(self.terms.requests_per_minute, terms.requests_per_minute),
                tokens_per_minute=_smaller(self.terms.tokens_per_minute, terms.tokens_per_minute),
            )
        )

    def leave(self, terms: Terms) -> None:
        """Take back the concurrency of an optimization that has ended; its rates stay, they are the provider's."""
        self._set(replace(self.terms, concurrency=max(1, self.terms.concurrency - terms.concurrency)))

    def _set(self, terms: Terms) -> None:
        self.terms = terms
        now = self._clock()
        self._requests = _bucket(self._requests, terms.requests_per_minute, now)
        self._tokens = _bucket(self._tokens, terms.tokens_per_minute, now)
        self.window.bound(terms.concurrency)
        if self._line:
            self._call()

    def turn(self, tenant: Tenant, *, tokens: float = 0.0, patience_seconds: float = math.inf) -> Turn:
        """A turn for one request.

        Args:
            tenant: On whose account: turns are shared out evenly between tenants.
            tokens: How many the prompt and the answer are likely to have.
            patience_seconds: How long to wait for a provider whose breaker is open, before ``LmUnavailable`` is raised.
                It is looked at whenever a probe failed. Waiting for a slot takes as long as it takes.
        """
        return Turn(self, tenant, tokens, patience_seconds)

    @property
    def opened_since(self) -> float | None:
        """When the breaker opened, a reading of the clock; None while it is closed."""
        return self._breaker.opened_since

    def snapshot(self) -> Snapshot:
        """How things stand."""
        return Snapshot(
            window=self.window.size,
            under_way=self.under_way,
            waiting=len(self._line),
            state=self._breaker.state,
            opened_since=self._breaker.opened_since,
        )

    def dismiss(self, tenant: Tenant, why: Callable[[], BaseException]) -> None:
        """Send away all who wait for ``tenant``; each raises an exception of its own."""
        for turn in self._line.of(tenant):
            self._send_away(turn, why())
        self._call()

    # --- in, and out again -----------------------------------------------------------------------------------------

    def _enter(self, turn: Turn) -> bool:
        """Let ``turn`` in at once if it may, and nobody stands before it."""
        if self._line or self.under_way >= self.window.slots:
            return False
        if self._guarded:
            now = self._clock()
            if self._held_up(turn, now) > 0.0:
                return False
            self._begin_guarded(turn, now)
        self._begin(turn)
        return True

    async def _wait(self, turn: Turn) -> None:
        turn.called = asyncio.get_running_loop().create_future()
        turn._since = self._clock()
        self._line.join(turn.tenant, turn)
        self._call()
        try:
            await turn.called
        except asyncio.CancelledError:
            if turn._under_way:  # called and cancelled in one breath: nothing was sent
                self._unsend(turn)
            else:
                self._line.leave(turn.tenant, turn)
                self._call()  # whoever is next may ask for less
            raise
        finally:
            turn.called = None

    @property
    def _guarded(self) -> bool:
        """Whether anything but the window can hold a request up."""
        return (
            self._gate.in_force
            or self._breaker.opened_since is not None
            or self._requests is not None
            or self._tokens is not None
        )

    def _held_up(self, turn: Turn, now: float) -> float:
        """Seconds until ``turn`` may begin as far as time goes; infinity until a probe has ended."""
        wait = max(self._gate.wait(now), self._breaker.wait(now))
        if self._requests is not None:
            wait = max(wait, self._requests.wait(1.0, now))
        if self._tokens is not None:
            wait = max(wait, self._tokens.wait(turn.tokens, now))
        return wait

    def _begin_guarded(self, turn: Turn, now: float) -> None:
        self._gate.passed(now)
        turn.probe = self._breaker.begin()
        if self._requests is not None:
            self._requests.take(1.0, now)
        if self._tokens is not None:
            self._tokens.take(turn.tokens, now)

    def _begin(self, turn: Turn) -> None:
        self.under_way += 1
        turn.number = self.window.begin()
        turn._under_way = True

    def _call(self) -> None:
        """Call in all who may begin now; set the alarm for when the next one may."""
        while self._line and self.under_way < self.window.slots:
            turn = self._line.first()
            assert turn.called is not None
            if turn.called.done():  # cancelled, and not yet told
                self._line.pop()
                continue
            if self._guarded:
                now = self._clock()
                wait = self._held_up(turn, now)
                if wait > 0.0:
                    self._wake_in(wait)
                    return
                self._begin_guarded(turn, now)
            self._line.pop()
            self._begin(turn)
            turn.called.set_result(None)
        if self._alarm is not None and not self._line:
            self._alarm.cancel()  # it must not outlive its event loop
            self._alarm = None

    def _wake_in(self, seconds: float) -> None:
        if seconds == math.inf:
            return  # the end of the probe calls
        loop = asyncio.get_running_loop()
        when = loop.time() + max(seconds, SHORTEST_ALARM)
        if self._alarm is not None:
            if self._alarm.when() <= when:
                return
            self._alarm.cancel()
        self._alarm = loop.call_at(when, self._ring)

    def _ring(self) -> None:
        self._alarm = None
        self._call()

    def _end(self, turn: Turn) -> None:
        turn._under_way = False
        self.under_way -= 1
        if self._line:
            self._call()

    # --- what became of it -----------------------------------------------------------------------------------------

    def _succeeded(self, turn: Turn, latency_seconds: float | None, tokens: float | None) -> None:
        self.window.succeeded(latency_seconds, under_way=self.under_way)
        if self._breaker.succeeded(turn.number):
            self._gate.shut(0.0, self._clock(), crowd=self.window.slots)  # do not trample who just got up
        if self._tokens is not None and tokens is not None:
            self._tokens.correct(tokens - turn.tokens)
            turn.tokens = tokens
        self._end(turn)

    def _failed(self, turn: Turn, shrink: float | None, retry_after_seconds: float | None) -> None:
        now = self._clock()
        slots = self.window.slots
        if shrink is not None:
            self.window.overloaded(turn.number, shrink)
        if retry_after_seconds is not None:
            self._gate.shut(retry_after_seconds, now, crowd=self.window.slots)
        self._breaker.failed(turn.number, now, slots=slots, probe=turn.probe)
        if (opened := self._breaker.opened_since) is not None and turn.probe:
            self._give_up(opened, now)
        self._end(turn)

    def _give_up(self, opened: float, now: float) -> None:
        """Send away whose patience with a provider that does not answer is at its end."""
        for _, turn in self._line.everyone():
            if turn._overdue(opened, now):
                self._send_away(turn, LmUnavailable(f"{self.name} has not answered for {now - opened:.0f} s"))

    def _send_away(self, turn: Turn, why: BaseException) -> None:
        self._line.leave(turn.tenant, turn)
        if turn.called is not None and not turn.called.done():
            turn.called.set_exception(why)

    def _dropped(self, turn: Turn) -> None:
        self._breaker.dropped(probe=turn.probe)
        self._end(turn)

    def _unsend(self, turn: Turn) -> None:
        """Take back a turn that nobody used."""
        if self._requests is not None:
            self._requests.correct(-1.0)
        if self._tokens is not None:
            self._tokens.correct(-turn.tokens)
        self._dropped(turn)


def _smaller(a: float | None, b: float | None) -> float | None:
    return min((each for each in (a, b) if each is not None), default=None)


def _bucket(old: Bucket | None, per_minute: float | None, now: float) -> Bucket | None:
    """The old bucket when it is as asked for, else a new one."""
    if per_minute is None or (old is not None and old.per_minute == per_minute):
        return old
    return Bucket(per_minute, now=now)


class Paces:
    """The paces of one process, one per provider.

    Args:
        clock: Seconds.
        rng: For the jitter.

    >>> paces = Paces()
    >>> first = paces.of("https://api.example/v1", "gpt", Terms(concurrency=8))
    >>> second = paces.of("https://api.example/v1", "gpt", Terms(concurrency=64, requests_per_minute=600))
    >>> first is second, second.terms.concurrency, second.terms.requests_per_minute
    (True, 72, 600)
    """

    def __init__(self, *, clock: Callable[[], float] = time.monotonic, rng: random.Random | None = None) -> None:
        self._clock = clock
        self._rng = rng or random.Random(0)
        self._paces: dict[tuple[str, str], Pace] = {}

    def of(self, address: str, model: str, terms: Terms) -> Pace:
        """The pace of one provider; it takes up ``terms``."""
        pace = self._paces.get((address, model))
        if pace is None:
            pace = Pace(terms, name=f"{model} at {address}" if address else model, clock=self._clock, rng=self._rng)
            self._paces[address, model] = pace
        else:
            pace.agree(terms)
        return pace

    def snapshots(self) -> dict[tuple[str, str], Snapshot]:
        """How all providers are being asked, by address and model; may be called in any thread."""
        return {key: pace.snapshot() for key, pace in list(self._paces.items())}

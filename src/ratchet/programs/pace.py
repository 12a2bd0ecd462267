"""How fast one provider may be asked: an adaptive window, rates, quiet when it asks for quiet, and a breaker.

One ``Pace`` stands before one provider - an API address and a model - and all optimizations of a process share it:

    async with pace.turn("optimization 7", tokens=900) as turn:  # waits until one more request may be sent
        began = clock()
        response = await send(request)
        turn.succeeded(clock() - began, tokens=1_040)  # or throttled(retry_after), timed_out(), failed()

``Pace`` puts the parts of ``ratchet.programs.flow``, which only decide, together on one event loop, on which all its
methods must be called; so there is no lock.
"""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

from ratchet.core.errors import LmUnavailable
from ratchet.programs.flow import THROTTLED, TIMED_OUT, Breaker, Bucket, Gate, RoundRobin, Tenant, Window

SHORTEST_ALARM = 0.001
"""Seconds a timer is set for at least, so that a rounding error does not wake us again and again."""


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

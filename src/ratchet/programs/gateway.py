"""The one door to every LM: ledger, journal, single flight, limits and retries, around DSPy's own engines.

A request that is equal in content, role, rollout and number within its call is sent once per optimization: its
recorded reply is given again ever after. That is what DSPy's own cache promises, and it makes every optimizer, an
opaque one too, resumable by running it again.

All of it happens on the process's one event loop; threads and other loops wait for it there.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from itertools import count

import dspy
from dspy.lm15 import InvalidRequestError, Request
from dspy.utils.exceptions import (
    ContextWindowExceededError,
    LMError,
    LMInvalidRequestError,
    LMRateLimitError,
    LMTimeoutError,
    LMUnsupportedModelError,
    is_retryable_lm_error,
)

from ratchet.core.errors import BudgetSpent, LmUnavailable, RatchetError
from ratchet.core.evaluation import Usage
from ratchet.core.problem import content_hash
from ratchet.programs.answers import Answer
from ratchet.programs.journal import Heritage, Journal, Reply
from ratchet.programs.ledger import Halt, Ledger, Limits
from ratchet.programs.line import Line
from ratchet.programs.loop import arun, house_loop, on_loop, run, wait_for
from ratchet.programs.pace import Pace, Paces, Terms, Turn
from ratchet.programs.replies import text_of
from ratchet.programs.retries import Retries, for_answer, passes
from ratchet.programs.watched import Watched, watch_recorded

PACES = Paces()
"""How fast each provider may be asked, by all optimizations of this process together."""

_SHARED_FLIGHTS: dict[str, asyncio.Future[None]] = {}
"""Requests under way whose replies will be shared; equal ones of other optimizations wait for them."""

LANDING_SECONDS = 30.0
"""How long an optimization that has ended waits for answers that nobody needs any more."""


@dataclass(slots=True)
class Receipt:
    """Collects what one program run used; handed along in DSPy's settings."""

    usage: Usage = field(default_factory=Usage)
    keys: list[str] = field(default_factory=list)
    seconds_inside: float = 0.0
    texts: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, reply: Reply, seconds: float, text: str) -> None:
        """Add a reply this run used, and the wall time spent getting it."""
        with self.lock:
            self.usage += Usage(
                calls=1,
                prompt_tokens=reply.prompt_tokens,
                completion_tokens=reply.completion_tokens,
                cost_usd=reply.cost_usd,
                latency_ms=reply.latency_ms,
            )
            self.keys.append(reply.key)
            self.seconds_inside += seconds
            self.texts.append(text)


class Visit:
    """All that one optimizer asks, in whatever thread it asks it; handed along in DSPy's settings.

    DSPy leaves threads behind when it is interrupted. Once the visit is over they are turned away, so that they cannot
    spend what a later stage was given.
    """

    def __init__(self) -> None:
        self._asking = 0
        self._over = False
        self._changed = threading.Condition()

    def __enter__(self) -> None:
        with self._changed:
            if self._over:
                raise Halt(BudgetSpent("the optimizer that asks has ended"))
            self._asking += 1

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._asking -= 1
            self._changed.notify_all()

    def end(self) -> None:
        """Let nobody in any more, and wait until all who are in have their answer."""
        with self._changed:
            self._over = True
            self._changed.wait_for(lambda: self._asking == 0)


class Ask:
    """A request on its way to an LM.

    Attributes:
        key: What names its reply.
    """

    __slots__ = ("_request", "key")

    def __init__(self, key: str, request: Request) -> None:
        self.key = key
        self._request = request

    @property
    def request(self) -> Request:
        """The request itself."""
        return self._request

    @property
    def is_repeatable(self) -> bool:
        """Whether the same request is meant to get the same answer."""
        return is_repeatable(self._request)

    async def send(self, line: Line, *, patience: float) -> Answer:
        """Send it once."""
        return await line.send(self._request, patience=patience)


def is_repeatable(request: Request) -> bool:
    """Whether ``request`` is sent at temperature 0, or with a seed."""
    return request.config.temperature == 0 or request.config.seed is not None


class _Flight:
    """A request under way, and those who wait for its reply."""

    __slots__ = ("failing_since", "passengers")

    def __init__(self) -> None:
        self.passengers: set[asyncio.Future[Reply]] = set()
        self.failing_since: float | None = None
        """When the first of the attempts was sent that have failed so far; None while none has."""

    def land(self, reply: Reply) -> None:
        for each in self.passengers:
            if not each.done():
                each.set_result(reply)

    def crash(self, error: BaseException) -> None:
        for each in self.passengers:
            if not each.done():
                each.set_exception(error)


class _NobodyWaitsError(Exception):
    """The request is not worth sending, or sending again, any more."""


class Gateway(Ledger):
    """Everything between the programs of one optimization and their LMs.

    Args:
        journal: Where requests and replies are noted; what it already holds is never paid again.
        limits: What may be spent.
        heritage: What another optimization paid for, and this one need not.
    """

    def __init__(
        self,
        journal: Journal,
        limits: Limits,
        *,
        heritage: Heritage | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(journal, limits, clock=clock)
        self._journal = journal
        self._heritage = heritage
        self._flights: dict[str, _Flight] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._slots = asyncio.Semaphore(limits.concurrency)
        self._retries = Retries(clock=clock)
        self._paces: dict[tuple[str, str], Pace] = {}

    def halt(self, cause: RatchetError) -> None:
        """Send nothing more; whoever asks or waits gets ``cause``. What is under way is recorded when it comes."""
        super().halt(cause)
        house_loop().call_soon_threadsafe(self._turn_away)

    def _turn_away(self) -> None:
        assert self._halted is not None
        for flight in self._flights.values():
            flight.crash(Halt(self._halted))
        for pace in self._paces.values():
            pace.dismiss(self, _NobodyWaitsError)

    # --- the two ways through --------------------------------------------------------------------------------------

    def fetch(self, line: Line, ask: Ask) -> Reply:
        """The reply to what is asked, for a thread.

        Raises:
            Halt: nothing more may be sent.
            WouldBlockError: the caller is on the event loop.
        """
        started = self._clock()
        with dspy.settings.get("ratchet_visit") or nullcontext():
            return self._noted(wait_for(lambda: self._board(line, ask)), started)

    async def afetch(self, line: Line, ask: Ask) -> Reply:
        """The reply to what is asked, for a task.

        Raises:
            Halt: nothing more may be sent.
        """
        started = self._clock()
        with dspy.settings.get("ratchet_visit") or nullcontext():
            reply = await (self._aboard(line, ask) if on_loop() else arun(self._aboard(line, ask)))
            return self._noted(reply, started)

    def _noted(self, reply: Reply, started: float) -> Reply:
        receipt = dspy.settings.get("ratchet_receipt")
        if receipt is not None:
            receipt.add(reply, self._clock() - started, text_of(reply))
        return reply

    async def _aboard(self, line: Line, ask: Ask) -> Reply:
        passage = self._board(line, ask)
        try:
            return await passage
        finally:
            passage.cancel()

    def _board(self, line: Line, ask: Ask) -> asyncio.Future[Reply]:
        """The reply that will come, from the journal or from the flight that fetches it; one that may be cancelled."""
        passage: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        flight = self._flights.get(ask.key)
        if flight is None:
            try:
                recorded = self._recorded(ask.key)
            except Halt as halt:
                passage.set_exception(halt)
                return passage
            if recorded is not None:
                watch_recorded(line, recorded)
                passage.set_result(recorded)
                return passage
            flight = self._flights[ask.key] = _Flight()
            task = asyncio.ensure_future(self._fly(flight, line, ask))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        flight.passengers.add(passage)
        passage.add_done_callback(flight.passengers.discard)
        return passage

    async def _fly(self, flight: _Flight, line: Line, ask: Ask) -> None:
        try:
            async with self._slots:
                flight.land(await self._send(flight, line, ask))
        except BaseException as error:  # whoever waits for the reply gets it, whatever it is
            flight.crash(error)
            if not isinstance(error, Exception | Halt):
                raise
        finally:
            del self._flights[ask.key]

    def _recorded(self, key: str) -> Reply | None:
        """A recorded reply, counted for this stage when it was this stage that asked first."""
        if self._halted is not None:
            raise Halt(self._halted)
        if key not in self._stage_of:
            return None
        try:
            reply = self._journal.find(key)
        except RatchetError as error:  # what was paid may be there: it must neither be paid again nor become a failure
            self.halt(error)
            raise Halt(error) from error
        if reply is None:
            return None
        self._admit(key)
        return reply

    # --- sending, with reservation, retries and settlement --------------------------------------------------------

    async def _send(self, flight: _Flight, line: Line, ask: Ask) -> Reply:
        line = line.in_charge(self._clock())
        if (inherited := self._inherited(ask.key)) is not None:
            watch_recorded(line, inherited)
            return inherited
        shared = self._shared_name(line, ask)
        if shared is None:
            return await self._persist(flight, line, ask, None)
        while shared in _SHARED_FLIGHTS:
            await asyncio.wait([_SHARED_FLIGHTS[shared]])
        if (borrowed := self._borrowed(shared, ask.key)) is not None:
            watch_recorded(line, borrowed)
            return borrowed
        landed = _SHARED_FLIGHTS[shared] = asyncio.get_running_loop().create_future()
        try:
            return await self._persist(flight, line, ask, shared)
        finally:
            del _SHARED_FLIGHTS[shared]
            landed.set_result(None)

    async def _persist(self, flight: _Flight, line: Line, ask: Ask, shared: str | None) -> Reply:
        """Send it until there is an answer, or no hope of one; share it as ``shared``."""
        with Watched(line, self._clock) as watched:
            for attempt in count():
                if not flight.passengers:
                    raise _NobodyWaitsError
                watched.retries = attempt
                try:
                    reply = await self._attempt(flight, line, ask)
                except (LMError, InvalidRequestError) as error:
                    wait = self._retries.pause(self.limits, line, error, attempt, flight.failing_since or self._clock())
                    if wait is None:
                        line, flight.failing_since, shared = self._successor(line, error), None, None
                        continue
                    until = self._clock() + wait
                    while self._halted is None and flight.passengers and (rest := until - self._clock()) > 0:
                        await asyncio.sleep(min(rest, 0.2))
                except LmUnavailable as error:
                    line, flight.failing_since, shared = self._successor(line, error), None, None
                else:
                    watched.reply = reply
                    # A "no" may be of this hour only, and is cheap to ask for again.
                    return self._record(reply, shared=None if "refused" in reply.response else shared)
        raise AssertionError("unreachable: retries are bounded in time")

    async def _attempt(self, flight: _Flight, line: Line, ask: Ask) -> Reply:
        """Send it once, when it is its turn.

        Raises:
            Halt: a limit does not allow it.
            LMError: there was no answer.
            LmUnavailable: the LM has not taken requests for too long.
        """
        pace = self._pace(line)
        tokens = line.tokens(ask.request) if pace.terms.tokens_per_minute is not None else 0.0
        async with pace.turn(self, tokens=tokens, patience_seconds=self.limits.retry_seconds) as turn:
            if not flight.passengers:  # they left while it stood in line
                raise _NobodyWaitsError
            stage, usd = await self._reserve(line, ask)
            began = self._clock()
            try:
                answer = await ask.send(line, patience=for_answer(self.limits, line))
            except LMInvalidRequestError as error:
                turn.succeeded(None)
                self._give_back(usd)
                if isinstance(error, LMUnsupportedModelError) or passes(line, error):
                    flight.failing_since = flight.failing_since or began
                    raise
                line.succeeded(self._clock(), refused=True)
                return _refusal(line, ask.key, stage, error, (self._clock() - began) * 1e3)
            except (LMError, InvalidRequestError) as error:
                _told(turn, error)
                self._give_back(usd)
                flight.failing_since = flight.failing_since or began
                raise
            seconds = self._clock() - began
            reply = _reply(line, ask.key, stage, answer, seconds * 1e3)
            turn.succeeded(seconds, reply.prompt_tokens + reply.completion_tokens)
            line.succeeded(self._clock())
            if reply.cost_usd is not None:  # what nobody can price may have cost all that was kept for it
                self._give_back(usd - reply.cost_usd)
            return reply

    def _pace(self, line: Line) -> Pace:
        place = (line.address, line.model)
        if place not in self._paces:
            self._paces[place] = PACES.of(*place, self._terms)
        return self._paces[place]

    @property
    def _terms(self) -> Terms:
        return Terms(
            concurrency=self.limits.concurrency,
            requests_per_minute=self.limits.requests_per_minute,
            tokens_per_minute=self.limits.tokens_per_minute,
        )

    def land(self) -> None:
        """Wait for what is under way, though nobody else does: it is paid for, and recorded when it comes."""

        async def landed() -> None:
            if self._tasks:
                await asyncio.wait(self._tasks, timeout=LANDING_SECONDS)

        run(landed())

    def close(self) -> None:
        """Leave the lines before the providers to others."""

        def leave() -> None:
            for pace in self._paces.values():
                pace.leave(self._terms)
            self._paces = {}

        house_loop().call_soon_threadsafe(leave)

    def _successor(self, line: Line, error: Exception) -> Line:
        """Who is asked when ``line`` is given up.

        Raises:
            Halt: there is nobody.
        """
        if line.stand_in is not None:
            line.give_up(self._clock())
            return line.stand_in
        cause = LmUnavailable(f"{line.name} did not answer: {error} ({type(error).__name__})")
        self.halt(cause)
        raise Halt(cause) from error

    def _shared_name(self, line: Line, ask: Ask) -> str | None:
        return content_hash([line.shared_as, ask.key]) if line.shared_as and ask.is_repeatable else None

    def _borrowed(self, shared: str, key: str) -> Reply | None:
        """A reply that another optimization had; it counts for the stage like any, and is not a call."""
        self._admit(key)
        try:
            reply = self._journal.borrow(shared, key, stage=self._stage)
        except RatchetError as error:
            self.halt(error)
            raise Halt(error) from error
        if reply is not None:
            self._note_stage(key, reply.stage)
        return reply

    def _inherited(self, key: str) -> Reply | None:
        """A reply of the optimization that this one was forked from; it counts for the stage, and is not a call."""
        try:
            found = self._heritage.find(key) if self._heritage is not None else None
            if found is None:
                return None
            self._admit(key)
            reply = replace(found, stage=self._stage)
            self._journal.record(reply)
        except RatchetError as error:
            self.halt(error)
            raise Halt(error) from error
        self._note_stage(key, reply.stage)
        return reply

    async def _reserve(self, line: Line, ask: Ask) -> tuple[str, float]:
        """Note the request before it is sent; the stage that asks for it, and the dollars that are kept for it.

        Raises:
            Halt: a limit does not allow it.
        """
        usd = line.reservation(ask.request) if line.price is not None else 0.0
        self._admit(ask.key)
        try:
            stage = self._take(usd)
        except Halt as halt:
            if line.trouble is None or not isinstance(halt.cause, BudgetSpent):
                raise
            # A dead LM's retries are what used the limit up: that is the cause to tell.
            cause = LmUnavailable(f"{line.name} does not answer: {line.trouble}; {halt.cause}, by retries")
            self.halt(cause)
            raise Halt(cause) from halt
        try:
            self._journal.reserve(ask.key, role=line.role, stage=stage, usd=usd)
            await self._journal.durable()
        except RatchetError as error:
            self.halt(error)
            raise Halt(error) from error
        return stage, usd

    def _record(self, reply: Reply, *, shared: str | None = None) -> Reply:
        """Keep a reply; a journal that cannot be written ends the optimization."""
        try:
            self._journal.record(reply, shared=shared)
        except RatchetError as error:
            self.halt(error)
            raise Halt(error) from error
        self._received += 1
        self._note_stage(reply.key, reply.stage)
        return reply


def _told(turn: Turn, error: Exception) -> None:
    """Tell the provider's pace what went wrong."""
    hint, status = getattr(error, "retry_after", None), getattr(error, "status", None)
    if isinstance(error, LMRateLimitError) or status in (503, 529):
        turn.throttled(hint)
    elif isinstance(error, LMTimeoutError):
        turn.timed_out()
    elif is_retryable_lm_error(error):
        turn.failed()


def _reply(line: Line, key: str, stage: str, answer: Answer, ms: float) -> Reply:
    return Reply(
        key=key,
        role=line.role,
        stage=stage,
        response=answer.response,
        prompt_tokens=answer.prompt_tokens,
        completion_tokens=answer.completion_tokens,
        cost_usd=answer.cost_usd,
        latency_ms=ms,
    )


def _refusal(line: Line, key: str, stage: str, error: LMInvalidRequestError, ms: float) -> Reply:
    """The LM's "no" to this very request, as a reply: it is recorded like one, and the request not sent again."""
    kind = "context" if isinstance(error, ContextWindowExceededError) else "request"
    return Reply(
        key=key,
        role=line.role,
        stage=stage,
        response={"refused": kind, "message": error.message, "model": error.model, "status": error.status},
        prompt_tokens=0,
        completion_tokens=0,
        cost_usd=0.0 if line.refusals_are_free else None,
        latency_ms=ms,
    )

"""The one door to every LM: ledger, journal, single flight, limits and retries, around DSPy's own engines.

A request that is equal in content, role, rollout and number within its call is sent once per optimization: its
recorded reply is given again ever after. That is what DSPy's own cache promises, and it makes every optimizer, an
opaque one too, resumable by running it again.
"""

from __future__ import annotations

import asyncio
import json
import math
import random
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import dspy
from dspy._vendor.lm15.serde import response_from_dict, response_to_dict
from dspy.lm15 import InvalidRequestError, Request, Response
from dspy.utils.exceptions import (
    ContextWindowExceededError,
    LMError,
    LMInvalidRequestError,
    LMTransportError,
    LMUnsupportedModelError,
    is_retryable_lm_error,
)

from ratchet.core.errors import BudgetSpent, Cancelled, LmUnavailable, RatchetError
from ratchet.core.evaluation import Usage
from ratchet.programs.journal import Journal, Reply
from ratchet.programs.line import Line, LmCall, current_call

LONGEST_WAIT = 1800.0
"""Seconds for an answer of an LM that is known to be alive: one in this process, on a machine that may be busy."""


class Halt(BaseException):
    """Ends whatever runs above a gateway that may send no more.

    Not an ``Exception``, because DSPy and user programs catch those and would turn a spent budget into a score of zero.
    """

    def __init__(self, cause: RatchetError) -> None:
        super().__init__(str(cause))
        self.cause = cause


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What may be spent on one optimization, and how patient the gateway is.

    Attributes:
        calls: Requests sent, retries included; None for no limit.
        usd: Dollars; None for no limit.
        deadline: A reading of ``time.monotonic`` after which nothing is sent; None for no limit.
        concurrency: Requests under way at once.
        timeout_seconds: Patience with one request of an LM that has answered before.
        first_timeout_seconds: Patience with an LM that has not answered yet.
        retry_seconds: How long to go on retrying one request.
        first_retry_seconds: The same while no connection could be made at all: the address is likely to be wrong.
    """

    calls: int | None = None
    usd: float | None = None
    deadline: float | None = None
    concurrency: int = 8
    timeout_seconds: float = 180.0
    first_timeout_seconds: float = 45.0
    retry_seconds: float = 40.0
    first_retry_seconds: float = 15.0


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


class _PilotGone(Exception):
    """The task that fetched a shared reply was cancelled."""


class Gateway:
    """Everything between the programs of one optimization and their LMs.

    Args:
        journal: Where requests and replies are noted; what it already holds is never paid again.
        limits: What may be spent.
    """

    def __init__(self, journal: Journal, limits: Limits, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.limits = limits
        self._journal = journal
        self._clock = clock
        self._lock = threading.Lock()
        self._flights: dict[str, Future[Reply]] = {}
        self._threads = threading.BoundedSemaphore(limits.concurrency)
        self._tasks: dict[asyncio.AbstractEventLoop, asyncio.Semaphore] = {}
        self._rng = random.Random(0)
        sent = journal.sent()
        self._calls = self._calls_before = sent.calls
        self._received = 0
        self._usd = sent.usd + sent.usd_lost
        self._halted: RatchetError | None = None
        self._stage = "start"
        self._allowance: int | None = None
        self._keep = (0, 0.0, 0.0)
        self._stage_of = journal.stages()
        self._past: set[str] = set()
        self._seen: set[str] = set()
        self._owed: set[str] = set()
        self._settled: set[str] = set()
        self._loose: set[str] = set()
        self._full = False
        self._exhausted = False
        self._stopped = threading.Event()

    # --- stages and the ledger -------------------------------------------------------------------------------------

    @property
    def calls(self) -> int:
        """Requests sent so far, over all processes."""
        return self._calls

    @property
    def sends_per_reply(self) -> float:
        """Requests this process had to send for one reply: 1 without retries, else a standard error more than seen."""
        again = self._calls - self._calls_before - self._received
        return 1.0 + (again + math.sqrt(again)) / max(1, self._received) if again > 0 else 1.0

    @property
    def stage(self) -> str:
        """The stage whose requests are now sent."""
        return self._stage

    @property
    def used(self) -> int:
        """Distinct replies this stage asked for first, whether paid now or before a crash."""
        return len(self._seen)

    def begin_stage(
        self,
        stage: str,
        *,
        allowance: int | None = None,
        keep_calls: int = 0,
        keep_usd: float = 0.0,
        keep_seconds: float = 0.0,
    ) -> None:
        """Begin a stage that may ask for ``allowance`` replies no earlier stage asked for, and must leave the rest.

        The allowance counts distinct replies, not sendings: a resumed stage ends where the undisturbed one would. What
        is in the journal of this stage, or of one that this process has not come to yet, counts as if it were new.
        """
        with self._lock:
            self._past.add(self._stage)
            self._stage, self._allowance = stage, allowance
            self._keep = (keep_calls, keep_usd, keep_seconds)
            self._seen, self._full, self._exhausted = set(), False, False
            self._settled = set()
            # An earlier process paid for these: they have their place before anything new has.
            self._owed = {key for key, asked in self._stage_of.items() if asked == stage}

    def left(self) -> int | None:
        """Replies the stage's allowance still holds; None for no allowance."""
        if self._allowance is None:
            return None
        return 0 if self._full else self._allowance - len(self._seen)

    @property
    def exhausted(self) -> bool:
        """Whether a request of this stage was refused because its budget is used up."""
        return self._exhausted

    def _refuse(self, why: str) -> Halt:
        self._exhausted = True
        return Halt(BudgetSpent(why))

    def recall(self, keys: tuple[str, ...]) -> None:
        """Count the replies that a stored evaluation used, as if it were run now.

        Raises:
            BudgetSpent: the stage's allowance does not hold them.
        """
        try:
            for key in keys:
                self._admit(key)
        except Halt as halt:
            raise halt.cause from halt

    def settle(self) -> None:
        """Say that nothing is under way: what was asked so far does not depend on which thread was faster."""
        with self._lock:
            self._settled = set(self._seen)

    def loosen(self) -> None:
        """Let what was asked after the last ``settle`` count anew when a later stage asks for it.

        Which requests got through when the budget ran out in the midst of parallel ones is chance. What follows must
        not depend on it, or a resumed optimization would end differently.
        """
        with self._lock:
            self._loose |= (self._seen | self._owed) - self._settled

    def halt(self, cause: RatchetError) -> None:
        """Send nothing more; whoever asks gets ``cause``."""
        self._halted = self._halted or cause
        self._stopped.set()

    def check(self) -> None:
        """Raise what the gateway was halted with, if it was.

        Raises:
            RatchetError: the cause.
        """
        if self._halted is not None:
            raise self._halted

    def cancel(self) -> None:
        """Stop on request."""
        self.halt(Cancelled("stopped on request"))

    # --- the two ways through --------------------------------------------------------------------------------------

    def fetch(self, line: Line, request: Request) -> Response:
        """The reply to ``request``, for a thread."""
        started = self._clock()
        key = line.key(request)
        with dspy.settings.get("ratchet_visit") or nullcontext():
            return self._hand_over(self._fetch(line, key, request), started)

    def _fetch(self, line: Line, key: str, request: Request) -> Reply:
        while True:
            flight, mine = self._board(key)
            if mine:
                try:
                    reply = self._recorded(key)
                    if reply is None:
                        with self._threads:
                            reply = self._send(line, key, request)
                except BaseException as error:
                    self._crash(key, flight, error)
                    raise
                self._land(key, flight, reply)
            try:
                return flight.result()
            except _PilotGone:
                continue

    async def afetch(self, line: Line, request: Request) -> Response:
        """The reply to ``request``, for a task."""
        started = self._clock()
        key = line.key(request)
        with dspy.settings.get("ratchet_visit") or nullcontext():
            return self._hand_over(await self._afetch(line, key, request), started)

    async def _afetch(self, line: Line, key: str, request: Request) -> Reply:
        while True:
            flight, mine = self._board(key)
            if mine:
                try:
                    reply = self._recorded(key)
                    if reply is None:
                        async with self._slots():
                            reply = await self._asend(line, key, request)
                except BaseException as error:
                    self._crash(key, flight, error)
                    raise
                self._land(key, flight, reply)
            try:
                return await asyncio.wrap_future(flight)
            except _PilotGone:
                continue

    def _slots(self) -> asyncio.Semaphore:
        loop = asyncio.get_running_loop()
        return self._tasks.setdefault(loop, asyncio.Semaphore(self.limits.concurrency))

    def _recorded(self, key: str) -> Reply | None:
        """A recorded reply, counted for this stage when it was this stage that asked first."""
        if self._halted is not None:
            raise Halt(self._halted)
        reply = self._journal.find(key)
        if reply is not None:
            self._admit(key)
        return reply

    def _admit(self, key: str) -> None:
        """Count a reply against the stage's allowance, unless an earlier stage has it already."""
        with self._lock:
            if key in self._seen or (self._stage_of.get(key) in self._past and key not in self._loose):
                return
            places = len(self._seen) + (0 if key in self._owed else len(self._owed))
            if self._allowance is not None and places >= self._allowance:
                self._full = True
                raise self._refuse(f"{self._stage} used its {self._allowance} calls")
            self._seen.add(key)
            self._owed.discard(key)
            self._loose.discard(key)

    def _board(self, key: str) -> tuple[Future[Reply], bool]:
        """The flight that fetches ``key``, and whether the caller is its pilot."""
        with self._lock:
            if flight := self._flights.get(key):
                return flight, False
            flight = self._flights[key] = Future()
            flight.set_running_or_notify_cancel()  # a passenger who gives up must not cancel it for the others
            return flight, True

    def _land(self, key: str, flight: Future[Reply], reply: Reply) -> None:
        with self._lock:
            del self._flights[key]
        flight.set_result(reply)

    def _crash(self, key: str, flight: Future[Reply], error: BaseException) -> None:
        """Tell the passengers what went wrong; when only the pilot was called off, one of them takes over."""
        with self._lock:
            del self._flights[key]
        flight.set_exception(error if isinstance(error, Exception | Halt) else _PilotGone())

    def _hand_over(self, reply: Reply, started: float) -> Response:
        refused = reply.response.get("refused")
        response = None if refused else response_from_dict(dict(reply.response))
        receipt = dspy.settings.get("ratchet_receipt")
        if receipt is not None:
            receipt.add(reply, self._clock() - started, (response.message.text if response else "") or "")
        if response is None:
            kind = ContextWindowExceededError if refused == "context" else LMInvalidRequestError
            what = {name: reply.response.get(name) for name in ("message", "model", "status")}
            raise kind(**what)
        return response

    # --- sending, with reservation, retries and settlement --------------------------------------------------------

    def _reserve(self, line: Line, key: str, request: Request) -> str:
        """Note the request before it is sent; the stage that asks for it.

        Raises:
            Halt: a limit does not allow it.
        """
        usd = line.reservation(request)
        self._admit(key)
        with self._lock:
            limits = self.limits
            keep_calls, keep_usd, keep_seconds = self._keep
            if self._halted is not None:
                raise Halt(self._halted)
            if limits.calls is not None and self._calls + 1 > limits.calls - keep_calls:
                raise self._at_limit(line, f"of the limit of {limits.calls} calls {keep_calls} are kept")
            if limits.usd is not None and self._usd + usd > limits.usd - keep_usd:
                raise self._at_limit(line, f"of the limit of ${limits.usd:.4f} ${keep_usd:.4f} is kept")
            if limits.deadline is not None and self._clock() > limits.deadline - keep_seconds:
                raise self._at_limit(line, f"of the time limit {keep_seconds:.0f} s are kept")
            stage = self._stage
            self._calls += 1
            self._usd += usd
        self._note(lambda: self._journal.reserve(key, role=line.role, stage=stage, usd=usd))
        return stage

    def _at_limit(self, line: Line, why: str) -> Halt:
        """A limit was reached; when a dead LM's retries were what used it up, that is the cause to tell."""
        if line.trouble is None:
            return self._refuse(f"{why} and the rest is used")
        cause = LmUnavailable(f"{line.name} does not answer: {line.trouble}; {why} and retries used the rest")
        self.halt(cause)
        return Halt(cause)

    def _settle(
        self, line: Line, key: str, stage: str, request: Request, response: Response, cost: float | None, ms: float
    ) -> Reply:
        reply = Reply(
            key=key,
            role=line.role,
            stage=stage,
            response=_sayable(response_to_dict(response)),
            prompt_tokens=response.usage.input_tokens or 0,
            completion_tokens=response.usage.output_tokens or 0,
            cost_usd=line.cost(response, cost),
            latency_ms=ms,
        )
        with self._lock:
            self._usd += (reply.cost_usd or 0.0) - line.reservation(request)
        return self._record(reply)

    def _refusal(
        self, line: Line, key: str, stage: str, request: Request, error: LMInvalidRequestError, ms: float
    ) -> Reply:
        """The LM's "no" to this very request, as a reply: it is recorded like one, and the request not sent again."""
        kind = "context" if isinstance(error, ContextWindowExceededError) else "request"
        reply = Reply(
            key=key,
            role=line.role,
            stage=stage,
            response={"refused": kind, "message": error.message, "model": error.model, "status": error.status},
            prompt_tokens=0,
            completion_tokens=0,
            cost_usd=0.0,
            latency_ms=ms,
        )
        with self._lock:
            self._usd -= line.reservation(request)
        return self._record(reply)

    def _record(self, reply: Reply) -> Reply:
        self._note(lambda: self._journal.record(reply))
        with self._lock:
            self._received += 1
            self._stage_of.setdefault(reply.key, reply.stage)
        return reply

    def _release(self, line: Line, request: Request) -> None:
        """Give back the dollars of a request that was refused; its call stays counted."""
        with self._lock:
            self._usd -= line.reservation(request)

    def _note(self, write: Callable[[], None]) -> None:
        """Write to the journal; a journal that cannot be written ends the optimization."""
        try:
            write()
        except RatchetError as error:
            self.halt(error)
            raise Halt(error) from error

    def _pause(self, line: Line, error: Exception, attempt: int, since: float) -> float:
        """Seconds to wait before the next try.

        Raises:
            Halt: the LM is given up.
        """
        line.failed(error)
        hint = getattr(error, "retry_after", None)
        # A hint of 0 is not taken at its word for ever: it would be a thousand requests in a second.
        first, growth = (0.5, 2**attempt) if hint is None else (0.01, 2 ** min(attempt, 12))
        wait: float = max(hint or 0.0, min(8.0, first * growth) * self._rng.uniform(0.75, 1.25))
        unreached = not line.answered and isinstance(error, LMTransportError)
        patience = min(self.limits.retry_seconds, self.limits.first_retry_seconds if unreached else math.inf)
        if not is_retryable_lm_error(error) or self._clock() + wait - since > patience:
            cause = LmUnavailable(f"{line.name} did not answer: {error} ({type(error).__name__})")
            self.halt(cause)
            raise Halt(cause) from error
        return wait

    def _send(self, line: Line, key: str, request: Request) -> Reply:
        since = self._clock()
        for attempt in range(1_000):
            stage = self._reserve(line, key, request)
            began = self._clock()
            try:
                response, cost = line.send(request, patience=self._patience(line))
            except LMInvalidRequestError as error:
                if isinstance(error, LMUnsupportedModelError):
                    self._pause(line, error, attempt, since)
                line.succeeded()
                return self._refusal(line, key, stage, request, error, (self._clock() - began) * 1e3)
            except (LMError, InvalidRequestError) as error:
                self._release(line, request)
                self._stopped.wait(self._pause(line, error, attempt, since))
            else:
                line.succeeded()
                return self._settle(line, key, stage, request, response, cost, (self._clock() - began) * 1e3)
        raise AssertionError("unreachable: retries are bounded in time")

    async def _asend(self, line: Line, key: str, request: Request) -> Reply:
        since = self._clock()
        for attempt in range(1_000):
            stage = self._reserve(line, key, request)
            began = self._clock()
            try:
                response, cost = await line.asend(request, patience=self._patience(line))
            except LMInvalidRequestError as error:
                if isinstance(error, LMUnsupportedModelError):
                    self._pause(line, error, attempt, since)
                line.succeeded()
                return self._refusal(line, key, stage, request, error, (self._clock() - began) * 1e3)
            except (LMError, InvalidRequestError) as error:
                self._release(line, request)
                until = self._clock() + self._pause(line, error, attempt, since)
                while not self._stopped.is_set() and (rest := until - self._clock()) > 0:
                    await asyncio.sleep(min(rest, 0.2))
            else:
                line.succeeded()
                return self._settle(line, key, stage, request, response, cost, (self._clock() - began) * 1e3)
        raise AssertionError("unreachable: retries are bounded in time")

    def _patience(self, line: Line) -> float:
        if line.alive:
            return max(self.limits.timeout_seconds, LONGEST_WAIT)
        return self.limits.timeout_seconds if line.answered else self.limits.first_timeout_seconds


def _sayable(response: dict[str, Any]) -> dict[str, Any]:
    """``response`` without halves of surrogate pairs: no LM takes them in a prompt, and no signature holds them."""
    text = json.dumps(response, ensure_ascii=False, default=str)
    try:
        text.encode()
    except UnicodeEncodeError:
        return dict(json.loads(text.encode(errors="replace")))
    return response


class _Door:
    """The engine DSPy calls in a thread; what DSPy asks of an engine's capabilities is answered by the line."""

    def __init__(self, gateway: Gateway, line: Line) -> None:
        self.gateway = gateway
        self.line = line

    def __deepcopy__(self, memo: object) -> _Door:
        return self

    def __getattr__(self, name: str) -> Any:
        if name.startswith("support"):
            return getattr(self.line, name)
        raise AttributeError(name)

    def complete(self, request: Request) -> Response:
        """The reply to ``request``."""
        return self.gateway.fetch(self.line, request)

    def close(self) -> None:
        """Nothing to close: connections belong to the line's own LM."""


class _AsyncDoor:
    """The engine DSPy awaits."""

    def __init__(self, gateway: Gateway, line: Line) -> None:
        self.gateway = gateway
        self.line = line

    def __deepcopy__(self, memo: object) -> _AsyncDoor:
        return self

    async def complete(self, request: Request) -> Response:
        """The reply to ``request``."""
        return await self.gateway.afetch(self.line, request)

    async def aclose(self) -> None:
        """Nothing to close."""


class GatewayLM(dspy.LM):  # type: ignore[misc]
    """An LM as programs and DSPy's optimizers see it: it behaves as ``lm`` and goes through ``gateway``."""

    def __init__(self, gateway: Gateway, lm: dspy.BaseLM, line: Line) -> None:
        from dspy.clients.backend_selection import CLIENT_KEYS

        kwargs = {name: value for name, value in lm.kwargs.items() if name not in CLIENT_KEYS}
        if "max_completion_tokens" in kwargs:
            kwargs["max_tokens"] = kwargs.pop("max_completion_tokens")
        super().__init__(
            lm.model,
            model_type=getattr(lm, "model_type", "chat"),
            cache=False,
            num_retries=0,
            engine=_Door(gateway, line),
            async_engine=_AsyncDoor(gateway, line),
            **kwargs,
        )

    def __deepcopy__(self, memo: object) -> GatewayLM:
        return self

    def __call__(self, prompt: Any = None, **kwargs: Any) -> Any:
        """Call the LM, noting the rollout it was called with."""
        token = current_call.set(LmCall(rollout={**self.kwargs, **kwargs}.get("rollout_id")))
        try:
            return super().__call__(prompt, **kwargs)
        finally:
            current_call.reset(token)

    async def acall(self, prompt: Any = None, **kwargs: Any) -> Any:
        """Await the LM, noting the rollout it was called with."""
        token = current_call.set(LmCall(rollout={**self.kwargs, **kwargs}.get("rollout_id")))
        try:
            return await super().acall(prompt, **kwargs)
        finally:
            current_call.reset(token)

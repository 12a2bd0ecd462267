"""What one optimization may spend, and what it has spent: calls and dollars in all, replies by stage."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from ratchet.core.errors import BudgetSpent, Cancelled, RatchetError
from ratchet.programs.journal import Journal


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
        requests_per_minute: To one LM, by all optimizations of the process; None for no limit.
        tokens_per_minute: The same for tokens of prompts and answers together.
        timeout_seconds: Patience with one request of an LM that has answered before.
        first_timeout_seconds: Patience with an LM that has not answered yet.
        retry_seconds: How long to go on retrying one request while the LM answers no other either.
        first_retry_seconds: The same while no connection could be made at all: the address is likely to be wrong.
    """

    calls: int | None = None
    usd: float | None = None
    deadline: float | None = None
    concurrency: int = 8
    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None
    timeout_seconds: float = 180.0
    first_timeout_seconds: float = 45.0
    retry_seconds: float = 40.0
    first_retry_seconds: float = 30.0


class Ledger:
    """The account of one optimization.

    Args:
        journal: What was spent by processes before this one.
        limits: What may be spent.
    """

    def __init__(self, journal: Journal, limits: Limits, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.limits = limits
        self._clock = clock
        self._lock = threading.Lock()
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

    @property
    def exhausted(self) -> bool:
        """Whether a request of this stage was refused because its budget is used up."""
        return self._exhausted

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

    def check(self) -> None:
        """Raise what the account was halted with, if it was.

        Raises:
            RatchetError: the cause.
        """
        if self._halted is not None:
            raise self._halted

    @property
    def seconds_left(self) -> float | None:
        """Until this stage's time is over; None for no limit of time."""
        return None if self.limits.deadline is None else self.limits.deadline - self._keep[2] - self._clock()

    def out_of_time(self) -> BudgetSpent:
        """What is told of work that this stage has no more time for."""
        self._exhausted = True
        return BudgetSpent(_rest(f"of the time limit {self._keep[2]:.0f} s are kept"))

    def cancel(self) -> None:
        """Stop on request."""
        self.halt(Cancelled("stopped on request"))

    def _refuse(self, why: str) -> Halt:
        self._exhausted = True
        return Halt(BudgetSpent(why))

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

    def _take(self, usd: float) -> str:
        """Count a request that is about to be sent, of at most ``usd`` dollars; the stage that pays.

        Raises:
            Halt: a limit does not allow it.
        """
        with self._lock:
            limits = self.limits
            keep_calls, keep_usd, _ = self._keep
            if self._halted is not None:
                raise Halt(self._halted)
            if limits.calls is not None and self._calls + 1 > limits.calls - keep_calls:
                raise self._refuse(_rest(f"of the limit of {limits.calls} calls {keep_calls} are kept"))
            if limits.usd is not None and self._usd + usd > limits.usd - keep_usd:
                raise self._refuse(_rest(f"of the limit of ${limits.usd:.4f} ${keep_usd:.4f} is kept"))
            if (left := self.seconds_left) is not None and left < 0:
                raise Halt(self.out_of_time())
            self._calls += 1
            self._usd += usd
            return self._stage

    def _give_back(self, usd: float) -> None:
        """Dollars that were reserved and not spent; the call stays counted."""
        with self._lock:
            self._usd -= usd

    def _note_stage(self, key: str, stage: str) -> None:
        with self._lock:
            self._stage_of.setdefault(key, stage)


def _rest(why: str) -> str:
    return f"{why} and the rest is used"

"""Parts that decide how fast one provider is asked: window, bucket, gate, breaker, round robin.

They only decide: they hold no timer and are told the time. ``ratchet.programs.pace`` puts them together.

References:
    Chiu, Jain, "Analysis of the Increase and Decrease Algorithms for Congestion Avoidance in Computer Networks",
        Computer Networks and ISDN Systems 17, 1989: why additive increase and multiplicative decrease.
    Brakmo, Peterson, "TCP Vegas: End to End Congestion Avoidance on a Global Internet", IEEE JSAC 13(8), 1995, and
        Netflix's concurrency-limits (Gradient2Limit), 2018: latency above the best seen means a queue.
    Nagle, "On Packet Switches with Infinite Storage", RFC 970, 1985: fair queueing by round robin.
    Nygard, "Release It!", 2007, section 5.2: the circuit breaker.
"""

from __future__ import annotations

import math
import random
from collections import OrderedDict, deque
from collections.abc import Hashable
from typing import Generic, Literal, TypeVar

from ratchet.core.errors import BadRequest

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

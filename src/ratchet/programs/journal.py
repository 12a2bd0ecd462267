"""What the gateway writes down: each request before it is sent, each reply once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

Role = Literal["task", "reflection", "judge"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """One recorded answer of an LM.

    Attributes:
        key: Hash of the request's content, model, role, rollout and number within its call.
        role: Which LM answered.
        stage: The stage of the optimization that asked first.
        response: The response as JSON data.
        cost_usd: Dollars, or None when the price is not known.
        latency_ms: From sending to the whole answer, without waiting in our own queue.
    """

    key: str
    role: Role
    stage: str
    response: Mapping[str, Any]
    prompt_tokens: int
    completion_tokens: int
    cost_usd: float | None
    latency_ms: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Sent:
    """What left the house so far, over all processes that worked on one optimization.

    Attributes:
        calls: Requests sent, retries and lost ones included.
        recorded: Replies recorded.
        borrowed: Replies among them that another optimization had paid for. Tokens and dollars do not count them.
        usd: Dollars of recorded replies whose price is known.
        usd_lost: Dollars reserved for requests whose reply never came.
        unpriced: Recorded replies whose price is not known.
        by_stage: Calls per stage.
    """

    calls: int = 0
    recorded: int = 0
    borrowed: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    usd: float = 0.0
    usd_lost: float = 0.0
    unpriced: int = 0
    by_stage: Mapping[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Fork:
    """Where an optimization comes from that was forked from another one.

    Attributes:
        of: The other one.
        stages: The stages of the other one whose replies are used again; None for all.
    """

    of: str
    stages: tuple[str, ...] | None = None

    def to_json(self) -> dict[str, Any]:
        """As JSON data."""
        return {"of": self.of, "stages": None if self.stages is None else list(self.stages)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Fork:
        """The fork that ``to_json`` came from."""
        return cls(of=data["of"], stages=None if data["stages"] is None else tuple(data["stages"]))


class Heritage(Protocol):
    """What another optimization recorded, and this one may use."""

    def find(self, key: str) -> Reply | None:
        """The reply that was recorded there as ``key``, if there is one."""


class Journal(Protocol):
    """The journal of one optimization.

    What is noted is kept in order: a crash loses at most what was noted after the last ``durable``, and never something
    earlier than what it keeps.

    Raises:
        RatchetError: by any method, when something noted before could not be kept.
    """

    def find(self, key: str) -> Reply | None:
        """The recorded reply, if there is one."""

    def reserve(self, key: str, *, role: Role, stage: str, usd: float) -> None:
        """Note that a request is about to be sent; called again for each retry."""

    def record(self, reply: Reply, *, shared: str | None = None) -> None:
        """Keep a reply; its reservation is settled. One without a reservation was paid for by another optimization.

        Args:
            shared: The name under which other optimizations may find it; None for not at all.
        """

    def borrow(self, shared: str, key: str, *, stage: str) -> Reply | None:
        """A reply that another optimization shared, kept here as ``key`` from now on, as one that was never sent."""

    async def durable(self) -> None:
        """Wait until everything noted so far would survive a crash."""

    def stages(self) -> dict[str, str]:
        """Keys of all recorded replies, and the stage that asked first."""

    def sent(self) -> Sent:
        """Totals over everything noted so far."""

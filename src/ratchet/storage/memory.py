"""The archive in memory: for tests, and for trying a request before it is stored."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

from ratchet.core.errors import UnknownName
from ratchet.core.evaluation import Evaluation
from ratchet.core.problem import Candidate, Example
from ratchet.engine.archive import Event, Optimization
from ratchet.programs.journal import Reply, Role, Sent


@dataclass
class _Request:
    role: Role
    stage: str
    sends: int = 0
    usd: float = 0.0
    reply: Reply | None = None


@dataclass
class MemoryJournal:
    """The replies of one optimization."""

    requests: dict[str, _Request] = field(default_factory=dict)
    shared: dict[str, Reply] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False, compare=False)

    def find(self, key: str) -> Reply | None:
        """The recorded reply, if there is one."""
        request = self.requests.get(key)
        return request.reply if request else None

    def reserve(self, key: str, *, role: Role, stage: str, usd: float) -> None:
        """Note that a request is about to be sent; called again for each retry."""
        with self._lock:
            request = self.requests.setdefault(key, _Request(role, stage))
            request.sends += 1
            request.usd += usd

    def record(self, reply: Reply, *, shared: str | None = None) -> None:
        """Keep a reply; its reservation is settled."""
        self.requests.setdefault(reply.key, _Request(reply.role, reply.stage)).reply = reply
        if shared is not None:
            self.shared[shared] = reply

    def borrow(self, shared: str, key: str, *, stage: str) -> Reply | None:
        """A reply that another optimization shared, kept here as ``key`` from now on."""
        found = self.shared.get(shared)
        if found is None or "refused" in found.response:
            return None
        reply = replace(found, key=key, stage=stage)
        with self._lock:
            self.requests.setdefault(key, _Request(reply.role, stage)).reply = reply
        return reply

    async def durable(self) -> None:
        """Nothing here survives a crash, and nothing is late."""

    def stages(self) -> dict[str, str]:
        """Keys of all recorded replies, and the stage that asked first."""
        with self._lock:
            return {key: request.stage for key, request in self.requests.items() if request.reply is not None}

    def sent(self) -> Sent:
        """Totals over everything noted so far."""
        with self._lock:
            requests = list(self.requests.values())
        recorded = [request for request in requests if request.reply is not None]
        got = [request.reply for request in recorded if request.reply is not None and request.sends]
        by_stage: dict[str, int] = {}
        for request in requests:
            by_stage[request.stage] = by_stage.get(request.stage, 0) + request.sends
        return Sent(
            calls=sum(by_stage.values()),
            recorded=len(recorded),
            borrowed=len(recorded) - len(got),
            prompt_tokens=sum(reply.prompt_tokens for reply in got),
            completion_tokens=sum(reply.completion_tokens for reply in got),
            usd=sum(reply.cost_usd or 0.0 for reply in got),
            usd_lost=sum(request.usd for request in requests if request.reply is None),
            unpriced=sum(reply.cost_usd is None for reply in got),
            by_stage=by_stage,
        )


@dataclass
class MemoryNotebook:
    """All that is kept of one optimization."""

    optimization: Optimization | None = None
    journal: MemoryJournal = field(default_factory=MemoryJournal)
    _examples: dict[str, tuple[Example, ...]] = field(default_factory=dict)
    _candidates: dict[str, tuple[Candidate, str]] = field(default_factory=dict)
    _evaluations: dict[tuple[str, str, int], tuple[Evaluation, str]] = field(default_factory=dict)
    _events: list[Event] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False, compare=False)

    def claimed(self) -> AbstractContextManager[None]:
        """Nothing to hold: no other process sees it."""
        return nullcontext()

    def keep_examples(self, splits: Mapping[str, Sequence[Example]]) -> None:
        """Keep the data as it was split; a second call changes nothing."""
        if not self._examples:
            self._examples = {name: tuple(rows) for name, rows in splits.items() if rows}

    def examples(self) -> dict[str, tuple[Example, ...]]:
        """The splits that were kept, in order."""
        return dict(self._examples)

    def keep_candidate(self, candidate: Candidate, *, stage: str) -> None:
        """Keep a candidate the first time it is seen."""
        self._candidates.setdefault(candidate.key, (candidate, stage))

    def candidates(self) -> list[tuple[Candidate, str]]:
        """Candidates and the stage that made them, in the order they were first seen."""
        return list(self._candidates.values())

    def keep_evaluation(self, evaluation: Evaluation, *, stage: str) -> None:
        """Keep an evaluation; one that is already there stays as it is."""
        key = (evaluation.candidate, evaluation.example.key, evaluation.repeat)
        self._evaluations.setdefault(key, (evaluation, stage))

    def evaluations(self) -> Iterable[tuple[Evaluation, str]]:
        """Evaluations and the stage that first asked for them, in the order they were kept."""
        return list(self._evaluations.values())

    def note(self, event: Event) -> None:
        """Append to the events."""
        self._events.append(event)

    def events(self, *, after: int = 0) -> list[tuple[int, Event]]:
        """Numbered events, from 1."""
        return [(number, event) for number, event in enumerate(self._events, start=1) if number > after]

    def add_seconds(self, seconds: float) -> None:
        """Add wall time spent on it."""
        with self._lock:
            if self.optimization is not None:
                self.optimization = replace(self.optimization, seconds=self.optimization.seconds + seconds)

    def flush(self) -> None:
        """Nothing here is late."""

    def set_status(self, status: str, *, error: str = "", result: Mapping[str, Any] | None = None) -> None:
        """Move it to another status."""
        with self._lock:
            if self.optimization is not None:
                self.optimization = replace(self.optimization, status=status, error=error, result=result)


@dataclass
class MemoryArchive:
    """All optimizations, for as long as the process lives."""

    notebooks: dict[str, MemoryNotebook] = field(default_factory=dict)

    def start(self, optimization: Optimization) -> MemoryNotebook:
        """Begin a new optimization."""
        self.notebooks[optimization.id] = MemoryNotebook(optimization)
        return self.notebooks[optimization.id]

    def open(self, optimization_id: str) -> MemoryNotebook:
        """The notebook of one there is."""
        return self.notebooks[self.find(optimization_id).id]

    def find(self, optimization_id: str) -> Optimization:
        """One optimization; a unique beginning of its id will do."""
        fitting = [key for key in self.notebooks if optimization_id and key.startswith(optimization_id)]
        fitting = [optimization_id] if optimization_id in fitting else fitting
        if len(fitting) != 1:
            problem = "more than one optimization begins" if fitting else "there is no optimization"
            raise UnknownName(f"{problem} with id {optimization_id!r}; `ratchet list` shows them")
        found = self.notebooks[fitting[0]].optimization
        assert found is not None
        return found

    def list(self, *, limit: int = 50) -> list[Optimization]:
        """The newest first."""
        stored = [each.optimization for each in self.notebooks.values() if each.optimization is not None]
        return sorted(stored, key=lambda each: each.created_at, reverse=True)[:limit]

"""What the engine keeps of an optimization, and how it asks for it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Protocol

from ratchet.core.evaluation import Evaluation
from ratchet.core.problem import Candidate, Example
from ratchet.programs.journal import Journal


@dataclass(frozen=True, slots=True, kw_only=True)
class Optimization:
    """An optimization as it is stored.

    Attributes:
        id: Its name.
        status: See ``ratchet.core.result.Status``.
        request: All that is needed to carry it out again: target, data files, options.
        result: The result's JSON, once there is one.
        error: Why it failed, in a sentence.
    """

    id: str
    status: str
    created_at: datetime
    request: Mapping[str, Any]
    result: Mapping[str, Any] | None = None
    error: str = ""
    seconds: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something that happened, in order."""

    kind: str
    payload: Mapping[str, Any] = field(default_factory=dict)


class Notebook(Protocol):
    """All that is kept of one optimization, in order: a crash loses at most a tail of what was not flushed yet.

    A status is flushed when ``set_status`` returns, with all that was kept before it.
    """

    @property
    def journal(self) -> Journal:
        """Requests and replies."""

    def claimed(self) -> AbstractContextManager[None]:
        """Hold it for this process; let go at the end, also when the process is killed.

        Raises:
            InUse: another process holds it.
        """

    def keep_examples(self, splits: Mapping[str, Sequence[Example]]) -> None:
        """Keep the data as it was split; a second call changes nothing."""

    def examples(self) -> dict[str, tuple[Example, ...]]:
        """The splits that were kept, in order; empty when there are none."""

    def keep_candidate(self, candidate: Candidate, *, stage: str) -> None:
        """Keep a candidate the first time it is seen."""

    def candidates(self) -> list[tuple[Candidate, str]]:
        """Candidates and the stage that made them, in the order they were first seen."""

    def keep_evaluation(self, evaluation: Evaluation, *, stage: str) -> None:
        """Keep an evaluation; one that is already there stays as it is."""

    def evaluations(self) -> Iterable[tuple[Evaluation, str]]:
        """Evaluations and the stage that first asked for them, in the order they were kept."""

    def note(self, event: Event) -> None:
        """Append to the events."""

    def events(self, *, after: int = 0) -> list[tuple[int, Event]]:
        """Numbered events, from 1."""

    def add_seconds(self, seconds: float) -> None:
        """Add wall time spent on it."""

    def flush(self) -> None:
        """Wait until everything kept so far would survive a crash.

        Raises:
            StorageUnavailable: it cannot be kept.
        """

    def set_status(self, status: str, *, error: str = "", result: Mapping[str, Any] | None = None) -> None:
        """Move it to another status."""


class Archive(Protocol):
    """All optimizations."""

    def start(self, optimization: Optimization) -> Notebook:
        """Begin a new one."""

    def open(self, optimization_id: str) -> Notebook:
        """The notebook of one there is.

        Raises:
            UnknownName: there is none with this id.
        """

    def find(self, optimization_id: str) -> Optimization:
        """One optimization; a unique beginning of its id will do.

        Raises:
            UnknownName: there is none, or more than one.
        """

    def list(self, *, limit: int = 50) -> list[Optimization]:
        """The newest first."""

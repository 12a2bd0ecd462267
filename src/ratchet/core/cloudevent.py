"""What happened, in the words of CloudEvents 1.0."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

BOOKKEEPING = ("done", "turn")
"""Events that only a resumed search reads: the order in which its replies came, the answers of a remote algorithm."""

OUTCOMES: Mapping[str, str] = dict.fromkeys(("improved", "no_proven_gain", "declined", "evaluated"), "completed")
"""What an optimization's last event is called, where that is not its status."""

_PAST: Mapping[str, str] = {
    "cancel": "cancelled",
    "rollback": "rolled_back",
    "skip": "skipped",
    "begin": "begun",
    "run": "run",
    "keep": "kept",
    "forget": "forgotten",
    "withdraw": "withdrawn",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class CloudEvent:
    """One event; whoever gets it twice knows it by its ``id``.

    Attributes:
        id: The same whenever and wherever this event is sent.
        source: Which installation tells it.
        type: Such as ``ratchet.optimization.completed``.
        subject: What it is about: an optimization's id, or the name of a thing.
        time: When it happened, RFC 3339 in UTC.
        tenant: Whose it is.
        sequence: Ascending within a subject's events of one kind.
        data: What is told.

    References:
        CloudEvents 1.0.2, sections 2 and 3 (JSON format); its extension "sequence".
    """

    id: str
    source: str
    type: str
    subject: str
    time: str
    tenant: str
    sequence: int
    data: Mapping[str, Any]

    def to_json(self) -> dict[str, Any]:
        """The event in structured mode."""
        return {
            "specversion": "1.0",
            "id": self.id,
            "source": self.source,
            "type": self.type,
            "subject": self.subject,
            "time": self.time,
            "datacontenttype": "application/json",
            "tenant": self.tenant,
            "sequence": str(self.sequence),
            "sequencetype": "Integer",
            "data": dict(self.data),
        }


def type_of_event(kind: str, payload: Mapping[str, Any]) -> str:
    """The type of an optimization's event.

    >>> type_of_event("best", {}), type_of_event("ended", {"status": "no_proven_gain"})
    ('ratchet.optimization.best', 'ratchet.optimization.completed')
    """
    if kind == "ended":
        status = str(payload.get("status"))
        kind = OUTCOMES.get(status, status)
    return f"ratchet.optimization.{kind}"


def type_of_action(action: str) -> str:
    """The type of an entry of the audit trail.

    >>> type_of_action("dataset.create"), type_of_action("version.rollback"), type_of_action("algorithm.withdraw")
    ('ratchet.dataset.created', 'ratchet.version.rolled_back', 'ratchet.algorithm.withdrawn')
    """
    thing, _, verb = action.partition(".")
    return f"ratchet.{thing}.{_PAST.get(verb) or verb + ('d' if verb.endswith('e') else 'ed')}"


def fits(type: str, patterns: Iterable[str]) -> bool:
    """Whether a type is one of those asked for.

    >>> fits("ratchet.optimization.completed", ["ratchet.optimization.*"])
    True
    """
    return any(fnmatchcase(type, pattern) for pattern in patterns)

"""Who may do what."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

Role = Literal["viewer", "developer", "operator", "admin"]
"""A viewer reads; a developer also optimizes; an operator also promotes, erases, registers algorithms, and reads the
audit trail and the metrics; an admin also makes and revokes keys."""

ROLES: tuple[Role, ...] = get_args(Role)


def allows(role: Role, needed: Role) -> bool:
    """Whether ``role`` may do what ``needed`` may.

    >>> allows("operator", "developer"), allows("viewer", "developer")
    (True, False)
    """
    return ROLES.index(role) >= ROLES.index(needed)


@dataclass(frozen=True, slots=True, kw_only=True)
class Actor:
    """Whoever asks for something.

    Attributes:
        name: As the audit trail tells it.
        tenant: Whose things they see; nobody sees another tenant's.
        role: What they may do.
        origin: Where they ask from: an address, or this machine.
    """

    name: str
    tenant: str
    role: Role
    origin: str

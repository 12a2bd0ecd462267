"""How a secret that must be read again is stored."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Sealer:
    """Makes of a secret what is stored, and of that the secret again.

    Attributes:
        seal: From the secret to what is stored.
        open: The way back.
    """

    seal: Callable[[str], str]
    open: Callable[[str], str]


PLAIN = Sealer(seal=str, open=str)
"""Nothing is done: whoever reads the database reads the secret."""

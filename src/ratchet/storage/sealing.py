"""How a secret that must be read again is stored."""

from __future__ import annotations

import base64
from collections.abc import Callable
from dataclasses import dataclass

from ratchet.storage.vault import Vault


@dataclass(frozen=True, slots=True, kw_only=True)
class Sealer:
    """Makes of a secret what is stored, and of that the secret again.

    Attributes:
        seal: From the secret to what is stored.
        open: The way back.
    """

    seal: Callable[[str], str]
    open: Callable[[str], str]


MARK = "sealed:"
"""How a sealed secret begins; no secret of a webhook does."""


def sealer(vault: Vault, owner: str, place: str) -> Sealer:
    """Seals in a text column what is of the whole installation; its data key is made now, not within a transaction.

    Args:
        vault: Has the data key.
        owner: Whose it is, such as ``installation:webhooks``.
        place: Table and column.
    """
    vault.writing(owner, whole=False)

    def seal(secret: str) -> str:
        return MARK + base64.b64encode(vault.seal(owner, secret, place)).decode()

    def unseal(stored: str) -> str:
        if not stored.startswith(MARK):
            return stored  # from before there was encryption
        return vault.open(owner, base64.b64decode(stored.removeprefix(MARK)), place)

    return Sealer(seal=seal, open=unseal)


PLAIN = Sealer(seal=str, open=str)
"""Nothing is done: whoever reads the database reads the secret."""

"""A small, honest task to try Ratchet on: sort a shop's mail. See ``make_support_mail`` for how the data was made."""

from __future__ import annotations

from pathlib import Path

DATA = Path(__file__).with_name("support_mail.jsonl")
"""300 messages with ``order``, ``product`` and ``queue``."""

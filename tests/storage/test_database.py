"""Transactions of a database."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import sqlalchemy as sa

from ratchet.storage.database import Database


def test_what_is_read_together_is_read_in_one_transaction_of_this_thread_alone(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path / 'ratchet.db'}")

    def begin() -> sa.Connection:
        with database.transaction() as connection:
            return connection

    def fail_together() -> None:
        with database.together():
            raise KeyError(str(begin().closed))

    with database.together(), ThreadPoolExecutor(1) as elsewhere:
        first, second = begin(), begin()
        assert elsewhere.submit(begin).result() is not first
    assert first is second
    assert first.closed
    assert begin() is not first
    with pytest.raises(KeyError, match="False"):
        fail_together()
    assert begin().closed  # it is a transaction of its own again
    database.close()

"""Writes keep their order, share transactions, and fail loudly for those whose rows were lost."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import sqlalchemy as sa

from ratchet.core.errors import StorageUnavailable
from ratchet.storage.pen import Pen

ONE, OTHER = sa.text("one"), sa.text("other")
Parts = Sequence[tuple[sa.Executable, list[Mapping[str, Any]]]]


class Book:
    """Stands for a database; notes each transaction as a list of (statement, number)."""

    def __init__(self, *, seconds: float = 0.0) -> None:
        self.transactions: list[list[tuple[str, int]]] = []
        self.broken = False
        self.seconds = seconds
        self.pen = Pen(self.transact)

    def transact(self, parts: Parts) -> None:
        time.sleep(self.seconds)
        if self.broken:
            raise StorageUnavailable("the disk is full")
        self.transactions.append([(str(statement), row["n"]) for statement, rows in parts for row in rows])

    @property
    def rows(self) -> list[tuple[str, int]]:
        return [row for transaction in self.transactions for row in transaction]


def test_the_order_is_kept_and_transactions_are_shared() -> None:
    book = Book(seconds=0.01)
    for number in range(300):
        book.pen.write("me", ONE if number % 7 else OTHER, {"n": number})
    book.pen.close()
    together = [sorted(number for _, number in transaction) for transaction in book.transactions]
    assert [number for transaction in together for number in transaction] == list(range(300))
    for statement in (ONE, OTHER):
        numbers = [number for name, number in book.rows if name == str(statement)]
        assert numbers == sorted(numbers)
    assert len(book.transactions) < 30


def test_each_threads_writes_keep_their_order() -> None:
    book = Book()

    def write(base: int) -> None:
        for number in range(100):
            book.pen.write("me", ONE, {"n": base + number})

    threads = [threading.Thread(target=write, args=(1000 * index,)) for index in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    book.pen.flush("me")
    for base in range(0, 6000, 1000):
        assert [n for _, n in book.rows if base <= n < base + 100] == list(range(base, base + 100))


def test_settled_means_written() -> None:
    book = Book(seconds=0.05)
    assert book.pen.settled("me").done()
    book.pen.write("me", ONE, {"n": 1})
    safe = book.pen.settled("me")
    assert not safe.done()
    safe.result(5)
    assert book.rows == [("one", 1)]


def test_whoever_lost_rows_hears_of_it_and_nobody_else() -> None:
    book = Book()
    book.broken = True
    book.pen.write("me", ONE, {"n": 1})
    with pytest.raises(StorageUnavailable, match="the disk is full"):
        book.pen.flush("me")
    book.broken = False
    for attempt in (lambda: book.pen.write("me", ONE, {"n": 2}), lambda: book.pen.settled("me")):
        with pytest.raises(StorageUnavailable, match="the disk is full"):
            attempt()
    book.pen.write("another", ONE, {"n": 3})
    book.pen.flush("another")
    book.pen.flush()
    assert book.rows == [("one", 3)]


def test_a_closed_pen_writes_again_when_it_is_asked_to() -> None:
    book = Book()
    for number in range(3):
        book.pen.write("me", ONE, {"n": number})
        book.pen.close()
    assert [n for _, n in book.rows] == [0, 1, 2]


def test_closing_beside_a_writer_loses_nothing_and_comes_to_an_end() -> None:
    book, n = Book(seconds=0.001), 400

    def write() -> None:
        for number in range(n):
            book.pen.write("me", ONE, {"n": number})
            time.sleep(0.01 if number % 4 == 0 else 0.0)

    writer = threading.Thread(target=write)
    writer.start()
    while writer.is_alive():
        closer = threading.Thread(target=book.pen.close, daemon=True)
        closer.start()
        closer.join(30)
        assert not closer.is_alive()
    book.pen.close()
    assert [number for _, number in book.rows] == list(range(n))

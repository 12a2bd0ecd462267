"""How many threads compute at once."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from ratchet.hands import Hands


def test_only_so_many_are_at_it_and_who_rests_lets_others() -> None:
    hands, lock = Hands(2), threading.Lock()
    all_rest = threading.Barrier(8, timeout=30)
    at_it, most = 0, 0

    def enter(change: int) -> None:
        nonlocal at_it, most
        with lock:
            at_it += change
            most = max(most, at_it)

    def work() -> None:
        with hands:
            enter(+1)
            enter(-1)
            with hands.resting():
                all_rest.wait()  # all eight are here at once, or this raises
            enter(+1)
            enter(-1)

    with ThreadPoolExecutor(8) as pool:
        for each in [pool.submit(work) for _ in range(8)]:
            each.result()
    assert 1 <= most <= 2


def test_a_turn_ends_with_an_error_too() -> None:
    hands = Hands(1)
    for _ in range(2):
        with pytest.raises(KeyError), hands, hands.resting():
            raise KeyError

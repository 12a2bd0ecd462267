"""Fakes and conformance tests that ship with Ratchet: test an algorithm or a store without an LM.

An algorithm of your own is tested by a class of three lines, which pytest runs like any other:

    class TestMine(AlgorithmConformance):
        search = staticmethod(my_search)
"""

from __future__ import annotations

from ratchet.testing.algorithm import AlgorithmConformance
from ratchet.testing.archive import ArchiveConformance
from ratchet.testing.problem import Order, Recorded, Shuffled, SyntheticProblem, VirtualTime

__all__ = [
    "AlgorithmConformance",
    "ArchiveConformance",
    "Order",
    "Recorded",
    "Shuffled",
    "SyntheticProblem",
    "VirtualTime",
]

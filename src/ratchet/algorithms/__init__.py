"""How to search. The catalogue of Ratchet's own algorithms."""

from __future__ import annotations

from ratchet.algorithms.bootstrap import bootstrap
from ratchet.algorithms.genetic import genetic
from ratchet.algorithms.gepa import gepa
from ratchet.algorithms.miprov2 import miprov2
from ratchet.algorithms.random_search import random_search
from ratchet.core.algorithm import Search

NATIVE: dict[str, Search] = {
    "bootstrap": bootstrap,
    "genetic": genetic,
    "gepa": gepa,
    "miprov2": miprov2,
    "random_search": random_search,
}
"""Every algorithm of Ratchet's own, by name."""

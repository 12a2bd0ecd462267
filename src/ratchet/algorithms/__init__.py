"""How to search. The catalogue of Ratchet's own algorithms."""

from __future__ import annotations

from ratchet.algorithms.bootstrap import bootstrap
from ratchet.algorithms.capo import capo
from ratchet.algorithms.genetic import genetic
from ratchet.algorithms.gepa import gepa
from ratchet.algorithms.miprov2 import miprov2
from ratchet.algorithms.portfolio import portfolio
from ratchet.algorithms.random_search import random_search
from ratchet.algorithms.surrogate import surrogate
from ratchet.core.algorithm import Search

NATIVE: dict[str, Search] = {
    "bootstrap": bootstrap,
    "genetic": genetic,
    "capo": capo,
    "gepa": gepa,
    "miprov2": miprov2,
    "portfolio": portfolio,
    "random_search": random_search,
    "surrogate": surrogate,
}
"""Every algorithm of Ratchet's own, by name."""

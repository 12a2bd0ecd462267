"""Ratchet makes DSPy programs better and proves it.

import ratchet

outcome = ratchet.optimize(program, examples, metric="exact_match", max_calls=400)
print(outcome.status, outcome.comparison)
outcome.program(question="...")
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ratchet.core import errors

if TYPE_CHECKING:
    from ratchet.client import AsyncClient, Client
    from ratchet.contest import Contest
    from ratchet.core.result import OptimizationResult
    from ratchet.family import optimize_family
    from ratchet.library import Outcome, compare, optimize
    from ratchet.programs.targets import load_program

__all__ = [
    "AsyncClient",
    "Client",
    "Contest",
    "OptimizationResult",
    "Outcome",
    "compare",
    "errors",
    "load_program",
    "optimize",
    "optimize_family",
]

_ROOMS = {
    "AsyncClient": "ratchet.client",
    "Client": "ratchet.client",
    "Contest": "ratchet.contest",
    "OptimizationResult": "ratchet.core.result",
    "Outcome": "ratchet.library",
    "compare": "ratchet.library",
    "load_program": "ratchet.programs.targets",
    "optimize": "ratchet.library",
    "optimize_family": "ratchet.family",
}


def __getattr__(name: str) -> Any:
    """Import what is asked for when it is asked for: DSPy takes seconds."""
    if name not in _ROOMS:
        raise AttributeError(f"module 'ratchet' has no attribute {name!r}")
    return getattr(import_module(_ROOMS[name]), name)

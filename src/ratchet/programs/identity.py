"""What names a program, so that an optimization goes on only with the one it was begun with."""

from __future__ import annotations

import dspy

from ratchet.core.problem import Candidate, content_hash
from ratchet.programs.dspy_program import state_of
from ratchet.programs.remote import RemoteAgent


def program_identity(module: dspy.Module, *, tune_tools: bool) -> str:
    """The hash of a program's state; of a remote agent also of what is sent to where."""
    key = Candidate(predictors=state_of(module, tune_tools=tune_tools)).key
    return content_hash([key, module.spec.to_json()]) if isinstance(module, RemoteAgent) else key


def agent_identity(module: dspy.Module) -> str | None:
    """What names a remote agent; None for a program of any other kind."""
    return f"agent {module.spec.name}@{module.spec.url}" if isinstance(module, RemoteAgent) else None

"""Whose fault it is that a remote agent gave no answer, in the errors that the gateway tells apart."""

from __future__ import annotations

from typing import Any

from dspy.utils.exceptions import (
    LMAuthError,
    LMConfigurationError,
    LMError,
    LMInvalidRequestError,
    LMRateLimitError,
    LMServerError,
    LMTimeoutError,
)

from ratchet.programs.agent_spec import AgentSpec

QUOTED = 500
"""Characters of a reply that an error shows."""


def failed(spec: AgentSpec, status: int, text: str, *, wait: float | None = None) -> LMError:
    """What a status of 300 and more means.

    The agent's own fault, a failed run: it did not take this very request. The world's fault, tried again: the agent is
    down, slow or busy. Wrong settings, which no input could mend, stop the optimization at once.
    """
    message = f"the agent answered {status}: {text[:QUOTED]}"
    told: dict[str, Any] = {"model": spec.name, "status": status}
    if status in (401, 403, 407):
        return LMAuthError(f"{message}; check its headers", **told)
    if 300 <= status < 400:
        return LMConfigurationError(f"{message}; redirections are not followed, give the address itself", **told)
    if status in (404, 405):
        return LMConfigurationError(f"{message}; check its url", **told)
    if status == 408:
        return LMTimeoutError(message, **told)
    if status in (425, 429):
        return LMRateLimitError(message, retry_after=wait, **told)
    if status >= 500:
        return LMServerError(message, retry_after=wait, **told)
    return LMInvalidRequestError(message, **told)


def too_long(spec: AgentSpec) -> LMError:
    """The agent wrote more than it may."""
    return LMInvalidRequestError(f"the reply has more than {spec.max_reply_bytes} bytes", model=spec.name)

"""What a recorded reply says, as text, as DSPy's adapters and as its engines want it."""

from __future__ import annotations

from typing import Any

from dspy._vendor.lm15.serde import response_from_dict
from dspy.clients.call_result import legacy_output
from dspy.lm15 import Response
from dspy.utils.exceptions import ContextWindowExceededError, LMInvalidRequestError

from ratchet.programs.journal import Reply


def _is_text(reply: Reply) -> bool:
    if "refused" in reply.response:
        return False
    parts = reply.response["message"]["parts"]
    return bool(parts) and "logprobs" not in reply.response and all(part["type"] == "text" for part in parts)


def text_of(reply: Reply) -> str:
    """The text of a reply; empty when it has none."""
    if _is_text(reply):
        return "".join(part["text"] for part in reply.response["message"]["parts"])
    return "" if "refused" in reply.response else response_of(reply).message.text or ""


def output_of(reply: Reply) -> Any:
    """What DSPy's adapters get of a reply: a text, or a dict of what came besides it.

    Raises:
        LMInvalidRequestError: the LM refused the request.
    """
    if _is_text(reply):
        return text_of(reply)
    output = legacy_output(response_of(reply))
    return output if len(output) > 1 else output["text"]


def response_of(reply: Reply) -> Response:
    """A reply as DSPy's engines give it.

    Raises:
        LMInvalidRequestError: the LM refused the request.
    """
    refused = reply.response.get("refused")
    if refused:
        kind = ContextWindowExceededError if refused == "context" else LMInvalidRequestError
        raise kind(**{name: reply.response.get(name) for name in ("message", "model", "status")})
    return response_from_dict(dict(reply.response))

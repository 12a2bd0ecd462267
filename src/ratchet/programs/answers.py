"""What an LM answered, as it is kept: DSPy's response as JSON data, with its tokens and its dollars."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import orjson
from dspy._vendor.lm15.serde import response_to_dict
from dspy.lm15 import Response

_FINISHED = {None: "stop", "stop": "stop", "length": "length"}
_MORE = ("reasoning_content", "reasoning", "refusal", "tool_calls")
"""What a message may hold besides its text."""
_COUNTED = {
    "input_tokens": ("", "prompt_tokens"),
    "output_tokens": ("", "completion_tokens"),
    "total_tokens": ("", "total_tokens"),
    "cache_read_tokens": ("prompt_tokens_details", "cached_tokens"),
    "cache_write_tokens": ("prompt_tokens_details", "cache_write_tokens"),
    "reasoning_tokens": ("completion_tokens_details", "reasoning_tokens"),
    "input_audio_tokens": ("prompt_tokens_details", "audio_tokens"),
    "output_audio_tokens": ("completion_tokens_details", "audio_tokens"),
}
"""DSPy's name of each number of tokens, and where it stands in a body."""


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer.

    Attributes:
        response: DSPy's response as JSON data, without what only the provider understands.
        cost_usd: Dollars, or None when the price is not known.
    """

    response: Mapping[str, Any]
    prompt_tokens: int
    completion_tokens: int
    cost_usd: float | None

    @classmethod
    def of(cls, response: Response, cost_usd: float | None) -> Answer:
        """The answer that DSPy made ``response`` of."""
        usage = response.usage
        return cls(_sayable(response_to_dict(response)), usage.input_tokens or 0, usage.output_tokens or 0, cost_usd)


def text_in(body: bytes) -> dict[str, Any] | None:
    """What DSPy makes of a chat completion that is one text and nothing else; None for a body it must be asked about.

    DSPy makes it a tree of checked objects, of which everything is taken apart again to be kept.
    """
    try:
        data = orjson.loads(body)
        (choice,) = data["choices"]
        message, name, model = choice["message"], data.get("id"), data["model"]
        text, finished = message["content"], _FINISHED[choice.get("finish_reason")]
        usage = _usage(data.get("usage") or {})
        plain = data.get("error") is None and not (choice.get("logprobs") or any(message.get(each) for each in _MORE))
    except (orjson.JSONDecodeError, LookupError, TypeError, ValueError, AttributeError):
        return None
    if not plain or usage is None or not (name is None or _is_text(name)) or not (_is_text(text) and _is_text(model)):
        return None
    found: dict[str, Any] = {} if name is None else {"id": name}
    found |= {
        "model": model,
        "message": {"role": "assistant", "parts": [{"type": "text", "text": text}]},
        "finish_reason": finished,
    }
    return found | ({"usage": usage} if usage else {})


def _is_text(value: object) -> bool:
    return type(value) is str and value != ""


def _usage(data: Mapping[str, Any]) -> dict[str, int] | None:
    """The numbers of tokens in a body; None where they are not whole numbers."""
    found = {}
    for name, (group, key) in _COUNTED.items():
        number = ((data.get(group) or {}) if group else data).get(key)
        if number is None:
            continue
        if type(number) is not int or number < 0:
            return None
        found[name] = number
    if "total_tokens" not in found and found.keys() >= {"input_tokens", "output_tokens"}:
        found["total_tokens"] = found["input_tokens"] + found["output_tokens"]
    return found


def _sayable(response: dict[str, Any]) -> dict[str, Any]:
    """``response`` without halves of surrogate pairs: no LM takes them in a prompt, and no signature holds them."""
    try:
        orjson.dumps(response)
    except TypeError:  # orjson takes neither surrogates nor anything that is no JSON
        text = json.dumps(response, ensure_ascii=False, default=str)
        return dict(json.loads(text.encode(errors="replace")))
    return response

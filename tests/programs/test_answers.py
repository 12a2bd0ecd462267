"""What is read straight from a body is what DSPy reads in it; whatever else a body may be is left to DSPy."""

from __future__ import annotations

import copy
import json
from contextlib import suppress
from typing import Any

import pytest
from dspy._vendor.lm15.providers.base import HttpResponse
from dspy._vendor.lm15.providers.openai_chat import OpenAIChatLM
from dspy._vendor.lm15.serde import response_to_dict
from dspy.lm15 import Config, Message, Request
from hypothesis import event, given, settings
from hypothesis import strategies as st

from ratchet.programs.answers import text_in

odd: st.SearchStrategy[Any] = (
    st.none()
    | st.booleans()
    | st.integers(-5, 2**70)
    | st.floats()
    | st.text(max_size=3)
    | st.just("\ud800")
    | st.builds(list)
    | st.builds(dict)
)
PLACES: tuple[tuple[Any, ...], ...] = (
    ("id",),
    ("model",),
    ("error",),
    ("usage",),
    ("choices",),
    ("choices", 0),
    ("choices", 0, "finish_reason"),
    ("choices", 0, "logprobs"),
    ("choices", 0, "message"),
    *(("choices", 0, "message", name) for name in ("content", "reasoning", "reasoning_content", "refusal")),
    ("choices", 0, "message", "tool_calls"),
    *(("usage", name) for name in ("prompt_tokens", "completion_tokens", "total_tokens")),
    ("usage", "prompt_tokens_details"),
    *(("usage", "prompt_tokens_details", name) for name in ("cached_tokens", "cache_write_tokens", "audio_tokens")),
    ("usage", "completion_tokens_details", "reasoning_tokens"),
)
PLAIN: dict[str, Any] = {
    "id": "1",
    "object": "chat.completion",
    "model": "stub",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "yes"}, "finish_reason": "stop"}],
    "usage": {
        "prompt_tokens": 3,
        "completion_tokens": 1,
        "prompt_tokens_details": {"cached_tokens": 2},
        "completion_tokens_details": {},
    },
}


def by_dspy(body: bytes) -> dict[str, Any]:
    reply = HttpResponse(status=200, reason="OK", headers=[], body=body, http_version="HTTP/1.1", provider="openai")
    lm = OpenAIChatLM(api_key="none", base_url="http://127.0.0.1:1/v1")
    request = Request(model="stub", messages=(Message.user("?"),), config=Config())
    found: dict[str, Any] = response_to_dict(lm.parse_response(request, reply))
    return found


@st.composite
def bodies(draw: st.DrawFn) -> dict[str, Any]:
    """A plain body in which up to three things are something else."""
    body: dict[str, Any] = copy.deepcopy(PLAIN)
    for place in draw(st.lists(st.sampled_from(PLACES), max_size=3)):
        inner: Any = body
        with suppress(TypeError, LookupError):  # it is gone already
            for name in place[:-1]:
                inner = inner[name]
            inner[place[-1]] = draw(odd)
    return body


@settings(max_examples=500)
@given(bodies())
def test_what_is_read_straight_from_a_body_is_what_dspy_reads(body: dict[str, Any]) -> None:
    written = json.dumps(body).encode()
    found = text_in(written)
    event("read" if found else "left to DSPy")
    if found is not None:
        assert found == by_dspy(written)


@pytest.mark.parametrize("finished", ["stop", "length", None])
@pytest.mark.parametrize("usage", [PLAIN["usage"], {}, {"prompt_tokens": 0, "completion_tokens": 5, "total_tokens": 9}])
def test_a_plain_text_is_read_straight(usage: dict[str, Any], finished: str | None) -> None:
    body = {**PLAIN, "usage": usage, "choices": [{**PLAIN["choices"][0], "finish_reason": finished}]}
    written = json.dumps(body).encode()
    assert text_in(written) == by_dspy(written)


@pytest.mark.parametrize(
    "changed",
    [
        {"error": {"message": "no"}},
        {"choices": []},
        {"choices": [{"message": {"content": "a", "tool_calls": [{"id": "1"}]}}]},
        {"choices": [{"message": {"content": "a", "reasoning": "b"}}]},
        {"choices": [{"message": {"content": "a"}, "logprobs": {"content": []}}]},
        {"choices": [{"message": {"content": "a"}, "finish_reason": "content_filter"}]},
        {"choices": [{"message": {"content": [{"type": "text", "text": "a"}]}}]},
        {"usage": {"prompt_tokens": 1.5}},
        {"model": ""},
    ],
)
def test_whatever_else_a_body_may_be_is_left_to_dspy(changed: dict[str, Any]) -> None:
    assert text_in(json.dumps({**PLAIN, **changed}).encode()) is None


@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b"null", b'{"choices": 1}', b"\xff\xfe{}"])
def test_what_is_no_answer_is_left_to_dspy(body: bytes) -> None:
    assert text_in(body) is None

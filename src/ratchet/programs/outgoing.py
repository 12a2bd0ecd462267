"""A request as it may leave: what a program was told or said may hold what no row did."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from dspy.lm15 import Request

from ratchet.programs.line import Line


def outgoing(line: Line, request: Request) -> Request:
    """``request`` with every text put through the line's ``clean``; itself where there is nothing to do.

    It is cleaned before it gets its key, so that the same request has the same reply however often it is asked.
    """
    clean = line.clean
    if clean is None:
        return request
    messages = tuple(
        replace(message, parts=tuple(_part(part, clean) for part in message.parts)) for message in request.messages
    )
    system = request.system
    if isinstance(system, str):
        system = clean(system)
    elif system is not None:
        system = tuple(_part(part, clean) for part in system)
    cleaned: Request = replace(request, messages=messages, system=system)
    return cleaned


def _part(part: Any, clean: Callable[[str], str]) -> Any:
    """A part of a message: text, a tool's call or result, data; pictures and sounds are sent as they are."""
    if isinstance(getattr(part, "text", None), str):
        return replace(part, text=clean(part.text))
    for name in ("input", "value"):
        if hasattr(part, name):
            return replace(part, **{name: _json(getattr(part, name), clean)})
    if hasattr(part, "content"):
        return replace(part, content=tuple(_part(each, clean) for each in part.content))
    return part


def _json(value: Any, clean: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return clean(value)
    if isinstance(value, Mapping):
        return {name: _json(each, clean) for name, each in value.items()}
    return [_json(each, clean) for each in value] if isinstance(value, list | tuple) else value

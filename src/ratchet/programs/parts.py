"""The parts of a program: walking through them, copying them, and finding every LM they hold."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import dspy

from ratchet.core.errors import BadRequest

_RECORDS = frozenset(("history", "callbacks", "traces", "train", "demos"))
"""Attributes of modules that hold no parts, and may be long."""


def walk(module: dspy.Module, *, frozen: bool = False) -> Iterator[tuple[str, Any]]:
    """Every module and tool in ``module`` by its path, itself first; what is reached in two ways comes once.

    Args:
        module: The program.
        frozen: Whether to go into parts that DSPy leaves alone: those that an optimizer compiled before, and modules
            that are tools.
    """
    seen: set[int] = set()

    def within(path: str, item: Any, top: bool) -> Iterator[tuple[str, Any]]:
        if id(item) in seen or isinstance(item, str | bytes | int | float | type(None)):
            return
        seen.add(id(item))
        if isinstance(item, dspy.Tool):
            yield path, item
            if frozen and isinstance(item.func, dspy.Module):  # DSPy does not see a module that is a tool
                yield from within(f"{path}.func", item.func, False)
        elif isinstance(item, dspy.Module):
            if not (top or frozen) and getattr(item, "_compiled", False):
                return
            yield path, item
            for name, value in vars(item).items():
                if name in _RECORDS:
                    continue
                yield from within(f"{path}.{name}" if path else name, value, False)
        elif isinstance(item, list | tuple):
            for number, value in enumerate(item):
                yield from within(f"{path}[{number}]", value, False)
        elif isinstance(item, Mapping):
            for key, value in item.items():
                yield from within(f"{path}[{key!r}]", value, False)

    yield from within("", module, True)


def copied(module: dspy.Module) -> dspy.Module:
    """A copy of ``module`` that shares nothing tunable with it.

    What cannot be copied, such as the connection of a retriever, is shared. (DSPy's own copy gives up on a whole
    attribute then; a list of predictors beside a lock would be the same list in the copy.)

    Raises:
        BadRequest: it cannot be copied even so.
    """
    try:
        return copy.deepcopy(module)
    except Exception:  # the user's objects say how they are copied, or that they cannot be
        memo: dict[int, Any] = {}
    for _, part in walk(module, frozen=True):
        for value in _plain_values(part):
            _share_what_cannot_be_copied(value, memo)
    try:
        return copy.deepcopy(module, memo)
    except Exception as error:  # see above
        raise BadRequest(
            f"{type(module).__name__} cannot be copied: {type(error).__name__}: {error}; every candidate needs a copy "
            "of it, so give the part that cannot be copied a __deepcopy__ that returns itself"
        ) from error


def _plain_values(part: Any) -> Iterator[Any]:
    """What a part holds beside other parts, and what its tools are bound to."""
    values = [part.func, getattr(part.func, "__self__", None)] if isinstance(part, dspy.Tool) else vars(part).values()
    waiting = list(values)
    while waiting:
        value = waiting.pop()
        if isinstance(value, list | tuple):
            waiting += value
        elif isinstance(value, dict):
            waiting += value.values()
        elif not isinstance(value, dspy.Module | dspy.Tool):
            yield value


def _share_what_cannot_be_copied(value: Any, memo: dict[int, Any]) -> None:
    if isinstance(getattr(value, "__self__", None), dspy.Module):
        return  # a method of a part must come to be a method of the copy
    try:
        copy.deepcopy(value, {})
    except Exception:  # see ``copied``
        memo[id(value)] = value


def replace_lms(module: dspy.Module, new: Callable[[dspy.BaseLM], dspy.BaseLM]) -> None:
    """Put ``new`` of each LM in its place, wherever ``module`` or a part of it holds one, frozen parts too."""
    known: dict[int, dspy.BaseLM] = {}

    def replaced(value: Any) -> Any:
        if isinstance(value, dspy.BaseLM):
            if id(value) not in known:
                known[id(value)] = new(value)
            return known[id(value)]
        if isinstance(value, list) and any(isinstance(each, dspy.BaseLM) for each in value):
            return [replaced(each) for each in value]
        if type(value) is dict and any(isinstance(each, dspy.BaseLM) for each in value.values()):
            return {key: replaced(each) for key, each in value.items()}
        return value

    for _, part in list(walk(module, frozen=True)):
        if isinstance(part, dspy.Module):
            for name, value in list(vars(part).items()):
                other = replaced(value)
                if other is not value:
                    setattr(part, name, other)

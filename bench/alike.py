"""Whether two optimizations came to the same result."""

from __future__ import annotations

from typing import Any

from ratchet.testing.runs import essence


def differences(one: Any, other: Any, at: str = "") -> list[str]:
    """Where two results differ, but for times, costs and places.

    >>> differences({"a": [1, 2], "b": 0}, {"a": [1, 3], "b": 0})
    ['a.1: 2 and 3']
    """
    if isinstance(one, dict) and isinstance(other, dict):
        names = sorted({*one, *other})
        return [found for name in names for found in differences(one.get(name), other.get(name), _path(at, name))]
    if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        pairs = enumerate(zip(one, other, strict=True))
        return [found for number, (a, b) in pairs for found in differences(a, b, _path(at, str(number)))]
    return [] if one == other else [f"{at}: {str(one)[:80]} and {str(other)[:80]}"]


def _path(at: str, name: str) -> str:
    return f"{at}.{name}" if at else name


def told(result: Any) -> Any:
    """A result as JSON data, without what two runs of the same optimization may differ in."""
    return essence({name: value for name, value in (result or {}).items() if name != "files"})

"""How a conformance test says what was promised and what it found."""

from __future__ import annotations

from collections.abc import Callable


def expect(holds: bool, otherwise: str) -> None:
    """Fail with ``otherwise`` unless it ``holds``; unlike ``assert`` it also does so under ``python -O``."""
    if not holds:
        raise AssertionError(otherwise)


def same(found: object, expected: object) -> None:
    """Fail unless both are equal, and show them."""
    expect(found == expected, f"found {found!r}; expected {expected!r}")


def raises(kind: type[Exception], function: Callable[..., object], *arguments: object) -> bool:
    """Whether ``function`` raises an error of this kind."""
    try:
        function(*arguments)
    except kind:
        return True
    return False

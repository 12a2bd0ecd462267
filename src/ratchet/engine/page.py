"""Words, numbers and tables as they stand in an HTML page."""

from __future__ import annotations

import html
import math
import re
from collections.abc import Callable, Sequence
from typing import TypeAlias

NOT_MEASURED = '<span class="none">not measured</span>'
UNKNOWN = '<span class="none">unknown</span>'

Show: TypeAlias = Callable[[float], str]


def text(value: object) -> str:
    """``value`` as HTML text, fit for an attribute too.

    >>> text('<b title="x">')
    '&lt;b title=&quot;x&quot;&gt;'
    """
    plain = str(value).encode("utf-8", "replace").decode()  # a lone surrogate cannot be written to a file
    return html.escape(re.sub(r"[\x00-\x08\x0b\x0c\x0e-\x1f]", "\ufffd", plain), quote=True)


def as_score(value: float) -> str:
    return _minus(f"{value:.3f}")


def as_percent(value: float) -> str:
    return _minus(f"{100 * value:.1f} %")


def as_points(value: float) -> str:
    return _minus(f"{100 * value:.1f} points")


def as_usd(value: float) -> str:
    """Dollars with three digits that count, but no fewer than cents.

    >>> as_usd(12.3456), as_usd(0.000123456), as_usd(0.0)
    ('$12.35', '$0.000123', '$0.00')
    """
    digits = 2 if value == 0 else max(2, 2 - math.floor(math.log10(abs(value))))
    return _minus(f"{'-' if value < 0 else ''}${abs(value):,.{digits}f}")


def as_milliseconds(value: float) -> str:
    return _minus(f"{value:,.0f} ms" if abs(value) >= 10 else f"{value:.2f} ms")


def as_seconds(value: float) -> str:
    return f"{value:,.1f} s"


def as_count(value: float) -> str:
    return f"{value:,.0f}"


def _minus(number: str) -> str:
    return "0" + number[2:] if re.fullmatch(r"-0(\.0*)?", number) else number.replace("-", "\N{MINUS SIGN}")


def signed(number: str) -> str:
    return number if number.startswith("\N{MINUS SIGN}") else f"+{number}"


def as_p(value: float) -> str:
    return "p &lt; 0.0001" if value < 0.0001 else f"p = {value:.4f}"


def as_number(value: float) -> str:
    return _minus(f"{value:,.10g}")


def table(heads: Sequence[str], body: str, foot: str = "") -> str:
    cells = "".join(f'<th scope="col">{head}</th>' if head else "<td></td>" for head in heads)
    foot = foot and f"<tfoot>\n{foot}</tfoot>\n"
    return f'<div class="wide"><table>\n<thead><tr>{cells}</tr></thead>\n<tbody>\n{body}</tbody>\n{foot}</table></div>'

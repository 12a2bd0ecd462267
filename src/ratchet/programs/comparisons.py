"""Comparing what was expected of one field with what was given: a share that is right, and what is wrong in words."""

from __future__ import annotations

import enum
import json
import math
import re
import string
import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from ratchet.core.errors import MetricFailed
from ratchet.core.problem import canonical

Compare = Callable[[Any, Any], tuple[float, str]]
"""Expected and given value -> score in [0, 1], and what is wrong in words ("" when nothing is)."""


def exact_match(expected: Any, got: Any) -> tuple[float, str]:
    """1 when both are the same: texts up to case, spacing and end punctuation, other values by structure."""
    return (1.0, "") if same(expected, got) else (0.0, _differs(expected, got))


def f1(expected: Any, got: Any) -> tuple[float, str]:
    """Harmonic mean of token precision and recall, as SQuAD computes it (case, punctuation and articles dropped)."""
    want, have = _squad_tokens(_text(expected)), _squad_tokens(_text(got))
    value = _f1(sum((Counter(want) & Counter(have)).values()), len(want), len(have))
    return value, "" if value == 1.0 else _differs(expected, got)


def numeric(expected: Any, got: Any, *, tolerance: float = 0.0) -> tuple[float, str]:
    """1 when the last number in the answer is the expected one, give or take ``tolerance``."""
    want, have = last_number(expected), last_number(got)
    if want is None:
        raise MetricFailed(f"the label {shown(expected)} has no number in it")
    if have is None:
        return 0.0, f"expected the number {want:.15g}, but there is no number in {shown(got)}"
    if math.isclose(want, have, rel_tol=1e-9, abs_tol=tolerance):
        return 1.0, ""
    return 0.0, f"expected the number {want:.15g}, got {have:.15g}"


def contains(expected: Any, got: Any) -> tuple[float, str]:
    """1 when the answer contains the expected text; of a list of texts, the share it contains."""
    wanted = [_normal(_text(each)) for each in (expected if isinstance(expected, list) else [expected])]
    text = _folded("\n".join(map(_text, got)) if isinstance(got, list) else _text(got))
    missing = [each for each in wanted if each not in text]
    if not missing:
        return 1.0, ""
    return 1 - len(missing) / len(wanted), f"{shown(got)} does not contain {', '.join(map(shown, missing))}"


def json_fields(expected: Any, got: Any) -> tuple[float, str]:
    """Share of the values in a (nested) JSON value that are right; texts that hold JSON are read first."""
    want, have = _from_json(expected), _from_json(got)
    wrong: list[str] = []
    value = _share(want, have, "", wrong)
    return value, "; ".join(wrong)


def multi_label(expected: Any, got: Any, *, measure: str = "f1") -> tuple[float, str]:
    """F1 or Jaccard index of two sets, given as lists or as texts with commas."""
    want, have = _label_set(expected), _label_set(got)
    if want == have:
        return 1.0, ""
    both = len(want & have)
    value = _f1(both, len(want), len(have)) if measure == "f1" else both / len(want | have)
    remarks = [
        f"{what} {', '.join(map(shown, sorted(names)))}"
        for what, names in (("missing", want - have), ("wrongly given", have - want))
        if names
    ]
    return value, "; ".join(remarks)


def _tolerance(value: str) -> float:
    number = float(value)
    if not math.isfinite(number) or number < 0:
        raise ValueError("it must be 0 or more")
    return number


def _measure(value: str) -> str:
    if value not in ("f1", "jaccard"):
        raise ValueError("it must be f1 or jaccard")
    return value


FIELD_METRICS: Mapping[str, tuple[Callable[..., tuple[float, str]], Mapping[str, Callable[[str], Any]]]] = {
    "exact_match": (exact_match, {}),
    "f1": (f1, {}),
    "numeric": (numeric, {"tolerance": _tolerance}),
    "contains": (contains, {}),
    "json_fields": (json_fields, {}),
    "multi_label": (multi_label, {"measure": _measure}),
}
"""Name -> how one field is compared, and how its options are read. Several fields are averaged; of ``exact_match``
all must be right."""


def same(expected: Any, got: Any) -> bool:
    """Whether two JSON values mean the same.

    >>> same("Billing", " billing. "), same(3, "3.0"), same(["a", 1], ["A", 1.0]), same(True, 1)
    (True, True, True, False)
    """
    if isinstance(expected, str) and isinstance(got, str):
        return _normal(expected) == _normal(got)
    if isinstance(expected, str) != isinstance(got, str):
        text, other = (expected, got) if isinstance(expected, str) else (got, expected)
        read = _read(text)
        return _normal(text) == _normal(_text(other)) or (not isinstance(read, str) and same(read, other))
    if isinstance(expected, Mapping) and isinstance(got, Mapping):
        return expected.keys() == got.keys() and all(same(value, got[name]) for name, value in expected.items())
    if isinstance(expected, list) and isinstance(got, list):
        return len(expected) == len(got) and all(map(same, expected, got))
    if isinstance(expected, bool) or isinstance(got, bool):
        return expected is got
    return bool(expected == got)


def last_number(value: Any) -> float | None:
    """The last number in a text: "so 1,200.50 $ in all." -> 1200.5; None when there is none.

    >>> last_number("It grew by 12 to 1,234.5 %."), last_number("A-7"), last_number("none")
    (1234.5, 7.0, None)
    """
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    found = _NUMBER.findall(_text(value).replace("\N{MINUS SIGN}", "-"))
    if not found:
        return None
    sign, digits = found[-1]
    return float(digits.replace(",", "")) * (-1 if sign == "-" else 1)


# A minus is a sign only where no word or number ends before it: not in "A-48213" or "3-5". Currency may follow it.
_NUMBER = re.compile(
    r"(?:(?<![\w.)])([-+])\s?[$€£]?)?((?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?(?:[eE][-+]?\d{1,3}\b)?|(?<!\d)\.\d+)"
)


def plain(value: Any) -> Any:
    """``value`` as JSON data."""
    if isinstance(value, enum.Enum):
        return plain(value.value)
    if isinstance(value, np.generic):
        return plain(value.item())
    if hasattr(value, "model_dump"):
        return plain(value.model_dump(mode="json"))
    if isinstance(value, Mapping):
        return {str(name): plain(part) for name, part in value.items()}
    if isinstance(value, set | frozenset):
        return sorted((plain(part) for part in value), key=canonical)
    if isinstance(value, list | tuple):
        return [plain(part) for part in value]
    return value if value is None or isinstance(value, str | int | float | bool) else str(value)


def _normal(text: str) -> str:
    # Only punctuation that never changes a value is dropped at the ends: "-5", ".5", "C++" and "50%" keep theirs.
    folded = _folded(text)
    bare = folded.lstrip("\"'`“”„‘’«»¿¡ ").rstrip(".,;:!?…\"'`“”‘’«» ")
    return bare or folded


def _folded(text: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def _squad_tokens(text: str) -> list[str]:
    bare = "".join(letter for letter in text.casefold() if letter not in string.punctuation)
    return re.sub(r"\b(a|an|the)\b", " ", bare).split()


def _f1(both: int, wanted: int, given: int) -> float:
    return 2 * both / (wanted + given) if wanted + given else 1.0


def _text(value: Any) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else canonical(value)


def _read(text: str) -> Any:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return text
    return text if isinstance(value, float) and not math.isfinite(value) else value


def _from_json(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    # LMs like to fence their JSON.
    read = _read(re.sub(r"^```\w*\s*|\s*```$", "", value.strip()))
    return read if isinstance(read, dict | list) else value


def _share(want: Any, have: Any, path: str, wrong: list[str]) -> float:
    at = f"{path}: " if path else ""
    if isinstance(want, dict) and want:
        if not isinstance(have, dict):
            wrong.append(at + _differs(want, have))
            return 0.0
        shares = []
        for name, part in want.items():
            here = f"{path}.{name}" if path else name
            if name in have:
                shares.append(_share(part, have[name], here, wrong))
            else:
                shares.append(0.0)
                wrong.append(f"{here}: expected {shown(part)}, got nothing")
        return sum(shares) / len(shares)
    if isinstance(want, list) and isinstance(have, list) and (want or have):
        shares = [_share(a, b, f"{path}[{i}]", wrong) for i, (a, b) in enumerate(zip(want, have, strict=False))]
        if len(want) != len(have):
            wrong.append(f"{at}expected {len(want)} items, got {len(have)}")
        return sum(shares) / max(len(want), len(have))
    if same(want, have):
        return 1.0
    wrong.append(at + _differs(want, have))
    return 0.0


def _label_set(value: Any) -> set[str]:
    value = _from_json(value)
    if isinstance(value, str):
        value = re.split(r"[,;|\n]", value)
    elif value is None:
        value = []
    elif not isinstance(value, list):
        value = [value]
    return {name for each in value if (name := _normal(_text(each)))}


def _differs(expected: Any, got: Any) -> str:
    return f"expected {shown(expected)}, got {shown(got)}"


def shown(value: Any) -> str:
    text = repr(value) if isinstance(value, str) else canonical(value)
    return text if len(text) <= 300 else text[:297] + "..."

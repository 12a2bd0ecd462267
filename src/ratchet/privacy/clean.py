"""Puts something else in the place of personal data: in texts, in rows, in prompts; and counts what it found.

A pseudonym is computed, not remembered: twelve letters of an HMAC over the original under the data set's key. So every
process gives the same one, in every file and after every crash, no table of originals is kept, and nobody without the
key can tell which original it was, or try one. Among a hundred thousand originals of a kind, two get the same pseudonym
with a probability of 1 in 19 million (26 ** 12 pseudonyms).
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, TypeAlias

from ratchet.core.problem import Fields
from ratchet.privacy.find import Finder, Span, apart, numbers
from ratchet.privacy.policy import Policy, Treatment, tokens

ROUNDS = 5
"""How often a text is looked at again after something in it was replaced."""

SHAPES = 3
"""Shapes of what was found that a report shows, for each field and kind."""

BY_DIGITS = frozenset({"PHONE_NUMBER", "CREDIT_CARD", "US_SSN"})
"""Kinds that are told by their digits alone."""

ALONE = 40
"""A text of at most so many letters may be all there is in its field."""

SMALL, LARGE = 10**3, 10**20
"""Between these, a number may be somebody's."""

_WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+")

_LETTERS = "abcdefghijklmnopqrstuvwxyz"


def normal(kind: str, original: str) -> str:
    """What is the same in all ways to write an original.

    >>> normal("PHONE_NUMBER", "+1 (555) 010-2030"), normal("EMAIL_ADDRESS", "Jane@Example.ORG")
    ('15550102030', 'jane@example.org')
    """
    if kind in BY_DIGITS:
        digits = re.sub(r"\D", "", original)
        return digits.removeprefix("00") if kind == "PHONE_NUMBER" else digits
    if kind == "IBAN_CODE":
        return re.sub(r"[\s-]", "", original).upper()
    return original.casefold() if kind in ("EMAIL_ADDRESS", "IP_ADDRESS", "MAC_ADDRESS", "UUID") else original


def shape(original: str) -> str:
    """What something looks like, and no letter or digit of it.

    >>> shape("Jane.Roe7@example.org")
    'Xxxx.Xxx9@xxxxxxx.xxx'
    """
    return "".join(
        ("X" if each.isupper() else "x") if each.isalpha() else "9" if each.isnumeric() else each for each in original
    )


@dataclass(slots=True)
class Found:
    """What was found in one field of one kind.

    Attributes:
        count: How often.
        rows: In how many rows.
        shapes: What some of it looked like.
    """

    count: int = 0
    rows: int = 0
    shapes: list[str] = field(default_factory=list)


@dataclass(slots=True)
class Report:
    """What was found in rows; it holds none of it.

    Attributes:
        rows: Rows that were looked at.
        touched: Rows in which something was found, or left out.
        found: Field -> kind -> what was found.
        dropped: Field -> rows from which it was left out.
    """

    rows: int = 0
    touched: int = 0
    found: dict[str, dict[str, Found]] = field(default_factory=dict)
    dropped: Counter[str] = field(default_factory=Counter)

    def counts(self) -> dict[str, int]:
        """How much was found of each kind, over all fields."""
        found: Counter[str] = Counter()
        for kinds in self.found.values():
            found.update({kind: each.count for kind, each in kinds.items()})
        return dict(sorted(found.items()))

    def to_json(self) -> dict[str, Any]:
        """The report as JSON data."""
        return {
            "rows": self.rows,
            "rows_touched": self.touched,
            "found": {
                name: {
                    kind: {"count": each.count, "rows": each.rows, "shapes": each.shapes}
                    for kind, each in sorted(kinds.items())
                }
                for name, kinds in sorted(self.found.items())
            },
            "dropped": dict(sorted(self.dropped.items())),
        }

    def told(self) -> str:
        """In one line.

        >>> Report(rows=3).told()
        'no personal data was found in 3 rows'
        """
        parts = [f"{kind} {count}" for kind, count in self.counts().items()]
        parts += [f"{name} left out of {rows} rows" for name, rows in sorted(self.dropped.items())]
        if not parts:
            return f"no personal data was found in {self.rows} rows"
        return f"personal data in {self.touched} of {self.rows} rows: {', '.join(parts)}"

    def note(self, name: str, originals: Iterable[Original]) -> None:
        """Count what was found in one field of one row."""
        kinds = self.found.setdefault(name, {})
        seen = set()
        for kind, original in originals:
            each = kinds.setdefault(kind, Found())
            each.count += 1
            each.rows += kind not in seen
            seen.add(kind)
            if (looks := shape(original)) not in each.shapes and len(each.shapes) < SHAPES:
                each.shapes.append(looks)


class Cleaner:
    """Cleans whatever belongs to one data set.

    Cleaning what is clean changes nothing.

    Args:
        policy: What is done.
        key: The data set's; 32 random bytes.

    Raises:
        BadRequest: the extra is not installed.
    """

    def __init__(self, policy: Policy, key: bytes) -> None:
        self.policy = policy.sealed(key)
        self._key = key
        self._finder = Finder(self.policy, key)
        self._names = set(self.policy.marks.values())
        kinds = {*self.policy.kinds, *self._names, *self.policy.patterns}
        either = "|".join(sorted(map(re.escape, kinds)))
        self._ours = re.compile(rf"<(?:{either})(?:_[a-z]{{12}})?>|person-[a-z]{{12}}@example\.invalid")
        self._cleaned = lru_cache(maxsize=4096)(self._clean)

    def pseudonym(self, kind: str, original: str) -> str:
        """What stands for ``original``."""
        name = " ".join(word for word, _, _ in tokens(original)) if kind in self._names else normal(kind, original)
        digest = hmac.new(self._key, f"{kind}\0{name}".encode(), hashlib.sha256).digest()
        number, letters = int.from_bytes(digest, "big"), ""
        for _ in range(12):
            number, letter = divmod(number, len(_LETTERS))
            letters += _LETTERS[letter]
        return f"person-{letters}@example.invalid" if kind == "EMAIL_ADDRESS" else f"<{kind}_{letters}>"

    def text(self, text: str, treatment: Treatment, *, field: str = "") -> tuple[str, tuple[Original, ...]]:
        """``text`` with something else in the place of what is found in it; and kinds and originals of that.

        Args:
            field: The name of its field: what stands alone in ``phone`` is more than digits.
        """
        if treatment == "keep" or not text:
            return text, ()
        near = tuple(_WORD.findall(field)) if len(text) <= ALONE else ()
        return self._cleaned(text, treatment, tuple(word.lower() for word in near))

    def prompt(self, text: str) -> str:
        """``text`` as it may be sent to a reflection LM."""
        return self.text(text, self.policy.of_prompts)[0]

    def value(self, value: Any, treatment: Treatment, *, field: str = "") -> tuple[Any, list[Original]]:
        """A JSON value, cleaned in all its depth, keys too; and kinds and originals of what was found.

        A number is read as text, and stays a number where nothing is found in it.
        """
        return _walked(value, lambda text, name: self.text(text, treatment, field=name), field)

    def rows(self, rows: Iterable[Fields]) -> tuple[list[dict[str, Any]], Report]:
        """Rows as they may be kept, in order, and what was found in them."""
        report = Report()
        cleaned, touched, found = list[dict[str, Any]](), set[int](), dict[tuple[int, str], list[Original]]()
        for at, row in enumerate(rows):
            kept = dict[str, Any]()
            for name, value in row.items():
                treatment = self.policy.of(name)
                if treatment == "drop":
                    report.dropped[name] += 1
                    touched.add(at)
                elif treatment == "keep":
                    kept[name] = value
                else:
                    kept[name], found[at, name] = self.value(value, treatment, field=name)
            cleaned.append(kept)
        self._again(cleaned, found)
        for (at, name), originals in found.items():
            if originals:
                report.note(name, originals)
                touched.add(at)
        report.rows, report.touched = len(cleaned), len(touched)
        return cleaned, report

    def _again(self, rows: list[dict[str, Any]], found: Mapping[tuple[int, str], list[Original]]) -> None:
        """Replace numbers that were found also where nothing but their digits tells them, and add them to ``found``."""
        known = {normal(*each): each[0] for originals in found.values() for each in originals if each[0] in BY_DIGITS}
        if not known:
            return
        for (at, name), originals in found.items():
            treatment = self.policy.of(name)

            def replaced(text: str, _: str, treatment: Treatment = treatment) -> Cleaned:
                spans = numbers(text, known)
                return self._replaced(text, apart(spans, text, taken=self._places(text)) if spans else [], treatment)

            rows[at][name], more = _walked(rows[at][name], replaced, name)
            originals += more

    def _clean(self, text: str, treatment: Treatment, near: tuple[str, ...]) -> Cleaned:
        found: tuple[Original, ...] = ()
        for _ in range(ROUNDS):
            text, more = self._replaced(text, self._finder.spans(text, near=near, taken=self._places(text)), treatment)
            if not more:
                break
            found += more
        return text, found

    def _places(self, text: str) -> list[tuple[int, int]]:
        """Where we put something in ``text`` ourselves."""
        return [found.span() for found in self._ours.finditer(text)]

    def _replaced(self, text: str, spans: Sequence[Span], treatment: Treatment) -> Cleaned:
        pieces, found, end = list[str](), list[Original](), 0
        for span in spans:
            original = text[span.start : span.end]
            found.append((span.kind, original))
            stands = self.pseudonym(span.kind, original) if treatment == "pseudonymise" else f"<{span.kind}>"
            pieces += [text[end : span.start], stands]
            end = span.end
        return "".join(pieces) + text[end:], tuple(found)


Original: TypeAlias = tuple[str, str]
"""The kind of something that was replaced, and what stood there."""
Cleaned: TypeAlias = tuple[str, tuple[Original, ...]]
"""A text, and what was replaced in it."""


def _walked(value: Any, clean: Callable[[str, str], Cleaned], field: str) -> tuple[Any, list[Original]]:
    """A JSON value whose every text was cleaned, and what was found; ``clean`` gets a text and its field's name."""
    found: list[Original] = []

    def walked(value: Any, field: str) -> Any:
        if isinstance(value, str):
            text, originals = clean(value, field)
            found.extend(originals)
            return text
        if isinstance(value, int) and not isinstance(value, bool) and SMALL <= abs(value) < LARGE:
            text, originals = clean(str(value), field)
            found.extend(originals)
            return text if originals else value
        if isinstance(value, Mapping):
            parts: dict[str, Any] = {}
            for name, part in value.items():
                parts[_free(walked(name, ""), parts)] = walked(part, name)
            return parts
        return [walked(part, field) for part in value] if isinstance(value, list | tuple) else value

    return walked(value, field), found


def _free(name: str, taken: Mapping[str, Any]) -> str:
    """``name``, with a number where it is taken: two keys that look alike now are two keys all the same."""
    number, free = 1, name
    while free in taken:
        number += 1
        free = f"{name} ({number})"
    return free

"""What is done with personal data, field by field; plain data that can be stored, for it holds no name in the clear."""

from __future__ import annotations

import hashlib
import hmac
import json
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

from ratchet.core.errors import BadRequest

Treatment = Literal["keep", "redact", "pseudonymise", "drop"]
"""What is done with a field: leave it as it is; put the kind in the place of what is found; put a pseudonym there, the
same one every time; leave the field out."""

TREATMENTS: tuple[Treatment, ...] = get_args(Treatment)

KINDS = (
    "EMAIL_ADDRESS",
    "PHONE_NUMBER",
    "CREDIT_CARD",
    "IBAN_CODE",
    "IP_ADDRESS",
    "MAC_ADDRESS",
    "US_SSN",
    "CRYPTO",
)
"""What is looked for unless a policy says otherwise; each of them has a digit, an ``@`` or a ``:`` in it."""

MORE_KINDS = ("URL", "US_ITIN", "US_PASSPORT", "US_BANK_NUMBER", "UK_NHS", "UK_NINO", "UUID", "DATE_TIME")
"""What is looked for when it is asked for: each of them is found in texts that hold nothing personal, too."""

PERSON = "PERSON"
"""The kind of names that are given without one."""

WRITTEN = ("default", "fields", "kinds", "names", "patterns", "set")
"""What a user says of a policy."""

_KIND = re.compile(r"[A-Z][A-Z0-9_]{0,39}")
_TOKEN = re.compile(r"[^\W_]+")

MAX_WORDS = 12
"""The most words a name may have."""

MAX_NAMES, MAX_PATTERNS, MAX_PATTERN, MAX_SET = 10_000, 20, 300, 200
"""The most names and patterns there may be in one policy, and the longest pattern and name of a set."""

_SET = re.compile(rf"[\w.+ -]{{0,{MAX_SET}}}")


def tokens(text: str) -> list[tuple[str, int, int]]:
    """The words of ``text`` as names are compared by them, with their places.

    >>> tokens("Jane O'Roe")
    [('jane', 0, 4), ('o', 5, 6), ('roe', 7, 10)]
    """
    return [
        (unicodedata.normalize("NFKC", found.group()).casefold(), found.start(), found.end())
        for found in _TOKEN.finditer(text)
    ]


def mark(key: bytes, words: Sequence[str]) -> str:
    """What stands for a name in a policy that is stored: nobody without ``key`` can tell it, or try names on it."""
    return hmac.new(key, ("name\0" + " ".join(words)).encode(), hashlib.sha256).hexdigest()[:32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """What is done with personal data.

    Attributes:
        default: What is done with every field that is not named.
        fields: Field (a column of the file) -> what is done with it.
        kinds: What is looked for.
        names: Kind -> names and other words that are looked for. They are personal themselves, so they are never
            stored: ``sealed`` puts marks in their place.
        marks: Mark of a name -> its kind.
        longest: Words of the longest name that is marked.
        patterns: Kind -> regular expression, such as ``CUSTOMER_ID`` -> ``C-[0-9]{6}``.
        set: Data sets of the same name get the same pseudonyms; empty for a name that is taken from the data's own.

    Raises:
        BadRequest: a value makes no sense; the message names it.
    """

    default: Treatment = "keep"
    fields: Mapping[str, Treatment]
    kinds: tuple[str, ...] = KINDS
    names: Mapping[str, tuple[str, ...]]
    marks: Mapping[str, str]
    longest: int = 0
    patterns: Mapping[str, str]
    set: str = ""

    def __post_init__(self) -> None:
        for field, treatment in (("default", self.default), *self.fields.items()):
            if treatment not in TREATMENTS:
                raise _refused(field, treatment, f"choose from {', '.join(TREATMENTS)}")
        for kind in self.kinds:
            if kind not in (*KINDS, *MORE_KINDS):
                raise _refused("kinds", kind, f"choose from {', '.join((*KINDS, *MORE_KINDS))}")
        for kind in (*self.names, *self.patterns, *self.marks.values()):
            if not _KIND.fullmatch(kind):
                raise _refused("kind", kind, "give capital letters, digits and '_', such as CUSTOMER_ID")
        for name in (name for names in self.names.values() for name in names):
            if not 1 <= len(tokens(name)) <= MAX_WORDS:
                raise _refused("names", name, f"give names of 1 to {MAX_WORDS} words, of letters or digits")
        if not _SET.fullmatch(self.set):
            raise _refused("set", self.set, f"give at most {MAX_SET} letters, digits, '.', '-', '+', '_' and spaces")
        if sum(map(len, self.names.values())) > MAX_NAMES:
            raise BadRequest(f"names are more than {MAX_NAMES}; give fewer", field="names")
        if len(self.patterns) > MAX_PATTERNS:
            raise BadRequest(f"patterns are more than {MAX_PATTERNS}; give fewer", field="patterns")
        for kind, pattern in self.patterns.items():
            try:
                if len(pattern) > MAX_PATTERN or re.compile(pattern).fullmatch(""):
                    raise _refused(kind, pattern, f"give one that matches something, of at most {MAX_PATTERN} letters")
            except re.error as error:
                raise _refused(kind, pattern, f"it is no regular expression: {error}") from error

    def of(self, field: str) -> Treatment:
        """What is done with ``field``."""
        return self.fields.get(field, self.default)

    @property
    def is_on(self) -> bool:
        """Whether anything is done at all."""
        return any(treatment != "keep" for treatment in (self.default, *self.fields.values()))

    @property
    def of_prompts(self) -> Treatment:
        """What is done with a text that belongs to no field, such as a prompt to a reflection LM."""
        used = (self.default, *self.fields.values())
        if self.default in ("redact", "pseudonymise"):
            return self.default
        return "pseudonymise" if "pseudonymise" in used else "redact" if self.is_on else "keep"

    def sealed(self, key: bytes) -> Policy:
        """The same policy with marks in the place of names; what it finds is the same."""
        found = {name: [word for word, _, _ in tokens(name)] for names in self.names.values() for name in names}
        marks = {mark(key, found[name]): kind for kind, names in self.names.items() for name in names}
        longest = max((self.longest, *map(len, found.values())))
        return replace(self, names={}, marks={**self.marks, **marks}, longest=longest)

    def to_json(self) -> dict[str, Any]:
        """The policy as JSON data, for storing.

        Raises:
            ValueError: it holds names; seal it first.
        """
        if self.names:
            raise ValueError("a policy that holds names is not stored; seal it first")
        return {
            "default": self.default,
            "fields": dict(self.fields),
            "kinds": list(self.kinds),
            "marks": dict(self.marks),
            "longest": self.longest,
            "patterns": dict(self.patterns),
            "set": self.set,
        }

    @classmethod
    def from_json(cls, data: Any) -> Policy:
        """The policy that ``data`` describes: what ``to_json`` gave, or what a user wrote.

        Raises:
            BadRequest: it describes none; the message names the field and the value.

        >>> Policy.from_json({"default": "pseudonymise", "names": ["Jane Roe"]}).names
        {'PERSON': ('Jane Roe',)}
        """
        try:
            json.dumps(data, ensure_ascii=False).encode()
        except (UnicodeEncodeError, RecursionError) as error:
            raise BadRequest("pii: the policy cannot be stored as text; give plain words", field="policy") from error
        if not isinstance(data, Mapping):
            raise _refused("policy", data, 'give an object such as {"default": "pseudonymise"}')
        known = (*WRITTEN, "marks", "longest")
        if unknown := [name for name in data if name not in known]:
            raise _refused("policy", unknown[0], f"its fields are {', '.join(known)}")
        names = data.get("names", {})
        names = {PERSON: names} if isinstance(names, list) else names
        if not isinstance(names, Mapping) or not all(_texts(each) for each in names.values()):
            raise _refused("names", names, "give a list of names, or an object of kinds and lists of names")
        for field in ("fields", "patterns", "marks"):
            part = data.get(field, {})
            if not isinstance(part, Mapping) or not _texts(list(part.values())):
                raise _refused(field, part, "give an object of names and texts")
        kinds = data.get("kinds", list(KINDS))
        if not _texts(kinds):
            raise _refused("kinds", kinds, "give a list of kinds")
        if not isinstance(data.get("default", "keep"), str) or not isinstance(data.get("set", ""), str):
            raise _refused("default", data.get("default"), f"choose from {', '.join(TREATMENTS)}")
        longest = data.get("longest", 0)
        if not isinstance(longest, int) or not 0 <= longest <= MAX_WORDS:
            raise _refused("longest", longest, "leave it out")
        return cls(
            default=data.get("default", "keep"),
            fields=dict(data.get("fields", {})),
            kinds=tuple(kinds),
            names={kind: tuple(each) for kind, each in names.items()},
            marks=dict(data.get("marks", {})),
            longest=longest,
            patterns=dict(data.get("patterns", {})),
            set=data.get("set", ""),
        )


def field_treatments(pairs: Sequence[str]) -> dict[str, str]:
    """Fields and what is done with them.

    >>> field_treatments(["customer=drop", "text=redact"])
    {'customer': 'drop', 'text': 'redact'}
    """
    found = {}
    for pair in pairs:
        field, equals, treatment = pair.rpartition("=")
        if not (field and equals and treatment):
            raise _refused("field", pair, "give FIELD=TREATMENT such as customer=drop")
        found[field.strip()] = treatment.strip()
    return found


def merged(base: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    """One description of a policy from two: ``more`` says it where both do; names and patterns of both count.

    >>> merged({"default": "redact", "fields": {"a": "drop"}}, {"default": "keep", "fields": {"b": "drop"}})
    {'default': 'keep', 'fields': {'a': 'drop', 'b': 'drop'}}
    """
    found = {**base, **more}
    for field in ("fields", "patterns"):
        if isinstance(base.get(field), Mapping) and isinstance(more.get(field), Mapping):
            found[field] = {**base[field], **more[field]}
    if base.get("names") and more.get("names"):
        one, other = ({PERSON: each} if isinstance(each, list) else each for each in (base["names"], more["names"]))
        if isinstance(one, Mapping) and isinstance(other, Mapping):
            found["names"] = {kind: [*one.get(kind, ()), *other.get(kind, ())] for kind in {**one, **other}}
    return found


def read_policy(file: Path) -> dict[str, Any]:
    """What a policy file says.

    Raises:
        BadRequest: it cannot be read.
    """
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BadRequest(
            f"the pii policy {file} cannot be read: {error}", field="pii_policy", value=str(file)
        ) from error
    if not isinstance(found, dict):
        raise BadRequest(f'the pii policy {file} is no object such as {{"default": "redact"}}', field="pii_policy")
    return found


def default_set(files: Sequence[str | Path]) -> str:
    """What a data set in ``files`` is called when nobody named it.

    >>> default_set(["a/train.csv", "a/test.csv"])
    'train+test'
    """
    return re.sub(r"[^\w.+ -]", "-", "+".join(Path(file).stem for file in files))[:MAX_SET]


def _texts(value: object) -> bool:
    return isinstance(value, list | tuple) and all(isinstance(each, str) for each in value)


def _refused(field: str, value: object, remedy: str) -> BadRequest:
    return BadRequest(f"pii: {field} is {value!r}; {remedy}", field=field, value=value)

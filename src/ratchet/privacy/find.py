"""Finds personal data in a text: Presidio's pattern recognizers on a blank spaCy pipeline, names, own patterns.

Nothing is fetched: no model, no list. What is found is held against more than a pattern where numbers of all sorts look
alike, so that dates, amounts and order numbers stay what they are.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from ratchet.core.errors import BadData, BadRequest
from ratchet.privacy.policy import KINDS, Policy, mark, tokens

PATTERN_SECONDS = 2.0
"""How long one pattern of a policy may look at one text."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """A place in a text, and what was found there."""

    start: int
    end: int
    kind: str


_MESSAGING = ("phone", "telephone", "tel", "mobile", "cell", "cellphone", "fax", "whatsapp", "sms", "call", "dial")
"""Words before a number that make it one to call; ``number``, which Presidio counts too, stands before any."""

_NEAR = 0.6
"""The score from which such a word was near."""

_DIGITS = re.compile(r"[-+()\[\]\s./\d~\u2010-\u2015\u2060\u2212\u223c\u30fc\uff08-\uff0f\uff5e]{7,}")
"""Digits, and what people put between them."""

_AS_DIALLED = re.compile(r"(?:\+[\d(]|\().*|0\d*[\s/.()-].*|\d{3}([\s.-])\d{3}\1\d{4}", re.DOTALL)
"""How a number is written that is one to call whatever stands before it: with ``+``, brackets, a trunk prefix, or in
the North American way. Others, such as an order's, are only such with a word before them."""

_NO_NUMBER = re.compile(r"\d{1,2}([./-])\d{1,2}\1\d{2,4}|\d{4}([./-])\d{1,2}\2\d{1,2}|(?:19|20)\d{6}|\d+[.,]\d+")
"""A date, or a number with digits behind its point."""

_NUMBERED = re.compile(
    r"\b(?:order|invoice|reference|ref|ticket|tracking|case|booking|transaction|shipment|serial|batch|item)"
    r"\W{0,3}(?:no|nr|number|id)?\W{0,3}$",
    re.IGNORECASE,
)
"""Stands before a number that is no card's: one of twenty that begin like a card's has the right check digit, too."""

_VERSION = re.compile(r"(?:\bv|\bver\.?\s?|\bversion\s|\brelease\s|\bbuild\s)$", re.IGNORECASE)


def _issued(number: str) -> bool:
    """Whether a card number begins as some issuer's numbers do, and is as long (ISO/IEC 7812)."""
    n, two, four = len(number), int(number[:2]), int(number[:4])
    return (
        (number[0] == "4" and n in (13, 16, 19))
        or ((51 <= two <= 55 or 2221 <= four <= 2720) and n == 16)
        or (two in (34, 37) and n == 15)
        or (two in (36, 38, 39) and n == 14)
        or (300 <= int(number[:3]) <= 305 and n == 14)
        or ((four == 6011 or two == 65 or 644 <= int(number[:3]) <= 649) and n == 16)
        or (3528 <= four <= 3589 and n == 16)
        or (two == 62 and 16 <= n <= 19)
    )


def _whole_number(text: str, start: int, end: int) -> bool:
    """Whether the number at this place is no part of a longer one, such as the digits behind a decimal point."""
    before, after = text[max(0, start - 2) : start], text[end : end + 2]
    return not re.search(r"\d[.,:/-]$|\d$", before) and not re.match(r"[.,:/-]?\d", after)


def _plausible(kind: str, text: str, start: int, end: int, score: float) -> bool:
    """Whether what a recognizer found is what it takes it for."""
    found = text[start:end]
    if kind == "PHONE_NUMBER":
        written = _AS_DIALLED.fullmatch(found) or score >= _NEAR
        return bool(written) and not _NO_NUMBER.fullmatch(found) and _whole_number(text, start, end)
    if kind == "CREDIT_CARD":
        numbered = found.isdigit() and _NUMBERED.search(text[max(0, start - 40) : start])
        return not numbered and _whole_number(text, start, end) and _issued(re.sub(r"\D", "", found))
    if kind == "IP_ADDRESS":
        if ":" in found:  # ``a::b`` stands in programs
            return len(found) >= 6 and any(each.isdigit() for each in found)
        return not _VERSION.search(text[max(0, start - 10) : start])
    return True


def _start(kind: str, text: str, start: int, end: int) -> int:
    """Where it begins: what may stand in an address, but more often before one, does not belong to it.

    Else ``'jane@x.org'`` and ``?to=jane@x.org`` would be others than ``jane@x.org``.
    """
    if kind != "EMAIL_ADDRESS":
        return start
    local = text[start : text.rindex("@", start, end)]
    rest = re.split(r"[/?=&]", local)[-1].lstrip("!#$%'*+^_`{|}~-.")
    return start + len(local) - len(rest) if rest else start


@cache
def analyzer(kinds: tuple[str, ...]) -> Any:
    """Presidio's engine for ``kinds``; made once.

    Raises:
        BadRequest: it is not installed.
    """
    try:
        import spacy
        import tldextract
        from presidio_analyzer import AnalyzerEngine, Pattern, RecognizerRegistry
        from presidio_analyzer import predefined_recognizers as known
        from presidio_analyzer.context_aware_enhancers import LemmaContextAwareEnhancer
        from presidio_analyzer.nlp_engine import NlpArtifacts, NlpEngine
    except ImportError as error:
        raise BadRequest("personal data is found by an extra: pip install 'dspy-ratchet[privacy]'") from error
    suffixes = tldextract.TLDExtract(cache_dir=None, suffix_list_urls=())  # the list it brings; it fetches none
    language = spacy.blank("en")
    language.max_length = 10**9  # a model would need memory for each letter; words alone do not

    class Blank(NlpEngine):  # type: ignore[misc]
        """Words and nothing more; a model would have to be fetched."""

        engine_name = "blank"

        def load(self) -> None:
            """Nothing to load."""

        def is_loaded(self) -> bool:
            return True

        def process_text(self, text: str, language_code: str) -> Any:
            doc = language.make_doc(text)
            places, words = [word.idx for word in doc], [word.lower_ for word in doc]
            return NlpArtifacts(
                entities=[], tokens=doc, tokens_indices=places, lemmas=words, nlp_engine=self, language=language_code
            )

        def process_batch(self, texts: Any, language_code: str, **_: Any) -> Iterator[Any]:
            return ((text, self.process_text(text, language_code)) for text in texts)

        def is_stopword(self, word: str, language_code: str) -> bool:
            return False  # ``call`` is one

        def is_punct(self, word: str, language_code: str) -> bool:
            return bool(language.vocab[word].is_punct)

        def get_supported_entities(self) -> list[str]:
            return []

        def get_supported_languages(self) -> list[str]:
            return ["en"]

    class Email(known.EmailRecognizer):  # type: ignore[misc]
        """Also takes hosts of a house's own (``jane@mail.local``): what is personal is not the host."""

        def validate_result(self, pattern_text: str) -> bool:
            return True

    class Url(known.UrlRecognizer):  # type: ignore[misc]
        """Asks the list of suffixes that is here."""

        def validate_result(self, pattern_text: str) -> bool:
            return suffixes(pattern_text).fqdn != ""

    class Phone(known.PhoneRecognizer):  # type: ignore[misc]
        """Looks where digits are and nowhere else: it reads whatever it looks at once for every region."""

        def analyze(self, text: str, entities: Any, nlp_artifacts: Any = None) -> Any:
            found = []
            for place in _DIGITS.finditer(text):
                if sum(map(str.isdecimal, place.group())) < 7:
                    continue
                first = max(0, place.start() - 2)
                for each in super().analyze(text[first : place.end() + 2], entities, nlp_artifacts):
                    each.start, each.end = each.start + first, each.end + first
                    found.append(each)
            return found

    second_series = Pattern("Mastercard of the second series", r"\b2[2-7]\d{2}(?:[- ]?\d{4}){3}\b", 0.3)
    makers: dict[str, Callable[[], Any]] = {
        "EMAIL_ADDRESS": Email,
        "PHONE_NUMBER": lambda: Phone(context=list(_MESSAGING)),
        "CREDIT_CARD": lambda: known.CreditCardRecognizer([*known.CreditCardRecognizer.PATTERNS, second_series]),
        "IBAN_CODE": lambda: known.IbanRecognizer(regex_flags=re.DOTALL | re.MULTILINE | re.IGNORECASE),
        "IP_ADDRESS": known.IpRecognizer,
        "MAC_ADDRESS": known.MacAddressRecognizer,
        "US_SSN": known.UsSsnRecognizer,
        "CRYPTO": known.CryptoRecognizer,
        "URL": Url,
        "US_ITIN": known.UsItinRecognizer,
        "US_PASSPORT": known.UsPassportRecognizer,
        "US_BANK_NUMBER": known.UsBankRecognizer,
        "UK_NHS": known.NhsRecognizer,
        "UK_NINO": known.UkNinoRecognizer,
        "UUID": known.UuidRecognizer,
        "DATE_TIME": known.DateRecognizer,
    }
    return AnalyzerEngine(
        registry=RecognizerRegistry(recognizers=[makers[kind]() for kind in kinds], supported_languages=["en"]),
        nlp_engine=Blank(),
        supported_languages=["en"],
        default_score_threshold=0.35,
        # By default ``cell`` in "excellent" would make any number one to call.
        context_aware_enhancer=LemmaContextAwareEnhancer(context_matching_mode="whole_word"),
    )


class Finder:
    """Finds what a policy looks for.

    Args:
        policy: One that is sealed with ``key``.
        key: The data set's.
        pattern_seconds: How long one pattern of the policy may look at one text.

    Raises:
        BadRequest: the extra is not installed.
    """

    def __init__(self, policy: Policy, key: bytes, *, pattern_seconds: float = PATTERN_SECONDS) -> None:
        self._engine = analyzer(tuple(sorted(policy.kinds)))
        self._key = key
        self._policy = policy
        self._seconds = pattern_seconds
        self._worth_a_look = re.compile(r"[@:\d]" if set(policy.kinds) <= set(KINDS) else "")
        self._known: dict[tuple[str, ...], str | None] = {}
        import regex  # what Presidio itself matches with: it can be told to give up

        try:
            self._patterns = [(kind, regex.compile(pattern)) for kind, pattern in policy.patterns.items()]
        except regex.error as error:
            raise BadRequest(f"pii: a pattern is no regular expression: {error}", field="patterns") from error

    def spans(self, text: str, *, near: Sequence[str] = (), taken: Iterable[tuple[int, int]] = ()) -> list[Span]:
        """What is found, in order; no two overlap.

        Args:
            near: Words that stand near the text, such as the name of its field.
            taken: Places where nothing is to be found.
        """
        found = [
            Span(start=_start(each.entity_type, text, each.start, each.end), end=each.end, kind=each.entity_type)
            for each in self._analyzed(text, near)
            if _plausible(each.entity_type, text, each.start, each.end, each.score)
        ]
        return apart([*self._matches(text), *self._names(text), *found], text, taken=taken)

    def _analyzed(self, text: str, near: Sequence[str]) -> Iterable[Any]:
        if not self._worth_a_look.search(text):
            return ()
        found: list[Any] = self._engine.analyze(text, "en", context=list(near) or None)
        return found

    def _matches(self, text: str) -> Iterator[Span]:
        for kind, pattern in self._patterns:
            try:
                for found in pattern.finditer(text, timeout=self._seconds):
                    if found.end() > found.start():
                        yield Span(start=found.start(), end=found.end(), kind=kind)
            except TimeoutError as error:
                # To go on would be to let through what it would have found.
                raise BadData(
                    f"pii: the pattern of {kind} took more than {self._seconds:g} s on one text; give a simpler one",
                    field="patterns",
                    value=kind,
                ) from error

    def _names(self, text: str) -> Iterator[Span]:
        """Names of the policy: every run of words is marked, and looked up among the marks."""
        if not self._policy.marks:
            return
        words = tokens(text)
        for first in range(len(words)):
            for last in range(first, min(first + self._policy.longest, len(words))):
                if last > first and not _JOINT.fullmatch(text, words[last - 1][2], words[last][1]):
                    break
                kind = self._kind(tuple(word for word, _, _ in words[first : last + 1]))
                if kind is not None:
                    yield Span(start=words[first][1], end=words[last][2], kind=kind)

    def _kind(self, words: tuple[str, ...]) -> str | None:
        if words not in self._known:
            if len(self._known) > 100_000:
                self._known.clear()
            self._known[words] = self._policy.marks.get(mark(self._key, words))
        return self._known[words]


_GROUP = re.compile(r"\d+")

_BETWEEN = re.compile(r"[\s().+/-]{0,3}")
"""What may stand between two groups of a number's digits."""


def numbers(text: str, known: Mapping[str, str]) -> list[Span]:
    """Where numbers stand that are known by their digits, however they are written.

    A number that a word before it gave away is as personal where no word does, in the answer for example.

    Args:
        known: Digits -> kind.

    >>> numbers("212-555-0123, or 7", {"2125550123": "PHONE_NUMBER"})
    [Span(start=0, end=12, kind='PHONE_NUMBER')]
    """
    groups = [(each.group(), each.start(), each.end()) for each in _GROUP.finditer(text)]
    found = []
    for first in range(len(groups)):
        digits = ""
        for last in range(first, min(first + 8, len(groups))):
            if last > first and not _BETWEEN.fullmatch(text, groups[last - 1][2], groups[last][1]):
                break
            digits += groups[last][0]
            if digits in known and _whole_number(text, groups[first][1], groups[last][2]):
                found.append(Span(start=groups[first][1], end=groups[last][2], kind=known[digits]))
    return found


_JOINT = re.compile(r"[\s_.,'’-]{1,3}")
"""What may stand between two words of a name."""


def apart(spans: Iterable[Span], text: str, *, taken: Iterable[tuple[int, int]] = ()) -> list[Span]:
    """Spans in order, none of which overlap: of two that do, the longer keeps all, and the other what is left of it.

    So an address has its own pseudonym also where a name runs into it.

    Args:
        taken: Places where nothing is to be found.

    >>> apart([Span(start=0, end=6, kind="A"), Span(start=4, end=12, kind="B")], "Roe jane@x.o")
    [Span(start=0, end=4, kind='A'), Span(start=4, end=12, kind='B')]
    """
    places, found = list(taken), list[Span]()
    for span in sorted(spans, key=lambda span: (span.start - span.end, span.start)):
        start = span.start
        inside = sorted(place for place in places if place[0] < span.end and place[1] > start)
        for first, last in (*inside, (span.end, span.end)):
            if any(each.isalnum() for each in text[start:first]):
                found.append(Span(start=start, end=first, kind=span.kind))
            start = max(start, last)
        places.append((span.start, span.end))
    return sorted(found, key=lambda span: span.start)

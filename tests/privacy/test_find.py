"""What is found, what is left alone, and that nothing is fetched for it."""

from __future__ import annotations

import subprocess
import sys

import pytest
from bench.privacy import NAMES, POLICY, measured

from ratchet.core.errors import BadData, BadRequest
from ratchet.privacy.find import Finder, Span, analyzer, apart
from ratchet.privacy.policy import KINDS, MORE_KINDS, Policy

KEY = bytes(range(32))


def found(text: str, **policy: object) -> list[tuple[str, str]]:
    """Kinds and originals in ``text``."""
    sealed = Policy.from_json({"default": "redact", **policy}).sealed(KEY)
    return [(span.kind, text[span.start : span.end]) for span in Finder(sealed, KEY).spans(text)]


def test_what_was_planted_is_found_and_numbers_of_other_sorts_are_left_alone() -> None:
    outcome = measured(1200, seed=7)
    for kind, each in outcome.kinds.items():
        assert each.planted > 20
        assert each.recall is not None
        assert each.recall >= 0.97, (kind, outcome.missed)
        assert each.precision is not None
        assert each.precision >= 0.98, (kind, outcome.mistaken)
    assert {kind: taken for kind, (_, taken) in outcome.harmless.items() if taken} == {}, outcome.mistaken


@pytest.mark.parametrize(
    "text",
    [
        "order 4711-2233-44 of 2026-11-25 costs 1,234.56",
        "25.11.2026, 11/25/2026, 20261125 and 2026-11-25T12:30:00Z",
        "0.4111111111111111 and 4111111111111111.5 and -0.7451883598",
        "order number 4111111111111111",
        "version 1.2.3.4 of std::vector<a::b>",
        "1732530000, 1732530000000",
        "ISBN 978-3-16-148410-0, 49.99 EUR, 8004",
        "",
    ],
)
def test_numbers_that_belong_to_nobody_stay(text: str) -> None:
    assert found(text) == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Jane.Roe+news@mail.corp.local!", [("EMAIL_ADDRESS", "Jane.Roe+news@mail.corp.local")]),
        ("https://x.org/?to=jane@x.org", [("EMAIL_ADDRESS", "jane@x.org")]),
        ("'jane@x.org' *jane@x.org* {jane@x.org}", [("EMAIL_ADDRESS", "jane@x.org")] * 3),
        ("phone 2125550123", [("PHONE_NUMBER", "2125550123")]),
        ("I paid by 4111111111111111.", [("CREDIT_CARD", "4111111111111111")]),
        ("2001:db8::1 and fe80::1", [("IP_ADDRESS", "2001:db8::1"), ("IP_ADDRESS", "fe80::1")]),
    ],
)
def test_what_is_personal_is_found_in_a_text(text: str, expected: list[tuple[str, str]]) -> None:
    assert found(text) == expected


@pytest.mark.parametrize(
    "text", ["Jane Roe", "JANE  ROE", "jane.roe", "Jane-Roe's", "(Jane Roe)", "jane_roe", "Ｊａｎｅ Roe"]
)
def test_a_name_is_found_however_it_is_written(text: str) -> None:
    spans = found(f"ask {text} now", names=["Jane Roe"])
    assert [kind for kind, _ in spans] == ["PERSON"]


def test_a_part_of_a_name_or_of_a_word_is_no_name() -> None:
    assert found("Jane and Roe, Janet Roessler; Jane; then Roe", names=["Jane Roe"]) == []


def test_kinds_and_patterns_of_ones_own_are_looked_for() -> None:
    text = "ticket C-123456 at https://example.org/x by Acme"
    assert found(text, patterns={"CUSTOMER_ID": "C-[0-9]{6}"}, names={"COMPANY": ["Acme"]}, kinds=["URL"]) == [
        ("CUSTOMER_ID", "C-123456"),
        ("URL", "https://example.org/x"),
        ("COMPANY", "Acme"),
    ]


def test_a_policy_as_it_is_stored_finds_the_same_and_holds_no_name() -> None:
    stored = POLICY.sealed(KEY).to_json()
    assert not any(name.casefold() in str(stored).casefold() for name in NAMES)
    again = Policy.from_json(stored)
    assert again.sealed(KEY) == again == POLICY.sealed(KEY)
    with pytest.raises(ValueError, match="seal"):
        POLICY.to_json()


def test_a_pattern_that_takes_too_long_is_refused_and_lets_nothing_through() -> None:
    policy = Policy.from_json({"default": "redact", "patterns": {"SLOW": "(?:a|aa|a.)+b"}})
    with pytest.raises(BadData, match="the pattern of SLOW"):
        Finder(policy, KEY, pattern_seconds=0.02).spans("a" * 5000 + "c")


def test_of_spans_that_overlap_nothing_is_left_and_the_longest_is_whole() -> None:
    spans = [Span(start=0, end=6, kind="A"), Span(start=2, end=9, kind="B"), Span(start=3, end=4, kind="C")]
    assert apart(spans, "abcdefghij", taken=[(8, 9)]) == [
        Span(start=0, end=2, kind="A"),
        Span(start=2, end=8, kind="B"),
    ]
    assert found("ask Roe jane@x.org", names=["Roe Jane"]) == [("PERSON", "Roe "), ("EMAIL_ADDRESS", "jane@x.org")]


@pytest.mark.parametrize(
    ("policy", "told"),
    [
        ({"default": "hide"}, "default is 'hide'"),
        ({"fields": {"text": "mask"}}, "text is 'mask'"),
        ({"fields": ["text"]}, "fields"),
        ({"names": "Jane"}, "names"),
        ({"names": ["--"]}, "letters or digits"),
        ({"patterns": {"ID": "("}}, "no regular expression"),
        ({"patterns": {"ID": "x*"}}, "matches something"),
        ({"patterns": {"id": "x"}}, "capital letters"),
        ({"kinds": ["FACE"]}, "kinds is 'FACE'"),
        ({"treatment": "keep"}, "treatment"),
        ({"set": "x" * 300}, "set"),
        (["redact"], "policy"),
    ],
)
def test_a_policy_that_makes_no_sense_is_refused_by_name(policy: object, told: str) -> None:
    with pytest.raises(BadRequest, match=r"pii: ") as refused:
        Policy.from_json(policy)
    assert told in str(refused.value)


def test_without_the_extra_the_error_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "presidio_analyzer", None)
    with pytest.raises(BadRequest, match=r"pip install 'dspy-ratchet\[privacy\]'"):
        analyzer.__wrapped__(KINDS)


def test_nothing_is_fetched() -> None:
    """Presidio's recognizers of addresses would fetch a list of suffixes at their first use."""
    code = f"""
import sys
called = []
REACH = ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto", "socket.sendmsg")
sys.addaudithook(lambda event, _: called.append(event) if event in REACH else None)
from ratchet.privacy.clean import Cleaner
from ratchet.privacy.policy import Policy
cleaner = Cleaner(Policy.from_json({{"default": "redact", "kinds": {[*KINDS, *MORE_KINDS]}}}), bytes(32))
print(cleaner.prompt("jane@mail.example.co.uk, https://www.example.co.uk/a or +49 30 901820"))
print(*called)
"""
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "<EMAIL_ADDRESS>, <URL> or <PHONE_NUMBER>\n\n"
    assert done.stderr == ""

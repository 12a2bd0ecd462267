"""Cleaning: the same every time, once for all, all of it, and nothing else."""

from __future__ import annotations

import json
import random
import re
from typing import Any

import pytest
from bench.privacy import NAMES, PERSONAL
from hypothesis import given
from hypothesis import strategies as st

from ratchet.privacy.clean import Cleaner, normal, shape
from ratchet.privacy.policy import Policy, Treatment, merged

KEY = bytes(range(32))
TREATMENTS: tuple[Treatment, ...] = ("redact", "pseudonymise")


def cleaner(key: bytes = KEY, **policy: Any) -> Cleaner:
    given = {"default": "pseudonymise", "names": list(NAMES), "patterns": {"CUSTOMER_ID": "C-[0-9]{6}"}}
    return Cleaner(Policy.from_json({**given, **policy}), key)


CLEANER = cleaner()

planted = st.builds(
    lambda kind, seed: (kind, PERSONAL[kind][1](random.Random(seed))),
    st.sampled_from([kind for kind in PERSONAL if kind != "PHONE_NUMBER"]),  # some of these are only found by context
    st.integers(0, 10**6),
)
filler = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="@"), max_size=12)
texts = st.builds(
    lambda parts, end: ("".join(f"{before} {original} " for before, (_, original) in parts) + end, parts),
    st.lists(st.tuples(filler, planted), max_size=4),
    filler,
)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | texts.map(lambda pair: pair[0]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abc@.x", max_size=6), inner, max_size=3),
    max_leaves=8,
)


@given(texts, st.sampled_from(TREATMENTS))
def test_nothing_that_was_planted_remains(
    pair: tuple[str, list[tuple[str, tuple[str, str]]]], treatment: Treatment
) -> None:
    text, parts = pair
    cleaned, found = CLEANER.text(text, treatment)
    for _, (_, original) in parts:
        assert original not in cleaned
        assert any(original in each for _, each in found)


@given(values, st.sampled_from(TREATMENTS))
def test_cleaning_what_is_clean_changes_nothing(value: Any, treatment: Treatment) -> None:
    once, _ = CLEANER.value(value, treatment)
    twice, found = CLEANER.value(once, treatment)
    assert twice == once
    assert found == []
    json.dumps(once)


@given(st.lists(st.dictionaries(st.sampled_from(["text", "phone", "label"]), values, min_size=1), max_size=3))
def test_cleaning_rows_that_are_clean_changes_nothing(rows: list[dict[str, Any]]) -> None:
    once, _ = CLEANER.rows(rows)
    twice, report = CLEANER.rows(once)
    assert twice == once
    assert (report.touched, report.counts()) == (0, {})


@given(texts)
def test_what_is_pseudonymised_is_not_redacted_after_it(pair: tuple[str, Any]) -> None:
    once, _ = CLEANER.text(pair[0], "pseudonymise")
    assert CLEANER.text(once, "redact")[0] == once


@given(values)
def test_a_field_that_is_kept_is_untouched(value: Any) -> None:
    rows, report = cleaner(fields={"text": "keep"}).rows([{"text": value}])
    assert rows[0]["text"] is value
    assert report.touched == 0


@given(st.lists(planted, min_size=2, max_size=6))
def test_the_same_original_has_the_same_pseudonym_everywhere_and_others_have_others(parts: Any) -> None:
    once = {part: CLEANER.pseudonym(*part) for part in parts}
    other_file = cleaner()
    same: dict[tuple[str, str], str] = {}
    for (kind, original), pseudonym in once.items():
        assert other_file.text(f"see {original} there", "pseudonymise")[0] in (
            f"see {pseudonym} there",
            f"see {original} there",
        )
        name = original.casefold() if kind == "PERSON" else normal(kind, original)
        assert same.setdefault((kind, name), pseudonym) == pseudonym
    assert len(set(same.values())) == len(same)


def test_a_hundred_thousand_originals_have_a_hundred_thousand_pseudonyms() -> None:
    assert len({CLEANER.pseudonym("EMAIL_ADDRESS", f"user{n}@example.org") for n in range(100_000)}) == 100_000


def test_a_pseudonym_looks_like_what_it_stands_for_and_says_nothing_without_the_key() -> None:
    said = CLEANER.text("jane@x.org, +49 30 901820", "pseudonymise")[0]
    assert re.fullmatch(r"person-[a-z]{12}@example\.invalid, <PHONE_NUMBER_[a-z]{12}>", said)
    assert cleaner(bytes(32)).pseudonym("EMAIL_ADDRESS", "jane@x.org") not in said
    assert CLEANER.text("Jane@X.org", "pseudonymise")[0] == said.partition(",")[0]
    assert CLEANER.text("0049 30 90 18 20", "redact")[0] != ""


@pytest.mark.parametrize("treatment", TREATMENTS)
def test_inputs_and_labels_go_by_one_map_so_that_answers_stay_right(treatment: Treatment) -> None:
    rows, _ = cleaner(default=treatment).rows(
        [{"text": "mail jane@x.org or li@y.org", "label": "jane@x.org", "all": ["jane@x.org", {"to": "li@y.org"}]}]
    )
    assert rows[0]["label"] in rows[0]["text"]
    assert rows[0]["all"][0] == rows[0]["label"]
    assert rows[0]["all"][1]["to"] in rows[0]["text"]


@pytest.mark.parametrize("treatment", TREATMENTS)
def test_a_number_that_a_word_gave_away_is_found_where_no_word_does(treatment: Treatment) -> None:
    rows, report = cleaner(default=treatment, fields={"raw": "keep"}).rows(
        [
            {"text": "my phone 2125550123", "label": "2125550123", "digits": 2125550123, "raw": "2125550123"},
            {"text": "it is 212 555 0123, or 2125550124", "label": "20261125001"},
        ]
    )
    name = rows[0]["text"].removeprefix("my phone ")
    assert rows == [
        {"text": f"my phone {name}", "label": name, "digits": name, "raw": "2125550123"},
        {"text": f"it is {name}, or 2125550124", "label": "20261125001"},
    ]
    assert (report.touched, report.counts()) == (2, {"PHONE_NUMBER": 4})


def test_a_row_in_which_a_number_stands_with_and_without_its_word_is_counted_once() -> None:
    text = f"My phone is 2125550123. {'And that was all there was to say. ' * 4} 2125550123 it is."
    _, report = CLEANER.rows([{"text": text}])
    found = report.found["text"]["PHONE_NUMBER"]
    assert (found.count, found.rows, report.touched) == (2, 1, 1)


def test_the_name_of_a_field_says_what_stands_alone_in_it() -> None:
    rows, _ = cleaner(default="redact").rows(
        [{"customer_phone": "2125550123", "contact": {"mobilePhone": 4155550123}, "id": "2065550123"}]
    )
    assert rows == [
        {"customer_phone": "<PHONE_NUMBER>", "contact": {"mobilePhone": "<PHONE_NUMBER>"}, "id": "2065550123"}
    ]


def test_every_field_is_treated_as_it_says() -> None:
    fields = {"a": "keep", "b": "drop", "c": "pseudonymise"}
    rows, report = cleaner(default="redact", fields=fields).rows([dict.fromkeys("abcd", "jane@x.org")])
    assert rows[0].pop("c").startswith("person-")
    assert rows == [{"a": "jane@x.org", "d": "<EMAIL_ADDRESS>"}]
    assert report.dropped == {"b": 1}


def test_a_very_long_text_and_a_very_large_number_are_coped_with() -> None:
    text = ("n" * 499 + " ") * 2_100 + "jane@x.org"  # spaCy refuses a million letters unless it is told otherwise
    (cleaned, large), found = CLEANER.value([text, 10**5000], "redact")
    assert cleaned.endswith("n <EMAIL_ADDRESS>")
    assert large == 10**5000
    assert len(found) == 1


def test_numbers_stay_numbers_and_keys_that_look_alike_stay_two() -> None:
    value = {"n": 20261125001, "card": 4111111111111111, "by": {"jane@x.org": 1, "li@y.org": 2}, "x": 0.5, "y": True}
    cleaned, found = CLEANER.value(value, "redact")
    assert cleaned == {
        "n": 20261125001,
        "card": "<CREDIT_CARD>",
        "by": {"<EMAIL_ADDRESS>": 1, "<EMAIL_ADDRESS> (2)": 2},
        "x": 0.5,
        "y": True,
    }
    assert len(found) == 3


def test_the_report_counts_by_field_and_kind_and_holds_no_original() -> None:
    rows = [{"text": f"jane{n}@x.org and 4111 1111 1111 1111", "label": "Jane Roe", "n": n} for n in range(5)]
    _, report = CLEANER.rows([*rows, {"text": "nothing", "label": "", "n": 0}])
    said = report.to_json()
    assert (said["rows"], said["rows_touched"]) == (6, 5)
    assert said["found"]["text"] == {
        "CREDIT_CARD": {"count": 5, "rows": 5, "shapes": ["9999 9999 9999 9999"]},
        "EMAIL_ADDRESS": {"count": 5, "rows": 5, "shapes": ["xxxx9@x.xxx"]},
    }
    assert said["found"]["label"] == {"PERSON": {"count": 5, "rows": 5, "shapes": ["Xxxx Xxx"]}}
    assert "jane" not in str(said).casefold()
    assert report.told() == "personal data in 5 of 6 rows: CREDIT_CARD 5, EMAIL_ADDRESS 5, PERSON 5"


@given(st.text())
def test_a_shape_holds_no_letter_and_no_digit(text: str) -> None:
    assert all(each in "Xx9" for each in shape(text) if each.isalnum())


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        ({"default": "keep"}, "keep"),
        ({"default": "redact", "fields": {"a": "pseudonymise"}}, "redact"),
        ({"default": "keep", "fields": {"a": "pseudonymise", "b": "redact"}}, "pseudonymise"),
        ({"default": "drop", "fields": {"a": "keep"}}, "redact"),
    ],
)
def test_prompts_are_cleaned_whenever_something_is(policy: dict[str, Any], expected: Treatment) -> None:
    assert Policy.from_json(policy).of_prompts == expected


def test_names_and_patterns_of_both_policies_count() -> None:
    both = merged(
        {"names": ["Jane Roe"], "patterns": {"A": "a1"}, "default": "redact"},
        {"names": {"COMPANY": ["Acme"], "PERSON": ["Li Wei"]}, "patterns": {"B": "b1"}},
    )
    policy = Policy.from_json(both)
    assert policy.names == {"PERSON": ("Jane Roe", "Li Wei"), "COMPANY": ("Acme",)}
    assert (dict(policy.patterns), policy.default) == ({"A": "a1", "B": "b1"}, "redact")

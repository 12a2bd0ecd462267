"""Personal data on its way into an optimization from Python, and which policy holds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ratchet.core.errors import BadRequest
from ratchet.core.problem import Example
from ratchet.guard import KEEP, clean_examples, clean_rows, clean_splits, guarded, policy_for
from ratchet.options import Options
from ratchet.privacy.clean import Cleaner
from ratchet.privacy.policy import Policy
from ratchet.programs.datasets import Row, Splits
from ratchet.settings import Settings
from ratchet.testing.runs import database

KEY = bytes(range(32))
MAIL = "jane@x.org"


def cleaner(**policy: Any) -> Cleaner:
    return Cleaner(Policy.from_json({"default": "redact", **policy}), KEY)


def example(label: str = MAIL) -> Example:
    return Example(inputs={"text": f"to {MAIL}"}, labels={"label": label})


def test_examples_are_cleaned_in_inputs_and_labels() -> None:
    examples, report = clean_examples(cleaner(), [example()])
    assert examples == (Example(inputs={"text": "to <EMAIL_ADDRESS>"}, labels={"label": "<EMAIL_ADDRESS>"}),)
    assert (report.rows, report.touched, report.counts()) == (1, 1, {"EMAIL_ADDRESS": 2})


def test_what_an_input_gives_away_is_found_in_a_label_and_each_example_counts_once() -> None:
    given = [
        Example(inputs={"text": "call 212 555 0123"}, labels={"label": "none"}),
        Example(inputs={"text": "which number?"}, labels={"label": "2125550123, of 7"}),
        Example(inputs={"text": "nobody's"}, labels={"label": "nothing"}),
    ]
    examples, report = clean_examples(cleaner(), given)
    assert [each.inputs["text"] for each in examples] == ["call <PHONE_NUMBER>", "which number?", "nobody's"]
    assert [each.labels["label"] for each in examples] == ["none", "<PHONE_NUMBER>, of 7", "nothing"]
    assert (report.rows, report.touched, report.counts()) == (3, 2, {"PHONE_NUMBER": 2})


def test_a_label_may_be_dropped() -> None:
    (cleaned,), report = clean_examples(cleaner(fields={"label": "drop"}), [example()])
    assert cleaned == Example(inputs={"text": "to <EMAIL_ADDRESS>"}, labels={})
    assert report.dropped == {"label": 1}


def test_splits_are_cleaned_and_what_was_found_is_noted() -> None:
    given = Splits(train=(example(),), validation=(example("no"),), test=(example(),), notes=("a note",))
    splits = clean_splits(cleaner(), given)
    assert splits.test[0].inputs == {"text": "to <EMAIL_ADDRESS>"}
    assert splits.notes[:2] == ("a note", "train: personal data in 1 of 1 rows: EMAIL_ADDRESS 2")
    assert clean_splits(cleaner(), splits) == splits


def test_an_input_that_is_dropped_is_missed() -> None:
    with pytest.raises(BadRequest, match="'text' is dropped"):
        clean_examples(cleaner(fields={"text": "drop"}), [example()])
    with pytest.raises(BadRequest, match="every field is dropped"):
        clean_rows(cleaner(fields={"text": "drop"}), [Row(number=1, fields={"text": "a"})])


def test_what_was_asked_goes_before_what_the_installation_does() -> None:
    settings = Settings(pii="redact")
    assert policy_for(None, settings, called="mails") == Policy.from_json({"default": "redact", "set": "mails"})
    assert policy_for({"default": "keep"}, settings, called="mails").is_on is False
    assert policy_for({"set": "other"}, settings, called="mails").set == "other"


def test_options_are_stored_with_the_policy_and_without_a_name(tmp_path: Path) -> None:
    archive = database(tmp_path)
    asked = Options(target="text -> label", data="a/mails.csv", pii={"default": "redact", "names": ["Jane Roe"]})
    options, cleans = guarded(asked, Settings(home=tmp_path), archive)
    assert cleans is not None
    assert options.pii == cleans.policy.to_json()
    assert "Jane" not in str(options)
    assert options.pii["set"] == "mails"
    again, same = guarded(Options.from_json(options.to_json()), Settings(home=tmp_path, pii="keep"), archive)
    assert again == options
    assert same is not None
    assert same.prompt(f"ask Jane Roe, {MAIL}") == "ask <PERSON>, <EMAIL_ADDRESS>"
    kept, nothing = guarded(Options(target="text -> label"), Settings(home=tmp_path), archive)
    assert (kept.pii, nothing) == (KEEP.to_json(), None)
    archive.close()

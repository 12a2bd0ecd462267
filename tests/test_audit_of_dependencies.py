"""What is known of a dependency is told, and what could not be asked is not taken for good news."""

from __future__ import annotations

import re
from pathlib import Path

from tools.audit import Finding, advisories, verdict, yanked

ROOT = Path(__file__).parents[1]
BAD = Finding(pin="a==1", name="PYSEC-2026-1", what="It runs what it reads.")


def test_an_advisory_is_a_finding_with_the_version_that_mends_it() -> None:
    vulnerability = {"id": "PYSEC-2026-1", "fix_versions": ["2"], "description": "It runs what it reads.\nMore."}
    report = {"dependencies": [{"name": "a", "version": "1", "vulns": [vulnerability]}]}
    ((found,), skipped, looked_at) = advisories(report)
    assert (found.pin, found.name, skipped, looked_at) == ("a==1", "PYSEC-2026-1", [], 1)
    assert "Fixed in 2" in found.what


def test_an_advisory_without_words_is_a_finding_too() -> None:
    vulnerability = {"id": "PYSEC-2026-1", "fix_versions": [], "description": ""}
    ((found,), _, _) = advisories({"dependencies": [{"name": "a", "version": "1", "vulns": [vulnerability]}]})
    assert "Fixed in no version" in found.what


def test_a_finding_is_not_explained_by_what_is_said_of_another() -> None:
    assert verdict([BAD], [], 1, explained="PYSEC-2026-12 does not reach us.")[1] == 1
    taken_back = Finding(pin="a==1", name="yanked", what="")
    assert verdict([taken_back], [], 1, explained="aa==1, a==1.2 and a==1-x")[1] == 1
    assert verdict([taken_back], [], 1, explained="`a==1` was yanked for nothing.")[1] == 0


def test_a_finding_fails_until_it_is_explained() -> None:
    assert verdict([BAD], [], 1, explained="")[1] == 1
    assert verdict([BAD], [], 1, explained="PYSEC-2026-1 does not reach us: we read no such files.")[1] == 0
    assert verdict([], [], 1, explained="")[1] == 0


def test_what_could_not_be_asked_is_not_audited() -> None:
    text, code = verdict([], ["a"], 1, explained="")
    assert code == 2
    assert "NOT AUDITED: the vulnerability service knows nothing of 1 of 1 pins" in text
    assert verdict([], [], 0, explained="")[1] == 2


def test_a_yanked_release_is_a_finding_with_its_reason() -> None:
    told = 'Resolved 2 packages\nwarning: `a==1` is yanked (reason: "it leaks")\nwarning: `b==2` is yanked\n'
    assert [(each.pin, each.what) for each in yanked(told)] == [("a==1", "it leaks"), ("b==2", "no reason was given")]
    assert verdict(yanked(told), [], 2, explained="a==1 and b==2 are yanked for good reasons")[1] == 0


def test_every_test_that_the_threat_model_names_is_there() -> None:
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", (ROOT / "docs" / "security.md").read_text(encoding="utf-8"))
    assert len(named) > 30
    for file, name in named:
        assert f"def {name}(" in (ROOT / file).read_text(encoding="utf-8"), f"{file}::{name}"

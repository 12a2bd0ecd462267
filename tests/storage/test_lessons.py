"""Lessons are kept alike in memory and in a database."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from ratchet.analytics.knowledge import LessonStore
from ratchet.core.errors import UnknownName
from ratchet.core.features import TaskFeatures
from ratchet.core.lesson import Lesson, Progress
from ratchet.storage.lessons import MemoryLessons, SqlLessons, place_of
from ratchet.storage.sql import SqlArchive

TASK = TaskFeatures(train=4, validation=2, predictors=1, output="text", inputs=("q",), outputs=("a",), headroom=0.5)
NOON = datetime(2026, 3, 4, 12, tzinfo=UTC)


def lesson(name: str, *, tenant: str = "acme", minutes: int = 0, **more: Any) -> Lesson:
    values: dict[str, Any] = {"features": TASK, "status": "improved", "warm_start": "on", **more}
    return Lesson(id=name, tenant=tenant, created_at=NOON + timedelta(minutes=minutes), **values)


@pytest.fixture(params=["memory", "sql"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[LessonStore]:
    if request.param == "memory":
        yield MemoryLessons()
        return
    archive = SqlArchive(f"sqlite:///{tmp_path}/ratchet.db")
    SqlLessons(archive)
    yield SqlLessons(archive)  # a second one finds the table there
    archive.close()


def test_a_lesson_comes_back_as_it_was(store: LessonStore) -> None:
    kept = lesson(
        "a1",
        gain=0.1,
        progress=(Progress(algorithm="gepa", runs=3, gain=0.1),),
        instructions={"self": 'Say "yes"\ud800 or \0 no.'},
        usd=None,
    )
    store.keep(kept)
    assert store.lessons("acme") == [kept]
    assert store.find("a", "acme") == kept


def test_the_newest_comes_first_and_a_limit_cuts_the_oldest(store: LessonStore) -> None:
    for minutes, name in ((1, "b"), (3, "a"), (2, "c")):
        store.keep(lesson(name, minutes=minutes))
    assert [each.id for each in store.lessons("acme")] == ["a", "c", "b"]
    assert [each.id for each in store.lessons("acme", limit=2)] == ["a", "c"]


def test_a_list_goes_on_behind_a_lesson_that_was_the_last_of_a_page(store: LessonStore) -> None:
    for minutes, name in ((1, "a"), (2, "b"), (2, "c"), (3, "d")):  # two of the same moment
        store.keep(lesson(name, minutes=minutes))
    seen: list[str] = []
    while page := store.lessons("acme", limit=1, before=place_of(store.find(seen[-1], "acme")) if seen else None):
        seen += [each.id for each in page]
    assert seen == ["d", "c", "b", "a"]


def test_a_lesson_that_is_kept_again_is_replaced(store: LessonStore) -> None:
    store.keep(lesson("a", gain=0.1))
    store.keep(lesson("a", gain=0.2))
    assert [each.gain for each in store.lessons("acme")] == [0.2]


def test_no_tenant_sees_or_forgets_what_is_anothers(store: LessonStore) -> None:
    store.keep(lesson("a"))
    store.keep(lesson("a", tenant="other", gain=0.7))
    store.keep(lesson("b", tenant="other"))
    assert [each.id for each in store.lessons("acme")] == ["a"]
    with pytest.raises(UnknownName, match="no lesson"):
        store.find("b", "acme")
    with pytest.raises(UnknownName):
        store.forget("acme", lesson_id="b")
    assert store.forget("acme") == 1
    assert store.lessons("acme") == []
    assert len(store.lessons("other")) == 2


def test_a_lesson_is_found_by_a_unique_beginning_of_its_id(store: LessonStore) -> None:
    for name in ("ab", "ac", "b", "bc"):
        store.keep(lesson(name))
    assert store.find("ab", "acme").id == "ab"
    assert store.find("b", "acme").id == "b"
    with pytest.raises(UnknownName, match="more than one"):
        store.find("a", "acme")
    with pytest.raises(UnknownName, match="ratchet lessons list"):
        store.find("", "acme")


def test_one_lesson_is_forgotten_and_the_others_stay(store: LessonStore) -> None:
    for name in ("a", "b"):
        store.keep(lesson(name))
    assert store.forget("acme", lesson_id="a") == 1
    assert [each.id for each in store.lessons("acme")] == ["b"]

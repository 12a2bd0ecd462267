"""Lessons over HTTP: a tenant's own, in pages, and forgotten with an entry in the trail."""

from __future__ import annotations

from datetime import timedelta

from ratchet.core.lesson import Bought, Lesson
from ratchet.testing.service import House, a_lesson


def taught(house: House, *names: str, tenant: str = "default") -> list[Lesson]:
    """Lessons of these ids, each younger than the one before."""
    lessons = [
        a_lesson(name, at=house.clock.now + timedelta(minutes=minutes), tenant=tenant)
        for minutes, name in enumerate(names)
    ]
    for lesson in lessons:
        house.desk.lessons.keep(lesson)
    return lessons


def test_lessons_come_in_pages_the_newest_first(house: House) -> None:
    taught(house, "a", "b", "c", "d", "e")
    taught(house, "x", tenant="other")
    seen, cursor = [], None
    while True:
        given = {"limit": 2} | ({} if cursor is None else {"cursor": cursor})
        page = house.ask("GET", "/api/v1/lessons", role="viewer", params=given).json()
        seen += [each["id"] for each in page["items"]]
        if (cursor := page["next"]) is None:
            break
    assert seen == ["e", "d", "c", "b", "a"]
    assert house.ask("GET", "/api/v1/lessons", params={"cursor": "nonsense"}).status_code == 422


def test_a_lesson_is_told_as_it_was_kept(house: House) -> None:
    bought = (Bought(edit="self: rewritten", gain=0.1, interval=(0.02, 0.2), n=40),)
    kept = a_lesson(
        "a1", at=house.clock.now, bought=bought, demos={"self": ({"q": 1},)}, instructions={"self": "Sort."}
    )
    house.desk.lessons.keep(kept)
    answer = house.ask("GET", "/api/v1/lessons/a1", role="viewer")
    assert Lesson.from_json(answer.json()) == kept
    assert house.ask("GET", "/api/v1/lessons/a1", headers={"If-None-Match": answer.headers["ETag"]}).status_code == 304


def test_a_lesson_has_its_whole_id_in_an_address(house: House) -> None:
    taught(house, "a1", "a2")
    for beginning in ("a", "a1x", ""):
        assert house.ask("GET", f"/api/v1/lessons/{beginning or '%20'}").status_code == 404
        assert house.ask("DELETE", f"/api/v1/lessons/{beginning or '%20'}").status_code == 404
    assert len(house.desk.lessons.lessons("default")) == 2


def test_a_lesson_that_is_forgotten_is_gone_for_its_tenant_alone_and_the_trail_tells(house: House) -> None:
    taught(house, "a1", "a2")
    taught(house, "a1", tenant="other")
    assert house.ask("DELETE", "/api/v1/lessons/a1").status_code == 204
    assert house.ask("DELETE", "/api/v1/lessons/a1").status_code == 404
    assert [each.id for each in house.desk.lessons.lessons("default")] == ["a2"]
    assert [each.id for each in house.desk.lessons.lessons("other")] == ["a1"]
    newest = house.ask("GET", "/api/v1/audit", params={"limit": 1}).json()["items"][0]
    assert (newest["action"], newest["object"]) == ("lesson.forget", "a1")

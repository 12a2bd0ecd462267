"""Versions: a winner waits until it is promoted, and slips back when it is taken back."""

from __future__ import annotations

import pytest

from ratchet.testing.service import House, actor


def register(house: House, n: int = 2) -> list[str]:
    """The ids of so many versions of one target."""
    job = house.job()
    return [
        house.desk.versions.register(
            actor("developer"), target="sorter", optimization_id=f"{job}{number}", candidate=f"{number:016}"
        ).id
        for number in range(n)
    ]


def states(house: House) -> list[str]:
    """How all versions stand, the oldest first."""
    items = house.ask("GET", "/api/v1/versions?target=sorter").json()["items"]
    return [item["state"] for item in reversed(items)]


def test_a_champion_stays_until_another_one_is_promoted_and_comes_back_when_that_is_taken_back(house: House) -> None:
    first, second = register(house)
    assert states(house) == ["challenger", "challenger"]
    for identity, expected in ((first, ["champion", "challenger"]), (second, ["history", "champion"])):
        for _ in range(2):
            assert house.ask("POST", f"/api/v1/versions/{identity}/promote").json()["state"] == "champion"
        assert states(house) == expected
    assert house.ask("POST", f"/api/v1/versions/{first}/rollback").status_code == 409
    back = house.ask("POST", f"/api/v1/versions/{second}/rollback").json()
    assert (back["target"], back["champion"]["id"]) == ("sorter", first)
    assert states(house) == ["champion", "history"]
    assert house.ask("POST", f"/api/v1/versions/{first}/rollback").json() == {"target": "sorter", "champion": None}
    assert states(house) == ["history", "history"]
    assert house.desk.versions.champion("default", "sorter") is None
    assert house.ask("POST", f"/api/v1/versions/{second}/promote").json()["state"] == "champion"
    actions = [entry.action for entry in house.desk.audit.entries("default")]
    assert actions[:4] == ["version.promote", "version.rollback", "version.rollback", "version.promote"]
    house.desk.audit.verify()


def test_two_people_cannot_override_each_other_unseen(house: House) -> None:
    first, second = register(house)
    seen = {identity: house.ask("GET", f"/api/v1/versions/{identity}").headers["etag"] for identity in (first, second)}

    def promote(identity: str, tag: str) -> int:
        answer = house.ask("POST", f"/api/v1/versions/{identity}/promote", headers={"If-Match": tag})
        return int(answer.status_code)

    assert promote(first, seen[first]) == 200
    assert promote(second, seen[second]) == 412
    now = house.ask("GET", f"/api/v1/versions/{second}").headers["etag"]
    assert promote(second, f'"other", {now}') == 200
    assert house.ask("POST", f"/api/v1/versions/{second}/rollback", headers={"If-Match": now}).status_code == 412
    assert house.ask("POST", f"/api/v1/versions/{second}/rollback", headers={"If-Match": "*"}).status_code == 200


@pytest.mark.parametrize("kind", ["optimizations", "datasets", "targets", "versions"])
def test_what_is_known_already_is_not_sent_again(house: House, kind: str) -> None:
    identity = {
        "optimizations": house.job,
        "datasets": lambda: "mails",
        "targets": lambda: "sorter",
        "versions": house.version,
    }
    house.job()
    address = f"/api/v1/{kind}/{identity[kind]()}"
    answer = house.ask("GET", address)
    tag = answer.headers["etag"]
    for sent in (tag, f"W/{tag}", f'"x", {tag}', "*"):
        again = house.ask("GET", address, headers={"If-None-Match": sent})
        assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", tag)
    assert house.ask("GET", address, headers={"If-None-Match": '"x"'}).json() == answer.json()


def test_an_optimization_has_another_tag_when_it_stands_differently(house: House) -> None:
    address = f"/api/v1/optimizations/{house.job()}"
    before = house.ask("GET", address).headers["etag"]
    house.ask("POST", f"{address}/cancel")
    answer = house.ask("GET", address, headers={"If-None-Match": before})
    assert answer.json()["status"] == "cancelled"
    assert answer.headers["etag"] != before


def test_a_fork_over_http_keeps_what_it_was_not_told_to_change(house: House) -> None:
    job = house.job()
    answer = house.ask("POST", f"/api/v1/optimizations/{job}/fork", json={"seed": 5, "constraints": {"max_usd": None}})
    assert answer.status_code == 202, answer.text
    assert answer.json()["forked_from"] == job
    fork = answer.headers["location"].rpartition("/")[2]
    first, second = (house.desk.archive.find(identity).request["options"] for identity in (job, fork))
    assert second == {**first, "seed": 5}
    assert house.queue.waiting == [(job, 1), (fork, 1)]
    for body, field in (({"seed": -1}, "seed"), ({"from_stage": "x"}, "from_stage"), ({"lm": "x"}, "lm")):
        refused = house.ask("POST", f"/api/v1/optimizations/{job}/fork", json=body)
        assert refused.status_code == 422
        assert refused.json()["errors"][0]["field"] == field

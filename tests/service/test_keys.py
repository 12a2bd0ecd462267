"""Keys over HTTP: an admin's matter, shown once, and never another tenant's."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from ratchet.core.access import Role
from ratchet.testing.service import House


def made(house: House, **more: Any) -> Any:
    """The response to a request for a key."""
    headers, tenant = more.pop("headers", {}), more.pop("tenant", "default")
    body = {"name": "ci", "role": "viewer", **more}
    return house.ask("POST", "/api/v1/keys", json=body, headers=headers, tenant=tenant)


def may_read(house: House, text: str) -> int:
    return int(house.client.get("/api/v1/targets", headers={"X-API-Key": text}).status_code)


def test_a_key_is_shown_once_and_works(house: House) -> None:
    answer = made(house, requests_per_minute=7)
    assert answer.status_code == 201
    assert answer.headers["cache-control"] == "no-store"
    text = answer.json()["key"]
    read = house.client.get("/api/v1/targets", headers={"X-API-Key": text})
    assert (read.status_code, read.headers["ratelimit-limit"]) == (200, "7")
    listed = house.ask("GET", "/api/v1/keys")
    assert answer.json()["id"] in listed.text
    assert text.rpartition("_")[2] not in listed.text
    assert "hash" not in listed.text


def test_the_trail_tells_who_made_and_revoked_a_key_and_not_its_text(house: House) -> None:
    key = made(house).json()
    assert house.ask("DELETE", f"/api/v1/keys/{key['id']}").json()["revoked_at"] is not None
    assert may_read(house, key["key"]) == 401
    told = house.ask("GET", "/api/v1/audit", params={"limit": 2})
    assert [(each["action"], each["object"]) for each in told.json()["items"]] == [
        ("key.revoke", key["id"]),
        ("key.create", key["id"]),
    ]
    assert all(each["who"].endswith("(admin)") for each in told.json()["items"])
    assert key["key"].rpartition("_")[2] not in told.text


def test_asking_again_with_the_same_idempotency_key_shows_no_secret_a_second_time(house: House) -> None:
    again = {"Idempotency-Key": "once"}
    first, second = (made(house, headers=again).json() for _ in range(2))
    assert first["id"] != second["id"]
    assert first["key"] != second["key"]


def test_an_admin_makes_keys_of_the_own_tenant_only(house: House) -> None:
    assert made(house, tenant="other").json()["tenant"] == "other"
    refused = house.ask("POST", "/api/v1/keys", json={"name": "ci", "tenant": "other"})
    assert refused.status_code == 422
    assert {each["tenant"] for each in house.ask("GET", "/api/v1/keys").json()["items"]} == {"default"}


def test_an_admin_revokes_keys_of_the_own_tenant_only(house: House) -> None:
    key = made(house).json()
    assert house.ask("DELETE", f"/api/v1/keys/{key['id']}", tenant="other").status_code == 404
    assert may_read(house, key["key"]) == 200


@pytest.mark.parametrize("role", ["viewer", "developer", "operator"])
def test_nobody_below_an_admin_makes_a_key(house: House, role: Role) -> None:
    before = len(house.desk.keys.list())
    assert house.ask("POST", "/api/v1/keys", json={"name": "mine", "role": "admin"}, role=role).status_code == 403
    assert len(house.desk.keys.list()) == before


def test_a_key_of_some_days_ends_after_them(house: House) -> None:
    text = made(house, days=0.5).json()["key"]
    house.clock.now += timedelta(hours=11)
    assert may_read(house, text) == 200
    house.clock.now += timedelta(hours=1)
    assert may_read(house, text) == 401


@pytest.mark.parametrize("more", [{"days": 0}, {"days": 1e9}, {"role": "king"}, {"name": "a\nb"}, {"name": ""}])
def test_a_key_that_makes_no_sense_is_refused(house: House, more: dict[str, Any]) -> None:
    assert made(house, **more).status_code == 422


def test_keys_come_in_pages_the_oldest_first(house: House) -> None:
    for number in range(3):
        house.clock.now += timedelta(minutes=1)
        made(house, name=f"key {number}")
    seen, cursor = [], None
    while True:
        given = {"limit": 3} | ({} if cursor is None else {"cursor": cursor})
        page = house.ask("GET", "/api/v1/keys", params=given).json()
        seen += [each["name"] for each in page["items"]]
        if (cursor := page["next"]) is None:
            break
    assert len(seen) == 7  # one for each role, all of the same moment, came with the house
    assert seen[-3:] == ["key 0", "key 1", "key 2"]

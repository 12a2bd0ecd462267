"""Who may do what, over every route there is."""

from __future__ import annotations

import re
from datetime import timedelta
from pathlib import Path
from typing import Any, get_args

import pytest
from starlette.testclient import WebSocketDenialResponse

from ratchet.core.access import Role, allows
from ratchet.core.errors import BadRequest, Missing
from ratchet.service.serve import first_key
from ratchet.testing.service import MAKERS, Clock, House, RecordingQueue, actor, addresses, desk_in, request

LEAST: dict[tuple[str, str], Role | None] = {
    ("POST", "/api/v1/optimize"): "developer",
    ("POST", "/api/v1/evaluations"): "developer",
    ("GET", "/api/v1/optimizations"): "viewer",
    ("GET", "/api/v1/optimizations/{identity}"): "viewer",
    ("DELETE", "/api/v1/optimizations/{identity}"): "operator",
    ("GET", "/api/v1/optimizations/{identity}/status"): "viewer",
    ("POST", "/api/v1/optimizations/{identity}/cancel"): "developer",
    ("POST", "/api/v1/optimizations/{identity}/pause"): "developer",
    ("POST", "/api/v1/optimizations/{identity}/resume"): "developer",
    ("POST", "/api/v1/optimizations/{identity}/fork"): "developer",
    ("GET", "/api/v1/optimizations/{identity}/candidates"): "viewer",
    ("GET", "/api/v1/optimizations/{identity}/evaluations"): "viewer",
    ("GET", "/api/v1/optimizations/{identity}/certificate"): "viewer",
    ("GET", "/api/v1/optimizations/{identity}/program"): "viewer",
    ("GET", "/api/v1/optimizations/{identity}/report"): "viewer",
    ("GET", "/api/v1/optimizations/{identity}/rows"): "viewer",
    ("GET", "/api/v1/optimizations/{identity}/events"): "viewer",
    ("POST", "/api/v1/datasets"): "developer",
    ("GET", "/api/v1/datasets"): "viewer",
    ("GET", "/api/v1/datasets/{reference}"): "viewer",
    ("DELETE", "/api/v1/datasets/{reference}"): "operator",
    ("POST", "/api/v1/targets"): "developer",
    ("GET", "/api/v1/targets"): "viewer",
    ("GET", "/api/v1/targets/{reference}"): "viewer",
    ("DELETE", "/api/v1/targets/{reference}"): "operator",
    ("GET", "/api/v1/versions"): "viewer",
    ("GET", "/api/v1/versions/{identity}"): "viewer",
    ("GET", "/api/v1/versions/{identity}/program"): "viewer",
    ("POST", "/api/v1/versions/{identity}/promote"): "operator",
    ("POST", "/api/v1/versions/{identity}/rollback"): "operator",
    ("GET", "/api/v1/algorithms"): "viewer",
    ("POST", "/api/v1/algorithms/custom"): "operator",
    ("GET", "/api/v1/algorithms/custom"): "viewer",
    ("DELETE", "/api/v1/algorithms/custom/{name}"): "operator",
    ("POST", "/api/v1/experiments"): "operator",
    ("GET", "/api/v1/experiments"): "viewer",
    ("GET", "/api/v1/experiments/{identity}"): "viewer",
    ("GET", "/api/v1/lessons"): "viewer",
    ("GET", "/api/v1/lessons/{identity}"): "viewer",
    ("DELETE", "/api/v1/lessons/{identity}"): "operator",
    ("GET", "/api/v1/analytics/performance"): "viewer",
    ("GET", "/api/v1/audit"): "operator",
    ("GET", "/api/v1/audit/verification"): "operator",
    ("POST", "/api/v1/keys"): "admin",
    ("GET", "/api/v1/keys"): "admin",
    ("DELETE", "/api/v1/keys/{identity}"): "admin",
    ("POST", "/api/v1/webhooks"): "operator",
    ("GET", "/api/v1/webhooks"): "operator",
    ("GET", "/api/v1/webhooks/{identity}"): "operator",
    ("DELETE", "/api/v1/webhooks/{identity}"): "operator",
    ("POST", "/api/v1/webhooks/{identity}/pause"): "operator",
    ("POST", "/api/v1/webhooks/{identity}/resume"): "operator",
    ("POST", "/api/v1/webhooks/{identity}/ping"): "operator",
    ("GET", "/api/v1/webhooks/{identity}/dead"): "operator",
    ("POST", "/api/v1/webhooks/{identity}/redeliver"): "operator",
    ("POST", "/api/v1/cycles"): "developer",
    ("GET", "/api/v1/cycles"): "viewer",
    ("GET", "/api/v1/cycles/{identity}"): "viewer",
    ("POST", "/api/v1/cycles/{identity}/cancel"): "developer",
    ("POST", "/api/v1/schedules"): "operator",
    ("GET", "/api/v1/schedules"): "operator",
    ("GET", "/api/v1/schedules/{identity}"): "operator",
    ("DELETE", "/api/v1/schedules/{identity}"): "operator",
    ("POST", "/api/v1/schedules/{identity}/pause"): "operator",
    ("POST", "/api/v1/schedules/{identity}/resume"): "operator",
    ("GET", "/metrics"): "operator",
    ("GET", "/healthz"): None,
    ("GET", "/readyz"): None,
}
"""The least role of each route; None is for everybody."""


def test_the_matrix_names_every_route(house: House) -> None:
    paths = house.client.get("/api/v1/openapi.json").json()["paths"]
    assert {(method.upper(), path) for path, methods in paths.items() for method in methods} == set(LEAST)


@pytest.mark.parametrize(("method", "path"), sorted(LEAST))
def test_every_route_is_documented_with_its_role(method: str, path: str) -> None:
    page = (Path(__file__).parents[2] / "docs" / "reference" / "api.md").read_text(encoding="utf-8")
    assert f"| `{method}` | `{path}` | {LEAST[method, path] or 'everybody'} |" in page


@pytest.mark.parametrize(("method", "path"), sorted(LEAST))
def test_a_route_answers_those_whose_role_is_enough_and_nobody_else(town_house: House, method: str, path: str) -> None:
    house = town_house
    least, address = LEAST[method, path], re.sub(r"\{\w+\}", "nothing", path)
    anonymous = house.client.request(method, address)
    if least is None:
        assert anonymous.status_code == 200
        return
    assert anonymous.status_code == 401
    assert anonymous.headers["www-authenticate"].startswith("Bearer")
    for role in get_args(Role):
        answer = house.ask(method, address, role=role)
        if allows(role, least):
            assert answer.status_code in (200, 404, 422), (role, answer.text)
        else:
            assert answer.status_code == 403, (role, answer.text)
            assert least in answer.json()["detail"]


@pytest.mark.parametrize(("method", "path"), sorted(route for route in LEAST if "{" in route[1]))
def test_another_tenants_thing_is_not_there_whatever_is_asked_of_it(town_house: House, method: str, path: str) -> None:
    house = town_house
    for address in addresses(house, path):
        answer = house.ask(method, address, tenant="other", json={} if method in ("POST", "PUT", "PATCH") else None)
        assert answer.status_code == 404, (address, answer.text)
        assert set(answer.json()) <= {"type", "title", "status", "detail", "errors"}


def test_another_tenants_things_stand_in_no_list(house: House) -> None:
    made = {reference for make in MAKERS.values() for reference in make(house)}
    seen = 0
    for method, path in LEAST:
        if method != "GET" or "{" in path or LEAST[method, path] is None or path == "/metrics":
            continue
        answer = house.ask("GET", path, tenant="other")
        assert answer.status_code == 200, (path, answer.text)
        assert not [each for each in made if f'"{each}"' in answer.text], path
        seen += 1
    assert seen >= 5
    body = request(target={"id": "sorter"})
    assert house.ask("POST", "/api/v1/optimize", json=body, tenant="other").status_code == 404


def test_an_event_stream_of_another_tenant_is_not_there(house: House) -> None:
    house.upload()
    job = house.optimize().json()["id"]
    address = f"/ws/optimizations/{job}"
    for headers, status in (({"X-API-Key": house.keys["other", "viewer"]}, 404), ({"X-API-Key": "rk_a_b"}, 401)):
        with (
            pytest.raises(WebSocketDenialResponse) as denied,
            house.client.websocket_connect(address, headers=headers),
        ):
            pytest.fail("it was let in")
        assert denied.value.status_code == status
        assert denied.value.json()["status"] == status


def test_a_key_is_stored_as_a_hash_and_works_in_either_header(house: House) -> None:
    text = house.keys["default", "viewer"]
    secret = text.split("_", 2)[2]
    assert secret.encode() not in b"".join(
        file.read_bytes() for file in house.desk.settings.home.rglob("*") if file.is_file()
    )
    assert house.client.get("/api/v1/targets", headers={"X-API-Key": text}).status_code == 200
    assert house.client.get("/api/v1/targets", headers={"X-API-Key": text[:-1]}).status_code == 401
    assert house.client.get("/api/v1/targets", headers={"Authorization": "Basic abc"}).status_code == 401


def test_a_key_ends_when_it_expires(house: House) -> None:
    end = house.clock.now + timedelta(days=1)
    _, text = house.desk.keys.create(actor(), name="short", tenant="default", role="viewer", expires_at=end)
    assert house.client.get("/api/v1/targets", headers={"X-API-Key": text}).status_code == 200
    house.clock.now = end
    assert house.client.get("/api/v1/targets", headers={"X-API-Key": text}).status_code == 401


def test_a_key_ends_when_it_is_revoked(house: House) -> None:
    key, text = house.desk.keys.create(actor(), name="short", tenant="default", role="viewer")
    house.desk.keys.revoke(actor(), key.id)
    assert house.client.get("/api/v1/targets", headers={"X-API-Key": text}).status_code == 401
    with pytest.raises(Missing, match="ratchet keys list"):
        house.desk.keys.revoke(actor(), "nothing")


@pytest.mark.parametrize(
    ("field", "value"), [("role", "king"), ("tenant", "a/b"), ("tenant", ""), ("name", ""), ("name", "a\nb")]
)
def test_a_key_that_makes_no_sense_is_refused(house: House, field: str, value: str) -> None:
    given = {"name": "n", "tenant": "t", "role": "viewer", field: value}
    with pytest.raises(BadRequest, match=field):
        house.desk.keys.create(actor(), name=given["name"], tenant=given["tenant"], role=given["role"])


def test_the_first_start_makes_one_admin_key_and_no_public_bind_comes_before_it(tmp_path: Any) -> None:
    desk = desk_in(tmp_path, queue=RecordingQueue(), clock=Clock())
    for host in ("0.0.0.0", "::", "10.0.0.1", "example.org"):
        with pytest.raises(BadRequest, match="ratchet keys create"):
            first_key(desk, host)
    text = first_key(desk, "127.0.0.1")
    assert text is not None
    found = desk.keys.find(text, now=desk.clock())
    assert found is not None
    assert found.role == "admin"
    assert first_key(desk, "127.0.0.1") is None
    assert first_key(desk, "0.0.0.0") is None
    desk.close()


def test_the_app_needs_no_network_for_its_documentation(house: House) -> None:
    assert house.client.get("/docs").status_code == 404

"""Optimizations over HTTP, before anybody works on them."""

from __future__ import annotations

from typing import Any

import pytest

from ratchet.testing.service import BASE, House, request


def test_a_request_is_accepted_and_waits_in_the_queue(house: House) -> None:
    house.upload()
    answer = house.optimize()
    assert answer.status_code == 202
    job = answer.json()
    assert answer.headers["location"] == f"/api/v1/optimizations/{job['id']}"
    assert (job["status"], job["target"], job["data"]) == ("queued", "inline", {"data": "mails@1"})
    assert house.queue.waiting == [(job["id"], 1)]
    found = house.ask("GET", answer.headers["location"]).json()
    assert found["request"]["options"]["metric"] == "exact_match"
    assert {**found, "request": None} == job
    status = house.ask("GET", f"{answer.headers['location']}/status").json()
    assert (status["status"], status["phase"], status["progress"], status["best_so_far"]) == ("queued", None, 0.0, None)
    assert status["spend"]["calls"] == 0
    splits = house.desk.archive.open(job["id"]).examples()
    assert sum(map(len, splits.values())) == 60


def test_a_file_that_is_not_there_yet_is_not_found(house: House) -> None:
    house.upload()
    job = house.optimize().json()["id"]
    for name in ("certificate", "program", "report"):
        answer = house.ask("GET", f"/api/v1/optimizations/{job}/{name}")
        assert answer.status_code == 404
        assert "queued" in answer.json()["detail"]
    for name in ("candidates", "evaluations"):
        assert house.ask("GET", f"/api/v1/optimizations/{job}/{name}").json() == {"items": [], "next": None}


def test_the_same_idempotency_key_gives_the_same_optimization(house: House) -> None:
    house.upload()
    headers = {"Idempotency-Key": "once"}
    first, again = (house.optimize(headers=headers) for _ in range(2))
    assert (first.status_code, again.status_code) == (202, 202)
    assert first.json()["id"] == again.json()["id"]
    assert first.headers["location"] == again.headers["location"]
    other = house.optimize(headers=headers, seed=1)
    assert other.status_code == 409
    assert other.json()["errors"][0]["value"] == "once"
    house.upload(tenant="other")
    assert house.optimize(headers=headers, tenant="other").json()["id"] != first.json()["id"]
    assert len(house.queue.waiting) == 2


def test_an_optimization_learns_from_its_own_tenant_only(house: House) -> None:
    for tenant in ("default", "other"):
        house.upload(tenant=tenant)
        job = house.optimize(tenant=tenant).json()["id"]
        assert house.desk.archive.find(job).request["options"]["tenant"] == tenant


@pytest.mark.parametrize(
    ("more", "field", "status"),
    [
        ({"seed": -1}, "seed", 422),
        ({"unknown": 1}, "unknown", 422),
        ({"constraints": {"max_calls": 0}}, "constraints.max_calls", 422),
        ({"constraints": {"max_usd": "much"}}, "constraints.max_usd", 422),
        ({"target": {}}, "target", 422),
        ({"target": {"id": "sorter", "scope": "population"}}, "target.scope", 422),
        ({"target": {"id": "sorter", "scope": "cross_domain"}}, "target.scope", 422),
        ({"objectives": [{"metric": "beauty"}]}, "objectives.0.metric", 422),
        ({"data": None}, "data", 422),
        ({"temperature": "NaN"}, "temperature", 422),
    ],
)
def test_a_field_that_cannot_be_used_is_named_with_its_value_and_a_remedy(
    house: House, more: dict[str, Any], field: str, status: int
) -> None:
    house.upload()
    answer = house.optimize(**more)
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    problem = answer.json()
    assert problem["errors"][0]["field"] == field
    assert set(problem["errors"][0]) == {"field", "value", "remedy"}
    assert problem["status"] == status


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ({"algorithms": ["magic"]}, "no algorithm 'magic'"),
        ({"metric": "exact"}, "exact_match"),
        ({"fields": {"text": "nothing"}}, "nothing"),
        ({"constraints": {"max_usd": 1.0}}, "price"),
        ({"lm": None, "lm_base": None}, "LM"),
        ({"data": None, "train": "mails"}, "--test"),
    ],
)
def test_what_cannot_be_carried_out_is_refused_before_anything_is_stored(
    house: House, more: dict[str, Any], told: str
) -> None:
    house.upload()
    answer = house.optimize(**more)
    assert answer.status_code == 422, answer.text
    assert told in answer.json()["detail"]
    assert house.ask("GET", "/api/v1/optimizations").json()["items"] == []
    assert house.queue.waiting == []


def test_a_reference_to_nothing_is_told(house: House) -> None:
    answer = house.optimize()
    assert answer.status_code == 404
    assert "'mails'" in answer.json()["detail"]


def test_what_waits_can_be_paused_resumed_and_cancelled(house: House) -> None:
    house.upload()
    job = house.optimize().json()["id"]

    def ask(action: str) -> Any:
        answer = house.ask("POST", f"/api/v1/optimizations/{job}/{action}")
        return answer.status_code, answer.json().get("status"), answer.json().get("attempt")

    assert ask("pause") == (202, "paused", 1)
    assert ask("pause") == (202, "paused", 1)
    assert house.queue.cancelled[0] == (job, 1)
    assert ask("resume") == (202, "queued", 2)
    assert ask("resume") == (202, "queued", 2)
    assert house.queue.waiting == [(job, 1), (job, 2)]
    assert ask("cancel") == (202, "cancelled", 2)
    assert ask("pause")[0] == 409
    assert ask("resume") == (202, "queued", 3)
    kinds = [event.kind for event in house.desk.events.of(job, after=0)]
    assert kinds == ["queued", "ended", "ended"]


def test_pages_give_each_optimization_once_the_newest_first(house: House) -> None:
    house.upload()
    made = []
    for seed in range(5):
        house.clock.now = house.clock.now.replace(second=seed // 2)
        made.append(house.optimize(seed=seed).json()["id"])
    seen, cursor = [], None
    for _ in range(10):
        page = house.ask(
            "GET", "/api/v1/optimizations", params={"limit": 2, **({"cursor": cursor} if cursor else {})}
        ).json()
        seen += [item["id"] for item in page["items"]]
        cursor = page["next"]
        if cursor is None:
            break
    assert sorted(seen) == sorted(made)
    assert seen[0] == made[4]
    paused = made[2]
    house.ask("POST", f"/api/v1/optimizations/{paused}/pause")
    found = house.ask("GET", "/api/v1/optimizations", params={"status": "paused"}).json()["items"]
    assert [item["id"] for item in found] == [paused]


def test_a_body_that_is_too_large_is_refused_however_its_length_is_told(house: House) -> None:
    body = b'{"x": "' + b"a" * 2**21 + b'"}'
    headers = {"Content-Type": "application/json"}
    for content in (body, iter([body])):
        answer = house.ask("POST", "/api/v1/optimize", content=content, headers=headers)
        assert answer.status_code == 413, answer.text
        assert answer.json()["status"] == 413


@pytest.mark.parametrize("body", [b"{", b"[" * 100_000, b"null", b'"text"', b"\xff"])
def test_a_body_that_is_no_request_is_told_so(house: House, body: bytes) -> None:
    answer = house.ask("POST", "/api/v1/optimize", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code in (400, 422), answer.text
    assert answer.headers["content-type"] == "application/problem+json"


def test_an_address_that_is_none_and_a_method_that_is_none_are_problems_too(house: House) -> None:
    for method, path, status in (("GET", "/nothing", 404), ("DELETE", "/api/v1/targets", 405)):
        answer = house.client.request(method, path)
        assert answer.status_code == status
        assert answer.json()["status"] == status
    assert answer.headers["allow"] == "GET, POST"


def test_the_description_has_examples_that_are_taken(house: House) -> None:
    description = house.client.get("/api/v1/openapi.json").json()
    assert description["openapi"].startswith("3.1")
    (example,) = description["components"]["schemas"]["OptimizeBody"]["examples"]
    house.upload()
    house.ask("POST", "/api/v1/targets", json={"name": "sorter", "signature": "text -> label"})
    answer = house.ask("POST", "/api/v1/optimize", json={**example, "lm": "openai/stub", "lm_base": BASE})
    assert answer.status_code == 202, answer.text


def test_metrics_count_optimizations_and_time_requests(house: House) -> None:
    house.upload()
    house.ask("POST", "/api/v1/optimize", json=request())
    text = house.ask("GET", "/metrics").text
    assert 'ratchet_optimizations{status="queued"} 1.0' in text
    assert 'ratchet_http_seconds_count{method="POST",route="/api/v1/optimize",status="202"} 1.0' in text

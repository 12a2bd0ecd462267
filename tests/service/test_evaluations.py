"""Evaluations over HTTP: in the queue beside the optimizations, and looked at as they are."""

from __future__ import annotations

from typing import Any

import pytest

from ratchet.core.access import Role
from ratchet.testing.lm_server import SIGNATURE
from ratchet.testing.service import BASE, House

PATH = "/api/v1/evaluations"


def asked(**more: Any) -> dict[str, Any]:
    """The body of a request."""
    spec = {"target": {"spec": {"signature": SIGNATURE}}, "data": "mails", "lm": "openai/stub", "lm_base": BASE}
    return {**spec, "constraints": {"max_calls": 100}, **more}


def evaluate(house: House, *, headers: dict[str, str] | None = None, role: Role = "developer", **more: Any) -> Any:
    """The response to a request."""
    return house.ask("POST", PATH, json=asked(**more), headers=headers or {}, role=role)


def test_an_evaluation_is_queued_as_an_optimization_is(house: House) -> None:
    house.upload()
    house.ask("POST", "/api/v1/targets", json={"name": "sorter", "signature": SIGNATURE})
    answer = evaluate(house, target={"id": "sorter"}, limit=7)
    assert answer.status_code == 202, answer.text
    job = answer.json()
    assert answer.headers["Location"] == f"/api/v1/optimizations/{job['id']}"
    assert (job["status"], job["target"], job["data"]) == ("queued", "sorter@1", {"data": "mails@1"})
    assert house.queue.waiting == [(job["id"], 1)]
    assert len(house.desk.archive.open(job["id"]).examples()["test"]) == 7
    assert [each["id"] for each in house.ask("GET", "/api/v1/optimizations").json()["items"]] == [job["id"]]
    assert house.ask("GET", f"/api/v1/optimizations/{job['id']}/status").json()["phase"] is None
    assert house.ask("GET", f"/api/v1/optimizations/{job['id']}/rows").status_code == 404
    told = house.ask("GET", "/api/v1/audit", params={"limit": 1}).json()["items"][0]
    assert (told["action"], told["object"]) == ("optimization.create", job["id"])


def test_the_same_request_with_the_same_key_is_one_evaluation(house: House) -> None:
    house.upload()
    first, second = (evaluate(house, headers={"Idempotency-Key": "once"}).json()["id"] for _ in range(2))
    assert first == second
    assert evaluate(house, headers={"Idempotency-Key": "once"}, limit=3).status_code == 409
    assert len(house.queue.waiting) == 1


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ({"data": "letters"}, "letters"),
        ({"limit": 0}, "limit"),
        ({"algorithms": ["gepa"]}, "algorithms"),
        ({"lm_base": "http://169.254.169.254/"}, "lm_base"),
        ({"metric": "os:system"}, "metric"),
        ({"target": {"id": "sorter", "spec": {"signature": SIGNATURE}}}, "target"),
        ({"fields": {"text": "none"}}, "none"),
    ],
)
def test_what_cannot_be_evaluated_leaves_nothing(house: House, more: dict[str, Any], told: str) -> None:
    house.upload()
    answer = evaluate(house, **more)
    assert answer.status_code in (403, 404, 422)
    assert told in answer.text
    assert house.queue.waiting == []
    assert house.ask("GET", "/api/v1/optimizations").json()["items"] == []


def test_an_evaluation_is_stopped_resumed_and_erased_and_cannot_be_forked(house: House) -> None:
    house.upload()
    job = evaluate(house).json()["id"]
    address = f"/api/v1/optimizations/{job}"
    assert house.ask("POST", f"{address}/pause").json()["status"] == "paused"
    assert house.ask("POST", f"{address}/resume").json()["status"] == "queued"
    forked = house.ask("POST", f"{address}/fork", json={"seed": 1})
    assert (forked.status_code, "it is an evaluation" in forked.json()["detail"]) == (409, True)
    assert house.ask("POST", f"{address}/cancel").json()["status"] == "cancelled"
    assert house.ask("GET", address, tenant="other").status_code == 404
    assert house.ask("DELETE", address).status_code == 204
    assert house.ask("GET", address).status_code == 404


def test_it_is_counted_as_no_optimization(house: House) -> None:
    house.upload()
    evaluate(house)
    assert house.ask("GET", "/api/v1/analytics/performance").json()["figures"] == []

"""Algorithms of others: tried before they are registered, known to their tenant alone."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from ratchet.begin import resumed_run
from ratchet.prepare import Given
from ratchet.testing.algorithm_server import AlgorithmServer, JsonSearch, SpentError
from ratchet.testing.service import House, house_in

SECRET = "a shared secret"
PATH = "/api/v1/algorithms/custom"


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    with house_in(tmp_path, algorithm_hosts="127.0.0.1", algorithm_secret=SECRET) as house:
        yield house


def content(problem: dict[str, Any], rng: random.Random) -> JsonSearch:
    """Look once, and be content with what there is."""
    with suppress(SpentError):
        yield {"evaluate": {"candidate": problem["seed"], "examples": [problem["train"][0]["key"]]}}
    return [problem["seed"]]


def test_an_algorithm_that_keeps_its_promises_can_be_named_by_its_tenant_only(house: House) -> None:
    with AlgorithmServer(secret=SECRET, search=content) as server:
        answer = house.ask("POST", PATH, json={"name": "climb", "url": server.url})
        assert answer.status_code == 201, answer.text
        assert server.messages
        promises = answer.json()["promises"]
        assert len(promises) > 3
        assert all(promise["kept"] for promise in promises if promise["required"])
        assert [item["name"] for item in house.ask("GET", PATH).json()["items"]] == ["climb"]
        names = {each["name"]: each["kind"] for each in house.ask("GET", "/api/v1/algorithms").json()}
        assert (names["climb"], names["gepa"], names["dspy.gepa"]) == ("registered", "built in", "built in")
        house.upload()
        assert house.optimize(algorithms=["climb"]).status_code == 202
        house.upload(tenant="other")
        assert house.ask("GET", PATH, tenant="other").json()["items"] == []
        refused = house.optimize(algorithms=["climb"], tenant="other")
        assert refused.status_code == 422
        assert "no algorithm 'climb'" in refused.json()["detail"]


def test_one_that_is_withdrawn_is_offered_to_nothing_new_and_still_told(house: House) -> None:
    with AlgorithmServer(secret=SECRET, search=content) as server:
        house.ask("POST", PATH, json={"name": "climb", "url": server.url})
        house.upload()
        job = house.optimize(algorithms=["climb"]).json()["id"]
        answer = house.ask("DELETE", f"{PATH}/climb", role="operator")
        assert (answer.status_code, answer.json()["withdrawn_at"]) == (200, house.clock().isoformat())
        assert house.ask("DELETE", f"{PATH}/climb").json() == answer.json()
        assert [(each["name"], each["url"]) for each in house.ask("GET", PATH).json()["items"]] == [
            ("climb", server.url)
        ]
        assert "climb" not in {each["name"] for each in house.ask("GET", "/api/v1/algorithms").json()}
        refused = house.optimize(algorithms=["climb"])
        assert (refused.status_code, "no algorithm 'climb'" in refused.json()["detail"]) == (422, True)
        forked = house.ask("POST", f"/api/v1/optimizations/{job}/fork", json={"seed": 1})
        assert forked.status_code == 422
        begun = resumed_run(job, Given(), house.desk.settings, house.desk.archive)  # as a worker takes it up
        assert begun.prepared.custom["climb"].source == server.url
        begun.gateway.close()
        told = [each["action"] for each in house.ask("GET", "/api/v1/audit").json()["items"]]
        assert told.count("algorithm.withdraw") == 1
        again = house.ask("POST", PATH, json={"name": "climb", "url": server.url})
        assert (again.status_code, again.json()["withdrawn_at"]) == (200, None)
        assert house.optimize(algorithms=["climb"]).status_code == 202


@pytest.mark.parametrize(
    ("lie", "told"),
    [
        (lambda answer: {**answer, "turn": 99}, "turn"),
        (lambda answer: {"session": answer["session"], "turn": answer["turn"], "finalists": []}, "finalist"),
    ],
)
def test_one_that_breaks_a_promise_is_refused_and_the_turn_is_told(house: House, lie: Any, told: str) -> None:
    with AlgorithmServer(secret=SECRET, lies=lie) as server:
        answer = house.ask("POST", PATH, json={"name": "liar", "url": server.url})
    assert answer.status_code == 422
    assert told in answer.json()["detail"]
    assert house.ask("GET", PATH).json()["items"] == []


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"name": "gepa", "url": "http://127.0.0.1:9/x"}, "name"),
        ({"name": "a b", "url": "http://127.0.0.1:9/x"}, "name"),
        ({"name": "x", "url": "http://169.254.169.254/latest"}, "url"),
        ({"name": "x", "url": "file:///etc/passwd"}, "url"),
        ({"name": "x", "url": "http://127.0.0.1:9/x", "secret_env": "OPENAI_API_KEY"}, "secret_env"),
        ({"name": "x", "url": "http://127.0.0.1:9/x"}, "url"),
    ],
)
def test_what_may_not_be_asked_is_refused(house: House, body: dict[str, str], field: str) -> None:
    answer = house.ask("POST", PATH, json=body)
    assert answer.status_code == 422, answer.text
    assert answer.json()["errors"][0]["field"] == field

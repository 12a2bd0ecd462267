"""The OpenAPI document says what is so: examples that are taken, problems as problems, no null in an address."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ratchet.testing.service import House

NOT_TO_BE_READ = ("application/vnd.apache.parquet",)


@pytest.fixture(scope="module")
def document(town_house: House) -> Any:
    return town_house.client.get("/api/v1/openapi.json").json()


def operations(document: Any) -> Iterator[tuple[str, Any]]:
    """Each operation by its name."""
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield f"{method.upper()} {path}", operation


def test_every_body_has_an_example(document: Any) -> None:
    bodies = 0
    for name, operation in operations(document):
        for kind, content in operation.get("requestBody", {}).get("content", {}).items():
            reference = content["schema"].get("$ref", "").rpartition("/")[2]
            schema = document["components"]["schemas"].get(reference, content["schema"])
            bodies += 1
            assert kind in NOT_TO_BE_READ or "example" in content or schema.get("examples"), name
    assert bodies >= 5


def test_every_example_of_an_upload_is_taken(document: Any, town_house: House) -> None:
    content = document["paths"]["/api/v1/datasets"]["post"]["requestBody"]["content"]
    hashes = set()
    for kind, described in content.items():
        if "example" in described:
            answer = town_house.upload("example", described["example"].encode(), kind=kind)
            assert answer.status_code in (200, 201), answer.text
            hashes.add(answer.json()["hash"])
    assert len(hashes) == 1


def test_a_refusal_is_described_as_a_problem_and_as_nothing_else(document: Any) -> None:
    for name, operation in operations(document):
        for status, response in operation["responses"].items():
            if status[0] in "45":
                assert set(response["content"]) == {"application/problem+json"}, (name, status)
                assert "schema" in response["content"]["application/problem+json"], (name, status)


def test_every_route_that_asks_for_a_key_says_how_it_refuses(document: Any) -> None:
    for name, operation in operations(document):
        if "security" in operation:
            assert {"401", "403", "429"} <= set(operation["responses"]), name
            assert "Retry-After" in operation["responses"]["429"]["headers"], name


def test_no_parameter_can_be_null(document: Any) -> None:
    for name, operation in operations(document):
        for parameter in operation.get("parameters", ()):
            assert '"null"' not in json.dumps(parameter["schema"]), (name, parameter["name"])


def test_every_setting_of_the_service_that_a_client_meets_is_in_the_page_of_the_api() -> None:
    page = (Path(__file__).parents[2] / "docs" / "reference" / "api.md").read_text(encoding="utf-8")
    for name in ("KEY_RATE", "MAX_BODY_KB", "MAX_UPLOAD_MB", "REQUEST_SECONDS", "WORKER_SLOTS"):
        assert f"RATCHET_{name}" in page

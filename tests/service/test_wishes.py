"""What a request may wish for beyond the usual: a share of the slots, a value to reach, a rubric in words."""

from __future__ import annotations

from typing import Any

import pytest

from ratchet.options import Options
from ratchet.testing.service import House

RUBRIC = "A good answer names the label and nothing else."


def asked(house: House, **more: Any) -> dict[str, Any]:
    """The stored request of an optimization."""
    answer = house.optimize(**more)
    assert answer.status_code == 202, answer.text
    request = house.desk.archive.find(answer.json()["id"]).request
    assert Options.from_json(Options.from_json(request["options"]).to_json()) == Options.from_json(request["options"])
    return dict(request)


@pytest.mark.parametrize(
    ("share", "concurrency", "granted"), [(None, 1024, 51), (0.5, 1024, 128), (1, 1024, 256), (0.001, 8, 1), (1, 3, 3)]
)
def test_an_optimization_gets_no_more_than_its_share_of_the_slots(
    house: House, share: float | None, concurrency: int, granted: int
) -> None:
    house.upload()
    constraints = {"max_calls": 300, **({} if share is None else {"max_resource_usage": share})}
    options = asked(house, constraints=constraints, concurrency=concurrency)["options"]
    assert options["concurrency"] == granted
    assert options["max_resource_usage"] == (0.2 if share is None else share)


@pytest.mark.parametrize("share", [0, -1, 1.5, "much"])
def test_a_share_that_is_none_is_refused(house: House, share: Any) -> None:
    house.upload()
    answer = house.optimize(constraints={"max_resource_usage": share})
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["field"] == "constraints.max_resource_usage"


def test_a_value_to_reach_is_kept_with_the_request(house: House) -> None:
    house.upload()
    objectives = [{"metric": "quality_score", "weight": 2, "target_value": 0.9}, {"metric": "cost"}]
    options = asked(house, objectives=objectives)["options"]
    assert options["target_values"] == [["quality_score", 0.9]]
    assert options["objectives"] == [["quality_score", 2.0], ["cost", 1.0]]
    refused = house.optimize(objectives=[{"metric": "cost", "target_value": -1}])
    assert refused.json()["errors"][0]["field"] == "objectives.0.target_value"


def test_a_judge_grades_by_a_rubric_that_is_given_in_words(house: House) -> None:
    house.upload()
    first = asked(house, metric="llm_judge", rubric=RUBRIC)
    other = asked(house, metric="llm_judge", rubric=RUBRIC + "!")
    assert first["options"]["rubric"] == RUBRIC
    assert first["identities"]["metric"] != other["identities"]["metric"]
    assert RUBRIC not in first["identities"]["metric"]


@pytest.mark.parametrize(
    ("more", "field", "status"),
    [
        ({"metric": "llm_judge"}, "rubric", 422),
        ({"metric": "llm_judge", "rubric": " "}, "rubric", 422),
        ({"metric": "f1", "rubric": RUBRIC}, "rubric", 422),
        ({"metric": "llm_judge:/etc/passwd", "rubric": RUBRIC}, "metric", 403),
    ],
)
def test_a_rubric_goes_with_a_judge_only(house: House, more: dict[str, Any], field: str, status: int) -> None:
    house.upload()
    answer = house.optimize(**more)
    assert answer.status_code == status, answer.text
    assert answer.json()["errors"][0]["field"] == field


def test_a_fork_to_another_metric_leaves_the_rubric_behind(house: House) -> None:
    house.upload()
    job = house.optimize(metric="llm_judge", rubric=RUBRIC).json()["id"]
    for body, metric, rubric in (
        ({}, "llm_judge", RUBRIC),
        ({"metric": "f1"}, "f1", None),
        ({"rubric": "Short."}, "llm_judge", "Short."),
    ):
        fork = house.ask("POST", f"/api/v1/optimizations/{job}/fork", json=body).json()
        options = house.desk.archive.find(fork["id"]).request["options"]
        assert (options["metric"], options["rubric"]) == (metric, rubric)

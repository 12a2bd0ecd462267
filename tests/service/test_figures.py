"""Experiments and analytics: what was measured, and null where nothing was."""

from __future__ import annotations

from typing import Any

import pytest

from ratchet.core.evaluation import Evaluation, Usage
from ratchet.core.problem import Candidate
from ratchet.core.result import OptimizationResult, Performance
from ratchet.programs.journal import Reply
from ratchet.testing.service import House, actor

PERFORMANCE = "/api/v1/analytics/performance"


def end(house: House, job: str, *, improvement: float | None, latencies: tuple[float, ...], usd: float | None) -> None:
    """Have an optimization end, with these program runs."""
    notebook = house.desk.archive.open(job)
    candidate = Candidate.from_state({})
    for number, latency in enumerate(latencies):
        notebook.journal.reserve(f"k{number}", role="task", stage="baseline", usd=0.0)
        notebook.journal.record(
            Reply(
                key=f"k{number}",
                role="task",
                stage="baseline",
                response={},
                prompt_tokens=10,
                completion_tokens=2,
                cost_usd=usd,
                latency_ms=latency,
            )
        )
        example = notebook.examples()["test"][number]
        usage = Usage(calls=1, prompt_tokens=10, completion_tokens=2, cost_usd=usd, latency_ms=latency)
        notebook.keep_evaluation(
            Evaluation(candidate=candidate.key, example=example, repeat=0, score=1.0, usage=usage), stage="test"
        )
    status: Any = "improved" if improvement and improvement > 0 else "no_proven_gain"
    result = OptimizationResult(
        optimization_id=job,
        status=status,
        improvement_percentage=improvement,
        optimized_performance=Performance(quality_score=0.8, n=len(latencies), split="test"),
    )
    notebook.set_status(status, result=result.to_json())


def test_nothing_measured_is_null_and_no_number(house: House) -> None:
    assert house.ask("GET", PERFORMANCE).json()["figures"] == []
    house.job()
    (row,) = house.ask("GET", PERFORMANCE).json()["figures"]
    assert (row["target"], row["algorithm"], row["window"], row["optimizations"]) == ("sorter", "gepa", None, 1)
    nothing = {"mean": None, "n": 0}
    assert (row["improved"], row["improvement_percentage"]) == (nothing, nothing)
    assert row["latency_ms"] == {"p50": None, "p90": None, "p99": None, "n": 0}
    assert row["spend"] == {"calls": 0, "prompt_tokens": 0, "completion_tokens": 0, "usd": 0.0, "seconds": 0.0}


def test_figures_are_those_of_the_stored_evaluations(house: House) -> None:
    end(house, house.job(), improvement=20.0, latencies=(100.0, 200.0, 300.0), usd=0.5)
    end(house, house.job(), improvement=-10.0, latencies=(400.0, 500.0), usd=0.25)
    (row,) = house.ask("GET", PERFORMANCE, params={"target": "sorter", "algorithm": "gepa"}).json()["figures"]
    assert row["improved"] == {"mean": 0.5, "n": 2}
    assert row["improvement_percentage"] == {"mean": 5.0, "n": 2}
    assert row["latency_ms"] == {"p50": 300.0, "p90": 460.0, "p99": 496.0, "n": 5}
    assert (row["spend"]["calls"], row["spend"]["prompt_tokens"], row["spend"]["usd"]) == (5, 50, 2.0)
    end(house, house.job(), improvement=None, latencies=(1.0,), usd=None)
    (row,) = house.ask("GET", PERFORMANCE).json()["figures"]
    assert (row["improvement_percentage"]["n"], row["spend"]["usd"]) == (2, None)
    assert house.ask("GET", PERFORMANCE, tenant="other").json()["figures"] == []


def test_figures_are_of_the_time_that_is_asked_about(house: House) -> None:
    house.job()
    house.clock.now = house.clock.now.replace(month=2, day=10)
    house.job()
    assert house.ask("GET", PERFORMANCE).json()["figures"][0]["optimizations"] == 1
    both = {"since": "2026-01-01T00:00:00Z", "until": "2026-03-01T01:00:00+01:00"}
    rows = house.ask("GET", PERFORMANCE, params={**both, "window": "month"}).json()["figures"]
    assert [(row["window"], row["optimizations"]) for row in rows] == [("2026-01", 1), ("2026-02", 1)]
    rows = house.ask("GET", PERFORMANCE, params={**both, "window": "day"}).json()["figures"]
    assert [row["window"] for row in rows] == ["2026-01-01", "2026-02-10"]
    assert house.ask("GET", PERFORMANCE, params={**both, "target": "sort"}).json()["figures"] == []
    for since in ("0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00", "2026-01-01T00:00:00"):
        assert house.ask("GET", PERFORMANCE, params={"since": since}).status_code == 422


def test_an_experiment_tells_what_its_versions_were_proven_with_and_of_live_traffic_nothing(house: House) -> None:
    job = house.job()
    end(house, job, improvement=20.0, latencies=(100.0, 200.0), usd=None)
    version = house.desk.versions.register(actor(), target="sorter", optimization_id=job, candidate="0" * 16).id
    body = {"target": "sorter@1", "arms": [{"version": None, "share": 0.9}, {"version": version, "share": 0.1}]}
    answer = house.ask("POST", "/api/v1/experiments", json=body)
    assert answer.status_code == 201, answer.text
    found = house.ask("GET", answer.headers["location"]).json()
    assert found == answer.json()
    assert (found["target"], found["metric"], found["state"]) == ("sorter", "quality_score", "planned")
    kept, proven = found["arms"]
    assert (kept["live"], kept["sealed_test"], proven["live"]) == (None, None, None)
    assert (proven["sealed_test"]["quality_score"], proven["sealed_test"]["n"]) == (0.8, 2)
    assert proven["sealed_test"]["success_rate"] is None
    assert house.ask("GET", "/api/v1/experiments").json()["items"] == [found]


@pytest.mark.parametrize(
    ("arms", "status", "told"),
    [
        ([(None, 0.5), (None, 0.5)], 422, "twice"),
        ([(None, 0.5), ("VERSION", 0.4)], 422, "add up to 0.9"),
        ([(None, 0.5), ("nothing", 0.5)], 404, "nothing"),
        ([("VERSION", 0.5)], 422, "at least 2"),
        ([(None, 0.5), ("OTHER", 0.5)], 422, "not one of sorter"),
    ],
)
def test_an_experiment_that_makes_no_sense_is_refused(house: House, arms: Any, status: int, told: str) -> None:
    known = {"VERSION": house.version()}
    known["OTHER"] = house.desk.versions.register(actor(), target="another", optimization_id="x", candidate="0" * 16).id
    sides = [{"version": known.get(version, version), "share": share} for version, share in arms]
    answer = house.ask("POST", "/api/v1/experiments", json={"target": "sorter", "arms": sides})
    assert answer.status_code == status, answer.text
    assert told in answer.json()["detail"]

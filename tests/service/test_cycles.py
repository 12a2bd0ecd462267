"""Cycles and schedules, before anybody works on them; the clock is a fake."""

from __future__ import annotations

from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ratchet.batch import check_time, last_tick, next_tick
from ratchet.core.errors import BadRequest
from ratchet.testing.service import BASE, House, actor, request


def cycle_of(*more: dict[str, Any], **fields: Any) -> dict[str, Any]:
    """The body of a cycle with an optimization for each of ``more``."""
    body = request()
    target = body.pop("target")
    return {
        "name": "nightly",
        "defaults": body,
        "optimizations": [{"target": target, **each} for each in more],
        **fields,
    }


def start(house: House, *more: dict[str, Any], headers: dict[str, str] | None = None, **fields: Any) -> Any:
    house.upload()
    return house.ask("POST", "/api/v1/cycles", json=cycle_of(*more, **fields), headers=headers or {})


def end(house: House, identity: str, status: Any = "no_proven_gain") -> None:
    """Have an optimization come to rest as a worker would."""
    job = house.desk.jobs.find("default", identity)
    house.desk.jobs.begin(actor(), identity, job.attempt)
    notebook = house.desk.archive.open(identity)
    notebook.set_status(status)
    house.desk.jobs.note_end(actor(), identity, job.attempt, status=status, reason="told")


def members(house: House, cycle: str) -> list[str]:
    found = house.ask("GET", f"/api/v1/cycles/{cycle}").json()
    return [member["id"] for member in found["optimizations"]]


def test_a_cycle_puts_all_its_optimizations_in_the_queue(house: House) -> None:
    answer = start(house, {}, {"seed": 1, "constraints": {"max_optimization_time": 60}}, {"seed": 2})
    assert answer.status_code == 202, answer.text
    cycle = answer.json()
    assert answer.headers["location"] == f"/api/v1/cycles/{cycle['id']}"
    assert (cycle["status"], cycle["size"], cycle["statuses"]) == ("running", 3, {"queued": 3})
    ids = [member["id"] for member in cycle["optimizations"]]
    assert [job for job, _ in house.queue.waiting] == ids
    options = [house.desk.archive.find(job).request["options"] for job in ids]
    assert [each["seed"] for each in options] == [0, 1, 2]
    assert [(each["max_calls"], each["max_minutes"]) for each in options] == [(300, 120), (300, 1), (300, 120)]
    assert house.ask("GET", answer.headers["location"]).json() == cycle
    (listed,) = house.ask("GET", "/api/v1/cycles").json()["items"]
    assert listed == {**cycle, "optimizations": None}


def test_a_cycle_is_stored_as_a_whole_or_not_at_all(house: House) -> None:
    for wrong, field in (
        ({"metric": "exact"}, "optimizations.1"),
        ({"seed": -1}, "optimizations.1.seed"),
        ({"fields": {"text": "nothing"}}, "optimizations.1"),
        ({"metric": "os:system"}, "optimizations.1.metric"),
        ({"data": "nothing"}, "optimizations.1"),
    ):
        answer = start(house, {}, wrong)
        assert answer.status_code in (403, 404, 422), answer.text
        assert answer.json()["errors"][0]["field"].startswith(field)
        assert "optimizations.1" in answer.json()["detail"]
    assert house.queue.waiting == []
    for listing in ("cycles", "optimizations"):
        assert house.ask("GET", f"/api/v1/{listing}").json()["items"] == []


@pytest.mark.parametrize("body", [{}, {"optimizations": []}, {"optimizations": [1]}, {"defaults": 1}, [], {"more": 1}])
def test_what_is_no_cycle_is_told_so(house: House, body: Any) -> None:
    assert house.ask("POST", "/api/v1/cycles", json=body).status_code == 422


def test_the_same_idempotency_key_gives_the_same_cycle(house: House) -> None:
    headers = {"Idempotency-Key": "once"}
    first, again = (start(house, {}, {"seed": 1}, headers=headers).json() for _ in range(2))
    assert first == again
    assert len(house.queue.waiting) == 2
    assert start(house, {}, {"seed": 2}, headers=headers).status_code == 409


def test_cancelling_a_cycle_stops_what_has_not_come_to_rest(house: House) -> None:
    cycle = start(house, {}, {"seed": 1}, {"seed": 2}).json()["id"]
    end(house, members(house, cycle)[1], "improved")
    address = f"/api/v1/cycles/{cycle}/cancel"
    assert house.ask("POST", address, tenant="other").status_code == 404
    found = house.ask("POST", address)
    assert found.status_code == 202
    assert found.json()["statuses"] == {"cancelled": 2, "improved": 1}
    assert [each["reason"] for each in found.json()["optimizations"]] == ["", "told", ""]
    assert house.ask("POST", address).json()["statuses"] == {"cancelled": 2, "improved": 1}


def test_a_cycle_is_complete_once_when_all_have_come_to_rest(house: House) -> None:
    cycle = start(house, {}, {"seed": 1}).json()["id"]
    first, second = members(house, cycle)
    end(house, first, "improved")
    assert house.desk.batch.cycles.settle(actor()) == []
    end(house, second, "failed")
    assert house.desk.batch.cycles.settle(actor()) == [cycle]
    assert house.desk.batch.cycles.settle(actor()) == []
    found = house.ask("GET", f"/api/v1/cycles/{cycle}").json()
    assert (found["status"], found["statuses"]) == ("completed", {"improved": 1, "failed": 1})
    entries = [entry for entry in house.ask("GET", "/api/v1/audit").json()["items"] if entry["object"] == cycle]
    assert [entry["action"] for entry in entries] == ["cycle.complete", "cycle.create"]
    told = house.desk.batch.cycles.told({"object": cycle, "tenant": "default", "action": "cycle.complete"})
    assert (told["statuses"], told["optimizations"]) == ({"improved": 1, "failed": 1}, [first, second])


def add(house: House, *more: dict[str, Any], **fields: Any) -> Any:
    house.upload()
    body = {"cron": "0 3 * * *", "cycle": cycle_of(*(more or ({},))), **fields}
    return house.ask("POST", "/api/v1/schedules", json=body)


def tick(house: House, schedule: str, at: datetime) -> str:
    house.clock.now = at + timedelta(seconds=2)
    return house.desk.batch.tick(schedule, at)


NIGHTS = [datetime(2026, 1, day, 3, tzinfo=UTC) for day in range(1, 9)]


def test_a_schedule_begins_a_cycle_at_its_time_and_only_once(house: House) -> None:
    answer = add(house, {}, {"seed": 1}, name="nightly")
    assert answer.status_code == 201, answer.text
    schedule = answer.json()
    assert (schedule["optimizations"], schedule["next_at"]) == (2, NIGHTS[0].isoformat())
    assert [each.id for each in house.queue.schedules] == [schedule["id"]]
    assert tick(house, schedule["id"], NIGHTS[0]) == "run"
    assert tick(house, schedule["id"], NIGHTS[0]) == "done with"
    (cycle,) = house.ask("GET", "/api/v1/cycles").json()["items"]
    assert (cycle["schedule"], cycle["size"], cycle["created_by"]) == (schedule["id"], 2, f"schedule {schedule['id']}")
    found = house.ask("GET", answer.headers["location"]).json()
    assert (found["last_cycle"], found["last_tick"]) == (cycle["id"], NIGHTS[0].isoformat())
    assert found["outcome"] == f"began cycle {cycle['id']}"


def test_a_schedule_whose_worker_died_before_it_noted_the_cycle_begins_no_second(house: House) -> None:
    schedule = add(house).json()["id"]
    tick(house, schedule, NIGHTS[0])
    with house.desk.archive.transaction() as connection:
        connection.exec_driver_sql("UPDATE schedules SET last_tick = NULL, last_cycle = NULL")
    assert tick(house, schedule, NIGHTS[0]) == "run"
    assert len(house.ask("GET", "/api/v1/cycles").json()["items"]) == 1
    assert len(house.queue.waiting) == 1


def test_while_the_last_cycle_runs_the_next_is_left_out(house: House) -> None:
    schedule = add(house, overlap="skip").json()["id"]
    assert [tick(house, schedule, at) for at in NIGHTS[:2]] == ["run", "skip"]
    house.desk.batch.start_waiting()
    assert len(house.queue.waiting) == 1
    end(house, house.queue.waiting[0][0])
    house.desk.batch.start_waiting()
    assert tick(house, schedule, NIGHTS[2]) == "run"
    assert len(house.queue.waiting) == 2


def test_while_the_last_cycle_runs_one_waits_for_it_when_asked_to(house: House) -> None:
    schedule = add(house, overlap="queue").json()["id"]
    assert [tick(house, schedule, at) for at in NIGHTS[:3]] == ["run", "wait", "wait"]
    house.desk.batch.start_waiting()
    assert len(house.queue.waiting) == 1
    end(house, house.queue.waiting[0][0])
    house.desk.batch.start_waiting()
    house.desk.batch.start_waiting()
    assert len(house.queue.waiting) == 2


def test_times_that_were_missed_are_caught_up_with_once(house: House) -> None:
    schedule = add(house).json()["id"]
    house.clock.now = NIGHTS[4] + timedelta(hours=5)
    ((found, at),) = house.desk.batch.missed(grace_seconds=20)
    assert (found.id, at) == (schedule, NIGHTS[4])
    assert [house.desk.batch.tick(schedule, night) for night in NIGHTS[:5]] == ["missed"] * 4 + ["run"]
    assert house.desk.batch.missed(grace_seconds=20) == []
    assert len(house.queue.waiting) == 1


def test_a_paused_schedule_begins_nothing_and_catches_up_with_nothing(house: House) -> None:
    schedule = add(house).json()["id"]
    address = f"/api/v1/schedules/{schedule}"
    assert house.ask("POST", f"{address}/pause").json()["next_at"] is None
    assert house.queue.schedules[0].paused
    assert tick(house, schedule, NIGHTS[0]) == "not wanted"
    house.clock.now = NIGHTS[2] + timedelta(hours=1)
    assert house.ask("POST", f"{address}/resume").json()["next_at"] == NIGHTS[3].isoformat()
    assert house.desk.batch.missed(grace_seconds=20) == []
    assert tick(house, schedule, NIGHTS[3]) == "run"


def test_what_cannot_be_carried_out_any_more_is_told_and_the_schedule_goes_on(house: House) -> None:
    schedule = add(house).json()["id"]
    house.desk.settings.lm_bases = ""
    assert tick(house, schedule, NIGHTS[0]) == "refuse"
    assert "RATCHET_LM_BASES" in house.ask("GET", f"/api/v1/schedules/{schedule}").json()["outcome"]
    house.desk.settings.lm_bases = BASE
    assert tick(house, schedule, NIGHTS[1]) == "run"


def test_a_schedule_that_is_removed_begins_nothing(house: House) -> None:
    schedule = add(house).json()["id"]
    address = f"/api/v1/schedules/{schedule}"
    assert house.ask("DELETE", address, tenant="other").status_code == 404
    assert house.ask("DELETE", address).status_code == 204
    assert house.queue.schedules == []
    assert tick(house, schedule, NIGHTS[0]) == "removed"
    assert house.ask("GET", address).status_code == 404


def test_one_optimization_can_be_scheduled_too(house: House) -> None:
    house.upload()
    body = {"cron": "*/5 * * * *", "optimization": request()}
    assert house.ask("POST", "/api/v1/schedules", json=body).json()["optimizations"] == 1
    for wrong in ({"cron": "0 3 * * *"}, {**body, "cycle": cycle_of({})}):
        assert house.ask("POST", "/api/v1/schedules", json=wrong).status_code == 422


NO_TIMES = (
    ("cron", "0 3 * *"),
    ("cron", "* * * * * *"),
    ("cron", "61 3 * * *"),
    ("cron", "0 0 30 2 *"),
    ("cron", "H 3 * * *"),
    ("cron", "R 3 * * *"),
    ("cron", "@daily   "),
    ("timezone", "Mars/Olympus"),
    ("timezone", "../../etc/passwd"),
    ("overlap", "both"),
)
"""Fields of a schedule, with a value each that stands for no time."""


def test_a_time_that_is_none_is_refused(house: House) -> None:
    for field, value in NO_TIMES:
        answer = add(house, **{field: value})
        assert answer.status_code == 422, (field, value, answer.text)
        assert answer.json()["errors"][0]["field"] == field
    assert house.ask("GET", "/api/v1/schedules").json()["items"] == []


FIELD = st.text("0123456789*,/-#LlHRamonfrij@?", min_size=1, max_size=7) | st.sampled_from(["*", "0", "*/5", "mon"])


@settings(deadline=None, max_examples=200)
@given(parts=st.lists(FIELD, min_size=4, max_size=6), zone=st.sampled_from(["UTC", "Europe/Berlin"]))
def test_a_time_is_taken_and_comes_or_is_refused_with_a_reason(parts: list[str], zone: str) -> None:
    now = datetime(2026, 1, 1, tzinfo=UTC)
    cron = " ".join(parts)
    with suppress(BadRequest):
        check_time(cron, zone, now=now)
        assert len(parts) == 5
        assert last_tick(cron, zone, now) <= now < next_tick(cron, zone, now)


@given(zone=st.text(max_size=64))
def test_a_time_zone_that_is_none_is_refused_with_a_reason(zone: str) -> None:
    with suppress(BadRequest):
        check_time("0 3 * * *", zone, now=datetime(2026, 1, 1, tzinfo=UTC))


@given(
    at=st.datetimes(datetime(2025, 1, 1), datetime(2027, 1, 1), timezones=st.just(UTC)),
    minute=st.integers(0, 59),
    hour=st.integers(0, 23),
    zone=st.sampled_from(["UTC", "Europe/Berlin", "America/New_York", "Asia/Kolkata"]),
)
def test_the_last_time_and_the_next_have_none_between_them(at: datetime, minute: int, hour: int, zone: str) -> None:
    cron = f"{minute} {hour} * * *"
    before, after = last_tick(cron, zone, at), next_tick(cron, zone, at)
    assert before <= at < after
    assert next_tick(cron, zone, before) >= after - timedelta(hours=2)
    assert after - before <= timedelta(hours=49)  # a day that the clocks are put forward may have no such time


def test_the_examples_in_the_description_are_taken(house: House) -> None:
    schemas = house.client.get("/api/v1/openapi.json").json()["components"]["schemas"]
    for name in ("mails", "tickets"):
        house.upload(name)
    house.ask("POST", "/api/v1/targets", json={"name": "sorter", "signature": "text -> label"})
    (cycle,) = schemas["CycleBody"]["examples"]
    assert house.ask("POST", "/api/v1/cycles", json=cycle).status_code == 202
    for example in schemas["ScheduleBody"]["examples"]:
        assert house.ask("POST", "/api/v1/schedules", json=example).status_code == 201

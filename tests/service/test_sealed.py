"""What the service answers when what it keeps cannot be read."""

from __future__ import annotations

import logging

import sqlalchemy as sa

from ratchet.begin import resumed_run
from ratchet.prepare import Given
from ratchet.service.serve import without_message
from ratchet.testing.service import House, actor
from ratchet.testing.vault import SECRET, fill


def test_a_master_key_that_is_away_is_named_and_everything_goes_on_when_it_is_back(house: House) -> None:
    fill(house.desk.archive)
    house.desk.archive.vault.forget("optimization:0a1b")
    file = house.desk.settings.master_keys_file
    file.rename(file.with_suffix(".away"))
    answer = house.ask("GET", "/api/v1/optimizations/0a1b")
    assert answer.status_code == 503
    assert "master.keys, is not there; put it back" in answer.json()["detail"]
    file.with_suffix(".away").rename(file)
    assert house.ask("GET", "/api/v1/optimizations/0a1b").json()["reason"] == SECRET


def test_what_was_changed_behind_our_back_is_named(house: House) -> None:
    fill(house.desk.archive)
    with house.desk.archive.transaction() as connection:
        connection.execute(sa.text(f"UPDATE jobs SET sealed_reason = X'a1{'00' * 40}'"))
    answer = house.ask("GET", "/api/v1/optimizations/0a1b")
    assert answer.status_code == 500
    assert "jobs.sealed_reason/0a1b of optimization:0a1b was changed or moved" in answer.json()["detail"]


def test_a_log_tells_of_an_error_what_it_is_and_where_and_not_what_it_says() -> None:
    try:
        raise ValueError(SECRET)
    except ValueError as error:
        record = logging.makeLogRecord({"msg": "it failed", "exc_info": (ValueError, error, error.__traceback__)})
    assert without_message(record)
    told = logging.Formatter().format(record)
    assert "test_sealed.py" in told
    assert SECRET not in told.replace("raise ValueError(SECRET)", "")


def test_the_secret_of_a_webhook_is_not_in_the_files(house: House) -> None:
    desk = house.desk
    webhook, secret = desk.webhooks.add(actor(), url="https://example.org/hook", types=["*"])
    stored = b"".join(file.read_bytes() for file in desk.settings.home.glob("ratchet.db*"))
    assert secret.removeprefix("whsec_").encode() not in stored
    assert desk.webhooks.secret(webhook.id) == secret


def test_replies_are_shared_within_a_tenant_only(house: House) -> None:
    names = []
    for tenant in ("default", "other", "other"):
        house.upload(tenant=tenant)
        job = house.optimize(tenant=tenant).json()["id"]
        run = resumed_run(job, Given(), house.desk.settings, house.desk.archive)
        names.append(run._lines["task"].shared_as)
        run.gateway.close()
    assert None not in names
    assert names[0] != names[1] == names[2]


def test_what_is_under_a_lost_key_is_listed_stopped_and_erased(house: House) -> None:
    fill(house.desk.archive)
    dataset = house.upload().json()["id"]
    waiting = house.optimize().json()["id"]
    for owner in house.desk.archive.vault.known():
        house.desk.archive.vault.forget(owner)
    house.desk.settings.master_keys_file.unlink()
    found = {job["id"]: job for job in house.ask("GET", "/api/v1/optimizations").json()["items"]}
    assert "cannot be read" in found["0a1b"]["reason"]
    assert found[waiting]["status"] == "queued"
    assert house.ask("GET", "/api/v1/optimizations/0a1b").status_code == 503
    assert house.ask("POST", f"/api/v1/optimizations/{waiting}/cancel").status_code in (202, 503)
    assert house.ask("DELETE", "/api/v1/optimizations/0a1b").status_code == 204
    assert house.ask("DELETE", f"/api/v1/datasets/{dataset}?with_optimizations=true").status_code == 204
    assert house.ask("GET", "/api/v1/optimizations").json()["items"] == []

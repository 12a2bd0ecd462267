"""A worker takes optimizations from the queue, stops when it is told to, and leaves nothing behind."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from ratchet.bootstrap import new_worker, open_archive
from ratchet.core.errors import Conflict, Missing
from ratchet.desk import Desk
from ratchet.options import Options
from ratchet.settings import Settings
from ratchet.storage.cycles import Schedule
from ratchet.storage.jobs import Job
from ratchet.testing.lm_server import SIGNATURE, StubServer
from ratchet.testing.runs import essence
from ratchet.testing.service import Clock, actor, data
from ratchet.workflows import Dispatcher, Worker


@dataclass
class Shop:
    """A desk with a queue, and the workers that were begun at it."""

    desk: Desk
    stub: StubServer
    workers: list[Worker]

    def begin(self) -> Worker:
        """A worker at work."""
        worker = new_worker(self.desk, self.desk.settings, say=lambda line: None)
        worker.start()
        self.workers.append(worker)
        return worker

    def close(self, worker: Worker) -> None:
        """Have it stop."""
        self.workers.remove(worker)
        worker.close(seconds=10)

    def optimize(self, tenant: str = "default", **more: Any) -> Job:
        """A request in the queue."""
        asked = Options(target="", lm="openai/stub", lm_base=self.stub.base, algorithms=("gepa",), max_calls=200)
        asked = replace(asked, **{"force": True, "concurrency": 4, "share_replies": False, **more})
        target = {"signature": SIGNATURE}
        return self.desk.optimize(actor(tenant=tenant), asked, target=target, data={"data": "mails"})

    def now(self, job: Job) -> Job:
        """How it stands."""
        return self.desk.jobs.find(job.tenant, job.id)

    def until(self, job: Job, holds: Callable[[Job], bool], *, seconds: float = 30.0) -> Job:
        """The job, once ``holds`` says so of it."""
        end = time.monotonic() + seconds
        while not holds(self.now(job)):
            assert time.monotonic() < end, self.now(job)
            time.sleep(0.01)
        return self.now(job)

    def catch(self, job: Job) -> None:
        """Wait until it searches, and have its LM dawdle from then on: it is still at work at what is done next."""
        self.until(job, lambda now: self.kinds(now).count("evaluated") > 4)
        self.stub.latency = 0.3

    def kinds(self, job: Job) -> list[str]:
        """The kinds of its events, in order."""
        return [event.kind for event in self.desk.events.of(job.id, after=0)]


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[Shop]:
    with StubServer(latency=0.01) as stub:
        settings = Settings(home=tmp_path / "home", mlflow=False, lm_bases=stub.base, tenant_concurrency=2)
        desk = Desk(settings, open_archive(settings), Dispatcher(settings), clock=Clock())
        (tmp_path / "mails.jsonl").write_bytes(data(140))
        for tenant in ("default", "other"):
            desk.keep_dataset(actor(tenant=tenant), "mails", tmp_path / "mails.jsonl")
        shop = Shop(desk, stub, [])
        yield shop
        for worker in list(shop.workers):
            shop.close(worker)
        desk.close()


def ended(job: Job) -> bool:
    return job.ended


def test_what_waits_is_worked_on_paused_and_gone_on_with_as_if_nothing_had_been(shop: Shop) -> None:
    undisturbed, job = shop.optimize(), shop.optimize()
    worker = shop.begin()
    shop.catch(job)
    shop.desk.stop(actor(), job.id, "pause")
    if shop.now(job).status == "running":
        with pytest.raises(Conflict, match="still stopping"):
            shop.desk.resume(actor(), job.id)
    assert shop.until(job, lambda now: now.status == "paused").reason == ""
    shop.stub.latency = 0.01
    before = shop.stub.requests
    assert shop.desk.progress(actor(), job.id).progress < 1
    shop.desk.resume(actor(), job.id)
    done, other = shop.until(job, ended), shop.until(undisturbed, ended)
    assert (done.status, done.attempt) == (other.status, 2)
    assert shop.stub.requests > before
    results = [shop.desk.jobs.result("default", each.id) for each in (done, other)]
    assert essence(results[0]) == essence(results[1])
    assert results[0] is not None
    assert results[0]["optimization_details"]["spend"]["calls"] == len(shop.desk.archive.open(job.id).journal.stages())
    told = shop.kinds(job)
    assert told == [*(kind for kind in told if kind in ("queued",)), *told[1:]]
    assert (told.count("begun"), told.count("ended"), told.count("plan"), told[-1]) == (2, 2, 1, "ended")
    assert b'"signature"' in shop.desk.jobs.file("default", job.id, "certificate.json")
    shop.close(worker)
    assert shop.desk.audit.verify().number > 0


def test_two_tenants_share_a_worker_and_each_has_its_own_limit(shop: Shop) -> None:
    jobs = [shop.optimize(tenant, seed=seed, max_calls=100) for tenant in ("default", "other") for seed in range(3)]
    shop.begin()
    most = 0
    while not all(shop.now(job).ended for job in jobs):
        running = [now.tenant for now in map(shop.now, jobs) if now.status == "running"]
        most = max(most, running.count("default"), running.count("other"))
        time.sleep(0.1)
    assert most <= 2
    assert {shop.now(job).status for job in jobs} <= {"improved", "no_proven_gain"}


def test_a_worker_that_stops_leaves_its_work_to_the_next(shop: Shop) -> None:
    job = shop.optimize()
    first = shop.begin()
    shop.catch(job)
    shop.close(first)
    shop.stub.latency = 0.01
    handed = shop.now(job)
    assert (handed.status, handed.attempt) == ("queued", 2)
    assert shop.desk.workers.known() == []
    recorded = len(shop.desk.archive.open(job.id).journal.stages())
    assert shop.stub.requests == recorded  # what was under way was waited for, and kept
    shop.begin()
    assert shop.until(job, ended).status in ("improved", "no_proven_gain")
    assert shop.stub.requests == len(shop.desk.archive.open(job.id).journal.stages())


def test_what_fails_says_why_and_can_go_on_when_the_cause_is_gone(shop: Shop) -> None:
    job = shop.optimize(lm_timeout=1.0)
    shop.stub.status = 401
    shop.begin()
    failed = shop.until(job, ended)
    assert failed.status == "failed"
    assert "401" in failed.reason
    shop.stub.status = 200
    shop.desk.resume(actor(), job.id)
    assert shop.until(job, lambda now: now.ended and now.status != "failed").attempt == 2


class Lost:
    """A queue that loses everything."""

    def enqueue(self, job: Job) -> None:
        """Lose it."""

    def cancel(self, job: Job) -> None:
        """There is nothing to take out."""

    def keep_schedules(self, schedules: Sequence[Schedule]) -> None:
        """There are none."""

    def close(self) -> None:
        """Nothing is held."""


def test_what_got_lost_between_two_steps_is_found(shop: Shop) -> None:
    kept, shop.desk._queue = shop.desk._queue, Lost()
    never_queued = shop.optimize()
    shop.desk._queue = kept
    begun = shop.optimize(seed=1)
    shop.desk.jobs.begin(actor(), begun.id, 1)  # by a worker that could not even say that it failed
    kept.cancel(begun)
    assert shop.now(begun).status == "running"
    shop.begin()
    assert shop.until(never_queued, ended).attempt == 1
    assert shop.until(begun, ended).attempt == 2


def test_a_worker_erases_what_is_too_old(shop: Shop) -> None:
    job = shop.optimize()
    shop.desk.stop(actor(), job.id, "cancel")
    waiting = shop.optimize("other")
    settings = shop.desk.settings.model_copy(update={"retention_days": "0.000001,other=0"})
    worker = new_worker(shop.desk, settings, say=lambda line: None)
    worker.start()
    shop.workers.append(worker)
    end = time.monotonic() + 20
    while "retention.erase" not in (told := [each.action for each in shop.desk.audit.entries("default")]):
        assert time.monotonic() < end, told
        time.sleep(0.05)
    with pytest.raises(Missing):
        shop.desk.jobs.find("default", job.id)
    assert shop.now(waiting).id == waiting.id


def test_a_worker_that_was_taken_for_dead_makes_itself_known_again(shop: Shop) -> None:
    worker = shop.begin()
    shop.desk.workers.strike_off(worker.id)
    end = time.monotonic() + 20
    while shop.desk.workers.known() != [worker.id]:
        assert time.monotonic() < end
        time.sleep(0.05)
    assert shop.until(shop.optimize(), ended).status in ("improved", "no_proven_gain")

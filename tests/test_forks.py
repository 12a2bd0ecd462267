"""A fork pays for nothing that was paid for already, and its winner becomes a version of the same target."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import pytest

from ratchet.bootstrap import new_worker
from ratchet.core.errors import BadRequest, Conflict, Missing
from ratchet.desk import Desk
from ratchet.options import Options
from ratchet.settings import Settings
from ratchet.storage.jobs import Job
from ratchet.storage.sql import SqlArchive
from ratchet.testing.lm_server import SIGNATURE, StubServer
from ratchet.testing.runs import essence
from ratchet.testing.service import Clock, actor, data
from ratchet.workflows import Dispatcher


@dataclass
class Bench:
    """A desk with a worker, and one optimization of a kept target that has ended."""

    desk: Desk
    stub: StubServer
    first: Job

    def done(self, job: Job) -> Job:
        """The job, once it has come to rest."""
        return until_ended(self.desk, job)

    def fork(self, **more: Any) -> Job:
        """A fork of the first one, once it has come to rest."""
        return self.done(self.desk.fork(actor(), self.first.id, **{"changes": {}, **more}))

    def sent(self, job: Job) -> int:
        """Calls that were sent for it."""
        return self.desk.archive.open(job.id).journal.sent().calls

    def keys(self, job: Job) -> set[str]:
        """What names its replies."""
        return set(self.desk.archive.open(job.id).journal.stages())


def until_ended(desk: Desk, job: Job) -> Job:
    """The job, once it has come to rest."""
    end = time.monotonic() + 60
    while not (now := desk.jobs.find(job.tenant, job.id)).ended:
        assert time.monotonic() < end, now
        time.sleep(0.01)
    return now


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    folder = tmp_path_factory.mktemp("forks")
    with StubServer() as stub:
        settings = Settings(home=folder / "home", mlflow=False, lm_bases=stub.base, worker_slots=20)
        desk = Desk(settings, SqlArchive(settings.database), Dispatcher(settings), clock=Clock())
        file = folder / "mails.jsonl"
        file.write_bytes(data(140))
        desk.keep_dataset(actor(), "mails", file)
        desk.keep_target(actor(), "sorter", {"signature": SIGNATURE})
        worker = new_worker(desk, settings, say=lambda line: None)
        worker.start()
        asked = Options(target="", lm="openai/stub", lm_base=stub.base, algorithms=("gepa",), max_calls=300)
        asked = replace(asked, force=True, concurrency=4, share_replies=False)
        first = desk.optimize(actor(), asked, target="sorter", data={"data": "mails"})
        yield Bench(desk, stub, until_ended(desk, first))
        worker.close(seconds=10)
        desk.close()


def test_a_fork_with_the_same_settings_sends_nothing_and_ends_alike(bench: Bench) -> None:
    before = bench.stub.requests
    fork = bench.fork()
    assert fork.forked_from == bench.first.id
    assert bench.stub.requests == before
    assert bench.sent(fork) == 0
    assert bench.keys(fork) == bench.keys(bench.first)
    one, other = (bench.desk.jobs.result("default", job.id) for job in (bench.first, fork))
    assert one is not None
    assert other is not None
    assert other["optimization_details"]["notes"][0].startswith(f"it was forked from {bench.first.id}")
    for result in (one, other):
        result["optimization_details"]["notes"] = []
    assert essence(one) == essence(other)


def test_a_fork_with_other_settings_pays_only_for_what_nobody_has_asked_before(bench: Bench) -> None:
    before = bench.stub.requests
    fork = bench.fork(changes={"max_calls": 500, "seed": 3})
    new = bench.keys(fork) - bench.keys(bench.first)
    assert new
    assert bench.keys(fork) & bench.keys(bench.first)
    assert bench.sent(fork) == len(new) == bench.stub.requests - before


def test_a_fork_from_a_stage_uses_what_came_before_it_and_asks_anew_from_there(bench: Bench) -> None:
    stages = bench.desk.archive.open(bench.first.id).journal.stages()
    baseline = {key for key, stage in stages.items() if stage == "baseline"}
    fork = bench.fork(from_stage="search")
    assert baseline
    assert bench.keys(fork) == set(stages)
    assert bench.sent(fork) == len(set(stages) - baseline)


def test_a_fork_of_what_is_not_there_or_from_a_stage_that_was_not_is_refused(bench: Bench) -> None:
    with pytest.raises(Missing):
        bench.desk.fork(actor(tenant="other"), bench.first.id, changes={})
    with pytest.raises(BadRequest, match="'baseline', 'search 1: gepa'"):
        bench.desk.fork(actor(), bench.first.id, changes={}, from_stage="dreaming")
    job = bench.desk.fork(actor(), bench.first.id, changes={"seed": 1}, repeat_key="fork")
    assert bench.desk.fork(actor(), bench.first.id, changes={"seed": 1}, repeat_key="fork").id == job.id
    with pytest.raises(Conflict, match="another request"):
        bench.desk.fork(actor(), bench.first.id, changes={"seed": 2}, repeat_key="fork")
    bench.done(job)


def test_an_optimization_keeps_to_its_share_of_the_slots(bench: Bench) -> None:
    bench.stub.latency, bench.stub.most_at_once = 0.005, 0
    fork = bench.fork(changes={"max_resource_usage": 0.1, "seed": 7, "concurrency": 64})
    bench.stub.latency = 0.0
    assert bench.sent(fork) > 20
    assert bench.stub.most_at_once == 2


def test_a_proven_winner_is_a_challenger_until_it_is_promoted_and_once_only(bench: Bench) -> None:
    assert bench.first.status == "improved"
    found = [version for _, version in bench.desk.versions.page("default", before=None, limit=500, target="sorter")]
    mine = [version for version in found if version.optimization_id == bench.first.id]
    result = bench.desk.jobs.result("default", bench.first.id)
    assert result is not None
    assert [(each.state, each.candidate) for each in mine] == [("challenger", result["winner"]["key"])]
    ((_, ended),) = bench.desk.events.first_and_latest(bench.first.id, ("ended",)).values()
    assert ended["version"] == mine[0].id
    same = bench.desk.versions.register(
        actor(), target="sorter", optimization_id=bench.first.id, candidate=mine[0].candidate
    )
    assert same == mine[0]

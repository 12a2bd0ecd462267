"""Workers in processes of their own share the work; what a killed one had, another takes up."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from ratchet.bootstrap import new_worker, open_archive
from ratchet.desk import Desk
from ratchet.options import Options
from ratchet.settings import Settings
from ratchet.storage.jobs import Job
from ratchet.testing.lm_server import SIGNATURE, StubServer
from ratchet.testing.postgres import a_postgres, programs
from ratchet.testing.service import actor, data
from ratchet.testing.serving import begin_worker
from ratchet.workflows import Dispatcher

DATABASES = ("postgresql",) if programs() is not None else ("sqlite",)


@pytest.fixture(params=DATABASES)
def settings(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Settings]:
    home = Settings(home=tmp_path / "home", mlflow=False)
    if request.param == "sqlite":
        yield home
        return
    with a_postgres() as server:
        yield home.model_copy(update={"database_url": server.url})


def until(desk: Desk, job: Job, holds: Callable[[Job], bool]) -> Job:
    """The job, once ``holds`` says so."""
    end = time.monotonic() + 60
    while not holds(desk.jobs.find(job.tenant, job.id)):
        assert time.monotonic() < end, desk.jobs.find(job.tenant, job.id)
        time.sleep(0.05)
    return desk.jobs.find(job.tenant, job.id)


def asked_for(settings: Settings, stub: StubServer, folder: Path) -> tuple[Desk, Job]:
    """A desk, and an optimization that waits there."""
    desk = Desk(settings, open_archive(settings), Dispatcher(settings), clock=lambda: datetime.now(UTC))
    (folder / "mails.jsonl").write_bytes(data(80))
    desk.keep_dataset(actor(), "mails", folder / "mails.jsonl")
    asked = Options(target="", lm="openai/stub", lm_base=stub.base, algorithms=("gepa",), max_calls=150, force=True)
    return desk, desk.optimize(actor(), asked, target={"signature": SIGNATURE}, data={"data": "mails"})


def test_what_a_killed_worker_had_another_takes_up(settings: Settings, tmp_path: Path) -> None:
    with StubServer(latency=0.03) as stub:
        desk, job = asked_for(settings.model_copy(update={"lm_bases": stub.base}), stub, tmp_path)
        first = begin_worker(settings)
        until(desk, job, lambda now: stub.requests > 40)
        first.kill()
        first.communicate()
        killed_at = time.monotonic()
        second = begin_worker(settings)
        begun = len(desk.events.of(job.id, after=0))
        until(desk, job, lambda now: len(desk.events.of(job.id, after=0)) > begun)
        assert time.monotonic() - killed_at < 30
        done = until(desk, job, lambda now: now.ended)
        assert done.status in ("improved", "no_proven_gain")
        assert done.attempt == 1
        assert stub.requests <= len(desk.archive.open(job.id).journal.stages()) + 8
        kinds = [event.kind for event in desk.events.of(job.id, after=0)]
        assert (kinds.count("begun"), kinds.count("plan"), kinds[-1]) == (2, 1, "ended")
        second.terminate()
        _, said = second.communicate(timeout=60)
        assert second.returncode == 0, said
        assert "died; 1 optimizations of it go on" in said
        assert desk.audit.verify().number > 0
        desk.close()


if programs() is not None:

    def test_a_database_server_that_is_started_again_loses_nothing(tmp_path: Path) -> None:
        with StubServer(latency=0.03) as stub, a_postgres() as server:
            settings = Settings(home=tmp_path / "home", mlflow=False, database_url=server.url, lm_bases=stub.base)
            desk, job = asked_for(settings, stub, tmp_path)
            working = new_worker(desk, settings, say=lambda line: None)
            working.start()
            while stub.requests < 40:
                time.sleep(0.01)
            server.stop()
            time.sleep(0.5)
            server.start()
            assert until(desk, job, lambda now: now.ended).status in ("improved", "no_proven_gain")
            assert stub.requests <= len(desk.archive.open(job.id).journal.stages()) + 8
            events = desk.events.of(job.id, after=0)
            assert [event.kind for event in events].count("ended") == 1
            assert desk.jobs.find("default", job.id).attempt == 1
            working.close(seconds=5)
            desk.close()

"""Workers in processes of their own deliver events; one that is killed loses none."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path

import pytest

from ratchet.batch import last_tick
from ratchet.bootstrap import new_courier, new_worker, open_archive
from ratchet.desk import Desk
from ratchet.engine.archive import Event
from ratchet.options import Options, Order
from ratchet.settings import Settings
from ratchet.testing.lm_server import SIGNATURE, StubServer
from ratchet.testing.postgres import a_postgres, programs
from ratchet.testing.service import BASE, RecordingQueue, actor, data
from ratchet.testing.serving import begin_worker
from ratchet.testing.webhooks import Receiver
from ratchet.workflows import Dispatcher

DATABASES = ("sqlite", "postgresql") if programs() is not None else ("sqlite",)


@pytest.fixture(params=DATABASES)
def settings(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Settings]:
    home = Settings(home=tmp_path / "home", mlflow=False, lm_bases=BASE, webhook_allow="127.0.0.1")
    if request.param == "sqlite":
        yield home
        return
    with a_postgres() as server:
        yield home.model_copy(update={"database_url": server.url})


def until(holds: Callable[[], bool], *, seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.02)


def order(base: str = BASE, *, seed: int = 0) -> Order:
    asked = Options(
        target="", lm="openai/stub", lm_base=base, algorithms=("gepa",), max_calls=60, force=True, seed=seed
    )
    return Order(options=asked, target={"signature": SIGNATURE}, data={"data": "mails"})


def open_desk(settings: Settings, folder: Path, queue: RecordingQueue | Dispatcher) -> Desk:
    desk = Desk(settings, open_archive(settings), queue, clock=lambda: datetime.now(UTC))
    (folder / "mails.jsonl").write_bytes(data(80))
    desk.keep_dataset(actor(), "mails", folder / "mails.jsonl")
    return desk


def test_a_worker_that_is_killed_while_it_delivers_loses_no_event_and_keeps_their_order(
    settings: Settings, tmp_path: Path
) -> None:
    rng = random.Random(7)
    # The optimizations are never worked on: what happens in them is written here, while the workers deliver it.
    desk = open_desk(settings, tmp_path, RecordingQueue())
    Dispatcher(settings).close()  # makes its tables
    with Receiver() as receiver:
        # A tenth of the events is refused at first, each once.
        refused: set[str] = set()

        def answer(event: dict[str, str]) -> int:
            time.sleep(0.002)
            if event["id"] not in refused and rng.random() < 0.1:
                refused.add(event["id"])
                return 503
            return 204

        receiver.answer = answer
        webhook, _ = desk.listeners.add(actor(), url=receiver.url, types=["ratchet.optimization.*"])
        jobs = []
        for seed in range(4):
            asked = order(seed=seed)
            job = desk.optimize(actor(), asked.options, target=asked.target, data=asked.data)
            desk.stop(actor(), job.id, "cancel")  # so that no worker begins it
            jobs.append(job.id)
        first = begin_worker(settings)
        second = new_courier(desk, settings, say=lambda line: None)
        second.start()
        for number in range(40):
            for identity in jobs:
                notebook = desk.archive.open(identity)
                notebook.note(Event(kind="best", payload={"number": number}))
                notebook.flush()
            if number == 20:
                until(lambda: len(receiver.taken) > 40)
                first.kill()
                first.communicate()
        until(lambda: len({event["id"] for event in receiver.taken}) == 42 * len(jobs))
        second.close()
        for identity in jobs:
            taken = [int(event["sequence"]) for event in receiver.taken if event["subject"] == identity]
            unique = list(dict.fromkeys(taken))
            assert unique == list(range(1, 43))
            # An event comes again only where a worker was killed between its arrival and its cursor: in place.
            assert all(after - before in (0, 1) for before, after in pairwise(taken))
            assert len(taken) - len(unique) <= 1
        assert desk.webhooks.dead("default", webhook.id) == []
        desk.close()


def test_a_scheduled_cycle_that_was_missed_runs_once_and_tells_when_it_is_complete(
    settings: Settings, tmp_path: Path
) -> None:
    with StubServer() as stub, Receiver() as receiver:
        settings = settings.model_copy(update={"lm_bases": stub.base})
        desk = open_desk(settings, tmp_path, Dispatcher(settings))
        orders = [order(stub.base, seed=seed) for seed in range(2)]
        schedule = desk.batch.add(actor(), orders, name="hourly", cron="0 * * * *", overlap="skip")
        desk.listeners.add(actor(), url=receiver.url, types=["ratchet.cycle.*", "ratchet.schedule.*"])
        with desk.archive.transaction() as connection:  # as if it had been made long ago
            connection.exec_driver_sql(
                f"UPDATE schedules SET since = '{(datetime.now(UTC) - timedelta(hours=5)).isoformat()}'"
            )
        working = new_worker(desk, settings, say=lambda line: None)
        working.start()
        until(lambda: any(event["type"] == "ratchet.cycle.completed" for event in receiver.taken))
        working.close(seconds=5)
        told = [event["type"] for event in receiver.taken]
        assert told.count("ratchet.cycle.created") == told.count("ratchet.cycle.completed") == 1
        ((_, cycle),) = desk.batch.cycles.page("default", before=None, limit=10)
        assert cycle.completed_at is not None
        assert sum(cycle.statuses.values()) == 2
        assert set(cycle.statuses) <= {"improved", "no_proven_gain"}
        now = desk.batch.schedules.find("default", schedule.id)
        assert now.last_tick == last_tick("0 * * * *", "UTC", datetime.now(UTC)).isoformat()
        completed = next(event for event in receiver.taken if event["type"] == "ratchet.cycle.completed")
        assert completed["data"]["statuses"] == dict(cycle.statuses)
        desk.close()


if programs() is not None:

    def test_a_database_server_that_is_started_again_while_events_are_delivered_loses_none(tmp_path: Path) -> None:
        with Receiver() as receiver, a_postgres() as server:
            settings = Settings(
                home=tmp_path, mlflow=False, database_url=server.url, lm_bases=BASE, webhook_allow="127.0.0.1"
            )
            desk = open_desk(settings, tmp_path, RecordingQueue())
            desk.listeners.add(actor(), url=receiver.url, types=["ratchet.optimization.*"])
            asked = order()
            job = desk.optimize(actor(), asked.options, target=asked.target, data=asked.data)
            notebook = desk.archive.open(job.id)
            for number in range(300):
                notebook.note(Event(kind="best", payload={"number": number}))
            notebook.flush()
            courier = new_courier(desk, settings, say=lambda line: None)
            courier.start()
            until(lambda: len(receiver.taken) > 20)
            server.stop()
            assert len(receiver.taken) < 301
            time.sleep(0.7)
            server.start()
            until(lambda: len({event["id"] for event in receiver.taken}) == 301)
            courier.close()
            taken = [int(event["sequence"]) for event in receiver.taken]
            assert list(dict.fromkeys(taken)) == list(range(1, 302))
            desk.close()

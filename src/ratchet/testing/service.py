"""The service for tests: a desk on a database in a folder, with a queue that only remembers."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, get_args

from fastapi.testclient import TestClient

from ratchet.bootstrap import open_archive
from ratchet.core.access import Actor, Role
from ratchet.core.features import TaskFeatures
from ratchet.core.lesson import Lesson
from ratchet.desk import Desk
from ratchet.programs.remote_algorithm import Address
from ratchet.service.app import create_app
from ratchet.settings import Settings
from ratchet.storage.cycles import Schedule
from ratchet.storage.jobs import Job
from ratchet.testing.lm_server import SIGNATURE, rows

BASE = "http://127.0.0.1:9/v1"
"""An LM server that requests may name; nobody listens there."""


@dataclass
class RecordingQueue:
    """Takes everything, and has nothing worked on.

    Attributes:
        waiting: Ids and attempts in the queue, in the order they came.
        cancelled: Those that were taken out.
        schedules: Those that come back by the clock.
    """

    waiting: list[tuple[str, int]] = field(default_factory=list)
    cancelled: list[tuple[str, int]] = field(default_factory=list)
    schedules: list[Schedule] = field(default_factory=list)

    def enqueue(self, job: Job) -> None:
        """Note it; the same attempt once."""
        if (job.id, job.attempt) not in self.waiting:
            self.waiting.append((job.id, job.attempt))

    def cancel(self, job: Job) -> None:
        """Note it."""
        self.cancelled.append((job.id, job.attempt))

    def keep_schedules(self, schedules: Sequence[Schedule]) -> None:
        """Note them."""
        self.schedules = list(schedules)

    def close(self) -> None:
        """Nothing is held."""


@dataclass
class Clock:
    """A clock that stands still until it is set."""

    now: datetime = datetime(2026, 1, 1, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.now


def desk_in(folder: Path, *, queue: RecordingQueue, clock: Clock, **settings: Any) -> Desk:
    """A desk whose database is in ``folder``."""
    home = Settings(home=folder, mlflow=False, **{"lm_bases": BASE, **settings})
    return Desk(home, open_archive(home), queue, clock=clock)


def actor(role: Role = "admin", *, tenant: str = "default") -> Actor:
    """Somebody who asks."""
    return Actor(name=f"{role} of {tenant}", tenant=tenant, role=role, origin="a test")


def data(n: int = 60) -> bytes:
    """The stub LM's own task, as JSON lines."""
    return "".join(json.dumps(row) + "\n" for row in rows(n)).encode()


def a_lesson(identity: str, *, at: datetime, tenant: str = "default", **more: Any) -> Lesson:
    """What an optimization taught."""
    task = TaskFeatures(train=4, validation=2, predictors=1, output="text", inputs=("q",), outputs=("a",), headroom=0.5)
    values: dict[str, Any] = {"features": task, "status": "improved", "warm_start": "on", **more}
    return Lesson(id=identity, tenant=tenant, created_at=at, **values)


def request(base: str = BASE, **more: Any) -> dict[str, Any]:
    """The body of a request to optimize the stub LM's own task on the data set ``mails``."""
    return {
        "target": {"spec": {"signature": SIGNATURE}},
        "data": "mails",
        "lm": "openai/stub",
        "lm_base": base,
        "algorithms": ["gepa"],
        "constraints": {"max_calls": 300},
        "concurrency": 4,
        "force": True,
        **more,
    }


@dataclass
class House:
    """A service without a worker.

    Attributes:
        keys: A key of each role in the tenants ``default`` and ``other``.
    """

    desk: Desk
    queue: RecordingQueue
    clock: Clock
    client: TestClient
    keys: dict[tuple[str, Role], str]

    def ask(self, method: str, path: str, *, role: Role = "admin", tenant: str = "default", **more: Any) -> Any:
        """The response to a request with a key."""
        headers = {"Authorization": f"Bearer {self.keys[tenant, role]}", **more.pop("headers", {})}
        return self.client.request(method, path, headers=headers, **more)

    def upload(self, name: str = "mails", content: bytes | None = None, **more: Any) -> Any:
        """The response to an upload."""
        headers = {"Content-Type": more.pop("kind", "application/x-ndjson")}
        body = data() if content is None else content
        return self.ask("POST", f"/api/v1/datasets?name={name}", content=body, headers=headers, **more)

    def optimize(self, *, headers: dict[str, str] | None = None, tenant: str = "default", **more: Any) -> Any:
        """The response to a request to optimize."""
        return self.ask("POST", "/api/v1/optimize", json=request(**more), headers=headers or {}, tenant=tenant)

    def job(self) -> str:
        """The id of an optimization that waits, of a kept target."""
        self.upload()
        self.ask("POST", "/api/v1/targets", json={"name": "sorter", "signature": SIGNATURE})
        return str(self.optimize(target={"id": "sorter"}).json()["id"])

    def version(self) -> str:
        """The id of a version of a kept target."""
        who = actor("developer")
        return self.desk.versions.register(who, target="sorter", optimization_id=self.job(), candidate="0" * 16).id

    def experiment(self) -> str:
        """The id of an experiment between the program as it is and a version of it."""
        arms = [{"version": each, "share": 0.5} for each in (None, self.version())]
        return str(self.ask("POST", "/api/v1/experiments", json={"target": "sorter", "arms": arms}).json()["id"])


@contextmanager
def house_in(folder: Path, **settings: Any) -> Iterator[House]:
    """A service without a worker, on a database in ``folder``."""
    queue, clock = RecordingQueue(), Clock()
    desk = desk_in(folder, queue=queue, clock=clock, **settings)
    keys = {
        (tenant, role): desk.keys.create(actor(), name=role, tenant=tenant, role=role)[1]
        for tenant in ("default", "other")
        for role in get_args(Role)
    }
    with TestClient(create_app(desk), raise_server_exceptions=False) as client:
        yield House(desk, queue, clock, client, keys)
    desk.close()


def _dataset(house: House) -> list[str]:
    return [house.upload().json()["id"], "mails", "mails@1"]


def _target(house: House) -> list[str]:
    kept = house.ask("POST", "/api/v1/targets", json={"name": "sorter", "signature": SIGNATURE})
    return [kept.json()["id"], "sorter", "sorter@1"]


def _algorithm(house: House) -> list[str]:
    house.desk.algorithms.register(actor(), "climb", Address(url="https://algorithms.invalid/climb"), [])
    return ["climb"]


def _lesson(house: House) -> list[str]:
    house.desk.lessons.keep(a_lesson("c0ffee123456", at=house.clock.now))
    return ["c0ffee123456"]


def _order(house: House) -> dict[str, Any]:
    house.upload()
    return request()


def _made(house: House, kind: str, **body: Any) -> str:
    answer = house.ask("POST", f"/api/v1/{kind}", json=body)
    assert answer.is_success, answer.text
    return str(answer.json()["id"])


MAKERS: Mapping[str, Callable[[House], list[str]]] = {
    "optimizations": lambda house: [house.job()],
    "datasets": _dataset,
    "targets": _target,
    "versions": lambda house: [house.version()],
    "experiments": lambda house: [house.experiment()],
    "algorithms/custom": _algorithm,
    "lessons": _lesson,
    "keys": lambda house: [_made(house, "keys", name="ci")],
    "webhooks": lambda house: [_made(house, "webhooks", url="https://hooks.invalid/ratchet")],
    "cycles": lambda house: [_made(house, "cycles", optimizations=[_order(house)])],
    "schedules": lambda house: [_made(house, "schedules", cron="30 2 * * mon", optimization=_order(house))],
}
"""What makes one thing of each kind in the tenant ``default``, by how its address begins; all ways to refer to it."""


def addresses(house: House, path: str) -> list[str]:
    """The address of a thing that was just made, in each way there is, for the template of a route with one parameter.

    Raises:
        KeyError: there is no maker for such a thing; add one to ``MAKERS``.
    """
    start, _, rest = path.partition("{")
    kind, rest = start.removeprefix("/api/v1/").strip("/"), rest.partition("}")[2]
    return [f"{start}{reference}{rest}" for reference in MAKERS[kind](house)]

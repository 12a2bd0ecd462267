"""Optimizations as DBOS workflows: queued per tenant, taken up by any worker, gone on with when a worker dies.

DBOS has the queue; what was paid for is in the journal. So a workflow has nothing of its own to remember: whoever takes
it up, in whatever attempt, goes on where the journal ends.
"""

from __future__ import annotations

import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import chain, repeat
from pathlib import Path
from tempfile import TemporaryDirectory

import sqlalchemy as sa
from dbos import DBOS, DBOSClient, DBOSConfig, EnqueueOptions
from dbos._error import DBOSException
from dbos._serialization import DBOSPortableJSON
from filelock import FileLock

from ratchet.batch import Batch
from ratchet.begin import resumed_run
from ratchet.carry_out import carry_out
from ratchet.core.access import Actor
from ratchet.core.errors import Cancelled, InUse, Missing, RatchetError, StorageUnavailable, where
from ratchet.core.result import OptimizationResult, Status
from ratchet.courier import Courier
from ratchet.engine.archive import Event, Notebook
from ratchet.engine.certificate import load_or_make_key
from ratchet.hands import Hands
from ratchet.measure import KIND, ROWS, as_lines, resumed, row_json
from ratchet.prepare import Given
from ratchet.publish import publish
from ratchet.run import Run
from ratchet.settings import Settings
from ratchet.storage.cycles import Schedule
from ratchet.storage.database import POOL_SECONDS
from ratchet.storage.erasure import Eraser, Retention
from ratchet.storage.jobs import Job, Jobs
from ratchet.storage.sql import SqlArchive
from ratchet.storage.versions import Versions
from ratchet.storage.workers import Workers

APPLICATION, QUEUE, WORKFLOW, SCHEDULED = "ratchet", "optimizations", "optimization", "scheduled"

VERSION = "1"
"""Of the workflow. A worker takes up only workflows of its own version, so change it when an old one cannot go on."""

HANDS = 4
"""Optimizations of a worker that begin or end at once."""
LOOK_SECONDS = 0.5
"""How often a worker looks for what shall stop."""
ROLL_CALL_SECONDS = 3.0
"""How often a worker looks for others that died."""
SEARCH_SECONDS = 30.0
"""How often a worker looks for what got lost."""
SWEEP_SECONDS = 3600.0
"""How often a worker erases what is too old."""
GRACE_SECONDS = 20.0
"""How late a schedule may come before it is thought to have been missed; DBOS spreads them over ten seconds."""
RETRIES = (1.0, 2.0, 4.0, 8.0, 16.0)
"""Seconds before each new try when the database refused; the last one again and again."""


def workflow_database(settings: Settings) -> str:
    """The URL of DBOS's own tables: a SQLite file beside ours, or the same PostgreSQL database."""
    url = sa.make_url(settings.database)
    if url.get_backend_name() != "sqlite":
        return url.set(drivername="postgresql").render_as_string(hide_password=False)
    return f"sqlite:///{Path(url.database or 'ratchet.db').with_suffix('.workflows.db')}"


class Dispatcher:
    """Puts optimizations in the queue; it runs none.

    Args:
        settings: Say where the queue is.
    """

    def __init__(self, settings: Settings) -> None:
        url = workflow_database(settings)
        with _alone(settings):
            DBOS.migrate(url)
        self._client = DBOSClient(system_database_url=url, serializer=DBOSPortableJSON, application_name=APPLICATION)

    def enqueue(self, job: Job) -> None:
        """Have ``job`` worked on; the same attempt is never in the queue twice."""
        options: EnqueueOptions = {
            "workflow_name": WORKFLOW,
            "queue_name": QUEUE,
            "workflow_id": _name(job.id, job.attempt),
            "queue_partition_key": job.tenant,
            "priority": job.priority,
            "app_version": VERSION,
        }
        self._client.enqueue(options, job.id, job.attempt, job.tenant)

    def cancel(self, job: Job) -> None:
        """Take ``job`` out of the queue, if no worker has it yet."""
        self._client.cancel_workflow(_name(job.id, job.attempt))

    def keep_schedules(self, schedules: Sequence[Schedule]) -> None:
        """Have these schedules, and no others, come back by the clock."""
        wanted = {_timed(schedule): schedule for schedule in schedules}
        there = {each["schedule_name"]: each for each in self._client.list_schedules(workflow_name=SCHEDULED)}
        for name in there.keys() - wanted.keys():
            self._client.delete_schedule(name)
        for name, schedule in wanted.items():
            if name not in there:
                if schedule.paused:
                    continue
                with suppress(DBOSException):  # another process was quicker
                    self._client.create_schedule(
                        schedule_name=name,
                        workflow_name=SCHEDULED,
                        schedule=schedule.cron,
                        context=schedule.id,
                        cron_timezone=schedule.timezone,
                    )
            elif schedule.paused != (there[name]["status"] != "ACTIVE"):
                (self._client.pause_schedule if schedule.paused else self._client.resume_schedule)(name)

    def catch_up(self, schedule: Schedule, at: datetime) -> None:
        """Have what should have come at ``at`` come now; what came already does not come again."""
        with suppress(DBOSException):  # it was removed meanwhile
            self._client.backfill_schedule(_timed(schedule), at - timedelta(seconds=1), at + timedelta(seconds=1))

    def without_workflow(self, attempts: Sequence[tuple[str, int]]) -> list[str]:
        """The optimizations whose ``attempts`` are neither in the queue nor with a worker."""
        names = [_name(*attempt) for attempt in attempts]
        found = self._client.list_workflows(workflow_ids=names, load_input=False, load_output=False) if names else []
        active = {workflow.workflow_id for workflow in found if workflow.status in ("ENQUEUED", "PENDING", "DELAYED")}
        return [identity for name, (identity, _) in zip(names, attempts, strict=True) if name not in active]

    def close(self) -> None:
        """Give back the connections."""
        self._client.destroy()


def _name(identity: str, attempt: int) -> str:
    """An attempt's name: each resume is a workflow of its own, so that no outcome of an earlier one is in its way."""
    return f"{identity}.{attempt}"


def _timed(schedule: Schedule) -> str:
    return f"schedule-{schedule.id}"


def _alone(settings: Settings) -> FileLock:
    """Keeps other processes of this machine from making the same tables at the same time."""
    settings.home.mkdir(parents=True, exist_ok=True)
    return FileLock(settings.home / "workflows.lock")


class Worker:
    """Works on optimizations in this process; there is one per process, as DBOS wants it.

    Args:
        settings: Of this installation.
        archive: Where optimizations are kept.
        jobs: What is wanted of them.
        workers: Where this one is known, and others that may have died.
        versions: Where proven winners are registered.
        dispatcher: Where they are put when this worker stops.
        eraser: Erases what is older than the settings let it be.
        say: Told what an operator should know.
        courier: Brings events to whoever listens.
        batch: Does what schedules ask for.
    """

    def __init__(
        self,
        settings: Settings,
        archive: SqlArchive,
        jobs: Jobs,
        workers: Workers,
        versions: Versions,
        dispatcher: Dispatcher,
        eraser: Eraser,
        *,
        say: Callable[[str], None],
        courier: Courier | None = None,
        batch: Batch | None = None,
    ) -> None:
        self._courier = courier
        self._batch = batch
        self.id = f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:6]}"
        self._settings = settings
        self._archive = archive
        self._jobs = jobs
        self._workers = workers
        self._versions = versions
        self._dispatcher = dispatcher
        self._say = say
        self._actor = Actor(name=f"worker {self.id}", tenant="", role="admin", origin=socket.gethostname())
        self._under_way: dict[str, Run] = {}
        self._silent: set[str] = set()
        self._retention = Retention.parse(settings.retention_days)
        self._eraser = eraser
        self._swept: float | None = None
        self._closing = threading.Event()
        self._hands = Hands(HANDS)
        self._watching = threading.Thread(target=self._watch, name="ratchet-watch", daemon=True)

    def start(self) -> None:
        """Begin to take optimizations from the queue."""
        self._archive.claims.take(self._claim(self.id))
        self._workers.enlist(self._actor, self.id)
        config: DBOSConfig = {
            "name": APPLICATION,
            "system_database_url": workflow_database(self._settings),
            "application_version": VERSION,
            "executor_id": self.id,
            "serializer": DBOSPortableJSON,
            "log_level": "ERROR",
            "db_engine_kwargs": {"pool_timeout": POOL_SECONDS},
        }
        with _alone(self._settings):
            DBOS(config=config)
            DBOS.workflow(name=WORKFLOW)(self._workflow())
            DBOS.workflow(name=SCHEDULED)(self._scheduled())
            DBOS.launch()
            DBOS.register_queue(
                QUEUE,
                worker_concurrency=self._settings.worker_concurrency,
                partition_concurrency=self._settings.tenant_concurrency,
                global_concurrency=max(self._settings.global_concurrency, self._settings.tenant_concurrency),
                polling_interval_sec=0.25,
                on_conflict="always_update",
            )
        self._find_lost()
        self._find_missed()
        self._watching.start()
        if self._courier is not None:
            self._courier.start()

    def close(self, *, seconds: float = 30.0) -> None:
        """Stop what is under way, cleanly, and leave it to others.

        Args:
            seconds: How long the requests under way may take.
        """
        self._closing.set()
        ending = threading.Thread(
            target=DBOS.destroy, kwargs={"destroy_registry": True, "workflow_completion_timeout_sec": int(seconds)}
        )
        ending.start()  # it stops taking from the queue first, and then waits for what is under way
        for run in list(self._under_way.values()):
            run.cancel("queued")
        ending.join()
        if self._courier is not None:
            self._courier.close()
        self._workers.strike_off(self.id)
        self._archive.claims.release(self._claim(self.id))
        if self._watching.is_alive():
            self._watching.join(timeout=seconds)
        self._dispatcher.close()

    # --- the workflow ------------------------------------------------------------------------------------------------

    def _workflow(self) -> Callable[[str, int, str], str]:
        def optimization(identity: str, attempt: int, tenant: str) -> str:
            return self._work(identity, attempt, replace(self._actor, tenant=tenant))

        return optimization

    def _scheduled(self) -> Callable[[datetime, str], str]:
        def scheduled(at: datetime, identity: str) -> str:
            waits = chain(RETRIES, repeat(RETRIES[-1]))
            while self._batch is not None:
                try:
                    return self._batch.tick(identity, at)
                except StorageUnavailable:  # a time that is missed for that would not come again
                    if self._closing.wait(next(waits)):
                        raise
            return "nobody does it"

        return scheduled

    def _work(self, identity: str, attempt: int, actor: Actor) -> str:
        """Carry on with one optimization until it comes to rest; how it stands then."""
        waits = chain(RETRIES, repeat(RETRIES[-1]))
        while True:
            try:
                with self._hands:
                    return self._try(identity, attempt, actor)
            except InUse:  # whoever has it lets go of it, or dies
                self._wait_for(identity)
            except StorageUnavailable:  # nothing can be kept, not even that it failed
                if self._closing.wait(next(waits)):
                    raise

    def _wait_for(self, identity: str) -> None:
        """Wait until nobody works on it; shutting down ends the wait.

        Raises:
            InUse: this worker stops.
        """
        claims = self._archive.claims
        while True:
            with suppress(StorageUnavailable):
                if claims.take(identity):
                    claims.release(identity)
                    return
            if self._closing.wait(LOOK_SECONDS):
                raise InUse(f"another process is working on {identity}")

    def _try(self, identity: str, attempt: int, actor: Actor) -> str:
        begun = self._jobs.begin(actor, identity, attempt)
        if begun is None:
            return "not wanted any more"
        status, reason = self._carry_on(identity)
        if status == "queued":
            job = self._jobs.put_back(actor, identity)
            if job.status == "queued":
                self._dispatcher.enqueue(job)
            return "handed over"
        version = self._register(actor, begun) if status == "improved" else None
        self._jobs.note_end(actor, identity, attempt, status=status, reason=reason, more=version)
        return status

    def _register(self, actor: Actor, job: Job) -> dict[str, str] | None:
        """Have the winner be a version of its target; a program that was only described has no target to be one of."""
        target, kept, _ = job.target.rpartition("@")
        result = self._archive.find(job.id).result
        if not kept or result is None:
            return None
        candidate = result["winner"]["key"]
        return {
            "version": self._versions.register(actor, target=target, optimization_id=job.id, candidate=candidate).id
        }

    def _carry_on(self, identity: str) -> tuple[Status, str]:
        """How it stands after it was worked on, and why."""
        notebook = self._archive.open(identity, anew=True)
        try:
            stored = self._archive.find(identity)
            if stored.request.get("kind") == KIND:
                return self._evaluate(identity, notebook)
            run = resumed_run(identity, Given(), self._settings, self._archive)
            run.resting = self._hands.resting
            if stored.result is not None:  # it ended, and whoever worked on it died before all was told
                result = OptimizationResult.from_json(stored.result)
                notebook.set_status(result.status, result=stored.result)
                with self._folder() as folder:
                    self._keep(identity, publish(run, result, folder, key=load_or_make_key(self._settings.home)))
            else:
                self._take_up(run, notebook)
                with self._folder() as folder:
                    result, files = carry_out(run, folder, settings=self._settings, warn=self._say)
                    self._keep(identity, files)
        except (InUse, StorageUnavailable):
            raise
        except Cancelled:
            return self._archive.find(identity).status, ""  # type: ignore[return-value]
        except RatchetError as error:
            return self._failed(identity, str(error))
        except Exception as error:  # the worker's outermost turn: the optimization fails, not the worker
            self._say(f"optimization {identity} failed by a bug:\n{where(error)}")
            return self._failed(identity, f"{type(error).__name__}: {error}")
        finally:
            self._under_way.pop(identity, None)
        return result.status, result.reason

    def _take_up(self, run: Run, notebook: Notebook) -> None:
        """Have ``run`` stopped when it shall stop, and told of as begun."""
        self._under_way[run.id] = run
        if self._closing.is_set():
            run.cancel("queued")
        notebook.note(Event(kind="begun", payload={"worker": self.id}))

    def _evaluate(self, identity: str, notebook: Notebook) -> tuple[Status, str]:
        """The same for an evaluation; one that had ended finds all its rows, and is told again."""
        measurement = resumed(identity, self._settings, self._archive)
        measurement.run.resting = self._hands.resting
        self._take_up(measurement.run, notebook)
        rows = measurement.execute()
        self._jobs.keep_file(identity, ROWS, as_lines([row_json(row) for row in rows]).encode())
        return "evaluated", f"mean score {rows.mean:.3f} on {len(rows)} examples"

    @contextmanager
    def _folder(self) -> Iterator[Path]:
        """Where files are written before they are kept: they hold examples, and stay in the database alone."""
        with TemporaryDirectory(prefix="ratchet-files-") as folder:
            yield Path(folder)

    def _failed(self, identity: str, reason: str) -> tuple[Status, str]:
        self._archive.open(identity, anew=True).set_status("failed", error=reason)
        return "failed", reason

    def _keep(self, identity: str, files: tuple[Path, ...]) -> None:
        for file in files:
            self._jobs.keep_file(identity, file.name, file.read_bytes())

    # --- the watch ---------------------------------------------------------------------------------------------------

    def _watch(self) -> None:
        called = searched = time.monotonic()
        while not self._closing.wait(LOOK_SECONDS):
            with suppress(StorageUnavailable, sa.exc.SQLAlchemyError):  # the next look will tell
                self._archive.claims.keep()
                self._stop_unwanted()
                if time.monotonic() - called > ROLL_CALL_SECONDS:
                    called = time.monotonic()
                    self._take_over()
                if time.monotonic() - searched > SEARCH_SECONDS:
                    searched = time.monotonic()
                    self._find_lost()
                    self._find_missed()
                    self._archive.forget_erased()
                if self._swept is None or time.monotonic() - self._swept > SWEEP_SECONDS:
                    self._swept = time.monotonic()
                    threading.Thread(target=self._sweep, name="ratchet-sweep", daemon=True).start()

    def _sweep(self) -> None:
        with suppress(StorageUnavailable, sa.exc.SQLAlchemyError):  # the next one will do it
            erased = self._eraser.sweep(self._actor, self._retention, now=datetime.now(UTC))
            if erased:
                self._say(f"{erased} things were older than RATCHET_RETENTION_DAYS, and are erased")

    def _stop_unwanted(self) -> None:
        under_way = dict(self._under_way)
        if under_way:
            for identity, status in self._jobs.unwanted(list(under_way)).items():
                under_way[identity].cancel(status)

    def _take_over(self) -> None:
        """Put the work of workers that died in the queue again.

        One that holds nothing is dead when it still holds nothing at the next roll call: when the database server was
        started again, everybody takes their claims again.
        """
        before, self._silent = self._silent, set()
        workers = self._workers.known()
        if self.id not in workers:  # this one was held up for so long that it was taken for dead
            self._archive.claims.take(self._claim(self.id))
            self._workers.enlist(self._actor, self.id)
        for worker in workers:
            if worker == self.id or not self._archive.claims.take(self._claim(worker)):
                continue
            self._silent.add(worker)
            if worker not in before:
                self._archive.claims.release(self._claim(worker))
                continue
            try:
                # Without DBOS Conductor it is for the application to say who died.
                found = DBOS._recover_pending_workflows([worker])
                self._workers.strike_off(worker)
            finally:
                self._archive.claims.release(self._claim(worker))
            if found:
                self._say(f"worker {worker} died; {len(found)} optimizations of it go on")

    def _find_lost(self) -> None:
        """Put in the queue what should be there and is not: a process died, or the database, between two steps."""
        for identity in self._dispatcher.without_workflow(self._jobs.unsettled()):
            try:
                job = self._jobs.anybodys(identity)
            except Missing:  # erased since
                continue
            actor = replace(self._actor, tenant=job.tenant)
            self._dispatcher.enqueue(self._jobs.put_back(actor, job.id) if job.status == "running" else job)

    def _find_missed(self) -> None:
        """Have schedules come, once, that should have come while nobody was there; and have them as they were kept."""
        if self._batch is not None:
            self._batch.keep_timetable()
            for schedule, at in self._batch.missed(grace_seconds=GRACE_SECONDS):
                self._dispatcher.catch_up(schedule, at)

    def _claim(self, worker: str) -> str:
        return f"worker-{worker}"

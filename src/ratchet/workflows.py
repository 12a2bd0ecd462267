"""Optimizations as DBOS workflows: queued per tenant, taken up by any worker, gone on with when a worker dies.

DBOS has the queue; what was paid for is in the journal. So a workflow has nothing of its own to remember: whoever takes
it up, in whatever attempt, goes on where the journal ends.
"""

from __future__ import annotations

import os
import socket
import threading
import time
import traceback
import uuid
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import chain, repeat
from pathlib import Path

import sqlalchemy as sa
from dbos import DBOS, DBOSClient, DBOSConfig, EnqueueOptions
from dbos._serialization import DBOSPortableJSON
from filelock import FileLock

from ratchet.carry_out import carry_out
from ratchet.core.access import Actor
from ratchet.core.errors import Cancelled, InUse, RatchetError, StorageUnavailable
from ratchet.core.result import OptimizationResult, Status
from ratchet.engine.archive import Event
from ratchet.engine.certificate import load_or_make_key
from ratchet.publish import publish
from ratchet.run import Given, Run, resumed_run
from ratchet.settings import Settings
from ratchet.storage.jobs import Job, Jobs
from ratchet.storage.sql import POOL_SECONDS, SqlArchive

APPLICATION, QUEUE, WORKFLOW = "ratchet", "optimizations", "optimization"

VERSION = "1"
"""Of the workflow. A worker takes up only workflows of its own version, so change it when an old one cannot go on."""

LOOK_SECONDS = 0.5
"""How often a worker looks for what shall stop."""
ROLL_CALL_SECONDS = 3.0
"""How often a worker looks for others that died."""
SEARCH_SECONDS = 30.0
"""How often a worker looks for what got lost."""
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
            "workflow_id": _name(job),
            "queue_partition_key": job.tenant,
            "priority": job.priority,
            "app_version": VERSION,
        }
        self._client.enqueue(options, job.id, job.attempt, job.tenant)

    def cancel(self, job: Job) -> None:
        """Take ``job`` out of the queue, if no worker has it yet."""
        self._client.cancel_workflow(_name(job))

    def without_workflow(self, jobs: Sequence[Job]) -> list[Job]:
        """Those of ``jobs`` that are neither in the queue nor with a worker."""
        names = [_name(job) for job in jobs]
        found = self._client.list_workflows(workflow_ids=names, load_input=False, load_output=False) if names else []
        active = {workflow.workflow_id for workflow in found if workflow.status in ("ENQUEUED", "PENDING", "DELAYED")}
        return [job for job in jobs if _name(job) not in active]

    def close(self) -> None:
        """Give back the connections."""
        self._client.destroy()


def _name(job: Job) -> str:
    """An attempt's name: each resume is a workflow of its own, so that no outcome of an earlier one is in its way."""
    return f"{job.id}.{job.attempt}"


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
        dispatcher: Where they are put when this worker stops.
        say: Told what an operator should know.
    """

    def __init__(
        self,
        settings: Settings,
        archive: SqlArchive,
        jobs: Jobs,
        dispatcher: Dispatcher,
        *,
        say: Callable[[str], None],
    ) -> None:
        self.id = f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:6]}"
        self._settings = settings
        self._archive = archive
        self._jobs = jobs
        self._dispatcher = dispatcher
        self._say = say
        self._actor = Actor(name=f"worker {self.id}", tenant="", role="admin", origin=socket.gethostname())
        self._under_way: dict[str, Run] = {}
        self._silent: set[str] = set()
        self._closing = threading.Event()
        self._watching = threading.Thread(target=self._watch, name="ratchet-watch", daemon=True)

    def start(self) -> None:
        """Begin to take optimizations from the queue."""
        self._archive.claims.take(self._claim(self.id))
        self._jobs.enlist(self._actor, self.id)
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
        self._watching.start()

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
        self._jobs.strike_off(self.id)
        self._archive.claims.release(self._claim(self.id))

    # --- the workflow ------------------------------------------------------------------------------------------------

    def _workflow(self) -> Callable[[str, int, str], str]:
        def optimization(identity: str, attempt: int, tenant: str) -> str:
            return self._work(identity, attempt, replace(self._actor, tenant=tenant))

        return optimization

    def _work(self, identity: str, attempt: int, actor: Actor) -> str:
        """Carry on with one optimization until it comes to rest; how it stands then."""
        waits = chain(RETRIES, repeat(RETRIES[-1]))
        while True:
            try:
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
        if self._jobs.begin(actor, identity, attempt) is None:
            return "not wanted any more"
        status, reason = self._carry_on(identity)
        if status == "queued":
            job = self._jobs.put_back(actor, identity)
            if job.status == "queued":
                self._dispatcher.enqueue(job)
            return "handed over"
        self._jobs.note_end(actor, identity, attempt, status=status, reason=reason)
        return status

    def _carry_on(self, identity: str) -> tuple[Status, str]:
        """How it stands after it was worked on, and why."""
        folder = self._settings.home / "runs" / identity
        notebook = self._archive.open(identity, anew=True)
        try:
            stored = self._archive.find(identity)
            run = resumed_run(identity, Given(), self._settings, self._archive)
            if stored.result is not None:  # it ended, and whoever worked on it died before all was told
                result = OptimizationResult.from_json(stored.result)
                notebook.set_status(result.status, result=stored.result)
                files = publish(run, result, folder, key=load_or_make_key(self._settings.home))
            else:
                self._under_way[identity] = run
                if self._closing.is_set():
                    run.cancel("queued")
                notebook.note(Event(kind="begun", payload={"worker": self.id}))
                result, files = carry_out(run, folder, settings=self._settings, warn=self._say)
            self._keep(identity, files)
        except (InUse, StorageUnavailable):
            raise
        except Cancelled:
            return self._archive.find(identity).status, ""  # type: ignore[return-value]
        except RatchetError as error:
            return self._failed(identity, str(error))
        except Exception as error:  # the worker's outermost turn: the optimization fails, not the worker
            self._say(f"optimization {identity} failed by a bug:\n{traceback.format_exc()}")
            return self._failed(identity, f"{type(error).__name__}: {error}")
        finally:
            self._under_way.pop(identity, None)
        return result.status, result.reason

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
        workers = self._jobs.workers()
        if self.id not in workers:  # this one was held up for so long that it was taken for dead
            self._archive.claims.take(self._claim(self.id))
            self._jobs.enlist(self._actor, self.id)
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
                self._jobs.strike_off(worker)
            finally:
                self._archive.claims.release(self._claim(worker))
            if found:
                self._say(f"worker {worker} died; {len(found)} optimizations of it go on")

    def _find_lost(self) -> None:
        """Put in the queue what should be there and is not: a process died, or the database, between two steps."""
        unsettled = self._jobs.unsettled()
        for job in self._dispatcher.without_workflow(unsettled):
            actor = replace(self._actor, tenant=job.tenant)
            self._dispatcher.enqueue(self._jobs.put_back(actor, job.id) if job.status == "running" else job)

    def _claim(self, worker: str) -> str:
        return f"worker-{worker}"

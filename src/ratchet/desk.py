"""What the service can be asked for: each a call that its routes, its commands and its tests make alike."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol

from ratchet.admission import check_again, check_options, check_target, within_share
from ratchet.analytics.performance import Figures, Window, figures
from ratchet.batch import Batch
from ratchet.begin import new_run, tried_run
from ratchet.catalogue import BUILT_IN, any_search, check_name, listed
from ratchet.check import check
from ratchet.core.access import Actor
from ratchet.core.errors import BadRequest, Conflict, Missing, UnknownName
from ratchet.core.lesson import Lesson
from ratchet.core.request import MetricName
from ratchet.core.result import OptimizationResult, Performance
from ratchet.engine.archive import Event
from ratchet.guard import clean_rows, cleaner_for, policy_for, to_store
from ratchet.listeners import Listeners
from ratchet.measure import KIND, ROWS, begin
from ratchet.options import Options
from ratchet.prepare import Given
from ratchet.privacy.policy import Policy
from ratchet.programs.datasets import Splits, read_rows
from ratchet.programs.journal import Fork
from ratchet.programs.remote_algorithm import Address, AllowedHosts
from ratchet.programs.targets import resolve_target
from ratchet.progress import Progress, progress
from ratchet.run import Run
from ratchet.settings import Settings
from ratchet.storage.algorithms import Algorithms, Registered, addresses
from ratchet.storage.audit import Audit, Entry, state_hash
from ratchet.storage.cycles import Cycles, Schedule, Schedules
from ratchet.storage.erasure import Eraser
from ratchet.storage.experiments import Arm, Experiment, Experiments
from ratchet.storage.forks import stages_before
from ratchet.storage.jobs import Job, Jobs, Wanted
from ratchet.storage.keys import Keys
from ratchet.storage.lessons import SqlLessons
from ratchet.storage.outbox import Outbox
from ratchet.storage.outcomes import outcomes
from ratchet.storage.privacy import Cleaned, PseudonymKeys, how_cleaned
from ratchet.storage.sealing import sealer
from ratchet.storage.shelf import Dataset, Shelf, StoredTarget, check_shelf_name
from ratchet.storage.sql import SqlArchive
from ratchet.storage.told import Events
from ratchet.storage.versions import Versions
from ratchet.storage.webhooks import Webhooks
from ratchet.storage.workers import Workers

FILES: Mapping[str, str] = {
    "certificate": "certificate.json",
    "program": "program.json",
    "report": "report.html",
    "result": "result.json",
    "rows": ROWS,
}
"""The files of an optimization, by what they are called in an address."""

UPLOADS: Mapping[str, str] = {
    "application/x-ndjson": ".jsonl",
    "application/jsonl": ".jsonl",
    "application/json": ".json",
    "text/csv": ".csv",
    "text/tab-separated-values": ".tsv",
    "application/vnd.apache.parquet": ".parquet",
}
"""The kinds of data that are taken, and how a file of each ends."""


class Queue(Protocol):
    """Where optimizations wait for a worker."""

    def enqueue(self, job: Job) -> None:
        """Have ``job`` worked on."""

    def cancel(self, job: Job) -> None:
        """Take ``job`` out."""

    def keep_schedules(self, schedules: Sequence[Schedule]) -> None:
        """Have these schedules, and no others, come back by the clock."""

    def close(self) -> None:
        """Give back what it holds."""


class Desk:
    """Answers for every tenant; nobody is told of another tenant's things.

    Args:
        settings: Of this installation.
        archive: Where optimizations are kept.
        queue: Where they wait.
        clock: Tells the time.
    """

    def __init__(self, settings: Settings, archive: SqlArchive, queue: Queue, *, clock: Callable[[], datetime]) -> None:
        self.settings = settings
        self.clock = clock
        self.audit = Audit(archive, clock=clock)
        self.keys = Keys(archive, self.audit)
        self.jobs = Jobs(archive, self.audit)
        self.events = Events(archive)
        self.workers = Workers(archive, self.audit)
        self.shelf = Shelf(archive, self.audit)
        self.versions = Versions(archive, self.audit)
        self.algorithms = Algorithms(archive, self.audit)
        self.experiments = Experiments(archive, self.audit)
        self.lessons = SqlLessons(archive)
        self.batch = Batch(
            self,
            Cycles(archive, self.audit),
            Schedules(archive, self.audit),
            timetable=queue.keep_schedules,
            clock=clock,
        )
        details = {"cycle": self.batch.cycles.told}
        self.outbox = Outbox(archive, self.events, source=settings.event_source, details=details)
        secrets = sealer(archive.vault, "installation:webhooks", "webhooks.secret")
        self.webhooks = Webhooks(archive, self.audit, self.outbox, sealer=secrets)
        self.listeners = Listeners(settings, self.webhooks, clock=clock)
        self.pseudonyms = PseudonymKeys(archive)
        self.archive = archive
        self.eraser = Eraser(archive, self.audit, self.shelf, runs=settings.home / "runs")
        self._queue = queue

    def close(self) -> None:
        """Give back all connections."""
        self._queue.close()
        self.archive.close()

    # --- optimizations -----------------------------------------------------------------------------------------------

    def optimize(
        self,
        actor: Actor,
        options: Options,
        *,
        target: str | Mapping[str, Any],
        data: Mapping[str, str],
        priority: int = 100,
        repeat_key: str | None = None,
    ) -> Job:
        """A new optimization, in the queue.

        Args:
            options: What is asked for; its target and files are not looked at.
            target: A stored target, or how one is built.
            data: Data sets by the name of the option whose file they stand for: ``data``, or ``train`` and so on.
            priority: From 1, which goes first.
            repeat_key: The same key and request give the same optimization.

        Raises:
            UserError: the request cannot be carried out; nothing was stored then.
        """
        repeat, known = self._known(actor, repeat_key, options.to_json(), target, dict(data), priority)
        if known is not None:
            return known
        name, asked, sets = self._asked(actor, options, target, data)
        rows = {part: self.shelf.rows(dataset) for part, dataset in sets.items()}
        how = [found.policy for each in sets.values() if (found := how_cleaned(self.archive, each.id)) is not None]
        asked = replace(
            asked, pii=next((each for each in how if Policy.from_json(each).is_on), how[0] if how else None)
        )
        run = new_run(asked, Given(rows=rows), self.settings, self.archive, status="queued")
        return self._queued(actor, run, target=name, data=_versions(sets), priority=priority, repeat=repeat)

    def evaluate(
        self,
        actor: Actor,
        options: Options,
        *,
        target: str | Mapping[str, Any],
        data: str,
        limit: int | None = None,
        priority: int = 100,
        repeat_key: str | None = None,
    ) -> Job:
        """A program to be run on every example of a data set, in the queue beside the optimizations.

        Args:
            options, target, priority, repeat_key: As in ``optimize``; nothing is searched.
            data: A data set.
            limit: Take its first examples only.

        Raises:
            UserError: the request cannot be carried out; nothing was stored then.
        """
        repeat, known = self._known(actor, repeat_key, "evaluate", options.to_json(), target, data, limit, priority)
        if known is not None:
            return known
        name, asked, sets = self._asked(actor, options, target, {"data": data})
        dataset = sets["data"]
        cleaned = how_cleaned(self.archive, dataset.id)
        asked = replace(asked, pii=None if cleaned is None else cleaned.policy)
        rows = self.shelf.rows(dataset)
        measurement = begin(asked, rows, self.settings, self.archive, file=dataset.name, limit=limit, status="queued")
        return self._queued(actor, measurement.run, target=name, data=_versions(sets), priority=priority, repeat=repeat)

    def _known(self, actor: Actor, key: str | None, *asked: Any) -> tuple[tuple[str, str] | None, Job | None]:
        """The key with a fingerprint of what is asked, and the job that the same request with this key began.

        Raises:
            Conflict: the key was used for another request.
        """
        if key is None:
            return None, None
        repeat = key, state_hash(list(asked)) or ""
        known = self.jobs.repeated(actor.tenant, *repeat)
        return repeat, None if known is None else self.jobs.find(actor.tenant, known)

    def _queued(
        self,
        actor: Actor,
        run: Run,
        *,
        target: str,
        data: Mapping[str, str],
        priority: int,
        repeat: tuple[str, str] | None,
        forked_from: str | None = None,
    ) -> Job:
        """What is stored, now in the queue."""
        fork = {} if forked_from is None else {"fork": forked_from}
        run.notebook.note(Event(kind="queued", payload={"target": target, "by": actor.name, **fork}))
        run.notebook.flush()
        job = self.jobs.submit(
            actor, run.id, target=target, data=data, priority=priority, repeat=repeat, forked_from=forked_from
        )
        self._queue.enqueue(job)
        return job

    def check(
        self, actor: Actor, options: Options, *, target: str | Mapping[str, Any], data: Mapping[str, str]
    ) -> None:
        """See whether ``optimize`` would take it; nothing is stored.

        Raises:
            UserError: the request cannot be carried out.
        """
        _, asked, sets = self._asked(actor, options, target, data)
        given = Given(rows={part: self.shelf.rows(dataset) for part, dataset in sets.items()})
        tried_run(asked, given, self.settings, addresses=addresses(self.archive, actor.tenant))

    def _asked(
        self, actor: Actor, options: Options, target: str | Mapping[str, Any], data: Mapping[str, str]
    ) -> tuple[str, Options, dict[str, Dataset]]:
        """What the target is called, what is asked for in full, and on which data sets."""
        name, spec = ("inline", target) if isinstance(target, Mapping) else self._target(actor, target)
        asked = replace(options, tenant=actor.tenant, **check_target(spec, self.settings))
        check_options(asked, self.settings)
        asked = within_share(asked, self.settings)
        if not data:
            raise BadRequest("no data was given; give data, or train, validation and test", field="data")
        return name, asked, {part: self.shelf.dataset(actor.tenant, reference) for part, reference in data.items()}

    def fork(
        self,
        actor: Actor,
        identity: str,
        *,
        changes: Mapping[str, Any],
        from_stage: str | None = None,
        priority: int = 100,
        repeat_key: str | None = None,
    ) -> Job:
        """A new optimization of the same program on the same split data, with other settings.

        A request that the first one has recorded a reply to is not sent again, and costs nothing.

        Args:
            changes: Fields of ``Options``.
            from_stage: From this stage of the first one on its replies are not used; None for using all.
            priority, repeat_key: As in ``optimize``.

        Raises:
            UserError: the request cannot be carried out; nothing was stored then.
        """
        first = self.jobs.find(actor.tenant, identity)
        if self.archive.find(identity).request.get("kind") == KIND:
            raise Conflict(f"{identity} cannot be forked: it is an evaluation; begin an optimization", value=identity)
        repeat, known = self._known(actor, repeat_key, identity, dict(changes), from_stage, priority)
        if known is not None:
            return known
        asked = replace(Options.from_json(self.archive.find(identity).request["options"]), **changes)
        check_again(asked, self.settings)
        asked = within_share(asked, self.settings)
        parts = self.archive.open(identity).examples()
        splits = Splits(train=parts["train"], validation=parts["validation"], test=parts["test"])
        fork = Fork(of=identity, stages=stages_before(self.archive, identity, from_stage))
        run = new_run(asked, Given(splits=splits), self.settings, self.archive, status="queued", fork=fork)
        return self._queued(
            actor,
            run,
            target=first.target,
            data=first.data,
            priority=priority,
            repeat=repeat,
            forked_from=identity,
        )

    def _target(self, actor: Actor, reference: str) -> tuple[str, Mapping[str, Any]]:
        stored = self.shelf.target(actor.tenant, reference)
        return f"{stored.name}@{stored.version}", stored.spec

    def stop(self, actor: Actor, identity: str, wanted: Wanted) -> Job:
        """Have an optimization paused or cancelled; what was recorded stays.

        Raises:
            UserError: there is none, or it has come to rest already.
        """
        before = self.jobs.find(actor.tenant, identity)
        job = self.jobs.stop(actor, identity, wanted)
        self._queue.cancel(job) if job.status != "running" else None
        if job.status != before.status:  # nobody works on it who could tell
            notebook = self.archive.open(identity)
            notebook.note(Event(kind="ended", payload={"status": job.status, "reason": ""}))
            notebook.flush()
        return job

    def resume(self, actor: Actor, identity: str) -> Job:
        """Have an optimization go on that was paused or cancelled, or that failed; no recorded reply is paid again.

        Raises:
            UserError: there is none, or it does not wait for that.
        """
        job = self.jobs.resume(actor, identity)
        if job.status == "queued":
            self._queue.enqueue(job)
        return job

    def progress(self, actor: Actor, identity: str) -> Progress:
        """How an optimization is getting on.

        Raises:
            Missing: there is none.
        """
        return progress(self.archive, self.jobs, self.events, actor.tenant, identity)

    def erase(self, actor: Actor, identity: str) -> None:
        """Erase an optimization for good.

        Raises:
            Missing: there is none.
            Conflict: it waits or is worked on.
        """
        if self.eraser.tenant_of(identity) != actor.tenant:
            raise Missing(f"there is no optimization {identity!r}", value=identity)
        self.eraser.optimization(actor, identity)

    def erase_dataset(self, actor: Actor, reference: str, *, with_optimizations: bool = False) -> None:
        """Erase a version of a data set for good, and when asked for, every optimization that was given its rows.

        Raises:
            Missing: there is none.
            Conflict: one of the optimizations waits or is worked on; nothing was erased then.
        """
        identities = self.eraser.optimizations_on(actor.tenant, reference) if with_optimizations else []
        for identity in identities:
            self.eraser.check(actor, identity)
        for identity in identities:
            self.eraser.optimization(actor, identity)
        self.eraser.dataset(actor, reference)

    def lesson(self, actor: Actor, identity: str) -> Lesson:
        """What an optimization of this tenant taught.

        Raises:
            Missing: there is none.
        """
        with suppress(UnknownName):  # a beginning that several ids have
            found = self.lessons.find(identity, actor.tenant)
            if found.id == identity:
                return found
        raise Missing(f"there is no lesson {identity!r}", value=identity)

    # --- data sets and targets ---------------------------------------------------------------------------------------

    def keep_dataset(
        self, actor: Actor, name: str, file: Path, *, pii: Mapping[str, Any] | None = None
    ) -> tuple[Dataset, bool]:
        """A data set read from an uploaded file, and whether it is a new version.

        Args:
            pii: What is done with personal data before anything is kept; None for what this installation does.

        Raises:
            BadData: a row cannot be used; the message names it.
            BadRequest: the name or the policy cannot be used.
        """
        check_shelf_name(name)
        rows, size = read_rows(file), file.stat().st_size
        cleaner = cleaner_for(policy_for(pii, self.settings, called=name), self.archive, tenant=actor.tenant)
        report = None
        if cleaner is not None:
            rows, report = clean_rows(cleaner, rows)
        how = Cleaned(policy=to_store(cleaner), report=report.to_json() if report else None)
        return self.shelf.keep_dataset(actor, name, rows, size=size, cleaned=how)

    def keep_target(self, actor: Actor, name: str, spec: Mapping[str, Any]) -> tuple[StoredTarget, bool]:
        """A target, and whether it is a new version; it was built once, so that it is known to work.

        Raises:
            UserError: it may not be used, or cannot.
        """
        options = check_target(spec, self.settings)
        kind = options.get("module", "predict")
        resolve_target(options["target"], kind=kind, instructions=options.get("instructions"))
        return self.shelf.keep_target(actor, name, {key: value for key, value in spec.items() if value is not None})

    # --- algorithms and experiments ----------------------------------------------------------------------------------

    def register_algorithm(
        self, actor: Actor, name: str, url: str, *, secret_env: str | None = None
    ) -> tuple[Registered, bool]:
        """An algorithm behind a URL that this tenant can name from now on, and whether the name is new.

        Args:
            secret_env: The environment variable with its secret; None for ``RATCHET_ALGORITHM_SECRET``.

        Raises:
            BadRequest: its host is not allowed, or it breaks the contract on synthetic problems.
        """
        check_name(name)
        try:
            AllowedHosts.from_text(self.settings.algorithm_hosts).check(url)
        except BadRequest as error:
            raise BadRequest(str(error), field="url") from error
        address = Address(url=url, secret_env=secret_env)
        promises = list(check(any_search(name, self.settings, {name: address}), name))
        for promise in promises:
            if promise.required and not promise.kept:
                raise BadRequest(
                    f"{name} does not keep the promise that {promise.what}: {promise.where}; "
                    f"`ratchet algorithms check {url}` tries it again",
                    field="url",
                    value=url,
                )
        return self.algorithms.register(actor, name, address, [asdict(promise) for promise in promises])

    def algorithm_names(self, actor: Actor) -> list[dict[str, str]]:
        """Name, kind and source of every algorithm that this tenant can name."""
        found = [{"name": name, "kind": "built in", "what": ""} for name in sorted(BUILT_IN)]
        for each in listed(self.settings):
            found.append({**each, "what": ""} if each["kind"] == "URL" else each)  # the address is an operator's matter
        mine = self.algorithms.page(actor.tenant, after="", limit=1000)
        offered = [each for each in mine if each.withdrawn_at is None]
        return [*found, *({"name": each.name, "kind": "registered", "what": each.created_by} for each in offered)]

    def plan_experiment(self, actor: Actor, *, target: str, metric: MetricName, arms: Sequence[Arm]) -> Experiment:
        """An experiment between versions of a target; nothing is sent to them yet.

        Raises:
            UserError: there is no such target or version, or the arms cannot share its traffic.
        """
        name = self.shelf.target(actor.tenant, target).name
        if len({arm.version for arm in arms}) < len(arms):
            raise BadRequest("an arm is named twice; give each version once", field="arms")
        if abs(sum(arm.share for arm in arms) - 1) > 1e-6:
            total = sum(arm.share for arm in arms)
            raise BadRequest(f"the shares add up to {total:g}; give shares that add up to 1", field="arms", value=total)
        for arm in arms:
            if arm.version is not None and self.versions.find(actor.tenant, arm.version).target != name:
                raise BadRequest(f"version {arm.version} is not one of {name}; name one of its own", field="arms")
        return self.experiments.plan(actor, target=name, metric=metric, arms=arms)

    def measured(self, actor: Actor, version: str | None) -> Performance | None:
        """What was measured of a version on the sealed test that proved it; None where nothing was."""
        if version is None:
            return None
        result = self.jobs.result(actor.tenant, self.versions.find(actor.tenant, version).optimization_id)
        return None if result is None else OptimizationResult.from_json(result).optimized_performance

    # --- the audit trail ---------------------------------------------------------------------------------------------

    def verify_trail(self, actor: Actor, *, expected: str | None = None) -> Entry | None:
        """The newest entry of this tenant, after the whole trail was checked; None when it has none.

        What it binds is all that came before it, of other tenants too; of those nothing is told.

        Args:
            expected: The hash of an entry that was noted down earlier; it must still be there.

        Raises:
            TrailBroken: an entry was edited, removed, added or moved; the message and the value ``number`` say which.
        """
        newest = next(iter(self.audit.entries(actor.tenant, limit=1)), None)
        self.audit.verify(expected=expected)
        return newest

    # --- analytics ---------------------------------------------------------------------------------------------------

    def performance(
        self,
        actor: Actor,
        *,
        since: datetime,
        until: datetime,
        target: str | None = None,
        algorithm: str | None = None,
        window: Window = "all",
    ) -> list[Figures]:
        """How the optimizations went that were asked for from ``since`` to before ``until``."""
        begin, end = since.isoformat(), until.isoformat()
        found = outcomes(self.archive, actor.tenant, since=begin, until=end, target=target)
        return figures([each for each in found if algorithm in (None, each.algorithm)], window=window)


def _versions(sets: Mapping[str, Dataset]) -> dict[str, str]:
    return {part: f"{dataset.name}@{dataset.version}" for part, dataset in sets.items()}

"""Optimizations as the service sees them: whose they are, what is wanted of them, who works on them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import sqlalchemy as sa

from ratchet.core.access import Actor
from ratchet.core.errors import Conflict, KeyUnavailable, Missing
from ratchet.core.result import ENDED, Status
from ratchet.storage.audit import Audited, Change
from ratchet.storage.envelope import Box
from ratchet.storage.sql import SqlArchive
from ratchet.storage.tables import CANDIDATE, EVALUATION, EVENT, OWNER, RESULT, events, optimizations
from ratchet.storage.texts import Row, Texts, Words

metadata = sa.MetaData()

jobs = sa.Table(
    "jobs",
    metadata,
    sa.Column("id", sa.String(32), primary_key=True),
    sa.Column("tenant", sa.String(64), nullable=False, index=True),
    sa.Column("created_at", sa.String(32), nullable=False, index=True),
    sa.Column("created_by", sa.String(200), nullable=False),
    sa.Column("target", sa.String(200), nullable=False),
    sa.Column("data", sa.Text, nullable=False),
    sa.Column("priority", sa.Integer, nullable=False),
    sa.Column("wanted", sa.String(16), nullable=False),
    sa.Column("attempt", sa.Integer, nullable=False),
    sa.Column("settled", sa.Integer, nullable=False),  # the last attempt of which all is told and kept
    sa.Column("reason", Words, nullable=False),
    sa.Column("sealed_reason", sa.LargeBinary),
    sa.Column("forked_from", sa.String(32)),
)
files = sa.Table(
    "files",
    metadata,
    sa.Column("optimization_id", sa.String(32), primary_key=True),
    sa.Column("name", sa.String(64), primary_key=True),
    sa.Column("content", sa.LargeBinary, nullable=False),
)
repeats = sa.Table(
    "idempotency_keys",
    metadata,
    sa.Column("tenant", sa.String(64), primary_key=True),
    sa.Column("key", sa.String(200), primary_key=True),
    sa.Column("fingerprint", sa.String(64), nullable=False),
    sa.Column("object", sa.String(32), nullable=False),
    sa.Column("created_at", sa.String(32), nullable=False),
)

REASON = Texts(jobs, "reason", into="sealed_reason", at=("id",), of="id", owner=OWNER)
"""Why an optimization ended: an error may quote what it was about."""

Wanted = Literal["run", "pause", "cancel"]
STOPPED: Mapping[Wanted, Status] = {"pause": "paused", "cancel": "cancelled"}
"""How an optimization stands after what was wanted of it was done."""

AT_REST: tuple[Status, ...] = (*ENDED, "failed", "cancelled")
"""How an optimization stands when nothing more happens to it by itself."""
GOES_ON: tuple[Status, ...] = ("paused", "cancelled", "failed")
"""What ``resume`` takes up again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """An optimization as the service sees it.

    Attributes:
        target, data: Name and version of what was optimized, and on what.
        priority: From 1, which goes first, in a tenant's queue.
        wanted: What was asked for last; ``status`` follows.
        attempt: How often it was put in the queue.
        status: How it stands.
        reason: The verdict, or why it failed; empty while there is none.
        forked_from: The optimization whose replies it uses; None where it was begun anew.
    """

    id: str
    tenant: str
    created_at: str
    created_by: str
    target: str
    data: Mapping[str, str]
    priority: int
    wanted: Wanted
    attempt: int
    status: Status
    reason: str = ""
    seconds: float = 0.0
    forked_from: str | None = None

    @property
    def ended(self) -> bool:
        """Whether it comes to rest: nothing more will happen unless somebody asks for it."""
        return self.status in AT_REST


class Jobs(Audited):
    """All optimizations of the service."""

    tables = (metadata,)

    # --- what is asked for -------------------------------------------------------------------------------------------

    def submit(
        self,
        actor: Actor,
        identity: str,
        *,
        target: str,
        data: Mapping[str, str],
        priority: int,
        repeat: tuple[str, str] | None = None,
        forked_from: str | None = None,
    ) -> Job:
        """A stored optimization put in a tenant's queue.

        Args:
            repeat: Idempotency key and fingerprint of the request; the same pair gives the same job.
            forked_from: The optimization it was forked from.

        Raises:
            Conflict: the key was used for another request.
        """
        with self._audit.change(actor) as change:
            if repeat is not None and (known := self._repeated(change.connection, actor.tenant, *repeat)):
                return self._job(change.connection, actor.tenant, known)
            values = {"id": identity, "tenant": actor.tenant, "created_by": actor.name, "target": target[:200]}
            more = {
                "data": json.dumps(dict(data)),
                "priority": priority,
                "wanted": "run",
                "attempt": 1,
                "settled": 0,
                "reason": "",
                "forked_from": forked_from,
            }
            change.connection.execute(jobs.insert().values(created_at=change.now, **values, **more))
            if repeat is not None:
                key, fingerprint = repeat
                row = {"tenant": actor.tenant, "key": key, "fingerprint": fingerprint, "object": identity}
                change.connection.execute(repeats.insert().values(created_at=change.now, **row))
            change.note("optimization.create", identity, after={"status": "queued", **values, **more})
            return self._job(change.connection, actor.tenant, identity)

    def repeated(self, tenant: str, key: str, fingerprint: str) -> str | None:
        """The optimization that an earlier request with this key began.

        Raises:
            Conflict: that was another request.
        """
        with self._archive.transaction() as connection:
            return self._repeated(connection, tenant, key, fingerprint)

    def _repeated(self, connection: sa.Connection, tenant: str, key: str, fingerprint: str) -> str | None:
        row = connection.execute(repeats.select().where(repeats.c.tenant == tenant, repeats.c.key == key)).first()
        if row is None:
            return None
        if row.fingerprint != fingerprint:
            raise Conflict(
                f"the idempotency key {key!r} was used for another request; give each request a key of its own",
                field="Idempotency-Key",
                value=key,
            )
        return str(row.object)

    def stop(self, actor: Actor, identity: str, wanted: Wanted) -> Job:
        """Have it paused or cancelled; at once when nobody works on it, else soon.

        Raises:
            Missing: this tenant has no such optimization.
            Conflict: it has come to rest already.
        """
        with self._audit.change(actor) as change:
            job = self._job(change.connection, actor.tenant, identity)
            if job.status == STOPPED[wanted] or (job.status == "running" and job.wanted in (wanted, "cancel")):
                return job
            if job.ended or (wanted == "pause" and job.status not in ("queued", "running")):
                raise Conflict(f"{identity} cannot be stopped: it is {job.status} already", value=job.status)
            at_rest = job.status != "running"
            self._update(
                change, job, f"optimization.{wanted}", wanted=wanted, **({"settled": job.attempt} if at_rest else {})
            )
            if at_rest:
                self._set_status(change.connection, identity, STOPPED[wanted])
            return self._job(change.connection, actor.tenant, identity)

    def resume(self, actor: Actor, identity: str) -> Job:
        """Put it in the queue again.

        Raises:
            Missing: this tenant has no such optimization.
            Conflict: it was not stopped, or is not done with stopping.
        """
        with self._audit.change(actor) as change:
            job = self._job(change.connection, actor.tenant, identity)
            if job.status in ("queued", "running") and job.wanted == "run":
                return job
            if job.status not in GOES_ON:
                more = "it is still stopping; try again in a moment" if job.wanted != "run" else "it has ended"
                raise Conflict(f"{identity} cannot be resumed: it is {job.status}; {more}", value=job.status)
            self._set_status(change.connection, identity, "queued")
            again: dict[str, Any] = {"wanted": "run", "attempt": job.attempt + 1, "reason": "", "sealed_reason": None}
            self._update(change, job, "optimization.resume", **again)
            return self._job(change.connection, actor.tenant, identity)

    # --- what a worker does ------------------------------------------------------------------------------------------

    def begin(self, actor: Actor, identity: str, attempt: int) -> Job | None:
        """The job, now running; None when it is not wanted any more, or not in this attempt."""
        with self._audit.change(actor) as change:
            job = self._job(change.connection, None, identity)
            if job.attempt != attempt or job.status not in ("queued", "running"):
                return None
            if job.wanted != "run":  # asked for while whoever worked on it died
                self._set_status(change.connection, identity, STOPPED[job.wanted])
                self._update(change, job, "optimization.end", settled=attempt)
                return None
            self._set_status(change.connection, identity, "running")
            change.note("optimization.begin", identity, before=_state(job), after={**_state(job), "status": "running"})
            return job

    def note_end(
        self,
        actor: Actor,
        identity: str,
        attempt: int,
        *,
        status: Status,
        reason: str,
        more: Mapping[str, Any] | None = None,
    ) -> None:
        """Keep how it ended and why, and tell it as the last event, with ``more``; once, whoever says so again."""
        with self._audit.change(actor) as change:
            job = self._job(change.connection, None, identity)
            row = change.connection.execute(
                sa.select(jobs.c.attempt, jobs.c.settled).where(jobs.c.id == identity)
            ).one()
            if row.attempt != attempt or row.settled == attempt:
                return
            box = self._box(change.connection, identity)
            told = {"status": status, "reason": reason, **(more or {})}
            event = {"optimization_id": identity, "at": change.now, "kind": "ended", "payload": told}
            change.connection.execute(events.insert().values(**EVENT.hide(box, event)))
            hidden = REASON.hide(box, {"id": identity, "reason": reason or None})
            self._update(change, job, "optimization.end", **hidden, settled=attempt)

    def put_back(self, actor: Actor, identity: str) -> Job:
        """Put it in the queue again, because its worker stops or was lost; not when it has come to rest."""
        with self._audit.change(actor) as change:
            job = self._job(change.connection, None, identity)
            if job.status not in ("queued", "running"):
                return job
            self._set_status(change.connection, identity, "queued")
            self._update(change, job, "optimization.put_back", attempt=job.attempt + 1)
            return self._job(change.connection, None, identity)

    def unwanted(self, identities: list[str]) -> dict[str, Status]:
        """Those of ``identities`` that shall stop, and as what."""
        query = sa.select(jobs.c.id, jobs.c.wanted).where(jobs.c.id.in_(identities), jobs.c.wanted != "run")
        with self._archive.transaction() as connection:
            return {row.id: STOPPED[cast(Wanted, row.wanted)] for row in connection.execute(query)}

    def unsettled(self) -> list[tuple[str, int]]:
        """Id and attempt of everything that waits, or is worked on."""
        query = sa.select(jobs.c.id, jobs.c.attempt).where(jobs.c.settled < jobs.c.attempt)
        with self._archive.transaction() as connection:
            return [(row.id, row.attempt) for row in connection.execute(query)]

    def anybodys(self, identity: str) -> Job:
        """One optimization, whichever tenant's it is.

        Raises:
            Missing: there is none with this id.
        """
        with self._archive.transaction() as connection:
            return self._job(connection, None, identity)

    def keep_file(self, identity: str, name: str, content: bytes) -> None:
        """Keep a file of an optimization, in place of an earlier one."""
        with self._archive.transaction() as connection:
            this = sa.and_(files.c.optimization_id == identity, files.c.name == name)
            connection.execute(files.delete().where(this))
            stored = self._box(connection, identity).seal(content, _file(name))
            connection.execute(files.insert().values(optimization_id=identity, name=name, content=stored))

    # --- what is read ------------------------------------------------------------------------------------------------

    def find(self, tenant: str, identity: str) -> Job:
        """One optimization of a tenant.

        Raises:
            Missing: it has none with this id.
        """
        with self._archive.transaction() as connection:
            return self._job(connection, tenant, identity)

    def page(self, tenant: str, *, before: tuple[str, str] | None, limit: int, status: str | None = None) -> list[Job]:
        """A tenant's optimizations, the newest first, those older than ``before`` (time and id)."""
        query = self._query().where(jobs.c.tenant == tenant)
        if status is not None:
            query = query.where(optimizations.c.status == status)
        if before is not None:
            at, identity = before
            query = query.where(sa.or_(jobs.c.created_at < at, sa.and_(jobs.c.created_at == at, jobs.c.id < identity)))
        query = query.order_by(jobs.c.created_at.desc(), jobs.c.id.desc()).limit(limit)
        with self._archive.transaction() as connection:
            return [_job(listed(self._archive, connection, row)) for row in connection.execute(query).mappings().all()]

    def file(self, tenant: str, identity: str, name: str) -> bytes:
        """A file of an optimization.

        Raises:
            Missing: this tenant has no such optimization, or it has no such file.
        """
        query = sa.select(files.c.content).where(files.c.optimization_id == identity, files.c.name == name)
        with self._archive.transaction() as connection:
            job = self._job(connection, tenant, identity)
            row = connection.execute(query).first()
            if row is None:
                raise Missing(f"{identity} has no {name}: it is {job.status}", value=name)
            return self._box(connection, identity).open(bytes(row.content), _file(name))

    def result(self, tenant: str, identity: str) -> Mapping[str, Any] | None:
        """The result as JSON data, once there is one."""
        query = sa.select(optimizations.c.id, optimizations.c.result, optimizations.c.sealed_result)
        with self._archive.transaction() as connection:
            self._job(connection, tenant, identity)
            row = connection.execute(query.where(optimizations.c.id == identity)).mappings().one()
            return cast(Mapping[str, Any] | None, RESULT.show(self._box(connection, identity), row)["result"])

    def candidates(self, tenant: str, identity: str, *, after: int, limit: int) -> list[tuple[int, dict[str, Any]]]:
        """Numbered candidates in the order they were made, those numbered above ``after``."""
        columns = ("key", "state", "parents", "origin", "stage")
        rows = self._rows(CANDIDATE, tenant, identity, after, limit, columns)
        return [(number, {**row, "parents": json.loads(row["parents"])}) for number, row in rows]

    def evaluations(self, tenant: str, identity: str, *, after: int, limit: int) -> list[tuple[int, dict[str, Any]]]:
        """Numbered evaluations in the order they were made, those numbered above ``after``."""
        columns = ("candidate", "example", "repeat", "stage", "score", "failure_kind", "failure_message", "feedback")
        more = ("prediction", "calls", "prompt_tokens", "completion_tokens", "cost_usd", "latency_ms")
        return self._rows(EVALUATION, tenant, identity, after, limit, (*columns, *more))

    def _rows(
        self, texts: Texts, tenant: str, identity: str, after: int, limit: int, columns: tuple[str, ...]
    ) -> list[tuple[int, dict[str, Any]]]:
        table = texts.table
        query = table.select().where(table.c.optimization_id == identity, table.c.number > after)
        query = query.order_by(table.c.number).limit(limit)
        with self._archive.transaction() as connection:
            self._job(connection, tenant, identity)
            rows = self._archive.shown(connection, texts, connection.execute(query).mappings().all())
        return [(row["number"], {name: row[name] for name in columns}) for row in rows]

    def counts(self) -> dict[str, int]:
        """Optimizations of all tenants by status."""
        query = sa.select(optimizations.c.status, sa.func.count().label("n")).join(
            jobs, jobs.c.id == optimizations.c.id
        )
        with self._archive.transaction() as connection:
            return {row.status: row.n for row in connection.execute(query.group_by(optimizations.c.status))}

    # --- within a transaction ----------------------------------------------------------------------------------------

    def _query(self) -> sa.Select[Any]:
        state = (optimizations.c.status, optimizations.c.seconds)
        return sa.select(jobs, *state).join(optimizations, optimizations.c.id == jobs.c.id)

    def _job(self, connection: sa.Connection, tenant: str | None, identity: str) -> Job:
        """One job; None for the tenant is for workers, which work for all."""
        query = self._query().where(jobs.c.id == identity)
        if tenant is not None:
            query = query.where(jobs.c.tenant == tenant)
        row = connection.execute(query).mappings().first()
        if row is None:
            raise Missing(f"there is no optimization {identity!r}", value=identity)
        return self._shown(connection, [row])[0]

    def _shown(self, connection: sa.Connection, rows: Sequence[sa.RowMapping]) -> list[Job]:
        return [_job(row) for row in self._archive.shown(connection, REASON, rows)]

    def _box(self, connection: sa.Connection, identity: str) -> Box:
        return self._archive.vault.boxes(connection, [_owner(identity)])[_owner(identity)]

    def _update(self, change: Change, job: Job, action: str, **values: Any) -> None:
        change.connection.execute(jobs.update().where(jobs.c.id == job.id).values(**values))
        told = {name: value for name, value in values.items() if name not in (*REASON.names, REASON.into)}
        change.note(action, job.id, before=_state(job), after={**_state(job), **told})

    def _set_status(self, connection: sa.Connection, identity: str, status: Status) -> None:
        fresh = {"status": status, "error": "", "sealed_error": None}
        connection.execute(optimizations.update().where(optimizations.c.id == identity).values(**fresh))


def _state(job: Job) -> dict[str, Any]:
    return {"status": job.status, "wanted": job.wanted, "attempt": job.attempt}


def _owner(identity: str) -> str:
    return f"{OWNER}:{identity}"


def _file(name: str) -> str:
    """Where a file of an optimization stands."""
    return f"files.content/{name}"


def listed(archive: SqlArchive, connection: sa.Connection, row: sa.RowMapping) -> Row:
    """The row of one job of many, with its reason; that its key is lost must not hide the others."""
    try:
        return archive.shown(connection, REASON, [row])[0]
    except KeyUnavailable as error:
        return {**row, "reason": f"cannot be read: {error}"}


def standing(row: Row) -> Status:
    """How a job stands; its result is stored before its files are, and until then it is being worked on."""
    at_rest = row["status"] == "queued" or row["settled"] == row["attempt"]
    return cast(Status, row["status"]) if at_rest else "running"


def _job(row: Row) -> Job:
    return Job(
        id=row["id"],
        tenant=row["tenant"],
        created_at=row["created_at"],
        created_by=row["created_by"],
        target=row["target"],
        data=json.loads(row["data"]),
        priority=row["priority"],
        wanted=row["wanted"],
        attempt=row["attempt"],
        status=standing(row),
        reason=row["reason"],
        seconds=row["seconds"],
        forked_from=row["forked_from"],
    )

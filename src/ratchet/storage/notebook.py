"""What is kept of one optimization in a SQL database: its notebook and its journal."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa

from ratchet.core.errors import InUse
from ratchet.core.evaluation import Evaluation, Failure, Step, Usage
from ratchet.core.problem import Candidate, Example
from ratchet.engine.archive import Event
from ratchet.programs.journal import Reply, Role, Sent
from ratchet.storage.database import Database, reply_of
from ratchet.storage.tables import (
    CANDIDATE,
    ERROR,
    EVALUATION,
    EVENT,
    EXAMPLE,
    OWNER,
    RECORDED,
    REPLY,
    RESULT,
    candidates,
    evaluations,
    events,
    examples,
    replies,
)
from ratchet.storage.texts import as_json


class SqlJournal:
    """The replies of one optimization."""

    def __init__(self, database: Database, optimization_id: str) -> None:
        self._database = database
        self._id = optimization_id
        self._owner = f"{OWNER}:{optimization_id}"
        self._unsafe: dict[str, tuple[Reply, Future[None]]] = {}

    def find(self, key: str) -> Reply | None:
        """The recorded reply, if there is one."""
        if key in self._unsafe:
            return self._unsafe[key][0]
        this = sa.and_(replies.c.optimization_id == self._id, replies.c.key == key, RECORDED)
        with self._database.transaction() as connection:
            rows = connection.execute(replies.select().where(this)).mappings().all()
            return reply_of(self._database.shown(connection, REPLY, rows)[0]) if rows else None

    def reserve(self, key: str, *, role: Role, stage: str, usd: float) -> None:
        """Note that a request is about to be sent; called again for each retry."""
        values = {
            "optimization_id": self._id,
            "key": key,
            "role": role,
            "stage": stage,
            "sends": 1,
            "usd_reserved": usd,
            "prompt_tokens": 0,
            "completion_tokens": 0,
            "latency_ms": 0.0,
        }
        self._database.pen.write(self._id, self._database.statements.reserve, values)

    def record(self, reply: Reply, *, shared: str | None = None) -> None:
        """Keep a reply; its reservation is settled."""
        if shared is not None:
            self._database.share(shared, reply, by=self._id)
        self._database.pen.write(self._id, self._database.statements.record, self._columns(reply, shared))
        self._remember(reply)

    def borrow(self, shared: str, key: str, *, stage: str) -> Reply | None:
        """A reply that another optimization shared, kept here as ``key`` from now on."""
        found = self._database.shared_reply(shared)
        if found is None or "refused" in found.response:
            return None
        reply = replace(found, key=key, stage=stage)
        self._database.pen.write(self._id, self._database.statements.borrow, self._columns(reply, None))
        self._remember(reply)
        return reply

    def _columns(self, reply: Reply, shared: str | None) -> dict[str, Any]:
        values = {
            "optimization_id": self._id,
            "key": reply.key,
            "role": reply.role,
            "stage": reply.stage,
            "sends": 0,
            "usd_reserved": 0.0,
            "response": reply.response,
            "prompt_tokens": reply.prompt_tokens,
            "completion_tokens": reply.completion_tokens,
            "cost_usd": reply.cost_usd,
            "latency_ms": reply.latency_ms,
            "shared": shared,
        }
        return REPLY.hide(self._database.vault.writing(self._owner), values)

    def _remember(self, reply: Reply) -> None:
        """Have ``reply`` at hand until it is safe."""
        self._unsafe[reply.key] = (reply, self._database.pen.settled(self._id))
        while self._unsafe and next(iter(self._unsafe.values()))[1].done():
            del self._unsafe[next(iter(self._unsafe))]

    async def durable(self) -> None:
        """Wait until everything noted so far would survive a crash."""
        safe = self._database.pen.settled(self._id)
        if safe.done():
            return safe.result()
        await asyncio.shield(self._database.late(safe))
        return self._database.pen.check(self._id)

    def stages(self) -> dict[str, str]:
        """Keys of all recorded replies, and the stage that asked first."""
        query = sa.select(replies.c.key, replies.c.stage)
        query = query.where(replies.c.optimization_id == self._id, RECORDED)
        with self._database.reading() as connection:
            return {row.key: row.stage for row in connection.execute(query)}

    def sent(self, *, settled: bool = True) -> Sent:
        """Totals over everything noted so far.

        Args:
            settled: Wait for what is still being written.
        """
        recorded, paid = RECORDED, replies.c.sends > 0
        query = sa.select(
            replies.c.stage,
            sa.func.sum(replies.c.sends).label("calls"),
            sa.func.sum(sa.case((recorded, 1), else_=0)).label("recorded"),
            sa.func.sum(sa.case((sa.and_(recorded, ~paid), 1), else_=0)).label("borrowed"),
            sa.func.sum(sa.case((paid, replies.c.prompt_tokens), else_=0)).label("prompt_tokens"),
            sa.func.sum(sa.case((paid, replies.c.completion_tokens), else_=0)).label("completion_tokens"),
            sa.func.sum(sa.case((paid, sa.func.coalesce(replies.c.cost_usd, 0.0)), else_=0.0)).label("usd"),
            sa.func.sum(sa.case((recorded, 0.0), else_=replies.c.usd_reserved)).label("usd_lost"),
            sa.func.sum(sa.case((sa.and_(recorded, paid, replies.c.cost_usd.is_(None)), 1), else_=0)).label("unpriced"),
        ).where(replies.c.optimization_id == self._id)
        with self._database.reading() if settled else self._database.transaction() as connection:
            rows = connection.execute(query.group_by(replies.c.stage)).mappings().all()
        totals = {
            name: sum(row[name] for row in rows)
            for name in (
                "calls",
                "recorded",
                "borrowed",
                "prompt_tokens",
                "completion_tokens",
                "usd",
                "usd_lost",
                "unpriced",
            )
        }
        return Sent(**totals, by_stage={row["stage"]: row["calls"] for row in rows})


class SqlNotebook:
    """All that is kept of one optimization."""

    def __init__(self, database: Database, optimization_id: str) -> None:
        self.database = database
        self._id = optimization_id
        self._owner = f"{OWNER}:{optimization_id}"
        self.journal = SqlJournal(database, optimization_id)

    @contextmanager
    def claimed(self) -> Iterator[None]:
        """Hold it for this process; a killed process lets go of it.

        Raises:
            InUse: another process holds it.
        """
        if not self.database.claims.take(self._id):
            raise InUse(f"another process is working on {self._id}; wait for it, or end it first")
        try:
            yield
        finally:
            self.database.claims.release(self._id)

    def keep_examples(self, splits: Mapping[str, Sequence[Example]]) -> None:
        """Keep the data as it was split; a second call changes nothing."""
        there = sa.select(examples.c.position).where(examples.c.optimization_id == self._id).limit(1)
        box = self.database.vault.writing(self._owner)
        with self.database.reading() as connection:
            if connection.execute(there).first() is not None:
                return
            for split, rows in splits.items():
                for position, example in enumerate(rows):
                    values = {
                        "optimization_id": self._id,
                        "split": split,
                        "position": position,
                        "inputs": dict(example.inputs),
                        "labels": dict(example.labels),
                    }
                    connection.execute(self.database.statements.example, EXAMPLE.hide(box, values))

    def examples(self) -> dict[str, tuple[Example, ...]]:
        """The splits that were kept, in order."""
        query = examples.select().where(examples.c.optimization_id == self._id).order_by(examples.c.position)
        splits: dict[str, list[Example]] = {}
        with self.database.reading() as connection:
            for row in self.database.shown(connection, EXAMPLE, connection.execute(query).mappings().all()):
                example = Example(inputs=row["inputs"], labels=row["labels"])
                splits.setdefault(row["split"], []).append(example)
        return {split: tuple(rows) for split, rows in splits.items()}

    def keep_candidate(self, candidate: Candidate, *, stage: str) -> None:
        """Keep a candidate the first time it is seen."""
        values = {
            "optimization_id": self._id,
            "key": candidate.key,
            "state": candidate.state(),
            "parents": as_json(list(candidate.parents)),
            "origin": candidate.origin,
            "stage": stage,
        }
        box = self.database.vault.writing(self._owner)
        self.database.pen.write(self._id, self.database.statements.candidate, CANDIDATE.hide(box, values))

    def candidates(self) -> list[tuple[Candidate, str]]:
        """Candidates and the stage that made them, in the order they were first seen."""
        query = candidates.select().where(candidates.c.optimization_id == self._id).order_by(candidates.c.number)
        with self.database.reading() as connection:
            return [
                (
                    Candidate.from_state(row["state"], parents=json.loads(row["parents"]), origin=row["origin"]),
                    row["stage"],
                )
                for row in self.database.shown(connection, CANDIDATE, connection.execute(query).mappings().all())
            ]

    def keep_evaluation(self, evaluation: Evaluation, *, stage: str) -> None:
        """Keep an evaluation; one that is already there stays as it is."""
        failure, usage = evaluation.failure, evaluation.usage
        values = {
            "optimization_id": self._id,
            "candidate": evaluation.candidate,
            "example": evaluation.example.key,
            "repeat": evaluation.repeat,
            "stage": stage,
            "score": evaluation.score,
            "failure_kind": failure and failure.kind,
            "failure_message": failure and failure.message,
            "feedback": evaluation.feedback,
            "prediction": None if evaluation.prediction is None else dict(evaluation.prediction),
            "trace": [_step(step) for step in evaluation.trace],
            "replies": as_json(list(evaluation.replies)),
            "calls": usage.calls,
            "prompt_tokens": usage.prompt_tokens,
            "completion_tokens": usage.completion_tokens,
            "cost_usd": usage.cost_usd,
            "latency_ms": usage.latency_ms,
        }
        box = self.database.vault.writing(self._owner)
        self.database.pen.write(self._id, self.database.statements.evaluation, EVALUATION.hide(box, values))

    def evaluations(self) -> Iterable[tuple[Evaluation, str]]:
        """Evaluations and the stage that first asked for them, in the order they were kept."""
        known = {example.key: example for split in self.examples().values() for example in split}
        query = evaluations.select().where(evaluations.c.optimization_id == self._id).order_by(evaluations.c.number)
        box = self.database.vault.box(self._owner)
        with self.database.reading() as connection:
            for row in connection.execute(query).mappings():
                yield _evaluation(EVALUATION.show(box, row), known[row["example"]]), row["stage"]

    def note(self, event: Event) -> None:
        """Append to the events."""
        values = {
            "optimization_id": self._id,
            "at": datetime.now(UTC).isoformat(),
            "kind": event.kind,
            "payload": dict(event.payload),
        }
        box = self.database.vault.writing(self._owner)
        self.database.pen.write(self._id, self.database.statements.event, EVENT.hide(box, values))

    def events(self, *, after: int = 0) -> list[tuple[int, Event]]:
        """Numbered events, from 1."""
        query = events.select().where(events.c.optimization_id == self._id).order_by(events.c.number)
        with self.database.reading() as connection:
            rows = self.database.shown(connection, EVENT, connection.execute(query).mappings().all())
        return [
            (number, Event(kind=row["kind"], payload=row["payload"]))
            for number, row in enumerate(rows, start=1)
            if number > after
        ]

    def add_seconds(self, seconds: float) -> None:
        """Add wall time spent on it."""
        self.database.pen.write(self._id, self.database.statements.seconds, {"of": self._id, "more": seconds})

    def flush(self) -> None:
        """Wait until everything kept so far would survive a crash.

        Raises:
            StorageUnavailable: it cannot be kept.
        """
        self.database.pen.flush(self._id)

    def set_status(self, status: str, *, error: str = "", result: Mapping[str, Any] | None = None) -> None:
        """Move it to another status."""
        values: dict[str, Any] = {"id": self._id, "status": status, "error": error or None}
        values["result"] = None if result is None else dict(result)
        box = self.database.vault.writing(self._owner)
        for texts in (RESULT, ERROR):
            values = texts.hide(box, values)
        told = {"of": self._id, **{f"new_{name}": value for name, value in values.items() if name != "id"}}
        self.database.pen.write(self._id, self.database.statements.status, told)
        self.flush()


def _step(step: Step) -> dict[str, Any]:
    return {"predictor": step.predictor, "inputs": dict(step.inputs), "outputs": dict(step.outputs), "raw": step.raw}


def _evaluation(row: Mapping[str, Any], example: Example) -> Evaluation:
    failure = Failure(kind=row["failure_kind"], message=row["failure_message"]) if row["failure_kind"] else None
    return Evaluation(
        candidate=row["candidate"],
        example=example,
        repeat=row["repeat"],
        score=row["score"],
        failure=failure,
        feedback=row["feedback"],
        prediction=row["prediction"],
        trace=tuple(Step(**step) for step in row["trace"]),
        usage=Usage(
            calls=row["calls"],
            prompt_tokens=row["prompt_tokens"],
            completion_tokens=row["completion_tokens"],
            cost_usd=row["cost_usd"],
            latency_ms=row["latency_ms"],
        ),
        replies=tuple(json.loads(row["replies"])),
    )

"""For tests of what is encrypted: a secret wherever there is room for one, and databases as they were before.

archive = open_archive(settings)
fill(archive)
assert not leaks(settings.home)
"""

from __future__ import annotations

import gzip
import json
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from ratchet.core.evaluation import Evaluation, Step
from ratchet.core.features import TaskFeatures
from ratchet.core.lesson import Lesson
from ratchet.core.problem import Candidate, Example, PredictorState
from ratchet.engine.archive import Event, Notebook, Optimization
from ratchet.programs.datasets import Row
from ratchet.programs.journal import Reply
from ratchet.storage.audit import Audit
from ratchet.storage.cycles import Schedules
from ratchet.storage.jobs import Jobs, files
from ratchet.storage.lessons import SqlLessons
from ratchet.storage.privacy import Cleaned, how_cleaned
from ratchet.storage.rotation import TEXTS
from ratchet.storage.shelf import Shelf, parts
from ratchet.storage.sql import SqlArchive
from ratchet.storage.texts import Words, as_json
from ratchet.storage.vault import data_keys
from ratchet.testing.service import Clock, actor

SECRET = "Magdalena 555-0100 magdalena@example.org"
"""What must not be found."""
TASK = TaskFeatures(train=4, validation=2, predictors=1, output="text", inputs=("q",), outputs=("a",), headroom=0.5)


def leaks(folder: Path) -> list[str]:
    """The files below ``folder`` in whose bytes a part of the secret stands."""
    words = [word.encode() for word in SECRET.split()]
    return [
        str(file)
        for file in sorted(folder.rglob("*"))
        if file.is_file() and any(word in file.read_bytes() for word in words)
    ]


def examples(n: int = 3) -> list[Example]:
    """Rows with the secret in them."""
    return [Example(inputs={"text": f"{SECRET} {number}"}, labels={"label": SECRET}) for number in range(n)]


def reply(key: str) -> Reply:
    """A reply with the secret in it."""
    numbers: dict[str, Any] = {"prompt_tokens": 1, "completion_tokens": 1, "cost_usd": None, "latency_ms": 1.0}
    return Reply(key=key, role="task", stage="search", response={"text": f"{SECRET} {key}"}, **numbers)


def evaluation(candidate: str, example: Example, repeat: int = 0) -> Evaluation:
    """An evaluation with the secret in it."""
    step = Step(predictor="p", inputs=example.inputs, outputs=example.labels, raw=SECRET)
    return Evaluation(
        candidate=candidate,
        example=example,
        repeat=repeat,
        score=0.5,
        prediction={"label": SECRET},
        feedback=SECRET,
        trace=(step,),
    )


def fill(archive: SqlArchive, name: str = "0a1b") -> Notebook:
    """An optimization of the service that has ended, with the secret wherever there is room for it."""
    request = {"options": {"instructions": SECRET, "tenant": "default"}}
    notebook = archive.start(Optimization(id=name, status="queued", created_at=datetime.now(UTC), request=request))
    jobs = Jobs(archive, Audit(archive, clock=Clock()))
    jobs.submit(actor(), name, target="inline", data={"data": "mails@1"}, priority=1)
    notebook.keep_examples({"train": examples()})
    candidate = Candidate(predictors={"p": PredictorState(instructions=SECRET)}, origin=SECRET)
    notebook.keep_candidate(candidate, stage="search")
    for example in examples():
        notebook.keep_evaluation(evaluation(candidate.key, example), stage="search")
    for number in range(2):
        notebook.journal.reserve(f"k{number}", role="task", stage="search", usd=0.0)
        notebook.journal.record(reply(f"k{number}"), shared=f"{name}-{number}")
        notebook.note(Event(kind="said", payload={"text": f"{SECRET} {number}"}))
    notebook.set_status("failed", error=SECRET, result={"reason": SECRET})
    jobs.keep_file(name, "program.json", SECRET.encode())
    jobs.note_end(actor(), name, 1, status="failed", reason=SECRET)
    more: dict[str, Any] = {"features": TASK, "status": "improved", "warm_start": "on", "instructions": {"p": SECRET}}
    SqlLessons(archive).keep(Lesson(id=name, tenant="default", created_at=datetime.now(UTC), **more))
    return notebook


def shelve(archive: SqlArchive) -> Shelf:
    """A data set ``mails``, a target ``sort`` and a schedule, with the secret in them."""
    shelf = Shelf(archive, Audit(archive, clock=Clock()))
    how = Cleaned(policy={"patterns": SECRET}, report={"found": {SECRET: {}}})
    rows = [Row(number=1, fields={"text": SECRET, SECRET: ""})]
    shelf.keep_dataset(actor(), "mails", rows, size=10, cleaned=how)
    shelf.keep_target(actor(), "sort", {"signature": "a -> b", "instructions": SECRET})
    _schedules(archive).add(
        actor(), name="nightly", cron="0 3 * * *", timezone="UTC", overlap="skip", orders=[{"target": SECRET}]
    )
    return shelf


def read(archive: SqlArchive, name: str = "0a1b") -> Any:
    """All that ``fill`` and ``shelve`` wrote, as JSON data."""
    notebook, jobs = archive.open(name), Jobs(archive, Audit(archive, clock=Clock()))
    shelf = Shelf(archive, Audit(archive, clock=Clock()))
    stored = archive.find(name)
    found = {
        "optimization": [stored.request, stored.result, stored.error],
        "examples": [[each.inputs, each.labels] for rows in notebook.examples().values() for each in rows],
        "candidates": [[each.state(), each.origin] for each, _ in notebook.candidates()],
        "evaluations": [
            [each.feedback, each.prediction, [[step.inputs, step.raw] for step in each.trace]]
            for each, _ in notebook.evaluations()
        ],
        "replies": [each.response for key in ("k0", "k1") if (each := notebook.journal.find(key)) is not None],
        "shared": [
            each.response for number in (0, 1) if (each := archive.shared_reply(f"{name}-{number}")) is not None
        ],
        "events": [event.payload for _, event in notebook.events()],
        "reason": jobs.find("default", name).reason,
        "file": jobs.file("default", name, "program.json").decode(),
        "lesson": SqlLessons(archive).find(name, "default").to_json(),
        "dataset": [row.fields for row in shelf.rows(shelf.dataset("default", "mails"))],
        "fields": shelf.dataset("default", "mails").fields,
        "privacy": asdict(how) if (how := how_cleaned(archive, shelf.dataset("default", "mails").id)) else None,
        "orders": [each.orders for _, each in _schedules(archive).page("default", before=None, limit=1)],
        "target": shelf.target("default", "sort").spec,
    }
    return json.loads(as_json(found))


def _schedules(archive: SqlArchive) -> Schedules:
    return Schedules(archive, Audit(archive, clock=Clock()))


def clear(archive: SqlArchive) -> str:
    """All that is private in a database, opened."""
    found = []
    for texts in TEXTS:
        archive.make(texts.table.metadata)
        with archive.transaction() as connection:
            rows = archive.shown(connection, texts, connection.execute(texts.table.select()).mappings().all())
        found += [as_json({name: row[name] for name in texts.names}) for row in rows]
    with archive.transaction() as connection:
        kept = connection.execute(files.select()).all()
        pieces = connection.execute(parts.select()).all()
    for row in kept:
        box = archive.vault.box(f"optimization:{row.optimization_id}")
        found.append(box.open(row.content, f"files.content/{row.name}").decode())
    for row in pieces:
        content = archive.vault.box(f"dataset:{row.dataset_id}").open(row.content, f"dataset_parts.content/{row.part}")
        found.append(gzip.decompress(content).decode())
    return "\n".join(found)


def age(archive: SqlArchive) -> None:
    """Make a database as it was before there was encryption: everything private in columns of its own.

    Args:
        archive: One that was opened without master keys.
    """
    for texts in TEXTS:
        archive.make(texts.table.metadata)
    with archive.transaction() as connection:
        connection.execute(data_keys.delete())
        for texts in TEXTS:
            columns = (*texts.names, texts.into)
            for row in connection.execute(texts.table.select()).mappings().all():
                if row[texts.into] is None:
                    continue
                private = json.loads(bytes(row[texts.into]))
                values = {
                    name: value if isinstance(texts.table.c[name].type, Words) else as_json(value)
                    for name, value in private.items()
                }
                same = sa.and_(*(column == row[column.name] for column in texts.table.primary_key))
                values = dict.fromkeys(columns, None) | dict.fromkeys(texts.names, "") | values
                connection.execute(texts.table.update().where(same).values(**values | {texts.into: None}))
        for table in (files, parts):
            assert all(bytes(row.content)[:1] < b"\x80" for row in connection.execute(table.select()))

"""Optimizations are begun, and taken up again: what is stored of them is what they are made of."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime

from ratchet import learned
from ratchet.analytics.knowledge import Start
from ratchet.core.errors import BadRequest
from ratchet.core.result import Status
from ratchet.engine.archive import Event, Optimization
from ratchet.guard import KEEP, guarded
from ratchet.options import Options
from ratchet.prepare import Given, Prepared, identities, prepare
from ratchet.programs.datasets import Splits
from ratchet.programs.journal import Fork
from ratchet.programs.remote import RemoteAgent
from ratchet.programs.remote_algorithm import Address
from ratchet.run import Run
from ratchet.settings import Settings
from ratchet.storage.algorithms import addresses
from ratchet.storage.forks import SqlHeritage
from ratchet.storage.lessons import SqlLessons
from ratchet.storage.memory import MemoryNotebook
from ratchet.storage.sql import SqlArchive


def new_run(
    options: Options,
    given: Given,
    settings: Settings,
    archive: SqlArchive,
    *,
    identity: str | None = None,
    status: Status = "running",
    fork: Fork | None = None,
    emit: Callable[[Event], None] = lambda event: None,
) -> Run:
    """A new optimization, stored as ``status`` and ready to be executed.

    Args:
        identity: Its id; a new one where it is left out.
        status: How it is stored.
        fork: What it was forked from; it begins with what that one had learned.

    Raises:
        UserError: the request cannot be carried out; nothing was stored then.
    """
    options, cleaner = guarded(options, settings, archive)
    given = replace(given, cleaner=cleaner)
    found = addresses(archive, options.tenant)
    identity = identity or uuid.uuid4().hex[:12]
    # Built once before it is stored, so that a request that cannot work leaves nothing behind.
    tried = tried_run(options, given, settings, addresses=found, identity=identity)
    prepared = tried.prepared
    lessons = SqlLessons(archive)
    if fork is None:
        start = learned.start(prepared, tried.program, lessons, identity=identity)
    else:
        start = Start.from_json(archive.find(fork.of).request.get("start"))
    notebook = archive.start(
        Optimization(
            id=identity,
            status=status,
            created_at=datetime.now(UTC),
            request={
                "options": options.to_json(),
                "identities": identities(prepared),
                "kind": "objects" if given.program is not None else "names",
                "start": start.to_json(),
                **({"fork": fork.to_json()} if fork is not None else {}),
            },
        )
    )
    splits = prepared.splits
    notebook.keep_examples({"train": splits.train, "validation": splits.validation, "test": splits.test})
    return Run(
        prepared,
        notebook,
        optimization_id=identity,
        spent_seconds=0.0,
        emit=emit,
        start=start,
        lessons=lessons,
        heritage=None if fork is None else SqlHeritage(archive, fork),
    )


def tried_run(
    options: Options, given: Given, settings: Settings, *, addresses: Mapping[str, Address], identity: str = "tried"
) -> Run:
    """An optimization that is built and not stored.

    Raises:
        UserError: the request cannot be carried out.
    """
    prepared = prepare(options, given, settings, addresses=addresses)
    if isinstance(prepared.target.module, RemoteAgent) and prepared.reflection is None:
        raise BadRequest("the texts of a remote agent are rewritten by an LM; name one with --reflection-lm")
    return Run(prepared, MemoryNotebook(), optimization_id=identity, spent_seconds=0.0)


def resumed_run(
    optimization_id: str,
    given: Given,
    settings: Settings,
    archive: SqlArchive,
    *,
    emit: Callable[[Event], None] = lambda event: None,
) -> Run:
    """An optimization that was begun before, ready to go on where it stopped.

    Raises:
        UnknownName: there is none with this id.
        BadRequest: the program, the model or the data is no longer what it was.
    """
    stored = archive.find(optimization_id)
    for kind, command in (("evaluation", "evaluate"), ("comparison", "compare")):
        if stored.request.get("kind") == kind:
            raise BadRequest(f"{stored.id} holds no optimization, but one {kind}; run `ratchet {command}` again")
    if stored.request.get("kind") == "objects" and given.program is None:
        raise BadRequest(f"{stored.id} was begun from Python, with objects that no name here stands for")
    notebook = archive.open(stored.id, anew=True)
    # One that was begun before there were policies kept everything.
    options = Options.from_json({"pii": KEEP.to_json(), **stored.request["options"]})
    _, cleaner = guarded(options, settings, archive)
    given = replace(given, cleaner=cleaner)
    parts = notebook.examples()
    fork = Fork.from_json(stored.request["fork"]) if "fork" in stored.request else None
    notes = () if fork is None else (f"it was forked from {fork.of}, whose sealed test has the same examples",)
    splits = Splits(train=parts["train"], validation=parts["validation"], test=parts["test"], notes=notes)
    prepared = prepare(
        options, given, settings, splits=splits, addresses=addresses(archive, options.tenant, withdrawn=True)
    )
    check_unchanged(stored, prepared)
    return Run(
        prepared,
        notebook,
        optimization_id=stored.id,
        spent_seconds=stored.seconds,
        emit=emit,
        start=Start.from_json(stored.request.get("start")),
        lessons=SqlLessons(archive),
        heritage=None if fork is None else SqlHeritage(archive, fork),
    )


def check_unchanged(stored: Optimization, prepared: Prepared) -> None:
    """Refuse to go on with something else.

    Raises:
        BadRequest: the program, the model or the data is no longer what it was.
    """
    before, now = stored.request["identities"], identities(prepared)
    for name, value in now.items():
        if before.get(name) != value:
            raise BadRequest(
                f"{stored.id} cannot go on: its {name} was {before.get(name)} and is now {value}; "
                "bring it back, or start a new optimization"
            )

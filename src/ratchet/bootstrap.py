"""Opens the archive, and builds what stands on it: the service's desk and its workers."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from ratchet.core.errors import BadRequest, StorageUnavailable
from ratchet.settings import Settings
from ratchet.storage.ring import KeyRing
from ratchet.storage.sql import SqlArchive

if TYPE_CHECKING:
    from ratchet.courier import Courier
    from ratchet.desk import Desk
    from ratchet.jetstream import JetStreamSink
    from ratchet.workflows import Worker

NATS = "nats"
"""The outlet of all events of all tenants."""


def open_archive(settings: Settings) -> SqlArchive:
    """The archive of this installation, made when it is not there yet.

    Raises:
        StorageUnavailable: it cannot be opened.
        KeyUnavailable: it is encrypted, and its master keys are not here.
    """
    try:
        return SqlArchive(settings.database, ring=open_ring(settings))
    except OSError as error:
        raise StorageUnavailable(f"{settings.home} cannot be written to: {error.strerror}") from error


def open_ring(settings: Settings) -> KeyRing:
    """The master keys of this installation.

    Raises:
        BadRequest: they cannot be read.
    """
    return KeyRing(settings.keys.get_secret_value(), file=settings.master_keys_file)


def open_desk(settings: Settings) -> Desk:
    """The service's desk, with its queue.

    Raises:
        StorageUnavailable: the database cannot be opened.
    """
    from ratchet.desk import Desk
    from ratchet.workflows import Dispatcher

    return Desk(settings, open_archive(settings), Dispatcher(settings), clock=lambda: datetime.now(UTC))


def new_worker(desk: Desk, settings: Settings, *, say: Callable[[str], None]) -> Worker:
    """A worker of this process, on the desk's own database."""
    from ratchet.workflows import Dispatcher, Worker

    courier = new_courier(desk, settings, say=say)
    return Worker(
        settings,
        desk.archive,
        desk.jobs,
        desk.workers,
        desk.versions,
        Dispatcher(settings),
        desk.eraser,
        say=say,
        courier=courier,
        batch=desk.batch,
    )


def new_courier(desk: Desk, settings: Settings, *, say: Callable[[str], None]) -> Courier:
    """What brings events to webhooks, and to NATS where that is configured."""
    import random

    from ratchet.core.access import Actor
    from ratchet.core.patience import Patience
    from ratchet.courier import Courier, Door
    from ratchet.listeners import hosts_of
    from ratchet.storage.outbox import Outlet
    from ratchet.webhook import Postman, WebhookSink

    actor = Actor(name="courier", tenant="", role="admin", origin="a worker")
    postman = Postman(hosts_of(settings), clock=desk.clock)
    closing = [postman.close]
    doors: dict[str, Door] = {}
    if settings.nats_url:
        stream = _jetstream(settings.nats_url)
        closing.append(stream.close)
        desk.outbox.ensure(NATS, None, ["*"])
        doors[NATS] = Door(sink=stream, patience=Patience(attempts=None, first_seconds=0.5, most_seconds=30.0))

    def door(outlet: Outlet) -> Door | None:
        if outlet.tenant is None:
            return doors.get(outlet.id)
        sink = WebhookSink(outlet.id, desk.webhooks, postman, actor=actor, clock=desk.clock)
        return Door(sink=sink, patience=Patience(attempts=settings.webhook_attempts))

    def settle() -> None:
        desk.batch.cycles.settle(actor)

    return Courier(
        desk.outbox,
        desk.archive.claims,
        door=door,
        chores=[settle, desk.batch.start_waiting],
        closing=closing,
        clock=desk.clock,
        rng=random.Random(),
        say=say,
    )


def _jetstream(url: str) -> JetStreamSink:
    try:
        from ratchet.jetstream import JetStreamSink
    except ImportError as error:
        raise BadRequest("RATCHET_NATS_URL needs the extra: pip install 'dspy-ratchet[nats]'") from error
    return JetStreamSink(url)

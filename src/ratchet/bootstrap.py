"""Opens the archive, and builds what stands on it: the service's desk and its workers."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from ratchet.core.errors import StorageUnavailable
from ratchet.settings import Settings
from ratchet.storage.sql import SqlArchive

if TYPE_CHECKING:
    from ratchet.desk import Desk
    from ratchet.workflows import Worker


def open_archive(settings: Settings) -> SqlArchive:
    """The archive of this installation, made when it is not there yet.

    Raises:
        StorageUnavailable: it cannot be opened.
    """
    try:
        return SqlArchive(settings.database)
    except OSError as error:
        raise StorageUnavailable(f"{settings.home} cannot be written to: {error.strerror}") from error


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

    return Worker(settings, desk.archive, desk.jobs, desk.versions, Dispatcher(settings), say=say)

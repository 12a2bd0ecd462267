"""What a forked optimization takes over from the one it was forked from."""

from __future__ import annotations

from collections.abc import Sequence

from ratchet.core.errors import BadRequest
from ratchet.programs.journal import Fork, Reply
from ratchet.storage.notebook import SqlJournal
from ratchet.storage.sql import SqlArchive
from ratchet.storage.tables import EVENT, events


class SqlHeritage:
    """The replies of an optimization that a fork of it may use.

    Args:
        archive: Where both are kept.
        fork: What may be used.
    """

    def __init__(self, archive: SqlArchive, fork: Fork) -> None:
        self._journal = SqlJournal(archive, fork.of)
        stages = self._journal.stages()
        self._keys = {key for key, stage in stages.items() if fork.stages is None or stage in fork.stages}

    def find(self, key: str) -> Reply | None:
        """The reply that was recorded there as ``key``, when it may be used."""
        return self._journal.find(key) if key in self._keys else None


def stages_before(archive: SqlArchive, identity: str, stage: str | None) -> tuple[str, ...] | None:
    """The stages of an optimization that came before ``stage``; None for all there are.

    Args:
        stage: The name of a stage, or its first word.

    Raises:
        BadRequest: the optimization has had no such stage.
    """
    if stage is None:
        return None
    query = events.select().where(events.c.optimization_id == identity, events.c.kind == "stage")
    with archive.transaction() as connection:
        rows = archive.shown(connection, EVENT, connection.execute(query.order_by(events.c.number)).mappings().all())
    names: Sequence[str] = tuple(dict.fromkeys(row["payload"]["stage"] for row in rows))
    for place, name in enumerate(names):
        if name == stage or name.partition(" ")[0] == stage:
            return tuple(names[:place])
    known = ", ".join(repr(name) for name in names) or "none yet"
    raise BadRequest(
        f"from_stage is {stage!r}; {identity} has had these stages: {known}", field="from_stage", value=stage
    )

"""The workers that are known, so that one that died is noticed."""

from __future__ import annotations

import sqlalchemy as sa

from ratchet.core.access import Actor
from ratchet.storage.audit import Audited

metadata = sa.MetaData()

workers = sa.Table(
    "workers",
    metadata,
    sa.Column("id", sa.String(64), primary_key=True),
    sa.Column("started_at", sa.String(32), nullable=False),
)


class Workers(Audited):
    """Who works, or did when it was last seen."""

    tables = (metadata,)

    def enlist(self, actor: Actor, worker: str) -> None:
        """Have ``worker`` known, so that others notice when it dies."""
        with self._audit.change(actor) as change:
            change.connection.execute(workers.insert().values(id=worker, started_at=change.now))

    def known(self) -> list[str]:
        """The workers that are known, dead or alive."""
        with self._archive.transaction() as connection:
            return [row.id for row in connection.execute(sa.select(workers.c.id))]

    def strike_off(self, worker: str) -> None:
        """Forget a worker."""
        with self._archive.transaction() as connection:
            connection.execute(workers.delete().where(workers.c.id == worker))

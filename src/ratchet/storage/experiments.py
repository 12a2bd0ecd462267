"""Experiments: which versions of a target are to share its live traffic, and how it is decided between them."""

from __future__ import annotations

import json
import uuid
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import sqlalchemy as sa

from ratchet.core.access import Actor
from ratchet.core.request import MetricName
from ratchet.storage.audit import Audited
from ratchet.storage.statements import newest_first, the_row

metadata = sa.MetaData()

experiments = sa.Table(
    "experiments",
    metadata,
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("id", sa.String(16), nullable=False, unique=True),
    sa.Column("tenant", sa.String(64), nullable=False, index=True),
    sa.Column("target", sa.String(100), nullable=False),
    sa.Column("metric", sa.String(32), nullable=False),
    sa.Column("arms", sa.Text, nullable=False),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("created_at", sa.String(32), nullable=False),
    sa.Column("created_by", sa.String(200), nullable=False),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """One side of an experiment.

    Attributes:
        version: The id of a version; None for the program as it was kept.
        share: Of the traffic, from 0 to 1.
    """

    version: str | None
    share: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Experiment:
    """An experiment as it was asked for.

    Attributes:
        target: The name of the target.
        metric: What it is decided by.
        state: ``planned``: nothing sends it traffic yet.
    """

    id: str
    target: str
    metric: MetricName
    arms: tuple[Arm, ...]
    state: str
    created_at: str
    created_by: str


class Experiments(Audited):
    """All experiments."""

    tables = (metadata,)

    def plan(self, actor: Actor, *, target: str, metric: MetricName, arms: Sequence[Arm]) -> Experiment:
        """A new experiment."""
        identity = uuid.uuid4().hex[:12]
        with self._audit.change(actor) as change:
            values = {"target": target, "metric": metric, "arms": json.dumps([asdict(arm) for arm in arms])}
            row = {"id": identity, "tenant": actor.tenant, "state": "planned", **values}
            change.connection.execute(experiments.insert().values(created_at=change.now, created_by=actor.name, **row))
            change.note("experiment.plan", identity, after=values)
        return self.find(actor.tenant, identity)

    def find(self, tenant: str, identity: str) -> Experiment:
        """One experiment of a tenant.

        Raises:
            Missing: it has none with this id.
        """
        with self._archive.transaction() as connection:
            return _experiment(the_row(connection, experiments, "experiment", tenant, identity))

    def page(self, tenant: str, *, before: int | None, limit: int) -> list[tuple[int, Experiment]]:
        """Numbered experiments, the newest first, those numbered below ``before``."""
        query = newest_first(experiments, experiments.c.tenant == tenant, before=before, limit=limit)
        with self._archive.transaction() as connection:
            return [(row["number"], _experiment(row)) for row in connection.execute(query).mappings()]


def _experiment(row: sa.RowMapping) -> Experiment:
    names = [name for name in Experiment.__dataclass_fields__ if name != "arms"]
    return Experiment(**{name: row[name] for name in names}, arms=tuple(Arm(**arm) for arm in json.loads(row["arms"])))

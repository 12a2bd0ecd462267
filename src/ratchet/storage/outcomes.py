"""How a tenant's optimizations went, for analytics; it only reads."""

from __future__ import annotations

from array import array
from collections import defaultdict
from collections.abc import Sequence

import sqlalchemy as sa

from ratchet.core.outcome import Outcome
from ratchet.storage.jobs import jobs
from ratchet.storage.sql import SqlArchive
from ratchet.storage.tables import RECORDED, REQUEST, RESULT, evaluations, optimizations, replies
from ratchet.storage.texts import Row


def outcomes(archive: SqlArchive, tenant: str, *, since: str, until: str, target: str | None = None) -> list[Outcome]:
    """One for each optimization that was asked for from ``since`` to before ``until`` (ISO times in UTC)."""
    chosen = sa.and_(jobs.c.tenant == tenant, jobs.c.created_at >= since, jobs.c.created_at < until)
    if target is not None:
        versions = jobs.c.target.startswith(f"{target}@", autoescape=True)
        chosen = sa.and_(chosen, sa.or_(jobs.c.target == target, versions))
    ids = sa.select(jobs.c.id).where(chosen)
    query = sa.select(optimizations, jobs.c.target, jobs.c.created_at.label("asked_at")).where(chosen)
    recorded, paid = RECORDED, replies.c.sends > 0
    spent = (
        sa.select(
            replies.c.optimization_id,
            sa.func.sum(replies.c.sends).label("calls"),
            sa.func.sum(sa.case((paid, replies.c.prompt_tokens), else_=0)).label("prompt_tokens"),
            sa.func.sum(sa.case((paid, replies.c.completion_tokens), else_=0)).label("completion_tokens"),
            sa.func.sum(sa.case((paid, sa.func.coalesce(replies.c.cost_usd, 0.0)), else_=0.0)).label("usd"),
            sa.func.sum(sa.case((sa.and_(recorded, paid, replies.c.cost_usd.is_(None)), 1), else_=0)).label("unpriced"),
        )
        .where(replies.c.optimization_id.in_(ids))
        .group_by(replies.c.optimization_id)
    )
    ran = sa.select(evaluations.c.optimization_id, evaluations.c.latency_ms)
    ran = ran.where(evaluations.c.optimization_id.in_(ids), evaluations.c.calls > 0)
    latencies: dict[str, array[float]] = defaultdict(lambda: array("d"))
    found = []
    with archive.transaction() as connection:
        costs = {row.optimization_id: row for row in connection.execute(spent)}
        for identity, latency_ms in connection.execute(ran):
            latencies[identity].append(latency_ms)
        joined = query.join_from(jobs, optimizations, optimizations.c.id == jobs.c.id)
        rows: Sequence[Row] = connection.execute(joined).mappings().all()
        for texts in (REQUEST, RESULT):
            rows = archive.shown(connection, texts, rows)
        for row in rows:
            if row["request"].get("kind") == "evaluation":  # it was no optimization
                continue
            cost, result = costs.get(row["id"]), row["result"]
            found.append(
                Outcome(
                    target=row["target"].partition("@")[0],
                    algorithm="+".join(row["request"]["options"]["algorithms"]),
                    created_at=row["asked_at"],
                    status=row["status"],
                    improvement=None if result is None else result["improvement_percentage"],
                    calls=cost.calls if cost else 0,
                    prompt_tokens=cost.prompt_tokens if cost else 0,
                    completion_tokens=cost.completion_tokens if cost else 0,
                    usd=0.0 if cost is None else None if cost.unpriced else cost.usd,
                    seconds=row["seconds"],
                    latencies_ms=latencies[row["id"]],
                )
            )
    return found

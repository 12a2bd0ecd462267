"""The tables of the archive, and what in them is private."""

from __future__ import annotations

import sqlalchemy as sa

from ratchet.storage.texts import Texts, Words

metadata = sa.MetaData()

optimizations = sa.Table(
    "optimizations",
    metadata,
    sa.Column("id", sa.String(32), primary_key=True),
    sa.Column("created_at", sa.String(32), nullable=False, index=True),
    sa.Column("status", sa.String(32), nullable=False),
    sa.Column("request", sa.Text, nullable=False),
    sa.Column("result", sa.Text),
    sa.Column("error", Words, nullable=False, default=""),
    sa.Column("seconds", sa.Float, nullable=False, default=0.0),
    sa.Column("sealed_request", sa.LargeBinary),
    sa.Column("sealed_result", sa.LargeBinary),
    sa.Column("sealed_error", sa.LargeBinary),
)
examples = sa.Table(
    "examples",
    metadata,
    sa.Column("optimization_id", sa.String(32), primary_key=True),
    sa.Column("split", sa.String(16), primary_key=True),
    sa.Column("position", sa.Integer, primary_key=True),
    sa.Column("inputs", sa.Text, nullable=False),
    sa.Column("labels", sa.Text, nullable=False),
    sa.Column("sealed", sa.LargeBinary),
)
candidates = sa.Table(
    "candidates",
    metadata,
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("optimization_id", sa.String(32), nullable=False),
    sa.Column("key", sa.String(16), nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("parents", sa.Text, nullable=False),
    sa.Column("origin", Words, nullable=False),
    sa.Column("stage", sa.String(64), nullable=False),
    sa.Column("sealed", sa.LargeBinary),
    sa.UniqueConstraint("optimization_id", "key"),
)
evaluations = sa.Table(
    "evaluations",
    metadata,
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("optimization_id", sa.String(32), nullable=False),
    sa.Column("candidate", sa.String(16), nullable=False),
    sa.Column("example", sa.String(16), nullable=False),
    sa.Column("repeat", sa.Integer, nullable=False),
    sa.Column("stage", sa.String(64), nullable=False),
    sa.Column("score", sa.Float),
    sa.Column("failure_kind", sa.String(16)),
    sa.Column("failure_message", Words),
    sa.Column("feedback", Words, nullable=False),
    sa.Column("prediction", sa.Text),
    sa.Column("trace", sa.Text, nullable=False),
    sa.Column("calls", sa.Integer, nullable=False),
    sa.Column("prompt_tokens", sa.Integer, nullable=False),
    sa.Column("completion_tokens", sa.Integer, nullable=False),
    sa.Column("cost_usd", sa.Float),
    sa.Column("latency_ms", sa.Float, nullable=False),
    sa.Column("replies", sa.Text, nullable=False),
    sa.Column("sealed", sa.LargeBinary),
    sa.UniqueConstraint("optimization_id", "candidate", "example", "repeat"),
)
replies = sa.Table(
    "replies",
    metadata,
    sa.Column("optimization_id", sa.String(32), primary_key=True),
    sa.Column("key", sa.String(16), primary_key=True),
    sa.Column("role", sa.String(16), nullable=False),
    sa.Column("stage", sa.String(64), nullable=False),
    sa.Column("sends", sa.Integer, nullable=False),
    sa.Column("usd_reserved", sa.Float, nullable=False),
    sa.Column("response", sa.Text),
    sa.Column("prompt_tokens", sa.Integer, nullable=False, default=0),
    sa.Column("completion_tokens", sa.Integer, nullable=False, default=0),
    sa.Column("cost_usd", sa.Float),
    sa.Column("latency_ms", sa.Float, nullable=False, default=0.0),
    sa.Column("shared", sa.String(16), index=True),
    sa.Column("sealed", sa.LargeBinary),
)
events = sa.Table(
    "events",
    metadata,
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("optimization_id", sa.String(32), nullable=False, index=True),
    sa.Column("at", sa.String(32), nullable=False),
    sa.Column("kind", sa.String(64), nullable=False),
    sa.Column("payload", sa.Text, nullable=False),
    sa.Column("sealed", sa.LargeBinary),
)

RECORDED = sa.or_(replies.c.response.is_not(None), replies.c.sealed.is_not(None))
"""Of a reply: that it came."""

OWNER = "optimization"
"""What the rows of these tables belong to; each optimization has a data key of its own."""

REQUEST = Texts(optimizations, "request", into="sealed_request", at=("id",), of="id", owner=OWNER)
RESULT = Texts(optimizations, "result", into="sealed_result", at=("id",), of="id", owner=OWNER)
ERROR = Texts(optimizations, "error", into="sealed_error", at=("id",), of="id", owner=OWNER)
EXAMPLE = Texts(examples, "inputs", "labels", at=("split", "position"), of="optimization_id", owner=OWNER)
CANDIDATE = Texts(candidates, "state", "origin", at=("key",), of="optimization_id", owner=OWNER)
EVALUATION = Texts(
    evaluations,
    *("failure_message", "feedback", "prediction", "trace"),
    at=("candidate", "example", "repeat"),
    of="optimization_id",
    owner=OWNER,
)
REPLY = Texts(replies, "response", at=("key",), of="optimization_id", owner=OWNER)
EVENT = Texts(events, "payload", at=("kind", "at"), of="optimization_id", owner=OWNER)

PRIVATE: tuple[Texts, ...] = (REQUEST, RESULT, ERROR, EXAMPLE, CANDIDATE, EVALUATION, REPLY, EVENT)
"""All of it."""

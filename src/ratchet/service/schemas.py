"""Requests and answers as JSON; translated once into what the desk takes and gives."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any, Generic, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from ratchet.core.errors import BadRequest
from ratchet.core.request import MetricName, Scope, TargetType
from ratchet.core.result import Status
from ratchet.options import Options
from ratchet.privacy.policy import WRITTEN, field_treatments, merged
from ratchet.storage.audit import Entry
from ratchet.storage.jobs import Job
from ratchet.storage.privacy import Cleaned
from ratchet.storage.shelf import Dataset, StoredTarget

Item = TypeVar("Item")
Text = Annotated[str, Field(min_length=1, max_length=500)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Price = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Body(BaseModel):
    """What is sent; a field that is not known is an error."""

    model_config = ConfigDict(extra="forbid")


class TargetSpec(Body):
    """How a program is built; exactly one of ``signature``, ``program`` and ``import_path``."""

    signature: Annotated[str | None, Field(max_length=4000, description="An inline signature.")] = None
    module: Annotated[Literal["predict", "cot"], Field(description="The module of an inline signature.")] = "predict"
    instructions: Annotated[str | None, Field(max_length=20000)] = None
    program: Annotated[dict[str, Any] | None, Field(description="A program.json that Ratchet wrote.")] = None
    import_path: Annotated[
        str | None, Field(max_length=300, description="package.module:attribute, from an operator's list.")
    ] = None

    def spec(self) -> dict[str, Any]:
        """What the desk takes.

        Raises:
            BadRequest: it is built in no way, or in more than one.
        """
        if sum(each is not None for each in (self.signature, self.program, self.import_path)) != 1:
            raise BadRequest("give exactly one of signature, program and import_path", field="signature")
        names = ("signature", "module", "instructions") if self.signature is not None else ("program", "import_path")
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}


class NewTarget(TargetSpec):
    """A target to keep."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"name": "sorter", "signature": "text -> label: Literal['bug', 'wish']"}]}
    )
    name: Annotated[str, Field(min_length=1, max_length=100)]


class TargetReference(Body):
    """A target: one that is kept, or one described here."""

    id: Annotated[Text | None, Field(description="Id, NAME or NAME@VERSION of a kept target.")] = None
    type: TargetType = "component"
    scope: Scope = "individual"
    spec: TargetSpec | None = None


class ObjectiveBody(Body):
    """One thing to make better."""

    metric: MetricName
    weight: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1.0
    target_value: Annotated[
        float | None,
        Field(ge=0, allow_inf_nan=False, description="The search ends when this is reached: share, dollars or ms."),
    ] = None


def target_values(objectives: Sequence[ObjectiveBody]) -> tuple[tuple[str, float], ...]:
    """What ``Options`` take."""
    return tuple((each.metric, each.target_value) for each in objectives if each.target_value is not None)


class LimitsBody(Body):
    """Limits that are never passed."""

    max_optimization_time: Annotated[float, Field(gt=0, le=604800, description="Seconds.")] = 7200.0
    max_resource_usage: Annotated[float, Field(gt=0, le=1, description="Share of a worker's slots.")] = 0.2
    max_calls: Annotated[int | None, Field(gt=0, le=10_000_000)] = None
    max_usd: Positive | None = None


class ConstraintsBody(LimitsBody):
    """Limits that are never passed, and what counts as a gain."""

    min_improvement_threshold: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.05


class WorkBody(Body):
    """What running a program takes, whether it is made better or only measured."""

    target: TargetReference
    metric: Text = "exact_match"
    rubric: Annotated[
        str | None, Field(min_length=1, max_length=20000, description="What `llm_judge` grades by, in words.")
    ] = None
    constraints: LimitsBody = LimitsBody()
    lm: Text | None = None
    judge_lm: Text | None = None
    lm_base: Annotated[Text | None, Field(description="An LM server from an operator's list.")] = None
    adapter: Literal["auto", "chat", "json", "xml"] = "auto"
    temperature: Annotated[float | None, Field(ge=0, le=10)] = None
    max_tokens: Annotated[int | None, Field(gt=0, le=1_000_000)] = None
    concurrency: Annotated[int, Field(ge=1, le=1024)] = 8
    fields: Annotated[dict[str, str], Field(description="Program field -> column of the data.")] = {}
    success_at: Positive = 1.0
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    priority: Annotated[int, Field(ge=1, le=1000, description="1 goes first.")] = 100
    lm_timeout: Annotated[float | None, Field(gt=0, le=3600, description="Seconds for one request.")] = None
    price: Annotated[
        tuple[Price, Price] | None, Field(description="Dollars per million tokens, in and out, if not known.")
    ] = None
    requests_per_minute: Positive | None = None
    tokens_per_minute: Positive | None = None
    share_replies: bool = True

    def options(self) -> Options:
        """What the desk takes; the target is filled in there."""
        limits = self.constraints
        return Options(
            target="",
            max_calls=limits.max_calls,
            max_usd=limits.max_usd,
            max_minutes=limits.max_optimization_time / 60,
            max_resource_usage=limits.max_resource_usage,
            fields=tuple(self.fields.items()),
            **{name: getattr(self, name) for name in _AS_IT_IS},
        )

    def chosen_target(self) -> str | Mapping[str, Any]:
        """What the desk takes.

        Raises:
            BadRequest: no target is named, or two are, or several are meant.
        """
        if self.target.scope != "individual":
            raise BadRequest(
                f"a target is optimized by itself here, not as {self.target.scope}; related programs are optimized in "
                "turn by the Python function ratchet.optimize_family",
                field="target.scope",
            )
        reference, spec = self.target.id, self.target.spec
        if reference is not None and spec is None:
            return reference
        if spec is not None and reference is None:
            return spec.spec()
        raise BadRequest("give id or spec of the target, one of them", field="target")


_AS_IT_IS = (
    *("metric", "rubric", "lm", "judge_lm", "lm_base", "adapter", "temperature", "max_tokens", "success_at", "seed"),
    *("concurrency", "lm_timeout", "price", "requests_per_minute", "tokens_per_minute", "share_replies"),
)


class EvaluateBody(WorkBody):
    """A request to run a program on every example of a data set."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"target": {"id": "sorter"}, "data": "mails", "lm": "openai/gpt-4.1-mini", "limit": 50}]
        }
    )
    data: Annotated[Text, Field(description="A data set: id, NAME or NAME@VERSION.")]
    limit: Annotated[int | None, Field(ge=1, le=10_000_000, description="Take the first examples only.")] = None


class OptimizeBody(WorkBody):
    """A request to make a program better."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "target": {"id": "sorter"},
                    "data": "mails",
                    "metric": "exact_match",
                    "lm": "openai/gpt-4.1-mini",
                    "constraints": {"max_calls": 400},
                }
            ]
        }
    )
    data: Annotated[Text | None, Field(description="A data set: id, NAME or NAME@VERSION; split for you.")] = None
    train: Text | None = None
    validation: Text | None = None
    test: Annotated[Text | None, Field(description="The sealed test.")] = None
    objectives: Annotated[list[ObjectiveBody], Field(min_length=1, max_length=4)] = [
        ObjectiveBody(metric="quality_score")
    ]
    algorithms: Annotated[list[Text], Field(min_length=1, max_length=10)] = ["auto"]
    constraints: ConstraintsBody = ConstraintsBody()
    reflection_lm: Text | None = None
    force: bool = False
    tune_tools: bool = False
    minimise: bool = True
    max_prompt_tokens: Annotated[int | None, Field(gt=0, le=10_000_000)] = None
    warm_start: bool = True
    learn_from: Annotated[list[Text], Field(max_length=50, description="Ids of optimizations to learn from.")] = []
    lessons_may_quote: bool = False

    def options(self) -> Options:
        """What the desk takes; the target is filled in there."""
        return replace(
            super().options(),
            algorithms=tuple(self.algorithms),
            reflection_lm=self.reflection_lm,
            min_improvement=self.constraints.min_improvement_threshold,
            objectives=tuple((each.metric, each.weight) for each in self.objectives),
            target_values=target_values(self.objectives),
            force=self.force,
            tune_tools=self.tune_tools,
            minimise=self.minimise,
            max_prompt_tokens=self.max_prompt_tokens,
            warm_start=self.warm_start,
            learn_from=tuple(self.learn_from),
            lessons_may_quote=self.lessons_may_quote,
        )

    def sets(self) -> dict[str, str]:
        """What the desk takes."""
        given = {name: getattr(self, name) for name in ("data", "train", "validation", "test")}
        return {name: reference for name, reference in given.items() if reference is not None}


class OptimizationOut(BaseModel):
    """An optimization."""

    id: str
    status: Status
    wanted: Literal["run", "pause", "cancel"]
    target: str
    data: dict[str, str]
    created_at: str
    created_by: str
    priority: int
    attempt: int
    seconds: float
    reason: str
    forked_from: str | None = None
    result: dict[str, Any] | None = None
    request: Annotated[
        dict[str, Any] | None, Field(description="All that was asked for; only where one optimization is asked for.")
    ] = None

    @classmethod
    def of(
        cls, job: Job, result: Mapping[str, Any] | None = None, request: Mapping[str, Any] | None = None
    ) -> OptimizationOut:
        """As JSON."""
        names = set(cls.model_fields) - {"result", "request", "data"}
        return cls(
            **{name: getattr(job, name) for name in names},
            data=dict(job.data),
            result=None if result is None else dict(result),
            request=None if request is None else dict(request),
        )


class ProgressOut(BaseModel):
    """How an optimization is getting on; null where it is not known."""

    id: str
    status: Status
    wanted: Literal["run", "pause", "cancel"]
    phase: str | None
    progress: float
    best_so_far: dict[str, Any] | None
    baseline: dict[str, Any] | None
    spend: dict[str, Any]
    forecast: dict[str, Any] | None
    reason: str


class DatasetOut(BaseModel):
    """One version of a data set."""

    id: str
    name: str
    version: int
    hash: str
    rows: int
    bytes: int
    fields: list[str]
    created_at: str
    created_by: str
    privacy: Annotated[
        dict[str, Any] | None,
        Field(description="What was found of personal data, by field and kind; null where nothing was looked for."),
    ] = None

    @classmethod
    def of(cls, dataset: Dataset, cleaned: Cleaned | None = None) -> DatasetOut:
        """As JSON."""
        return cls(
            **{name: getattr(dataset, name) for name in cls.model_fields if name not in ("fields", "privacy")},
            fields=list(dataset.fields),
            privacy=dict(cleaned.report) if cleaned is not None and cleaned.report is not None else None,
        )


class TargetOut(BaseModel):
    """One version of a target."""

    id: str
    name: str
    version: int
    hash: str
    spec: dict[str, Any]
    created_at: str
    created_by: str

    @classmethod
    def of(cls, target: StoredTarget) -> TargetOut:
        """As JSON."""
        return cls(
            **{name: getattr(target, name) for name in cls.model_fields if name != "spec"}, spec=dict(target.spec)
        )


class EntryOut(BaseModel):
    """One entry of the audit trail."""

    number: int
    at: str
    who: str
    origin: str
    action: str
    object: str
    before: str | None
    after: str | None
    previous: str
    hash: str

    @classmethod
    def of(cls, entry: Entry) -> EntryOut:
        """As JSON."""
        return cls(**{name: getattr(entry, name) for name in cls.model_fields})


class CandidateOut(BaseModel):
    """A candidate: instructions and demos per predictor."""

    key: str
    state: dict[str, Any]
    parents: list[str]
    origin: str
    stage: str


class EvaluationOut(BaseModel):
    """A candidate run on an example: a score, or a failure."""

    candidate: str
    example: str
    repeat: int
    stage: str
    score: float | None
    failure_kind: str | None
    failure_message: str | None
    feedback: str
    prediction: dict[str, Any] | None
    calls: int
    prompt_tokens: int
    completion_tokens: int
    cost_usd: float | None
    latency_ms: float


class Page(BaseModel, Generic[Item]):
    """Some of a list, and where the rest begins."""

    items: list[Item]
    next: Annotated[str | None, Field(description="Give it as `cursor` for what comes next; null at the end.")] = None


class ProblemOut(BaseModel):
    """What is wrong (RFC 9457)."""

    type: str
    title: str
    status: int
    detail: str
    errors: list[dict[str, Any]] = []


class HealthOut(BaseModel):
    """That it lives."""

    status: Literal["ok"] = "ok"


def policy_of(
    header: str | None, default: str | None, fields: Sequence[str], called: str | None
) -> dict[str, Any] | None:
    """The description of a policy that came with an upload; None where nothing was said of it.

    Raises:
        BadRequest: it cannot be read.
    """
    try:
        said = json.loads(header) if header is not None else {}
    except (ValueError, RecursionError) as error:
        raise BadRequest(f"Ratchet-Privacy is no JSON: {error}", field="Ratchet-Privacy") from error
    if not isinstance(said, dict):
        raise BadRequest('Ratchet-Privacy is no object such as {"default": "redact"}', field="Ratchet-Privacy")
    if unknown := [name for name in said if name not in WRITTEN]:
        raise BadRequest(
            f"Ratchet-Privacy has {unknown[0]!r}; its fields are {', '.join(WRITTEN)}", field="Ratchet-Privacy"
        )
    more = {"default": default, "fields": field_treatments(fields) or None, "set": called}
    return merged(said, {name: value for name, value in more.items() if value is not None}) or None


def to_cursor(*parts: str | int) -> str:
    """A place in a list, as text that says nothing to a reader.

    >>> of_cursor(to_cursor("2026", "ab"), 2)
    ('2026', 'ab')
    """
    return base64.urlsafe_b64encode("|".join(map(str, parts)).encode()).decode().rstrip("=")


def of_cursor(text: str, n: int) -> tuple[str, ...]:
    """The parts of a cursor.

    Raises:
        BadRequest: nobody here made it.
    """
    try:
        parts = tuple(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)).decode().split("|"))
    except (binascii.Error, ValueError):
        parts = ()
    if len(parts) != n:
        raise BadRequest(f"cursor is {text!r}; give the `next` of an earlier page", field="cursor", value=text)
    return parts


def number_of(cursor: str | None) -> int | None:
    """The number that a cursor stands for."""
    if cursor is None:
        return None
    (text,) = of_cursor(cursor, 1)
    if not text.isdecimal() or len(text) > 15:
        raise BadRequest(f"cursor is {cursor!r}; give the `next` of an earlier page", field="cursor", value=cursor)
    return int(text)

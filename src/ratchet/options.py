"""An optimization as it is asked for: plain data, the same for the command, the library and the service."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from ratchet.analytics.knowledge import DEFAULT_TENANT

AUTO = ("portfolio",)
"""What ``auto`` stands for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """One optimization as a user asks for it; everything is plain data, so that it can be stored and resumed.

    Attributes:
        target: What ``ratchet.programs.targets.resolve_target`` takes.
        data, train, validation, test: Files of examples.
        metric: What ``ratchet.programs.metrics.resolve_metric`` takes.
        rubric: What ``llm_judge`` grades by, where it is no file.
        algorithms: Names in the catalogue, in order; ``auto`` for the default.
        lm, reflection_lm, judge_lm: Model names; the task LM stands in where one is left out.
        lm_base, lm_key_env: An OpenAI-compatible server, and the environment variable with its key.
        target_values: Metric -> value from which the search need not go on.
        max_resource_usage: Share of a worker's slots; the service heeds it.
        price: Dollars per million tokens, prompt and completion, for models DSPy has no price of.
        requests_per_minute, tokens_per_minute: What the provider grants; None for no limit.
        share_replies: Whether replies that are meant to be repeatable (temperature 0, or a seed) are shared between
            optimizations.
        minimise: Whether what is of no use in the chosen prompts is left out at the end.
        max_prompt_tokens: The longest prompt there may be; None for any.
        warm_start: Whether ``portfolio`` begins with what helped on tasks like this one.
        lessons_may_quote: Whether the lesson that is kept of it may hold text of examples, so that demos are kept too.
        tenant: Whose lessons it learns from, and to whom its own belongs.
        learn_from: Ids of optimizations whose lessons are tried, however unlike their tasks are.
        fields: Input field of the program -> column of the file.
        tune_tools: Whether the descriptions of tools and of their arguments are tuned too.
        pii: What is done with personal data, as ``ratchet.privacy.policy.Policy.from_json`` takes it; None for what
            this installation does. Names are not stored with it.
    """

    target: str
    data: str | None = None
    train: str | None = None
    validation: str | None = None
    test: str | None = None
    metric: str = "exact_match"
    rubric: str | None = None
    algorithms: tuple[str, ...] = ("auto",)
    lm: str | None = None
    reflection_lm: str | None = None
    judge_lm: str | None = None
    lm_base: str | None = None
    adapter: str = "auto"
    module: str = "predict"
    instructions: str | None = None
    temperature: float | None = None
    max_tokens: int | None = None
    lm_timeout: float | None = None
    price: tuple[float, float] | None = None
    max_calls: int | None = None
    max_usd: float | None = None
    max_minutes: float = 120.0
    min_improvement: float = 0.05
    objectives: tuple[tuple[str, float], ...] = (("quality_score", 1.0),)
    target_values: tuple[tuple[str, float], ...] = ()
    max_resource_usage: float = 0.2
    success_at: float = 1.0
    seed: int = 0
    concurrency: int = 8
    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None
    share_replies: bool = True
    force: bool = False
    minimise: bool = True
    max_prompt_tokens: int | None = None
    warm_start: bool = True
    lessons_may_quote: bool = False
    tenant: str = DEFAULT_TENANT
    learn_from: tuple[str, ...] = ()
    fields: tuple[tuple[str, str], ...] = ()
    tune_tools: bool = False
    pii: Mapping[str, Any] | None = None

    def to_json(self) -> dict[str, Any]:
        """The options as JSON data."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Options:
        """The options that ``to_json`` came from."""
        values = dict(data)
        for name in ("algorithms", "price"):
            if values.get(name) is not None:
                values[name] = tuple(values[name])
        values["learn_from"] = tuple(values.get("learn_from", ()))
        values.setdefault("target_values", ())
        for name in ("objectives", "fields", "target_values"):
            values[name] = tuple(tuple(pair) for pair in values[name])
        return cls(**values)


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """One optimization as it is asked for; what ``Desk.optimize`` takes.

    Attributes:
        options: What is asked for.
        target: A stored target, or how one is built.
        data: Data sets by the name of the option whose file they stand for.
    """

    options: Options
    target: str | Mapping[str, Any]
    data: Mapping[str, str]
    priority: int = 100

    def to_json(self) -> dict[str, Any]:
        """As JSON data."""
        target = dict(self.target) if isinstance(self.target, Mapping) else self.target
        return {
            "options": self.options.to_json(),
            "target": target,
            "data": dict(self.data),
            "priority": self.priority,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Order:
        """The order that ``to_json`` came from."""
        return cls(**{**data, "options": Options.from_json(data["options"])})

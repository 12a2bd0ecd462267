"""What was asked for by name becomes objects: a program, LMs, data, algorithms."""

from __future__ import annotations

import importlib.metadata
import inspect
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import dspy

from ratchet import catalogue
from ratchet.algorithms import NATIVE
from ratchet.algorithms.surrogate import require_torch
from ratchet.core.algorithm import Search
from ratchet.core.errors import BadRequest
from ratchet.core.problem import Example, content_hash
from ratchet.core.request import Constraints, Objective, OptimizationRequest, Target, is_number
from ratchet.guard import clean_examples, clean_rows, clean_splits
from ratchet.options import AUTO, Options
from ratchet.privacy.clean import Cleaner
from ratchet.programs import targets, telemetry
from ratchet.programs.comparisons import FIELD_METRICS
from ratchet.programs.datasets import Row, Splits, assemble, check_examples, dataset_hash, read_rows, to_examples
from ratchet.programs.dspy_program import input_names, output_names
from ratchet.programs.gateway import PACES
from ratchet.programs.identity import agent_identity, program_identity
from ratchet.programs.lm import NamedLM, resolve_lm
from ratchet.programs.metrics import user_metric
from ratchet.programs.remote_algorithm import Address
from ratchet.programs.teleprompter import TELEPROMPTERS
from ratchet.settings import Settings, quiet_libraries


@dataclass(frozen=True, slots=True, kw_only=True)
class Given:
    """What a library caller or the service hands over as objects; a command line has none of it.

    Attributes:
        rows: Rows of a stored data set, by the name of the option whose file they stand for.
        cleaner: Cleans the data, and what is sent to the reflection LM and the judge.
    """

    program: dspy.Module | None = None
    metric: Callable[..., Any] | None = None
    examples: Sequence[Example] | None = None
    splits: Splits | None = None
    rows: Mapping[str, Sequence[Row]] = field(default_factory=dict)
    lm: dspy.BaseLM | None = None
    reflection_lm: dspy.BaseLM | None = None
    algorithms: Mapping[str, Search] = field(default_factory=dict)
    cleaner: Cleaner | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """A request whose every name stands for something."""

    options: Options
    request: OptimizationRequest
    target: targets.Target
    metric: str | Callable[..., Any]
    judge: NamedLM | None
    task: NamedLM | None
    reflection: NamedLM | None
    stand_ins: tuple[NamedLM, ...]
    splits: Splits
    custom: Mapping[str, catalogue.Custom] = field(default_factory=dict)
    gpu_enabled: bool = True
    embedder: str = ""
    cleaner: Cleaner | None = None


def known_algorithms() -> tuple[str, ...]:
    """The names of all built-in algorithms."""
    return tuple(sorted((*NATIVE, *TELEPROMPTERS)))


def prepare(
    options: Options,
    given: Given,
    settings: Settings,
    *,
    splits: Splits | None = None,
    addresses: Mapping[str, Address] = MappingProxyType({}),
) -> Prepared:
    """Resolve every name in ``options``.

    Args:
        splits: The data as an earlier process had split it; None reads and splits the files.
        addresses: Algorithms that were registered with the service.

    Raises:
        UserError: a name, a file or an option cannot be used.
    """
    quiet_libraries()
    if telemetry.observer is None:
        telemetry.observer = telemetry.observer_from(
            metrics=settings.metrics, traces=settings.traces, paces=PACES.snapshots
        )
    _check_ranges(options)
    request = _request(options)
    if "surrogate" in request.algorithms:
        require_torch()
    custom = _custom(request, given, settings, addresses)
    target = (
        targets.Target(module=given.program, text=options.target)
        if given.program is not None
        else targets.resolve_target(options.target, kind=options.module, instructions=options.instructions)
    )
    task = _task_lm(options, given, settings, target.module)
    reflection, *stand_ins = _reflection_lms(options, given, settings) or [task]
    judge = _lm(options.judge_lm, options, settings) if options.judge_lm else None
    if splits is None:
        splits = _splits(options, given, target.module)
    return Prepared(
        options=options,
        request=request,
        target=target,
        metric=given.metric or options.metric,
        judge=judge,
        task=task,
        reflection=reflection,
        stand_ins=tuple(each for each in stand_ins if each is not None),
        splits=splits,
        custom=custom,
        gpu_enabled=settings.gpu_enabled,
        embedder=settings.embedder,
        cleaner=given.cleaner,
    )


def _custom(
    request: OptimizationRequest, given: Given, settings: Settings, addresses: Mapping[str, Address]
) -> dict[str, catalogue.Custom]:
    """The algorithms asked for that are not built in."""
    return {
        name: catalogue.Custom(name=name, source="an object of the caller", search=given.algorithms[name])
        if name in given.algorithms
        else catalogue.find(name, settings, addresses)
        for name in request.algorithms
        if name not in known_algorithms()
    }


def _check_ranges(options: Options) -> None:
    """Refuse what no LM would take, before one is asked."""
    for name, least in (("temperature", 0), ("max_tokens", 1)):
        if (given := getattr(options, name)) is not None and not (is_number(given) and given >= least):
            raise BadRequest(f"{name} is {given!r}; give a number of at least {least}, or leave it out")
    for name in ("lm_timeout", "max_minutes"):
        if (given := getattr(options, name)) is not None and not (is_number(given) and given > 0):
            raise BadRequest(f"{name} is {given!r}; give a number above 0, or leave it out")


def _request(options: Options) -> OptimizationRequest:
    names: list[str] = []
    for name in options.algorithms:
        names += AUTO if name == "auto" else [name]
    return OptimizationRequest(
        target=Target(id=options.target),
        objectives=tuple(
            Objective(metric=name, weight=weight, target_value=dict(options.target_values).get(name))  # type: ignore[arg-type]
            for name, weight in options.objectives
        ),
        algorithms=tuple(names),
        constraints=Constraints(
            max_optimization_time=options.max_minutes * 60,
            min_improvement_threshold=options.min_improvement,
            max_resource_usage=options.max_resource_usage,
            max_calls=options.max_calls,
            max_usd=options.max_usd,
        ),
        seed=options.seed,
        success_at=options.success_at,
        force=options.force,
    )


def _lm(name: str, options: Options, settings: Settings, **more: Any) -> NamedLM:
    return resolve_lm(name, models=settings.models, base=options.lm_base, timeout_seconds=options.lm_timeout, **more)


def _task_lm(options: Options, given: Given, settings: Settings, module: dspy.Module) -> NamedLM | None:
    if options.lm is not None:
        return _lm(options.lm, options, settings, temperature=options.temperature, max_tokens=options.max_tokens)
    lm = given.lm or dspy.settings.lm
    if lm is not None:
        return NamedLM(lm=lm, name=lm.model, identity=lm.model)
    if all(predictor.lm is not None for predictor in module.predictors()):
        return None
    raise BadRequest("no LM was given; say --lm local, --lm openai/gpt-4.1-mini, or --lm NAME --lm-base URL")


def _reflection_lms(options: Options, given: Given, settings: Settings) -> list[NamedLM | None]:
    """The reflection LM and those that stand in for it.

    Only prompts may come from another LM than planned: another task LM or judge in the midst of an optimization would
    mix two things in one number.
    """
    if options.reflection_lm is not None:
        return [_lm(name.strip(), options, settings) for name in options.reflection_lm.split(",")]
    lm = given.reflection_lm
    return [NamedLM(lm=lm, name=lm.model, identity=lm.model)] if lm is not None else []


def _labels_for(metric: str, module: dspy.Module, columns: Collection[str]) -> dict[str, list[str]]:
    """Of ``columns``, the labels that ``metric`` scores, and those of them that must be there in every row."""
    name, _, argument = metric.partition(":")
    parts = [part.strip() for part in argument.split(",")] if name in FIELD_METRICS else []
    named = [part for part in parts if part and "=" not in part]
    scored = [field for field in named or output_names(module) if field in columns]
    one_answer = name in ("exact_match", "f1", "numeric", "contains")
    return {"scored": scored, "required_labels": scored if one_answer else []}


def examples_for(
    module: dspy.Module, rows: Sequence[Row], *, metric: str, rename: Mapping[str, str], file: str | Path
) -> tuple[Example, ...]:
    """Rows as examples for a program; a label that ``metric`` compares must then be there in every row.

    Raises:
        BadData: a row cannot be used.
    """
    columns = {name for row in rows for name in row.fields}.difference(rename.values()) | set(rename)
    labels = _labels_for(metric, module, columns)
    return to_examples(rows, inputs=input_names(module), rename=rename, file=file, **labels)


def check_built(module: dspy.Module, examples: Sequence[Example], *, metric: str, file: str | Path) -> None:
    """Refuse examples built by a caller where ``examples_for`` would refuse the same in rows.

    Raises:
        BadData: an example cannot be used.
    """
    labels = _labels_for(metric, module, {name for example in examples for name in example.labels})
    check_examples(examples, inputs=() if _takes_anything(module) else input_names(module), file=file, **labels)


def _takes_anything(module: dspy.Module) -> bool:
    """Whether the inputs of several predictors stand behind ``**kwargs``: then whoever names inputs knows them best."""
    if hasattr(module, "signature") or len(module.predictors()) < 2:
        return False
    forward = getattr(type(module), "forward", None) or getattr(type(module), "aforward", None)
    kinds = {each.kind for each in inspect.signature(forward).parameters.values()} if forward is not None else set()
    return inspect.Parameter.VAR_KEYWORD in kinds


def _splits(options: Options, given: Given, module: dspy.Module) -> Splits:
    if given.splits is not None:
        return given.splits if given.cleaner is None else clean_splits(given.cleaner, given.splits)
    files = {"data": options.data, "train": options.train, "validation": options.validation, "test": options.test}
    read = {name: (file, read_rows(file)) for name, file in files.items() if file is not None}
    read |= {name: (name, list(rows)) for name, rows in given.rows.items()}
    parts, notes = dict[str, Any](), list[str]()
    for name, (file, rows) in read.items():
        if given.cleaner is not None:
            rows, report = clean_rows(given.cleaner, rows)
            notes.append(f"{name}: {report.told()}")
        parts[name] = examples_for(module, rows, metric=options.metric, rename=dict(options.fields), file=file)
    if given.examples is not None:
        parts["data"] = given.examples
        if given.cleaner is not None:
            parts["data"], report = clean_examples(given.cleaner, given.examples)
            notes.append(f"data: {report.told()}")
    if not parts:
        raise BadRequest("no data was given; say --data FILE, or --train, --validation and --test")
    splits = assemble(**parts, seed=options.seed)
    return replace(splits, notes=(*notes, *splits.notes))


def identities(prepared: Prepared) -> dict[str, Any]:
    """Hashes and versions of all that a result depends on."""
    custom = {name: each.identity for name, each in prepared.custom.items()}
    rubric = prepared.options.rubric
    metric = prepared.metric if isinstance(prepared.metric, str) else user_metric(prepared.metric).name
    return {
        "program": program_identity(prepared.target.module, tune_tools=prepared.options.tune_tools),
        "data": dataset_hash(prepared.splits),
        "task_lm": prepared.task.identity if prepared.task else agent_identity(prepared.target.module),
        "reflection_lm": prepared.reflection.identity if prepared.reflection else None,
        "judge_lm": prepared.judge.identity if prepared.judge else None,
        "metric": metric if rubric is None else f"{metric} by rubric {content_hash(rubric)}",
        "versions": {name: importlib.metadata.version(name) for name in ("dspy-ratchet", "dspy", "gepa", "optuna")},
        **({"algorithms": custom} if custom else {}),
        **({"embedder": prepared.embedder} if "surrogate" in prepared.request.algorithms else {}),
    }

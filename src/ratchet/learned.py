"""What a run begins with of what was learned before, and what it teaches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime

from ratchet.analytics.knowledge import LessonStore, Start, lesson_of, start_of
from ratchet.core.errors import BadRequest
from ratchet.core.evaluation import Evaluation
from ratchet.core.features import TaskFeatures, features_of
from ratchet.core.lesson import Lesson, WarmStart
from ratchet.core.problem import Budget, Problem
from ratchet.core.result import OptimizationResult
from ratchet.engine.hygiene import Guard
from ratchet.engine.optimize import Optimizer
from ratchet.prepare import Prepared
from ratchet.programs.dspy_program import DspyProgram

GUARDED = {"ngram": 5, "least_words": 1}
"""Stricter than in the search, where a word of an example does no harm: a lesson outlives its data."""


def start(prepared: Prepared, program: DspyProgram, lessons: LessonStore, *, identity: str) -> Start:
    """What a new optimization begins with of what its tenant has learned.

    Raises:
        UnknownName: there is no lesson of an optimization it was told to learn from.
        BadRequest: it was told to learn, and not to.
    """
    options, splits = prepared.options, prepared.splits
    asked = [lessons.find(each, options.tenant) for each in options.learn_from]
    can = "portfolio" in prepared.request.algorithms
    if asked and not (can and options.warm_start):
        why = "only `auto` learns from lessons" if not can else "--no-warm-start forbids it"
        raise BadRequest(f"--learn-from {','.join(options.learn_from)} cannot be followed: {why}")
    if not options.warm_start or not can:
        return Start(state="off")
    return start_of(
        identity,
        lessons.lessons(options.tenant),
        _features(prepared, program),
        asked=asked,
        seed=program.seed,
        predictors=program.specs,
        hidden=(*splits.validation, *splits.test),
    )


def lesson(
    prepared: Prepared,
    program: DspyProgram,
    optimizer: Optimizer,
    result: OptimizationResult,
    *,
    warm_start: WarmStart,
    evaluations: Sequence[Evaluation],
) -> Lesson:
    """What an optimization that came to its end has taught."""
    options, splits, seed = prepared.options, prepared.splits, program.seed
    baseline = optimizer.runner.known(seed, optimizer.validation)
    chosen = optimizer.runner.known(result.winner, optimizer.validation) if result.winner else None
    guard = Guard((*splits.train, *splits.validation), seed, **GUARDED)
    return lesson_of(
        result,
        tenant=options.tenant,
        created_at=datetime.now(UTC),
        features=replace(
            _features(prepared, program, baseline=baseline.mean if baseline else None),
            noise=optimizer.preflight.noise if optimizer.preflight else None,
        ),
        warm_start=warm_start,
        bought=optimizer.bought,
        progress=optimizer.progress,
        evaluations=evaluations,
        baseline=baseline.mean if baseline else None,
        chosen=chosen.mean if chosen else None,
        unquoting=None if options.lessons_may_quote else guard.unquoting,
    )


def _features(prepared: Prepared, program: DspyProgram, *, baseline: float | None = None) -> TaskFeatures:
    splits, task = prepared.splits, prepared.task
    problem = Problem(
        seed=program.seed,
        predictors=program.specs,
        train=splits.train,
        validation=splits.validation,
        budget=Budget(runs=0),
        lm=task.name if task else "",
    )
    return features_of(problem, baseline=baseline)

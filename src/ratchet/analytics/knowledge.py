"""The knowledge base: lessons of earlier optimizations, what they advise, and what their advice is worth.

Each optimization leaves a lesson. The next one on a task like it begins with what helped there: instructions, demos,
the order of algorithms. All of it is tried and measured like any other candidate; nothing is taken on trust. In one of
ten optimizations, drawn by its id, lessons are left aside, so that what they are worth can be told from what the tasks
themselves give.
"""

from __future__ import annotations

import math
import random
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, Protocol

from ratchet.core.evaluation import Evaluation
from ratchet.core.features import Advice, TaskFeatures, similarity
from ratchet.core.lesson import Bought, Lesson, Progress, WarmStart
from ratchet.core.problem import Candidate, Example, Fields, PredictorSpec, canonical
from ratchet.core.result import OptimizationResult

HELD_OUT = 0.1
"""Share of the optimizations in which lessons are left aside."""
ALIKE = 0.6
"""Similarity from which a lesson counts."""
MOST_LESSONS = 10
"""The most similar lessons that are asked for the order of algorithms."""
LEFT_ASIDE = "warm start: lessons are left aside here by chance, as in one of ten, to measure what they are worth"
PROMPTS_OF = "prompts of lesson"
"""Origin of a candidate made of a lesson, before the lesson's id."""
MOST_CANDIDATES = 3
"""Candidates made of lessons; each costs a validation at most."""
DEFAULT_TENANT = "default"


class LessonStore(Protocol):
    """Where lessons are kept. A tenant sees its own only."""

    def keep(self, lesson: Lesson) -> None:
        """Keep a lesson; one with the same id and tenant is replaced."""

    def lessons(self, tenant: str, *, limit: int = 500, before: tuple[str, str] | None = None) -> list[Lesson]:
        """The newest first, those older than ``before`` (time and id)."""

    def find(self, lesson_id: str, tenant: str) -> Lesson:
        """One lesson; a unique beginning of its id will do.

        Raises:
            UnknownName: there is none, or more than one.
        """

    def forget(self, tenant: str, *, lesson_id: str | None = None) -> int:
        """Remove one lesson, or all of a tenant; how many that were.

        Raises:
            UnknownName: there is no such lesson.
        """


# What lessons advise


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """How an optimization begins, as it is stored with it.

    Attributes:
        state: Whether lessons are used.
        advice: What they say; nothing to try unless they are used.
    """

    state: WarmStart
    advice: Advice = field(default_factory=Advice)

    def to_json(self) -> dict[str, Any]:
        """The start as JSON data."""
        return {
            "state": self.state,
            "order": list(self.advice.order),
            "why": list(self.advice.why),
            "candidates": [
                {"state": each.state(), "parents": list(each.parents), "origin": each.origin}
                for each in self.advice.candidates
            ],
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any] | None) -> Start:
        """The start that ``to_json`` came from; one without lessons where there was none."""
        if data is None:
            return cls(state="off")
        candidates = (
            Candidate.from_state(each["state"], parents=each["parents"], origin=each["origin"])
            for each in data["candidates"]
        )
        advice = Advice(candidates=tuple(candidates), order=tuple(data["order"]), why=tuple(data["why"]))
        return cls(state=data["state"], advice=advice)


def is_held_out(optimization_id: str) -> bool:
    """Whether this optimization leaves lessons aside; one in ten does, and always the same."""
    return random.Random(f"warm start/{optimization_id}").random() < HELD_OUT


def start_of(
    optimization_id: str,
    lessons: Sequence[Lesson],
    features: TaskFeatures,
    *,
    seed: Candidate,
    predictors: Sequence[PredictorSpec],
    hidden: Sequence[Example] = (),
    asked: Sequence[Lesson] = (),
) -> Start:
    """How an optimization begins, given the lessons of its tenant.

    Args:
        optimization_id: Decides whether it is held out.
        lessons: What is known.
        features: Its task.
        seed: Its program as it is.
        predictors: The program's predictors.
        hidden: Validation and test examples: no demo that shows one of them is taken over.
        asked: Lessons that were asked for; with these it is never held out.
    """
    advice = advise(lessons, features, seed=seed, predictors=predictors, hidden=hidden, asked=asked)
    if not advice.candidates and not advice.order:
        return Start(state="nothing known")
    if is_held_out(optimization_id) and not asked:
        return Start(state="held out", advice=Advice(why=(LEFT_ASIDE,)))
    return Start(state="on", advice=advice)


def advise(
    lessons: Sequence[Lesson],
    features: TaskFeatures,
    *,
    seed: Candidate,
    predictors: Sequence[PredictorSpec],
    hidden: Sequence[Example] = (),
    asked: Sequence[Lesson] = (),
) -> Advice:
    """What the lessons that are most like the task advise, and before them those that were asked for."""
    alike = sorted(
        ((similarity(features, each.features), each) for each in lessons),
        key=lambda pair: (-pair[0], -(pair[1].validation_gain or 0.0), pair[1].id),
    )
    alike = [(how, each) for how, each in alike if how >= ALIKE][:MOST_LESSONS]
    found: dict[str, Candidate] = {}
    why = []
    first = [(similarity(features, each.features), each) for each in asked]
    for how, lesson in [*first, *alike]:
        candidate = _fitted(lesson, seed, predictors, hidden)
        if candidate is None or candidate.key in found or len(found) >= max(MOST_CANDIDATES, len(asked)):
            continue
        found[candidate.key] = candidate
        why.append(f"warm start: {candidate.origin} ({how:.0%} alike; it gained {lesson.validation_gain:+.3f} there)")
    order, rates = _order(alike)
    if order:
        told = ", ".join(f"{name} {1000 * rates[name]:+.2f}" for name in order)
        why.append(f"warm start: gain in 1000ths per run on {len(alike)} tasks like this one: {told}")
    return Advice(candidates=tuple(found.values()), order=tuple(order), why=tuple(why))


def _order(alike: Sequence[tuple[float, Lesson]]) -> tuple[list[str], dict[str, float]]:
    """Algorithms that gained, the highest gain per run first; each lesson counts as it is alike."""
    gains: dict[str, float] = defaultdict(float)
    runs: dict[str, float] = defaultdict(float)
    for how, lesson in alike:
        for each in (each for each in lesson.progress if each.algorithm != "lessons"):
            gains[each.algorithm] += how * each.gain
            runs[each.algorithm] += how * each.runs
    rates = {name: gains[name] / runs[name] for name in gains if runs[name] > 0 and gains[name] > 0}
    return sorted(rates, key=lambda name: (-rates[name], name)), rates


def _fitted(
    lesson: Lesson, seed: Candidate, predictors: Sequence[PredictorSpec], hidden: Sequence[Example]
) -> Candidate | None:
    """The prompts of a lesson on this program; None where it taught none that fit."""
    if not lesson.validation_gain or lesson.validation_gain <= 0:
        return None
    names = list(seed.predictors)
    taught = list(dict.fromkeys((*lesson.instructions, *lesson.demos)))
    if len(names) == 1 and len(taught) == 1:
        place = {names[0]: taught[0]}
    else:
        place = {name: name for name in names if name in taught}
    changed = {}
    for spec in predictors:
        if spec.name not in place:
            continue
        state, source = seed.predictors[spec.name], place[spec.name]
        demos = [each for each in lesson.demos.get(source, ()) if _fits(each, spec) and not _shows(each, spec, hidden)]
        instructions = lesson.instructions.get(source, state.instructions)
        changed[spec.name] = replace(state, instructions=instructions, demos=tuple(demos) or state.demos)
    if not changed:
        return None
    child = seed.with_predictors(changed, origin=f"{PROMPTS_OF} {lesson.id}")
    return None if child == seed else child


def _fits(demo: Fields, spec: PredictorSpec) -> bool:
    outputs = {each.name for each in spec.outputs}
    return outputs - {"reasoning"} <= demo.keys() <= outputs | {each.name for each in spec.inputs}


def _shows(demo: Fields, spec: PredictorSpec, hidden: Sequence[Example]) -> bool:
    """Whether the inputs of ``demo`` are those of a hidden example."""
    shown = {each.name: demo[each.name] for each in spec.inputs if each.name in demo}
    return any(canonical({name: example.fields.get(name) for name in shown}) == canonical(shown) for example in hidden)


# What was learned


def lesson_of(
    result: OptimizationResult,
    *,
    tenant: str,
    created_at: datetime,
    features: TaskFeatures,
    warm_start: WarmStart,
    bought: Sequence[Bought],
    progress: Sequence[Progress],
    evaluations: Sequence[Evaluation],
    baseline: float | None,
    chosen: float | None,
    unquoting: Callable[[Candidate], Candidate | None] | None,
) -> Lesson:
    """The lesson of a result.

    Args:
        result: What came out.
        tenant: Whose it is.
        created_at: When.
        features: The task.
        warm_start: Whether lessons were used.
        bought: What each edit bought.
        progress: What each algorithm brought.
        evaluations: All that were made.
        baseline: Mean validation score of the program as it was.
        chosen: That of the chosen candidate; None where there is none.
        unquoting: Takes what quotes examples out of a candidate (None where nothing is left); None lets all be kept.
    """
    gained = 0.0 if result.winner is None else None if chosen is None or baseline is None else chosen - baseline
    instructions: dict[str, str] = {}
    demos: dict[str, tuple[Fields, ...]] = {}
    if result.winner is not None and result.baseline is not None and gained is not None and gained > 0:
        shown = result.winner if unquoting is None else unquoting(result.winner)
        for name, state in shown.predictors.items() if shown is not None else ():
            if state.instructions != result.baseline.predictors[name].instructions:
                instructions[name] = state.instructions
            if unquoting is None and state.demos:
                demos[name] = state.demos
    failures: dict[str, int] = defaultdict(int)
    for row in evaluations:
        if row.failure is not None:
            failures[row.failure.kind] += 1
    spend = result.optimization_details.spend
    proven = result.comparison.effect if result.comparison else 0.0 if result.winner is None else None
    return Lesson(
        id=result.optimization_id,
        tenant=tenant,
        created_at=created_at,
        features=features,
        status=result.status,
        warm_start=warm_start,
        baseline=baseline,
        validation_gain=gained,
        gain=proven,
        bought=tuple(bought),
        progress=tuple(progress),
        failures=dict(failures),
        instructions=instructions,
        demos=demos,
        calls=spend.calls,
        usd=spend.usd,
        seconds=spend.seconds,
    )


# What it is worth


@dataclass(frozen=True, slots=True, kw_only=True)
class Uplift:
    """How much more optimizations gain with lessons than without, on the sealed test.

    Attributes:
        effect: Mean gain with lessons minus mean gain of those held out; None where one of them is missing.
        interval: 95 % interval of it (Welch); None with fewer than two of either.
        warm: Optimizations that used lessons.
        held_out: Optimizations that could have, and were held out by chance.
    """

    effect: float | None
    interval: tuple[float, float] | None
    warm: int
    held_out: int


def uplift(lessons: Sequence[Lesson]) -> Uplift:
    """The measured worth of warm starts."""
    warm = [each.gain for each in lessons if each.warm_start == "on" and each.gain is not None]
    cold = [each.gain for each in lessons if each.warm_start == "held out" and each.gain is not None]
    if not warm or not cold:
        return Uplift(effect=None, interval=None, warm=len(warm), held_out=len(cold))
    effect = sum(warm) / len(warm) - sum(cold) / len(cold)
    return Uplift(effect=effect, interval=_welch(effect, warm, cold), warm=len(warm), held_out=len(cold))


def _welch(effect: float, a: Sequence[float], b: Sequence[float]) -> tuple[float, float] | None:
    """Welch's 95 % interval of a difference of means; None where the spread is not known."""
    if min(len(a), len(b)) < 2:
        return None
    parts = [sum((x - sum(each) / len(each)) ** 2 for x in each) / (len(each) - 1) / len(each) for each in (a, b)]
    total = sum(parts)
    if total == 0:
        return None
    freedom = total**2 / (parts[0] ** 2 / (len(a) - 1) + parts[1] ** 2 / (len(b) - 1))
    from scipy.special import stdtrit  # it takes most of a second to load

    half = float(stdtrit(freedom, 0.975)) * math.sqrt(total)
    return (effect - half, effect + half)

"""Commands about lessons."""

from __future__ import annotations

from rich.markup import escape

from ratchet.analytics.knowledge import LessonStore, uplift
from ratchet.bootstrap import open_archive
from ratchet.cli import render, work
from ratchet.cli.errors import say
from ratchet.core.lesson import Lesson
from ratchet.settings import Settings
from ratchet.storage.lessons import SqlLessons


def _store(settings: Settings) -> LessonStore:
    return SqlLessons(open_archive(settings))


def list_(*, tenant: str, limit: int, as_json: bool, settings: Settings) -> None:
    """The lessons of a tenant, and the uplift of warm starts over all of them."""
    known = _store(settings).lessons(tenant)
    worth = uplift(known)
    if as_json:
        work.print_json(
            {
                "lessons": [each.to_json() for each in known[:limit]],
                "uplift": {
                    "effect": worth.effect,
                    "interval": worth.interval,
                    "warm": worth.warm,
                    "held_out": worth.held_out,
                },
            }
        )
        return
    if not known:
        say(f"tenant {tenant} has no lessons yet; each optimization leaves one")
        return
    for each in known[:limit]:
        gain = "not measured" if each.gain is None else f"{each.gain:+.3f}"
        fields = f"{', '.join(each.features.inputs)} -> {', '.join(each.features.outputs)}"
        render.show(
            f"{each.id:<14}{each.status:<16}{gain:<14}warm start {each.warm_start:<15}{each.calls:>6} calls  "
            f"{escape(fields)}"
        )
    render.show(f"warm start: {_said(worth.effect, worth.interval)} (n = {worth.warm} with, {worth.held_out} held out)")


def _said(effect: float | None, interval: tuple[float, float] | None) -> str:
    if effect is None:
        return "what it is worth was not measured yet"
    if interval is None:
        return f"{effect:+.3f} on the sealed test, too few to tell how sure that is"
    return f"{effect:+.3f} \\[{interval[0]:+.3f}, {interval[1]:+.3f}] on the sealed test"


def show(identity: str, *, tenant: str, as_json: bool, settings: Settings) -> None:
    """One lesson."""
    lesson = _store(settings).find(identity, tenant)
    if as_json:
        work.print_json(lesson.to_json())
        return
    for line in lines(lesson):
        render.show(escape(line))


def lines(lesson: Lesson) -> list[str]:
    """A lesson in words."""
    task, gain = lesson.features, "not measured" if lesson.gain is None else f"{lesson.gain:+.3f}"
    usd = "unknown dollars" if lesson.usd is None else render.usd(lesson.usd)
    return [
        f"{lesson.id}  {lesson.status}, {gain} on the sealed test; {lesson.calls} calls, {usd}, {lesson.seconds:.0f} s",
        f"task: {', '.join(task.inputs)} -> {', '.join(task.outputs)} ({task.output}), {task.predictors} predictors, "
        f"{task.train} training examples, LM {task.lm or 'unknown'}",
        f"warm start: {lesson.warm_start}",
        *(f"edit: {each}" for each in lesson.bought),
        *(f"{each.algorithm}: {each.runs} runs, {each.gain:+.3f}" for each in lesson.progress),
        *(f"failed runs: {count} {kind}" for kind, count in lesson.failures.items()),
        *(f"instructions of {name}: {text}" for name, text in lesson.instructions.items()),
        *(f"demos of {name}: {len(demos)}" for name, demos in lesson.demos.items()),
    ]


def forget(identity: str | None, *, tenant: str, as_json: bool, settings: Settings) -> None:
    """Lessons that are gone."""
    gone = _store(settings).forget(tenant, lesson_id=identity)
    if as_json:
        work.print_json({"forgotten": gone})
    else:
        say(f"{gone} lessons of tenant {tenant} were removed")

"""Commands about lessons."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice

from rich.markup import escape

from ratchet.analytics.knowledge import uplift
from ratchet.bootstrap import open_archive
from ratchet.cli import render, work
from ratchet.cli.errors import say
from ratchet.cli.remote.connection import by_beginning, check_tenant, client_of
from ratchet.client import Client
from ratchet.core.lesson import Lesson
from ratchet.settings import Settings
from ratchet.storage.lessons import SqlLessons


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerLessons:
    """Lessons that a server keeps, asked as those in a database are; the tenant is that of the key."""

    client: Client

    def lessons(self, tenant: str, *, limit: int = 500) -> list[Lesson]:
        """The newest first."""
        return [Lesson.from_json(each) for each in islice(self.client.lessons(), limit)]

    def find(self, lesson_id: str, tenant: str) -> Lesson:
        """One lesson; a unique beginning of its id will do."""
        return Lesson.from_json(by_beginning(lesson_id, self.client.lesson, self.client.lessons))

    def forget(self, tenant: str, *, lesson_id: str | None = None) -> int:
        """Remove one lesson, or all; how many that were."""
        gone = (
            [each["id"] for each in self.client.lessons()] if lesson_id is None else [self.find(lesson_id, tenant).id]
        )
        for each in gone:
            self.client.forget_lesson(each)
        return len(gone)


@contextmanager
def _store(tenant: str, settings: Settings) -> Iterator[ServerLessons | SqlLessons]:
    """Where lessons are: on a server, or in the database here."""
    if settings.server:
        check_tenant(tenant)
        with client_of(settings) as client:
            yield ServerLessons(client=client)
    else:
        yield SqlLessons(open_archive(settings))


def _whose(tenant: str, settings: Settings) -> str:
    return f"your tenant on {settings.server}" if settings.server else f"tenant {tenant}"


def list_(*, tenant: str, limit: int, as_json: bool, settings: Settings) -> None:
    """The lessons of a tenant, and the uplift of warm starts over all of them."""
    with _store(tenant, settings) as store:
        known = store.lessons(tenant)
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
        say(f"{_whose(tenant, settings)} has no lessons yet; each optimization leaves one")
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
    with _store(tenant, settings) as store:
        lesson = store.find(identity, tenant)
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
    with _store(tenant, settings) as store:
        gone = store.forget(tenant, lesson_id=identity)
    if as_json:
        work.print_json({"forgotten": gone})
    else:
        say(f"{gone} lessons of {_whose(tenant, settings)} were removed")

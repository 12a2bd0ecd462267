"""Commands that only read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.markup import escape

from ratchet.algorithms import NATIVE
from ratchet.catalogue import AddressBook, listed
from ratchet.cli import render, work
from ratchet.cli.errors import say
from ratchet.cli.front import front_view
from ratchet.contest import KIND, Contest
from ratchet.core.errors import UnknownName
from ratchet.core.result import Front, OptimizationResult
from ratchet.engine.archive import Optimization
from ratchet.engine.report import Side
from ratchet.options import AUTO, Options
from ratchet.programs.lm import LOCAL_MODELS
from ratchet.programs.remote_algorithm import Address, AllowedHosts
from ratchet.programs.teleprompter import TELEPROMPTERS
from ratchet.publish import measured, prompt_diff
from ratchet.publish import verify as check
from ratchet.settings import Settings

Sides = Callable[[OptimizationResult, Options], tuple[Side, Side]]
"""Measures baseline and chosen candidate on the sealed test."""


def list_(*, limit: int, as_json: bool, settings: Settings) -> None:
    """Optimizations and evaluations, the newest first."""
    archive = work.archive_if_there(settings)
    found = archive.list(limit=limit) if archive else []
    show_list(found, as_json=as_json, none=f"nothing is stored in {settings.home} yet; `ratchet demo` makes a start")


def show_list(found: Sequence[Optimization], *, as_json: bool, none: str) -> None:
    """Optimizations as a table, or JSON; ``none`` is said when there are none."""
    if as_json:
        work.print_json([asdict(each) for each in found])
    elif found:
        render.show(render.list_view(found))
    else:
        say(none)


def show(identity: str, *, diff: bool, front: bool, as_json: bool, settings: Settings) -> None:
    """One optimization."""
    archive = work.archive_if_there(settings)
    if archive is None:
        raise UnknownName(f"there is no optimization with id {identity!r}: nothing is stored in {settings.home}")
    stored = archive.find(identity)

    def sides(result: OptimizationResult, options: Options) -> tuple[Side, Side]:
        return measured(archive.open(stored.id), result, options)

    again = f"ratchet resume {stored.id}"
    show_stored(stored, diff=diff, front=front, as_json=as_json, sides=sides, again=again)


def show_stored(stored: Optimization, *, diff: bool, front: bool, as_json: bool, sides: Sides, again: str) -> None:
    """One optimization, wherever it is stored; ``again`` is the command by which it goes on."""
    if stored.request.get("kind") == KIND and stored.result is not None and not as_json:
        render.show(render.contest_view(Contest.from_json(stored.result)))
        return
    whole = stored.result is not None and "optimization_id" in stored.result
    result = OptimizationResult.from_json(stored.result) if whole and stored.result else None
    changes = prompt_diff(result.baseline, result.winner) if result and result.baseline and result.winner else {}
    if front:
        _show_front(stored, result, as_json=as_json)
    elif as_json:
        work.print_json({**asdict(stored), **({"diff": changes} if diff else {})})
    elif diff:
        if not changes:
            say(f"{stored.id} ({stored.status}) chose no other prompts, so there is nothing to compare")
        render.show(render.diff_view(changes))
    elif result is not None:
        options = Options.from_json(stored.request["options"])
        render.show(f"{stored.id}  {escape(options.target)}")
        render.show(render.result_view(result, sides(result, options)))
    else:
        render.show(_unfinished(stored, again))


def _show_front(stored: Optimization, result: OptimizationResult | None, *, as_json: bool) -> None:
    front = Front() if result is None else result.front
    if as_json:
        work.print_json({"id": stored.id, "status": stored.status, "front": asdict(front)})
    elif result is None or not front.points:
        say(f"{stored.id} ({stored.status}) validated nothing besides the baseline, so there is no front")
    else:
        render.show(f"{stored.id}  {escape(stored.request['options']['target'])}")
        render.show(front_view(front, chosen=result.winner, baseline=result.baseline))


def _unfinished(stored: Optimization, again: str) -> str:
    lines = [f"{stored.id}  {escape(stored.request['options']['target'])}"]
    lines.append(f"{render.VERDICTS.get(stored.status, stored.status)} {escape(stored.error)}".rstrip())
    if stored.status == "evaluated" and stored.result:
        lines.append(f"quality {stored.result['baseline_performance']['quality_score']:.3f}")
    else:
        lines.append(f"go on with: {again}")
    return "\n".join(lines)


def verify(path: Path, *, as_json: bool, settings: Settings) -> None:
    """A certificate, checked."""
    verdict = check(path, work.archive_if_there(settings))
    if as_json:
        work.print_json(verdict.to_json())
        return
    comparison = verdict.comparison
    low, high = comparison.interval
    render.show(f"[bold green]holds[/]: {verdict.optimization_id}, {render.VERDICTS[verdict.status]}")
    render.show(
        f"effect {comparison.effect:+.3f} \\[{low:+.3f}, {high:+.3f}], p = {comparison.p_value:.4g}, n = {comparison.n}"
    )
    for line in verdict.checked:
        render.show(f"  checked: {escape(line)}")
    for line in verdict.unchecked:
        render.show(f"  not checked: {escape(line)}")
    render.show(f"signed by the holder of {verdict.public_key}")


def algorithms(*, as_json: bool, settings: Settings) -> None:
    """The catalogue. What packages bring is listed and not imported."""
    found: list[dict[str, Any]] = [{"name": "auto", "kind": "choice", "what": f"{' then '.join(AUTO)}"}]
    for name, search in sorted(NATIVE.items()):
        module = __import__(search.__module__, fromlist=["__doc__"])
        found.append({"name": name, "kind": "native", "what": _first_sentence(module.__doc__)})
    for name in TELEPROMPTERS:
        found.append({"name": name, "kind": "DSPy", "what": "DSPy's own, under Ratchet's budget and sealed test"})
    found += listed(settings)
    if as_json:
        work.print_json(found)
        return
    for each in found:
        render.show(f"{each['name']:<30} {each['kind']:<8} {escape(each['what'])}")


def add_algorithm(name: str, url: str, secret_env: str | None, settings: Settings) -> None:
    """A name for an algorithm behind a URL."""
    AllowedHosts.from_text(settings.algorithm_hosts).check(url)
    AddressBook(settings.home).add(name, Address(url=url, secret_env=secret_env))
    say(f"{name} stands for {url}; try it with: ratchet algorithms check {name}")


def remove_algorithm(name: str, settings: Settings) -> None:
    """A name that stands for nothing any more."""
    AddressBook(settings.home).remove(name)


def _first_sentence(text: str | None) -> str:
    return " ".join((text or "").split("\n\n")[0].split())


def models(*, as_json: bool, settings: Settings) -> None:
    """Local models."""
    found = [
        {
            "name": name,
            "here": (settings.models / model.file).is_file(),
            "path": str(settings.models / model.file),
            "license": model.license,
        }
        for name, model in LOCAL_MODELS.items()
    ]
    if as_json:
        work.print_json(found)
        return
    for each in found:
        state = each["path"] if each["here"] else f"not here; ratchet models pull {each['name']}"
        render.show(f"{each['name']:<20} {each['license']:<12} {state}")

"""``ratchet.optimize`` and ``ratchet.compare``: the commands, as calls."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import dspy

from ratchet.begin import new_run
from ratchet.bootstrap import open_archive
from ratchet.carry_out import carry_out
from ratchet.catalogue import a_search
from ratchet.contest import Contest, contest
from ratchet.core.algorithm import Search
from ratchet.core.errors import BadData, BadRequest
from ratchet.core.problem import Example
from ratchet.core.request import objectives_of
from ratchet.core.result import OptimizationResult
from ratchet.engine.archive import Event
from ratchet.options import Options
from ratchet.prepare import Given, check_built, examples_for
from ratchet.programs.datasets import Row, assemble, read_rows
from ratchet.programs.dspy_program import plain
from ratchet.publish import check_folder, final_program
from ratchet.run import Run
from ratchet.settings import Settings

Data = str | Path | Iterable[dspy.Example | Mapping[str, Any]]
"""A file, or examples: ``dspy.Example`` with its inputs set, or plain mappings."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome(OptimizationResult):
    """The result, with the program to use from now on.

    Attributes:
        program: The improved program when the gain was proven, else a copy of the one given.
        files: What was written, when a folder was given.
    """

    program: dspy.Module
    files: tuple[Path, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The result as JSON data; without the program, whose prompts are in ``winner``."""
        return {
            name: value for name, value in OptimizationResult.to_json(self).items() if name not in ("program", "files")
        }


def optimize(
    program: dspy.Module,
    data: Data | None = None,
    *,
    metric: str | Callable[..., Any],
    lm: str | dspy.BaseLM | None = None,
    reflection_lm: str | dspy.BaseLM | None = None,
    algorithm: str | Search | Sequence[str | Search] = "auto",
    max_calls: int | None = None,
    max_usd: float | None = None,
    max_minutes: float = 120.0,
    train: Data | None = None,
    validation: Data | None = None,
    test: Data | None = None,
    seed: int = 0,
    out: str | Path | None = None,
    on_event: Callable[[Event], None] | None = None,
    **options: Any,
) -> Outcome:
    """The outcome of one optimization: a better program with its proof, or none and the reason.

    Works where an event loop runs already, as in a notebook. ``program`` itself is never changed.

    Args:
        program: What to make better.
        data: Examples, split here into train, validation and sealed test; or give the three splits.
        metric: A name such as ``exact_match``, or a function in DSPy's metric signature; higher is better.
        lm: Task LM, an object or a name; by default ``dspy.settings.lm``.
        reflection_lm: Writes prompts; by default the task LM.
        algorithm: ``auto``, names with commas between them (of ``ratchet algorithms``, of a file's function or a URL),
            a function of your own, or a sequence of names and functions.
        max_calls: LM calls in all, never passed.
        max_usd: Dollars in all, never passed.
        max_minutes: Wall time in all.
        train: Examples to learn from.
        validation: Examples to choose by.
        test: Examples for the proof; no algorithm sees them.
        seed: Seeds the splits, the search and the statistics.
        out: Folder for result, program, certificate and report.
        on_event: Told of what happens, from any thread.
        **options: Further fields of ``ratchet.options.Options``.

    Raises:
        UserError: something given cannot be used.
        RatchetError: the optimization failed, or was stopped.
    """
    folder = None if out is None else Path(out)
    if folder is not None:
        check_folder(folder)
    given, asked = task_of(
        program,
        {"data": data, "train": train, "validation": validation, "test": test},
        metric=metric,
        lm=lm,
        reflection_lm=reflection_lm,
        algorithms=named_each(algorithm),
        seed=seed,
        max_calls=max_calls,
        max_usd=max_usd,
        max_minutes=max_minutes,
        **options,
    )
    settings = Settings()
    archive = open_archive(settings)
    try:
        run = new_run(asked, given, settings, archive, emit=on_event or (lambda event: None))
        try:
            result, files = carry_out(run, folder, settings=settings, warn=warnings.warn, rebuildable=False)
        except KeyboardInterrupt:
            run.cancel()  # in a notebook the work goes on in a thread of its own
            raise
        parts = {each.name: getattr(result, each.name) for each in fields(OptimizationResult)}
        return Outcome(**parts, program=final_program(run, result), files=files)
    finally:
        archive.close()


def compare(
    program: dspy.Module,
    data: Data | None = None,
    *,
    algorithms: Sequence[str | Search],
    metric: str | Callable[..., Any],
    lm: str | dspy.BaseLM | None = None,
    reflection_lm: str | dspy.BaseLM | None = None,
    max_calls: int | None = None,
    max_usd: float | None = None,
    max_minutes: float = 120.0,
    train: Data | None = None,
    validation: Data | None = None,
    test: Data | None = None,
    seed: int = 0,
    on_event: Callable[[str, Event], None] | None = None,
    **options: Any,
) -> Contest:
    """Algorithms side by side on one task: each its own optimization, then one sealed test for all.

    Called again with the same arguments it goes on where it stopped.

    Args:
        algorithms: What ``optimize`` takes as ``algorithm``, one per contender.
        max_calls, max_usd, max_minutes: The budget of each.
        on_event: Told of what happens, with the contender's name, from any thread.

    All other arguments are those of ``optimize``.

    Raises:
        UserError: something given cannot be used.
        RatchetError: the world failed, it was stopped, or no algorithm came to a result.
    """
    given, asked = task_of(
        program,
        {"data": data, "train": train, "validation": validation, "test": test},
        metric=metric,
        lm=lm,
        reflection_lm=reflection_lm,
        algorithms=algorithms,
        seed=seed,
        max_calls=max_calls,
        max_usd=max_usd,
        max_minutes=max_minutes,
        **options,
    )
    settings = Settings()
    archive = open_archive(settings)

    def carry(name: str, run: Run) -> OptimizationResult:
        if on_event is not None:
            run.listen(partial(on_event, name))
        try:
            return carry_out(run, None, settings=settings, warn=warnings.warn, rebuildable=False)[0]
        except KeyboardInterrupt:
            run.cancel()  # in a notebook the work goes on in a thread of its own
            raise

    try:
        return contest(asked, asked.algorithms, given, settings, archive, carry=carry)
    finally:
        archive.close()


def task_of(
    program: dspy.Module,
    data: Mapping[str, Data | None],
    *,
    metric: str | Callable[..., Any],
    lm: str | dspy.BaseLM | None,
    reflection_lm: str | dspy.BaseLM | None,
    algorithms: Sequence[str | Search],
    seed: int,
    **options: Any,
) -> tuple[Given, Options]:
    """What the engine takes, from what a caller gave.

    Raises:
        UserError: something given cannot be used.
    """
    if not isinstance(program, dspy.Module):
        raise BadRequest(f"the program is of type {type(program).__name__}; give a dspy.Module")
    searches = {_name(each): a_search(each, _name(each)) for each in algorithms if not isinstance(each, str)}
    given = Given(
        program=program,
        metric=metric if callable(metric) else None,
        splits=assemble(
            data=_examples(data["data"], program, metric, "data"),
            train=_examples(data["train"], program, metric, "train"),
            validation=_examples(data["validation"], program, metric, "validation"),
            test=_examples(data["test"], program, metric, "test"),
            seed=seed,
        ),
        lm=None if isinstance(lm, str) else lm,
        reflection_lm=None if isinstance(reflection_lm, str) else reflection_lm,
        algorithms=searches,
    )
    asked = _options(
        {
            "target": f"{type(program).__module__}:{type(program).__qualname__}",
            "metric": "" if callable(metric) else metric,
            "algorithms": tuple(each if isinstance(each, str) else _name(each) for each in algorithms),
            "lm": lm if isinstance(lm, str) else None,
            "reflection_lm": reflection_lm if isinstance(reflection_lm, str) else None,
            "seed": seed,
            **options,
        }
    )
    return given, asked


def named_each(algorithm: str | Search | Sequence[str | Search]) -> Sequence[str | Search]:
    """The algorithms, one by one, of what may be one, several, or names with commas between them."""
    if isinstance(algorithm, str):
        return [name.strip() for name in algorithm.split(",")]
    return algorithm if isinstance(algorithm, Sequence) else [algorithm]


def _name(search: Any) -> str:
    """What a function is called in results."""
    of_class = type(search)
    return (
        f"{getattr(search, '__module__', of_class.__module__)}:{getattr(search, '__qualname__', of_class.__qualname__)}"
    )


def _options(values: Mapping[str, Any]) -> Options:
    known = [each.name for each in fields(Options)]
    if unknown := [name for name in values if name not in known]:
        raise BadRequest(f"there is no option {unknown[0]!r}; there are {', '.join(known)}")
    given = {"objectives": objectives_of(values["objectives"])} if "objectives" in values else {}
    return Options(**{**values, **given})


def _examples(
    data: Data | None, program: dspy.Module, metric: str | Callable[..., Any], name: str
) -> tuple[Example, ...] | None:
    """Examples in Ratchet's own form, or None when nothing was given."""
    if data is None:
        return None
    named = metric if isinstance(metric, str) else ""
    if isinstance(data, str | Path):
        return examples_for(program, read_rows(data), metric=named, rename={}, file=data)
    rows: list[Any] = list(data)
    if not rows:
        raise BadData(f"{name}: there are no examples in it")
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dspy.Example | Mapping):
            kind = type(row).__name__
            raise BadData(f"{name}, example {number}: a {kind} is no example; give dspy.Example or a mapping")
    if all(isinstance(row, dspy.Example) and row._input_keys for row in rows):
        built = tuple(Example(inputs=plain(row.inputs().toDict()), labels=plain(row.labels().toDict())) for row in rows)
        check_built(program, built, metric=named, file=name)
        return built
    plain_rows = [Row(number=number, fields=plain(dict(row.items()))) for number, row in enumerate(rows, 1)]
    return examples_for(program, plain_rows, metric=named, rename={}, file=name)

"""``ratchet.optimize_family``: related programs in turn, what one taught tried on the others."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from inspect import signature
from typing import Any

from ratchet.analytics.knowledge import DEFAULT_TENANT, PROMPTS_OF
from ratchet.begin import tried_run
from ratchet.bootstrap import open_archive
from ratchet.core.errors import BadRequest, UserError
from ratchet.core.result import OptimizationResult
from ratchet.core.statistics import Comparison, compare_paired
from ratchet.engine.archive import Notebook
from ratchet.guard import guarded
from ratchet.library import Outcome, named_each, optimize, task_of
from ratchet.options import Options
from ratchet.prepare import Given
from ratchet.settings import Settings
from ratchet.storage.algorithms import addresses


@dataclass(frozen=True, slots=True, kw_only=True)
class Transfer:
    """What one member's prompts did for another.

    Attributes:
        source: The member they were found for.
        target: The member they were tried on.
        gain: The target's score with them minus that of its own program, paired on validation examples; None where
            fewer than two were run. A race stops what is losing, so that n differs.
        kept: Whether the target's chosen prompts are these or descend from them.
    """

    source: str
    target: str
    gain: Comparison | None
    kept: bool

    def __str__(self) -> str:
        kept = "kept" if self.kept else "not kept"
        if self.gain is None:
            return f"{self.source} to {self.target}: not measured, {kept}"
        low, high = self.gain.interval
        return (
            f"{self.source} to {self.target}: {self.gain.effect:+.3f} [{low:+.3f}, {high:+.3f}] on {self.gain.n} "
            f"validation examples, {kept}"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """The outcomes by name, and every transfer that was tried."""

    outcomes: Mapping[str, Outcome]
    transfers: tuple[Transfer, ...]


def optimize_family(members: Mapping[str, Mapping[str, Any]], *, max_calls: int | None = None, **shared: Any) -> Family:
    """Optimize related programs in turn; what each taught is tried on those after it and kept where it helps.

    The first learns nothing from the later ones: its sealed test was opened by then.

    Args:
        members: For each name what ``ratchet.optimize`` takes: program, data, metric.
        max_calls: LM calls for all of them together: each gets an equal share of what is left; None for no limit.
        **shared: What ``ratchet.optimize`` takes besides, the same for all.

    Raises:
        UserError: something given for one of them cannot be used, or they cannot learn from each other; nothing was
            paid then.
        RatchetError: an optimization failed, or was stopped; those before it are stored.
    """
    if len(members) < 2:
        raise BadRequest(f"a family has at least 2 members, not {len(members)}; use ratchet.optimize for one")
    if max_calls is not None and max_calls < len(members):
        raise BadRequest(f"max_calls is {max_calls}, less than one call for each of {len(members)} members")
    shared, members = _lasting(shared), {name: _lasting(asked) for name, asked in members.items()}
    _check({name: {**shared, "max_calls": max_calls, **asked} for name, asked in members.items()})
    outcomes: dict[str, Outcome] = {}
    transfers: list[Transfer] = []
    taught: dict[str, str] = {}
    left = max_calls
    for place, (name, asked) in enumerate(members.items()):
        share = None if left is None else left // (len(members) - place)
        outcome = optimize(**{**shared, "max_calls": share, "learn_from": tuple(taught), **asked})
        if left is not None:
            left -= outcome.optimization_details.spend.calls
        outcomes[name] = outcome
        archive = open_archive(Settings())
        try:
            transfers += transfers_in(archive.open(outcome.optimization_id), outcome, name, taught)
        finally:
            archive.close()
        if outcome.status in ("improved", "no_proven_gain"):
            taught[outcome.optimization_id] = name
    return Family(outcomes=outcomes, transfers=tuple(transfers))


def _lasting(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """``arguments``, with data that can be read only once as a list."""
    return {name: list(value) if isinstance(value, Iterator) else value for name, value in arguments.items()}


def _check(members: Mapping[str, Mapping[str, Any]]) -> None:
    """Refuse members that cannot be optimized, or learn nothing from each other, before the first is paid for.

    Args:
        members: For each name all that ``optimize`` takes.

    Raises:
        UserError: some cannot.
    """
    for name, asked in members.items():
        algorithms = named_each(asked.get("algorithm", "auto"))
        if any(map(callable, algorithms)):
            raise BadRequest(f"member {name} is optimized by a function, which learns nothing from others; use auto")
        if not {"auto", "portfolio"} & set(algorithms):
            said = ", ".join(map(str, algorithms))
            raise BadRequest(f"member {name} is optimized by {said}, which learns nothing from others; use auto")
        if not asked.get("warm_start", True):
            raise BadRequest(f"member {name} has warm_start=False, and so learns nothing from others; leave it out")
    tenants = {asked.get("tenant", DEFAULT_TENANT) for asked in members.values()}
    if len(tenants) > 1:
        raise BadRequest(f"the members are of the tenants {', '.join(sorted(tenants))}; none learns from another's")
    settings = Settings()
    archive = open_archive(settings)
    try:
        for name, asked in members.items():
            try:
                given, options = _asked(asked)
                options, cleaner = guarded(options, settings, archive)
                known = addresses(archive, options.tenant)
                tried_run(options, replace(given, cleaner=cleaner), settings, addresses=known)
            except UserError as error:
                raise type(error)(f"member {name}: {error}", **error.values) from error
    finally:
        archive.close()


def _asked(member: Mapping[str, Any]) -> tuple[Given, Options]:
    """What ``optimize`` makes of its arguments.

    Raises:
        UserError: something given cannot be used.
    """
    try:
        bound = signature(optimize).bind(**member)
    except TypeError as error:
        raise BadRequest(str(error)) from error
    bound.apply_defaults()
    arguments = {name: value for name, value in bound.arguments.items() if name not in ("out", "on_event", "options")}
    data = {name: arguments.pop(name) for name in ("data", "train", "validation", "test")}
    algorithms = named_each(arguments.pop("algorithm"))
    return task_of(arguments.pop("program"), data, algorithms=algorithms, **arguments, **bound.arguments["options"])


def transfers_in(
    notebook: Notebook, result: OptimizationResult, target: str, sources: Mapping[str, str]
) -> Sequence[Transfer]:
    """What the prompts of ``sources`` (optimization id to name) did for ``target``, from its stored evaluations."""
    scores: dict[str, dict[str, float]] = {}
    validation = {example.key for example in notebook.examples().get("validation", ())}
    for row, _ in notebook.evaluations():
        if row.repeat == 0 and row.example.key in validation:
            scores.setdefault(row.candidate, {})[row.example.key] = row.counted
    baseline = scores.get(result.baseline.key, {}) if result.baseline else {}
    lineage = {step.candidate for step in result.optimization_details.lineage}
    found = []
    for candidate, _ in notebook.candidates():
        source = sources.get(candidate.origin.removeprefix(f"{PROMPTS_OF} "))
        if source is None:
            continue
        tried = scores.get(candidate.key, {})
        both = [key for key in tried if key in baseline]
        gain = (
            compare_paired([baseline[key] for key in both], [tried[key] for key in both], seed=0)
            if len(both) > 1
            else None
        )
        found.append(Transfer(source=source, target=target, gain=gain, kept=candidate.key in lineage))
    return found

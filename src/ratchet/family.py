"""``ratchet.optimize_family``: related programs in turn, what one taught tried on the others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ratchet.analytics.knowledge import PROMPTS_OF
from ratchet.bootstrap import open_archive
from ratchet.core.errors import BadRequest
from ratchet.core.result import OptimizationResult
from ratchet.core.statistics import Comparison, compare_paired
from ratchet.engine.archive import Notebook
from ratchet.library import Outcome, optimize
from ratchet.settings import Settings


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
        BadRequest: there are fewer than two members.
        RatchetError: an optimization failed, or was stopped; those before it are stored.
    """
    if len(members) < 2:
        raise BadRequest(f"a family has at least 2 members, not {len(members)}; use ratchet.optimize for one")
    if max_calls is not None and max_calls < len(members):
        raise BadRequest(f"max_calls is {max_calls}, less than one call for each of {len(members)} members")
    for name, asked in members.items():
        algorithm = {**shared, **asked}.get("algorithm", "auto")
        if not {"auto", "portfolio"} & {part.strip() for part in algorithm.split(",")}:
            raise BadRequest(f"member {name} is optimized by {algorithm}, which learns nothing from others; use auto")
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

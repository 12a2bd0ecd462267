"""Algorithms side by side on one task: each its own optimization under the same budget, then one test for all.

Splits, seed and limits are the same for all, and nobody begins with what was learned before. Repeatable replies are
shared: what one asked, the next need not pay for, while its allowance counts them as if it had. What each found, proven
or not, and the program as it is are then compared on the same sealed examples, pair by pair.

An optimization is named by what it depends on. So a second call finds what the first one left, finished or not, and a
contender that is added later is the only one to be run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from itertools import combinations, count
from typing import Any

from ratchet.begin import new_run, resumed_run
from ratchet.core.errors import (
    BadRequest,
    BudgetSpent,
    Cancelled,
    InUse,
    RatchetError,
    UnknownName,
    UserError,
    WorldFailure,
)
from ratchet.core.evaluation import Evaluation, Evaluations
from ratchet.core.problem import Candidate, Example, content_hash
from ratchet.core.result import OptimizationResult
from ratchet.core.statistics import Comparison, compare_paired, holm
from ratchet.engine.archive import Notebook, Optimization
from ratchet.engine.report import Measure
from ratchet.engine.runner import Runner
from ratchet.guard import guarded
from ratchet.options import Options
from ratchet.prepare import Given, Prepared, identities, prepare
from ratchet.programs import loop
from ratchet.publish import side
from ratchet.run import Run
from ratchet.settings import Settings
from ratchet.storage.sql import SqlArchive

BASELINE = "baseline"
STAGE = "sealed test"
KIND = "comparison"
_NOTHING = Measure()
_IN_VAIN = ("BrokenContract", "BrokenProtocol", "BrokenOptimizer")
"""What an algorithm that failed so would do again in its replay: it begins anew, when it was mended in the meantime."""

Carry = Callable[[str, Run], OptimizationResult]
"""Carries out one contender's optimization: its name, what to do; the result."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Contender:
    """One line of the table.

    Attributes:
        name: The algorithm, or algorithms with commas between them; ``baseline`` is the program as it is.
        status: How its optimization ended; that of ``baseline`` is empty.
        optimization_id: Its optimization; empty for ``baseline``.
        reason: The verdict in a sentence, or why it failed.
        candidate: Key of what it found; of the program as it is where it found nothing better. None when it failed.
        quality: Mean score on the sealed test, with its interval.
        success_rate, cost_usd, latency_ms: The same.
        calls: LM calls it sent; what others had paid for is not among them.
        usd: Dollars it spent; None when a price is not known.
        seconds: Wall time.
    """

    name: str
    status: str = ""
    optimization_id: str = ""
    reason: str = ""
    candidate: str | None = None
    quality: Measure = _NOTHING
    success_rate: Measure = _NOTHING
    cost_usd: Measure = _NOTHING
    latency_ms: Measure = _NOTHING
    calls: int = 0
    usd: float | None = 0.0
    seconds: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """Two contenders on the same examples.

    Attributes:
        before, after: Their names.
        comparison: Quality of ``after`` minus quality of ``before``; None when both have the same program.
        p_holm: Its p-value, corrected for all pairs of different programs.
    """

    before: str
    after: str
    comparison: Comparison | None = None
    p_holm: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Contest:
    """What came of it; every number was computed from stored evaluations.

    Attributes:
        id: Its name in the archive.
        n: Sealed examples that all were measured on.
        contenders: The baseline, then the algorithms as they were named.
        pairs: Each pair of those that did not fail.
    """

    id: str
    n: int
    contenders: tuple[Contender, ...]
    pairs: tuple[Pair, ...]

    def to_json(self) -> dict[str, Any]:
        """As JSON data."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Contest:
        """What ``to_json`` came from."""
        return cls(
            id=data["id"],
            n=data["n"],
            contenders=tuple(
                Contender(**{**each, **{name: _measure(each[name]) for name in _MEASURES}})
                for each in data["contenders"]
            ),
            pairs=tuple(
                Pair(**{**each, "comparison": each["comparison"] and _comparison(each["comparison"])})
                for each in data["pairs"]
            ),
        )


_MEASURES = ("quality", "success_rate", "cost_usd", "latency_ms")


def _measure(data: Mapping[str, Any]) -> Measure:
    return Measure(mean=data["mean"], interval=data["interval"] and (data["interval"][0], data["interval"][1]))


def _comparison(data: Mapping[str, Any]) -> Comparison:
    return Comparison(**{**data, "interval": tuple(data["interval"])})


def contest(
    options: Options, names: Sequence[str], given: Given, settings: Settings, archive: SqlArchive, *, carry: Carry
) -> Contest:
    """Run every algorithm on the task, and compare what they found.

    Args:
        options: The task and the budget of each; its algorithms are left aside.
        names: The algorithms; several with commas between them run one after the other, as one contender.
        given: What a library caller hands over.
        carry: Carries out each contender's optimization.

    Raises:
        UserError: something given cannot be used; where it is seen before, nothing was paid.
        RatchetError: the world failed, it was stopped, or no algorithm came to a result.
    """
    check_names(names)
    options, cleaner = guarded(options, settings, archive)
    given = replace(given, cleaner=cleaner)
    entries = _entries(options, names, given, settings)
    found = [(entry, *_optimized(entry, given, settings, archive, carry)) for entry in entries]
    results = [(entry.name, stored, result) for entry, stored, result in found if result is not None]
    if not results:
        errors = "; ".join(f"{entry.name}: {stored.error}" for entry, stored, _ in found)
        raise RatchetError(f"no algorithm came to a result. {errors}")
    first = entries[0]
    seed = results[0][2].baseline
    assert seed is not None
    chosen = {BASELINE: seed} | {name: result.winner or seed for name, _, result in results}
    identity = content_hash([entry.identity for entry in entries])[:12]
    notebook = _notebook(identity, options, names, archive)
    notebook.keep_examples({"test": first.prepared.splits.test})
    sources = [(result.winner or seed, archive.open(stored.id)) for _, stored, result in results]
    test, candidates = first.prepared.splits.test, len(set(chosen.values()))
    sealed = _sealed(test, seed, sources, notebook) or test[: _affordable(options.max_calls, candidates, sources)]
    rows = _measured(first.prepared, identity, notebook, chosen, sealed)
    lines = [Contender(name=BASELINE, candidate=seed.key)]
    for entry, stored, result in found:
        sent = archive.open(stored.id).journal.sent()
        line = Contender(
            name=entry.name,
            status=stored.status,
            optimization_id=stored.id,
            reason=stored.error if result is None else result.reason,
            candidate=None if result is None else chosen[entry.name].key,
            calls=sent.calls,
            usd=None if sent.unpriced else sent.usd,
            seconds=stored.seconds,
        )
        lines.append(line)
    request = first.prepared.request
    ended = compared(identity, lines, rows, success_at=request.success_at, seed=request.seed)
    notebook.set_status("compared", result=ended.to_json())
    return ended


def check_names(names: Sequence[str]) -> None:
    """Refuse what is no choice of algorithms.

    Raises:
        BadRequest: none is named, or one twice.
    """
    if not names or len(set(names)) < len(names):
        raise BadRequest(f"name algorithms to compare, each once; these are {', '.join(names) or 'none'}")


def compared(
    identity: str, lines: Sequence[Contender], rows: Mapping[str, Evaluations], *, success_at: float, seed: int
) -> Contest:
    """The table and the pairs, from evaluations.

    Args:
        identity: Its name.
        lines: The contenders, not measured yet.
        rows: The evaluations of those that have some, on the same examples in the same order.
    """
    return Contest(
        id=identity,
        n=max(map(len, rows.values()), default=0),
        contenders=tuple(
            _line(each, rows[each.name], success_at, seed) if each.name in rows else each for each in lines
        ),
        pairs=pairs(rows, seed=seed),
    )


def pairs(rows: Mapping[str, Evaluations], *, seed: int) -> tuple[Pair, ...]:
    """Each pair of contenders, with p-values corrected for all that compare different programs.

    Args:
        rows: Each contender's evaluations, on the same examples in the same order.
    """
    compared: dict[frozenset[str], tuple[str, Comparison]] = {}
    for before, after in combinations(rows, 2):
        programs = frozenset((rows[before][0].candidate, rows[after][0].candidate))
        if len(programs) == 2 and programs not in compared:
            comparison = compare_paired(rows[before].scores, rows[after].scores, seed=seed)
            compared[programs] = (rows[before][0].candidate, comparison)
    corrected = dict(zip(compared, holm([each.p_value for _, each in compared.values()]), strict=True))
    found = []
    for before, after in combinations(rows, 2):
        programs = frozenset((rows[before][0].candidate, rows[after][0].candidate))
        if programs not in compared:
            found.append(Pair(before=before, after=after))
            continue
        first, comparison = compared[programs]
        if first != rows[before][0].candidate:
            low, high = comparison.interval
            comparison = replace(comparison, effect=-comparison.effect, interval=(-high, -low))
        found.append(Pair(before=before, after=after, comparison=comparison, p_holm=corrected[programs]))
    return tuple(found)


# --- its parts --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class _Entry:
    """A contender about to be run."""

    name: str
    options: Options
    prepared: Prepared
    identity: str


def _entries(options: Options, names: Sequence[str], given: Given, settings: Settings) -> list[_Entry]:
    """Every contender, with all its names resolved before anything is paid."""
    entries: list[_Entry] = []
    for name in names:
        algorithms = (name,) if name in given.algorithms else tuple(part.strip() for part in name.split(","))
        # What one contender found on this task must not be where the next one begins.
        asked = replace(options, algorithms=algorithms, warm_start=False, learn_from=())
        splits = entries[0].prepared.splits if entries else None
        prepared = prepare(asked, given, settings, splits=splits)
        identity = content_hash([asked.to_json(), identities(prepared)])
        entries.append(_Entry(name=name, options=asked, prepared=prepared, identity=identity))
    return entries


def _optimized(
    entry: _Entry, given: Given, settings: Settings, archive: SqlArchive, carry: Carry
) -> tuple[Optimization, OptimizationResult | None]:
    """The contender's optimization at its end, from an earlier call or from this one; no result when it failed."""
    given = replace(given, splits=entry.prepared.splits)
    for attempt in count():
        identity = content_hash([entry.identity, attempt])[:12]
        stored = _found(archive, identity)
        if stored is not None and stored.result is not None:
            return stored, OptimizationResult.from_json(stored.result)
        if stored is not None and stored.status == "failed" and stored.error.startswith(_IN_VAIN):
            continue
        run = (
            new_run(entry.options, given, settings, archive, identity=identity)
            if stored is None
            else resumed_run(identity, given, settings, archive)
        )
        try:
            result: OptimizationResult | None = carry(entry.name, run)
        except (InUse, WorldFailure, Cancelled):
            raise
        except Exception as error:  # what one algorithm does, be it a bug, is no reason to lose what the others found
            if isinstance(error, UserError) and not isinstance(error, BadRequest):
                raise  # the task is at fault, for all of them
            result = None
        return archive.find(identity), result
    raise AssertionError("there is always a next attempt")


def _found(archive: SqlArchive, identity: str) -> Optimization | None:
    with suppress(UnknownName):
        return archive.find(identity)
    return None


def _notebook(identity: str, options: Options, names: Sequence[str], archive: SqlArchive) -> Notebook:
    """The comparison's own notebook, begun when it is not there yet."""
    if _found(archive, identity) is not None:
        return archive.open(identity)
    request = {"options": replace(options, algorithms=tuple(names)).to_json(), "kind": KIND}
    return archive.start(Optimization(id=identity, status="running", created_at=datetime.now(UTC), request=request))


def _sealed(
    test: Sequence[Example], seed: Candidate, sources: Sequence[tuple[Candidate, Notebook]], notebook: Notebook
) -> tuple[Example, ...]:
    """The sealed examples that some contender opened, in order.

    Their evaluations are taken over into ``notebook``: a measurement is made once.
    """
    opened = {example.key for example in test}
    seen: set[str] = set()
    for candidate, source in sources:
        for row, _ in source.evaluations():
            if row.example.key in opened and row.repeat == 0 and row.candidate in (seed.key, candidate.key):
                notebook.keep_evaluation(row, stage=STAGE)
                seen.add(row.example.key)
    return tuple(example for example in test if example.key in seen)


def _affordable(max_calls: int | None, candidates: int, sources: Sequence[tuple[Candidate, Notebook]]) -> int | None:
    """Sealed examples to measure when no contender opened any: as planned, where that can be paid; None for all."""
    plans = [event.payload for _, source in sources for _, event in source.events() if event.kind == "plan"]
    sizes = [plan["test"] for plan in plans]
    if max_calls is not None:
        each = candidates * max((plan["calls_per_run"] for plan in plans), default=1.0)
        sizes.append(int((max_calls - max((plan["slack_calls"] for plan in plans), default=0)) / each))
    return max(0, min(sizes)) if sizes else None


def _measured(
    prepared: Prepared,
    identity: str,
    notebook: Notebook,
    chosen: Mapping[str, Candidate],
    sealed: Sequence[Example],
) -> dict[str, Evaluations]:
    """Every contender's evaluations on the sealed examples; what is missing is run now, under the same limits.

    Where those do not pay for it, the examples that all were run on; none where these are fewer than two.
    """

    def stored() -> dict[tuple[str, str], Evaluation]:
        return {(row.candidate, row.example.key): row for row, _ in notebook.evaluations()}

    candidates = list({candidate.key: candidate for candidate in chosen.values()}.values())
    known = stored()
    if any((candidate.key, example.key) not in known for candidate in candidates for example in sealed):
        run = Run(prepared, notebook, optimization_id=identity, spent_seconds=0.0)
        try:
            with notebook.claimed():
                loop.run(_run_missing(run, candidates, sealed))
        finally:
            run.gateway.close()
        known = stored()
    shared = [each for each in sealed if all((candidate.key, each.key) in known for candidate in candidates)]
    if len(shared) < 2:
        return {}
    return {
        name: Evaluations(tuple(known[candidate.key, example.key] for example in shared))
        for name, candidate in chosen.items()
    }


async def _run_missing(run: Run, candidates: Sequence[Candidate], sealed: Sequence[Example]) -> None:
    run.gateway.begin_stage(STAGE)
    job = run.job()
    runner = Runner(
        run.program, write=job.write, ledger=run.gateway, notebook=run.notebook, concurrency=job.concurrency
    )
    with suppress(BudgetSpent):
        # All candidates abreast: only what all have can be compared.
        for first in range(0, len(sealed), job.concurrency):
            for candidate in candidates:
                await runner.evaluate(candidate, sealed[first : first + job.concurrency])


def _line(line: Contender, rows: Evaluations, success_at: float, seed: int) -> Contender:
    measured = side(rows.rows, success_at=success_at, seed=seed)
    return replace(line, **{name: getattr(measured, name) for name in _MEASURES})

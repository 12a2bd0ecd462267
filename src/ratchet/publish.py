"""What an optimization leaves in a folder: result, program, certificate and report; and whether a certificate holds."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from ratchet.core.errors import BadRequest, CertificateInvalid, UnknownName
from ratchet.core.evaluation import Evaluation
from ratchet.core.problem import Candidate, canonical
from ratchet.core.result import OptimizationResult
from ratchet.core.statistics import Comparison, compare_paired, mean_interval, relative_change
from ratchet.engine import certificate, drawing, report
from ratchet.engine.archive import Archive, Notebook
from ratchet.options import Options
from ratchet.prepare import identities
from ratchet.programs.targets import save_program
from ratchet.run import Run

RESULT, PROGRAM, CERTIFICATE, REPORT = "result.json", "program.json", "certificate.json", "report.html"
UNPROVEN = "unproven-program.json"
"""The best program that was found, when no gain was proven for it."""

Pair = tuple[Evaluation, Evaluation]


def check_folder(folder: Path) -> None:
    """Make ``folder``, so that a place that cannot be written to is known before anything is paid.

    Raises:
        BadRequest: it cannot be written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return
    except OSError as error:
        raise BadRequest(f"{folder} cannot be written to: {error.strerror}; give another --out") from error


def publish(
    run: Run, result: OptimizationResult, folder: Path, *, key: Ed25519PrivateKey, rebuildable: bool = True
) -> tuple[Path, ...]:
    """The files written for ``result``, each whole or not at all.

    ``program.json`` is the chosen program when its gain was proven and else the program as it was; what was found but
    not proven then stands beside it, under a name that says so.

    Args:
        run: The optimization that ended in ``result``.
        result: What came out.
        folder: Where to; files of an earlier optimization there are replaced, or removed where this one has none.
        key: Signs the certificate.
        rebuildable: Whether the target's text is enough to build the module again; not so for an object of a caller.

    Raises:
        BadRequest: the folder cannot be written to.
    """
    check_folder(folder)
    target = run.prepared.target if rebuildable else None
    proven = result.status == "improved"
    try:
        with tempfile.TemporaryDirectory(dir=folder, prefix=".ratchet-") as work:
            part = Path(work)
            _write_json(part / RESULT, result.to_json())
            save_program(final_program(run, result), part / PROGRAM, target)
            if result.winner is not None and not proven:
                save_program(run.program.export(result.winner), part / UNPROVEN, target)
            if result.comparison is not None:
                signed = certificate.sign(_payload(run, result, files=part), key)
                _write_json(part / CERTIFICATE, signed)
            page = report.render(_report(run, result, certified=result.comparison is not None))
            (part / REPORT).write_text(page, encoding="utf-8")
            written = []
            for name in (RESULT, PROGRAM, UNPROVEN, REPORT, CERTIFICATE):
                if (part / name).exists():
                    written.append((part / name).replace(folder / name))
                else:
                    (folder / name).unlink(missing_ok=True)
            return tuple(written)
    except OSError as error:
        raise BadRequest(f"{folder} cannot be written to: {error.strerror}; give another --out DIR") from error


def final_program(run: Run, result: OptimizationResult) -> Any:
    """The ``dspy.Module`` to use from now on: the chosen one when it was proven better, else the program as it was."""
    proven = result.status == "improved" and result.winner is not None
    return run.program.export(result.winner if proven and result.winner else run.program.seed)


def sealed_pairs(notebook: Notebook, before: str, after: str) -> list[Pair]:
    """The sealed test's evaluations of two candidates, by key, of each example that both were run on, in order."""
    rows = {(row.candidate, row.example.key): row for row, _ in notebook.evaluations() if row.repeat == 0}
    return [
        (rows[before, example.key], rows[after, example.key])
        for example in notebook.examples().get("test", ())
        if (before, example.key) in rows and (after, example.key) in rows
    ]


def _write_json(path: Path, data: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(data, indent=2, ensure_ascii=False, default=str) + "\n", encoding="utf-8")


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _sha256_of_json(path: Path) -> str:
    """Of what the file says, however it is laid out: a client writes the result of a server anew."""
    return hashlib.sha256(canonical(json.loads(path.read_text(encoding="utf-8"))).encode()).hexdigest()


# --- the certificate ------------------------------------------------------------------------------------------------


def _payload(run: Run, result: OptimizationResult, *, files: Path) -> dict[str, Any]:
    assert result.baseline is not None
    assert result.winner is not None
    assert result.comparison is not None
    options, known = run.prepared.options, identities(run.prepared)
    pairs = sealed_pairs(run.notebook, result.baseline.key, result.winner.key)
    return {
        "optimization_id": result.optimization_id,
        "status": result.status,
        "reason": result.reason,
        "created_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "target": options.target,
        "metric": known["metric"],
        "algorithms": list(run.prepared.request.algorithms),
        "seed": options.seed,
        "min_improvement": options.min_improvement,
        "comparison": asdict(result.comparison),
        "pairs": [[before.example.key, before.counted, after.counted] for before, after in pairs],
        "hashes": {
            "baseline": result.baseline.key,
            "winner": result.winner.key,
            "data": known["data"],
            RESULT: _sha256_of_json(files / RESULT),
            PROGRAM: _sha256(files / PROGRAM),
        },
        "models": {name: known[name] for name in ("task_lm", "reflection_lm", "judge_lm")},
        "versions": known["versions"],
        "spend": asdict(result.optimization_details.spend),
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What was found when a certificate was checked; there is none of a certificate that does not hold.

    Attributes:
        public_key: Whoever has its private half signed it.
        checked: What was recomputed and found equal.
        unchecked: What could not be checked here.
    """

    optimization_id: str
    status: str
    comparison: Comparison
    public_key: str
    checked: tuple[str, ...]
    unchecked: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The verdict as JSON data."""
        return {"holds": True, **asdict(self)}


def verify(path: Path, archive: Archive | None) -> Verdict:
    """What a certificate proves, after everything that can be recomputed here was recomputed.

    Args:
        path: The certificate; ``result.json`` and ``program.json`` beside it are checked too.
        archive: Where the optimization may be stored; None when nothing is stored here.

    Raises:
        UnknownName: there is no such file.
        CertificateInvalid: it does not hold; the message names what differs.
    """
    if not path.is_file():
        raise UnknownName(f"the certificate {path} is not there")
    signed = certificate.read(path)
    payload = certificate.check_signature(signed)
    checked, unchecked = ["the signature fits the payload"], []
    try:
        seed, hashes, identity = payload["seed"], payload["hashes"], str(payload["optimization_id"])
        pairs = [(str(key), float(before), float(after)) for key, before, after in payload["pairs"]]
        claimed = _comparison(payload["comparison"])
        _same_comparison("its own paired scores", claimed, pairs, seed=seed)
        _status(payload, claimed, pairs)
        checked.append(f"effect, interval and p follow from the {len(pairs)} paired scores in it")
        for name, look in ((RESULT, _beside_result), (PROGRAM, _beside_program)):
            if (path.parent / name).is_file():
                checked.append(look(path.parent / name, hashes, claimed))
            else:
                unchecked.append(f"{name} is not beside it")
        checked_here = _stored(archive, identity, hashes, pairs, claimed, seed=seed)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CertificateInvalid(f"{path} is signed, but is no certificate of an optimization: {error!r}") from error
    (checked if checked_here else unchecked).append(
        checked_here or f"the stored evaluations of {identity} are not in this RATCHET_HOME"
    )
    return Verdict(
        optimization_id=identity,
        status=str(payload["status"]),
        comparison=claimed,
        public_key=signed["public_key"],
        checked=tuple(checked),
        unchecked=tuple(unchecked),
    )


def _comparison(data: Mapping[str, Any]) -> Comparison:
    return Comparison(**{**data, "interval": tuple(data["interval"])})


def _same_comparison(source: str, claimed: Comparison, pairs: Sequence[tuple[str, float, float]], *, seed: int) -> None:
    if len(pairs) < 2:
        raise CertificateInvalid(f"{source} are {len(pairs)}; no comparison can come of them")
    again = compare_paired([before for _, before, _ in pairs], [after for _, _, after in pairs], seed=seed)
    for name in ("effect", "interval", "p_value", "n", "confidence"):
        said, found = getattr(claimed, name), getattr(again, name)
        if not _close(said, found):
            raise CertificateInvalid(f"{name} is {said} in the certificate, but {found} from {source}", differs=name)


def _close(left: Any, right: Any) -> bool:
    """Equal up to what another build of NumPy may round."""
    if isinstance(left, tuple):
        return len(left) == len(right) and all(map(_close, left, right))
    return bool(abs(left - right) <= 1e-9)


def _status(payload: Mapping[str, Any], claimed: Comparison, pairs: Sequence[tuple[str, float, float]]) -> None:
    change = relative_change(sum(pair[1] for pair in pairs), sum(pair[2] for pair in pairs))
    enough = change is None or change / 100 >= payload["min_improvement"]
    proven = claimed.p_value < 0.05 and claimed.interval[0] > 0 and enough
    if proven != (payload["status"] == "improved"):
        raise CertificateInvalid(
            f"status is {payload['status']!r} in the certificate, but its comparison says "
            f"{'improved' if proven else 'no proven gain'}",
            differs="status",
        )


def _beside_result(path: Path, hashes: Mapping[str, str], claimed: Comparison) -> str:
    if RESULT in hashes and _sha256_of_json(path) != hashes[RESULT]:
        raise CertificateInvalid(f"{path} was changed since it was certified: its SHA-256 differs", differs=RESULT)
    result = OptimizationResult.from_json(json.loads(path.read_text(encoding="utf-8")))
    for name, candidate in (("baseline", result.baseline), ("winner", result.winner)):
        if candidate is None or candidate.key != hashes[name]:
            found = candidate.key if candidate else "missing"
            raise CertificateInvalid(f"the {name} in {path} is {found}, but {hashes[name]} was certified", differs=name)
    if result.comparison != claimed:
        raise CertificateInvalid(f"the comparison in {path} is not the one that was certified", differs="comparison")
    return f"result.json holds the certified {'result' if RESULT in hashes else 'prompts and comparison'}"


def _beside_program(path: Path, hashes: Mapping[str, str], claimed: Comparison) -> str:
    if _sha256(path) != hashes[PROGRAM]:
        raise CertificateInvalid(f"{path} was changed since it was certified: its SHA-256 differs", differs=PROGRAM)
    return "program.json is the certified file"


def _stored(
    archive: Archive | None,
    identity: str,
    hashes: Mapping[str, str],
    pairs: Sequence[tuple[str, float, float]],
    claimed: Comparison,
    *,
    seed: int,
) -> str | None:
    """What was found equal in the archive; None when the optimization is not in it."""
    try:
        if archive is None or archive.find(identity).id != identity:
            return None
    except UnknownName:
        return None
    notebook = archive.open(identity)
    stored = {candidate.key for candidate, _ in notebook.candidates()}
    for name in ("baseline", "winner"):
        if hashes[name] not in stored:
            raise CertificateInvalid(f"no stored candidate has the hash {hashes[name]} of the {name}", differs=name)
    found = [
        (before.example.key, before.counted, after.counted)
        for before, after in sealed_pairs(notebook, hashes["baseline"], hashes["winner"])
    ]
    if [key for key, _, _ in found] != [key for key, _, _ in pairs]:
        raise CertificateInvalid(
            f"the certificate has {len(pairs)} test examples, {len(found)} are stored, or they are not the same",
            differs="pairs",
        )
    for (key, before, after), (_, stored_before, stored_after) in zip(pairs, found, strict=True):
        for side, said, kept in (("baseline", before, stored_before), ("winner", after, stored_after)):
            if said != kept:
                raise CertificateInvalid(
                    f"the {side}'s score on example {key} is {said} in the certificate and {kept} in the stored "
                    "evaluations",
                    differs=key,
                )
    _same_comparison("the stored evaluations", claimed, found, seed=seed)
    return f"all {2 * len(pairs)} scores equal the stored evaluations, and so does what follows from them"


# --- the report -----------------------------------------------------------------------------------------------------


def _both(notebook: Notebook, result: OptimizationResult) -> tuple[list[Evaluation], list[Evaluation]]:
    """The sealed test's rows of the baseline and of the chosen candidate; none when it was not opened."""
    if result.comparison is None or result.baseline is None or result.winner is None:
        return [], []
    pairs = sealed_pairs(notebook, result.baseline.key, result.winner.key)
    return [before for before, _ in pairs], [after for _, after in pairs]


def measured(notebook: Notebook, result: OptimizationResult, options: Options) -> tuple[report.Side, report.Side]:
    """Baseline and chosen candidate on the sealed test, with intervals."""
    before, after = (side(rows, success_at=options.success_at, seed=options.seed) for rows in _both(notebook, result))
    return before, after


def _report(run: Run, result: OptimizationResult, *, certified: bool) -> report.Report:
    request, details = run.prepared.request, result.optimization_details
    sides = _both(run.notebook, result)
    limits, spend = request.constraints, details.spend
    return report.Report(
        optimization_id=result.optimization_id,
        target=run.prepared.options.target,
        status=result.status,
        created_at=datetime.now(UTC),
        algorithm=details.algorithm_used,
        reason=result.reason,
        comparison=result.comparison,
        success_comparison=_success_comparison(sides, success_at=request.success_at, seed=request.seed),
        cost_comparison=result.cost_comparison,
        latency_comparison=result.latency_comparison,
        baseline=side(sides[0], success_at=request.success_at, seed=request.seed),
        optimized=side(sides[1], success_at=request.success_at, seed=request.seed),
        phases=tuple(report.PhaseSpend(phase=phase, calls=calls) for phase, calls in spend.by_phase.items()),
        total=report.PhaseSpend(
            phase="total",
            calls=spend.calls,
            prompt_tokens=spend.prompt_tokens,
            completion_tokens=spend.completion_tokens,
            usd=spend.usd,
            seconds=spend.seconds,
        ),
        limits=report.Limits(calls=limits.max_calls, usd=limits.max_usd, seconds=limits.max_optimization_time),
        curve=curve(run.notebook),
        pairs=tuple(
            drawing.PairedExample(
                label=_label(before),
                before=before.counted,
                after=after.counted,
                failure_before=before.failure.kind if before.failure else None,
                failure_after=after.failure.kind if after.failure else None,
            )
            for before, after in zip(*sides, strict=True)
        ),
        before=result.baseline,
        after=result.winner,
        lineage=tuple(
            report.LineageStep(candidate=step.candidate, origin=step.origin, validation=step.validation)
            for step in details.lineage
        ),
        certificate=CERTIFICATE if certified else None,
        front=result.front if result.front.points else None,
        notes=details.notes,
    )


def side(rows: Sequence[Evaluation], *, success_at: float, seed: int) -> report.Side:
    """Means over ``rows`` with their intervals; what was not measured stays empty."""
    if not rows:
        return report.Side()
    costs = [row.usage.cost_usd for row in rows]
    known = [cost for cost in costs if cost is not None]
    return report.Side(
        quality=_measure([row.counted for row in rows], seed=seed),
        success_rate=_measure([float(row.succeeded(success_at)) for row in rows], seed=seed, highest=1.0),
        cost_usd=_measure(known, seed=seed, highest=float("inf")) if len(known) == len(costs) else report.Measure(),
        latency_ms=_measure([row.usage.latency_ms for row in rows], seed=seed, highest=float("inf")),
        failures=Counter(row.failure.kind for row in rows if row.failure is not None),
    )


def _measure(values: Sequence[float], *, seed: int, highest: float | None = None) -> report.Measure:
    if highest is None and max(values) <= 1.0:
        highest = 1.0
    interval = mean_interval(values, seed=seed, highest=highest) if len(values) > 1 else None
    return report.Measure(mean=sum(values) / len(values), interval=interval)


def _success_comparison(sides: Sequence[Sequence[Evaluation]], *, success_at: float, seed: int) -> Comparison | None:
    if len(sides[0]) < 2:
        return None
    before, after = ([float(row.succeeded(success_at)) for row in rows] for rows in sides)
    return compare_paired(before, after, seed=seed)


def curve(notebook: Notebook) -> tuple[drawing.CurvePoint, ...]:
    """The best mean validation score against calls; a resumed run tells its events again, so only rises count."""
    points: list[drawing.CurvePoint] = []
    for _, event in notebook.events():
        if event.kind == "best" and (not points or event.payload["mean"] > points[-1].best):
            points.append(drawing.CurvePoint(calls=event.payload["calls"], best=event.payload["mean"]))
    return tuple(points)


def _label(row: Evaluation, *, longest: int = 80) -> str:
    text = " | ".join(str(value) for value in row.example.inputs.values())
    return text if len(text) <= longest else f"{text[:longest]}..."


def prompt_diff(before: Candidate, after: Candidate) -> dict[str, dict[str, Any]]:
    """What changed per predictor: instructions before and after, demos added and removed."""
    changes = {}
    for name, new in after.predictors.items():
        old = before.predictors[name]
        if old != new:
            changes[name] = {
                "before": old.instructions,
                "after": new.instructions,
                "demos_added": [dict(demo) for demo in new.demos if demo not in old.demos],
                "demos_removed": [dict(demo) for demo in old.demos if demo not in new.demos],
            }
    return changes

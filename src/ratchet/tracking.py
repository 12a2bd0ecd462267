"""Tracker: an optimization as a run in MLflow; an MLflow that is dead or slow is told of once and holds nothing up."""

from __future__ import annotations

import importlib
import math
import re
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ratchet.core.result import OptimizationResult, Performance
from ratchet.engine.archive import Event

FILES = ("result.json", "program.json", "certificate.json", "report.html")
"""What is uploaded of the output folder; anything else in it is the user's own."""
ID_TAG = "ratchet.optimization_id"
ENDS = {"failed": "FAILED", "cancelled": "KILLED"}
"""MLflow's word for how an optimization ended, where it is not FINISHED: a refused gain is an answer, not a failure."""

WAITING = 10_000
"""Events kept while MLflow cannot take them; later ones are left out."""
BATCH_SECONDS = 1.0
PAUSES = (2.0, 30.0)
"""Seconds between two attempts, after the first failure and after each later one."""
PATIENCE_SECONDS = 20.0
METRICS_AT_ONCE, PARAMS_AT_ONCE = 1000, 100  # the limits of MLflow's log_batch


@dataclass(frozen=True, slots=True, kw_only=True)
class _Point:
    """One value of a metric, with what must be the same for MLflow to know it as the same point."""

    name: str
    value: float
    step: int
    milliseconds: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _Note:
    """Something to be written to the run."""

    points: tuple[_Point, ...] = ()
    tags: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class _End:
    """The last thing to be written."""

    note: _Note
    status: str
    files: tuple[Path, ...]


class Tracker:
    """Writes one optimization to MLflow, from a thread of its own; no method raises or waits for MLflow but ``finish``.

    MLflow is imported in that thread, since it takes seconds. What MLflow does not take is kept and tried again until
    ``finish``, so that a server that comes back gets everything. Only numbers, names and hashes are written: no text
    of an example, a prompt or an answer leaves through params, tags or metrics.

    Args:
        uri: A tracking URI; of a SQLite file, the artifacts are kept beside it in ``mlartifacts``.
        experiment: The experiment's name.
        warn: Told why MLflow cannot be used; called once at most, and from any thread.
        now: Seconds since 1970.
    """

    def __init__(
        self,
        uri: str,
        *,
        experiment: str = "ratchet",
        warn: Callable[[str], None],
        now: Callable[[], float] = time.time,
    ) -> None:
        self._uri = uri
        self._experiment = experiment
        self._warn = warn
        self._now = now
        self._turn = threading.Condition()
        # Everything below is shared with the thread and touched only while holding ``_turn``.
        self._notes: list[_Note] = []
        self._end: _End | None = None
        self._milliseconds = 0
        self._step = 0
        self._left_out = 0
        self._warned = False
        self._thread: threading.Thread | None = None

    def start(self, optimization_id: str, params: Mapping[str, Any], tags: Mapping[str, Any]) -> None:
        """Begin a run, or go on with the one this optimization already has.

        Args:
            optimization_id: The optimization's id; the run is named after it.
            params: Names and values; a None is left out, and what the run already has stays as it is.
            tags: Names and values; a None is left out.
        """
        run = _Run(
            self._uri,
            self._experiment,
            optimization_id,
            params=_texts(params),
            tags=_texts(tags),
            milliseconds=int(self._now() * 1000),
        )
        # A daemon: a process that is told to stop does not wait for MLflow.
        self._thread = threading.Thread(target=self._work, args=[run], name=f"mlflow {optimization_id}", daemon=True)
        self._thread.start()

    def on_event(self, event: Event) -> None:
        """Write what the event says; ``best_score`` and ``candidate_mean`` stand against the calls sent so far."""
        values, tags = _measured(event)
        step = event.payload.get("calls")
        with self._turn:
            self._step = max(self._step, step if isinstance(step, int) else 0)
            note = _Note(points=self._points(values), tags=tags)
            if not note.points and not note.tags:
                return
            if len(self._notes) >= WAITING:
                self._left_out += 1
                return
            self._notes.append(note)
            self._turn.notify_all()

    def finish(
        self,
        result: OptimizationResult | None,
        artifacts: Path | None,
        status: str,
        *,
        wait_seconds: float = PATIENCE_SECONDS,
    ) -> None:
        """Write the outcome, upload the files, end the run, and wait for it, but not for longer than asked.

        Args:
            result: The outcome, if there is one.
            artifacts: The folder with the files of the outcome, if there is one.
            status: How it ended; see ``ratchet.core.result.Status``.
            wait_seconds: The longest wait.
        """
        if self._thread is None:
            return
        values, tags = _outcome(result) if result is not None else ({}, {})
        files = tuple(artifacts / name for name in FILES if (artifacts / name).is_file()) if artifacts else ()
        with self._turn:
            note = _Note(points=self._points(values), tags={**tags, "ratchet.status": status})
            self._end = _End(note=note, status=ENDS.get(status, "FINISHED"), files=files)
            self._turn.notify_all()
        self._thread.join(wait_seconds)
        if self._thread.is_alive():
            self._complain(f"it did not take the outcome within {wait_seconds:.0f} s")
        elif self._left_out:
            self._complain(f"{self._left_out} events were left out, since it was slower than the optimization")

    def _points(self, values: Mapping[str, Any]) -> tuple[_Point, ...]:
        """The values that are numbers, each at a time of its own, so that MLflow keeps equal ones apart."""
        points = []
        for name, value in values.items():
            if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
                self._milliseconds = max(self._milliseconds + 1, int(self._now() * 1000))
                points.append(_Point(name=name, value=float(value), step=self._step, milliseconds=self._milliseconds))
        return tuple(points)

    # --- in the thread -----------------------------------------------------------------------------------------------

    def _work(self, run: _Run) -> None:
        """Carry everything over to ``run`` until the end is carried over or cannot be."""
        failures = 0
        while True:
            with self._turn:
                notes, end = tuple(self._notes), self._end
            try:
                run.write(notes, end)
            except Exception as error:  # foreign code, outermost turn: whatever it is, the optimization goes on
                failures += 1
                if failures > 1:
                    self._complain(_cause(error))
                    if end is not None:
                        return
                self._ended_within(PAUSES[min(failures, len(PAUSES)) - 1])
                continue
            failures = 0
            if end is not None:
                return
            with self._turn:
                del self._notes[: len(notes)]
                self._turn.wait_for(lambda: self._notes or self._end is not None)
            self._ended_within(BATCH_SECONDS)

    def _ended_within(self, seconds: float) -> None:
        with self._turn:
            self._turn.wait_for(lambda: self._end is not None, timeout=seconds)

    def _complain(self, cause: str) -> None:
        with self._turn:
            if self._warned:
                return
            self._warned = True
        place = _without_password(self._uri)
        self._warn(f"MLflow at {place} does not take everything; the optimization goes on without it: {cause}")


class _Run:
    """One run as MLflow has it; made and used in the tracker's thread alone."""

    def __init__(
        self,
        uri: str,
        experiment: str,
        optimization_id: str,
        *,
        params: Mapping[str, str],
        tags: Mapping[str, str],
        milliseconds: int,
    ) -> None:
        self._uri = uri
        self._experiment = experiment
        self._optimization_id = optimization_id
        self._params = params
        self._tags = {**tags, ID_TAG: optimization_id}
        self._milliseconds = milliseconds
        self._client: Any = None
        self._id = ""
        # Points an earlier process wrote. The resumed optimization measures them again from its journal.
        self._known: Counter[tuple[str, float]] = Counter()

    def write(self, notes: Sequence[_Note], end: _End | None) -> None:
        """Write all of it; after an error, the same again writes nothing twice."""
        from mlflow.entities import Metric, RunTag

        if self._client is None:
            self._open()
        everything = [*notes, end.note] if end is not None else notes
        known = self._known.copy()
        metrics = [
            Metric(point.name, point.value, point.milliseconds, point.step)
            for note in everything
            for point in note.points
            if not _taken(known, point)
        ]
        tags = {name: value for note in everything for name, value in note.tags.items()}
        for start in range(0, len(metrics), METRICS_AT_ONCE):
            self._client.log_batch(self._id, metrics=metrics[start : start + METRICS_AT_ONCE])
        if tags:
            self._client.log_batch(self._id, tags=[RunTag(name, value) for name, value in tags.items()])
        self._known = known
        if end is not None:
            for file in end.files:
                self._client.log_artifact(self._id, str(file))
            self._client.set_terminated(self._id, status=end.status)

    def _open(self) -> None:
        """Find the run, or create it."""
        from mlflow import MlflowClient
        from mlflow.entities import Param

        # A client with ids, never ``mlflow.start_run``: the module's current run belongs to the user's own program.
        database = _sqlite_file(self._uri)
        if database is not None:
            # MLflow would import it by itself, but under the lock, where others wait for these seconds too.
            importlib.import_module("mlflow.store.tracking.sqlalchemy_store")
        with _alone(database):
            if database is not None and not database.exists():
                _make_store(database)
            client = MlflowClient(tracking_uri=self._uri)
            experiment = client.get_experiment_by_name(self._experiment)
            experiment_id = experiment.experiment_id if experiment else self._new_experiment(client, database)
        found = client.search_runs(
            [experiment_id], filter_string=f"tags.`{ID_TAG}` = '{self._optimization_id}'", max_results=1
        )
        if found:
            run = found[0]
            client.update_run(run.info.run_id, status="RUNNING")
        else:
            run = client.create_run(experiment_id, self._milliseconds, self._tags, self._optimization_id)
        self._id = run.info.run_id
        self._known = Counter(
            (name, point.value) for name in run.data.metrics for point in client.get_metric_history(self._id, name)
        )
        missing = [Param(name, value) for name, value in self._params.items() if name not in run.data.params]
        for start in range(0, len(missing), PARAMS_AT_ONCE):
            client.log_batch(self._id, params=missing[start : start + PARAMS_AT_ONCE])
        self._client = client

    def _new_experiment(self, client: Any, database: Path | None) -> Any:
        """The id of a new experiment; a server chooses the place of the artifacts itself."""
        place = (database.parent / "mlartifacts").as_uri() if database is not None else None
        try:
            return client.create_experiment(self._experiment, artifact_location=place)
        except Exception:  # foreign code: another process was faster, or it does not work
            experiment = client.get_experiment_by_name(self._experiment)
            if experiment is None:
                raise
            return experiment.experiment_id


def _sqlite_file(uri: str) -> Path | None:
    """The file of a SQLite store; None for any other store."""
    scheme, _, rest = uri.partition(":///")
    return Path(rest.partition("?")[0]).resolve() if scheme == "sqlite" and rest else None


@contextmanager
def _alone(database: Path | None) -> Iterator[None]:
    """One opener of a SQLite store at a time, over threads and processes.

    MLflow makes and migrates its tables without a lock, and two that do so at once leave a store that never works.
    The lock is SQLite's own: the same on every system, and gone with the process that held it.
    """
    if database is None:
        yield
        return
    database.parent.mkdir(parents=True, exist_ok=True)
    with closing(sqlite3.connect(database.with_suffix(".lock"), timeout=60.0, isolation_level=None)) as lock:
        lock.execute("BEGIN EXCLUSIVE")
        yield


def _make_store(database: Path) -> None:
    """Make a SQLite store elsewhere and put it in place whole: one whose making was cut short never works."""
    from mlflow import MlflowClient

    with TemporaryDirectory(dir=database.parent, prefix="mlflow-", ignore_cleanup_errors=True) as folder:
        made, whole = Path(folder) / "made.db", Path(folder) / "whole.db"
        MlflowClient(tracking_uri=f"sqlite:///{made}").search_experiments()
        # A copy, since MLflow keeps its connections to the first one open.
        with closing(sqlite3.connect(made)) as source, closing(sqlite3.connect(whole)) as target:
            source.backup(target)
        whole.replace(database)


def _taken(known: Counter[tuple[str, float]], point: _Point) -> bool:
    """Whether the run already has the point; each one it has is given out once."""
    key = (point.name, point.value)
    if not known[key]:
        return False
    known[key] -= 1
    return True


def _measured(event: Event) -> tuple[dict[str, Any], dict[str, str]]:
    """The metrics and tags in an event."""
    payload = event.payload
    match event.kind:
        case "evaluated":
            return {"candidate_mean": payload.get("mean")}, {}
        case "best":
            return {"best_score": payload.get("mean")}, {}
        case "shortlisted":
            return {"shortlisted_mean": payload.get("mean")}, {}
        case "plan" | "preflight":
            return {f"{event.kind}/{name}": value for name, value in payload.items() if name != "calls"}, {}
        case "stage":
            return {}, {"ratchet.stage": str(payload.get("stage"))}
        case _:
            return {}, {}


def _outcome(result: OptimizationResult) -> tuple[dict[str, Any], dict[str, str]]:
    """The metrics and tags in a result; what was not measured is not there."""
    details, comparison = result.optimization_details, result.comparison
    values: dict[str, Any] = {
        **_performance("baseline", result.baseline_performance),
        **_performance("optimized", result.optimized_performance),
        "improvement_percentage": result.improvement_percentage,
        "spend/calls": details.spend.calls,
        "spend/usd": details.spend.usd,
        "spend/seconds": details.spend.seconds,
        "iterations": details.iterations,
    }
    if comparison is not None:
        low, high = comparison.interval
        values |= {
            "effect": comparison.effect,
            "effect_low": low,
            "effect_high": high,
            "p_value": comparison.p_value,
            "n": comparison.n,
        }
    tags = {
        # The reason is Ratchet's own sentence about figures; MLflow shows this tag as the run's description.
        "mlflow.note.content": result.reason,
        "ratchet.algorithm_used": details.algorithm_used,
        "ratchet.winner": result.winner.key if result.winner else None,
    }
    return values, _texts(tags)


def _performance(side: str, measured: Performance) -> dict[str, float | None]:
    """One side's means, under the split they were measured on."""
    names = ("quality_score", "success_rate", "avg_cost_per_task", "avg_latency_ms", "failed", "n")
    return {f"{measured.split}/{side}_{name}": getattr(measured, name) for name in names} if measured.split else {}


def _texts(values: Mapping[str, Any]) -> dict[str, str]:
    return {name: str(value) for name, value in values.items() if value is not None}


def _cause(error: BaseException) -> str:
    """The cause in a line: what the operating system said, where it did, else the error's own first line."""
    deepest = error
    while deepest.__cause__ or deepest.__context__:
        deepest = deepest.__cause__ or deepest.__context__  # type: ignore[assignment]
    if isinstance(deepest, OSError):
        return f"{type(deepest).__name__}: {deepest}"[:300]
    return f"{type(error).__name__}: {_without_password(str(error)).strip().partition(chr(10))[0]}"[:300]


def _without_password(text: str) -> str:
    return re.sub(r"//[^/@\s]+@", "//", text)

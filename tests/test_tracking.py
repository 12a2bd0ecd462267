"""An optimization stands in MLflow as it was, and an MLflow that does not work is told of and holds nothing up."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from socket import create_server
from typing import Any

import pytest

from ratchet.core.problem import Candidate, PredictorState
from ratchet.core.result import Details, OptimizationResult, Performance, Spend
from ratchet.core.statistics import compare_paired
from ratchet.engine.archive import Event
from ratchet.settings import quiet_libraries
from ratchet.tracking import FILES, Tracker

# Of MLflow's own tables, under SQLAlchemy 2.1.
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated:DeprecationWarning")

SECRET = "Dear shop, my parcel 4711 never came"


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the command line sets, with a shorter patience."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    quiet_libraries()


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder whose MLflow store is made by the first tracker that needs it."""
    return tmp_path_factory.mktemp("ratchet home")


@pytest.fixture(scope="module")
def uri(home: Path) -> str:
    return f"sqlite:///{home / 'made' / 'mlflow.db'}"


def stored(uri: str, optimization_id: str) -> tuple[Any, Any]:
    """MLflow's own client, and the one run of the optimization."""
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name("ratchet")
    assert experiment is not None
    [run] = client.search_runs(
        [experiment.experiment_id], filter_string=f"tags.`ratchet.optimization_id` = '{optimization_id}'"
    )
    return client, run


def history(client: Any, run: Any, name: str) -> list[tuple[int, float]]:
    """A metric's points, step and value, in the order they were measured."""
    points = sorted(client.get_metric_history(run.info.run_id, name), key=lambda point: point.timestamp)
    return [(point.step, point.value) for point in points]


def event(kind: str, calls: int, **payload: Any) -> Event:
    return Event(kind=kind, payload={"calls": calls, **payload})


def evaluated(tracker: Tracker, *means: float, calls: int = 10) -> None:
    """One candidate after another, ten calls each."""
    for number, mean in enumerate(means):
        tracker.on_event(event("evaluated", calls + 10 * number, candidate="c0", mean=mean, n=10))


def outcome(identity: str) -> OptimizationResult:
    before, after = [0.0, 0.0, 1.0, 0.0] * 10, [1.0, 0.0, 1.0, 1.0] * 10
    comparison = compare_paired(before, after, seed=0)
    return OptimizationResult(
        optimization_id=identity,
        status="improved",
        reason="proven gain on the sealed test",
        baseline_performance=Performance(quality_score=0.25, success_rate=0.25, failed=0, n=40, split="test"),
        optimized_performance=Performance(quality_score=0.75, success_rate=0.75, failed=0, n=40, split="test"),
        improvement_percentage=200.0,
        statistical_significance=comparison.p_value,
        comparison=comparison,
        winner=Candidate(predictors={"main": PredictorState(instructions=SECRET)}),
        optimization_details=Details(
            algorithm_used="gepa", iterations=3, spend=Spend(calls=120, usd=None, seconds=9.5)
        ),
    )


def test_importing_the_tracker_does_not_import_mlflow() -> None:
    code = "import sys, ratchet.tracking; assert 'mlflow' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_run_holds_what_was_put_in(uri: str, home: Path, tmp_path: Path) -> None:
    warnings: list[str] = []
    for name in (*FILES, "mine.txt"):
        (tmp_path / name).write_text(f"this is {name}")
    tracker = Tracker(uri, warn=warnings.append)
    tracker.start("one", {"lm": "local", "seed": 0, "max_calls": None}, {"user": "ada"})
    tracker.on_event(event("stage", 0, stage="baseline", allowance=None))
    tracker.on_event(event("plan", 4, validation=20, calls_per_run=1.5))
    tracker.on_event(event("evaluated", 20, candidate="c0", mean=0.25, n=20))
    tracker.on_event(event("best", 20, candidate="c0", mean=0.25, n=20))
    tracker.on_event(event("preflight", 20, headroom=0.75, noise=None, forecast_usd=float("nan"), objections=[SECRET]))
    tracker.on_event(event("stage", 20, stage="search 1: gepa", allowance=80))
    tracker.on_event(event("evaluated", 60, candidate="c1", mean=0.7, n=20, text=SECRET))
    tracker.on_event(event("best", 60, candidate="c1", mean=0.7, n=20))
    tracker.on_event(event("evaluated", 80, candidate="c2", mean=0.5, n=20))
    tracker.on_event(event("refused", 80, message=SECRET))
    tracker.on_event(event("shortlisted", 80, candidate="c1", mean=0.7, utility=0.45))
    result = outcome("one")
    tracker.finish(result, tmp_path, "improved")
    assert warnings == []

    client, run = stored(uri, "one")
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "one"
    assert run.data.params == {"lm": "local", "seed": "0"}
    assert history(client, run, "candidate_mean") == [(20, 0.25), (60, 0.7), (80, 0.5)]
    assert history(client, run, "best_score") == [(20, 0.25), (60, 0.7)]
    assert history(client, run, "shortlisted_mean") == [(80, 0.7)]
    assert history(client, run, "plan/calls_per_run") == [(4, 1.5)]
    comparison = result.comparison
    assert comparison is not None
    expected = {
        "preflight/headroom": 0.75,
        "test/baseline_quality_score": 0.25,
        "test/optimized_quality_score": 0.75,
        "effect": comparison.effect,
        "effect_low": comparison.interval[0],
        "effect_high": comparison.interval[1],
        "p_value": comparison.p_value,
        "n": 40.0,
        "improvement_percentage": 200.0,
        "spend/calls": 120.0,
    }
    assert {name: run.data.metrics.get(name) for name in expected} == expected
    not_measured = {"preflight/noise", "preflight/forecast_usd", "spend/usd", "test/baseline_avg_cost_per_task"}
    assert not not_measured & set(run.data.metrics)
    assert run.data.tags["user"] == "ada"
    assert run.data.tags["ratchet.status"] == "improved"
    assert run.data.tags["ratchet.stage"] == "search 1: gepa"
    assert run.data.tags["ratchet.algorithm_used"] == "gepa"
    assert SECRET not in str(run.to_dictionary())

    kept = home / "made" / "mlartifacts"
    assert {item.path for item in client.list_artifacts(run.info.run_id)} == set(FILES)
    assert {file.name: file.read_text() for file in kept.rglob("*.*")} == {name: f"this is {name}" for name in FILES}


@pytest.mark.parametrize(("status", "shown"), [("failed", "FAILED"), ("cancelled", "KILLED"), ("declined", "FINISHED")])
def test_the_run_ends_as_the_optimization_did(uri: str, tmp_path: Path, status: str, shown: str) -> None:
    warnings: list[str] = []
    tracker = Tracker(uri, warn=warnings.append)
    tracker.start(status, {}, {})
    tracker.finish(None, tmp_path, status)
    _, run = stored(uri, status)
    assert (run.info.status, run.data.tags["ratchet.status"], warnings) == (shown, status, [])


def test_a_resumed_optimization_goes_on_in_its_run_and_repeats_no_point(uri: str) -> None:
    warnings: list[str] = []
    killed = Tracker(uri, warn=warnings.append)
    killed.start("resumed", {"seed": 0}, {})
    evaluated(killed, 0.2, 0.4, 0.4)
    killed.finish(None, None, "cancelled")

    resumed = Tracker(uri, warn=warnings.append)
    resumed.start("resumed", {"seed": 1, "more": "x"}, {})
    for mean in (0.2, 0.4, 0.4):  # the journal's replies, all at once: nothing is sent
        resumed.on_event(event("evaluated", 35, candidate="c0", mean=mean, n=10))
    evaluated(resumed, 0.4, 0.6, calls=40)
    resumed.finish(None, None, "improved")

    client, run = stored(uri, "resumed")
    assert history(client, run, "candidate_mean") == [(10, 0.2), (20, 0.4), (30, 0.4), (40, 0.4), (50, 0.6)]
    assert run.data.params == {"seed": "0", "more": "x"}
    assert (run.info.status, run.data.tags["ratchet.status"], warnings) == ("FINISHED", "improved", [])


def test_trackers_that_begin_at_once_share_a_store_that_is_not_there_yet(tmp_path: Path) -> None:
    uri, warnings = f"sqlite:///{tmp_path / 'mlflow.db'}", list[str]()
    trackers = [Tracker(uri, warn=warnings.append) for _ in range(4)]
    for number, tracker in enumerate(trackers):
        tracker.start(f"twin {number}", {"seed": number}, {})
        evaluated(tracker, *(index / 1500 for index in range(1500)))
    for tracker in trackers:
        tracker.finish(None, None, "improved")
    assert warnings == []
    for number in range(4):
        client, run = stored(uri, f"twin {number}")
        assert run.data.params == {"seed": str(number)}
        assert history(client, run, "candidate_mean") == [(10 + 10 * index, index / 1500) for index in range(1500)]


def test_a_process_killed_while_it_makes_the_store_leaves_none_that_is_broken(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    code = (
        "import sys, time; from ratchet.tracking import Tracker;"
        "Tracker(sys.argv[1], warn=print).start('killed', {}, {}); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code, uri], stderr=subprocess.DEVNULL) as process:
        while not list(tmp_path.glob("mlflow-*/made.db")):
            assert process.poll() is None
            time.sleep(0.01)
        time.sleep(0.2)  # MLflow's migrations take about a second
        process.kill()
    assert not (tmp_path / "mlflow.db").exists()

    warnings: list[str] = []
    tracker = Tracker(uri, warn=warnings.append)
    tracker.start("next", {}, {})
    tracker.finish(None, None, "improved")
    _, run = stored(uri, "next")
    assert (run.info.status, warnings) == ("FINISHED", [])


def test_what_a_store_could_not_take_is_in_it_once_it_can(tmp_path: Path) -> None:
    warnings: list[str] = []
    blocked = tmp_path / "home"
    blocked.write_text("a file where the folder should be")
    uri = f"sqlite:///{blocked / 'mlflow.db'}"
    tracker = Tracker(uri, warn=warnings.append)
    tracker.start("late", {}, {})
    evaluated(tracker, 0.1)
    time.sleep(1.0)
    blocked.unlink()
    evaluated(tracker, 0.3, calls=20)
    tracker.finish(None, None, "improved")
    client, run = stored(uri, "late")
    assert history(client, run, "candidate_mean") == [(10, 0.1), (20, 0.3)]
    assert (run.info.status, warnings) == ("FINISHED", [])


# --- a server that does not work -----------------------------------------------------------------------------------


class Broken(BaseHTTPRequestHandler):
    """Answers everything with 500."""

    def do_GET(self) -> None:
        self.send_error(500, "the disk is full")

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


@pytest.fixture
def server(request: pytest.FixtureRequest) -> Iterator[str]:
    """The address of a server that is gone, never answers, or answers 500."""
    if request.param == "failing":
        http = ThreadingHTTPServer(("127.0.0.1", 0), Broken)
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield f"http://ada:s3cret@127.0.0.1:{http.server_port}"
        http.shutdown()
        http.server_close()
        thread.join()
        return
    with create_server(("127.0.0.1", 0), backlog=16) as socket:
        address = f"http://ada:s3cret@127.0.0.1:{socket.getsockname()[1]}"
        if request.param == "hanging":
            yield address
    if request.param == "gone":
        yield address


@pytest.mark.parametrize(
    ("server", "cause"),
    [("gone", "Connection refused"), ("hanging", "timed out"), ("failing", "500")],
    indirect=["server"],
)
def test_a_server_that_does_not_work_is_told_of_once(
    server: str, cause: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    warnings: list[str] = []
    tracker = Tracker(server, warn=warnings.append)
    began = time.monotonic()
    tracker.start("lost", {"seed": 0}, {})
    for number in range(500):
        tracker.on_event(event("evaluated", number, candidate="c0", mean=0.5, n=1))
    assert time.monotonic() - began < 3.0
    (tmp_path / "result.json").write_text("{}")
    tracker.finish(outcome("lost"), tmp_path, "improved", wait_seconds=10.0)
    assert time.monotonic() - began < 13.0
    [warning] = warnings
    assert cause in warning
    assert "the optimization goes on" in warning
    assert "s3cret" not in warning
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("server", ["hanging"], indirect=True)
def test_finish_waits_no_longer_than_asked(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "6")
    warnings: list[str] = []
    tracker = Tracker(server, warn=warnings.append)
    tracker.start("slow", {}, {})
    began = time.monotonic()
    tracker.finish(None, None, "failed", wait_seconds=0.5)
    assert time.monotonic() - began < 3.0
    assert len(warnings) == 1


def test_a_tracker_that_was_never_started_has_nothing_to_finish() -> None:
    tracker = Tracker("http://127.0.0.1:9", warn=pytest.fail)
    evaluated(tracker, 0.5)
    tracker.finish(None, None, "failed")

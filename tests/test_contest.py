"""``ratchet compare``: algorithms side by side, on one sealed test, with paired statistics."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import dspy
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner, Result

import ratchet
from ratchet.cli.app import app
from ratchet.contest import BASELINE, Contest, pairs
from ratchet.core.algorithm import Wait
from ratchet.core.errors import BadRequest, LmUnavailable, RatchetError, UnknownName
from ratchet.core.evaluation import Evaluation, Evaluations
from ratchet.core.problem import Example
from ratchet.core.statistics import compare_paired, holm
from ratchet.testing.algorithm_server import AlgorithmServer
from ratchet.testing.lm_server import SIGNATURE, StubServer, rows


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name, value in {
        "HOME": str(tmp_path / "home"),
        "NO_MLFLOW": "1",
        "MLFLOW": "false",
        "ALGORITHM_HOSTS": "127.0.0.1",
        "ALGORITHM_SECRET": "a shared secret",
    }.items():
        monkeypatch.setenv(f"RATCHET_{name}", value)
    (tmp_path / "cases.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows(200)))
    return tmp_path / "home"


@pytest.fixture
def stub() -> Iterator[StubServer]:
    with StubServer() as server:
        yield server


def command(*arguments: object) -> Result:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert "Traceback (most" not in result.output
    return result


def task(server: StubServer) -> tuple[object, ...]:
    return ("--data", "cases.jsonl", "--lm", "stub", "--lm-base", server.base, "--max-calls", 240)


def compare(server: StubServer, *algorithms: str) -> Contest:
    done = command("compare", SIGNATURE, *algorithms, *task(server), "--json")
    assert done.exit_code == 0, done.output
    return Contest.from_json(json.loads(done.stdout))


def lazy(problem: Any, *, rng: Any) -> Any:
    """Finds nothing."""
    yield from ()
    return [problem.seed]


def raising(problem: Any, *, rng: Any) -> Any:
    """Breaks."""
    yield from ()
    raise ZeroDivisionError("oh")


# --- what comes of it -------------------------------------------------------------------------------------------------


def test_all_are_measured_on_the_same_sealed_examples_and_compared_pair_by_pair(stub: StubServer) -> None:
    found = compare(stub, "gepa", "bootstrap")
    baseline, gepa, bootstrap = found.contenders
    assert (baseline.name, gepa.name, bootstrap.name) == (BASELINE, "gepa", "bootstrap")
    assert [(pair.before, pair.after) for pair in found.pairs] == [
        (BASELINE, "gepa"),
        (BASELINE, "bootstrap"),
        ("gepa", "bootstrap"),
    ]
    first, second, third = (pair.comparison for pair in found.pairs)
    assert first is not None
    assert second is not None
    assert third is not None
    assert {first.n, second.n, third.n} == {found.n}
    assert first.effect == pytest.approx((gepa.quality.mean or 0) - (baseline.quality.mean or 0))
    assert third.effect == pytest.approx(second.effect - first.effect)
    assert [pair.p_holm for pair in found.pairs] == list(holm([first.p_value, second.p_value, third.p_value]))
    shown = json.loads(command("show", gepa.optimization_id, "--json").stdout)
    assert shown["result"]["comparison"]["effect"] == first.effect  # the same numbers as its own certificate's
    assert gepa.status == shown["status"] == "improved"
    assert shown["request"]["options"]["warm_start"] is False
    assert 0 < gepa.calls <= 240


def test_the_table_names_every_contender_and_pair(stub: StubServer) -> None:
    done = command("compare", SIGNATURE, "gepa", "random_search,bootstrap", *task(stub))
    words = " ".join(done.stdout.split())
    for word in ("sealed test, n =", "gepa - baseline", "random_search,bootstrap - gepa", "p (Holm)", "is better"):
        assert word in words
    listed = json.loads(command("list", "--json").stdout)
    (stored,) = [each for each in listed if each["status"] == "compared"]
    assert "gepa - baseline" in command("show", stored["id"]).stdout
    refused = command("resume", stored["id"])
    assert refused.exit_code == 2
    assert "ratchet compare" in refused.stderr


def test_a_second_call_pays_for_nothing_and_a_new_contender_for_itself_alone(stub: StubServer) -> None:
    first = compare(stub, "gepa", "bootstrap")
    sent = stub.requests
    again = compare(stub, "gepa", "bootstrap")
    assert stub.requests == sent
    assert again == first
    more = compare(stub, "gepa", "bootstrap", "random_search")
    assert more.contenders[1:3] == first.contenders[1:3]
    assert 0 < stub.requests - sent <= 240


def test_one_that_fails_is_a_line_that_says_why_and_the_others_go_on(stub: StubServer) -> None:
    with AlgorithmServer(at=2, body=b"hm", seed=0) as liar, AlgorithmServer(seed=0) as honest:
        found = compare(stub, liar.url, "bootstrap", honest.url)
        _, broken, bootstrap, remote = found.contenders
        assert (broken.status, broken.candidate, broken.quality.mean) == ("failed", None, None)
        assert "turn 2, answer: Invalid JSON" in broken.reason
        assert bootstrap.quality.mean is not None
        assert remote.status == "improved"
        assert {name for pair in found.pairs for name in (pair.before, pair.after)} == {
            BASELINE,
            "bootstrap",
            honest.url,
        }
        liar.body = None  # it was mended: the next call begins it anew
        mended = compare(stub, liar.url, "bootstrap", honest.url)
    assert mended.contenders[1].status == "improved"
    assert mended.contenders[2:] == found.contenders[2:]


def test_one_that_hangs_costs_its_own_run_alone(stub: StubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RATCHET_ALGORITHM_SECONDS", "0.3")
    with AlgorithmServer(at=3, hangs=True) as hanging:
        found = compare(stub, hanging.url, "bootstrap")
    assert "turn 3, answer: none came within 0.3 seconds" in found.contenders[1].reason
    assert found.contenders[2].quality.mean is not None


@pytest.mark.parametrize(
    ("algorithms", "words"),
    [
        (["gepa", "gepo"], "gepo"),
        (["gepa", "gepa"], "each once"),
        (["gepa", "http://10.0.0.1/"], "RATCHET_ALGORITHM_HOSTS"),
    ],
)
def test_what_cannot_be_compared_is_told_before_anything_is_paid(
    algorithms: Sequence[str], words: str, stub: StubServer
) -> None:
    done = command("compare", SIGNATURE, *algorithms, *task(stub))
    assert done.exit_code == 2
    assert words in done.stderr
    assert stub.requests == 0


def test_a_dead_lm_stops_it_and_the_next_call_goes_on(stub: StubServer) -> None:
    stub.status = 401
    done = command("compare", SIGNATURE, "bootstrap", "gepa", *task(stub))
    assert done.exit_code == 1
    assert "401" in done.stderr
    assert "goes on from here" in done.stderr
    stub.status = 200
    assert compare(stub, "bootstrap", "gepa").pairs


def test_killed_in_the_midst_it_goes_on_where_it_stopped(
    stub: StubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["compare", SIGNATURE, "bootstrap", "gepa", *map(str, task(stub)), "--json"]
    stub.latency = 0.02
    process = subprocess.Popen(
        [sys.executable, "-m", "ratchet", *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    until = time.monotonic() + 120
    while stub.requests < 300 and process.poll() is None and time.monotonic() < until:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    stub.latency = 0.0
    resumed = compare(stub, "bootstrap", "gepa")
    assert stub.requests <= 2 * 240
    monkeypatch.setenv("RATCHET_HOME", str(tmp_path / "other"))
    undisturbed = compare(stub, "bootstrap", "gepa")
    assert [each.quality for each in resumed.contenders] == [each.quality for each in undisturbed.contenders]
    assert [pair.comparison for pair in resumed.pairs] == [pair.comparison for pair in undisturbed.pairs]


# --- as a call --------------------------------------------------------------------------------------------------------


def called(server: StubServer, *algorithms: Any, **more: Any) -> ratchet.Contest:
    lm = dspy.LM("openai/stub", api_base=server.base, api_key="none", cache=False)
    return ratchet.compare(
        dspy.Predict(SIGNATURE),
        rows(200),
        algorithms=algorithms,
        metric="exact_match",
        lm=lm,
        **{"max_calls": 240, **more},
    )


def test_functions_are_compared_too_and_events_carry_their_name(stub: StubServer) -> None:
    told: set[str] = set()
    found = called(stub, lazy, "gepa", raising, on_event=lambda name, event: told.add(name))
    names = [each.name.rpartition(":")[2] for each in found.contenders]
    assert names == [BASELINE, "lazy", "gepa", "raising"]
    _, nothing, gepa, broken = found.contenders
    assert nothing.candidate == found.contenders[0].candidate
    assert nothing.status == "no_proven_gain"
    assert gepa.status == "improved"
    assert "ZeroDivisionError: oh (test_contest.py, line" in broken.reason
    same, *others = found.pairs
    assert (same.comparison, same.p_holm) == (None, None)  # the same program is no comparison, and none to correct for
    assert all(pair.p_holm == pair.comparison.p_value for pair in others if pair.comparison)
    assert {name.rpartition(":")[2] for name in told} == {"lazy", "gepa", "raising"}


def test_where_all_keep_the_program_as_it_is_it_is_measured_all_the_same(stub: StubServer) -> None:
    found = called(stub, lazy)
    assert found.contenders[0].quality == found.contenders[1].quality
    assert found.contenders[0].quality.mean is not None
    assert found.pairs[0].comparison is None


def test_where_nobody_opened_the_test_as_much_is_measured_as_the_budget_pays_for(
    stub: StubServer, tmp_path: Path
) -> None:
    (tmp_path / "big.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows(600)))
    asked = ("--data", "big.jsonl", "--lm", "stub", "--lm-base", stub.base, "--max-calls", 30, "--json")
    done = command("compare", SIGNATURE, "gepa", "bootstrap", *asked)
    assert done.exit_code == 0, done.output
    found = Contest.from_json(json.loads(done.stdout))
    assert 2 <= found.n <= 30
    assert all(each.quality.mean is not None for each in found.contenders)


def test_what_the_budget_does_not_pay_for_is_left_out(stub: StubServer) -> None:
    more: list[int] = []

    class Dear(dspy.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.answer = dspy.Predict(SIGNATURE)

        def forward(self, text: str) -> Any:
            for number in more:
                self.answer(text=f"{text} {number}")
            return self.answer(text=text)

    def changing(problem: Any, *, rng: Any) -> Any:
        more.extend(range(8))  # from now on a run takes more calls than was planned with
        yield from ()
        return [problem.seed]

    lm = dspy.LM("openai/stub", api_base=stub.base, api_key="none", cache=False)
    task: dict[str, Any] = {"metric": "exact_match", "lm": lm, "max_calls": 60, "concurrency": 1, "force": True}
    found = ratchet.compare(Dear(), rows(200), algorithms=[changing], **task)
    assert found.n == 60 // 9
    assert all(each.quality.mean is not None for each in found.contenders)


def test_a_bug_or_a_request_of_one_is_its_own_failure(stub: StubServer) -> None:
    def asking(problem: Any, *, rng: Any) -> Any:
        yield from ()
        raise BadRequest("what now?")

    def untold(problem: Any, *, rng: Any) -> Any:
        yield Wait(5)  # type: ignore[arg-type]

    _, first, second, gepa = called(stub, asking, untold, "gepa").contenders
    assert (first.status, second.status, gepa.status) == ("failed", "failed", "improved")
    assert "what now?" in first.reason
    assert second.reason


def test_when_all_fail_there_is_nothing_to_compare(stub: StubServer) -> None:
    with pytest.raises(RatchetError, match=r"no algorithm came to a result.*ZeroDivisionError"):
        called(stub, raising)


def test_what_a_caller_gives_is_looked_at(stub: StubServer) -> None:
    with pytest.raises(BadRequest, match="name algorithms"):
        called(stub)
    with pytest.raises(UnknownName, match="gepo"):
        called(stub, "gepo")
    with pytest.raises(BadRequest, match=r"a function of \(problem, \*, rng\)"):
        called(stub, lambda problem: [])
    stub.status = 401
    with pytest.raises(LmUnavailable):
        called(stub, "bootstrap")


# --- the statistics of pairs ------------------------------------------------------------------------------------------


def evaluations(name: str, scores: Sequence[float]) -> Evaluations:
    return Evaluations(
        tuple(
            Evaluation(candidate=name, example=Example(inputs={"n": n}, labels={}), score=score)
            for n, score in enumerate(scores)
        )
    )


SCORES = st.lists(st.sampled_from((0.0, 0.5, 1.0)), min_size=6, max_size=6)


@given(st.lists(SCORES, min_size=2, max_size=4))
def test_every_pair_is_compared_as_alone_and_corrected_for_all(scores: list[list[float]]) -> None:
    given_rows = {f"c{number}": evaluations(f"k{number}", each) for number, each in enumerate(scores)}
    found = pairs(given_rows, seed=0)
    assert len(found) == len(scores) * (len(scores) - 1) // 2
    for pair in found:
        assert pair.comparison == compare_paired(given_rows[pair.before].scores, given_rows[pair.after].scores, seed=0)
        assert pair.p_holm is not None
        assert pair.comparison.p_value <= pair.p_holm <= 1.0


def test_two_that_found_the_same_program_count_once() -> None:
    good, bad = [1.0] * 9 + [0.0], [0.0] * 9 + [1.0]
    found = pairs({"a": evaluations("x", bad), "b": evaluations("y", good), "c": evaluations("y", good)}, seed=0)
    by_name = {(pair.before, pair.after): pair for pair in found}
    assert by_name["b", "c"].comparison is None
    first, second = by_name["a", "b"], by_name["a", "c"]
    assert first.comparison == second.comparison
    assert first.comparison is not None
    assert first.p_holm == first.comparison.p_value
    turned = pairs({"b": evaluations("y", good), "a": evaluations("x", bad), "c": evaluations("y", good)}, seed=0)
    back = {(pair.before, pair.after): pair.comparison for pair in turned}
    assert back["a", "c"] is not None
    assert back["a", "c"].effect == first.comparison.effect


def test_it_comes_back_from_json_as_it_was(stub: StubServer) -> None:
    found = called(stub, lazy, "bootstrap")
    assert Contest.from_json(json.loads(json.dumps(found.to_json()))) == found

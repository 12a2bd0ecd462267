"""``ratchet algorithms check`` refuses what breaks the contract, and says where."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from ratchet.check import AGAIN, GAIN, Promise, asked_twice, check
from ratchet.cli.app import app
from ratchet.core.algorithm import Generate, evaluate, generate
from ratchet.core.problem import PredictorState
from ratchet.programs.remote_algorithm import AllowedHosts, Link, RemoteAlgorithm
from ratchet.testing.algorithm_server import AlgorithmServer, JsonSearch


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RATCHET_HOME", str(tmp_path / "home"))


def command(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["algorithms", "check", *map(str, arguments)])


def broken(search: Any) -> list[Promise]:
    return [promise for promise in check(search, "mine") if not promise.kept]


def test_one_that_keeps_every_promise_is_told_so() -> None:
    def by_hand(problem: Any, *, rng: Any) -> Any:
        yield from ()
        state = PredictorState(instructions=" ".join(f"skill-{number}" for number in range(6)))
        changed = dict.fromkeys(problem.seed.predictors, state)
        return [problem.seed.with_predictors(changed, origin="by hand")]

    promises = list(check(by_hand, "by hand"))
    assert all(promise.kept for promise in promises)
    assert len(promises) == 9


def test_a_search_that_finds_nothing_is_weak_and_not_refused() -> None:
    def lazy(problem: Any, *, rng: Any) -> Any:
        yield from ()
        return [problem.seed]

    assert [(promise.what, promise.required) for promise in broken(lazy)] == [
        (GAIN.removeprefix("test_").replace("_", " "), False)
    ]


def of(server: AlgorithmServer) -> RemoteAlgorithm:
    here = AllowedHosts.from_text("127.0.0.1")
    return RemoteAlgorithm(link=Link(url=server.url, secret=server.secret, hosts=here), identity="check")


def test_a_server_that_answers_a_turn_again_as_before_is_told_so() -> None:
    with AlgorithmServer() as server:
        assert asked_twice(of(server)) == Promise(what=AGAIN, kept=True, required=False)


def test_a_server_that_goes_on_when_a_turn_comes_again_is_told_and_not_refused() -> None:
    class Forgetful(AlgorithmServer):
        def answer(self, message: dict[str, Any]) -> dict[str, Any]:
            self._answers.clear()
            self._answers[message["session"]] = {"turn": None}
            return super().answer(message)

    def counting(problem: dict[str, Any], rng: random.Random) -> JsonSearch:
        for number in range(4):
            yield {"tell": f"step {number}"}
        return [problem["seed"]]

    with Forgetful(search=counting) as server:
        found = asked_twice(of(server))
    assert (found.kept, found.required) == (False, False)
    assert "turn 2, answer: it is another one" in found.where


def test_chance_of_its_own_is_found() -> None:
    chance = random.Random(0)

    def gambler(problem: Any, *, rng: Any) -> Any:
        yield from evaluate(problem.seed, [chance.choice(problem.train)])
        child = problem.seed.with_instructions("answer", f"Number {chance.random()}.", origin="luck")
        return [child if "answer" in problem.seed.predictors else problem.seed]

    assert "the same seed gives the same search" in {promise.what for promise in broken(gambler)}


def test_what_is_remembered_between_searches_is_found() -> None:
    seen: list[str] = []

    def hoarder(problem: Any, *, rng: Any) -> Any:
        seen.append(problem.seed.key)
        yield from evaluate(problem.seed, problem.train[: 1 + len(seen) % 2])
        yield from generate("What now?")
        return [problem.seed.with_instructions("answer", f"Search {len(seen)}.", origin="memory")]

    assert "the same seed gives the same search" in {promise.what for promise in broken(hoarder)}


def test_what_breaks_the_contract_is_told_with_turn_request_and_problem() -> None:
    def liar(problem: Any, *, rng: Any) -> Iterator[Any]:
        yield Generate("What now?")
        yield {"evaluate": "the seed"}

    first = broken(liar)[0]
    assert first.where.startswith("mine, turn 2: it yielded {'evaluate': 'the seed'}; expected Evaluate, Generate")
    assert "[on a synthetic problem: seed 0; 250 runs; 40 + 30 examples; predictors answer; 10% of the runs fail]" in (
        first.where
    )


def test_a_fall_over_an_empty_answer_is_told_with_the_line(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "from ratchet.core.algorithm import generate\n"
        "def mine(problem, *, rng):\n"
        "    text = yield from generate('What now?')\n"
        "    assert text.strip('`').strip(), 'nothing was written'\n"
        "    return [problem.seed]\n"
    )
    done = command("mine.py:mine")
    assert done.exit_code == 1
    assert "AssertionError: nothing was written (mine.py, line 4)" in " ".join(done.stdout.split())
    assert "the reflection LM writes" in done.stdout
    assert "is refused" in done.stdout


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("sys.exit(3)", "it raised SystemExit: 3 (mine.py, line 4)"),
        ("return [problem.seed.with_demos(name, [{field: object()}], origin='x')]", "expected JSON"),
    ],
)
def test_what_would_end_or_break_the_process_is_told(line: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "import sys\n"
        "def mine(problem, *, rng):\n"
        "    yield from (); name = problem.predictors[0].name; field = problem.predictors[0].outputs[0].name\n"
        f"    {line}\n"
    )
    done = command("mine.py:mine")
    assert done.exit_code == 1
    assert words in " ".join(done.stdout.split())
    assert "is refused" in done.stdout


def test_the_verdict_is_also_json(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("def mine(problem, *, rng):\n    yield from ()\n    return [problem.seed]\n")
    told = json.loads(command("mine.py:mine", "--json").stdout)
    assert told["accepted"] is True
    assert {"what", "kept", "where", "required"} == told["promises"][0].keys()


def test_a_server_that_breaks_the_protocol_is_refused_and_not_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RATCHET_ALGORITHM_HOSTS", "127.0.0.1")
    monkeypatch.setenv("RATCHET_ALGORITHM_SECRET", "a shared secret")
    with AlgorithmServer(at=3, body=b"hm") as server:
        done = command(server.url, "--json")
    assert done.exit_code == 1
    (only,) = json.loads(done.stdout)["promises"]
    assert only["where"].startswith(f"{server.url}, turn 3, answer: Invalid JSON")
    assert len(server.messages) == 3


@pytest.mark.parametrize(("name", "words"), [("dspy.gepa", "owns its loop"), ("gepo", "no algorithm 'gepo'")])
def test_what_has_no_turns_or_is_not_there_is_told(name: str, words: str) -> None:
    done = command(name)
    assert done.exit_code == 2
    assert words in done.stderr

"""Algorithms that are not built in, by name: of packages, of files, behind URLs, of the caller."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dspy
import pytest
from typer.testing import CliRunner, Result

import ratchet
from ratchet.catalogue import AddressBook, find
from ratchet.cli.app import app
from ratchet.core.algorithm import generate
from ratchet.core.errors import BadRequest, BrokenContract, BrokenProtocol, StorageUnavailable, UnknownName
from ratchet.programs.remote_algorithm import Address
from ratchet.settings import Settings
from ratchet.testing.algorithm_server import AlgorithmServer
from ratchet.testing.lm_server import MAGIC, SIGNATURE, StubServer, rows

GOOD = f"""
def by_hand(problem, *, rng):
    (name,) = problem.seed.predictors
    yield from ()
    return [problem.seed.with_instructions(name, "Take the number {MAGIC} three.", origin="by hand")]

def three(problem, rng, steps):
    yield

number = 3
"""


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    for name, value in {"HOME": str(tmp_path / "home"), "NO_MLFLOW": "1", "MLFLOW": "false"}.items():
        monkeypatch.setenv(f"RATCHET_{name}", value)
    before = set(sys.modules)
    yield tmp_path / "home"
    for name in set(sys.modules) - before:
        if name.startswith(("ratchet_file_", "plug")):
            del sys.modules[name]


@pytest.fixture
def stub() -> Iterator[StubServer]:
    with StubServer() as server:
        yield server


def install(folder: Path, package: str, points: str, **modules: str) -> None:
    """A package in ``folder``, as pip would leave it."""
    installed = folder / f"{package.replace('-', '_')}-1.0.dist-info"
    installed.mkdir()
    (installed / "METADATA").write_text(f"Name: {package}\nVersion: 1.0\n")
    (installed / "entry_points.txt").write_text(f"[ratchet.algorithms]\n{points}\n")
    for name, text in modules.items():
        (folder / f"{name}.py").write_text(text)


def command(*arguments: object) -> Result:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert "Traceback (most" not in result.output
    return result


def lm(server: StubServer) -> dspy.LM:
    return dspy.LM("openai/stub", api_base=server.base, api_key="none", cache=False)


def optimize(server: StubServer, algorithm: Any, **more: Any) -> ratchet.Outcome:
    program = dspy.Predict(SIGNATURE)
    given = {"metric": "exact_match", "lm": lm(server), "max_calls": 200, **more}
    return ratchet.optimize(program, rows(200), algorithm=algorithm, **given)


# --- packages ---------------------------------------------------------------------------------------------------------


def test_an_entry_point_is_listed_with_its_source_and_not_imported(tmp_path: Path) -> None:
    install(tmp_path, "plugged", "mine = plugged:by_hand\ngepa = plugged:by_hand", plugged=GOOD)
    listed = {
        each["name"]: each for each in json.loads(command("algorithms", "--json").stdout) if each["kind"] != "native"
    }
    assert listed["mine"] == {"name": "mine", "kind": "package", "what": "plugged 1.0, plugged:by_hand"}
    assert listed["gepa"]["what"].endswith("(not used: the name is taken)")
    assert "plugged" not in sys.modules


def test_an_entry_point_is_used_by_its_name(tmp_path: Path, stub: StubServer) -> None:
    install(tmp_path, "plugged", "mine = plugged:by_hand", plugged=GOOD)
    outcome = optimize(stub, "mine")
    assert outcome.status == "improved"
    assert outcome.optimization_details.algorithm_used == "mine"


@pytest.mark.parametrize(
    ("point", "module", "words"),
    [
        ("plugged:missing", GOOD, ["AttributeError", "missing"]),
        ("plugged:three", GOOD, ["takes (problem, rng, steps)", "a function of (problem, *, rng)"]),
        ("plugged:number", GOOD, ["is of type int", "a function of (problem, *, rng)"]),
        ("plugged:by_hand", "import nowhere_to_be_found", ["ModuleNotFoundError", "plugged.py, line 1"]),
        ("plugged:by_hand", "\n\nraise SystemExit('bye')", ["SystemExit: bye", "plugged.py, line 3"]),
    ],
)
def test_a_broken_entry_point_fails_only_when_it_is_asked_for_and_says_where(
    point: str, module: str, words: list[str], tmp_path: Path, stub: StubServer
) -> None:
    install(tmp_path, "plugged", f"mine = {point}", plugged=module)
    assert command("algorithms").exit_code == 0
    assert command("--help").exit_code == 0
    assert find("plugged:by_hand", Settings()).source if module is GOOD else True
    with pytest.raises(BadRequest) as broken:
        optimize(stub, "mine")
    for word in [*words, f"(plugged 1.0, {point})"]:
        assert word in str(broken.value)
    assert stub.requests == 0


def test_a_name_that_two_packages_bring_is_refused_with_both(tmp_path: Path) -> None:
    install(tmp_path, "plug-a", "mine = plug_a:by_hand", plug_a=GOOD)
    install(tmp_path, "plug-b", "mine = plug_b:by_hand", plug_b=GOOD)
    with pytest.raises(BadRequest, match=r"plug-. 1\.0.*and plug-. 1\.0"):
        find("mine", Settings())


# --- files and objects ------------------------------------------------------------------------------------------------


def test_a_function_of_a_file_is_used_and_named_in_the_result(tmp_path: Path, stub: StubServer) -> None:
    (tmp_path / "mine.py").write_text(GOOD)
    outcome = optimize(stub, "mine.py:by_hand")
    assert outcome.status == "improved"
    assert outcome.optimization_details.algorithm_used == "mine.py:by_hand"


def test_a_function_of_the_caller_is_used(stub: StubServer) -> None:
    def asks(problem: Any, *, rng: Any) -> Any:
        text = yield from generate("What now?")
        return [problem.seed.with_instructions("self", f"{text} {MAGIC}", origin="asked")]

    outcome = optimize(stub, asks)
    assert outcome.status == "improved"
    assert (outcome.optimization_details.algorithm_used or "").endswith("asks")


def test_one_that_breaks_the_contract_fails_its_run_and_says_where(stub: StubServer) -> None:
    def liar(problem: Any, *, rng: Any) -> Any:
        yield from generate("What now?")
        yield "more"

    with pytest.raises(BrokenContract, match=r"liar, turn 2: it yielded 'more'; expected Evaluate"):
        optimize(stub, liar)


def test_one_that_hangs_fails_its_run_and_says_where(stub: StubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    stuck = threading.Event()

    def hanging(problem: Any, *, rng: Any) -> Any:
        yield from generate("What now?")
        stuck.wait()

    monkeypatch.setenv("RATCHET_ALGORITHM_SECONDS", "0.2")
    with pytest.raises(BrokenContract, match=r"hanging, turn 2: it took longer than 0.2 seconds"):
        optimize(stub, hanging)
    stuck.set()


def test_one_that_blocks_does_not_hold_up_others(stub: StubServer) -> None:
    inside, go_on = threading.Event(), threading.Event()

    def thinker(problem: Any, *, rng: Any) -> Any:
        inside.set()
        assert go_on.wait(30)
        yield from ()
        return [problem.seed]

    slow = threading.Thread(target=lambda: optimize(stub, thinker))
    slow.start()
    assert inside.wait(30)
    began = time.monotonic()
    assert optimize(stub, "bootstrap", max_calls=100).status
    assert time.monotonic() - began < 30
    assert slow.is_alive()
    go_on.set()
    slow.join()


@pytest.mark.parametrize("name", ["gepo", "nowhere.py:climb", "nowhere:climb"])
def test_a_name_that_nothing_carries_is_told(name: str, stub: StubServer) -> None:
    with pytest.raises(UnknownName) as unknown:
        optimize(stub, name)
    assert name.partition(":")[0] in str(unknown.value)


def test_a_changed_file_is_not_gone_on_with(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(GOOD)
    before = find("mine.py:by_hand", Settings()).identity
    (tmp_path / "mine.py").write_text(GOOD + "\n")
    assert find("mine.py:by_hand", Settings()).identity != before


@pytest.mark.parametrize(
    "made", ["Climb()", "functools.partial(Climb(), steps=3)", "functools.partial(climb, steps=3)"]
)
def test_a_changed_file_of_what_is_no_plain_function_is_not_gone_on_with(made: str, tmp_path: Path) -> None:
    text = f"""
import functools

def climb(problem, *, rng, steps):
    yield

class Climb:
    def __call__(self, problem, *, rng, steps=1):
        yield

mine = {made}
"""
    (tmp_path / "mine.py").write_text(text)
    before = find("mine.py:mine", Settings()).identity
    (tmp_path / "mine.py").write_text(text + "\n")
    assert find("mine.py:mine", Settings()).identity != before


# --- servers ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[AlgorithmServer]:
    monkeypatch.setenv("RATCHET_ALGORITHM_HOSTS", "127.0.0.1")
    monkeypatch.setenv("RATCHET_ALGORITHM_SECRET", "a shared secret")
    with AlgorithmServer(seed=0) as server:
        yield server


def test_an_address_is_used_as_it_is_and_by_its_name(server: AlgorithmServer, stub: StubServer) -> None:
    outcome = optimize(stub, server.url, max_calls=300)
    assert outcome.status == "improved"
    assert command("algorithms", "add", "web", server.url).exit_code == 0
    assert {"name": "web", "kind": "URL", "what": server.url} in json.loads(command("algorithms", "--json").stdout)
    assert optimize(stub, "web", max_calls=300).status == "improved"
    assert command("algorithms", "remove", "web").exit_code == 0
    with pytest.raises(UnknownName, match="web"):
        optimize(stub, "web")


def test_a_secret_of_its_own_is_read_from_its_variable_and_never_stored(
    server: AlgorithmServer, stub: StubServer, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.secret = "another secret"
    assert command("algorithms", "add", "web", server.url, "--secret-env", "WEB_SECRET").exit_code == 0
    with pytest.raises(BadRequest, match="WEB_SECRET, which is not set"):
        optimize(stub, "web")
    monkeypatch.setenv("WEB_SECRET", "another secret")
    assert optimize(stub, "web", max_calls=120, force=True).status
    for file in home.rglob("*"):
        assert not file.is_file() or b"another secret" not in file.read_bytes()


def test_a_host_that_is_not_listed_is_refused_before_anything_is_paid(
    server: AlgorithmServer, stub: StubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RATCHET_ALGORITHM_HOSTS")
    with pytest.raises(BadRequest, match="RATCHET_ALGORITHM_HOSTS"):
        optimize(stub, server.url)
    added = command("algorithms", "add", "web", server.url)
    assert added.exit_code == 2
    assert "RATCHET_ALGORITHM_HOSTS" in added.stderr
    assert stub.requests == 0


@pytest.mark.parametrize(
    ("name", "words"), [("gepa", "built-in"), ("auto", "built-in"), ("a/b", "no name"), ("", "no name")]
)
def test_a_name_that_cannot_be_given_is_refused(name: str, words: str, server: AlgorithmServer) -> None:
    refused = command("algorithms", "add", name, server.url)
    assert refused.exit_code == 2
    assert words in refused.stderr


def test_one_that_lies_in_the_middle_of_a_run_fails_with_turn_and_field(
    server: AlgorithmServer, stub: StubServer
) -> None:
    server.at, server.body = 4, b"hm"
    with pytest.raises(BrokenProtocol, match="turn 4, answer: Invalid JSON"):
        optimize(stub, server.url)
    (stored,) = json.loads(command("list", "--json").stdout)
    assert stored["status"] == "failed"
    assert stored["error"].startswith("BrokenProtocol: ")


def test_the_address_book_survives_and_tells_when_it_cannot_be_read(tmp_path: Path) -> None:
    book = AddressBook(tmp_path)
    assert book.read() == {}
    book.add("web", Address(url="http://127.0.0.1:1/", secret_env="X"))
    book.add("web-2", Address(url="http://127.0.0.1:2/"))
    assert AddressBook(tmp_path).read()["web"] == Address(url="http://127.0.0.1:1/", secret_env="X")
    with pytest.raises(UnknownName, match="web-2"):
        book.remove("web-3")
    (tmp_path / "algorithms.json").write_text("[")
    with pytest.raises(StorageUnavailable, match=r"algorithms\.json"):
        book.read()

"""An algorithm behind a URL: the same search as here, and one that lies, hangs or babbles ends with turn and field."""

from __future__ import annotations

import json
import random
import socket
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from typing import Any

import pytest
from aiohttp.abc import ResolveResult

from ratchet.core.algorithm import Evaluate, Generate, Start, Tell, Together, Wait
from ratchet.core.contract import watched
from ratchet.core.errors import BadRequest, BrokenContract, BrokenProtocol, Cancelled
from ratchet.core.evaluation import Evaluations
from ratchet.core.patience import Patience
from ratchet.core.problem import Candidate
from ratchet.programs.remote_algorithm import AllowedHosts, Link, RemoteAlgorithm, Resolver, signature
from ratchet.testing import SyntheticProblem
from ratchet.testing.algorithm_server import AlgorithmServer, JsonSearch, climb
from ratchet.testing.http_server import HttpServer, Quiet

SECRET = "a shared secret"
HERE = AllowedHosts.from_text("127.0.0.1")
SOON = Patience(attempts=3, first_seconds=0.01)


def link(server: AlgorithmServer, **more: Any) -> Link:
    return Link(**{"url": server.url, "secret": SECRET, "hosts": HERE, "seconds": 10.0, "patience": SOON, **more})


def solve(server: AlgorithmServer, toy: SyntheticProblem | None = None, **more: Any) -> Candidate:
    remote = RemoteAlgorithm(link=link(server, **more), identity="test")
    return (toy or SyntheticProblem()).solve(watched(remote, server.url))[0]


# --- what it can do ---------------------------------------------------------------------------------------------------


def test_it_searches_and_finds_what_helps() -> None:
    toy = SyntheticProblem(runs=150)
    with AlgorithmServer() as server:
        best = solve(server, toy)
    assert toy.quality(best) > toy.quality(toy.problem.seed) + 0.2
    assert not toy.broken
    assert [each["turn"] for each in server.messages] == list(range(1, len(server.messages) + 1))
    assert {each["session"] for each in server.messages} == {"test-1"}
    assert server.messages[0]["seed"] == random.Random(0).randrange(2**31)


def test_every_kind_of_request_and_reply_goes_over_the_wire() -> None:
    def all_kinds(problem: dict[str, Any], rng: random.Random) -> JsonSearch:
        keys = [each["key"] for each in problem["train"][:2]]
        evaluation = {"evaluate": {"candidate": problem["seed"], "examples": keys, "repeats": 2}}
        rows, texts = yield {"together": [evaluation, {"generate": {"prompt": "skill-1", "n": 2, "temperature": 0.5}}]}
        assert [(row["example"], row["repeat"]) for row in rows["rows"]] == [(key, n) for key in keys for n in (0, 1)]
        assert len(texts) == 2
        assert (yield {"tell": "all is well"}) is None
        first = yield {"start": evaluation}
        second = yield {"start": {"together": [{"generate": {"prompt": "skill-2"}}]}}
        done = yield {"wait": [second]}
        assert done["ticket"] == second
        assert "skill-2" in done["reply"][0][0]
        rest = yield {"wait": []}
        assert rest == {"ticket": first, "reply": rows}
        return [problem["seed"]]

    with AlgorithmServer(search=all_kinds) as server:
        remote = RemoteAlgorithm(link=link(server), identity="test")
        toy = SyntheticProblem()
        seen: list[Any] = []

        def noted(problem: Any, *, rng: Any) -> Any:
            search = remote(problem, rng=rng)
            reply = None
            while True:
                try:
                    request = search.send(reply)
                except StopIteration as end:
                    return end.value
                seen.append(type(request))
                reply = yield request

        assert toy.solve(noted) == [toy.problem.seed]
    assert seen == [Together, Tell, Start, Start, Wait, Wait]


def test_a_stateless_server_gets_its_state_back() -> None:
    def lies(answer: dict[str, Any]) -> dict[str, Any]:
        return {**answer, "state": {"turn": answer["turn"], "notes": ["ä", None]}}

    with AlgorithmServer(lies=lies) as server:
        solve(server, SyntheticProblem(runs=40))
    assert [each["state"] for each in server.messages[:3]] == [
        None,
        {"turn": 1, "notes": ["ä", None]},
        {"turn": 2, "notes": ["ä", None]},
    ]


def test_the_end_of_the_budget_is_told_and_the_finalists_are_taken() -> None:
    toy = SyntheticProblem(stop_at=4)
    with AlgorithmServer() as server:
        solve(server, toy)
    assert server.messages[-1]["kind"] == "spent"
    assert toy.refused == 1


def test_what_is_sealed_or_to_choose_by_is_not_sent() -> None:
    toy = SyntheticProblem(runs=60)
    problem = toy.problem

    def nosy(problem: dict[str, Any], rng: random.Random) -> JsonSearch:
        yield {"evaluate": {"candidate": problem["seed"], "examples": [each["key"] for each in problem["validation"]]}}
        return [problem["seed"]]

    with AlgorithmServer(search=nosy) as server:
        solve(server, toy)
    text = json.dumps(server.messages)
    for example in problem.validation:
        assert str(example.inputs["question"]) not in text
        assert f'"{example.labels["answer"]}"' not in text
        assert example.key in text
    assert problem.description not in text
    assert all(each.inputs["question"] in text for each in problem.train)
    (row, *_) = server.messages[1]["reply"]["rows"]
    assert row.keys() == {"example", "repeat", "score", "failure", "usage"}


def test_half_a_character_does_not_break_the_json_of_other_languages() -> None:
    toy = SyntheticProblem(texts=("a \ud800 b",), runs=60)
    with AlgorithmServer() as server:
        solve(server, toy)
    assert any("a ? b" in json.dumps(each) for each in server.messages)


def test_each_message_is_signed_and_one_that_is_not_is_refused_by_the_server() -> None:
    with AlgorithmServer(secret="another secret") as server, pytest.raises(BrokenProtocol, match="status: it is 403"):
        solve(server)
    assert server.refused == 1
    assert not server.messages


# --- one that breaks the protocol -------------------------------------------------------------------------------------


def answer(**changed: Any) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda answer: {"session": answer["session"], "turn": answer["turn"], **changed}


def ask(**request: Any) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return answer(request=request)


SEED = {"predictors": {"answer": {"instructions": "Answer the question."}}}


@pytest.mark.parametrize(
    ("lies", "field", "words"),
    [
        (lambda a: {**a, "turn": 7}, "turn", "it is 7; expected 2"),
        (lambda a: {**a, "session": "other"}, "session", "it is 'other'; expected 'test-1'"),
        (lambda a: {**a, "hint": 1}, "hint", "not permitted"),
        (lambda a: {"turn": 2, "session": "test-1"}, "answer", "exactly one of request, finalists and error"),
        (lambda a: {**a, "error": "no", "finalists": [SEED]}, "answer", "exactly one"),
        (answer(error="out of memory"), "error", "out of memory"),
        (answer(finalists=[]), "finalists", "at least 1"),
        (answer(finalists=[{"predictors": {}}]), "finalists.0.predictors", "['answer']"),
        (ask(), "request", "exactly one of evaluate, generate, together, start, wait, tell, not none"),
        (ask(generate=None), "request", "is null"),
        (ask(generate={"prompt": "a"}, wait=[]), "request", "exactly one"),
        (ask(generate={"prompt": 5}), "request.generate.prompt", "valid string"),
        (ask(generate={"prompt": "a", "n": 1e9}), "request.generate.n", "found 1000000000.0"),
        (ask(generate={"prompt": "a", "n": 10**9}), "request.generate.n", "less than or equal to 100"),
        (ask(evaluate={"candidate": SEED, "examples": []}), "request.evaluate.examples", "at least 1"),
        (ask(evaluate={"candidate": SEED, "examples": ["zz"]}), "request.evaluate.examples.0", "'zz'"),
        (
            ask(start={"evaluate": {"candidate": SEED, "examples": ["zz"]}}),
            "request.start.evaluate.examples.0",
            "no key",
        ),
        (
            ask(together=[{"generate": {"prompt": "a"}}, {"evaluate": {"candidate": SEED, "examples": ["zz"]}}]),
            "request.together.1.evaluate.examples.0",
            "no key",
        ),
        (ask(together=[{"wait": []}]), "request.together.0.wait", "not permitted"),
        (
            ask(evaluate={"candidate": {**SEED, "key": "zz"}, "examples": ["zz"]}),
            "request.evaluate.examples.0",
            "zz",
        ),
        (answer(finalists=[{**SEED, "key": "zz"}]), "finalists.0.key", "names another content"),
    ],
)
def test_a_lie_is_told_with_its_turn_and_field(lies: Callable[[Any], Any], field: str, words: str) -> None:
    with AlgorithmServer(at=2, lies=lies) as server, pytest.raises(BrokenProtocol) as broken:
        solve(server)
    assert (broken.value.values["turn"], broken.value.values["field"]) == (2, field)
    assert str(broken.value).startswith(f"{server.url}, turn 2, {field}: ")
    assert words in str(broken.value)


@pytest.mark.parametrize(
    "request_", [{"wait": [3]}, {"wait": []}, {"generate": {"prompt": " "}}], ids=["ticket", "nothing", "blank"]
)
def test_a_request_that_the_contract_does_not_allow_is_told_with_its_turn(request_: dict[str, Any]) -> None:
    lies = answer(request=request_)
    with AlgorithmServer(at=2, lies=lies) as server, pytest.raises(BrokenContract, match="turn 2: "):
        solve(server)


@pytest.mark.parametrize(
    ("how", "field", "words"),
    [
        ({"body": b"<html>"}, "answer", "Invalid JSON"),
        ({"body": b"[" * 100_000}, "answer", "recursion"),
        ({"body": b"\xff\xfe"}, "answer", "Invalid JSON"),
        ({"body": b"[]"}, "answer", "Input should be an object"),
        ({"body": b"x" * (2**22 + 1)}, "body", "longer than 4,194,304 bytes"),
        ({"signs_with": "a guess"}, "Ratchet-Signature", "the same secret"),
        ({"late": -1000.0}, "Ratchet-Timestamp", "set the clocks"),
        ({"late": 1000.0}, "Ratchet-Timestamp", "set the clocks"),
        ({"status": 307, "location": "http://127.0.0.1:1/"}, "status", "redirects are not followed"),
        ({"status": 500}, "status", "expected 200"),
        ({"status": 503}, "status", "it is 503; expected 200"),
        ({"status": 503}, "status", "it was tried 3 times"),
        ({"drops": 100}, "connection", "it was tried 3 times"),
    ],
)
def test_what_cannot_be_trusted_or_read_is_told(how: dict[str, Any], field: str, words: str) -> None:
    with AlgorithmServer(at=3, **how) as server, pytest.raises(BrokenProtocol) as broken:
        solve(server)
    assert (broken.value.values["turn"], broken.value.values["field"]) == (3, field)
    assert words in str(broken.value)


@pytest.mark.parametrize("how", ["hangs", "drips"])
def test_one_that_hangs_is_given_up_in_time(how: str) -> None:
    began = time.monotonic()
    words = r"turn 2, answer: none came within 0.4 seconds"
    with AlgorithmServer(at=2, hangs=how == "hangs", drips=how == "drips") as server:
        told = pytest.raises(BrokenProtocol, match=words)
        with told:
            solve(server, seconds=0.4)
    assert time.monotonic() - began < 5


def test_nobody_there_is_told() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/"
    remote = RemoteAlgorithm(link=Link(url=url, secret=SECRET, hosts=HERE, patience=SOON), identity="test")
    with pytest.raises(BrokenProtocol, match=r"turn 1, connection: ClientConnectorError.*it was tried 3 times"):
        SyntheticProblem().solve(remote)


# --- one that is out of luck ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("at", [1, 2, 5])
@pytest.mark.parametrize("how", ["drops", "busy"])
def test_a_turn_that_is_lost_is_sent_again_and_the_search_is_the_same(how: str, at: int) -> None:
    toys = SyntheticProblem(runs=100), SyntheticProblem(runs=100)
    with AlgorithmServer() as server:
        best = solve(server, toys[0])
        turns = [each["turn"] for each in server.messages]
    with AlgorithmServer(at=at, drops=how == "drops", busy=2 * (how == "busy")) as server:
        assert solve(server, toys[1]) == best
        taken = [each["turn"] for each in server.messages]
    assert (server.drops, server.busy) == (0, 0)
    assert taken == (sorted([*turns, at]) if how == "drops" else turns)
    assert toys[0].runs_used == toys[1].runs_used


def test_a_server_that_is_started_again_meanwhile_gets_the_turn() -> None:
    with AlgorithmServer() as first:
        search = RemoteAlgorithm(
            link=link(first, patience=Patience(attempts=None, first_seconds=0.05, most_seconds=0.05)), identity="test"
        )(SyntheticProblem().problem, rng=random.Random(0))
    second = AlgorithmServer(port=first.port)
    later = threading.Timer(0.5, second.start)
    later.start()
    try:
        assert isinstance(next(search), Evaluate)
    finally:
        later.join()
        second.close()
    assert [each["turn"] for each in second.messages] == [1]


def test_one_that_asks_for_more_time_than_a_turn_has_is_given_up_at_once() -> None:
    asked: list[str] = []

    class Later(Quiet, BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked.append(self.path)
            self.send_response(503)
            self.send_header("Retry-After", "3600")
            self.end_headers()

    class Busy(HttpServer):
        def handler(self) -> type[BaseHTTPRequestHandler]:
            return Later

    began = time.monotonic()
    with Busy() as server:
        link = Link(url=f"http://127.0.0.1:{server.port}/", secret=SECRET, hosts=HERE, seconds=30.0)
        with pytest.raises(BrokenProtocol, match="turn 1, status: it is 503; expected 200"):
            SyntheticProblem().solve(RemoteAlgorithm(link=link, identity="test"))
    assert asked == ["/"]
    assert time.monotonic() - began < 5


def test_a_turn_under_way_is_left_when_the_optimization_is_stopped() -> None:
    stop = threading.Event()

    def check() -> None:
        if stop.is_set():
            raise Cancelled("stopped on request")

    timer = threading.Timer(0.3, stop.set)
    with AlgorithmServer(at=2, hangs=True) as server:
        timer.start()
        with pytest.raises(Cancelled):
            solve(server, seconds=60.0, check=check)
    timer.join()


def test_an_old_answer_cannot_be_passed_off_as_a_message_nor_a_message_as_an_answer() -> None:
    assert signature("key", "message", "17", b"{}") != signature("key", "answer", "17", b"{}")
    assert signature("key", "answer", "17", b"{}") != signature("key", "answer", "18", b"{}")
    assert signature("key", "answer", "1", b"7.{}") == signature("key", "answer", "1", b"7.{}")


# --- where it may go --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("http://localhost:9/x", "localhost of the algorithm"),
        ("http://127.0.0.1.evil.example/", "127.0.0.1.evil.example"),
        ("http://127.0.0.2/", "127.0.0.2"),
        ("http://[::1]/", "::1"),
        ("file:///etc/passwd", "no address"),
        ("ftp://127.0.0.1/", "no address"),
        ("http://", "no address"),
        ("http://127.0.0.1:port/", "no address"),
        ("http://user:password@127.0.0.1/", "--secret-env"),
    ],
)
def test_a_host_that_is_not_listed_is_not_asked(url: str, words: str) -> None:
    with pytest.raises(BadRequest) as refused:
        Link(url=url, secret=SECRET, hosts=HERE)
    assert words in str(refused.value)
    assert "password" not in str(refused.value).replace("holds a password", "")


def test_loopback_too_must_be_listed_and_a_port_can_be_meant() -> None:
    with pytest.raises(BadRequest, match="RATCHET_ALGORITHM_HOSTS \\(now: empty\\)"):
        Link(url="http://127.0.0.1:9000/", secret=SECRET, hosts=AllowedHosts.from_text(""))
    only = AllowedHosts.from_text(" 127.0.0.1:9000 ,")
    assert Link(url="http://127.0.0.1:9000/", secret=SECRET, hosts=only)
    with pytest.raises(BadRequest, match="not allowed"):
        Link(url="http://127.0.0.1:9001/", secret=SECRET, hosts=only)


@pytest.mark.parametrize("address", ["127.0.0.1", "127.8.9.1", "::1", "169.254.169.254", "0.0.0.0", "::ffff:127.0.0.1"])
async def test_a_listed_name_that_leads_to_this_machine_or_its_neighbourhood_is_refused(address: str) -> None:
    with pytest.raises(
        OSError,
        match=f"algorithms.example.com leads to {address.removeprefix('::ffff:')}, which is not in RATCHET_ALGORITHM",
    ):
        await Names("algorithms.example.com", address).resolve("algorithms.example.com", 443)


async def test_a_listed_name_may_lead_elsewhere_and_to_this_machine_when_that_is_listed_too() -> None:
    for listed, address in (
        ("a.example", "10.1.2.3"),
        ("a.example,127.0.0.1", "127.0.0.1"),
        ("localhost", "127.0.0.1"),
    ):
        (found,) = await Names(listed, address).resolve(listed.partition(",")[0], 443)
        assert found["host"] == address


class Names(Resolver):
    """Looks every name up as one address."""

    def __init__(self, listed: str, address: str) -> None:
        super().__init__(AllowedHosts.from_text(listed))
        self.address = address

    async def look_up(self, host: str, port: int, family: socket.AddressFamily) -> list[ResolveResult]:
        return [ResolveResult(hostname=host, host=self.address, port=port, family=family, proto=0, flags=0)]


def test_without_a_secret_nothing_is_sent() -> None:
    with pytest.raises(BadRequest, match="RATCHET_ALGORITHM_SECRET"):
        Link(url="http://127.0.0.1:9000/", secret="", hosts=HERE)


def test_the_secret_is_in_no_message_about_the_link() -> None:
    assert SECRET not in repr(Link(url="http://127.0.0.1:9000/", secret=SECRET, hosts=HERE))


# --- a search that is begun again -------------------------------------------------------------------------------------


def resumed(server: AlgorithmServer, noted: dict[tuple[str, int], str]) -> Candidate:
    def note(session: str, turn: int, digest: str) -> None:
        noted[session, turn] = digest

    remote = RemoteAlgorithm(link=link(server), identity="test", noted=dict(noted), note=note)
    return SyntheticProblem(runs=100).solve(remote)[0]


def test_begun_again_it_takes_the_same_turns() -> None:
    noted: dict[tuple[str, int], str] = {}
    with AlgorithmServer() as server:
        first = resumed(server, noted)
        turns = len(noted)
        assert resumed(server, noted) == first
    assert len(noted) == turns == len(server.messages) // 2


def test_one_that_answers_something_else_when_begun_again_is_told() -> None:
    noted: dict[tuple[str, int], str] = {}

    def forgetful(problem: dict[str, Any], rng: random.Random) -> JsonSearch:
        return climb(problem, random.Random(len(noted)))

    with AlgorithmServer(search=forgetful) as server:
        resumed(server, noted)
        with pytest.raises(BrokenProtocol, match=r"turn 1, answer: it is another one than before the interruption"):
            resumed(server, noted)


def test_requests_are_those_of_the_contract() -> None:
    toy = SyntheticProblem()
    with AlgorithmServer() as server:
        search = RemoteAlgorithm(link=link(server), identity="test")(toy.problem, rng=random.Random(0))
        first = next(search)
        assert isinstance(first, Evaluate)
        assert first.candidate == toy.problem.seed
        assert set(first.examples) <= set(toy.problem.train)
        rows = [toy.run(first.candidate, example) for example in first.examples]
        assert isinstance(search.send(Evaluations(tuple(rows))), Generate)
        search.close()


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy in the environment is not used: nothing listens there."""
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")

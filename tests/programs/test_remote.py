"""A remote agent as a target: its texts are tuned, its calls are counted and journaled, its faults told apart."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import dspy
import pytest

from ratchet.core.errors import BadRequest, LmUnavailable, UnknownName
from ratchet.core.result import OptimizationResult
from ratchet.programs.agent_spec import AgentSpec, Unreadable, parse, pointed
from ratchet.programs.remote import RemoteAgent
from ratchet.programs.targets import load_program, resolve_target, save_program
from ratchet.run import Run
from ratchet.testing.agent import AgentServer
from ratchet.testing.lm_server import MAGIC, StubServer
from ratchet.testing.runs import again, begin, carry_out, identity, splits, work

DATA = splits(train=16, validation=12, test=30)


def written(folder: Path, spec: dict[str, Any], name: str = "agent.json") -> str:
    """The spec as a file; its path."""
    (folder / name).write_text(json.dumps(spec))
    return str(folder / name)


def begun(target: str, folder: Path, base: str, **options: Any) -> Run:
    """An optimization of a remote agent; the stub at ``base`` rewrites its texts."""
    wanted = {"lm": None, "reflection_lm": "openai/stub", "max_calls": 200, **options}
    return begin(base, folder, data=DATA, target=target, **wanted)


def optimized(target: str, folder: Path, **options: Any) -> tuple[OptimizationResult, Run]:
    """The result of a small optimization of a remote agent."""
    with StubServer() as writer:
        run = begun(target, folder, writer.base, **options)
        return run.execute(), run


def gained(result: OptimizationResult, component: str = "system") -> None:
    """The text of ``component`` was rewritten, and the sealed test proves that it helped."""
    assert result.status == "improved", result.reason
    assert result.winner is not None
    assert result.comparison is not None
    assert result.comparison.effect > 0.2
    assert MAGIC in result.winner.predictors[component].instructions


# --- searches ---------------------------------------------------------------------------------------------------------


def test_several_texts_of_an_agent_are_tuned_each(tmp_path: Path) -> None:
    components = {"greeting": "Be kind.", "rules": "Sort the case."}
    with AgentServer() as agent:
        result, _ = optimized(written(tmp_path, agent.spec(components=components)), tmp_path, max_calls=300)
    assert result.status == "improved", result.reason
    assert result.winner is not None
    assert list(result.winner.predictors) == ["greeting", "rules"]
    assert all(state.demos == () for state in result.winner.predictors.values())


@pytest.mark.parametrize("algorithm", ["miprov2", "random_search", "dspy.gepa"])
def test_other_algorithms_tune_an_agent_too(algorithm: str, tmp_path: Path) -> None:
    with AgentServer() as agent:
        target = written(tmp_path, agent.spec())
        result, _ = optimized(target, tmp_path, algorithm=algorithm, max_calls=300)
    gained(result)
    assert result.winner is not None
    assert result.winner.predictors["system"].demos == ()


# --- what is sent and what is read ------------------------------------------------------------------------------------


def spec(**more: Any) -> AgentSpec:
    base = {"url": "http://127.0.0.1:9/x", "components": {"system": "Answer."}, "inputs": ["q"], "outputs": ["a"]}
    return parse({**base, **more}, source="agent.json")


def test_a_request_is_a_template() -> None:
    template = {
        "ask": "{{inputs.q}}",
        "n": "{{inputs.n}}",
        "line": "Q: {{inputs.q}}",
        "p": ["{{components.system}}", 7],
    }
    body = spec(inputs=["q", "n"], request=template).body({"system": "Be brief."}, {"q": "why?", "n": [1, 2]})
    assert body == {"ask": "why?", "n": [1, 2], "line": "Q: why?", "p": ["Be brief.", 7]}


def test_values_that_look_like_places_are_left_as_they_are() -> None:
    body = spec(request={"a": "{{inputs.q}} {{components.system}}"}).body(
        {"system": "{{inputs.q}}"}, {"q": "{{components.system}}"}
    )
    assert body == {"a": "{{components.system}} {{inputs.q}}"}


def test_outputs_are_pointed_at() -> None:
    agent = spec(outputs={"a": "/x/0/y~1z", "b": "/s#/c", "all": ""})
    reply = json.dumps({"x": [{"y/z": 1}], "s": '```json\n{"c": [2]}\n```'})
    assert agent.read(reply) == {"a": 1, "b": [2], "all": json.loads(reply)}
    assert spec(outputs={"a": ""}).read("just text") == {"a": "just text"}
    with pytest.raises(Unreadable, match="no /x/3"):
        pointed({"x": []}, "/x/3")


@pytest.mark.parametrize(
    "hostile", ["", "[" * 100_000, '{"a": NaN}', '{"a"', '"a"', "[]", "7", "null", '{"A": 1}', '{"a": {}}', "\x00"]
)
def test_no_reply_is_more_than_unreadable(hostile: str) -> None:
    agent = spec(outputs={"a": "/a#/b"}, usage={"cost_usd": "/a"})
    with pytest.raises(Unreadable):
        agent.read(hostile)
    assert agent.used(hostile) == (None, None, None)


def test_half_a_character_in_a_reply_can_be_stored() -> None:
    assert spec().read('{"a": "x\\ud83d"}')["a"].encode() == b"x?"


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"url": "ftp://host/x"}, "give http://HOST"),
        ({"url": "http://me:secret@host/x"}, "environment variable"),
        ({"url": "http://host:99999/x"}, "[Pp]ort"),
        ({"components": {}}, "no component"),
        ({"components": {"system": ""}}, "components.system.text"),
        ({"request": {"q": "{{inputs.q}}"}}, "nowhere in the request"),
        ({"request": {"q": "{{inputs.other}} {{components.system}}"}}, "inputs.other"),
        ({"inputs": ["a"]}, "both an input and an output"),
        ({"kind": "soap"}, "kind"),
        ({"timeout_seconds": 0}, "timeout_seconds"),
        ({"retries": 3}, "retries"),
        ({"components": {"forward": "x"}}, "a name that DSPy uses"),
        ({"headers": {"Authorization": "RATCHET_TEST_NO_SUCH"}}, "RATCHET_TEST_NO_SUCH"),
    ],
)
def test_a_spec_that_is_wrong_is_refused_with_the_field(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(BadRequest, match=said):
        RemoteAgent(spec(**wrong))


def test_a_file_that_is_not_there_or_no_spec_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnknownName, match="not there"):
        resolve_target(str(tmp_path / "agent.yaml"))
    (tmp_path / "agent.yaml").write_text("a: [")
    with pytest.raises(BadRequest, match="no YAML"):
        resolve_target(str(tmp_path / "agent.yaml"))


def test_secrets_come_from_the_environment_and_go_nowhere_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AGENT_TOKEN", "s3cret")
    seen: list[str | None] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            seen.append(self.headers["Authorization"])
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b'{"a": "yes"}')

        def log_message(self, format: str, *args: Any) -> None:
            return

    with _serving(Handler) as url:
        header = {"Authorization": {"env": "AGENT_TOKEN", "prefix": "Bearer "}}
        agent = RemoteAgent(spec(url=url, headers=header))
        assert agent(q="?").a == "yes"
    assert seen == ["Bearer s3cret"]
    save_program(agent, tmp_path / "program.json", None)
    assert "s3cret" not in (tmp_path / "program.json").read_text()


def test_a_saved_agent_is_a_target_again(tmp_path: Path) -> None:
    with AgentServer() as agent:
        target = resolve_target(written(tmp_path, agent.spec()))
        target.module.system.signature = target.module.system.signature.with_instructions(f"Take it {MAGIC} three.")
        save_program(target.module, tmp_path / "program.json", target)
        (tmp_path / "agent.json").unlink()
        saved = load_program(tmp_path / "program.json")
        assert saved.system.signature.instructions == f"Take it {MAGIC} three."
        assert saved(text="case #4").label == "birch"
        plain = RemoteAgent(parse(agent.spec(), source="here"))
        plain.load(str(tmp_path / "program.json"))
        assert plain(text="case #5").label == "coral"


def test_a_program_that_is_handed_in_as_text_never_becomes_an_agent(tmp_path: Path) -> None:
    with AgentServer() as agent:
        target = resolve_target(written(tmp_path, agent.spec()))
        save_program(target.module, tmp_path / "agent.out.json", target)
        signature = dspy.Predict("text -> label")
        save_program(signature, tmp_path / "plain.json", replace(target, text="text -> label"))
        state = json.loads((tmp_path / "plain.json").read_text())
        state["ratchet"]["agent"] = json.loads((tmp_path / "agent.out.json").read_text())["ratchet"]["agent"]
        assert type(resolve_target(json.dumps(state)).module) is dspy.Predict
        with pytest.raises(BadRequest, match="was not saved by Ratchet"):
            resolve_target((tmp_path / "agent.out.json").read_text())
        assert agent.requests == 0


# --- whose fault it is ------------------------------------------------------------------------------------------------


def test_what_the_agent_refuses_or_garbles_is_a_failed_run(tmp_path: Path) -> None:
    with AgentServer(refuse=422, garbage=0.15) as agent:
        result, run = optimized(written(tmp_path, agent.spec()), tmp_path)
    kinds = {row.failure.kind for row, _ in run.notebook.evaluations() if row.failure}
    assert kinds == {"refused", "unparseable"}
    assert all(row.score is None for row, _ in run.notebook.evaluations() if row.failure)
    sent = run.notebook.journal.sent()
    assert sent.calls == sent.recorded  # a refusal is recorded too, and not asked for again
    assert run.spend().usd is None
    gained(result)


def test_an_agent_that_is_flaky_is_asked_again(tmp_path: Path) -> None:
    with AgentServer(flaky=0.1) as agent:
        result, run = optimized(written(tmp_path, agent.spec()), tmp_path, max_calls=250)
    gained(result)
    assert agent.requests > agent.unique
    assert run.notebook.journal.sent().calls <= 250
    assert not [row for row, _ in run.notebook.evaluations() if row.failure]


@pytest.mark.parametrize(
    ("fault", "said"),
    [({"status": 503}, "503"), ({"status": 404}, "url"), ({"status": 401}, "headers"), ({}, "answer")],
)
def test_an_agent_that_is_down_stops_the_optimization(fault: dict[str, Any], said: str, tmp_path: Path) -> None:
    with AgentServer(**fault) as agent:
        target = written(tmp_path, agent.spec())
        if not fault:
            agent.close()
        run = begun(target, tmp_path, "http://127.0.0.1:9/v1")
        ended = carry_out(_impatient(run))
    assert ended.status == "failed"
    assert isinstance(ended.error, LmUnavailable)
    assert "the agent sorter" in str(ended.error)
    assert said in str(ended.error)
    assert not ended.result


def test_an_agent_that_hangs_stops_the_optimization(tmp_path: Path) -> None:
    with AgentServer(hang=True) as agent:
        run = begun(written(tmp_path, agent.spec(timeout_seconds=0.1)), tmp_path, "http://127.0.0.1:9/v1")
        ended = carry_out(_impatient(run))
    assert isinstance(ended.error, LmUnavailable)
    assert "no answer in 0.1 s" in str(ended.error)


def _impatient(run: Run) -> Run:
    run.gateway.limits = replace(run.gateway.limits, retry_seconds=0.2, first_retry_seconds=0.2)
    return run


def test_a_reply_that_is_too_long_is_a_failure() -> None:
    with AgentServer(longer=5000) as agent, pytest.raises(dspy.LMInvalidRequestError, match="more than 1000 bytes"):
        RemoteAgent(parse(agent.spec(max_reply_bytes=1000), source="here"))(text="case #1")


def test_a_redirection_is_not_followed() -> None:
    elsewhere: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            elsewhere.append(self.path)
            self.send_response(307)
            self.send_header("Location", "/elsewhere")
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:
            return

    with _serving(Handler) as url, pytest.raises(dspy.LMError, match="redirections are not followed"):
        RemoteAgent(spec(url=url))(q="?")
    assert elsewhere == ["/x"]


class _serving:  # noqa: N801
    """An HTTP server with a handler, for as long as it is needed; gives its address."""

    def __init__(self, handler: Callable[..., BaseHTTPRequestHandler]) -> None:
        self._server = HTTPServer(("127.0.0.1", 0), handler)

    def __enter__(self) -> str:
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return f"http://127.0.0.1:{self._server.server_port}/x"

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


# --- budget, journal, prices ------------------------------------------------------------------------------------------


def test_the_limit_of_calls_is_never_passed(tmp_path: Path) -> None:
    with AgentServer() as agent, StubServer() as writer:
        run = begun(written(tmp_path, agent.spec()), tmp_path, writer.base, max_calls=90)
        run.execute()
        assert agent.requests + writer.requests <= 90
        assert run.notebook.journal.sent().calls == agent.requests + writer.requests


def test_a_price_is_known_where_the_reply_tells_it(tmp_path: Path) -> None:
    usage = {"prompt_tokens": "/usage/in", "completion_tokens": "/usage/out", "cost_usd": "/usage/usd"}
    with AgentServer(cost_usd=0.002) as agent:
        _, run = optimized(written(tmp_path, agent.spec(usage=usage)), tmp_path, max_calls=90)
    row = next(row for row, _ in run.notebook.evaluations())
    assert (row.usage.prompt_tokens, row.usage.completion_tokens, row.usage.cost_usd) == (11, 3, 0.002)


def test_somebody_must_write_the_texts(tmp_path: Path) -> None:
    with AgentServer() as agent, pytest.raises(BadRequest, match="--reflection-lm"):
        begun(written(tmp_path, agent.spec()), tmp_path, "http://127.0.0.1:9/v1", reflection_lm=None)
    assert agent.requests == 0


def test_a_limit_in_dollars_needs_a_price(tmp_path: Path) -> None:
    with AgentServer() as agent, pytest.raises(BadRequest, match="price of agent/sorter is not known"):
        begun(written(tmp_path, agent.spec()), tmp_path, "http://127.0.0.1:9/v1", price=(1.0, 1.0), max_usd=1.0)


def test_a_killed_optimization_resumes_without_calling_the_agent_twice(tmp_path: Path) -> None:
    forked = multiprocessing.get_context("forkserver")
    forked.set_forkserver_preload(["ratchet.testing.runs", "gepa", "optuna"])
    with AgentServer(latency=0.01) as agent, StubServer(latency=0.01) as writer:
        target = written(tmp_path, agent.spec())
        options: dict[str, Any] = {
            "target": target,
            "lm": None,
            "reflection_lm": "openai/stub",
            "max_calls": 110,
            "concurrency": 4,
        }
        process = forked.Process(target=work, args=(writer.base, tmp_path, options))
        process.start()
        while agent.requests < 45 and process.is_alive():
            time.sleep(0.001)
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        before = agent.requests
        known = identity(tmp_path)
        assert known is not None
        run = again(known, tmp_path)
        ended = carry_out(run)
        assert ended.status in ("improved", "no_proven_gain")
        assert agent.requests > before
        sent = run.notebook.journal.sent()
        assert sent.calls - sent.recorded <= 4  # what was under way when it was killed
        assert agent.requests + writer.requests <= sent.calls <= 110
        undisturbed = carry_out(begin(writer.base, tmp_path / "again", **options))
    assert (ended.status, ended.program) == (undisturbed.status, undisturbed.program)


def test_an_agent_that_moved_cannot_be_resumed(tmp_path: Path) -> None:
    with AgentServer() as agent:
        target = written(tmp_path, agent.spec())
        run = begun(target, tmp_path, "http://127.0.0.1:9/v1")
        written(tmp_path, agent.spec(url="http://127.0.0.1:9/other"))
        with pytest.raises(BadRequest, match="its program was"):
            again(run.id, tmp_path)

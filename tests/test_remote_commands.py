"""``ratchet --server URL``: each command does there what it does here, or says what to do instead."""

from __future__ import annotations

import json
import os
import re
import signal
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
import sqlalchemy as sa
import typer
from typer.testing import CliRunner, Result

from ratchet.calls import KINDS
from ratchet.cli.app import app
from ratchet.cli.remote.asked import request
from ratchet.cli.remote.connection import find
from ratchet.cli.server import ABOUT_SERVERS, HERE, REMOTE, leaves
from ratchet.client import Client
from ratchet.core.errors import BadRequest, Denied, Missing
from ratchet.desk import UPLOADS
from ratchet.options import Options
from ratchet.programs.remote_algorithm import Address
from ratchet.testing.lm_server import SIGNATURE, StubServer
from ratchet.testing.runs import TIMES
from ratchet.testing.service import a_lesson, actor, data
from ratchet.testing.serving import ServingProcess, ServingThread

FILES = {"result.json", "program.json", "certificate.json", "report.html"}
COMMANDS = sorted(leaves(typer.main.get_command(app)))


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with data, and an installation of its own."""
    (tmp_path / "mails.jsonl").write_bytes(data(140))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RATCHET_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("RATCHET_NO_MLFLOW", "1")
    return tmp_path


@pytest.fixture
def there(here: Path, serving: ServingProcess, monkeypatch: pytest.MonkeyPatch) -> ServingProcess:
    """The same, with a developer's key for the server."""
    for name, value in serving.environment_for("developer").items():
        monkeypatch.setenv(name, value)
    return serving


def ratchet(*words: object, code: int | None = 0) -> Result:
    result = CliRunner().invoke(app, [str(word) for word in words])
    assert "Traceback" not in result.output
    assert code is None or result.exit_code == code, result.output
    return result


def optimize(stub: StubServer, *more: object, code: int = 0) -> Any:
    """What the command prints as JSON."""
    lm = ("--lm", "openai/stub", "--lm-base", stub.base)
    words = ("--data", "mails.jsonl", *lm, "--algorithm", "gepa", "--max-calls", 300, "--json")
    return json.loads(ratchet("optimize", SIGNATURE, *words, *more, code=code).stdout)


@pytest.fixture(scope="module")
def ended(serving: ServingProcess, stub: StubServer, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The id of an optimization that has ended on the server."""
    file = tmp_path_factory.mktemp("data") / "mails.jsonl"
    file.write_bytes(data(140))
    with Client(serving.url, key=serving.key("developer")) as client:
        options = Options(
            target=SIGNATURE,
            data=str(file),
            lm="openai/stub",
            lm_base=stub.base,
            algorithms=("gepa",),
            max_calls=300,
            force=True,
        )
        job = client.optimize(**request(client, options))
        assert client.wait(job["id"])["status"] == "improved"
        return str(job["id"])


def without_times(value: Any) -> Any:
    """JSON data without what differs from one run to the next."""
    if isinstance(value, dict):
        return {name: without_times(each) for name, each in value.items() if name not in TIMES | {"files", "cost_usd"}}
    return [without_times(each) for each in value] if isinstance(value, list) else value


# --- the same as here -------------------------------------------------------------------------------------------------


def test_a_command_gives_the_same_result_and_files_there_as_here(
    there: ServingProcess, stub: StubServer, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    remote = optimize(stub, "--out", "there", "--force", "--seed", 3)
    monkeypatch.delenv("RATCHET_SERVER")
    local = optimize(stub, "--out", "here", "--force", "--seed", 3, "--no-shared-replies")
    for result in (remote, local):
        result.pop("optimization_id")
        result["optimization_details"].pop("spend")
    assert without_times(remote) == without_times(local)
    for folder in ("there", "here"):
        assert {file.name for file in (here / folder).iterdir()} == FILES
        ratchet("verify", f"{folder}/certificate.json")
    programs = [json.loads((here / folder / "program.json").read_text()) for folder in ("there", "here")]
    assert programs[0] == programs[1]


def test_show_prints_there_what_it_prints_here(
    there: ServingProcess, ended: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = [("show", ended), ("show", ended, "--json"), ("show", ended, "--front"), ("show", ended, "--diff")]
    remote = [ratchet(*words).stdout for words in asked]
    monkeypatch.delenv("RATCHET_SERVER")
    monkeypatch.setenv("RATCHET_HOME", str(there.home))  # the server's own database, read as one's own
    local = [ratchet(*words).stdout for words in asked]
    assert [_without_time(text) for text in remote] == [_without_time(text) for text in local]


def _without_time(text: str) -> str:
    """The service notes a moment later than the engine when it was asked for."""
    return re.sub(r'"created_at": ".*"', "", text)


# --- every command ----------------------------------------------------------------------------------------------------


def does_list(ended: str) -> None:
    assert ended in {each["id"] for each in json.loads(ratchet("list", "--json").stdout)}
    assert ended in ratchet("list").stdout
    assert len(json.loads(ratchet("list", "--limit", 1, "--json").stdout)) == 1


def does_show(ended: str) -> None:
    assert json.loads(ratchet("show", ended[:8], "--json").stdout)["result"]["status"] == "improved"
    assert "there is no optimization" in ratchet("show", "nothing", code=2).output


def does_status(ended: str) -> None:
    assert json.loads(ratchet("status", ended, "--json").stdout)["progress"] == 1.0
    assert "286 calls" in ratchet("status", ended).stdout


def does_watch(ended: str) -> None:
    whole = [json.loads(line) for line in ratchet("watch", ended, "--events").stdout.splitlines()]
    assert [event["sequence"] for event in whole] == list(range(1, len(whole) + 1))
    rest = ratchet("watch", ended, "--events", "--after", len(whole) - 1).stdout.splitlines()
    assert [json.loads(line) for line in rest] == whole[-1:]
    assert "improved" in ratchet("watch", ended, "--out", "again").stdout
    assert {file.name for file in Path("again").iterdir()} == FILES


def does_resume(ended: str) -> None:
    done = ratchet("resume", ended, "--json")
    assert json.loads(done.stdout)["optimization_id"] == ended
    assert "has ended before" in done.stderr


def does_optimize(ended: str) -> None:
    assert "no such file" in ratchet("optimize", "a -> b", "--data", "none.jsonl", "--lm", "local", code=2).output


def does_pause(ended: str) -> None:
    assert "improved already" in ratchet("pause", ended, code=2).output


def does_cancel(ended: str) -> None:
    assert "improved already" in ratchet("cancel", ended, code=2).output


def does_algorithms(ended: str) -> None:
    assert {"portfolio", "gepa"} <= {each["name"] for each in json.loads(ratchet("algorithms", "--json").stdout)}
    assert "built in" in ratchet("algorithms").stdout


def does_add(ended: str) -> None:
    refused = ratchet("algorithms", "add", "climb", "https://algorithms.example.com/climb", code=2).output
    assert "takes the role operator" in refused


def does_lessons_list(ended: str) -> None:
    told = json.loads(ratchet("lessons", "list", "--json").stdout)
    assert ended in {each["id"] for each in told["lessons"]}
    assert ended in ratchet("lessons", "list").stdout
    assert "it is that of the key" in ratchet("lessons", "list", "--tenant", "lab", code=2).output


def does_lessons_show(ended: str) -> None:
    assert json.loads(ratchet("lessons", "show", ended[:8], "--json").stdout)["id"] == ended
    assert "there is no lesson" in ratchet("lessons", "show", "nothing", code=2).output


def does_lessons_forget(ended: str) -> None:
    assert "takes the role operator" in ratchet("lessons", "forget", ended, code=2).output


def does_keys_create(ended: str) -> None:
    assert "takes the role admin" in ratchet("keys", "create", "ci", code=2).output


def does_keys_list(ended: str) -> None:
    assert "takes the role admin" in ratchet("keys", "list", code=2).output


def does_keys_revoke(ended: str) -> None:
    assert "takes the role admin" in ratchet("keys", "revoke", "nothing", code=2).output


def does_audit_verify(ended: str) -> None:
    assert "takes the role operator" in ratchet("audit", "verify", code=2).output


def does_delete(ended: str) -> None:
    assert "takes the role operator" in ratchet("delete", ended, code=2).output


def does_compare(ended: str) -> None:
    words = ("--data", "mails.jsonl", "--lm", "openai/stub")
    assert "each once" in ratchet("compare", "a -> b", "gepa", "gepa", *words, code=2).output


def does_remove(ended: str) -> None:
    assert "takes the role operator" in ratchet("algorithms", "remove", "climb", code=2).output


def does_evaluate(ended: str) -> None:
    assert "no such file" in ratchet("evaluate", "a -> b", "--data", "none.jsonl", "--lm", "local", code=2).output


DOES: dict[str, Callable[[str], None]] = {
    "list": does_list,
    "show": does_show,
    "status": does_status,
    "watch": does_watch,
    "resume": does_resume,
    "optimize": does_optimize,
    "pause": does_pause,
    "cancel": does_cancel,
    "algorithms": does_algorithms,
    "algorithms add": does_add,
    "keys create": does_keys_create,
    "keys list": does_keys_list,
    "keys revoke": does_keys_revoke,
    "audit verify": does_audit_verify,
    "algorithms remove": does_remove,
    "evaluate": does_evaluate,
    "compare": does_compare,
    "delete": does_delete,
    "lessons list": does_lessons_list,
    "lessons show": does_lessons_show,
    "lessons forget": does_lessons_forget,
}


def does_not(command: str) -> Callable[[str], None]:
    """A command about what the service tells and does by itself, which takes more than a developer."""

    def asked(ended: str) -> None:
        given = {"webhooks add": ["https://hooks.example.org"], "schedules add": ["nightly.json"]}
        Path("nightly.json").write_text("{}")
        words = given.get(command, ["nothing"][: _needed(command)])
        assert "takes the role operator" in ratchet(*command.split(), *words, code=2).output

    return asked


DOES |= {name: does_not(name) for name in COMMANDS if name.startswith(("webhooks ", "schedules "))}


@pytest.mark.parametrize("command", [name for name in COMMANDS if name not in HERE])
def test_a_command_works_on_a_server_or_says_what_to_do_instead(
    command: str, there: ServingProcess, ended: str
) -> None:
    if command in REMOTE:
        DOES[command](ended)
    else:
        given = ["x", "y"][: _needed(command)]
        refused = ratchet(*command.split(), *given, code=2).output
        assert f"`ratchet {command}` cannot be carried out by the server {there.url}: " in refused
        assert "without --server" in refused.lower()


def _needed(command: str) -> int:
    """How many arguments a command must be given."""
    found: Any = typer.main.get_command(app)
    for word in command.split():
        found = found.commands[word]
    return sum(each.param_type_name == "argument" and each.required for each in found.params)


def test_no_command_that_a_server_carries_out_was_forgotten_or_is_gone() -> None:
    assert set(DOES) == REMOTE
    assert set(COMMANDS) >= REMOTE | HERE


@pytest.mark.parametrize("command", sorted(ABOUT_SERVERS))
def test_a_command_about_a_server_asks_for_one(command: str, here: Path) -> None:
    assert "--server URL" in ratchet(command, "a", code=2).output


@pytest.mark.parametrize("command", ["verify", "models list"])
def test_what_asks_no_database_works_here_all_the_same(command: str, there: ServingProcess) -> None:
    given = ["nothing.json"] if command == "verify" else []
    assert "cannot be carried out" not in ratchet(*command.split(), *given, code=None).output


# --- coming, going and coming back ------------------------------------------------------------------------------------


def test_ctrl_c_leaves_it_running_and_says_how_to_go_on(there: ServingProcess, slow: StubServer, here: Path) -> None:
    words = ("--lm", "openai/stub", "--lm-base", slow.base, "--algorithm", "gepa", "--max-calls", "300")
    process = subprocess.Popen(
        [sys.executable, "-m", "ratchet", "optimize", SIGNATURE, "--data", "mails.jsonl", *words, "--json"],
        env={**os.environ, "PYTHONWARNINGS": "ignore"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    said = ""
    for line in process.stderr:
        said += line
        if "calls" in line:
            process.send_signal(signal.SIGINT)
            break
    out, rest = process.communicate(timeout=60)
    assert process.returncode == 130, said + rest
    identity = json.loads(out)["optimization_id"]
    assert f"ratchet --server {there.url} watch {identity}" in rest
    assert f"ratchet --server {there.url} cancel {identity}" in rest
    with Client(there.url, key=there.key("developer")) as client:
        assert client.optimization(identity)["status"] == "running"
        assert "and stops after the requests under way" in ratchet("pause", identity).stderr
        paused = ratchet("watch", identity, "--json", code=130)
        assert json.loads(paused.stdout) == {"optimization_id": identity, "status": "paused", "error": ""}
        assert f"ratchet --server {there.url} resume {identity}" in paused.stderr
        assert "paused" in ratchet("show", identity).stdout
        client.resume(identity)
    assert json.loads(ratchet("cancel", identity, "--json").stdout)["id"] == identity
    assert json.loads(ratchet("watch", identity, "--json", code=130).stdout)["status"] == "cancelled"


# --- what takes more than a developer ---------------------------------------------------------------------------------


def test_lessons_are_forgotten_there_one_by_its_beginning_or_all(
    quiet: tuple[ServingThread, Client], monkeypatch: pytest.MonkeyPatch
) -> None:
    served, _ = quiet
    for name in ("3f2a01", "3f2b02", "4c0303"):
        served.desk.lessons.keep(a_lesson(name, at=served.desk.clock()))
    served.desk.lessons.keep(a_lesson("3f2a01", at=served.desk.clock(), tenant="other"))
    monkeypatch.setenv("RATCHET_SERVER", served.url)
    monkeypatch.setenv("RATCHET_API_KEY", served.key)
    assert "beginning of 2 ids" in ratchet("lessons", "forget", "3f2", code=2).output
    assert json.loads(ratchet("lessons", "forget", "4c", "--json").stdout) == {"forgotten": 1}
    assert "2 lessons of your tenant on http" in ratchet("lessons", "forget", "--all").stderr
    assert f"your tenant on {served.url} has no lessons yet" in ratchet("lessons", "list").stderr
    assert len(served.desk.lessons.lessons("other")) == 1


def test_an_admin_makes_lists_and_revokes_keys_from_elsewhere(
    serving: ServingProcess, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in serving.environment_for("admin").items():
        monkeypatch.setenv(name, value)
    text = ratchet("keys", "create", "ci", "--role", "viewer", "--days", 1, "--rate", 500).stdout.strip()
    key = json.loads(ratchet("keys", "create", "short", "--json").stdout)
    with Client(serving.url, key=text) as client:
        assert list(client.targets()) == []
    listed = json.loads(ratchet("keys", "list", "--json").stdout)
    assert [(each["name"], each["role"]) for each in listed[-2:]] == [("ci", "viewer"), ("short", "developer")]
    assert key["key"].rpartition("_")[2] not in json.dumps(listed)
    assert "was revoked at" in ratchet("keys", "revoke", key["id"]).stderr
    assert "revoked" in ratchet("keys", "list").stdout
    with Client(serving.url, key=key["key"]) as client, pytest.raises(Denied):
        list(client.targets())
    assert "there is no key 'nothing'" in ratchet("keys", "revoke", "nothing", code=2).output
    assert "it is that of the key" in ratchet("keys", "create", "x", "--tenant", "lab", code=2).output


def test_an_operator_verifies_the_trail_from_elsewhere(
    quiet: tuple[ServingThread, Client], monkeypatch: pytest.MonkeyPatch
) -> None:
    served, client = quiet
    monkeypatch.setenv("RATCHET_SERVER", served.url)
    monkeypatch.setenv("RATCHET_API_KEY", served.key)
    client.keep_target("t", signature="a -> b")
    newest = json.loads(ratchet("audit", "verify", "--json").stdout)
    assert newest == {"holds": True, **{name: next(client.audit())[name] for name in ("number", "hash")}}
    assert newest["hash"] in ratchet("audit", "verify", "--expect", newest["hash"]).stdout
    with served.desk.archive.transaction() as connection:
        connection.execute(sa.text("UPDATE audit SET who = 'nobody' WHERE number = 1"))
    assert "entry 1 of the audit trail was changed" in ratchet("audit", "verify", code=1).output


def test_an_operator_erases_an_optimization_there_and_the_files_that_were_fetched_of_it(
    quiet: tuple[ServingThread, Client], here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    served, client = quiet
    monkeypatch.setenv("RATCHET_SERVER", served.url)
    monkeypatch.setenv("RATCHET_API_KEY", served.key)
    options = Options(target=SIGNATURE, data="mails.jsonl", lm="openai/stub", lm_base="http://127.0.0.1:9/v1")
    job = client.optimize(**request(client, options))["id"]
    fetched = here / "home" / "runs" / job
    fetched.mkdir(parents=True)
    (fetched / "result.json").write_text("{}")
    assert "cancel it first" in ratchet("delete", job, code=2).output
    assert fetched.is_dir()
    client.cancel(job)
    assert f"{job} is erased" in ratchet("delete", job[:8]).stderr
    assert not fetched.exists()
    assert list(client.optimizations()) == []
    assert next(client.audit())["action"] == "optimization.erase"
    assert "there is no optimization" in ratchet("delete", job, code=2).output


def test_an_operator_withdraws_an_algorithm_from_elsewhere(
    quiet: tuple[ServingThread, Client], monkeypatch: pytest.MonkeyPatch
) -> None:
    served, client = quiet
    monkeypatch.setenv("RATCHET_SERVER", served.url)
    monkeypatch.setenv("RATCHET_API_KEY", served.key)
    served.desk.algorithms.register(actor(), "climb", Address(url="https://algorithms.invalid/climb"), [])
    assert "climb" in ratchet("algorithms").stdout
    assert "climb is withdrawn" in ratchet("algorithms", "remove", "climb").stderr
    assert "climb" not in ratchet("algorithms").stdout
    assert next(client.registered_algorithms())["withdrawn_at"] is not None
    assert "no algorithm is registered as 'climber'" in ratchet("algorithms", "remove", "climber", code=2).output


# --- what is sent -----------------------------------------------------------------------------------------------------


@pytest.fixture
def quiet(here: Path) -> Iterator[tuple[ServingThread, Client]]:
    """A server that does no work, and a client of it."""
    served = ServingThread(here / "served")
    served.start()
    with Client(served.url, key=served.key) as client:
        yield served, client
    served.stop()
    served.desk.close()


def test_a_failure_there_is_a_failure_here(
    quiet: tuple[ServingThread, Client], monkeypatch: pytest.MonkeyPatch
) -> None:
    served, client = quiet
    monkeypatch.setenv("RATCHET_SERVER", served.url)
    monkeypatch.setenv("RATCHET_API_KEY", served.key)
    options = Options(target=SIGNATURE, data="mails.jsonl", lm="openai/stub", lm_base="http://127.0.0.1:9/v1")
    job = client.optimize(**request(client, options))["id"]
    notebook = served.desk.archive.open(job)
    notebook.set_status("failed", error="the LM is gone")
    served.desk.jobs.note_end(actor(), job, 1, status="failed", reason="the LM is gone")
    done = ratchet("watch", job, "--json", code=1)
    assert json.loads(done.stdout) == {"optimization_id": job, "status": "failed", "error": "the LM is gone"}
    assert (
        f"failed: the LM is gone. Nothing is lost; go on with: ratchet --server {served.url} resume {job}"
        in done.stderr
    )
    assert json.loads(ratchet("show", job, "--json").stdout)["error"] == "the LM is gone"
    assert "failed: the LM is gone" in ratchet("status", job).stdout


NOT_SENT_AS_THEY_ARE = {
    "data",
    "train",
    "validation",
    "test",
    "lm_key_env",
    "tenant",
    "learn_from",
    "tune_tools",
    "pii",
}


def test_every_option_of_a_command_reaches_the_server(quiet: tuple[ServingThread, Client]) -> None:
    _, client = quiet
    options = Options(
        target=SIGNATURE,
        data="mails.jsonl",
        metric="llm_judge",
        rubric="It sorts well.",
        algorithms=("gepa", "miprov2"),
        lm="openai/stub",
        reflection_lm="openai/big",
        judge_lm="openai/judge",
        lm_base="http://127.0.0.1:9/v1",
        adapter="json",
        module="cot",
        instructions="Sort it.",
        temperature=0.3,
        max_tokens=99,
        lm_timeout=7.0,
        price=(0.4, 1.6),
        max_calls=301,
        max_usd=2.5,
        max_minutes=30.0,
        min_improvement=0.1,
        objectives=(("quality_score", 1.0), ("cost", 0.2)),
        target_values=(("cost", 0.01),),
        max_resource_usage=0.5,
        success_at=0.9,
        seed=5,
        concurrency=3,
        requests_per_minute=60.0,
        tokens_per_minute=1000.0,
        share_replies=False,
        force=True,
        minimise=False,
        max_prompt_tokens=900,
        warm_start=False,
        lessons_may_quote=True,
        fields=(("text", "text"),),
    )
    job = client.optimize(**request(client, options))
    kept = Options.from_json(client.optimization(job["id"])["request"]["options"])
    standard = Options(target="")
    for name in Options.__dataclass_fields__:
        if name not in (
            "data",
            "train",
            "validation",
            "test",
            "lm_key_env",
            "tenant",
            "learn_from",
            "tune_tools",
            "pii",
        ):
            assert getattr(options, name) != getattr(standard, name), f"{name} is not tried here"
            assert getattr(kept, name) == getattr(options, name), name


def test_what_is_said_of_personal_data_goes_along_with_the_file(quiet: tuple[ServingThread, Client]) -> None:
    _, client = quiet
    rows = [{"text": f"Write to jane{n}@example.org", "label": "amber"} for n in range(40)]
    Path("people.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = Options(target="a -> b", data="people.jsonl", pii={"default": "redact"})
    kept = client.dataset(request(client, options)["data"])
    assert kept["privacy"]
    assert "jane" not in json.dumps(kept)
    with pytest.raises(BadRequest, match="leave --pii out"):
        request(client, replace(options, data="people@1"))


def test_a_target_may_be_kept_or_saved_and_data_kept(quiet: tuple[ServingThread, Client]) -> None:
    _, client = quiet
    client.keep_target("sorter", signature=SIGNATURE)
    Path("new mails (2).csv").write_text("text,label\n" + "".join(f"case #{n},amber\n" for n in range(40)))
    Path("program.json").write_text(json.dumps({"ratchet": {"target": "a -> b"}}))
    plain = Options(target="sorter@1", data="new mails (2).csv", lm="openai/stub", lm_base="http://127.0.0.1:9/v1")
    sent = request(client, plain)
    assert sent["target"] == {"id": "sorter@1"}
    assert client.dataset("new-mails-2")["id"] == sent["data"]
    assert client.optimize(**{**sent, "force": True})["target"] == "sorter@1"
    assert request(client, Options(target="sorter", data="new-mails-2@1"))["data"] == "new-mails-2@1"
    assert request(client, Options(target="app.flow:program"))["target"] == {
        "spec": {"import_path": "app.flow:program"}
    }
    Path("rubric.md").write_text("It is kind.")
    judged = request(client, Options(target="a -> b", metric="llm_judge:rubric.md"))
    assert (judged["metric"], judged["rubric"]) == ("llm_judge", "It is kind.")
    saved = request(client, Options(target="program.json"))["target"]
    assert saved == {"spec": {"program": {"ratchet": {"target": "a -> b"}}}}


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (Options(target="app.py:program"), "the target 'app.py:program' is code"),
        (Options(target="a -> b", metric="score.py:metric"), "the metric 'score.py:metric' is code"),
        (Options(target="a -> b", algorithms=("gepa", "climb.py:climb")), "the algorithm 'climb.py:climb' is code"),
        (Options(target="agent.yaml"), "spec of an agent"),
        (Options(target="none.json"), "cannot be read"),
        (Options(target="a -> b", metric="llm_judge:none.md"), "none.md cannot be read"),
        (Options(target="a -> b", tenant="lab"), "--tenant 'lab' cannot be given: on a server it is that of the key"),
        (Options(target="a -> b", train="no/train.csv"), "--train no/train.csv"),
    ],
)
def test_what_cannot_be_sent_is_refused_before_anything_is(
    options: Options, told: str, quiet: tuple[ServingThread, Client]
) -> None:
    _, client = quiet
    with pytest.raises(BadRequest, match=re.escape(told)):
        request(client, options)
    assert list(client.datasets()) == []


def test_an_id_may_be_shortened_as_long_as_it_is_one() -> None:
    jobs = {each: {"id": each} for each in ("3f2a01", "3f2b02", "4c0303")}

    def answer(asked: httpx.Request) -> httpx.Response:
        name = asked.url.path.rpartition("/")[2]
        if name == "optimizations":
            return httpx.Response(200, json={"items": [*jobs.values()], "next": None})
        return httpx.Response(200, json=jobs[name]) if name in jobs else httpx.Response(404, json={"detail": "none"})

    with Client(key="k", transport=httpx.MockTransport(answer)) as client:
        assert [find(client, each)["id"] for each in ("4", "3f2b", "3f2a01")] == ["4c0303", "3f2b02", "3f2a01"]
        with pytest.raises(BadRequest, match="beginning of 2 ids: 3f2a01, 3f2b02"):
            find(client, "3f2")
        with pytest.raises(Missing, match="none"):
            find(client, "5")


# --- the key ----------------------------------------------------------------------------------------------------------


def test_a_key_is_asked_for_and_a_bad_one_told(serving: ServingProcess, here: Path, monkeypatch: Any) -> None:
    server = ("--server", serving.url)
    assert "set RATCHET_API_KEY or give --key-file" in ratchet(*server, "list", code=2).output
    assert "cannot be read" in ratchet(*server, "--key-file", "none", "list", code=2).output
    monkeypatch.setenv("RATCHET_API_KEY", "rk_wrong_key")
    assert "not known" in ratchet(*server, "list", code=2).output
    assert "is no address" in ratchet("--server", "example.com", "list", code=2).output
    assert "is not encrypted" in ratchet("--server", "http://192.0.2.1", "--key-file", "none", "list", code=2).output
    monkeypatch.setenv("RATCHET_API_KEY", serving.key("viewer"))
    assert ratchet(*server, "list").exit_code == 0
    lm = ("--lm", "openai/stub", "--lm-base", serving.lm_base)
    refused = ratchet(*server, "optimize", SIGNATURE, "--data", "mails.jsonl", *lm, code=2).output
    assert "takes the role developer" in refused


def test_the_key_is_nowhere_on_the_command_line() -> None:
    """Others on the machine can read a command line."""
    group: Any = typer.main.get_command(app)
    assert not [each for each in group.params if "--key" in each.opts or "--api-key" in each.opts]


def test_a_key_file_that_others_can_read_is_told(serving: ServingProcess, here: Path) -> None:
    key = here / "key"
    key.write_text(serving.key("viewer"))
    key.chmod(0o644)
    assert "others on this machine can read" in ratchet("--server", serving.url, "--key-file", key, "list").stderr
    key.chmod(stat.S_IRUSR)
    assert "can read" not in ratchet("--server", serving.url, "--key-file", key, "list").stderr


def test_kinds_of_data_are_those_that_the_server_takes() -> None:
    assert set(KINDS.values()) <= set(UPLOADS)
    assert set(UPLOADS.values()) <= set(KINDS)

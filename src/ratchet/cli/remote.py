"""Carries out on a server what ``work`` and ``read`` carry out here: the same words, the same JSON, the same files."""

from __future__ import annotations

import json
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, fields, replace
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import Any

import typer
from rich.console import Console

from ratchet.calls import KINDS
from ratchet.cli.errors import FAILED, STOPPED, say
from ratchet.cli.progress import Progress, clock
from ratchet.client import Client, Json
from ratchet.core.errors import BadRequest, Missing, RatchetError, TrailBroken
from ratchet.core.result import ENDED
from ratchet.engine.archive import Event, Optimization
from ratchet.options import Options
from ratchet.settings import Settings

GOES_ON = ("paused", "cancelled", "failed")
PATIENCE_SECONDS = 5.0
"""How long is waited for a status to follow the last event."""
LOCAL_HOSTS = re.compile(r"https://|http://(localhost|127\.|\[::1\])")


@contextmanager
def client_of(settings: Settings) -> Iterator[Client]:
    """A client of the server that the settings name.

    Raises:
        BadRequest: its address is none, or there is no key for it.
    """
    with Client(checked_url(settings.server), key=key_for(settings)) as client:
        yield client


def checked_url(url: str) -> str:
    """``url``, when it can be the address of a server.

    Raises:
        BadRequest: it cannot.
    """
    if not re.match(r"https?://[^/]", url):
        raise BadRequest(f"--server {url!r} is no address; give one such as http://127.0.0.1:8004")
    if not LOCAL_HOSTS.match(url):
        say(f"warning: {url} is not encrypted, so others on the way can read the key; https:// is")
    return url.rstrip("/")


def key_for(settings: Settings) -> str:
    """The key for the server.

    Raises:
        BadRequest: there is none, or its file cannot be read.
    """
    if settings.key_file is None:
        key = settings.api_key.get_secret_value().strip()
    else:
        try:
            key = settings.key_file.read_text(encoding="utf-8").strip()
            if settings.key_file.stat().st_mode & 0o077:
                say(f"warning: others on this machine can read the key in {settings.key_file}; chmod 600 stops that")
        except (OSError, UnicodeDecodeError) as error:
            raise BadRequest(f"the key file {settings.key_file} cannot be read: {error}") from error
    if not key or not key.isascii() or not key.isprintable():
        source = settings.key_file or "RATCHET_API_KEY"
        raise BadRequest(
            f"there is no key for {settings.server} in {source}; set RATCHET_API_KEY or give --key-file FILE. "
            "`ratchet keys create` makes one, on the server's machine or with an admin's key"
        )
    return key


def check_tenant(tenant: str) -> None:
    """Refuse a tenant that was named: whose things a server shows, the key says.

    Raises:
        BadRequest: one was.
    """
    if tenant != Options(target="").tenant:
        raise BadRequest(f"--tenant {tenant!r} cannot be given: on a server it is that of the key")


# --- what is asked for -----------------------------------------------------------------------------------------------

_NAMES = (
    *("lm", "reflection_lm", "judge_lm", "lm_base", "adapter", "temperature", "max_tokens", "lm_timeout"),
    *("price", "requests_per_minute", "tokens_per_minute", "share_replies", "success_at", "seed", "concurrency"),
    *("force", "tune_tools", "minimise", "max_prompt_tokens", "warm_start", "learn_from", "lessons_may_quote"),
)
"""Options that a server takes under the same name."""
_ELSEWHERE = frozenset(
    {
        *("target", "module", "instructions", "data", "train", "validation", "test", "algorithms", "objectives"),
        *("max_minutes", "min_improvement", "max_calls", "max_usd", "max_resource_usage", "target_values", "fields"),
        *("metric", "rubric", "pii"),
    }
)
"""Options that it takes in another form."""


def request(client: Client, options: Options) -> dict[str, Any]:
    """The body of the request for ``options``; local files of data are uploaded.

    Raises:
        UserError: an option cannot be carried out by a server, or a file is not taken.
    """
    _refuse_code("target", options.target)
    _refuse_code("metric", options.metric)
    for algorithm in options.algorithms:
        _refuse_code("algorithm", algorithm)
    check_tenant(options.tenant)
    standard = Options(target=options.target)
    for name in (each.name for each in fields(Options)):
        if name not in _ELSEWHERE and name not in _NAMES and getattr(options, name) != getattr(standard, name):
            value = getattr(options, name)
            raise BadRequest(f"--{name.replace('_', '-')} {value!r} cannot be given: a server does not take it")
    aims = dict(options.target_values)
    given = {name: getattr(options, name) for name in _NAMES if getattr(options, name) != getattr(standard, name)}
    return {
        **given,
        "target": _target(options),
        "algorithms": list(options.algorithms),
        **_metric(options),
        "objectives": [
            {"metric": metric, "weight": weight, **({"target_value": aims[metric]} if metric in aims else {})}
            for metric, weight in options.objectives
        ],
        "constraints": {
            "max_optimization_time": options.max_minutes * 60,
            "min_improvement_threshold": options.min_improvement,
            "max_resource_usage": options.max_resource_usage,
            **({} if options.max_calls is None else {"max_calls": options.max_calls}),
            **({} if options.max_usd is None else {"max_usd": options.max_usd}),
        },
        "fields": dict(options.fields),
        **_data(client, options),
    }


def _refuse_code(what: str, text: str) -> None:
    if re.search(r"\.py:\w", text):
        raise BadRequest(
            f"the {what} {text!r} is code of this machine, and none is sent to a server; have it installed there, "
            "put on RATCHET_IMPORT_ALLOW by whoever runs it, and name it as package.module:attribute"
        )


def _metric(options: Options) -> dict[str, Any]:
    name, _, file = options.metric.partition(":")
    if name != "llm_judge" or options.rubric is not None:
        return {"metric": options.metric, **({} if options.rubric is None else {"rubric": options.rubric})}
    try:
        return {"metric": name, "rubric": Path(file).expanduser().read_text(encoding="utf-8-sig")}
    except (OSError, UnicodeDecodeError) as error:
        raise BadRequest(f"the metric {options.metric}: {file or 'no file'} cannot be read: {error}") from error


def _target(options: Options) -> dict[str, Any]:
    text = options.target
    if "->" in text:
        spec = {"signature": text, "module": options.module, "instructions": options.instructions}
        return {"spec": {name: value for name, value in spec.items() if value is not None}}
    if text.endswith((".yaml", ".yml")):
        raise BadRequest(
            f"the target {text!r} is the spec of an agent, and a server takes none; without --server, and with "
            "RATCHET_SERVER unset, it is optimized from this machine"
        )
    if text.endswith(".json"):
        try:
            program = json.loads(Path(text).read_text(encoding="utf-8"))
        except OSError as error:
            raise BadRequest(f"the target {text} cannot be read: {error.strerror}") from error
        except ValueError as error:
            raise BadRequest(f"the target {text} is no JSON: {error}") from error
        return {"spec": {"program": program}}
    return {"spec": {"import_path": text}} if ":" in text else {"id": text}


def _data(client: Client, options: Options) -> dict[str, str]:
    """The data sets by the option they stand for; what is no file here is the name of one on the server."""
    given = {name: getattr(options, name) for name in ("data", "train", "validation", "test")}
    found: dict[str, str] = {}
    for part, text in given.items():
        if text is None:
            continue
        path = Path(text)
        if path.is_file():
            name = re.sub(r"[^A-Za-z0-9._-]+", "-", path.stem).strip("-._")[:100] or "data"
            kept = client.upload(name, path, privacy=options.pii)
            say(f"{path}: {kept['rows']} rows, kept as {kept['name']}@{kept['version']}")
            found[part] = kept["id"]
        elif path.suffix.lower() in KINDS or len(path.parts) > 1:
            raise BadRequest(f"--{part} {text}: there is no such file")
        elif options.pii is not None:
            raise BadRequest(f"--{part} {text} is kept on the server as it was cleaned there; leave --pii out")
        else:
            found[part] = text
    return found


# --- carried out -----------------------------------------------------------------------------------------------------


def optimize(options: Options, *, out: Path | None, as_json: bool, settings: Settings) -> None:
    """A new optimization, followed to its end."""
    _check_folder(out)
    with client_of(settings) as client:
        job = client.optimize(**request(client, options))
        _follow(client, job["id"], out=out, as_json=as_json, settings=settings)


def evaluate(
    options: Options, *, data: Path, limit: int | None, out: Path | None, as_json: bool, settings: Settings
) -> None:
    """One program on one data set, followed to its end."""
    with client_of(settings) as client:
        asked = request(client, replace(options, test=str(data)))
        limits = asked["constraints"]
        body = {name: value for name, value in asked.items() if name not in ("algorithms", "objectives", "test")}
        body["constraints"] = {name: limits[name] for name in limits if name != "min_improvement_threshold"}
        job = client.evaluate(**body, data=asked["test"], limit=limit)
        _follow(client, job["id"], rows=out, as_json=as_json, settings=settings)


def compare(options: Options, names: Sequence[str], *, as_json: bool, settings: Settings) -> None:
    """Algorithms side by side, to the end; what an earlier call began is not begun again."""
    from ratchet.cli import render
    from ratchet.cli.remote_contest import contest

    with client_of(settings) as client:
        ended = contest(client, options, names)
    if as_json:
        _print_json(ended.to_json())
    else:
        render.show(render.contest_view(ended))


def resume(identity: str, *, out: Path | None, as_json: bool, settings: Settings) -> None:
    """An optimization that was stopped, followed to its end; of one that has ended the files are fetched."""
    _check_folder(out)
    with client_of(settings) as client:
        job = find(client, identity)
        if job["status"] in GOES_ON:
            client.resume(job["id"])
        _follow(client, job["id"], out=out, as_json=as_json, settings=settings)


def watch(identity: str, *, out: Path | None, as_json: bool, settings: Settings) -> None:
    """An optimization, followed to its end; one that has ended has its files fetched."""
    _check_folder(out)
    with client_of(settings) as client:
        _follow(client, find(client, identity)["id"], out=out, as_json=as_json, settings=settings)


def events(identity: str, *, after: int, settings: Settings) -> None:
    """Every event as a line of JSON."""
    with client_of(settings) as client:
        for event in client.events(find(client, identity)["id"], after=after):
            print(json.dumps(asdict(event), ensure_ascii=False), flush=True)


def _check_folder(out: Path | None) -> None:
    if out is not None:
        from ratchet.publish import check_folder

        check_folder(out)


@dataclass
class _Meter:
    """Calls and dollars of an optimization elsewhere."""

    client: Client
    identity: str
    calls: int = 0
    usd: float | None = 0.0

    def dollars(self) -> float | None:
        """Asked of the server; what it said last when it does not answer."""
        with suppress(RatchetError):  # the stream of events tells what is wrong
            self.usd = self.client.status(self.identity)["spend"]["usd"]
        return self.usd


def _follow(
    client: Client,
    identity: str,
    *,
    out: Path | None = None,
    rows: Path | None = None,
    as_json: bool,
    settings: Settings,
) -> None:
    """Have it come to its end, and tell that.

    Args:
        out: The folder for its files.
        rows: The file for the rows of an evaluation; one in ``out`` if left out.
    """
    rows = rows or (None if out is None else out / "rows.jsonl")
    job = client.optimization(identity)
    if job["status"] in ENDED:
        say(f"optimization {identity} has ended before; nothing is run again")
        _tell_end(client, job, out=out, rows=rows, as_json=as_json, settings=settings)
        return
    try:
        job = watched(client, job)
    except KeyboardInterrupt:
        say(
            f"\nit goes on without you. Follow it again with: {_command(client, 'watch', identity)}\n"
            f"stop it with: {_command(client, 'cancel', identity)}"
        )
        if as_json:
            _print_json({"optimization_id": identity, "status": "running", "error": "no longer followed"})
        raise typer.Exit(STOPPED) from None
    _tell_end(client, job, out=out, rows=rows, as_json=as_json, settings=settings)


def watched(client: Client, job: Json, *, name: str = "") -> Json:
    """The optimization once it is at rest; until then its progress is shown, under ``name`` where it has one."""
    identity, asked = job["id"], job["request"]["options"]
    progress = Progress(
        Console(stderr=True), max_calls=asked["max_calls"], max_seconds=float(asked["max_minutes"]) * 60
    )
    meter = _Meter(client, identity)
    with progress:
        progress.tell(f"{name and f'{name}: '}optimization {identity} on {client.url}")
        progress.watch(lambda: meter.calls, meter.dollars, spent_seconds=job["seconds"])
        for event in client.events(identity):
            meter.calls = event.payload.get("calls", meter.calls)
            progress(Event(kind=event.kind, payload=event.payload))
            if event.kind == "ended" and client.optimization(identity)["wanted"] == "pause":
                break  # the stream stays open for whoever waits until it is resumed
    return _rested(client, identity)


def _rested(client: Client, identity: str) -> Json:
    """The optimization; its last event is told a moment before its status is."""
    end = time.monotonic() + PATIENCE_SECONDS
    while True:
        job = client.optimization(identity)
        if job["status"] != "running" or job["wanted"] == "run" or time.monotonic() > end:
            return job
        time.sleep(0.05)


def _command(client: Client, name: str, identity: str) -> str:
    return f"ratchet --server {client.url} {name} {identity}"


def _tell_end(
    client: Client, job: Json, *, out: Path | None, rows: Path | None, as_json: bool, settings: Settings
) -> None:
    identity, status = job["id"], job["status"]
    if status not in ENDED:
        again = _command(client, "resume", identity) + (f" --out {out}" if out is not None else "")
        say(f"{status}{': ' + job['reason'] if job['reason'] else ''}. Nothing is lost; go on with: {again}")
        if as_json:
            _print_json({"optimization_id": identity, "status": status, "error": job["reason"]})
        raise typer.Exit(FAILED if status == "failed" else STOPPED)
    if status == "evaluated":
        _tell_evaluation(client, job, out=rows, as_json=as_json)
        return
    files = fetch(client, job, out or settings.home / "runs" / identity)
    if as_json:
        _print_json({**job["result"], "files": [str(file) for file in files]})
        return
    from ratchet.cli import render
    from ratchet.core.result import OptimizationResult

    result = OptimizationResult.from_json(job["result"])
    options = Options.from_json(job["request"]["options"])
    render.show(render.result_view(result, sides_of(client, identity)(result, options), files))


def _tell_evaluation(client: Client, job: Json, *, out: Path | None, as_json: bool) -> None:
    from ratchet.cli.work import tell_evaluation

    rows = [json.loads(line) for line in client.file(job["id"], "rows").splitlines()] if out or as_json else []
    summary = {name: value for name, value in job["result"].items() if name != "baseline_performance"}
    tell_evaluation(summary, rows, out=out, as_json=as_json)


def fetch(client: Client, job: Mapping[str, Any], folder: Path) -> tuple[Path, ...]:
    """The files of an optimization that has ended, written to ``folder``; those of an earlier one there are removed."""
    from ratchet.publish import CERTIFICATE, PROGRAM, REPORT, RESULT

    _check_folder(folder)
    written = [folder / RESULT]
    text = json.dumps(job["result"], indent=2, ensure_ascii=False) + "\n"
    written[0].write_text(text, encoding="utf-8")
    files: tuple[tuple[Any, str], ...] = (("program", PROGRAM), ("report", REPORT), ("certificate", CERTIFICATE))
    for name, file in files:
        path = folder / file
        try:
            path.write_bytes(client.file(job["id"], name))
            written.append(path)
        except Missing:  # nothing was certified
            path.unlink(missing_ok=True)
    return tuple(written)


def _print_json(data: Any) -> None:
    print(json.dumps(data, indent=2, ensure_ascii=False, default=str))


# --- read ------------------------------------------------------------------------------------------------------------


def find(client: Client, identity: str) -> Json:
    """An optimization by its id, or by the beginning of it.

    Raises:
        Missing: there is none.
        BadRequest: there are several.
    """
    return by_beginning(identity, client.optimization, client.optimizations)


def by_beginning(identity: str, one: Callable[[str], Json], everything: Callable[[], Iterator[Json]]) -> Json:
    """What ``one`` gives of this id, or of the only one in ``everything`` that begins so.

    Raises:
        Missing: there is none.
        BadRequest: there are several.
    """
    try:
        return one(identity)
    except Missing:
        found = [each["id"] for each in everything() if identity and each["id"].startswith(identity)]
        if not found:
            raise
        if len(found) > 1:
            raise BadRequest(f"{identity!r} is the beginning of {len(found)} ids: {', '.join(found[:5])}") from None
        return one(found[0])


def list_(*, limit: int, as_json: bool, settings: Settings) -> None:
    """Optimizations, the newest first."""
    from ratchet.cli import read

    with client_of(settings) as client:
        found = [_stored(client.optimization(job["id"])) for job in islice(client.optimizations(), limit)]
    read.show_list(found, as_json=as_json, none=f"nothing is stored on {settings.server} yet")


def show(identity: str, *, diff: bool, front: bool, as_json: bool, settings: Settings) -> None:
    """One optimization."""
    from ratchet.cli import read

    with client_of(settings) as client:
        stored = _stored(find(client, identity))
        again = _command(client, "resume" if stored.status in GOES_ON else "watch", stored.id)
        sides = sides_of(client, stored.id)
        read.show_stored(stored, diff=diff, front=front, as_json=as_json, sides=sides, again=again)


def _stored(job: Mapping[str, Any]) -> Optimization:
    """An optimization as it stands in the server's archive."""
    return Optimization(
        id=job["id"],
        status=job["status"],
        created_at=datetime.fromisoformat(job["created_at"]),
        request=job["request"],
        result=job["result"],
        error=job["reason"] if job["status"] == "failed" else "",
        seconds=job["seconds"],
    )


def sides_of(client: Client, identity: str) -> Callable[[Any, Options], Any]:
    """What measures baseline and chosen candidate on the sealed test, from the server's evaluations."""
    from ratchet.core.result import OptimizationResult
    from ratchet.engine.report import Side
    from ratchet.publish import side

    def sides(result: OptimizationResult, options: Options) -> tuple[Side, Side]:
        if result.comparison is None or result.baseline is None or result.winner is None:
            return Side(), Side()
        keys, rows = sealed(client, identity)
        before, after = (
            side([rows[candidate.key, key] for key in keys], success_at=options.success_at, seed=options.seed)
            for candidate in (result.baseline, result.winner)
        )
        return before, after

    return sides


def sealed(client: Client, identity: str) -> tuple[list[str], dict[tuple[str, str], Any]]:
    """The examples that the sealed test of an optimization was opened for, and evaluations by candidate and example."""
    from ratchet.core.evaluation import Evaluation, Failure, Usage
    from ratchet.core.problem import Example

    nameless = Example(inputs={}, labels={})

    def evaluation(row: Mapping[str, Any]) -> Evaluation:
        failed = row["failure_kind"] is not None
        return Evaluation(
            candidate=row["candidate"],
            example=nameless,
            score=row["score"],
            failure=Failure(kind=row["failure_kind"], message=row["failure_message"] or "") if failed else None,
            usage=Usage(**{each.name: row[each.name] for each in fields(Usage)}),
        )

    # The certificate names the examples of the sealed test, in their order.
    keys = [key for key, _, _ in client.certificate(identity)["payload"]["pairs"]]
    rows = client.evaluations(identity)
    return keys, {(row["candidate"], row["example"]): evaluation(row) for row in rows if row["repeat"] == 0}


def algorithms(*, as_json: bool, settings: Settings) -> None:
    """The names that the server takes."""
    from rich.markup import escape

    from ratchet.cli import render

    with client_of(settings) as client:
        found = [*client.algorithms()]
    if as_json:
        _print_json(found)
        return
    for each in found:
        render.show(f"{each['name']:<30} {each['kind']:<10} {escape(each['what'])}")


def add_algorithm(name: str, url: str, secret_env: str | None, settings: Settings) -> None:
    """An algorithm behind a URL, registered by an operator; the server tries it first."""
    with client_of(settings) as client:
        kept = client.register_algorithm(name, url, secret_env=secret_env)
    weak = [promise["what"] for promise in kept["promises"] if not promise["kept"]]
    say(f"{name} stands for {url} on {settings.server}" + (f"; it does not keep: {', '.join(weak)}" if weak else ""))


def remove_algorithm(name: str, settings: Settings) -> None:
    """An algorithm that no new optimization can name; withdrawn by an operator."""
    with client_of(settings) as client:
        client.withdraw_algorithm(name)
    say(f"{name} is withdrawn on {settings.server}; optimizations that were begun with it go on")


def create_key(name: str, *, role: str, tenant: str, days: float | None, rate: int | None, settings: Settings) -> Json:
    """A new key of the own tenant, with its text."""
    check_tenant(tenant)
    with client_of(settings) as client:
        return client.create_key(name, role=role, days=days, requests_per_minute=rate)


def keys(settings: Settings) -> list[Json]:
    """The keys of the own tenant."""
    with client_of(settings) as client:
        return [*client.keys()]


def verify_trail(expected: str | None, settings: Settings) -> Json:
    """The newest entry of the own tenant, after the trail was checked.

    Raises:
        TrailBroken: it does not hold.
    """
    with client_of(settings) as client:
        told = client.verify_audit(expected=expected)
    if not told["holds"]:
        raise TrailBroken(told["reason"], number=told["broken"])
    return {name: told[name] for name in ("holds", "number", "hash")}


def revoke_key(identity: str, settings: Settings) -> Json:
    """A key of the own tenant, taken back."""
    with client_of(settings) as client:
        return client.revoke_key(identity)


def status(identity: str, *, as_json: bool, settings: Settings) -> None:
    """How an optimization is getting on."""
    with client_of(settings) as client:
        now = client.status(find(client, identity)["id"])
    if as_json:
        _print_json(now)
        return
    spend, best, baseline, forecast = now["spend"], now["best_so_far"], now["baseline"], now["forecast"]
    usd = "unknown dollars" if spend["usd"] is None else f"${spend['usd']:.4f}"
    soon = {"pause": ", pauses soon", "cancel": ", stops soon"}.get(now["wanted"], "")
    wanted = soon if now["status"] == "running" else ""
    print(f"{now['id']}  {now['status']}{wanted}" + (f": {now['reason']}" if now["reason"] else ""))
    print(f"phase     {now['phase'] or 'not begun'}, {100 * now['progress']:.0f} % of the budget used")
    if best is not None:
        print(f"best      {best['mean']:.3f} on {best['n']} validation examples", end="")
        print("" if baseline is None else f" (baseline {baseline['mean']:.3f})")
    print(f"spent     {spend['calls']} calls, {usd}, {clock(spend['seconds'])}")
    if forecast is not None:
        print(f"forecast  {forecast['forecast_calls']} calls")


def erase(identity: str, settings: Settings) -> str:
    """The id of an optimization on the server, which is erased; so are its files where ``fetch`` puts them."""
    with client_of(settings) as client:
        found = str(find(client, identity)["id"])
        client.erase(found)
    if re.fullmatch(r"\w+", found):  # it comes from elsewhere, and must name a folder of ours
        shutil.rmtree(settings.home / "runs" / found, ignore_errors=True)
    return found


def stop(identity: str, how: str, *, as_json: bool, settings: Settings) -> None:
    """Have an optimization paused or cancelled."""
    with client_of(settings) as client:
        identity = find(client, identity)["id"]
        job = client.pause(identity) if how == "pause" else client.cancel(identity)
        if as_json:
            _print_json(job)
        else:
            soon = ", and stops after the requests under way" if job["status"] == "running" else ""
            say(f"{identity} is {job['status']}{soon}; go on with: {_command(client, 'resume', identity)}")

"""Has a server do what ``work`` does here: the same words, the same JSON, the same files."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import typer

from ratchet.cli.errors import FAILED, STOPPED, say
from ratchet.cli.output import tell
from ratchet.cli.progress import clock
from ratchet.cli.remote.asked import request
from ratchet.cli.remote.connection import client_of, command, find, print_json
from ratchet.cli.remote.follow import watched
from ratchet.cli.remote.read import GOES_ON, sides_of
from ratchet.client import Client, Json
from ratchet.core.errors import Missing
from ratchet.core.result import ENDED
from ratchet.options import Options
from ratchet.settings import Settings


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
    if out is not None:
        from ratchet.measure import check_file

        check_file(out)
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
    from ratchet.cli.remote.contest import contest

    with client_of(settings) as client:
        ended = contest(client, options, names)
    if as_json:
        print_json(ended.to_json())
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
            tell(json.dumps(asdict(event), ensure_ascii=False))


def status(identity: str, *, as_json: bool, settings: Settings) -> None:
    """How an optimization is getting on."""
    with client_of(settings) as client:
        now = client.status(find(client, identity)["id"])
    if as_json:
        print_json(now)
        return
    spend, best, baseline, forecast = now["spend"], now["best_so_far"], now["baseline"], now["forecast"]
    usd = "unknown dollars" if spend["usd"] is None else f"${spend['usd']:.4f}"
    soon = {"pause": ", pauses soon", "cancel": ", stops soon"}.get(now["wanted"], "")
    wanted = soon if now["status"] == "running" else ""
    tell(f"{now['id']}  {now['status']}{wanted}" + (f": {now['reason']}" if now["reason"] else ""))
    tell(f"phase     {now['phase'] or 'not begun'}, {100 * now['progress']:.0f} % of the budget used")
    if best is not None:
        tell(f"best      {best['mean']:.3f} on {best['n']} validation examples", end="")
        tell("" if baseline is None else f" (baseline {baseline['mean']:.3f})")
    tell(f"spent     {spend['calls']} calls, {usd}, {clock(spend['seconds'])}")
    if forecast is not None:
        tell(f"forecast  {forecast['forecast_calls']} calls")


def stop(identity: str, how: str, *, as_json: bool, settings: Settings) -> None:
    """Have an optimization paused or cancelled."""
    with client_of(settings) as client:
        identity = find(client, identity)["id"]
        job = client.pause(identity) if how == "pause" else client.cancel(identity)
        if as_json:
            print_json(job)
        else:
            soon = ", and stops after the requests under way" if job["status"] == "running" else ""
            say(f"{identity} is {job['status']}{soon}; go on with: {command(client, 'resume', identity)}")


def _check_folder(out: Path | None) -> None:
    if out is not None:
        from ratchet.publish import check_folder

        check_folder(out)


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
            f"\nit goes on without you. Follow it again with: {command(client, 'watch', identity)}\n"
            f"stop it with: {command(client, 'cancel', identity)}"
        )
        if as_json:
            print_json({"optimization_id": identity, "status": "running", "error": "no longer followed"})
        raise typer.Exit(STOPPED) from None
    _tell_end(client, job, out=out, rows=rows, as_json=as_json, settings=settings)


def _tell_end(
    client: Client, job: Json, *, out: Path | None, rows: Path | None, as_json: bool, settings: Settings
) -> None:
    identity, status = job["id"], job["status"]
    if status not in ENDED:
        again = command(client, "resume", identity) + (f" --out {out}" if out is not None else "")
        say(f"{status}{': ' + job['reason'] if job['reason'] else ''}. Nothing is lost; go on with: {again}")
        if as_json:
            print_json({"optimization_id": identity, "status": status, "error": job["reason"]})
        raise typer.Exit(FAILED if status == "failed" else STOPPED)
    if status == "evaluated":
        _tell_evaluation(client, job, out=rows, as_json=as_json)
        return
    files = fetch(client, job, out or settings.home / "runs" / identity)
    if as_json:
        print_json({**job["result"], "files": [str(file) for file in files]})
        return
    from ratchet.cli import render
    from ratchet.core.result import OptimizationResult

    result = OptimizationResult.from_json(job["result"])
    options = Options.from_json(job["request"]["options"])
    render.show(render.result_view(result, sides_of(client, identity)(result, options), files))


def _tell_evaluation(client: Client, job: Json, *, out: Path | None, as_json: bool) -> None:
    from ratchet.cli.work import tell_evaluation

    wanted = out or as_json or job["result"]["failures"]
    rows = [json.loads(line) for line in client.file(job["id"], "rows").splitlines()] if wanted else []
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

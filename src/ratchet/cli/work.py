"""Carries out what a command asked for: runs it, listens for Ctrl-C, publishes, prints."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import typer
from rich.console import Console

from ratchet.begin import new_run, resumed_run
from ratchet.bootstrap import open_archive
from ratchet.carry_out import carry_out
from ratchet.cli import render
from ratchet.cli.errors import STOPPED, exit_code, say
from ratchet.cli.output import tell
from ratchet.cli.progress import Progress
from ratchet.core.errors import Cancelled, InUse, RatchetError, UserError, WorldFailure
from ratchet.core.result import OptimizationResult
from ratchet.engine.archive import Archive
from ratchet.engine.certificate import load_or_make_key
from ratchet.options import Options
from ratchet.prepare import Given
from ratchet.publish import check_folder, measured, publish
from ratchet.run import Run
from ratchet.settings import Settings


@contextmanager
def stopping(cancel: Callable[[], None], on_stop: Callable[[], None]) -> Iterator[None]:
    """The first Ctrl-C (or SIGTERM) cancels, the second one ends the process; what was recorded is safe either way."""
    asked = False

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        if asked:
            os.write(2, b"\x1b[?25h\n" if os.isatty(2) else b"\n")  # the cursor was hidden while progress was shown
            os._exit(STOPPED)
        asked = True
        on_stop()
        os.write(2, b"\nstopping after the requests under way; press Ctrl-C again to stop at once\n")
        cancel()

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def print_json(data: Any) -> None:
    """``data`` and nothing else on standard output."""
    tell(json.dumps(data, indent=2, ensure_ascii=False, default=str))


def optimize(options: Options, *, out: Path | None, as_json: bool, settings: Settings) -> None:
    """A new optimization, to its end."""
    if out is not None:
        check_folder(out)
    archive = open_archive(settings)
    _carry_out(
        lambda listen: new_run(options, Given(), settings, archive, emit=listen),
        options,
        out=out,
        as_json=as_json,
        settings=settings,
    )


def resume(identity: str, *, out: Path | None, as_json: bool, settings: Settings) -> None:
    """An optimization that was stopped, to its end; one that has ended is published again."""
    if out is not None:
        check_folder(out)
    archive = open_archive(settings)
    stored = archive.find(identity)
    options = Options.from_json(stored.request["options"])
    ended = stored.result is not None and "optimization_id" in stored.result
    result = OptimizationResult.from_json(stored.result) if ended and stored.result else None
    _carry_out(
        lambda listen: resumed_run(stored.id, Given(), settings, archive, emit=listen),
        options,
        out=out,
        as_json=as_json,
        settings=settings,
        spent_seconds=stored.seconds,
        result=result,
    )


def _carry_out(
    begin: Callable[[Any], Run],
    options: Options,
    *,
    out: Path | None,
    as_json: bool,
    settings: Settings,
    spent_seconds: float = 0.0,
    result: OptimizationResult | None = None,
) -> None:
    progress = Progress(Console(stderr=True), max_calls=options.max_calls, max_seconds=options.max_minutes * 60)
    run: Run | None = None
    try:
        with progress:
            run = begin(progress)
            folder = out or settings.home / "runs" / run.id
            progress.watch(lambda: run.gateway.calls, lambda: run.spend().usd, spent_seconds=spent_seconds)
            if result is None:
                progress.tell(f"optimization {run.id}")
                with stopping(run.cancel, lambda: setattr(progress, "stopping", True)):
                    result, files = carry_out(run, folder, settings=settings, warn=progress.tell)
            else:
                progress.tell(f"optimization {run.id} has ended before; nothing is run again")
                files = publish(run, result, folder, key=load_or_make_key(settings.home))
    except RatchetError as error:
        if run is None:
            raise
        _tell_stop(run, error, out=out, as_json=as_json)
        raise typer.Exit(exit_code(error)) from error
    if as_json:
        print_json({**result.to_json(), "files": [str(file) for file in files]})
    else:
        render.show(render.result_view(result, measured(run.notebook, result, options), files))


def _tell_stop(run: Run, error: RatchetError, *, out: Path | None, as_json: bool) -> None:
    again = f"ratchet resume {run.id}" + (f" --out {out}" if out is not None else "")
    if isinstance(error, Cancelled):
        say(f"cancelled after {run.gateway.calls} calls; nothing is lost. Go on with: {again}")
    elif isinstance(error, UserError) and not isinstance(error, InUse):  # it would be refused again
        say(f"failed: {error}\n{run.gateway.calls} calls were sent")
    else:
        say(f"failed: {error}\n{run.gateway.calls} calls were sent. When the cause is gone, go on with: {again}")
    if as_json:
        status = "cancelled" if isinstance(error, Cancelled) else "failed"
        print_json({"optimization_id": run.id, "status": status, "error": str(error)})


def evaluate(
    options: Options, *, data: Path, limit: int | None, out: Path | None, as_json: bool, settings: Settings
) -> None:
    """One program on one file."""
    from ratchet.measure import begin, check_file, row_json
    from ratchet.programs.datasets import read_rows

    if out is not None:
        check_file(out)
    archive = open_archive(settings)
    progress = Progress(
        Console(stderr=True), max_calls=options.max_calls, max_seconds=options.max_minutes * 60, best="mean so far"
    )
    with progress:
        measurement = begin(options, read_rows(data), settings, archive, file=data, limit=limit, emit=progress)
        run = measurement.run
        progress.watch(lambda: run.gateway.calls, lambda: run.spend().usd, spent_seconds=0.0)
        progress.tell(f"evaluation {run.id}: {len(measurement.examples)} examples")
        with stopping(run.cancel, lambda: setattr(progress, "stopping", True)):
            rows = measurement.execute()
    tell_evaluation(measurement.summary(rows), [row_json(row) for row in rows], out=out, as_json=as_json)


def tell_evaluation(
    summary: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], *, out: Path | None, as_json: bool
) -> None:
    """What was measured, and its rows in a file where one is named."""
    from ratchet.engine.report import Measure, Side
    from ratchet.measure import MEASURES, write_rows

    if out is not None:
        write_rows(out, rows)
    if failures := [row["failure"] for row in rows if row["failure"]]:
        say(f"{len(failures)} of {summary['n']} runs failed; the first: {failures[0]}")
    if as_json:
        print_json({**summary, "rows": rows})
        return
    measures = {
        name: Measure(
            mean=summary[name]["mean"], interval=summary[name]["interval"] and tuple(summary[name]["interval"])
        )
        for name in MEASURES
    }
    n, spend = summary["n"], summary["spend"]
    render.show(render.side_view(Side(**measures, failures=summary["failures"]), n=n, title=f"{n} examples"))
    usd = "unknown dollars" if spend["usd"] is None else render.usd(spend["usd"])
    say(f"{spend['calls']} calls, {usd}; stored as {summary['evaluation_id']}" + (f"; rows in {out}" if out else ""))


def compare(options: Options, names: Sequence[str], *, as_json: bool, settings: Settings) -> None:
    """Algorithms side by side, to the end; what an earlier call did is not done again."""
    from ratchet.contest import contest

    def carry(name: str, run: Run) -> OptimizationResult:
        progress = Progress(Console(stderr=True), max_calls=options.max_calls, max_seconds=options.max_minutes * 60)
        with progress:
            run.listen(progress)
            spend = run.spend()
            progress.watch(lambda: run.gateway.calls, lambda: run.spend().usd, spent_seconds=spend.seconds)
            progress.tell(f"{name}: optimization {run.id}")
            try:
                with stopping(run.cancel, lambda: setattr(progress, "stopping", True)):
                    folder = settings.home / "runs" / run.id
                    return carry_out(run, folder, settings=settings, warn=progress.tell)[0]
            except RatchetError as error:
                progress.tell(f"{name} ended without a result: {error}")
                raise

    try:
        ended = contest(options, names, Given(), settings, open_archive(settings), carry=carry)
    except (Cancelled, WorldFailure):
        say("nothing is lost; the same command goes on from here")
        raise
    if as_json:
        print_json(ended.to_json())
    else:
        render.show(render.contest_view(ended))


def archive_if_there(settings: Settings) -> Archive | None:
    """The archive, unless that would make a new, empty one."""
    there = settings.database_url is not None or (settings.home / "ratchet.db").is_file()
    return open_archive(settings) if there else None

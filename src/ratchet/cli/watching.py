"""The commands about an optimization on a server: status, watch, pause, cancel."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ratchet.cli import flags
from ratchet.cli.begin import begin, examples

_Out = Annotated[Path | None, flags.flag("out", "Folder for the files; RATCHET_HOME/runs/ID if left out.")]


def add_to(app: typer.Typer) -> None:
    """Add them."""
    for name, command in (("status", status), ("watch", watch), ("pause", pause), ("cancel", cancel)):
        app.command(name, epilog=examples(f"ratchet --server http://127.0.0.1:8004 {name} 3f2a"))(command)


def _remote(ctx: typer.Context) -> tuple[Any, Any]:
    from ratchet.cli.remote import work

    return work, begin(ctx)


def status(ctx: typer.Context, identity: flags.Identity, json: flags.Json = False) -> None:
    """How an optimization on a server is getting on: phase, progress, best so far, spend, forecast."""
    work, settings = _remote(ctx)
    work.status(identity, as_json=json, settings=settings)


def watch(
    ctx: typer.Context,
    identity: flags.Identity,
    events: Annotated[bool, flags.flag("events", "Print every event as a line of JSON instead.")] = False,
    after: Annotated[int, flags.flag("after", "With --events: the last event that is known.", min=0)] = 0,
    out: _Out = None,
    json: flags.Json = False,
) -> None:
    """Follow an optimization on a server to its end, and fetch its files. Ctrl-C leaves it running."""
    work, settings = _remote(ctx)
    if events:
        work.events(identity, after=after, settings=settings)
    else:
        work.watch(identity, out=out, as_json=json, settings=settings)


def pause(ctx: typer.Context, identity: flags.Identity, json: flags.Json = False) -> None:
    """Have an optimization on a server stop for now; `ratchet resume` goes on."""
    work, settings = _remote(ctx)
    work.stop(identity, "pause", as_json=json, settings=settings)


def cancel(ctx: typer.Context, identity: flags.Identity, json: flags.Json = False) -> None:
    """Have an optimization on a server stop for good; what was recorded stays."""
    work, settings = _remote(ctx)
    work.stop(identity, "cancel", as_json=json, settings=settings)

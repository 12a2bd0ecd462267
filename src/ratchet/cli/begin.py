"""How every command begins and what every help page ends with."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import typer

from ratchet.cli.output import results_alone
from ratchet.cli.server import FLAGS


def examples(*lines: str) -> str:
    """An epilog; a blank line keeps each example on its own."""
    return "[bold]Examples[/]\n\n" + "\n\n".join(f"  {line}" for line in lines)


def begin(ctx: typer.Context, *, no_mlflow: bool = False) -> Any:
    """What the environment says; from now on libraries are quiet, unless all logs were asked for, and print to standard
    error only."""
    from ratchet.cli.noise import quiet
    from ratchet.settings import Settings, collect_rarely, quiet_libraries

    ctx.with_resource(results_alone())
    quiet_libraries()
    collect_rarely()
    if not ctx.obj:
        quiet()
    changed = ctx.meta.get(FLAGS, {}) | ({"mlflow": False} if no_mlflow else {})
    return Settings().model_copy(update=changed)


def place(settings: Any, room: str) -> Any:
    """Where a command is carried out: by a module of this room here, or by a server."""
    return import_module(f"ratchet.cli.{'remote.' if settings.server else ''}{room}")

"""How every command begins and what every help page ends with."""

from __future__ import annotations

from typing import Any

import typer


def examples(*lines: str) -> str:
    """An epilog; a blank line keeps each example on its own."""
    return "[bold]Examples[/]\n\n" + "\n\n".join(f"  {line}" for line in lines)


def begin(ctx: typer.Context, *, no_mlflow: bool = False) -> Any:
    """What the environment says; from now on libraries are quiet, unless all logs were asked for."""
    from ratchet.cli.noise import quiet
    from ratchet.settings import Settings, quiet_libraries

    quiet_libraries()
    if not ctx.obj:
        quiet()
    settings = Settings()
    return settings.model_copy(update={"mlflow": False}) if no_mlflow else settings

"""``ratchet --server URL``: which commands a server can carry out, and those that are about one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from ratchet.cli import flags
from ratchet.core.errors import BadRequest

FLAGS = "ratchet.server"
"""Where a command's context keeps what was said of the server, as fields of the settings."""

Server = Annotated[
    str | None, flags.flag("server", "The service to work on, such as http://127.0.0.1:8004.", metavar="URL")
]
KeyFile = Annotated[
    Path | None,
    flags.flag("key-file", "A file with the key for it; RATCHET_API_KEY if left out.", metavar="FILE"),
]

REMOTE = frozenset(
    {
        *("optimize", "evaluate", "compare", "list", "show", "resume", "status", "watch", "pause", "cancel", "delete"),
        *("algorithms", "algorithms add", "algorithms remove", "lessons list", "lessons show", "lessons forget"),
        *("keys create", "keys list", "keys revoke", "audit verify"),
        *("webhooks add", "webhooks list", "webhooks remove", "webhooks resume", "webhooks ping", "webhooks dead"),
        *("webhooks redeliver", "schedules add", "schedules list", "schedules remove", "schedules pause"),
        "schedules resume",
    }
)
"""Commands that a server carries out."""

HERE = frozenset({"verify", "models list", "models pull", "algorithms check", "data scan", "data clean", "mcp"})
"""Commands that are carried out here whether there is a server or not."""

INSTEAD = {
    "demo": "give the server a target and data: `ratchet optimize`",
    "serve": "it begins a server on this machine",
    "worker": "it works beside a server, on the server's own database: set RATCHET_DATABASE_URL",
    **dict.fromkeys(
        ("vault status", "vault rotate", "vault drop", "vault encrypt"),
        "the master keys are on the machine of whoever runs the server, and are not sent anywhere",
    ),
}
"""What to do about the commands that no server carries out; those that are not named are refused too."""


def note(ctx: typer.Context, url: str | None, key_file: Path | None) -> None:
    """Keep what was said of the server."""
    said = {"server": url, "key_file": key_file}
    ctx.meta[FLAGS] = {name: value for name, value in said.items() if value is not None}


def check(path: str, ctx: Any) -> None:
    """Refuse a command that cannot be carried out where it was asked to be.

    Raises:
        BadRequest: it cannot.
    """
    url = ctx.meta.get(FLAGS, {}).get("server")
    if url and path not in REMOTE | HERE:
        why = INSTEAD.get(path, "it works on this machine only")
        raise BadRequest(
            f"`ratchet {path}` cannot be carried out by the server {url}: {why}. Without --server, and with "
            "RATCHET_SERVER unset, it works on this machine"
        )
    if not url and path in ABOUT_SERVERS:
        raise BadRequest(
            f"`ratchet {path}` is about a server; say which with --server URL or RATCHET_SERVER. On this machine, "
            "`ratchet optimize` shows how it gets on, Ctrl-C stops it and `ratchet resume` goes on"
        )


def guard(group: Any, path: tuple[str, ...] = ()) -> None:
    """Have every command in ``group`` refuse what cannot be."""
    for name, command in group.commands.items():
        whole = (*path, name)
        if hasattr(command, "commands"):
            guard(command, whole)
            if not command.invoke_without_command:
                continue
        _check_before(command, " ".join(whole))


def _check_before(command: Any, path: str) -> None:
    invoke: Callable[[Any], Any] = command.invoke

    def checked(ctx: Any) -> Any:
        # A group with a subcommand is no command by itself; Click keeps its name here until it is resolved.
        if not getattr(ctx, "_protected_args", None):
            check(path, ctx)
        return invoke(ctx)

    command.invoke = checked


def leaves(group: Any, path: tuple[str, ...] = ()) -> Iterator[str]:
    """The full names of all commands."""
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from leaves(command, (*path, name))
        if not hasattr(command, "commands") or command.invoke_without_command:
            yield " ".join((*path, name))


# --- the commands that are about a server ----------------------------------------------------------------------------

ABOUT_SERVERS = frozenset({"status", "watch", "pause", "cancel"})
_Out = Annotated[Path | None, flags.flag("out", "Folder for the files; RATCHET_HOME/runs/ID if left out.")]


def add_to(app: typer.Typer) -> None:
    """Add them."""
    from ratchet.cli.begin import examples

    for name, command in (("status", status), ("watch", watch), ("pause", pause), ("cancel", cancel)):
        app.command(name, epilog=examples(f"ratchet --server http://127.0.0.1:8004 {name} 3f2a"))(command)


def _remote(ctx: typer.Context) -> tuple[Any, Any]:
    from ratchet.cli.begin import begin
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

"""``ratchet --server URL``: which commands a server can carry out."""

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

ABOUT_SERVERS = frozenset({"status", "watch", "pause", "cancel"})
"""Commands that a server alone carries out."""

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

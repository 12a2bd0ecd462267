"""The commands of the service: serve, worker, keys, audit."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Annotated, Any

import typer

from ratchet.cli import flags
from ratchet.cli.begin import begin, place
from ratchet.cli.errors import say
from ratchet.cli.output import tell
from ratchet.core.errors import BadRequest

keys = typer.Typer(no_args_is_help=True, help="API keys of the service.")
audit = typer.Typer(no_args_is_help=True, help="The audit trail of the service.")


def check_installed() -> None:
    """Refuse to go on without what the service needs.

    Raises:
        BadRequest: a package is not there.
    """
    for package in ("dbos", "fastapi", "jwt", "prometheus_client", "psycopg", "uvicorn", "websockets"):
        if find_spec(package) is None:
            raise BadRequest(f"the service needs {package}; pip install 'dspy-ratchet[service]' brings all it needs")


def _settings(ctx: typer.Context) -> Any:
    settings = begin(ctx)
    if not settings.server:  # else the server has what the service needs
        check_installed()
    return settings


def serve(
    ctx: typer.Context,
    host: Annotated[str, flags.flag("host", "Address to listen on; others than this machine's need a key first.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, flags.flag("port", "Port to listen on.", min=0, max=65535)] = 8004,
    no_worker: Annotated[bool, flags.flag("no-worker", "Only answer; `ratchet worker` does the work.")] = False,
) -> None:
    """Serve the API, with live events, and work on what is asked for.

    The first start prints an admin key. What was under way when it stops, or is killed, goes on when it starts again.
    """
    settings = _settings(ctx)
    from ratchet.service.serve import serve

    serve(settings, host=host, port=port, with_worker=not no_worker, say=say)


def worker(ctx: typer.Context) -> None:
    """Work on what a service was asked for, beside others on the same database."""
    settings = _settings(ctx)
    from ratchet.service.serve import work

    work(settings, say=say)


@keys.command("create")
def keys_create(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(help="What it is for.")],
    role: Annotated[str, flags.flag("role", "viewer, developer, operator or admin.")] = "developer",
    tenant: Annotated[str, flags.flag("tenant", "Whose things it sees.")] = "default",
    days: Annotated[float | None, flags.flag("days", "Days until it expires; never if left out.", min=0.0001)] = None,
    rate: Annotated[int | None, flags.flag("rate", "Requests a minute; RATCHET_KEY_RATE if left out.", min=1)] = None,
    json: flags.Json = False,
) -> None:
    """Make a key, and show it this once; with --server, one of your own tenant."""
    settings = _settings(ctx)
    from ratchet.cli.work import print_json

    made = place(settings, "house").create_key(name, role=role, tenant=tenant, days=days, rate=rate, settings=settings)
    if json:
        print_json(made)
    else:
        say(f"key {made['id']} for a {made['role']} of {made['tenant']}; it is shown only now:")
        tell(made["key"])


@keys.command("list")
def keys_list(ctx: typer.Context, json: flags.Json = False) -> None:
    """The keys there are; not their secrets, which nobody has. With --server, those of your own tenant."""
    settings = _settings(ctx)
    from ratchet.cli.work import print_json

    found = place(settings, "house").keys(settings)
    if json:
        print_json(found)
        return
    for key in found:
        end = f"revoked {key['revoked_at']}" if key["revoked_at"] else f"until {key['expires_at'] or 'revoked'}"
        tell(f"{key['id']}  {key['role']:<10} {key['tenant']:<16} {key['name']:<20} {end}")


@keys.command("revoke")
def keys_revoke(
    ctx: typer.Context, identity: Annotated[str, typer.Argument(metavar="ID", help="From `ratchet keys list`.")]
) -> None:
    """Take a key back, at once and for good."""
    settings = _settings(ctx)
    key = place(settings, "house").revoke_key(identity, settings)
    say(f"key {key['id']} was revoked at {key['revoked_at']}")


@audit.command("verify")
def audit_verify(
    ctx: typer.Context,
    expect: Annotated[str | None, flags.flag("expect", "A hash that was noted down; it must be there.")] = None,
    json: flags.Json = False,
) -> None:
    """Check that no entry was edited, removed or moved; ends with 1, naming the first that was.

    Note the hash it prints down elsewhere: with --expect it shows that the trail was not rewritten as a whole. With
    --server it is the hash of your tenant's newest entry, which binds all that came before it.
    """
    settings = _settings(ctx)
    from ratchet.cli.work import print_json

    newest = place(settings, "house").verify_trail(expect, settings)
    if json:
        print_json(newest)
    elif newest["hash"] is None:
        tell("holds; your tenant has no entry yet")
    else:
        tell(f"holds: entry {newest['number']} is the newest, with the hash {newest['hash']}")

"""The commands about what is stored: its master keys, and how it is erased."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from ratchet.cli import flags
from ratchet.cli.begin import begin, place
from ratchet.cli.errors import say
from ratchet.cli.output import tell

vault = typer.Typer(no_args_is_help=True, help="The keys that what is stored is encrypted under.")


def _opened(settings: Any, name: str) -> tuple[Any, Any, Any]:
    """Archive, audit trail, and whoever sits at this machine."""
    from datetime import UTC, datetime

    from ratchet.bootstrap import open_archive
    from ratchet.core.access import Actor
    from ratchet.storage.audit import Audit

    archive = open_archive(settings)
    actor = Actor(name=name, tenant="default", role="admin", origin="this machine")
    return archive, Audit(archive, clock=lambda: datetime.now(UTC)), actor


def _rotation(ctx: typer.Context) -> tuple[Any, Any]:
    from ratchet.storage.rotation import Rotation

    archive, audit, actor = _opened(begin(ctx), "ratchet vault")
    return Rotation(archive, audit), actor


@vault.command("status")
def status(ctx: typer.Context, json: flags.Json = False) -> None:
    """The master keys, and how many data keys hang on each."""
    from dataclasses import asdict

    from ratchet.cli.work import print_json

    rotation, _ = _rotation(ctx)
    found = rotation.status()
    if json:
        print_json([asdict(use) for use in found])
        return
    for use in found:
        what = "wraps what is new" if use.first else "may be dropped" if not use.data_keys else "rotate moves them"
        words = what if use.here else "NOT HERE: what hangs on it cannot be read"
        tell(f"{use.id:<16} {use.fingerprint}  {use.data_keys:>7} data keys  {words}")


@vault.command("rotate")
def rotate(ctx: typer.Context) -> None:
    """Put everything under a new master key, while others go on working; killed, it goes on when called again.

    The master keys in the key file get a new first one; those in RATCHET_KEYS are yours to change first.
    """
    rotation, actor = _rotation(ctx)
    moved = rotation.rotate(actor)
    first, *older = rotation.status()
    say(f"{moved} data keys moved; {first.data_keys} are under {first.id} now")
    for use in older:
        say(f"once all processes were seen to work, and backups are gone: ratchet vault drop {use.id}")


@vault.command("drop")
def drop(
    ctx: typer.Context, identity: Annotated[str, typer.Argument(metavar="ID", help="From `ratchet vault status`.")]
) -> None:
    """Take an old master key out of the key file, for good; not while anything hangs on it."""
    rotation, actor = _rotation(ctx)
    rotation.drop(actor, identity)
    say(f"the master key {identity} is gone; backups from before the rotation cannot be read any more")


@vault.command("encrypt")
def encrypt(ctx: typer.Context) -> None:
    """Encrypt what was stored before there was encryption; call it again when something was being worked on."""
    rotation, actor = _rotation(ctx)
    say(f"{rotation.encrypt(actor)} rows are encrypted that were not")


def delete(ctx: typer.Context, identity: flags.Identity) -> None:
    """Erase an optimization for good: its data, prompts, replies and files in RATCHET_HOME.

    Its data key is destroyed, so that copies of the database are unreadable too, where they are without that key. Files
    written with --out are yours, and stay. With --server it takes an operator.
    """
    settings = begin(ctx)
    found = place(settings, "vault").erase(identity, settings)
    say(f"{found} is erased; the audit trail tells that it was")


def erase(identity: str, settings: Any) -> str:
    """The id of an optimization in the database here, which is erased."""
    from dataclasses import replace

    from ratchet.storage.erasure import Eraser
    from ratchet.storage.shelf import Shelf

    archive, audit, actor = _opened(settings, "ratchet delete")
    eraser = Eraser(archive, audit, Shelf(archive, audit), runs=settings.home / "runs")
    found = str(archive.identity(identity))
    eraser.optimization(replace(actor, tenant=eraser.tenant_of(found) or actor.tenant), found)
    return found

"""What the service tells and does by itself: ``ratchet webhooks`` and ``ratchet schedules``."""

from __future__ import annotations

import json as json_
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import typer

from ratchet.cli import flags
from ratchet.cli.errors import say
from ratchet.cli.output import tell
from ratchet.cli.serving import _settings
from ratchet.core.errors import BadRequest

webhooks = typer.Typer(no_args_is_help=True, help="Where the service sends its events.")
schedules = typer.Typer(no_args_is_help=True, help="What the service begins by the clock.")

Tenant = Annotated[str, flags.flag("tenant", "Whose it is.")]
Webhook = Annotated[str, typer.Argument(metavar="ID", help="From `ratchet webhooks list`.")]
Schedule = Annotated[str, typer.Argument(metavar="ID", help="From `ratchet schedules list`.")]


@contextmanager
def _house(ctx: typer.Context, tenant: str, command: str) -> Iterator[Any]:
    """What is asked: a server through its client, or the desk on this machine in the same words."""
    settings = _settings(ctx)
    from dataclasses import replace

    if settings.server:
        from ratchet.cli.remote.connection import check_tenant, client_of

        check_tenant(tenant)
        with client_of(settings) as client:
            yield client
        return
    from ratchet.bootstrap import open_desk
    from ratchet.cli.telling_here import DeskHere
    from ratchet.service.serve import here

    yield DeskHere(desk=open_desk(settings), actor=replace(here(f"ratchet {command}"), tenant=tenant))


@webhooks.command("add")
def webhooks_add(
    ctx: typer.Context,
    url: Annotated[str, typer.Argument(metavar="URL", help="https, and public unless RATCHET_WEBHOOK_ALLOW lists it.")],
    event: Annotated[
        list[str] | None, typer.Option("--event", help="A type of event, with * for any part; all if left out.")
    ] = None,
    tenant: Tenant = "default",
    json: flags.Json = False,
) -> None:
    """Have events sent to an address from now on, and show once the secret that signs them."""
    from ratchet.cli.work import print_json
    from ratchet.listeners import EVERYTHING

    with _house(ctx, tenant, "webhooks") as house:
        webhook = house.add_webhook(url, events=event or EVERYTHING)
    if json:
        print_json(webhook)
    else:
        say(f"webhook {webhook['id']} sends {', '.join(webhook['events'])}; its secret is shown only now:")
        tell(webhook["secret"])


@webhooks.command("list")
def webhooks_list(ctx: typer.Context, tenant: Tenant = "default", json: flags.Json = False) -> None:
    """The webhooks there are, the newest first, and how they are getting on."""
    from ratchet.cli.work import print_json

    with _house(ctx, tenant, "webhooks") as house:
        found = [*house.webhooks()]
    if json:
        print_json(found)
        return
    for each in found:
        failing = f"failing since {each['failing_since']}: {each['error']}" if each["failing_since"] else "well"
        how = f"paused: {each['reason']}" if each["paused"] else failing
        tell(f"{each['id']}  {each['url']}  {how}")


@webhooks.command("remove")
def webhooks_remove(ctx: typer.Context, identity: Webhook, tenant: Tenant = "default") -> None:
    """Send nothing more; its dead letters go with it."""
    with _house(ctx, tenant, "webhooks") as house:
        house.remove_webhook(identity)
    say(f"webhook {identity} is removed")


@webhooks.command("resume")
def webhooks_resume(ctx: typer.Context, identity: Webhook, tenant: Tenant = "default") -> None:
    """Send again, from where it was paused."""
    with _house(ctx, tenant, "webhooks") as house:
        house.resume_webhook(identity)
    say(f"webhook {identity} sends again")


@webhooks.command("ping")
def webhooks_ping(ctx: typer.Context, identity: Webhook, tenant: Tenant = "default") -> None:
    """Send one event now; ends with 1 when it does not arrive."""
    with _house(ctx, tenant, "webhooks") as house:
        pong = house.ping_webhook(identity)
    if not pong["delivered"]:
        say(f"{pong['event']} did not arrive: {pong['error']}")
        raise typer.Exit(1)
    tell(f"{pong['event']} arrived: {pong['status']}")


@webhooks.command("dead")
def webhooks_dead(ctx: typer.Context, identity: Webhook, tenant: Tenant = "default", json: flags.Json = False) -> None:
    """The events that were given up, the newest first; at most 500."""
    from ratchet.cli.work import print_json

    with _house(ctx, tenant, "webhooks") as house:
        found = [*islice(house.dead_letters(identity), 500)]
    if json:
        print_json(found)
        return
    for dead in found:
        tell(f"{dead['event']}  {dead['type']}  {dead['attempts']} tries until {dead['at']}: {dead['error']}")


@webhooks.command("redeliver")
def webhooks_redeliver(
    ctx: typer.Context,
    identity: Webhook,
    event: Annotated[str | None, typer.Option("--event", help="One of them; all if left out.")] = None,
    tenant: Tenant = "default",
) -> None:
    """Have a worker try dead letters again."""
    with _house(ctx, tenant, "webhooks") as house:
        count = house.redeliver(identity, event=event)["events"]
    say(f"{count} {'event is' if count == 1 else 'events are'} tried again")


@schedules.command("add")
def schedules_add(
    ctx: typer.Context,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="JSON, as POST /api/v1/schedules takes it.")],
    tenant: Tenant = "default",
    json: flags.Json = False,
) -> None:
    """Have a cycle, or one optimization, begun by the clock."""
    from ratchet.cli.work import print_json

    try:
        body = json_.loads(file.read_bytes())
    except OSError as error:
        raise BadRequest(f"{file} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise BadRequest(f"{file} is no JSON: {error}") from error
    if not isinstance(body, dict):
        raise BadRequest(f"{file} is no JSON object")
    with _house(ctx, tenant, "schedules") as house:
        schedule = house.add_schedule(**body)
    if json:
        print_json(schedule)
    else:
        tell(f"{schedule['id']} begins {schedule['optimizations']} optimizations, next at {schedule['next_at']}")


@schedules.command("list")
def schedules_list(ctx: typer.Context, tenant: Tenant = "default", json: flags.Json = False) -> None:
    """The schedules there are, the newest first, and what came of them last."""
    from ratchet.cli.work import print_json

    with _house(ctx, tenant, "schedules") as house:
        found = [*house.schedules()]
    if json:
        print_json(found)
        return
    for each in found:
        at = each["next_at"] or "never: paused"
        tell(f"{each['id']}  {each['cron']} {each['timezone']}  next at {at}  {each['outcome']}")


@schedules.command("remove")
def schedules_remove(ctx: typer.Context, identity: Schedule, tenant: Tenant = "default") -> None:
    """Begin no more cycles; those that were begun go on."""
    with _house(ctx, tenant, "schedules") as house:
        house.remove_schedule(identity)
    say(f"schedule {identity} is removed")


@schedules.command("pause")
def schedules_pause(ctx: typer.Context, identity: Schedule, tenant: Tenant = "default") -> None:
    """Begin no cycles for now."""
    with _house(ctx, tenant, "schedules") as house:
        house.pause_schedule(identity)
    say(f"schedule {identity} is paused")


@schedules.command("resume")
def schedules_resume(ctx: typer.Context, identity: Schedule, tenant: Tenant = "default") -> None:
    """Go on with the next time."""
    with _house(ctx, tenant, "schedules") as house:
        schedule = house.resume_schedule(identity)
    say(f"schedule {identity} comes next at {schedule['next_at']}")

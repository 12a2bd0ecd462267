"""What the service tells and does by itself: ``ratchet webhooks`` and ``ratchet schedules``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ratchet.cli import flags
from ratchet.cli.errors import say
from ratchet.cli.serving import _settings
from ratchet.core.errors import BadRequest

webhooks = typer.Typer(no_args_is_help=True, help="Where the service sends its events.")
schedules = typer.Typer(no_args_is_help=True, help="What the service begins by the clock.")

Tenant = Annotated[str, flags.flag("tenant", "Whose it is.")]
Webhook = Annotated[str, typer.Argument(metavar="ID", help="From `ratchet webhooks list`.")]
Schedule = Annotated[str, typer.Argument(metavar="ID", help="From `ratchet schedules list`.")]


def _desk(ctx: typer.Context, tenant: str, command: str) -> tuple[Any, Any]:
    settings = _settings(ctx)
    from dataclasses import replace

    from ratchet.bootstrap import open_desk
    from ratchet.service.serve import here

    return open_desk(settings), replace(here(f"ratchet {command}"), tenant=tenant)


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
    desk, actor = _desk(ctx, tenant, "webhooks")
    from dataclasses import asdict

    from ratchet.cli.work import print_json
    from ratchet.listeners import EVERYTHING

    webhook, secret = desk.listeners.add(actor, url=url, types=event or EVERYTHING)
    if json:
        print_json({**asdict(webhook), "secret": secret})
    else:
        say(f"webhook {webhook.id} sends {', '.join(webhook.types)}; its secret is shown only now:")
        print(secret)


@webhooks.command("list")
def webhooks_list(ctx: typer.Context, tenant: Tenant = "default", json: flags.Json = False) -> None:
    """The webhooks there are, the newest first, and how they are getting on."""
    desk, actor = _desk(ctx, tenant, "webhooks")
    from dataclasses import asdict

    from ratchet.cli.work import print_json

    found = [webhook for _, webhook in desk.webhooks.page(actor.tenant, before=None, limit=500)]
    if json:
        print_json([asdict(webhook) for webhook in found])
        return
    for webhook in found:
        failing = f"failing since {webhook.failing_since}: {webhook.error}" if webhook.failing_since else "well"
        print(f"{webhook.id}  {webhook.url}  {f'paused: {webhook.reason}' if webhook.paused else failing}")


@webhooks.command("remove")
def webhooks_remove(ctx: typer.Context, identity: Webhook, tenant: Tenant = "default") -> None:
    """Send nothing more; its dead letters go with it."""
    desk, actor = _desk(ctx, tenant, "webhooks")
    desk.webhooks.remove(actor, identity)
    say(f"webhook {identity} is removed")


@webhooks.command("resume")
def webhooks_resume(ctx: typer.Context, identity: Webhook, tenant: Tenant = "default") -> None:
    """Send again, from where it was paused."""
    desk, actor = _desk(ctx, tenant, "webhooks")
    desk.webhooks.resume(actor, identity)
    say(f"webhook {identity} sends again")


@webhooks.command("ping")
def webhooks_ping(ctx: typer.Context, identity: Webhook, tenant: Tenant = "default") -> None:
    """Send one event now; ends with 1 when it does not arrive."""
    desk, actor = _desk(ctx, tenant, "webhooks")
    pong = desk.listeners.ping(actor, identity)
    if not pong.delivered:
        say(f"{pong.event} did not arrive: {pong.error}")
        raise typer.Exit(1)
    print(f"{pong.event} arrived: {pong.status}")


@webhooks.command("dead")
def webhooks_dead(ctx: typer.Context, identity: Webhook, tenant: Tenant = "default", json: flags.Json = False) -> None:
    """The events that were given up, the newest first; at most 500."""
    desk, actor = _desk(ctx, tenant, "webhooks")
    from dataclasses import asdict

    from ratchet.cli.work import print_json

    found = desk.webhooks.dead(actor.tenant, identity, limit=500)
    if json:
        print_json([asdict(dead) for dead in found])
        return
    for dead in found:
        print(f"{dead.event}  {dead.type}  {dead.attempts} tries until {dead.at}: {dead.error}")


@webhooks.command("redeliver")
def webhooks_redeliver(
    ctx: typer.Context,
    identity: Webhook,
    event: Annotated[str | None, typer.Option("--event", help="One of them; all if left out.")] = None,
    tenant: Tenant = "default",
) -> None:
    """Have a worker try dead letters again."""
    desk, actor = _desk(ctx, tenant, "webhooks")
    count = desk.webhooks.redeliver(actor, identity, event)
    say(f"{count} {'event is' if count == 1 else 'events are'} tried again")


@schedules.command("add")
def schedules_add(
    ctx: typer.Context,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="JSON, as POST /api/v1/schedules takes it.")],
    tenant: Tenant = "default",
    json: flags.Json = False,
) -> None:
    """Have a cycle, or one optimization, begun by the clock."""
    desk, actor = _desk(ctx, tenant, "schedules")
    from pydantic import ValidationError

    from ratchet.cli.work import print_json
    from ratchet.service.routes.cycles import ScheduleBody, ScheduleOut

    try:
        body = ScheduleBody.model_validate_json(file.read_bytes())
    except OSError as error:
        raise BadRequest(f"{file} cannot be read: {error.strerror}") from error
    except ValidationError as error:
        first = error.errors()[0]
        raise BadRequest(f"{file}: {'.'.join(map(str, first['loc'])) or 'it'}: {first['msg']}") from error
    schedule = desk.batch.add(
        actor, body.orders(), name=body.name, cron=body.cron, timezone=body.timezone, overlap=body.overlap
    )
    out = ScheduleOut.of(schedule, desk)
    if json:
        print_json(out.model_dump())
    else:
        print(f"{out.id} begins {out.optimizations} optimizations, next at {out.next_at}")


@schedules.command("list")
def schedules_list(ctx: typer.Context, tenant: Tenant = "default", json: flags.Json = False) -> None:
    """The schedules there are, the newest first, and what came of them last."""
    desk, actor = _desk(ctx, tenant, "schedules")
    from ratchet.cli.work import print_json
    from ratchet.service.routes.cycles import ScheduleOut

    page = desk.batch.schedules.page(actor.tenant, before=None, limit=500)
    found = [ScheduleOut.of(schedule, desk) for _, schedule in page]
    if json:
        print_json([each.model_dump() for each in found])
        return
    for each in found:
        print(f"{each.id}  {each.cron} {each.timezone}  next at {each.next_at or 'never: paused'}  {each.outcome}")


@schedules.command("remove")
def schedules_remove(ctx: typer.Context, identity: Schedule, tenant: Tenant = "default") -> None:
    """Begin no more cycles; those that were begun go on."""
    desk, actor = _desk(ctx, tenant, "schedules")
    desk.batch.remove(actor, identity)
    say(f"schedule {identity} is removed")


@schedules.command("pause")
def schedules_pause(ctx: typer.Context, identity: Schedule, tenant: Tenant = "default") -> None:
    """Begin no cycles for now."""
    desk, actor = _desk(ctx, tenant, "schedules")
    desk.batch.switch(actor, identity, paused=True)
    say(f"schedule {identity} is paused")


@schedules.command("resume")
def schedules_resume(ctx: typer.Context, identity: Schedule, tenant: Tenant = "default") -> None:
    """Go on with the next time."""
    desk, actor = _desk(ctx, tenant, "schedules")
    schedule = desk.batch.switch(actor, identity, paused=False)
    say(f"schedule {identity} comes next at {desk.batch.next_at(schedule)}")

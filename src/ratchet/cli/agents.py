"""``ratchet mcp``: the service as tools for agents."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from importlib.util import find_spec
from typing import Annotated, Any

import typer

from ratchet.cli import flags
from ratchet.cli.begin import begin, examples
from ratchet.cli.errors import say
from ratchet.cli.output import results
from ratchet.core.errors import BadRequest

EXAMPLES = examples(
    "RATCHET_API_KEY=rk_... ratchet --server http://127.0.0.1:8004 mcp",
    "ratchet --server http://127.0.0.1:8004 mcp --http --port 8014",
    "ratchet mcp --role viewer",
)
LAST_HOURS = 24 * 7
"""How long the key lives that the tools use on this machine's own database; it is taken back at the end."""
HANDOVER_SECONDS = 1.0
"""How long is waited for requests under way when the agent goes; what is not done then goes on the next time."""


def mcp(
    ctx: typer.Context,
    http: Annotated[bool, flags.flag("http", "Listen on 127.0.0.1; each caller brings a key.")] = False,
    port: Annotated[int, flags.flag("port", "With --http: the port.", min=1, max=65535)] = 8014,
    role: Annotated[
        str, flags.flag("role", "Without --server: viewer, developer, operator or admin of this machine.")
    ] = "developer",
) -> None:
    """Give agents tools over the Model Context Protocol: optimize, status, result, list, cancel, versions, promote.

    The tools act with the role of the key that was given, at the server that was named; without --server on this
    machine's own database, with --role. An agent talks to it over standard input and output, or with --http at
    http://127.0.0.1:8014/mcp.
    """
    settings = begin(ctx)
    if find_spec("mcp") is None:
        raise BadRequest("agents' tools need mcp; pip install 'dspy-ratchet[mcp]' brings it")
    from ratchet.agent_tools import tool_server

    with _door(settings, role, http=http) as (door, whose):
        server = tool_server(door, whose=whose)
        say(whose)
        if http:
            say(f"agents find it at http://127.0.0.1:{port}/mcp")
            server.run("streamable-http", host="127.0.0.1", port=port, stateless_http=True, json_response=True)
        else:
            with redirect_stdout(results()):  # the protocol is what it has to tell
                server.run("stdio")


@contextmanager
def _door(settings: Any, role: str, *, http: bool) -> Iterator[tuple[Any, str]]:
    """Where the tools go in, and with whose role, in a sentence."""
    from ratchet.agent_tools import Door
    from ratchet.cli.remote.connection import checked_url, key_for

    brought = "with the role of the key that each caller sends as 'Authorization: Bearer KEY'."
    if settings.server:
        url = checked_url(settings.server)
        key = None if http else key_for(settings)
        whose = brought if http else "with the role of the key that was configured."
        yield Door(url=url, key=key), f"The tools act at {url}, {whose}"
        return
    with _own_service(settings, role) as (transport, key):
        whose = brought if http else f"as a {role} of the tenant default (`ratchet mcp --role` says as what)."
        door = Door(url="http://ratchet", key=None if http else key, transport=transport)
        yield door, f"No server was named, so the tools act on this machine, in {settings.home.resolve()}, {whose}"


@contextmanager
def _own_service(settings: Any, role: str) -> Iterator[tuple[Any, str]]:
    """The service in this process, with a worker, and a key for it."""
    from ratchet.cli.serving import check_installed

    check_installed()
    from datetime import timedelta

    import httpx

    from ratchet.bootstrap import new_worker, open_desk
    from ratchet.service.app import create_app
    from ratchet.service.serve import here

    desk = open_desk(settings)
    try:
        me = here("ratchet mcp")
        until = desk.clock() + timedelta(hours=LAST_HOURS)
        key, text = desk.keys.create(me, name="ratchet mcp", tenant=me.tenant, role=role, expires_at=until)
        worker = new_worker(desk, settings, say=say)
        worker.start()
        try:
            yield httpx.ASGITransport(create_app(desk)), text
        finally:
            desk.keys.revoke(me, key.id)  # first: an agent that goes does not wait long for its tools to end
            worker.close(seconds=HANDOVER_SECONDS)
    finally:
        desk.close()

"""Agents' tools, driven by the protocol's own client: they may what their key may, and say what to do."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import httpx2
import pytest
from mcp import Client, StdioServerParameters
from mcp.client.streamable_http import streamable_http_client
from typer.testing import CliRunner

from ratchet.agent_tools import Door, Outcome, tool_server
from ratchet.cli.app import app
from ratchet.client import AsyncClient
from ratchet.core.access import Role, allows
from ratchet.testing.lm_server import SIGNATURE, StubServer, rows
from ratchet.testing.ports import free_port
from ratchet.testing.serving import ServingProcess

TOOLS = {"optimize", "status", "result", "list", "cancel", "versions", "promote"}


def command(folder: Path, environment: dict[str, str], *more: str) -> StdioServerParameters:
    """``ratchet mcp`` as an agent is told to begin it."""
    shared = {name: os.environ[name] for name in ("PYTHONPATH",) if name in os.environ}
    quiet = {"PYTHONWARNINGS": "ignore", "RATCHET_MLFLOW": "false", "RATCHET_HOME": str(folder / "home")}
    words = ["-m", "ratchet", "mcp", *more]
    return StdioServerParameters(command=sys.executable, args=words, env={**shared, **quiet, **environment}, cwd=folder)


class Agent:
    """Calls tools."""

    def __init__(self, client: Client) -> None:
        self.client = client

    async def does(self, tool: str, **arguments: Any) -> dict[str, Any]:
        """What the tool answers, as data."""
        found = await self.client.call_tool(tool, arguments)
        assert not found.is_error, found.content
        assert found.structured_content is not None
        return dict(found.structured_content)

    async def is_told(self, tool: str, **arguments: Any) -> str:
        """What the tool says it cannot do."""
        found = await self.client.call_tool(tool, arguments)
        assert found.is_error, found.structured_content
        return str(getattr(found.content[0], "text", ""))

    async def optimize(self, base: str, *, target: str = SIGNATURE, **more: Any) -> dict[str, Any]:
        """An optimization of the stub's own task."""
        lm = {"lm": "openai/stub", "lm_base": base, "algorithms": ["gepa"]}
        return await self.does("optimize", target=target, rows=rows(140), max_calls=300, **lm, **more)


@asynccontextmanager
async def agent_of(server: Any) -> AsyncIterator[Agent]:
    async with Client(server) as client:
        yield Agent(client)


# --- over standard input and output -----------------------------------------------------------------------------------


@pytest.mark.parametrize("role", ["viewer", "operator", "admin"])  # a developer does more, below
async def test_an_agent_may_what_its_key_may(
    role: Role, serving: ServingProcess, slow: StubServer, tmp_path: Path
) -> None:
    async with agent_of(command(tmp_path, serving.environment_for(role))) as agent:
        assert {tool.name for tool in (await agent.client.list_tools()).tools} == TOOLS
        assert f"The tools act at {serving.url}" in str(agent.client.instructions)
        before = (await agent.does("list", limit=100))["items"]
        if not allows(role, "developer"):
            refused = await agent.is_told("optimize", target=SIGNATURE, rows=rows(40), max_calls=300)
            assert "takes the role developer" in refused
            assert "Do not try again with this key" in refused
            assert "takes the role developer" in await agent.is_told("cancel", id="a")
            return
        begun = await agent.optimize(slow.base, request_key=f"by {role}")
        assert begun["status"] == "queued"
        assert (await agent.optimize(slow.base, request_key=f"by {role}"))["id"] == begun["id"]
        cancelled = await agent.does("cancel", id=begun["id"])
        assert cancelled["created_by"].endswith(f"({role})")
        now = await agent.does("status", id=begun["id"], wait_seconds=30)
        assert (now["status"], now["done"]) == ("cancelled", True)
        assert "resumes it" in now["next"]
        listed = (await agent.does("list", limit=100))["items"]
        assert [each["id"] for each in listed] == [begun["id"], *(each["id"] for each in before)]
        assert len((await agent.does("list", status="cancelled", limit=1))["items"]) == 1


async def test_an_agent_gets_from_examples_to_a_proof_and_is_told_what_it_does_wrong(
    serving: ServingProcess, stub: StubServer, tmp_path: Path
) -> None:
    async with agent_of(command(tmp_path, serving.environment_for("developer"))) as agent:
        async with AsyncClient(serving.url, key=serving.key("developer")) as client:
            await client.keep_target("sorter", signature=SIGNATURE)
        begun = await agent.optimize(stub.base, target="sorter", data="mails")
        assert begun["data"] == {"data": "mails@1"}
        assert begun["id"] in begun["next"]
        now = await agent.does("status", id=begun["id"], wait_seconds=60)
        assert now["status"] == "improved"
        assert now["spend"]["calls"] <= 300
        assert now["next"] == f"call result with id {begun['id']}"
        outcome = Outcome.model_validate(await agent.does("result", id=begun["id"]))
        assert outcome.improved
        assert outcome.proof is not None
        assert outcome.proof.interval[0] > 0
        assert outcome.optimized_quality is not None
        assert outcome.baseline_quality is not None
        assert outcome.optimized_quality - outcome.baseline_quality == pytest.approx(outcome.proof.effect)
        assert "modulo" in outcome.instructions["self"]
        assert outcome.certificate == f"{serving.url}/api/v1/optimizations/{begun['id']}/certificate"

        (challenger,) = (await agent.does("versions", target="sorter"))["items"]
        assert (challenger["optimization"], challenger["state"]) == (begun["id"], "challenger")
        assert "takes the role operator" in await agent.is_told("promote", version=challenger["id"])
        async with agent_of(tool_server(Door(url=serving.url, key=serving.key("operator")), whose="")) as operator:
            champion = await operator.does("promote", version=begun["id"])
            assert champion == {**challenger, "state": "champion"}

        again = await agent.does(
            "optimize", target=SIGNATURE, data="mails@1", lm="openai/stub", lm_base=stub.base, max_calls=30
        )
        declined = await agent.does("status", id=again["id"], wait_seconds=60)
        assert declined["status"] == "declined"
        outcome = Outcome.model_validate(await agent.does("result", id=again["id"]))
        assert (outcome.improved, outcome.proof, outcome.optimized_quality, outcome.certificate) == (False,) + (
            None,
        ) * 3


async def test_every_argument_is_described() -> None:
    busy = httpx.Response(503, headers={"Retry-After": "3600"}, json={"detail": "the database is away"})
    door = Door(url="http://ratchet", key="k", transport=httpx.MockTransport(lambda asked: busy))
    async with agent_of(tool_server(door, whose="")) as agent:
        for tool in (await agent.client.list_tools()).tools:
            assert tool.description
            assert tool.output_schema
            assert tool.annotations is not None
            for name, schema in tool.input_schema["properties"].items():
                assert schema.get("description") or name == "limit", f"{tool.name}: {name}"
        refused = await agent.is_told("status", id="a")
        assert "not available now" in refused
        assert "try again in a minute" in refused


async def test_without_a_server_the_tools_say_whose_role_they_have_on_this_machine(
    stub: StubServer, tmp_path: Path
) -> None:
    async with agent_of(command(tmp_path, {"RATCHET_LM_BASES": stub.base})) as agent:
        said = str(agent.client.instructions)
        assert f"on this machine, in {tmp_path / 'home'}, as a developer of the tenant default" in said
        begun = await agent.optimize(stub.base)
        assert (await agent.does("status", id=begun["id"], wait_seconds=60))["status"] == "improved"
        assert (await agent.does("list"))["items"][0]["created_by"].endswith("(ratchet mcp)")
    keys = CliRunner().invoke(app, ["keys", "list", "--json"], env={"RATCHET_HOME": str(tmp_path / "home")})
    assert [key["role"] for key in json.loads(keys.stdout)] == ["developer"]
    assert json.loads(keys.stdout)[0]["revoked_at"] is not None


# --- over HTTP --------------------------------------------------------------------------------------------------------


async def test_over_http_each_caller_acts_with_the_key_it_brings(
    serving: ServingProcess, stub: StubServer, tmp_path: Path
) -> None:
    port = free_port()
    told = command(tmp_path, {"RATCHET_SERVER": serving.url}, "--http", "--port", str(port))
    assert told.env is not None
    environment = {**os.environ, **told.env}
    process = subprocess.Popen([told.command, *told.args], env=environment, stderr=subprocess.PIPE, text=True)
    address = f"http://127.0.0.1:{port}/mcp"
    try:
        assert process.stderr is not None
        said = [process.stderr.readline(), process.stderr.readline()]
        assert "with the role of the key that each caller sends" in said[0]
        assert address in said[1]
        await until_it_listens(port)
        for role in ("developer", "viewer"):
            async with with_key(address, serving.key(role)) as agent:
                if role == "viewer":
                    assert "takes the role developer" in await agent.is_told("cancel", id="none")
                else:
                    assert "there is no optimization" in await agent.is_told("cancel", id="none")
        async with agent_of(address) as agent:
            assert "Authorization: Bearer KEY" in await agent.is_told("list")
    finally:
        process.kill()
        process.communicate()


async def until_it_listens(port: int) -> None:
    for _ in range(400):
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.close()
            return
        except OSError:
            await asyncio.sleep(0.05)


@asynccontextmanager
async def with_key(address: str, key: str) -> AsyncIterator[Agent]:
    async with (
        httpx2.AsyncClient(headers={"Authorization": f"Bearer {key}"}) as http,
        agent_of(streamable_http_client(address, http_client=http)) as agent,
    ):
        yield agent


# --- versions ---------------------------------------------------------------------------------------------------------

VERSION = {
    "id": "v1",
    "target": "sorter",
    "version": 1,
    "optimization": "o1",
    "candidate": "c1",
    "state": "challenger",
    "created_at": "2026-01-01T00:00:00+00:00",
}


def versions(asked: httpx.Request) -> httpx.Response:
    """A server with one version, for operators."""
    if "operator" not in asked.headers["authorization"]:
        return httpx.Response(403, json={"detail": "this takes the role operator"})
    match asked.method, asked.url.path:
        case "GET", "/api/v1/versions":
            return httpx.Response(200, json={"items": [VERSION], "next": None})
        case "POST", "/api/v1/versions/v1/promote":
            return httpx.Response(200, json={**VERSION, "state": "champion"})
    return httpx.Response(404, json={"detail": "there is no version"})


def tools_for(key: str) -> Any:
    return tool_server(Door(url="http://ratchet", key=key, transport=httpx.MockTransport(versions)), whose="")


@pytest.mark.parametrize("named", ["v1", "o1"])
async def test_a_version_is_promoted_by_its_id_or_by_its_optimization(named: str) -> None:
    async with agent_of(tools_for("operator")) as agent:
        assert (await agent.does("versions", target="sorter"))["items"] == [VERSION]
        assert await agent.does("promote", version=named) == {**VERSION, "state": "champion"}


async def test_what_cannot_be_promoted_is_told() -> None:
    async with agent_of(tools_for("operator")) as agent:
        assert "`versions` lists what can be promoted" in await agent.is_told("promote", version="o2")
    async with agent_of(tools_for("developer")) as agent:
        assert "takes the role operator" in await agent.is_told("promote", version="v1")

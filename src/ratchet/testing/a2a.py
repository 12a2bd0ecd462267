"""A small agent that speaks A2A, for tests; it needs ``a2a-sdk[http-server]`` and ``uvicorn``."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from a2a.helpers.proto_helpers import new_data_part, new_text_part
from a2a.server.agent_execution import AgentExecutor, RequestContext
from a2a.server.events import EventQueue
from a2a.server.request_handlers import DefaultRequestHandlerV2
from a2a.server.routes.agent_card_routes import create_agent_card_routes
from a2a.server.routes.jsonrpc_routes import create_jsonrpc_routes
from a2a.server.tasks import InMemoryTaskStore, TaskUpdater
from a2a.types.a2a_pb2 import (
    AgentCapabilities,
    AgentCard,
    AgentInterface,
    AgentSkill,
    Message,
    Role,
    Task,
    TaskState,
    TaskStatus,
)
from google.protobuf.json_format import MessageToDict
from starlette.applications import Starlette

from ratchet.testing.agent import TEXT, label_of
from ratchet.testing.ports import free_port


@dataclass
class Sorter(AgentExecutor):  # type: ignore[misc]
    """Labels a case by a rule; as a message, or as a task with an artifact when the text says so."""

    asked: list[dict[str, Any]] = field(default_factory=list)

    async def execute(self, context: RequestContext, event_queue: EventQueue) -> None:
        """Answer one message."""
        text = context.get_user_input()
        components = MessageToDict(context.message.metadata).get("components", {})
        self.asked.append({"text": text, "components": components})
        said = label_of(text, json.dumps(components))
        if "crash" in text:
            raise RuntimeError("the sorter broke")
        if "slow" in text:
            await asyncio.sleep(0.5)
        if "task" in text or "fail" in text:
            updater = TaskUpdater(event_queue, context.task_id, context.context_id)
            status = TaskStatus(state=TaskState.TASK_STATE_SUBMITTED)
            await event_queue.enqueue_event(Task(id=context.task_id, context_id=context.context_id, status=status))
            if "fail" in text:
                await updater.failed(updater.new_agent_message([new_text_part("not for me")]))
                return
            await updater.add_artifact([new_text_part(said), new_data_part({"label": said})])
            await updater.complete()
            return
        parts = [new_text_part("x" * 5000 if "long" in text else said), new_data_part({"label": said})]
        await event_queue.enqueue_event(Message(role=Role.ROLE_AGENT, message_id="m", parts=parts))

    async def cancel(self, context: RequestContext, event_queue: EventQueue) -> None:
        """Nothing to cancel."""


@dataclass
class Served:
    """A server that is up."""

    url: str
    sorter: Sorter

    def spec(self, **more: Any) -> dict[str, Any]:
        """A spec of this agent, with ``more`` fields."""
        return {
            "kind": "a2a",
            "url": self.url,
            "name": "sorter",
            "components": {"system": TEXT},
            "inputs": ["text"],
            "outputs": ["label"],
            **more,
        }


@contextmanager
def served(host_in_card: str | None = None) -> Iterator[Served]:
    """A server of the protocol's own SDK on this machine.

    Args:
        host_in_card: Where the agent's card says that requests go; to the server itself if left out.
    """
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    interface = AgentInterface(url=f"{host_in_card or url}/rpc", protocol_binding="JSONRPC", protocol_version="1.0")
    card = AgentCard(
        name="sorter",
        description="Sorts cases.",
        version="1",
        supported_interfaces=[interface],
        capabilities=AgentCapabilities(streaming=False),
        default_input_modes=["text/plain"],
        default_output_modes=["text/plain"],
        skills=[AgentSkill(id="sort", name="sort", description="Sorts.", tags=["sort"])],
    )
    sorter = Sorter()
    handler = DefaultRequestHandlerV2(agent_executor=sorter, task_store=InMemoryTaskStore(), agent_card=card)
    routes = [*create_agent_card_routes(card), *create_jsonrpc_routes(handler, "/rpc")]
    server = uvicorn.Server(uvicorn.Config(Starlette(routes=routes), port=port, log_level="critical", ws="none"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield Served(url, sorter)
    finally:
        server.should_exit = True
        thread.join(5)

"""Events while they happen: as server-sent events and over a WebSocket."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Request, WebSocket, WebSocketDisconnect
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.concurrency import run_in_threadpool

from ratchet.core.errors import BadRequest, RatchetError
from ratchet.service import problems
from ratchet.service.access import TheDesk, Viewer, actor_of, desk_of
from ratchet.service.live import Pulse, follow
from ratchet.service.routes.frame import new_router
from ratchet.storage.told import Told

router = new_router("optimizations")
sockets = APIRouter()

After = Annotated[int, Query(ge=0, lt=2**53, description="The number of the last event that is known.")]


@router.get(
    "/optimizations/{identity}/events",
    response_class=StreamingResponse,
    responses={200: {"content": {"text/event-stream": {}}, "description": "Server-sent events."}},
)
async def events(
    identity: str,
    request: Request,
    desk: TheDesk,
    actor: Viewer,
    after: After = 0,
    last: Annotated[int | None, Header(alias="Last-Event-ID", ge=0, lt=2**53)] = None,
) -> StreamingResponse:
    """Every event in order, each with its number as `id`; `after` (or `Last-Event-ID`) goes on behind a known one."""
    await run_in_threadpool(desk.jobs.find, actor.tenant, identity)  # a 404 must come before the stream begins
    known = after if last is None else last
    pulse: Pulse = request.app.state.pulse

    async def lines() -> AsyncIterator[str]:
        async for told in follow(desk, pulse, tenant=actor.tenant, identity=identity, after=known):
            if told is None:
                yield ": nothing new\n\n"
            else:
                yield f"id: {told.sequence}\nevent: {told.kind}\ndata: {json.dumps(_event(told))}\n\n"

    return StreamingResponse(lines(), media_type="text/event-stream", headers={"Cache-Control": "no-store"})


@sockets.websocket("/ws/optimizations/{identity}")
async def websocket(socket: WebSocket, identity: str, after: int = 0) -> None:
    """Every event in order as JSON, each with its number; ``after`` goes on behind a known one."""
    desk = desk_of(socket)
    try:
        actor = await run_in_threadpool(actor_of, socket, "viewer")
        await run_in_threadpool(desk.jobs.find, actor.tenant, identity)
        if not 0 <= after < 2**53:
            raise BadRequest(f"after is {after}; give the number of an event", field="after", value=after)
    except problems.Unauthenticated as error:
        await _deny(socket, problems.document(401, str(error)))
        return
    except RatchetError as error:
        await _deny(socket, problems.of(error))
        return
    await socket.accept()
    sending = asyncio.create_task(_send(socket, identity, actor.tenant, after))
    hearing = asyncio.create_task(_hear(socket))
    done, left = await asyncio.wait({sending, hearing}, return_when=asyncio.FIRST_COMPLETED)
    for task in left:
        task.cancel()
    with suppress(WebSocketDisconnect, RuntimeError, asyncio.CancelledError):
        await asyncio.gather(*left)
    if sending in done:
        with suppress(WebSocketDisconnect, RuntimeError):
            sending.result()
            await socket.close(1012 if socket.app.state.pulse.closed else 1000)  # 1012: the server starts again


async def _deny(socket: WebSocket, problem: dict[str, Any]) -> None:
    response = JSONResponse(problem, status_code=problem["status"], media_type=problems.MEDIA_TYPE)
    await socket.send_denial_response(response)


async def _send(socket: WebSocket, identity: str, tenant: str, after: int) -> None:
    async for told in follow(desk_of(socket), socket.app.state.pulse, tenant=tenant, identity=identity, after=after):
        if told is not None:
            await socket.send_json(_event(told))


async def _hear(socket: WebSocket) -> None:
    """Return when the client has gone; what it says is not listened to."""
    while (await socket.receive())["type"] != "websocket.disconnect":
        pass


def _event(told: Told) -> dict[str, Any]:
    return {"sequence": told.sequence, "at": told.at, "kind": told.kind, "payload": dict(told.payload)}

"""The routes of API v1."""

from __future__ import annotations

import asyncio
import json
import tempfile
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Request, Response, WebSocket, WebSocketDisconnect
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.concurrency import run_in_threadpool

from ratchet.core.errors import BadRequest, RatchetError, TooLarge
from ratchet.core.result import Status
from ratchet.desk import FILES, UPLOADS
from ratchet.service import problems, schemas
from ratchet.service.access import Developer, Operator, TheDesk, Viewer, actor_of, desk_of
from ratchet.service.live import Pulse, follow
from ratchet.storage.jobs import Told

PREFIX = "/api/v1"
_PROBLEMS: dict[int | str, dict[str, Any]] = {
    code: {"model": schemas.ProblemOut, "content": {problems.MEDIA_TYPE: {}}, "description": problems.TITLES[code]}
    for code in (400, 401, 403, 404, 409, 413, 422)
}
router = APIRouter(prefix=PREFIX, responses=_PROBLEMS)
live = APIRouter()

Cursor = Annotated[str | None, Query(max_length=200, description="The `next` of an earlier page.")]
Limit = Annotated[int, Query(ge=1, le=500)]
After = Annotated[int, Query(ge=0, lt=2**53, description="The number of the last event that is known.")]


# --- optimizations --------------------------------------------------------------------------------------------------


@router.post("/optimize", status_code=202, tags=["optimizations"])
def optimize(
    body: schemas.OptimizeBody,
    response: Response,
    desk: TheDesk,
    actor: Developer,
    repeat_key: Annotated[str | None, Header(alias="Idempotency-Key", min_length=1, max_length=200)] = None,
) -> schemas.OptimizationOut:
    """Begin to make a program better; the answer is where to look for the outcome."""
    job = desk.optimize(
        actor,
        body.options(),
        target=body.chosen_target(),
        data=body.sets(),
        priority=body.priority,
        repeat_key=repeat_key,
    )
    response.headers["Location"] = f"{PREFIX}/optimizations/{job.id}"
    return schemas.OptimizationOut.of(job)


@router.get("/optimizations", tags=["optimizations"])
def optimizations(
    desk: TheDesk, actor: Viewer, cursor: Cursor = None, limit: Limit = 50, status: Status | None = None
) -> schemas.Page[schemas.OptimizationOut]:
    """Optimizations, the newest first."""
    before = None
    if cursor is not None:
        at, identity = schemas.of_cursor(cursor, 2)
        before = (at, identity)
    jobs = desk.jobs.page(actor.tenant, before=before, limit=limit, status=status)
    more = schemas.to_cursor(jobs[-1].created_at, jobs[-1].id) if len(jobs) == limit else None
    return schemas.Page(items=[schemas.OptimizationOut.of(job) for job in jobs], next=more)


@router.get("/optimizations/{identity}", tags=["optimizations"])
def optimization(identity: str, desk: TheDesk, actor: Viewer) -> schemas.OptimizationOut:
    """One optimization, with its result once there is one."""
    job = desk.jobs.find(actor.tenant, identity)
    return schemas.OptimizationOut.of(job, desk.jobs.result(actor.tenant, identity))


@router.get("/optimizations/{identity}/status", tags=["optimizations"])
def status(identity: str, desk: TheDesk, actor: Viewer) -> schemas.ProgressOut:
    """How an optimization is getting on: phase, progress, best so far, spend, forecast."""
    return schemas.ProgressOut(**asdict(desk.progress(actor, identity)))


@router.post("/optimizations/{identity}/cancel", status_code=202, tags=["optimizations"])
def cancel(identity: str, desk: TheDesk, actor: Developer) -> schemas.OptimizationOut:
    """Stop for good, soon; `resume` takes it up all the same."""
    return schemas.OptimizationOut.of(desk.stop(actor, identity, "cancel"))


@router.post("/optimizations/{identity}/pause", status_code=202, tags=["optimizations"])
def pause(identity: str, desk: TheDesk, actor: Developer) -> schemas.OptimizationOut:
    """Stop for now, soon."""
    return schemas.OptimizationOut.of(desk.stop(actor, identity, "pause"))


@router.post("/optimizations/{identity}/resume", status_code=202, tags=["optimizations"])
def resume(identity: str, desk: TheDesk, actor: Developer) -> schemas.OptimizationOut:
    """Go on where it stopped; no recorded reply is paid again."""
    return schemas.OptimizationOut.of(desk.resume(actor, identity))


@router.get("/optimizations/{identity}/candidates", tags=["optimizations"])
def candidates(
    identity: str, desk: TheDesk, actor: Viewer, cursor: Cursor = None, limit: Limit = 50
) -> schemas.Page[schemas.CandidateOut]:
    """Candidates, in the order they were made."""
    after = schemas.number_of(cursor) or 0
    found = desk.jobs.candidates(actor.tenant, identity, after=after, limit=limit)
    more = schemas.to_cursor(found[-1][0]) if len(found) == limit else None
    return schemas.Page(items=[schemas.CandidateOut(**row) for _, row in found], next=more)


@router.get("/optimizations/{identity}/evaluations", tags=["optimizations"])
def evaluations(
    identity: str, desk: TheDesk, actor: Viewer, cursor: Cursor = None, limit: Limit = 50
) -> schemas.Page[schemas.EvaluationOut]:
    """Evaluations, in the order they were made."""
    after = schemas.number_of(cursor) or 0
    found = desk.jobs.evaluations(actor.tenant, identity, after=after, limit=limit)
    more = schemas.to_cursor(found[-1][0]) if len(found) == limit else None
    return schemas.Page(items=[schemas.EvaluationOut(**row) for _, row in found], next=more)


def _file(name: str, media_type: str, what: str) -> None:
    headers = {"Content-Disposition": f'inline; filename="{FILES[name]}"', "X-Content-Type-Options": "nosniff"}
    if media_type == "text/html":
        headers["Content-Security-Policy"] = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; sandbox"

    def file(identity: str, desk: TheDesk, actor: Viewer) -> Response:
        content = desk.jobs.file(actor.tenant, identity, FILES[name])
        return Response(content, media_type=media_type, headers=headers)

    router.add_api_route(
        f"/optimizations/{{identity}}/{name}",
        file,
        methods=["GET"],
        name=name,
        summary=what,
        tags=["optimizations"],
        response_class=Response,
        responses={200: {"content": {media_type: {}}, "description": what}},
    )


_file("certificate", "application/json", "The signed certificate; `ratchet verify` checks it.")
_file("program", "application/json", "The program to use from now on; plain `dspy.Module.load` reads it.")
_file("report", "text/html", "The report, for people.")


@router.get(
    "/optimizations/{identity}/events",
    tags=["optimizations"],
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


@live.websocket("/ws/optimizations/{identity}")
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


# --- data sets and targets ------------------------------------------------------------------------------------------


@router.post(
    "/datasets",
    status_code=201,
    tags=["data sets"],
    responses={200: {"model": schemas.DatasetOut, "description": "The same rows are there already."}},
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {kind: {"schema": {"type": "string", "format": "binary"}} for kind in UPLOADS},
        }
    },
)
async def keep_dataset(
    request: Request,
    response: Response,
    desk: TheDesk,
    actor: Developer,
    name: Annotated[str, Query(min_length=1, max_length=100)],
    content_type: Annotated[str, Header(alias="Content-Type")] = "",
) -> schemas.DatasetOut:
    """Keep the rows that are sent as the body; its Content-Type says how they are written."""
    kind = content_type.partition(";")[0].strip().lower()
    if kind not in UPLOADS:
        raise BadRequest(
            f"Content-Type is {kind!r}; send one of {', '.join(UPLOADS)}", field="Content-Type", value=kind
        )
    with tempfile.TemporaryDirectory(prefix="ratchet-upload-") as folder:
        file = Path(folder) / f"{'upload'}{UPLOADS[kind]}"
        await _receive(request, file, limit=int(desk.settings.max_upload_mb * 2**20))
        try:
            dataset, new = await run_in_threadpool(desk.keep_dataset, actor, name, file)
        except RatchetError as error:
            raise type(error)(str(error).replace(str(file), name), **error.values) from error
    response.status_code = 201 if new else 200
    response.headers["Location"] = f"{PREFIX}/datasets/{dataset.id}"
    return schemas.DatasetOut.of(dataset)


async def _receive(request: Request, file: Path, *, limit: int) -> None:
    """Write the body to ``file`` as it comes."""
    size = 0
    with file.open("wb") as out:
        async for chunk in request.stream():
            size += len(chunk)
            if size > limit:
                raise TooLarge(
                    f"the body is larger than {limit} bytes; send less, or have RATCHET_MAX_UPLOAD_MB raised",
                    field="body",
                )
            out.write(chunk)


@router.get("/datasets", tags=["data sets"])
def datasets(
    desk: TheDesk, actor: Viewer, cursor: Cursor = None, limit: Limit = 50
) -> schemas.Page[schemas.DatasetOut]:
    """Data sets in all versions, the newest first."""
    found = desk.shelf.datasets(actor.tenant, before=schemas.number_of(cursor), limit=limit)
    more = schemas.to_cursor(found[-1][0]) if len(found) == limit else None
    return schemas.Page(items=[schemas.DatasetOut.of(dataset) for _, dataset in found], next=more)


@router.get("/datasets/{reference}", tags=["data sets"])
def dataset(reference: str, desk: TheDesk, actor: Viewer) -> schemas.DatasetOut:
    """One data set, by id, NAME (its newest version) or NAME@VERSION."""
    return schemas.DatasetOut.of(desk.shelf.dataset(actor.tenant, reference))


@router.post(
    "/targets",
    status_code=201,
    tags=["targets"],
    responses={200: {"model": schemas.TargetOut, "description": "It is there already."}},
)
def keep_target(body: schemas.NewTarget, response: Response, desk: TheDesk, actor: Developer) -> schemas.TargetOut:
    """Keep a target: an inline signature, a saved program, or an import path that an operator allows."""
    target, new = desk.keep_target(actor, body.name, body.spec())
    response.status_code = 201 if new else 200
    response.headers["Location"] = f"{PREFIX}/targets/{target.id}"
    return schemas.TargetOut.of(target)


@router.get("/targets", tags=["targets"])
def targets(desk: TheDesk, actor: Viewer, cursor: Cursor = None, limit: Limit = 50) -> schemas.Page[schemas.TargetOut]:
    """Targets in all versions, the newest first."""
    found = desk.shelf.targets(actor.tenant, before=schemas.number_of(cursor), limit=limit)
    more = schemas.to_cursor(found[-1][0]) if len(found) == limit else None
    return schemas.Page(items=[schemas.TargetOut.of(target) for _, target in found], next=more)


@router.get("/targets/{reference}", tags=["targets"])
def target(reference: str, desk: TheDesk, actor: Viewer) -> schemas.TargetOut:
    """One target, by id, NAME (its newest version) or NAME@VERSION."""
    return schemas.TargetOut.of(desk.shelf.target(actor.tenant, reference))


# --- the audit trail ------------------------------------------------------------------------------------------------


@router.get("/audit", tags=["audit"])
def audit(desk: TheDesk, actor: Operator, cursor: Cursor = None, limit: Limit = 50) -> schemas.Page[schemas.EntryOut]:
    """The audit trail of this tenant, the newest entry first."""
    entries = desk.audit.entries(actor.tenant, before=schemas.number_of(cursor), limit=limit)
    more = schemas.to_cursor(entries[-1].number) if len(entries) == limit else None
    return schemas.Page(items=[schemas.EntryOut.of(entry) for entry in entries], next=more)

"""Optimizations: begun, looked at, stopped, resumed."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

from fastapi import Header, Response

from ratchet.core.result import Status
from ratchet.desk import FILES
from ratchet.service import schemas
from ratchet.service.access import Developer, Operator, TheDesk, Viewer
from ratchet.service.forks import ForkBody
from ratchet.service.routes.frame import PREFIX, Cursor, Limit, new_router

router = new_router("optimizations")

RepeatKey = Annotated[str | None, Header(alias="Idempotency-Key", min_length=1, max_length=200)]


@router.post("/optimize", status_code=202)
def optimize(
    body: schemas.OptimizeBody,
    response: Response,
    desk: TheDesk,
    actor: Developer,
    repeat_key: RepeatKey = None,
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


@router.post("/evaluations", status_code=202)
def evaluate(
    body: schemas.EvaluateBody,
    response: Response,
    desk: TheDesk,
    actor: Developer,
    repeat_key: RepeatKey = None,
) -> schemas.OptimizationOut:
    """Begin to run a program on every example of a data set, without a search.

    It stands in the queue and among the optimizations; what is asked of one under its id is answered for it too.
    """
    job = desk.evaluate(
        actor,
        body.options(),
        target=body.chosen_target(),
        data=body.data,
        limit=body.limit,
        priority=body.priority,
        repeat_key=repeat_key,
    )
    response.headers["Location"] = f"{PREFIX}/optimizations/{job.id}"
    return schemas.OptimizationOut.of(job)


@router.get("/optimizations")
def optimizations(
    desk: TheDesk, actor: Viewer, cursor: Cursor = None, limit: Limit = 50, status: Status | None = None
) -> schemas.Page[schemas.OptimizationOut]:
    """Optimizations and evaluations, the newest first."""
    before = None
    if cursor is not None:
        at, identity = schemas.of_cursor(cursor, 2)
        before = (at, identity)
    jobs = desk.jobs.page(actor.tenant, before=before, limit=limit, status=status)
    more = schemas.to_cursor(jobs[-1].created_at, jobs[-1].id) if len(jobs) == limit else None
    return schemas.Page(items=[schemas.OptimizationOut.of(job) for job in jobs], next=more)


@router.get("/optimizations/{identity}")
def optimization(identity: str, desk: TheDesk, actor: Viewer) -> schemas.OptimizationOut:
    """One optimization, with its result once there is one."""
    job = desk.jobs.find(actor.tenant, identity)
    asked = desk.archive.find(job.id).request
    return schemas.OptimizationOut.of(job, desk.jobs.result(actor.tenant, identity), asked)


@router.delete("/optimizations/{identity}", status_code=204)
def erase(identity: str, desk: TheDesk, actor: Operator) -> None:
    """Erase it for good: data, candidates, replies, files, and the lesson it taught. The audit entry stays."""
    desk.erase(actor, identity)


@router.get("/optimizations/{identity}/status")
def status(identity: str, desk: TheDesk, actor: Viewer) -> schemas.ProgressOut:
    """How an optimization is getting on: phase, progress, best so far, spend, forecast."""
    return schemas.ProgressOut(**asdict(desk.progress(actor, identity)))


@router.post("/optimizations/{identity}/cancel", status_code=202)
def cancel(identity: str, desk: TheDesk, actor: Developer) -> schemas.OptimizationOut:
    """Stop for good, soon; `resume` takes it up all the same."""
    return schemas.OptimizationOut.of(desk.stop(actor, identity, "cancel"))


@router.post("/optimizations/{identity}/pause", status_code=202)
def pause(identity: str, desk: TheDesk, actor: Developer) -> schemas.OptimizationOut:
    """Stop for now, soon."""
    return schemas.OptimizationOut.of(desk.stop(actor, identity, "pause"))


@router.post("/optimizations/{identity}/resume", status_code=202)
def resume(identity: str, desk: TheDesk, actor: Developer) -> schemas.OptimizationOut:
    """Go on where it stopped; no recorded reply is paid again."""
    return schemas.OptimizationOut.of(desk.resume(actor, identity))


@router.post("/optimizations/{identity}/fork", status_code=202)
def fork(
    identity: str,
    body: ForkBody,
    response: Response,
    desk: TheDesk,
    actor: Developer,
    repeat_key: RepeatKey = None,
) -> schemas.OptimizationOut:
    """Begin another one with other settings, of the same program on the same data; no recorded reply is paid again."""
    job = desk.fork(
        actor,
        identity,
        changes=body.changes(),
        from_stage=body.from_stage,
        priority=body.priority,
        repeat_key=repeat_key,
    )
    response.headers["Location"] = f"{PREFIX}/optimizations/{job.id}"
    return schemas.OptimizationOut.of(job)


@router.get("/optimizations/{identity}/candidates")
def candidates(
    identity: str, desk: TheDesk, actor: Viewer, cursor: Cursor = None, limit: Limit = 50
) -> schemas.Page[schemas.CandidateOut]:
    """Candidates, in the order they were made."""
    after = schemas.number_of(cursor) or 0
    found = desk.jobs.candidates(actor.tenant, identity, after=after, limit=limit)
    more = schemas.to_cursor(found[-1][0]) if len(found) == limit else None
    return schemas.Page(items=[schemas.CandidateOut(**row) for _, row in found], next=more)


@router.get("/optimizations/{identity}/evaluations")
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
        response_class=Response,
        responses={200: {"content": {media_type: {}}, "description": what}},
    )


_file("certificate", "application/json", "The signed certificate; `ratchet verify` checks it.")
_file("program", "application/json", "The program to use from now on; plain `dspy.Module.load` reads it.")
_file("report", "text/html", "The report, for people.")
_file("rows", "application/x-ndjson", "Of an evaluation: what came of each example, one per line.")

"""Data sets: uploaded, versioned."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated

from fastapi import Header, Query, Request, Response
from starlette.concurrency import run_in_threadpool

from ratchet.core.errors import BadRequest, RatchetError, TooLarge
from ratchet.desk import UPLOADS
from ratchet.privacy.policy import Treatment
from ratchet.service import schemas
from ratchet.service.access import Developer, Operator, TheDesk, Viewer
from ratchet.service.routes.frame import PREFIX, Cursor, Limit, new_router
from ratchet.storage.privacy import how_cleaned

router = new_router("data sets")

_LINES = '{"text": "Where is my parcel?", "label": "delivery"}\n{"text": "It broke.", "label": "quality"}\n'
EXAMPLES = {
    "application/x-ndjson": _LINES,
    "application/jsonl": _LINES,
    "application/json": f"[{_LINES.strip().replace(chr(10), ', ')}]",
    "text/csv": "text,label\nWhere is my parcel?,delivery\nIt broke.,quality\n",
    "text/tab-separated-values": "text\tlabel\nWhere is my parcel?\tdelivery\nIt broke.\tquality\n",
}
"""Two rows, in each way that can be read."""


@router.post(
    "/datasets",
    status_code=201,
    responses={200: {"model": schemas.DatasetOut, "description": "The same rows are there already."}},
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {
                kind: {"schema": {"type": "string", "format": "binary"}}
                | ({"example": EXAMPLES[kind]} if kind in EXAMPLES else {})
                for kind in UPLOADS
            },
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
    pii: Annotated[Treatment | None, Query(description="What is done with personal data, in every field.")] = None,
    pii_field: Annotated[
        list[str] | None, Query(max_length=500, description="FIELD=keep|redact|pseudonymise|drop; repeatable.")
    ] = None,
    pii_set: Annotated[
        str | None, Query(max_length=100, description="Data sets of one name get the same pseudonyms; else `name`.")
    ] = None,
    pii_policy: Annotated[
        str | None,
        Header(alias="Ratchet-Privacy", description="All of that, names and patterns as JSON; a URL is logged."),
    ] = None,
) -> schemas.DatasetOut:
    """Keep the rows that are sent as the body; its Content-Type says how they are written.

    Personal data is found and replaced before anything is kept; `privacy` of the answer says how much there was.
    """
    policy = schemas.policy_of(pii_policy, pii, pii_field or [], pii_set)
    kind = content_type.partition(";")[0].strip().lower()
    if kind not in UPLOADS:
        raise BadRequest(
            f"Content-Type is {kind!r}; send one of {', '.join(UPLOADS)}", field="Content-Type", value=kind
        )
    with tempfile.TemporaryDirectory(prefix="ratchet-upload-") as folder:
        file = Path(folder) / f"{'upload'}{UPLOADS[kind]}"
        await _receive(request, file, limit=int(desk.settings.max_upload_mb * 2**20))
        try:
            dataset, new = await run_in_threadpool(desk.keep_dataset, actor, name, file, pii=policy)
        except RatchetError as error:
            raise type(error)(str(error).replace(str(file), name), **error.values) from error
    cleaned = await run_in_threadpool(how_cleaned, desk.archive, dataset.id)
    response.status_code = 201 if new else 200
    response.headers["Location"] = f"{PREFIX}/datasets/{dataset.id}"
    return schemas.DatasetOut.of(dataset, cleaned)


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


@router.get("/datasets")
def datasets(
    desk: TheDesk, actor: Viewer, cursor: Cursor = None, limit: Limit = 50
) -> schemas.Page[schemas.DatasetOut]:
    """Data sets in all versions, the newest first."""
    found = desk.shelf.datasets(actor.tenant, before=schemas.number_of(cursor), limit=limit)
    more = schemas.to_cursor(found[-1][0]) if len(found) == limit else None
    return schemas.Page(items=[schemas.DatasetOut.of(dataset) for _, dataset in found], next=more)


@router.get("/datasets/{reference}")
def dataset(reference: str, desk: TheDesk, actor: Viewer) -> schemas.DatasetOut:
    """One data set, by id, NAME (its newest version) or NAME@VERSION."""
    dataset = desk.shelf.dataset(actor.tenant, reference)
    return schemas.DatasetOut.of(dataset, how_cleaned(desk.archive, dataset.id))


@router.delete("/datasets/{reference}", status_code=204)
def erase_dataset(
    reference: str,
    desk: TheDesk,
    actor: Operator,
    with_optimizations: Annotated[
        bool, Query(description="Also erase the optimizations that were given its rows; they keep copies.")
    ] = False,
) -> None:
    """Erase one version for good; its number is not given again. The audit entry stays."""
    desk.erase_dataset(actor, reference, with_optimizations=with_optimizations)

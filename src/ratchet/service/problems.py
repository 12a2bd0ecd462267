"""From what was raised to a problem document (RFC 9457): what is wrong, where, and how to mend it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from ratchet.core import errors

MEDIA_TYPE = "application/problem+json"

CODES: tuple[tuple[type[errors.RatchetError], int], ...] = (
    (errors.Missing, 404),
    (errors.Denied, 403),
    (errors.Stale, 412),
    (errors.Conflict, 409),
    (errors.TooMany, 429),
    (errors.TooLarge, 413),
    (errors.UserError, 422),
    (errors.WorldFailure, 503),
)
"""The status of each kind of error; the first that fits."""

TITLES: Mapping[int, str] = {
    400: "Bad request",
    401: "Who asks is not known",
    403: "Not allowed",
    404: "Not found",
    405: "Method not allowed",
    408: "Took too long to arrive",
    409: "Conflict",
    412: "Changed meanwhile",
    413: "Too large",
    415: "Unknown kind of content",
    422: "The request cannot be used",
    429: "Too many requests",
    500: "A bug of ours",
    503: "Not available now",
}


UNLIKE = "Not as described"
"""The title when a request does not fit the OpenAPI document; what fits can still be refused, for what it says."""


class Unauthenticated(Exception):
    """No key was given, or none that holds."""


def document(
    status: int, detail: str, *, title: str | None = None, errors: Sequence[Mapping[str, Any]] = ()
) -> dict[str, Any]:
    """A problem as JSON data.

    Args:
        status: The HTTP status.
        detail: What is wrong and how to mend it, in a sentence.
        title: What kind of problem it is; that of its status if left out.
        errors: One of ``field``, ``value`` and ``remedy`` per field.
    """
    title = title or TITLES.get(status, "Error")
    slug = title.lower().replace(" ", "-")
    found = {"type": f"urn:ratchet:problem:{slug}", "title": title, "status": status, "detail": detail}
    return {**found, **({"errors": list(errors)} if errors else {})}


def of(error: errors.RatchetError) -> dict[str, Any]:
    """The problem that ``error`` is."""
    status = next((code for kind, code in CODES if isinstance(error, kind)), 500)
    message = str(error)
    field = error.values.get("field")
    found = []
    if field is not None:
        found.append({"field": field, "value": error.values.get("value"), "remedy": message.rpartition("; ")[2]})
    return document(status, message, errors=found)


def _response(problem: Mapping[str, Any], headers: Mapping[str, str] | None = None) -> JSONResponse:
    return JSONResponse(dict(problem), status_code=problem["status"], media_type=MEDIA_TYPE, headers=headers)


def _plain(value: Any) -> Any:
    """A short JSON value of what was given."""
    if isinstance(value, str | int | bool) or value is None:
        return value[:200] if isinstance(value, str) else value
    return str(value)[:200]


def _methods(app: FastAPI, path: str) -> list[str]:
    """The methods that an address answers to."""
    return sorted(
        method.upper()
        for template, methods in app.openapi()["paths"].items()
        if re.fullmatch(re.sub(r"\{\w+\}", "[^/]+", template), path)
        for method in methods
    )


def install(app: FastAPI) -> None:
    """Have ``app`` answer with problem documents, whatever is raised."""

    @app.exception_handler(errors.RatchetError)
    async def ours(request: Request, error: errors.RatchetError) -> JSONResponse:
        more = {"Retry-After": str(error.values["retry_after"])} if isinstance(error, errors.TooMany) else None
        return _response(of(error), more)

    @app.exception_handler(Unauthenticated)
    async def unknown(request: Request, error: Unauthenticated) -> JSONResponse:
        return _response(document(401, str(error)), {"WWW-Authenticate": 'Bearer realm="ratchet"'})

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        found = [
            {
                "field": ".".join(str(part) for part in each["loc"][1:]) or str(each["loc"][0]),
                "value": _plain(each.get("input")),
                "remedy": each["msg"],
            }
            for each in error.errors()
        ]
        first = found[0]
        return _response(document(422, f"{first['field']}: {first['remedy']}", title=UNLIKE, errors=found))

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> JSONResponse:
        headers = dict(error.headers or {})
        if error.status_code == 405:  # Starlette names the methods of one route only, and there is a route per method
            headers["Allow"] = ", ".join(_methods(app, request.url.path))
        return _response(document(error.status_code, str(error.detail)), headers)

    @app.exception_handler(Exception)
    async def bug(request: Request, error: Exception) -> JSONResponse:
        return _response(document(500, "something of ours went wrong; the server's log says what"))

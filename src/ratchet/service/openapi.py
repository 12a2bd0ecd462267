"""What the API says of itself, where FastAPI alone would say less, or something else than is so."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI

from ratchet.service.problems import MEDIA_TYPE

_TEXT = {"schema": {"type": "string"}}
_NUMBER = {"schema": {"type": "string", "pattern": "^[0-9]+$"}}
RATES = {
    "RateLimit-Limit": {"description": "Requests per minute.", **_NUMBER},
    "RateLimit-Remaining": {"description": "Requests that may be made at once.", **_NUMBER},
    "RateLimit-Reset": {"description": "Seconds until that is the limit again.", **_NUMBER},
}


def install(app: FastAPI) -> None:
    """Have ``app`` describe itself exactly."""
    plain = app.openapi

    def described() -> dict[str, Any]:
        if app.openapi_schema is None:
            document = plain()
            for path, methods in document["paths"].items():
                for method, operation in methods.items():
                    _describe(path, method, operation)
        return app.openapi_schema or {}

    app.openapi = described  # type: ignore[method-assign]  # FastAPI's own way to extend the document


def _describe(path: str, method: str, operation: dict[str, Any]) -> None:
    for parameter in operation.get("parameters", ()):
        parameter["schema"] = _without_null(parameter["schema"])
    responses = operation["responses"]
    if "security" in operation:
        for response in responses.values():
            response.setdefault("headers", {}).update(RATES)
    for code, response in responses.items():
        if code[0] in "45":
            _as_problem(response)
    if "429" in responses:
        responses["429"]["headers"]["Retry-After"] = {"description": "Seconds.", **_NUMBER}
    if method == "get" and "{" in path and "200" in responses and "304" in responses:
        responses["200"].setdefault("headers", {})["ETag"] = {"description": "For `If-None-Match`.", **_TEXT}


def _without_null(schema: dict[str, Any]) -> dict[str, Any]:
    """A parameter can be left out, but there is no null in an address or a header."""
    found = [each for each in schema.get("anyOf", ()) if each != {"type": "null"}]
    if len(found) != 1:
        return schema
    return {**{name: value for name, value in schema.items() if name != "anyOf"}, **found[0]}


def _as_problem(response: dict[str, Any]) -> None:
    """A problem is told as one, and in no other way."""
    content = response.get("content", {})
    if "application/json" in content:
        content[MEDIA_TYPE] = content.pop("application/json")

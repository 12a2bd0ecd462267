"""Algorithms: what there is, and what an operator registered."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import Response
from pydantic import BaseModel, ConfigDict, Field

from ratchet.service import schemas
from ratchet.service.access import Operator, TheDesk, Viewer
from ratchet.service.routes.frame import Cursor, Limit, new_router
from ratchet.storage.algorithms import Registered

router = new_router("algorithms")


class NewAlgorithm(schemas.Body):
    """An algorithm behind a URL."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"name": "climb", "url": "https://algorithms.example.com/climb"}]}
    )
    name: Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9._-]+$")]
    url: Annotated[str, Field(max_length=500, description="Its host is on RATCHET_ALGORITHM_HOSTS.")]
    secret_env: Annotated[
        str | None,
        Field(
            max_length=100,
            pattern=r"^RATCHET_ALGORITHM_SECRET_[A-Z0-9_]+$",
            description="The server's variable with its secret; RATCHET_ALGORITHM_SECRET if left out.",
        ),
    ] = None


class PromiseOut(BaseModel):
    """A promise of the contract, as it was found on synthetic problems."""

    what: str
    kept: bool
    where: str
    required: bool


class RegisteredOut(BaseModel):
    """An algorithm that an operator of this tenant registered."""

    name: str
    url: str
    secret_env: str | None
    promises: list[PromiseOut]
    created_at: str
    created_by: str
    withdrawn_at: Annotated[
        str | None, Field(description="Since when no new optimization can name it; null while one can.")
    ]

    @classmethod
    def of(cls, found: Registered) -> RegisteredOut:
        """As JSON."""
        names = ("name", "created_at", "created_by", "withdrawn_at")
        known: dict[str, Any] = {name: getattr(found, name) for name in names}
        promises = [PromiseOut(**promise) for promise in found.promises]
        return cls(url=found.address.url, secret_env=found.address.secret_env, promises=promises, **known)


class AlgorithmOut(BaseModel):
    """A name that `algorithms` of a request takes."""

    name: str
    kind: Literal["built in", "package", "URL", "registered"]
    what: Annotated[str, Field(description="Where it comes from, or who registered it.")]


@router.get("/algorithms")
def algorithms(desk: TheDesk, actor: Viewer) -> list[AlgorithmOut]:
    """The names that a request takes; `auto` stands for `portfolio`."""
    return [AlgorithmOut.model_validate(each) for each in desk.algorithm_names(actor)]


@router.post(
    "/algorithms/custom",
    status_code=201,
    responses={200: {"model": RegisteredOut, "description": "It stands in place of an earlier one."}},
)
def register(body: NewAlgorithm, response: Response, desk: TheDesk, actor: Operator) -> RegisteredOut:
    """Register an algorithm behind a URL; it is tried on synthetic problems, and refused when it breaks a promise."""
    found, new = desk.register_algorithm(actor, body.name, body.url, secret_env=body.secret_env)
    response.status_code = 201 if new else 200
    return RegisteredOut.of(found)


@router.get("/algorithms/custom")
def registered(desk: TheDesk, actor: Viewer, cursor: Cursor = None, limit: Limit = 50) -> schemas.Page[RegisteredOut]:
    """The algorithms that operators of this tenant registered, by name, with those that were withdrawn."""
    after = "" if cursor is None else schemas.of_cursor(cursor, 1)[0]
    found = desk.algorithms.page(actor.tenant, after=after, limit=limit)
    more = schemas.to_cursor(found[-1].name) if len(found) == limit else None
    return schemas.Page(items=[RegisteredOut.of(each) for each in found], next=more)


@router.delete("/algorithms/custom/{name}")
def withdraw(name: str, desk: TheDesk, actor: Operator) -> RegisteredOut:
    """Have no new optimization name it; those that were begun with it go on, and the list still tells of it."""
    return RegisteredOut.of(desk.algorithms.withdraw(actor, name))

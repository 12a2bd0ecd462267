"""The app: routes, limits, problems, metrics."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager, suppress
from importlib.metadata import version
from typing import Any, get_args

from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.responses import JSONResponse
from prometheus_client import CollectorRegistry, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ratchet.core.errors import StorageUnavailable
from ratchet.core.result import Status
from ratchet.desk import Desk
from ratchet.service import openapi, problems, routes, schemas
from ratchet.service.access import Operator, TheDesk
from ratchet.service.live import Pulse
from ratchet.service.patience import Patience
from ratchet.service.rates import Rates
from ratchet.service.routes.frame import refusals
from ratchet.service.tokens import Tokens
from ratchet.storage.database import Database

house = APIRouter()
"""Routes for whoever runs the service."""

UPLOAD = f"{routes.PREFIX}/datasets"

FORGETTING_SECONDS = 30.0
"""How often a process that works on nothing lets go of what others erased; one with a worker has that do it."""


@house.get("/healthz", tags=["house"])
def healthz() -> schemas.HealthOut:
    """That the process lives."""
    return schemas.HealthOut()


@house.get("/readyz", tags=["house"], responses=refusals(503))
def readyz(desk: TheDesk) -> schemas.HealthOut:
    """That the database answers."""
    desk.events.newest_place()
    return schemas.HealthOut()


@house.get(
    "/metrics",
    tags=["house"],
    response_class=Response,
    responses={200: {"content": {"text/plain": {}}}, **refusals(401, 403, 429)},
)
def metrics(request: Request, actor: Operator) -> Response:
    """Prometheus metrics."""
    content = generate_latest(request.app.state.metrics)
    return Response(content, media_type="text/plain; version=0.0.4; charset=utf-8")


class _Optimizations:
    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    def collect(self) -> Iterable[Metric]:
        """What stands in the database now."""
        family = GaugeMetricFamily("ratchet_optimizations", "Optimizations by status.", labels=["status"])
        counts = self._desk.jobs.counts()
        for status in get_args(Status):  # one that nobody has is 0, and not unknown: an autoscaler asks
            family.add_metric([status], counts.get(status, 0))
        yield family
        workers = len(self._desk.workers.known())
        yield GaugeMetricFamily("ratchet_workers", "Workers that are known.", value=workers)


def _raw(headers: Mapping[str, str]) -> list[tuple[bytes, bytes]]:
    return [(name.lower().encode(), value.encode()) for name, value in headers.items()]


async def keep_forgetting(archive: Database, *, seconds: float = FORGETTING_SECONDS) -> None:
    """Let go of what other processes erased, again and again, until cancelled."""
    while True:
        await asyncio.sleep(seconds)
        with suppress(StorageUnavailable):  # the next time will do it
            await asyncio.to_thread(archive.forget_erased)


class Limits:
    """Refuses bodies that are too large, also when their length is not said; times what is answered.

    Args:
        app: What answers.
        max_bytes: Of any body but an upload's, which has a limit of its own.
        seconds: What is timed, by route, method and status.
    """

    def __init__(self, app: ASGIApp, *, max_bytes: int, seconds: Histogram) -> None:
        self._app = app
        self._seconds = seconds
        self._max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = time.monotonic()
        said = dict(scope["headers"]).get(b"content-length", b"0")
        status = 500

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                if (grant := scope.get("state", {}).get("grant")) is not None:
                    message["headers"] = [*message["headers"], *_raw(grant.headers)]
            await send(message)

        upload = scope["method"] == "POST" and scope["path"] == UPLOAD
        too_long = not upload and said.isdigit() and int(said) > self._max_bytes
        if too_long:
            problem = problems.document(413, self._too_large())
            response = JSONResponse(problem, status_code=413, media_type=problems.MEDIA_TYPE)
            await response(scope, receive, sending)
        else:
            await self._app(scope, receive if upload else self._counting(receive), sending)
        route = getattr(scope.get("route"), "path", "none")
        self._seconds.labels(route, scope["method"], status).observe(time.monotonic() - began)

    def _counting(self, receive: Receive) -> Receive:
        size = 0

        async def counted() -> Message:
            nonlocal size
            message = await receive()
            size += len(message.get("body", b""))
            if size > self._max_bytes:
                raise HTTPException(413, self._too_large())
            return message

        return counted

    def _too_large(self) -> str:
        return f"the body is larger than {self._max_bytes} bytes; send less"


def create_app(desk: Desk, *, work: Callable[[], Any] | None = None, stop: Callable[[], Any] | None = None) -> FastAPI:
    """The app.

    Args:
        desk: What answers.
        work: Called in a thread when the app starts, such as a worker's ``start``.
        stop: Called in a thread when it ends.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        tasks = [asyncio.create_task(app.state.pulse.run())]
        if work is not None:
            await asyncio.to_thread(work)
        else:
            tasks.append(asyncio.create_task(keep_forgetting(desk.archive)))
        yield
        for task in tasks:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
        if stop is not None:
            await asyncio.to_thread(stop)

    app = FastAPI(
        title="Ratchet",
        version=version("dspy-ratchet"),
        summary="Makes DSPy programs better and proves it.",
        openapi_url=f"{routes.PREFIX}/openapi.json",
        docs_url=None,  # its pages would load scripts from elsewhere
        redoc_url=None,
        lifespan=lifespan,
    )
    app.state.desk = desk
    app.state.pulse = Pulse(desk)
    app.state.rates = Rates()
    app.state.tokens = Tokens(desk.settings) if desk.settings.oidc_issuer else None
    registry = app.state.metrics = CollectorRegistry()
    registry.register(_Optimizations(desk))
    seconds = Histogram(
        "ratchet_http_seconds", "Seconds of requests.", ("route", "method", "status"), registry=registry
    )
    app.add_middleware(Patience, seconds=desk.settings.request_seconds)
    app.add_middleware(Limits, max_bytes=int(desk.settings.max_body_kb * 1024), seconds=seconds)
    for router in (*routes.ROUTERS, house):
        app.include_router(router)
    problems.install(app)
    openapi.install(app)
    return app

"""How long a request may take, and how deep its body may be."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from fastapi import Request
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ratchet.service import problems

DEEPEST = 64
"""Lists and objects within one another in a body."""


class Patience:
    """Refuses bodies that come too slowly, and does not have a client wait for ever for the beginning of an answer.

    Args:
        app: What answers.
        seconds: For a request to arrive and its answer to begin; a stream of events may go on after that.
    """

    def __init__(self, app: ASGIApp, *, seconds: float) -> None:
        self._app = app
        self._seconds = seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        end = asyncio.get_running_loop().time() + self._seconds
        begun = complete = over = False

        async def receiving() -> Message:
            nonlocal complete
            if complete:
                return await receive()
            try:
                async with asyncio.timeout_at(end):
                    message = await receive()
            except TimeoutError as error:
                raise HTTPException(
                    408, f"the body did not arrive within {self._seconds:g} s; send it faster, or less of it"
                ) from error
            complete = not message.get("more_body", False)
            return message

        async def sending(message: Message) -> None:
            nonlocal begun
            if not over:
                begun = True
                await send(message)

        answering = asyncio.ensure_future(self._app(scope, receiving, sending))
        try:
            # A little longer than the body may take, so that it is told why.
            await asyncio.wait({answering}, timeout=self._seconds + 1.0)
            if not answering.done() and not begun:
                over = True
                problem = problems.document(
                    503, f"there was no answer within {self._seconds:g} s; look what came of it"
                )
                await JSONResponse(problem, status_code=503, media_type=problems.MEDIA_TYPE)(scope, receive, send)
            await answering  # a thread cannot be stopped: what it was asked to do it does
        except asyncio.CancelledError:
            answering.cancel()
            raise


class ShallowRequest(Request):
    """A request whose JSON body is refused when it is too deep."""

    async def json(self) -> Any:
        """The body as JSON data.

        Raises:
            HTTPException: it is too deep.
        """
        if not hasattr(self, "_json"):
            try:
                self._json = json.loads(await self.body())
            except RecursionError:
                self._refuse()
            self._see()
        return self._json

    def _see(self) -> None:
        layer: list[Any] = [self._json]
        for _ in range(DEEPEST + 1):
            lists = [each for each in layer if isinstance(each, list)]
            objects = [each.values() for each in layer if isinstance(each, dict)]
            layer = [inner for each in (*lists, *objects) for inner in each]
            if not layer:
                return
        self._refuse()

    def _refuse(self) -> None:
        raise HTTPException(
            400, f"the body has more than {DEEPEST} lists and objects within one another; send it flatter"
        )

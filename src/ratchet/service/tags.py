"""ETags: what was read already is not sent again, and what changed meanwhile is not changed unseen (RFC 9110)."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Coroutine
from typing import Annotated, Any

from fastapi import Depends, Header, Request, Response
from fastapi.routing import APIRoute

from ratchet.service.patience import ShallowRequest

_TAG = re.compile(r'(?:W/)?("[^"]*")')

_IfNoneMatch = Annotated[
    str | None, Header(alias="If-None-Match", max_length=2000, description="ETags of what is known already; 304 then.")
]
_IfMatch = Annotated[
    str | None, Header(alias="If-Match", max_length=2000, description="The ETag of what was seen; 412 when it changed.")
]


def listed(header: str) -> frozenset[str]:
    """The tags in a header; ``*`` stands for any.

    >>> sorted(listed('W/"a", "b"')), listed("*")
    (['"a"', '"b"'], frozenset({'*'}))
    """
    return frozenset({"*"}) if header.strip() == "*" else frozenset(_TAG.findall(header))


def _expected(if_match: _IfMatch = None) -> frozenset[str] | None:
    return None if if_match is None else listed(if_match)


Expected = Annotated[frozenset[str] | None, Depends(_expected)]
"""The tags of which one must still hold; None when none was sent."""


def _known(if_none_match: _IfNoneMatch = None) -> None:
    """Only so that the header is described; the route itself looks at it."""


class TaggedRoute(APIRoute):
    """A route; one that reads a single thing tells its ETag, and sends nothing when that is known."""

    def __init__(self, path: str, endpoint: Callable[..., Any], **more: Any) -> None:
        self._single = "{" in path and more.get("methods") in (["GET"], {"GET"})
        if self._single:
            more["responses"] = {304: {"description": "It is what is known already."}, **(more.get("responses") or {})}
            more["dependencies"] = [*(more.get("dependencies") or ()), Depends(_known)]
        super().__init__(path, endpoint, **more)

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """What answers."""
        handler = super().get_route_handler()

        async def answer(request: Request) -> Response:
            return await handler(ShallowRequest(request.scope, request.receive))

        if not self._single:
            return answer

        async def tagged(request: Request) -> Response:
            response = await answer(request)
            content = getattr(response, "body", None)
            if response.status_code != 200 or content is None:  # a stream has no end to take a hash of
                return response
            tag = response.headers.setdefault("ETag", f'"{hashlib.sha256(content).hexdigest()[:24]}"')
            known = listed(request.headers.get("if-none-match", ""))
            if tag not in known and "*" not in known:
                return response
            return Response(status_code=304, headers={"ETag": tag})

        return tagged

"""Sends requests over shared connections, in the words that DSPy's own provider mapping gives them.

DSPy maps a request to a provider's HTTP interface and the answer back; both are plain functions. What lies between, the
connection, is ours: one pool of keep-alive connections for the whole process, and no thread to hand a request through.
A provider, a setting or a request that this does not fit is left to DSPy.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import aiohttp
import dspy
from dspy import lm15
from dspy._vendor.lm15.providers.async_base import AsyncBaseProviderLM, AsyncOpenAIChatLM
from dspy._vendor.lm15.providers.base import HttpResponse, _client_side_stop
from dspy._vendor.lm15.providers.openai_chat import OpenAIChatLM
from dspy.clients.engines.lm15_engine import AsyncLM15Engine
from dspy.clients.errors import error_boundary
from dspy.clients.execution import PreparedCall, _select_engine
from dspy.lm15 import Request, Response
from multidict import CIMultiDict

from ratchet.programs.loop import at_exit

KEEP_ALIVE_SECONDS = 30.0
CONNECT_SECONDS = 20.0

_PLAIN = (AsyncBaseProviderLM.complete, AsyncOpenAIChatLM.complete)
"""Ways to complete a request that are: build, send, parse. Others stream, or ask more than once."""


@dataclass(frozen=True, slots=True)
class Letter:
    """A request as it goes over the wire.

    Attributes:
        request: What it was built from, with the model's name at the provider.
        target: DSPy's mapping for the provider.
        adaptations: What the provider's interface made of it that differs from what was asked.
        is_plain: Whether DSPy reads nothing into the answer but what stands in a chat completion.
    """

    url: str
    proxy: str | None
    headers: CIMultiDict[str]
    body: bytes
    request: Request
    target: AsyncBaseProviderLM
    adaptations: Sequence[Any]
    is_plain: bool


class Wire:
    """The HTTP interface of one LM.

    Args:
        engine: DSPy's own engine for the LM.
        provider: Its name in errors and price tables.
        more: Fields that every body has besides those of its request.
    """

    def __init__(self, model: str, engine: AsyncLM15Engine, provider: str, *, more: Mapping[str, Any]) -> None:
        self.provider = provider
        self._more = more
        self._model = model
        self._engine = engine

    @classmethod
    def of(cls, lm: dspy.BaseLM, request: Request, *, more: Mapping[str, Any]) -> Wire | None:
        """The wire of ``lm``, where DSPy would send ``request`` by itself over HTTP; call it on the event loop.

        Raises:
            LMError: the LM is not configured well enough to be asked.
        """
        if not isinstance(lm, dspy.LM) or not isinstance(lm.engine, str) or lm.model_type != "chat":
            return None
        call = PreparedCall(None, None, {}, {"model": lm.model}, request, False, 1, True)
        with error_boundary(lm.model):
            engine, _, provider = _select_engine(lm, call, True)
            if not isinstance(engine, AsyncLM15Engine):
                return None
            target, _ = engine._target(request)
        if getattr(type(target), "complete", None) not in _PLAIN or callable(target._inner.api_key):
            return None
        return cls(lm.model, engine, provider, more=more)

    def letter(self, request: Request) -> Letter | None:
        """``request`` as it would be sent, or None where that takes more than one exchange.

        Raises:
            LMError: the provider's interface cannot carry it.
        """
        with error_boundary(self._model, provider=self.provider):
            target, routed = self._engine._target(request)
            inner = target._inner
            scores = getattr(inner, "_judgments_via_token_scoring", None)
            if scores is not None and scores(inner._wire_request(routed)):
                return None
            try:
                built, adaptations = inner._build(routed, stream=False, policy=target.adaptations)
            except lm15.UnsupportedFeatureError:
                return None  # DSPy may know another way
            if _client_side_stop(adaptations):
                return None
        return Letter(
            url=built.url,
            proxy=proxy_of(built.url),
            headers=CIMultiDict(built.headers),
            body=json.dumps(json.loads(built.body) | self._more).encode() if self._more else built.body,
            request=routed,
            target=target,
            adaptations=adaptations,
            is_plain=_is_plain(inner, routed) and not inner._visible(adaptations, policy=target.adaptations),
        )

    async def exchange(self, letter: Letter, body: bytes, *, patience: float) -> HttpResponse:
        """Send ``letter`` with ``body`` once; what came back, which ``read`` can read.

        Args:
            patience: Seconds to wait for it.

        Raises:
            LMError: what came back is an error, or nothing came back.
        """
        with error_boundary(self._model, provider=self.provider, unexpected=True):
            reply = await _post(letter, body, patience, self.provider)
            if reply.status >= 400:
                raise letter.target._inner._http_error(reply)
            return reply

    def read(self, letter: Letter, reply: HttpResponse) -> Response:
        """What DSPy reads in the answer to ``letter``.

        Raises:
            LMError: it is no answer.
        """
        inner = letter.target._inner
        with error_boundary(self._model, provider=self.provider, unexpected=True):
            try:
                parsed = inner.parse_response(letter.request, reply)
            except (lm15.ProviderError, LookupError, TypeError, ValueError, AttributeError) as error:
                if isinstance(error, lm15.ProviderError) and type(error) is not lm15.ProviderError:
                    raise
                raise lm15.TransportError(str(error)) from error  # a proxy's page, or half of an answer
            return inner._finish_response(letter.request, parsed, letter.adaptations, policy=letter.target.adaptations)


def _is_plain(inner: Any, request: Request) -> bool:
    if getattr(type(inner), "parse_response", None) is not OpenAIChatLM.parse_response:
        return False
    return inner._wire_request(request).config.response_format is None


@cache
def session_of(loop: asyncio.AbstractEventLoop) -> aiohttp.ClientSession:
    """The connections that all requests of a loop share; it holds no cookies."""
    # The number of requests under way is limited where they are counted, not here.
    connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEP_ALIVE_SECONDS)
    session = aiohttp.ClientSession(connector=connector, cookie_jar=aiohttp.DummyCookieJar())
    at_exit(session.close)
    return session


def proxy_of(url: str) -> str | None:
    """The proxy that the environment names for ``url``, if any."""
    return _proxy(urlsplit(url)._replace(path="", query="").geturl())


@cache
def _proxy(address: str) -> str | None:
    """The proxy that the environment names for an address (scheme and host), looked up once."""
    parts = urlsplit(address)
    return None if proxy_bypass(parts.hostname or "") else getproxies().get(parts.scheme)


async def _post(letter: Letter, body: bytes, patience: float, provider: str) -> HttpResponse:
    session = session_of(asyncio.get_running_loop())
    timeout = aiohttp.ClientTimeout(total=patience, sock_connect=CONNECT_SECONDS)
    try:
        sending = session.post(letter.url, data=body, headers=letter.headers, timeout=timeout, proxy=letter.proxy)
        async with sending as reply:
            return HttpResponse(
                status=reply.status,
                reason=reply.reason or "",
                headers=list(reply.headers.items()),
                body=await reply.read(),
                http_version="HTTP/1.1",
                provider=provider,
            )
    except TimeoutError as error:
        raise lm15.TimeoutError(f"no answer in {patience:g} s") from error
    except (aiohttp.ClientError, OSError) as error:
        raise lm15.TransportError(str(error) or type(error).__name__) from error

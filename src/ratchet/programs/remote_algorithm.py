"""An algorithm of any language behind a URL, as one more generator.

Each turn is one signed POST: out goes the reply to the last request, back comes the next request or the finalists.
``ratchet.programs.messages`` says what is in them, ``docs/reference/algorithm-protocol.md`` the same for a reader.

After a crash the search is begun again: the server gets the same messages once more, built from stored evaluations and
recorded texts, and must answer what it answered before. Each answer's digest is noted before its request is carried
out, so that one that answers something else is told so instead of mixing two searches in one result. For the same
reason a turn whose connection broke may be sent again.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import itertools
import json
import random
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import aiohttp
from pydantic import ValidationError

from ratchet.core.algorithm import Algorithm
from ratchet.core.errors import BadRequest, BrokenProtocol, BudgetSpent
from ratchet.core.patience import Patience, retry_after
from ratchet.core.problem import Problem, content_hash
from ratchet.programs.hosts import GuardedResolver, IpAddress, new_session
from ratchet.programs.loop import run
from ratchet.programs.messages import PROTOCOL, Answer, Reader, Words, problem_json

TURN_SECONDS = 60.0
"""Patience with one turn."""
ANSWER_BYTES = 4 * 2**20
MESSAGE_BYTES = 64 * 2**20
CLOCK_SECONDS = 300.0
"""How far the clocks of the two sides may be apart."""
_LOOK_SECONDS = 0.2
"""How often a turn under way looks whether it is still wanted."""
AGAIN = frozenset({429, 502, 503, 504})
"""What a server that is busy or just started again answers, or who stands before it."""
TRIES = Patience(attempts=5, first_seconds=0.5)
"""With a turn that is lost; the turn's own time limit holds for all of them together."""


# --- signatures -------------------------------------------------------------------------------------------------------


def signature(secret: str, direction: str, timestamp: str, body: bytes) -> str:
    """HMAC-SHA256, in hex, of ``direction.timestamp.body``; the direction keeps a message from passing as its answer.

    >>> signature("key", "message", "1700000000", b"{}")[:16]
    '84c2b4dba4a73d71'
    """
    return hmac.new(secret.encode(), f"{direction}.{timestamp}.".encode() + body, hashlib.sha256).hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """A registered algorithm.

    Attributes:
        secret_env: The environment variable that holds its secret; None for ``RATCHET_ALGORITHM_SECRET``.
    """

    url: str
    secret_env: str | None = None


# --- where a message may go -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class AllowedHosts:
    """The hosts that may be asked: ``name`` or ``name:port`` each.

    >>> AllowedHosts.from_text("algorithms.example.com, 127.0.0.1:9000").entries
    frozenset({...})
    """

    entries: frozenset[str]

    @classmethod
    def from_text(cls, text: str) -> AllowedHosts:
        """Hosts with commas between them."""
        return cls(frozenset(each.strip().lower() for each in text.split(",") if each.strip()))

    def check(self, url: str) -> None:
        """See whether ``url`` may be asked.

        Raises:
            BadRequest: it is no address, or its host is not listed.
        """
        try:
            parts = urlsplit(url)
            host, port = parts.hostname, parts.port
        except ValueError as error:
            raise BadRequest(f"{url} is no address of an algorithm: {error}") from error
        if parts.scheme not in ("http", "https") or not host:
            raise BadRequest(f"{url} is no address of an algorithm; give http://HOST:PORT/PATH or https://HOST/PATH")
        if parts.username is not None or parts.password is not None:
            raise BadRequest(f"the address of the algorithm at {host} holds a password; use --secret-env instead")
        if not self.holds(host, port or {"http": 80, "https": 443}[parts.scheme]):
            listed = ", ".join(sorted(self.entries)) or "empty"
            raise BadRequest(
                f"the host {host} of the algorithm {url} is not allowed; add it to RATCHET_ALGORITHM_HOSTS "
                f"(now: {listed})"
            )

    def holds(self, host: str, port: int) -> bool:
        """Whether the host is listed, with this port or with any."""
        return not self.entries.isdisjoint({host.lower(), f"{host.lower()}:{port}"})

    def resolver(self) -> Resolver:
        """Looks names up, and refuses a name that leads to this machine without being listed as such."""
        return Resolver(self)


class Resolver(GuardedResolver):
    """A listed name must not lead to what is not listed: this machine, or its neighbour's metadata service."""

    def __init__(self, hosts: AllowedHosts) -> None:
        super().__init__()
        self._hosts = hosts

    def check(self, host: str, port: int, address: IpAddress) -> None:
        """See whether ``host`` may lead to ``address``."""
        inside = address.is_loopback or address.is_link_local or address.is_unspecified
        if inside and host.lower() != "localhost" and not self._hosts.holds(str(address), port):
            raise OSError(f"{host} leads to {address}, which is not in RATCHET_ALGORITHM_HOSTS")


# --- one turn ---------------------------------------------------------------------------------------------------------


class _Unlucky(Exception):
    """A try that failed, as the next one need not."""

    def __init__(self, field: str, what: str, *, asked_seconds: float = 0.0) -> None:
        super().__init__(what)
        self.field = field
        self.asked_seconds = asked_seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """Where an algorithm is, and how it is talked to.

    Attributes:
        url: Its address.
        secret: Signs both ways; both sides know it.
        hosts: The hosts that may be asked.
        seconds: Patience with one turn, from sending to the last byte, with all its tries.
        patience: How often a turn is sent within that time when its connection breaks, or the server is busy.
        rng: For the jitter between tries.
        clock: Seconds since 1970.
        check: Raises when the optimization was stopped.

    Raises:
        BadRequest: the address is not allowed, or there is no secret.
    """

    url: str
    secret: str = field(repr=False)
    hosts: AllowedHosts
    seconds: float = TURN_SECONDS
    patience: Patience = TRIES
    rng: random.Random = field(default_factory=random.Random, repr=False, compare=False)
    clock: Callable[[], float] = time.time
    check: Callable[[], None] = lambda: None

    def __post_init__(self) -> None:
        self.hosts.check(self.url)
        if not self.secret:
            raise BadRequest(
                f"the algorithm {self.url} has no secret to sign with; set RATCHET_ALGORITHM_SECRET to what its server "
                "knows, or register it with `ratchet algorithms add NAME URL --secret-env VARIABLE`"
            )

    def exchange(self, message: Mapping[str, Any]) -> bytes:
        """The body of the answer to ``message``, its signature checked. Call it from a thread that is not the loop's.

        Raises:
            BrokenProtocol: none came in time, or what came cannot be trusted.
            RatchetError: the optimization was stopped.
        """
        turn = message["turn"]
        text = json.dumps(message, ensure_ascii=False, separators=(",", ":"), default=str)
        body = text.encode("utf-8", "replace")  # half a character, which an LM may write, is no text in most languages
        if len(body) > MESSAGE_BYTES:
            raise broken(self.url, turn, "message", f"it takes {len(body):,} bytes; at most {MESSAGE_BYTES:,} are sent")
        return run(self._while_wanted(turn, body))

    async def _while_wanted(self, turn: int, body: bytes) -> bytes:
        sending = asyncio.ensure_future(self._send(turn, body))
        try:
            while not sending.done():
                self.check()
                await asyncio.wait([sending], timeout=_LOOK_SECONDS)
            return sending.result()
        finally:
            sending.cancel()
            with suppress(asyncio.CancelledError, BrokenProtocol):
                await sending

    async def _send(self, turn: int, body: bytes) -> bytes:
        try:
            async with (
                asyncio.timeout(self.seconds) as limit,
                new_session(self.hosts.resolver(), seconds=self.seconds) as session,
            ):
                for attempt in itertools.count(1):
                    try:
                        return await self._try(session, turn, body)
                    except _Unlucky as error:
                        wait = self.patience.wait(attempt, self.rng, asked_seconds=error.asked_seconds).total_seconds()
                        late = asyncio.get_running_loop().time() + wait >= (limit.when() or 0.0)
                        if attempt == self.patience.attempts or late:
                            tries = f"; it was tried {attempt} times" if attempt > 1 else ""
                            raise broken(self.url, turn, error.field, f"{error}{tries}") from error
                    await asyncio.sleep(wait)
        except TimeoutError as error:
            raise broken(self.url, turn, "answer", f"none came within {self.seconds:g} seconds") from error
        raise AssertionError("there is always a next try")

    async def _try(self, session: aiohttp.ClientSession, turn: int, body: bytes) -> bytes:
        timestamp = str(int(self.clock()))
        headers = {
            "Content-Type": "application/json",
            "Accept-Encoding": "identity",  # so that a small answer cannot unpack into a large one
            "Ratchet-Timestamp": timestamp,
            "Ratchet-Signature": signature(self.secret, "message", timestamp, body),
        }
        try:
            async with session.post(self.url, data=body, headers=headers, allow_redirects=False) as response:
                answer = await self._read(turn, response)
        except TimeoutError:
            raise
        except (aiohttp.ClientError, OSError, ValueError) as error:
            what = f"{type(error).__name__}: {error}"
            if isinstance(error, aiohttp.ClientConnectionError | aiohttp.ClientPayloadError):
                raise _Unlucky("connection", what) from error
            raise broken(self.url, turn, "connection", what) from error
        self._trust(turn, answer, response.headers)
        return answer

    async def _read(self, turn: int, response: aiohttp.ClientResponse) -> bytes:
        if 300 <= response.status < 400:
            raise broken(self.url, turn, "status", f"it is {response.status}; redirects are not followed")
        if response.status != 200:
            said = (await response.content.read(300)).decode("utf-8", "replace")
            what = f"it is {response.status}; expected 200. The server said: {said!r}"
            if response.status in AGAIN:
                raise _Unlucky("status", what, asked_seconds=retry_after(response.headers.get("Retry-After")) or 0.0)
            raise broken(self.url, turn, "status", what)
        answer = bytearray()
        async for chunk in response.content.iter_chunked(2**16):
            answer += chunk
            if len(answer) > ANSWER_BYTES:
                raise broken(self.url, turn, "body", f"it is longer than {ANSWER_BYTES:,} bytes")
        return bytes(answer)

    def _trust(self, turn: int, body: bytes, headers: Mapping[str, str]) -> None:
        timestamp, signed = headers.get("Ratchet-Timestamp", ""), headers.get("Ratchet-Signature", "")
        if not (timestamp.isascii() and timestamp.isdigit()) or len(timestamp) > 12:
            raise broken(self.url, turn, "Ratchet-Timestamp", f"it is {timestamp[:40]!r}; expected seconds since 1970")
        if abs(self.clock() - int(timestamp)) > CLOCK_SECONDS:
            raise broken(
                self.url, turn, "Ratchet-Timestamp", f"it is more than {CLOCK_SECONDS:g} seconds off; set the clocks"
            )
        if not hmac.compare_digest(signed.encode(), signature(self.secret, "answer", timestamp, body).encode()):
            raise broken(
                self.url, turn, "Ratchet-Signature", "it does not fit the body; do both sides know the same secret?"
            )


def broken(url: str, turn: int, name: str, what: str) -> BrokenProtocol:
    """What to raise when an algorithm broke its protocol."""
    return BrokenProtocol(f"{url}, turn {turn}, {name}: {what}", url=url, turn=turn, field=name)


# --- the search -------------------------------------------------------------------------------------------------------


@dataclass(slots=True, kw_only=True)
class RemoteAlgorithm:
    """A ``Search`` that asks a server what to do next. It waits for it, so its turns belong in a thread.

    Attributes:
        link: How the server is talked to.
        identity: Names the optimization, so that its sessions have the same names after a crash.
        noted: Digests of answers of earlier processes, by session and turn.
        note: Keeps a digest: session, turn, digest.
    """

    link: Link
    identity: str
    noted: Mapping[tuple[str, int], str] = field(default_factory=dict)
    note: Callable[[str, int, str], None] = lambda session, turn, digest: None
    sessions: int = 0

    def __call__(self, problem: Problem, *, rng: random.Random) -> Algorithm:
        """The search.

        Raises:
            BrokenProtocol: the server broke the protocol.
        """
        self.sessions += 1
        session = f"{self.identity}-{self.sessions}"
        reader, words = Reader(problem), Words(problem)
        told: dict[str, Any] = {"kind": "start", "seed": rng.randrange(2**31), "problem": problem_json(problem)}
        state: Any = None
        for turn in itertools.count(1):
            head = {"protocol": PROTOCOL, "session": session, "turn": turn, "state": state}
            answer = self._answer(session, turn, {**head, **told})
            state = answer.state
            try:
                found = reader.read(answer)
            except ValueError as error:
                name, _, what = str(error).partition(" ")
                raise broken(self.link.url, turn, name, what) from error
            if isinstance(found, list):
                return found
            try:
                reply = yield found
            except BudgetSpent as spent:
                told = {"kind": "spent", "message": str(spent), "ticket": spent.values.get("ticket")}
            else:
                told = {"kind": "reply", "reply": words.reply(found, reply)}
        raise AssertionError("there is always a next turn")

    def _answer(self, session: str, turn: int, message: Mapping[str, Any]) -> Answer:
        """The server's answer to ``message``, the same as it was before a crash."""
        url = self.link.url
        answer = read_answer(url, turn, self.link.exchange(message))
        if (answer.session, answer.turn) != (session, turn):
            name, found, expected = (
                ("turn", answer.turn, turn) if answer.session == session else ("session", answer.session, session)
            )
            raise broken(url, turn, name, f"it is {found!r}; expected {expected!r}, as in the message")
        if answer.error is not None:
            raise broken(url, turn, "error", answer.error[:1000])
        digest = content_hash(answer.model_dump(mode="json", exclude_unset=True))
        before = self.noted.get((session, turn))
        if before is None:
            self.note(session, turn, digest)
        elif before != digest:
            raise broken(
                url,
                turn,
                "answer",
                "it is another one than before the interruption, to the same message. The server must answer the same "
                "messages with the same answers (use the seed of the start message); begin anew",
            )
        return answer


def read_answer(url: str, turn: int, body: bytes) -> Answer:
    """The answer in ``body``.

    Raises:
        BrokenProtocol: it is none; the message names the first field that is wrong.
    """
    try:
        return Answer.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=True)[0]
        name = ".".join(str(part) for part in first["loc"]) or "answer"
        shown = repr(first["input"])
        found = shown if len(shown) <= 80 else f"{shown[:77]}..."
        raise broken(url, turn, name, f"{first['msg'].removeprefix('Value error, ')}; found {found}") from error

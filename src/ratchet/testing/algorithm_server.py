"""A server of one algorithm behind a URL, for tests: it keeps the protocol, or breaks it in the way it was told.

    with AlgorithmServer() as server:
        ratchet.optimize(..., algorithm=server.url)     # RATCHET_ALGORITHM_HOSTS=127.0.0.1

An algorithm is a generator here too: it yields requests as JSON data, receives replies as JSON data, and returns its
finalists. ``climb`` is one.
"""

from __future__ import annotations

import json
import random
import threading
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Any, TypeAlias

from ratchet.programs.remote_algorithm import signature
from ratchet.testing.http_server import HttpServer, Quiet

JsonSearch: TypeAlias = Generator[dict[str, Any], Any, list[dict[str, Any]]]
Answer: TypeAlias = dict[str, Any]


class SpentError(Exception):
    """The budget is spent."""


def climb(problem: dict[str, Any], rng: random.Random) -> JsonSearch:
    """Keep a rewrite of the instructions when it scores higher on a fresh minibatch."""
    best, names = problem["seed"], list(problem["seed"]["predictors"])
    train = problem["train"]
    try:
        for step in range(problem["budget"]["runs"] // 12):
            name = names[step % len(names)]
            batch = [each["key"] for each in rng.sample(train, k=min(6, len(train)))]
            before = yield {"evaluate": {"candidate": best, "examples": batch}}
            (text,) = yield {"generate": {"prompt": _prompt(best, name, before)}}
            text = text.strip().strip("`").strip()
            if not text:
                continue
            changed = {**best["predictors"], name: {**best["predictors"][name], "instructions": text}}
            child = {"predictors": changed, "parents": [before["candidate"]], "origin": "climb: a rewrite"}
            after = yield {"evaluate": {"candidate": child, "examples": batch}}
            if after["mean"] > before["mean"]:
                best = child
    except SpentError:
        pass
    return [best]


def _prompt(best: dict[str, Any], name: str, rows: dict[str, Any]) -> str:
    feedback = [f"- {row['feedback']}" for row in rows["rows"] if (row["score"] or 0) < 1]
    return "\n".join(
        ("Improve these instructions:", best["predictors"][name]["instructions"], "They failed:", *feedback)
    )


@dataclass(kw_only=True)
class AlgorithmServer(HttpServer):
    """The server; a context manager that listens in a thread of this process.

    Attributes:
        search: The algorithm.
        secret: What both sides know.
        port: 0 for any free one.
        seed: What the search draws by; where None, what it is told, which depends on its address and so on the port.
        at: The turn from which it misbehaves.
        lies: Changes the answer to a message from that turn on; what it gives is signed as it should be.
        body: When given, the body of the answer from that turn on, signed too.
        signs_with: The secret it signs with from that turn on; its own where None.
        late: Seconds that the timestamp is off from that turn on.
        status: The HTTP status from that turn on.
        location: Where it redirects to, with such a status.
        hangs: Whether it gives no answer from that turn on.
        drips: Whether it sends one byte now and then instead.
        drops: How many answers it loses from that turn on: the connection breaks in the middle of them.
        busy: How many messages it does not look at from that turn on, because it is busy (429).
        messages: What came in, in order.
        refused: Messages that were not signed as they should be.
    """

    search: Callable[[dict[str, Any], random.Random], JsonSearch] = climb
    secret: str = "a shared secret"
    port: int = 0
    seed: int | None = None
    at: int = 1
    lies: Callable[[Answer], Answer] | None = None
    body: bytes | None = None
    signs_with: str | None = None
    late: float = 0.0
    status: int = 200
    location: str | None = None
    hangs: bool = False
    drips: bool = False
    drops: int = 0
    busy: int = 0
    messages: list[dict[str, Any]] = field(default_factory=list)
    refused: int = 0

    def __post_init__(self) -> None:
        self._sessions: dict[str, JsonSearch] = {}
        self._answers: dict[str, Answer] = {}
        self._closing = threading.Event()

    @property
    def url(self) -> str:
        """What to give as ``--algorithm``."""
        return f"http://127.0.0.1:{self.port}/climb"

    def handler(self) -> type[BaseHTTPRequestHandler]:
        """Answers as it was told."""
        return _handler(self)

    def close(self) -> None:
        """Stop listening; what hangs is let go."""
        self._closing.set()
        super().close()

    def answer(self, message: dict[str, Any]) -> Answer:
        """The answer to one message, without any lie; to one that comes again, the same."""
        name = message["session"]
        if message["kind"] != "start" and self._answers[name]["turn"] == message["turn"]:
            return self._answers[name]
        try:
            match message["kind"]:
                case "start":
                    seed = message["seed"] if self.seed is None else self.seed
                    self._sessions[name] = self.search(message["problem"], random.Random(seed))
                    told: Answer = {"request": next(self._sessions[name])}
                case "spent":
                    told = {"request": self._sessions[name].throw(SpentError())}
                case _:
                    told = {"request": self._sessions[name].send(message["reply"])}
        except StopIteration as end:
            told = {"finalists": end.value}
        self._answers[name] = {"session": name, "turn": message["turn"], **told}
        return self._answers[name]


def _handler(server: AlgorithmServer) -> type[BaseHTTPRequestHandler]:
    class Answers(Quiet, BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            raw = self.rfile.read(int(self.headers["Content-Length"]))
            stamp = self.headers["Ratchet-Timestamp"]
            if signature(server.secret, "message", stamp, raw) != self.headers["Ratchet-Signature"]:
                server.refused += 1
                self.send_error(403, "the signature does not fit")
                return
            message = json.loads(raw)
            bad = message["turn"] >= server.at
            if bad and server.busy:
                server.busy -= 1
                self.send_error(429, "busy")
                return
            server.messages.append(message)
            if bad and server.hangs:
                server._closing.wait()
                return
            answer = server.answer(message)
            body = json.dumps(server.lies(answer) if bad and server.lies else answer).encode()
            if bad and server.body is not None:
                body = server.body
            stamp = str(int(time.time() + (server.late if bad else 0)))
            secret = server.signs_with if bad and server.signs_with is not None else server.secret
            self.send_response(server.status if bad else 200)
            if bad and server.location is not None:
                self.send_header("Location", server.location)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Ratchet-Timestamp", stamp)
            self.send_header("Ratchet-Signature", signature(secret, "answer", stamp, body))
            self.end_headers()
            if bad and server.drips:
                for byte in body:
                    self.wfile.write(bytes([byte]))
                    if server._closing.wait(0.05):
                        return
            elif bad and server.drops:
                server.drops -= 1
                self.wfile.write(body[: len(body) // 2])
            else:
                self.wfile.write(body)

    return Answers

"""A receiver of webhooks for tests: it keeps what it gets, and fails when it is told to.

with Receiver() as receiver:
    receiver.answer = lambda event: 500 if event["type"].endswith("failed") else 204
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Any

from ratchet.testing.http_server import HttpServer, Quiet


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """One request that came in.

    Attributes:
        headers: By their names in lower case.
        status: What was answered.
    """

    headers: Mapping[str, str]
    body: bytes
    status: int

    @property
    def event(self) -> dict[str, Any]:
        """The event in it."""
        found = json.loads(self.body)
        assert isinstance(found, dict)
        return found


@dataclass(kw_only=True)
class Receiver(HttpServer):
    """The server; a context manager that listens in a thread of this process.

    Attributes:
        answer: The status for an event.
        headers: What is answered with.
        deliveries: All that came, in the order it was answered.
        port: 0 for any free one.
    """

    answer: Callable[[dict[str, Any]], int] = lambda event: 204
    headers: dict[str, str] = field(default_factory=dict)
    deliveries: list[Delivery] = field(default_factory=list)
    port: int = 0

    @property
    def url(self) -> str:
        """Where to send events."""
        return f"http://127.0.0.1:{self.port}/hook"

    @property
    def taken(self) -> list[dict[str, Any]]:
        """The events that were taken, in order."""
        return [each.event for each in list(self.deliveries) if 200 <= each.status < 300]

    def handler(self) -> type[BaseHTTPRequestHandler]:
        """Keeps what comes, and answers as ``answer`` says."""
        receiver, lock = self, threading.Lock()

        class Takes(Quiet, BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("content-length", 0)))
                status = receiver.answer(json.loads(body))
                given = {name.lower(): value for name, value in self.headers.items()}
                with lock:
                    receiver.deliveries.append(Delivery(headers=given, body=body, status=status))
                self.send_response(status)
                for name, value in receiver.headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", "0")
                self.end_headers()

        return Takes

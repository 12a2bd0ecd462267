"""An HTTP server in a thread of this process, for tests."""

from __future__ import annotations

import sys
import threading
from abc import ABC, abstractmethod
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self


class Quiet:
    """What a handler of requests is that keeps no log."""

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


class _Listener(ThreadingHTTPServer):
    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hung up or was killed is what some tests are about; anything else is told."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)


class HttpServer(ABC):
    """A server; a context manager.

    Attributes:
        port: 0 for any free one, until it listens.
    """

    port: int = 0
    _listener: ThreadingHTTPServer | None = None

    @abstractmethod
    def handler(self) -> type[BaseHTTPRequestHandler]:
        """What answers each connection."""

    def start(self) -> Self:
        """Listen; once more on the same port after it was closed."""
        self._listener = _Listener(("127.0.0.1", self.port), self.handler())
        self.port = self._listener.server_address[1]
        threading.Thread(target=self._listener.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def close(self) -> None:
        """Stop listening."""
        if self._listener is not None:
            self._listener.shutdown()
            self._listener.server_close()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

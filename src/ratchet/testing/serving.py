"""The service behind a real port, for tests: ``ratchet serve`` in a process of its own, or the app in a thread.

with ServingProcess(home, lm_base=stub.base) as serving:
    with Client(serving.url, key=serving.key("developer")) as client:
        client.optimizations()
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any

import uvicorn

from ratchet.bootstrap import open_archive
from ratchet.calls import call
from ratchet.client import Client
from ratchet.core.access import Role
from ratchet.engine.archive import Event
from ratchet.service.app import create_app
from ratchet.settings import Settings
from ratchet.storage.audit import Audit
from ratchet.storage.keys import Keys
from ratchet.testing.ports import free_port
from ratchet.testing.service import Clock, RecordingQueue, actor, desk_in


@dataclass
class ServingProcess:
    """A server with a worker, on a free port; a context manager.

    Attributes:
        home: Its folder.
        lm_base: The LM server that requests may name.
        environment: Other variables for it.
    """

    home: Path
    lm_base: str = ""
    environment: dict[str, str] = field(default_factory=dict)
    url: str = ""
    _process: subprocess.Popen[str] | None = None
    _keys: dict[tuple[str, Role], str] = field(default_factory=dict)

    def __enter__(self) -> ServingProcess:
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        self._process = subprocess.Popen(
            [sys.executable, "-m", "ratchet", "serve", "--port", str(port)],
            env={
                **{name: value for name, value in os.environ.items() if not name.startswith("RATCHET_")},
                "RATCHET_HOME": str(self.home),
                "RATCHET_MLFLOW": "false",
                "RATCHET_LM_BASES": self.lm_base,
                "PYTHONWARNINGS": "ignore",
                **self.environment,
            },
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self._process.stderr is not None
        for line in self._process.stderr:
            if "listening" in line:
                break
        with Client(self.url, key="none", retry_seconds=(0.05,) * 400) as client:
            client.ask(call("GET", "openapi.json"))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.communicate()

    def key(self, role: Role, *, tenant: str = "default") -> str:
        """A key of this role, made once."""
        if (tenant, role) not in self._keys:
            archive = open_archive(Settings(home=self.home))
            keys = Keys(archive, Audit(archive, clock=lambda: datetime.now(UTC)))
            self._keys[tenant, role] = keys.create(actor(), name=role, tenant=tenant, role=role)[1]
            archive.close()
        return self._keys[tenant, role]

    def environment_for(self, role: Role, **more: Any) -> dict[str, str]:
        """What a command needs to know to work on it."""
        return {"RATCHET_SERVER": self.url, "RATCHET_API_KEY": self.key(role), **more}


def begin_worker(settings: Settings) -> subprocess.Popen[str]:
    """``ratchet worker`` in a process of its own, at work."""
    process = subprocess.Popen(
        [sys.executable, "-m", "ratchet", "worker"],
        env={
            **os.environ,
            "RATCHET_HOME": str(settings.home),
            "RATCHET_DATABASE_URL": settings.database,
            "RATCHET_WEBHOOK_ALLOW": settings.webhook_allow,
            "RATCHET_MLFLOW": "false",
            "PYTHONWARNINGS": "ignore",
        },
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    assert "is at work" in process.stderr.readline()
    return process


class ServingThread:
    """A service without a worker, on a free port, in a thread of this process."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        self.desk = desk_in(folder, queue=RecordingQueue(), clock=Clock(), **settings)
        _, self.key = self.desk.keys.create(actor(), name="tests", tenant="default", role="operator")
        self.port = 0

    def start(self) -> None:
        """Listen; again on the same port."""
        config = uvicorn.Config(create_app(self.desk), port=self.port, log_level="error", timeout_graceful_shutdown=1)
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run)
        self._thread.start()
        while not self._server.started:
            time.sleep(0.005)
        self.port = self._server.servers[0].sockets[0].getsockname()[1]

    def stop(self) -> None:
        """Listen no more; streams break."""
        self._server.should_exit = self._server.force_exit = True
        self._thread.join()

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.port}"

    def tell(self, job: str, n: int) -> None:
        """Have some events happen."""
        notebook = self.desk.archive.open(job)
        for number in range(n):
            notebook.note(Event(kind="evaluated", payload={"n": number}))
        notebook.flush()

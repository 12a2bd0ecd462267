"""A PostgreSQL server for tests, on a free port of this machine, when its programs are installed.

with a_postgres() as server:
    SqlArchive(server.url)
"""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Literal

import psycopg

from ratchet.testing.ports import free_port


def programs() -> Path | None:
    """The folder of the newest PostgreSQL programs; None when there are none."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    if found:
        return found[-1].parent
    there = shutil.which("initdb")
    return None if there is None else Path(there).parent


def _somebody_else() -> tuple[int | None, int | None]:
    """User and group that it runs as: PostgreSQL refuses to run as root; None leaves them as they are."""
    if os.getuid() != 0:
        return None, None
    nobody = pwd.getpwnam("nobody")
    return nobody.pw_uid, nobody.pw_gid


class PostgresServer:
    """The server; a context manager.

    Args:
        folder: An empty folder of its own, in a place that anybody may enter.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.port = free_port()
        self._user, self._group = _somebody_else()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """What ``RATCHET_DATABASE_URL`` takes."""
        return f"postgresql+psycopg://ratchet@127.0.0.1:{self.port}/postgres"

    @property
    def pid(self) -> int:
        """Of its first process."""
        assert self._process is not None
        return self._process.pid

    def address(self, port: int | None = None) -> str:
        """What ``psycopg.connect`` takes."""
        return f"postgresql://ratchet@127.0.0.1:{port or self.port}/postgres"

    def __enter__(self) -> PostgresServer:
        """Make the database, and start."""
        there = programs()
        if there is None:
            raise FileNotFoundError("PostgreSQL's initdb is not installed")
        self._folder.mkdir(parents=True, exist_ok=True)
        if self._user is not None:
            os.chown(self._folder, self._user, -1)
        options = ["-D", str(self._folder / "data"), "-U", "ratchet", "-A", "trust", "-N", "-E", "UTF8", "--locale=C"]
        subprocess.run(
            [str(there / "initdb"), *options],
            check=True,
            capture_output=True,
            user=self._user,
            group=self._group,
            cwd="/",
        )
        self.start()
        return self

    def start(self, *, port: int | None = None) -> None:
        """Start, and wait until it answers.

        Args:
            port: Another port than its own, to look at what is kept while nobody else can.
        """
        port = port or self.port
        there = programs()
        assert there is not None
        options = [
            "-c",
            "listen_addresses=127.0.0.1",
            "-c",
            "fsync=off",
            "-c",
            f"unix_socket_directories={self._folder}",
        ]
        self._process = subprocess.Popen(
            [there / "postgres", "-D", self._folder / "data", "-p", str(port), *options],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            user=self._user,
            group=self._group,
            cwd="/",
        )
        end = time.monotonic() + 30
        while True:
            try:
                psycopg.connect(self.address(port), connect_timeout=2).close()
                return
            except psycopg.OperationalError:
                if time.monotonic() > end:
                    raise
                time.sleep(0.05)

    def stop(self, *, how: Literal["immediate", "fast"] = "immediate") -> None:
        """Stop; connections break.

        Args:
            how: As ``pg_ctl stop -m`` says it: as in a crash, or rolling back what is under way.
        """
        if self._process is not None:
            self._process.send_signal(signal.SIGQUIT if how == "immediate" else signal.SIGINT)
            self._process.wait()
            self._process = None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Stop."""
        self.stop()


@contextmanager
def a_postgres() -> Iterator[PostgresServer]:
    """A server in a folder of its own, which goes with it."""
    # Not pytest's folder, which only its owner may enter; a socket's path has to be short, too.
    with tempfile.TemporaryDirectory(prefix="ratchet-pg-", dir="/tmp") as folder:
        Path(folder).chmod(0o755)
        with PostgresServer(Path(folder) / "server") as server:
            yield server

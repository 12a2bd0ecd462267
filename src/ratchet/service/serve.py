"""The server process: the API, and a worker unless told otherwise."""

from __future__ import annotations

import gc
import ipaddress
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

import uvicorn

from ratchet.bootstrap import new_worker, open_desk, open_ring
from ratchet.core.access import Actor
from ratchet.core.errors import BadRequest, where
from ratchet.desk import Desk
from ratchet.service.app import create_app
from ratchet.service.live import Pulse
from ratchet.settings import Settings, collect_rarely

STOPPING_SECONDS = 30
WORKER_NICENESS = 5
"""How far a worker stands back from an API and a database on the same machine: somebody waits for those."""
SWITCH_SECONDS = 0.0005
"""How long a thread that computes keeps the others waiting; Python's own 5 ms is what each query of a request would
cost beside a thousand optimizations at work in the same process."""


class _Server(uvicorn.Server):
    """Lets listeners to events go when it stops; Uvicorn would wait for them."""

    def __init__(self, config: uvicorn.Config, pulse: Pulse) -> None:
        super().__init__(config)
        self._pulse = pulse

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to stop."""
        self._pulse.close()
        super().handle_exit(sig, frame)


def here(name: str) -> Actor:
    """Whoever sits at this machine; they hold the database anyway."""
    return Actor(name=name, tenant="default", role="admin", origin="this machine")


def _is_local(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def first_key(desk: Desk, host: str) -> str | None:
    """The admin key that is made when there is none yet; None when there are keys.

    Raises:
        BadRequest: there is none, and others could reach this server before its first key was seen.
    """
    if desk.keys.list():
        return None
    if not _is_local(host):
        raise BadRequest(
            f"there is no key yet, and {host} can be reached from elsewhere; make one first with "
            "`ratchet keys create NAME --role admin`, or bind to 127.0.0.1"
        )
    _, text = desk.keys.create(here("first start"), name="first", tenant="default", role="admin")
    return text


def without_message(record: logging.LogRecord) -> bool:
    """Has a log tell of an error what it is and where, and not what it says: that may quote an example."""
    if record.exc_info and record.exc_info[1] is not None:
        record.exc_text = where(record.exc_info[1])
    return True


def serve(settings: Settings, *, host: str, port: int, with_worker: bool, say: Callable[[str], None]) -> None:
    """Serve until stopped.

    Args:
        settings: Of this installation.
        host, port: Where to listen.
        with_worker: Whether this process also works on optimizations.
        say: Told where it listens, and the first key.

    Raises:
        BadRequest: it may not listen there.
    """
    fresh = not open_ring(settings).there
    desk = open_desk(settings)
    try:
        if fresh:
            say(f"what is stored is encrypted under {settings.master_keys_file}; who loses that file loses it all")
        key = first_key(desk, host)
        worker = new_worker(desk, settings, say=say) if with_worker else None
        app = create_app(desk, work=worker.start if worker else None, stop=worker.close if worker else None)
        _set_up_interpreter()
        if key is not None:
            say(f"the first admin key, shown only now: {key}")
        say(f"listening on http://{host}:{port}")
        config = uvicorn.Config(
            app,
            host=host,
            port=port,
            log_level="warning",
            loop="asyncio",
            timeout_graceful_shutdown=STOPPING_SECONDS,
            ws_max_size=65536,
            proxy_headers=False,  # else whoever asks from this machine could tell the audit trail another origin
            server_header=False,
        )
        logging.getLogger("uvicorn.error").addFilter(without_message)
        with _on_signals(lambda: None):  # Uvicorn raises again, when it is done, what it was stopped by
            _Server(config, app.state.pulse).run()
    finally:
        desk.close()


def work(settings: Settings, *, say: Callable[[str], None]) -> None:
    """Work on optimizations until stopped; others go on with what is left."""
    desk = open_desk(settings)
    stopped = threading.Event()
    try:
        with _on_signals(stopped.set):
            worker = new_worker(desk, settings, say=say)
            _set_up_interpreter()
            os.nice(WORKER_NICENESS)
            worker.start()
            say(f"worker {worker.id} is at work")
            stopped.wait()
            say("stopping after the requests under way")
            worker.close(seconds=STOPPING_SECONDS)
    finally:
        desk.close()


def _set_up_interpreter() -> None:
    """Have this process be one of many optimizations, beside requests that do not want to wait."""
    sys.setswitchinterval(SWITCH_SECONDS)
    collect_rarely()
    gc.freeze()  # what was imported stays


@contextmanager
def _on_signals(then: Callable[[], None]) -> Iterator[None]:
    """Have ``then`` called on Ctrl-C and SIGTERM."""
    before = {number: signal.signal(number, lambda *_: then()) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

"""The one event loop of the process, in a thread of its own: optimizations run on it, and every LM is waited for on it.

One loop for all of them means one pool of connections, one line before each provider, and a gateway that needs no
locks. Whoever comes from another thread or another loop waits for it with ``run`` or ``arun``.
"""

from __future__ import annotations

import asyncio
import atexit
import threading
from collections import deque
from collections.abc import Callable, Coroutine
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import suppress
from contextvars import copy_context
from functools import partial
from queue import SimpleQueue
from typing import Any, TypeVar

T = TypeVar("T")

THREADS = 512
"""Programs and metrics that block, at once, over all optimizations; a thread that is not needed is not started."""

STOPPING_SECONDS = 5.0
"""How long work that was interrupted may take to end, and connections to be closed."""


class WouldBlockError(BaseException):
    """Code on the loop waits for an LM without ``await``, so that nothing else could go on; run it in a thread.

    Not an ``Exception``, because programs catch those.
    """


_starting = threading.Lock()
_loops: list[asyncio.AbstractEventLoop] = []


class _Letterbox:
    """What threads want called on the loop. Only who finds it empty wakes the loop, since that costs a system call."""

    def __init__(self) -> None:
        self._calls: deque[Callable[[], None]] = deque()
        self._rung = False

    def put(self, call: Callable[[], None]) -> None:
        """Have ``call``, which raises nothing, called on the loop."""
        self._calls.append(call)
        if not self._rung:
            self._rung = True
            house_loop().call_soon_threadsafe(self._empty)

    def _empty(self) -> None:
        self._rung = False  # first: whatever comes from now on rings again
        while self._calls:
            self._calls.popleft()()


_letterbox = _Letterbox()


def _new_loop() -> asyncio.AbstractEventLoop:
    try:
        import uvloop  # not for every system
    except ImportError:
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()


def house_loop() -> asyncio.AbstractEventLoop:
    """The loop; started when it is first asked for."""
    if not _loops:
        with _starting:
            if not _loops:
                loop = _new_loop()
                loop.set_default_executor(ThreadPoolExecutor(THREADS, thread_name_prefix="ratchet-lm"))
                threading.Thread(target=_serve, args=(loop,), name="ratchet", daemon=True).start()
                atexit.register(_close, loop)
                _loops.append(loop)
    return _loops[0]


def at_exit(close: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Have ``close`` run on the loop before the process ends."""
    _closing.append(close)


_closing: list[Callable[[], Coroutine[Any, Any, None]]] = []


def _close(loop: asyncio.AbstractEventLoop) -> None:
    async def close() -> None:
        for each in _closing:
            await each()

    with suppress(TimeoutError):
        asyncio.run_coroutine_threadsafe(close(), loop).result(STOPPING_SECONDS)
    loop.call_soon_threadsafe(loop.stop)


def _serve(loop: asyncio.AbstractEventLoop) -> None:
    asyncio.set_event_loop(loop)
    while True:
        try:
            return loop.run_forever()
        except SystemExit:  # of foreign code; whoever waits for its task gets it, and the others go on
            continue


class _Daemons(Executor):
    """Threads that nobody waits for when the process ends: what runs in them may never return.

    Args:
        most: How many there may be; they are started when they are needed, and kept.
    """

    def __init__(self, most: int) -> None:
        self._most, self._count, self._lock = most, 0, threading.Lock()
        self._idle = threading.Semaphore(0)
        self._work: SimpleQueue[tuple[Future[Any], Callable[[], Any]]] = SimpleQueue()

    def submit(self, call: Callable[..., T], /, *arguments: Any, **named: Any) -> Future[T]:
        """Have ``call`` called in one of the threads."""
        future: Future[T] = Future()
        self._work.put((future, partial(call, *arguments, **named)))
        if not self._idle.acquire(blocking=False):
            with self._lock:
                if self._count < self._most:
                    self._count += 1
                    threading.Thread(target=self._labour, name=f"ratchet-run-{self._count}", daemon=True).start()
        return future

    def _labour(self) -> None:
        while True:
            future, call = self._work.get()
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(call())
                except BaseException as error:  # whoever waits gets it
                    future.set_exception(error)
            del future, call
            self._idle.release()


_foreign: Executor = _Daemons(THREADS)


async def in_thread(call: Callable[..., T], *arguments: Any, **named: Any) -> T:
    """Run foreign code that may block: in threads of its own, so that what it waits for finds one too.

    Raises:
        RuntimeError: it raised ``StopIteration``, which cannot be handed over.
    """

    def contained() -> T:
        try:
            return call(*arguments, **named)
        except StopIteration as error:
            raise RuntimeError(f"StopIteration: {error}".rstrip(": ")) from error

    return await asyncio.get_running_loop().run_in_executor(_foreign, copy_context().run, contained)


def on_loop() -> bool:
    """Whether the caller runs on the loop."""
    try:
        return asyncio.get_running_loop() is house_loop()
    except RuntimeError:
        return False


def run(work: Coroutine[Any, Any, T]) -> T:
    """Run ``work`` on the loop and wait for it, from a thread that is not the loop's.

    When the waiting is interrupted (Ctrl-C) the work is cancelled, and has ``STOPPING_SECONDS`` to end.

    Raises:
        WouldBlockError: the caller is on the loop.
    """
    if on_loop():
        work.close()
        raise WouldBlockError
    ended = threading.Event()

    async def tracked() -> T:
        try:
            return await work
        finally:
            ended.set()

    future = asyncio.run_coroutine_threadsafe(tracked(), house_loop())
    try:
        return future.result()
    finally:
        if not future.done():
            future.cancel()
            ended.wait(STOPPING_SECONDS)


def wait_for(begin: Callable[[], asyncio.Future[T]]) -> T:
    """Have ``begin`` called on the loop, and wait for the future it gives back; lighter than ``run``.

    Raises:
        WouldBlockError: the caller is on the loop.
    """
    if on_loop():
        raise WouldBlockError
    ended = threading.Lock()
    ended.acquire()
    futures: list[asyncio.Future[T]] = []
    errors: list[BaseException] = []

    def start() -> None:
        try:
            futures.append(begin())
        except BaseException as error:  # whoever waits gets it; the loop would only log it
            errors.append(error)
            ended.release()
        else:
            futures[0].add_done_callback(lambda _: ended.release())

    _letterbox.put(start)
    ended.acquire()
    if errors:
        raise errors[0]
    return futures[0].result()


async def arun(work: Coroutine[Any, Any, T]) -> T:
    """Run ``work`` on the loop and await it, from any loop."""
    if on_loop():
        return await work
    return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, house_loop()))

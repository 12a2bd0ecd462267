"""The process's one event loop, and those who wait for it."""

from __future__ import annotations

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from ratchet.programs import loop


async def _where() -> tuple[asyncio.AbstractEventLoop, str]:
    await asyncio.sleep(0)
    return asyncio.get_running_loop(), threading.current_thread().name


def test_all_threads_get_the_same_loop_in_the_same_thread() -> None:
    with ThreadPoolExecutor(8) as pool:
        places = set(pool.map(lambda _: loop.run(_where()), range(32)))
    assert places == {(loop.house_loop(), "ratchet")}


async def test_another_loop_waits_for_it_without_blocking() -> None:
    beats = 0

    async def beat() -> None:
        nonlocal beats
        while True:
            beats += 1
            await asyncio.sleep(0.001)

    heart = asyncio.create_task(beat())
    await loop.arun(asyncio.sleep(0.05))
    heart.cancel()
    assert beats > 5
    assert (await loop.arun(_where()))[0] is loop.house_loop()


def test_errors_come_back_as_they_were_raised() -> None:
    async def fails() -> None:
        raise ZeroDivisionError("as it was")

    with pytest.raises(ZeroDivisionError, match="as it was"):
        loop.run(fails())

    def broken() -> asyncio.Future[None]:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        future.set_exception(ZeroDivisionError("as it was"))
        return future

    with pytest.raises(ZeroDivisionError, match="as it was"):
        loop.wait_for(broken)

    def begins_broken() -> asyncio.Future[None]:
        raise ZeroDivisionError("as it was")

    with pytest.raises(ZeroDivisionError, match="as it was"):
        loop.wait_for(begins_broken)


def test_who_waits_on_the_loop_itself_is_told_instead_of_hanging() -> None:
    async def waits(lightly: bool) -> str:
        try:
            if lightly:
                loop.wait_for(lambda: asyncio.get_running_loop().create_future())
            else:
                loop.run(_where())
        except loop.WouldBlockError:
            return "told"
        return "hung"

    assert [loop.run(waits(lightly)) for lightly in (True, False)] == ["told", "told"]


def test_an_interrupted_wait_ends_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    ended = threading.Event()

    async def long() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            ended.set()

    def interrupted(self: object, timeout: float | None = None) -> None:
        time.sleep(0.05)
        raise KeyboardInterrupt

    monkeypatch.setattr("concurrent.futures.Future.result", interrupted)
    with pytest.raises(KeyboardInterrupt):
        loop.run(long())
    assert ended.is_set()


def test_foreign_code_that_ends_the_process_ends_only_its_own_work() -> None:
    async def leaves() -> None:
        raise SystemExit(3)

    other = asyncio.run_coroutine_threadsafe(asyncio.sleep(0.05, "done"), loop.house_loop())
    with pytest.raises(SystemExit):
        loop.run(leaves())
    assert other.result(5) == "done"
    assert loop.run(asyncio.sleep(0, "alive")) == "alive"


def test_what_foreign_threads_wait_for_finds_a_thread_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "_foreign", ThreadPoolExecutor(1))

    def program() -> str:
        return loop.run(asyncio.to_thread(lambda: "answer"))

    assert loop.run(asyncio.wait_for(loop.in_thread(program), 5)) == "answer"

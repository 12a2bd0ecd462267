"""A stub LM in a process of its own: the rule of ``ratchet.testing.lm_server`` behind slots, latency and bad weather.

    python -m bench.stub --latency 0.3 --jitter 0.3 --slots 64
    python -m bench.stub --rate-429 0.2 --retry-after 0.2 --rate-timeout 0.05 --outage 60,20 --outage 200,20,503

The first line printed is the address to give as ``--lm-base``. ``http://HOST:PORT/NAME/v1`` is the same LM, counted
apart under NAME. ``GET /stats``, ``/log`` and ``/jobs`` tell what came (``?job=NAME`` of one name), ``GET /sample`` is
the last body that was answered, ``POST /reset`` forgets everything.

What a request is answered is a function of its body alone; garbage too, so that asking again does not help. Whether it
fails with 429, 500 or never gets an answer is drawn by its number of arrival, so that asking again does help.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import random
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, fields
from types import TracebackType
from typing import Any

import orjson
from aiohttp import web
from aiohttp.web_request import BaseRequest

from ratchet.testing.lm_server import _error, completion, reply, share

GARBAGE = "%% nothing of use %%"
FOREVER = 10.0**9


@dataclass(frozen=True, slots=True, kw_only=True)
class Outage:
    """A time when nothing is answered, in seconds from the first request.

    Attributes:
        refuse: Answer 503 at once; otherwise connections are dropped without a word.
    """

    start: float
    seconds: float
    refuse: bool = False

    @classmethod
    def parse(cls, text: str) -> Outage:
        """An outage as it is written on a command line.

        >>> Outage.parse("60,20,503")
        Outage(start=60.0, seconds=20.0, refuse=True)
        """
        start, seconds, *how = text.split(",")
        if how not in ([], ["503"], ["drop"]):
            raise ValueError(f"{text!r}: give START,SECONDS or START,SECONDS,503")
        return cls(start=float(start), seconds=float(seconds), refuse=how == ["503"])

    def __str__(self) -> str:
        return f"{self.start:g},{self.seconds:g},{'503' if self.refuse else 'drop'}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Weather:
    """How the stub behaves.

    Attributes:
        latency: Mean seconds in service.
        jitter: Half-width of the latency's spread, as a share of it.
        slots: Requests in service at once, the others wait in line; None for no limit.
        rate_429, rate_500, rate_timeout: Shares of requests that fail so, drawn by number of arrival.
        rate_garbage: Share of bodies answered with text that has no fields in it, drawn by content.
        retry_after: Seconds in the ``Retry-After`` header of a 429; None leaves it out.
        outages: When nothing is answered.
        hopeless: No prompt is better than another.
        seed: Of latencies and failures.
    """

    latency: float = 0.0
    jitter: float = 0.0
    slots: int | None = None
    rate_429: float = 0.0
    rate_500: float = 0.0
    rate_timeout: float = 0.0
    rate_garbage: float = 0.0
    retry_after: float | None = 0.1
    outages: tuple[Outage, ...] = ()
    hopeless: bool = False
    seed: int = 0

    def arguments(self) -> list[str]:
        """The same as a command line."""
        words: list[str] = []
        for each in fields(self):
            value, flag = getattr(self, each.name), "--" + each.name.replace("_", "-")
            if each.name == "outages":
                words += [f"--outage={outage}" for outage in self.outages]
            elif each.name == "hopeless":
                words += [flag] if value else []
            elif value is not None:
                words += [f"{flag}={value}"]
            elif each.name == "retry_after":
                words += [f"{flag}=-1"]
        return words


@dataclass(slots=True)
class Tally:
    """What came, and what became of it.

    Attributes:
        requests: Requests that arrived.
        outcomes: How they ended: an HTTP status, ``dropped`` in an outage, or ``left`` when the client went first.
        answered: Bodies answered with 200, by hash.
        under_way: Arrived and not ended.
        in_service: Under way and not waiting in line.
        busy_seconds: Time in service, over all requests.
        busy_by_second: The same, for each second since the first was served: the mean number in service then.
    """

    requests: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    answered: Counter[str] = field(default_factory=Counter)
    under_way: int = 0
    in_service: int = 0
    most_at_once: int = 0
    busy_seconds: float = 0.0
    busy_by_second: list[float] = field(default_factory=list)
    first_at: float | None = None
    last_at: float | None = None
    _began: float | None = None
    _since: float = 0.0

    def _serve(self, change: int) -> None:
        now = time.monotonic()
        if self._began is None:
            self._began = self._since = now
        self.busy_seconds += self.in_service * (now - self._since)
        while self._since < now:
            second = int(self._since - self._began)
            end = min(now, max(self._began + second + 1, self._since + 1e-6))
            self.busy_by_second += [0.0] * (second + 1 - len(self.busy_by_second))
            self.busy_by_second[second] += self.in_service * (end - self._since)
            self._since = end
        self.in_service += change

    def arrive(self) -> None:
        """A request arrived."""
        self.requests += 1
        self.under_way += 1
        self.first_at = self.first_at or time.time()

    def begin(self) -> None:
        """It has a slot."""
        self._serve(+1)
        self.most_at_once = max(self.most_at_once, self.in_service)

    def end(self) -> None:
        """It gives the slot back."""
        self._serve(-1)

    def leave(self, outcome: str) -> None:
        """It ended."""
        self.under_way -= 1
        self.outcomes[outcome] += 1
        self.last_at = time.time()

    def stats(self) -> dict[str, Any]:
        """What ``GET /stats`` says."""
        if self._began is not None:
            self._serve(0)
        total = self.answered.total()
        return {
            "requests": self.requests,
            "answered": total,
            "unique": len(self.answered),
            "repeated": total - len(self.answered),
            "outcomes": dict(self.outcomes),
            "under_way": self.under_way,
            "most_at_once": self.most_at_once,
            "busy_seconds": self.busy_seconds,
            "busy_by_second": [round(busy, 2) for busy in self.busy_by_second],
            "first_at": self.first_at,
            "last_at": self.last_at,
        }


class Stub:
    """The LM behind an aiohttp server."""

    def __init__(self, weather: Weather) -> None:
        self.weather = weather
        self._slots = asyncio.Semaphore(weather.slots) if weather.slots else None
        self._began: float | None = None
        self.reset()

    def reset(self) -> None:
        """Forget what came; what is under way is not counted again."""
        self._luck = random.Random(self.weather.seed)
        self._all = Tally()
        self._jobs: dict[str, Tally] = {}
        self._sample = b""
        self._began = None

    async def handle(self, request: BaseRequest) -> web.StreamResponse:
        """Answer one request of any kind."""
        parts = request.path.strip("/").split("/")
        if request.method == "POST" and parts[-2:] == ["chat", "completions"]:
            job = parts[0] if len(parts) == 4 else ""
            return await self._chat(request, (self._all, self._jobs.setdefault(job, Tally())))
        tally = self._all if "job" not in request.query else self._jobs.setdefault(request.query["job"], Tally())
        match request.method, parts[-1]:
            case "GET", "stats":
                return _json(200, tally.stats())
            case "GET", "jobs":
                return _json(200, {name: each.stats() for name, each in self._jobs.items()})
            case "GET", "log":
                return _json(200, {"log": dict(tally.answered)})
            case "GET", "sample":
                return web.Response(body=self._sample)
            case "POST", "reset":
                self.reset()
                return _json(200, {})
        return _json(404, _error(f"there is no {request.path} here"))

    async def _chat(self, request: BaseRequest, tallies: tuple[Tally, Tally]) -> web.StreamResponse:
        outcome = "left"
        if self._began is None:
            self._began = time.monotonic()
        for tally in tallies:
            tally.arrive()
        seconds, fate = self._draw()
        try:
            raw = await request.read()
            if (away := self._away()) is None and fate == "429":
                outcome = "429"
                return self._refused(429)
            if away is None:
                async with self._slot(tallies):
                    await asyncio.sleep(FOREVER if fate == "hang" else seconds)
                away = self._away()  # what is in service when an outage begins is lost too
            if away is not None:
                outcome = "503" if away.refuse else "dropped"
                return self._refused(503) if away.refuse else await _drop(request)
            if fate == "500":
                outcome = "500"
                return self._refused(500)
            digest, answer = self._answer(raw)
            outcome = "200"
            for tally in tallies:
                tally.answered[digest] += 1
            self._sample = raw
            return _json(200, answer)
        finally:
            for tally in tallies:
                tally.leave(outcome)

    def _draw(self) -> tuple[float, str]:
        """Seconds in service and fate of the request that arrives now; two draws each, whatever comes of them."""
        weather = self.weather
        seconds = weather.latency * (1 + weather.jitter * self._luck.uniform(-1, 1))
        drawn = self._luck.random()
        for fate, rate in (("429", weather.rate_429), ("500", weather.rate_500), ("hang", weather.rate_timeout)):
            if drawn < rate:
                return seconds, fate
            drawn -= rate
        return seconds, ""

    def _away(self) -> Outage | None:
        since = time.monotonic() - (self._began or 0.0)
        outages = self.weather.outages
        return next((each for each in outages if each.start <= since < each.start + each.seconds), None)

    @asynccontextmanager
    async def _slot(self, tallies: tuple[Tally, Tally]) -> AsyncIterator[None]:
        if self._slots is not None:
            await self._slots.acquire()
        for tally in tallies:
            tally.begin()
        try:
            yield
        finally:
            for tally in tallies:
                tally.end()
            if self._slots is not None:
                self._slots.release()

    def _answer(self, raw: bytes) -> tuple[str, dict[str, Any]]:
        body = orjson.loads(raw)
        digest = hashlib.sha256(raw).hexdigest()[:16]
        garbage = self.weather.rate_garbage and share("garbage", digest) < self.weather.rate_garbage
        text = GARBAGE if garbage else reply(body, hopeless=self.weather.hopeless)
        return digest, completion(body, digest, text)

    def _refused(self, status: int) -> web.Response:
        answer = _json(status, _error(f"the stub was told to answer {status}"))
        if status == 429 and self.weather.retry_after is not None:
            answer.headers["Retry-After"] = f"{self.weather.retry_after:g}"
        return answer


def _json(status: int, data: Any) -> web.Response:
    return web.Response(status=status, body=orjson.dumps(data), headers={"Content-Type": "application/json"})


async def _drop(request: BaseRequest) -> web.StreamResponse:
    if request.transport is not None:
        request.transport.abort()
    await asyncio.sleep(FOREVER)  # the server cancels us now that the connection is gone
    raise AssertionError("unreachable")


async def serve(weather: Weather, *, port: int = 0) -> None:
    """Listen until cancelled; the address is printed first."""
    server = web.Server(Stub(weather).handle, access_log=None, handler_cancellation=True, keepalive_timeout=3600)
    runner = web.ServerRunner(server, handle_signals=False)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", port, backlog=2048)
    await site.start()
    print(f"http://127.0.0.1:{runner.addresses[0][1]}/v1", flush=True)
    try:
        await asyncio.sleep(FOREVER)
    finally:
        await runner.cleanup()


class StubProcess:
    """The stub in another process, for as long as a ``with`` block lasts.

    with StubProcess(Weather(latency=0.3, slots=64)) as stub:
        lm = dspy.LM("openai/stub", api_base=stub.base("gepa"), api_key="none")
        print(stub.stats("gepa")["requests"])
    """

    def __init__(self, weather: Weather | None = None) -> None:
        self.weather = weather or Weather()
        self._process: subprocess.Popen[str] | None = None
        self._root = ""

    def __enter__(self) -> StubProcess:
        command = [sys.executable, "-m", "bench.stub", *self.weather.arguments()]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        self._root = self._process.stdout.readline().strip().removesuffix("/v1")
        if not self._root:
            raise RuntimeError("the stub did not start; what it said stands above")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()

    def base(self, job: str = "") -> str:
        """What to give as ``--lm-base``; what comes there is also counted under ``job``."""
        return f"{self._root}/{job}/v1" if job else f"{self._root}/v1"

    def stats(self, job: str = "") -> dict[str, Any]:
        """What came, of one job or of all."""
        found: dict[str, Any] = self._get("stats", job)
        return found

    def log(self, job: str = "") -> Counter[str]:
        """Bodies answered with 200, by hash."""
        return Counter(self._get("log", job)["log"])

    def sample(self) -> bytes:
        """The body that was answered last."""
        with urllib.request.urlopen(f"{self._root}/sample") as answer:
            return bytes(answer.read())

    def reset(self) -> None:
        """Forget what came."""
        with urllib.request.urlopen(f"{self._root}/reset", data=b""):
            pass

    def _get(self, what: str, job: str) -> Any:
        with urllib.request.urlopen(f"{self._root}/{what}" + (f"?job={job}" if job else "")) as answer:
            return json.load(answer)


def main(arguments: list[str] | None = None) -> None:
    """Serve until killed."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.stub", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--port", type=int, default=0, help="0 for any free one")
    parser.add_argument("--latency", type=float, default=0.0, help="mean seconds in service")
    parser.add_argument("--jitter", type=float, default=0.0, help="0.3: 30 %% more or less, uniform")
    parser.add_argument("--slots", type=int, default=None, help="requests in service at once; others wait in line")
    parser.add_argument("--rate-429", type=float, default=0.0, help="share answered 429, at once")
    parser.add_argument("--rate-500", type=float, default=0.0, help="share answered 500")
    parser.add_argument("--rate-timeout", type=float, default=0.0, help="share never answered")
    parser.add_argument("--rate-garbage", type=float, default=0.0, help="share of bodies answered without fields")
    parser.add_argument("--retry-after", type=float, default=0.1, help="seconds said with a 429; -1 says nothing")
    parser.add_argument(
        "--outage",
        dest="outages",
        type=Outage.parse,
        action="append",
        default=[],
        metavar="START,SECONDS[,503]",
        help="drop connections, or answer 503, from START seconds after the first request; repeatable",
    )
    parser.add_argument("--hopeless", action="store_true", help="no prompt is better than another")
    parser.add_argument("--seed", type=int, default=0, help="of latencies and failures")
    given = vars(parser.parse_args(arguments))
    port = given.pop("port")
    given["outages"] = tuple(given["outages"])
    if given["retry_after"] < 0:
        given["retry_after"] = None
    with suppress(KeyboardInterrupt):
        asyncio.run(serve(Weather(**given), port=port))


if __name__ == "__main__":
    main()

"""Many optimizations at once through ``ratchet serve``: do all complete, are statuses quick, is every event heard?

    python -m bench.fleet                   # 10, 100 and 1000 at once; SQLite, one process
    python -m bench.fleet --postgres        # PostgreSQL, an API process and two workers
    python -m bench.fleet --quick           # 5 and 25

The LM is ``bench.stub`` in a process of its own, which takes half a second for each answer. Each optimization is a real
DSPy program with 120 calls to spend, at a temperature at which no reply is shared. Fifty clients listen to events by
WebSocket from the moment their optimization is asked for, one polls the status of some optimization ten times a second.

The time per program run is CPU time of all our processes over all calls, beside that of one optimization alone; the
time that an optimization waits for its LM is not work. Memory is the sum over our processes, looked at twice a second;
PostgreSQL's own is shown apart, shared pages counted once.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from websockets.asyncio.client import connect

from bench.service import Service
from bench.sheet import Bar, conclude, say, size_of, table
from bench.stub import StubProcess, Weather
from ratchet.client import AsyncClient
from ratchet.testing.postgres import a_postgres
from ratchet.testing.service import data, request

LISTENERS, CALLS, LATENCY = 50, 120, 0.5


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One fleet.

    Attributes:
        n: Optimizations at once.
        done: Those that came to a result.
        most_running: At once, as seen by whoever polled.
        seconds: From the first request to the last result.
        submit_ms: Milliseconds of a request to optimize, the median.
        status_p99_ms: Milliseconds of a status, of 100 the slowest but one.
        polls: How many times it was asked for.
        heard: Listeners that heard every event once and in order, to the end.
        listeners: How many listened.
        events: Events that they heard.
        calls: LM calls, over all.
        run_ms: Milliseconds from the first request to the last result, per call.
        cpu_ms: CPU milliseconds of all our processes, per call.
        peak_mb: Memory of all our processes, at its highest.
        server_mb: Memory of PostgreSQL, at its highest.
        requests: Requests that came to the LM; those that it answered more than once.
    """

    n: int
    done: int
    most_running: int
    seconds: float
    submit_ms: float
    status_p99_ms: float
    polls: int
    heard: int
    listeners: int
    events: int
    calls: int
    run_ms: float
    cpu_ms: float
    peak_mb: float
    server_mb: float
    requests: int


class Meter(threading.Thread):
    """Looks at the memory of processes twice a second."""

    def __init__(self, ours: Sequence[int], servers: Sequence[int]) -> None:
        super().__init__(daemon=True)
        self.peak_mb = self.server_mb = 0.0
        self._ours, self._servers = ours, servers
        self._ended = threading.Event()

    def run(self) -> None:
        """Until it is ended."""
        while not self._ended.wait(0.5):
            self.peak_mb = max(self.peak_mb, sum(_memory_mb(pid, "Rss") for pid in self._ours))
            family = [child for pid in self._servers for child in (pid, *_children(pid))]
            self.server_mb = max(self.server_mb, sum(_memory_mb(pid, "Pss") for pid in family))

    def end(self) -> None:
        """Look no more."""
        self._ended.set()
        self.join()


def _memory_mb(pid: int, kind: str) -> float:
    with suppress(OSError):  # it may have ended
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="utf-8").splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(f"{kind}:")) / 1024
    return 0.0


def _children(pid: int) -> list[int]:
    with suppress(OSError):
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="utf-8").split()]
    return []


def _cpu_seconds(pids: Sequence[int]) -> float:
    fields = [Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split() for pid in pids]
    return sum(int(each[11]) + int(each[12]) for each in fields) / os.sysconf("SC_CLK_TCK")


async def _hear(url: str, key: str, job: str) -> list[dict[str, Any]]:
    """All events, to the end."""
    address = f"{url.replace('http', 'ws')}/ws/optimizations/{job}"
    async with connect(address, additional_headers={"Authorization": f"Bearer {key}"}, open_timeout=120) as socket:
        return [json.loads(message) async for message in socket]


@contextmanager
def fleet(n: int, base: str, *, postgres: bool) -> Iterator[tuple[Service, list[int]]]:
    """A service for ``n`` at once, and the process ids of the database server."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ratchet-fleet-")))
        server = stack.enter_context(a_postgres()) if postgres else None
        workers = 2 if postgres else 1
        settings = {
            "RATCHET_WORKER_CONCURRENCY": str(-(-n // workers)),
            "RATCHET_TENANT_CONCURRENCY": str(n),
            "RATCHET_GLOBAL_CONCURRENCY": str(n),
        }
        url = server.url if server else None
        service = stack.enter_context(Service(folder, bases=[base], database_url=url, settings=settings))
        service.start_api(worker=not postgres)
        started = [service.start_worker() for _ in range(workers)] if postgres else []
        while not all(map(service.at_work, started)):
            time.sleep(0.1)
        yield service, [server.pid] if server else []


async def measure(n: int, stub: StubProcess, *, postgres: bool) -> Measured:
    """Run ``n`` optimizations at once, and watch them."""
    base, name = stub.base(f"fleet-{n}"), f"fleet-{n}"
    with fleet(n, base, postgres=postgres) as (service, servers), tempfile.TemporaryDirectory() as folder:
        ours = [process.pid for process in service.processes]
        async with AsyncClient(service.url, key=service.key, timeout_seconds=120) as client:
            file = Path(folder) / "mails.jsonl"
            file.write_bytes(data(100))
            await client.upload("mails", file)
            meter = Meter(ours, servers)
            meter.start()
            rng = random.Random(0)
            chosen = Counter(rng.randrange(n) for _ in range(LISTENERS))
            submitted: list[float] = []
            hearing: list[asyncio.Task[list[dict[str, Any]]]] = []
            at_once = asyncio.Semaphore(8)
            began, cpu = time.monotonic(), _cpu_seconds(ours)

            async def submit(seed: int) -> str:
                async with at_once:
                    asked = time.monotonic()
                    more = {"algorithms": ["random_search"], "constraints": {"max_calls": CALLS}, "temperature": 1.0}
                    job = await client.optimize(**request(base, seed=seed, **more))
                    submitted.append(time.monotonic() - asked)
                    for _ in range(chosen[seed]):
                        hearing.append(asyncio.create_task(_hear(service.url, service.key, job["id"])))
                    return str(job["id"])

            submitting = asyncio.gather(*(submit(seed) for seed in range(n)))
            statuses: list[float] = []
            most_running, left, jobs = 0, n, []
            while left:
                if not submitting.done():
                    await asyncio.sleep(0.1)
                    continue
                jobs = submitting.result()
                asked = time.monotonic()
                await client.status(rng.choice(jobs))
                statuses.append(time.monotonic() - asked)
                if len(statuses) % 20 == 0:
                    standing = Counter([item["status"] async for item in client.optimizations()])
                    most_running, left = (
                        max(most_running, standing["running"]),
                        standing["running"] + standing["queued"],
                    )
                await asyncio.sleep(0.1)
            seconds = time.monotonic() - began
            cpu = _cpu_seconds(ours) - cpu
            heard = await asyncio.gather(*hearing)
            meter.end()
            results = [await client.optimization(job) for job in jobs]
            done = [each for each in results if each["result"] is not None]
            calls = sum(each["result"]["optimization_details"]["spend"]["calls"] for each in done)
            complete = [
                [event["sequence"] for event in events] == list(range(1, len(events) + 1))
                and events[-1]["kind"] == "ended"
                for events in heard
            ]
            return Measured(
                n=n,
                done=len(done),
                most_running=most_running,
                seconds=seconds,
                submit_ms=1e3 * statistics.median(submitted),
                status_p99_ms=1e3 * sorted(statuses)[int(0.99 * (len(statuses) - 1))],
                polls=len(statuses),
                heard=sum(complete),
                listeners=len(heard),
                events=sum(map(len, heard)),
                calls=calls,
                run_ms=1e3 * seconds / calls,
                cpu_ms=1e3 * cpu / calls,
                peak_mb=meter.peak_mb,
                server_mb=meter.server_mb,
                requests=stub.stats(name)["requests"],
            )


def main() -> int:
    """Measure, print, keep; 1 when a bar is missed."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.fleet", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", type=int, nargs="+", default=[10, 100, 1000])
    parser.add_argument("--postgres", action="store_true", help="PostgreSQL and two workers")
    parser.add_argument("--quick", action="store_true", help="5 and 25")
    given = parser.parse_args()
    parser.set_defaults(postgres=given.postgres)  # a bench of its own, and not a part of one
    size = size_of(parser, given)
    sizes = [5, 25] if given.quick else given.sizes
    found = []
    with StubProcess(Weather(latency=LATENCY)) as stub:
        for n in (1, *sizes):
            say(f"{n} at once")
            found.append(asyncio.run(measure(n, stub, postgres=given.postgres)))
            say(str(found[-1]))
    alone, most = found[0], found[-1]
    rows = [
        [
            *(each.n, each.done, each.most_running, f"{each.seconds:.1f}", each.calls, f"{each.run_ms:.1f}"),
            *(f"{each.cpu_ms:.2f}", f"{each.cpu_ms / alone.cpu_ms:.2f}", f"{each.submit_ms:.0f}"),
            *(f"{each.status_p99_ms:.0f}", f"{each.heard} of {each.listeners}", f"{each.peak_mb:.0f}"),
            *((f"{each.server_mb:.0f}",) if given.postgres else ()),
        ]
        for each in found
    ]
    header = ["asked", "done", "seen running", "s", "calls", "ms a call", "CPU ms a call", "against one", "submit ms"]
    header += ["status p99 ms", "heard all", "peak MB", *(("server MB",) if given.postgres else ())]
    bars = [
        Bar("all complete", all(each.done == each.n for each in found)),
        Bar("every event is heard once and in order", all(each.heard == each.listeners for each in found)),
        Bar(f"{most.n} in under 20 minutes", most.seconds < 1200),
        Bar("peak memory under 4 GB", most.peak_mb < 4096),
        Bar("status p99 under 250 ms", most.status_p99_ms < 250),
        Bar("a program run costs at most 1.5 times the CPU time of one alone", most.cpu_ms <= 1.5 * alone.cpu_ms),
        Bar("no request was sent twice", all(each.requests <= each.calls for each in found)),
    ]
    name = "fleet-postgres" if given.postgres else "fleet"
    return conclude(
        name, table(header, rows), bars, {"fleets": [asdict(each) for each in found]}, size=size, given=given
    )


if __name__ == "__main__":
    sys.exit(main())

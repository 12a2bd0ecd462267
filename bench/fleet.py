"""Many optimizations at once through ``ratchet serve``: do all complete, are statuses quick, is every event heard?

    python -m bench.fleet                   # 10, 100 and 1000 at once; SQLite, one process
    python -m bench.fleet --postgres        # PostgreSQL, an API process and two workers
    python -m bench.fleet --quick           # 5 and 25

The LM is ``bench.stub`` in a process of its own, which takes half a second for each answer. Each optimization is a real
DSPy program with 120 calls to spend. Fifty clients listen to events by WebSocket, one polls the status of some
optimization ten times a second. The time per program run is an optimization's wall time over its calls, beside that of
one optimization alone.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import httpx
from websockets.asyncio.client import connect

from bench.sheet import Bar, conclude, say, size_of, table
from bench.stub import StubProcess, Weather
from ratchet.client import AsyncClient
from ratchet.testing.postgres import PostgresServer
from ratchet.testing.service import data, request

LISTENERS, CALLS, LATENCY = 50, 120, 0.5


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One fleet.

    Attributes:
        n: Optimizations at once.
        done: Those that came to a result.
        seconds: From the first request to the last result.
        submit_ms: Milliseconds of a request to optimize, the median.
        status_p99_ms: Milliseconds of a status, of 100 the slowest but one.
        polls: How many times it was asked for.
        heard: Listeners that heard every event in order, to the end.
        listeners: How many listened.
        events: Events that they heard.
        run_ms: Milliseconds of an optimization per call, the median over all.
        peak_mb: Memory of all our processes, at its highest.
    """

    n: int
    done: int
    seconds: float
    submit_ms: float
    status_p99_ms: float
    polls: int
    heard: int
    listeners: int
    events: int
    run_ms: float
    peak_mb: float


@contextmanager
def fleet(n: int, base: str, *, postgres: bool) -> Iterator[tuple[str, str, list[int]]]:
    """A service for ``n`` at once; its address, a key and its process ids."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ratchet-fleet-", dir="/tmp")))
        folder.chmod(0o755)
        environment = {
            **os.environ,
            "RATCHET_HOME": str(folder / "home"),
            "RATCHET_MLFLOW": "false",
            "RATCHET_LM_BASES": base,
            "RATCHET_WORKER_CONCURRENCY": str(n),
            "RATCHET_TENANT_CONCURRENCY": str(n),
            "RATCHET_GLOBAL_CONCURRENCY": str(n),
            "PYTHONWARNINGS": "ignore",
        }
        if postgres:
            environment["RATCHET_DATABASE_URL"] = stack.enter_context(PostgresServer(folder / "server")).url
        words = [sys.executable, "-m", "ratchet"]
        key = subprocess.run(
            [*words, "keys", "create", "bench"], env=environment, check=True, capture_output=True, text=True
        ).stdout.strip()
        commands = [["serve", "--port", "8014", *(["--no-worker"] if postgres else [])]]
        commands += [["worker"], ["worker"]] if postgres else []
        processes = [subprocess.Popen([*words, *each], env=environment, stderr=subprocess.DEVNULL) for each in commands]
        try:
            while True:
                with suppress(httpx.TransportError):
                    if httpx.get("http://127.0.0.1:8014/readyz").is_success:
                        break
                time.sleep(0.1)
            yield "http://127.0.0.1:8014", key, [process.pid for process in processes]
        finally:
            for process in processes:
                process.kill()
                process.wait()


def _peak_mb(pids: Sequence[int]) -> float:
    found = 0
    for pid in pids:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
        found += next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
    return found / 1024


async def _hear(url: str, key: str, job: str) -> list[int]:
    """The numbers of all events, to the end."""
    address = f"{url.replace('http', 'ws')}/ws/optimizations/{job}"
    async with connect(address, additional_headers={"Authorization": f"Bearer {key}"}, open_timeout=60) as socket:
        return [json.loads(message)["sequence"] async for message in socket]


async def measure(n: int, base: str, *, postgres: bool) -> Measured:
    """Run ``n`` optimizations at once, and watch them."""
    with fleet(n, base, postgres=postgres) as (url, key, pids), tempfile.TemporaryDirectory() as folder:
        async with AsyncClient(url, key=key, timeout_seconds=120) as client:
            file = Path(folder) / "mails.jsonl"
            file.write_bytes(data(100))
            await client.upload("mails", file)
            submitted: list[float] = []
            at_once = asyncio.Semaphore(8)
            began = time.monotonic()

            async def submit(seed: int) -> str:
                async with at_once:
                    asked = time.monotonic()
                    body = request(base, seed=seed, algorithms=["random_search"], constraints={"max_calls": CALLS})
                    job = await client.optimize(**body)
                    submitted.append(time.monotonic() - asked)
                    return str(job["id"])

            jobs = await asyncio.gather(*(submit(seed) for seed in range(n)))
            rng = random.Random(0)
            chosen = [rng.choice(jobs) for _ in range(LISTENERS)]
            hearing = [asyncio.create_task(_hear(url, key, job)) for job in chosen]
            statuses: list[float] = []
            left = set(jobs)
            while left:
                asked = time.monotonic()
                job = rng.choice(sorted(left))
                status = await client.status(job)
                statuses.append(time.monotonic() - asked)
                if status["status"] not in ("queued", "running"):
                    left.discard(job)
                if len(statuses) % 50 == 0:
                    left -= {
                        item["id"]
                        async for item in client.optimizations()
                        if item["status"] not in ("queued", "running")
                    }
                await asyncio.sleep(0.1)
            seconds = time.monotonic() - began
            heard = await asyncio.gather(*hearing)
            results = [await client.optimization(job) for job in jobs]
            done = [each for each in results if each["result"] is not None]
            run_ms = [1e3 * each["seconds"] / each["result"]["optimization_details"]["spend"]["calls"] for each in done]
            return Measured(
                n=n,
                done=len(done),
                seconds=seconds,
                submit_ms=1e3 * statistics.median(submitted),
                status_p99_ms=1e3 * sorted(statuses)[int(0.99 * (len(statuses) - 1))],
                polls=len(statuses),
                heard=sum(numbers == list(range(1, len(numbers) + 1)) for numbers in heard),
                listeners=len(heard),
                events=sum(map(len, heard)),
                run_ms=statistics.median(run_ms),
                peak_mb=_peak_mb(pids),
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
    size = size_of(parser, given)
    sizes = [5, 25] if given.quick else given.sizes
    found = []
    with StubProcess(Weather(latency=LATENCY)) as stub:
        for n in (1, *sizes):
            say(f"{n} at once")
            found.append(asyncio.run(measure(n, stub.base("fleet"), postgres=given.postgres)))
            say(str(found[-1]))
    alone, most = found[0], found[-1]
    rows = [
        [
            each.n,
            each.done,
            f"{each.seconds:.1f}",
            f"{each.submit_ms:.0f}",
            f"{each.status_p99_ms:.0f}",
            f"{each.heard} of {each.listeners}",
            f"{each.run_ms:.1f}",
            f"{each.run_ms / alone.run_ms:.2f}",
            f"{each.peak_mb:.0f}",
        ]
        for each in found
    ]
    header = ["at once", "done", "s", "submit ms", "status p99 ms", "heard all", "run ms", "against one", "peak MB"]
    bars = [
        Bar("all complete", all(each.done == each.n for each in found)),
        Bar("every event is heard in order", all(each.heard == each.listeners for each in found)),
        Bar(f"{most.n} in under 20 minutes", most.seconds < 1200),
        Bar("peak memory under 4 GB", most.peak_mb < 4096),
        Bar("status p99 under 250 ms", most.status_p99_ms < 250),
        Bar("a run takes at most 1.5 times as long as alone", most.run_ms <= 1.5 * alone.run_ms),
    ]
    name = "fleet-postgres" if given.postgres else "fleet"
    return conclude(
        name, table(header, rows), bars, {"fleets": [asdict(each) for each in found]}, size=size, given=given
    )


if __name__ == "__main__":
    sys.exit(main())

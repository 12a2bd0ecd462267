"""The service on a bad day: a hundred optimizations on three workers and PostgreSQL, all of which get killed.

    make bench-chaos-service
    python -m bench.chaos_service --quick
    python -m bench.chaos_service --optimizations 20 --keep /tmp/chaos

On both days an API process and three ``ratchet worker`` processes share a PostgreSQL server, and the LM is
``bench.stub`` in a process of its own. On the bad day the oldest worker is killed (-9) every five seconds, or, where
starting takes longer, as soon as the next one is at work too, and a new one started. The API is killed while requests
come in, and the database is stopped twice: once as in a crash, once so that it still writes what it holds. Clients
listen to events all the time, and come back by themselves.

Three of five optimizations have no limit of calls and must end in the result of the calm day, to the digit; so that
they end within minutes, a search without a limit makes ``--free-runs`` program runs here instead of 1,000. Two of five
have a tight ``max_calls``: what kills use up there cannot be searched with, so they must end and never pass the limit.

"Repeated" are bodies that the stub answered more often than their replies are in the database, other than those that a
kill caught between the stub's answer and the record. These are counted after each kill, before anybody can take up the
work, and after each stop of the database, on another port, before the workers can reach it again.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import psycopg
import sqlalchemy as sa

from bench.alike import differences, told
from bench.service import Service
from bench.sheet import Bar, conclude, say, size_of, table
from bench.stub import StubProcess, Weather
from ratchet.bootstrap import open_archive
from ratchet.client import Client, StreamedEvent
from ratchet.settings import Settings
from ratchet.storage.jobs import AT_REST
from ratchet.storage.sql import SqlArchive
from ratchet.storage.tables import RECORDED, REPLY, replies
from ratchet.testing.lm_server import rows
from ratchet.testing.ports import free_port
from ratchet.testing.postgres import a_postgres
from ratchet.testing.service import request

ALGORITHMS = ("gepa", "bootstrap", "miprov2", "random_search", "dspy.bootstrap_random_search")
ROWS = 84
CONCURRENCY = 4
WEATHER = Weather(latency=0.1, jitter=0.5)
PATIENCE_SECONDS = 3600.0
_NAME = "split_part(j.data::json->>'data', '@', 1)"
"""An optimization's name in SQL: what its data set is called. Clients may not know its id yet."""


@dataclass(slots=True)
class Lived:
    """One optimization, on one day.

    Attributes:
        max_calls: None for no limit: then the result must be that of the calm day.
        lost: Bodies that were answered and not recorded when a kill or a stop came.
        answered: Bodies the stub answered.
        recorded: Bodies whose reply is in the database.
        sends: Requests the ledger counted.
        kinds: Events by kind.
        audited: Entries of the audit trail that say that it ended.
    """

    number: int
    algorithm: str
    max_calls: int | None
    id: str = ""
    status: str = ""
    reason: str = ""
    result: dict[str, Any] | None = None
    lost: Counter[str] = field(default_factory=Counter)
    answered: Counter[str] = field(default_factory=Counter)
    recorded: Counter[str] = field(default_factory=Counter)
    requests: int = 0
    sends: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    audited: int = 0

    @property
    def name(self) -> str:
        """What it is called at the stub."""
        return f"job-{self.number}"

    @property
    def repeated(self) -> Counter[str]:
        """Bodies that were asked again though their reply was recorded."""
        return self.answered - self.recorded - self.lost


class Listener(threading.Thread):
    """Hears all events of an optimization, and comes back whenever the API goes away."""

    def __init__(self, client: Client, identity: str) -> None:
        super().__init__(daemon=True)
        self.identity = identity
        self.heard: list[StreamedEvent] = []
        self._client = client

    def run(self) -> None:
        """Listen to the end."""
        for event in self._client.events(self.identity):
            self.heard.append(event)


class Day:
    """All optimizations on one service and one database.

    Args:
        given: Says how many, and how bad.
        folder: For everything it leaves.
        bad: Whether anything is killed.
    """

    def __init__(self, given: argparse.Namespace, folder: Path, *, bad: bool) -> None:
        self.given = given
        self.bad = bad
        self.lived = [
            Lived(number, names[number % len(names)], given.max_calls if number % 5 in (1, 3) else None)
            for names in [given.algorithms.split(",")]
            for number in range(given.optimizations)
        ]
        self.workers: list[subprocess.Popen[bytes]] = []
        self.listeners: list[Listener] = []
        self.kills = self.stops = self.api_kills = 0
        self.seconds = 0.0
        self._folder = folder

    def live(self) -> list[Lived]:
        """Everything from the first request to the last result."""
        with ExitStack() as stack:
            self.stub = stack.enter_context(StubProcess(WEATHER))
            self.server = stack.enter_context(a_postgres())
            self.service = stack.enter_context(
                Service(
                    self._folder,
                    bases=[self.stub.base(each.name) for each in self.lived],
                    database_url=self.server.url,
                    command=("-m", "bench.chaos", "--child", str(self.given.free_runs)),
                    settings={
                        "RATCHET_WORKER_CONCURRENCY": str(self.given.at_once),
                        "RATCHET_TENANT_CONCURRENCY": str(self.given.optimizations),
                    },
                )
            )
            self.api = self.service.start_api(worker=False)
            self.workers = [self.service.start_worker() for _ in range(self.given.workers)]
            self.client = stack.enter_context(
                Client(self.service.url, key=self.service.key, timeout_seconds=60, retry_seconds=[0.5] * 240)
            )
            began = time.monotonic()
            submitting = stack.enter_context(ThreadPoolExecutor(1)).submit(self._submit)
            self._watch(submitting)
            self.seconds = time.monotonic() - began
            submitting.result()
            for listener in self.listeners:
                listener.join(timeout=60)
            self._read()
            self.audit = json.loads(self.service.ratchet("audit", "verify", "--json"))
        return self.lived

    # --- what is asked for -------------------------------------------------------------------------------------------

    def _submit(self) -> None:
        """All requests; on a bad day the API is killed under them."""
        killing = None
        for each in self.lived:
            if self.bad and each.number == len(self.lived) // 3:
                killing = threading.Thread(target=self._kill_api)
                killing.start()
            data = self._folder / f"{each.name}.jsonl"
            data.write_text("".join(json.dumps(row) + "\n" for row in rows(ROWS, first=1000 * each.number)))
            self.client.upload(each.name, data)
            body = request(
                self.stub.base(each.name),
                data=each.name,
                algorithms=[each.algorithm],
                seed=each.number,
                constraints={} if each.max_calls is None else {"max_calls": each.max_calls},
                concurrency=CONCURRENCY,
            )
            each.id = self.client.optimize(**body, idempotency_key=each.name)["id"]
            if each.number % self.given.every == 0:
                self.listeners.append(Listener(self.client, each.id))
                self.listeners[-1].start()
        if killing is not None:
            killing.join()

    def _kill_api(self) -> None:
        self.service.kill(self.api)
        self.api_kills += 1
        self.api = self.service.start_api(worker=False)

    # --- the bad day -------------------------------------------------------------------------------------------------

    def _watch(self, submitting: Future[None]) -> None:
        """Wait until all have come to rest, and kill meanwhile."""
        stops: list[tuple[float, Literal["immediate", "fast"]]] = [(0.25, "immediate"), (0.6, "fast")]
        killed, end, before = time.monotonic(), time.monotonic() + PATIENCE_SECONDS, -1
        while (done := self._done()) < len(self.lived) and time.monotonic() < end:
            self._start_again()
            if submitting.done():
                submitting.result()  # what could not be asked for is not waited for
            if done != before:
                say(f"  {done} of {len(self.lived)} at rest, {self.kills} kills")
                before = done
            if self.bad and stops and done >= stops[0][0] * len(self.lived):
                self._restart_database(stops.pop(0)[1])
            elif self.bad and time.monotonic() - killed >= self.given.seconds and self._two_at_work():
                killed = time.monotonic()
                self._kill_worker()
            time.sleep(0.25)

    def _start_again(self) -> None:
        """Start again what ended by itself, as whoever supervises it would: no database was there when it began."""
        for place, worker in enumerate(self.workers):
            if worker.poll() is not None:
                self.service.kill(worker)
                self.workers[place] = self.service.start_worker()

    def _done(self) -> int:
        counts = dict(self._query("SELECT status, count(*) FROM optimizations GROUP BY status"))
        settled = self._query("SELECT count(*) FROM jobs WHERE settled = attempt")[0][0]
        return int(min(settled, sum(n for status, n in counts.items() if status in AT_REST)))

    def _two_at_work(self) -> bool:
        """On a busy machine a worker may start for longer than five seconds; one that is at work stays then."""
        return all(map(self.service.at_work, self.workers[:2]))

    def _kill_worker(self) -> None:
        """Kill the oldest, count what was lost, start another."""
        worker = self.workers.pop(0)
        self.service.kill(worker)
        self.kills += 1
        self._count_lost(self._worked_on_by(worker.pid))
        self.workers.append(self.service.start_worker())

    def _restart_database(self, how: Literal["immediate", "fast"]) -> None:
        self.server.stop(how=how)
        self.stops += 1
        say(f"  the database is stopped: {how}")
        time.sleep(2)
        self._wait_for_stub(self.lived)
        answered = {each.number: self.stub.log(each.name) for each in self.lived}
        port = free_port()
        self.server.start(port=port)
        recorded = self._recorded(port)
        self.server.stop(how="fast")
        for each in self.lived:
            each.lost += answered[each.number] - recorded[each.name] - each.lost
        self.server.start()

    def _worked_on_by(self, pid: int) -> list[Lived]:
        """What a process had begun and not settled."""
        unsettled = self._query(f"SELECT j.id, {_NAME} FROM jobs j WHERE j.settled < j.attempt")
        with closing(self._archive()) as archive:
            names = {
                name
                for identity, name in unsettled
                for _, event in archive.open(identity).events()
                if event.kind == "begun" and f"-{pid}-" in event.payload["worker"]
            }
        return [each for each in self.lived if each.name in names]

    def _count_lost(self, these: Sequence[Lived]) -> None:
        """What was answered to a process that is gone, and not recorded."""
        self._wait_for_stub(these)
        recorded = self._recorded()
        for each in these:
            each.lost += self.stub.log(each.name) - recorded[each.name] - each.lost

    def _wait_for_stub(self, these: Sequence[Lived]) -> None:
        """Until the stub has nothing under way of ``these``."""
        end = time.monotonic() + 30
        for each in these:
            while self.stub.stats(each.name)["under_way"] and time.monotonic() < end:
                time.sleep(0.01)

    # --- what the database says --------------------------------------------------------------------------------------

    def _archive(self, port: int | None = None) -> SqlArchive:
        """The archive, with the keys to what is private in it."""
        url = sa.make_url(self.server.url)
        text = (url if port is None else url.set(port=port)).render_as_string(hide_password=False)
        return open_archive(Settings(home=self._folder / "home", database_url=text))

    def _query(self, query: str, *values: object, port: int | None = None) -> list[Any]:
        with psycopg.connect(self.server.address(port)) as connection:
            return connection.execute(query, values).fetchall()

    def _recorded(self, port: int | None = None) -> dict[str, Counter[str]]:
        """Recorded replies by the stub's hash of the body, for each optimization by its name."""
        found: dict[str, Counter[str]] = {each.name: Counter() for each in self.lived}
        names = dict(self._query(f"SELECT j.id, {_NAME} FROM jobs j", port=port))
        with closing(self._archive(port)) as archive, archive.transaction() as connection:
            rows = connection.execute(replies.select().where(RECORDED)).mappings().all()
            for row in archive.shown(connection, REPLY, rows):
                found[names[row["optimization_id"]]][str(row["response"]["id"]).removeprefix("stub-")] += 1
        return found

    def _read(self) -> None:
        """Everything that is to be judged."""
        recorded = self._recorded()
        sends = dict(self._query("SELECT optimization_id, sum(sends) FROM replies GROUP BY optimization_id"))
        ends = dict(self._query("SELECT object, count(*) FROM audit WHERE action = 'optimization.end' GROUP BY object"))
        kinds: dict[str, Counter[str]] = {}
        for identity, kind, n in self._query("SELECT optimization_id, kind, count(*) FROM events GROUP BY 1, 2"):
            kinds.setdefault(identity, Counter())[kind] = n
        self.stored = self._query("SELECT count(*) FROM jobs")[0][0]
        for each in self.lived:
            found = self.client.optimization(each.id)
            each.status, each.reason, each.result = found["status"], found["reason"], found["result"]
            each.requests, each.answered = self.stub.stats(each.name)["requests"], self.stub.log(each.name)
            each.recorded, each.sends = recorded[each.name], int(sends.get(each.id, 0))
            each.kinds, each.audited = kinds.get(each.id, Counter()), int(ends.get(each.id, 0))


def row(calm: Lived, bad: Lived) -> dict[str, Any]:
    """What is to be said of one optimization."""
    found = differences(told(_same_id(calm)), told(_same_id(bad)))
    return {
        "name": bad.name,
        "algorithm": bad.algorithm,
        "max_calls": bad.max_calls,
        "calm": calm.status,
        "bad": bad.status,
        "reason": bad.reason,
        "begun": bad.kinds["begun"],
        "ended": bad.kinds["ended"],
        "plan": bad.kinds["plan"],
        "audited": bad.audited,
        "requests_calm": calm.requests,
        "requests": bad.requests,
        "sends": bad.sends,
        "recorded": bad.recorded.total(),
        "lost": bad.lost.total(),
        "repeated": bad.repeated.total(),
        "repeated_calm": calm.repeated.total(),
        "differences": found,
    }


def _same_id(lived: Lived) -> dict[str, Any]:
    return {name: value for name, value in (lived.result or {}).items() if name != "optimization_id"}


def bars(found: list[dict[str, Any]], day: Day) -> list[Bar]:
    """What the bad day had to show."""
    free = [each for each in found if each["max_calls"] is None]
    tight = [each for each in found if each["max_calls"] is not None]
    ended = [each for each in found if each["bad"] in ("improved", "no_proven_gain", "declined")]
    once = [each for each in found if (each["ended"], each["plan"], each["audited"]) == (1, 1, 1)]
    equal = [each for each in free if not each["differences"]]
    within = [each for each in tight if max(each["requests"], each["sends"]) <= each["max_calls"]]
    noted = [each for each in found if each["requests"] <= each["sends"]]
    repeated = sum(each["repeated"] + each["repeated_calm"] for each in found)
    lost = sum(each["lost"] for each in found)
    most = CONCURRENCY * (day.kills * day.given.at_once + day.stops * day.given.at_once * day.given.workers)
    in_order = [
        heard
        for heard in (listener.heard for listener in day.listeners)
        if [event.sequence for event in heard] == list(range(1, len(heard) + 1)) and heard and heard[-1].kind == "ended"
    ]
    violence = f"{day.kills} kills of workers, {day.stops} stops of the database, {day.api_kills} of the API"
    return [
        Bar(violence, (day.stops, day.api_kills) == (2, 1) and day.kills > 0),
        Bar(f"{day.stored} optimizations stored, {len(found)} asked for", day.stored == len(found)),
        Bar(f"{len(ended)} of {len(found)} came to a result", len(ended) == len(found)),
        Bar(f"{len(once)} of {len(found)} were planned once and ended once", len(once) == len(found)),
        Bar(
            f"{len(in_order)} of {len(day.listeners)} listeners heard every event once and in order",
            len(in_order) == len(day.listeners),
        ),
        Bar(f"{repeated} recorded requests repeated", repeated == 0),
        Bar(f"{lost} answers lost in kills, at most {most}", lost <= most),
        Bar(f"{len(equal)} of {len(free)} without a limit end as on the calm day", len(equal) == len(free)),
        Bar(f"{len(within)} of {len(tight)} with a limit kept it", len(within) == len(tight)),
        Bar(f"{len(noted)} of {len(found)} sent nothing that was not noted first", len(noted) == len(found)),
        Bar(f"the audit trail of {day.audit['number']} entries holds", bool(day.audit["holds"])),
    ]


def sheet(found: list[dict[str, Any]]) -> str:
    """One line for each algorithm, with and without a limit."""
    header = [
        *("algorithm", "limit", "n", "begun", "requests, calm", "requests", "lost", "repeated", "equal"),
        *("improved, calm", "improved"),
    ]
    lines = []
    for algorithm, limit in dict.fromkeys((each["algorithm"], each["max_calls"]) for each in found):
        these = [each for each in found if (each["algorithm"], each["max_calls"]) == (algorithm, limit)]
        total = {name: sum(each[name] for each in these) for name in _SUMMED}
        equal = "-" if limit is not None else sum(not each["differences"] for each in these)
        improved = [sum(each[day] == "improved" for each in these) for day in ("calm", "bad")]
        lines.append([algorithm, limit or "none", len(these), *total.values(), equal, *improved])
    return table(header, lines)


_SUMMED = ("begun", "requests_calm", "requests", "lost", "repeated")


def arguments(words: Sequence[str] | None = None) -> tuple[argparse.Namespace, str]:
    """What is asked for, and the name of its size."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.chaos_service", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--optimizations", type=int, default=100)
    parser.add_argument("--workers", type=int, default=3)
    parser.add_argument("--at-once", type=int, default=12, help="optimizations of one worker")
    parser.add_argument("--seconds", type=float, default=5.0, help="between two kills of workers")
    parser.add_argument("--algorithms", default=",".join(ALGORITHMS), help="taken in turn")
    parser.add_argument("--max-calls", type=int, default=150, help="of those with a limit")
    parser.add_argument("--free-runs", type=int, default=80, help="program runs of a search without a limit")
    parser.add_argument("--every", type=int, default=10, help="every so many optimizations are listened to")
    parser.add_argument("--keep", type=Path, help="an empty folder for logs and homes; otherwise none are kept")
    parser.add_argument("--quick", action="store_true", help="12 optimizations")
    given = parser.parse_args(words)
    size = size_of(parser, given)
    if given.quick:
        given.optimizations, given.at_once, given.every = 12, 4, 3
    return given, size


def main(words: Sequence[str] | None = None) -> int:
    """Live both days, print, keep; 1 when a bar is missed."""
    given, size = arguments(words)
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.keep or Path(temporary)
        say(f"the calm day: {given.optimizations} optimizations")
        quiet = Day(given, folder / "calm", bad=False)
        calm = quiet.live()
        say(f"  {quiet.seconds:.0f} s\nthe bad day: a worker is killed every {given.seconds:g} s")
        day = Day(given, folder / "bad", bad=True)
        bad = day.live()
        say(f"  {day.seconds:.0f} s")
    found = [row(*each) for each in zip(calm, bad, strict=True)]
    for each in found:
        if each["bad"] == "failed" or each["repeated"] or (each["max_calls"] is None and each["differences"]):
            say(f"{each['name']} {each['algorithm']}: {each['bad']} {each['reason'][:200]} {each['differences'][:3]}")
    kept = {"optimizations": found, "seconds": {"calm": quiet.seconds, "bad": day.seconds}, "kills": day.kills}
    return conclude("chaos_service", sheet(found), bars(found, day), kept, size=size, given=given)


if __name__ == "__main__":
    sys.exit(main())

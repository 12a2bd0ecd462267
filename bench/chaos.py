"""Forty optimizations through bad weather and kill -9, compared with the same forty on a calm day.

    make bench-chaos
    python -m bench.chaos --quick
    python -m bench.chaos --optimizations 8 --kills 40 --keep /tmp/chaos

The weather: 20 % of requests are answered 429 with ``Retry-After``, 5 % 500, 5 % never, and twice for 20 seconds nobody
is there at all. 5 % of bodies are answered with garbage, on both days, because that is drawn from their content. Each
optimization is a ``ratchet optimize`` process, a few at a time on one SQLite file; it is killed at random moments, and
``ratchet resume`` goes on. One that gives up because the LM is away is resumed too, as its user would; that is counted.

Three of five optimizations have no limit of calls and must end in the result of the calm day, to the digit; so that
they end within minutes, a search without a limit makes ``--free-runs`` program runs here instead of 1,000. Two of five
have a tight ``--max-calls``. What retries and kills use up there cannot be searched with, so that the result is another
one than on a calm day; they must end, and never pass the limit.

"Repeated" are bodies that the stub answered more often than their replies are in the database, other than those that a
kill caught between the stub's answer and the record, which are counted right after each kill.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from bench.alike import differences, told
from bench.sheet import Bar, conclude, say, size_of, table
from bench.stub import Outage, StubProcess, Weather
from ratchet.bootstrap import open_archive
from ratchet.cli import main as ratchet
from ratchet.engine import plan
from ratchet.settings import Settings
from ratchet.storage.sql import SqlArchive
from ratchet.testing.lm_server import SIGNATURE, rows

ALGORITHMS = (
    *("bootstrap", "dspy.gepa", "gepa", "dspy.miprov2"),
    *("miprov2", "dspy.bootstrap_random_search", "random_search", "dspy.copro"),
)
SIZES = {"train": 24, "validation": 20, "test": 40}
CONCURRENCY = 4
LM_TIMEOUT = 3.0
CALM = Weather(latency=0.05, jitter=0.5, rate_garbage=0.05)
STORM = replace(CALM, rate_429=0.20, rate_500=0.05, rate_timeout=0.05, retry_after=0.2)
STARTING_SECONDS = 4.0
"""A kill that is drawn by the clock comes within this time of the start: imports, the replay, the first requests."""
PATIENCE_SECONDS = 900.0
MOST_GIVEN_UP = 5
MOST_SENDS, MOST_SENDS_PER_REPLY = 24, 2.5
"""How often one request may be sent, over all processes, and the mean over an optimization."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """One of the optimizations.

    Attributes:
        max_calls: None for no limit: then the result must be that of the calm day.
        free_runs: Program runs of a search without a limit.
    """

    number: int
    algorithm: str
    max_calls: int | None
    free_runs: int

    @property
    def name(self) -> str:
        """What it is called at the stub."""
        return f"job-{self.number}"


@dataclass(slots=True, kw_only=True)
class Lived:
    """What an optimization went through.

    Attributes:
        result: What the last process printed.
        kills: How often it was killed.
        gave_up: What it said when it gave up by itself.
        lost: Bodies that were answered and not recorded when a kill came.
        answered: Bodies the stub answered.
        recorded: Bodies whose reply is in the database.
        requests: Requests that came to the stub.
        sends: Requests the ledger counted; the most of one request.
    """

    result: dict[str, Any] | None = None
    kills: int = 0
    gave_up: list[str] = field(default_factory=list)
    lost: Counter[str] = field(default_factory=Counter)
    answered: Counter[str] = field(default_factory=Counter)
    recorded: Counter[str] = field(default_factory=Counter)
    requests: int = 0
    sends: int = 0
    most_sends: int = 0
    seconds: float = 0.0

    @property
    def repeated(self) -> Counter[str]:
        """Bodies that were asked again though their reply was recorded."""
        return self.answered - self.recorded - self.lost


class Executioner:
    """Deals the kills out evenly; those that come too late for one optimization are dealt out to the next."""

    def __init__(self, kills: int, optimizations: int) -> None:
        self._kills = kills
        self._optimizations = optimizations
        self._lock = threading.Lock()

    def deal(self) -> int:
        """Kills for the optimization that is about to begin."""
        with self._lock:
            dealt = -(-self._kills // self._optimizations)
            self._kills -= dealt
            self._optimizations -= 1
            return dealt

    def give_back(self, kills: int) -> None:
        """An optimization has ended before so many of its kills."""
        with self._lock:
            self._kills += kills


class Day:
    """All optimizations against one stub, in one folder."""

    def __init__(self, stub: StubProcess, folder: Path) -> None:
        self.stub = stub
        self.folder = folder
        self.database = folder / "home" / "ratchet.db"
        folder.mkdir(parents=True)

    # --- processes ---------------------------------------------------------------------------------------------------

    def start(self, asked: Asked) -> subprocess.Popen[bytes]:
        """``ratchet optimize``, or ``ratchet resume`` when it was begun before."""
        known = self.identity(asked)
        words = ["resume", known] if known else ["optimize", SIGNATURE, *self._flags(asked)]
        out = self.folder / asked.name
        command = [sys.executable, "-m", "bench.chaos", "--child", str(asked.free_runs), *words, "--json"]
        environment = {
            **os.environ,
            "RATCHET_HOME": str(self.folder / "home"),
            "RATCHET_MLFLOW": "false",
            "DSPY_CACHEDIR": str(self.folder / "cache"),
            "PYTHONWARNINGS": "ignore",
        }
        # Files, not pipes: nobody reads while we wait for the moment to kill.
        with self.said(asked).open("wb") as stdout, self.told(asked).open("wb") as stderr:
            return subprocess.Popen(
                [*command, "--out", str(out)], env=environment, stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr
            )

    def said(self, asked: Asked) -> Path:
        """Standard output of its last process."""
        return self.folder / f"{asked.name}.stdout"

    def told(self, asked: Asked) -> Path:
        """Standard error of its last process."""
        return self.folder / f"{asked.name}.stderr"

    def _flags(self, asked: Asked) -> list[str]:
        words = ["--lm", "stub", "--lm-base", self.stub.base(asked.name), "--algorithm", asked.algorithm, "--force"]
        words += ["--no-mlflow", "--concurrency", str(CONCURRENCY), "--lm-timeout", str(LM_TIMEOUT)]
        words += ["--seed", str(asked.number)]
        if asked.max_calls is not None:
            words += ["--max-calls", str(asked.max_calls)]
        first = 1000 * asked.number
        for split, size in SIZES.items():
            file = self.folder / f"{asked.name}-{split}.jsonl"
            file.write_text("".join(json.dumps(row) + "\n" for row in rows(size, first=first)), encoding="utf-8")
            words += [f"--{split}", str(file)]
            first += size
        return words

    def live(self, asked: Asked, *, kills: int, expected: int, seed: int) -> Lived:
        """Carry it out, killing it up to ``kills`` times.

        Args:
            expected: Requests it needed on the calm day.
        """
        lived, rng, began = Lived(), random.Random(f"{seed}/{asked.number}"), time.monotonic()
        while lived.result is None and len(lived.gave_up) <= MOST_GIVEN_UP:
            process = self.start(asked)
            left = kills - lived.kills
            if left and self._kill(process, asked, left=left, expected=expected, rng=rng):
                lived.kills += 1
                self._settle(asked)
                lived.lost += self.stub.log(asked.name) - self.recorded(asked) - lived.lost
                continue
            try:
                process.wait(timeout=PATIENCE_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                lived.gave_up.append(f"was at it for {PATIENCE_SECONDS:.0f} seconds, and was ended")
                break
            if process.returncode == 0:
                lived.result = json.loads(self.said(asked).read_text(encoding="utf-8"))
            else:
                lived.gave_up.append(_last_words(self.told(asked).read_text(encoding="utf-8", errors="replace")))
        self._settle(asked)
        lived.seconds = time.monotonic() - began
        lived.answered, lived.recorded = self.stub.log(asked.name), self.recorded(asked)
        lived.requests = self.stub.stats(asked.name)["requests"]
        lived.sends, lived.most_sends = self.sends(asked)
        status = lived.result["status"] if lived.result else "NOT FINISHED"
        free = "free" if asked.max_calls is None else f"{asked.max_calls} calls"
        say(
            f"  {asked.name} {asked.algorithm} ({free}): {status}, {lived.kills} kills, {lived.requests} requests, "
            f"{lived.seconds:.0f} s" + "".join(f"\n    gave up: {why}" for why in lived.gave_up)
        )
        return lived

    def _kill(
        self, process: subprocess.Popen[bytes], asked: Asked, *, left: int, expected: int, rng: random.Random
    ) -> bool:
        """Wait for a random moment, by the clock or by the count of requests, and kill; False when it ended before."""
        before = self.stub.stats(asked.name)["requests"]
        span = max(1.0, expected - before) / (left + 1)
        by_clock, more = rng.random() < 1 / 3, rng.uniform(0, 2 * span)
        moment = time.monotonic() + (rng.uniform(0, STARTING_SECONDS) if by_clock else PATIENCE_SECONDS)
        while process.poll() is None and time.monotonic() < moment:
            if not by_clock and self.stub.stats(asked.name)["requests"] - before >= more:
                break
            time.sleep(0.02)
        if process.poll() is not None:
            return False
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        return True

    def _settle(self, asked: Asked) -> None:
        """Wait until the stub has nothing under way of a process that is gone."""
        while self.stub.stats(asked.name)["under_way"]:
            time.sleep(0.01)

    # --- what the database says --------------------------------------------------------------------------------------

    def _rows(self, query: str, *values: object) -> list[Any]:
        if not self.database.exists():
            return []
        with closing(sqlite3.connect(self.database, timeout=60)) as connection:
            there = connection.execute("SELECT count(*) FROM sqlite_master WHERE name = 'replies'").fetchone()[0]
            return connection.execute(query, values).fetchall() if there else []

    def identity(self, asked: Asked) -> str | None:
        """Its id, once it can be resumed."""
        if not self._rows("SELECT 1 FROM examples LIMIT 1"):
            return None
        with closing(self._archive()) as archive:
            for each in archive.list(limit=1000):
                if each.request["options"]["lm_base"] == self.stub.base(asked.name):
                    return each.id if archive.open(each.id).examples() else None
        return None

    def _archive(self) -> SqlArchive:
        return open_archive(Settings(home=self.folder / "home"))

    def recorded(self, asked: Asked) -> Counter[str]:
        """Recorded replies by the stub's hash of the body."""
        identity = self.identity(asked)
        if identity is None:
            return Counter()
        with closing(self._archive()) as archive:
            journal = archive.open(identity).journal
            found = [journal.find(key) for key in journal.stages()]
        return Counter(str(each.response["id"]).removeprefix("stub-") for each in found if each is not None)

    def sends(self, asked: Asked) -> tuple[int, int]:
        """Requests noted as sent, and the most of one request."""
        query = "SELECT coalesce(sum(sends), 0), coalesce(max(sends), 0) FROM replies WHERE optimization_id = ?"
        found = self._rows(query, self.identity(asked))
        return (int(found[0][0]), int(found[0][1])) if found else (0, 0)


def _last_words(told: str) -> str:
    lines = [line.strip() for line in told.splitlines() if line.strip()]
    failed = [line for line in lines if line.startswith(("failed:", "ratchet:"))]
    return (failed or lines or ["nothing"])[-1][:300]


def child(free_runs: int, words: list[str]) -> None:
    """The ``ratchet`` command, with a smaller search where calls are not limited."""
    assert isinstance(plan.DEFAULT_RUNS, int)
    plan.DEFAULT_RUNS = free_runs
    sys.argv = ["ratchet", *words]
    ratchet()


def live_all(day: Day, all_asked: list[Asked], given: argparse.Namespace, calm: list[Lived] | None) -> list[Lived]:
    """All optimizations, a few at a time; with kills when there was a calm day before."""
    # A few more than asked for, because the last optimizations may end before a kill finds them.
    executioner = Executioner(given.kills + max(3, given.kills // 20) if calm else 0, len(all_asked))

    def live(asked: Asked) -> Lived:
        kills = executioner.deal()
        expected = calm[asked.number].requests if calm else 0
        if asked.max_calls is not None:
            expected = expected * 7 // 10  # retries leave it less to do
        lived = day.live(asked, kills=kills, expected=expected, seed=given.seed)
        executioner.give_back(kills - lived.kills)
        return lived

    with ThreadPoolExecutor(given.at_once) as pool:
        return list(pool.map(live, all_asked))


def row(asked: Asked, calm: Lived, storm: Lived) -> dict[str, Any]:
    """What is to be said of one optimization."""
    recorded = storm.recorded.total()
    return {
        "name": asked.name,
        "algorithm": asked.algorithm,
        "max_calls": asked.max_calls,
        "calm": (calm.result or {}).get("status"),
        "storm": (storm.result or {}).get("status"),
        "kills": storm.kills,
        "gave_up": storm.gave_up,
        "requests_calm": calm.requests,
        "requests": storm.requests,
        "sends": storm.sends,
        "recorded": recorded,
        "lost": storm.lost.total(),
        "most_sends": storm.most_sends,
        "sends_per_reply": storm.sends / recorded if recorded else None,
        "repeated": storm.repeated.total(),
        "repeated_calm": calm.repeated.total(),
        "differences": differences(told(calm.result), told(storm.result)),
        "seconds": storm.seconds,
    }


def bars(found: list[dict[str, Any]], kills: int) -> list[Bar]:
    """What the storm had to show."""
    free = [each for each in found if each["max_calls"] is None]
    tight = [each for each in found if each["max_calls"] is not None]
    ended = [each for each in found if each["storm"] is not None]
    equal = [each for each in free if each["storm"] is not None and not each["differences"]]
    within = [each for each in tight if max(each["requests"], each["sends"]) <= each["max_calls"]]
    noted = [each for each in found if each["requests"] <= each["sends"]]
    repeated = sum(each["repeated"] + each["repeated_calm"] for each in found)
    killed, lost = sum(each["kills"] for each in found), sum(each["lost"] for each in found)
    most = max(each["most_sends"] for each in found)
    means = max((each["sends_per_reply"] or 0.0) for each in found)
    return [
        Bar(f"{killed} kills of {kills}", killed >= kills),
        Bar(f"{len(ended)} of {len(found)} finished", len(ended) == len(found)),
        Bar(f"{len(equal)} of {len(free)} without a limit end as on the calm day", len(equal) == len(free)),
        Bar(f"{repeated} recorded requests repeated", repeated == 0),
        Bar(f"{lost} answers lost in kills, at most {CONCURRENCY} a kill", lost <= CONCURRENCY * killed),
        Bar(f"{len(within)} of {len(tight)} with a limit kept it", len(within) == len(tight)),
        Bar(f"{len(noted)} of {len(found)} sent nothing that was not noted first", len(noted) == len(found)),
        Bar(f"one request was sent {most} times at most, {MOST_SENDS} allowed", most <= MOST_SENDS),
        Bar(f"{means:.2f} sends a reply at most, {MOST_SENDS_PER_REPLY} allowed", means <= MOST_SENDS_PER_REPLY),
    ]


def sheet(found: list[dict[str, Any]]) -> str:
    """One line for each algorithm, with and without a limit."""
    header = [
        *("algorithm", "limit", "n", "kills", "gave up", "requests, calm", "requests", "sends a reply"),
        *("equal", "repeated", "lost", "improved, calm", "improved"),
    ]
    lines = []
    for algorithm in dict.fromkeys(each["algorithm"] for each in found):
        for limit in dict.fromkeys(each["max_calls"] for each in found):
            these = [each for each in found if (each["algorithm"], each["max_calls"]) == (algorithm, limit)]
            if not these:
                continue
            total = {name: sum(each[name] for each in these) for name in _SUMMED}
            equal = sum(not each["differences"] for each in these)
            lines.append(
                [
                    *(algorithm, limit or "none", len(these), total["kills"], sum(len(e["gave_up"]) for e in these)),
                    *(total["requests_calm"], total["requests"], f"{total['sends'] / max(1, total['recorded']):.2f}"),
                    *(f"{equal}" if limit is None else "-", total["repeated"], total["lost"]),
                    *(sum(each[day] == "improved" for each in these) for day in ("calm", "storm")),
                ]
            )
    return table(header, lines)


_SUMMED = ("kills", "requests_calm", "requests", "sends", "recorded", "repeated", "lost")


def main() -> int:
    """Live both days, print, keep; 1 when a bar is missed."""
    if sys.argv[1:2] == ["--child"]:
        child(int(sys.argv[2]), sys.argv[3:])
        return 0
    parser = argparse.ArgumentParser(
        prog="python -m bench.chaos", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--optimizations", type=int, default=40)
    parser.add_argument("--kills", type=int, default=200, help="kill -9, over all of them")
    parser.add_argument("--algorithms", default=",".join(ALGORITHMS), help="taken in turn")
    parser.add_argument("--at-once", type=int, default=4, help="processes at a time")
    parser.add_argument("--max-calls", type=int, default=220, help="of those with a limit")
    parser.add_argument("--free-runs", type=int, default=150, help="program runs of a search without a limit")
    parser.add_argument(
        "--outage",
        type=Outage.parse,
        action="append",
        metavar="START,SECONDS[,503]",
        help="seconds after the first request when nobody is there; 60,20 and 180,20,503 unless said",
    )
    parser.add_argument("--seed", type=int, default=0, help="of weather and kills")
    parser.add_argument("--keep", type=Path, help="an empty folder for databases and results; otherwise none are kept")
    parser.add_argument("--quick", action="store_true", help="4 optimizations, 12 kills, outages of 5 seconds")
    given = parser.parse_args()
    size = size_of(parser, given)
    if given.quick:
        given.optimizations, given.kills = 4, 12
    outages = tuple(given.outage or [Outage.parse("60,20"), Outage.parse("180,20,503")])
    if given.quick and not given.outage:
        outages = (Outage.parse("8,5"), Outage.parse("25,5,503"))
    names = given.algorithms.split(",")
    all_asked = [
        Asked(
            number=number,
            algorithm=names[number % len(names)],
            max_calls=given.max_calls if (number + number // len(names)) % 5 in (0, 3) else None,
            free_runs=given.free_runs,
        )
        for number in range(given.optimizations)
    ]
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.keep or Path(temporary)
        say(f"the calm day: {len(all_asked)} optimizations")
        with StubProcess(CALM) as stub:
            calm = live_all(Day(stub, folder / "calm"), all_asked, given, None)
        say(f"the storm: {given.kills} kills, outages at {', '.join(str(each) for each in outages)}")
        with StubProcess(replace(STORM, outages=outages, seed=given.seed)) as stub:
            storm = live_all(Day(stub, folder / "storm"), all_asked, given, calm)
            seen = stub.stats()
    found = [row(*each) for each in zip(all_asked, calm, storm, strict=True)]
    for each in found:
        if each["max_calls"] is None and each["differences"]:
            say(f"{each['name']} {each['algorithm']} differs in {'; '.join(each['differences'][:5])}")
    say(f"the stub in the storm: {seen['outcomes']}")
    kept = {"optimizations": found, "stub": seen, "outages": [str(each) for each in outages]}
    return conclude("chaos", sheet(found), bars(found, given.kills), kept, size=size, given=given)


if __name__ == "__main__":
    sys.exit(main())

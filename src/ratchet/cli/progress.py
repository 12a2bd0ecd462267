"""What is told while an optimization runs: live on a terminal, line by line elsewhere."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from ratchet.engine.archive import Event

QUIET_SECONDS = 20.0
"""Where there is no terminal, a line is printed at least this often while evaluations come in."""
USD_SECONDS = 2.0
"""How often the dollars are asked for."""


def clock(seconds: float) -> str:
    """Seconds as a reader says them.

    >>> clock(5), clock(65), clock(3725)
    ('5 s', '1 min 05 s', '1 h 02 min')
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


class Progress:
    """A listener of one run's events.

    Args:
        console: Where to; standard error.
        max_calls: The limit of calls, if there is one.
        max_seconds: The limit of time.
    """

    def __init__(
        self, console: Console, *, max_calls: int | None = None, max_seconds: float, best: str = "best on validation"
    ) -> None:
        self._console = console
        self._max_calls = max_calls
        self._max_seconds = max_seconds
        self._best_name = best
        self._expected: int | None = max_calls
        self._calls: Callable[[], int] = lambda: 0
        self._usd: Callable[[], float | None] = lambda: None
        self._known_usd: tuple[float, float | None] = (-USD_SECONDS, None)
        self._began = time.monotonic()
        self._calls_before = 0
        self._spent_before = 0.0
        self._printed = 0.0
        self._lock = threading.Lock()
        self._live: Live | None = None
        self.phase = "reading"
        self.best: float | None = None
        self.stopping = False

    def watch(self, calls: Callable[[], int], usd: Callable[[], float | None], *, spent_seconds: float) -> None:
        """Learn where calls and dollars are read."""
        self._calls, self._usd, self._calls_before = calls, usd, calls()
        self._began, self._spent_before = time.monotonic(), spent_seconds

    def __enter__(self) -> Progress:
        if self._console.is_terminal:
            self._live = Live(console=self._console, get_renderable=self._drawn, refresh_per_second=4, transient=True)
            self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._live is not None:
            self._live.stop()

    def __call__(self, event: Event) -> None:
        """Take in an event; called from any thread."""
        told = event.kind in ("stage", "best")
        match event.kind:
            case "stage":
                self.phase = event.payload["stage"]
            case "best":
                self.best = max(self.best or 0.0, event.payload["mean"])
            case "preflight":
                self._expected = min(filter(None, (self._max_calls, event.payload["forecast_calls"])))
            case "note":
                self._line(event.payload["message"])
            case "refused":
                self._line(f"the reflection LM refused a prompt: {event.payload['message']}")
        if self._live is None and (told or time.monotonic() - self._printed > QUIET_SECONDS):
            self._line(self._status())

    def _line(self, line: str) -> None:
        with self._lock:
            self._printed = time.monotonic()
            self._console.print(line, markup=False, highlight=False, soft_wrap=True)

    def tell(self, line: str) -> None:
        """Print one line above what moves."""
        self._line(line)

    def _dollars(self) -> float | None:
        if self._calls() == 0:
            return 0.0
        asked, usd = self._known_usd
        if time.monotonic() - asked >= USD_SECONDS:
            usd = self._usd()
            self._known_usd = (time.monotonic(), usd)
        return usd

    def seconds_left(self) -> float | None:
        """Estimated from the calls to come and their rate so far; never more than the time limit leaves."""
        elapsed = time.monotonic() - self._began
        allowed = max(0.0, self._max_seconds - self._spent_before - elapsed)
        done = self._calls() - self._calls_before
        if self._expected is None or done < 10:
            return None
        return min(allowed, max(0, self._expected - self._calls()) * elapsed / done)

    def _parts(self) -> list[str]:
        limit = f" of {self._max_calls}" if self._max_calls else ""
        usd, left = self._dollars(), self.seconds_left()
        return [
            f"{self._best_name} {self.best:.3f}" if self.best is not None else "",
            f"{self._calls()}{limit} calls",
            "$ unknown" if usd is None else f"${usd:.4f}",
            clock(self._spent_before + time.monotonic() - self._began),
            f"about {clock(left)} left" if left is not None else "",
        ]

    def _status(self) -> str:
        return " · ".join(part for part in (self.phase, *self._parts()) if part)

    def _drawn(self) -> Any:
        grid = Table.grid(padding=(0, 1))
        total = self._expected or 1
        bar = ProgressBar(total=total, completed=min(total, self._calls()), width=24)
        words = Text(" · ".join(part for part in self._parts() if part))
        phase = Text("stopping after the requests under way" if self.stopping else self.phase, style="bold")
        grid.add_row(phase, bar, words)
        return grid

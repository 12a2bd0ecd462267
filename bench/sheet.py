"""What every bench shows and keeps: spreads, tables, bars that pass or fail, and a JSON file beside RESULTS.md."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True, slots=True)
class Spread:
    """The middle of some measurements, the least and the greatest, and how many there are.

    >>> str(Spread.of([3.0, 1.0, 2.0]))
    '2.000 (1.000 to 3.000, n = 3)'
    """

    median: float
    low: float
    high: float
    n: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """The spread of ``values``, of which there must be one at least."""
        return cls(statistics.median(values), min(values), max(values), len(values))

    def __str__(self) -> str:
        return f"{self.median:.3f} ({self.low:.3f} to {self.high:.3f}, n = {self.n})"


@dataclass(frozen=True, slots=True)
class Bar:
    """What had to be reached, and whether it was."""

    what: str
    passed: bool

    def __str__(self) -> str:
        return f"{'pass' if self.passed else 'FAIL'}  {self.what}"


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table.

    >>> print(table(["side", "ms"], [["ours", 1]]))
    | side | ms |
    |---|---|
    | ours | 1 |
    """
    lines = [header, *rows]
    cells = ["| " + " | ".join(str(cell) for cell in line) + " |" for line in lines]
    return "\n".join([cells[0], "|" + "---|" * len(header), *cells[1:]])


def say(text: str) -> None:
    """Tell how it goes, on standard error."""
    print(text, file=sys.stderr, flush=True)


def machine() -> dict[str, Any]:
    """Where and when it was measured, and with what."""
    names = ("dspy-ratchet", "dspy", "gepa", "aiohttp")
    return {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "cores": os.cpu_count(),
        "load": os.getloadavg(),
        "nice": os.nice(0),
        "versions": {name: importlib.metadata.version(name) for name in names},
    }


def size_of(parser: argparse.ArgumentParser, given: argparse.Namespace) -> str:
    """``result`` for a run as it is meant, ``quick`` for a small one, ``part`` for one with other options.

    >>> parser = argparse.ArgumentParser()
    >>> _, _ = parser.add_argument("--rounds", type=int, default=5), parser.add_argument("--quick", action="store_true")
    >>> [size_of(parser, parser.parse_args(words)) for words in ([], ["--quick"], ["--rounds", "3"])]
    ['result', 'quick', 'part']
    """
    changed = [name for name, value in vars(given).items() if value != parser.get_default(name)]
    return "quick" if given.quick else "part" if changed else "result"


def conclude(
    name: str, text: str, bars: Sequence[Bar], data: dict[str, Any], *, size: str, given: argparse.Namespace
) -> int:
    """Print the table and the bars, keep everything as ``bench/results/NAME/SIZE.json``, and give the exit code."""
    print(text)
    print()
    for bar in bars:
        print(bar)
    folder = RESULTS / name
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{size}.json"
    options = {each: value for each, value in vars(given).items() if each != "child"}
    kept = {"machine": machine(), "options": options, "bars": [asdict(bar) for bar in bars], **data}
    path.write_text(json.dumps(kept, indent=1, default=str) + "\n", encoding="utf-8")
    say(f"written to {path}")
    return 0 if all(bar.passed for bar in bars) else 1

"""Standard output: what a command found, and nothing else."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from typing import TextIO

_kept: list[TextIO] = []


def results() -> TextIO:
    """Where results are written."""
    return _kept[-1] if _kept else sys.stdout


def tell(line: str = "", *, end: str = "\n") -> None:
    """Write a line of what was found."""
    print(line, end=end, file=results(), flush=True)


@contextmanager
def results_alone() -> Iterator[None]:
    """Within it, what libraries, metrics and programs print goes to standard error, from every thread."""
    _kept.append(sys.stdout)
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        _kept.pop()

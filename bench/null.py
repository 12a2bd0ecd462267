"""How often each algorithm claims a gain on a problem that has none.

    python -m bench.null --seeds 100 --algorithms gepa,dspy.gepa

Each run is a whole optimization of a DSPy program through the gateway, with a scripted LM in this process. The score
depends on the example alone (``example``), or also on every letter of the prompt (``prompt``), so that each candidate's
score is a new draw of the same mean: what looks better on validation is luck, and only the sealed test can tell.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import logging
import sys
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from functools import partial

from ratchet.prepare import known_algorithms
from ratchet.testing.runs import HOPELESS, hopeless_run


def outcome(algorithm: str, depends_on: str, max_calls: int, seed: int) -> tuple[str, bool]:
    """The status of one run, and whether it opened the sealed test."""
    logging.disable(logging.CRITICAL)
    with contextlib.redirect_stderr(io.StringIO()):
        result = hopeless_run(algorithm, depends_on, seed=seed, max_calls=max_calls).execute()
    return result.status, result.comparison is not None


def main() -> None:
    """Print one row per algorithm and kind of problem."""
    parser = argparse.ArgumentParser(prog="python -m bench.null")
    parser.add_argument("--seeds", type=int, default=100)
    parser.add_argument("--max-calls", type=int, default=300)
    parser.add_argument("--algorithms", default=",".join(known_algorithms()))
    parser.add_argument("--workers", type=int, default=2)
    given = parser.parse_args()
    print("| algorithm | score depends on | runs | sealed test opened | improved | not improved |")
    print("|---|---|---|---|---|---|")
    with ProcessPoolExecutor(given.workers) as pool:
        for algorithm in given.algorithms.split(","):
            for depends_on in HOPELESS:
                one = partial(outcome, algorithm, depends_on, given.max_calls)
                ended = list(pool.map(one, range(given.seeds), chunksize=5))
                statuses = Counter(status for status, _ in ended)
                opened, improved = sum(tested for _, tested in ended), statuses["improved"]
                row = (algorithm, depends_on, len(ended), opened, improved, len(ended) - improved)
                print("| " + " | ".join(str(cell) for cell in row) + " |", flush=True)
    sys.stdout.flush()


if __name__ == "__main__":
    main()

"""Records a response surface with a real LM: every combination of instructions and demos, on every validation example.

    ratchet optimize TARGET ... --algorithm bench/record.py:every_combination --max-calls 4000 --no-minimise
    python -m bench.record HOME OPTIMIZATION FILE.json

The first asks `miprov2`'s own steps for demo sets and instructions and runs all there is; it goes on where it was
interrupted. The second writes what it found: scores, sizes of demo sets and lengths of instructions, and no text.
"""

from __future__ import annotations

import argparse
import json
import random
from contextlib import suppress
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ratchet.algorithms.demos import MAX_DEMOS, demo_sets, spread
from ratchet.algorithms.miprov2 import propose, summarise
from ratchet.algorithms.scoreboard import BOOTSTRAP_SHARE, Scoreboard, gather
from ratchet.algorithms.space import Space
from ratchet.bootstrap import open_archive
from ratchet.core.algorithm import Algorithm, evaluate
from ratchet.core.errors import BudgetSpent
from ratchet.core.problem import Problem, canonical
from ratchet.settings import Settings
from ratchet.storage.sql import SqlArchive

SETS, PROPOSALS = 8, 4
"""Demo sets and instructions, besides the seed's own."""


def every_combination(problem: Problem, *, rng: random.Random) -> Algorithm:
    """All combinations on all of validation; the best first."""
    board = Scoreboard(problem)
    means: dict[str, float] = {}
    space = Space.of(problem.seed, {name: [each.instructions] for name, each in problem.seed.predictors.items()}, [])
    with suppress(BudgetSpent):
        pools = yield from gather(board, rng=rng, runs=int(BOOTSTRAP_SHARE * 400), max_demos=MAX_DEMOS)
        sets = demo_sets(problem, pools, rng=rng, count=SETS, max_demos=MAX_DEMOS)
        summary = yield from summarise(board, rng=rng)
        instructions = yield from propose(board, sets, summary, rng=rng, count=PROPOSALS)
        space = Space.of(problem.seed, instructions, sets, maker="record")
        order = spread(problem.validation, rng=rng)
        for chosen in product(*map(range, space.sizes.values())):
            candidate = space.candidate(chosen)
            rows = yield from evaluate(candidate, order)
            means[candidate.key] = rows.mean
    made = {each.key: each for each in space.made.values()}
    return [made[key] for key in sorted(means, key=lambda key: -means[key])[:1]] or [problem.seed]


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedSurface:
    """A surface that was measured once.

    Attributes:
        about: What was recorded, in words.
        characters: Of each instruction.
        demos: How many are in each set.
        scores: Shape (instructions, demo sets, examples).
    """

    about: str
    characters: list[int]
    demos: list[int]
    scores: list[list[list[float]]]

    def array(self) -> NDArray[np.float64]:
        """The scores."""
        return np.array(self.scores, dtype=np.float64)


def read(path: Path) -> RecordedSurface:
    """The surface in a file."""
    return RecordedSurface(**json.loads(path.read_text(encoding="utf-8")))


def exported(archive: SqlArchive, identity: str, *, about: str) -> RecordedSurface:
    """What an optimization by ``every_combination`` of a program of one predictor found, done or interrupted.

    Instructions that were not run with every demo set are left out.
    """
    notebook = archive.open(identity)
    validation = notebook.examples()["validation"]
    scores: dict[str, dict[str, float]] = {}
    for row, _ in notebook.evaluations():
        scores.setdefault(row.candidate, {})[row.example.key] = row.counted
    keys = [each.key for each in validation if each.key in set.union(*map(set, scores.values()))]
    grid = {}
    for candidate, _ in notebook.candidates():
        (state,) = candidate.predictors.values()
        if set(keys) <= scores.get(candidate.key, {}).keys():
            grid[state.instructions, canonical(state.demos)] = candidate.key
    demos = list(dict.fromkeys(shown for _, shown in grid))
    complete = [text for text in dict.fromkeys(text for text, _ in grid) if all((text, each) in grid for each in demos)]
    found = [[[scores[grid[text, shown]][key] for key in keys] for shown in demos] for text in complete]
    sizes = [len(json.loads(shown)) for shown in demos]
    return RecordedSurface(about=about, characters=[len(text) for text in complete], demos=sizes, scores=found)


def main() -> None:
    """Write the surface."""
    parser = argparse.ArgumentParser(prog="python -m bench.record")
    parser.add_argument("home", type=Path)
    parser.add_argument("optimization")
    parser.add_argument("file", type=Path)
    parser.add_argument("--about", default="")
    given = parser.parse_args()
    archive = open_archive(Settings(home=given.home))
    surface = exported(archive, given.optimization, about=given.about)
    given.file.write_text(json.dumps(asdict(surface)) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

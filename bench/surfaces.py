"""How many evaluations a search needs, on recorded response surfaces.

    python -m bench.surfaces            20 seeds, every surface and contestant
    python -m bench.surfaces --quick    3 seeds

A surface holds the score of every combination of instructions and demos on every example, so that the best one is known
and a search costs no LM. `trec` was measured with a real LM (`bench/record.py`); its seeds shuffle options and rows.
The others are synthetic: a score is 1 where

    mean + instructions + demos + both together + example + instructions x example + demos x example + noise > 0

and every part is normal. Part of what instructions and demos do depends on the phrases they hold, so that texts tell of
it; on the surfaces ``mute`` and `trec` texts tell nothing. Each seed draws a surface of its own.

First question: after how many evaluations does a search first hold a combination within two points of the best, with a
budget of 4,000 (TPE and random search: 12,000)? "Holds" means that it would hand it over if it were stopped there.
Second: how far from the best is what it hands over at the end of a budget of 100 to 1,000? All contestants run the code
of the algorithms of their names, with the options given. TPE is Optuna's with the settings of ``dspy.MIPROv2``, once
with every trial on all examples, and once with its minibatches of 35 and a full evaluation of the best after every
fifth trial.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import optuna

from bench.record import read
from bench.sheet import Bar, conclude, say, size_of, table
from ratchet.algorithms.capo import Recombining, evolve
from ratchet.algorithms.deep_kernel import Fit
from ratchet.algorithms.demos import spread
from ratchet.algorithms.miprov2 import Plan, search, turned
from ratchet.algorithms.scoreboard import Scoreboard
from ratchet.algorithms.space import Space
from ratchet.algorithms.surrogate import Model, hashed_ngrams, hyperband
from ratchet.core.algorithm import Algorithm, Steps
from ratchet.core.errors import BudgetSpent
from ratchet.core.evaluation import Evaluation, Usage
from ratchet.core.problem import (
    Budget,
    Candidate,
    Example,
    Fields,
    FieldSpec,
    PredictorSpec,
    PredictorState,
    Problem,
)
from ratchet.testing import SyntheticProblem

POINTS = 0.02
LIMIT = 4000
LONG_LIMIT = 12_000
"""For those who would mostly never hold one within ``LIMIT``; what they do does not depend on the limit."""
BUDGETS = (100, 200, 300, 500, 700, 1000)
AT_END = ("medium", "wide", "trec")
"""The surfaces on which budgets are compared."""
N_EXAMPLES = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """How surfaces of a kind are drawn; standard deviations are those of the latent score, whose noise is about 1.

    Attributes:
        instructions, demos: How many options there are; the first of each is the seed's.
        main: Of what instructions do, and of what demos do.
        both: Of what only the two together do.
        phrases: Share of the variance of ``main`` that phrases in the texts account for.
    """

    instructions: int
    demos: int
    main: float = 0.25
    both: float = 0.12
    phrases: float = 0.5


KINDS = {
    "medium": Kind(instructions=12, demos=16),
    "wide": Kind(instructions=5, demos=50),
    "large": Kind(instructions=30, demos=24),
    "entangled": Kind(instructions=12, demos=16, main=0.18, both=0.2),
    "mute": Kind(instructions=12, demos=16, phrases=0.0),
}
PHRASES = (
    "think about each option before you choose",
    "answer with the label alone",
    "read the whole message first",
    "names of places are not names of people",
    "when in doubt take the broader class",
    "do not explain your answer",
    "look at the verb to see what is asked",
    "numbers and dates count as numeric",
)
WORDS = tuple(f"{a}{b}" for a in ("ba", "ke", "li", "mo", "nu", "pa", "re", "so") for b in ("lan", "mer", "tis", "von"))


@dataclass(frozen=True, slots=True)
class Surface:
    """Every combination's score on every example.

    Attributes:
        instructions: Texts; the first is the seed's.
        demos: Demo sets; the first is empty.
        scores: 0 or 1. Shape (instructions, demos, examples).
    """

    instructions: tuple[str, ...]
    demos: tuple[tuple[Fields, ...], ...]
    scores: np.ndarray[Any, np.dtype[np.float64]]

    @property
    def best(self) -> float:
        """The mean score of the best combination."""
        return float(self.scores.mean(axis=2).max())


RECORDED = Path(__file__).parent / "recorded"
"""Surfaces that were measured with a real LM by ``bench/record.py``."""


def measured() -> list[str]:
    """The names of the measured surfaces."""
    return sorted(path.stem for path in RECORDED.glob("*.json"))


@lru_cache(maxsize=4)
def surface_of(kind: str, seed: int) -> Surface:
    """The surface of ``kind`` with this seed; of a measured one the order of its options and examples."""
    return drawn(kind, seed) if kind in KINDS else shuffled(read(RECORDED / f"{kind}.json").array(), seed)


def shuffled(scores: np.ndarray[Any, np.dtype[np.float64]], seed: int) -> Surface:
    """``scores`` with options and examples in another order, the seed's own options first; texts tell nothing."""
    rng = np.random.default_rng(seed)
    n_instructions, n_demos, n_examples = scores.shape
    instructions = [0, *(1 + rng.permutation(n_instructions - 1))]
    demos = [0, *(1 + rng.permutation(n_demos - 1))]
    return Surface(
        instructions=tuple(
            f"Label it. {' '.join(WORDS[(7 * at + k) % len(WORDS)] for k in range(6))}" for at in instructions
        ),
        demos=((), *(({"text": WORDS[at % len(WORDS)], "label": f"set {at}"},) for at in demos[1:])),
        scores=scores[instructions][:, demos][:, :, rng.permutation(n_examples)],
    )


def drawn(kind: str, seed: int) -> Surface:
    """A synthetic surface."""
    rules, rng = KINDS[kind], np.random.default_rng([seed, *kind.encode()])
    words = random.Random(f"{kind} {seed}")
    sizes = (rules.instructions, rules.demos)
    effects, holds = [], []
    for size in sizes:
        has = rng.random((size, len(PHRASES))) < 0.4
        has[0] = False
        by_phrase = has @ rng.normal(size=len(PHRASES))
        by_phrase = (by_phrase - by_phrase.mean()) / max(by_phrase.std(), 1e-9)
        mixed = rules.phrases**0.5 * by_phrase + (1 - rules.phrases) ** 0.5 * rng.normal(size=size)
        effects.append(rules.main * mixed)
        holds.append(has if rules.phrases else rng.random(has.shape) < 0.4)

    def text(has: np.ndarray[Any, Any]) -> str:
        said = [phrase for phrase, there in zip(PHRASES, has, strict=True) if there]
        return ". ".join(words.sample([*said, " ".join(words.sample(WORDS, 6))], len(said) + 1))

    latent = (
        rng.normal(0, 0.2)
        + effects[0][:, None, None]
        + effects[1][None, :, None]
        + rng.normal(0, rules.both, size=(*sizes, 1))
        + rng.normal(0, 0.8, size=(1, 1, N_EXAMPLES))
        + rng.normal(0, 0.35, size=(sizes[0], 1, N_EXAMPLES))
        + rng.normal(0, 0.35, size=(1, sizes[1], N_EXAMPLES))
        + rng.normal(0, 0.4, size=(*sizes, N_EXAMPLES))
    )
    demos = [({"text": text(has), "label": f"set {number}"},) for number, has in enumerate(holds[1])]
    return Surface(
        instructions=tuple(f"Label it. {text(has)}" for has in holds[0]),
        demos=((), *demos[1:]),
        scores=(latent > 0).astype(np.float64),
    )


@dataclass
class Recording(SyntheticProblem):
    """A problem whose runs are looked up in a surface."""

    surface: Surface = field(default_factory=lambda: surface_of("medium", 0))

    def __post_init__(self) -> None:
        surface = self.surface
        self.place = {
            (text, demos): (i, j)
            for i, text in enumerate(surface.instructions)
            for j, demos in enumerate(map(str, surface.demos))
        }
        self.examples = [Example(inputs={"text": f"{n}"}, labels={}) for n in range(surface.scores.shape[2])]
        self.number = {example: n for n, example in enumerate(self.examples)}

    @property
    def problem(self) -> Problem:
        """What an algorithm gets."""
        fields = (FieldSpec(name="text", type="str"),)
        return Problem(
            seed=Candidate(predictors={"label": PredictorState(instructions=self.surface.instructions[0])}),
            predictors=(PredictorSpec(name="label", inputs=fields, outputs=(FieldSpec(name="label", type="str"),)),),
            train=(),
            validation=tuple(self.examples),
            budget=Budget(runs=self.runs),
        )

    def _row(self, candidate: Candidate) -> np.ndarray[Any, np.dtype[np.float64]]:
        state = candidate.predictors["label"]
        return np.asarray(self.surface.scores[self.place[state.instructions, str(state.demos)]])

    def run(self, candidate: Candidate, example: Example, repeat: int = 0) -> Evaluation:
        """The recorded score."""
        self.runs_used += 1
        score = float(self._row(candidate)[self.number[example]])
        return Evaluation(candidate=candidate.key, example=example, repeat=repeat, score=score, usage=Usage(calls=1))

    def regret(self, candidate: Candidate) -> float:
        """How far the candidate is from the best."""
        return self.surface.best - float(self._row(candidate).mean())


# Contestants: each spends the board's budget on a space.

Contestant = Callable[[Scoreboard, Space, Sequence[Example], random.Random], Steps[None]]


def by_capo(board: Scoreboard, space: Space, order: Sequence[Example], rng: random.Random) -> Steps[None]:
    """CAPO's races, with options crossed and changed."""
    yield from evolve(board, Recombining(board=board, space=space, rng=rng), order)


def by_surrogate(board: Scoreboard, space: Space, order: Sequence[Example], rng: random.Random) -> Steps[None]:
    """HbBoPs."""
    yield from hyperband(board, Model(board=board, space=space, embed=hashed_ngrams, fit=Fit(), rng=rng), order)


def by_miprov2(board: Scoreboard, space: Space, order: Sequence[Example], rng: random.Random) -> Steps[None]:
    """Random effects and growing minibatches."""
    plan = Plan.of(board.problem, runs=board.runs_left)
    yield from search(board, space, [], plan, order, turned(board, plan, order), rng=rng)


def by_tpe(board: Scoreboard, space: Space, order: Sequence[Example], rng: random.Random) -> Steps[None]:
    """TPE, every trial on all examples."""
    study = _study(space, rng)
    while board.runs_left > 0:
        trial, candidate = _asked(study, space)
        yield from _run(board, candidate, order)
        study.tell(trial, _mean(board, candidate, order))


def by_tpe_on_minibatches(board: Scoreboard, space: Space, order: Sequence[Example], rng: random.Random) -> Steps[None]:
    """TPE as in ``dspy.MIPROv2``: minibatches of 35, and after every fifth trial the best mean is run on all."""
    study = _study(space, rng)
    means: dict[Candidate, list[float]] = {}
    yield from _run(board, space.seed, order)
    number = 0
    while board.runs_left > 0 and number < 1000:
        number += 1
        trial, candidate = _asked(study, space)
        batch = rng.sample(order, min(35, len(order)))
        yield from _run(board, candidate, batch)
        means.setdefault(candidate, []).append(_mean(board, candidate, batch))
        study.tell(trial, means[candidate][-1])
        if number % 5 == 0:
            partly = [each for each in means if not board.is_complete(each)]
            if partly:
                yield from _run(board, max(partly, key=lambda each: statistics.fmean(means[each])), order)


def at_random(board: Scoreboard, space: Space, order: Sequence[Example], rng: random.Random) -> Steps[None]:
    """Random combinations, each on all examples."""
    for each in space.some(rng):
        yield from _run(board, space.candidate(each), order)


def _study(space: Space, rng: random.Random) -> optuna.Study:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    sampler = optuna.samplers.TPESampler(seed=rng.randrange(2**31), multivariate=True)
    study = optuna.create_study(direction="maximize", sampler=sampler)
    study.enqueue_trial({" ".join(name): 0 for name in space.sizes})
    return study


def _asked(study: optuna.Study, space: Space) -> tuple[optuna.Trial, Candidate]:
    trial = study.ask()
    chosen = [trial.suggest_categorical(" ".join(name), list(range(size))) for name, size in space.sizes.items()]
    return trial, space.candidate(tuple(chosen))


def _run(board: Scoreboard, candidate: Candidate, examples: Sequence[Example]) -> Steps[None]:
    if board.cost([candidate], examples) > board.runs_left:
        raise BudgetSpent(used=board.runs_used, limit=board.problem.budget.runs)
    yield from board.begin(candidate, examples)
    while board.under_way:
        yield from board.take_up()


def _mean(board: Scoreboard, candidate: Candidate, examples: Sequence[Example]) -> float:
    scores = board.scores(candidate)
    return statistics.fmean(scores[example] for example in examples)


CONTESTANTS: dict[str, Contestant] = {
    "random": at_random,
    "tpe": by_tpe,
    "tpe minibatch": by_tpe_on_minibatches,
    "miprov2": by_miprov2,
    "capo": by_capo,
    "surrogate": by_surrogate,
}
PATIENT = ("random", "tpe", "tpe minibatch")


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How one search went.

    Attributes:
        held_at: Evaluations after which it first held a combination within ``POINTS`` of the best; None if never.
        regret: How far what it handed over is from the best.
        used: Evaluations.
        seconds: CPU time.
    """

    held_at: int | None
    regret: float
    used: int
    seconds: float


def play(name: str, kind: str, seed: int, runs: int, until_held: bool) -> Outcome:
    """One search of ``runs`` evaluations; ``until_held`` ends it as soon as it holds a good one."""
    toy = Recording(surface=surface_of(kind, seed), runs=runs)
    held: list[int] = []
    began = time.process_time()

    def watched(problem: Problem, *, rng: random.Random) -> Algorithm:
        board = Scoreboard(problem)
        surface = toy.surface
        space = Space.of(
            problem.seed, {"label": surface.instructions}, [{"label": demos} for demos in surface.demos], maker=name
        )
        steps = CONTESTANTS[name](board, space, spread(problem.validation, rng=rng), rng)
        reply: Any = None
        known = 0
        try:
            while True:
                request = steps.send(reply)
                if until_held and board.runs_used - board.under_way > known:
                    known = board.runs_used - board.under_way
                    if toy.regret(board.finalists()[0]) <= POINTS + 1e-9:
                        held.append(known)
                        break
                reply = yield request
        except (StopIteration, BudgetSpent):
            pass
        if not held:
            yield from board.finish()
        return board.finalists()

    best = toy.solve(watched, seed=seed)[0]
    regret = toy.regret(best)
    if until_held and not held and regret <= POINTS + 1e-9:
        held.append(toy.runs_used)
    return Outcome(
        held_at=held[0] if held else None,
        regret=regret,
        used=toy.runs_used,
        seconds=time.process_time() - began,
    )


def _played(task: tuple[str, str, int, int, bool]) -> Outcome:
    return play(*task)


def median(values: Sequence[int | None]) -> float:
    """The median, where None is more than any number.

    >>> median([100, None, 300]), median([None, None, 1])
    (300.0, inf)
    """
    return float(statistics.median([float("inf") if value is None else float(value) for value in values]))


def main() -> None:
    """Print both tables, and say whether half of TPE's evaluations are enough."""
    parser = argparse.ArgumentParser(prog="python -m bench.surfaces")
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--surfaces", default=",".join((*KINDS, *measured())))
    parser.add_argument("--contestants", default=",".join(CONTESTANTS))
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--quick", action="store_true")
    given = parser.parse_args()
    seeds = range(3 if given.quick else given.seeds)
    kinds, names = given.surfaces.split(","), given.contestants.split(",")
    with ProcessPoolExecutor(given.workers) as pool:

        def played(name: str, kind: str, runs: int, until_held: bool) -> list[Outcome]:
            found = list(pool.map(_played, [(name, kind, seed, runs, until_held) for seed in seeds]))
            say(f"{kind} {name} {runs}: {sum(each.seconds for each in found):.1f} s")
            return found

        limits = {name: LONG_LIMIT if name in PATIENT else LIMIT for name in names}
        first = {(kind, name): played(name, kind, limits[name], True) for kind in kinds for name in names}
        compared = [kind for kind in kinds if kind in AT_END]
        at_end = {
            (kind, name, runs): played(name, kind, runs, False)
            for kind in compared
            for name in names
            for runs in BUDGETS
        }
    needed = {key: median([each.held_at for each in found]) for key, found in first.items()}
    reached = {key: sum(each.held_at is not None for each in found) for key, found in first.items()}
    shares = [[f"{needed[kind, name]:.0f} ({reached[kind, name]} of {len(seeds)})" for name in names] for kind in kinds]
    text = [
        f"Evaluations until a combination within {POINTS:.2f} of the best is first held: median of {len(seeds)} seeds, "
        f"and how many held one within the limit.",
        "",
        table(["surface", *names], [[kind, *row] for kind, row in zip(kinds, shares, strict=True)]),
    ]
    regrets = {key: statistics.fmean(each.regret for each in found) for key, found in at_end.items()}
    for kind in compared:
        rows = [[runs, *(f"{100 * regrets[kind, name, runs]:.1f}" for name in names)] for runs in BUDGETS]
        text += ["", f"`{kind}`: points below the best at the end of a budget, mean of {len(seeds)} seeds.", ""]
        text += [table(["evaluations", *names], rows)]
    bars = [
        Bar(
            f"{name} on {kind}: {needed[kind, name]:.0f}, at most half of TPE's {needed[kind, 'tpe']:.0f}",
            needed[kind, name] <= needed[kind, "tpe"] / 2 and needed[kind, name] < float("inf"),
        )
        for kind in kinds
        for name in ("capo", "surrogate")
        if name in names and "tpe" in names
    ]
    data = {
        "first": [
            {"surface": kind, "search": name, "held_at": [each.held_at for each in found]}
            for (kind, name), found in first.items()
        ],
        "budgets": [
            {"surface": kind, "search": name, "runs": runs, "regret": [round(each.regret, 4) for each in found]}
            for (kind, name, runs), found in at_end.items()
        ],
    }
    sys.exit(conclude("surfaces", "\n".join(text), bars, data, size=size_of(parser, given), given=given))


if __name__ == "__main__":
    main()

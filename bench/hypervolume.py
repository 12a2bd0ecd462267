"""How much `genetic` dominates after so many evaluations, beside NSGA-II of pymoo on the same space.

    make bench-hypervolume
    python -m bench.hypervolume --quick

A candidate's instructions say which of some alternatives each rule takes; its demos are a subset of the training
examples. Quality and cost of every combination are known: rules act in pairs, demos help less the more there are, and
every word and demo costs. `genetic` sees texts and demos, and an LM that crosses and mutates rules as it reads them,
blindly; pymoo sees the same choices as integers. Neither knows the tables. Both evaluate equally many candidates, and
what counts is the hypervolume of all that was evaluated. pymoo runs with several population sizes, once with the
operators of its documentation for integers and once with those that suit choices without an order, uniform crossover
and a new draw of one variable in N; the best of all these is the one to compare with.
"""

from __future__ import annotations

import argparse
import random
import re
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from pymoo.algorithms.moo.nsga2 import NSGA2
from pymoo.core.mutation import Mutation
from pymoo.core.problem import ElementwiseProblem
from pymoo.operators.crossover.sbx import SBX
from pymoo.operators.crossover.ux import UX
from pymoo.operators.mutation.pm import PM
from pymoo.operators.repair.rounding import RoundingRepair
from pymoo.operators.sampling.rnd import IntegerRandomSampling
from pymoo.optimize import minimize

from bench.sheet import Bar, Spread, conclude, say, size_of, table
from ratchet.algorithms.genetic import genetic
from ratchet.core.evaluation import Evaluation, Usage
from ratchet.core.pareto import hypervolume
from ratchet.core.problem import Budget, Candidate, Example, FieldSpec, PredictorSpec, PredictorState, Problem
from ratchet.core.request import Objective
from ratchet.testing import SyntheticProblem

RULES, ALTERNATIVES, DEMOS = 12, 6, 12
POPULATIONS = (20, 40, 100)
REFERENCE = (0.0, -1.0)
"""No quality at the greatest cost."""
LEAST_RATIO = 0.98

_RULE = re.compile(r"r(\d+)=(\d+)")
Choices = tuple[int, ...]
"""An alternative for each rule, and 0 or 1 for each demo. Shape (RULES + DEMOS,)."""


@dataclass
class Space(SyntheticProblem):
    """Instructions and demos of known quality and cost.

    Attributes:
        landscape: Seeds the tables.
    """

    landscape: int = 0
    points: list[tuple[float, float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        rng = random.Random(f"landscape {self.landscape}")
        self.pairs = [[[rng.random() for _ in range(ALTERNATIVES)] for _ in range(ALTERNATIVES)] for _ in range(RULES)]
        self.words = [[rng.randint(2, 30) for _ in range(ALTERNATIVES)] for _ in range(RULES)]
        self.helps = [rng.uniform(0.02, 0.25) for _ in range(DEMOS)]
        self.lengths = [rng.randint(10, 40) for _ in range(DEMOS)]
        self.most = sum(map(max, self.words)) + sum(self.lengths)

    def objectives(self, choices: Choices) -> tuple[float, float]:
        """Quality from 0 to 1, and cost as a share of the most there is, turned round: higher is better."""
        rules, demos = choices[:RULES], choices[RULES:]
        fit = sum(self.pairs[i][rules[i]][rules[(i + 1) % RULES]] for i in range(RULES)) / RULES
        unhelped = 1.0
        for helps, shown in zip(self.helps, demos, strict=True):
            unhelped *= 1.0 - helps * shown
        words = sum(self.words[i][rule] for i, rule in enumerate(rules))
        words += sum(length * shown for length, shown in zip(self.lengths, demos, strict=True))
        return 0.6 * fit + 0.4 * (1.0 - unhelped), -words / self.most

    # --- as an algorithm sees it --------------------------------------------------------------------------------------

    def example(self, number: int) -> Example:
        """The training example with this number; it is a demo too."""
        return Example(inputs={"question": f"d{number}"}, labels={"answer": f"a{number}"})

    @property
    def problem(self) -> Problem:
        """The space as a problem of two objectives. A text counts as a run, so twice the runs are there."""
        fields = (FieldSpec(name="question", type="str"),), (FieldSpec(name="answer", type="str"),)
        return Problem(
            seed=Candidate(predictors={"answer": PredictorState(instructions=_written([0] * RULES))}),
            predictors=(PredictorSpec(name="answer", inputs=fields[0], outputs=fields[1]),),
            train=tuple(self.example(number) for number in range(DEMOS)),
            validation=(self.example(DEMOS),),
            budget=Budget(runs=2 * self.runs),
            slots=self.slots,
            objectives=(Objective(metric="quality_score"), Objective(metric="cost")),
        )

    def run(self, candidate: Candidate, example: Example, repeat: int = 0) -> Evaluation:
        """Quality as the score, and cost in dollars."""
        self.runs_used += 1
        state = candidate.predictors["answer"]
        shown = {demo["question"] for demo in state.demos}
        choices = (*_read(state.instructions), *(int(f"d{number}" in shown) for number in range(DEMOS)))
        quality, cost = self.objectives(choices)
        self.points.append((quality, cost))
        return Evaluation(
            candidate=candidate.key,
            example=example,
            score=quality,
            usage=Usage(calls=1, cost_usd=-cost, latency_ms=1.0),
        )

    def generate(self, prompt: str, number: int) -> str:
        """What a blind LM makes of the instructions it reads: it crosses them rule by rule, and changes some rules."""
        rng = random.Random(f"{self.seed}/{self.landscape}/{number}")
        *others, base = [_read(line) for line in prompt.splitlines() if _RULE.search(line)]
        child = list(base)
        if len(others) == 1:
            child = [rng.choice(pair) for pair in zip(base, others[0], strict=True)]
        elif others:
            first, second, best = others
            for i in range(RULES):
                changed = rng.randrange(ALTERNATIVES) if first[i] != second[i] and rng.random() < 0.5 else best[i]
                child[i] = rng.choice((base[i], changed))
        anew = not others and rng.random() < 0.5  # a rewrite may change a word or everything
        rate = 0.5 if anew else 1.0 / RULES
        return _written([rng.randrange(ALTERNATIVES) if rng.random() < rate else rule for rule in child])


def _written(rules: Sequence[int]) -> str:
    return "Your task is to answer by these rules: " + " ".join(f"r{i}={rule}" for i, rule in enumerate(rules))


def _read(text: str) -> list[int]:
    return [int(rule) for _, rule in sorted((int(i), rule) for i, rule in _RULE.findall(text))]


class _Encoded(ElementwiseProblem):  # type: ignore[misc]
    """The same space as pymoo sees it: integers, everything minimized."""

    def __init__(self, space: Space) -> None:
        upper = [ALTERNATIVES - 1] * RULES + [1] * DEMOS
        super().__init__(n_var=RULES + DEMOS, n_obj=2, xl=0, xu=np.array(upper), vtype=int)
        self.space = space

    def _evaluate(self, x: Any, out: dict[str, Any], *args: Any, **kwargs: Any) -> None:
        quality, cost = self.space.objectives(tuple(int(each) for each in x))
        self.space.points.append((quality, cost))
        out["F"] = [-quality, -cost]


def by_genetic(space: Space, seed: int) -> None:
    """`genetic`, with its own choice of sizes."""
    space.solve(genetic, seed=seed)


class _Redraw(Mutation):  # type: ignore[misc]
    """Each variable is drawn anew with probability 1/N."""

    def _do(self, problem: Any, X: Any, *args: Any, random_state: Any = None, **kwargs: Any) -> Any:  # noqa: N803
        drawn = random_state.integers(problem.xl, problem.xu + 1, X.shape)
        return np.where(random_state.random(X.shape) < 1 / X.shape[1], drawn, X)


def by_pymoo(population: int, *, ordered: bool) -> Callable[[Space, int], None]:
    """NSGA-II of pymoo with so many members.

    Args:
        ordered: Whether with the operators for integers, as its documentation sets it up, or with those for choices.
    """

    def search(space: Space, seed: int) -> None:
        repair = {"vtype": float, "repair": RoundingRepair()}
        algorithm = NSGA2(
            pop_size=population,
            sampling=IntegerRandomSampling(),
            crossover=SBX(prob=1.0, eta=3.0, **repair) if ordered else UX(prob=0.9),
            mutation=PM(prob=1.0, eta=3.0, **repair) if ordered else _Redraw(),
            eliminate_duplicates=True,
        )
        minimize(_Encoded(space), algorithm, ("n_eval", space.runs), seed=seed, verbose=False)

    return search


def at_random(space: Space, seed: int) -> None:
    """Choices drawn blindly."""
    rng = random.Random(seed)
    for _ in range(space.runs):
        rules, demos = ([rng.randrange(most) for _ in range(n)] for n, most in ((RULES, ALTERNATIVES), (DEMOS, 2)))
        space.points.append(space.objectives((*rules, *demos)))


SEARCHES: dict[str, Callable[[Space, int], None]] = {
    "genetic": by_genetic,
    **{
        f"pymoo NSGA-II, {population} members, for {kind}": by_pymoo(population, ordered=kind == "integers")
        for kind in ("integers", "choices")
        for population in POPULATIONS
    },
    "at random": at_random,
}


def reached(search: Callable[[Space, int], None], *, seed: int, evaluations: int) -> float:
    """Hypervolume of the first ``evaluations`` candidates; each seed has a landscape of its own."""
    space = Space(landscape=seed, seed=seed, runs=evaluations)
    search(space, seed)
    return hypervolume(space.points[:evaluations], REFERENCE)


def main() -> int:
    """Measure, print, keep; 1 when the bar is missed."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.hypervolume", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--evaluations", type=int, default=600)
    parser.add_argument("--quick", action="store_true", help="a few seeds")
    given = parser.parse_args()
    size = size_of(parser, given)
    if given.quick:
        given.seeds = 4
    volumes: dict[str, list[float]] = {}
    for name, search in SEARCHES.items():
        began = time.monotonic()
        volumes[name] = [reached(search, seed=seed, evaluations=given.evaluations) for seed in range(given.seeds)]
        say(f"  {name}: {Spread.of(volumes[name])}, {time.monotonic() - began:.0f} s")
    medians = {name: statistics.median(found) for name, found in volumes.items()}
    peer = max((name for name in medians if name.startswith("pymoo")), key=lambda name: medians[name])
    ratio = medians["genetic"] / medians[peer]
    ahead = sum(ours > theirs for ours, theirs in zip(volumes["genetic"], volumes[peer], strict=True))
    rows = [[name, Spread.of(found), f"{medians[name] / medians[peer]:.4f}"] for name, found in volumes.items()]
    text = table(["search", "hypervolume (spread, n)", f"median against {peer}"], rows)
    bars = [
        Bar(
            f"ratio of medians {ratio:.4f}, at least {LEAST_RATIO} ({ahead} of {given.seeds} seeds ahead)",
            ratio >= LEAST_RATIO,
        )
    ]
    data = {
        "evaluations": given.evaluations,
        "peer": peer,
        "ratio": ratio,
        "ahead": ahead,
        "volumes": volumes,
        "spreads": {name: asdict(Spread.of(found)) for name, found in volumes.items()},
    }
    return conclude("hypervolume", text, bars, data, size=size, given=given)


if __name__ == "__main__":
    sys.exit(main())

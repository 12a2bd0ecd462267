"""Portfolio: several algorithms under one budget, each from the best so far; money follows measured progress.

No single optimizer wins: which one gains most differs from task to task, and instructions and demos together gain more
than either alone. So a cheap one opens, its best candidate seeds fresh stages of the others, and by their gain per run
the better half of them stays for twice the money (successive halving over algorithms). One that brought nothing hands
over to the next. What all of them measured is pooled into one front.

An algorithm is a generator, so this one drives others: it passes on what they ask for, counts the runs, keeps the
scores, and ends a stage by raising ``BudgetSpent`` in it.

References:
    Jamieson, Talwalkar, "Non-stochastic Best Arm Identification and Hyperparameter Optimization", 2016,
    arXiv 1502.07943, fig. 3 (successive halving).
    Gomes, Selman, "Algorithm Portfolios", Artificial Intelligence 126, 2001.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

from ratchet.algorithms.bootstrap import bootstrap
from ratchet.algorithms.capo import capo
from ratchet.algorithms.demos import MAX_CHARACTERS, labelled_pool, spread
from ratchet.algorithms.genetic import genetic
from ratchet.algorithms.gepa import gepa
from ratchet.algorithms.miprov2 import miprov2
from ratchet.algorithms.scoreboard import FINALISTS, Scoreboard, race
from ratchet.core.algorithm import (
    Algorithm,
    Evaluate,
    Generate,
    Reply,
    Request,
    Search,
    Start,
    Steps,
    Together,
    Wait,
    tell,
)
from ratchet.core.algorithm import evaluate as evaluated
from ratchet.core.errors import BudgetSpent
from ratchet.core.evaluation import Evaluation, Evaluations
from ratchet.core.features import Advice, TaskFeatures, features_of, parameters
from ratchet.core.objectives import gains
from ratchet.core.pareto import pareto_front
from ratchet.core.problem import Budget, Candidate, Example, Problem, canonical

ARMS: Mapping[str, Search] = {
    "bootstrap": bootstrap,
    "miprov2": miprov2,
    "gepa": gepa,
    "capo": capo,
    "genetic": genetic,
}
"""What a portfolio chooses from; where nothing speaks for another order, in this one."""

OPENING_SHARE = 0.25
"""Share of the budget for the opening: demos need hardly any search."""
LESSONS_SHARE = 0.2
"""Share of the budget, at most, for what helped on tasks like this one."""
LEAST_STAGE = 3.0
"""Runs below which a stage is not worth beginning, in validations: some to propose, some to race, one to know."""
UNTRIED = 1e-9
"""Gain per run of an algorithm that had no stage yet: more than that of one that brought nothing."""
STALLED = 2
"""Stages without a gain after which an algorithm is given no more."""
SMALL_LM = 4.0
"""Billions of parameters up to which an LM learns more from demos than from instructions."""

NOTHING_KNOWN = Advice()


def portfolio(
    problem: Problem, *, rng: random.Random, advice: Advice = NOTHING_KNOWN, arms: Mapping[str, Search] = ARMS
) -> Algorithm:
    """The best of what several algorithms found, one building on the other; the seed alone when nothing beat it.

    Args:
        problem: What to improve.
        rng: Source of randomness.
        advice: What is known beforehand.
        arms: The algorithms, by name.
    """
    desk = Desk(problem)
    with suppress(BudgetSpent):
        yield from desk.carry_out(evaluated(problem.seed, problem.validation), runs=desk.left)
        opening, others, why = chosen(problem, desk, advice, list(arms))
        for line in why:
            yield from tell(line)
        if advice.candidates:
            price = len(advice.candidates) * len(problem.validation)
            yield from desk.stage("lessons", tried(advice.candidates), runs=min(price, int(LESSONS_SHARE * desk.left)))
        if opening:
            runs = int(max(OPENING_SHARE * desk.left, 1.5 * len(problem.validation)))
            runs = min(runs, desk.left // 2) if others else desk.left
            yield from desk.stage(opening, arms[opening], runs=runs, rng=rng)
        yield from halving(desk, {name: arms[name] for name in others}, rng=rng)
    return desk.finalists()


def tried(candidates: Sequence[Candidate]) -> Search:
    """A search that only races ``candidates``."""

    def search(problem: Problem, *, rng: random.Random) -> Algorithm:
        board = Scoreboard(problem)
        with suppress(BudgetSpent):
            yield from race(board, candidates, spread(problem.validation, rng=rng))
        yield from board.finish()
        return board.finalists()

    return search


# What to begin with


def chosen(
    problem: Problem, desk: Desk, advice: Advice, names: Sequence[str]
) -> tuple[str | None, list[str], list[str]]:
    """The opening, the order of the others, and why, in sentences."""
    known = desk.known(problem.seed)
    features = features_of(problem, baseline=known.mean if known else None)
    opening, why = _opening(problem, desk, names)
    others = [name for name in names if name != "bootstrap"]
    others, order_why = _order(features, others, advice, thrift=thrifty(problem))
    if not others:
        return opening, [], [*advice.why, why]
    return opening, others, [*advice.why, why, f"portfolio: then {', '.join(others)}, since {order_why}"]


def _opening(problem: Problem, desk: Desk, names: Sequence[str]) -> tuple[str | None, str]:
    if "bootstrap" not in names:
        return None, "portfolio: no demo search among the algorithms, so that none opens"
    if not any(spec.takes_demos for spec in problem.predictors):
        return None, "portfolio: demos have no place in any of its prompts, so that bootstrap does not open"
    demos = [demo for pool in labelled_pool(problem).values() for demo in pool]
    known = desk.known(problem.seed)
    if not problem.train or (not demos and (known is None or known.mean == 0.0)):
        return None, "portfolio: there is nothing to make demos of, so that bootstrap does not open"
    lengths = sorted(len(canonical(demo)) for demo in demos)
    if lengths and 2 * lengths[len(lengths) // 2] > MAX_CHARACTERS:
        return None, f"portfolio: a demo takes {lengths[len(lengths) // 2]} characters, so that bootstrap does not open"
    return "bootstrap", "portfolio: bootstrap opens, since good demos need hardly any search"


def _order(features: TaskFeatures, names: Sequence[str], advice: Advice, *, thrift: bool) -> tuple[list[str], str]:
    """``names`` with the most promising first."""
    known = [name for name in advice.order if name in names]
    if known:
        return [*known, *(name for name in names if name not in known)], "so it went best on tasks like this one"
    billions = parameters(features.lm)
    if thrift and "genetic" in names:
        first, why = "genetic", "quality is not all that counts, and it keeps a front"
    elif billions is not None and billions <= SMALL_LM:
        first, why = "miprov2", f"an LM of {billions:g} billion parameters gains by instructions and demos together"
    elif features.output == "text":
        first, why = "gepa", "feedback on a long answer says more than its score"
    elif features.predictors > 1:
        first, why = "gepa", f"traces tell which of {features.predictors} predictors went wrong"
    elif features.output == "choice":
        first, why = "miprov2", "the answer is one of a few, where instructions and demos together gain most"
    else:
        first, why = "gepa", "a rewrite learns from what went wrong"
    return sorted(names, key=lambda name: name != first), why


# Where the money goes


def halving(desk: Desk, arms: Mapping[str, Search], *, rng: random.Random) -> Steps[None]:
    """Half of the money for all, half of the rest for the better half of them, and so on; the last takes what is left.

    A stage gets ``LEAST_STAGE`` validations or more, so that a small budget tries fewer algorithms. When the last one
    stalls, whoever had gained most per run before takes over.
    """
    least = max(1, int(LEAST_STAGE * len(set(desk.problem.validation))))
    racing, rates = list(arms), dict.fromkeys(arms, UNTRIED)
    while racing and desk.left >= min(least, len(desk.problem.validation)) and not all(map(desk.stalled, arms)):
        money = desk.left // 2 if desk.left // 2 >= least else desk.left
        entering = racing[: max(1, money // least)]
        for name in entering:
            if desk.solved:
                return
            rates[name] = yield from desk.stage(name, arms[name], runs=money // len(entering), rng=rng)
        ranked = sorted(arms, key=lambda name: (-rates[name], desk.stalls.get(name, 0)))
        racing = ranked[: max(1, len(entering) // 2)]


@dataclass(slots=True)
class Desk:
    """Where the parts of a portfolio ask for runs: it passes requests on, counts what is new, and keeps the scores.

    Attributes:
        problem: What is improved.
        used: New runs and texts asked for so far.
        best: The candidate with the greatest weighted gain on all of validation.
        candidates: All that were run, by key, in the order in which they were asked for.
        stalls: How many stages of an algorithm brought nothing since its last gain.
    """

    problem: Problem
    used: int = 0
    best: Candidate = field(init=False)
    candidates: dict[str, Candidate] = field(default_factory=dict)
    stalls: dict[str, int] = field(default_factory=dict)
    _asked: set[tuple[str, str, int]] = field(default_factory=set)
    _evaluations: dict[str, dict[Example, Evaluation]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.best = self.problem.seed

    @property
    def left(self) -> int:
        """Runs the budget still pays for."""
        return self.problem.budget.runs - self.used

    def known(self, candidate: Candidate) -> Evaluations | None:
        """The rows on all of validation; None when it was not run on all of it."""
        rows = self._evaluations.get(candidate.key, {})
        if not self.problem.validation or not all(example in rows for example in self.problem.validation):
            return None
        return Evaluations(tuple(rows[example] for example in self.problem.validation))

    def gains(self, candidate: Candidate) -> tuple[float, ...] | None:
        """The gain over the seed in each objective, on all of validation; None where that was not measured."""
        before, after = self.known(self.problem.seed), self.known(candidate)
        if before is None or after is None:
            return None
        metrics = [objective.metric for objective in self.problem.objectives]
        return gains(after, before, metrics, success_at=self.problem.success_at)

    def worth(self, candidate: Candidate) -> float | None:
        """The weighted gain; None where it was not measured."""
        each = self.gains(candidate)
        if each is None:
            return None
        return sum(objective.weight * gain for objective, gain in zip(self.problem.objectives, each, strict=True))

    @property
    def solved(self) -> bool:
        """Whether the best is perfect on all of validation, and no more than that counts."""
        known = self.known(self.best)
        if known is None or thrifty(self.problem):
            return False
        return min(known.scores) >= max(1.0, self.problem.success_at)

    def stalled(self, name: str) -> bool:
        """Whether an algorithm brought nothing for ``STALLED`` stages."""
        return self.stalls.get(name, 0) >= STALLED

    def stage(self, name: str, search: Search, *, runs: int, rng: random.Random | None = None) -> Steps[float]:
        """Let ``search`` search from the best so far, for ``runs`` new runs at most; its gain per run.

        Raises:
            BudgetSpent: the driver's budget has ended, and that of all stages with it.
        """
        before, used = self.worth(self.best) or 0.0, self.used
        rows = self._evaluations.get(self.best.key, {})
        known = sum(example in rows for example in set(self.problem.validation))
        # What is known of the seed is paid for already, and algorithms count it.
        problem = replace(self.problem, seed=self.best, budget=Budget(runs=runs + known))
        own = random.Random(f"{name}/{used}/{rng.random() if rng else 0}")
        found = yield from self.carry_out(search(problem, rng=own), runs=runs)
        for candidate in list(found or ())[:1]:
            rows = self._evaluations.get(candidate.key, {})
            missing = [each for each in problem.validation if each not in rows]
            if missing and len(missing) <= self.left:  # it was run on a part of validation and looks better there
                yield from self.carry_out(evaluated(candidate, problem.validation), runs=self.left)
        after, spent = self.worth(self.best) or 0.0, self.used - used
        self.stalls[name] = 0 if after > before else self.stalls.get(name, 0) + 1
        best = self.known(self.best)
        mean = "" if best is None else f" (validation mean {best.mean:.3f})"
        said = f"best gain {before:+.3f} to {after:+.3f}{mean}" if after > before else "which brought nothing"
        if spent:
            yield from tell(
                f"portfolio: {name} had {spent} runs, {said}", algorithm=name, runs=spent, gain=after - before
            )
        return (after - before) / spent if spent else 0.0

    def carry_out(self, steps: Steps[Any], *, runs: int) -> Steps[Any]:
        """What ``steps`` give back, or None when they let the end of ``runs`` pass.

        What they leave under way is waited for: it is paid for, and its scores count.

        Raises:
            BudgetSpent: the driver's budget has ended.
        """
        limit = self.used + min(runs, self.left)
        under_way: dict[int, Evaluate | Generate | Together] = {}
        reply: Reply = None
        result: Any = None
        ended: BudgetSpent | None = None
        spent: BudgetSpent | None = None
        while True:
            try:
                request: Request = steps.throw(spent) if spent is not None else steps.send(reply)
            except StopIteration as end:
                result = end.value
                break
            except BudgetSpent:
                break
            spent = None
            price = self._price(request)
            if price and self.used + price > limit:
                spent = BudgetSpent(used=self.used, limit=limit)
                continue
            try:
                reply = yield request
            except BudgetSpent as end_of_all:
                ended = spent = end_of_all
                under_way.pop(end_of_all.values.get("ticket"), None)  # type: ignore[call-overload]
                continue
            self._pay(request, price)
            match request:
                case Start(work):
                    under_way[reply] = work
                case Wait():
                    self._learn(under_way.pop(reply[0]), reply[1])
                case Evaluate() | Together():
                    self._learn(request, reply)
        for ticket in sorted(under_way):
            try:
                _, late = yield Wait((ticket,))
            except BudgetSpent as end_of_all:
                ended = end_of_all
            else:
                self._learn(under_way[ticket], late)
        if ended is not None:
            raise ended
        return result

    def _price(self, request: Request) -> int:
        """The new runs and texts that ``request`` asks for."""
        return sum(
            part.n if isinstance(part, Generate) else len(self._rows(part) - self._asked) for part in _parts(request)
        )

    def _pay(self, request: Request, price: int) -> None:
        self.used += price
        for part in _parts(request):
            if isinstance(part, Evaluate):
                self._asked |= self._rows(part)
                self.candidates.setdefault(part.candidate.key, part.candidate)

    @staticmethod
    def _rows(part: Evaluate) -> set[tuple[str, str, int]]:
        return {
            (part.candidate.key, example.key, repeat) for example in part.examples for repeat in range(part.repeats)
        }

    def _learn(self, work: Evaluate | Generate | Together, reply: Reply) -> None:
        """Keep the scores in ``reply``."""
        replies = reply if isinstance(work, Together) else [reply]
        for part, rows in zip(_parts(work), replies, strict=True):
            if isinstance(part, Evaluate) and isinstance(rows, Evaluations):
                known = self._evaluations.setdefault(part.candidate.key, {})
                known |= {row.example: row for row in rows if row.repeat == 0}
                worth, best = self.worth(part.candidate), self.worth(self.best)
                if worth is not None and (best is None or worth > best):
                    self.best = part.candidate

    def finalists(self) -> list[Candidate]:
        """Who beats the seed on all of validation, best first: the front of gains and brevity, then the others."""
        worths = {key: worth for key, each in self.candidates.items() if (worth := self.worth(each)) is not None}
        better = [self.candidates[key] for key, worth in worths.items() if worth > 0]
        front = {better[at].key for at in pareto_front([(*(self.gains(each) or ()), -_size(each)) for each in better])}
        better.sort(key=lambda each: (each.key not in front, -worths[each.key], _size(each), each.key))
        return better[:FINALISTS] or [self.problem.seed]


def thrifty(problem: Problem) -> bool:
    """Whether what a run costs or how long it takes counts too."""
    return any(objective.metric in ("cost", "latency") for objective in problem.objectives)


def _size(candidate: Candidate) -> int:
    return len(canonical(candidate.state()))


def _parts(request: Request) -> tuple[Evaluate | Generate, ...]:
    match request:
        case Evaluate() | Generate():
            return (request,)
        case Together(requests):
            return requests
        case Start(work):
            return _parts(work)
    return ()

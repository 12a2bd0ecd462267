"""HbBoPs: a deep-kernel Gaussian process says which prompts are worth a try, Hyperband on how many examples.

Instructions are proposed and demo sets drawn as MIPROv2 does; the search is for the best of their combinations. Each
bracket of Hyperband begins with the combinations of the highest expected improvement, on few examples, and carries the
better half to twice as many until the last has met all of validation; later brackets begin with fewer on more examples.
The model sees the texts through embeddings and so knows of combinations that were never run.

We depart from the paper where it leaves something on the table. The model is fitted to all that is known, row by row,
where the paper fits the means of one fidelity; rows differ in difficulty, and it knows how many each mean is of. Who is
carried on is decided by the model's mean and not by the raw one. A bracket is chosen at once, each of its combinations
as if those before it had scored what is expected of them.

Needs PyTorch: ``pip install 'dspy-ratchet[torch]'``.

References:
    Schneider et al., "Hyperband-based Bayesian Optimization for Black-box Prompt Selection", 2025, arXiv 2412.07820.
    Li et al., "Hyperband: A Novel Bandit-Based Approach to Hyperparameter Optimization", JMLR 18, 2018, Algorithm 1.
    Jones, Schonlau, Welch, "Efficient Global Optimization of Expensive Black-Box Functions", 1998, eq. (15).
    Ginsbourger, Le Riche, Carraro, "Kriging Is Well-Suited to Parallelize Optimization", 2010 (kriging believer).
"""

from __future__ import annotations

import math
import random
import re
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from importlib import import_module
from importlib.util import find_spec
from itertools import islice, pairwise

import numpy as np
from numpy.typing import NDArray

from ratchet.algorithms import deep_kernel
from ratchet.algorithms.demos import MAX_DEMOS, demo_sets, spread
from ratchet.algorithms.effects import ROW_SHARE, told
from ratchet.algorithms.miprov2 import Plan, propose, summarise
from ratchet.algorithms.scoreboard import (
    BOOTSTRAP_SHARE,
    FIRST_ROWS,
    LEADERS,
    LEAVE,
    Contest,
    Scoreboard,
    fare,
    gather,
    validate_leaders,
)
from ratchet.algorithms.space import Combination, Space
from ratchet.core.algorithm import Algorithm, Steps
from ratchet.core.errors import BadRequest, BudgetSpent
from ratchet.core.problem import Candidate, Example, Problem, canonical

Array = NDArray[np.float64]
Embedder = Callable[[Sequence[str]], Array]
"""Texts in, one vector each out; shape (n_texts, any). The same text must always give the same vector."""

WIDTH = 128
"""Length of the vectors of ``hashed_ngrams``."""
MODELLED = 160
"""Combinations with scores that a model is fitted to at most: those run on most examples."""

_WORD = re.compile(r"\w+|[^\w\s]")


def surrogate(
    problem: Problem,
    *,
    rng: random.Random,
    max_demos: int = MAX_DEMOS,
    embed: Embedder | None = None,
    device: str = "cpu",
) -> Algorithm:
    """The best combination of proposed instructions and demo sets, as a Gaussian process over their texts finds it.

    Args:
        problem: What to improve.
        rng: Source of randomness.
        max_demos: The most demos a predictor gets.
        embed: How texts become vectors; ``hashed_ngrams`` when left out.
        device: Where the model is fitted, as PyTorch names it.

    Raises:
        BadRequest: PyTorch is not there.
    """
    require_torch()
    return _surrogate(problem, rng=rng, max_demos=max_demos, embed=embed or hashed_ngrams, device=device)


def require_torch() -> None:
    """Nothing, where PyTorch is installed.

    Raises:
        BadRequest: it is not.
    """
    if find_spec("torch") is None:
        raise BadRequest("the algorithm `surrogate` needs PyTorch; say: pip install 'dspy-ratchet[torch]'")


def device_for(*, gpu_enabled: bool) -> str:
    """Where to fit models, as PyTorch names it: on a GPU where it finds one and may use it."""
    require_torch()
    torch = import_module("torch")
    return "cuda" if gpu_enabled and torch.cuda.is_available() else "cpu"


def _surrogate(problem: Problem, *, rng: random.Random, max_demos: int, embed: Embedder, device: str) -> Algorithm:
    board = Scoreboard(problem)
    with suppress(BudgetSpent):
        runs = int(BOOTSTRAP_SHARE * problem.budget.runs)
        pools = yield from gather(board, rng=rng, runs=runs, max_demos=max_demos)
        plan = Plan.of(problem, runs=board.runs_left)
        sets = demo_sets(problem, pools, rng=rng, count=plan.sets, max_demos=max_demos)
        summary = yield from summarise(board, rng=rng)
        instructions = yield from propose(board, sets, summary, rng=rng, count=plan.proposals)
        space = Space.of(problem.seed, instructions, sets, maker="surrogate")
        model = Model(board=board, space=space, embed=embed, fit=deep_kernel.Fit(device=device), rng=rng)
        yield from hyperband(board, model, spread(problem.validation, rng=rng))
    yield from board.finish()
    return board.finalists()


def hashed_ngrams(texts: Sequence[str]) -> Array:
    """Words and pairs of words, counted in ``WIDTH`` places that a hash says; each vector has length 1.

    >>> near, far, other = hashed_ngrams(["Answer in one word.", "Answer in one short word.", "Reason step by step."])
    >>> bool(near @ far > 0.6 > near @ other)
    True
    """
    vectors = np.zeros((len(texts), WIDTH))
    for vector, text in zip(vectors, texts, strict=True):
        words = _WORD.findall(text.lower())
        for gram in (*words, *(f"{one} {two}" for one, two in pairwise(words))):
            place = zlib.crc32(gram.encode("utf-8", "surrogatepass"))
            vector[place % WIDTH] += 1.0 if place & 1 << 20 else -1.0
        vector /= max(float(np.linalg.norm(vector)), 1e-9)
    return vectors


# Hyperband


def brackets(n_examples: int, *, first: int = FIRST_ROWS) -> Iterator[tuple[int, list[int]]]:
    """The brackets of Hyperband with eta = 2, again and again: how many begin, and examples per rung.

    >>> from itertools import islice
    >>> list(islice(brackets(32, first=8), 4))
    [(4, [8, 16, 32]), (3, [16, 32]), (3, [32]), (4, [8, 16, 32])]
    """
    most = max(0, int(math.log2(n_examples / first))) if n_examples > first else 0
    while True:
        for s in range(most, -1, -1):
            yield math.ceil((most + 1) / (s + 1) * 2**s), [math.ceil(n_examples / 2**rung) for rung in range(s, -1, -1)]


def hyperband(board: Scoreboard, model: Model, order: Sequence[Example]) -> Steps[None]:
    """Bracket after bracket while the budget pays for them; then validate the leaders in full."""
    contest: Contest | None = None
    for begin, rungs in brackets(len(order)):
        spare = board.runs_left - board.cost([], order)
        sizes = rungs[: max((n for n in range(1, len(rungs) + 1) if fare(2, rungs[:n]) <= spare), default=1)]
        count = max((n for n in range(1, begin + 1) if fare(n, sizes) <= spare), default=0)
        entrants = model.choose(count, size=sizes[0])
        if not entrants:
            break
        contest = contest or Contest(board, most=max(2, board.runs_left // sizes[0]))
        for size, following in pairwise([*sizes, 0]):
            yield from contest.run(dict.fromkeys(entrants, order[:size]), leave=LEAVE if following else 0.0)
            racing = [each for each in entrants if each not in board.stopped]
            if following:
                entrants = model.ranked(racing)[: max(1, len(entrants) // 2)]
    yield from board.finish()

    def leaders() -> list[Candidate]:
        better = (model.space.candidate(each) for each, gain in model.gains().items() if gain > 0)
        return list(islice((each for each in better if each not in board.stopped), LEADERS))

    yield from validate_leaders(board, order, leaders=leaders)


# The model


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """What is believed at one moment.

    Attributes:
        pool: The combinations in view.
        mean: Of their scores, up to a constant. Shape (n,).
        covariance: Shape (n, n).
        noise: Variance of one score about its mean, the example's difficulty aside.
    """

    pool: list[Combination]
    mean: Array
    covariance: Array
    noise: float


@dataclass(slots=True, kw_only=True)
class Model:
    """What is believed of the combinations, from the scores on the board and the texts of the options.

    Attributes:
        board: Where scores are kept.
        space: The combinations.
        embed: How texts become vectors.
        fit: How the Gaussian process is fitted.
        rng: Draws the combinations in view, where there are too many.
    """

    board: Scoreboard
    space: Space
    embed: Embedder
    fit: deep_kernel.Fit
    rng: random.Random
    _vectors: list[Array] = field(init=False)
    _some: list[Combination] = field(init=False)
    _learned: deep_kernel.Learned = ()
    _seen: int = 0
    _view: View | None = None

    def __post_init__(self) -> None:
        space = self.space
        texts = [
            *(list(options) for options in space.instructions.values()),
            *([canonical([dict(demo) for demo in demos]) for demos in options] for options in space.demos.values()),
        ]
        distinct = list(dict.fromkeys(text for options in texts for text in options))
        vectors = dict(zip(distinct, np.asarray(self.embed(distinct), dtype=np.float64), strict=True))
        self._vectors = [np.array([vectors[text] for text in options]) for options in texts]
        self._some = space.some(self.rng)

    def choose(self, count: int, *, size: int) -> list[Candidate]:
        """Up to ``count`` combinations to run on ``size`` examples: at first random ones, then those expected to
        improve most."""
        view = self.view()
        if view is None:
            return [self.space.candidate(each) for each in self.space.draw(count, rng=self.rng)]
        covariance = view.covariance.copy()
        eligible = np.array([self._is_open(each, size) for each in view.pool])
        best = view.mean[[bool(self._scores(each)) for each in view.pool]].max()
        chosen: list[Candidate] = []
        while len(chosen) < count and eligible.any():
            improvement = expected_improvement(view.mean - best, np.sqrt(covariance.diagonal().clip(0)))
            at = int(np.where(eligible, np.round(improvement, 9), -1.0).argmax())
            eligible[at] = False
            chosen.append(self.space.candidate(view.pool[at]))
            column = covariance[:, at].copy()
            covariance -= np.outer(column, column) / (column[at] + view.noise / size)
        return chosen

    def _scores(self, combination: Combination) -> Mapping[Example, float]:
        """What a combination scored so far."""
        made = self.space.seed if combination == self.space.unchanged else self.space.made.get(combination)
        return self.board.scores(made) if made is not None else {}

    def _is_open(self, combination: Combination, size: int) -> bool:
        """Whether it can be run on ``size`` examples, and has not been."""
        stopped = self.space.made.get(combination) in self.board.stopped
        return combination != self.space.unchanged and not stopped and len(self._scores(combination)) < size

    def ranked(self, candidates: Sequence[Candidate]) -> list[Candidate]:
        """``candidates``, highest expected score first."""
        gains = {self.space.made[each]: gain for each, gain in self.gains().items() if each in self.space.made}
        return sorted(candidates, key=lambda each: (-gains.get(each, 0.0), each.key))

    def gains(self) -> dict[Combination, float]:
        """Expected score minus the seed's, of all combinations in view, the highest first."""
        view = self.view()
        if view is None:
            return {}
        gain = view.mean - view.mean[view.pool.index(self.space.unchanged)]
        return dict(sorted(zip(view.pool, map(float, gain), strict=True), key=lambda pair: (-pair[1], pair[0])))

    def view(self) -> View | None:
        """What is believed now; None while there are no scores."""
        board, space = self.board, self.space
        found = {each: scores for each in space.made if (scores := self._scores(each))}
        found[space.unchanged] = self._scores(space.unchanged)
        seen = sum(map(len, found.values()))
        if seen == self._seen:
            return self._view
        most = sorted(found, key=lambda each: (each != space.unchanged, -len(found[each]), each))[:MODELLED]
        near = sorted(most, key=lambda each: (-board.gain(space.candidate(each)), each))[:LEADERS]
        pool = list(dict.fromkeys([*most, *space.neighbours(near), *self._some]))
        alone = np.stack([np.eye(len(most))] * 3)  # its kernel says how alike combinations are
        precision, h, variance, _ = told([found[each] for each in most], alone, shares=(ROW_SHARE, 0.0, 0.0))
        options, parts = np.array(pool), len(space.instructions)
        read = [vectors[options[:, at]] for at, vectors in enumerate(self._vectors)]
        mean, covariance, self._learned = deep_kernel.posterior(
            np.concatenate(read[:parts], axis=1),
            np.concatenate(read[parts:], axis=1),
            known=range(len(most)),
            precision=precision,
            told=h,
            variance=variance,
            fit=self.fit,
            learned=self._learned,
        )
        # Rounded: an order that hangs on the last bit may be another one on another machine.
        rounded = np.round(mean, 7)
        self._seen = seen
        self._view = View(pool=pool, mean=rounded, covariance=covariance, noise=(1 - ROW_SHARE) * variance)
        return self._view


def expected_improvement(gain: Array, sd: Array) -> Array:
    """How much better than the best it is expected to be where it is better: sd (z Phi(z) + phi(z)), z = gain / sd.

    >>> [round(float(each), 3) for each in expected_improvement(np.array([0.0, 1.0, -1.0]), np.array([1.0, 1e-9, 0.5]))]
    [0.399, 1.0, 0.004]
    """
    sd = np.maximum(sd, 1e-9)
    z = gain / sd
    below = np.array([0.5 * math.erfc(-each / math.sqrt(2)) for each in z])
    density = np.exp(-(z**2) / 2) / math.sqrt(2 * math.pi)
    return np.asarray(sd * (z * below + density))

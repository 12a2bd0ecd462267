"""MIPROv2: propose instructions and demo sets, then let a Bayesian search find the combination.

Three steps, as in the paper: bootstrap demos (sec. 4.1), propose instructions grounded in the data, the program and the
demos (sec. 4.2), and search the combinations with TPE on minibatches, validating the best averages in full (sec. 4.3).

References:
    Opsahl-Ong et al., "Optimizing Instructions and Demonstrations for Multi-Stage Language Model Programs", 2024,
    arXiv 2406.11695.
    Bergstra et al., "Algorithms for Hyper-Parameter Optimization", NeurIPS 2011 (TPE).
    Ginsbourger et al., "Kriging Is Well-Suited to Parallelize Optimization", 2010 (constant liar).
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

from ratchet.algorithms.demos import DemoSet, demo_sets, even, labelled_demo, spread
from ratchet.algorithms.instruction import accepted, job_prompt, read_instruction, shortened
from ratchet.algorithms.scoreboard import (
    BOOTSTRAP_SHARE,
    Scoreboard,
    gather,
    minibatch_size,
    race,
    validate_leaders,
)
from ratchet.core.algorithm import Algorithm, Steps
from ratchet.core.errors import BudgetSpent
from ratchet.core.problem import Candidate, Example, Fields, PredictorSpec, Problem, canonical

TIPS = (
    "Say what each possible answer means and how to tell it from the others.",
    "State the task in one plain sentence, then the form of the answer.",
    "Say for each field of the answer how to find it in the input, and what to do when it is not there.",
    "Name the mistakes that are easy to make here and how to avoid them.",
    "Give a short procedure of numbered steps that ends in the answer.",
    "Be brief: leave out every word that does not help.",
)
"""What a proposal should do, the most useful first."""

SHOWN = 8
"""Examples of right answers shown to the reflection LM."""

FULL_EVERY = 10
AT_ONCE = 4

Choice = tuple[str, str]
"""What is chosen: ("instructions" or "demos", predictor)."""


def miprov2(problem: Problem, *, rng: random.Random, max_demos: int = 8) -> Algorithm:
    """The best combination of proposed instructions and demo sets, chosen per predictor.

    Args:
        problem: What to improve.
        rng: Source of randomness.
        max_demos: The most demos a predictor gets.
    """
    board = Scoreboard(problem)
    with suppress(BudgetSpent):
        runs = int(BOOTSTRAP_SHARE * problem.budget.runs)
        pools = yield from gather(board, rng=rng, runs=runs, max_demos=max_demos)
        plan = Plan.of(problem, runs=board.runs_left)
        sets = demo_sets(problem, pools, rng=rng, count=plan.sets, max_demos=max_demos)
        instructions = yield from propose(board, sets, rng=rng, count=plan.proposals)
        order = spread(problem.validation, rng=rng)
        yield from search(board, Space.of(problem.seed, instructions, sets), plan, order, rng=rng)
        yield from race(board, board.better()[:8], order)
    return board.finalists()


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How the budget is divided; the numbers of options follow from the trials that fit.

    Attributes:
        proposals: Instructions to propose per predictor.
        sets: Demo sets to draw.
        minibatch: Examples per trial.
        trials: The most trials.
        closing: Runs kept for validating the best in full.
    """

    proposals: int
    sets: int
    minibatch: int
    trials: int
    closing: int

    @classmethod
    def of(cls, problem: Problem, *, runs: int) -> Plan:
        """The plan for ``problem`` when ``runs`` are left."""
        n = len(set(problem.validation))
        closing = min(runs // 4, 3 * n)
        for_the_seed = min(n, runs // 4)
        trials = max(1, (runs - closing - for_the_seed) // minibatch_size(n))
        return cls(
            proposals=max(2, min(6, trials // (2 * len(problem.predictors)))),
            sets=max(2, min(8, trials // 2)),
            minibatch=minibatch_size(n),
            trials=2 * trials,
            closing=closing,
        )


# Step 2: propose instructions


def propose(
    board: Scoreboard, sets: Sequence[DemoSet], *, rng: random.Random, count: int
) -> Steps[dict[str, list[str]]]:
    """Each predictor's own instructions and up to ``count`` proposals, each with another tip and other demos."""
    problem = board.problem
    if not problem.train:
        return accepted(problem, [])
    texts = yield from board.ask([summary_prompt(even(problem.train, size=5, rng=rng))])
    summary = (read_instruction(texts[0]) if texts else None) or ""
    prompts = []
    for spec in problem.predictors:
        for number, tip in enumerate(TIPS[:count]):
            shown = sets[number % len(sets)].get(spec.name, ()) if sets else _answers(problem, spec, rng)
            prompts.append((spec.name, proposal_prompt(problem, spec, summary=summary, demos=shown, tip=tip)))
    texts = yield from board.ask([prompt for _, prompt in prompts])
    return accepted(problem, [(name, text) for (name, _), text in zip(prompts, texts, strict=False)])


def _answers(problem: Problem, spec: PredictorSpec, rng: random.Random) -> list[Fields]:
    """Right answers of training examples, where the labels hold them."""
    return [demo for each in even(problem.train, size=SHOWN, rng=rng) if (demo := labelled_demo(spec, each))]


def summary_prompt(examples: Sequence[Example]) -> str:
    """What the reflection LM is asked for a summary of the data."""
    return "\n".join(
        (
            "Here are examples of a data set:",
            *(shortened(example.fields) for example in examples),
            "In at most three sentences: what is the task, what do the inputs have in common, what do right answers "
            "look like?",
        )
    )


def proposal_prompt(problem: Problem, spec: PredictorSpec, *, summary: str, demos: Sequence[Fields], tip: str) -> str:
    """What the reflection LM is asked for new instructions of one predictor."""
    others = [each.name for each in problem.predictors if each.name != spec.name]
    return job_prompt(
        spec,
        now=problem.seed.predictors[spec.name].instructions,
        examples=demos[:SHOWN],
        wish=tip,
        about=(
            f"The program: {problem.description[:600]}" if problem.description else "",
            f"The data: {summary[:600]}" if summary else "",
            f"Other steps of the program: {', '.join(others)}." if others else "",
        ),
    )


# Step 3: search the combinations


@dataclass(frozen=True, slots=True)
class Space:
    """The options of each choice; option 0 leaves the seed as it is."""

    seed: Candidate
    instructions: Mapping[str, Sequence[str]]
    demos: Mapping[str, Sequence[Sequence[Fields]]]

    @classmethod
    def of(cls, seed: Candidate, instructions: Mapping[str, Sequence[str]], sets: Sequence[DemoSet]) -> Space:
        """The space of ``instructions`` and the different demos in ``sets``."""
        demos = {}
        for name, state in seed.predictors.items():
            options = [state.demos, *(tuple(demos[name]) for demos in sets if demos.get(name))]
            demos[name] = list({canonical(option): option for option in options}.values())
        return cls(seed, instructions, demos)

    @property
    def sizes(self) -> dict[Choice, int]:
        """How many options each choice has."""
        return {
            **{("instructions", name): len(options) for name, options in self.instructions.items()},
            **{("demos", name): len(options) for name, options in self.demos.items()},
        }

    def candidate(self, chosen: Mapping[Choice, int]) -> Candidate:
        """The seed with the chosen options."""
        changed = {
            name: replace(
                state,
                instructions=self.instructions[name][chosen["instructions", name]],
                demos=tuple(self.demos[name][chosen["demos", name]]),
            )
            for name, state in self.seed.predictors.items()
        }
        said = ", ".join(f"{what} {index} of {name}" for (what, name), index in chosen.items() if index)
        child = self.seed.with_predictors(changed, origin=f"miprov2: {said}")
        return self.seed if child == self.seed else child

    def cover(self, rng: random.Random) -> list[dict[Choice, int]]:
        """The fewest combinations in which every option occurs, paired at random."""
        decks = {choice: rng.sample(range(size), size) for choice, size in self.sizes.items()}
        longest = max(self.sizes.values())
        return [{choice: deck[turn % len(deck)] for choice, deck in decks.items()} for turn in range(longest)]


def search(board: Scoreboard, space: Space, plan: Plan, order: Sequence[Example], *, rng: random.Random) -> Steps[None]:
    """Try combinations on minibatches, several at once on the same one, and validate the leader now and then."""
    if max(space.sizes.values()) == 1:
        return
    tpe = Tpe(space.sizes, first=space.cover(rng), seed=rng.randrange(2**31))
    tried = 0
    for batch in islice(minibatches(order, plan.minibatch), plan.trials // AT_ONCE + 1):
        trials = tpe.ask(AT_ONCE)
        while trials and board.cost([space.candidate(each.chosen) for each in trials], batch) > (
            board.runs_left - plan.closing
        ):
            trials.pop()
        if not trials:
            return
        yield from board.measure([space.candidate(each.chosen) for each in trials], batch)
        for each in trials:
            tpe.tell(each, board.gain(space.candidate(each.chosen)))
        tried += len(trials)
        if tried >= FULL_EVERY and board.runs_left >= plan.closing + len(order):
            tried = 0
            yield from validate_leaders(board, order, most=1)


def minibatches(order: Sequence[Example], size: int) -> Iterator[tuple[Example, ...]]:
    """Stretches of ``order``, round and round without end."""
    start = 0
    while True:
        yield tuple(order[(start + offset) % len(order)] for offset in range(size))
        start += size


@dataclass(frozen=True, slots=True)
class Trial:
    """A combination that TPE asked for, and TPE's own name for it."""

    handle: Any
    chosen: Mapping[Choice, int]


class Tpe:
    """Tree-structured Parzen estimator over independent choices, higher is better; it starts knowing the seed."""

    def __init__(self, sizes: Mapping[Choice, int], *, first: Sequence[Mapping[Choice, int]], seed: int) -> None:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._names = {choice: " ".join(choice) for choice in sizes}
        self._distributions = {
            self._names[choice]: optuna.distributions.CategoricalDistribution(range(size))
            for choice, size in sizes.items()
        }
        sampler = optuna.samplers.TPESampler(
            seed=seed, multivariate=True, constant_liar=True, n_startup_trials=len(first)
        )
        self._study = optuna.create_study(direction="maximize", sampler=sampler)
        unchanged = dict.fromkeys(self._distributions, 0)
        self._study.add_trial(optuna.trial.create_trial(params=unchanged, distributions=self._distributions, value=0.0))
        for chosen in first:
            if any(chosen.values()):
                self._study.enqueue_trial({self._names[choice]: index for choice, index in chosen.items()})

    def ask(self, n: int) -> list[Trial]:
        """Up to ``n`` different combinations to try side by side."""
        import optuna

        asked: dict[tuple[int, ...], Trial] = {}
        for _ in range(3 * n):
            handle = self._study.ask(self._distributions)
            chosen = {choice: handle.params[name] for choice, name in self._names.items()}
            if asked.setdefault(tuple(chosen.values()), Trial(handle, chosen)).handle is not handle:
                self._study.tell(handle, state=optuna.trial.TrialState.FAIL)
            if len(asked) == n:
                break
        return list(asked.values())

    def tell(self, trial: Trial, value: float) -> None:
        """What came of a trial."""
        self._study.tell(trial.handle, value)

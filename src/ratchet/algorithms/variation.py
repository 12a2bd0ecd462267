"""How children are made of candidates: instructions crossed and mutated by an LM, demo sets crossed demo by demo.

References:
    Guo et al., "Connecting Large Language Models with Evolutionary Algorithms Yields Powerful Prompt Optimizers", 2023,
    arXiv 2309.08532 (crossover and mutation by an LM; the differential step).
    Thierens, "An adaptive pursuit strategy for allocating operator probabilities", GECCO 2005 (probability matching).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeAlias

from ratchet.algorithms.demos import DemoSet, Pools, demo_sets, even, even_demos
from ratchet.algorithms.instruction import is_usable, job_prompt, read_instruction
from ratchet.core.algorithm import Steps, generate
from ratchet.core.problem import Candidate, Fields, PredictorSpec, Problem, canonical

FOUNDERS = ("rewrite", "draw demos")
"""The operators that need no second parent: the first children are made by them."""
EXAMPLES = 6
"""Training examples shown with a request for new instructions."""
LONGEST = 1000
"""Characters of a parent's instructions that the LM is shown."""
STOCK = 12
"""Demo sets drawn at once."""
LEAST_RATE = 0.05
"""The share of children that an operator makes at least."""
LEARNING = 0.3
"""How much the last child counts for the rate of its operator. With 0.1 two operators in eight whose children were
worth nothing still made a fifth of them; see docs/decisions/0020."""

WISHES = (
    "Say what the job is and how to do it well.",
    "Say what each answer means, and how to tell it from the others.",
    "State the rules that decide the hard cases.",
)

Instruct: TypeAlias = Callable[[PredictorSpec, Sequence[Candidate]], tuple[str, Sequence[Candidate]]]
"""What the LM is asked for one predictor's new instructions, and the parents they come from, the base first."""


class Rates:
    """How often each operator makes a child: in proportion to what its children were worth, and never too seldom.

    >>> rates = Rates(["cross", "mutate"])
    >>> for _ in range(10):
    ...     rates.reward("cross", 0.5)
    ...     rates.reward("mutate", 0.0)
    >>> {name: round(rate, 2) for name, rate in rates.now().items()}
    {'cross': 0.9, 'mutate': 0.1}
    """

    def __init__(self, operators: Sequence[str]) -> None:
        self._credit = dict.fromkeys(operators, 1.0)

    def reward(self, operator: str, worth: float) -> None:
        """Tell what a child of ``operator`` was worth, from 0 to 1."""
        self._credit[operator] += LEARNING * (worth - self._credit[operator])

    def now(self) -> dict[str, float]:
        """The rates; they add up to 1."""
        free, total = 1.0 - LEAST_RATE * len(self._credit), sum(self._credit.values())
        even_share = 1.0 / len(self._credit)
        return {
            operator: LEAST_RATE + free * (credit / total if total else even_share)
            for operator, credit in self._credit.items()
        }

    def draw(self, rng: random.Random) -> str:
        """The next operator."""
        rates = self.now()
        return rng.choices(list(rates), weights=list(rates.values()))[0]


class Variation:
    """Makes children.

    Args:
        problem: Whose candidates they are.
        pools: Where demos come from.
        rng: Source of randomness.
        pay: Told that one text is about to be asked for; it raises ``BudgetSpent`` where that cannot be paid.
        max_demos: The most demos a predictor gets.
        temperature: Sampling temperature of the reflection LM.
    """

    def __init__(
        self,
        problem: Problem,
        pools: Pools,
        *,
        rng: random.Random,
        pay: Callable[[int], None],
        max_demos: int,
        temperature: float,
    ) -> None:
        self._problem, self._pools, self._rng = problem, pools, rng
        self._pay, self._max_demos, self._temperature = pay, max_demos, temperature
        self._stock: list[DemoSet] = []
        self._by_lm: dict[str, Instruct] = {
            "rewrite": self._rewrite,
            "crossover": self._crossover,
            "differential": self._differential,
        }
        self._at_once: dict[str, Callable[[Sequence[Candidate]], Candidate | None]] = {"recombine": self._recombine}
        thrifty = any(objective.metric in ("cost", "latency") for objective in problem.objectives)
        if thrifty:
            self._by_lm["shorten"] = self._shorten
        if self._restock():
            self._at_once |= {"draw demos": self._draw_demos, "cross demos": self._cross_demos}
            if thrifty:
                self._at_once["drop demos"] = self._drop_demos

    @property
    def operators(self) -> tuple[str, ...]:
        """The operators that suit the problem; those for demos only where there are demos."""
        return (*self._by_lm, *self._at_once)

    def child(self, operator: str, members: Sequence[Candidate]) -> Steps[Candidate | None]:
        """A child of ``members``, the best of which come first; None when nothing new came of it."""
        if operator in self._at_once:
            return self._at_once[operator](members)
        spec = self._rng.choice(self._problem.predictors)
        prompt, parents = self._by_lm[operator](spec, members)
        self._pay(1)
        text = read_instruction((yield from generate(prompt, temperature=self._temperature)))
        if text is None or not is_usable(text):
            return None
        child = parents[0].with_instructions(spec.name, text, origin=f"genetic: {operator} of {spec.name}")
        if len(parents) > 1:
            demos = self._crossed(parents[:2])
            child = child.with_predictors(
                {name: replace(child.predictors[name], demos=shown) for name, shown in demos.items()},
                origin=f"{child.origin} and of demos",
            )
        return _of(child, parents)

    # --- who has children ---------------------------------------------------------------------------------------------

    def _pick(self, members: Sequence[Candidate]) -> Candidate:
        """The better of two members drawn at random (Deb et al., 2002: binary tournament)."""
        return members[min(self._rng.randrange(len(members)), self._rng.randrange(len(members)))]

    def _pick_apart(self, members: Sequence[Candidate], n: int, what: Callable[[Candidate], str]) -> list[Candidate]:
        """Up to ``n`` members, each picked among those that differ in ``what`` from those before."""
        picked: list[Candidate] = []
        while len(picked) < n:
            taken = {what(each) for each in picked}
            others = [each for each in members if what(each) not in taken]
            if not others:
                break
            picked.append(self._pick(others))
        return picked

    # --- instructions, by the LM --------------------------------------------------------------------------------------

    def _rewrite(self, spec: PredictorSpec, members: Sequence[Candidate]) -> tuple[str, Sequence[Candidate]]:
        """Mutation: other instructions for the same job, seen from other examples."""
        parent = self._pick(members)
        examples = [each.fields for each in even(self._problem.train, size=EXAMPLES, rng=self._rng)]
        now = parent.predictors[spec.name].instructions
        return job_prompt(spec, now=now, examples=examples, wish=self._rng.choice(WISHES)), [parent]

    def _shorten(self, spec: PredictorSpec, members: Sequence[Candidate]) -> tuple[str, Sequence[Candidate]]:
        parent = self._pick(members)
        now = parent.predictors[spec.name].instructions
        return job_prompt(spec, now=now, examples=[], wish="Say the same in half as many words."), [parent]

    def _crossover(self, spec: PredictorSpec, members: Sequence[Candidate]) -> tuple[str, Sequence[Candidate]]:
        """The GA step: two parents are crossed and the outcome is mutated (EvoPrompt, figure 1)."""
        parents = self._pick_apart(members, 2, lambda each: each.predictors[spec.name].instructions)
        if len(parents) < 2:
            return self._rewrite(spec, members)
        first, second = (each.predictors[spec.name].instructions for each in parents)
        prompt = job_prompt(
            spec,
            now=first,
            examples=[],
            about=[f"Other instructions for the same job: {second[:LONGEST]}"],
            wish="Unite what is best in both instructions, and then change something that may make them better still.",
        )
        return prompt, parents

    def _differential(self, spec: PredictorSpec, members: Sequence[Candidate]) -> tuple[str, Sequence[Candidate]]:
        """The DE step: where two others differ is changed, joined to the best, and crossed with the base (figure 2)."""

        def instructions(each: Candidate) -> str:
            return each.predictors[spec.name].instructions

        parents = self._pick_apart(members, 3, instructions)
        if len(parents) < 3:
            return self._crossover(spec, members)
        base, *others = parents
        best = members[0]
        prompt = job_prompt(
            spec,
            now=instructions(base),
            examples=[],
            about=[
                *(f"Others wrote: {instructions(each)[:LONGEST]}" for each in others),
                f"The best so far: {instructions(best)[:LONGEST]}",
            ],
            wish="Find in what the two others differ, and change just that in a new way. Put it into the best so far, "
            "and mix the outcome with the instructions now.",
        )
        return prompt, list(dict.fromkeys([base, *others, best]))

    # --- without the LM -----------------------------------------------------------------------------------------------

    def _recombine(self, members: Sequence[Candidate]) -> Candidate | None:
        """Uniform crossover: each predictor's instructions, and its demos, from one parent or the other."""
        parents = self._pick_apart(members, 2, lambda each: each.key)
        if len(parents) < 2:
            return None
        changed = {
            name: replace(
                state,
                instructions=self._rng.choice(parents).predictors[name].instructions,
                demos=self._rng.choice(parents).predictors[name].demos,
            )
            for name, state in parents[0].predictors.items()
        }
        return _of(parents[0].with_predictors(changed, origin="genetic: parts of two parents"), parents)

    def _draw_demos(self, members: Sequence[Candidate]) -> Candidate | None:
        """A parent with a demo set that was never tried."""
        if not self._stock and not self._restock():
            return None
        return self._with_demos([self._pick(members)], self._stock.pop(), "other demos")

    def _restock(self) -> bool:
        self._stock = demo_sets(self._problem, self._pools, rng=self._rng, count=STOCK, max_demos=self._max_demos)
        self._rng.shuffle(self._stock)
        return bool(self._stock)

    def _cross_demos(self, members: Sequence[Candidate]) -> Candidate | None:
        """Instructions of one parent, and demos of both; see ``_crossed``."""
        parents = self._pick_apart(members, 2, lambda each: canonical(_demos(each)))
        if len(parents) < 2:
            return None
        return self._with_demos(parents, self._crossed(parents), "demos of two parents")

    def _crossed(self, parents: Sequence[Candidate]) -> dict[str, tuple[Fields, ...]]:
        """About as many demos as two parents have: what both show, and a class-balanced draw from what either shows.

        Sometimes one demo from the pools is among those drawn from; that is the mutation.
        """
        crossed: dict[str, tuple[Fields, ...]] = {}
        for spec in self._problem.predictors:
            first, second = (
                {canonical(dict(demo)): demo for demo in each.predictors[spec.name].demos} for each in parents
            )
            shared = [demo for key, demo in first.items() if key in second]
            either = {**first, **second, **{canonical(dict(demo)): demo for demo in self._fresh(spec.name)}}
            rest = [demo for key, demo in either.items() if not (key in first and key in second)]
            size = self._rng.randint(*sorted((len(first), len(second)))) + self._rng.choice((-1, 0, 0, 1))
            size = min(self._max_demos, max(0, size))
            kept = even_demos(spec, shared, size=size, rng=self._rng)
            more = even_demos(spec, rest, size=size - len(kept), rng=self._rng, already=kept)
            crossed[spec.name] = tuple(self._rng.sample([*kept, *more], len(kept) + len(more)))
        return crossed

    def _fresh(self, name: str) -> list[Fields]:
        """Up to one demo of one predictor from the pools: the mutation that goes with a crossover."""
        pool = [*self._pools.labelled.get(name, ()), *(run[name] for run in self._pools.traced if name in run)]
        return [self._rng.choice(pool)] if pool and self._rng.random() < 0.5 else []

    def _drop_demos(self, members: Sequence[Candidate]) -> Candidate | None:
        """A parent with up to half of its demos left out."""
        parent = self._pick(members)
        kept = {}
        for name, state in parent.predictors.items():
            n = len(state.demos)
            places = sorted(self._rng.sample(range(n), n - self._rng.randint(1, max(1, n // 2)))) if n else []
            kept[name] = tuple(state.demos[place] for place in places)
        return self._with_demos([parent], kept, "fewer demos")

    def _with_demos(self, parents: Sequence[Candidate], demos: DemoSet, what: str) -> Candidate | None:
        base = parents[0]
        changed = {name: replace(base.predictors[name], demos=tuple(shown)) for name, shown in demos.items()}
        return _of(base.with_predictors(changed, origin=f"genetic: {what}"), parents)


def _of(child: Candidate, parents: Sequence[Candidate]) -> Candidate | None:
    """``child`` as a child of all ``parents``; None when it is one of them."""
    if child in parents:
        return None
    keys = tuple(parent.key for parent in parents)
    return Candidate(predictors=child.predictors, parents=keys, origin=child.origin)


def essence(candidate: Candidate) -> str:
    """What ``candidate`` says, whatever the order of its demos: another order alone is no new child."""
    return canonical(
        {
            name: [state.instructions, sorted(canonical(dict(demo)) for demo in state.demos)]
            for name, state in candidate.predictors.items()
        }
    )


def _demos(candidate: Candidate) -> dict[str, list[Fields]]:
    return {name: list(state.demos) for name, state in candidate.predictors.items()}

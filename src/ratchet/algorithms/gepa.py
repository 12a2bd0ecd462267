"""GEPA: instructions rewritten by reflecting on traces, parents chosen from the Pareto front of single examples."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import combinations

from ratchet.algorithms.instruction import is_code, read_instruction
from ratchet.core.algorithm import Algorithm, Steps, evaluate, generate, in_parallel
from ratchet.core.errors import BudgetSpent
from ratchet.core.evaluation import Evaluation, Evaluations, Step
from ratchet.core.pareto import pareto_front
from ratchet.core.problem import Candidate, Example, Fields, FieldSpec, Problem, canonical

LONGEST_INSTRUCTIONS = 4000
"""Characters; a longer rewrite is a reflection LM that lost its thread."""
LONGEST_FIELD = 400
"""Characters of a field shown to the reflection LM."""
QUOTATION = 20
"""Characters from which an input value that reappears in instructions was copied rather than understood."""
ROUND_SHARE = 1 / 10
"""Share of the runs left that one round's validations may use; at least one validation is always allowed."""
ATTEMPTS = 2
"""Texts asked of the reflection LM for one child."""
IDLE_ROUNDS = 5
"""Rounds in a row that used no run after which there is nothing left to learn from."""


def gepa(
    problem: Problem,
    *,
    rng: random.Random,
    minibatch: int = 6,
    proposals: int = 4,
    merge: bool = True,
    shown: int = 4,
    finalists: int = 3,
    temperature: float = 1.0,
) -> Algorithm:
    """The candidates with the best mean validation score, best first; the seed alone when nothing beat it.

    Each round proposes children side by side, keeps those that beat their parents on the same minibatch, and runs the
    most promising of them on all of validation. Runs are counted before they are asked for; what was seen once is
    not asked for again.

    Args:
        problem: What to improve.
        rng: Source of every choice; the same seed and replies give the same search.
        minibatch: Training examples a parent and its child are compared on.
        proposals: Children proposed side by side in one round.
        merge: Whether one proposal of a round may combine two candidates instead of rewriting one.
        shown: Most runs shown in one reflection prompt, the worst first.
        finalists: Most candidates given back.
        temperature: Sampling temperature of the reflection LM.

    References:
        Agrawal et al., "GEPA: Reflective Prompt Evolution Can Outperform Reinforcement Learning", 2025,
        arXiv:2507.19457: Algorithm 1 (the loop), Algorithm 2 (candidate selection), appendix (system-aware merge).
        Where budgets are small we depart from it: rounds of several proposals, minibatches that return to what the
        parent failed, and validation of the most promising children only.
    """
    pool = Pool(problem=problem, runs=Runs(limit=problem.budget.runs))
    proposing = Proposing(
        pool=pool,
        rng=rng,
        minibatches=Minibatches(problem.train, rng),
        minibatch=minibatch,
        proposals=proposals,
        merge=merge,
        shown=shown,
        temperature=temperature,
    )
    try:
        yield from pool.validate(problem.seed)
        waiting: list[Offspring] = []
        idle = 0
        while idle < IDLE_ROUNDS and not pool.is_solved():
            used = pool.runs.used
            waiting += yield from proposing.round()
            waiting.sort(key=lambda offspring: offspring.promise, reverse=True)
            chosen = [waiting.pop(0).child for _ in range(min(pool.affordable(), len(waiting)))]
            yield from in_parallel([pool.validate(child) for child in chosen])
            idle = 0 if pool.runs.used > used else idle + 1
    except BudgetSpent:
        pass  # Our count is an estimate of the driver's; what was validated so far is the result.
    return pool.finalists(finalists)


@dataclass(slots=True)
class Runs:
    """Every run seen so far, so that none is asked for again, counted against ``limit``."""

    limit: int
    used: int = 0
    seen: dict[tuple[str, str], Evaluation] = field(default_factory=dict)  # by candidate and example

    @property
    def left(self) -> int:
        """Runs that may still be asked for."""
        return self.limit - self.used

    def evaluate(self, candidate: Candidate, examples: Sequence[Example]) -> Steps[Evaluations]:
        """Evaluations of ``candidate`` on ``examples``, of which only the unseen are asked for."""
        unseen = [example for example in dict.fromkeys(examples) if (candidate.key, example.key) not in self.seen]
        self.used += len(unseen)
        if unseen:
            rows = yield from evaluate(candidate, unseen)
            self.seen.update({(candidate.key, row.example.key): row for row in rows})
        return self.known(candidate, examples)

    def known(self, candidate: Candidate, examples: Sequence[Example]) -> Evaluations:
        """What was seen of ``candidate`` on ``examples``.

        Raises:
            KeyError: one of them was not run.
        """
        return Evaluations(tuple(self.seen[candidate.key, example.key] for example in examples))

    def below(self, candidate: Candidate, examples: Sequence[Example], score: float) -> list[Example]:
        """Those of ``examples`` on which ``candidate`` is known to score less than ``score``."""
        rows = (self.seen.get((candidate.key, example.key)) for example in examples)
        return [row.example for row in rows if row is not None and row.counted < score]


@dataclass(slots=True)
class Pool:
    """The candidates that were run on all of validation: P and S of Algorithm 1."""

    problem: Problem
    runs: Runs
    members: dict[str, Candidate] = field(default_factory=dict)  # by key, oldest first

    @property
    def perfect(self) -> float:
        """The score that leaves nothing to learn: metrics end at 1 unless success asks for more."""
        return max(1.0, self.problem.success_at)

    def validate(self, candidate: Candidate) -> Steps[None]:
        """Run ``candidate`` on all of validation and take it in."""
        yield from self.runs.evaluate(candidate, self.problem.validation)
        self.members[candidate.key] = candidate

    def affordable(self) -> int:
        """How many children may be validated now, so that later rounds are paid for too."""
        cost = len(self.problem.validation)
        return min(self.runs.left // cost, max(1, int(self.runs.left * ROUND_SHARE) // cost))

    def scores(self, candidate: Candidate) -> tuple[float, ...]:
        """The candidate's validation scores. Shape (n_validation,)."""
        return self.runs.known(candidate, self.problem.validation).scores

    def mean(self, candidate: Candidate) -> float:
        """The candidate's mean validation score; higher is better."""
        return self.runs.known(candidate, self.problem.validation).mean

    def is_solved(self) -> bool:
        """Whether a candidate is perfect on all of validation."""
        return any(min(self.scores(member)) >= self.perfect for member in self.members.values())

    def frequencies(self) -> dict[str, int]:
        """How often each candidate of the front is best on a validation example, by key."""
        members = list(self.members.values())
        counts = best_counts([self.scores(member) for member in members])
        return {members[index].key: count for index, count in counts.items()}

    def select(self, rng: random.Random, k: int) -> list[Candidate]:
        """``k`` parents from the front, each drawn in proportion to how often it is best (Algorithm 2)."""
        f = self.frequencies()
        return [self.members[key] for key in rng.choices(list(f), weights=list(f.values()), k=k)]

    def ancestors(self, candidate: Candidate) -> set[str]:
        """Keys of all that ``candidate`` descends from."""
        found: set[str] = set()
        for parent in candidate.parents:
            if parent in self.members:
                found |= {parent} | self.ancestors(self.members[parent])
        return found

    def finalists(self, n: int) -> list[Candidate]:
        """The best ``n`` that beat the seed in mean, best first, or else the seed."""
        seed = self.problem.seed
        ranked = sorted(self.members.values(), key=self.mean, reverse=True)
        return [member for member in ranked if self.mean(member) > self.mean(seed)][:n] or [seed]


def best_counts(scores: Sequence[Sequence[float]]) -> dict[int, int]:
    """On how many examples each candidate of the Pareto front is best: f of Algorithm 2.

    A candidate is pruned when another is nowhere worse and somewhere better, or is best wherever it is best and
    elsewhere besides.

    Args:
        scores: Score of each candidate on each example, higher is better. Shape (n_candidates, n_examples).

    >>> best_counts([(1.0, 0.0, 0.0), (1.0, 1.0, 0.0), (0.0, 0.0, 1.0)])
    {1: 2, 2: 1}
    """
    best = [max(column) for column in zip(*scores, strict=True)]
    front = pareto_front(scores)
    wins = [[score == top for score, top in zip(scores[index], best, strict=True)] for index in front]
    return {front[place]: sum(wins[place]) for place in pareto_front(wins)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Offspring:
    """A child that beat its parents on a minibatch; ``promise`` estimates its mean validation score."""

    child: Candidate
    promise: float


class Minibatches:
    """Draws from ``examples``, all of which come up once before any comes up again."""

    def __init__(self, examples: Sequence[Example], rng: random.Random) -> None:
        self._stream = self._epochs(list(dict.fromkeys(examples)), rng)

    @staticmethod
    def _epochs(examples: list[Example], rng: random.Random) -> Iterator[Example]:
        while examples:
            yield from rng.sample(examples, len(examples))

    def draw(self, size: int, *, focus: Sequence[Example] = ()) -> list[Example]:
        """``focus`` and then the next others, ``size`` in all; there must be as many different examples."""
        drawn = dict.fromkeys(focus)
        while len(drawn) < size:
            drawn.setdefault(next(self._stream))
        return list(drawn)


@dataclass(slots=True, kw_only=True)
class Proposing:
    """Makes children of the pool's candidates and lets through those that beat their parents on a minibatch."""

    pool: Pool
    rng: random.Random
    minibatches: Minibatches
    minibatch: int
    proposals: int
    merge: bool
    shown: int
    temperature: float
    tried: set[str] = field(default_factory=set)  # keys of the children that were run
    turns: dict[str, int] = field(default_factory=dict)  # by candidate: place of the predictor to rewrite next

    def round(self) -> Steps[list[Offspring]]:
        """Children that passed, out of as many proposals as leave the runs to validate one of them."""
        train, validation = self.pool.problem.train, self.pool.problem.validation
        spare = self.pool.runs.left - len(validation)
        size = min(self.minibatch, len(set(train)), spare // 2)
        if size < 1:
            return []
        slots = min(self.proposals, spare // (2 * size))
        parts = [self.combine(merged, size) for merged in self.desirable_merges()[:1]]
        parts += [self.mutate(parent, size) for parent in self.pool.select(self.rng, slots - len(parts))]
        return [offspring for offspring in (yield from in_parallel(parts)) if offspring is not None]

    def mutate(self, parent: Candidate, size: int) -> Steps[Offspring | None]:
        """A child with one predictor rewritten, if that beats ``parent`` on a minibatch (body of Algorithm 1)."""
        predictor = self.next_predictor(parent)
        batch = self.informative_minibatch(parent, size)
        before = yield from self.pool.runs.evaluate(parent, batch)
        if min(before.scores) >= self.pool.perfect:
            return None
        child = yield from self.reflect(parent, predictor, before)
        if child is None:
            return None
        after = yield from self.pool.runs.evaluate(child, batch)
        return self.passed(child, after, [before], [parent])

    def combine(self, merged: Candidate, size: int) -> Steps[Offspring | None]:
        """``merged``, if it beats both its parents on validation examples on which they differ."""
        pool = self.pool
        parents = [pool.members[key] for key in merged.parents]
        scores = [pool.scores(parent) for parent in parents]
        contested = [index for index, (a, b) in enumerate(zip(*scores, strict=True)) if a != b]
        batch = [pool.problem.validation[index] for index in self.rng.sample(contested, min(len(contested), size))]
        self.tried.add(merged.key)
        after = yield from pool.runs.evaluate(merged, batch)
        return self.passed(merged, after, [pool.runs.known(parent, batch) for parent in parents], parents)

    def passed(
        self, child: Candidate, after: Evaluations, before: Sequence[Evaluations], parents: Sequence[Candidate]
    ) -> Offspring | None:
        """The gate: ``child`` goes on when it is strictly better than each of its parents was."""
        gain = after.mean - max(each.mean for each in before)
        if gain <= 0:
            return None
        return Offspring(child=child, promise=max(self.pool.mean(parent) for parent in parents) + gain)

    def next_predictor(self, parent: Candidate) -> str:
        """Round robin over the predictors."""
        names = list(parent.predictors)
        turn = self.turns.get(parent.key, 0)
        self.turns[parent.key] = turn + 1
        return names[turn % len(names)]

    def informative_minibatch(self, parent: Candidate, size: int) -> list[Example]:
        """Up to half of it what ``parent`` is known to fail, the rest the next of the epoch."""
        failed = self.pool.runs.below(parent, self.pool.problem.train, self.pool.perfect)
        return self.minibatches.draw(size, focus=self.rng.sample(failed, min(len(failed), size // 2)))

    def reflect(self, parent: Candidate, predictor: str, before: Evaluations) -> Steps[Candidate | None]:
        """A child with new instructions, or None; of two attempts one that quotes no example is preferred."""
        prompt = reflection_prompt(self.pool.problem, parent, predictor, before, shown=self.shown)
        fallback = None
        for _ in range(ATTEMPTS):
            text = read_instruction((yield from generate(prompt, temperature=self.temperature)))
            if text is None or len(text) > LONGEST_INSTRUCTIONS or is_code(text):
                continue
            child = parent.with_instructions(predictor, text, origin=f"gepa: rewrite of {predictor}")
            if not self.is_new(child):
                continue
            fallback = child
            if not quotes(text, before):
                break
        if fallback is not None:
            self.tried.add(fallback.key)
            self.turns[fallback.key] = list(parent.predictors).index(predictor) + 1
        return fallback

    def is_new(self, child: Candidate) -> bool:
        """Whether ``child`` was not run before."""
        return child.key not in self.tried and child.key not in self.pool.members

    def desirable_merges(self) -> list[Candidate]:
        """New children of two candidates of the front, in random order; none when merging is off."""
        if not self.merge:
            return []
        front = [self.pool.members[key] for key in self.pool.frequencies()]
        merged = [child for i, j in combinations(front, 2) for child in self.merges_of(i, j) if self.is_new(child)]
        return self.rng.sample(merged, len(merged))

    def merges_of(self, i: Candidate, j: Candidate) -> list[Candidate]:
        """``i`` and ``j`` merged over each common ancestor that neither is worse than (appendix, Merge)."""
        pool = self.pool
        of_i, of_j = pool.ancestors(i), pool.ancestors(j)
        if i.key in of_j or j.key in of_i or pool.scores(i) == pool.scores(j):
            return []
        better, worse = (i, j) if pool.mean(i) >= pool.mean(j) else (j, i)
        shared = [member for key, member in pool.members.items() if key in of_i & of_j]
        return [
            child
            for ancestor in shared
            if pool.mean(ancestor) <= pool.mean(worse) and (child := merge_of(ancestor, better, worse)) is not None
        ]


def merge_of(ancestor: Candidate, better: Candidate, worse: Candidate) -> Candidate | None:
    """Each predictor from the side that changed it, from ``better`` if both did; None unless both sides give one.

    >>> from ratchet.core.problem import PredictorState
    >>> seed = Candidate(predictors={name: PredictorState(instructions="?") for name in ("ask", "answer")})
    >>> one = seed.with_instructions("ask", "Ask well.", origin="by hand")
    >>> other = seed.with_instructions("answer", "Be brief.", origin="by hand")
    >>> [state.instructions for state in merge_of(seed, one, other).predictors.values()]
    ['Ask well.', 'Be brief.']
    >>> merge_of(seed, one, one.with_instructions("ask", "Ask.", origin="by hand")) is None
    True
    """
    predictors = {
        name: worse.predictors[name] if state == ancestor.predictors[name] else state
        for name, state in better.predictors.items()
    }
    child = Candidate(predictors=predictors, parents=(better.key, worse.key), origin="gepa: merge")
    return None if child in (better, worse) else child


def quotes(text: str, rows: Evaluations) -> bool:
    """Whether ``text`` repeats an input of one of ``rows`` word for word."""
    values = (value for row in rows for value in row.example.inputs.values())
    return any(isinstance(value, str) and len(value) >= QUOTATION and value in text for value in values)


def reflection_prompt(problem: Problem, parent: Candidate, predictor: str, rows: Evaluations, *, shown: int = 4) -> str:
    """What the reflection LM reads: the predictor, its instructions, and the worst of ``rows`` with their feedback."""
    spec = problem.predictor(predictor)
    worst = sorted(rows, key=lambda row: row.counted)[:shown]
    runs = "\n\n".join(f"Run {number}\n{_run(row, predictor)}" for number, row in enumerate(worst, start=1))
    purpose = f"The program: {clip(problem.description)}\n" if problem.description else ""
    return f"""\
A language model follows written instructions for the step "{predictor}". Find out from its runs why it failed, then
rewrite the instructions.

{purpose}It is given: {_fields(spec.inputs)}
It must answer with: {_fields(spec.outputs)}

Current instructions:
<instructions>
{parent.predictors[predictor].instructions}
</instructions>

{runs}

Write the complete new instructions. State the rules that would have avoided these failures, and keep what works. They
must hold for inputs nobody has seen: name kinds of cases, do not repeat inputs from the runs. Where the answer is one
of a few, say what each means and how to tell it from the others. Use plain English and no code. Be specific and brief.
Answer with the new instructions only; begin with "Your task is"."""


def clip(value: object) -> str:
    """``value`` as text of bounded length.

    >>> clip("x" * 1000) == "x" * LONGEST_FIELD + " [...]"
    True
    """
    text = value if isinstance(value, str) else canonical(value)
    return text if len(text) <= LONGEST_FIELD else f"{text[:LONGEST_FIELD]} [...]"


def _fields(specs: Sequence[FieldSpec]) -> str:
    return ", ".join(
        f"{spec.name} (one of: {clip(', '.join(spec.choices))})" if spec.choices else f"{spec.name} ({spec.type})"
        for spec in specs
    )


def _run(row: Evaluation, predictor: str) -> str:
    """One run as lines: what the predictor was given, what it answered, and what was said of it."""
    step = _telling_step(row, predictor)
    lines = [_values("given", row.example.inputs if step is None else step.inputs)]
    if step is not None and step.outputs:
        lines.append(_values("answered", step.outputs))
    if step is not None and step.raw and not step.outputs:
        lines.append(f"answered, but unreadable: {clip(step.raw)}")
    if row.failure is not None:
        lines.append(f"failed ({row.failure.kind}): {clip(row.failure.message)}")
    if row.feedback:
        lines.append(f"feedback: {clip(row.feedback)}")
    elif row.example.labels:
        lines.append(_values("right answer", row.example.labels))
    lines.append("score: none" if row.score is None else f"score: {row.score:g}")
    return "\n".join(lines)


def _telling_step(row: Evaluation, predictor: str) -> Step | None:
    """The first step of ``predictor`` that could not be read, or else its last."""
    steps = [step for step in row.trace if step.predictor == predictor]
    unread = [step for step in steps if not step.outputs]
    return next(iter(unread + steps[-1:]), None)


def _values(title: str, values: Fields) -> str:
    return "\n".join(f"{title} {name}: {clip(value)}" for name, value in values.items())

"""Fakes and conformance tests that ship with Ratchet: test an algorithm or a store without an LM.

An algorithm of your own is tested by a class of three lines, which pytest runs like any other:

    class TestMine(AlgorithmConformance):
        search = staticmethod(my_search)
"""

from __future__ import annotations

import random
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from ratchet.core.algorithm import Evaluate, Generate, Request, Search, Together
from ratchet.core.errors import BrokenContract, BudgetSpent, UnknownName
from ratchet.core.evaluation import Evaluation, Evaluations, Failure, Step, Usage
from ratchet.core.problem import (
    Budget,
    Candidate,
    Example,
    FieldSpec,
    PredictorSpec,
    PredictorState,
    Problem,
    canonical,
    content_hash,
)
from ratchet.engine.archive import Archive, Event, Notebook, Optimization
from ratchet.programs.journal import Journal, Reply

_SKILL = re.compile(r"skill-\d+")
PATIENCE = 10
"""How often a search may ask for more after the budget was spent."""


@dataclass
class SyntheticProblem:
    """A problem whose truth is known: an example is solved when every predictor was told its skill.

    Each example needs one skill of each predictor; a predictor knows the skills named in its instructions (the first
    ``capacity`` of them) and in its demos. Feedback names what was missing; the reflection LM repeats skills it reads.

    Attributes:
        seed: Seeds the examples and the reflection LM's choices.
        predictors: Names of the predictors.
        skills: How many skills an example may need.
        capacity: How many skills instructions can hold.
        runs: The budget, in program runs.
        fails: Share of runs that end in a Failure.
        hopeless: When true the score depends on the example alone, so that nothing can be gained.
        classes: When above 0, examples have a label ``kind`` of so many classes, half of them of the first.
        texts: When given, the reflection LM answers with these in turn, whatever it is asked.
        stop_at: When given, the budget is spent from this request on, the first being 1.
        asked: Requests so far, each part of a ``Together`` by itself.
        refused: Requests that were answered with ``BudgetSpent``.
        evaluated: Candidates in the order they were asked for.
        broken: What the search did that no search may do, in words.
    """

    seed: int = 0
    predictors: tuple[str, ...] = ("answer",)
    skills: int = 6
    capacity: int = 4
    n_train: int = 40
    n_validation: int = 30
    runs: int = 400
    fails: float = 0.0
    hopeless: bool = False
    runs_used: int = 0
    texts_used: int = 0
    evaluated: list[Candidate] = field(default_factory=list)
    classes: int = 0
    texts: tuple[str, ...] = ()
    stop_at: int | None = None
    asked: int = 0
    refused: int = 0
    broken: list[str] = field(default_factory=list)

    def example(self, number: int) -> Example:
        """The example with this number."""
        rng = random.Random(f"{self.seed}/{number}")
        needs = " ".join(f"{name}:skill-{rng.randrange(self.skills)}" for name in self.predictors)
        labels = {"answer": f"a{number}"}
        if self.classes:
            labels["kind"] = f"kind-{max(0, rng.randrange(2 * self.classes) - self.classes)}"
        return Example(inputs={"question": f"q{number} {needs}"}, labels=labels)

    @property
    def problem(self) -> Problem:
        """What an algorithm gets."""
        examples = [self.example(number) for number in range(self.n_train + self.n_validation)]
        return Problem(
            seed=Candidate(
                predictors={name: PredictorState(instructions="Answer the question.") for name in self.predictors}
            ),
            predictors=tuple(
                PredictorSpec(
                    name=name,
                    inputs=(FieldSpec(name="question", type="str"),),
                    outputs=tuple(FieldSpec(name=label, type="str") for label in self.example(0).labels),
                )
                for name in self.predictors
            ),
            train=tuple(examples[: self.n_train]),
            validation=tuple(examples[self.n_train :]),
            budget=Budget(runs=self.runs),
            description="Answers questions that need skills.",
        )

    def run(self, candidate: Candidate, example: Example, repeat: int = 0) -> Evaluation:
        """One evaluation, computed from the content alone."""
        self.runs_used += 1
        chance = random.Random(f"{self.seed}/{candidate.key}/{example.key}/{repeat}").random()
        if chance < self.fails:
            return Evaluation(
                candidate=candidate.key,
                example=example,
                repeat=repeat,
                failure=Failure(kind="unparseable", message="synthetic"),
                trace=(
                    Step(predictor=self.predictors[0], inputs=dict(example.inputs), outputs={}, raw="I cannot say."),
                ),
                usage=Usage(calls=1, latency_ms=1.0),
            )
        needs = dict(need.split(":") for need in example.inputs["question"].split()[1:])
        missing = []
        for name, skill in needs.items():
            state = candidate.predictors[name]
            known = _SKILL.findall(state.instructions)[: self.capacity]
            for demo in state.demos:
                known += [need.split(":")[1] for need in demo["question"].split()[1:] if need.startswith(f"{name}:")]
            if skill not in known:
                missing.append(f"{name} needs {skill}")
        score = float(content_hash(example.key) < "8") if self.hopeless else 1.0 - len(missing) / len(needs)
        answer = {name: value if score == 1.0 else "unknown" for name, value in example.labels.items()}
        return Evaluation(
            candidate=candidate.key,
            example=example,
            repeat=repeat,
            score=score,
            feedback="; ".join(missing),
            prediction=answer,
            trace=tuple(Step(predictor=name, inputs=dict(example.inputs), outputs=answer) for name in self.predictors),
            usage=Usage(calls=len(self.predictors), latency_ms=1.0),
        )

    def generate(self, prompt: str, number: int) -> str:
        """What the reflection LM answers to ``prompt`` when asked for the ``number``-th time."""
        if self.texts:
            return self.texts[number % len(self.texts)]
        rng = random.Random(f"{self.seed}/{content_hash(prompt)}/{number}")
        seen = sorted(set(_SKILL.findall(prompt)))
        return f"```\nAnswer the question. Use {' '.join(rng.sample(seen, min(len(seen), self.capacity)))} (v{number}).\n```"

    def solve(self, search: Search, *, seed: int = 0) -> Sequence[Candidate]:
        """Drive ``search`` to its end, or to the end of the budget, and give back its finalists.

        Raises:
            BrokenContract: it yields or returns what the contract does not know.
            BudgetSpent: it let the end of the budget pass, and so has no finalists.
        """
        problem = self.problem
        algorithm = search(problem, rng=random.Random(seed))
        allowed = {*problem.train, *problem.validation}
        known = {problem.seed.key}
        cache: dict[tuple[str, str, int], Evaluation] = {}

        def answer(request: Request) -> Any:
            if isinstance(request, Together):
                return [answer(each) for each in request.requests]
            self.asked += 1
            if self.stop_at is not None and self.asked >= self.stop_at:
                raise BudgetSpent(used=self.runs_used, limit=self.runs)
            match request:
                case Evaluate(candidate, examples, repeats):
                    self.evaluated.append(candidate)
                    self._look_at(candidate, problem, known)
                    if not allowed.issuperset(examples):
                        self.broken.append(f"{candidate.key} was run on examples that are not in the problem")
                    keys = [(example, repeat) for example in examples for repeat in range(repeats)]
                    fresh = {
                        (example.key, repeat)
                        for example, repeat in keys
                        if (candidate.key, example.key, repeat) not in cache
                    }
                    if self.runs_used + len(fresh) > self.runs:
                        raise BudgetSpent(used=self.runs_used, limit=self.runs)
                    for example, repeat in keys:
                        if (candidate.key, example.key, repeat) not in cache:
                            cache[candidate.key, example.key, repeat] = self.run(candidate, example, repeat)
                    return Evaluations(tuple(cache[candidate.key, example.key, repeat] for example, repeat in keys))
                case Generate(prompt, _, n):
                    self.texts_used += n
                    return tuple(self.generate(prompt, self.texts_used + index) for index in range(n))
            raise BrokenContract(f"an algorithm yielded {request!r}")

        try:
            request = next(algorithm)
            while True:
                try:
                    reply = answer(request)
                except BudgetSpent as spent:
                    self.refused += 1
                    if self.refused > PATIENCE:
                        raise BrokenContract(f"it went on asking after {PATIENCE} times BudgetSpent") from spent
                    request = algorithm.throw(spent)
                else:
                    request = algorithm.send(reply)
        except StopIteration as end:
            finalists = list(end.value or ())
        if not finalists or not all(isinstance(each, Candidate) for each in finalists):
            raise BrokenContract(f"an algorithm must return its finalists, best first; it returned {finalists!r}")
        for each in finalists:
            self._look_at(each, problem, known)
        return finalists

    def _look_at(self, candidate: Candidate, problem: Problem, known: set[str]) -> None:
        """Note what is wrong with a candidate, and that it is known from now on."""
        if candidate.key in known:
            return
        if list(candidate.predictors) != list(problem.seed.predictors):
            self.broken.append(f"{candidate.key} has the predictors {list(candidate.predictors)}")
        if not candidate.parents or not known.issuperset(candidate.parents):
            self.broken.append(f"{candidate.key} ({candidate.origin}) has unknown parents {candidate.parents}")
        if not candidate.origin:
            self.broken.append(f"{candidate.key} does not say what made it")
        for spec in problem.predictors:
            state = candidate.predictors.get(spec.name, PredictorState(instructions=""))
            fields = {each.name for each in (*spec.inputs, *spec.outputs)}
            if not isinstance(state.instructions, str) or not state.instructions.strip():
                self.broken.append(f"{candidate.key} gives {spec.name} no instructions")
            if any(not demo or not fields.issuperset(demo) for demo in state.demos):
                self.broken.append(f"{candidate.key} shows {spec.name} demos with other fields than its own")
        known.add(candidate.key)

    def quality(self, candidate: Candidate, n: int = 200) -> float:
        """The candidate's mean score on examples no algorithm saw."""
        first = self.n_train + self.n_validation
        before = self.runs_used
        mean = Evaluations(tuple(self.run(candidate, self.example(first + number)) for number in range(n))).mean
        self.runs_used = before
        return mean

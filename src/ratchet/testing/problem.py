"""A problem whose answer is known, driven without an LM; and orders in which its runs are done."""

import heapq
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from ratchet.core.algorithm import Evaluate, Generate, Request, Search, Start, Tell, Together, Wait
from ratchet.core.contract import PATIENCE
from ratchet.core.errors import BrokenContract, BudgetSpent
from ratchet.core.evaluation import Evaluation, Evaluations, Failure, Step, Usage
from ratchet.core.problem import (
    Budget,
    Candidate,
    Example,
    FieldSpec,
    PredictorSpec,
    PredictorState,
    Problem,
    content_hash,
)
from ratchet.testing.promises import expect

_SKILL = re.compile(r"skill-\d+")

Row = tuple[str, str, int]
"""Candidate, example and repeat of a run."""


class Order(Protocol):
    """Decides what is done first of what a search has under way."""

    def begun(self, ticket: int, rows: Sequence[Row], texts: int) -> None:
        """So many texts and these rows, some of them perhaps begun before, are now under way."""

    def first(self, among: Sequence[int]) -> int:
        """The ticket that is done first."""


@dataclass
class Shuffled:
    """Any order, drawn with ``seed``; ``taken`` tells which it was, for ``Recorded``."""

    seed: int = 0
    taken: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._rng = random.Random(f"order {self.seed}")

    def begun(self, ticket: int, rows: Sequence[Row], texts: int) -> None:
        """Nothing to remember."""

    def first(self, among: Sequence[int]) -> int:
        """One of them, whichever."""
        if len(among) == 1:
            return among[0]
        self.taken.append(self._rng.choice(sorted(among)))
        return self.taken[-1]


@dataclass
class Recorded:
    """The order that was ``taken`` before."""

    taken: Sequence[int]

    def __post_init__(self) -> None:
        self._rest = list(reversed(self.taken))

    def begun(self, ticket: int, rows: Sequence[Row], texts: int) -> None:
        """Nothing to remember."""

    def first(self, among: Sequence[int]) -> int:
        """The next of the record, which must be among them."""
        ticket = among[0] if len(among) == 1 else self._rest.pop()
        expect(ticket in among, f"{ticket} was done next the first time, and now only {list(among)} are waited for")
        return ticket


@dataclass
class VirtualTime:
    """The order that calls of about ``seconds`` each would be done in, on a clock that costs no time.

    Rows take a slot for ``calls`` calls, one after another, and begin in the order in which they were started; texts
    take one call and no slot.

    Attributes:
        slots: Rows under way at once.
        seconds: Mean duration of a call.
        spread: How far a call may be from the mean, as a share of it.
        calls: Calls of a run.
        text_seconds: Mean duration of a text; ``seconds`` when it is None.
        now: Seconds since the start.
        worked: Seconds that all slots together were busy.

    >>> clock = VirtualTime(slots=2, spread=0.0)
    >>> clock.begun(1, [("c", "a", 0), ("c", "b", 0), ("c", "d", 0)], 0)
    >>> clock.begun(2, [], 1)
    >>> [clock.first((1, 2)), clock.first((1,)), round(clock.now, 3), round(clock.share, 3)]
    [2, 1, 0.6, 0.75]
    """

    slots: int
    seconds: float = 0.3
    spread: float = 0.3
    calls: int = 1
    text_seconds: float | None = None
    seed: int = 0
    now: float = 0.0
    worked: float = 0.0

    def __post_init__(self) -> None:
        self._rng = random.Random(f"time {self.seed}")
        self._free = [0.0] * self.slots
        self._rows: dict[Row, float] = {}
        self._done: dict[int, float] = {}

    def begun(self, ticket: int, rows: Sequence[Row], texts: int) -> None:
        """Book slots for the rows that were not begun before."""
        for row in rows:
            if row not in self._rows:
                begins = max(self.now, heapq.heappop(self._free))
                takes = sum(self._draw(self.seconds) for _ in range(self.calls))
                self._rows[row] = begins + takes
                self.worked += takes
                heapq.heappush(self._free, begins + takes)
        mean = self.seconds if self.text_seconds is None else self.text_seconds
        ends = [*(self._rows[row] for row in rows), *(self.now + self._draw(mean) for _ in range(texts))]
        self._done[ticket] = max(ends, default=self.now)

    def first(self, among: Sequence[int]) -> int:
        """The ticket that is done first; the clock goes on to then."""
        ticket = min(among, key=lambda each: (self._done[each], each))
        self.now = max(self.now, self._done[ticket])
        return ticket

    def _draw(self, mean: float) -> float:
        return mean * self._rng.uniform(1.0 - self.spread, 1.0 + self.spread)

    @property
    def share(self) -> float:
        """The share of the slots that was busy, over all the time."""
        return self.worked / (self.slots * self.now)


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
        stop_late: Whether requests from there on are begun, and it is their replies that do not come.
        slots: Program runs that can be under way at once.
        asked: Requests so far, each part of a ``Together`` by itself.
        refused: Requests that were answered with ``BudgetSpent``.
        evaluated: Candidates in the order they were asked for.
        broken: What the search did that no search may do, in words.
        told: What the search said of itself.
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
    stop_late: bool = False
    slots: int = 8
    asked: int = 0
    refused: int = 0
    broken: list[str] = field(default_factory=list)
    told: list[str] = field(default_factory=list)

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
            slots=self.slots,
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
        used = " ".join(rng.sample(seen, min(len(seen), self.capacity)))
        return f"```\nAnswer the question. Use {used} (v{number}).\n```"

    def solve(self, search: Search, *, seed: int = 0, order: Order | None = None) -> Sequence[Candidate]:
        """Drive ``search`` to its end, or to the end of the budget, and give back its finalists.

        Args:
            order: What is done first of what is under way side by side; drawn with ``seed`` when left out.

        Raises:
            BrokenContract: it yields or returns what the contract does not know.
            BudgetSpent: it let the end of the budget pass, and so has no finalists.
        """
        problem = self.problem
        known = {problem.seed.key}
        driver = _Driver(self, problem, known, order or Shuffled(seed))
        algorithm = search(problem, rng=random.Random(seed))
        try:
            request = next(algorithm)
            while True:
                try:
                    reply = driver.reply(request)
                except BudgetSpent as spent:
                    self.refused += 1
                    if self.refused > PATIENCE + 1:  # one that is watched is told before, with its turn
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


class _Driver:
    """Carries out what a search asks of a ``SyntheticProblem``; ``order`` decides what is done first."""

    def __init__(self, toy: SyntheticProblem, problem: Problem, known: set[str], order: Order) -> None:
        self.toy, self.problem, self.known, self.order = toy, problem, known, order
        self.allowed = {*problem.train, *problem.validation}
        self.ran: dict[Row, Evaluation] = {}
        self.begun = 0
        self.replies: dict[int, Any] = {}

    def reply(self, request: Request) -> Any:
        """The reply to what a search yielded."""
        match request:
            case Start(work):
                return self.start(work)
            case Tell(text):
                return self.toy.told.append(text)
            case Wait(among):
                tickets = among or tuple(self.replies)
                if not tickets or not self.replies.keys() >= set(tickets):
                    raise BrokenContract(f"it waits for {list(tickets)}, and {list(self.replies)} are under way")
                ticket = self.order.first(tickets)
                return ticket, self.hand_over(ticket)
            case _:
                ticket = self.start(request)
                self.order.first((ticket,))
                return self.hand_over(ticket)

    def start(self, work: Evaluate | Generate | Together) -> int:
        """The ticket of ``work``. Its runs are made here; that they are done is told later."""
        requests = work.requests if isinstance(work, Together) else (work,)
        rows, texts = list[Row](), 0
        try:
            replies = [self.carry_out(each) for each in requests]
        except BudgetSpent as spent:
            if not self.toy.stop_late:
                raise
            reply: Any = spent
        else:
            reply = replies if isinstance(work, Together) else replies[0]
            for each in requests:
                if isinstance(each, Evaluate):
                    rows += [(each.candidate.key, one.key, n) for one in each.examples for n in range(each.repeats)]
                else:
                    texts += each.n
        self.begun += 1
        self.replies[self.begun] = reply
        self.order.begun(self.begun, rows, texts)
        return self.begun

    def hand_over(self, ticket: int) -> Any:
        """The reply to ``ticket``, once."""
        reply = self.replies.pop(ticket)
        if isinstance(reply, BudgetSpent):
            raise BudgetSpent(str(reply), ticket=ticket)
        return reply

    def carry_out(self, request: Evaluate | Generate) -> Any:
        """The reply to one request."""
        toy = self.toy
        toy.asked += 1
        if toy.stop_at is not None and toy.asked >= toy.stop_at:
            raise BudgetSpent(used=toy.runs_used, limit=toy.runs)
        match request:
            case Evaluate(candidate, examples, repeats):
                toy.evaluated.append(candidate)
                toy._look_at(candidate, self.problem, self.known)
                if not self.allowed.issuperset(examples):
                    toy.broken.append(f"{candidate.key} was run on examples that are not in the problem")
                rows = [(candidate.key, example.key, repeat) for example in examples for repeat in range(repeats)]
                if toy.runs_used + len(set(rows) - self.ran.keys()) > toy.runs:
                    raise BudgetSpent(used=toy.runs_used, limit=toy.runs)
                for row, example in zip(rows, (each for each in examples for _ in range(repeats)), strict=True):
                    if row not in self.ran:
                        self.ran[row] = toy.run(candidate, example, row[2])
                return Evaluations(tuple(self.ran[row] for row in rows))
            case Generate(prompt, _, n):
                toy.texts_used += n
                return tuple(toy.generate(prompt, toy.texts_used + index) for index in range(n))
        raise BrokenContract(f"an algorithm yielded {request!r}")

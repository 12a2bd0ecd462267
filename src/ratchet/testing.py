"""Fakes and conformance tests that ship with Ratchet: test an algorithm or a store without an LM.

An algorithm of your own is tested by a class of three lines, which pytest runs like any other:

    class TestMine(AlgorithmConformance):
        search = staticmethod(my_search)
"""

from __future__ import annotations

import heapq
import random
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta, timezone
from typing import Any, Protocol

from ratchet.core.algorithm import Evaluate, Generate, Request, Search, Start, Tell, Together, Wait
from ratchet.core.contract import PATIENCE, watched
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
    content_hash,
)
from ratchet.engine.archive import Archive, Event, Notebook, Optimization
from ratchet.programs.journal import Journal, Reply

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
        _expect(ticket in among, f"{ticket} was done next the first time, and now only {list(among)} are waited for")
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


class AlgorithmConformance:
    """What every algorithm promises. Inherit it in a class that pytest collects, and name the algorithm.

        class TestMine(AlgorithmConformance):
            search = staticmethod(my_search)

    Each method is one promise: the same seed gives the same search, whatever was searched between, and so does the same
    order of completion; no run beyond the budget; only candidates of this program, each with known parents; only the
    examples in the problem; an end, with finalists or with ``BudgetSpent``, wherever the budget ends; no fall over
    failed runs, a hopeless or a tiny problem, several predictors, or a reflection LM that writes nonsense; and a clear
    gain on a toy problem with most seeds. All of them run without an LM, in seconds. What breaks the contract is told
    with the turn, what was found and what was expected. ``ratchet algorithms check`` runs the same promises.

    Attributes:
        search: The algorithm.
        seeds: Seeds of the toy problem.
        least_gain: What "clearly better" is: how much of the score on unseen examples is to be gained.
        may_miss: With how many of the seeds it may stay below that.
        stops: The requests at which the budget is ended.
    """

    search: Search
    seeds: Sequence[int] = range(5)
    least_gain: float = 0.2
    may_miss: int = 1
    stops: Sequence[int] = (1, 2, 3, 4, 6, 9, 14, 22, 40, 70)

    @property
    def name(self) -> str:
        """What the algorithm is called in messages."""
        return getattr(self.search, "__name__", "the algorithm")

    def solved(self, toy: SyntheticProblem, *, seed: int = 0, order: Order | None = None) -> Sequence[Candidate]:
        """The finalists, when nothing on the way to them was against the contract."""
        finalists = toy.solve(watched(self.search, self.name), seed=seed, order=order)
        _expect(not toy.broken, f"the search broke the contract: {'; '.join(toy.broken)}")
        _expect(toy.runs_used <= toy.runs, f"{toy.runs_used} runs were used of {toy.runs}")
        keys = [each.key for each in finalists]
        _expect(len(set(keys)) == len(keys), f"a finalist came back twice: {keys}")
        return finalists

    def test_the_same_seed_gives_the_same_search(self) -> None:
        for predictors in PREDICTORS:
            toys = [SyntheticProblem(predictors=predictors, runs=250, fails=0.1, classes=3) for _ in range(2)]
            first = [(each.key, each.parents, each.origin) for each in self.solved(toys[0], seed=7)]
            self.solved(SyntheticProblem(seed=1, predictors=predictors, runs=60), seed=8)  # nothing of it may stay
            second = [(each.key, each.parents, each.origin) for each in self.solved(toys[1], seed=7)]
            _expect(first == second, f"the same seed gave {first}, then {second}")
            _expect(toys[0].evaluated == toys[1].evaluated, "the same seed evaluated other candidates the second time")

    def test_a_resumed_search_that_sees_the_same_order_of_completion_is_the_same(self) -> None:
        toys = [SyntheticProblem(predictors=PREDICTORS[1], runs=200, slots=4) for _ in range(2)]
        order = Shuffled(3)
        first = [each.key for each in self.solved(toys[0], order=order)]
        second = [each.key for each in self.solved(toys[1], order=Recorded(order.taken))]
        _expect(first == second, f"the same order gave {first}, then {second}")
        _expect(toys[0].evaluated == toys[1].evaluated, "the same order evaluated other candidates the second time")

    def test_no_run_beyond_the_budget_and_only_candidates_with_known_parents(self) -> None:
        for runs in (1, 7, 31, 100, 300):
            for predictors in PREDICTORS:
                self.solved(SyntheticProblem(runs=runs, predictors=predictors, classes=2))

    def test_finalists_or_budget_spent_wherever_the_budget_ends(self) -> None:
        for stop_at in self.stops:
            toy = SyntheticProblem(stop_at=stop_at, runs=250, predictors=PREDICTORS[1])
            try:
                self.solved(toy)
            except BudgetSpent:
                continue

    def test_failed_runs_are_coped_with(self) -> None:
        for share in (0.3, 1.0):
            for predictors in PREDICTORS:
                self.solved(SyntheticProblem(fails=share, predictors=predictors))

    def test_a_hopeless_problem_comes_to_an_end(self) -> None:
        for predictors in PREDICTORS:
            toy = SyntheticProblem(hopeless=True, predictors=predictors)
            best = self.solved(toy)[0]
            gain = toy.quality(best) - toy.quality(toy.problem.seed)
            _expect(gain == 0.0, f"there was nothing to gain, and {gain} was gained")

    def test_tiny_problems_are_coped_with(self) -> None:
        for runs in (2, 5, 20, 100):
            for predictors in PREDICTORS:
                self.solved(SyntheticProblem(n_train=2, n_validation=2, runs=runs, predictors=predictors))

    def test_a_reflection_lm_that_writes_nonsense_is_coped_with(self) -> None:
        for text in NONSENSE:
            for predictors in PREDICTORS[:2]:
                self.solved(SyntheticProblem(texts=(text,), runs=150, predictors=predictors))
        self.solved(SyntheticProblem(texts=NONSENSE, classes=2))

    def test_the_toy_problem_is_solved_with_most_seeds(self) -> None:
        for predictors in PREDICTORS[:2]:
            gains = []
            for seed in self.seeds:
                toy = SyntheticProblem(seed=seed, predictors=predictors)
                best = self.solved(toy, seed=seed)[0]
                gains.append(toy.quality(best) - toy.quality(toy.problem.seed))
            missed = sum(gain < self.least_gain for gain in gains)
            said = ", ".join(f"{gain:.2f}" for gain in gains)
            _expect(missed <= self.may_miss, f"with predictors {predictors} the gains are {said}")


PREDICTORS = (("answer",), ("plan", "answer"), ("search", "plan", "answer"))
"""The programs an algorithm is tried on."""
NONSENSE = (
    "",
    " \n\t",
    "```",
    "```\n```",
    "Answer the question.",
    "{}",
    "\x00\ud800 \u202e",
    "x" * 50_000,
    "```json\n[1, 2\n```",
)
"""What a reflection LM may write that is no instruction."""


class ArchiveConformance:
    """What every archive promises, its notebooks and journals included. Inherit it and say how one is opened.

        class TestMine(ArchiveConformance):
            @pytest.fixture(autouse=True)
            def storage(self, tmp_path):
                self.url = f"sqlite:///{tmp_path}/ratchet.db"

            def opened(self):
                return SqlArchive(self.url)

    The promises: whatever is kept comes back as it was, every text of Python and every missing number included; what
    is kept twice stays as it was the first time; totals count each request that was sent; another connection sees what
    was written before a flush; eight threads that write at the same time lose nothing.
    """

    threads: int = 8
    written: Sequence[Notebook] = ()

    def opened(self) -> Archive:
        """The storage under test. Called again, it opens the same storage once more."""
        raise NotImplementedError

    def begun(self, name: str = "0a1b2c", **more: Any) -> Notebook:
        """A notebook of a new optimization."""
        notebook = self.opened().start(_optimization(name, **more))
        self.written = [*self.written, notebook]
        return notebook

    def again(self) -> Archive:
        """The same storage, opened once more after all that was written is safe."""
        for notebook in self.written:
            notebook.flush()
        return self.opened()

    # optimizations

    def test_an_optimization_comes_back_as_it_was(self) -> None:
        full = _optimization(
            "aa",
            status="failed",
            request={"options": {"target": TEXTS[0], "price": None, "seeds": [1, 2.5]}},
            result={"quality": None, "notes": list(TEXTS)},
            error=TEXTS[2],
            seconds=1.5,
        )
        self.again().start(full)
        found = self.again().find("aa")
        _same(found, full)
        _expect(found.created_at.tzinfo is not None, "created_at lost its time zone")

    def test_an_optimization_is_found_by_a_unique_beginning_of_its_id(self) -> None:
        archive = self.again()
        for name in ("abc1", "abc2", "abc11", "b%_7"):
            archive.start(_optimization(name))
        for beginning, name in (("abc1", "abc1"), ("abc2", "abc2"), ("b", "b%_7"), ("b%", "b%_7")):
            _same(archive.find(beginning).id, name)
            archive.open(beginning).note(Event(kind=f"by {beginning}"))
        _same([event.kind for _, event in archive.open("b%_7").events()], ["by b", "by b%"])
        for unknown in ("", "abc", "x", "%", "_bc1", "abc12", "ABC2"):
            for ask in (archive.find, archive.open):
                _expect(_raises(UnknownName, ask, unknown), f"{unknown!r} was found, though it names none or several")

    def test_the_newest_optimization_is_listed_first(self) -> None:
        archive = self.again()
        _same(archive.list(), [])
        for number in (2, 0, 3, 1):
            # As old as its number says, wherever the clock stood.
            zone = timezone(timedelta(hours=9 - 6 * number))
            archive.start(_optimization(f"n{number}", created_at=(LONG_AGO + timedelta(hours=number)).astimezone(zone)))
        _same([each.id for each in archive.list()], ["n3", "n2", "n1", "n0"])
        _same([each.id for each in archive.list(limit=2)], ["n3", "n2"])

    def test_status_result_and_seconds_are_kept(self) -> None:
        notebook, elsewhere = self.begun("aa"), self.begun("bb")
        notebook.set_status("failed", error=TEXTS[2])
        _same((self.again().find("aa").status, self.again().find("aa").error), ("failed", TEXTS[2]))
        notebook.set_status("improved", result={"p": 0.01, "none": None, "text": TEXTS[1]})
        notebook.add_seconds(1.25)
        notebook.add_seconds(0.5)
        found = self.again().find("aa")
        _same((found.status, found.error, found.seconds), ("improved", "", 1.75))
        _same(found.result, {"p": 0.01, "none": None, "text": TEXTS[1]})
        elsewhere.add_seconds(0.0)
        _same(self.again().find("bb").status, "running")

    # examples, candidates, evaluations, events

    def test_examples_come_back_in_their_splits_and_order(self) -> None:
        notebook = self.begun()
        _same(notebook.examples(), {})
        splits = {name: tuple(_example(f"{name} {number}") for number in range(12)) for name in ("train", "test")}
        splits["test"] += (_example("train 3"),)
        notebook.keep_examples(splits)
        _same(self.again().open("0a1b2c").examples(), splits)
        kept = notebook.examples()["train"][0]
        _same((kept.inputs, kept.labels), (splits["train"][0].inputs, splits["train"][0].labels))

    def test_examples_that_are_kept_again_change_nothing(self) -> None:
        notebook = self.begun()
        notebook.keep_examples({"train": [_example("a")], "validation": [_example("b")]})
        notebook.keep_examples({"train": [_example("c"), _example("d")], "test": [_example("e")]})
        _same(notebook.examples(), {"train": (_example("a"),), "validation": (_example("b"),)})

    def test_candidates_come_back_in_the_order_they_were_first_seen(self) -> None:
        notebook = self.begun()
        seed = _candidate(TEXTS[0])
        children = [seed.with_instructions("answer", text, origin=f"by {text}") for text in TEXTS[1:]]
        for number, each in enumerate((seed, *children, seed)):
            notebook.keep_candidate(each, stage=f"stage {number}")
        notebook.keep_candidate(Candidate(predictors=seed.predictors, parents=("x",), origin="again"), stage="later")
        kept = self.again().open("0a1b2c").candidates()
        expected = [(each.key, f"stage {number}") for number, each in enumerate((seed, *children))]
        _same([(each.key, stage) for each, stage in kept], expected)
        for (each, _), before in zip(kept, (seed, *children), strict=True):
            _same((each.state(), each.parents, each.origin), (before.state(), before.parents, before.origin))

    def test_evaluations_come_back_as_they_were(self) -> None:
        notebook = self.begun()
        evaluations = list(_evaluations())
        notebook.keep_examples({"train": list(dict.fromkeys(each.example for each in evaluations))})
        for number, each in enumerate(evaluations):
            notebook.keep_evaluation(each, stage=f"stage {number % 2}")
        kept = list(self.again().open("0a1b2c").evaluations())
        _same(kept, [(each, f"stage {number % 2}") for number, each in enumerate(evaluations)])
        _same([each.example.inputs for each, _ in kept], [each.example.inputs for each in evaluations])

    def test_an_evaluation_that_is_kept_again_changes_nothing(self) -> None:
        notebook = self.begun()
        first, second = (Evaluation(candidate="c", example=_example("a"), score=score) for score in (0.25, 0.75))
        notebook.keep_examples({"train": [_example("a")]})
        notebook.keep_evaluation(first, stage="search")
        notebook.keep_evaluation(second, stage="test")
        _same(list(notebook.evaluations()), [(first, "search")])

    def test_events_are_numbered_from_one_in_each_optimization(self) -> None:
        notebook, other = self.begun("aa"), self.begun("bb")
        for number, text in enumerate(TEXTS):
            notebook.note(Event(kind="said", payload={"text": text, "number": number, "nothing": None}))
            other.note(Event(kind="elsewhere"))
        expected = [
            (number, Event(kind="said", payload={"text": text, "number": number - 1, "nothing": None}))
            for number, text in enumerate(TEXTS, start=1)
        ]
        again = self.again().open("aa")
        _same(again.events(), expected)
        _same(again.events(after=2), expected[2:])
        _same(again.events(after=len(TEXTS)), [])

    # the journal

    def test_a_reply_is_found_once_it_is_recorded(self) -> None:
        journal = self.begun().journal
        for number, text in enumerate(TEXTS):
            reply = _reply(f"k{number}", text=text, cost_usd=None if number else 0.5)
            _expect(journal.find(reply.key) is None, "a reply was found before it was sent for")
            journal.reserve(reply.key, role=reply.role, stage=reply.stage, usd=1.0)
            _expect(journal.find(reply.key) is None, "a reply was found before it came")
            journal.record(reply)
            _same(journal.find(reply.key), reply)
            _same(self.again().open("0a1b2c").journal.find(reply.key), reply)

    def test_totals_count_retries_and_lost_requests(self) -> None:
        journal, elsewhere = self.begun("aa").journal, self.begun("bb").journal
        _same(_totals(journal), {"calls": 0, "recorded": 0, "tokens": (0, 0), "usd": (0.0, 0.0), "unpriced": 0})
        for _ in range(3):
            journal.reserve("retried", role="task", stage="search", usd=0.5)
        journal.record(_reply("retried", cost_usd=0.25))
        for _ in range(2):
            journal.reserve("lost", role="judge", stage="baseline", usd=0.125)
        journal.reserve("unpriced", role="reflection", stage="search", usd=0.0)
        journal.record(_reply("unpriced", cost_usd=None))
        journal.reserve("free", role="task", stage="test", usd=0.0)
        journal.record(_reply("free", cost_usd=0.0, stage="test"))
        elsewhere.reserve("retried", role="task", stage="search", usd=9.0)
        expected = {"calls": 7, "recorded": 3, "tokens": (30, 6), "usd": (0.25, 0.25), "unpriced": 1}
        for each in (journal, self.again().open("aa").journal):
            _same(_totals(each), expected)
            _same(dict(each.sent().by_stage), {"search": 4, "baseline": 2, "test": 1})
        _expect(journal.find("lost") is None, "a lost reply was found")
        _expect(elsewhere.find("retried") is None, "a reply of another optimization was found")

    def test_the_stage_that_asked_first_is_told_of_each_recorded_reply(self) -> None:
        journal, elsewhere = self.begun("aa").journal, self.begun("bb").journal
        for name, stage in (("k1", "baseline"), ("k2", "search"), ("lost", "search"), ("k1", "test")):
            journal.reserve(name, role="task", stage=stage, usd=0.0)
        for name, stage in (("k1", "baseline"), ("k2", "search")):
            journal.record(_reply(name, cost_usd=None, stage=stage))
        for each in (journal, self.again().open("aa").journal):
            _same(each.stages(), {"k1": "baseline", "k2": "search"})
        _same(elsewhere.stages(), {})

    # more than one at a time

    def test_an_optimization_can_be_held_let_go_and_held_again(self) -> None:
        notebook, other = self.begun("aa"), self.begun("bb")
        for _ in range(2):
            with notebook.claimed(), other.claimed():
                notebook.note(Event(kind="held"))
        try:
            with notebook.claimed():
                raise UnknownName("something went wrong while it was held")
        except UnknownName:
            pass
        with self.again().open("aa").claimed():
            _same(len(notebook.events()), 2)

    def test_what_one_connection_wrote_another_sees_after_a_flush(self) -> None:
        notebook = self.begun()
        seen = self.again().open("0a1b2c")
        seeing: list[object] = []
        for number in range(5):
            notebook.note(Event(kind=f"{number}"))
            notebook.flush()
            thread = threading.Thread(target=lambda: seeing.append(len(seen.events())))
            thread.start()
            thread.join()
        _same(seeing, [1, 2, 3, 4, 5])

    def test_writers_in_many_threads_lose_nothing(self) -> None:
        notebook, each_writes = self.begun(), 12
        examples = [_example(f"{number}") for number in range(each_writes)]
        notebook.keep_examples({"train": examples})

        def write(thread: int) -> None:
            mine = notebook if thread % 2 else self.again().open("0a1b2c")
            for number in range(each_writes):
                candidate = _candidate(f"{thread} {number}")
                mine.note(Event(kind="wrote", payload={"thread": thread, "number": number}))
                mine.keep_candidate(candidate, stage="search")
                mine.keep_candidate(_candidate(f"shared {number}"), stage=f"{thread}")
                mine.keep_evaluation(
                    Evaluation(candidate=candidate.key, example=examples[number], score=0.5), stage="search"
                )
                mine.journal.reserve(f"{thread} {number}", role="task", stage="search", usd=0.5)
                mine.journal.reserve(f"shared {number}", role="task", stage="search", usd=0.5)
                mine.journal.record(_reply(f"{thread} {number}", cost_usd=0.25))
                mine.add_seconds(0.5)
            mine.flush()

        _all_at_once(write, self.threads)
        n = self.threads * each_writes
        again = self.again().open("0a1b2c")
        events = [event.payload for _, event in again.events()]
        for thread in range(self.threads):
            _same([each["number"] for each in events if each["thread"] == thread], list(range(each_writes)))
        _same([number for number, _ in again.events()], list(range(1, n + 1)))
        _same(len(again.candidates()), n + each_writes)
        _same(len(list(again.evaluations())), n)
        _same(self.again().find("0a1b2c").seconds, n / 2)
        expected = {"calls": 2 * n, "recorded": n, "tokens": (10 * n, 2 * n), "usd": (n / 4, n / 2), "unpriced": 0}
        _same(_totals(again.journal), expected)


TEXTS = (
    "plain",
    "Grüße, 漢字, 🙂, \x1b[0m, \t\r\n, 'quoted' \"twice\" \\ and %s _",
    'a lone \udc80 surrogate and a \x00 in "the middle"',
    '"begins and ends with a quote"',
    "",
)
"""Texts that come back as they were, whatever an LM or a user made of them."""
LONG_AGO = datetime(2026, 1, 2, 3, 4, 5, 678, tzinfo=UTC)


def _expect(holds: bool, otherwise: str) -> None:
    if not holds:
        raise AssertionError(otherwise)


def _same(found: object, expected: object) -> None:
    _expect(found == expected, f"found {found!r}; expected {expected!r}")


def _raises(kind: type[Exception], function: Callable[..., object], *arguments: object) -> bool:
    try:
        function(*arguments)
    except kind:
        return True
    return False


def _all_at_once(work: Callable[[int], None], n: int) -> None:
    """Run ``work`` in ``n`` threads that begin together.

    Raises:
        Exception: the first that one of them raised.
    """
    barrier, errors = threading.Barrier(n), list[BaseException]()

    def run(number: int) -> None:
        barrier.wait()
        try:
            work(number)
        except BaseException as error:  # handed to the thread that waits
            errors.append(error)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(n)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


def _optimization(name: str, **more: Any) -> Optimization:
    return Optimization(**{"id": name, "status": "running", "created_at": LONG_AGO, "request": {}, **more})


def _example(name: str) -> Example:
    return Example(inputs={"text": name, "numbers": [1, 2.5, None], "said": list(TEXTS)}, labels={"flag": True})


def _candidate(text: str) -> Candidate:
    demos = ({"text": text, "answer": {"deep": [text, None]}},)
    return Candidate(predictors={"answer": PredictorState(instructions=text, demos=demos)})


def _evaluations() -> Iterator[Evaluation]:
    """Every kind of evaluation there is."""
    example = _example("a")
    yield Evaluation(candidate="c", example=example, score=0.0)
    yield Evaluation(candidate="c", example=example, repeat=1, score=1.0, usage=Usage(calls=2, cost_usd=None))
    yield Evaluation(
        candidate="c",
        example=_example("b"),
        failure=Failure(kind="unparseable", message=TEXTS[2]),
        feedback=TEXTS[1],
        trace=(Step(predictor="answer", inputs={"text": TEXTS[2]}, outputs={}, raw=TEXTS[2]),),
        replies=("k1", "k2"),
    )
    for number, text in enumerate(TEXTS):
        yield Evaluation(
            candidate=f"d{number}",
            example=example,
            score=1 / 3,
            feedback=text,
            prediction={"answer": text, "parts": [None, {"deep": text}]},
            trace=(Step(predictor="plan", inputs={"text": text}, outputs={"answer": None}),) * 2,
            usage=Usage(calls=1, prompt_tokens=10, completion_tokens=2, cost_usd=0.1 + 0.2, latency_ms=1e-3),
        )


def _reply(key: str, *, cost_usd: float | None, text: str = "hello", stage: str = "search") -> Reply:
    return Reply(
        key=key,
        role="task",
        stage=stage,
        response={"text": text, "parts": [{"deep": None}]},
        prompt_tokens=10,
        completion_tokens=2,
        cost_usd=cost_usd,
        latency_ms=1.5,
    )


def _totals(journal: Journal) -> dict[str, object]:
    sent = journal.sent()
    return {
        "calls": sent.calls,
        "recorded": sent.recorded,
        "tokens": (sent.prompt_tokens, sent.completion_tokens),
        "usd": (sent.usd, sent.usd_lost),
        "unpriced": sent.unpriced,
    }

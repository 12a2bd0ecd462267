"""Every DSPy optimizer as it is, as one algorithm that owns its loop."""

from __future__ import annotations

import math
import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import dspy
from dspy.utils.callback import BaseCallback

from ratchet.core.errors import BrokenOptimizer, BudgetSpent, MetricFailed, RatchetError
from ratchet.core.problem import Candidate, Example, Problem, content_hash
from ratchet.programs.dspy_program import DspyProgram, plain
from ratchet.programs.gateway import Gateway, Visit
from ratchet.programs.gateway_lm import GatewayLM
from ratchet.programs.ledger import Halt
from ratchet.programs.metrics import dspy_example, score
from ratchet.programs.parts import copied

_ran: ContextVar[Candidate | None] = ContextVar("ratchet_ran", default=None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Compilation:
    """All one DSPy optimizer is given.

    Attributes:
        problem: The problem; its budget is in program runs.
        metric: In DSPy's signature, with feedback.
        reflection: The LM that writes prompts.
        seed: For the optimizers that take one.
        threads: Concurrency.
    """

    problem: Problem
    metric: Callable[..., Any]
    task: dspy.LM
    reflection: dspy.LM
    seed: int
    threads: int
    student: dspy.Module
    train: list[dspy.Example]
    validation: list[dspy.Example]

    @property
    def runs(self) -> int:
        """Program runs the search may use."""
        return self.problem.budget.runs

    def full_validations(self, *, most: int) -> int:
        """How many candidates the budget can validate in full, at least 1 and at most ``most``."""
        return max(1, min(most, self.runs // max(1, len(self.validation))))


def _gepa(c: Compilation) -> dspy.Module:
    optimizer = dspy.GEPA(
        metric=c.metric,
        max_metric_calls=max(c.runs, len(c.validation) + 2),
        reflection_lm=c.reflection,
        num_threads=c.threads,
        seed=c.seed,
        warn_on_score_mismatch=False,
    )
    return optimizer.compile(c.student, trainset=c.train, valset=c.validation)


def _miprov2(c: Compilation) -> dspy.Module:
    sets, trials, size = mipro_plan(c.runs, len(c.validation), parts=len(c.student.predictors()))
    optimizer = dspy.MIPROv2(
        metric=c.metric,
        prompt_model=c.reflection,
        task_model=c.task,
        auto=None,
        num_candidates=sets,
        num_threads=c.threads,
        seed=c.seed or 9,
    )
    optimizer.num_instruct_candidates = sets // 2
    return optimizer.compile(
        c.student,
        # While nothing succeeds, bootstrapping goes through all there is.
        trainset=c.train[: max(8, c.runs // 4)],
        valset=c.validation,
        num_trials=trials,
        minibatch=size < len(c.validation),
        minibatch_size=size,
    )


MIPRO_SETS = (18, 12, 6, 4)
"""Demo sets to choose from: as many as in heavy, medium and light runs of ``dspy.MIPROv2``, or fewer."""
MIPRO_MINIBATCHES = (5, 10, 25)
"""Examples of a trial: the fewest, the fewest for which more demo sets are tried, and the most."""


def mipro_plan(runs: int, validation: int, *, parts: int) -> tuple[int, int, int]:
    """Demo sets, trials and minibatch of ``dspy.MIPROv2`` for so many runs: its own run modes, as far as they carry.

    Trials follow from demo sets as its authors have it, twice as many: about half of them come back to a combination,
    which costs nothing, and where all are new the budget ends them. Every fifth is followed by a full validation.

    >>> mipro_plan(174, 39, parts=1), mipro_plan(1000, 100, parts=1), mipro_plan(60, 20, parts=2)
    ((4, 16, 16), (18, 54, 18), (4, 12, 5))
    """
    fewest, enough, most = MIPRO_MINIBATCHES
    for sets in MIPRO_SETS:
        trials = int(max(4 * parts * math.log2(sets), 1.5 * sets))
        size = (runs - trials // 5 * validation) // trials
        if size >= enough:
            break
    if size < fewest:
        trials = max(2, min(trials, runs // (fewest + validation // 5)))
    return sets, 2 * trials, min(validation, most, max(fewest, size))


def _simba(c: Compilation) -> dspy.Module:
    size = max(1, min(12, len(c.train)))
    candidates = 3
    # SIMBA ends with an evaluation of its best programs on all of its training set.
    train = c.train[: max(size, min(len(c.train), c.runs // (3 * (candidates + 1))))]
    optimizer = dspy.SIMBA(
        metric=c.metric,
        bsize=size,
        num_candidates=candidates,
        max_steps=max(1, (c.runs - (candidates + 1) * len(train)) // (2 * size * candidates)),
        max_demos=4,
        prompt_model=c.reflection,
        num_threads=c.threads,
    )
    return optimizer.compile(c.student, trainset=train, seed=c.seed)


def _copro(c: Compilation) -> dspy.Module:
    breadth = 4
    optimizer = dspy.COPRO(
        prompt_model=c.reflection,
        metric=c.metric,
        breadth=breadth,
        depth=max(1, min(3, c.full_validations(most=12) // breadth)),
        init_temperature=1.0,
    )
    return optimizer.compile(
        c.student,
        trainset=c.validation,
        eval_kwargs={"num_threads": c.threads, "display_progress": False, "display_table": 0},
    )


def _bootstrap_random_search(c: Compilation) -> dspy.Module:
    optimizer = dspy.BootstrapFewShotWithRandomSearch(
        metric=c.metric,
        max_labeled_demos=8,
        num_candidate_programs=c.full_validations(most=19) - 3 if c.full_validations(most=19) > 4 else 1,
        num_threads=c.threads,
    )
    return optimizer.compile(c.student, trainset=c.train, valset=c.validation)


def _labeled_few_shot(c: Compilation) -> dspy.Module:
    return dspy.LabeledFewShot(k=8).compile(c.student, trainset=c.train)


def _infer_rules(c: Compilation) -> dspy.Module:
    optimizer = dspy.InferRules(
        metric=c.metric,
        num_candidates=c.full_validations(most=10),
        num_rules=10,
        num_threads=c.threads,
    )
    return optimizer.compile(c.student, trainset=c.train, valset=c.validation)


TELEPROMPTERS: dict[str, Callable[[Compilation], dspy.Module]] = {
    "dspy.gepa": _gepa,
    "dspy.miprov2": _miprov2,
    "dspy.simba": _simba,
    "dspy.copro": _copro,
    "dspy.bootstrap_random_search": _bootstrap_random_search,
    "dspy.labeled_few_shot": _labeled_few_shot,
    "dspy.infer_rules": _infer_rules,
}


FINALISTS = 4
SEEN_ENOUGH = 8
"""Examples a candidate must have been seen on, to be put forward without a full validation."""


@dataclass
class Scoreboard:
    """What an opaque optimizer was seen to measure: the scores of each candidate, by example.

    A score counts from the next ``settle`` on: of what parallel threads were at when the budget ran out, chance decides
    which part was done.

    Attributes:
        validation: Keys of the validation examples.
        on_candidate: Told of each candidate, with its mean, when it was seen on every validation example.
    """

    validation: frozenset[str]
    on_candidate: Callable[[Candidate, float], None] = lambda candidate, mean: None
    candidates: dict[str, Candidate] = field(default_factory=dict)
    scores: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)
    _fresh: list[tuple[Candidate, Example, float]] = field(default_factory=list)

    def see(self, candidate: Candidate, example: Example, score: float) -> None:
        """Note one score; of a pair that is run more than once the mean counts."""
        with self.lock:
            self._fresh.append((candidate, example, score))

    def settle(self) -> None:
        """Count all that was noted; to be called when nothing is under way."""
        with self.lock:
            before = {each.key for each in self.validated()}
            for candidate, example, score in self._fresh:
                self.candidates.setdefault(candidate.key, candidate)
                self.scores.setdefault(candidate.key, {}).setdefault(example.key, []).append(score)
            self._fresh.clear()
            done = [each for each in self.validated() if each.key not in before]
        for candidate in done:
            self.on_candidate(candidate, self._validated_mean(candidate.key))

    def _means(self, key: str) -> dict[str, float]:
        return {example: math.fsum(scores) / len(scores) for example, scores in self.scores[key].items()}

    def _validated_mean(self, key: str) -> float:
        means = self._means(key)
        return math.fsum(means[example] for example in self.validation) / len(self.validation)

    def validated(self) -> list[Candidate]:
        """Candidates seen on the whole validation split, best first."""
        full = [key for key, row in self.scores.items() if self.validation <= row.keys()]
        return [self.candidates[key] for key in sorted(full, key=lambda key: (-self._validated_mean(key), key))]

    def promising(self) -> list[Candidate]:
        """Candidates seen on part of the examples, best mean first, each mean drawn towards the mean of all."""
        part = {key: self._means(key) for key, row in self.scores.items() if len(row) >= SEEN_ENOUGH}
        if not part:
            return []
        sums = {key: math.fsum(row.values()) for key, row in part.items()}
        middle = math.fsum(sums.values()) / sum(len(row) for row in part.values())
        shrunk = {key: (sums[key] + 5 * middle) / (len(row) + 5) for key, row in part.items()}
        return [self.candidates[key] for key in sorted(part, key=lambda key: (-shrunk[key], key))]


class _Watch(BaseCallback):  # type: ignore[misc]
    """Notes which candidate runs in this context, so that the metric knows whom it scores.

    It also says when nothing is under way: when the optimizer's own thread begins or ends an evaluation or asks an LM.
    """

    def __init__(
        self,
        program: DspyProgram,
        student: dspy.Module,
        *,
        validation: Sequence[dspy.Example],
        settle: Callable[[], None],
    ) -> None:
        self._program = program
        self._settle = settle
        self._validation = {id(each) for each in validation}
        self._validating: dict[str, Candidate] = {}
        self._thread = threading.get_ident()
        self._kind = type(student)
        self._names = [name for name, _ in student.named_predictors()]
        self._outputs = [list(predictor.signature.output_fields) for predictor in student.predictors()]

    def on_module_start(self, call_id: str, instance: Any, inputs: dict[str, Any]) -> None:
        """A module starts; when it is a copy of the student, it is the one that is scored next."""
        if candidate := self._candidate(instance):
            _ran.set(candidate)

    def _candidate(self, module: dspy.Module) -> Candidate | None:
        if type(module) is not self._kind or [name for name, _ in module.named_predictors()] != self._names:
            return None
        if [list(predictor.signature.output_fields) for predictor in module.predictors()] != self._outputs:
            return None
        return Candidate(predictors=self._program.state_of(module), origin="seen in a DSPy optimizer")

    def unfinished(self) -> list[Candidate]:
        """Candidates whose full validation was begun and not ended."""
        return list(self._validating.values())

    def on_lm_start(self, call_id: str, instance: Any, inputs: dict[str, Any]) -> None:
        """An LM is asked."""
        self._pause()

    def on_evaluate_start(self, call_id: str, instance: Any, inputs: dict[str, Any]) -> None:
        """An evaluation starts."""
        self._pause()
        rows = inputs.get("devset") or instance.devset
        if self._validation <= {id(each) for each in rows} and (candidate := self._candidate(inputs["program"])):
            self._validating[call_id] = candidate

    def on_evaluate_end(self, call_id: str, outputs: Any | None, exception: BaseException | None = None) -> None:
        """An evaluation ended; if with an exception, its threads may be at work still."""
        if exception is None:
            self._validating.pop(call_id, None)
            self._pause()

    def _pause(self) -> None:
        if threading.get_ident() == self._thread:
            self._settle()


class _Hush:
    """What DSPy prints in a hushed context goes nowhere; ``redirect_stdout`` would silence the whole process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._here: ContextVar[bool] = ContextVar("ratchet_hushed", default=False)
        self._hushed = 0
        self._loud: Any = None

    def __enter__(self) -> None:
        with self._lock:
            if not self._hushed:
                self._loud, sys.stdout = sys.stdout, self
            self._hushed += 1
        self._here.set(True)

    def __exit__(self, *_: object) -> None:
        self._here.set(False)
        with self._lock:
            self._hushed -= 1
            if not self._hushed and sys.stdout is self:
                sys.stdout = self._loud

    def write(self, text: str) -> int:
        """Write, unless this context is hushed."""
        return len(text) if self._here.get() else int(self._loud.write(text))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loud, name)


_hush = _Hush()


def compile_with(
    name: str,
    program: DspyProgram,
    problem: Problem,
    gateway: Gateway,
    *,
    reflection: GatewayLM,
    seed: int,
    threads: int,
    on_candidate: Callable[[Candidate, float], None],
) -> Sequence[Candidate]:
    """Run the DSPy optimizer ``name`` in this thread; its finalists, best first, without the seed.

    When this stage's budget ends first, the best candidates the optimizer had seen are given back.

    Raises:
        RatchetError: the gateway was halted, for whatever the optimizer made of it.
        BrokenOptimizer: the optimizer itself raised.
    """
    examples = {content_hash(plain(each.fields)): each for each in (*problem.train, *problem.validation)}
    board = Scoreboard(frozenset(each.key for each in problem.validation), on_candidate)

    def metric(gold: Any, prediction: Any, trace: Any = None, pred_name: Any = None, pred_trace: Any = None) -> Any:
        gateway.check()
        example = examples.get(content_hash(plain(gold)))
        if example is None or not isinstance(prediction, dspy.Prediction):
            return dspy.Prediction(score=0.0, feedback="no prediction") if pred_name is not None else 0.0
        try:
            judged = score(program.metric, example, prediction, trace=trace)
            value, feedback = judged.score, judged.feedback
        except MetricFailed as error:
            value, feedback = 0.0, str(error)
        candidate = _ran.get()
        if candidate is not None:
            board.see(candidate, example, value)
        if pred_name is not None:
            return dspy.Prediction(score=value, feedback=feedback)
        # While demos are bootstrapped DSPy takes the value for a yes or no.
        return value >= problem.success_at if trace is not None else value

    student = copied(program.build(problem.seed))
    compilation = Compilation(
        problem=problem,
        metric=metric,
        task=program.lm or reflection,  # where every predictor has an LM of its own it is not asked
        reflection=reflection,
        seed=seed,
        threads=threads,
        student=student,
        train=[dspy_example(each) for each in problem.train],
        validation=[dspy_example(each) for each in problem.validation],
    )

    def settle() -> None:
        board.settle()
        gateway.settle()

    winner: dspy.Module | None = None
    visit = Visit()
    watch = _Watch(program, student, validation=compilation.validation, settle=settle)
    settings = {"callbacks": [watch], "ratchet_visit": visit, "max_errors": sys.maxsize}
    try:
        with _hush, program.settings(**settings):
            try:
                winner = TELEPROMPTERS[name](compilation)
            except BaseException as stop:
                # A progress bar that was left open in one of these frames prints when it is dropped: now, unheard.
                traceback.clear_frames(stop.__traceback__)
                raise
        settle()
    except Halt as halt:
        gateway.check()
        if not isinstance(halt.cause, BudgetSpent):
            raise halt.cause from halt
    except RatchetError:
        raise
    except Exception as error:  # DSPy's optimizer is foreign code
        gateway.check()
        if not gateway.exhausted:
            raise BrokenOptimizer(f"{name} raised {type(error).__name__}: {error}") from error
    finally:
        visit.end()
        gateway.loosen()
    gateway.check()
    # The optimizer's own choice stands first; when the budget ended before it could choose, what it saw decides.
    found = [Candidate(predictors=program.state_of(winner))] if winner is not None else []
    found += board.validated()
    if winner is None:
        found += watch.unfinished() + board.promising()
    unique = {each.key: each for each in found if each.key != problem.seed.key}
    return [
        Candidate(predictors=each.predictors, parents=(problem.seed.key,), origin=name)
        for each in list(unique.values())[:FINALISTS]
    ]

"""Metrics by name, and metrics of users: each gives a score and feedback in words, or fails by name."""

from __future__ import annotations

import asyncio
import contextvars
import copy
import dataclasses
import difflib
import inspect
import math
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import dspy
import numpy as np

from ratchet.core.errors import BadMetric, BadRequest, MetricFailed, RatchetError, UnknownName
from ratchet.core.problem import Example, Fields, canonical
from ratchet.programs.comparisons import FIELD_METRICS, Compare, plain, shown
from ratchet.programs.loop import WouldBlockError, in_thread
from ratchet.programs.targets import load_attribute

T = TypeVar("T")

METRICS: tuple[str, ...] = (*FIELD_METRICS, "llm_judge")
"""Every metric that has a name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricResult:
    """What a metric says of one prediction; higher is better."""

    score: float
    feedback: str = ""


class _Habit:
    """Whether a metric that may block does: it runs in threads until it was quick, and again once it was slow.

    A thread costs more than most metrics do.
    """

    TRIALS, QUICK, SLOW = 5, 0.0005, 0.005
    """Calls in a thread of which one must be quick; seconds of a quick call; seconds of one that held up all others."""

    def __init__(self) -> None:
        self._seconds: list[float] = []
        self.blocks = False

    @property
    def is_quick(self) -> bool:
        return not self.blocks and len(self._seconds) >= self.TRIALS and min(self._seconds) < self.QUICK

    def timed(self, call: Callable[[], Any]) -> Any:
        began = time.perf_counter()
        try:
            return call()
        finally:
            seconds = time.perf_counter() - began
            if not self.is_quick:
                self._seconds.append(seconds)
            elif seconds > self.SLOW:
                self.blocks = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """A metric that can be called as DSPy calls one.

    Attributes:
        name: As it was asked for.
        fields: The label fields it compares; empty when that is the metric's own business.
        function: ``(example, prediction, trace, pred_name, pred_trace)`` -> whatever a metric may return.
        in_thread: Whether ``function`` may block (a user's code, an LM call), so that it must not run on an event loop
            until it has shown that it does not.
    """

    name: str
    fields: tuple[str, ...] = ()
    function: Callable[..., Any]
    in_thread: bool = False
    _habit: _Habit = dataclasses.field(default_factory=lambda: _Habit(), compare=False, repr=False)

    def __call__(
        self, example: Any, prediction: Any, trace: Any = None, pred_name: Any = None, pred_trace: Any = None
    ) -> Any:
        """What the function returns, untouched."""
        return self.function(example, prediction, trace, pred_name, pred_trace)


# --- scoring --------------------------------------------------------------------------------------------------------


def score(metric: Metric, example: Example, prediction: dspy.Prediction, *, trace: Any = None) -> MetricResult:
    """The metric's score and feedback; waits for an async metric. On an event loop use ``ascore``.

    Args:
        trace: None while evaluating. By DSPy's custom a metric that gets a trace answers yes or no, for bootstrapping.
    Raises:
        MetricFailed: the metric raised, or returned something that is no finite number of 0 or more.
    """
    returned = _call(metric, example, prediction, trace)
    return _result(metric, _finished(metric, returned))


async def ascore(
    metric: Metric,
    example: Example,
    prediction: dspy.Prediction,
    *,
    trace: Any = None,
    seconds: float | None = None,
) -> MetricResult:
    """``score`` for an event loop: an async metric is awaited, one that may block runs in a thread.

    Args:
        seconds: How long that may take; None for no limit.
    Raises:
        TimeoutError: it took longer.
    """
    call, habit = partial(_call, metric, example, prediction, trace), metric._habit
    until = None if seconds is None else asyncio.get_running_loop().time() + seconds
    try:
        if metric.in_thread and not habit.is_quick:
            returned = await _until(until, in_thread(habit.timed, call))
        else:
            returned = habit.timed(call)
        if inspect.isawaitable(returned):
            returned = await _until(until, _awaited(metric, returned))
    except (WouldBlockError, MetricFailed) as error:
        if isinstance(error, MetricFailed) and not _wants_a_loop(error):
            raise
        habit.blocks = True
        returned = await _until(until, in_thread(lambda: _finished(metric, call())))
    return _result(metric, returned)


async def _until(when: float | None, work: Coroutine[Any, Any, T]) -> T:
    async with asyncio.timeout_at(when):
        return await work


def _wants_a_loop(error: MetricFailed) -> bool:
    """Whether the metric failed because it began an event loop of its own, on one."""
    return isinstance(error.__cause__, RuntimeError) and "event loop" in str(error.__cause__)


def _finished(metric: Metric, returned: Any) -> Any:
    return _wait_for(_awaited(metric, returned)) if inspect.isawaitable(returned) else returned


def dspy_example(example: Example) -> dspy.Example:
    """The example as DSPy and user metrics expect it."""
    made = dspy.Example(own(example.fields))
    made._input_keys = set(example.inputs)  # what with_inputs does to a copy
    return made


def own(fields: Fields) -> dict[str, Any]:
    """``fields`` for foreign code, which may change what it gets."""
    return {name: copy.deepcopy(value) if isinstance(value, list | dict) else value for name, value in fields.items()}


def dspy_prediction(fields: Fields) -> dspy.Prediction:
    """Output fields as DSPy and user metrics expect them."""
    return dspy.Prediction(dict(fields))


def _call(metric: Metric, example: Example, prediction: dspy.Prediction, trace: Any) -> Any:
    try:
        return metric(dspy_example(example), prediction, trace)
    except RatchetError:
        raise
    except (Exception, SystemExit, asyncio.CancelledError) as error:  # the user's metric is foreign code
        raise _failed(metric, error) from error


async def _awaited(metric: Metric, returned: Any) -> Any:
    try:
        return await returned
    except RatchetError:
        raise
    except (Exception, SystemExit) as error:  # the user's metric is foreign code
        raise _failed(metric, error) from error


def _failed(metric: Metric, error: BaseException) -> MetricFailed:
    return MetricFailed(f"metric {metric.name} raised {type(error).__name__}: {error}", metric=metric.name)


def _wait_for(work: Coroutine[Any, Any, Any]) -> Any:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(work)
    # DSPy's own optimizers call metrics synchronously, also from under a running loop: that loop cannot be re-entered.
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(contextvars.copy_context().run, asyncio.run, work).result()


def _result(metric: Metric, returned: Any) -> MetricResult:
    if isinstance(returned, MetricResult):
        return returned
    value: Any = returned
    feedback: Any = None
    if isinstance(returned, dspy.Prediction | Mapping):
        fields = dict(returned.items())
        if "score" not in fields:
            raise MetricFailed(
                f"metric {metric.name} returned {list(fields) or 'nothing'} without 'score'", metric=metric.name
            )
        value, feedback = fields["score"], fields.get("feedback")
    elif isinstance(returned, tuple) and len(returned) == 2:
        value, feedback = returned
    if isinstance(value, np.generic):
        value = value.item()
    if not isinstance(value, bool | int | float):
        raise MetricFailed(f"metric {metric.name} returned {value!r:.80}, which is no number", metric=metric.name)
    if not math.isfinite(value) or value < 0:
        raise MetricFailed(
            f"metric {metric.name} returned {value}; a score is a number of 0 or more", metric=metric.name
        )
    return MetricResult(score=float(value), feedback="" if feedback is None else str(feedback))


# --- by name --------------------------------------------------------------------------------------------------------


def resolve_metric(
    name_or_path: str,
    *,
    labels: Sequence[str],
    outputs: Sequence[str] | None = None,
    judge_lm: Any = None,
    rubric: str | None = None,
) -> Metric:
    """The metric that a user names.

    Args:
        name_or_path: ``name``, ``name:field``, ``name:field,other``, with options as in
            ``numeric:total,tolerance=0.5`` or ``multi_label:tags,measure=jaccard``; ``llm_judge:rubric.md``;
            ``file.py:function``; ``package.module:function``.
        labels: Label fields of the data.
        outputs: Output fields of the program. Without named fields those that are labels too are compared; None takes
            all labels.
        judge_lm: The LM that ``llm_judge`` asks.
        rubric: What ``llm_judge`` grades by, where it is no file.
    Raises:
        UnknownName: there is no such metric, field, module or function.
        BadMetric: it cannot be called as a metric, or lacks what it needs.

    >>> metric = resolve_metric("exact_match", labels=["answer"])
    >>> example = Example(inputs={"question": "Capital of France?"}, labels={"answer": "Paris"})
    >>> score(metric, example, dspy_prediction({"answer": "london"}))
    MetricResult(score=0.0, feedback="expected 'Paris', got 'london'")
    """
    name, _, argument = name_or_path.partition(":")
    if name == "llm_judge":
        return _judge(name_or_path, argument, judge_lm, rubric)
    if name in FIELD_METRICS:
        return _field_metric(name_or_path, name, argument, labels, outputs)
    if "." in name or "/" in name or (argument and not difflib.get_close_matches(name, METRICS, n=1)):
        return _user_metric(name_or_path)
    near = difflib.get_close_matches(name, METRICS, n=1)
    raise UnknownName(
        f"there is no metric {name!r}"
        + (f"; did you mean {near[0]!r}?" if near else "")
        + f" There are {', '.join(METRICS)}, and your own as file.py:function or package.module:function",
        name=name,
    )


def _field_metric(text: str, name: str, argument: str, labels: Sequence[str], outputs: Sequence[str] | None) -> Metric:
    compare, allowed = FIELD_METRICS[name]
    parts = [part.strip() for part in argument.split(",") if part.strip()]
    options = {key.strip(): value.strip() for key, _, value in (part.partition("=") for part in parts if "=" in part)}
    named = tuple(dict.fromkeys(part for part in parts if "=" not in part))
    for field in named:
        if field not in labels:
            raise UnknownName(f"metric {text}: the data has no label {field!r}; it has {_listed(labels)}", field=field)
        if outputs is not None and field not in outputs:
            raise UnknownName(
                f"metric {text}: the program gives no {field!r}; it gives {_listed(outputs)}", field=field
            )
    fields = named or tuple(label for label in labels if outputs is None or label in outputs)
    if not fields:
        raise BadMetric(
            f"metric {text}: no output of the program ({_listed(outputs or ())}) is a label in the data "
            f"({_listed(labels)}); rename a column with --map OUTPUT=COLUMN",
        )
    chosen: dict[str, Any] = {}
    for option, value in options.items():
        if option not in allowed:
            raise BadMetric(f"metric {text}: there is no option {option!r}; there are {_listed(tuple(allowed))}")
        try:
            chosen[option] = allowed[option](value)
        except ValueError as error:
            raise BadMetric(f"metric {text}: {option}={value} cannot be used: {error}") from error
    return Metric(
        name=text,
        fields=fields,
        function=partial(_over_fields, fields, partial(compare, **chosen), name == "exact_match"),
    )


def _user_metric(text: str) -> Metric:
    module, _, attribute = text.rpartition(":")
    if not module or not attribute:
        raise UnknownName(f"metric {text!r} names no function; give file.py:function or package.module:function")
    try:
        function = load_attribute(module, attribute, what="metric")
    except BadRequest as error:
        raise BadMetric(str(error)) from error
    return user_metric(function, name=text)


def user_metric(function: Any, *, name: str | None = None) -> Metric:
    """A user's own function as a metric.

    Raises:
        BadMetric: it cannot be called as a metric.
    """
    text = name or str(getattr(function, "__qualname__", type(function).__name__))
    if isinstance(function, Metric):
        return function
    if inspect.isclass(function) or not callable(function):
        raise BadMetric(f"metric {text} is {_a(function)}; it must be a function of (example, prediction, ...)")
    is_async = inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(type(function).__call__)
    return Metric(name=text, function=_takes_what_it_can(text, function), in_thread=not is_async)


def _takes_what_it_can(text: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """``function`` called with as many of DSPy's five arguments as it has parameters for."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError) as error:
        raise BadMetric(f"metric {text} has no signature that can be read; wrap it in a function") from error
    by_place = [each for each in parameters if each.kind in (each.POSITIONAL_ONLY, each.POSITIONAL_OR_KEYWORD)]
    takes = 5 if any(each.kind is each.VAR_POSITIONAL for each in parameters) else min(5, len(by_place))
    needed = [each.name for each in by_place[5:] if each.default is each.empty]
    needed += [each.name for each in parameters if each.kind is each.KEYWORD_ONLY and each.default is each.empty]
    if takes < 2 or needed:
        why = f"nothing is given for {needed}" if needed else f"it takes {takes}"
        raise BadMetric(
            f"metric {text} must take (example, prediction), then optionally trace, pred_name and pred_trace; {why}"
        )

    def call(*arguments: Any) -> Any:
        return function(*arguments[:takes])

    return call


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names) or "none"


def _a(value: object) -> str:
    return f"the class {value.__name__}" if inspect.isclass(value) else f"a {type(value).__name__}"


def _over_fields(
    fields: Sequence[str], compare: Compare, all_or_nothing: bool, example: dspy.Example, prediction: Any, *_: Any
) -> MetricResult:
    scores, remarks = [], []
    for field in fields:
        if field not in example:
            raise MetricFailed(f"this example has no label {field!r}", field=field)
        if field not in prediction:
            scores.append(0.0)
            remarks.append(f"{field}: expected {shown(plain(example[field]))}, got nothing")
            continue
        value, remark = compare(plain(example[field]), plain(prediction[field]))
        scores.append(value)
        if remark:
            remarks.append(f"{field}: {remark}" if len(fields) > 1 else remark)
    total = float(all(value == 1.0 for value in scores)) if all_or_nothing else sum(scores) / len(scores)
    return MetricResult(score=min(1.0, total), feedback="; ".join(remarks) or "Correct.")


# --- a judge --------------------------------------------------------------------------------------------------------


class Grade(dspy.Signature):  # type: ignore[misc]  # dspy is untyped
    """Grade an answer by the rubric. First say what is right and wrong with it, then give the score."""

    rubric: str = dspy.InputField()
    task: str = dspy.InputField(desc="what was asked")
    expected: str = dspy.InputField(desc="what is known of the right answer; may be empty")
    answer: str = dspy.InputField(desc="the answer to grade")
    feedback: str = dspy.OutputField(desc="what to do better, in one or two sentences")
    score: float = dspy.OutputField(desc="from 0 (useless) to 1 (perfect)")


def _rubric(text: str, argument: str) -> str:
    """The rubric in a file."""
    path = Path(argument).expanduser()
    try:
        rubric = path.read_text(encoding="utf-8-sig").strip()
    except FileNotFoundError as error:
        raise UnknownName(f"metric {text}: there is no file {path}", file=str(path)) from error
    except (OSError, UnicodeDecodeError) as error:
        raise BadMetric(f"metric {text}: {path} cannot be read as text: {error}", file=str(path)) from error
    if not rubric:
        raise BadMetric(f"metric {text}: {path} is empty; write down what a good answer is", file=str(path))
    return rubric


def _judge(text: str, argument: str, judge_lm: Any, rubric: str | None) -> Metric:
    if rubric is None and not argument:
        raise BadMetric(
            "llm_judge needs a rubric: a text file that says what a good answer is, as in llm_judge:rubric.md"
        )
    if judge_lm is None:
        raise BadMetric(f"metric {text} needs a judge LM; none was given")
    rubric = _rubric(text, argument) if rubric is None else rubric
    grade = dspy.Predict(Grade)
    grade.set_lm(judge_lm)

    def judge(example: dspy.Example, prediction: dspy.Prediction, *_: Any) -> MetricResult:
        verdict = grade(
            rubric=rubric,
            task=canonical(plain(dict(example.inputs().items()))),
            expected=canonical(plain(dict(example.labels().items()))),
            answer=canonical(plain(dict(prediction.items()))),
        )
        value = float(verdict.score)
        if not 0.0 <= value <= 1.0:
            raise MetricFailed(f"the judge gave {value}, which is not between 0 and 1", score=value)
        return MetricResult(score=value, feedback=str(verdict.feedback))

    return Metric(name=text, function=judge, in_thread=True)

"""What is known of a task before a search, and what was learned from others like it; all of it plain data."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ratchet.core.problem import Candidate, Example, Problem

LONG_OUTPUT = 80
"""Characters from which the median answer is a text rather than a value."""

_PARAMETERS = re.compile(r"(?<![\w.])(\d+(?:\.\d+)?)\s*([bm])(?![a-z0-9])", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskFeatures:
    """A task in a few values.

    Attributes:
        train: Examples to learn from.
        validation: Examples to choose by.
        predictors: How many predictors the program has.
        output: ``choice`` (one of a few), ``value`` (something short) or ``text``.
        inputs: Names of the input fields, sorted.
        outputs: Names of the output fields, sorted.
        lm: Name of the task LM; empty when it is not known.
        headroom: How far the mean score can rise; None when it was not measured.
        noise: Standard deviation of repeated scores of one example; None when it was not measured.
    """

    train: int
    validation: int
    predictors: int
    output: str
    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    lm: str = ""
    headroom: float | None = None
    noise: float | None = None

    def to_json(self) -> dict[str, Any]:
        """The features as JSON data."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> TaskFeatures:
        """The features that ``to_json`` came from."""
        return cls(**{**data, "inputs": tuple(data["inputs"]), "outputs": tuple(data["outputs"])})


def features_of(problem: Problem, *, baseline: float | None = None) -> TaskFeatures:
    """The features of ``problem``, whose seed scores ``baseline`` on validation.

    >>> from ratchet.testing import SyntheticProblem
    >>> features_of(SyntheticProblem(classes=2).problem, baseline=0.25).headroom
    0.75
    """
    specs = problem.predictors
    return TaskFeatures(
        train=len(problem.train),
        validation=len(problem.validation),
        predictors=len(specs),
        output=_output(problem),
        inputs=tuple(sorted({field.name for spec in specs for field in spec.inputs})),
        outputs=tuple(sorted({field.name for spec in specs for field in spec.outputs})),
        lm=problem.lm,
        headroom=None if baseline is None or baseline > 1.0 else 1.0 - baseline,
        noise=problem.noise,
    )


def _output(problem: Problem) -> str:
    last = problem.predictors[-1].outputs if problem.predictors else ()
    if last and all(field.choices or field.type in ("bool", "Literal") for field in last if field.name != "reasoning"):
        return "choice"
    lengths = sorted(_longest(example) for example in (*problem.train, *problem.validation))
    if not lengths:
        return "value"
    answers = {str(example.labels) for example in (*problem.train, *problem.validation)}
    if len(lengths) >= 10 and len(answers) <= len(lengths) / 5:
        return "choice"
    return "text" if lengths[len(lengths) // 2] >= LONG_OUTPUT else "value"


def _longest(example: Example) -> int:
    return max((len(str(value)) for value in example.labels.values()), default=0)


def parameters(lm: str) -> float | None:
    """Billions of parameters, where the LM's name tells them.

    >>> parameters("qwen2.5-0.5b-instruct"), parameters("smollm2-135m"), parameters("openai/gpt-4.1-mini")
    (0.5, 0.135, None)
    """
    found = _PARAMETERS.findall(lm)
    if not found:
        return None
    number, unit = found[-1]
    return float(number) * (1.0 if unit.lower() == "b" else 1e-3)


def similarity(one: TaskFeatures, other: TaskFeatures) -> float:
    """How alike two tasks are, from 0 to 1: the mean over what can be compared of them.

    Field names count twice: two programs that read and answer the same fields most likely do the same job.

    >>> mails = TaskFeatures(train=40, validation=20, predictors=1, output="choice", outputs=("queue",))
    >>> similarity(mails, mails)
    1.0
    """
    parts = [
        (1.0, float(one.output == other.output)),
        (1.0, _ratio(one.predictors, other.predictors)),
        (0.5, _ratio(one.train, other.train)),
        (2.0, _overlap((*one.inputs, *one.outputs), (*other.inputs, *other.outputs))),
    ]
    if one.lm and other.lm:
        sizes = parameters(one.lm), parameters(other.lm)
        close = _ratio(sizes[0], sizes[1]) if sizes[0] and sizes[1] else 0.0
        parts.append((1.0, 1.0 if one.lm == other.lm else 0.5 * close))
    if one.headroom is not None and other.headroom is not None:
        parts.append((1.0, 1.0 - min(1.0, abs(one.headroom - other.headroom))))
    return sum(weight * value for weight, value in parts) / sum(weight for weight, _ in parts)


def _ratio(a: float, b: float) -> float:
    if a == b:
        return 1.0
    return math.exp(-abs(math.log(a / b))) if a > 0 and b > 0 else 0.0


def _overlap(a: Sequence[str], b: Sequence[str]) -> float:
    either = set(a) | set(b)
    return len(set(a) & set(b)) / len(either) if either else 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Advice:
    """What to try first, and why.

    Attributes:
        candidates: Candidates that helped on tasks like this one, made to fit this program.
        order: Names of algorithms, those that gained most per run first.
        why: One sentence for each of these, for the reader of the result.
    """

    candidates: tuple[Candidate, ...] = ()
    order: tuple[str, ...] = ()
    why: tuple[str, ...] = ()

"""Reflecting on a text that is no instructions: what a tool says of itself, or a part of a remote agent's prompt.

What such a text did is not seen in one step alone. A description that is not clear shows in a tool that was not called
where it should have been, so that the whole run is told: every step, and the calls.
"""

from __future__ import annotations

from collections.abc import Mapping

from ratchet.core.evaluation import Evaluation, Evaluations, Step
from ratchet.core.problem import FieldSpec, PredictorSpec, Problem, canonical

LONGEST_FIELD = 400
"""Characters of a field shown to the reflection LM."""
MOST_STEPS = 12
"""Steps of a run shown to the reflection LM: the first, and the last ones."""


def clip(value: object) -> str:
    """``value`` as text of bounded length.

    >>> clip("x" * 1000) == "x" * LONGEST_FIELD + " [...]"
    True
    """
    text = value if isinstance(value, str) else canonical(value)
    return text if len(text) <= LONGEST_FIELD else f"{text[:LONGEST_FIELD]} [...]"


def verdict(row: Evaluation, right: str) -> list[str]:
    """What was said of a run, as lines: why it failed, the feedback or else the ``right`` answer, the score."""
    lines = [] if row.failure is None else [f"failed ({row.failure.kind}): {clip(row.failure.message)}"]
    if row.feedback:
        lines.append(f"feedback: {clip(row.feedback)}")
    elif row.example.labels:
        lines.append(right)
    lines.append("score: none" if row.score is None else f"score: {row.score:g}")
    return lines


def text_prompt(problem: Problem, spec: PredictorSpec, now: str, rows: Evaluations, *, shown: int) -> str:
    """What the reflection LM reads to rewrite the text ``now``, with the worst of ``rows`` step by step.

    Args:
        problem: What is improved.
        spec: The text's spec; ``spec.text`` says what it is.
        now: The text as it is.
        rows: Runs with it.
        shown: Most runs shown.
    """
    worst = sorted(rows, key=lambda row: row.counted)[:shown]
    texts = frozenset(each.name for each in problem.predictors if each.text)
    runs = "\n\n".join(f"Run {number}\n{_run(row, spec, texts)}" for number, row in enumerate(worst, start=1))
    purpose = f"The program: {clip(problem.description)}\n" if problem.description else ""
    given = f"It goes with: {', '.join(map(_field, spec.inputs))}\n" if spec.inputs else ""
    return f"""\
An agent works with a text that can be rewritten: {spec.text}. Find out from its runs why it failed, and what this text
has to do with it; then rewrite the text.

{purpose}{given}
The text now:
<text>
{now or "(there is none yet)"}
</text>

{runs}

Write the complete new text. Say what would have avoided these failures, and keep what works. It must hold for inputs
nobody has seen: name kinds of cases, do not repeat inputs from the runs. Use plain English and no code. Be specific and
brief. Answer with the new text only."""


def _field(spec: FieldSpec) -> str:
    return f"{spec.name} ({spec.type}; {clip(spec.description)})" if spec.description else f"{spec.name} ({spec.type})"


def _run(row: Evaluation, spec: PredictorSpec, texts: frozenset[str]) -> str:
    """One run as lines: the input, the steps, the answer, and what was said of it."""
    steps = [step for step in row.trace if step.predictor == spec.name or step.predictor not in texts]
    left_out = len(steps) - MOST_STEPS
    lines = [_line("given", row.example.inputs)]
    lines += [_step(step, spec) for step in steps[:1]]
    lines += [f"({left_out} steps are left out)"] if left_out > 0 else []
    lines += [_step(step, spec) for step in steps[max(1, left_out + 1) :]]
    if row.failure is None and not any(step.predictor == spec.name for step in steps):
        lines.append("what the text is about was not used in this run")
    if row.prediction:
        lines.append(_line("final answer", {name: row.prediction[name] for name in list(row.prediction)[-3:]}))
    return "\n".join((*lines, *verdict(row, _line("right answer", row.example.labels))))


def _step(step: Step, spec: PredictorSpec) -> str:
    name = "HERE" if step.predictor == spec.name else f"step {step.predictor}"
    asked = f"{_values(step.inputs)} -> " if step.predictor == spec.name else ""
    return f"{name}: {asked}{_values(step.outputs) if step.outputs else clip(step.raw)}"


def _line(title: str, values: Mapping[str, object]) -> str:
    return f"{title}: {_values(values)}"


def _values(values: Mapping[str, object]) -> str:
    return ", ".join(f"{name}={clip(value)}" for name, value in values.items())

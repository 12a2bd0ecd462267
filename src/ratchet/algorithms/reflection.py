"""What the reflection LM reads of runs that failed, to rewrite the instructions they followed."""

from __future__ import annotations

from collections.abc import Sequence

from ratchet.algorithms.text import clip, text_prompt, verdict
from ratchet.core.evaluation import Evaluation, Evaluations, Step
from ratchet.core.problem import Candidate, Fields, FieldSpec, Problem

QUOTATION = 20
"""Characters from which an input value that reappears in instructions was copied rather than understood."""


def quotes(text: str, rows: Evaluations) -> bool:
    """Whether ``text`` repeats an input of one of ``rows`` word for word."""
    values = (value for row in rows for value in row.example.inputs.values())
    return any(isinstance(value, str) and len(value) >= QUOTATION and value in text for value in values)


def reflection_prompt(problem: Problem, parent: Candidate, predictor: str, rows: Evaluations, *, shown: int = 4) -> str:
    """What the reflection LM reads: the predictor, its instructions, and the worst of ``rows`` with their feedback."""
    spec = problem.predictor(predictor)
    if spec.text:
        return text_prompt(problem, spec, parent.predictors[predictor].instructions, rows, shown=shown)
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
    return "\n".join((*lines, *verdict(row, _values("right answer", row.example.labels))))


def _telling_step(row: Evaluation, predictor: str) -> Step | None:
    """The first step of ``predictor`` that could not be read, or else its last."""
    steps = [step for step in row.trace if step.predictor == predictor]
    unread = [step for step in steps if not step.outputs]
    return next(iter(unread + steps[-1:]), None)


def _values(title: str, values: Fields) -> str:
    return "\n".join(f"{title} {name}: {clip(value)}" for name, value in values.items())

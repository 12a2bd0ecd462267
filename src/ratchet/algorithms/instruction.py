"""Asking a reflection LM for instructions, and reading them out of what it wrote."""

from __future__ import annotations

import inspect
import re
from collections.abc import Sequence

from ratchet.core.problem import Fields, FieldSpec, PredictorSpec, Problem, canonical

MAX_INSTRUCTION = 4000
"""Characters; a longer text is no instruction."""

_FENCE = re.compile(r"```[^\n`]*\n(.*?)(?:```|\Z)", re.DOTALL)


def read_instruction(text: str) -> str | None:
    """The text inside the first fence, or the whole text when there is none; None when nothing is left.

    Lines that are all indented are moved to the left, as DSPy does to the instructions it is given: so that what was
    searched, stored and saved is the same text.

    >>> read_instruction("Here it is:\\n```\\nAnswer in one word.\\n```\\nGood luck!")
    'Answer in one word.'
    >>> read_instruction("Answer in one word.")
    'Answer in one word.'
    """
    fenced = _FENCE.search(text)
    return inspect.cleandoc(fenced.group(1) if fenced else text).strip() or None


_CODE = re.compile(r"^\s*(def |class |import |from \w+ import |self\.|return |#include|[{\[<])", re.MULTILINE)


def is_code(text: str) -> bool:
    """Whether ``text`` is a program rather than instructions: small LMs trained on code like to write one.

    >>> is_code("def label(text):\\n    return 'human'"), is_code("Return the label as one word.")
    (True, False)
    """
    return bool(_CODE.match(text)) or len(_CODE.findall(text)) >= 3


def accepted(problem: Problem, proposals: Sequence[tuple[str, str]]) -> dict[str, list[str]]:
    """The seed's instructions per predictor, then what can be used of ``proposals`` (predictor, text of the LM)."""
    options = {name: [state.instructions] for name, state in problem.seed.predictors.items()}
    for name, text in proposals:
        instructions = read_instruction(text)
        if instructions and is_usable(instructions) and instructions not in options[name]:
            options[name].append(instructions)
    return options


def named(fields: Sequence[FieldSpec]) -> str:
    """Fields in words: name, type or choices, description.

    >>> named([FieldSpec(name="mood", type="Literal", choices=("calm", "angry"))])
    '`mood` (one of: calm, angry)'
    """
    return ", ".join(f"`{field.name}` ({_kind(field)})" for field in fields)


def _kind(field: FieldSpec) -> str:
    kind = f"one of: {', '.join(field.choices)}" if field.choices else field.type
    return f"{kind}; {field.description[:100]}" if field.description else kind


def shortened(fields: Fields, *, each: int = 200) -> str:
    """``fields`` on one line, each value cut to ``each`` characters: the reader is slow."""
    values = ((name, value if isinstance(value, str) else canonical(value)) for name, value in fields.items())
    return "- " + " | ".join(f"{name}: {text if len(text) <= each else text[:each] + '...'}" for name, text in values)


def is_usable(instructions: str) -> bool:
    """Whether a text can stand as instructions at all."""
    return len(instructions) <= MAX_INSTRUCTION and not is_code(instructions)


def job_prompt(
    spec: PredictorSpec, *, now: str, examples: Sequence[Fields], wish: str, about: Sequence[str] = ()
) -> str:
    """What a reflection LM is asked for the instructions of one predictor; what varies comes last, for prefix caches.

    It asks for plain English and for a given beginning: an LM trained on code answers a bare request with a program.

    Args:
        spec: The predictor.
        now: Its instructions as they are.
        examples: Inputs with right answers.
        wish: What these instructions should do.
        about: What else is known of the program and its data.
    """
    needed = f"a better text as {spec.text}" if spec.text else "better written instructions for it"
    parts = (
        f"A language model does the job below and needs {needed}.",
        *about,
        f"It reads {named(spec.inputs)} and answers with {named(spec.outputs)}." if spec.outputs else "",
        f"{'The text' if spec.text else 'Its instructions'} now: {now[:1000]}",
        "Right answers look like this:" if examples else "",
        *(shortened(example) for example in examples),
        "Explain the job to the model in plain English. Write no code, and do not repeat these examples.",
        wish,
        "Answer with the new text only." if spec.text else 'Begin with "Your task is".',
    )
    return "\n".join(part for part in parts if part)

"""Random search: random rewrites of the instructions times random demo sets, raced on validation.

What any cleverer search has to beat: it learns nothing from one candidate about the next.

References:
    Bergstra, Bengio, "Random Search for Hyper-Parameter Optimization", JMLR 13, 2012.
    Zhou et al., "Large Language Models Are Human-Level Prompt Engineers", 2023, arXiv 2211.01910 (resampling).
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace

from ratchet.algorithms.bootstrap import BOOTSTRAP_SHARE, Scoreboard, gather, race
from ratchet.algorithms.demos import demo_sets, spread
from ratchet.algorithms.instruction import read_instruction
from ratchet.core.algorithm import Algorithm, Steps
from ratchet.core.errors import BudgetSpent
from ratchet.core.problem import Candidate, Example, Fields, FieldSpec, PredictorSpec, Problem, canonical

MAX_INSTRUCTION = 4000

Options = Mapping[str, Sequence[str]]
"""Instructions to choose from, per predictor; the seed's own first."""


def random_search(
    problem: Problem, *, rng: random.Random, max_demos: int = 8, rewrites: int = 5, draws: int = 24
) -> Algorithm:
    """The best of many random pairs of instructions and demos.

    Args:
        problem: What to improve.
        rng: Source of randomness.
        max_demos: The most demos a predictor gets.
        rewrites: How many rewrites to ask for, over all predictors; at least one for each.
        draws: The most candidates to race; a small budget races fewer.
    """
    board = Scoreboard(problem)
    with suppress(BudgetSpent):
        runs = int(BOOTSTRAP_SHARE * problem.budget.runs)
        pools = yield from gather(board, rng=rng, runs=runs, max_demos=max_demos)
        demos = [{}, *demo_sets(problem, pools, rng=rng, count=draws, max_demos=max_demos)]
        instructions = yield from rewrite(board, rng=rng, count=max(1, rewrites // len(problem.predictors)))
        candidates = [_draw(problem.seed, instructions, rng.choice(demos), rng) for _ in range(draws)]
        yield from race(board, candidates, spread(problem.validation, rng=rng))
    return board.finalists()


def rewrite(board: Scoreboard, *, rng: random.Random, count: int) -> Steps[dict[str, list[str]]]:
    """Each predictor's own instructions and up to ``count`` rewrites of them."""
    problem = board.problem
    prompts = [
        (spec.name, rewrite_prompt(problem, spec, rng.sample(problem.train, min(3, len(problem.train)))))
        for spec in problem.predictors
        for _ in range(count)
    ]
    texts = yield from board.ask([prompt for _, prompt in prompts])
    return accepted(problem, [(name, text) for (name, _), text in zip(prompts, texts, strict=False)])


def rewrite_prompt(problem: Problem, spec: PredictorSpec, examples: Sequence[Example]) -> str:
    """What the reflection LM is asked for one rewrite."""
    return "\n".join(
        (
            "Rewrite the instructions of one step of an LM program, so that a small LM follows them without mistakes.",
            f"The step reads {named(spec.inputs)} and writes {named(spec.outputs)}.",
            f"Its instructions now:\n```\n{problem.seed.predictors[spec.name].instructions}\n```",
            "Examples:",
            *(shortened(example.fields) for example in examples),
            "Keep every fact the instructions hold. Answer with the new instructions only, between ``` and ```.",
        )
    )


def accepted(problem: Problem, proposals: Sequence[tuple[str, str]]) -> dict[str, list[str]]:
    """The seed's instructions per predictor, then what can be used of ``proposals`` (predictor, text of the LM)."""
    options = {name: [state.instructions] for name, state in problem.seed.predictors.items()}
    for name, text in proposals:
        instructions = read_instruction(text)
        if instructions and len(instructions) <= MAX_INSTRUCTION and instructions not in options[name]:
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


def _draw(
    seed: Candidate, instructions: Options, demos: Mapping[str, Sequence[Fields]], rng: random.Random
) -> Candidate:
    changed = {
        name: replace(state, instructions=rng.choice(instructions[name]), demos=tuple(demos.get(name, state.demos)))
        for name, state in seed.predictors.items()
    }
    return seed.with_predictors(changed, origin="random search: random instructions and demos")

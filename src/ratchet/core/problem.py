"""What is optimized: Example, Candidate, Problem, and the request's plain parts."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ratchet.core.request import Objective

Fields = Mapping[str, Any]
"""Named JSON values, such as the inputs of a program."""


def canonical(value: object) -> str:
    """The one JSON text of ``value``; equal values give equal text.

    >>> canonical({"b": 1, "a": [True]})
    '{"a":[true],"b":1}'
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, default=str)


def content_hash(value: object) -> str:
    """A short, stable name for a JSON value: 16 hex digits of its SHA-256."""
    return hashlib.sha256(canonical(value).encode("utf-8", "surrogatepass")).hexdigest()[:16]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Example:
    """One input with what is known of its right answer; equal when its content is equal."""

    inputs: Fields
    labels: Fields
    key: str = field(init=False, default="")

    def __post_init__(self) -> None:
        object.__setattr__(self, "key", content_hash({"inputs": self.inputs, "labels": self.labels}))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Example) and other.key == self.key

    def __hash__(self) -> int:
        return hash(self.key)

    @property
    def fields(self) -> dict[str, Any]:
        """Inputs and labels together."""
        return {**self.inputs, **self.labels}


@dataclass(frozen=True, slots=True, kw_only=True)
class FieldSpec:
    """One field of a predictor's signature."""

    name: str
    type: str
    description: str = ""
    choices: tuple[str, ...] = ()
    """The allowed values when the type is a ``Literal`` of strings; empty when it is open."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PredictorSpec:
    """What an algorithm may know of one predictor, or of another text of the program that can be tuned like one.

    Attributes:
        name: Its name in a Candidate.
        inputs, outputs: Its fields, in order.
        takes_demos: Whether demos have a place in its prompt.
        text: What its instructions are where they are no instructions, in words: "the description of the tool
            `search`". Empty for a predictor.
    """

    name: str
    inputs: tuple[FieldSpec, ...]
    outputs: tuple[FieldSpec, ...]
    takes_demos: bool = True
    text: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class PredictorState:
    """The tunable state of one predictor."""

    instructions: str
    demos: tuple[Fields, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Candidate:
    """The tunable state of a program as plain data; equal when its predictors are equal.

    Attributes:
        predictors: State per predictor name, in the program's order.
        parents: Keys of the candidates this one was made from; empty for a seed.
        origin: What made it, in a few words ("gepa: rewrite of answer").
        key: Hash of ``predictors`` alone.

    >>> seed = Candidate(predictors={"answer": PredictorState(instructions="Answer.")})
    >>> child = seed.with_instructions("answer", "Answer in one word.", origin="by hand")
    >>> child.parents == (seed.key,)
    True
    """

    predictors: Mapping[str, PredictorState]
    parents: tuple[str, ...] = ()
    origin: str = "seed"
    key: str = field(init=False, default="")

    def __post_init__(self) -> None:
        object.__setattr__(self, "key", content_hash(self.state()))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Candidate) and other.key == self.key

    def __hash__(self) -> int:
        return hash(self.key)

    def state(self) -> dict[str, Any]:
        """The predictors as JSON data; what is hashed and stored."""
        return {
            name: {"instructions": state.instructions, "demos": [dict(demo) for demo in state.demos]}
            for name, state in self.predictors.items()
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any], *, parents: Sequence[str] = (), origin: str = "seed") -> Candidate:
        """The candidate that ``state()`` came from."""
        return cls(
            predictors={
                name: PredictorState(
                    instructions=part["instructions"], demos=tuple(dict(demo) for demo in part["demos"])
                )
                for name, part in state.items()
            },
            parents=tuple(parents),
            origin=origin,
        )

    def with_predictors(self, changed: Mapping[str, PredictorState], *, origin: str) -> Candidate:
        """A child in which ``changed`` predictors are replaced.

        Raises:
            KeyError: a name is not a predictor of this candidate.
        """
        if unknown := changed.keys() - self.predictors.keys():
            raise KeyError(f"no predictor named {sorted(unknown)}; there are {list(self.predictors)}")
        return Candidate(predictors={**self.predictors, **changed}, parents=(self.key,), origin=origin)

    def with_instructions(self, predictor: str, text: str, *, origin: str) -> Candidate:
        """A child whose ``predictor`` has other instructions."""
        return self.with_predictors({predictor: replace(self.predictors[predictor], instructions=text)}, origin=origin)

    def with_demos(self, predictor: str, demos: Sequence[Fields], *, origin: str) -> Candidate:
        """A child whose ``predictor`` has other demos."""
        return self.with_predictors({predictor: replace(self.predictors[predictor], demos=tuple(demos))}, origin=origin)


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """What an algorithm may use, known when it starts.

    Attributes:
        runs: Program runs (one candidate on one example) that the budget is expected to pay for. The driver holds the
            true limits and throws ``BudgetSpent`` into the generator when one is reached.
    """

    runs: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """All an algorithm gets to see. The sealed test split is not in it.

    Attributes:
        seed: Where the search starts.
        predictors: The program's predictors, in order.
        train: Examples to learn from: reflection, demos, minibatches.
        validation: Examples to choose by.
        description: What the program is for, in words or source text, for grounded proposals; may be empty.
        budget: What the search may use.
        success_at: The score from which a run counts as a success.
        slots: Program runs that can be under way at once.
        objectives: What counts, each with a weight above 0; an algorithm for quality alone may leave the others out.
        lm: Name of the LM that runs the program; empty when it is not known.
        noise: Standard deviation of repeated scores of one example; None when it was not measured.
    """

    seed: Candidate
    predictors: tuple[PredictorSpec, ...]
    train: tuple[Example, ...]
    validation: tuple[Example, ...]
    budget: Budget
    description: str = ""
    success_at: float = 1.0
    slots: int = 8
    objectives: tuple[Objective, ...] = (Objective(metric="quality_score"),)
    lm: str = ""
    noise: float | None = None

    def predictor(self, name: str) -> PredictorSpec:
        """The predictor called ``name``."""
        return next(spec for spec in self.predictors if spec.name == name)

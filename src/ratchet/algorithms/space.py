"""The combinations of instructions and demos that a search chooses from."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from math import prod

from ratchet.algorithms.demos import DemoSet
from ratchet.core.problem import Candidate, Fields, canonical

POOL = 256
"""Combinations that the model chooses among; where there are more, some of them."""

Choice = tuple[str, str]
"""What is chosen: ("instructions" or "demos", predictor)."""
Combination = tuple[int, ...]
"""The option of each choice."""


@dataclass(frozen=True, slots=True)
class Space:
    """The options of each choice; option 0 leaves the seed as it is."""

    seed: Candidate
    instructions: Mapping[str, Sequence[str]]
    demos: Mapping[str, Sequence[Sequence[Fields]]]
    made: dict[Combination, Candidate] = field(default_factory=dict)
    """The candidates asked for so far."""
    maker: str = "miprov2"
    """The algorithm that chooses; named in the candidates' origins."""

    @classmethod
    def of(
        cls,
        seed: Candidate,
        instructions: Mapping[str, Sequence[str]],
        sets: Sequence[DemoSet],
        *,
        maker: str = "miprov2",
    ) -> Space:
        """The space of ``instructions`` and the different demos in ``sets``."""
        demos = {}
        for name, state in seed.predictors.items():
            options = [state.demos, *(tuple(demos[name]) for demos in sets if demos.get(name))]
            demos[name] = list({canonical(option): option for option in options}.values())
        return cls(seed, instructions, demos, maker=maker)

    @property
    def sizes(self) -> dict[Choice, int]:
        """How many options each choice has."""
        return {
            **{("instructions", name): len(options) for name, options in self.instructions.items()},
            **{("demos", name): len(options) for name, options in self.demos.items()},
        }

    def candidate(self, chosen: Combination) -> Candidate:
        """The seed with the chosen options."""
        if chosen in self.made:
            return self.made[chosen]
        options = dict(zip(self.sizes, chosen, strict=True))
        changed = {
            name: replace(
                state,
                instructions=self.instructions[name][options["instructions", name]],
                demos=tuple(self.demos[name][options["demos", name]]),
            )
            for name, state in self.seed.predictors.items()
        }
        said = ", ".join(f"{what} {index} of {name}" for (what, name), index in options.items() if index)
        child = self.seed.with_predictors(changed, origin=f"{self.maker}: {said}")
        return self.made.setdefault(chosen, self.seed if child == self.seed else child)

    def draw(self, count: int, *, rng: random.Random, but: Sequence[Combination] = ()) -> list[Combination]:
        """Up to ``count`` random combinations, neither the seed nor any of ``but``; at first every option occurs."""
        sizes = list(self.sizes.values())
        decks = [rng.sample(range(size), size) for size in sizes]
        left = dict.fromkeys(tuple(deck[turn % len(deck)] for deck in decks) for turn in range(max(sizes)))
        left |= dict.fromkeys(self.some(rng))
        for known in (self.unchanged, *but):
            left.pop(known, None)
        return list(left)[:count]

    def some(self, rng: random.Random, *, near: Sequence[Combination] = ()) -> list[Combination]:
        """All combinations in random order; where they are more than ``POOL``, the neighbours of ``near``, which differ
        in one choice, and random others."""
        sizes = list(self.sizes.values())
        if prod(sizes) <= POOL:
            return rng.sample(every := list(product(*map(range, sizes))), len(every))
        return [*self.neighbours(near), *(tuple(rng.randrange(size) for size in sizes) for _ in range(POOL))]

    def neighbours(self, near: Sequence[Combination]) -> list[Combination]:
        """The combinations that differ from one of ``near`` in one choice at most."""
        return [
            (*each[:place], option, *each[place + 1 :])
            for each in near
            for place, size in enumerate(self.sizes.values())
            for option in range(size)
        ]

    @property
    def unchanged(self) -> Combination:
        """The seed."""
        return (0,) * len(self.sizes)

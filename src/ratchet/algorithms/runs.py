"""What a search has run and what it may still run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from ratchet.core.algorithm import Steps, evaluate
from ratchet.core.errors import BudgetSpent
from ratchet.core.evaluation import Evaluation, Evaluations
from ratchet.core.problem import Candidate, Example


@dataclass(slots=True)
class Runs:
    """Every run seen so far, so that none is asked for again, counted against ``limit``; texts count as well."""

    limit: int
    used: int = 0
    asked: set[tuple[str, str]] = field(default_factory=set)  # by candidate and example
    seen: dict[tuple[str, str], Evaluation] = field(default_factory=dict)

    @property
    def left(self) -> int:
        """Runs that may still be asked for."""
        return self.limit - self.used

    def close(self) -> None:
        """Ask for nothing more."""
        self.limit = self.used

    def pay(self, runs: int) -> None:
        """Count what is about to be asked for.

        Raises:
            BudgetSpent: it is more than what is left.
        """
        if runs > self.left:
            raise BudgetSpent(used=self.used, limit=self.limit)
        self.used += runs

    def evaluate(self, candidate: Candidate, examples: Sequence[Example]) -> Steps[Evaluations]:
        """Evaluations of ``candidate`` on ``examples``, of which only the unseen are asked for."""
        unseen = [example for example in dict.fromkeys(examples) if (candidate.key, example.key) not in self.seen]
        new = {(candidate.key, example.key) for example in unseen} - self.asked
        self.pay(len(new))
        self.asked |= new
        if unseen:
            rows = yield from evaluate(candidate, unseen)
            self.seen.update({(candidate.key, row.example.key): row for row in rows})
        return self.known(candidate, examples)

    def known(self, candidate: Candidate, examples: Sequence[Example]) -> Evaluations:
        """What was seen of ``candidate`` on ``examples``.

        Raises:
            KeyError: one of them was not run.
        """
        return Evaluations(tuple(self.seen[candidate.key, example.key] for example in examples))

    def below(self, candidate: Candidate, examples: Sequence[Example], score: float) -> list[Example]:
        """Those of ``examples`` on which ``candidate`` is known to score less than ``score``."""
        rows = (self.seen.get((candidate.key, example.key)) for example in examples)
        return [row.example for row in rows if row is not None and row.counted < score]

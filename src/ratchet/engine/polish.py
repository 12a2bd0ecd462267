"""Between search and proof: finalists are cleaned, the chosen one is minimised, and what each edit bought is measured.

Everything here is measured on validation, paired, within the calls that the stage was given; the sealed test is not
touched. What cannot be paid for is not done, and the notes say so.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ratchet.core.algorithm import Evaluate
from ratchet.core.errors import BudgetSpent
from ratchet.core.evaluation import Evaluations
from ratchet.core.lesson import Bought
from ratchet.core.problem import Candidate, Example
from ratchet.core.statistics import compare_paired
from ratchet.engine.hygiene import (
    Guard,
    Part,
    added_parts,
    edits,
    estimated_tokens,
    measured_tokens,
    shortened_to,
    without,
)
from ratchet.engine.runner import Runner

SHARE = 0.1
"""Share of the search's calls that is kept for it, where that pays for one candidate at least."""
MARGIN = 0.1
"""Mean score that a shorter prompt is shown not to lose: the lower end of the 90 % interval lies above minus this."""
BLOCK = 10
"""Examples a shorter prompt is run on before it is looked at."""
UNPAID = "; not mended: no calls left"
"""Said of what could have been mended."""


def kept_calls(search_calls: int, *, one_validation: int, minimise: bool = True, capped: bool = False) -> int:
    """Calls kept from the search for what comes after it; 0 where they would not pay for one candidate.

    Args:
        search_calls: What there is for both.
        one_validation: What one candidate takes.
        minimise: Whether there is to be minimisation.
        capped: Whether prompts may be too long: then one is to be mended, where as much is left to search with.

    >>> kept_calls(600, one_validation=40), kept_calls(165, one_validation=30)
    (60, 0)
    >>> kept_calls(165, one_validation=30, capped=True), kept_calls(50, one_validation=30, capped=True)
    (30, 0)
    """
    share = int(SHARE * search_calls) if minimise else 0
    if share >= one_validation:
        return share
    return one_validation if capped and search_calls >= 2 * one_validation else 0


@dataclass(slots=True)
class Polish:
    """Cleans, minimises and attributes.

    Attributes:
        runner: Evaluates, within the stage that is under way.
        seed: The program as it was.
        validation: What everything is measured on.
        train: What must not be copied.
        note: Told what was done, in sentences.
        max_prompt_tokens: The longest prompt there may be; None for any.
    """

    runner: Runner
    seed: Candidate
    validation: Sequence[Example]
    train: Sequence[Example]
    note: Callable[[str], None]
    max_prompt_tokens: int | None = None

    async def rows(
        self, candidate: Candidate, examples: Sequence[Example] | None = None, *, keep: float = 0.0
    ) -> Evaluations | None:
        """Evaluations of ``candidate``; None when the stage does not pay for them and have ``keep`` calls left."""
        examples = self.validation if examples is None else examples
        known = self.runner.known(candidate, examples)
        if known is not None:
            return known
        left = self.runner.left()
        if left is not None and self._cost(candidate, examples) > left - keep:
            return None
        try:
            found: Evaluations = await self.runner.answer(Evaluate(candidate, tuple(examples)))
        except BudgetSpent:
            return None
        return found

    def _cost(self, candidate: Candidate, examples: Sequence[Example]) -> float:
        """Calls that those of ``examples`` take on which ``candidate`` was not run."""
        return self.runner.calls_per_run * sum(self.runner.known(candidate, [each]) is None for each in examples)

    # --- finalists ---------------------------------------------------------------------------------------------------

    def is_clean(self, candidate: Candidate, guard: Guard) -> bool:
        """Whether ``candidate`` may be a finalist as it is."""
        return candidate == self.seed or (guard.is_clean(candidate) and self._excess(candidate) is None)

    async def cleaned(self, finalists: Sequence[Candidate], guard: Guard) -> list[Candidate]:
        """``finalists``, those that are not clean mended and validated, or left out."""
        found: list[Candidate] = []
        for candidate in finalists:
            mended = candidate if self.is_clean(candidate, guard) else await self._mended(candidate, guard)
            if mended is not None and mended not in found:
                found.append(mended)
        return found

    async def _mended(self, candidate: Candidate, guard: Guard) -> Candidate | None:
        mended: Candidate | None = candidate
        if not guard.is_clean(candidate):
            mended = guard.cleaned(candidate)
            if mended is None or await self.rows(mended) is None:
                unpaid = UNPAID if mended is not None else ""
                self.note(f"candidate {candidate.key} was refused: its instructions copy training examples{unpaid}")
                return None
            self.note(f"candidate {candidate.key}: sentences that copied training examples were removed")
        assert mended is not None
        excess = self._excess(mended)
        if excess is None:
            return mended
        share, said = excess
        shorter = shortened_to(mended, share)
        rows = await self.rows(shorter) if shorter is not None else None
        if shorter is None or rows is None or self._excess(shorter) is not None:
            unpaid = UNPAID if shorter is not None and rows is None else ""
            self.note(f"candidate {candidate.key} was refused: its prompt has {said}{unpaid}")
            return None
        self.note(f"candidate {candidate.key} had {said}; demos were dropped")
        return shorter

    def _excess(self, candidate: Candidate) -> tuple[float, str] | None:
        """Share of the prompt that is allowed, and how long it is in words; None when it is short enough."""
        if self.max_prompt_tokens is None:
            return None
        known = self.runner.known(candidate, self.validation)
        tokens = measured_tokens(known) if known is not None else None
        how = "as the LM counts" if tokens is not None else "estimated as a quarter of the characters, without inputs"
        estimate = estimated_tokens(candidate)
        tokens = estimate if tokens is None else tokens
        if tokens <= self.max_prompt_tokens:
            return None
        # What is not instructions or demos (inputs, format) stays whatever is dropped.
        rest = max(0, tokens - estimate)
        share = max(0.0, (self.max_prompt_tokens - rest) / max(1, tokens - rest))
        return share, f"{tokens} tokens ({how}), more than {self.max_prompt_tokens}"

    # --- the chosen one ----------------------------------------------------------------------------------------------

    async def minimised(self, chosen: Candidate) -> Candidate:
        """``chosen`` without the sentences and demos that can be left out at no loss that is seen.

        Half of the calls are left for ``bought``.
        """
        before = self.runner.known(chosen, self.validation)
        parts = added_parts(self.seed, chosen)
        if before is None or len(parts) < 2:
            return chosen
        if not self._no_worse(before, before):
            self.note(f"not minimised: {len(before)} validation examples cannot show that nothing is lost")
            return chosen
        keep = (self.runner.left() or 0) / 2
        waiting = deque(_halves(parts))
        tried, removed, paid = 0, list[Part](), True
        while waiting:
            group = waiting.popleft()
            shorter = without(chosen, group)
            verdict = await self._keeps_up(shorter, before, keep=keep) if shorter is not None else False
            if verdict is None:
                paid = False
                break
            tried += shorter is not None
            if verdict and shorter is not None:
                chosen, removed = shorter, [*removed, *group]
            elif len(group) > 1:
                waiting += _halves(group)
        if tried:
            demos = sum(part.demo for part in removed)
            self.note(
                f"minimised: {tried} removals tried on {len(before)} validation examples, {len(removed) - demos} "
                f"sentences and {demos} demos left out (no lower mean, 95 % sure to lose less than {MARGIN:g})"
            )
        elif not paid:
            self.note("not minimised: no calls left to try what can be left out")
        return chosen

    async def _keeps_up(self, shorter: Candidate, before: Evaluations, *, keep: float) -> bool | None:
        """Whether ``shorter`` is as good on validation; None when the stage does not pay for knowing it."""
        for size in (min(BLOCK, len(before)), len(before)):
            rows = await self.rows(shorter, self.validation[:size], keep=keep)
            if rows is None:
                return None
            # As if the rest went as before: where even that is too little, the rest need not be run.
            if not self._no_worse(before, Evaluations((*rows.rows, *before.rows[size:]))):
                return False
        return True

    @staticmethod
    def _no_worse(before: Evaluations, after: Evaluations) -> bool:
        """Whether the mean is no lower, and a loss of ``MARGIN`` can be ruled out."""
        comparison = compare_paired(before.scores, after.scores, seed=0, confidence=0.9)
        return comparison.effect >= 0 and comparison.interval[0] > -MARGIN

    async def bought(self, chosen: Candidate) -> tuple[Bought, ...]:
        """What each edit bought, by leaving it out, on as much of validation as the stage pays for.

        It is the beginning of validation, run to its end, and never just what a race had seen of the candidate: who
        loses is stopped, and would seem to lose by more.
        """
        found, changed = [], edits(self.seed, chosen)
        for place, edit in enumerate(changed):
            left = self.runner.left()
            share = math.inf if left is None else left / (len(changed) - place)
            size = len(self.validation)
            while size and self._cost(edit.undone, self.validation[:size]) > share:
                size -= 1
            after = (
                self.runner.known(chosen, self.validation[:size]) if size >= min(BLOCK, len(self.validation)) else None
            )
            rows = await self.rows(edit.undone, self.validation[:size]) if after is not None else None
            if rows is None or after is None or len(rows) < 2:
                found.append(Bought(edit=edit.said))
                continue
            gain = compare_paired(rows.scores, after.scores, seed=0)
            found.append(Bought(edit=edit.said, gain=gain.effect, interval=gain.interval, n=gain.n))
        return tuple(found)


def _halves(parts: Sequence[Part]) -> list[Sequence[Part]]:
    """Two groups of ``parts``, the longer text first."""
    middle = math.ceil(len(parts) / 2)
    groups = [parts[:middle], parts[middle:]]
    return sorted(groups, key=lambda group: -sum(len(part.text) for part in group))

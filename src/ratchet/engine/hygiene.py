"""Clean prompts: no training text in instructions, no more tokens than wanted, nothing in them that is of no use.

All of it is text in, text out; ``ratchet.engine.polish`` measures what comes of it.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from ratchet.core.evaluation import Evaluations
from ratchet.core.problem import Candidate, Example, Fields, PredictorState, canonical

NGRAM = 8
"""Words in a row that a text shares with an example by copying it, and hardly by chance."""
LEAST_WORDS = 5
"""Words from which a shorter value counts as copied when all of it stands in the text; labels are shorter."""
LEAST_DIGITS = 7
"""Digits from which a value that is a number counts as copied: that of a telephone, an account or a customer."""
COMMON_SHARE = 0.1
"""Share of the examples from which on words in a row belong to the form of the data and to nobody."""
CHARACTERS_PER_TOKEN = 4.0
"""An estimate, where the LM did not tell how many tokens a prompt had."""

Run = tuple[str, ...]
"""Words in a row."""

_PIECE = re.compile(r"[^\n.!?。！？]*(?:[.!?](?![\s\n])[^\n.!?。！？]*)*(?:[。！？]+[」』”’）]*|[.!?]*)[ \t]*\n*")
# Scripts without spaces, of which each character is a token: Thai, Lao, Burmese, Khmer, Japanese, Chinese.
_UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17d3\u3005-\u3007\u3040-\u30ff\u31f0-\u31ff\u3400-\u9fff\uf900-\ufaff"
_UNSPACED += "\uff66-\uff9f\U00020000-\U0003ffff"
_WORD = re.compile(rf"[{_UNSPACED}]|[^\W{_UNSPACED}]+")
_CHARACTER = re.compile(f"[{_UNSPACED}]")


def pieces(text: str) -> list[str]:
    """Sentences and lines, each with the space after it; together they are ``text``.

    >>> pieces("Your task is easy. Use v1.5 of it.\\n- Be brief!")
    ['Your task is easy. ', 'Use v1.5 of it.\\n', '- Be brief!']
    """
    return [piece for piece in _PIECE.findall(text) if piece]


def words(text: str) -> list[str]:
    """The words of ``text``, in lower case; the characters, in a script without spaces.

    >>> words("Say 'sí' to 东京.")
    ['say', 'sí', 'to', '东', '京']
    """
    lower = text.lower()
    return re.findall(r"\w+", lower) if lower.isascii() else _WORD.findall(lower)


def _halves(tokens: Sequence[str]) -> list[int]:
    """How long tokens are, in half words: two characters of a script without spaces say about as much as a word."""
    if "".join(tokens).isascii():  # most are, and there are many
        return [2] * len(tokens)
    return [1 if _CHARACTER.match(token) else 2 for token in tokens]


def _runs(tokens: Sequence[str], halves: int) -> Iterator[Run]:
    """From each token on, the shortest run that has so many half words."""
    lengths = _halves(tokens)
    if 1 not in lengths:
        size = math.ceil(halves / 2)
        yield from (tuple(tokens[at : at + size]) for at in range(len(tokens) - size + 1))
        return
    end = length = 0
    for start in range(len(tokens)):
        while length < halves:
            if end == len(tokens):
                return
            length += lengths[end]
            end += 1
        yield tuple(tokens[start:end])
        length -= lengths[start]


def _is_long_number(tokens: Sequence[str]) -> bool:
    return len(tokens) <= 2 and all(map(str.isdecimal, tokens)) and sum(map(len, tokens)) >= LEAST_DIGITS


class Guard:
    """Knows what was copied from examples into instructions.

    ``NGRAM`` words in a row that also stand in one of the examples were copied from it, and so was a whole value of
    ``LEAST_WORDS`` words or more, or a number of ``LEAST_DIGITS``. Not counted are words in a row that many examples
    share, and those that stood in the program's own instructions before.

    Args:
        examples: What must not be copied.
        seed: The program as it was.
        ngram: Words in a row that tell a copy.
        least_words: Words from which a shorter value tells one, when all of it is there.
    """

    def __init__(
        self, examples: Sequence[Example], seed: Candidate, *, ngram: int = NGRAM, least_words: int = LEAST_WORDS
    ) -> None:
        self._examples = examples
        self._ngram, self._least_words = ngram, least_words
        self._own = {run for state in seed.predictors.values() for run in self._said(state.instructions)}
        self._seen: dict[str, frozenset[Run]] = {}

    def copied(self, text: str) -> frozenset[Run]:
        """The words in a row in ``text`` that were copied."""
        if text not in self._seen:
            said = self._said(text) - self._own
            held: Counter[Run] = Counter()
            for example in self._examples if said else ():
                held.update({run for value in _texts(example.fields) for run in self._telling(value) if run in said})
            common = max(3.0, COMMON_SHARE * len(self._examples))
            self._seen[text] = frozenset(run for run, count in held.items() if count < common)
        return self._seen[text]

    def _said(self, text: str) -> set[Run]:
        """All in ``text`` that could tell."""
        tokens = words(text)
        step = min(_halves(tokens), default=2)
        sizes = range(2 * self._least_words, 2 * self._ngram + 1, step)
        numbers = {run for size in (2, 4) for run in _runs(tokens, size) if _is_long_number(run)}
        return numbers.union(*(_runs(tokens, size) for size in sizes))

    def _telling(self, value: str) -> Iterator[Run]:
        """What of a value tells that it was copied."""
        tokens = words(value)
        length = sum(_halves(tokens))
        if length < 2 * self._least_words and not _is_long_number(tokens):
            return iter(())
        return _runs(tokens, min(2 * self._ngram, length))

    def is_clean(self, candidate: Candidate) -> bool:
        """Whether nothing in the instructions of ``candidate`` was copied; its demos are examples by intent."""
        return not any(self.copied(state.instructions) for state in candidate.predictors.values())

    def unquoting(self, candidate: Candidate) -> Candidate | None:
        """``candidate`` without what copies; itself where nothing does, None where nothing else is left."""
        return candidate if self.is_clean(candidate) else self.cleaned(candidate)

    def cleaned(self, candidate: Candidate) -> Candidate | None:
        """``candidate`` without the sentences that copy; None where what is left still copies, or nothing is left.

        >>> from ratchet.core.problem import PredictorState
        >>> seed = Candidate(predictors={"answer": PredictorState(instructions="Answer.")})
        >>> guard = Guard([Example(inputs={"text": "my parcel came without the blue lid"}, labels={})], seed)
        >>> text = "Name the queue. So is 'My parcel came without the blue lid' a return."
        >>> copier = seed.with_instructions("answer", text, origin="by hand")
        >>> guard.cleaned(copier).predictors["answer"].instructions
        'Name the queue.'
        """
        changed, removed = {}, 0
        for name, state in candidate.predictors.items():
            if copied := self.copied(state.instructions):
                whole = pieces(state.instructions)
                kept = [whole[at] for at in range(len(whole)) if at not in _touched(whole, copied)]
                changed[name] = replace(state, instructions="".join(kept).strip())
                removed += len(whole) - len(kept)
        if not removed or not all(state.instructions for state in changed.values()):
            return None
        child = candidate.with_predictors(changed, origin=f"hygiene: {removed} sentences copied from examples removed")
        return child if self.is_clean(child) else None


def _touched(whole: Sequence[str], copied: frozenset[Run]) -> set[int]:
    """The places of the pieces in which some of ``copied`` begins, ends or lies."""
    tokens = [(word, place) for place, piece in enumerate(whole) for word in words(piece)]
    return {
        place
        for run in copied
        for at in range(len(tokens) - len(run) + 1)
        if tuple(word for word, _ in tokens[at : at + len(run)]) == run
        for _, place in tokens[at : at + len(run)]
    }


def _texts(fields: Fields) -> Iterator[str]:
    for value in fields.values():
        if isinstance(value, str):
            yield value
        elif isinstance(value, int | float):
            if _is_long_number(tokens := words(str(value))):  # a shorter one, or True, stands in many a sentence
                yield " ".join(tokens)
        elif isinstance(value, dict):
            yield from _texts(value)
        elif isinstance(value, list):
            yield from _texts(dict(enumerate(value)))  # type: ignore[arg-type]


# How long a prompt is


def estimated_tokens(candidate: Candidate) -> int:
    """Tokens of the longest of the predictors' prompts, from its characters; inputs and format not counted.

    >>> from ratchet.core.problem import PredictorState
    >>> estimated_tokens(Candidate(predictors={"answer": PredictorState(instructions="x" * 400)}))
    100
    """
    return max(math.ceil(_characters(state) / CHARACTERS_PER_TOKEN) for state in candidate.predictors.values())


def measured_tokens(rows: Evaluations) -> int | None:
    """Tokens of the longest prompt as the LM counted them, a mean where a run has several calls; None if it did not."""
    told = [row.usage.prompt_tokens / row.usage.calls for row in rows if row.usage.calls and row.usage.prompt_tokens]
    return math.ceil(max(told)) if len(told) == len(rows) else None


def shortened_to(candidate: Candidate, share: float) -> Candidate | None:
    """``candidate`` with so few demos that its longest prompt has this share of its characters; None if that fails.

    Demos go one by one, always the longest of the longest prompt: that keeps as many as there can be.
    """
    aim = share * max(_characters(state) for state in candidate.predictors.values())
    states, dropped = dict(candidate.predictors), 0
    while True:
        longest = max(states, key=lambda name: _characters(states[name]))
        if _characters(states[longest]) <= aim:
            break
        demos = list(states[longest].demos)
        if not demos:
            return None
        demos.remove(max(demos, key=lambda demo: len(canonical(demo))))
        states[longest] = replace(states[longest], demos=tuple(demos))
        dropped += 1
    if not dropped:
        return None
    return candidate.with_predictors(states, origin=f"hygiene: {dropped} demos dropped, the prompt was too long")


def _characters(state: PredictorState) -> int:
    return len(state.instructions) + sum(len(canonical(demo)) for demo in state.demos)


# What can be left out


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A sentence or a demo that the search added to a predictor."""

    predictor: str
    text: str
    demo: bool


def added_parts(seed: Candidate, candidate: Candidate) -> list[Part]:
    """The sentences and demos of ``candidate`` that ``seed`` does not have, in order."""
    found = []
    for name, state in candidate.predictors.items():
        own = {piece.strip() for piece in pieces(seed.predictors[name].instructions)}
        known = {canonical(demo) for demo in seed.predictors[name].demos}
        new = dict.fromkeys(text for piece in pieces(state.instructions) if (text := piece.strip()) and text not in own)
        found += [Part(predictor=name, text=piece, demo=False) for piece in new]
        shown = dict.fromkeys(canonical(demo) for demo in state.demos)
        found += [Part(predictor=name, text=demo, demo=True) for demo in shown if demo not in known]
    return found


def without(candidate: Candidate, parts: Sequence[Part]) -> Candidate | None:
    """``candidate`` without ``parts``; None where a predictor would be left without instructions."""
    gone, changed = set(parts), {}
    for name, state in candidate.predictors.items():
        kept = [
            each
            for each in pieces(state.instructions)
            if Part(predictor=name, text=each.strip(), demo=False) not in gone
        ]
        demos = [each for each in state.demos if Part(predictor=name, text=canonical(each), demo=True) not in gone]
        changed[name] = PredictorState(instructions="".join(kept).strip(), demos=tuple(demos))
    if not all(state.instructions for state in changed.values()):
        return None
    demos_gone = sum(part.demo for part in parts)
    said = [f"{len(parts) - demos_gone} sentences"] * (len(parts) > demos_gone) + [f"{demos_gone} demos"] * (
        demos_gone > 0
    )
    return candidate.with_predictors(changed, origin=f"minimised: {' and '.join(said)} less")


# What was changed


@dataclass(frozen=True, slots=True, kw_only=True)
class Edit:
    """One thing that the search changed: the instructions of a predictor, or its demos.

    Attributes:
        said: The edit in words.
        undone: The candidate without it.
    """

    said: str
    undone: Candidate


def edits(before: Candidate, after: Candidate) -> list[Edit]:
    """What changed from one candidate to another."""
    found = []
    for name, new in after.predictors.items():
        old = before.predictors[name]
        if new.instructions != old.instructions:
            said = f"{name}: instructions rewritten ({len(old.instructions)} to {len(new.instructions)} characters)"
            found.append((said, name, replace(new, instructions=old.instructions)))
        if list(new.demos) != list(old.demos):
            added = sum(demo not in old.demos for demo in new.demos)
            removed = sum(demo not in new.demos for demo in old.demos)
            counts = [f"{added} demos added"] * (added > 0) + [f"{removed} demos removed"] * (removed > 0)
            found.append(
                (f"{name}: {', '.join(counts) or 'demos in another order'}", name, replace(new, demos=old.demos))
            )
    return [
        Edit(said=said, undone=after.with_predictors({name: state}, origin=f"without: {said}"))
        for said, name, state in found
    ]

"""What an optimizer that owns its loop leaves behind must not decide anything."""

from __future__ import annotations

import sys
import threading
import time

import dspy
import pytest
from dspy import lm15
from dspy.utils.exceptions import LMInvalidRequestError

from ratchet.core.errors import BudgetSpent
from ratchet.core.problem import Candidate, Example, PredictorState
from ratchet.programs.gateway import Gateway, Visit
from ratchet.programs.gateway_lm import GatewayLM
from ratchet.programs.ledger import Halt, Limits
from ratchet.programs.line import Line
from ratchet.programs.teleprompter import Scoreboard, _Hush
from ratchet.storage.memory import MemoryJournal
from ratchet.testing.lm import Asked, ScriptedLM


class Door:
    """A gateway in front of a scripted LM."""

    def __init__(self, journal: MemoryJournal | None = None, *, seconds: float = 0.0) -> None:
        self.journal = journal or MemoryJournal()
        self.gateway = Gateway(self.journal, Limits())
        self.scripted = ScriptedLM(self.answer, seconds=seconds)
        self.lm = GatewayLM(self.gateway, self.scripted, Line(self.scripted, "task"))

    def answer(self, asked: Asked) -> str | Exception:
        """An echo; one prompt is refused."""
        return lm15.InvalidRequestError("no such thing") if asked.last == "bad" else f"echo {asked.last}"

    def ask(self, *prompts: str) -> list[str]:
        """Answers, "spent" for those that the budget does not allow."""
        return [self._ask(prompt) for prompt in prompts]

    def _ask(self, prompt: str) -> str:
        try:
            return str(self.lm(prompt)[0])
        except Halt as halt:
            return "spent" if isinstance(halt.cause, BudgetSpent) else repr(halt.cause)

    @property
    def sent(self) -> int:
        """Requests that came to the LM."""
        return len(self.scripted.log)


def test_who_comes_after_a_visit_has_ended_is_turned_away() -> None:
    door, visit = Door(), Visit()
    with dspy.context(ratchet_visit=visit):
        assert door.ask("a") == ["echo a"]
        visit.end()
        assert door.ask("a", "b") == ["spent", "spent"]
    assert door.ask("b") == ["echo b"]


def test_a_visit_ends_when_all_that_is_under_way_has_come_back() -> None:
    door, visit = Door(seconds=0.2), Visit()
    got: list[str] = []

    def late() -> None:
        with dspy.context(ratchet_visit=visit):
            got.extend(door.ask("late"))

    thread = threading.Thread(target=late)
    thread.start()
    while not door.sent:
        time.sleep(0.001)
    visit.end()
    assert door.journal.sent().recorded == 1
    thread.join()
    assert got == ["echo late"]


def test_what_chance_let_through_counts_anew_in_the_stage_that_needs_it() -> None:
    door = Door()
    door.gateway.begin_stage("search", allowance=3)
    assert door.ask("a") == ["echo a"]
    door.gateway.settle()
    assert door.ask("b", "c", "d") == ["echo b", "echo c", "spent"]
    door.gateway.loosen()
    door.gateway.begin_stage("validation", allowance=2)
    assert door.ask("a", "b", "c", "d") == ["echo a", "echo b", "echo c", "spent"]
    assert door.sent == 3


def test_a_resumed_search_gives_way_to_what_an_earlier_process_paid_for() -> None:
    first = Door()
    first.gateway.begin_stage("search", allowance=2)
    first.ask("a", "b")
    again = Door(first.journal)
    again.gateway.begin_stage("search", allowance=2)
    assert again.ask("other", "b", "a") == ["spent", "echo b", "echo a"]
    assert again.sent == 0


def test_what_a_later_stage_recorded_is_not_free_in_the_replay() -> None:
    first = Door()
    first.gateway.begin_stage("search", allowance=1)
    assert first.ask("a", "b") == ["echo a", "spent"]
    first.gateway.begin_stage("validation", allowance=1)
    first.ask("b")
    again = Door(first.journal)
    again.gateway.begin_stage("search", allowance=1)
    assert again.ask("a", "b") == ["echo a", "spent"]


def test_a_refused_request_is_not_sent_again_not_even_by_another_process() -> None:
    first = Door()
    for _ in range(2):
        with pytest.raises(LMInvalidRequestError, match="no such thing"):
            first.ask("bad")
    assert first.sent == 1
    again = Door(first.journal)
    with pytest.raises(LMInvalidRequestError, match="no such thing"):
        again.ask("bad")
    assert again.sent == 0


def test_scores_count_once_they_are_settled_and_of_repeated_ones_the_mean() -> None:
    examples = [Example(inputs={"text": name}, labels={}) for name in "ab"]
    candidate = Candidate(predictors={"self": PredictorState(instructions="Sort.")})
    board = Scoreboard(frozenset(each.key for each in examples))
    for example, value in zip([*examples, examples[0]], (1.0, 0.0, 0.0), strict=True):
        board.see(candidate, example, value)
    assert board.validated() == []
    told: list[float] = []
    board.on_candidate = lambda _, mean: told.append(mean)
    board.settle()
    assert board.validated() == [candidate]
    assert told == [0.25]


def test_a_hushed_thread_silences_no_other(capsys: pytest.CaptureFixture[str]) -> None:
    hush = _Hush()
    before = sys.stdout
    with hush:
        print("unheard")
        loud = threading.Thread(target=lambda: print("heard"))
        loud.start()
        loud.join()
    assert sys.stdout is before
    assert capsys.readouterr().out == "heard\n"

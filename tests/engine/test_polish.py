"""Between search and proof: refused, mended, minimised, attributed; within the calls there are."""

from __future__ import annotations

import contextlib
import random
from typing import Any

from ratchet.core.algorithm import Algorithm, Search, evaluate
from ratchet.core.errors import BudgetSpent, Cancelled
from ratchet.core.problem import Candidate, Problem
from ratchet.core.result import OptimizationResult
from ratchet.testing import SyntheticProblem
from ratchet.testing.engine import House

SKILLS = "Use skill-0 skill-1 skill-2 skill-3 skill-4 skill-5."


class Wordy(SyntheticProblem):
    """A problem whose questions are long enough to be copied."""

    def example(self, number: int) -> object:  # type: ignore[override]
        row = super().example(number)
        words = " ".join(f"word{number}x{place}" for place in range(10))
        return type(row)(inputs={"question": f"{row.inputs['question']}"}, labels={**row.labels, "answer": words})


def finds(*texts: str, demos: int = 0) -> Search:
    """An algorithm that finds these instructions, with so many demos."""

    def search(problem: Problem, *, rng: random.Random) -> Algorithm:
        found = []
        for text in texts:
            child = problem.seed.with_instructions("answer", text, origin="found")
            if demos:
                shown = [{"question": "nothing to learn from " * 4, "answer": f"a{n}"} for n in range(demos)]
                child = problem.seed.with_predictors(
                    {"answer": child.with_demos("answer", shown, origin="found").predictors["answer"]}, origin="found"
                )
            yield from evaluate(child, problem.validation)
            found.append(child)
        return found

    return search


def house(search: Search, toy: SyntheticProblem | None = None, **more: object) -> House:
    return House(toy or SyntheticProblem(capacity=6), native={"finder": search}, **more)  # type: ignore[arg-type]


def winner(result: OptimizationResult) -> Candidate:
    assert result.winner is not None
    return result.winner


def notes(result: OptimizationResult) -> str:
    return "\n".join(result.optimization_details.notes)


# --- copied text ------------------------------------------------------------------------------------------------------


def copying(problem: Problem) -> str:
    return str(problem.train[0].labels["answer"])


def test_instructions_that_copy_a_training_example_are_mended_before_the_proof() -> None:
    toy = Wordy(capacity=6)
    text = f"{SKILLS}\nAs in: {copying(toy.problem)}."
    result = house(finds(text), toy).optimized()
    assert result.status == "improved"
    assert winner(result).predictors["answer"].instructions == SKILLS
    assert "sentences that copied training examples were removed" in notes(result)
    assert result.optimization_details.algorithm_used == "finder"


def test_a_candidate_that_is_nothing_but_a_copy_is_refused() -> None:
    toy = Wordy(capacity=6)
    result = house(finds(f"{copying(toy.problem)} {SKILLS.replace('.', '')}"), toy).optimized()
    assert (result.status, result.winner) == ("no_proven_gain", None)
    assert "was refused: its instructions copy training examples" in notes(result)
    assert result.front.points == ()  # it has the best score, and must not be taken from there either


# --- length -----------------------------------------------------------------------------------------------------------


def test_a_prompt_that_is_too_long_loses_demos() -> None:
    result = house(finds(SKILLS, demos=6), max_prompt_tokens=60, minimise=False).optimized()
    assert 0 < len(winner(result).predictors["answer"].demos) < 6
    assert "more than 60; demos were dropped" in notes(result)
    assert "estimated as a quarter of the characters, without inputs" in notes(result)


def spends(found: Search) -> Search:
    """An algorithm that finds the same and leaves no calls."""

    def search(problem: Problem, *, rng: random.Random) -> Algorithm:
        finalists = yield from found(problem, rng=rng)
        with contextlib.suppress(BudgetSpent):
            for number in range(10_000):
                child = problem.seed.with_instructions("answer", f"{number}", origin="x")
                yield from evaluate(child, problem.train[:1])
        return finalists

    return search


def test_a_cap_keeps_the_calls_that_mending_takes_from_the_search() -> None:
    more: dict[str, Any] = {"max_prompt_tokens": 60, "max_calls": 200, "force": True}
    result = house(spends(finds(SKILLS, demos=6)), **more).optimized()
    assert "more than 60; demos were dropped" in notes(result)
    assert 0 < len(winner(result).predictors["answer"].demos) < 6


def test_where_all_finalists_are_refused_the_best_of_the_others_is_proven() -> None:
    toy = Wordy(capacity=6)
    copied = f"As in: {copying(toy.problem)}. {SKILLS} Be kind."

    def search(problem: Problem, *, rng: random.Random) -> Algorithm:
        yield from finds("Use skill-0 skill-1.", SKILLS)(problem, rng=rng)
        return (yield from spends(finds(copied))(problem, rng=rng))

    result = house(search, toy, max_calls=300, minimise=False).optimized()
    assert "was refused: its instructions copy training examples; not mended: no calls left" in notes(result)
    assert winner(result).predictors["answer"].instructions == SKILLS
    assert result.optimization_details.algorithm_used == "finder"
    assert result.status == "improved"


def test_instructions_that_are_too_long_are_refused() -> None:
    result = house(finds(SKILLS, demos=6), max_prompt_tokens=5).optimized()
    assert result.winner is None
    assert "was refused: its prompt has" in notes(result)


# --- minimisation -----------------------------------------------------------------------------------------------------


def test_what_is_of_no_use_is_left_out() -> None:
    toy = SyntheticProblem(capacity=6, n_validation=40)
    result = house(finds(f"{SKILLS} Be kind. Be brief.", demos=4), toy, max_calls=1500).optimized()
    assert result.status == "improved"
    assert winner(result).predictors["answer"].instructions == SKILLS
    assert winner(result).predictors["answer"].demos == ()
    assert "2 sentences and 4 demos left out" in notes(result)
    assert result.optimization_details.lineage[-1].validation == 1.0


def test_what_is_needed_stays() -> None:
    toy = SyntheticProblem(capacity=6, n_validation=40)
    text = " ".join(f"Use skill-{number}." for number in range(6))
    result = house(finds(text), toy, max_calls=1500).optimized()
    assert winner(result).predictors["answer"].instructions == text
    assert "0 sentences and 0 demos left out" in notes(result)


def test_nothing_is_left_out_when_that_is_not_wanted() -> None:
    result = house(finds(f"{SKILLS} Be kind.", demos=4), minimise=False, max_calls=1500).optimized()
    assert len(winner(result).predictors["answer"].demos) == 4
    assert "minimised" not in notes(result)


def test_few_examples_cannot_show_that_nothing_is_lost() -> None:
    toy = SyntheticProblem(capacity=6, n_validation=12)
    result = house(finds(f"{SKILLS} Be kind.", demos=2), toy, max_calls=1500).optimized()
    assert len(winner(result).predictors["answer"].demos) == 2
    assert "not minimised: 12 validation examples cannot show that nothing is lost" in notes(result)


def test_that_there_were_no_calls_to_minimise_with_is_told() -> None:
    result = house(spends(finds(f"{SKILLS} Be kind. Be brief.", demos=2)), max_calls=300).optimized()
    assert "not minimised: no calls left to try" in notes(result)


# --- attribution ------------------------------------------------------------------------------------------------------


def test_each_edit_is_told_with_what_it_bought() -> None:
    result = house(finds(SKILLS, demos=2), max_calls=1500, minimise=False).optimized()
    instructions, demos = result.optimization_details.key_improvements
    assert instructions.endswith("; it bought +1.000 [+0.773, +1.000] on 30 validation examples")
    assert demos.startswith("answer: 2 demos added; it bought +0.000 [")


def test_what_could_not_be_measured_is_said_and_not_guessed() -> None:
    def spender(problem: Problem, *, rng: random.Random) -> Algorithm:
        found = yield from finds(SKILLS, demos=2)(problem, rng=rng)
        try:
            number = 0
            while True:
                number += 1
                yield from evaluate(
                    problem.seed.with_instructions("answer", f"{number}", origin="x"), problem.train[:1]
                )
        except Exception:
            return found

    result = house(spender, minimise=False).optimized()
    _, demos = result.optimization_details.key_improvements
    assert demos == "answer: 2 demos added; what it bought was not measured"


# --- budget and crash -------------------------------------------------------------------------------------------------


def test_a_run_killed_while_it_is_polished_ends_the_same() -> None:
    toy = Wordy(capacity=6, n_validation=40)
    text = f"{SKILLS} Be kind. Be brief.\nAs in: {copying(toy.problem)}."
    whole = house(finds(text, demos=4), toy, max_calls=1500)
    expected = whole.optimized()
    first = next(n for n, (stage, *_) in enumerate(whole.program.ran) if stage == "hygiene")
    last = next(n for n, (stage, *_) in enumerate(whole.program.ran) if stage == "test")
    for moment in range(first, last, 23):
        crashed = house(finds(text, demos=4), Wordy(capacity=6, n_validation=40), max_calls=1500)
        crashed.program.dies_after = moment
        with contextlib.suppress(Cancelled):
            crashed.optimized()
        resumed = house(finds(text, demos=4), Wordy(capacity=6, n_validation=40), max_calls=1500, before=crashed)
        result = resumed.optimized()
        assert result.to_json() == expected.to_json()
        assert resumed.ledger.calls == whole.ledger.calls

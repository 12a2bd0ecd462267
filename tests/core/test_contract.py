"""A search that is watched is stopped at the first turn that breaks the contract, and told where."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest

from ratchet.algorithms import NATIVE
from ratchet.core.algorithm import Evaluate, Generate, Start, Tell, Together, Wait
from ratchet.core.contract import limited, watched
from ratchet.core.errors import BrokenContract, BudgetSpent, Cancelled
from ratchet.core.problem import Candidate, Example, PredictorState, Problem
from ratchet.testing import SyntheticProblem


def search(body: Callable[[Problem], Any]) -> Any:
    def made(problem: Problem, *, rng: Any) -> Any:
        return (yield from body(problem))

    return made


def child(problem: Problem, text: str = "Be brief.") -> Candidate:
    return problem.seed.with_instructions("answer", text, origin="by hand")


def yields(make: Callable[[Problem], Any]) -> Any:
    """A search that asks for a text first and then for this."""

    def body(problem: Problem) -> Any:
        yield Generate("Say something.")
        yield make(problem)
        return [problem.seed]

    return search(body)


def returns(make: Callable[[Problem], Any]) -> Any:
    def body(problem: Problem) -> Any:
        yield Generate("Say something.")
        return make(problem)

    return search(body)


def stranger(problem: Problem) -> Candidate:
    return Candidate(predictors={"answer": PredictorState(instructions="Who am I?")}, origin="nowhere")


def other_program(problem: Problem) -> Candidate:
    predictors = {"other": PredictorState(instructions="Hm.")}
    return Candidate(predictors=predictors, parents=(problem.seed.key,), origin="mixed up")


ELSEWHERE = Example(inputs={"question": "q?"}, labels={"answer": "a"})


@pytest.mark.parametrize(
    ("make", "found", "expected"),
    [
        (lambda p: "more", "it yielded 'more'", "Evaluate, Generate, Together, Start, Wait or Tell"),
        (lambda p: None, "it yielded None", "Evaluate"),
        (lambda p: Evaluate("text", p.train), "Evaluate.candidate is 'text'", "a Candidate"),  # type: ignore[arg-type]
        (lambda p: Evaluate(p.seed, ()), "Evaluate.examples is ()", "at least one"),
        (lambda p: Evaluate(p.seed, list(p.train)), "Evaluate.examples is [", "a tuple"),  # type: ignore[arg-type]
        (lambda p: Evaluate(p.seed, (ELSEWHERE,)), "Evaluate.examples[0] is Example", "problem.train or .validation"),
        (lambda p: Evaluate(p.seed, p.train, repeats=0), "Evaluate.repeats is 0", "at least 1"),
        (lambda p: Evaluate(stranger(p), p.train), "Evaluate.candidate has the parents ()", "with_instructions"),
        (lambda p: Evaluate(other_program(p), p.train), "has the predictors ['other']", "['answer']"),
        (lambda p: Evaluate(child(p, "  "), p.train), "predictors['answer'].instructions is '  '", "a text"),
        (
            lambda p: Evaluate(p.seed.with_demos("answer", [{"colour": "red"}], origin="x"), p.train),
            "demos[0] has the fields ['colour']",
            "['answer', 'question']",
        ),
        (
            lambda p: Evaluate(p.seed.with_demos("answer", [{"answer": 10**400}], origin="x"), p.train),
            "demos[0] is {'answer': 1000",
            "integers of at most 64 bits",
        ),
        (
            lambda p: Evaluate(p.seed.with_demos("answer", [{"answer": object()}], origin="x"), p.train),
            "demos[0]",
            "JSON",
        ),
        (lambda p: Evaluate(child(p, "\ud800"), p.train), "instructions is '\\ud800'", "UTF-8"),
        (
            lambda p: Evaluate(p.seed.with_instructions("answer", "Be brief.", origin="\ud800"), p.train),
            "origin is '\\ud800'",
            "UTF-8",
        ),
        (lambda p: Tell("hi \ud800"), "Tell.text is 'hi \\ud800'", "UTF-8"),
        (lambda p: Generate("\ud800 hi"), "Generate.prompt is '\\ud800 hi'", "UTF-8"),
        (lambda p: Generate(""), "Generate.prompt is ''", "a text"),
        (lambda p: Generate("Hm", temperature=9), "Generate.temperature is 9", "0 to 2"),
        (lambda p: Generate("Hm", n=0), "Generate.n is 0", "at least 1"),
        (lambda p: Together(()), "it yielded Together(requests=())", "Together"),
        (
            lambda p: Together((Generate("a"), Wait())),  # type: ignore[arg-type]
            "it yielded Wait(among=()) in a Together",
            "Evaluate or Generate",
        ),
        (lambda p: Start(Wait()), "it yielded Wait(among=()) in a Start", "Evaluate, Generate or Together"),  # type: ignore[arg-type]
        (lambda p: Wait(), "it yielded Wait, and nothing is under way", "a Start before it"),
    ],
)
def test_a_request_that_is_none_is_told_with_its_turn(
    make: Callable[[Problem], Any], found: str, expected: str
) -> None:
    with pytest.raises(BrokenContract) as broken:
        SyntheticProblem().solve(watched(yields(make), "mine"))
    message = str(broken.value)
    assert message.startswith("mine, turn 2: ")
    before, _, after = message.partition("; expected ")
    assert found in before
    assert expected in after
    assert broken.value.values["turn"] == 2


@pytest.mark.parametrize(
    ("make", "found"),
    [
        (lambda p: None, "it returned None"),
        (lambda p: [], "it returned []"),
        (lambda p: p.seed, "it returned Candidate"),
        (lambda p: ["best"], "it returned"),
        (lambda p: [p.seed, p.seed], "a finalist twice"),
        (lambda p: [stranger(p)], "finalists[0] has the parents ()"),
    ],
)
def test_finalists_that_are_none_are_told_with_their_turn(make: Callable[[Problem], Any], found: str) -> None:
    with pytest.raises(BrokenContract, match="mine, turn 2: ") as broken:
        SyntheticProblem().solve(watched(returns(make), "mine"))
    assert found in str(broken.value)


def test_what_a_program_has_by_itself_is_no_fault_of_a_search() -> None:
    """DSPy keeps a mark of its own in demos, and a tool may have no description."""
    toy = SyntheticProblem(predictors=("plan", "answer"))
    odd = PredictorState(instructions="", demos=({"question": "q", "augmented": True},))
    seed = Candidate(predictors={**toy.problem.seed.predictors, "plan": odd})
    specs = tuple(replace(spec, takes_demos=spec.name == "answer") for spec in toy.problem.predictors)
    problem = replace(toy.problem, seed=seed, predictors=specs)

    def tries(text: str, **plan: Any) -> Any:
        def body(problem: Problem) -> Any:
            yield Evaluate(child(problem, text), problem.train)
            yield Evaluate(problem.seed.with_predictors({"plan": replace(odd, **plan)}, origin="x"), problem.train)

        algorithm = watched(search(body), "mine")(problem, rng=None)  # type: ignore[arg-type]
        next(algorithm)
        return algorithm.send(None)

    assert tries("Be brief.", instructions="Plan.")
    with pytest.raises(BrokenContract, match=r"predictors\['plan'\] has 0 demos; expected none"):
        tries("Be brief.", demos=())


def test_what_it_raises_is_told_with_file_and_line() -> None:
    def raising(problem: Problem) -> Any:
        yield Generate("Say something.")
        raise KeyError("lost")

    with pytest.raises(
        BrokenContract, match=r"mine, turn 2: it raised KeyError: 'lost' \(test_contract.py, line \d+\)"
    ):
        SyntheticProblem().solve(watched(search(raising), "mine"))


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt])
def test_one_that_ends_the_process_ends_its_own_search_alone(error: type[BaseException]) -> None:
    def leaving(problem: Problem) -> Any:
        yield Generate("Say something.")
        raise error(3)

    def solve() -> None:
        SyntheticProblem().solve(watched(search(leaving), "mine"))

    with (
        ThreadPoolExecutor(1) as thread,  # to the main thread, Ctrl-C comes from the user
        pytest.raises(BrokenContract, match=rf"mine, turn 2: it raised {error.__name__}: 3 \(test_contract.py, line"),
    ):
        thread.submit(solve).result()


def test_one_that_hangs_is_left_behind() -> None:
    stuck = threading.Event()

    def hanging(problem: Problem) -> Any:
        yield Generate("Say something.")
        stuck.wait()

    with pytest.raises(BrokenContract, match=r"mine, turn 2: it took longer than 0.1 seconds"):
        SyntheticProblem().solve(limited(search(hanging), "mine", seconds=0.1, check=lambda: None))
    stuck.set()


def test_nobody_waits_for_one_that_hangs_after_it_was_stopped() -> None:
    stuck = threading.Event()

    def hanging(problem: Problem) -> Any:
        yield from ()
        stuck.wait()

    def check() -> None:
        raise Cancelled

    with pytest.raises(Cancelled):
        SyntheticProblem().solve(limited(search(hanging), "mine", seconds=60, check=check))
    stuck.set()


def test_a_function_that_is_no_generator_is_told() -> None:
    with pytest.raises(BrokenContract, match=r"turn 1: calling it gave \['seed'\]; expected a generator"):
        SyntheticProblem().solve(watched(lambda problem, *, rng: ["seed"], "mine"))  # type: ignore[arg-type]


def test_one_that_goes_on_asking_after_the_budget_is_stopped() -> None:
    def stubborn(problem: Problem) -> Any:
        while True:
            try:
                yield Evaluate(child(problem), problem.train)
            except BudgetSpent:
                continue

    with pytest.raises(BrokenContract, match="it went on asking after 10 times BudgetSpent; expected its finalists"):
        SyntheticProblem(runs=10).solve(watched(search(stubborn), "mine"))


def test_one_that_asks_for_what_it_knows_for_ever_is_stopped() -> None:
    def circling(problem: Problem) -> Any:
        while True:
            yield Evaluate(problem.seed, problem.train[:1])

    with pytest.raises(BrokenContract, match="nothing new in 10000 turns"):
        SyntheticProblem().solve(watched(search(circling), "mine"))


def test_what_it_tells_is_passed_on_without_data_that_ratchets_own_parts_read() -> None:
    def talkative(problem: Problem) -> Any:
        yield Tell("why", {"algorithm": "mine"})
        return [problem.seed]

    algorithm = watched(search(talkative), "mine")(SyntheticProblem().problem, rng=None)  # type: ignore[arg-type]
    assert next(algorithm) == Tell("why")


def test_tickets_that_are_not_under_way_are_told() -> None:
    def twice(problem: Problem) -> Any:
        ticket = yield Start(Generate("Say something."))
        yield Wait((ticket,))
        yield Start(Generate("Say more."))
        yield Wait((ticket,))

    with pytest.raises(BrokenContract, match=r"turn 4: it waits for the tickets \[1\]; expected some of \[2\]"):
        SyntheticProblem().solve(watched(search(twice), "mine"))


@pytest.mark.parametrize("name", ["bootstrap", "gepa", "random_search"])
def test_watching_changes_nothing_of_a_search_that_keeps_the_contract(name: str) -> None:
    toys = [SyntheticProblem(predictors=("plan", "answer"), runs=150, classes=2) for _ in range(2)]
    alone = toys[0].solve(NATIVE[name])
    seen = toys[1].solve(limited(watched(NATIVE[name], name), name, seconds=60, check=lambda: None))
    assert alone == seen
    assert toys[0].evaluated == toys[1].evaluated


def test_half_a_character_of_the_lm_is_no_fault_of_a_search() -> None:
    def trusting(problem: Problem) -> Any:
        (text,) = yield Generate("Say something.")
        return [child(problem, text)]

    (found,) = SyntheticProblem(texts=("a \ud800 b",)).solve(watched(search(trusting), "mine"))
    assert found.predictors["answer"].instructions == "a ? b"


def test_the_search_is_closed_with_the_one_that_watches_it() -> None:
    closed = []

    def tidy(problem: Problem) -> Any:
        try:
            yield Generate("Say something.")
        finally:
            closed.append(True)

    algorithm = watched(search(tidy), "mine")(SyntheticProblem().problem, rng=None)  # type: ignore[arg-type]
    next(algorithm)
    algorithm.close()
    assert closed == [True]

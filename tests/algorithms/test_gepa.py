"""GEPA finds what an example needs, stays inside its budget, and chooses its parents from the front."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ratchet.algorithms.gepa import LONGEST_INSTRUCTIONS, gepa, merge_of
from ratchet.algorithms.pool import Pool, Promise, best_counts
from ratchet.algorithms.reflection import quotes, reflection_prompt
from ratchet.algorithms.runs import Runs
from ratchet.core.algorithm import Algorithm, Evaluate, Generate, Reply, Request, Search, Start, Together, Wait
from ratchet.core.errors import BudgetSpent
from ratchet.core.evaluation import Evaluation, Evaluations, Failure, Step
from ratchet.core.pareto import dominates
from ratchet.core.problem import Candidate, Example, FieldSpec, PredictorSpec, PredictorState, Problem
from ratchet.testing import SyntheticProblem, VirtualTime

TWO = ("search", "answer")


@dataclass
class Watched:
    """A search that writes down what it asks for, and whether it had to be stopped."""

    search: Search
    asked: list[Evaluate | Generate] = field(default_factory=list)
    stopped: bool = False

    @property
    def runs(self) -> int:
        """Program runs asked for."""
        return sum(len(each.examples) * each.repeats for each in self.asked if isinstance(each, Evaluate))

    @property
    def known(self) -> dict[str, Candidate]:
        """The candidates that were run, by key, oldest first."""
        run = dict.fromkeys(each.candidate for each in self.asked if isinstance(each, Evaluate))
        return {each.key: each for each in run}

    def __call__(self, problem: Problem, *, rng: random.Random) -> Algorithm:
        search = self.search(problem, rng=rng)
        reply: Reply = None
        thrown: BudgetSpent | None = None
        while True:
            try:
                request = search.send(reply) if thrown is None else search.throw(thrown)
            except StopIteration as end:
                finalists: Sequence[Candidate] = end.value
                return finalists
            self.note(request)
            thrown = None
            try:
                reply = yield request
            except BudgetSpent as spent:
                self.stopped, thrown = True, spent

    def note(self, request: Request) -> None:
        """Remember what ``request`` asks for."""
        match request:
            case Evaluate() | Generate():
                self.asked.append(request)
            case Start(work):
                self.note(work)
            case Together(requests):
                for each in requests:
                    self.note(each)


@pytest.mark.parametrize("seed", range(5))
def test_the_best_finalist_is_clearly_better_than_the_seed(seed: int) -> None:
    synthetic = SyntheticProblem(seed=seed)
    best = synthetic.solve(gepa, seed=seed)[0]
    assert synthetic.quality(best) > synthetic.quality(synthetic.problem.seed) + 0.4


@pytest.mark.parametrize("seed", range(5))
def test_half_the_budget_is_enough_to_gain(seed: int) -> None:
    synthetic = SyntheticProblem(seed=seed, runs=200, n_validation=40)
    best = synthetic.solve(gepa, seed=seed)[0]
    assert synthetic.quality(best) > synthetic.quality(synthetic.problem.seed) + 0.3


@pytest.mark.parametrize("seed", range(5))
def test_what_is_left_is_used_for_a_smaller_minibatch(seed: int) -> None:
    synthetic = SyntheticProblem(seed=seed, runs=54, n_validation=14, predictors=TWO)
    best = synthetic.solve(gepa, seed=seed)[0]
    assert all(state.instructions != "Answer the question." for state in best.predictors.values())
    assert synthetic.runs_used <= 54


@pytest.mark.parametrize("seed", range(3))
def test_two_predictors_are_improved_in_turn(seed: int) -> None:
    synthetic = SyntheticProblem(seed=seed, predictors=TWO, runs=600)
    best = synthetic.solve(gepa, seed=seed)[0]
    assert synthetic.quality(best) > synthetic.quality(synthetic.problem.seed) + 0.4
    assert all(state.instructions != "Answer the question." for state in best.predictors.values())


def test_candidates_that_changed_different_predictors_are_merged() -> None:
    searches = [Watched(gepa) for _ in range(5)]
    for seed, search in enumerate(searches):
        SyntheticProblem(seed=seed, predictors=TWO, runs=1000).solve(search, seed=seed)
    merged = [each for search in searches for each in search.known.values() if each.origin == "gepa: merge"]
    assert merged
    assert all(len(each.parents) == 2 for each in merged)


def test_nothing_is_merged_when_merging_is_off() -> None:
    search = Watched(partial(gepa, merge=False))
    SyntheticProblem(predictors=TWO, runs=600).solve(search)
    assert all("merge" not in each.origin for each in search.known.values())


@pytest.mark.parametrize("predictors", [("answer",), TWO])
def test_the_same_seed_twice_gives_the_same_result(predictors: tuple[str, ...]) -> None:
    first, second = SyntheticProblem(predictors=predictors), SyntheticProblem(predictors=predictors)
    assert first.solve(gepa, seed=3) == second.solve(gepa, seed=3)
    assert first.evaluated == second.evaluated


@pytest.mark.parametrize("runs", [30, 35, 60, 100, 200, 333, 1000])
@pytest.mark.parametrize("predictors", [("answer",), TWO])
def test_no_more_runs_are_asked_for_than_the_budget_has(runs: int, predictors: tuple[str, ...]) -> None:
    search = Watched(gepa)
    SyntheticProblem(runs=runs, predictors=predictors, fails=0.1).solve(search)
    assert search.runs <= runs
    assert not search.stopped


def test_a_budget_that_ends_early_gives_what_was_found_so_far() -> None:
    synthetic = SyntheticProblem(runs=200)

    def believing_in_more(problem: Problem, *, rng: random.Random) -> Algorithm:
        return gepa(replace(problem, budget=replace(problem.budget, runs=1000)), rng=rng)

    search = Watched(believing_in_more)
    best = synthetic.solve(search)[0]
    assert search.stopped
    assert synthetic.quality(best) > synthetic.quality(synthetic.problem.seed)


def test_a_budget_too_small_for_the_seed_gives_the_seed() -> None:
    synthetic = SyntheticProblem(runs=5)
    assert synthetic.solve(gepa) == [synthetic.problem.seed]


def test_a_problem_without_hope_ends_with_the_seed() -> None:
    synthetic = SyntheticProblem(hopeless=True)
    assert synthetic.solve(gepa) == [synthetic.problem.seed]


def test_a_problem_already_solved_asks_for_no_rewrite() -> None:
    synthetic = SyntheticProblem(capacity=6)
    solved = synthetic.problem.seed.with_instructions(
        "answer", " ".join(f"skill-{n}" for n in range(6)), origin="by hand"
    )

    def from_there(problem: Problem, *, rng: random.Random) -> Algorithm:
        return gepa(replace(problem, seed=solved), rng=rng)

    assert synthetic.solve(from_there) == [solved]
    assert synthetic.texts_used == 0


@pytest.mark.parametrize("seed", range(3))
def test_failed_runs_do_not_stop_the_search(seed: int) -> None:
    synthetic = SyntheticProblem(seed=seed, fails=0.2)
    best = synthetic.solve(gepa, seed=seed)[0]
    assert synthetic.quality(best) > synthetic.quality(synthetic.problem.seed) + 0.2


def test_every_parent_was_run_before_its_child() -> None:
    search = Watched(gepa)
    synthetic = SyntheticProblem(predictors=TWO, runs=600)
    finalists = synthetic.solve(search)
    order = list(search.known)
    for child in search.known.values():
        assert all(order.index(parent) < order.index(child.key) for parent in child.parents)
    assert all(finalist.key in search.known for finalist in finalists)
    assert [each.key for each in search.known.values() if not each.parents] == [synthetic.problem.seed.key]


def test_at_most_three_finalists_come_back_best_first() -> None:
    synthetic = SyntheticProblem(runs=1000, capacity=3)
    finalists = synthetic.solve(gepa)
    means = [
        Evaluations(tuple(synthetic.run(each, example) for example in synthetic.problem.validation)).mean
        for each in finalists
    ]
    assert 1 < len(finalists) <= 3
    assert means == sorted(means, reverse=True)


# One mutation at a time, with texts we chose.

EVERYTHING = " ".join(f"skill-{number}" for number in range(4))


def after_the_first_text(*texts: str, synthetic: SyntheticProblem | None = None) -> tuple[Generate, list[Any]]:
    """The first text that a search with one proposal at a time asked for, and what it asked for after it."""
    synthetic = synthetic or SyntheticProblem()
    synthetic.texts = texts
    search = Watched(partial(gepa, minibatch=3, proposals=1))
    synthetic.solve(search, order=VirtualTime(slots=8))
    first = next(index for index, each in enumerate(search.asked) if isinstance(each, Generate))
    text = search.asked[first]
    assert isinstance(text, Generate)
    return text, search.asked[first + 1 :]


def test_a_rewrite_that_wins_its_minibatch_is_run_on_validation() -> None:
    synthetic = SyntheticProblem()
    reflection, following = after_the_first_text(f"```\n{EVERYTHING}\n```", synthetic=synthetic)
    assert "feedback: answer needs skill-" in reflection.prompt
    assert "Answer the question." in reflection.prompt
    child = next(each.candidate for each in following if isinstance(each, Evaluate) and each.candidate.parents)
    assert child.predictors["answer"].instructions == EVERYTHING
    assert child.parents == (synthetic.problem.seed.key,)
    minibatch, *_ = runs = [each for each in following if isinstance(each, Evaluate) and each.candidate == child]
    assert len(minibatch.examples) == 3
    assert {each for run in runs for each in run.examples} >= set(synthetic.problem.validation)


def test_a_rewrite_that_only_equals_its_parent_is_run_on_its_minibatch_alone() -> None:
    synthetic = SyntheticProblem()
    _, following = after_the_first_text("No skill at all.", synthetic=synthetic)
    runs = [each for each in following if isinstance(each, Evaluate) and each.candidate != synthetic.problem.seed]
    assert runs
    assert all(len(each.examples) <= 3 for each in runs)
    assert not any(set(each.examples) & set(synthetic.problem.validation) for each in runs)


@pytest.mark.parametrize(("rewrite", "share"), [("skill-0 skill-1 skill-2", 1.0), ("skill-5", 0.5)])
def test_a_race_ends_where_the_child_is_behind_the_best(rewrite: str, share: float) -> None:
    synthetic = SyntheticProblem(skills=3, classes=2)
    problem = synthetic.problem
    best, child = (
        problem.seed.with_instructions("answer", text, origin="by hand") for text in ("skill-0 skill-1", rewrite)
    )
    rows = problem.validation[:16]
    pool = Pool(problem=replace(problem, validation=rows), runs=Runs(limit=100))
    promise = Promise(len(rows))

    def races() -> Algorithm:
        yield from pool.validate(best)
        saved = yield from pool.race(child, rows, promise)
        assert saved == 1 - share
        assert promise.runs == len(rows) * (1 - share)
        return [best]

    synthetic.solve(lambda *_, **__: races())
    assert (child.key in pool.members, child.key in pool.stopped) == (share == 1.0, share < 1.0)
    assert pool.runs.used == len(rows) * (1 + share)


@pytest.mark.parametrize("useless", ["", "``` \n```", "Answer the question.", "x" * (LONGEST_INSTRUCTIONS + 1)])
def test_a_useless_rewrite_is_asked_for_once_more_and_never_run(useless: str) -> None:
    synthetic = SyntheticProblem()
    reflection, following = after_the_first_text(useless, synthetic=synthetic)
    again = next(index for index, each in enumerate(following) if isinstance(each, Generate))
    assert following[again] == reflection
    assert following[again + 1] != reflection
    assert all(each.candidate == synthetic.problem.seed for each in following if isinstance(each, Evaluate))


def test_a_quotation_is_an_input_repeated_word_for_word() -> None:
    seen = "what is the tallest mountain of all?"
    example = Example(inputs={"question": seen}, labels={})
    rows = Evaluations((Evaluation(candidate="", example=example, score=0.0),))
    assert quotes(f"Say Everest to: {seen}", rows)
    assert not quotes("Name the mountain.", rows)


def test_of_two_attempts_the_one_that_quotes_nothing_is_run() -> None:
    seen = "what is the tallest mountain of all?"
    train = tuple(Example(inputs={"question": seen}, labels={"answer": str(number)}) for number in range(6))
    texts = iter((f"Say Everest to: {seen}", "Name the mountain."))
    search = gepa(replace(SyntheticProblem().problem, train=train), rng=random.Random(0), proposals=1)
    started: list[Any] = []
    reply: Reply = None
    while True:
        request = search.send(reply)
        if isinstance(request, Start):
            started.append(request.request)
            reply = len(started)
            if isinstance(request.request, Evaluate) and request.request.candidate.parents:
                break
        else:
            assert isinstance(request, Wait)
            work = started[request.among[0] - 1]
            done = (next(texts),) if isinstance(work, Generate) else failures(work)
            reply = request.among[0], done
    assert started[-1].candidate.predictors["answer"].instructions == "Name the mountain."


def failures(work: Evaluate) -> Evaluations:
    """Nothing was right."""
    return Evaluations(tuple(Evaluation(candidate="", example=each, score=0.0) for each in work.examples))


# What the reflection LM reads.

SPEC = PredictorSpec(
    name="answer",
    inputs=(FieldSpec(name="question", type="str"),),
    outputs=(FieldSpec(name="kind", type="str", choices=("place", "person")),),
)


def prompt_for(row: Evaluation, *others: Evaluation) -> str:
    problem = replace(SyntheticProblem().problem, predictors=(SPEC,))
    return reflection_prompt(problem, problem.seed, "answer", Evaluations((row, *others)))


def case(text: str = "Where?") -> Example:
    return Example(inputs={"question": text}, labels={"kind": "place"})


def test_the_prompt_names_the_allowed_choices() -> None:
    assert "kind (one of: place, person)" in prompt_for(Evaluation(candidate="", example=case(), score=0.0))


def test_the_prompt_shows_the_text_that_could_not_be_read_and_why() -> None:
    unread = Step(predictor="answer", inputs={"question": "Where?"}, outputs={}, raw="It is a pl")
    failure = Failure(kind="unparseable", message="no field kind")
    prompt = prompt_for(Evaluation(candidate="", example=case(), failure=failure, trace=(unread,)))
    assert "unreadable: It is a pl" in prompt
    assert "failed (unparseable): no field kind" in prompt
    assert "score: none" in prompt


def test_the_prompt_shows_the_trace_of_the_predictor_alone() -> None:
    mine = Step(predictor="answer", inputs={"question": "mine"}, outputs={"kind": "person"})
    other = Step(predictor="search", inputs={"question": "theirs"}, outputs={"kind": "nothing"})
    prompt = prompt_for(Evaluation(candidate="", example=case(), score=0.0, trace=(other, mine)))
    assert "given question: mine" in prompt
    assert "answered kind: person" in prompt
    assert "theirs" not in prompt


def test_the_prompt_gives_the_right_answer_when_the_metric_said_nothing() -> None:
    assert "right answer kind: place" in prompt_for(Evaluation(candidate="", example=case(), score=0.0))
    told = prompt_for(Evaluation(candidate="", example=case(), score=0.0, feedback="It is a place."))
    assert "feedback: It is a place." in told
    assert "right answer" not in told


def test_the_prompt_stays_short_and_shows_the_worst_runs() -> None:
    rows = [Evaluation(candidate="", example=case(f"{n} " + "long " * 1000), score=n / 10) for n in range(10)]
    prompt = prompt_for(rows[9], *rows[:9])
    assert len(prompt) < 4000
    assert "score: 0.3" in prompt
    assert "score: 0.4" not in prompt


# Choosing parents, and merging them.


@given(
    st.integers(1, 6).flatmap(
        lambda n: st.lists(st.lists(st.sampled_from([0.0, 0.5, 1.0]), min_size=n, max_size=n), min_size=1, max_size=8)
    )
)
def test_parents_are_undominated_and_together_best_on_every_example(scores: list[list[float]]) -> None:
    counts = best_counts(scores)
    best = [max(column) for column in zip(*scores, strict=True)]
    for index, count in counts.items():
        assert count == sum(score == top for score, top in zip(scores[index], best, strict=True)) > 0
        assert not any(dominates(scores[other], scores[index]) for other in counts)
    assert [max(scores[index][column] for index in counts) for column in range(len(best))] == best


@given(st.permutations([(1.0, 0.0, 0.0), (1.0, 1.0, 0.0), (0.0, 0.0, 1.0), (0.5, 0.5, 0.5)]))
def test_the_order_of_candidates_does_not_matter(scores: list[tuple[float, ...]]) -> None:
    counts = best_counts(scores)
    assert {scores[index]: count for index, count in counts.items()} == {(1.0, 1.0, 0.0): 2, (0.0, 0.0, 1.0): 1}


def test_a_merge_takes_each_predictor_from_the_side_that_changed_it_and_the_better_side_where_both_did() -> None:
    def candidate(*texts: str) -> Candidate:
        return Candidate(
            predictors={f"p{n}": PredictorState(instructions=text) for n, text in enumerate(texts)}, origin="by hand"
        )

    ancestor, better, worse = candidate("a", "a", "a"), candidate("b", "a", "b"), candidate("a", "w", "w")
    merged = merge_of(ancestor, better, worse)
    assert merged == candidate("b", "w", "b")
    assert merged is not None
    assert merged.parents == (better.key, worse.key)

"""CAPO on problems whose truth is known, and its parts one by one."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from ratchet.algorithms.capo import LENGTH_PENALTY, Racing, Recombining, Rewriting, capo, evolve, length
from ratchet.algorithms.demos import Pools, labelled_pool
from ratchet.algorithms.scoreboard import Scoreboard
from ratchet.algorithms.space import Space
from ratchet.core.algorithm import Algorithm
from ratchet.core.problem import Candidate, Problem
from ratchet.testing import SyntheticProblem


def taught(toy: SyntheticProblem, *skills: int, more: str = "") -> Candidate:
    """A candidate that knows ``skills``."""
    text = "Use " + " ".join(f"skill-{number}" for number in skills) + more
    return toy.problem.seed.with_instructions("answer", text, origin="by hand")


@pytest.mark.parametrize("predictors", [("answer",), ("plan", "answer")])
@pytest.mark.parametrize("seed", range(3))
def test_it_improves_the_toy_problem(seed: int, predictors: tuple[str, ...]) -> None:
    toy = SyntheticProblem(seed=seed, predictors=predictors)
    assert toy.quality(toy.solve(capo, seed=seed)[0]) > 0.5 > toy.quality(toy.problem.seed)


@pytest.mark.parametrize("runs", [1, 15, 40, 61, 137, 400])
def test_texts_and_runs_together_stay_within_the_budget(runs: int) -> None:
    toy = SyntheticProblem(runs=runs)
    toy.solve(capo)
    assert toy.runs_used + toy.texts_used <= runs
    assert toy.refused == 0


def test_a_hopeless_problem_gives_back_the_seed() -> None:
    toy = SyntheticProblem(hopeless=True)
    assert toy.solve(capo) == [toy.problem.seed]


def raced(toy: SyntheticProblem, entrants: list[Candidate], *, survivors: int) -> list[Candidate]:
    """Who survives a race over all of validation; runs are counted in ``toy``."""
    kept: list[Candidate] = []

    def search(problem: Problem, *, rng: random.Random) -> Algorithm:
        racing = Racing(board=Scoreboard(problem), block=4, longest=max(map(length, entrants)))
        kept.extend((yield from racing.race(entrants, problem.validation, survivors=survivors)))
        return kept

    toy.solve(search)
    return kept


def test_who_has_lost_to_as_many_as_may_survive_is_run_no_further() -> None:
    toy = SyntheticProblem(skills=2, n_validation=40)
    good, bad = taught(toy, 0, 1), [taught(toy, 9, more=f" {number}") for number in range(6)]
    assert raced(toy, [*bad, good], survivors=1)[0] == good
    full = 2 * 40  # the seed and the good one
    assert toy.runs_used < full + 6 * 40 / 2


def test_losing_to_fewer_than_may_survive_stops_nobody() -> None:
    toy = SyntheticProblem(skills=2, n_validation=40)
    entrants = [taught(toy, 0, 1), taught(toy, 9)]
    assert raced(toy, entrants, survivors=2) == entrants
    assert toy.runs_used == 3 * 40


def test_of_two_that_are_equally_good_the_short_one_survives() -> None:
    toy = SyntheticProblem(skills=2)
    short, long = taught(toy, 0, 1), taught(toy, 0, 1, more=" and be very careful" * 20)
    assert raced(toy, [long, short], survivors=1) == [short]


def test_a_better_score_is_worth_more_than_any_length() -> None:
    toy = SyntheticProblem(skills=2)
    short, long = taught(toy, 0), taught(toy, 0, 1, more=" and be very careful" * 20)
    assert raced(toy, [short, long], survivors=1) == [long]
    assert LENGTH_PENALTY < 0.02


def test_a_child_has_the_lms_text_and_demos_of_both_parents() -> None:
    toy = SyntheticProblem(texts=("Crossed.", "Changed."))
    problem = toy.problem
    demos = labelled_pool(problem)["answer"]
    one, other = (
        taught(toy, 0).with_demos("answer", demos[:4], origin="one"),
        taught(toy, 1).with_demos("answer", demos[4:8], origin="other"),
    )
    rewriting = Rewriting(
        board=Scoreboard(problem), pools=Pools(labelled={"answer": demos}), rng=random.Random(1), max_demos=16
    )
    steps = rewriting.children([one, other], 8)
    crossing = steps.send(None)
    assert all("Use skill-" in request.prompt for request in crossing.requests)  # type: ignore[union-attr]
    steps.send([("Crossed.",)] * 8)
    with pytest.raises(StopIteration) as end:
        steps.send([("Changed.",)] * 8)
    children = end.value.value
    assert {each.predictors["answer"].instructions for each in children} == {"Changed."}
    assert all(set(each.parents) == {one.key, other.key} for each in children)
    sizes = {len(each.predictors["answer"].demos) for each in children}
    assert sizes <= {3, 4, 5}
    assert len(sizes) > 1
    shown = [{demos.index(demo) for demo in each.predictors["answer"].demos} for each in children]
    assert any(each & set(range(4)) and each & set(range(4, 8)) for each in shown)


def test_a_text_that_cannot_be_used_leaves_the_parents_instructions() -> None:
    toy = SyntheticProblem(texts=("def answer():\n    return 1",), runs=120)
    toy.solve(capo)
    assert {each.predictors["answer"].instructions for each in toy.evaluated} == {"Answer the question."}


def test_within_given_options_only_their_combinations_are_run() -> None:
    toy = SyntheticProblem(runs=300)
    texts = ["Answer the question.", *(f"Use skill-{n} skill-{n + 1}" for n in range(4))]
    demos = labelled_pool(toy.problem)["answer"]
    sets = [{"answer": demos[start : start + 2]} for start in range(0, 12, 2)]

    def search(problem: Problem, *, rng: random.Random) -> Algorithm:
        board = Scoreboard(problem)
        space = Space.of(problem.seed, {"answer": texts}, sets)
        yield from evolve(board, Recombining(board=board, space=space, rng=rng), problem.validation)
        return board.finalists()

    best = toy.solve(search)[0]
    assert toy.texts_used == 0
    assert {each.predictors["answer"].instructions for each in toy.evaluated} <= set(texts)
    assert toy.quality(best) > toy.quality(toy.problem.seed) + 0.3


def test_a_metric_of_unknown_range_stops_nobody() -> None:
    toy = SyntheticProblem(skills=2)
    board = Scoreboard(replace(toy.problem, success_at=5.0))
    board._scores = {
        taught(toy, number): dict.fromkeys(toy.problem.validation, score) for number, score in ((0, 5.0), (1, 0.0))
    }
    racing = Racing(board=board, block=4, longest=100)
    assert racing.lost_to(taught(toy, 1), [taught(toy, 0)]) == 0

"""The surrogate search and its deep kernel; they need PyTorch, which ``make test`` installs."""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Sequence
from functools import partial
from itertools import islice

import numpy as np
import pytest
import torch

from ratchet.algorithms import deep_kernel
from ratchet.algorithms.demos import labelled_pool
from ratchet.algorithms.effects import told
from ratchet.algorithms.scoreboard import Scoreboard
from ratchet.algorithms.space import Space
from ratchet.algorithms.surrogate import (
    WIDTH,
    Model,
    brackets,
    device_for,
    expected_improvement,
    hashed_ngrams,
    hyperband,
    surrogate,
)
from ratchet.core.algorithm import Algorithm
from ratchet.core.errors import BadRequest
from ratchet.core.problem import Problem
from ratchet.options import Options
from ratchet.prepare import Given, prepare
from ratchet.settings import Settings
from ratchet.testing import SyntheticProblem

MODULE = sys.modules["ratchet.algorithms.surrogate"]  # the package has a function of this name

# The search


@pytest.mark.parametrize("predictors", [("answer",), ("plan", "answer")])
def test_it_improves_the_toy_problem(predictors: tuple[str, ...]) -> None:
    toy = SyntheticProblem(seed=1, predictors=predictors)
    assert toy.quality(toy.solve(surrogate, seed=1)[0]) > 0.5 > toy.quality(toy.problem.seed)


@pytest.mark.parametrize("runs", [1, 15, 40, 61, 137])
def test_texts_and_runs_together_stay_within_the_budget(runs: int) -> None:
    toy = SyntheticProblem(runs=runs)
    toy.solve(surrogate)
    assert toy.runs_used + toy.texts_used <= runs
    assert toy.refused == 0


def test_the_same_seed_and_replies_give_the_same_search_whatever_pytorch_did_before() -> None:
    toys = [SyntheticProblem(runs=200, fails=0.1) for _ in range(2)]
    toys[0].solve(surrogate, seed=3)
    torch.manual_seed(99)
    torch.rand(7)
    toys[1].solve(surrogate, seed=3)
    assert toys[0].evaluated == toys[1].evaluated


def test_nothing_global_is_left_changed() -> None:
    state, threads, kind = torch.random.get_rng_state(), torch.get_num_threads(), torch.get_default_dtype()
    SyntheticProblem(runs=150).solve(surrogate)
    assert torch.equal(state, torch.random.get_rng_state())
    assert (torch.get_num_threads(), torch.get_default_dtype()) == (threads, kind)


def test_texts_become_vectors_by_the_embedder_that_is_passed_in() -> None:
    read: list[str] = []

    def lengths(texts: Sequence[str]) -> np.ndarray:
        read.extend(texts)
        return np.array([[len(text), text.count("skill")] for text in texts], dtype=np.float64)

    toy = SyntheticProblem(runs=200)
    toy.solve(partial(surrogate, embed=lengths))
    assert {each.predictors["answer"].instructions for each in toy.evaluated} <= set(read)
    assert len(read) == len(set(read))


def test_within_given_options_only_their_combinations_are_run() -> None:
    toy = SyntheticProblem(runs=250)
    texts = ["Answer the question.", *(f"Use skill-{n} skill-{n + 1}" for n in range(4))]
    demos = labelled_pool(toy.problem)["answer"]
    sets = [{"answer": demos[start : start + 2]} for start in range(0, 12, 2)]

    def search(problem: Problem, *, rng: random.Random) -> Algorithm:
        board = Scoreboard(problem)
        space = Space.of(problem.seed, {"answer": texts}, sets)
        model = Model(board=board, space=space, embed=hashed_ngrams, fit=deep_kernel.Fit(), rng=rng)
        yield from hyperband(board, model, problem.validation)
        return board.finalists()

    best = toy.solve(search)[0]
    assert toy.texts_used == 0
    assert {each.predictors["answer"].instructions for each in toy.evaluated} <= set(texts)
    assert toy.quality(best) > toy.quality(toy.problem.seed) + 0.3


# Without PyTorch, and with a GPU


def test_without_pytorch_the_error_names_the_extra_before_anything_is_spent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MODULE, "find_spec", lambda name: None)
    toy = SyntheticProblem()
    with pytest.raises(BadRequest, match=r"pip install 'dspy-ratchet\[torch\]'"):
        surrogate(toy.problem, rng=random.Random(0))
    with pytest.raises(BadRequest, match="dspy-ratchet"):
        prepare(Options(target="question -> answer", algorithms=("surrogate",)), Given(), Settings())


def test_the_catalogue_and_the_command_line_load_no_pytorch() -> None:
    code = "import sys, ratchet, ratchet.algorithms, ratchet.cli; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "False"


def test_a_gpu_is_used_only_where_there_is_one_and_it_may_be() -> None:
    assert device_for(gpu_enabled=False) == "cpu"
    assert device_for(gpu_enabled=True) == ("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.parametrize("name", ["RATCHET_GPU_ENABLED", "GPU_ENABLED"])
def test_the_environment_says_whether_it_may_be(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert Settings().gpu_enabled
    monkeypatch.setenv(name, "false")
    assert not Settings().gpu_enabled


# Its parts


def test_every_bracket_ends_on_all_examples_and_none_begins_with_fewer_than_the_one_before() -> None:
    found = list(islice(brackets(100, first=4), 5))
    assert [len(sizes) for _, sizes in found] == [5, 4, 3, 2, 1]
    assert all(sizes[-1] == 100 and sizes == sorted(set(sizes)) for _, sizes in found)
    assert [count for count, _ in found] == sorted((count for count, _ in found), reverse=True)
    assert next(brackets(3, first=4)) == (1, [3])


def test_expected_improvement_is_what_draws_say() -> None:
    rng = np.random.default_rng(0)
    for gain, sd in ((-0.5, 1.0), (0.3, 0.2), (-1.0, 0.5)):
        draws = np.maximum(rng.normal(gain, sd, size=200_000), 0).mean()
        assert expected_improvement(np.array([gain]), np.array([sd]))[0] == pytest.approx(draws, abs=0.005)


def test_hashed_ngrams_are_the_same_in_every_process() -> None:
    code = "from ratchet.algorithms.surrogate import hashed_ngrams as h; print(h(['Answer in one word.']).tolist())"
    seen = {
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, env={"PYTHONHASHSEED": seed}
        ).stdout
        for seed in ("1", "2")
    }
    assert len(seen) == 1
    assert hashed_ngrams([""]).shape == (1, WIDTH)
    assert not hashed_ngrams([""]).any()


def test_the_model_knows_of_combinations_that_were_never_run() -> None:
    """Instructions 3 and demos 3 are the best; they were never seen together."""
    rng = np.random.default_rng(0)
    embeddings = np.eye(4)
    pool = [(i, j) for i in range(4) for j in range(4)]
    known = [at for at, pair in enumerate(pool) if pair != (3, 3)]
    examples = SyntheticProblem(n_validation=40).problem.validation
    hard = rng.uniform(0, 0.5, size=40)
    scores = [
        {
            example: float(rng.random() < 0.2 + 0.15 * (pool[at][0] == 3) + 0.15 * (pool[at][1] == 3) + hard[number])
            for number, example in enumerate(examples)
        }
        for at in known
    ]
    precision, h, variance, _ = told(scores, np.stack([np.eye(len(scores))] * 3), shares=(0.4, 0.0, 0.0))
    mean, covariance, learned = deep_kernel.posterior(
        np.array([embeddings[i] for i, _ in pool]),
        np.array([embeddings[j] for _, j in pool]),
        known=known,
        precision=precision,
        told=h,
        variance=variance,
        fit=deep_kernel.Fit(),
    )
    assert mean[pool.index((3, 3))] > np.median(mean)
    assert np.allclose(covariance, covariance.T, atol=1e-9)
    assert np.linalg.eigvalsh(covariance).min() > -1e-9
    assert covariance[15, 15] > covariance[known, known].max()
    assert len(learned) == 7

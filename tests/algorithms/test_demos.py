"""What demo sets are made of, and how evenly."""

from __future__ import annotations

import random
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from ratchet.algorithms.demos import (
    Pools,
    balanced,
    demo_sets,
    even,
    labelled_demo,
    labelled_pool,
    labels_are_complete,
    spread,
    traced_pool,
)
from ratchet.core.evaluation import Evaluation, Evaluations, Failure, Step
from ratchet.core.problem import (
    Budget,
    Candidate,
    Example,
    FieldSpec,
    PredictorSpec,
    PredictorState,
    Problem,
    canonical,
)

CLASSES = ("ask", "praise", "complain")


def spec(*outputs: str, name: str = "answer", inputs: tuple[str, ...] = ("text",)) -> PredictorSpec:
    return PredictorSpec(
        name=name,
        inputs=tuple(FieldSpec(name=each, type="str") for each in inputs),
        outputs=tuple(FieldSpec(name=each, type="str") for each in outputs),
    )


def problem(train: list[Example], *specs: PredictorSpec) -> Problem:
    return Problem(
        seed=Candidate(predictors={each.name: PredictorState(instructions="Do it.") for each in specs}),
        predictors=specs,
        train=tuple(train),
        validation=tuple(train),
        budget=Budget(runs=100),
    )


def mostly_questions(n: int = 60) -> list[Example]:
    """Nine in ten are of one class."""
    return [
        Example(
            inputs={"text": f"text {number}"}, labels={"mood": CLASSES[number // 10 % 3 if number % 10 == 0 else 0]}
        )
        for number in range(n)
    ]


def run(example: Example, *steps: Step, score: float | None) -> Evaluation:
    failure = Failure(kind="raised", message="") if score is None else None
    return Evaluation(candidate="c", example=example, score=score, failure=failure, trace=steps)


def step(name: str, **outputs: str) -> Step:
    return Step(predictor=name, inputs={"text": "t", "noise": 1}, outputs=outputs)


@given(st.lists(st.sampled_from("abcdefg"), max_size=40), st.integers(0, 12), st.integers())
def test_any_two_classes_differ_by_at_most_one_demo_while_both_have_some_left(
    classes: list[str], size: int, seed: int
) -> None:
    items = list(enumerate(classes))
    drawn = balanced(items, lambda item: {"class": item[1]}, size=size, rng=random.Random(seed))
    assert len(set(drawn)) == len(drawn) == min(size, len(items))
    there, taken = Counter(classes), Counter(item[1] for item in drawn)
    for poorer in there:
        for richer in there:
            assert taken[richer] - taken[poorer] <= 1 or taken[poorer] == there[poorer]


@given(st.lists(st.integers(1, 50), max_size=30), st.integers(1, 10), st.integers(0, 100))
def test_a_draw_never_weighs_more_than_it_may(weights: list[int], size: int, limit: int) -> None:
    drawn = balanced(
        weights, lambda item: {}, size=size, rng=random.Random(0), weight=lambda item: item, max_weight=limit
    )
    assert sum(drawn) <= limit


def test_several_labels_are_drawn_over_their_combinations() -> None:
    items = [(urgency, mood) for urgency in "lmh" for mood in "xyz" for _ in range(5)]
    drawn = balanced(items, lambda item: {"urgency": item[0], "mood": item[1]}, size=9, rng=random.Random(1))
    assert len(set(drawn)) == 9


def test_what_was_drawn_already_counts() -> None:
    drawn = balanced(list("aaabbb"), lambda item: {"class": item}, size=2, rng=random.Random(0), already=["a", "a"])
    assert drawn == ["b", "b"]


def test_a_labelled_demo_needs_every_output_but_the_reasoning() -> None:
    example = Example(inputs={"text": "hi", "id": 1}, labels={"mood": "ask"})
    assert labelled_demo(spec("mood"), example) == {"text": "hi", "mood": "ask"}
    assert labelled_demo(spec("reasoning", "mood"), example) == {"text": "hi", "mood": "ask"}
    assert labelled_demo(spec("mood", "plan"), example) is None
    assert labelled_demo(spec("reasoning"), example) is None
    assert labelled_demo(spec("mood", inputs=("context",)), example) is None


def test_labels_are_complete_only_without_reasoning() -> None:
    example = Example(inputs={"text": "hi"}, labels={"mood": "ask"})
    for each, complete in ((spec("mood"), True), (spec("reasoning", "mood"), False), (spec("plan"), False)):
        assert labels_are_complete(each, labelled_pool(problem([example], each))["answer"]) is complete


def test_traced_demos_come_from_successes_and_keep_the_steps_of_one_run_together() -> None:
    each = problem(mostly_questions(4), spec("plan", name="plan"), spec("mood"))
    a, b, c, _ = each.train
    runs = Evaluations(
        (
            run(a, step("plan", plan="think"), step("answer", mood="ask"), score=1.0),
            run(b, step("plan", plan="guess"), step("answer", mood="praise"), score=0.4),
            run(c, score=None),
        )
    )
    assert traced_pool(each, runs, rng=random.Random(0)) == (
        {"plan": {"text": "t", "plan": "think"}, "answer": {"text": "t", "mood": "ask"}},
    )


def test_without_a_success_the_runs_above_the_mean_are_shown() -> None:
    each = problem(mostly_questions(3), spec("mood"))
    scores = (0.1, 0.5, 0.9)
    runs = Evaluations(
        tuple(
            run(example, step("answer", mood=str(score)), score=score)
            for example, score in zip(each.train, scores, strict=True)
        )
    )
    assert traced_pool(each, runs, rng=random.Random(0)) == ({"answer": {"text": "t", "mood": "0.9"}},)


def test_a_step_that_could_not_be_parsed_is_not_a_demo() -> None:
    each = problem(mostly_questions(1), spec("mood"))
    runs = Evaluations((run(each.train[0], step("answer"), score=1.0),))
    assert traced_pool(each, runs, rng=random.Random(0)) == ()


def test_every_demo_set_covers_the_classes_of_a_lopsided_train_set_evenly() -> None:
    each = problem(mostly_questions(120), spec("mood"))
    for demos in demo_sets(each, Pools(labelled=labelled_pool(each)), rng=random.Random(3), count=6):
        counts = Counter(demo["mood"] for demo in demos["answer"])
        assert set(counts) == set(CLASSES)
        assert max(counts.values()) - min(counts.values()) <= 1


def test_classes_inside_a_json_answer_are_covered_too() -> None:
    train = [
        Example(
            inputs={"text": f"{number}"},
            labels={"report": canonical({"mood": "angry" if number % 20 == 0 else "calm", "id": number})},
        )
        for number in range(60)
    ]
    each = problem(train, spec("report"))
    for demos in demo_sets(each, Pools(labelled=labelled_pool(each)), rng=random.Random(0), count=3, max_demos=6):
        angry = sum("angry" in demo["report"] for demo in demos["answer"])
        assert abs(2 * angry - len(demos["answer"])) <= 1


def test_sets_are_labelled_bootstrapped_and_mixed_and_differ() -> None:
    each = problem(mostly_questions(), spec("reasoning", "mood"))
    traced = tuple(
        {"answer": {**example.fields, "reasoning": f"because {number}"}} for number, example in enumerate(each.train)
    )
    sets = demo_sets(each, Pools(labelled=labelled_pool(each), traced=traced), rng=random.Random(0), count=6)
    shares = {sum("reasoning" in demo for demo in demos["answer"]) / len(demos["answer"]) for demos in sets}
    assert {0.0, 0.5, 1.0} <= shares
    assert len({canonical(demos) for demos in sets}) == len(sets) == 6
    for demos in sets:
        texts = [demo["text"] for demo in demos["answer"]]
        assert len(texts) == len(set(texts))


def test_no_demo_set_is_longer_than_the_cap() -> None:
    train = [Example(inputs={"text": "x" * 400 * (number % 5)}, labels={"mood": f"{number}"}) for number in range(40)]
    each = problem(train, spec("mood"))
    sets = demo_sets(each, Pools(labelled=labelled_pool(each)), rng=random.Random(0), count=4, max_characters=2000)
    assert sets
    for demos in sets:
        assert sum(len(canonical(demo)) for demo in demos["answer"]) <= 2000


def test_without_anything_to_draw_from_there_is_no_set() -> None:
    each = problem([Example(inputs={"text": "hi"}, labels={})], spec("mood"))
    assert demo_sets(each, Pools(labelled=labelled_pool(each)), rng=random.Random(0), count=4) == []


def test_every_stretch_of_a_spread_order_holds_the_share_of_each_class() -> None:
    examples = [Example(inputs={"n": number}, labels={"mood": CLASSES[number % 3]}) for number in range(60)]
    order = spread([*examples, *examples], rng=random.Random(0))
    assert sorted(example.key for example in order) == sorted(example.key for example in examples)
    for start in range(0, 60, 15):
        counts = Counter(example.labels["mood"] for example in order[start : start + 15])
        assert all(4 <= counts[name] <= 6 for name in CLASSES)


def test_even_examples_are_as_many_of_each_class() -> None:
    counts = Counter(example.labels["mood"] for example in even(mostly_questions(90), size=6, rng=random.Random(0)))
    assert set(counts.values()) == {2}

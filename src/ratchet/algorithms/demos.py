"""Demo sets: which examples and which of the program's own runs a predictor is shown, evenly over the classes.

A demo is a plain dict of one predictor's input and output fields. Eight class-balanced demos and eight random ones are
not the same thing: with a small LM the first can be far above zero-shot and the second below it. So whatever is drawn
here is drawn evenly over the labels and then shuffled.

References:
    Khattab et al., "DSPy: Compiling Declarative Language Model Calls into Self-Improving Pipelines", 2023,
    arXiv 2310.03714 (LabeledFewShot, BootstrapFewShot).
    Zhao et al., "Calibrate Before Use", 2021, arXiv 2102.09690 (majority-label and recency bias of demos).
"""

from __future__ import annotations

import json
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from typing import Any, TypeAlias, TypeVar

from ratchet.core.evaluation import Evaluation, Evaluations
from ratchet.core.problem import Example, Fields, PredictorSpec, Problem, canonical

Demo: TypeAlias = dict[str, Any]
DemoSet: TypeAlias = Mapping[str, tuple[Fields, ...]]
"""The demos of each predictor, by its name."""

Labels: TypeAlias = Mapping[str, str]
"""What an item counts as, per label: ``{"answer": '"yes"'}``."""

T = TypeVar("T")

MAX_CLASSES = 20
MAX_CHARACTERS = 6000
MAX_DEMOS = 16
"""Where they are short: ``MAX_CHARACTERS`` decides. A prefix cache reads the demos of a candidate only once."""
_REASONING = "reasoning"


@dataclass(frozen=True, slots=True, kw_only=True)
class Pools:
    """What demo sets are drawn from.

    Attributes:
        labelled: Demos straight from training examples, per predictor.
        traced: One entry per run that went well: a demo of each predictor that took part in it.
    """

    labelled: Mapping[str, tuple[Fields, ...]]
    traced: tuple[Mapping[str, Fields], ...] = ()


def labelled_demo(spec: PredictorSpec, example: Example) -> Demo | None:
    """``example`` as a demo of one predictor; None when it does not hold the predictor's outputs.

    A ``reasoning`` output may be missing: no data set holds it.

    >>> from ratchet.core.problem import FieldSpec
    >>> spec = PredictorSpec(
    ...     name="answer",
    ...     inputs=(FieldSpec(name="question", type="str"),),
    ...     outputs=(FieldSpec(name="reasoning", type="str"), FieldSpec(name="answer", type="str")),
    ... )
    >>> labelled_demo(spec, Example(inputs={"question": "2 + 2?", "id": 7}, labels={"answer": "4"}))
    {'question': '2 + 2?', 'answer': '4'}
    """
    demo = _restricted(spec, example.fields)
    needed = {field.name for field in spec.outputs} - {_REASONING}
    shows_an_input = any(field.name in demo for field in spec.inputs)
    return demo if needed and needed <= demo.keys() and shows_an_input else None


def labelled_pool(problem: Problem) -> dict[str, tuple[Fields, ...]]:
    """Every labelled demo the training examples give, per predictor; empty where they give none."""
    return {
        spec.name: tuple(
            demo for example in problem.train if spec.takes_demos and (demo := labelled_demo(spec, example)) is not None
        )
        for spec in problem.predictors
    }


def labels_are_complete(spec: PredictorSpec, pool: Sequence[Fields]) -> bool:
    """Whether labelled demos show every output of ``spec``, so that a trace could add nothing to them."""
    return bool(pool) and all(field.name in demo for demo in pool for field in spec.outputs)


def traced_pool(problem: Problem, runs: Evaluations, *, rng: random.Random) -> tuple[Mapping[str, Fields], ...]:
    """The demos in the runs that went well; of a predictor that ran several times in a run, one time is drawn."""
    specs = {spec.name: spec for spec in problem.predictors if spec.takes_demos}
    found = []
    for run in _worth_showing(problem, runs):
        steps = defaultdict(list)
        for step in run.trace:
            if step.outputs and step.predictor in specs:
                steps[step.predictor].append(_restricted(specs[step.predictor], {**step.inputs, **step.outputs}))
        if steps:
            found.append({name: rng.choice(demos) for name, demos in steps.items()})
    return tuple(found)


def _worth_showing(problem: Problem, runs: Evaluations) -> list[Evaluation]:
    """The runs that succeeded; when none did, those that scored above the mean, best first."""
    succeeded = [run for run in runs if run.succeeded(problem.success_at)]
    above = [run for run in runs if run.score is not None and run.score > runs.mean]
    return succeeded or sorted(above, key=lambda run: -run.counted)


def _restricted(spec: PredictorSpec, fields: Fields) -> Demo:
    names = [field.name for field in (*spec.inputs, *spec.outputs)]
    return {name: fields[name] for name in names if fields.get(name) is not None}


def label_parts(fields: Fields) -> dict[str, str]:
    """Label values by name, those inside a JSON object by their path.

    >>> label_parts({"urgency": "high", "report": '{"mood": "calm"}'})
    {'urgency': '"high"', 'report.mood': '"calm"'}
    """
    parts: dict[str, str] = {}
    for name, value in fields.items():
        inner = _json_object(value)
        if inner:
            parts |= {f"{name}.{path}": text for path, text in label_parts(inner).items()}
        else:
            parts[name] = canonical(value)
    return parts


def _json_object(value: object) -> Mapping[str, Any] | None:
    if isinstance(value, str) and value.lstrip().startswith("{"):
        try:
            value = json.loads(value)
        except ValueError:
            return None
    return value if isinstance(value, Mapping) else None


def class_labels(items: Iterable[Fields], *, closed: Iterable[str] = ()) -> set[str]:
    """The labels in ``items`` that name a class: ``closed`` ones, and those with at most ``MAX_CLASSES`` values."""
    values = defaultdict(set)
    for item in items:
        for name, text in label_parts(item).items():
            values[name].add(text)
    return {name for name, seen in values.items() if len(seen) <= MAX_CLASSES or name in set(closed)}


def balanced(
    items: Sequence[T],
    labels: Callable[[T], Labels],
    *,
    size: int,
    rng: random.Random,
    weight: Callable[[T], int] = lambda item: 0,
    max_weight: int = MAX_CHARACTERS,
    already: Sequence[T] = (),
) -> list[T]:
    """Up to ``size`` of ``items`` in random order, each next one of the labels that were drawn least.

    With one label the counts of any two classes differ by at most one while both have items left; with several labels
    new combinations come first, then rare values.

    Args:
        items: What to draw from.
        labels: The labels of an item; no labels means any item is as good as another.
        size: How many to draw.
        rng: Source of the ties' order and of the final order.
        weight: What an item takes of ``max_weight``. Items of more than twice an even share are passed over when
            there are enough others.
        max_weight: The most that the drawn items may weigh together.
        already: Items drawn before; they count, and are not given back.

    >>> drawn = balanced(["a1", "a2", "a3", "a4", "b1"], lambda item: {"class": item[0]}, size=2, rng=random.Random(0))
    >>> sorted(item[0] for item in drawn)
    ['a', 'b']
    """
    weighed = [(item, weight(item)) for item in items]
    light = [pair for pair in weighed if pair[1] * size <= 2 * max_weight]
    chosen_from = light if len(light) >= size else weighed
    rng.shuffle(chosen_from)
    left, weights = [item for item, _ in chosen_from], [heavy for _, heavy in chosen_from]
    known = [tuple(sorted(labels(item).items())) for item in left]
    values: Counter[tuple[str, str]] = Counter()
    combinations: Counter[tuple[tuple[str, str], ...]] = Counter()
    for item in already:
        combination = tuple(sorted(labels(item).items()))
        values.update(combination)
        combinations[combination] += 1
    room = max_weight - sum(weight(item) for item in already)
    open_places = [place for place, heavy in enumerate(weights) if heavy <= room]
    drawn: list[T] = []
    while len(drawn) < size and open_places:
        # Of items with the same labels the first goes first, so that only one of each combination is compared.
        first = {known[at]: at for at in reversed(open_places)}
        rarest = min((combinations[these], sum(map(values.__getitem__, these)), at) for these, at in first.items())[2]
        values.update(known[rarest])
        combinations[known[rarest]] += 1
        drawn.append(left[rarest])
        room -= weights[rarest]
        open_places = [place for place in open_places if place != rarest and weights[place] <= room]
    rng.shuffle(drawn)
    return drawn


def even(examples: Sequence[Example], *, size: int, rng: random.Random) -> list[Example]:
    """Up to ``size`` of the distinct ``examples`` in random order, each class as often as any other."""
    distinct = list(dict.fromkeys(examples))
    classes = class_labels(example.labels for example in distinct)
    return balanced(distinct, lambda example: _among(classes, label_parts(example.labels)), size=size, rng=rng)


def even_demos(
    spec: PredictorSpec, pool: Sequence[Fields], *, size: int, rng: random.Random, already: Sequence[Fields] = ()
) -> list[Fields]:
    """Up to ``size`` of ``pool`` in random order, each class as often as any other; those ``already`` there count."""
    outputs = [_outputs(spec, demo) for demo in (*pool, *already)]
    classes = class_labels(outputs, closed=[field.name for field in spec.outputs if field.choices])
    return balanced(
        pool,
        lambda demo: _among(classes, label_parts(_outputs(spec, demo))),
        size=size,
        rng=rng,
        weight=lambda demo: len(canonical(demo)),
        already=already,
    )


def spread(examples: Sequence[Example], *, rng: random.Random) -> tuple[Example, ...]:
    """The distinct ``examples`` in a random order; every stretch holds about the whole's share of each class."""
    distinct = list(dict.fromkeys(examples))
    classes = class_labels(example.labels for example in distinct)
    strata = defaultdict(list)
    for example in distinct:
        strata[canonical(_among(classes, label_parts(example.labels)))].append(example)
    if 2 * len(strata) > len(distinct):
        strata = defaultdict(list, {"": distinct})
    place: dict[Example, float] = {}
    for stratum in strata.values():
        rng.shuffle(stratum)
        start = rng.random()
        place |= {example: (index + start) / len(stratum) for index, example in enumerate(stratum)}
    return tuple(sorted(distinct, key=lambda example: place[example]))


def demo_sets(
    problem: Problem,
    pools: Pools,
    *,
    rng: random.Random,
    count: int,
    max_demos: int = MAX_DEMOS,
    max_characters: int = MAX_CHARACTERS,
) -> list[DemoSet]:
    """Up to ``count`` different demo sets: labelled, bootstrapped and mixed ones, of different sizes.

    Args:
        problem: Whose predictors and labels they are for.
        pools: What they are drawn from.
        rng: Source of randomness.
        count: How many sets to draw.
        max_demos: The most demos a predictor gets.
        max_characters: The most characters one predictor's demos take.
    """
    draw = _Draw(problem, pools, rng, max_characters)
    found: dict[str, DemoSet] = {}
    recipes = [(share, size) for size in draw.sizes(max_demos) for share in draw.shares()]
    for share, size in islice(cycle(recipes), 3 * count):
        demos = draw.demo_set(size=size, traced=round(share * size))
        if any(demos.values()) and len(found) < count:
            found.setdefault(canonical(demos), demos)
    return list(found.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class _Known:
    """What drawing asks of a demo, again and again."""

    inputs: str
    labels: Labels
    characters: int


class _Draw:
    """Draws demo sets from pools."""

    def __init__(self, problem: Problem, pools: Pools, rng: random.Random, max_characters: int) -> None:
        self.problem, self.pools, self.rng, self.max_characters = problem, pools, rng, max_characters
        traced = {
            spec.name: [run[spec.name] for run in pools.traced if spec.name in run] for spec in problem.predictors
        }
        self.classes = {spec.name: self._classes(spec, traced[spec.name]) for spec in problem.predictors}
        self._known: dict[tuple[str, int], _Known] = {}

    def _of(self, name: str, demo: Fields) -> _Known:
        """What is to be known of a demo of the pools, which outlive this."""
        found = self._known.get((name, id(demo)))
        if found is None:
            spec = self.problem.predictor(name)
            found = self._known[name, id(demo)] = _Known(
                inputs=canonical(_inputs(spec, demo)),
                labels=_among(self.classes[name], label_parts(_outputs(spec, demo))),
                characters=len(canonical(demo)),
            )
        return found

    def _classes(self, spec: PredictorSpec, traced: Sequence[Fields]) -> set[str]:
        outputs = [_outputs(spec, demo) for demo in (*self.pools.labelled.get(spec.name, ()), *traced)]
        return class_labels(outputs, closed=[field.name for field in spec.outputs if field.choices])

    def shares(self) -> list[float]:
        """The shares of bootstrapped demos that can be drawn: none, all, half."""
        labelled = any(self.pools.labelled.values())
        return [0.0, 1.0, 0.5] if labelled and self.pools.traced else [0.0] if labelled else [1.0]

    def sizes(self, max_demos: int) -> list[int]:
        """From many to few: for the whole size, half and a quarter of it, the largest size not above it that gives each
        class as many demos; an eighth where that shows every class; then the whole and half the size as they are.

        A size above half is left out where the rarest class has too few demos for it.
        """
        seen: dict[str, Counter[str]] = defaultdict(Counter)
        for spec in self.problem.predictors:
            for demo in self.pools.labelled.get(spec.name, ()):
                for name, text in self._labels(spec.name, demo).items():
                    seen[f"{spec.name}.{name}"][text] += 1
        classes = [counts for counts in seen.values() if len(counts) <= max_demos]
        most = max(map(len, classes), default=1)
        enough = min((len(counts) * min(counts.values()) for counts in classes), default=max_demos)
        halved = [size for size in (max_demos, max_demos // 2, max_demos // 4) if size]
        sizes = [size - size % most if most <= size else size for size in halved]
        sizes += [max_demos // 8] * (max_demos // 8 >= most) + halved[:2]
        return list(dict.fromkeys(size for size in sizes if size <= max(enough, max_demos // 2, 1)))

    def demo_set(self, *, size: int, traced: int) -> DemoSet:
        """``traced`` demos from runs and the rest from labels; where one kind is missing the other takes its place."""
        runs = balanced(
            self.pools.traced,
            lambda run: {
                f"{name}.{part}": text for name in run for part, text in self._labels(name, run[name]).items()
            },
            size=traced,
            rng=self.rng,
            weight=lambda run: max(self._of(name, run[name]).characters for name in run),
            max_weight=self.max_characters,
        )
        return {
            spec.name: self._filled(spec, [run[spec.name] for run in runs if spec.name in run], size)
            for spec in self.problem.predictors
        }

    def _filled(self, spec: PredictorSpec, demos: list[Fields], size: int) -> tuple[Fields, ...]:
        shown = {self._of(spec.name, demo).inputs for demo in demos}
        pool = self.pools.labelled.get(spec.name, ())
        more = balanced(
            [demo for demo in pool if self._of(spec.name, demo).inputs not in shown],
            lambda demo: self._labels(spec.name, demo),
            size=size - len(demos),
            rng=self.rng,
            weight=lambda demo: self._of(spec.name, demo).characters,
            max_weight=self.max_characters,
            already=demos,
        )
        filled = [*demos, *more]
        self.rng.shuffle(filled)
        return tuple(filled)

    def _labels(self, name: str, demo: Fields) -> Labels:
        return self._of(name, demo).labels


def _among(classes: set[str], parts: Labels) -> dict[str, str]:
    return {name: text for name, text in parts.items() if name in classes}


def _inputs(spec: PredictorSpec, demo: Fields) -> Demo:
    return {field.name: demo[field.name] for field in spec.inputs if field.name in demo}


def _outputs(spec: PredictorSpec, demo: Fields) -> Demo:
    return {field.name: demo[field.name] for field in spec.outputs if field.name in demo and field.name != _REASONING}

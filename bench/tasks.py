"""The public tasks that gains are measured on: data, program and metric of each."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import dspy

DATA = Path(os.environ.get("RATCHET_BENCH_DATA", Path(__file__).parents[2] / "shared" / "data"))
"""Where the data sets are; they are never copied into this project."""

TREC_LABELS = Literal["abbreviation", "description", "entity", "human", "location", "number"]
URGENCY = Literal["low", "medium", "high"]
SENTIMENT = Literal["negative", "neutral", "positive"]
CATEGORY = Literal[
    "cleaning_services_scheduling",
    "customer_feedback_and_complaints",
    "emergency_repair_services",
    "facility_management_issues",
    "general_inquiries",
    "quality_and_safety_concerns",
    "routine_maintenance_requests",
    "specialized_cleaning_services",
    "sustainability_and_environmental_practices",
    "training_and_support_requests",
]
CATEGORIES = CATEGORY.__args__  # type: ignore[attr-defined]


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """A task as ``ratchet optimize`` takes it.

    Attributes:
        name: Its name.
        folder: Its folder under ``DATA``; its name when left out.
        target: The program.
        metric: The metric.
        rows: How many rows of train, validation and test are used; files are shuffled, so the first are a sample.
        prepare: Turns a row of the file into one of the program's fields.
    """

    name: str
    target: str
    metric: str
    rows: tuple[int, int, int]
    prepare: Callable[[dict[str, Any]], dict[str, Any]]
    folder: str = ""

    def write(self, folder: Path) -> dict[str, Path]:
        """Write the rows that are used, one file a split; their paths by split."""
        folder.mkdir(parents=True, exist_ok=True)
        paths = {}
        sources = {"train": "train", "validation": "val", "test": "test"}
        for (split, source), count in zip(sources.items(), self.rows, strict=True):
            lines = (
                (DATA / (self.folder or self.name) / f"{source}.jsonl").read_text(encoding="utf-8").splitlines()[:count]
            )
            path = folder / f"{self.name}-{split}.jsonl"
            rows = [json.dumps(self.prepare(json.loads(line))) for line in lines]
            path.write_text("\n".join(rows) + "\n", encoding="utf-8")
            paths[split] = path
        return paths


def trec() -> dspy.Module:
    """Question classification as people first write it."""
    return dspy.Predict(dspy.Signature("text -> label_name: Label", custom_types={"Label": TREC_LABELS}))


def subj() -> dspy.Module:
    """Whether a sentence of a film review tells a fact or an opinion."""
    return dspy.Predict("text -> label: Literal['objective', 'subjective']")


def induction() -> dspy.Module:
    """A program that is told nothing of its task: what it is must be found out from examples."""
    return dspy.Predict("input -> output")


def facility() -> dspy.Module:
    """Support mail triage as people first write it."""
    signature = dspy.Signature(
        "message -> urgency: Urgency, sentiment: Sentiment, categories: list[Category]",
        custom_types={"Urgency": URGENCY, "Sentiment": SENTIMENT, "Category": CATEGORY},
    )
    return dspy.Predict(signature)


def facility_score(example: dspy.Example, prediction: dspy.Prediction, trace: Any = None) -> dspy.Prediction:
    """Mean of three accuracies: urgency, sentiment, and the share of the ten categories judged rightly."""
    wrong = []
    scores = []
    for field in ("urgency", "sentiment"):
        scores.append(float(prediction[field] == example[field]))
        if not scores[-1]:
            wrong.append(f"{field} should be {example[field]}, not {prediction[field]}")
    expected, got = set(example.categories), set(prediction.categories)
    scores.append(sum((name in expected) == (name in got) for name in CATEGORIES) / len(CATEGORIES))
    if missing := sorted(expected - got):
        wrong.append(f"categories lack {', '.join(missing)}")
    if extra := sorted(got - expected):
        wrong.append(f"categories should not hold {', '.join(extra)}")
    return dspy.Prediction(score=sum(scores) / 3, feedback="; ".join(wrong) or "all right")


_HERE = Path(__file__).resolve()

INDUCED = (
    *("antonyms", "larger_animal", "negation", "num_to_verbal"),
    *("orthography_starts_with", "second_word_letter", "sentiment", "singular_to_plural"),
)
"""Eight tasks of instruction induction, chosen for short answers before anything was run on them."""

TASKS = {
    each.name: each
    for each in (
        Task(
            name="trec",
            target=f"{_HERE}:trec",
            metric="exact_match:label_name",
            rows=(150, 60, 150),
            prepare=lambda row: {"text": row["text"], "label_name": row["label_name"]},
        ),
        Task(
            name="subj",
            target=f"{_HERE}:subj",
            metric="exact_match:label",
            rows=(150, 60, 150),
            prepare=lambda row: {"text": row["text"], "label": row["label"]},
        ),
        Task(
            name="facility_support",
            target=f"{_HERE}:facility",
            metric=f"{_HERE}:facility_score",
            rows=(66, 66, 68),
            prepare=lambda row: {name: row[name] for name in ("message", "urgency", "sentiment", "categories")},
        ),
        *(
            Task(
                name=name,
                folder=f"instruction_induction/{name}",
                target=f"{_HERE}:induction",
                metric="exact_match:output",
                rows=(150, 60, 150),
                prepare=lambda row: {"input": row["input"], "output": row["output"]},
            )
            for name in INDUCED
        ),
    )
}

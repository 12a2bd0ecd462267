"""The flags that commands share; each can also be set as ``RATCHET_<FLAG>`` in the environment."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any

import typer

from ratchet.core.errors import BadRequest


def flag(name: str, help: str, *, short: str | None = None, panel: str | None = None, **more: Any) -> Any:
    """An option ``--name`` that ``RATCHET_NAME`` sets too."""
    names = [f"--{name}", short] if short else [f"--{name}"]
    environment = f"RATCHET_{name.upper().replace('-', '_')}"
    return typer.Option(*names, help=help, envvar=environment, show_envvar=False, rich_help_panel=panel, **more)


_DATA, _LM, _BUDGET, _SEARCH = "Data and metric", "Language models", "Budget", "Search and proof"

TARGET = (
    "pkg.module:attribute, file.py:attribute, an inline signature ('text -> label'), a saved program.json, "
    "or a remote agent's spec (agent.json, agent.yaml)"
)

Target = Annotated[str, typer.Argument(help=f"What to run: {TARGET}.", metavar="TARGET", show_default=False)]
Data = Annotated[Path | None, flag("data", "One file of examples (.jsonl .json .csv .tsv .parquet).", panel=_DATA)]
Train = Annotated[Path | None, flag("train", "Examples to learn from, if you split by yourself.", panel=_DATA)]
Validation = Annotated[Path | None, flag("validation", "Examples to choose by.", panel=_DATA)]
Test = Annotated[Path | None, flag("test", "The sealed test: opened once, at the end.", panel=_DATA)]
Metric = Annotated[
    str,
    flag(
        "metric",
        "exact_match, f1, numeric, contains, json_fields, multi_label, llm_judge:RUBRIC, or file.py:function.",
        panel=_DATA,
    ),
]
Map = Annotated[
    list[str] | None, flag("map", "Program field=column of the file; repeatable.", metavar="FIELD=COLUMN", panel=_DATA)
]
Module = Annotated[str, flag("module", "predict or cot: the module of an inline signature.", panel=_DATA)]
Instructions = Annotated[str | None, flag("instructions", "Instructions of an inline signature.", panel=_DATA)]

TuneTools = Annotated[
    bool, flag("tune-tools", "Tune what an agent's tools say of themselves and of their arguments too.", panel=_SEARCH)
]

Lm = Annotated[
    str | None, flag("lm", "local, local:/path.gguf, or any model DSPy knows (openai/gpt-4.1-mini).", panel=_LM)
]
ReflectionLm = Annotated[
    str | None,
    flag("reflection-lm", "Writes prompts; the task LM if left out. After a comma: who stands in for it.", panel=_LM),
]
JudgeLm = Annotated[str | None, flag("judge-lm", "Judges; the reflection LM if left out.", panel=_LM)]
LmBase = Annotated[str | None, flag("lm-base", "Address of an OpenAI-compatible server.", metavar="URL", panel=_LM)]
Adapter = Annotated[str, flag("adapter", "DSPy adapter: auto, chat, json or xml.", panel=_LM)]
Temperature = Annotated[float | None, flag("temperature", "Of the task LM.", panel=_LM)]
MaxTokens = Annotated[int | None, flag("max-tokens", "Longest answer of the task LM.", panel=_LM)]
LmTimeout = Annotated[float | None, flag("lm-timeout", "Patience with one request.", metavar="SECONDS", panel=_LM)]
Rpm = Annotated[float | None, flag("rpm", "Requests a minute that the provider grants.", min=0.01, panel=_LM)]
Tpm = Annotated[float | None, flag("tpm", "Tokens a minute that the provider grants.", min=0.01, panel=_LM)]
NoSharedReplies = Annotated[
    bool, flag("no-shared-replies", "Ask again what earlier optimizations were told at temperature 0.", panel=_LM)
]
PriceFlag = Annotated[
    str | None,
    flag("price", "Dollars per million tokens, in and out, where no price is known.", metavar="P,C", panel=_LM),
]

MaxCalls = Annotated[int | None, flag("max-calls", "LM calls sent in all, never passed.", panel=_BUDGET)]
MaxUsd = Annotated[float | None, flag("max-usd", "Dollars in all, never passed.", panel=_BUDGET)]
MaxMinutes = Annotated[float, flag("max-minutes", "Wall time in all.", panel=_BUDGET)]
Concurrency = Annotated[int, flag("concurrency", "Requests under way at once.", min=1, max=1024, panel=_BUDGET)]

AlgorithmFlag = Annotated[
    str, flag("algorithm", "auto, or names from `ratchet algorithms`, in order.", metavar="NAME[,NAME]", panel=_SEARCH)
]
MinImprovement = Annotated[
    float, flag("min-improvement", "Relative gain from which a proven gain counts.", panel=_SEARCH)
]


ObjectiveFlag = Annotated[
    list[str] | None,
    flag(
        "objective",
        "Weights of quality, success, cost and latency, with commas or repeated; quality:1 if left out.",
        metavar="NAME:WEIGHT",
        panel=_SEARCH,
    ),
]
SuccessAt = Annotated[float, flag("success-at", "Score from which a run succeeds.", panel=_SEARCH)]
Seed = Annotated[int, flag("seed", "Same seed, same replies: same result.", panel=_SEARCH)]
NoMinimise = Annotated[
    bool, flag("no-minimise", "Keep sentences and demos that are of no use in the chosen prompts.", panel=_SEARCH)
]
MaxPromptTokens = Annotated[
    int | None, flag("max-prompt-tokens", "The longest prompt there may be; demos are dropped.", min=1, panel=_SEARCH)
]
NoWarmStart = Annotated[
    bool, flag("no-warm-start", "Begin with nothing of what earlier optimizations taught.", panel=_SEARCH)
]
LearnFrom = Annotated[
    str,
    flag("learn-from", "Try what these optimizations taught, however unlike.", metavar="ID[,ID]", panel=_SEARCH),
]
LessonsMayQuote = Annotated[
    bool, flag("lessons-may-quote", "Let the lesson keep text of examples, and so demos.", panel=_SEARCH)
]
Pii = Annotated[
    str | None,
    flag("pii", "Personal data in every field: keep, redact, pseudonymise or drop.", metavar="TREATMENT", panel=_DATA),
]
PiiField = Annotated[
    list[str] | None,
    flag("pii-field", "Personal data in one field; repeatable.", metavar="FIELD=TREATMENT", panel=_DATA),
]
PiiPolicy = Annotated[
    Path | None, flag("pii-policy", "A JSON file: default, fields, names, patterns, kinds.", panel=_DATA)
]
PiiSet = Annotated[
    str | None,
    flag("pii-set", "Data of one name gets the same pseudonyms; else the files' names.", metavar="NAME", panel=_DATA),
]
Tenant = Annotated[str, flag("tenant", "Whose lessons; nobody else sees them.", panel=_SEARCH)]
Force = Annotated[bool, flag("force", "Go on although the pre-flight advises against it.", panel=_SEARCH)]

Json = Annotated[bool, flag("json", "Only JSON on standard output.")]
NoMlflow = Annotated[bool, flag("no-mlflow", "Do not track in MLflow.")]
Identity = Annotated[str, typer.Argument(help="An id from `ratchet list`; its beginning will do.", metavar="ID")]


def price(text: str | None) -> tuple[float, float] | None:
    """Dollars per million prompt and completion tokens.

    >>> price("0.4,1.6")
    (0.4, 1.6)
    """
    if text is None:
        return None
    try:
        prompt, completion = (float(part) for part in text.split(","))
    except ValueError:
        raise BadRequest(f"--price {text!r} is not understood; give PROMPT,COMPLETION such as 0.4,1.6") from None
    if not all(math.isfinite(dollars) and dollars >= 0 for dollars in (prompt, completion)):
        raise BadRequest(f"--price {text!r}: a price is a number of at least 0, such as 0.4,1.6")
    return prompt, completion


def fields(pairs: list[str] | None) -> tuple[tuple[str, str], ...]:
    """Program fields and the columns they are read from.

    >>> fields(["text=question"])
    (('text', 'question'),)
    """
    found = []
    for pair in pairs or []:
        field, equals, column = pair.partition("=")
        if not (field and equals and column):
            raise BadRequest(f"--map {pair!r} is not understood; give FIELD=COLUMN such as text=question")
        found.append((field.strip(), column.strip()))
    return tuple(found)


def policy(
    default: str | None, pairs: list[str] | None, file: Path | None, called: str | None
) -> dict[str, Any] | None:
    """What is said of personal data; None where nothing is.

    >>> policy("redact", ["customer=drop"], None, None)
    {'default': 'redact', 'fields': {'customer': 'drop'}}
    """
    from ratchet.privacy.policy import field_treatments, merged, read_policy

    said = {"default": default, "fields": field_treatments(pairs or []) or None, "set": called}
    more = {name: value for name, value in said.items() if value is not None}
    return merged(read_policy(file) if file is not None else {}, more) or None


def names(text: str) -> tuple[str, ...]:
    """Names with commas between them.

    >>> names("gepa, miprov2")
    ('gepa', 'miprov2')
    """
    return tuple(part.strip() for part in text.split(",") if part.strip())

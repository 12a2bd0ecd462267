"""Reads on a server what ``read`` reads here, and its algorithms."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields
from datetime import datetime
from itertools import islice
from typing import Any

from ratchet.cli.errors import say
from ratchet.cli.remote.connection import client_of, command, find, print_json
from ratchet.client import Client
from ratchet.engine.archive import Optimization
from ratchet.options import Options
from ratchet.settings import Settings

GOES_ON = ("paused", "cancelled", "failed")


def list_(*, limit: int, as_json: bool, settings: Settings) -> None:
    """Optimizations, the newest first."""
    from ratchet.cli import read

    with client_of(settings) as client:
        found = [_stored(client.optimization(job["id"])) for job in islice(client.optimizations(), limit)]
    read.show_list(found, as_json=as_json, none=f"nothing is stored on {settings.server} yet")


def show(identity: str, *, diff: bool, front: bool, as_json: bool, settings: Settings) -> None:
    """One optimization."""
    from ratchet.cli import read

    with client_of(settings) as client:
        stored = _stored(find(client, identity))
        again = command(client, "resume" if stored.status in GOES_ON else "watch", stored.id)
        sides = sides_of(client, stored.id)
        read.show_stored(stored, diff=diff, front=front, as_json=as_json, sides=sides, again=again)


def _stored(job: Mapping[str, Any]) -> Optimization:
    """An optimization as it stands in the server's archive."""
    return Optimization(
        id=job["id"],
        status=job["status"],
        created_at=datetime.fromisoformat(job["created_at"]),
        request=job["request"],
        result=job["result"],
        error=job["reason"] if job["status"] == "failed" else "",
        seconds=job["seconds"],
    )


def sides_of(client: Client, identity: str) -> Callable[[Any, Options], Any]:
    """What measures baseline and chosen candidate on the sealed test, from the server's evaluations."""
    from ratchet.core.result import OptimizationResult
    from ratchet.engine.report import Side
    from ratchet.publish import side

    def sides(result: OptimizationResult, options: Options) -> tuple[Side, Side]:
        if result.comparison is None or result.baseline is None or result.winner is None:
            return Side(), Side()
        keys, rows = sealed(client, identity)
        before, after = (
            side([rows[candidate.key, key] for key in keys], success_at=options.success_at, seed=options.seed)
            for candidate in (result.baseline, result.winner)
        )
        return before, after

    return sides


def sealed(client: Client, identity: str) -> tuple[list[str], dict[tuple[str, str], Any]]:
    """The examples that the sealed test of an optimization was opened for, and evaluations by candidate and example."""
    from ratchet.core.evaluation import Evaluation, Failure, Usage
    from ratchet.core.problem import Example

    nameless = Example(inputs={}, labels={})

    def evaluation(row: Mapping[str, Any]) -> Evaluation:
        failed = row["failure_kind"] is not None
        return Evaluation(
            candidate=row["candidate"],
            example=nameless,
            score=row["score"],
            failure=Failure(kind=row["failure_kind"], message=row["failure_message"] or "") if failed else None,
            usage=Usage(**{each.name: row[each.name] for each in fields(Usage)}),
        )

    # The certificate names the examples of the sealed test, in their order.
    keys = [key for key, _, _ in client.certificate(identity)["payload"]["pairs"]]
    rows = client.evaluations(identity)
    return keys, {(row["candidate"], row["example"]): evaluation(row) for row in rows if row["repeat"] == 0}


def algorithms(*, as_json: bool, settings: Settings) -> None:
    """The names that the server takes."""
    from rich.markup import escape

    from ratchet.cli import render

    with client_of(settings) as client:
        found = [*client.algorithms()]
    if as_json:
        print_json(found)
        return
    for each in found:
        render.show(f"{each['name']:<30} {each['kind']:<10} {escape(each['what'])}")


def add_algorithm(name: str, url: str, secret_env: str | None, settings: Settings) -> None:
    """An algorithm behind a URL, registered by an operator; the server tries it first."""
    with client_of(settings) as client:
        kept = client.register_algorithm(name, url, secret_env=secret_env)
    weak = [promise["what"] for promise in kept["promises"] if not promise["kept"]]
    say(f"{name} stands for {url} on {settings.server}" + (f"; it does not keep: {', '.join(weak)}" if weak else ""))


def remove_algorithm(name: str, settings: Settings) -> None:
    """An algorithm that no new optimization can name; withdrawn by an operator."""
    with client_of(settings) as client:
        client.withdraw_algorithm(name)
    say(f"{name} is withdrawn on {settings.server}; optimizations that were begun with it go on")

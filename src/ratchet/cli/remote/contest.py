"""``ratchet compare`` on a server: an optimization there for each algorithm, and the statistics of ``contest`` on them.

They are one cycle: begun all or none, and found again by whoever asks for the same. What is compared are the stored
evaluations of their sealed tests, so only what was measured there is told.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import typer

from ratchet.cli.errors import STOPPED, say
from ratchet.cli.remote.asked import request
from ratchet.cli.remote.follow import watched
from ratchet.cli.remote.read import GOES_ON, sealed
from ratchet.client import Client, Json
from ratchet.contest import BASELINE, Contender, Contest, check_names, compared
from ratchet.core.errors import Cancelled, RatchetError
from ratchet.core.evaluation import Evaluation, Evaluations
from ratchet.core.problem import content_hash
from ratchet.core.result import ENDED, OptimizationResult
from ratchet.options import Options


def contest(client: Client, options: Options, names: Sequence[str]) -> Contest:
    """Have the server run every algorithm on the task, and compare what they found.

    Args:
        options: The task and the budget of each; its algorithms are left aside.
        names: The algorithms; several with commas between them run one after the other, as one contender.

    Raises:
        UserError: something given cannot be used; nothing was begun then.
        RatchetError: it was stopped, or no algorithm came to a result.
    """
    check_names(names)
    cycle = _begun(client, options, names)
    jobs = dict(zip(names, _ended(client, names, cycle), strict=True))
    results = {
        name: OptimizationResult.from_json(job["result"]) for name, job in jobs.items() if job["status"] in ENDED
    }
    if not results:
        errors = "; ".join(f"{name}: {job['reason']}" for name, job in jobs.items())
        raise RatchetError(f"no algorithm came to a result. {errors}; the same command tries them again")
    seed = next(iter(results.values())).baseline
    assert seed is not None
    chosen = {BASELINE: seed.key} | {name: (result.winner or seed).key for name, result in results.items()}
    lines = [Contender(name=BASELINE, candidate=seed.key)]
    lines += [_line(client, name, job, chosen.get(name)) for name, job in jobs.items()]
    opened = [sealed(client, result.optimization_id) for result in results.values() if result.comparison is not None]
    return compared(cycle["id"], lines, _rows(chosen, opened), success_at=options.success_at, seed=options.seed)


def _begun(client: Client, options: Options, names: Sequence[str]) -> Json:
    """The cycle with an optimization for each name, of this call or of an earlier one."""
    parts = [[part.strip() for part in name.split(",")] for name in names]
    every = tuple(part for each in parts for part in each)
    # What one contender found on this task must not be where the next one begins.
    body = request(client, replace(options, algorithms=every, warm_start=False, learn_from=()))
    orders = [{**_pinned(client, body), "algorithms": each} for each in parts]
    # Whoever registers an algorithm anew under its name asks for something else.
    registered = [
        [each[name] for name in ("name", "url", "created_at")]
        for each in client.registered_algorithms()
        if each["name"] in every
    ]
    key = f"compare {content_hash([orders, registered])}"
    return client.cycle(client.start_cycle(name="compare", optimizations=orders, idempotency_key=key)["id"])


def _pinned(client: Client, body: Mapping[str, Any]) -> dict[str, Any]:
    """The request with the versions that its names stand for now, so that a newer one is another request."""
    parts = [part for part in ("data", "train", "validation", "test") if part in body]
    pinned = {part: client.dataset(body[part])["id"] for part in parts}
    target = body["target"]
    return {**body, **pinned, "target": {"id": client.target(target["id"])["id"]} if "id" in target else target}


def _ended(client: Client, names: Sequence[str], cycle: Mapping[str, Any]) -> list[Json]:
    """Its optimizations, all at rest, in the order of the names; those that were stopped are resumed."""
    members = sorted(cycle["optimizations"], key=lambda each: int(each["position"]))
    for member in members:
        if member["status"] in GOES_ON:
            client.resume(member["id"])
    found = []
    try:
        for name, member in zip(names, members, strict=True):
            job = client.optimization(member["id"])
            found.append(job if job["status"] in ENDED else watched(client, job, name=name))
    except KeyboardInterrupt:
        ids = " ".join(member["id"] for member in members)
        say(
            f"\nit goes on without you; the same command follows it again. Stop an optimization with: "
            f"ratchet --server {client.url} cancel ID. They are: {ids}"
        )
        raise typer.Exit(STOPPED) from None
    for name, job in zip(names, found, strict=True):
        if job["status"] not in (*ENDED, "failed"):
            raise Cancelled(f"{name} ({job['id']}) is {job['status']}; the same command goes on from here")
    return found


def _line(client: Client, name: str, job: Mapping[str, Any], candidate: str | None) -> Contender:
    spend = client.status(job["id"])["spend"]
    return Contender(
        name=name,
        status=job["status"],
        optimization_id=job["id"],
        reason=job["reason"] if candidate is None else job["result"]["reason"],
        candidate=candidate,
        calls=spend["calls"],
        usd=spend["usd"],
        seconds=job["seconds"],
    )


def _rows(
    chosen: Mapping[str, str], opened: Sequence[tuple[Sequence[str], Mapping[tuple[str, str], Evaluation]]]
) -> dict[str, Evaluations]:
    """Every contender's evaluations on the sealed examples that all tests were opened for.

    Of two evaluations of the same program on the same example the first stands. A program whose own sealed test could
    not be paid for has none, and is left out.
    """
    if not opened:
        return {}
    first, *others = (keys for keys, _ in opened)
    common = [key for key in first if all(key in each for each in others)]
    known: dict[tuple[str, str], Evaluation] = {}
    for _, rows in reversed(opened):
        known.update(rows)
    return {
        name: Evaluations(tuple(known[candidate, key] for key in common))
        for name, candidate in chosen.items()
        if common and all((candidate, key) in known for key in common)
    }

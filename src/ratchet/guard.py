"""Personal data on its way into an optimization: which policy holds, under which key, and what it was applied to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from ratchet.core.errors import BadRequest
from ratchet.core.problem import Example
from ratchet.options import Options
from ratchet.privacy.clean import Cleaner, Report
from ratchet.privacy.policy import Policy, default_set, merged, read_policy
from ratchet.programs.datasets import Row, Splits
from ratchet.settings import Settings
from ratchet.storage.privacy import PseudonymKeys
from ratchet.storage.sql import SqlArchive

KEEP = Policy(fields={}, names={}, marks={}, patterns={})
"""Nothing is done."""


def policy_for(asked: Mapping[str, Any] | None, settings: Settings, *, called: str) -> Policy:
    """The policy of what was asked for, over that of this installation.

    Args:
        asked: A description of a policy, or None.
        called: What the set of data is called, unless the policy says so.

    Raises:
        BadRequest: a value makes no sense.
    """
    base = read_policy(settings.pii_policy) if settings.pii_policy is not None else {}
    said = {"default": settings.pii} if settings.pii is not None else {}
    policy = Policy.from_json(merged(merged(base, said), asked or {}))
    return replace(policy, set=policy.set or called)


def cleaner_for(policy: Policy, archive: SqlArchive, *, tenant: str) -> Cleaner | None:
    """What cleans as ``policy`` says; None where it keeps everything.

    Raises:
        BadRequest: the extra is not installed.
    """
    return Cleaner(policy, PseudonymKeys(archive).key(tenant, policy.set)) if policy.is_on else None


def scanned(policy: Policy, rows: Sequence[Row]) -> Report:
    """What is found in rows; nothing is kept, so the key is nobody's."""
    return Cleaner(policy, bytes(32)).rows([row.fields for row in rows])[1]


def guarded(options: Options, settings: Settings, archive: SqlArchive) -> tuple[Options, Cleaner | None]:
    """Options as they may be stored, with no name in them, and what cleans the data of this optimization.

    An optimization that is resumed is cleaned as it was: its options say how.

    Raises:
        BadRequest: the policy makes no sense, or the extra is not installed.
        Missing: the key of its pseudonyms was removed.
    """
    if options.pii is not None and "marks" in options.pii:
        policy = Policy.from_json(options.pii)  # what was stored is all there is to say
        if not policy.is_on:
            return options, None
        # Under a new key its names would not be found any more.
        return options, Cleaner(policy, PseudonymKeys(archive).known(options.tenant, policy.set))
    files = [file for file in (options.data, options.train, options.validation, options.test) if file is not None]
    policy = policy_for(options.pii, settings, called=default_set(files) or "data")
    cleaner = cleaner_for(policy, archive, tenant=options.tenant)
    return replace(options, pii=to_store(cleaner)), cleaner


def to_store(cleaner: Cleaner | None) -> dict[str, Any]:
    """The policy as it is stored; ``keep`` is stored too, so that it holds under another setting later."""
    return (KEEP if cleaner is None else cleaner.policy).to_json()


def clean_rows(cleaner: Cleaner, rows: Sequence[Row]) -> tuple[list[Row], Report]:
    """Rows of a file as they may be kept, under their numbers; and what was found.

    Raises:
        BadRequest: no field is left of them.
    """
    cleaned, report = cleaner.rows([row.fields for row in rows])
    if cleaned and not cleaned[0]:
        raise BadRequest("pii: every field is dropped; keep, redact or pseudonymise one", field="fields")
    return [Row(number=row.number, fields=fields) for row, fields in zip(rows, cleaned, strict=True)], report


def clean_examples(cleaner: Cleaner, examples: Sequence[Example]) -> tuple[tuple[Example, ...], Report]:
    """Examples of a caller, cleaned in inputs and labels.

    Raises:
        BadRequest: an input is dropped.
    """
    # Both at once: a number that an input gives away is to be found in the label of any example, too.
    rows, report = cleaner.rows([example.fields for example in examples])
    for name in report.dropped:
        if any(name in example.inputs for example in examples):
            raise BadRequest(f"pii: {name!r} is dropped, and it is an input of the program", field="fields", value=name)
    pairs = zip(examples, rows, strict=True)
    return tuple(
        Example(
            inputs={name: row[name] for name in example.inputs},
            labels={name: row[name] for name in example.labels if name in row},
        )
        for example, row in pairs
    ), report


def clean_splits(cleaner: Cleaner, splits: Splits) -> Splits:
    """Splits of a caller, cleaned; what was found is among their notes."""
    parts = {name: clean_examples(cleaner, getattr(splits, name)) for name in ("train", "validation", "test")}
    notes = tuple(f"{name}: {report.told()}" for name, (_, report) in parts.items() if report.touched)
    return Splits(notes=(*splits.notes, *notes), **{name: examples for name, (examples, _) in parts.items()})

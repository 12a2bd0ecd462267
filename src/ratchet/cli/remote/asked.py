"""What a command asks of a server: options become the body of a request, and files of data are uploaded."""

from __future__ import annotations

import json
import re
from dataclasses import fields
from pathlib import Path
from typing import Any

from ratchet.calls import KINDS
from ratchet.cli.errors import say
from ratchet.cli.remote.connection import check_tenant
from ratchet.client import Client
from ratchet.core.errors import BadRequest
from ratchet.options import Options

_NAMES = (
    *("lm", "reflection_lm", "judge_lm", "lm_base", "adapter", "temperature", "max_tokens", "lm_timeout"),
    *("price", "requests_per_minute", "tokens_per_minute", "share_replies", "success_at", "seed", "concurrency"),
    *("force", "tune_tools", "minimise", "max_prompt_tokens", "warm_start", "learn_from", "lessons_may_quote"),
)
"""Options that a server takes under the same name."""


_ELSEWHERE = frozenset(
    {
        *("target", "module", "instructions", "data", "train", "validation", "test", "algorithms", "objectives"),
        *("max_minutes", "min_improvement", "max_calls", "max_usd", "max_resource_usage", "target_values", "fields"),
        *("metric", "rubric", "pii"),
    }
)
"""Options that it takes in another form."""


def request(client: Client, options: Options) -> dict[str, Any]:
    """The body of the request for ``options``; local files of data are uploaded.

    Raises:
        UserError: an option cannot be carried out by a server, or a file is not taken.
    """
    _refuse_code("target", options.target)
    _refuse_code("metric", options.metric)
    for algorithm in options.algorithms:
        _refuse_code("algorithm", algorithm)
    check_tenant(options.tenant)
    standard = Options(target=options.target)
    for name in (each.name for each in fields(Options)):
        if name not in _ELSEWHERE and name not in _NAMES and getattr(options, name) != getattr(standard, name):
            value = getattr(options, name)
            raise BadRequest(f"--{name.replace('_', '-')} {value!r} cannot be given: a server does not take it")
    aims = dict(options.target_values)
    given = {name: getattr(options, name) for name in _NAMES if getattr(options, name) != getattr(standard, name)}
    return {
        **given,
        "target": _target(options),
        "algorithms": list(options.algorithms),
        **_metric(options),
        "objectives": [
            {"metric": metric, "weight": weight, **({"target_value": aims[metric]} if metric in aims else {})}
            for metric, weight in options.objectives
        ],
        "constraints": {
            "max_optimization_time": options.max_minutes * 60,
            "min_improvement_threshold": options.min_improvement,
            "max_resource_usage": options.max_resource_usage,
            **({} if options.max_calls is None else {"max_calls": options.max_calls}),
            **({} if options.max_usd is None else {"max_usd": options.max_usd}),
        },
        "fields": dict(options.fields),
        **_data(client, options),
    }


def _refuse_code(what: str, text: str) -> None:
    if re.search(r"\.py:\w", text):
        raise BadRequest(
            f"the {what} {text!r} is code of this machine, and none is sent to a server; have it installed there, "
            "put on RATCHET_IMPORT_ALLOW by whoever runs it, and name it as package.module:attribute"
        )


def _metric(options: Options) -> dict[str, Any]:
    name, _, file = options.metric.partition(":")
    if name != "llm_judge" or options.rubric is not None:
        return {"metric": options.metric, **({} if options.rubric is None else {"rubric": options.rubric})}
    try:
        return {"metric": name, "rubric": Path(file).expanduser().read_text(encoding="utf-8-sig")}
    except (OSError, UnicodeDecodeError) as error:
        raise BadRequest(f"the metric {options.metric}: {file or 'no file'} cannot be read: {error}") from error


def _target(options: Options) -> dict[str, Any]:
    text = options.target
    if "->" in text:
        spec = {"signature": text, "module": options.module, "instructions": options.instructions}
        return {"spec": {name: value for name, value in spec.items() if value is not None}}
    if text.endswith((".yaml", ".yml")):
        raise BadRequest(
            f"the target {text!r} is the spec of an agent, and a server takes none; without --server, and with "
            "RATCHET_SERVER unset, it is optimized from this machine"
        )
    if text.endswith(".json"):
        try:
            program = json.loads(Path(text).read_text(encoding="utf-8"))
        except OSError as error:
            raise BadRequest(f"the target {text} cannot be read: {error.strerror}") from error
        except ValueError as error:
            raise BadRequest(f"the target {text} is no JSON: {error}") from error
        return {"spec": {"program": program}}
    return {"spec": {"import_path": text}} if ":" in text else {"id": text}


def _data(client: Client, options: Options) -> dict[str, str]:
    """The data sets by the option they stand for; what is no file here is the name of one on the server."""
    given = {name: getattr(options, name) for name in ("data", "train", "validation", "test")}
    found: dict[str, str] = {}
    for part, text in given.items():
        if text is None:
            continue
        path = Path(text)
        if path.is_file():
            name = re.sub(r"[^A-Za-z0-9._-]+", "-", path.stem).strip("-._")[:100] or "data"
            kept = client.upload(name, path, privacy=options.pii)
            say(f"{path}: {kept['rows']} rows, kept as {kept['name']}@{kept['version']}")
            found[part] = kept["id"]
        elif path.suffix.lower() in KINDS or len(path.parts) > 1:
            raise BadRequest(f"--{part} {text}: there is no such file")
        elif options.pii is not None:
            raise BadRequest(f"--{part} {text} is kept on the server as it was cleaned there; leave --pii out")
        else:
            found[part] = text
    return found

"""What a request over the network may name: nothing that runs code, reads files or calls hosts unless allowed."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Mapping
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Any

from ratchet.core.errors import BadRequest, Denied
from ratchet.options import Options
from ratchet.programs.targets import SECTION
from ratchet.settings import Settings

PLAIN_METRICS = ("exact_match", "f1", "numeric", "contains", "json_fields", "multi_label")

TYPES = {
    *("str", "int", "float", "bool", "list", "dict", "tuple", "set", "bytes"),
    *("List", "Dict", "Tuple", "Set", "Literal", "Optional", "Union", "Any", "None", "NoneType"),
}
"""The types an inline signature may name. DSPy would import a module for a name that it does not know."""


def check_signature(text: str) -> None:
    """Refuse a signature whose types are more than plain ones.

    Raises:
        BadRequest: it names something else, or cannot be read.

    >>> check_signature("text, hints: list[str] -> label: Literal['a', 'b']")
    >>> check_signature("text -> label: os.system")
    Traceback (most recent call last):
    ratchet.core.errors.BadRequest: the signature names 'os.system', ...
    """
    sides = text.split("->")
    if len(sides) != 2:
        raise BadRequest("a signature has one '->', as in 'question -> answer'", field="signature", value=text)
    for side in sides:
        try:
            body = ast.parse(f"def f({side.strip()}): pass").body
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            raise BadRequest(
                f"the signature {text!r} is not understood: {error}", field="signature", value=text
            ) from error
        if len(body) != 1 or not isinstance(body[0], ast.FunctionDef) or not isinstance(body[0].body[0], ast.Pass):
            raise BadRequest(
                f"the signature {text!r} is more than fields and their types", field="signature", value=text
            )
        for node in ast.walk(body[0].args):
            if isinstance(node, ast.Attribute) or (isinstance(node, ast.Name) and node.id not in TYPES):
                raise BadRequest(
                    f"the signature names {ast.unparse(node)!r}, and only plain types are taken: "
                    f"{', '.join(sorted(TYPES))}",
                    field="signature",
                    value=text,
                )


def check_import(path: str, settings: Settings, *, field: str) -> None:
    """Refuse an import path that no operator has allowed.

    Raises:
        Denied: it is not on the list.
    """
    allowed = [pattern.strip() for pattern in settings.import_allow.split(",") if pattern.strip()]
    if not re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*", path) or not any(
        fnmatchcase(path, pattern) for pattern in allowed
    ):
        raise Denied(
            f"{field} {path!r} may not be imported; an operator can put it on RATCHET_IMPORT_ALLOW",
            field=field,
            value=path,
        )


def check_target(spec: Mapping[str, Any], settings: Settings) -> dict[str, Any]:
    """What ``Options`` take for a stored target.

    Args:
        spec: One of ``signature`` (with ``module`` and ``instructions``), ``program`` and ``import_path``.

    Raises:
        UserError: it may not be used, or cannot.
    """
    if spec.get("signature") is not None:
        check_signature(spec["signature"])
        return {
            "target": spec["signature"],
            "module": spec.get("module") or "predict",
            "instructions": spec.get("instructions"),
        }
    if spec.get("import_path") is not None:
        check_import(spec["import_path"], settings, field="import_path")
        return {"target": spec["import_path"]}
    program = spec["program"]
    section = program.get(SECTION)
    inner = section.get("target") if isinstance(section, Mapping) else None
    if not isinstance(inner, str):
        raise BadRequest(
            f"program has no {SECTION!r} section that says how it is built; give a program.json that Ratchet wrote",
            field="program",
        )
    _check_state(program)
    if "->" in inner:
        check_signature(inner)
    else:
        check_import(inner, settings, field="program")
    return {"target": json.dumps(program, ensure_ascii=False, sort_keys=True)}


STATE = {"signature", "demos", "traces", "train", "lm", "fields"}
"""What the state of a predictor consists of; DSPy would set anything else as an attribute."""


def _check_state(program: Mapping[str, Any]) -> None:
    parts = {name: state for name, state in program.items() if name not in (SECTION, "metadata")}
    for name, state in ({"self": parts} if "signature" in parts else parts).items():  # a bare predictor is its own
        if not isinstance(state, Mapping) or not set(state) <= STATE:
            raise BadRequest(f"program: {name!r} is no state of a predictor; give what Ratchet wrote", field="program")
        if state.get("lm") is not None:
            raise Denied(
                f"program: predictor {name!r} brings an LM of its own; name the LM in the request", field="program"
            )


def check_again(options: Options, settings: Settings) -> None:
    """Refuse what was stored, or was changed since, when it may not be asked for any more.

    Raises:
        UserError: it may not.
    """
    if "->" not in options.target and not options.target.startswith("{"):
        check_import(options.target, settings, field="target")
    check_options(options, settings)


def check_options(options: Options, settings: Settings) -> None:
    """Refuse a metric, an algorithm or an LM that reaches further than it may.

    Raises:
        UserError: it does.
    """
    name = options.metric.partition(":")[0]
    if name == "llm_judge" and ":" in options.metric:
        raise Denied(
            f"metric {options.metric!r} names a file of the server; say llm_judge, and give its text as rubric",
            field="metric",
            value=options.metric,
        )
    if (name == "llm_judge") != bool((options.rubric or "").strip()):
        raise BadRequest("a rubric goes with the metric llm_judge, and with no other; give both", field="rubric")
    if name not in PLAIN_METRICS and ("." in name or ":" in options.metric):
        check_import(options.metric, settings, field="metric")
    for algorithm in options.algorithms:
        if algorithm.startswith(("http://", "https://")):
            raise Denied(
                f"algorithm {algorithm!r} is an address; an operator can name it: ratchet algorithms add NAME URL",
                field="algorithms",
                value=algorithm,
            )
        if ":" in algorithm:
            check_import(algorithm, settings, field="algorithms")
    for field in ("lm", "reflection_lm", "judge_lm"):
        for lm in (getattr(options, field) or "").split(","):
            if lm.strip().startswith("local:"):
                raise Denied(
                    f"{field} {lm!r} names a file of the server; say local, or a model of a provider",
                    field=field,
                    value=lm,
                )
    bases = [base.strip().rstrip("/") for base in settings.lm_bases.split(",") if base.strip()]
    if options.lm_base is not None and options.lm_base.rstrip("/") not in bases:
        raise Denied(
            f"lm_base {options.lm_base!r} is not an address that requests may name; "
            "an operator can put it on RATCHET_LM_BASES",
            field="lm_base",
            value=options.lm_base,
        )


def within_share(options: Options, settings: Settings) -> Options:
    """``options`` with no more requests under way at once than its share of a worker's slots.

    It is fixed here, and not by the worker that takes it up: the plan of a search depends on it.
    """
    slots = max(1, int(options.max_resource_usage * settings.worker_slots + 1e-9))
    return replace(options, concurrency=min(options.concurrency, slots))

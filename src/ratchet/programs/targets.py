"""From what a user calls a target to a ``dspy.Module``."""

from __future__ import annotations

import difflib
import hashlib
import importlib
import importlib.util
import inspect
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import dspy

from ratchet.core.errors import BadRequest, UnknownName, UserError

Kind = Literal["predict", "cot"]
_KINDS: dict[str, type[dspy.Module]] = {"predict": dspy.Predict, "cot": dspy.ChainOfThought}
SECTION = "ratchet"
"""The key in a saved program's JSON under which Ratchet notes how to build the module; DSPy ignores it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A program and where it came from.

    Attributes:
        module: The program.
        text: The target as it was given.
        kind: Module for an inline signature.
        instructions: Instructions for an inline signature; None for DSPy's own.
        description: Source text of the program, for grounded proposals; may be empty.
    """

    module: dspy.Module
    text: str
    kind: str = "predict"
    instructions: str | None = None
    description: str = ""


def resolve_target(text: str, *, kind: str = "predict", instructions: str | None = None) -> Target:
    """The program that ``text`` names.

    Args:
        text: ``pkg.module:attribute``, ``file.py:attribute`` (an instance, a class or a factory), an inline signature
            such as ``"text -> label: Literal['a', 'b']"``, or a program that Ratchet saved: the file, or its JSON.
        kind: ``predict`` or ``cot``; the module for an inline signature.
        instructions: Instructions for an inline signature.

    Raises:
        UnknownName: there is nothing under this name.
        BadRequest: what is there is no program.
    """
    if text.startswith("{"):
        return _from_json("the saved program", text)
    if "->" in text:
        return _inline(text, kind, instructions)
    if text.endswith(".json"):
        return _saved(Path(text))
    name, separator, attribute = text.rpartition(":")
    if not separator or not attribute or not name:
        raise UnknownName(
            f"the target {text!r} is not understood; give pkg.module:attribute, file.py:attribute, "
            f"an inline signature such as 'question -> answer', or a program.json"
        )
    module = load_attribute(name, attribute, what="target")
    try:
        program = module() if inspect.isclass(module) or inspect.isroutine(module) else module
    except (Exception, SystemExit) as error:  # the user's factory is foreign code
        raise BadRequest(f"{text} raised while it was called: {type(error).__name__}: {error}") from error
    if not isinstance(program, dspy.Module):
        raise BadRequest(f"{text} gives {type(program).__name__}, not a dspy.Module")
    return Target(module=program, text=text, description=_source(program))


def load_attribute(name: str, attribute: str, *, what: str) -> Any:
    """``attribute`` of a module given by dotted name or by file.

    Raises:
        UnknownName: there is no such module or attribute.
        BadRequest: importing it raised.
    """
    path = Path(name).expanduser()
    try:
        if name.endswith(".py"):
            if not path.is_file():
                raise UnknownName(f"the file {name} of the {what} {name}:{attribute} is not there")
            found = _import_file(path.resolve())
        else:
            if str(Path.cwd()) not in sys.path:
                sys.path.insert(0, str(Path.cwd()))
            found = importlib.import_module(name)
    except UserError:
        raise
    except ModuleNotFoundError as error:
        raise UnknownName(f"the module of the {what} {name}:{attribute} cannot be imported: {error}") from error
    except (Exception, SystemExit) as error:  # the user's module is foreign code
        raise BadRequest(f"importing {name} for the {what} raised {type(error).__name__}: {error}") from error
    try:
        value: Any = found
        for part in attribute.split("."):
            value = getattr(value, part)
    except AttributeError as error:
        names = [each for each in vars(found) if not each.startswith("_")]
        close = difflib.get_close_matches(attribute, names, n=3) or names[:8]
        raise UnknownName(f"{name} has no {attribute!r}; it has {', '.join(close) or 'nothing'}") from error
    return value


def _import_file(path: Path) -> ModuleType:
    name = f"ratchet_file_{hashlib.sha256(str(path).encode()).hexdigest()[:12]}_{path.stem}"
    if name in sys.modules:
        return sys.modules[name]
    if str(path.parent) not in sys.path:
        sys.path.insert(0, str(path.parent))
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise BadRequest(f"{path} cannot be imported as Python")
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _inline(text: str, kind: str, instructions: str | None) -> Target:
    if kind not in _KINDS:
        raise UnknownName(f"--module {kind!r} is not known; choose from {', '.join(_KINDS)}")
    try:
        signature = dspy.Signature(text, instructions) if instructions else dspy.Signature(text)
    except Exception as error:  # DSPy's parser raises many kinds of errors
        raise BadRequest(f"the signature {text!r} is not understood: {error}") from error
    if not signature.input_fields or not signature.output_fields:
        raise BadRequest(f"the signature {text!r} is not understood: it needs an input and an output")
    return Target(module=_KINDS[kind](signature), text=text, kind=kind, instructions=instructions)


def _saved(path: Path) -> Target:
    if not path.is_file():
        raise UnknownName(f"the program file {path} is not there")
    try:
        return _from_json(str(path), path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise BadRequest(f"{path} is no JSON: {error}") from error


def _from_json(path: str, content: str) -> Target:
    try:
        state = json.loads(content)
    except ValueError as error:
        raise BadRequest(f"{path} is no JSON: {error}") from error
    try:
        text, kind, instructions = (state[SECTION][name] for name in ("target", "kind", "instructions"))
        if not isinstance(text, str) or text.endswith(".json") or text.startswith("{"):
            raise TypeError(text)
    except (KeyError, TypeError) as error:
        raise BadRequest(
            f"{path} was not saved by Ratchet: it has no {SECTION!r} section that says how its module is built. "
            "Give a factory instead, file.py:function, that builds the module and loads this file"
        ) from error
    target = resolve_target(text, kind=kind, instructions=instructions)
    module = target.module.deepcopy()
    try:
        module.load_state(state)
    except Exception as error:  # DSPy takes a state on trust
        raise BadRequest(f"{path} does not fit the program {text}: {type(error).__name__}: {error}") from error
    return Target(
        module=module,
        text=target.text,
        kind=target.kind,
        instructions=target.instructions,
        description=target.description,
    )


def save_program(module: dspy.Module, path: Path, target: Target | None) -> None:
    """Write ``module`` so that ``dspy.Module.load`` reads it without Ratchet, and Ratchet can build it again."""
    part = path.with_suffix(".part.json")
    module.save(str(part))
    if target is not None:
        state = json.loads(part.read_text(encoding="utf-8"))
        state[SECTION] = {"target": target.text, "kind": target.kind, "instructions": target.instructions}
        part.write_text(json.dumps(state, indent=2, ensure_ascii=False), encoding="utf-8")
    part.replace(path)


def _source(module: dspy.Module) -> str:
    if type(module).__module__.startswith("dspy."):
        return ""
    try:
        return inspect.getsource(type(module))
    except (OSError, TypeError):
        return ""

"""From what a user calls a target to a ``dspy.Module``."""

from __future__ import annotations

import difflib
import hashlib
import importlib
import importlib.util
import inspect
import json
import sys
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import dspy

from ratchet.core.errors import BadRequest, UnknownName, UserError
from ratchet.programs import agent_spec
from ratchet.programs.agent_spec import AgentSpec
from ratchet.programs.files import written_whole
from ratchet.programs.parts import copied
from ratchet.programs.remote import RemoteAgent
from ratchet.programs.tools import Toolboxes

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
            such as ``"text -> label: Literal['a', 'b']"``, a program that Ratchet saved (the file, or its JSON), or the
            spec of a remote agent (``agent.json``, ``agent.yaml``; ``ratchet.programs.agent_spec``).
        kind: ``predict`` or ``cot``; the module for an inline signature.
        instructions: Instructions for an inline signature.

    Raises:
        UnknownName: there is nothing under this name.
        BadRequest: what is there is no program.
    """
    if text.startswith("{"):
        # Such a text may come over the network: it never becomes a remote agent, which calls hosts and sends secrets.
        try:
            return _saved("the saved program", json.loads(text))
        except ValueError as error:
            raise BadRequest(f"the saved program is no JSON: {error}") from error
    if "->" in text:
        return _inline(text, kind, instructions)
    if text.endswith((".json", ".yaml", ".yml")):
        return _file(Path(text), text)
    name, separator, attribute = text.rpartition(":")
    if not separator or not attribute or not name:
        raise UnknownName(
            f"the target {text!r} is not understood; give pkg.module:attribute, file.py:attribute, "
            f"an inline signature such as 'question -> answer', a program.json, or an agent.yaml"
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
    with ExitStack() as otherwise:
        otherwise.callback(sys.modules.pop, name)
        spec.loader.exec_module(module)
        otherwise.pop_all()
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


def _file(path: Path, text: str) -> Target:
    """A saved program, or the spec of a remote agent."""
    if not path.is_file():
        raise UnknownName(f"the program file {path} is not there")
    data = agent_spec.load(path)
    if agent_spec.is_agent(data):
        return _agent(agent_spec.parse(data, source=str(path), name=path.stem), text)
    section = data.get(SECTION) if isinstance(data, dict) else None
    if isinstance(section, dict) and "agent" in section:
        target = _agent(agent_spec.parse(section["agent"], source=f"{path}, agent"), text)
        _load(target.module, data, path, target.text)
        return target
    return _saved(path, data)


def _agent(spec: AgentSpec, text: str) -> Target:
    return Target(module=RemoteAgent(spec), text=text, description=spec.description)


def _saved(path: str | Path, state: Any) -> Target:
    try:
        text, kind, instructions = (state[SECTION][name] for name in ("target", "kind", "instructions"))
        if not isinstance(text, str) or text.endswith(".json") or text.startswith("{"):
            raise TypeError(text)
    except (KeyError, TypeError) as error:
        raise BadRequest(
            f"{path} was not saved by Ratchet: it has no {SECTION!r} section that says how its module is built. "
            "Give a factory instead, file.py:function, that builds the module and loads this file"
        ) from error
    target = resolve_target(_from_folder_of(path, text), kind=kind, instructions=instructions)
    module = copied(target.module)
    _load(module, state, path, text)
    return Target(
        module=module,
        text=target.text,
        kind=target.kind,
        instructions=target.instructions,
        description=target.description,
    )


def _from_folder_of(path: str | Path, text: str) -> str:
    """The target ``text`` of the program saved at ``path``: a file that is not here may be beside it."""
    name, separator, attribute = text.rpartition(":")
    beside = path.parent / name if isinstance(path, Path) else None
    if beside is None or not name.endswith(".py") or Path(name).expanduser().is_file() or not beside.is_file():
        return text
    return f"{beside}{separator}{attribute}"


def load_program(path: str | Path, module: dspy.Module | None = None) -> dspy.Module:
    """The program that Ratchet saved at ``path``, with all that was tuned.

    Instructions and demos are loaded by ``dspy.Module.load`` as well, and so are tools that are written into
    instructions, as those of ``dspy.ReAct`` are. What other tools say of themselves has no place in DSPy's state; it
    stands beside it, and only this function reads it.

    Args:
        path: A ``program.json``.
        module: The program as its code builds it, which is changed and given back; None builds it from what the file
            says of the target.

    Raises:
        UnknownName: there is no such file.
        BadRequest: the file does not fit the program, or does not say how to build it.
    """
    if module is None:
        return resolve_target(str(path)).module
    file = Path(path)
    if not file.is_file():
        raise UnknownName(f"the program file {path} is not there")
    _load(module, agent_spec.load(file), file, type(module).__name__)
    return module


def _load(module: dspy.Module, state: dict[str, Any], path: str | Path, text: str) -> None:
    try:
        module.load_state(state)
    except Exception as error:  # DSPy takes a state on trust
        raise BadRequest(f"{path} does not fit the program {text}: {type(error).__name__}: {error}") from error
    tools = (state.get(SECTION) or {}).get("tools") or {}
    if not isinstance(tools, dict) or not all(isinstance(each, str) for each in tools.values()):
        raise BadRequest(f"{path} has something else than descriptions under {SECTION}.tools")
    Toolboxes(module).write(tools)


def save_program(module: dspy.Module, path: Path, target: Target | None) -> None:
    """Write ``module`` so that ``dspy.Module.load`` reads it without Ratchet, and Ratchet can build it again."""
    section: dict[str, Any] = {}
    if target is not None:
        section = {"target": target.text, "kind": target.kind, "instructions": target.instructions}
    if tools := Toolboxes(module).texts():
        section["tools"] = tools
    if isinstance(module, RemoteAgent):
        section["agent"] = module.spec.to_json()
    with written_whole(path) as part:
        module.save(str(part))
        if section:
            state = json.loads(part.read_text(encoding="utf-8"))
            state[SECTION] = section
            part.write_text(json.dumps(state, indent=2, ensure_ascii=False), encoding="utf-8")


def _source(module: dspy.Module) -> str:
    if type(module).__module__.startswith("dspy."):
        return ""
    try:
        return inspect.getsource(type(module))
    except (OSError, TypeError):
        return ""

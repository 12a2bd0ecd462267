"""What tools say of themselves, as text that can be tuned: the descriptions of the tools and of their arguments.

Two ways lead from a tool to a prompt. Modules such as ``dspy.ReAct`` write their tools into the instructions of a
predictor once, when they are made; others hand the tools over with every call. So a description is set on the tool, and
the list in the instructions is written anew. In a Candidate the place of that list is a line with the mark ``{tools}``:
whoever rewrites the instructions cannot lose a tool, and where the mark is lost the list comes last.
"""

from __future__ import annotations

import ast
import functools
import inspect
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import dspy

from ratchet.core.evaluation import Step
from ratchet.core.problem import FieldSpec, PredictorSpec
from ratchet.programs.parts import walk

MARK = "{tools}"
HEADING = "\n\nThe tools are:\n"
PREFIX = "tool:"
"""What the name of a tool's description in a Candidate has in it: ``tool:search``, ``tool:search.query``."""


def flat(text: str) -> str:
    """``text`` as DSPy writes it into a list of tools."""
    return text.replace("\n", "  ")


@dataclass(frozen=True, slots=True)
class Listing:
    """A list of tools within the instructions of a predictor.

    Attributes:
        before, after: The instructions around it.
        tools: The tools, in order.
        lines: The list as it stands there.
    """

    before: str
    after: str
    tools: tuple[dspy.Tool, ...]
    lines: tuple[str, ...]

    @classmethod
    def of(cls, instructions: str, tools: tuple[dspy.Tool, ...]) -> Listing | None:
        """The list of ``tools`` in ``instructions``; None when there is none."""
        lines = instructions.split("\n")
        starts = [rf"\({number}\) {re.escape(str(tool.name))}(,|\.) " for number, tool in enumerate(tools, 1)]
        for first in range(len(lines) - len(tools) + 1) if tools else ():
            found = lines[first : first + len(tools)]
            if all(re.match(start, line) for start, line in zip(starts, found, strict=True)):
                before, after = "\n".join(lines[:first]), "\n".join(lines[first + len(tools) :])
                return cls(f"{before}\n" if first else "", f"\n{after}" if after else "", tools, tuple(found))
        return None

    @property
    def marked(self) -> str:
        """The instructions with the mark in place of the list; without it where the list was only put at the end."""
        if self.before.endswith(HEADING) and not self.after:
            return self.before.removesuffix(HEADING)
        return f"{self.before}{MARK}{self.after}"

    @property
    def said(self) -> dict[int, tuple[str, Mapping[str, Any]]]:
        """What the list says of each tool that says something else of itself by now: description and arguments.

        That is so in a program whose state was loaded: DSPy keeps the instructions, and tools come from the code.
        """
        found = {}
        for number, (tool, line) in enumerate(zip(self.tools, self.lines, strict=True), 1):
            now = f"({number}) {tool}"
            if line not in (now, now.expandtabs()) and (read := _ENTRY.match(line)):
                try:
                    arguments = ast.literal_eval(read["args"])
                except (ValueError, SyntaxError):
                    arguments = {}
                found[id(tool)] = (read["desc"] or "", arguments)
        return found


_MARKED = re.compile(rf"^{re.escape(MARK)}$", re.MULTILINE)
_ENTRY = re.compile(
    r"\(\d+\) .*?(?:, whose description is <desc>(?P<desc>.*)</desc>)?\. It takes arguments (?P<args>.*)\."
)


def written(text: str, tools: tuple[dspy.Tool, ...]) -> str:
    """Instructions with the list of ``tools`` in the line that is the mark, or at the end where none is."""
    listing = "\n".join(f"({number}) {tool}" for number, tool in enumerate(tools, 1))
    if place := _MARKED.search(text):
        return f"{text[: place.start()]}{listing}{text[place.end() :]}"
    return text if Listing.of(text, tools) else f"{text}{HEADING}{listing}"


class Toolboxes:
    """The tools of a program, where they are listed, and what is tunable of them.

    Args:
        module: The program; its parts that are frozen (compiled by an optimizer of DSPy before) are left alone.
    """

    def __init__(self, module: dspy.Module) -> None:
        self.listings: dict[int, Listing] = {}
        """By ``id`` of the predictor."""
        self.said: dict[int, tuple[str, Mapping[str, Any]]] = {}
        """By ``id`` of the tool."""
        parts = list(walk(module))
        for _, host in parts:
            tools = tuple(_tools_in(host)) if isinstance(host, dspy.Module) else ()
            for predictor in vars(host).values() if tools else ():
                if isinstance(predictor, dspy.Predict):
                    listing = Listing.of(predictor.signature.instructions, tools)
                    if listing is not None:
                        self.listings[id(predictor)] = listing
                        self.said |= listing.said
        self.tools = _named(parts)

    def instructions(self, predictor: dspy.Predict) -> str:
        """The instructions of ``predictor``, without the list of its tools."""
        listing = self.listings.get(id(predictor))
        return str(predictor.signature.instructions if listing is None else listing.marked)

    def texts(self) -> dict[str, str]:
        """Every description by its name in a Candidate."""
        texts = {}
        for name, tool in self.tools.items():
            said = self.said.get(id(tool), (tool.desc or "", tool.args or {}))
            texts[name] = tool.desc or "" if flat(tool.desc or "") == said[0] else said[0]
            for argument in tool.args or {}:
                texts[f"{name}.{argument}"] = str(said[1].get(argument, {}).get("description") or "")
        return texts

    def specs(self) -> tuple[PredictorSpec, ...]:
        """What algorithms may know of each description."""
        specs = []
        for name, tool in self.tools.items():
            inputs = tuple(
                FieldSpec(name=key, type=str(schema.get("type") or "any"), description=schema.get("description") or "")
                for key, schema in (tool.args or {}).items()
            )
            result = (FieldSpec(name="result", type="any"),)
            says = f"the description of the tool `{tool.name}`, by which an LM decides whether and how to call it"
            specs.append(PredictorSpec(name=name, inputs=inputs, outputs=result, takes_demos=False, text=says))
            for each in inputs:
                says = f"the description of the argument `{each.name}` of the tool `{tool.name}`: {tool.desc or ''}"
                specs.append(
                    PredictorSpec(
                        name=f"{name}.{each.name}", inputs=(each,), outputs=result, takes_demos=False, text=says
                    )
                )
        return tuple(specs)

    def write(self, texts: Mapping[str, str]) -> None:
        """Set every description that ``texts`` has; what is not in it stays."""
        for name, tool in self.tools.items():
            said = self.said.get(id(tool))
            if said is not None:
                _describe(tool, said[0], {key: (part or {}).get("description", "") for key, part in said[1].items()})
            arguments = {key: texts[full] for key in tool.args or {} if (full := f"{name}.{key}") in texts}
            _describe(tool, texts.get(name, tool.desc or ""), arguments)

    def record(self) -> None:
        """Have every call of a tool noted by the run it happens in."""
        for name, tool in self.tools.items():
            object.__setattr__(tool, "func", _recorded(name, tool.func))


_UNHEARD = re.compile(r"(^|\.)_user_tools\[[^.]*\]$")
"""Where ``dspy.RLM`` keeps its tools; it writes them into instructions in a form of its own, which is left as it is."""


def _describe(tool: dspy.Tool, text: str, arguments: Mapping[str, str]) -> None:
    if (tool.desc or "") != text:
        tool.desc = text
    for key, says in arguments.items():
        schema = (tool.args or {}).get(key)
        if isinstance(schema, dict) and (schema.get("description") or "") != says:
            tool.args[key] = {**schema, "description": says}


def _tools_in(host: dspy.Module) -> Iterator[dspy.Tool]:
    """The tools that a module holds in an attribute named ``tools``."""
    held = getattr(host, "tools", None)
    values = held.values() if isinstance(held, Mapping) else held if isinstance(held, list | tuple) else ()
    return (tool for tool in values if isinstance(tool, dspy.Tool))


def _named(parts: Sequence[tuple[str, Any]]) -> dict[str, dspy.Tool]:
    """The user's own tools by the names of their descriptions; one that several parts share is there once."""
    found = [
        (path, tool)
        for path, tool in parts
        if isinstance(tool, dspy.Tool)
        and not _UNHEARD.search(path)
        and not str(getattr(tool.func, "__module__", "")).startswith("dspy.")
    ]
    often = Counter(tool.name for _, tool in found)
    named = {}
    for path, tool in found:
        owner = path.rpartition(".")[0]
        name = f"{PREFIX}{tool.name}" if often[tool.name] == 1 or not owner else f"{owner}.{PREFIX}{tool.name}"
        while name in named:
            name += "'"
        named[name] = tool
    return named


@dataclass(slots=True)
class Calls:
    """The calls of tools in one run; handed along in DSPy's settings.

    Attributes:
        steps: How many predictors had run before the call, and the call.
    """

    steps: list[tuple[int, Step]]

    def note(self, name: str, arguments: Mapping[str, Any], outcome: str, *, ok: bool) -> None:
        """Note one call."""
        step = Step(
            predictor=name,
            inputs=dict(arguments),
            outputs={"result": outcome} if ok else {},
            raw="" if ok else outcome,
        )
        place = len(dspy.settings.trace or ())
        self.steps.append((place, step))
        self.steps += [
            (place, Step(predictor=f"{name}.{key}", inputs={key: value}, outputs=step.outputs, raw=step.raw))
            for key, value in arguments.items()
        ]

    def among(self, steps: tuple[Step, ...]) -> tuple[Step, ...]:
        """The calls among the steps of the predictors, in the order in which they happened."""
        merged: list[Step] = []
        waiting = list(self.steps)
        for number, step in enumerate(steps):
            while waiting and waiting[0][0] <= number:
                merged.append(waiting.pop(0)[1])
            merged.append(step)
        return (*merged, *(step for _, step in waiting))


def _recorded(name: str, call: Any) -> Any:
    """``call``, noted by the run it happens in."""

    @functools.wraps(call)
    def recorded(*args: Any, **kwargs: Any) -> Any:
        try:
            result = call(*args, **kwargs)
        except Exception as error:  # the user's tool is foreign code
            _note(name, kwargs, f"{type(error).__name__}: {error}", ok=False)
            raise
        if inspect.isawaitable(result):
            return awaited(result, kwargs)
        _note(name, kwargs, str(result), ok=True)
        return result

    async def awaited(result: Any, kwargs: Mapping[str, Any]) -> Any:
        try:
            value = await result
        except Exception as error:  # the user's tool is foreign code
            _note(name, kwargs, f"{type(error).__name__}: {error}", ok=False)
            raise
        _note(name, kwargs, str(value), ok=True)
        return value

    return recorded


def _note(name: str, arguments: Mapping[str, Any], outcome: str, *, ok: bool) -> None:
    calls = dspy.settings.get("ratchet_calls")
    if calls is not None:
        calls.note(name, arguments, outcome, ok=ok)

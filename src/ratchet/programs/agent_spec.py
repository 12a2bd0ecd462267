"""What a remote agent is, as a file: where it is, which of its texts are set per call, what is sent and what is read.

{"url": "http://127.0.0.1:8000/answer",
 "components": {"system_prompt": "Answer in one word."},
 "inputs": ["question"],
 "outputs": {"answer": "/answer"},
 "request": {"q": "{{inputs.question}}", "prompt": "{{components.system_prompt}}"},
 "headers": {"Authorization": {"env": "AGENT_TOKEN", "prefix": "Bearer "}}}
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from ratchet.core.errors import BadRequest, UnknownName
from ratchet.programs.lm import secret

Kind = Literal["http", "openai", "a2a"]
_PLACE = re.compile(r"\{\{\s*(inputs|components)(?:\.(\w+))?\s*\}\}")
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*")


class Unreadable(Exception):
    """A reply in which an output is not where the spec says it is."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Component(_Strict):
    """A text of the agent that is sent with every call; what is optimized.

    Attributes:
        text: The text to begin with.
        description: What it is for, in words, for the LM that rewrites it.
    """

    text: str = Field(min_length=1)
    description: str = ""


class Input(_Strict):
    """An input of the agent."""

    type: Literal["str", "int", "float", "bool", "list", "dict"] = "str"
    description: str = ""


class Output(Input):
    """An output of the agent.

    Attributes:
        at: Where it stands in the reply: a JSON pointer (RFC 6901). ``#`` in it parses the text found so far as JSON:
            ``/choices/0/message/content#/label``.
        choices: The values it may have; empty when it is open.
    """

    at: str
    choices: tuple[str, ...] = ()


class Header(_Strict):
    """A header whose value is a secret: only the name of an environment variable stands in the file."""

    env: str
    prefix: str = ""


class Usage(_Strict):
    """Where a reply tells what it used, as JSON pointers."""

    prompt_tokens: str | None = None
    completion_tokens: str | None = None
    cost_usd: str | None = None


class AgentSpec(_Strict):
    """A remote agent.

    Attributes:
        kind: ``http``: any JSON over POST; ``openai``: a chat-completions endpoint; ``a2a``: an A2A agent by its card.
        url: Where requests go. Of ``openai`` the base (``.../v1``) or the whole address; of ``a2a`` the address under
            which the agent's card is found.
        name: How it is called in messages; the file's name if left out.
        description: What it is for, for the LM that rewrites its texts.
        model: The model's name in requests of kind ``openai``.
        request: The body that is sent, with ``{{inputs.NAME}}`` and ``{{components.NAME}}`` in the places of values;
            each kind has one of its own if left out.
        headers: Headers by name.
        timeout_seconds: Patience with one call.
        max_reply_bytes: A longer reply is a failure of the agent.
    """

    kind: Kind = "http"
    url: str
    name: str = "agent"
    description: str = ""
    model: str = "agent"
    components: Mapping[str, Component]
    inputs: Mapping[str, Input]
    outputs: Mapping[str, Output]
    request: Any = None
    headers: Mapping[str, Header] = {}
    usage: Usage = Usage()
    timeout_seconds: float = Field(default=60.0, gt=0, le=3600)
    max_reply_bytes: int = Field(default=1_000_000, gt=0)

    @field_validator("components", mode="before")
    @classmethod
    def _texts(cls, value: Any) -> Any:
        return _each(value, lambda part: {"text": part})

    @field_validator("inputs", mode="before")
    @classmethod
    def _input_names(cls, value: Any) -> Any:
        return {name: {} for name in value} if isinstance(value, list) else value

    @field_validator("outputs", mode="before")
    @classmethod
    def _pointers(cls, value: Any) -> Any:
        return _each(value, lambda part: {"at": part})

    @field_validator("headers", mode="before")
    @classmethod
    def _variables(cls, value: Any) -> Any:
        return _each(value, lambda part: {"env": part})

    @model_validator(mode="before")
    @classmethod
    def _defaults_of_its_kind(cls, value: Any) -> Any:
        if not isinstance(value, Mapping):
            return value
        preset = _PRESETS.get(str(value.get("kind", "http")), {})
        outputs = value.get("outputs")
        if isinstance(outputs, list):
            at = preset.get("at", "/{name}")
            value = {**value, "outputs": {name: at.format(name=name) for name in outputs}}
        chosen = {name: preset[name] for name in ("request", "usage") if name in preset and value.get(name) is None}
        return {**value, **chosen}

    @model_validator(mode="after")
    def _holds_together(self) -> AgentSpec:
        for kind, names in (("component", self.components), ("input", self.inputs), ("output", self.outputs)):
            if not names:
                raise ValueError(f"there is no {kind}; name at least one")
            for name in names:
                if not _NAME.fullmatch(name):
                    raise ValueError(f"the {kind} {name!r} is no name; use letters, digits and _")
        if both := set(self.inputs) & set(self.outputs):
            raise ValueError(f"{sorted(both)} is both an input and an output; give one of them another name")
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.port == 0:
            raise ValueError(f"the url {self.url!r} is no address; give http://HOST/PATH or https://HOST/PATH")
        if parts.username or parts.password:
            raise ValueError("the url holds a password; put it into an environment variable and name that in headers")
        known = {f"inputs.{name}" for name in self.inputs} | {f"components.{name}" for name in self.components}
        used = places(self.request)
        if unknown := sorted(used - known - {"inputs", "components"}):
            raise ValueError(f"the request has {{{{{unknown[0]}}}}} in it; there are {', '.join(sorted(known))}")
        for name in self.components:
            if not used & {"components", f"components.{name}"}:
                raise ValueError(
                    f"the component {name!r} is nowhere in the request, so that no other text could change anything; "
                    f"put {{{{components.{name}}}}} where it belongs"
                )
        return self

    def body(self, components: Mapping[str, str], inputs: Mapping[str, Any]) -> Any:
        """The request for one call."""
        return _filled(self.request, {"components": dict(components), "inputs": dict(inputs)})

    def read(self, reply: str) -> dict[str, Any]:
        """The outputs in a reply.

        Raises:
            Unreadable: one of them is not there.
        """
        data = _parsed(reply)
        return {name: pointed(data, output.at) for name, output in self.outputs.items()}

    def used(self, reply: str) -> tuple[int | None, int | None, float | None]:
        """Prompt tokens, completion tokens and dollars, as far as the reply tells them."""
        data = _parsed(reply)

        def told(at: str | None) -> float | None:
            try:
                value: Any = None if at is None else pointed(data, at)
            except Unreadable:
                return None
            if isinstance(value, bool) or not isinstance(value, int | float):
                return None
            return float(value) if 0 <= value < 1e15 else None

        prompt, completion = told(self.usage.prompt_tokens), told(self.usage.completion_tokens)
        as_int = [None if each is None else int(each) for each in (prompt, completion)]
        return as_int[0], as_int[1], told(self.usage.cost_usd)

    def secrets(self) -> dict[str, str]:
        """The headers with their values from the environment.

        Raises:
            BadRequest: a variable is not set.
        """
        values = {}
        for name, header in self.headers.items():
            value = (secret(header.env) or "").strip()
            if not value:
                raise BadRequest(
                    f"the agent {self.name} needs the environment variable {header.env} for its header {name}; set it"
                )
            values[name] = header.prefix + value
        return values

    def to_json(self) -> dict[str, Any]:
        """The spec as JSON data; it holds no secret."""
        return self.model_dump(mode="json")


_INPUTS, _COMPONENTS = "{{inputs}}", "{{components}}"
_PRESETS: dict[str, dict[str, Any]] = {
    "http": {"request": {"inputs": _INPUTS, "components": _COMPONENTS}},
    "openai": {
        "at": "/choices/0/message/content",
        "usage": {"prompt_tokens": "/usage/prompt_tokens", "completion_tokens": "/usage/completion_tokens"},
        "request": {
            "messages": [
                {"role": "system", "content": f"text:{_COMPONENTS}"},
                {"role": "user", "content": f"text:{_INPUTS}"},
            ]
        },
    },
    "a2a": {"at": "/text", "request": {"text": f"text:{_INPUTS}", "metadata": {"components": _COMPONENTS}}},
}


def _each(value: Any, short: Callable[[str], dict[str, Any]]) -> Any:
    """A mapping in which a bare text stands for what ``short`` makes of it."""
    if not isinstance(value, Mapping):
        return value
    return {name: short(part) if isinstance(part, str) else part for name, part in value.items()}


def places(template: Any) -> set[str]:
    """What a template has places for: ``inputs.NAME``, ``components.NAME``, or all of one kind."""
    if isinstance(template, str):
        return {f"{kind}.{name}" if name else kind for kind, name in _PLACE.findall(template)}
    parts = template.values() if isinstance(template, Mapping) else template if isinstance(template, list) else ()
    return set().union(*(places(part) for part in parts))


def _filled(template: Any, values: Mapping[str, Mapping[str, Any]]) -> Any:
    """``template`` with its places filled: a place alone becomes the value itself, one within a text becomes text.

    >>> _filled({"n": "{{inputs.n}}", "say": "n is {{inputs.n}}"}, {"inputs": {"n": 3}, "components": {}})
    {'n': 3, 'say': 'n is 3'}
    """
    if isinstance(template, Mapping):
        return {name: _filled(part, values) for name, part in template.items()}
    if isinstance(template, list):
        return [_filled(part, values) for part in template]
    if not isinstance(template, str):
        return template

    def found(match: re.Match[str]) -> Any:
        return values[match[1]].get(match[2]) if match[2] else values[match[1]]

    if whole := _PLACE.fullmatch(template):
        return found(whole)
    if template.startswith("text:") and (whole := _PLACE.fullmatch(template.removeprefix("text:"))):
        return _prose(found(whole))
    return _PLACE.sub(lambda match: _prose(found(match)), template)


def _prose(value: Any) -> str:
    """A value as text; several named texts one after another, a single one bare."""
    if isinstance(value, Mapping) and value:
        texts = {name: part if isinstance(part, str) else json.dumps(part) for name, part in value.items()}
        return next(iter(texts.values())) if len(texts) == 1 else "\n\n".join(f"{n}: {t}" for n, t in texts.items())
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _parsed(text: str) -> Any:
    """A reply as JSON; as a text where it is none."""
    try:
        return _json(text)
    except (ValueError, RecursionError):
        return text


def _json(text: str) -> Any:
    """JSON data that can be stored: without NaN, and without halves of surrogate pairs, which nothing can encode."""
    data = json.loads(text, parse_constant=_refuse)
    if "\\ud" in text.lower():
        return json.loads(json.dumps(data, ensure_ascii=False).encode("utf-8", "replace"))
    return data


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is no JSON")


def pointed(data: Any, pointer: str) -> Any:
    """What a JSON pointer points at; ``#`` parses the text found so far as JSON.

    >>> pointed({"a": [{"b": '{"c": 1}'}]}, "/a/0/b#/c")
    1

    Raises:
        Unreadable: there is nothing.
    """
    for number, part in enumerate(pointer.split("#")):
        if number:
            try:
                data = _json(_unfenced(data))
            except (ValueError, TypeError, AttributeError, RecursionError) as error:
                raise Unreadable(f"what stands before # in {pointer} is no JSON: {error}") from error
        for key in part.split("/")[1:]:
            key = key.replace("~1", "/").replace("~0", "~")
            try:
                data = data[int(key)] if isinstance(data, list) else data[key]
            except (KeyError, IndexError, ValueError, TypeError) as error:
                raise Unreadable(f"there is no {pointer} in the reply") from error
    return data


def _unfenced(text: Any) -> Any:
    """The text inside a code fence, where there is one: LMs like to put JSON into one."""
    if not isinstance(text, str):
        return text
    found = re.search(r"```(?:json)?\s*\n(.*?)```", text, re.DOTALL)
    return found[1] if found else text


def is_agent(data: Any) -> bool:
    """Whether JSON data looks like an agent's spec."""
    return isinstance(data, Mapping) and "url" in data


def parse(data: Any, *, source: str, name: str = "agent") -> AgentSpec:
    """The spec in JSON data.

    Args:
        data: The content of a file.
        source: Where it is from, for messages.
        name: The agent's name when the file gives none.

    Raises:
        BadRequest: a field is wrong; the message says which and why.
    """
    if not isinstance(data, Mapping):
        raise BadRequest(f"{source} is no agent: it holds {type(data).__name__}, not named fields")
    try:
        return AgentSpec.model_validate({"name": name, **data})
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"]) or "the whole"
        raise BadRequest(f"{source}: {place}: {first['msg'].removeprefix('Value error, ')}") from error


def load(path: Path) -> Any:
    """The content of a JSON or YAML file.

    Raises:
        UnknownName: it is not there.
        BadRequest: it cannot be read.
    """
    if not path.is_file():
        raise UnknownName(f"the file {path} is not there")
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".json":
            return json.loads(text)
        return yaml.safe_load(text)
    except (ValueError, UnicodeDecodeError) as error:
        raise BadRequest(f"{path} is no JSON: {error}") from error
    except yaml.YAMLError as error:
        raise BadRequest(f"{path} is no YAML: {error}") from error

"""Prompts that are formatted once per candidate: only the current input is filled in for each example.

DSPy formats instructions, field descriptions and demos anew for every example. Here its adapter formats them once, with
a mark in the place of each input; after that an example costs a join of strings. What is sent is the same to the byte:
the template is DSPy's own output, and it is used only after DSPy, given awkward values, made what the template makes of
them. Anything unusual (other adapters, inputs that are no plain data, tools, history, several completions, callbacks,
streams) goes DSPy's way.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from operator import is_not
from typing import Any

import dspy
from dspy.adapters.types.base_type import CUSTOM_TYPE_START_IDENTIFIER
from dspy.adapters.types.base_type import Type as DspyType
from dspy.adapters.utils import format_field_value
from dspy.dsp.utils.settings import settings
from dspy.lm15 import Message, Request, Response
from dspy.utils.exceptions import AdapterParseError

from ratchet.core.problem import canonical
from ratchet.programs.answers import Answer
from ratchet.programs.gateway import Ask, is_repeatable
from ratchet.programs.gateway_lm import GatewayLM
from ratchet.programs.line import Line
from ratchet.programs.replies import output_of
from ratchet.programs.wire import Letter, Wire

ADAPTERS = (dspy.ChatAdapter, dspy.JSONAdapter, dspy.XMLAdapter)
"""Adapters whose formatting is known to treat every plain input alike; subclasses are not."""

PRIVILEGED = frozenset(("signature", "demos", "config", "lm", "prediction", "new_signature", "_trace"))
"""Arguments of a call that are not inputs."""

_AWKWARD = " \n<a & b>\t\"'\\ {x} [[ ## y ## ]] é\u2028😀\r\n``` "
_PLAIN = (str, int, float, bool, type(None))


def _mark(number: int) -> str:
    return f"RATCHETxINPUTx{number}xTEHCTAR"


class _Taken(BaseException):
    """Carries a request out of DSPy in the moment it would be sent."""

    def __init__(self, request: Request) -> None:
        self.request = request


class _Taker:
    """An engine that sends nothing; what DSPy asks of an engine's capabilities is answered by the line."""

    def __init__(self, line: Line) -> None:
        self._line = line

    def __getattr__(self, name: str) -> Any:
        if name.startswith("support"):
            return getattr(self._line, name)
        raise AttributeError(name)

    def complete(self, request: Request) -> Response:
        raise _Taken(request)


class Template:
    """A text with places for the inputs.

    >>> text = f"a {_mark(0)} b {_mark(1)}."
    >>> Template.of(text, 2).filled(["1", "2"])
    'a 1 b 2.'
    """

    def __init__(self, parts: tuple[str, ...], order: tuple[int, ...]) -> None:
        self._parts, self._order = parts, order

    @classmethod
    def of(cls, text: str, n_inputs: int) -> Template | None:
        """The template that ``text`` with the marks of ``n_inputs`` is; None when a mark is missing or there twice."""
        places = sorted((text.find(_mark(number)), number) for number in range(n_inputs))
        if any(place < 0 or text.count(_mark(number)) != 1 for place, number in places):
            return None
        parts, rest = [], text
        for _, number in places:
            before, _, rest = rest.partition(_mark(number))
            parts.append(before)
        edges = (parts[0][:1], rest[-1:])
        if not all(edge.strip() for edge in edges):
            return None  # adapters strip the whole message, and would strip the input with it
        return cls((*parts, rest), tuple(number for _, number in places))

    def filled(self, values: list[str]) -> str:
        """The text with ``values`` in the places."""
        pieces = [self._parts[0]]
        for number, part in zip(self._order, self._parts[1:], strict=True):
            pieces += (values[number], part)
        return "".join(pieces)


@dataclass(frozen=True, slots=True)
class _Around:
    """What stands before and after the current input in a JSON text."""

    before: str
    after: str

    @classmethod
    def of(cls, text: str, content: str) -> _Around | None:
        inner = _escaped(content)
        return cls(*text.split(inner)) if text.count(inner) == 1 else None


def _escaped(content: str) -> str:
    return json.dumps(content, ensure_ascii=False)[1:-1]


class CompiledAsk(Ask):
    """A request that was compiled; it becomes an object only where no text will do."""

    __slots__ = ("_content", "prompt")

    def __init__(self, key: str, prompt: Prompt, content: str) -> None:
        self.key = key
        self.prompt = prompt
        self._content = content

    @property
    def request(self) -> Request:
        """The request itself."""
        return self.prompt.request(self._content)

    @property
    def is_repeatable(self) -> bool:
        """Whether the same request is meant to get the same answer."""
        return self.prompt.is_repeatable

    async def send(self, line: Line, *, patience: float) -> Answer:
        """Send it once."""
        found = self.prompt.letter(line)
        if found is None or line is not self.prompt.line:
            return await line.send(self.request, patience=patience)
        wire, letter, around = found
        body = f"{around.before}{_escaped(self._content)}{around.after}".encode()
        return await line.exchange(wire, letter, body, patience=patience)


class _Reading:
    """A signature as DSPy's adapters ask for it when they read an answer.

    DSPy finds the output fields anew each time it is asked for them, some twelve times for one answer.
    """

    def __init__(self, signature: type[dspy.Signature]) -> None:
        self._signature = signature
        self.output_fields = signature.output_fields

    def __getattr__(self, name: str) -> Any:
        return getattr(self._signature, name)


class Prompt:
    """What one predictor sends with one adapter to one LM, compiled.

    Args:
        lm: The LM.
        request: One request, with anything for an input.
        content: The text of its last message.
        signature: The predictor's.
        call_rollout: The ``rollout_id`` of the predictor's configuration.
    """

    def __init__(
        self,
        lm: GatewayLM,
        request: Request,
        content: Template,
        signature: type[dspy.Signature],
        call_rollout: object,
    ) -> None:
        self.lm = lm
        self.line = lm.line
        self._request = request
        self._content = content
        self.fields: Mapping[str, Any] = signature.input_fields
        self.reading = _Reading(signature)
        self._call_rollout = call_rollout
        self.is_repeatable = is_repeatable(request)
        self._keys: dict[object, tuple[Any, str] | None] = {}
        self._letter: tuple[Wire, Letter, _Around] | None = None
        self._letter_known = False

    def __deepcopy__(self, memo: object) -> Prompt:
        return self

    @classmethod
    def of(cls, lm: GatewayLM, adapter: dspy.Adapter, predictor: dspy.Predict) -> Prompt | None:
        """The prompt of ``predictor`` as it is now, or None where it cannot be compiled."""
        signature, config = predictor.signature, {**predictor.config}
        fields = signature.input_fields
        options = {**lm.kwargs, **config}
        if type(adapter) not in ADAPTERS or adapter.callbacks or not fields or predictor.fields:
            return None
        if (options.get("n") or 1) != 1 or options.get("num_generations") or "tools" in options or lm.callbacks:
            return None
        annotations = [info.annotation for info in signature.fields.values()]
        if any(each is dspy.History or DspyType.extract_custom_type_from_annotation(each) for each in annotations):
            return None
        copy = lm.copy(engine=_Taker(lm.line), async_engine=None)

        def taken(values: list[str]) -> Request | None:
            inputs = dict(zip(fields, values, strict=True))
            try:
                adapter(copy, lm_kwargs=dict(config), signature=signature, demos=predictor.demos, inputs=inputs)
            except _Taken as taken:
                return taken.request
            except Exception:  # DSPy, asked in the ordinary way, says what is wrong
                return None
            return None

        request = taken([_mark(number) for number in range(len(fields))])
        if request is None or not request.messages or request.messages[-1].role != "user":
            return None
        content = Template.of(request.messages[-1].text or "", len(fields))
        if content is None:
            return None
        prompt = cls(lm, request, content, signature, options.get("rollout_id"))
        awkward = [f"{_AWKWARD}{number}{_AWKWARD}" for number in range(len(fields))]
        return prompt if taken(awkward) == prompt.request(content.filled(awkward)) else None

    def request(self, content: str) -> Request:
        """The request whose last message says ``content``."""
        return replace(self._request, messages=(*self._request.messages[:-1], Message.user(content)))

    def ask(self, inputs: Mapping[str, Any], *, rollout: object) -> CompiledAsk | None:
        """The request for ``inputs``; None where they are nothing a template can hold."""
        values = []
        for name, info in self.fields.items():
            value = inputs[name]
            if type(value) is not str:
                if not _is_plain(value):
                    return None
                value = format_field_value(field_info=info, value=value)
            values.append(value)
        content = self._content.filled(values)
        key = self._key(content, rollout)
        return None if key is None or CUSTOM_TYPE_START_IDENTIFIER in content else CompiledAsk(key, self, content)

    def _key(self, content: str, rollout: object) -> str | None:
        if rollout not in self._keys:
            named = self.lm.line.named(self._request, self._call_rollout, rollout, 0)
            around = _Around.of(canonical(named), self._request.messages[-1].text or "")
            self._keys[rollout] = (hashlib.sha256(around.before.encode()), around.after) if around else None
        known = self._keys[rollout]
        if known is None:
            return None
        digest, after = known[0].copy(), known[1]
        try:
            digest.update(f"{_escaped(content)}{after}".encode())
        except UnicodeEncodeError:
            return None  # DSPy says what is wrong with it
        return str(digest.hexdigest()[:16])

    def letter(self, line: Line) -> tuple[Wire, Letter, _Around] | None:
        """The way to send it as a text, on the event loop; None where there is none."""
        if not self._letter_known:
            self._letter, self._letter_known = self._new_letter(line), True
        return self._letter

    def _new_letter(self, line: Line) -> tuple[Wire, Letter, _Around] | None:
        wire = line.wire(self._request)
        letter = None if wire is None else wire.letter(self._request)
        if wire is None or letter is None:
            return None
        around = _Around.of(letter.body.decode(), self._request.messages[-1].text or "")
        other = wire.letter(self.request(_AWKWARD))
        if around is None or other is None or other.headers != letter.headers or other.url != letter.url:
            return None  # signed, for example
        same = other.body.decode() == f"{around.before}{_escaped(_AWKWARD)}{around.after}"
        return (wire, letter, around) if same else None


def _is_plain(value: Any) -> bool:
    if isinstance(value, list):
        return all(_is_plain(each) for each in value)
    if isinstance(value, dict):
        return all(type(name) is str and _is_plain(each) for name, each in value.items())
    return type(value) in _PLAIN


class CompiledPredict(dspy.Predict):  # type: ignore[misc]
    """A ``dspy.Predict`` that compiles its prompt; made of one by ``compile_predictors``."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Predict, for a thread."""
        found = self._compiled_ask(args, kwargs)
        if found is None:
            return super().__call__(*args, **kwargs)
        lm, adapter, ask = found
        reply = lm.gateway.fetch(lm.line, ask)
        try:
            return self._predicted(adapter, ask, output_of(reply), kwargs)
        except AdapterParseError:
            if (other := _fallback(adapter)) is None:
                raise
        completions = other(lm, lm_kwargs={**self.config}, signature=self.signature, demos=self.demos, inputs=kwargs)
        return self._forward_postprocess(completions, self.signature, **kwargs)

    async def acall(self, *args: Any, **kwargs: Any) -> Any:
        """Predict, for a task."""
        found = self._compiled_ask(args, kwargs)
        if found is None:
            return await super().acall(*args, **kwargs)
        lm, adapter, ask = found
        reply = await lm.gateway.afetch(lm.line, ask)
        try:
            return self._predicted(adapter, ask, output_of(reply), kwargs)
        except AdapterParseError:
            if (other := _fallback(adapter)) is None:
                raise
        completions = await other.acall(
            lm, lm_kwargs={**self.config}, signature=self.signature, demos=self.demos, inputs=kwargs
        )
        return self._forward_postprocess(completions, self.signature, **kwargs)

    def _predicted(self, adapter: dspy.Adapter, ask: CompiledAsk, output: Any, inputs: dict[str, Any]) -> Any:
        lm, reading = ask.prompt.lm, ask.prompt.reading
        try:
            values = adapter._call_postprocess(reading, reading, [output], lm, {})
        except Exception:  # DSPy, asked in the ordinary way, says what is wrong
            values = adapter._call_postprocess(self.signature, self.signature, [output], lm, {})
        return self._forward_postprocess(values, self.signature, **inputs)

    def _shown(self, lm: GatewayLM, adapter: dspy.Adapter) -> list[Any]:
        """All that a prompt is made of; a program may have changed any of it in place."""
        parts: list[Any] = [lm, adapter, self.signature, self.signature.__doc__, *self.config, *self.config.values()]
        for demo in self.demos:
            fields = demo if type(demo) is dict else demo._store
            parts += (demo, *fields, *fields.values())
        return parts

    def _compiled_ask(
        self, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[GatewayLM, dspy.Adapter, CompiledAsk] | None:
        lm, adapter = self.lm or settings.lm, settings.adapter or _CHAT
        unusual = args or settings.callbacks or self.callbacks or settings.track_usage or settings.usage_tracker
        if unusual or not settings.disable_history or settings.send_stream is not None:
            return None
        if type(lm) is not GatewayLM or not PRIVILEGED.isdisjoint(kwargs):
            return None
        state = self._shown(lm, adapter)
        known: _Known | None = self.__dict__.get("_ratchet_prompt")
        if known is None or len(known.state) != len(state) or any(map(is_not, known.state, state)):
            known = self.__dict__["_ratchet_prompt"] = _Known(state, Prompt.of(lm, adapter, self))
        prompt = known.prompt
        if prompt is None or kwargs.keys() != prompt.fields.keys():
            return None
        ask = prompt.ask(kwargs, rollout=settings.get("ratchet_rollout"))
        return None if ask is None else (lm, adapter, ask)


@dataclass(frozen=True, slots=True, eq=False)
class _Known:
    """A prompt and what it was made of; a copy of the predictor holds the same, until it is made of something else."""

    state: list[Any]
    prompt: Prompt | None

    def __deepcopy__(self, memo: dict[int, Any]) -> _Known:
        return self


_CHAT = dspy.ChatAdapter()


def _fallback(adapter: dspy.ChatAdapter) -> dspy.Adapter | None:
    """What DSPy tries when an answer cannot be read."""
    if isinstance(adapter, dspy.JSONAdapter) or not adapter.use_json_adapter_fallback:
        return None
    return adapter._make_json_adapter_fallback()


def compile_predictors(module: dspy.Module) -> dspy.Module:
    """Have every plain ``dspy.Predict`` in ``module`` compile its prompt; the module itself is changed."""
    for predictor in module.predictors():
        if type(predictor) is dspy.Predict:
            with suppress(TypeError):
                predictor.__class__ = CompiledPredict
    return module

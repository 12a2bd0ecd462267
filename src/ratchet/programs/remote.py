"""An agent of any framework behind HTTP or A2A, as a program whose texts are set with every call.

To the rest of the house it is a ``dspy.Module`` whose predictors are the agent's texts, so that every algorithm can
tune it, and it is saved and loaded as any other. What it asks is asked of an LM whose engine calls the agent: a call
goes through the one door to every LM, where it is reserved, journaled, paced, retried and counted.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from importlib import import_module
from typing import Any, Literal, Protocol

import aiohttp
import dspy
from dspy.lm15 import Message, Request, Response, Usage
from dspy.utils.exceptions import (
    AdapterParseError,
    LMTimeoutError,
    LMTransportError,
)

from ratchet.core.errors import BadRequest
from ratchet.core.patience import retry_after
from ratchet.core.problem import canonical
from ratchet.programs.agent_faults import QUOTED, failed, too_long
from ratchet.programs.agent_spec import AgentSpec, Component, Output, Unreadable
from ratchet.programs.answers import Answer
from ratchet.programs.journal import Role
from ratchet.programs.line import Line
from ratchet.programs.loop import arun, run
from ratchet.programs.wire import CONNECT_SECONDS, proxy_of, session_of

_TYPES: dict[str, Any] = {
    "str": str,
    "int": int,
    "float": float,
    "bool": bool,
    "list": list[Any],
    "dict": dict[str, Any],
}


class Transport(Protocol):
    """A way to an agent."""

    async def exchange(self, body: Any) -> str:
        """The reply to one request, on the house's event loop.

        Raises:
            LMError: there is none; ``ratchet.programs.agent_faults`` says which error means what.
        """


class Http:
    """JSON over POST, on the connections that all LMs share; no redirection is followed."""

    def __init__(self, spec: AgentSpec) -> None:
        self._spec = spec
        self._url = spec.url
        if spec.kind == "openai" and not spec.url.rstrip("/").endswith("/chat/completions"):
            self._url = f"{spec.url.rstrip('/')}/chat/completions"

    async def exchange(self, body: Any) -> str:
        """The body of the reply to ``body``."""
        spec = self._spec
        if spec.kind == "openai":
            body = {"model": spec.model, **body}
        timeout = aiohttp.ClientTimeout(total=spec.timeout_seconds, sock_connect=CONNECT_SECONDS)
        try:
            sending = session_of(asyncio.get_running_loop()).post(
                self._url,
                data=json.dumps(body, ensure_ascii=False).encode(),
                headers={"Content-Type": "application/json", **spec.secrets()},
                timeout=timeout,
                allow_redirects=False,
                proxy=proxy_of(self._url),
            )
            async with sending as reply:
                content = await _read(reply.content, spec.max_reply_bytes)
                text = (content or b"").decode("utf-8", "replace")
                if reply.status >= 300:
                    raise failed(spec, reply.status, text, wait=retry_after(reply.headers.get("Retry-After")))
                if content is None:
                    raise too_long(spec)
                return text
        except TimeoutError as error:
            raise LMTimeoutError(f"no answer in {spec.timeout_seconds:g} s", model=spec.name) from error
        except (aiohttp.ClientError, OSError) as error:
            raise LMTransportError(str(error) or type(error).__name__, model=spec.name) from error


async def _read(stream: aiohttp.StreamReader, most: int) -> bytes | None:
    """All of ``stream``; None when it is more than ``most`` bytes."""
    parts, size = [], 0
    async for part in stream.iter_any():
        size += len(part)
        if size > most:
            return None
        parts.append(part)
    return b"".join(parts)


def transport_of(spec: AgentSpec) -> Transport:
    """The way to an agent.

    Raises:
        BadRequest: a package is missing.
    """
    if spec.kind != "a2a":
        return Http(spec)
    try:
        # Only now: the SDK is an extra.
        transport: Transport = import_module("ratchet.programs.a2a_transport").A2A(spec)
    except ImportError as error:
        raise BadRequest("agents of kind a2a need the extra: pip install 'dspy-ratchet[a2a]'") from error
    return transport


class _Engine:
    """The engine that DSPy calls: what an LM is asked is the call of an agent."""

    def __init__(self, spec: AgentSpec) -> None:
        self.spec = spec
        self._transport = transport_of(spec)

    def __deepcopy__(self, memo: object) -> _Engine:
        return self

    def complete(self, request: Request) -> Response:
        """The agent's reply, for a thread."""
        return run(self.call(request))

    def close(self) -> None:
        """Nothing to close: connections are shared."""

    async def call(self, request: Request) -> Response:
        """Call the agent once, on the house's event loop."""
        asked = json.loads(request.messages[-1].text or "{}")
        text = await self._transport.exchange(self.spec.body(asked["components"], asked["inputs"]))
        prompt, completion, _ = self.spec.used(text)
        return Response(
            id=None,
            model=request.model,
            message=Message.assistant(text or " "),
            finish_reason="stop",
            usage=Usage(input_tokens=prompt, output_tokens=completion),
        )


class _AsyncEngine:
    def __init__(self, engine: _Engine) -> None:
        self._engine = engine

    def __deepcopy__(self, memo: object) -> _AsyncEngine:
        return self

    async def complete(self, request: Request) -> Response:
        """The agent's reply, for a task."""
        return await arun(self._engine.call(request))

    async def aclose(self) -> None:
        """Nothing to close: connections are shared."""


class RemoteLM(dspy.LM):  # type: ignore[misc]
    """An agent in the place of an LM: what is sent is its texts and inputs, what comes back is its whole reply."""

    def __init__(self, spec: AgentSpec) -> None:
        engine = _Engine(spec)
        super().__init__(
            f"agent/{spec.name}", cache=False, num_retries=0, engine=engine, async_engine=_AsyncEngine(engine)
        )
        self.spec = spec

    def __deepcopy__(self, memo: object) -> RemoteLM:
        return self

    def line(self, role: Role) -> Line:
        """Its line, which knows what the agent says it used."""
        return RemoteLine(self, role)


class RemoteLine(Line):
    """The line of a remote agent: its price is not known, except where a reply tells it."""

    def __init__(self, lm: RemoteLM, role: Role) -> None:
        super().__init__(lm, role)
        self.name = f"the agent {lm.spec.name} at {lm.spec.url}"
        self.longest_seconds = lm.spec.timeout_seconds
        self.refusals_are_free = False
        self._engine: _Engine = lm.engine
        self._spec = lm.spec

    async def send(self, request: Request, *, patience: float) -> Answer:
        """Call the agent once; its own timeout holds, and its reply tells the dollars."""
        response = await self._engine.call(request)
        return Answer.of(response, self._spec.used(response.message.text or "")[2])


class Text(dspy.Predict):  # type: ignore[misc]
    """A text of a remote agent in the form in which DSPy knows tunable text: as the instructions of a predictor.

    It is never called by itself and takes no demos.
    """

    takes_demos = False

    def __init__(self, name: str, component: Component, spec: AgentSpec, lm: dspy.BaseLM) -> None:
        super().__init__(_signature(spec, component.text))
        about = f": {component.description}" if component.description else ""
        self.text = f"the text `{name}` that the agent `{spec.name}` is given with every call{about}"
        self.lm = lm

    def dump_state(self, json_mode: bool = True) -> dict[str, Any]:
        """The text; the agent itself is no state."""
        return {"traces": [], "train": [], "demos": [], "signature": self.signature.dump_state(), "lm": None}

    def load_state(self, state: dict[str, Any], **more: Any) -> Text:
        """Take over the text; who is asked stays the agent."""
        lm = self.lm
        super().load_state({**state, "lm": None}, **more)
        self.lm = lm
        return self


def _signature(spec: AgentSpec, text: str) -> type[dspy.Signature]:
    fields: dict[str, Any] = {}
    for name, each in spec.inputs.items():
        fields[name] = (_TYPES[each.type], dspy.InputField(desc=each.description or None))
    for name, output in spec.outputs.items():
        fields[name] = (_output_type(output), dspy.OutputField(desc=output.description or None))
    signature: type[dspy.Signature] = dspy.Signature(fields, text)
    return signature


def _output_type(output: Output) -> Any:
    return Literal[output.choices] if output.choices else _TYPES[output.type]


class RemoteAgent(dspy.Module):  # type: ignore[misc]
    """A remote agent as a program; each of its texts is a predictor of the text's name.

    Args:
        spec: What it is.

    Raises:
        BadRequest: a name cannot be used, a secret is not set, or a package is missing.
    """

    def __init__(self, spec: AgentSpec) -> None:
        super().__init__()
        self.spec = spec
        spec.secrets()
        # Optimizers give predictors other LMs, or none; who is asked here stays the agent.
        self.through: dspy.BaseLM = RemoteLM(spec)
        for name, component in spec.components.items():
            if hasattr(self, name):
                raise BadRequest(f"the component {name!r} of {spec.name} has a name that DSPy uses; call it otherwise")
            setattr(self, name, Text(name, component, spec, self.through))

    def forward(self, **inputs: Any) -> dspy.Prediction:
        """Call the agent, for a thread."""
        return self._answered(inputs, self.through(self._question(inputs)))

    async def aforward(self, **inputs: Any) -> dspy.Prediction:
        """Call the agent, for a task."""
        return self._answered(inputs, await self.through.acall(self._question(inputs)))

    def _question(self, inputs: Mapping[str, Any]) -> str:
        if missing := [name for name in self.spec.inputs if name not in inputs]:
            raise ValueError(f"the agent {self.spec.name} needs the input {missing[0]!r}")
        question = {
            "components": {name: getattr(self, name).signature.instructions for name in self.spec.components},
            "inputs": {name: inputs[name] for name in self.spec.inputs},
        }
        return canonical(question)

    def _answered(self, inputs: Mapping[str, Any], answers: list[Any]) -> dspy.Prediction:
        texts = [getattr(self, name) for name in self.spec.components]
        reply = answers[0]["text"] if isinstance(answers[0], dict) else answers[0]
        try:
            prediction = dspy.Prediction(**self.spec.read(reply))
        except Unreadable as error:
            raise AdapterParseError(
                "of the agent", texts[0].signature, reply[: 4 * QUOTED], message=str(error)
            ) from error
        trace = dspy.settings.trace
        if trace is not None:
            trace += [(text, dict(inputs), prediction) for text in texts]
        return prediction

"""One LM: how it is reached, what it can do, what it costs, and whether it looks dead."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from itertools import count
from types import FunctionType
from typing import Any, Protocol, runtime_checkable

import dspy
from dspy._vendor.lm15.serde import request_to_dict
from dspy.clients import costs
from dspy.clients.backend_selection import select_backend
from dspy.clients.execution import aexecute, execute, prepare
from dspy.clients.model_metadata import model_info, rate
from dspy.lm15 import Request, Response
from dspy.utils.exceptions import LMUnsupportedFeatureError

from ratchet.core.problem import content_hash
from ratchet.programs.answers import Answer, text_in
from ratchet.programs.journal import Role
from ratchet.programs.wire import Letter, Wire

BESIDE = ("extra_body", "drop_params")
"""Options of an LM that are no part of a request: fields for the server's own ends, and LiteLLM's affair."""
REST_SECONDS = 60.0
"""How long an LM that was given up is left alone, while another stands in for it."""
ANSWER_TOKENS = 4096
"""The longest answer to expect where nobody set a limit and none was seen yet."""
SILENT = 6
"""Failures in a row, over all requests, from which an LM that has answered before looks dead."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Price:
    """Dollars per million tokens."""

    prompt: float
    completion: float

    def of(self, prompt_tokens: int, completion_tokens: int) -> float:
        """Dollars for so many tokens."""
        return (prompt_tokens * self.prompt + completion_tokens * self.completion) / 1e6


FREE = Price(prompt=0.0, completion=0.0)
"""What a model on this machine takes."""


@runtime_checkable
class OwnLine(Protocol):
    """An LM that knows its line better than ``Line`` does."""

    def line(self, role: Role) -> Line:
        """Its line."""


@dataclass(slots=True)
class LmCall:
    """One call of an LM object: its rollout, and how many requests it has made."""

    rollout: object
    count: int = 0


_engines = count(1)

current_call: ContextVar[LmCall | None] = ContextVar("ratchet_lm_call", default=None)


@lru_cache(maxsize=256)
def _model_info(provider: str, model: str, *, namespaces: None = None) -> Any:
    return costs.model_info(provider, model, namespaces=namespaces)


# DSPy's own arithmetic, with prices that are looked up once per model: the search through its tables takes longer than
# all the rest of a request.
_estimate_cost = FunctionType(costs._estimate_cost.__code__, {**vars(costs), "model_info": _model_info})
_estimate_cost.__kwdefaults__ = costs._estimate_cost.__kwdefaults__


def _estimate(response: Response, provider: str, request: Request) -> float | None:
    """DSPy's estimate of what ``response`` costs, or None where it knows none."""
    try:
        cost, _ = _estimate_cost(response, provider=provider, requested_model=request.model, request=request)
    except (LookupError, TypeError, ValueError, AttributeError):
        return None  # prices that cannot be read are not known
    return None if cost is None else float(cost)


class Line:
    """One LM behind the gateway: how to reach it and what it costs.

    Args:
        lm: The LM as the user gave it; it is copied, with its own cache and retries off.
        role: What it is used for.
        price: Overrides DSPy's price table.
        supports_schema: Overrides what DSPy knows of the model.
        alive: Whether it is known to answer, however slowly.
        shared_as: What names the model among all that ever were, so that optimizations can share its replies; None for
            not sharing them.
        stand_in: Another line that is asked when this one is given up.
        clean: What every text that is sent is put through.
    """

    def __init__(
        self,
        lm: dspy.BaseLM,
        role: Role,
        *,
        price: Price | None = None,
        supports_schema: bool | None = None,
        alive: bool = False,
        shared_as: str | None = None,
        stand_in: Line | None = None,
        clean: Callable[[str], str] | None = None,
    ) -> None:
        self.role = role
        self.clean = clean
        self.shared_as = shared_as
        self.stand_in = stand_in
        self.model: str = lm.model
        self.alive = self.answered = alive
        self.name = f"the {role} LM {lm.model}"
        self.longest_seconds = 0.0
        """How long an answer may take by what is known of it; one that took longer is waited for once more."""
        self.refusals_are_free = True
        # An LM with an engine of its own is a provider of its own.
        own = not isinstance(lm, dspy.LM) or not isinstance(lm.engine, str)
        self.address = (
            f"engine {next(_engines)}" if own else str(lm.kwargs.get("api_base") or lm.kwargs.get("base_url") or "")
        )
        self._last_error = ""
        self._failures = 0
        self.wrote = False
        """Whether it has answered with anything but a refusal."""
        self._resting_until = -math.inf
        self._longest_answer = 0
        self.answered_at = -math.inf
        self._given_price = price
        self._schema = supports_schema
        self._lm = lm.copy(cache=False)
        self._lm.num_retries = 0
        self._more: dict[str, Any] = self._lm.kwargs.get("extra_body") or {}
        self._lm.kwargs = {name: value for name, value in self._lm.kwargs.items() if name not in BESIDE}
        self._patient: dict[float, dspy.BaseLM] = {}
        self._wire: Wire | None = None
        self._wire_known = False

    def __deepcopy__(self, memo: object) -> Line:
        return self

    def key(self, request: Request) -> str:
        """What names the reply to ``request``."""
        call = current_call.get() or LmCall(rollout=None)
        number, call.count = call.count, call.count + 1
        rollout = dspy.settings.get("ratchet_rollout")
        return content_hash(self.named(request, call.rollout, rollout, number))

    def named(self, request: Request, call_rollout: object, rollout: object, number: int) -> list[object]:
        """What a reply depends on, as JSON data.

        Args:
            call_rollout: The rollout that the LM was called with.
            rollout: The rollout of the program's run.
            number: How many requests the same call of the LM made before.
        """
        return [
            self.role,
            request_to_dict(request),
            call_rollout,
            rollout,
            number,
            *([self._more] if self._more else []),
        ]

    @property
    def trouble(self) -> str | None:
        """The last error of an LM that looks dead: no answer yet, or many failures and no answer between them."""
        looks_dead = self._failures >= (SILENT if self.answered else 1)
        return self._last_error if looks_dead else None

    def failed(self, error: Exception) -> None:
        """Note that a request was not answered."""
        self._failures += 1
        self._last_error = f"{error} ({type(error).__name__})"

    def succeeded(self, now: float, *, refused: bool = False) -> None:
        """Note that a request was answered, or ``refused``; ``now`` is a reading of the gateway's clock."""
        self.answered = True
        self.wrote |= not refused
        self.answered_at = now
        self._failures = 0

    def give_up(self, now: float) -> None:
        """Leave it alone for a while."""
        self._resting_until = now + REST_SECONDS

    def in_charge(self, now: float) -> Line:
        """Who is asked now: this one, or while it is left alone the one that stands in for it."""
        resting = self.stand_in is not None and now < self._resting_until
        return self.stand_in.in_charge(now) if self.stand_in is not None and resting else self

    @cached_property
    def supports_response_schema(self) -> bool:
        """Whether the LM keeps to a JSON schema."""
        return self._lm.supports_response_schema if self._schema is None else self._schema

    @cached_property
    def supports_function_calling(self) -> bool:
        """Whether the LM calls tools natively."""
        return bool(self._lm.supports_function_calling)

    @cached_property
    def supports_reasoning(self) -> bool:
        """Whether the LM reasons natively."""
        return bool(self._lm.supports_reasoning)

    @cached_property
    def supported_params(self) -> set[str]:
        """Parameters the LM takes."""
        params = set(self._lm.supported_params)
        return params | {"response_format"} if self._schema else params

    @cached_property
    def price(self) -> Price | None:
        """What tokens cost, or None when nobody knows."""
        return self._given_price or known_price(self._lm)

    def _with(self, patience: float) -> dspy.BaseLM:
        if not isinstance(self._lm, dspy.LM) or not isinstance(self._lm.engine, str) or "timeout" in self._lm.kwargs:
            return self._lm
        if patience not in self._patient:
            self._patient[patience] = self._lm.copy(timeout=patience)
        return self._patient[patience]

    def wire(self, request: Request) -> Wire | None:
        """The LM's own HTTP interface, where requests like ``request`` can be sent over it."""
        if not self._wire_known:
            self._wire, self._wire_known = Wire.of(self._lm, request, more=self._more), True
        return self._wire

    async def send(self, request: Request, *, patience: float) -> Answer:
        """Send ``request`` once, on the event loop.

        Args:
            patience: Seconds to wait for the answer.

        Raises:
            LMError: there is no answer.
        """
        if request.model != self.model:
            request = replace(request, model=self.model)  # it was written for the one we stand in for
        wire = self.wire(request)
        letter = None if wire is None else wire.letter(request)
        if wire is not None and letter is not None:
            return await self.exchange(wire, letter, letter.body, patience=patience)
        if self._more:
            raise LMUnsupportedFeatureError(
                "extra_body goes over an OpenAI-compatible interface only", model=self.model
            )
        lm = self._with(patience)
        with dspy.context(send_stream=None, ratchet_door=None):  # what it does inside is no affair of the program
            if _only_waits(lm):
                return await asyncio.to_thread(self._send, lm, request)
            result = await aexecute(lm, prepare(lm, request, None, {}, asynchronous=True))
        return self._answer(result.typed(request, getattr(lm, "model_type", "chat")), result.cost)

    def _send(self, lm: dspy.BaseLM, request: Request) -> Answer:
        result = execute(lm, prepare(lm, request, None, {}))
        return self._answer(result.typed(request, getattr(lm, "model_type", "chat")), result.cost)

    def _answer(self, response: Response, estimate: float | None) -> Answer:
        usage = response.usage
        return Answer.of(response, self._dollars(usage.input_tokens or 0, usage.output_tokens or 0, estimate))

    def _dollars(self, prompt_tokens: int, completion_tokens: int, estimate: float | None) -> float | None:
        """By the price we were given, else as DSPy estimates them; None where nobody said how many tokens it took."""
        self._longest_answer = max(self._longest_answer, completion_tokens)
        if prompt_tokens == completion_tokens == 0 and self.price not in (None, FREE):
            return None
        return estimate if self._given_price is None else self._given_price.of(prompt_tokens, completion_tokens)

    async def exchange(self, wire: Wire, letter: Letter, body: bytes, *, patience: float) -> Answer:
        """Send ``letter`` with ``body`` once."""
        reply = await wire.exchange(letter, body, patience=self._lm.kwargs.get("timeout") or patience)
        estimated = self._given_price is None and self.price is not None
        if not estimated and letter.is_plain and (text := text_in(reply.body)) is not None:
            usage = text.get("usage", {})
            prompt, completion = usage.get("input_tokens", 0), usage.get("output_tokens", 0)
            return Answer(text, prompt, completion, self._dollars(prompt, completion, None))
        response = wire.read(letter, reply)
        return self._answer(response, _estimate(response, wire.provider, letter.request) if estimated else None)

    def reservation(self, request: Request) -> float:
        """The most dollars to expect of ``request``; 0 when the price is not known.

        No tokenizer makes more tokens than a text has bytes. Where no ``max_tokens`` bounds the answer, one may be
        longer than any before it.
        """
        if self.price is None:
            return 0.0
        size = len(str(request_to_dict(request)).encode(errors="replace"))
        return self.price.of(size, request.config.max_tokens or max(ANSWER_TOKENS, self._longest_answer))

    def tokens(self, request: Request) -> float:
        """About how many tokens ``request`` and its answer have, before anybody counted them."""
        return len(str(request_to_dict(request))) / 4 + min(request.config.max_tokens or 256, 256)


def _only_waits(lm: dspy.BaseLM) -> bool:
    """Whether ``lm`` can be called in a thread only."""
    if isinstance(lm, dspy.LM):
        return not isinstance(lm.engine, str) and lm._async_engine_spec is None
    return type(lm).aforward is dspy.BaseLM.aforward


def known_price(lm: dspy.BaseLM) -> Price | None:
    """What DSPy's price table says of an LM, or None."""
    if not isinstance(lm, dspy.LM) or not isinstance(lm.engine, str):
        return None
    resolution = select_backend(lm, {}).resolution
    if resolution is None or resolution.declared:
        return None
    info = model_info(resolution.provider, resolution.model)
    prompt, completion = rate(info, "input_cost_per_token"), rate(info, "output_cost_per_token")
    return None if prompt is None or completion is None else Price(prompt=prompt * 1e6, completion=completion * 1e6)

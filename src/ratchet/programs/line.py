"""One LM: how it is reached, what it can do, what it costs, and whether it looks dead."""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass
from functools import cached_property

import dspy
from dspy._vendor.lm15.serde import request_to_dict
from dspy.clients.backend_selection import select_backend
from dspy.clients.execution import aexecute, execute, prepare
from dspy.clients.model_metadata import model_info, rate
from dspy.lm15 import Request, Response

from ratchet.core.problem import content_hash
from ratchet.programs.journal import Role

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


@dataclass(slots=True)
class LmCall:
    """One call of an LM object: its rollout, and how many requests it has made."""

    rollout: object
    count: int = 0


current_call: ContextVar[LmCall | None] = ContextVar("ratchet_lm_call", default=None)


class Line:
    """One LM behind the gateway: how to reach it and what it costs.

    Args:
        lm: The LM as the user gave it; it is copied, with its own cache and retries off.
        role: What it is used for.
        price: Overrides DSPy's price table.
        supports_schema: Overrides what DSPy knows of the model.
        alive: Whether it is known to answer, however slowly.
    """

    def __init__(
        self,
        lm: dspy.BaseLM,
        role: Role,
        *,
        price: Price | None = None,
        supports_schema: bool | None = None,
        alive: bool = False,
    ) -> None:
        self.role = role
        self.model: str = lm.model
        self.alive = self.answered = alive
        self.name = f"the {role} LM {lm.model}"
        self._last_error = ""
        self._failures = 0
        self._given_price = price
        self._schema = supports_schema
        self._lm = lm.copy(cache=False)
        self._lm.num_retries = 0
        self._patient: dict[float, dspy.BaseLM] = {}

    def __deepcopy__(self, memo: object) -> Line:
        return self

    def key(self, request: Request) -> str:
        """What names the reply to ``request``."""
        call = current_call.get() or LmCall(rollout=None)
        number, call.count = call.count, call.count + 1
        rollout = dspy.settings.get("ratchet_rollout")
        return content_hash([self.role, request_to_dict(request), call.rollout, rollout, number])

    @property
    def trouble(self) -> str | None:
        """The last error of an LM that looks dead: no answer yet, or many failures and no answer between them."""
        looks_dead = self._failures >= (SILENT if self.answered else 1)
        return self._last_error if looks_dead else None

    def failed(self, error: Exception) -> None:
        """Note that a request was not answered."""
        self._failures += 1
        self._last_error = f"{error} ({type(error).__name__})"

    def succeeded(self) -> None:
        """Note that a request was answered."""
        self.answered = True
        self._failures = 0

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

    def send(self, request: Request, *, patience: float) -> tuple[Response, float | None]:
        """Send ``request`` once; the response and DSPy's estimate of its dollars."""
        lm = self._with(patience)
        result = execute(lm, prepare(lm, request, None, {}))
        return result.typed(request, getattr(lm, "model_type", "chat")), result.cost

    async def asend(self, request: Request, *, patience: float) -> tuple[Response, float | None]:
        """The same, for a task."""
        lm = self._with(patience)
        result = await aexecute(lm, prepare(lm, request, None, {}, asynchronous=True))
        return result.typed(request, getattr(lm, "model_type", "chat")), result.cost

    def cost(self, response: Response, estimate: float | None) -> float | None:
        """Dollars of ``response``, or None when the price is not known."""
        if self._given_price is None:
            return estimate
        return self._given_price.of(response.usage.input_tokens or 0, response.usage.output_tokens or 0)

    def reservation(self, request: Request) -> float:
        """An upper bound of the dollars ``request`` can cost; 0 when the price is not known."""
        if self.price is None:
            return 0.0
        letters = len(str(request_to_dict(request)))
        return self.price.of(letters // 2, request.config.max_tokens or 4096)


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

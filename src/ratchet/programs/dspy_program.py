"""A ``dspy.Module`` as a program: its tunable state as a Candidate, and one run of it on one example."""

from __future__ import annotations

import asyncio
import copy
import enum
import inspect
import json
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any, Literal, get_args, get_origin, get_type_hints

import dspy
from dspy.adapters.utils import serialize_for_json
from dspy.utils.exceptions import AdapterParseError, LMInvalidRequestError
from pydantic import BaseModel

from ratchet.core.errors import BadData, BadRequest, MetricFailed, UserError
from ratchet.core.evaluation import Evaluation, Failure, Step, Usage
from ratchet.core.problem import Candidate, Example, FieldSpec, PredictorSpec, PredictorState
from ratchet.programs.compiled import compile_predictors
from ratchet.programs.gateway import Gateway, Receipt
from ratchet.programs.gateway_lm import GatewayLM
from ratchet.programs.ledger import Halt
from ratchet.programs.line import Line, OwnLine
from ratchet.programs.loop import WouldBlockError, in_thread
from ratchet.programs.metrics import Metric, ascore, own
from ratchet.programs.parts import copied, replace_lms
from ratchet.programs.tools import Calls, Toolboxes, written

_KEPT_MODULES = 16
_JSON = (str, int, float, bool)


def plain(value: Any) -> Any:
    """``value`` as JSON data."""
    if value is None or type(value) in _JSON:
        return value
    if type(value) is dict:
        return {str(name): plain(part) for name, part in value.items()}
    if isinstance(value, enum.Enum):
        return plain(value.value)
    if isinstance(value, dspy.Example | dspy.Prediction):
        simple = all(type(part) in _JSON for part in value._store.values())
        return dict(value._store) if simple else {name: plain(part) for name, part in value.toDict().items()}
    if isinstance(value, dspy.Image):
        return value.url
    if hasattr(value, "model_dump"):
        return value.model_dump(mode="json")
    if isinstance(value, Mapping):
        return {str(name): plain(part) for name, part in value.items()}
    if isinstance(value, list | tuple | set):
        return [plain(part) for part in value]
    return value if isinstance(value, str | int | float) else serialize_for_json(value)


def state_of(module: dspy.Module, *, tune_tools: bool = False) -> dict[str, PredictorState]:
    """The tunable state of each predictor, by name, and of each tool's description where those are tuned.

    A list of tools within instructions is left out of them; see ``ratchet.programs.tools``.
    """
    boxes = Toolboxes(module)
    states = {
        name: PredictorState(
            instructions=boxes.instructions(predictor),
            demos=tuple(plain(dict(demo)) for demo in predictor.demos if takes_demos(predictor)),
        )
        for name, predictor in module.named_predictors()
    }
    if tune_tools:
        states |= {name: PredictorState(instructions=text) for name, text in boxes.texts().items()}
    return states


def takes_demos(predictor: dspy.Predict) -> bool:
    """Whether demos have a place in the prompt of ``predictor``."""
    return bool(getattr(predictor, "takes_demos", True))


def _field(name: str, info: Any) -> FieldSpec:
    kind = info.annotation
    choices = tuple(str(value) for value in get_args(kind)) if get_origin(kind) is Literal else ()
    description = (info.json_schema_extra or {}).get("desc") or ""
    return FieldSpec(
        name=name,
        type=str(kind).replace("typing.", "") if get_args(kind) else getattr(kind, "__name__", str(kind)),
        description="" if description == f"${{{name}}}" else description,
        choices=choices,
    )


def specs_of(module: dspy.Module, *, tune_tools: bool = False) -> tuple[PredictorSpec, ...]:
    """What algorithms may know of each predictor, and of each tool's description where those are tuned."""
    specs = tuple(
        PredictorSpec(
            name=name,
            inputs=tuple(_field(key, info) for key, info in predictor.signature.input_fields.items()),
            outputs=tuple(_field(key, info) for key, info in predictor.signature.output_fields.items()),
            takes_demos=takes_demos(predictor),
            text=getattr(predictor, "text", ""),
        )
        for name, predictor in module.named_predictors()
    )
    return (*specs, *Toolboxes(module).specs()) if tune_tools else specs


def _inner(module: dspy.Module) -> dspy.Module:
    """The program within wrappers that only run it again, such as ``dspy.Refine`` and ``dspy.BestOfN``."""
    while isinstance(module, dspy.Refine | dspy.BestOfN):
        module = module.module
    return module


def input_names(module: dspy.Module) -> tuple[str, ...]:
    """The inputs a program takes: its signature's for a single predictor, else the parameters of ``forward``."""
    module = _inner(module)
    if isinstance(module, dspy.Predict):
        return tuple(module.signature.input_fields)
    forward = getattr(type(module), "aforward" if _is_async(type(module)) else "forward", None)
    if forward is None:
        raise BadData(f"{type(module).__name__} has neither forward nor aforward; give it one")
    parameters = list(inspect.signature(forward).parameters.values())[1:]
    named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    needed = tuple(p.name for p in named if p.default is p.empty)
    if needed or (named and not any(p.kind is p.VAR_KEYWORD for p in parameters)):
        return needed
    signature = getattr(module, "signature", None) or next((each.signature for each in module.predictors()), None)
    return tuple(name for name in signature.input_fields if name not in _INNER_INPUTS) if signature else ()


_INNER_INPUTS = frozenset(("trajectory", "tools"))
"""Inputs that agents of DSPy give to their own predictors."""


def output_names(module: dspy.Module) -> tuple[str, ...]:
    """The outputs a program is known to give: its signature's, else its last predictor's, without the reasoning."""
    module = _inner(module)
    predictors = module.predictors()
    signature: Any = getattr(module, "signature", None)
    if not (inspect.isclass(signature) and issubclass(signature, dspy.Signature)):
        signature = predictors[-1].signature if predictors else None
    return tuple(name for name in signature.output_fields if name != "reasoning") if signature else ()


def _is_async(kind: type[dspy.Module]) -> bool:
    """Whether programs of this kind are awaited: ``aforward`` counts when no subclass overrides ``forward`` alone."""
    for each in kind.__mro__:
        if "aforward" in vars(each):
            return True
        if "forward" in vars(each):
            return False
    return False


class DspyProgram:
    """A program behind the gateway.

    Args:
        module: The user's program; it is never changed.
        gateway: Where its LM calls go.
        task: The LM of predictors that have none of their own; None when all have.
        adapter: DSPy adapter; None for DSPy's default.
        metric: Scores a prediction.
        timeout_seconds: How long one run may take by itself; None for no limit.
        tune_tools: Whether the descriptions of tools and of their arguments are tuned too.

    Raises:
        UserError: the program has no predictor, so there is nothing to tune.
    """

    def __init__(
        self,
        module: dspy.Module,
        *,
        gateway: Gateway,
        task: Line | None,
        task_lm: dspy.BaseLM | None,
        adapter: dspy.Adapter | None,
        metric: Metric,
        timeout_seconds: float | None = None,
        tune_tools: bool = False,
    ) -> None:
        if not module.predictors():
            raise UserError(f"{type(module).__name__} has no predictors, so there is nothing to tune")
        if tune_tools and not Toolboxes(module).tools:
            raise BadRequest(f"{type(module).__name__} has no tools, so there are no descriptions of them to tune")
        self.original = module
        self.metric = metric
        self.adapter = adapter
        self._gateway = gateway
        self._timeout = timeout_seconds
        self.lm = GatewayLM(gateway, task_lm, task) if task is not None and task_lm is not None else None
        self.tune_tools = tune_tools
        self.lines: list[Line] = []
        self.module = copied(module)
        replace_lms(self.module, self._through_the_gateway)
        self.seed = Candidate(predictors=self.state_of(module))
        self.specs = specs_of(module, tune_tools=tune_tools)
        self._inputs = converters(module)
        self._async = _is_async(type(module))
        self._blocks = False
        self._lock = threading.Lock()
        self._strays: dict[object, tuple[dspy.BaseLM, dspy.BaseLM]] = {}
        self._built: OrderedDict[str, tuple[dspy.Module, _Names]] = OrderedDict()

    def _through_the_gateway(self, lm: dspy.BaseLM) -> dspy.BaseLM:
        if isinstance(lm, GatewayLM):
            return lm
        self.lines.append(lm.line("task") if isinstance(lm, OwnLine) else Line(lm, "task"))
        return GatewayLM(self._gateway, lm, self.lines[-1])

    def state_of(self, module: dspy.Module) -> dict[str, PredictorState]:
        """The tunable state of ``module``, a copy of this program."""
        return state_of(module, tune_tools=self.tune_tools)

    def settings(self, **more: Any) -> Any:
        """The DSPy context every run happens in."""
        quiet = {"disable_history": True, "warn_on_type_mismatch": False, "callbacks": []}
        return dspy.context(lm=self.lm, adapter=self.adapter, ratchet_door=self._door, **{**quiet, **more})

    def _door(self, lm: dspy.BaseLM) -> dspy.BaseLM:
        """The way through the gateway for an LM that shows up in a run only; one for all that are set up alike."""
        plain_lm = type(lm) is dspy.LM and isinstance(lm.engine, str)
        name = (lm.model, lm.model_type, repr(sorted(lm.kwargs.items()))) if plain_lm else id(lm)
        with self._lock:
            if name not in self._strays:
                self._strays[name] = (lm, self._through_the_gateway(lm))
                if self._gateway.limits.usd is not None and self.lines[-1].price is None:
                    self._gateway.halt(BadRequest(f"--max-usd cannot be kept: the price of {lm.model} is not known"))
            return self._strays[name][1]

    def build(self, candidate: Candidate) -> dspy.Module:
        """The program with ``candidate`` as its state."""
        return self._named(candidate)[0]

    def _named(self, candidate: Candidate) -> tuple[dspy.Module, _Names]:
        """The program with ``candidate`` as its state, and the names of its predictors."""
        if candidate.key in self._built:
            self._built.move_to_end(candidate.key)
            return self._built[candidate.key]
        module = compile_predictors(applied(self.module, candidate))
        if self.tune_tools:
            Toolboxes(module).record()
        built = self._built[candidate.key] = (module, _Names(module))
        if len(self._built) > _KEPT_MODULES:
            self._built.popitem(last=False)
        return built

    def export(self, candidate: Candidate) -> dspy.Module:
        """The user's own program with ``candidate`` as its state, free of Ratchet."""
        return applied(self.original, candidate)

    async def run(self, candidate: Candidate, example: Example, *, repeat: int = 0) -> Evaluation:
        """Run ``candidate`` on ``example`` and score it.

        Raises:
            RatchetError: the gateway was halted; nothing the program did becomes a score then.
        """
        module, names = self._named(candidate)
        receipt, judging = Receipt(), Receipt()
        trace: list[Any] = []
        calls = Calls([])
        started = time.monotonic()
        prediction: dspy.Prediction | None = None
        failure: Failure | None = None
        value, feedback = None, ""
        steps: tuple[Step, ...] = ()
        rollout = repeat or None
        try:
            with self.settings(trace=trace, ratchet_receipt=receipt, ratchet_rollout=rollout, ratchet_calls=calls):
                try:
                    async with asyncio.timeout(self._seconds()):
                        prediction = await self._call(module, example)
                except Exception as error:  # the user's program is foreign code
                    self._in_time(error)
                    failure = _failure(error)
                    steps = self._failed_steps(names, example, error, receipt, trace)
            seconds = time.monotonic() - started
            self._gateway.check()
            if prediction is not None:
                try:
                    with self.settings(trace=None, ratchet_receipt=judging, ratchet_rollout=rollout):
                        judged = await ascore(self.metric, example, prediction, seconds=self._gateway.seconds_left)
                    value, feedback = judged.score, judged.feedback
                except TimeoutError as error:  # ours: a metric's own is a failure of it
                    raise self._gateway.out_of_time() from error
                except MetricFailed as error:
                    failure = Failure(kind="metric", message=str(error))
                self._gateway.check()
        except Halt as halt:
            raise halt.cause from halt
        except WouldBlockError:
            self._blocks = True  # an async program that waits for an LM without await: it gets a thread from now on
            return await self.run(candidate, example, repeat=repeat)
        outside = max(0.0, seconds - receipt.seconds_inside) * 1e3
        return Evaluation(
            candidate=candidate.key,
            example=example,
            repeat=repeat,
            score=value,
            failure=failure,
            feedback=feedback or (failure.message if failure else ""),
            prediction=None if prediction is None else plain(prediction),
            trace=calls.among(steps or _steps(names, trace)),
            usage=_with_latency(receipt, outside),
            replies=(*receipt.keys, *judging.keys),
        )

    def _seconds(self) -> float | None:
        """How long a run may take."""
        return min((each for each in (self._timeout, self._gateway.seconds_left) if each is not None), default=None)

    def _in_time(self, error: Exception) -> None:
        """Raise what the optimization ends with where ``error`` is that there is no more time."""
        left = self._gateway.seconds_left
        if isinstance(error, TimeoutError) and left is not None and left <= 0:
            raise self._gateway.out_of_time() from error

    def _failed_steps(
        self, names: _Names, example: Example, error: Exception, receipt: Receipt, trace: list[Any]
    ) -> tuple[Step, ...]:
        """The steps that went well, then the one that failed, with what it was given and what the LM wrote."""
        done = _steps(names, trace)
        signature = getattr(error, "signature", None)
        failed = [name for name, predictor in names.module.named_predictors() if predictor.signature is signature]
        ran = {step.predictor for step in done}
        likely = failed or [each.name for each in self.specs]
        name = next((name for name in likely if name not in ran), likely[0])
        spec = next(spec for spec in self.specs if spec.name == name)
        inputs = {field.name: example.inputs[field.name] for field in spec.inputs if field.name in example.inputs}
        raw = getattr(error, "lm_response", None) or (receipt.texts[-1] if receipt.texts else "")
        text = raw if isinstance(raw, str) else json.dumps(plain(raw))
        return (*done, Step(predictor=name, inputs=inputs, outputs={}, raw=text))

    async def _call(self, module: dspy.Module, example: Example) -> dspy.Prediction:
        inputs = {name: self._inputs.get(name, _as_it_is)(value) for name, value in own(example.inputs).items()}
        if isinstance(module, dspy.Refine | dspy.BestOfN):
            module = copy.copy(module)  # they count failures down over all their runs
        try:
            if self._async and self._blocks:
                prediction = await in_thread(lambda: asyncio.run(module.acall(**inputs)))
            elif self._async:
                prediction = await module.acall(**inputs)
            else:
                prediction = await in_thread(module, **inputs)
        except SystemExit as error:
            raise RuntimeError(f"the program ended itself: SystemExit({error.code!r})") from error
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            raise RuntimeError("the program raised CancelledError") from error
        if not isinstance(prediction, dspy.Prediction):
            raise TypeError(f"the program returned {type(prediction).__name__}; it must return dspy.Prediction")
        return prediction


def applied(module: dspy.Module, candidate: Candidate) -> dspy.Module:
    """A copy of ``module`` with ``candidate`` as its state."""
    other = copied(module)
    boxes = Toolboxes(other)
    boxes.write({name: state.instructions for name, state in candidate.predictors.items()})
    for name, predictor in other.named_predictors():
        state, listing = candidate.predictors[name], boxes.listings.get(id(predictor))
        text = state.instructions if listing is None else written(state.instructions, listing.tools)
        if predictor.signature.instructions != text:
            predictor.signature = predictor.signature.with_instructions(text)
        shown = {key: info.annotation for key, info in predictor.signature.fields.items()}
        pictures = {key: _converter(kind) for key, kind in shown.items() if _model_in(kind) is dspy.Image}
        predictor.demos = [
            dspy.Example({key: pictures.get(key, _as_it_is)(value) for key, value in demo.items()})
            for demo in state.demos
        ]
    return other


def _as_it_is(value: Any) -> Any:
    return value


def converters(module: dspy.Module) -> dict[str, Callable[[Any], Any]]:
    """What makes of an input's JSON value what the program takes: a history, an image, an object of a class.

    The parameters of the program's own method say what it takes. Where they do not, its predictors do, if what comes in
    is handed on to them as it is; of others only the types are taken that are of no use as JSON.
    """
    forward = getattr(type(module), "aforward" if _is_async(type(module)) else "forward", None)
    parameters = list(inspect.signature(forward).parameters.values())[1:] if forward else []
    own = {each.name for each in parameters if each.kind in (each.POSITIONAL_OR_KEYWORD, each.KEYWORD_ONLY)}
    kinds: dict[str, Any] = {}
    for predictor in module.predictors():
        for name, info in predictor.signature.input_fields.items():
            if not own or _is_dspys(_model_in(info.annotation)):
                kinds.setdefault(name, info.annotation)
    with suppress(Exception):  # annotations are foreign code; without them the predictors know
        kinds |= {name: kind for name, kind in get_type_hints(forward).items() if name in own}
    return {name: _converter(kind) for name, kind in kinds.items() if _model_in(kind) is not None}


def _model_in(kind: Any) -> type[BaseModel] | None:
    """The class of objects that ``kind`` is, or is a list of."""
    inner = get_args(kind)[0] if get_origin(kind) is list and get_args(kind) else kind
    return inner if inspect.isclass(inner) and issubclass(inner, BaseModel) else None


def _is_dspys(kind: type[BaseModel] | None) -> bool:
    return kind is not None and kind.__module__.startswith("dspy.")


def _converter(kind: Any) -> Callable[[Any], Any]:
    model = _model_in(kind)
    assert model is not None

    def convert(value: Any) -> Any:
        if model is not kind:
            return [_converter(model)(each) for each in value] if isinstance(value, list) else value
        if issubclass(model, dspy.History) and isinstance(value, list):
            value = {"messages": value}
        # Not a path: what stands in data must not open files of this machine.
        if (
            issubclass(model, dspy.Image)
            and isinstance(value, str)
            and value.startswith(("data:", "http://", "https://"))
        ):
            return dspy.Image(value)
        return model.model_validate(value) if isinstance(value, Mapping) else value

    return convert


def _with_latency(receipt: Receipt, outside_ms: float) -> Usage:
    return replace(receipt.usage, latency_ms=receipt.usage.latency_ms + outside_ms)


def _failure(error: Exception) -> Failure:
    message = f"{type(error).__name__}: {error}"
    match error:
        case AdapterParseError():
            fields = ", ".join(error.signature.output_fields)
            return Failure(kind="unparseable", message=f"the output could not be parsed into {fields}")
        case TimeoutError():
            return Failure(kind="timeout", message="the program ran out of its own time")
        case LMInvalidRequestError():
            return Failure(kind="refused", message=message[:500])
    return Failure(kind="raised", message=message[:500])


class _Names:
    """What the predictors of a module are called, found out once for all its runs."""

    def __init__(self, module: dspy.Module) -> None:
        self.module = module
        self._look()

    def _look(self) -> None:
        self._predictors = self.module.named_predictors()  # kept, so that no other object gets the id of one of them
        self._names = {id(predictor): name for name, predictor in self._predictors}
        # Wrappers such as dspy.Refine run copies; a predictor's stage is drawn when it is made, and its copies keep it.
        stages = Counter(predictor.stage for _, predictor in self._predictors)
        self._copies = {each.stage: name for name, each in self._predictors if stages[each.stage] == 1}

    def of(self, predictor: dspy.Predict) -> str | None:
        """The name of ``predictor``, or of what it is a copy of; None for one that is no part of the module."""
        found = self._known(predictor)
        if found is None:
            self._look()  # programs may make predictors while they run
            found = self._known(predictor)
        return found

    def _known(self, predictor: dspy.Predict) -> str | None:
        return self._names.get(id(predictor)) or self._copies.get(predictor.stage)


def _steps(names: _Names, trace: list[Any]) -> tuple[Step, ...]:
    return tuple(
        Step(predictor=name, inputs=plain(inputs), outputs=plain(outputs))
        for predictor, inputs, outputs in trace
        if (name := names.of(predictor)) is not None
    )

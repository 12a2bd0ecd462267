"""One optimization that can be carried out, here and now."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import dspy
from dspy.utils.exceptions import LMInvalidRequestError

from ratchet import catalogue, learned
from ratchet.algorithms import NATIVE
from ratchet.algorithms.portfolio import portfolio
from ratchet.algorithms.surrogate import Embedder, device_for, surrogate
from ratchet.analytics.knowledge import DEFAULT_TENANT, LessonStore, Start
from ratchet.core.algorithm import Search
from ratchet.core.errors import BadRequest, Cancelled, RatchetError, StorageUnavailable, UnknownName
from ratchet.core.problem import Candidate, Problem
from ratchet.core.result import OptimizationResult, Spend, Status
from ratchet.engine.archive import Event, Notebook
from ratchet.engine.job import Algorithms, Job
from ratchet.engine.optimize import Optimizer
from ratchet.engine.verdict import with_spend
from ratchet.prepare import Prepared
from ratchet.programs import targets
from ratchet.programs.dspy_program import DspyProgram, output_names
from ratchet.programs.gateway import Gateway
from ratchet.programs.gateway_lm import GatewayLM
from ratchet.programs.journal import Heritage, Role
from ratchet.programs.ledger import Halt, Limits
from ratchet.programs.line import Line, Price
from ratchet.programs.lm import NamedLM
from ratchet.programs.loop import run
from ratchet.programs.metrics import resolve_metric, user_metric
from ratchet.programs.teleprompter import TELEPROMPTERS, compile_with


class Run:
    """One optimization that can be carried out, here and now.

    Args:
        prepared: What is to be done.
        notebook: Where it is kept.
        optimization_id: Its id.
        spent_seconds: Wall time earlier processes spent on it.
        emit: Told of every event.
        start: What it begins with of what was learned before.
        lessons: Where its own lesson is kept; None keeps none.
        heritage: What another optimization paid for, and this one need not.

    Attributes:
        resting: Entered while its thread does nothing but wait.
    """

    resting: Callable[[], AbstractContextManager[None]] = staticmethod(nullcontext)

    def __init__(
        self,
        prepared: Prepared,
        notebook: Notebook,
        *,
        optimization_id: str,
        spent_seconds: float,
        emit: Callable[[Event], None] = lambda event: None,
        start: Start | None = None,
        lessons: LessonStore | None = None,
        heritage: Heritage | None = None,
    ) -> None:
        self.id = optimization_id
        self.start = start or Start(state="off")
        self._lessons = lessons
        self.prepared = prepared
        self.notebook = notebook
        self._emit = emit
        self._stopped_as: Status = "cancelled"
        self._began = self._banked = time.monotonic()
        self._spent_seconds = spent_seconds
        options, constraints = prepared.options, prepared.request.constraints
        slots = prepared.task.slots if prepared.task is not None else None
        concurrency = options.concurrency if slots is None else min(slots, options.concurrency)
        patience = (
            {}
            if options.lm_timeout is None
            else {"timeout_seconds": options.lm_timeout, "first_timeout_seconds": options.lm_timeout}
        )
        self.gateway = Gateway(
            notebook.journal,
            Limits(
                calls=constraints.max_calls,
                usd=constraints.max_usd,
                deadline=self._began + constraints.max_optimization_time - spent_seconds,
                concurrency=concurrency,
                requests_per_minute=options.requests_per_minute,
                tokens_per_minute=options.tokens_per_minute,
                **patience,
            ),
            heritage=heritage,
        )
        named_lms: tuple[tuple[Role, NamedLM | None], ...] = (
            ("task", prepared.task),
            ("reflection", prepared.reflection),
            ("judge", prepared.judge),
        )
        self._lines = {role: self._line(role, named) for role, named in named_lms if named is not None}
        last = self._lines.get("reflection")
        for each in prepared.stand_ins:
            assert last is not None
            last.stand_in = last = self._line("reflection", each)
        task, reflection, judge = prepared.task, prepared.reflection, prepared.judge
        self.reflection = GatewayLM(self.gateway, reflection.lm, self._lines["reflection"]) if reflection else None
        self.judge = GatewayLM(self.gateway, judge.lm, self._lines["judge"]) if judge else self.reflection
        metric = (
            resolve_metric(
                prepared.metric,
                labels=sorted({name for example in prepared.splits.examples for name in example.labels}),
                outputs=output_names(prepared.target.module) or None,
                judge_lm=self.judge,
                rubric=prepared.options.rubric,
            )
            if isinstance(prepared.metric, str)
            else user_metric(prepared.metric)
        )
        self.program = DspyProgram(
            prepared.target.module,
            gateway=self.gateway,
            task=self._lines.get("task"),
            task_lm=task.lm if task else None,
            adapter=_adapter(options.adapter, local=prepared.task is not None and prepared.task.local),
            metric=metric,
            tune_tools=options.tune_tools,
        )
        self._price_needed()
        self._concurrency = concurrency

    def _line(self, role: Role, named: NamedLM) -> Line:
        price, cleaner = self.prepared.options.price, self.prepared.cleaner
        return Line(
            named.lm,
            role,
            price=Price(prompt=price[0], completion=price[1]) if price else named.price,
            supports_schema=named.supports_schema,
            alive=named.local,
            shared_as=self._shared_as(named) if self.prepared.options.share_replies else None,
            clean=cleaner.prompt if cleaner is not None and role != "task" else None,
        )

    def _shared_as(self, named: NamedLM) -> str | None:
        """What names the model for optimizations of the same tenant; another one's replies are not looked at."""
        tenant = self.prepared.options.tenant
        return f"{tenant}/{named.shared_as}" if named.shared_as and tenant != DEFAULT_TENANT else named.shared_as

    def _price_needed(self) -> None:
        """A limit in dollars can only be kept when every price is known."""
        if self.prepared.request.constraints.max_usd is None:
            return
        waiting = [*self._lines.values(), *self.program.lines]
        while waiting:
            line = waiting.pop()
            waiting += [line.stand_in] if line.stand_in is not None else []
            if line.price is None:
                raise BadRequest(
                    f"--max-usd cannot be kept: the price of {line.model} is not known; "
                    "give --price PROMPT,COMPLETION in dollars per million tokens, or use --max-calls"
                )

    def listen(self, listener: Callable[[Event], None]) -> None:
        """Have ``listener`` told of every event too."""
        first = self._emit

        def tell(event: Event) -> None:
            first(event)
            listener(event)

        self._emit = tell

    def tell(self, event: Event, *, keep: bool = True) -> None:
        """Tell of ``event``, and keep it unless it is kept already."""
        if keep:
            self.notebook.note(event)
        self._told(event)

    def cancel(self, status: Status = "cancelled") -> None:
        """Stop cleanly, soon; what was recorded stays, and ``resume`` goes on from there.

        Args:
            status: What is stored then.
        """
        self._stopped_as = status
        self.gateway.cancel()

    async def _write(self, prompt: str, temperature: float, number: int) -> str:
        """One text from the reflection LM; empty when it refuses this very prompt."""
        if self.reflection is None:
            raise BadRequest("this algorithm needs a reflection LM; give --reflection-lm")
        try:
            with self.program.settings():
                answers = await self.reflection.acall(prompt, temperature=temperature, rollout_id=number)
        except Halt as halt:
            raise halt.cause from halt
        except LMInvalidRequestError as error:
            self._emit(Event(kind="refused", payload={"message": str(error)[:300]}))
            return ""
        answer = answers[0]
        return str(answer["text"] if isinstance(answer, dict) else answer or "")

    def _opaque(self, name: str) -> Any:
        def search(
            problem: Problem, *, seed: int, on_candidate: Callable[[Candidate, float], None]
        ) -> Sequence[Candidate]:
            if self.reflection is None:
                raise BadRequest(f"{name} needs a reflection LM; give --reflection-lm")
            return compile_with(
                name,
                self.program,
                problem,
                self.gateway,
                reflection=self.reflection,
                seed=seed,
                threads=self._concurrency,
                on_candidate=on_candidate,
            )

        return search

    def _native(self, name: str) -> Search:
        if name == "surrogate":
            gpu_enabled, embedder = self.prepared.gpu_enabled, self.prepared.embedder
            return partial(surrogate, device=device_for(gpu_enabled=gpu_enabled), embed=_embedder(embedder))
        return partial(portfolio, advice=self.start.advice) if name == "portfolio" else NATIVE[name]

    def job(self) -> Job:
        """What the engine carries out."""
        splits, request = self.prepared.splits, self.prepared.request
        native = {name: self._native(name) for name in request.algorithms if name in NATIVE}
        custom = catalogue.searches(
            self.prepared.custom, identity=self.id, notebook=self.notebook, check=self.gateway.check
        )
        return Job(
            id=self.id,
            request=request,
            program=self.program,
            seed=self.program.seed,
            predictors=self.program.specs,
            description=self.prepared.target.description,
            train=splits.train,
            validation=splits.validation,
            test=splits.test,
            write=self._write,
            ledger=self.gateway,
            notebook=self.notebook,
            algorithms=Algorithms(
                native=native | custom,
                opaque={name: self._opaque(name) for name in request.algorithms if name in TELEPROMPTERS},
                aside=frozenset(custom),
            ),
            concurrency=self._concurrency,
            emit=self._told,
            notes=splits.notes,
            lm=self.prepared.task.name if self.prepared.task else "",
            minimise=self.prepared.options.minimise,
            max_prompt_tokens=self.prepared.options.max_prompt_tokens,
        )

    def spend(self) -> Spend:
        """What it cost so far, over all processes."""
        sent = self.notebook.journal.sent()
        return Spend(
            calls=sent.calls,
            recorded=sent.recorded,
            prompt_tokens=sent.prompt_tokens,
            completion_tokens=sent.completion_tokens,
            usd=None if sent.unpriced else sent.usd,
            seconds=self._spent_seconds + time.monotonic() - self._began,
            by_phase=dict(sent.by_stage),
        )

    def execute(self) -> OptimizationResult:
        """Carry it out; its status and result are stored, also when it fails.

        Raises:
            RatchetError: it failed, or was stopped; the status says so too.
            InUse: another process is working on it.
        """
        with self.notebook.claimed():
            try:
                return self._execute()
            finally:
                self.gateway.close()

    def _execute(self) -> OptimizationResult:
        self.notebook.set_status("running")
        optimizer = Optimizer(self.job())
        with self.telling_of_its_end():
            try:
                with self.resting():
                    found = run(optimizer.run())
            except KeyboardInterrupt:
                self.cancel()
                raise
            finally:
                self.gateway.land()
            result = with_spend(found, self.spend())
        self._learn(optimizer, result)
        self.notebook.set_status(result.status, result=result.to_json())
        self._bank_seconds()
        return result

    @contextmanager
    def telling_of_its_end(self) -> Iterator[None]:
        """Have what stops it stored as its status, with the cause of a failure."""
        try:
            yield
        except (Cancelled, KeyboardInterrupt):
            self._stop(self._stopped_as, "")
            raise
        except Exception as error:  # the outermost turn of an optimization: it is not left as running
            self._stop("failed", f"{type(error).__name__}: {error}")
            raise

    def _learn(self, optimizer: Optimizer, result: OptimizationResult) -> None:
        """Keep what it taught; that this cannot be kept is no reason to lose the result."""
        if self._lessons is None or result.status not in ("improved", "no_proven_gain"):
            return
        try:
            self._lessons.keep(
                learned.lesson(
                    self.prepared,
                    self.program,
                    optimizer,
                    result,
                    warm_start=self.start.state,
                    evaluations=[row for row, _ in self.notebook.evaluations()],
                )
            )
        except StorageUnavailable as error:
            self._emit(Event(kind="note", payload={"message": f"its lesson could not be kept: {error}"}))

    def _bank_seconds(self) -> None:
        """Store the wall time spent since it was stored last, so that a killed process has not worked for nothing."""
        now = time.monotonic()
        self.notebook.add_seconds(now - self._banked)
        self._banked = now

    def _told(self, event: Event) -> None:
        self._bank_seconds()
        self._emit(event)

    def _stop(self, status: str, error: str) -> None:
        try:
            self.notebook.set_status(status, error=error)
            self._bank_seconds()
        except RatchetError:
            return  # the database is what failed; the first error is the one to tell


def _embedder(name: str) -> Embedder | None:
    """The function ``package.module:function``; None for Ratchet's own."""
    module, _, attribute = name.partition(":")
    found: Embedder | None = targets.load_attribute(module, attribute, what="embedder") if name else None
    return found


def _adapter(name: str, *, local: bool) -> dspy.Adapter | None:
    kinds: dict[str, Callable[[], dspy.Adapter | None]] = {
        "auto": lambda: dspy.JSONAdapter() if local else dspy.settings.adapter,
        "chat": dspy.ChatAdapter,
        "json": dspy.JSONAdapter,
        "xml": dspy.XMLAdapter,
    }
    if name not in kinds:
        raise UnknownName(f"there is no adapter {name!r}; there are {', '.join(kinds)}")
    return kinds[name]()

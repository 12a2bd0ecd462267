"""One optimization, from names and files to something that can be carried out, here and now, and resumed."""

from __future__ import annotations

import importlib.metadata
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import dspy
from dspy.utils.exceptions import LMInvalidRequestError

from ratchet import catalogue, learned
from ratchet.algorithms import NATIVE
from ratchet.algorithms.portfolio import portfolio
from ratchet.algorithms.surrogate import Embedder, device_for, require_torch, surrogate
from ratchet.analytics.knowledge import DEFAULT_TENANT, LessonStore, Start
from ratchet.core.algorithm import Search
from ratchet.core.errors import BadRequest, Cancelled, RatchetError, StorageUnavailable, UnknownName
from ratchet.core.problem import Candidate, Example, Problem, content_hash
from ratchet.core.request import Constraints, Objective, OptimizationRequest, Target
from ratchet.core.result import OptimizationResult, Spend, Status
from ratchet.engine.archive import Event, Notebook, Optimization
from ratchet.engine.optimize import Algorithms, Job, Optimizer, with_spend
from ratchet.guard import KEEP, clean_examples, clean_rows, clean_splits, guarded
from ratchet.options import AUTO, Options
from ratchet.privacy.clean import Cleaner
from ratchet.programs import targets, telemetry
from ratchet.programs.datasets import Row, Splits, assemble, dataset_hash, read_rows, to_examples
from ratchet.programs.dspy_program import DspyProgram, input_names, output_names
from ratchet.programs.gateway import PACES, Gateway
from ratchet.programs.gateway_lm import GatewayLM
from ratchet.programs.identity import agent_identity, program_identity
from ratchet.programs.journal import Fork, Heritage, Role
from ratchet.programs.ledger import Halt, Limits
from ratchet.programs.line import Line, Price
from ratchet.programs.lm import NamedLM, resolve_lm
from ratchet.programs.loop import run
from ratchet.programs.metrics import resolve_metric, user_metric
from ratchet.programs.remote import RemoteAgent
from ratchet.programs.remote_algorithm import Address
from ratchet.programs.teleprompter import TELEPROMPTERS, compile_with
from ratchet.settings import Settings, quiet_libraries
from ratchet.storage.algorithms import addresses
from ratchet.storage.forks import SqlHeritage
from ratchet.storage.lessons import SqlLessons
from ratchet.storage.memory import MemoryNotebook
from ratchet.storage.sql import SqlArchive


@dataclass(frozen=True, slots=True, kw_only=True)
class Given:
    """What a library caller or the service hands over as objects; a command line has none of it.

    Attributes:
        rows: Rows of a stored data set, by the name of the option whose file they stand for.
        cleaner: Cleans the data, and what is sent to the reflection LM and the judge.
    """

    program: dspy.Module | None = None
    metric: Callable[..., Any] | None = None
    examples: Sequence[Example] | None = None
    splits: Splits | None = None
    rows: Mapping[str, Sequence[Row]] = field(default_factory=dict)
    lm: dspy.BaseLM | None = None
    reflection_lm: dspy.BaseLM | None = None
    algorithms: Mapping[str, Search] = field(default_factory=dict)
    cleaner: Cleaner | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """A request whose every name stands for something."""

    options: Options
    request: OptimizationRequest
    target: targets.Target
    metric: str | Callable[..., Any]
    judge: NamedLM | None
    task: NamedLM | None
    reflection: NamedLM | None
    stand_ins: tuple[NamedLM, ...]
    splits: Splits
    custom: Mapping[str, catalogue.Custom] = field(default_factory=dict)
    gpu_enabled: bool = True
    embedder: str = ""
    cleaner: Cleaner | None = None


def known_algorithms() -> tuple[str, ...]:
    """The names of all built-in algorithms."""
    return tuple(sorted((*NATIVE, *TELEPROMPTERS)))


def prepare(
    options: Options,
    given: Given,
    settings: Settings,
    *,
    splits: Splits | None = None,
    addresses: Mapping[str, Address] = MappingProxyType({}),
) -> Prepared:
    """Resolve every name in ``options``.

    Args:
        splits: The data as an earlier process had split it; None reads and splits the files.
        addresses: Algorithms that were registered with the service.

    Raises:
        UserError: a name, a file or an option cannot be used.
    """
    quiet_libraries()
    if telemetry.observer is None:
        telemetry.observer = telemetry.observer_from(
            metrics=settings.metrics, traces=settings.traces, paces=PACES.snapshots
        )
    request = _request(options)
    if "surrogate" in request.algorithms:
        require_torch()
    custom = _custom(request, given, settings, addresses)
    target = (
        targets.Target(module=given.program, text=options.target)
        if given.program is not None
        else targets.resolve_target(options.target, kind=options.module, instructions=options.instructions)
    )
    task = _task_lm(options, given, settings, target.module)
    reflection, *stand_ins = _reflection_lms(options, given, settings) or [task]
    judge = _lm(options.judge_lm, options, settings) if options.judge_lm else None
    if splits is None:
        splits = _splits(options, given, target.module)
    return Prepared(
        options=options,
        request=request,
        target=target,
        metric=given.metric or options.metric,
        judge=judge,
        task=task,
        reflection=reflection,
        stand_ins=tuple(each for each in stand_ins if each is not None),
        splits=splits,
        custom=custom,
        gpu_enabled=settings.gpu_enabled,
        embedder=settings.embedder,
        cleaner=given.cleaner,
    )


def _custom(
    request: OptimizationRequest, given: Given, settings: Settings, addresses: Mapping[str, Address]
) -> dict[str, catalogue.Custom]:
    """The algorithms asked for that are not built in."""
    return {
        name: catalogue.Custom(name=name, source="an object of the caller", search=given.algorithms[name])
        if name in given.algorithms
        else catalogue.find(name, settings, addresses)
        for name in request.algorithms
        if name not in known_algorithms()
    }


def _embedder(name: str) -> Embedder | None:
    """The function ``package.module:function``; None for Ratchet's own."""
    module, _, attribute = name.partition(":")
    found: Embedder | None = targets.load_attribute(module, attribute, what="embedder") if name else None
    return found


def _request(options: Options) -> OptimizationRequest:
    names: list[str] = []
    for name in options.algorithms:
        names += AUTO if name == "auto" else [name]
    return OptimizationRequest(
        target=Target(id=options.target),
        objectives=tuple(
            Objective(metric=name, weight=weight, target_value=dict(options.target_values).get(name))  # type: ignore[arg-type]
            for name, weight in options.objectives
        ),
        algorithms=tuple(names),
        constraints=Constraints(
            max_optimization_time=options.max_minutes * 60,
            min_improvement_threshold=options.min_improvement,
            max_resource_usage=options.max_resource_usage,
            max_calls=options.max_calls,
            max_usd=options.max_usd,
        ),
        seed=options.seed,
        success_at=options.success_at,
        force=options.force,
    )


def _lm(name: str, options: Options, settings: Settings, **more: Any) -> NamedLM:
    return resolve_lm(name, models=settings.models, base=options.lm_base, timeout_seconds=options.lm_timeout, **more)


def _task_lm(options: Options, given: Given, settings: Settings, module: dspy.Module) -> NamedLM | None:
    if options.lm is not None:
        return _lm(options.lm, options, settings, temperature=options.temperature, max_tokens=options.max_tokens)
    lm = given.lm or dspy.settings.lm
    if lm is not None:
        return NamedLM(lm=lm, name=lm.model, identity=lm.model)
    if all(predictor.lm is not None for predictor in module.predictors()):
        return None
    raise BadRequest("no LM was given; say --lm local, --lm openai/gpt-4.1-mini, or --lm NAME --lm-base URL")


def _reflection_lms(options: Options, given: Given, settings: Settings) -> list[NamedLM | None]:
    """The reflection LM and those that stand in for it.

    Only prompts may come from another LM than planned: another task LM or judge in the midst of an optimization would
    mix two things in one number.
    """
    if options.reflection_lm is not None:
        return [_lm(name.strip(), options, settings) for name in options.reflection_lm.split(",")]
    lm = given.reflection_lm
    return [NamedLM(lm=lm, name=lm.model, identity=lm.model)] if lm is not None else []


def _one_answer(metric: str) -> bool:
    """Whether ``metric`` compares one answer with one label, which must then be there in every row."""
    return metric in ("exact_match", "f1", "numeric", "contains")


def examples_for(
    module: dspy.Module, rows: Sequence[Row], *, metric: str, rename: Mapping[str, str], file: str | Path
) -> tuple[Example, ...]:
    """Rows as examples for a program; a label that ``metric`` compares must then be there in every row.

    Raises:
        BadData: a row cannot be used.
    """
    columns = {*rows[0].fields, *rename}
    answers = [field for field in output_names(module) if field in columns] if _one_answer(metric) else []
    return to_examples(rows, inputs=input_names(module), required_labels=answers, rename=rename, file=file)


def _splits(options: Options, given: Given, module: dspy.Module) -> Splits:
    if given.splits is not None:
        return given.splits if given.cleaner is None else clean_splits(given.cleaner, given.splits)
    files = {"data": options.data, "train": options.train, "validation": options.validation, "test": options.test}
    read = {name: (file, read_rows(file)) for name, file in files.items() if file is not None}
    read |= {name: (name, list(rows)) for name, rows in given.rows.items()}
    parts, notes = dict[str, Any](), list[str]()
    for name, (file, rows) in read.items():
        if given.cleaner is not None:
            rows, report = clean_rows(given.cleaner, rows)
            notes.append(f"{name}: {report.told()}")
        parts[name] = examples_for(module, rows, metric=options.metric, rename=dict(options.fields), file=file)
    if given.examples is not None:
        parts["data"] = given.examples
        if given.cleaner is not None:
            parts["data"], report = clean_examples(given.cleaner, given.examples)
            notes.append(f"data: {report.told()}")
    if not parts:
        raise BadRequest("no data was given; say --data FILE, or --train, --validation and --test")
    splits = assemble(**parts, seed=options.seed)
    return replace(splits, notes=(*notes, *splits.notes))


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
    """

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
                labels=sorted(prepared.splits.train[0].labels),
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
        try:
            try:
                found = run(optimizer.run())
            except KeyboardInterrupt:
                self.cancel()
                raise
            finally:
                self.gateway.land()
            result = with_spend(found, self.spend())
        except (Cancelled, KeyboardInterrupt):
            self._stop(self._stopped_as, "")
            raise
        except Exception as error:
            self._stop("failed", f"{type(error).__name__}: {error}")
            raise
        self._learn(optimizer, result)
        self.notebook.set_status(result.status, result=result.to_json())
        self._bank_seconds()
        return result

    def _learn(self, optimizer: Optimizer, result: OptimizationResult) -> None:
        """Keep what it taught; that this cannot be kept is no reason to lose the result."""
        if self._lessons is None or result.status not in ("improved", "no_proven_gain"):
            return
        try:
            self._lessons.keep(learned.lesson(self, optimizer, result))
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


def new_run(
    options: Options,
    given: Given,
    settings: Settings,
    archive: SqlArchive,
    *,
    identity: str | None = None,
    status: Status = "running",
    fork: Fork | None = None,
    emit: Callable[[Event], None] = lambda event: None,
) -> Run:
    """A new optimization, stored as ``status`` and ready to be executed.

    Args:
        identity: Its id; a new one where it is left out.
        status: How it is stored.
        fork: What it was forked from; it begins with what that one had learned.

    Raises:
        UserError: the request cannot be carried out; nothing was stored then.
    """
    options, cleaner = guarded(options, settings, archive)
    given = replace(given, cleaner=cleaner)
    found = addresses(archive, options.tenant)
    identity = identity or uuid.uuid4().hex[:12]
    # Built once before it is stored, so that a request that cannot work leaves nothing behind.
    prepared, tried = tried_run(options, given, settings, addresses=found, identity=identity)
    lessons = SqlLessons(archive)
    start = (
        learned.start(tried, lessons) if fork is None else Start.from_json(archive.find(fork.of).request.get("start"))
    )
    notebook = archive.start(
        Optimization(
            id=identity,
            status=status,
            created_at=datetime.now(UTC),
            request={
                "options": options.to_json(),
                "identities": identities(prepared),
                "kind": "objects" if given.program is not None else "names",
                "start": start.to_json(),
                **({"fork": fork.to_json()} if fork is not None else {}),
            },
        )
    )
    splits = prepared.splits
    notebook.keep_examples({"train": splits.train, "validation": splits.validation, "test": splits.test})
    return Run(
        prepared,
        notebook,
        optimization_id=identity,
        spent_seconds=0.0,
        emit=emit,
        start=start,
        lessons=lessons,
        heritage=None if fork is None else SqlHeritage(archive, fork),
    )


def tried_run(
    options: Options, given: Given, settings: Settings, *, addresses: Mapping[str, Address], identity: str = "tried"
) -> tuple[Prepared, Run]:
    """An optimization that is built and not stored.

    Raises:
        UserError: the request cannot be carried out.
    """
    prepared = prepare(options, given, settings, addresses=addresses)
    if isinstance(prepared.target.module, RemoteAgent) and prepared.reflection is None:
        raise BadRequest("the texts of a remote agent are rewritten by an LM; name one with --reflection-lm")
    return prepared, Run(prepared, MemoryNotebook(), optimization_id=identity, spent_seconds=0.0)


def resumed_run(
    optimization_id: str,
    given: Given,
    settings: Settings,
    archive: SqlArchive,
    *,
    emit: Callable[[Event], None] = lambda event: None,
) -> Run:
    """An optimization that was begun before, ready to go on where it stopped.

    Raises:
        UnknownName: there is none with this id.
        BadRequest: the program, the model or the data is no longer what it was.
    """
    stored = archive.find(optimization_id)
    for kind, command in (("evaluation", "evaluate"), ("comparison", "compare")):
        if stored.request.get("kind") == kind:
            raise BadRequest(f"{stored.id} holds no optimization, but one {kind}; run `ratchet {command}` again")
    if stored.request.get("kind") == "objects" and given.program is None:
        raise BadRequest(f"{stored.id} was begun from Python, with objects that no name here stands for")
    notebook = archive.open(stored.id, anew=True)
    # One that was begun before there were policies kept everything.
    options = Options.from_json({"pii": KEEP.to_json(), **stored.request["options"]})
    _, cleaner = guarded(options, settings, archive)
    given = replace(given, cleaner=cleaner)
    parts = notebook.examples()
    fork = Fork.from_json(stored.request["fork"]) if "fork" in stored.request else None
    notes = () if fork is None else (f"it was forked from {fork.of}, whose sealed test has the same examples",)
    splits = Splits(train=parts["train"], validation=parts["validation"], test=parts["test"], notes=notes)
    prepared = prepare(options, given, settings, splits=splits, addresses=addresses(archive, options.tenant))
    before, now = stored.request["identities"], identities(prepared)
    for name, value in now.items():
        if before.get(name) != value:
            raise BadRequest(
                f"{stored.id} cannot go on: its {name} was {before.get(name)} and is now {value}; "
                "bring it back, or start a new optimization"
            )
    return Run(
        prepared,
        notebook,
        optimization_id=stored.id,
        spent_seconds=stored.seconds,
        emit=emit,
        start=Start.from_json(stored.request.get("start")),
        lessons=SqlLessons(archive),
        heritage=None if fork is None else SqlHeritage(archive, fork),
    )


def identities(prepared: Prepared) -> dict[str, Any]:
    """Hashes and versions of all that a result depends on."""
    custom = {name: each.identity for name, each in prepared.custom.items()}
    rubric = prepared.options.rubric
    metric = prepared.metric if isinstance(prepared.metric, str) else user_metric(prepared.metric).name
    return {
        "program": program_identity(prepared.target.module, tune_tools=prepared.options.tune_tools),
        "data": dataset_hash(prepared.splits),
        "task_lm": prepared.task.identity if prepared.task else agent_identity(prepared.target.module),
        "reflection_lm": prepared.reflection.identity if prepared.reflection else None,
        "judge_lm": prepared.judge.identity if prepared.judge else None,
        "metric": metric if rubric is None else f"{metric} by rubric {content_hash(rubric)}",
        "versions": {name: importlib.metadata.version(name) for name in ("dspy-ratchet", "dspy", "gepa", "optuna")},
        **({"algorithms": custom} if custom else {}),
        **({"embedder": prepared.embedder} if "surrogate" in prepared.request.algorithms else {}),
    }

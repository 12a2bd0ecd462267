"""One optimization: baseline, pre-flight, search, shortlist, sealed test, decision."""

from __future__ import annotations

import asyncio
import math
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from importlib import import_module
from typing import Any

from ratchet.core.algorithm import Evaluate, Tell, Together
from ratchet.core.errors import BadMetric, BudgetSpent, UserError
from ratchet.core.evaluation import Evaluations
from ratchet.core.lesson import Bought, Progress
from ratchet.core.objectives import weighted_gain
from ratchet.core.problem import Budget, Candidate, Example, Problem, canonical
from ratchet.core.request import OptimizationRequest
from ratchet.core.result import Details, Front, OptimizationResult, Performance, Status, performance
from ratchet.engine.aim import Standing, standings
from ratchet.engine.archive import Event
from ratchet.engine.front import front_of
from ratchet.engine.hygiene import Guard
from ratchet.engine.job import Job
from ratchet.engine.plan import PROBE, Plan, Preflight, look_ahead, make_plan, probe_size
from ratchet.engine.polish import Polish, kept_calls
from ratchet.engine.runner import Runner
from ratchet.engine.verdict import judged, lineage, proven


class Optimizer:
    """Carries out one job. What it has measured so far stands in its attributes, so that a stop can be told of."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.runner = Runner(
            job.program,
            write=job.write,
            ledger=job.ledger,
            notebook=job.notebook,
            on_evaluations=self._seen,
            on_tell=self._told,
            concurrency=job.concurrency,
        )
        self.plan: Plan | None = None
        self.preflight: Preflight | None = None
        self.validation: tuple[Example, ...] = ()
        self.best: tuple[Candidate, float] = (job.seed, -math.inf)
        self.made_by: dict[str, str] = {}
        self.notes = list(job.notes)
        self.spare = 0
        self.guard = Guard(job.train, job.seed)
        self.reached: Candidate | None = None
        self.bought: tuple[Bought, ...] = ()
        self.progress: list[Progress] = []
        self._before = Counter(_gist(event) for _, event in job.notebook.events())

    # --- what is told while it runs --------------------------------------------------------------------------------

    def _emit(self, kind: str, **payload: Any) -> None:
        event = Event(kind=kind, payload={"calls": self.job.ledger.calls, **payload})
        if not self._told_before(event):
            self.job.notebook.note(event)
        self.job.emit(event)

    def _told_before(self, event: Event) -> bool:
        """Whether ``event`` is kept already: an optimization that is resumed goes through its beginning again."""
        before = self._before[_gist(event)]
        self._before[_gist(event)] -= before > 0
        return before > 0

    def _seen(self, candidate: Candidate, evaluations: Evaluations) -> None:
        self._emit("evaluated", candidate=candidate.key, mean=evaluations.mean, n=len(evaluations))
        if self.validation:
            known = self.runner.known(candidate, self.validation)
            if known is not None and known.failed < len(known) and known.mean > self.best[1]:
                self.best = (candidate, known.mean)
                self._emit("best", candidate=candidate.key, mean=known.mean, n=len(known))
            if known is not None and self.job.ledger.stage.startswith("search") and self._reaches(candidate, known):
                self.runner.end_stage()

    def _reaches(self, candidate: Candidate, known: Evaluations) -> bool:
        """Whether ``candidate`` reaches all that was aimed at, on validation; then the search need not go on."""
        if self.reached is None and (found := self._standings(known)) and all(each.reached for each in found):
            self.reached = candidate
            told = "; ".join(map(str, found))
            self._note(f"the search ended: candidate {candidate.key} has what was asked for on validation: {told}")
        return self.reached is not None

    def _standings(self, rows: Evaluations) -> tuple[Standing, ...]:
        request = self.job.request
        return standings(rows, request.objectives, success_at=request.success_at, seed=request.seed)

    def _note(self, text: str) -> None:
        self.notes.append(text)
        self._emit("note", message=text)

    def _told(self, told: Tell) -> None:
        self._note(told.text)
        if "algorithm" in told.data:
            self.progress.append(Progress(**told.data))

    def _begin(self, stage: str, *, allowance: int | None = None) -> None:
        keep: dict[str, Any] = {}
        baseline = self.runner.known(self.job.seed, self.validation)
        if self.plan is not None and baseline is not None and stage != "test":
            runs = 2 * self.plan.test
            keep["keep_calls"] = self.plan.proof_calls
            keep["keep_usd"] = 1.5 * runs * (baseline.cost_usd or 0.0)
            keep["keep_seconds"] = 1.5 * runs * baseline.latency_ms / 1e3 / self.job.concurrency
        self.job.ledger.begin_stage(stage, allowance=allowance, **keep)
        self._emit("stage", stage=stage, allowance=allowance)

    # --- the phases --------------------------------------------------------------------------------------------------

    async def run(self) -> OptimizationResult:
        """From baseline to decision.

        Raises:
            RatchetError: the world failed, the user stopped it, or the request cannot be carried out.
        """
        try:
            baseline, again = await self._baseline()
            preflight = self._look_ahead(baseline, again)
        except BudgetSpent as spent:
            return self._declined(f"the budget ended before the baseline was measured: {spent}")
        if preflight.objections and not self.job.request.force:
            return self._declined("; ".join(preflight.objections) + "; --force goes on all the same")
        finalists = await self._search()
        chosen = await self._polished(await self._shortlist(await self._cleaned(finalists)))
        if chosen.key == self.job.seed.key:
            return self._result("no_proven_gain", "the search found nothing better than the program as it is")
        return await self._prove(chosen)

    async def _baseline(self) -> tuple[Evaluations, Evaluations | None]:
        """The program as it is, on validation; and some rows twice, where the budget carries that."""
        job, constraints = self.job, self.job.request.constraints
        self._begin("baseline")
        first = job.validation[: probe_size(len(job.validation), job.concurrency, constraints.max_calls)]
        probe = await self.runner.evaluate(job.seed, first)
        self.plan = make_plan(
            max_calls=constraints.max_calls,
            spent=round(probe.calls * min(PROBE, len(first))),  # the others are counted as validation
            calls_per_run=probe.calls,
            validation=len(job.validation),
            test=len(job.test),
            concurrency=job.concurrency,
        )
        self.runner.calls_per_run = self.plan.calls_per_run
        self.validation = job.validation[: max(self.plan.validation, len(first))]
        self._emit("plan", **{name: getattr(self.plan, name) for name in self.plan.__dataclass_fields__})
        parts = [Evaluate(job.seed, self.validation)]
        if self.plan.search_runs > 10 * PROBE:
            parts.append(Evaluate(job.seed, self.validation[:PROBE], repeats=2))
        baseline, *again = await self.runner.answer(Together(tuple(parts)))
        refuse_hopeless(baseline, of="validation example")
        return baseline, again[0] if again else None

    def _look_ahead(self, baseline: Evaluations, again: Evaluations | None) -> Preflight:
        assert self.plan is not None
        repeated: list[list[float]] = []
        rows = {(row.example.key, row.repeat): row for row in baseline}
        if again is not None:
            rows |= {(row.example.key, row.repeat): row for row in again}
            scores = again.scores
            repeated = [list(scores[index : index + 2]) for index in range(0, len(scores), 2)]
        self._allow_for_retries()
        self.preflight = look_ahead(
            baseline,
            repeated,
            self.plan,
            # Not what the ledger says: after a crash it knows of calls that are still to come in the replay.
            spent=sum(row.usage.calls for row in rows.values()),
            concurrency=self.job.concurrency,
            min_improvement=self.job.request.constraints.min_improvement_threshold,
        )
        self._emit("preflight", **self.preflight.to_json())
        return self.preflight

    def _allow_for_retries(self) -> None:
        """Plan fewer replies where many requests fail: what retries take must not be missing in the end.

        It is measured once: a resumed optimization goes on with the plan it had.
        """
        assert self.plan is not None
        kept = [event.payload["sends_per_reply"] for _, event in self.job.notebook.events() if event.kind == "retries"]
        sends = kept[0] if kept else self.job.ledger.sends_per_reply
        if self.job.request.constraints.max_calls is None or sends <= 1.0:
            return
        if not kept:
            self._emit("retries", sends_per_reply=sends)
        test, search = max(2, int(self.plan.test / sends)), int(self.plan.search_calls / sends)
        self.plan = replace(self.plan, test=test, search_calls=search)
        self.notes.append(f"a reply took {sends:.2f} calls, so that less is searched and tested than planned")

    async def _search(self) -> list[Candidate]:
        """Each algorithm in turn, under an equal share of what is left, from the best candidate so far."""
        job = self.job
        assert self.plan is not None
        # What the proof computes with takes most of a second to load; the LM is waited for meanwhile.
        loading = asyncio.ensure_future(asyncio.to_thread(import_module, "scipy.special"))
        names = job.request.algorithms
        measured_noise = self.preflight is not None and self.preflight.noise is not None
        repeated = math.ceil(PROBE * self.plan.calls_per_run) if measured_noise else 0
        left = max(0, self.plan.search_calls - repeated)
        one = math.ceil(len(self.validation) * self.plan.calls_per_run)
        capped = job.max_prompt_tokens is not None
        kept = kept_calls(left, one_validation=one, minimise=job.minimise, capped=capped)
        left -= kept
        finalists: list[Candidate] = [job.seed]
        for number, name in enumerate(names):
            start = self._best_of(finalists)
            known = self.runner.known(start, self.validation)
            if known is not None and self._reaches(start, known):
                break
            if self._perfect(start):
                self.notes.append(f"{name} and what follows it was not run: nothing on validation is left to gain")
                break
            allowance, told = left // (len(names) - number), len(self.progress)
            before = self.best[1]
            used = await self._search_with(name, f"search {number + 1}: {name}", start, allowance, finalists)
            left -= used
            if len(self.progress) == told:  # it did not tell by itself, as a portfolio does of its parts
                runs, gain = round(used / self.plan.calls_per_run), max(0.0, self.best[1] - before)
                self.progress.append(Progress(algorithm=name, runs=runs, gain=gain))
        self.spare = max(0, left) + kept
        await loading
        return finalists

    def _best_of(self, finalists: Sequence[Candidate]) -> Candidate:
        """The first of the finalists with the greatest validation mean."""
        means = [self.runner.known(candidate, self.validation) for candidate in finalists]
        return max(zip(finalists, means, strict=True), key=lambda pair: pair[1].mean if pair[1] else -math.inf)[0]

    def _perfect(self, candidate: Candidate) -> bool:
        if any(objective.metric in ("cost", "latency") for objective in self.job.request.weighted):
            return False
        known = self.runner.known(candidate, self.validation)
        return (
            known is not None
            and self.preflight is not None
            and self.preflight.headroom is not None
            and (known.mean >= self.preflight.baseline + self.preflight.headroom)
        )

    async def _search_with(
        self, name: str, stage: str, start: Candidate, allowance: int, finalists: list[Candidate]
    ) -> int:
        """Let ``name`` search from ``start`` and validate what it found; the calls it used."""
        job, plan = self.job, self.plan
        assert plan is not None
        opaque = name in job.algorithms.opaque
        # What is not Ratchet's own does not know that its choice must still be validated.
        foreign = opaque or name in job.algorithms.aside
        reserve = min(allowance, math.ceil(len(self.validation) * plan.calls_per_run)) if foreign else 0
        self._begin(stage, allowance=allowance - reserve)
        problem = Problem(
            seed=start,
            predictors=job.predictors,
            train=job.train,
            validation=self.validation,
            # The seed's validation is paid for already, and algorithms count it.
            budget=Budget(runs=int((allowance - reserve) / plan.calls_per_run) + len(self.validation)),
            description=job.description,
            success_at=job.request.success_at,
            slots=job.concurrency,
            objectives=job.request.weighted,
            lm=job.lm,
            noise=self.preflight.noise if self.preflight else None,
        )
        rng = random.Random(f"{job.request.seed}/{name}")
        if opaque:
            found = await self._opaque(name, problem, rng)
            used = allowance - reserve - max(0, job.ledger.left() or 0)
            self._begin(f"{stage}, validation", allowance=allowance - used)
        else:
            search = job.algorithms.native[name](problem, rng=rng)
            found = await self.runner.drive(search, aside=name in job.algorithms.aside) or []
            if not found and (best := self.runner.best_known(self.validation)):
                found = [best]
            if self.runner.called_off or reserve:  # what of it got through is chance: it must not count from here on
                self._begin(f"{stage}, validation", allowance=(self.runner.left() or 0) + reserve)
        if self.reached is not None and self.reached not in found:
            found = [*found, self.reached]
        for candidate in found:
            self.made_by.setdefault(candidate.key, name)
            if await self._validated(candidate, recorded=opaque):
                finalists.append(candidate)
        return allowance - max(0, (job.ledger if opaque else self.runner).left() or 0)

    async def _opaque(self, name: str, problem: Problem, rng: random.Random) -> Sequence[Candidate]:
        """What an optimizer that owns its loop found, in a thread of its own."""
        loop = asyncio.get_running_loop()

        def tell(candidate: Candidate, mean: float) -> None:
            if mean > self.best[1]:
                self._emit("best", candidate=candidate.key, mean=mean, n=len(problem.validation))

        def on_candidate(candidate: Candidate, mean: float) -> None:
            loop.call_soon_threadsafe(tell, candidate, mean)

        return await asyncio.to_thread(
            self.job.algorithms.opaque[name],
            problem,
            seed=rng.randrange(1, 2**31),
            on_candidate=on_candidate,
        )

    async def _validated(self, candidate: Candidate, *, recorded: bool) -> bool:
        """Evaluate ``candidate`` on the whole validation split, if this stage still can.

        Args:
            recorded: Whether the replies it needs may be in the journal already, so that only trying tells its cost.
        """
        try:
            if recorded:
                await self.runner.evaluate(candidate, self.validation)
            else:
                await self.runner.answer(Evaluate(candidate, self.validation))
        except BudgetSpent:
            self.notes.append(f"candidate {candidate.key} was left out: no budget to validate it in full")
            return False
        return True

    async def _shortlist(self, finalists: Sequence[Candidate]) -> Candidate:
        """The finalist with the greatest utility on validation; the seed stays when nothing beats it."""
        self._begin("shortlist", allowance=0)
        baseline = self.runner.known(self.job.seed, self.validation)
        assert baseline is not None
        chosen, most = self.job.seed, 0.0
        for candidate in finalists:
            known = self.runner.known(candidate, self.validation)
            if known is None:
                continue
            gain = utility(known, baseline, self.job.request)
            self._emit("shortlisted", candidate=candidate.key, mean=known.mean, utility=gain)
            if gain > most:
                chosen, most = candidate, gain
        return chosen

    # --- clean prompts -----------------------------------------------------------------------------------------------

    def _polish(self) -> Polish:
        return Polish(
            runner=self.runner,
            seed=self.job.seed,
            validation=self.validation,
            train=self.job.train,
            note=self._note,
            max_prompt_tokens=self.job.max_prompt_tokens,
        )

    async def _cleaned(self, finalists: Sequence[Candidate]) -> list[Candidate]:
        """Finalists without copied training text, and with prompts that are not too long.

        Where none but the seed is left, the best of what else was validated and is in order.
        """
        polish, guard = self._polish(), self.guard
        if all(polish.is_clean(candidate, guard) for candidate in finalists):
            return list(finalists)
        self._begin("hygiene", allowance=self.spare)
        found = []
        for candidate in finalists:
            for mended in await polish.cleaned([candidate], guard):
                self.made_by.setdefault(mended.key, self.made_by.get(candidate.key, ""))
                found.append(mended)
        self.spare = self.runner.left() or 0
        if all(candidate == self.job.seed for candidate in found) and (other := self._best_in_order(polish)):
            self._note(f"in place of what was refused, candidate {other.key} is the best that was validated")
            makers = {maker for candidate in finalists if (maker := self.made_by.get(candidate.key))}
            self.made_by.setdefault(other.key, makers.pop() if len(makers) == 1 else "")
            found.append(other)
        return found

    def _best_in_order(self, polish: Polish) -> Candidate | None:
        """Of all that was validated and may be chosen as it is, what gains most; None where nothing gains."""
        known = dict(self.runner.all_known(self.validation))
        baseline = known[self.job.seed]
        gains = {candidate: utility(rows, baseline, self.job.request) for candidate, rows in known.items()}
        best_first = sorted((each for each in gains if gains[each] > 0), key=lambda each: -gains[each])
        return next((each for each in best_first if polish.is_clean(each, self.guard)), None)

    async def _polished(self, chosen: Candidate) -> Candidate:
        """``chosen`` without what is of no use; what its edits bought is measured."""
        if chosen == self.job.seed:
            return chosen
        self._begin("polish", allowance=self.spare)
        polish, maker = self._polish(), self.made_by.get(chosen.key)
        if self.job.minimise:
            chosen = await polish.minimised(chosen)
        self.made_by.setdefault(chosen.key, maker or "")
        self.bought = await polish.bought(chosen)
        return chosen

    async def _prove(self, chosen: Candidate) -> OptimizationResult:
        """Open the sealed test, once, for the baseline and the chosen candidate."""
        assert self.plan is not None
        self._begin("test")
        sealed = self.job.test[: self.plan.test]
        try:
            both = Together((Evaluate(self.job.seed, sealed), Evaluate(chosen, sealed)))
            before, after = await self.runner.answer(both)
        except BudgetSpent as spent:
            paid = self._both_known(chosen, sealed)
            if paid is None:
                return self._result("no_proven_gain", f"the sealed test could not be paid for: {spent}", winner=chosen)
            before, after = paid
            self.notes.append(f"the sealed test ended at {len(before)} of {len(sealed)} pairs: {spent}")
        return self._decide(chosen, before, after)

    def _both_known(self, chosen: Candidate, sealed: Sequence[Example]) -> tuple[Evaluations, Evaluations] | None:
        """Baseline and chosen candidate on the sealed examples that were run for both; None for fewer than two."""
        pairs = [(self.runner.stored(self.job.seed, each), self.runner.stored(chosen, each)) for each in sealed]
        both = [(before, after) for before, after in pairs if before and after]
        if len(both) < 2:
            return None
        return Evaluations(tuple(before for before, _ in both)), Evaluations(tuple(after for _, after in both))

    # --- the outcome -------------------------------------------------------------------------------------------------

    def _decide(self, chosen: Candidate, before: Evaluations, after: Evaluations) -> OptimizationResult:
        self.notes += [f"on the sealed test, {each}" for each in self._standings(after)]
        verdict = judged(before, after, self.job.request)
        result = self._result(verdict.status, verdict.reason, winner=chosen)
        return proven(result, verdict, before, after, self.job.request)

    def _declined(self, reason: str) -> OptimizationResult:
        return self._result("declined", f"declined: {reason}")

    def _result(self, status: Status, reason: str, *, winner: Candidate | None = None) -> OptimizationResult:
        """A result with what is known without the sealed test."""
        known = self.runner.known(self.job.seed, self.validation) if self.validation else None
        measured = (
            performance(known, success_at=self.job.request.success_at, split="validation") if known else Performance()
        )
        stored = {candidate.key: candidate for candidate, _ in self.job.notebook.candidates()}
        return OptimizationResult(
            optimization_id=self.job.id,
            status=status,
            reason=reason,
            baseline_performance=measured,
            baseline=self.job.seed,
            winner=winner,
            front=self._front(winner or self.job.seed),
            optimization_details=Details(
                algorithm_used=self.made_by.get(winner.key) if winner else None,
                iterations=len(stored),
                key_improvements=tuple(str(each) for each in self.bought) if winner else (),
                lineage=lineage(winner, stored, validation=self._validation_mean) if winner else (),
                preflight=self.preflight.to_json() if self.preflight else {},
                notes=tuple(self.notes),
            ),
        )

    def _validation_mean(self, candidate: Candidate) -> float | None:
        known = self.runner.known(candidate, self.validation)
        return known.mean if known else None

    def _front(self, chosen: Candidate) -> Front:
        """The front over all that was validated in full and is clean; of equals the chosen one, or the baseline."""
        polish, known = self._polish(), dict(self.runner.all_known(self.validation))
        while True:
            preferred = dict.fromkeys(each for each in (chosen, self.job.seed, *known) if each in known)
            front = front_of(
                {each: known[each] for each in preferred}, baseline=self.job.seed, request=self.job.request
            )
            shown = {point.candidate for point in front.points}
            refused = [each for each in known if each.key in shown and not polish.is_clean(each, self.guard)]
            if not refused:
                return front
            for each in refused:
                del known[each]


def refuse_hopeless(rows: Evaluations, *, of: str) -> None:
    """Refuse to go on when no run could be scored because of the metric or the program.

    Args:
        of: What the rows are, one of them, as it is told.

    Raises:
        BadMetric: the metric is why.
        UserError: the program is why, or what it asks of its LM.
    """
    failures = [row.failure for row in rows if row.failure is not None]
    if len(failures) < len(rows):
        return
    if by_metric := [failure for failure in failures if failure.kind == "metric"]:
        raise BadMetric(f"the metric gave no score on any {of}; at first: {by_metric[0].message}")
    if {failure.kind for failure in failures} <= {"raised", "refused"}:
        raise UserError(f"the program failed on every {of}; the first time: {failures[0].message}")


def _gist(event: Event) -> str:
    """What ``event`` tells, without the calls that were counted then: a replay counts those of the future too."""
    return canonical([event.kind, {name: value for name, value in event.payload.items() if name != "calls"}])


def utility(evaluations: Evaluations, baseline: Evaluations, request: OptimizationRequest) -> float:
    """The weighted gain over the baseline; 0 is the baseline itself, higher is better.

    Quality and success count their difference, cost and latency the share that is saved. An objective that was not
    measured (an unknown price) counts nothing.
    """
    return weighted_gain(evaluations, baseline, request.objectives, success_at=request.success_at)

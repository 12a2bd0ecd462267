"""The contract as JSON: what Ratchet tells an algorithm behind a URL, and what it may ask for.

What goes out is built here from the core's words; what comes in is checked by Pydantic, field by field, because it was
made elsewhere. ``docs/reference/algorithm-protocol.md`` is the same for a reader.

Training examples are sent in full. A validation example is named by its key and the names of its fields, and so are its
evaluations: key, score, kind of failure, usage. The sealed test is nowhere in it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

from ratchet.core.algorithm import Evaluate, Generate, Request, Start, Tell, Together, Wait
from ratchet.core.evaluation import Evaluation, Evaluations
from ratchet.core.problem import Candidate, PredictorState, Problem

PROTOCOL = "ratchet-algorithm/1"

# --- what is told -----------------------------------------------------------------------------------------------------


def problem_json(problem: Problem) -> dict[str, Any]:
    """The problem as an algorithm elsewhere gets to see it. The program's source text is not sent."""
    return {
        "seed": candidate_json(problem.seed),
        "predictors": [
            {
                "name": spec.name,
                "inputs": [_field_json(asdict(each)) for each in spec.inputs],
                "outputs": [_field_json(asdict(each)) for each in spec.outputs],
                "takes_demos": spec.takes_demos,
                "text": spec.text,
            }
            for spec in problem.predictors
        ],
        "train": [
            {"key": each.key, "inputs": dict(each.inputs), "labels": dict(each.labels)} for each in problem.train
        ],
        "validation": [{"key": each.key, "fields": list(each.fields)} for each in problem.validation],
        "budget": {"runs": problem.budget.runs},
        "objectives": [{"metric": each.metric, "weight": each.weight} for each in problem.objectives],
        "success_at": problem.success_at,
        "slots": problem.slots,
    }


def _field_json(field: dict[str, Any]) -> dict[str, Any]:
    return {**field, "choices": list(field["choices"])}


def candidate_json(candidate: Candidate) -> dict[str, Any]:
    """A candidate with the key that names it from now on."""
    return {"key": candidate.key, "predictors": candidate.state()}


class Words:
    """Tells replies: what was asked for under a ticket is remembered until its reply is told."""

    def __init__(self, problem: Problem) -> None:
        self._shown = frozenset(problem.train)
        self._started: dict[int, Evaluate | Generate | Together] = {}

    def reply(self, request: Request, reply: Any) -> Any:
        """The reply to ``request`` as JSON data."""
        match request:
            case Evaluate():
                return self._evaluations(reply)
            case Generate():
                return list(reply)
            case Together(requests):
                return [self.reply(part, each) for part, each in zip(requests, reply, strict=True)]
            case Start(work):
                self._started[reply] = work
                return reply
            case Tell():
                return None
            case Wait():
                ticket, answer = reply
                return {"ticket": ticket, "reply": self.reply(self._started.pop(ticket), answer)}

    def _evaluations(self, rows: Evaluations) -> dict[str, Any]:
        return {"candidate": rows[0].candidate, "mean": rows.mean, "rows": [self._row(row) for row in rows]}

    def _row(self, row: Evaluation) -> dict[str, Any]:
        shown, failure = row.example in self._shown, row.failure
        told = {
            "example": row.example.key,
            "repeat": row.repeat,
            "score": row.score,
            "failure": failure and {"kind": failure.kind, "message": failure.message if shown else ""},
            "usage": asdict(row.usage),
        }
        if shown:
            told |= {
                "feedback": row.feedback,
                "prediction": None if row.prediction is None else dict(row.prediction),
                "trace": [asdict(step) for step in row.trace],
            }
        return told


# --- what may be asked for --------------------------------------------------------------------------------------------


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class StateMessage(_Part):
    """The tunable state of one predictor."""

    instructions: str
    demos: list[dict[str, Any]] = []


class CandidateMessage(_Part):
    """A candidate. Without parents it is a child of the seed; a key, if there is one, must be that of its content."""

    key: str | None = None
    predictors: dict[str, StateMessage]
    parents: list[str] = []
    origin: str = ""


class EvaluateMessage(_Part):
    """``Evaluate``; examples by their keys."""

    candidate: CandidateMessage
    examples: Annotated[list[str], Field(min_length=1)]
    repeats: Annotated[int, Field(ge=1, le=100)] = 1


class GenerateMessage(_Part):
    """``Generate``."""

    prompt: Annotated[str, Field(min_length=1)]
    temperature: Annotated[float, Field(ge=0, le=2)] = 1.0
    n: Annotated[int, Field(ge=1, le=100)] = 1


class _OneOf(_Part):
    """Exactly one of its fields is given."""

    @model_validator(mode="after")
    def _exactly_one(self) -> _OneOf:
        if len(self.model_fields_set) != 1:
            given = ", ".join(sorted(self.model_fields_set)) or "none of them"
            raise ValueError(f"give exactly one of {', '.join(type(self).model_fields)}, not {given}")
        return self


class PartMessage(_OneOf):
    """What may stand in a ``together``."""

    evaluate: EvaluateMessage | None = None
    generate: GenerateMessage | None = None


class WorkMessage(PartMessage):
    """What may stand in a ``start``."""

    together: Annotated[list[PartMessage], Field(min_length=1)] | None = None


class RequestMessage(WorkMessage):
    """Any request."""

    start: WorkMessage | None = None
    wait: list[int] | None = None
    tell: Annotated[str, Field(min_length=1, max_length=1000)] | None = None


class Answer(BaseModel):
    """What an algorithm answers to one message: one of a request, its finalists, or an error.

    Attributes:
        session, turn: As they were in the message.
        state: Anything; it is sent back with the next message, so that a server need not remember.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    session: str
    turn: int
    state: Any = None
    request: RequestMessage | None = None
    finalists: Annotated[list[CandidateMessage], Field(min_length=1)] | None = None
    error: str | None = None

    @model_validator(mode="after")
    def _exactly_one(self) -> Answer:
        if sum(each is not None for each in (self.request, self.finalists, self.error)) != 1:
            raise ValueError("give exactly one of request, finalists and error")
        return self


class Reader:
    """Turns what an algorithm asks for into the core's words.

    Raises:
        ValueError: by ``read``, when a name in it stands for nothing; the message begins with the field.
    """

    def __init__(self, problem: Problem) -> None:
        self._seed = problem.seed
        self._examples = {each.key: each for each in (*problem.train, *problem.validation)}

    def read(self, answer: Answer) -> Request | list[Candidate]:
        """The request in ``answer``, or the finalists."""
        if answer.finalists is not None:
            return [self._candidate(each, f"finalists.{index}") for index, each in enumerate(answer.finalists)]
        if answer.request is None:
            raise ValueError("request is null; expected a request or finalists")
        return self._request(answer.request)

    def _request(self, message: RequestMessage) -> Request:
        if message.tell is not None:
            return Tell(message.tell)
        if message.wait is not None:
            return Wait(tuple(message.wait))
        if message.start is not None:
            return Start(self._work(message.start, "request.start"))
        return self._work(message, "request")

    def _work(self, message: WorkMessage, where: str) -> Evaluate | Generate | Together:
        if message.together is not None:
            parts = [self._part(each, f"{where}.together.{n}") for n, each in enumerate(message.together)]
            return Together(tuple(parts))
        return self._part(message, where)

    def _part(self, message: PartMessage, where: str) -> Evaluate | Generate:
        if message.generate is not None:
            asked = message.generate
            return Generate(asked.prompt, asked.temperature, asked.n)
        if message.evaluate is None:
            raise ValueError(f"{where} is null; expected a request")
        where = f"{where}.evaluate"
        for index, key in enumerate(message.evaluate.examples):
            if key not in self._examples:
                raise ValueError(f"{where}.examples.{index} is {key!r}, which is no key of train or validation")
        return Evaluate(
            self._candidate(message.evaluate.candidate, f"{where}.candidate"),
            tuple(self._examples[key] for key in message.evaluate.examples),
            message.evaluate.repeats,
        )

    def _candidate(self, message: CandidateMessage, where: str) -> Candidate:
        names = list(self._seed.predictors)
        if sorted(message.predictors) != sorted(names):
            raise ValueError(f"{where}.predictors has {sorted(message.predictors)}; expected {sorted(names)}")
        states: Mapping[str, PredictorState] = {
            name: PredictorState(
                instructions=message.predictors[name].instructions,
                demos=tuple(message.predictors[name].demos),
            )
            for name in names
        }
        candidate = Candidate(
            predictors=states,
            parents=tuple(message.parents) or (self._seed.key,),
            origin=message.origin or "made by the algorithm",
        )
        if message.key not in (None, candidate.key):
            raise ValueError(f"{where}.key is {message.key!r}, which names another content; leave it out")
        return candidate

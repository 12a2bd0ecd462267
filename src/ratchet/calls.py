"""What a client says to the service and how it reads the answers: all of it but the waiting.

``ratchet.client`` sends these calls, once for code that waits and once for code on an event loop.
"""

from __future__ import annotations

import json
import uuid
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar, cast
from urllib.parse import quote

import httpx

from ratchet.core.errors import (
    BadRequest,
    Conflict,
    Denied,
    Missing,
    RatchetError,
    Stale,
    StorageUnavailable,
    TooLarge,
    TooMany,
)
from ratchet.core.patience import retry_after

PREFIX = "/api/v1"
RETRIES = (0.1, 0.3, 1.0, 3.0)
"""Seconds before each new try."""
LONGEST_WAIT = 30.0
"""Seconds that a server may ask to be left alone before a new try; when it asks for more, there is none."""
NEWS_SECONDS = 30.0
"""The server says every few seconds that nothing is new; a stream that is silent for so long is begun anew."""

KINDS: Mapping[str, str] = {
    ".jsonl": "application/x-ndjson",
    ".ndjson": "application/x-ndjson",
    ".json": "application/json",
    ".csv": "text/csv",
    ".tsv": "text/tab-separated-values",
    ".parquet": "application/vnd.apache.parquet",
}
"""The kinds of data that are taken, by how a file ends."""

ERRORS: Mapping[int, type[RatchetError]] = {
    401: Denied,
    403: Denied,
    404: Missing,
    409: Conflict,
    412: Stale,
    413: TooLarge,
    429: TooMany,
    502: StorageUnavailable,
    503: StorageUnavailable,
    504: StorageUnavailable,
}

Json = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamedEvent:
    """An event of an optimization; numbered from 1 without a gap."""

    sequence: int
    at: str
    kind: str
    payload: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One request.

    Attributes:
        content: The body; a path is a file that is read while it is sent.
        repeatable: Whether it does once what it does, however often it is sent. What is not is sent again only when
            the first one cannot have been carried out.
    """

    method: str
    path: str
    params: Mapping[str, Any] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    content: bytes | Path | None = None
    repeatable: bool = True


def address(*parts: str) -> str:
    """The path of a thing; its parts may be any text.

    >>> address("datasets", "a/b")
    '/api/v1/datasets/a%2Fb'
    """
    return "/".join((PREFIX, *(quote(part, safe="@") for part in parts)))


def call(
    method: str,
    *parts: str,
    body: Mapping[str, Any] | None = None,
    headers: Mapping[str, str] | None = None,
    repeatable: bool = True,
    **params: Any,
) -> Call:
    """A request with JSON or nothing as its body; parameters that are None are left out.

    >>> call("GET", "optimizations", status="failed", limit=None).params
    {'status': 'failed'}
    """
    content = None if body is None else json.dumps(body, ensure_ascii=False).encode()
    kind = {} if content is None else {"Content-Type": "application/json"}
    return Call(
        method=method,
        path=address(*parts),
        params={name: value for name, value in params.items() if value is not None},
        headers={**kind, **(headers or {})},
        content=content,
        repeatable=repeatable,
    )


def upload(name: str, file: str | Path, privacy: Mapping[str, Any] | None = None) -> Call:
    """A data set to keep.

    Raises:
        BadRequest: files of this kind are not taken, or there is none.
    """
    path = Path(file)
    if path.suffix.lower() not in KINDS:
        raise BadRequest(f"{path} is of a kind that is not taken; give one of {', '.join(KINDS)}")
    if not path.is_file():
        raise BadRequest(f"{path} is not there, or is no file")
    headers = {"Content-Type": KINDS[path.suffix.lower()]}
    if privacy is not None:
        headers["Ratchet-Privacy"] = json.dumps(privacy)
    return Call(method="POST", path=address("datasets"), params={"name": name}, headers=headers, content=path)


def _expecting(tag: str | None) -> dict[str, str]:
    return {} if tag is None else {"If-Match": tag}


# --- answers ---------------------------------------------------------------------------------------------------------


def checked(response: httpx.Response) -> httpx.Response:
    """The answer, when it is no refusal.

    Raises:
        RatchetError: the server refused; its own words say why. Its values hold the HTTP ``status``, and ``field``,
            ``value`` and ``remedy`` where the server named them.
    """
    if response.is_success:
        return response
    try:
        problem = response.json()
        message, found = str(problem["detail"]), problem.get("errors") or [{}]
        first = {name: found[0].get(name) for name in ("field", "value", "remedy") if name in found[0]}
    except (ValueError, KeyError, TypeError, AttributeError):
        message, first = f"the server answered {response.status_code}", {}
    if response.status_code == 404 and message == "Not Found":  # no route, rather than nothing under it
        message = f"the server knows no {response.request.url.path}; it may be older than this client"
    kind = ERRORS.get(response.status_code, BadRequest if response.status_code < 500 else RatchetError)
    raise kind(message, status=response.status_code, **first)


def read_json(response: httpx.Response) -> Json:
    """The answer as JSON data; nothing for one without a body, and one page for a list."""
    data = response.json() if checked(response).content else {}
    return {"items": data, "next": None} if isinstance(data, list) else cast(Json, data)


def unreachable(url: str, error: httpx.TransportError) -> StorageUnavailable:
    """That nobody answers at ``url``."""
    return StorageUnavailable(f"{url} cannot be reached: {type(error).__name__} {error}")


class Patience:
    """Whether a request is tried again, and after how long.

    Args:
        seconds: Waited before each new try.
    """

    def __init__(self, seconds: Sequence[float]) -> None:
        self._seconds = seconds
        self._left: Iterator[float] = iter(seconds)

    def renew(self) -> None:
        """Begin to count anew: something was heard."""
        self._left = iter(self._seconds)

    def after_answer(self, response: httpx.Response, call: Call) -> float | None:
        """Seconds to wait; None when the answer stands."""
        refused = response.status_code in (429, 503)  # nothing was done then
        if not refused and not (call.repeatable and response.status_code in (502, 504)):
            return None
        seconds = next(self._left, None)
        asked = retry_after(response.headers.get("Retry-After"))
        if seconds is None or asked is None:
            return seconds
        return None if asked > LONGEST_WAIT else max(seconds, asked)

    def after_error(self, error: httpx.TransportError, call: Call) -> float | None:
        """Seconds to wait; None to give up."""
        sent = not isinstance(error, httpx.ConnectError | httpx.ConnectTimeout | httpx.PoolTimeout)
        return None if sent and not call.repeatable else next(self._left, None)

    def after_silence(self) -> float:
        """Seconds to wait after a stream that ended early, as it does when the server stops."""
        return next(self._left, self._seconds[-1] if self._seconds else 0.0)


class Listening:
    """Events out of the lines of event streams, and whether there is more to come.

    Args:
        identity: The optimization.
        after: The number of the last event that is known.
        patience: Counts what went wrong since something was heard.
    """

    def __init__(self, identity: str, after: int, patience: Patience) -> None:
        self._identity = identity
        self._after = after
        self._ended = False
        self._heard = False
        self.patience = patience

    def stream(self) -> Call:
        """The stream of what is not known yet."""
        self._heard = False
        return call("GET", "optimizations", self._identity, "events", after=self._after)

    def take(self, line: str) -> StreamedEvent | None:
        """The event that ``line`` tells, if it tells one."""
        self.patience.renew()
        if not line.startswith("data: "):
            return None
        event = StreamedEvent(**json.loads(line[6:]))
        self._after, self._ended, self._heard = event.sequence, event.kind == "ended", True
        return event

    def is_over(self, job: Mapping[str, Any]) -> bool:
        """Whether a stream that ended was the last one: ``job`` is at rest, and all was told."""
        return (self._ended or not self._heard) and job["status"] not in ("queued", "running", "paused")


# --- what can be asked for -------------------------------------------------------------------------------------------

Answer = TypeVar("Answer", covariant=True)
Content = TypeVar("Content", covariant=True)
Items = TypeVar("Items", covariant=True)


class Service(ABC, Generic[Answer, Content, Items]):
    """What can be asked of the service; a client says how it is sent.

    ``Answer`` is JSON data, ``Content`` bytes and ``Items`` an iterator over JSON data; or what is awaited for them.
    """

    @abstractmethod
    def ask(self, call: Call) -> Answer:
        """The answer to a request that has no method of its own here; see ``ratchet.calls.call``."""

    @abstractmethod
    def _content(self, call: Call) -> Content:
        """The body of an answer as it is."""

    @abstractmethod
    def _items(self, call: Call) -> Items:
        """The items of all pages."""

    # --- optimizations ---

    def optimize(self, *, idempotency_key: str | None = None, **request: Any) -> Answer:
        """A new optimization; ``request`` has the fields of ``POST /api/v1/optimize``."""
        body = {name: value for name, value in request.items() if value is not None}
        return self.ask(
            call("POST", "optimize", body=body, headers={"Idempotency-Key": idempotency_key or uuid.uuid4().hex})
        )

    def evaluate(self, *, idempotency_key: str | None = None, **request: Any) -> Answer:
        """A program to be run on a data set; ``request`` has the fields of ``POST /api/v1/evaluations``."""
        body = {name: value for name, value in request.items() if value is not None}
        headers = {"Idempotency-Key": idempotency_key or uuid.uuid4().hex}
        return self.ask(call("POST", "evaluations", body=body, headers=headers))

    def optimizations(self, *, status: str | None = None) -> Items:
        """All optimizations and evaluations, the newest first."""
        return self._items(call("GET", "optimizations", status=status))

    def optimization(self, identity: str) -> Answer:
        """One optimization, with its result once there is one."""
        return self.ask(call("GET", "optimizations", identity))

    def status(self, identity: str) -> Answer:
        """How it is getting on."""
        return self.ask(call("GET", "optimizations", identity, "status"))

    def pause(self, identity: str) -> Answer:
        """Stop it for now, soon."""
        return self.ask(call("POST", "optimizations", identity, "pause"))

    def resume(self, identity: str) -> Answer:
        """Have it go on."""
        return self.ask(call("POST", "optimizations", identity, "resume", repeatable=False))

    def cancel(self, identity: str) -> Answer:
        """Stop it, soon."""
        return self.ask(call("POST", "optimizations", identity, "cancel"))

    def fork(self, identity: str, *, idempotency_key: str | None = None, **changes: Any) -> Answer:
        """Another one with other settings; ``changes`` has the fields of ``POST .../fork``."""
        headers = {"Idempotency-Key": idempotency_key or uuid.uuid4().hex}
        return self.ask(call("POST", "optimizations", identity, "fork", body=changes, headers=headers))

    def candidates(self, identity: str) -> Items:
        """Its candidates, in the order they were made."""
        return self._items(call("GET", "optimizations", identity, "candidates"))

    def evaluations(self, identity: str) -> Items:
        """Its evaluations, in the order they were made."""
        return self._items(call("GET", "optimizations", identity, "evaluations"))

    def certificate(self, identity: str) -> Answer:
        """Its signed certificate."""
        return self.ask(call("GET", "optimizations", identity, "certificate"))

    def program(self, identity: str) -> Answer:
        """The program to use from now on, as ``dspy.Module.load_state`` takes it."""
        return self.ask(call("GET", "optimizations", identity, "program"))

    def report(self, identity: str) -> Content:
        """Its report, an HTML page."""
        return self.file(identity, "report")

    def file(self, identity: str, name: Literal["certificate", "program", "report", "rows"]) -> Content:
        """One of its files, byte for byte as it was signed."""
        return self._content(call("GET", "optimizations", identity, name))

    def erase(self, identity: str) -> Answer:
        """Erase an optimization for good; the audit entry stays."""
        return self.ask(call("DELETE", "optimizations", identity, repeatable=False))

    # --- data sets and targets ---

    def upload(self, name: str, file: str | Path, *, privacy: Mapping[str, Any] | None = None) -> Answer:
        """The data set that ``file`` became.

        Args:
            privacy: What is done with personal data, such as ``{"default": "pseudonymise", "names": ["Jane Roe"]}``.
        """
        return self.ask(upload(name, file, privacy))

    def datasets(self) -> Items:
        """All data sets in all versions, the newest first."""
        return self._items(call("GET", "datasets"))

    def dataset(self, reference: str) -> Answer:
        """One data set, by id, NAME (its newest version) or NAME@VERSION."""
        return self.ask(call("GET", "datasets", reference))

    def keep_target(self, name: str, **spec: Any) -> Answer:
        """The target kept as ``name``; ``spec`` has ``signature``, ``program`` or ``import_path``."""
        return self.ask(call("POST", "targets", body={"name": name, **spec}))

    def targets(self) -> Items:
        """All targets in all versions, the newest first."""
        return self._items(call("GET", "targets"))

    def target(self, reference: str) -> Answer:
        """One target, by id, NAME (its newest version) or NAME@VERSION."""
        return self.ask(call("GET", "targets", reference))

    def erase_dataset(self, reference: str, *, with_optimizations: bool | None = None) -> Answer:
        """Erase a data set for good, and with it the optimizations that hold its rows."""
        said = None if with_optimizations is None else str(with_optimizations).lower()
        return self.ask(call("DELETE", "datasets", reference, repeatable=False, with_optimizations=said))

    def erase_target(self, reference: str) -> Answer:
        """Erase a target for good."""
        return self.ask(call("DELETE", "targets", reference, repeatable=False))

    # --- cycles and schedules ---

    def start_cycle(self, *, idempotency_key: str | None = None, **cycle: Any) -> Answer:
        """Many optimizations in one request; ``cycle`` has the fields of ``POST /api/v1/cycles``."""
        headers = {"Idempotency-Key": idempotency_key or uuid.uuid4().hex}
        return self.ask(call("POST", "cycles", body=cycle, headers=headers))

    def cycles(self) -> Items:
        """All cycles, the newest first."""
        return self._items(call("GET", "cycles"))

    def cycle(self, identity: str) -> Answer:
        """One cycle, with its optimizations."""
        return self.ask(call("GET", "cycles", identity))

    def cancel_cycle(self, identity: str) -> Answer:
        """Stop all that is left of a cycle, soon."""
        return self.ask(call("POST", "cycles", identity, "cancel"))

    def add_schedule(self, **schedule: Any) -> Answer:
        """A cycle that comes back by the clock; ``schedule`` has the fields of ``POST /api/v1/schedules``."""
        return self.ask(call("POST", "schedules", body=schedule, repeatable=False))

    def schedules(self) -> Items:
        """All schedules, the newest first."""
        return self._items(call("GET", "schedules"))

    def schedule(self, identity: str) -> Answer:
        """One schedule."""
        return self.ask(call("GET", "schedules", identity))

    def pause_schedule(self, identity: str) -> Answer:
        """Have a schedule begin nothing for now."""
        return self.ask(call("POST", "schedules", identity, "pause"))

    def resume_schedule(self, identity: str) -> Answer:
        """Have a schedule go on."""
        return self.ask(call("POST", "schedules", identity, "resume"))

    def remove_schedule(self, identity: str) -> Answer:
        """Take a schedule away; what it began goes on."""
        return self.ask(call("DELETE", "schedules", identity, repeatable=False))

    # --- webhooks ---

    def add_webhook(self, url: str, *, events: Sequence[str] = ("ratchet.*",)) -> Answer:
        """A webhook, with the secret that signs what it gets: it is told only now."""
        return self.ask(call("POST", "webhooks", body={"url": url, "events": list(events)}, repeatable=False))

    def webhooks(self) -> Items:
        """All webhooks."""
        return self._items(call("GET", "webhooks"))

    def webhook(self, identity: str) -> Answer:
        """One webhook."""
        return self.ask(call("GET", "webhooks", identity))

    def remove_webhook(self, identity: str) -> Answer:
        """Send nothing more to it."""
        return self.ask(call("DELETE", "webhooks", identity, repeatable=False))

    def pause_webhook(self, identity: str) -> Answer:
        """Keep its events for later."""
        return self.ask(call("POST", "webhooks", identity, "pause"))

    def resume_webhook(self, identity: str) -> Answer:
        """Send it what it has not got."""
        return self.ask(call("POST", "webhooks", identity, "resume"))

    def ping_webhook(self, identity: str) -> Answer:
        """What came of an event that is sent now to try it."""
        return self.ask(call("POST", "webhooks", identity, "ping"))

    def dead_letters(self, webhook: str) -> Items:
        """The events that a webhook never took."""
        return self._items(call("GET", "webhooks", webhook, "dead"))

    def redeliver(self, webhook: str, *, event: str | None = None) -> Answer:
        """Try dead letters again: one of them, or all."""
        return self.ask(call("POST", "webhooks", webhook, "redeliver", body={} if event is None else {"event": event}))

    # --- versions ---

    def versions(self, *, target: str | None = None) -> Items:
        """Versions of a target, or of all."""
        return self._items(call("GET", "versions", target=target))

    def version(self, identity: str) -> Answer:
        """One version."""
        return self.ask(call("GET", "versions", identity))

    def version_program(self, identity: str) -> Answer:
        """The program that a version is."""
        return self.ask(call("GET", "versions", identity, "program"))

    def promote(self, version: str, *, if_match: str | None = None) -> Answer:
        """The version, now the champion of its target; ``if_match`` is the ETag it must still have."""
        return self.ask(call("POST", "versions", version, "promote", headers=_expecting(if_match)))

    def rollback(self, version: str, *, if_match: str | None = None) -> Answer:
        """The target's champion, after this version was taken back."""
        headers = _expecting(if_match)
        return self.ask(call("POST", "versions", version, "rollback", headers=headers, repeatable=False))

    # --- algorithms ---

    def algorithms(self) -> Items:
        """The names that a request takes."""
        return self._items(call("GET", "algorithms"))

    def registered_algorithms(self) -> Items:
        """The algorithms that operators registered, by name, with those that were withdrawn."""
        return self._items(call("GET", "algorithms", "custom"))

    def register_algorithm(self, name: str, url: str, *, secret_env: str | None = None) -> Answer:
        """The algorithm behind ``url``, now called ``name``, with the promises it keeps."""
        body = {"name": name, "url": url, **({} if secret_env is None else {"secret_env": secret_env})}
        return self.ask(call("POST", "algorithms", "custom", body=body))

    def withdraw_algorithm(self, name: str) -> Answer:
        """A registered algorithm that no new optimization can name; those that were begun with it go on."""
        return self.ask(call("DELETE", "algorithms", "custom", name))

    # --- lessons ---

    def lessons(self) -> Items:
        """What optimizations taught, the newest first."""
        return self._items(call("GET", "lessons"))

    def lesson(self, identity: str) -> Answer:
        """What one optimization taught."""
        return self.ask(call("GET", "lessons", identity))

    def forget_lesson(self, identity: str) -> Answer:
        """Forget a lesson for good; the optimization that taught it stays."""
        return self.ask(call("DELETE", "lessons", identity, repeatable=False))

    # --- experiments and figures ---

    def experiments(self) -> Items:
        """All experiments, the newest first."""
        return self._items(call("GET", "experiments"))

    def experiment(self, identity: str) -> Answer:
        """One experiment."""
        return self.ask(call("GET", "experiments", identity))

    def plan_experiment(self, **experiment: Any) -> Answer:
        """A new experiment; ``experiment`` has the fields of ``POST /api/v1/experiments``."""
        return self.ask(call("POST", "experiments", body=experiment, repeatable=False))

    def performance(
        self,
        *,
        since: str | None = None,
        until: str | None = None,
        target: str | None = None,
        algorithm: str | None = None,
        window: Literal["all", "month", "day"] = "all",
    ) -> Answer:
        """How optimizations went: gains, spend, latency; times such as 2026-01-31T12:00:00Z."""
        given: dict[str, Any] = {"since": since, "until": until, "target": target, "algorithm": algorithm}
        return self.ask(call("GET", "analytics", "performance", window=window, **given))

    # --- the house ---

    def create_key(
        self,
        name: str,
        *,
        role: str = "developer",
        days: float | None = None,
        requests_per_minute: int | None = None,
    ) -> Answer:
        """A key for the own tenant, with its text: it is told only now."""
        given = {"name": name, "role": role, "days": days, "requests_per_minute": requests_per_minute}
        body = {field: value for field, value in given.items() if value is not None}
        return self.ask(call("POST", "keys", body=body, repeatable=False))

    def keys(self) -> Items:
        """The keys of the own tenant, the oldest first; not their texts, which nobody has."""
        return self._items(call("GET", "keys"))

    def revoke_key(self, identity: str) -> Answer:
        """The key, taken back at once and for good."""
        return self.ask(call("DELETE", "keys", identity))

    def audit(self) -> Items:
        """The audit trail, the newest entry first."""
        return self._items(call("GET", "audit"))

    def verify_audit(self, *, expected: str | None = None) -> Answer:
        """Whether the whole trail holds; ``expected`` is a hash that must be there."""
        return self.ask(call("GET", "audit", "verification", expected=expected))

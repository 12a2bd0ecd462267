"""The service as tools for agents, over the Model Context Protocol.

Every tool asks the service through ``ratchet.AsyncClient`` with the caller's own key, so that roles, tenants and the
audit trail hold for agents as they do for people.
"""

from __future__ import annotations

import inspect
import json
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from importlib.metadata import version
from typing import Annotated, Any, Literal

import anyio
import httpx
from mcp.server.mcpserver import Context, MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from mcp_types import ToolAnnotations
from pydantic import BaseModel, Field

from ratchet.calls import KINDS, Call, Json, address
from ratchet.client import AsyncClient
from ratchet.core.errors import Denied, Missing, RatchetError, StorageUnavailable, TooMany
from ratchet.core.result import ENDED

LONGEST_WAIT_SECONDS = 60.0
"""A tool that waits answers after this at the latest; agents give up on tools that stay silent."""
LOOK_SECONDS = 0.5
STOPPED = ("failed", "cancelled", "paused")
AT_REST = (*ENDED, *STOPPED)

INSTRUCTIONS = """Ratchet makes DSPy programs better and proves it on a sealed test.
Call `optimize` with a target, examples and a limit; then `status` with wait_seconds until `done`; then `result`.
Only the status "improved" claims a gain; "no_proven_gain" and "declined" are honest answers, not errors.
`promote` makes a proven version the champion of its target. {whose}"""

Id = Annotated[str, Field(description="The id that `optimize` or `list` gave.", examples=["c0ffee123456"])]


# --- what the tools answer -------------------------------------------------------------------------------------------


class Begun(BaseModel):
    """An optimization that was begun."""

    id: str
    status: str
    target: str
    data: dict[str, str]
    next: Annotated[str, Field(description="What to do now.")]


class Progress(BaseModel):
    """How an optimization is getting on; null where it is not known."""

    id: str
    status: str
    done: Annotated[bool, Field(description="Whether it has come to rest.")]
    phase: str | None
    progress: Annotated[float, Field(description="Share of its budget that is used, from 0 to 1.")]
    best_so_far: Annotated[dict[str, Any] | None, Field(description="On validation; only the sealed test proves.")]
    baseline: dict[str, Any] | None
    spend: dict[str, Any]
    forecast: dict[str, Any] | None
    reason: str
    next: Annotated[str, Field(description="What to do now.")]


class Proof(BaseModel):
    """The sealed test: the chosen program against the program as it was, paired."""

    effect: float
    interval: Annotated[list[float], Field(description="95 %")]
    p_value: float
    n: int
    method: str


class Outcome(BaseModel):
    """What came out; null where it was not measured."""

    id: str
    status: Literal["improved", "no_proven_gain", "declined"]
    improved: Annotated[bool, Field(description="Whether a gain was proven.")]
    reason: str
    baseline_quality: Annotated[float | None, Field(description="On the sealed test, if it was opened.")]
    optimized_quality: float | None
    improvement_percentage: float | None
    proof: Proof | None
    algorithm: str | None
    changes: list[str]
    instructions: Annotated[dict[str, str], Field(description="Per predictor, of the program to use from now on.")]
    demos: Annotated[dict[str, int], Field(description="How many per predictor.")]
    spend: dict[str, Any]
    notes: list[str]
    certificate: Annotated[
        str | None, Field(description="Where the signed certificate is; `ratchet verify` checks it.")
    ]
    program: Annotated[str, Field(description="Where the program is; plain dspy.Module.load reads it.")]


class Summary(BaseModel):
    """One line of a list."""

    id: str
    status: str
    target: str
    created_at: str
    created_by: str
    reason: str


class Optimizations(BaseModel):
    """Optimizations, the newest first."""

    items: list[Summary]


class Version(BaseModel):
    """A proven winner that was registered for a target."""

    id: str
    target: str
    version: int
    optimization: Annotated[str, Field(description="The id of the optimization that proved it.")]
    candidate: str
    state: Literal["challenger", "champion", "history"]
    created_at: str


class Versions(BaseModel):
    """Versions, the newest first."""

    items: list[Version]


# --- whom they ask ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Door:
    """Where the service is, and whose key is shown there.

    Attributes:
        url: Of the service.
        key: Shown for every call; None when each caller has to bring one, as over HTTP.
        transport: What sends requests; for a service in this process.
    """

    url: str
    key: str | None = None
    transport: httpx.AsyncBaseTransport | None = None

    @asynccontextmanager
    async def open(self, context: Context) -> AsyncIterator[AsyncClient]:
        """A client with the caller's key; what the service refuses is told as a tool tells it.

        Raises:
            ToolError: there is no key, or the service refused.
        """
        key = self.key or _brought(context)
        if not key:
            raise ToolError("no key was sent; configure the header 'Authorization: Bearer KEY' for this MCP server")
        client = AsyncClient(self.url, key=key, transport=self.transport)
        try:
            yield client
        except RatchetError as error:
            raise ToolError(told(error)) from error
        finally:
            if self.transport is None:  # one that is shared stays open
                await client.close()


def _brought(context: Context) -> str:
    request = context.request_context.request
    headers: Mapping[str, str] = getattr(request, "headers", {})
    scheme, _, key = headers.get("authorization", "").partition(" ")
    return key.strip() if scheme.lower() == "bearer" else ""


def told(error: RatchetError) -> str:
    """What went wrong and what to do, in words for an agent.

    >>> told(Denied("this takes the role operator"))
    'not allowed: this takes the role operator. Do not try again with this key.'
    """
    if isinstance(error, Denied):
        return f"not allowed: {error}. Do not try again with this key."
    if isinstance(error, StorageUnavailable | TooMany):
        return f"not available now: {error}. What was begun goes on; try again in a minute."
    field, remedy = error.values.get("field"), error.values.get("remedy")
    hint = f" (field {field}: {remedy})" if field and remedy and str(remedy) not in str(error) else ""
    return f"{error}{hint}"


# --- the tools -------------------------------------------------------------------------------------------------------


class Tools:
    """The tools; each asks the service at ``door``."""

    def __init__(self, door: Door) -> None:
        self._door = door

    async def optimize(
        self,
        context: Context,
        target: Annotated[
            str,
            Field(
                description="What to make better: an inline signature, the NAME or NAME@VERSION of a kept target, or "
                "package.module:attribute where the operator allows it.",
                examples=["text -> label: Literal['bug', 'wish']", "sorter", "sorter@2"],
            ),
        ],
        data: Annotated[
            str | None,
            Field(
                description="A kept data set: id, NAME or NAME@VERSION. Or the name to keep `rows` by.",
                examples=["mails"],
            ),
        ] = None,
        rows: Annotated[
            list[dict[str, Any]] | None,
            Field(
                description="Examples to keep as a new data set: inputs and right answers by field name. They are "
                "split for you; the more there are, the smaller a gain can be proven.",
                examples=[[{"text": "The page is blank", "label": "bug"}]],
            ),
        ] = None,
        metric: Annotated[
            str,
            Field(
                description="exact_match, f1, numeric, contains, json_fields, multi_label, llm_judge, or an "
                "import path that the operator allows."
            ),
        ] = "exact_match",
        rubric: Annotated[
            str | None, Field(description="With the metric llm_judge: what a good answer is, in words.")
        ] = None,
        lm: Annotated[
            str | None, Field(description="The LM that runs the program.", examples=["openai/gpt-4.1-mini"])
        ] = None,
        reflection_lm: Annotated[str | None, Field(description="The LM that writes prompts; `lm` if left out.")] = None,
        lm_base: Annotated[str | None, Field(description="An LM server that the operator allows.")] = None,
        algorithms: Annotated[list[str] | None, Field(description="In order; left out: chosen for you.")] = None,
        max_calls: Annotated[
            int | None, Field(gt=0, description="LM calls in all, never passed.", examples=[400])
        ] = None,
        max_usd: Annotated[
            float | None, Field(gt=0, description="Dollars in all, never passed.", examples=[2.0])
        ] = None,
        max_minutes: Annotated[float, Field(gt=0, le=10080, description="Wall time in all.")] = 120.0,
        min_improvement: Annotated[float, Field(ge=0, description="Relative gain from which one counts.")] = 0.05,
        seed: Annotated[int, Field(ge=0, description="Same seed, same replies: same result.")] = 0,
        force: Annotated[bool, Field(description="Go on although the pre-flight advises against it.")] = False,
        request_key: Annotated[
            str | None,
            Field(max_length=200, description="The same key with the same request gives the same optimization again."),
        ] = None,
    ) -> Begun:
        """Begin to make a DSPy program better, within a limit of calls or dollars; returns at once with an id.

        It costs LM calls. Give examples as `rows`, or name a kept data set as `data`.
        """
        if max_calls is None and max_usd is None:
            raise ToolError("no limit was given; give max_calls (such as 400) or max_usd (such as 2)")
        if data is None and rows is None:
            raise ToolError("no examples were given; give `rows`, or the name of a kept data set as `data`")
        async with self._door.open(context) as client:
            kept = data if rows is None else await _keep(client, data or "from-an-agent", rows)
            limits = {
                "max_calls": max_calls,
                "max_usd": max_usd,
                "max_optimization_time": 60 * max_minutes,
                "min_improvement_threshold": min_improvement,
            }
            job = await client.optimize(
                idempotency_key=request_key,
                target=_target(target),
                data=kept,
                metric=metric,
                rubric=rubric,
                lm=lm,
                reflection_lm=reflection_lm,
                lm_base=lm_base,
                algorithms=algorithms,
                constraints={name: value for name, value in limits.items() if value is not None},
                seed=seed,
                force=force,
            )
        return Begun(
            **{name: job[name] for name in ("id", "status", "target", "data")},
            next=f"call status with id {job['id']} and wait_seconds {LONGEST_WAIT_SECONDS:.0f} until done",
        )

    async def status(
        self,
        context: Context,
        id: Id,
        wait_seconds: Annotated[
            float, Field(ge=0, le=LONGEST_WAIT_SECONDS, description="Wait so long for it to come to rest.")
        ] = 0.0,
    ) -> Progress:
        """How an optimization is getting on: phase, progress, best so far, spend, forecast."""
        end = time.monotonic() + wait_seconds
        async with self._door.open(context) as client:
            now = await client.status(id)
            while now["status"] not in AT_REST and time.monotonic() < end:
                await anyio.sleep(min(LOOK_SECONDS, max(0.0, end - time.monotonic())))
                now = await client.status(id)
        names = set(Progress.model_fields) - {"done", "next"}
        return Progress(
            **{name: now[name] for name in names}, done=now["status"] in AT_REST, next=_next(id, now["status"])
        )

    async def result(self, context: Context, id: Id) -> Outcome:
        """What came out of an optimization: the verdict, its proof, the new instructions, what it cost."""
        async with self._door.open(context) as client:
            job = await client.optimization(id)
            if job["status"] not in ENDED:
                why = f": {job['reason']}" if job["reason"] else ""
                raise ToolError(f"{id} has no result: it is {job['status']}{why}; {_next(id, job['status'])}")
        return _outcome(job, self._door.url)

    async def list(
        self,
        context: Context,
        status: Annotated[
            Literal["improved", "no_proven_gain", "declined", "failed", "cancelled", "running", "queued", "paused"]
            | None,
            Field(description="Only those that stand so."),
        ] = None,
        limit: Annotated[int, Field(ge=1, le=100)] = 20,
    ) -> Optimizations:
        """Optimizations of your tenant, the newest first."""
        found = []
        async with self._door.open(context) as client:
            async for job in client.optimizations(status=status):
                found.append(_summary(job))
                if len(found) == limit:
                    break
        return Optimizations(items=found)

    async def cancel(self, context: Context, id: Id) -> Summary:
        """Stop an optimization, after the requests under way; what was recorded stays."""
        async with self._door.open(context) as client:
            job = await client.cancel(id)
        return _summary(job)

    async def versions(
        self,
        context: Context,
        target: Annotated[str | None, Field(description="Of this target only.", examples=["sorter"])] = None,
    ) -> Versions:
        """Proven winners that were registered, and which is the champion of its target."""
        async with self._door.open(context) as client:
            return Versions(items=[_version(each) async for each in client.versions(target=target)])

    async def promote(
        self,
        context: Context,
        version: Annotated[
            str,
            Field(
                description="The id of a version from `versions`, or of the optimization that proved it.",
                examples=["5b0c7d1e9f24"],
            ),
        ],
    ) -> Version:
        """Make a proven version the champion of its target. This changes what production uses; it takes an operator."""
        async with self._door.open(context) as client:
            try:
                return _version(await client.promote(version))
            except Missing as error:
                for_it = [each async for each in client.versions() if each["optimization"] == version]
                if not for_it:
                    raise Missing(
                        f"{error}. `versions` lists what can be promoted; only a proven gain of a kept target is there"
                    ) from error
                return _version(await client.promote(for_it[0]["id"]))


async def _keep(client: AsyncClient, name: str, rows: Sequence[Mapping[str, Any]]) -> str:
    """The id of the data set that ``rows`` became."""
    content = "".join(json.dumps(row) + "\n" for row in rows).encode()  # not by way of a file: they may be private
    headers = {"Content-Type": KINDS[".jsonl"]}
    call = Call(method="POST", path=address("datasets"), params={"name": name}, headers=headers, content=content)
    return str((await client.ask(call))["id"])


def _target(text: str) -> dict[str, Any]:
    if "->" in text:
        return {"spec": {"signature": text}}
    return {"spec": {"import_path": text}} if ":" in text else {"id": text}


def _next(identity: str, status: str) -> str:
    if status in ENDED:
        return f"call result with id {identity}"
    if status in STOPPED:
        return "it goes on only if somebody resumes it, when the cause is gone"
    return f"call status with id {identity} and wait_seconds {LONGEST_WAIT_SECONDS:.0f}"


def _outcome(job: Json, url: str) -> Outcome:
    result, base = job["result"], f"{url}/api/v1/optimizations/{job['id']}"
    improved, tested = result["status"] == "improved", result["comparison"]
    chosen = (result["winner"] if improved else result["baseline"]) or {"predictors": {}}
    quality = {
        side: result[f"{side}_performance"]["quality_score"] if tested else None for side in ("baseline", "optimized")
    }
    details = result["optimization_details"]
    return Outcome(
        id=job["id"],
        status=result["status"],
        improved=improved,
        reason=result["reason"],
        baseline_quality=quality["baseline"],
        optimized_quality=quality["optimized"],
        improvement_percentage=result["improvement_percentage"],
        proof=None if tested is None else Proof(**{name: tested[name] for name in Proof.model_fields}),
        algorithm=details["algorithm_used"],
        changes=details["key_improvements"],
        instructions={name: each["instructions"] for name, each in chosen["predictors"].items()},
        demos={name: len(each["demos"]) for name, each in chosen["predictors"].items()},
        spend=details["spend"],
        notes=details["notes"],
        certificate=f"{base}/certificate" if tested else None,
        program=f"{base}/program",
    )


def _summary(job: Json) -> Summary:
    return Summary(**{name: job[name] for name in Summary.model_fields})


def _version(data: Mapping[str, Any]) -> Version:
    return Version(**{name: data[name] for name in Version.model_fields})


_READS = ToolAnnotations(read_only_hint=True, open_world_hint=False)
_BEGINS = ToolAnnotations(read_only_hint=False, destructive_hint=False, open_world_hint=True)
_STOPS = ToolAnnotations(read_only_hint=False, destructive_hint=True, idempotent_hint=True, open_world_hint=False)


def tool_server(door: Door, *, whose: str) -> MCPServer:
    """An MCP server with the tools.

    Args:
        door: The service they ask.
        whose: With whose role they act, in a sentence for agents and people.
    """
    server = MCPServer(
        "ratchet",
        title="Ratchet",
        instructions=INSTRUCTIONS.format(whose=whose),
        version=version("dspy-ratchet"),
        log_level="ERROR",
        subscriptions=False,
    )
    tools = Tools(door)
    kinds: tuple[tuple[ToolAnnotations, tuple[Callable[..., Any], ...]], ...] = (
        (_BEGINS, (tools.optimize,)),
        (_READS, (tools.status, tools.result, tools.list, tools.versions)),
        (_STOPS, (tools.cancel, tools.promote)),
    )
    for hints, found in kinds:
        for tool in found:
            what = inspect.getdoc(tool)
            server.add_tool(tool, description=what, annotations=hints, structured_output=True)
    return server

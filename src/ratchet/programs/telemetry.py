"""What can be seen from outside of the requests to LMs: Prometheus metrics, OpenTelemetry spans. Off unless asked for.

Whoever sends requests writes, at the cost of one comparison while nobody watches:

    if telemetry.observer is not None:
        telemetry.observer.request_ended(model=..., role=..., status="ok", seconds=0.3, ...)

No prompt and no answer is ever handed to an observer, nor the text of an error, which may quote them.

References:
    OpenTelemetry, semantic conventions for generative AI client spans (development status; attribute names as of 1.37
    to 1.44): https://github.com/open-telemetry/semantic-conventions-genai/blob/main/docs/gen-ai/client-inference.md
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any, Protocol

from ratchet.core.errors import BadRequest
from ratchet.programs.pace import Snapshot

if TYPE_CHECKING:
    from opentelemetry.trace import TracerProvider

OK = "ok"
"""The status of a request that was answered; every other status is the class of an error."""


class Observer(Protocol):
    """Sees each request to an LM. It is called on the event loop that sends, so it must be quick and never raise."""

    def request_started(self, *, model: str, role: str) -> None:
        """A request begins; its retries belong to it. Replies from the journal begin and end, too."""

    def request_ended(
        self,
        *,
        model: str,
        role: str,
        status: str,
        seconds: float,
        prompt_tokens: int,
        completion_tokens: int,
        cost_usd: float | None,
        retries: int,
        cached: bool,
    ) -> None:
        """A request is over.

        Args:
            model: As DSPy names it, ``provider/model``.
            role: What the LM is used for: task, reflection or judge.
            status: ``ok``, or the class of the error: few different values, as each is a time series.
            seconds: From the first sending to the end, retries included.
            prompt_tokens: Of this request.
            completion_tokens: Of its answer.
            cost_usd: None when the price is not known.
            retries: Sendings beyond the first.
            cached: Whether the answer was recorded before, and nothing was sent.
        """


observer: Observer | None = None
"""Who watches, if anybody. ``bootstrap`` sets it once for the process; it is off by default."""


def observer_from(
    *, metrics: str = "", traces: str = "", paces: Callable[[], Mapping[tuple[str, str], Snapshot]] = dict
) -> Observer | None:
    """Who is to watch, as the settings say; None for nobody.

    Args:
        metrics: "" or "off" for none; "on" collects metrics for a service to show; "PORT" or "HOST:PORT" shows them
            there, by default on 127.0.0.1 only.
        traces: "" or "off" for none; "on" writes spans to the tracer provider of the process, which is configured as
            OpenTelemetry says (``OTEL_...``); a URL sends them to an OTLP collector over HTTP.
        paces: What the metrics say of the providers, at each scrape.

    Raises:
        BadRequest: a setting makes no sense, or needs a package that is not installed.
    """
    observers: list[Observer] = []
    if metrics not in ("", "off"):
        prometheus = PrometheusObserver(paces)
        if metrics != "on":
            prometheus.serve(*_address(metrics))
        observers.append(prometheus)
    if traces not in ("", "off"):
        observers.append(OpenTelemetryObserver(None if traces == "on" else _exporting_to(traces)))
    if len(observers) > 1:
        return Observers(observers)
    return observers[0] if observers else None


def _address(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    if not port.isdecimal() or not 0 <= int(port) < 65536:
        raise BadRequest(f"metrics are off, on, PORT or HOST:PORT, not {text!r}")
    return host.strip("[]") or "127.0.0.1", int(port)


def _package(module: str, *, install: str, what: str) -> Any:
    try:
        return import_module(module)
    except ImportError as error:
        raise BadRequest(f"{what} need the package {install}: pip install {install}") from error


class Observers:
    """Several observers as one."""

    def __init__(self, observers: Sequence[Observer]) -> None:
        self.observers = tuple(observers)

    def request_started(self, **what: Any) -> None:
        """Tell all."""
        for each in self.observers:
            each.request_started(**what)

    def request_ended(self, **what: Any) -> None:
        """Tell all."""
        for each in self.observers:
            each.request_ended(**what)


class PrometheusObserver:
    """Counts requests in Prometheus metrics, in a registry of its own.

    Args:
        paces: How the providers are being asked, by address and model; read at each scrape.

    Raises:
        BadRequest: ``prometheus-client`` is not installed.
    """

    BUCKETS = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 60.0, 180.0)
    """Seconds. Prometheus's own end at 10, where many a long answer begins."""

    def __init__(self, paces: Callable[[], Mapping[tuple[str, str], Snapshot]] = dict) -> None:
        self._client = client = _package("prometheus_client", install="prometheus-client", what="metrics")
        self.registry = client.CollectorRegistry()

        def counter(name: str, what: str, *labels: str) -> Any:
            return client.Counter(name, what, ("model", "role", *labels), registry=self.registry)

        self._under_way = client.Gauge(
            "ratchet_lm_requests_under_way",
            "Requests to LMs that have begun and not ended.",
            ("model", "role"),
            registry=self.registry,
        )
        self._requests = counter("ratchet_lm_requests", "Requests to LMs that ended.", "status", "cached")
        self._retries = counter("ratchet_lm_retries", "Sendings beyond the first.")
        self._tokens = counter("ratchet_lm_tokens", "Tokens of requests that were sent.", "kind")
        self._cost = counter("ratchet_lm_cost_usd", "Dollars of requests that were sent, where the price is known.")
        self._seconds = client.Histogram(
            "ratchet_lm_request_seconds",
            "From the first sending to the end, retries included.",
            ("model", "role"),
            buckets=self.BUCKETS,
            registry=self.registry,
        )
        self.registry.register(_PaceCollector(client, paces))

    def request_started(self, *, model: str, role: str) -> None:
        """Count it in."""
        self._under_way.labels(model, role).inc()

    def request_ended(
        self,
        *,
        model: str,
        role: str,
        status: str,
        seconds: float,
        prompt_tokens: int,
        completion_tokens: int,
        cost_usd: float | None,
        retries: int,
        cached: bool,
    ) -> None:
        """Count it out. What was recorded before costs nothing now: of it only the number of requests is counted."""
        self._under_way.labels(model, role).dec()
        self._requests.labels(model, role, status, "true" if cached else "false").inc()
        if cached:
            return
        self._seconds.labels(model, role).observe(seconds)
        self._tokens.labels(model, role, "prompt").inc(prompt_tokens)
        self._tokens.labels(model, role, "completion").inc(completion_tokens)
        if cost_usd is not None:
            self._cost.labels(model, role).inc(cost_usd)
        if retries:
            self._retries.labels(model, role).inc(retries)

    def text(self) -> str:
        """Everything in Prometheus's text format."""
        return str(self._client.generate_latest(self.registry).decode())

    def serve(self, host: str, port: int) -> Callable[[], None]:
        """Show the metrics over HTTP, from a thread of the client library; how to stop it.

        Raises:
            BadRequest: the address cannot be used.
        """
        try:
            server, _ = self._client.start_http_server(port, addr=host, registry=self.registry)
        except OSError as error:
            raise BadRequest(f"metrics cannot be shown at {host}:{port}: {error}") from error

        def stop() -> None:
            server.shutdown()
            server.server_close()

        return stop


class _PaceCollector:
    """Tells Prometheus how the providers are being asked, when it asks."""

    def __init__(self, client: Any, paces: Callable[[], Mapping[tuple[str, str], Snapshot]]) -> None:
        self._gauge = client.metrics_core.GaugeMetricFamily
        self._paces = paces

    def collect(self) -> Iterator[Any]:
        """One gauge per number, one sample per provider."""
        gauges: dict[str, tuple[str, Callable[[Snapshot], float]]] = {
            "window": ("Requests that may be under way.", lambda each: each.window),
            "under_way": ("Requests that are under way.", lambda each: each.under_way),
            "waiting": ("Requests that wait for their turn.", lambda each: each.waiting),
            "open": ("1 while the provider does not answer and is only probed.", lambda each: each.state != "closed"),
        }
        snapshots = self._paces()
        for name, (what, number) in gauges.items():
            gauge = self._gauge(f"ratchet_lm_pace_{name}", what, labels=("address", "model"))
            for key, snapshot in snapshots.items():
                gauge.add_metric(key, float(number(snapshot)))
            yield gauge


# --- OpenTelemetry ------------------------------------------------------------------------------------------------

# Spelled out here, because the package that holds them calls them deprecated: they moved to a repository of their own,
# which has no Python package yet. A test compares them with the installed one.
OPERATION_NAME = "gen_ai.operation.name"
PROVIDER_NAME = "gen_ai.provider.name"
REQUEST_MODEL = "gen_ai.request.model"
INPUT_TOKENS = "gen_ai.usage.input_tokens"
OUTPUT_TOKENS = "gen_ai.usage.output_tokens"
ERROR_TYPE = "error.type"
SCHEMA_URL = "https://opentelemetry.io/schemas/1.37.0"
"""The first version that has all of these names (``gen_ai.system`` became ``gen_ai.provider.name`` in it)."""

PROVIDERS = {
    "azure": "azure.ai.openai",
    "azure_ai": "azure.ai.inference",
    "bedrock": "aws.bedrock",
    "gemini": "gcp.gemini",
    "mistral": "mistral_ai",
    "vertex_ai": "gcp.vertex_ai",
    "watsonx": "ibm.watsonx.ai",
    "xai": "x_ai",
}
"""Providers that the conventions name otherwise than DSPy does."""


def provider_and_model(name: str) -> tuple[str, str]:
    """The provider as the conventions name it, and the model, of an LM as DSPy names it.

    >>> provider_and_model("openai/gpt-4.1-mini"), provider_and_model("gemini/gemini-2.5-pro")
    (('openai', 'gpt-4.1-mini'), ('gcp.gemini', 'gemini-2.5-pro'))
    >>> provider_and_model("a-model-by-itself")
    ('_OTHER', 'a-model-by-itself')
    """
    provider, slash, model = name.partition("/")
    if not slash:
        return "_OTHER", name
    return PROVIDERS.get(provider, provider), model


class OpenTelemetryObserver:
    """Writes one client span per request that was sent, after OpenTelemetry's conventions for generative AI.

    A span covers the request with all its retries, as the conventions ask, and is written when it is over: a request
    that never ends leaves none. Its parent is the span in whose context the end is told. Recorded answers get no span,
    because no LM was asked.

    Args:
        provider: Of tracers; the one of the process when None.
        clock: Nanoseconds since 1970.

    Raises:
        BadRequest: ``opentelemetry-api`` is not installed.
    """

    def __init__(self, provider: TracerProvider | None = None, *, clock: Callable[[], int] = time.time_ns) -> None:
        _package("opentelemetry.trace", install="opentelemetry-api", what="traces")
        from opentelemetry import trace

        self._tracer = trace.get_tracer("ratchet", tracer_provider=provider, schema_url=SCHEMA_URL)
        self._kind = trace.SpanKind.CLIENT
        self._error = trace.Status(trace.StatusCode.ERROR)
        self._clock = clock

    def request_started(self, *, model: str, role: str) -> None:
        """Nothing yet."""

    def request_ended(
        self,
        *,
        model: str,
        role: str,
        status: str,
        seconds: float,
        prompt_tokens: int,
        completion_tokens: int,
        cost_usd: float | None,
        retries: int,
        cached: bool,
    ) -> None:
        """Write the span."""
        if cached:
            return
        ended = self._clock()
        provider, name = provider_and_model(model)
        attributes: dict[str, str | int | float] = {
            OPERATION_NAME: "chat",
            PROVIDER_NAME: provider,
            REQUEST_MODEL: name,
            "ratchet.role": role,
            "ratchet.retries": retries,
        }
        if status == OK:
            attributes[INPUT_TOKENS] = prompt_tokens
            attributes[OUTPUT_TOKENS] = completion_tokens
        else:
            attributes[ERROR_TYPE] = status
        if cost_usd is not None:
            attributes["ratchet.cost_usd"] = cost_usd
        span = self._tracer.start_span(
            f"chat {name}", kind=self._kind, attributes=attributes, start_time=ended - round(seconds * 1e9)
        )
        if status != OK:
            span.set_status(self._error)
        span.end(ended)


def _exporting_to(url: str) -> Any:
    """A tracer provider that sends spans to an OTLP collector in batches, from a thread of its own."""
    if not url.startswith(("http://", "https://")):
        raise BadRequest(f"traces are off, on or the URL of an OTLP collector, not {url!r}")
    sdk, export, resources = (
        _package(f"opentelemetry.sdk.{part}", install="opentelemetry-sdk", what="traces to a URL")
        for part in ("trace", "trace.export", "resources")
    )
    otlp = _package(
        "opentelemetry.exporter.otlp.proto.http.trace_exporter",
        install="opentelemetry-exporter-otlp-proto-http",
        what="traces to a URL",
    )
    provider = sdk.TracerProvider(resource=resources.Resource.create({"service.name": "ratchet"}))
    provider.add_span_processor(export.BatchSpanProcessor(otlp.OTLPSpanExporter(endpoint=url)))
    return provider

"""What an observer is told of the requests to LMs, and what it shows of them."""

from __future__ import annotations

import subprocess
import sys
import urllib.request
from typing import Any

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.semconv._incubating.attributes import gen_ai_attributes
from opentelemetry.semconv.attributes import error_attributes
from opentelemetry.semconv.schemas import Schemas
from opentelemetry.trace import SpanKind, StatusCode

from ratchet.core.errors import BadRequest
from ratchet.programs import telemetry
from ratchet.programs.pace import Paces, Terms
from ratchet.programs.telemetry import Observer, OpenTelemetryObserver, PrometheusObserver, observer_from
from ratchet.testing.ports import free_port

ENDED: dict[str, Any] = {
    "model": "openai/gpt-4.1-mini",
    "role": "task",
    "status": "ok",
    "seconds": 0.25,
    "prompt_tokens": 120,
    "completion_tokens": 30,
    "cost_usd": 0.002,
    "retries": 0,
    "cached": False,
}


def watch(observer: Observer, **what: Any) -> None:
    """One request, from beginning to end."""
    ended = ENDED | what
    observer.request_started(model=ended["model"], role=ended["role"])
    observer.request_ended(**ended)


# --- what the settings say ----------------------------------------------------------------------------------------


def test_nobody_watches_unless_asked_to() -> None:
    assert telemetry.observer is None
    assert observer_from() is None
    assert observer_from(metrics="off", traces="off") is None


def test_nothing_is_loaded_while_nobody_watches() -> None:
    code = (
        "import sys; from ratchet.programs import telemetry; telemetry.observer_from();"
        "print(*{name.partition('.')[0] for name in sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"opentelemetry", "prometheus_client", "dspy"} & set(done.stdout.split())


@pytest.mark.parametrize(
    ("missing", "settings", "install"),
    [
        ("prometheus_client", {"metrics": "on"}, "pip install prometheus-client"),
        ("opentelemetry.trace", {"traces": "on"}, "pip install opentelemetry-api"),
        (
            "opentelemetry.exporter.otlp.proto.http.trace_exporter",
            {"traces": "http://collector:4318/v1/traces"},
            "pip install opentelemetry-exporter-otlp-proto-http",
        ),
    ],
)
def test_a_package_that_is_missing_is_named(
    missing: str, settings: dict[str, Any], install: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(BadRequest, match=install):
        observer_from(**settings)


def test_traces_that_go_nowhere_are_refused() -> None:
    with pytest.raises(BadRequest, match="collector"):
        observer_from(traces="collector:4318")


# --- Prometheus ---------------------------------------------------------------------------------------------------


def prometheus(paces: Paces | None = None) -> PrometheusObserver:
    return PrometheusObserver((paces or Paces()).snapshots)


def samples(observer: PrometheusObserver) -> dict[str, float]:
    """What is shown, by name and labels; without the times of creation and the buckets."""
    lines = [line for line in observer.text().splitlines() if line.startswith("ratchet_lm_")]
    numbers = {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines}
    return {name: number for name, number in numbers.items() if "_created{" not in name and "_bucket{" not in name}


WHO = 'model="openai/gpt-4.1-mini",role="task"'


def test_prometheus_counts_requests_tokens_dollars_and_retries() -> None:
    observer = prometheus()
    watch(observer)
    watch(observer, seconds=0.75, retries=2)
    watch(observer, status="RateLimitError", seconds=40.0, prompt_tokens=0, completion_tokens=0, cost_usd=None)
    observer.request_started(model=ENDED["model"], role="task")
    assert samples(observer) == {
        f"ratchet_lm_requests_under_way{{{WHO}}}": 1.0,
        f'ratchet_lm_requests_total{{cached="false",{WHO},status="ok"}}': 2.0,
        f'ratchet_lm_requests_total{{cached="false",{WHO},status="RateLimitError"}}': 1.0,
        f"ratchet_lm_request_seconds_count{{{WHO}}}": 3.0,
        f"ratchet_lm_request_seconds_sum{{{WHO}}}": 41.0,
        f'ratchet_lm_tokens_total{{kind="prompt",{WHO}}}': 240.0,
        f'ratchet_lm_tokens_total{{kind="completion",{WHO}}}': 60.0,
        f"ratchet_lm_cost_usd_total{{{WHO}}}": 0.004,
        f"ratchet_lm_retries_total{{{WHO}}}": 2.0,
    }


def test_a_recorded_answer_costs_nothing_again() -> None:
    observer = prometheus()
    watch(observer, cached=True)
    assert samples(observer) == {
        f"ratchet_lm_requests_under_way{{{WHO}}}": 0.0,
        f'ratchet_lm_requests_total{{cached="true",{WHO},status="ok"}}': 1.0,
    }


def test_prometheus_shows_how_the_providers_are_asked() -> None:
    paces = Paces()
    observer = prometheus(paces)
    paces.of("https://api", "gpt", Terms(concurrency=8))
    who = 'address="https://api",model="gpt"'
    assert samples(observer) == {
        f"ratchet_lm_pace_window{{{who}}}": 8.0,
        f"ratchet_lm_pace_under_way{{{who}}}": 0.0,
        f"ratchet_lm_pace_waiting{{{who}}}": 0.0,
        f"ratchet_lm_pace_open{{{who}}}": 0.0,
    }


def test_two_observers_do_not_share_their_counts() -> None:
    first, second = prometheus(), prometheus()
    watch(first)
    assert samples(first)
    assert not samples(second)


@pytest.mark.parametrize("metrics", ["localhost", "localhost:http", "127.0.0.1:70000", "yes"])
def test_metrics_at_no_address_are_refused(metrics: str) -> None:
    with pytest.raises(BadRequest, match="HOST:PORT"):
        observer_from(metrics=metrics)


def test_metrics_are_shown_over_http() -> None:
    observer = prometheus()
    watch(observer)
    port = free_port()
    stop = observer.serve("127.0.0.1", port)
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as page:
        assert b"ratchet_lm_requests_total" in page.read()
    with pytest.raises(BadRequest, match="cannot be shown"):
        observer.serve("127.0.0.1", port)
    stop()


# --- OpenTelemetry ------------------------------------------------------------------------------------------------


class Collector:
    """A tracer provider whose spans can be read."""

    def __init__(self) -> None:
        self.exporter = InMemorySpanExporter()
        self.provider = TracerProvider(shutdown_on_exit=False)
        self.provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.observer = OpenTelemetryObserver(self.provider, clock=lambda: 1_700_000_000_000_000_000)

    @property
    def spans(self) -> tuple[ReadableSpan, ...]:
        return self.exporter.get_finished_spans()


def test_a_request_is_a_client_span_after_the_conventions() -> None:
    collector = Collector()
    watch(collector.observer, retries=1)
    (span,) = collector.spans
    assert (span.name, span.kind, span.status.status_code) == ("chat gpt-4.1-mini", SpanKind.CLIENT, StatusCode.UNSET)
    assert span.attributes == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "openai",
        "gen_ai.request.model": "gpt-4.1-mini",
        "gen_ai.usage.input_tokens": 120,
        "gen_ai.usage.output_tokens": 30,
        "ratchet.role": "task",
        "ratchet.retries": 1,
        "ratchet.cost_usd": 0.002,
    }
    assert (span.end_time, span.start_time) == (1_700_000_000_000_000_000, 1_699_999_999_750_000_000)


def test_a_failure_is_a_span_with_the_class_of_its_error_and_no_words_of_it() -> None:
    collector = Collector()
    watch(collector.observer, status="LMTimeoutError", prompt_tokens=0, completion_tokens=0, cost_usd=None)
    (span,) = collector.spans
    assert (span.status.status_code, span.status.description, span.events) == (StatusCode.ERROR, None, ())
    assert span.attributes is not None
    assert span.attributes["error.type"] == "LMTimeoutError"
    assert not {"gen_ai.usage.input_tokens", "gen_ai.usage.output_tokens", "ratchet.cost_usd"} & set(span.attributes)


def test_a_recorded_answer_is_no_span() -> None:
    collector = Collector()
    watch(collector.observer, cached=True)
    assert not collector.spans


def test_a_span_belongs_to_the_span_around_it() -> None:
    collector = Collector()
    with collector.provider.get_tracer("mine").start_as_current_span("my job") as job:
        watch(collector.observer)
    span = next(span for span in collector.spans if span.name.startswith("chat"))
    assert span.parent == job.get_span_context()


def test_the_names_are_those_of_the_installed_conventions() -> None:
    semconv = gen_ai_attributes
    assert telemetry.OPERATION_NAME == semconv.GEN_AI_OPERATION_NAME
    assert telemetry.PROVIDER_NAME == semconv.GEN_AI_PROVIDER_NAME
    assert telemetry.REQUEST_MODEL == semconv.GEN_AI_REQUEST_MODEL
    assert telemetry.INPUT_TOKENS == semconv.GEN_AI_USAGE_INPUT_TOKENS
    assert telemetry.OUTPUT_TOKENS == semconv.GEN_AI_USAGE_OUTPUT_TOKENS
    assert telemetry.ERROR_TYPE == error_attributes.ERROR_TYPE
    assert Schemas.V1_37_0.value == telemetry.SCHEMA_URL
    assert set(telemetry.PROVIDERS.values()) <= {each.value for each in semconv.GenAiProviderNameValues}


def test_an_observer_that_nobody_configured_a_tracer_for_does_nothing() -> None:
    observer = observer_from(traces="on")
    assert isinstance(observer, OpenTelemetryObserver)
    watch(observer)


# --- both ---------------------------------------------------------------------------------------------------------


def test_two_observers_are_told_the_same() -> None:
    first, second = Collector(), Collector()
    watch(telemetry.Observers([first.observer, second.observer]))
    assert [span.name for span in first.spans] == [span.name for span in second.spans] == ["chat gpt-4.1-mini"]


def test_metrics_and_traces_can_be_asked_for_together() -> None:
    observer = observer_from(metrics="on", traces="on")
    assert isinstance(observer, telemetry.Observers)
    assert [type(each) for each in observer.observers] == [PrometheusObserver, OpenTelemetryObserver]

"""Traces through real processes, which export to a receiver of OTLP over HTTP, and single spans in memory."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.semconv._incubating.attributes import gen_ai_attributes, messaging_attributes
from opentelemetry.trace import SpanKind, StatusCode

from shared.settings import Settings
from shared.telemetry import job_trace, tracing
from shared.telemetry.tracing import MOST_STATE, Parent
from tests.support.api_server import serving
from tests.support.system import running_system
from tests.support.waiting import eventually
from tuwen.errors import ConfigurationError, DatabaseUnavailable
from tuwen.jobs import DescribeResult, Kind

CALLER = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
STATE = "rojo=00f067aa0ba902b7,congo=t61rcWkgMzE"


class Collector:
    """Keeps the spans it is sent, each with its service and attributes; it takes webhooks, too."""

    def __init__(self) -> None:
        self.spans: list[tuple[str, Any, dict[str, Any]]] = []
        self.webhooks: list[dict[str, str]] = []
        """Headers of each."""
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                if self.path == "/hook":
                    collector.webhooks.append({name.lower(): value for name, value in self.headers.items()})
                else:
                    collector._keep(ExportTraceServiceRequest.FromString(body))
                self.send_response(200)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *_: Any) -> None: ...

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def of_trace(self, traceparent: str) -> dict[str, tuple[str, Any, dict[str, Any]]]:
        """The spans of a trace by name."""
        id = traceparent.split("-")[1]
        return {span.name: found for found in list(self.spans) if (span := found[1]).trace_id.hex() == id}

    def named(self, name: str) -> list[dict[str, Any]]:
        """Attributes of all spans of this name."""
        return [attributes for _, span, attributes in list(self.spans) if span.name == name]

    def _keep(self, request: ExportTraceServiceRequest) -> None:
        for resource in request.resource_spans:
            [service] = [each.value.string_value for each in resource.resource.attributes if each.key == "service.name"]
            for scope in resource.scope_spans:
                for span in scope.spans:
                    values = {each.key: each.value for each in span.attributes}
                    kinds = {name: value.WhichOneof("value") for name, value in values.items()}
                    attributes = {name: getattr(value, kinds[name]) for name, value in values.items()}
                    self.spans.append((service, span, attributes))

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    collector = Collector()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "100")
    yield collector
    tracing.stop()
    collector.close()


@pytest.fixture
def memory(collector: Collector) -> InMemorySpanExporter:
    """Tracing in this process, whose spans are kept here."""
    tracing.start("test")
    exporter = InMemorySpanExporter()
    assert tracing._provider is not None
    tracing._provider.add_span_processor(SimpleSpanProcessor(exporter))
    return exporter


def test_one_trace_from_the_request_to_the_receiver_of_the_webhook(
    settings: Settings, tmp_path: Path, collector: Collector
) -> None:
    job = {"input": {"kind": "generate", "prompt": "a cat", "seed": 7}, "webhook": f"{collector.url}/hook"}
    headers = {"traceparent": CALLER, "tracestate": STATE, "Prefer": "wait=20", "X-Request-Id": "mine"}
    local: dict[str, Any] = {
        "generate": "null=import:tests.support.fakes:NullGenerator",
        "fetch_allow_networks": ("127.0.0.0/8",),
        "webhook_secret": "whsec_" + "c2VjcmV0" * 4,
    }
    with running_system(settings, tmp_path, **local) as system, serving(system.settings) as url:
        worker, housekeeper = system.worker(), system.housekeeper()
        answer = httpx.post(f"{url}/v1/jobs", json=job, headers=headers)
        assert answer.json()["status"] == "succeeded"
        eventually(lambda: collector.webhooks)
        worker.terminate()
        housekeeper.terminate()
    stages = ["wait", "claim", "prepare", "batch", "generate_content null", "store", "finish"]
    names = ["POST /v1/jobs", "send tuwen.generate", "process tuwen.generate", "POST"]
    eventually(lambda: {*names, *stages} <= collector.of_trace(CALLER).keys(), lambda: str(collector.of_trace(CALLER)))
    trace = collector.of_trace(CALLER)
    request, send, process, post = (trace[name][1] for name in names)
    assert [trace[name][0] for name in names] == ["tuwen-api", "tuwen-api", "tuwen-worker", "tuwen-housekeeper"]
    assert request.parent_span_id.hex() == CALLER.split("-")[2]
    assert send.parent_span_id == request.span_id
    assert process.parent_span_id == post.parent_span_id == send.span_id
    spans = [trace[name][1] for name in stages]
    assert {span.parent_span_id for span in spans} == {process.span_id}
    for before, after in itertools.pairwise(spans):
        assert before.start_time_unix_nano <= before.end_time_unix_nano == after.start_time_unix_nano
    assert trace["POST /v1/jobs"][2]["tuwen.request_id"] == "mine"
    assert {trace[name][1].trace_state for name in [*names, *stages]} == {STATE}
    assert collector.webhooks[0]["traceparent"].split("-")[1:3] == [post.trace_id.hex(), post.span_id.hex()]
    assert collector.webhooks[0]["tracestate"] == STATE

    id = answer.json()["id"]
    common = {"messaging.system": "celery", "messaging.destination.name": "tuwen.generate", "messaging.message.id": id}
    sent = {"messaging.operation.type": "send", "messaging.operation.name": "send"}
    assert trace["send tuwen.generate"][2] == {**common, **sent}
    attributes = trace["process tuwen.generate"][2]
    assert attributes.items() >= {**common, "messaging.operation.type": "process", "tuwen.status": "succeeded"}.items()
    assert attributes["tuwen.queue_time"] >= 0
    assert attributes["gen_ai.request.model"] == "null"
    assert trace["generate_content null"][2] == {
        "gen_ai.operation.name": "generate_content",
        "gen_ai.provider.name": "tuwen",
        "gen_ai.request.model": "null",
        "gen_ai.request.seed": 7,
        "gen_ai.output.type": "image",
        "tuwen.batch_size": 1,
    }
    assert trace["POST"][2]["http.response.status_code"] == 200
    assert "url.full" not in trace["POST"][2], "the address of a webhook is often a secret"


def test_rounds_of_the_housekeeper_that_did_something(settings: Settings, tmp_path: Path, collector: Collector) -> None:
    with running_system(settings, tmp_path) as system:
        housekeeper = system.housekeeper()
        system.wait_until(lambda: system.queue.housekeepers(), "a first round, in which there was nothing to do")
        [id] = system.submit("cat")
        system.queue.redis.flushall()  # its message is lost
        system.wait_until(lambda: system.queue.depth()[Kind.GENERATE] == 1, "its message again")
        eventually(lambda: collector.named("housekeep"))
        system.wait_until(lambda: system.queue.housekeepers(), "another idle round")
        housekeeper.terminate()
    assert collector.named("housekeep") == [{"tuwen.jobs_published_again": 1}]
    assert id


def test_names_are_those_of_the_semantic_conventions(memory: InMemorySpanExporter) -> None:
    conventions = vars(gen_ai_attributes) | vars(messaging_attributes)
    known = {value for value in conventions.values() if isinstance(value, str)}
    with tracing.submission_span(["tuwen.match"]):
        tracing.note_message("id")
    start(Kind.DESCRIBE)
    names = {name for span in memory.get_finished_spans() for name in span.attributes or ()}
    assert {name for name in names if name.startswith(("gen_ai.", "messaging."))} <= known
    assert {"messaging.message.id", "gen_ai.usage.output_tokens", "gen_ai.request.max_tokens"} <= names


def start(kind: Kind, *, fails: bool = False, parent: Parent | None = None) -> None:
    """Make the spans of a job, from its claim to its end."""
    about: dict[str, Any] = {"waited": 1.5, "asked": 0, "worker": "w", "model": "m", "attempt": 2}
    trace = job_trace.start_job(f"tuwen.{kind}", "id", parent, **about)
    trace.stage("batch")
    trace.run(kind, "m", 5, {"max_tokens": 64, "seed": None})
    trace.answered(DescribeResult(text="a cat", language="en", confidence=1, tokens=3, prompt_tokens=9))
    if fails:
        trace.fail("engine_crashed", "the engine went down")
        trace.end("queued", "engine_crashed", "the engine went down")
    else:
        trace.end("succeeded")


def by_name(memory: InMemorySpanExporter) -> dict[str, ReadableSpan]:
    return {span.name: span for span in memory.get_finished_spans()}


@pytest.mark.parametrize(
    ("kind", "operation", "output"),
    [
        (Kind.GENERATE, "generate_content", "image"),
        (Kind.DESCRIBE, "generate_content", "text"),
        (Kind.RECOGNIZE, "recognize", "json"),
        (Kind.MATCH, "match", "json"),
    ],
)
def test_the_engines_work_of_each_kind(memory: InMemorySpanExporter, kind: Kind, operation: str, output: str) -> None:
    start(kind, parent=Parent(CALLER, STATE))
    spans = by_name(memory)
    work, job = spans[f"{operation} m"], spans[f"process tuwen.{kind}"]
    assert work.attributes is not None
    assert job.attributes is not None
    assert (work.kind, job.kind) == (SpanKind.CLIENT, SpanKind.CONSUMER)
    assert (work.attributes["gen_ai.operation.name"], work.attributes["gen_ai.output.type"]) == (operation, output)
    assert (work.attributes["tuwen.batch_size"], job.attributes["tuwen.queue_time"]) == (5, 1.5)
    assert {span.context.trace_state.to_header() for span in spans.values() if span.context} == {STATE}
    assert {span.status.status_code for span in spans.values()} == {StatusCode.UNSET}


def test_a_failure_marks_the_stage_and_the_job(memory: InMemorySpanExporter) -> None:
    start(Kind.GENERATE, fails=True)
    spans = by_name(memory)
    failed = {name for name, span in spans.items() if span.status.status_code is StatusCode.ERROR}
    assert failed == {"generate_content m", "process tuwen.generate"}
    for name in failed:
        assert (spans[name].attributes or {})["error.type"] == "engine_crashed"
        assert spans[name].status.description == "the engine went down"


def test_a_submission_of_many_jobs(memory: InMemorySpanExporter) -> None:
    with tracing.submission_span(["tuwen.match"] * 3):
        pass
    with tracing.submission_span(["tuwen.match", "tuwen.generate"]):
        pass
    with pytest.raises(DatabaseUnavailable), tracing.submission_span(["tuwen.describe"]):
        raise DatabaseUnavailable("PostgreSQL is away")
    spans = by_name(memory)
    assert (spans["send tuwen.match"].attributes or {})["messaging.batch.message_count"] == 3
    assert "messaging.destination.name" not in (spans["send"].attributes or {})
    failed = spans["send tuwen.describe"]
    assert failed.status.status_code is StatusCode.ERROR
    assert (failed.attributes or {})["error.type"] == DatabaseUnavailable.code


def test_rounds(memory: InMemorySpanExporter) -> None:
    with tracing.round_span("idle") as done:
        done.update(jobs_rescued=0)
    with tracing.round_span("busy") as done:
        done.update(jobs_rescued=2, jobs_expired=0)
    with pytest.raises(DatabaseUnavailable), tracing.round_span("cut off"):
        raise DatabaseUnavailable("PostgreSQL is away")
    spans = by_name(memory)
    assert spans.keys() == {"busy", "cut off"}
    assert spans["busy"].attributes == {"tuwen.jobs_rescued": 2}
    assert spans["cut off"].status.status_code is StatusCode.ERROR


def test_a_long_tracestate_loses_whole_members(memory: InMemorySpanExporter) -> None:
    members = [f"m{n}=" + "x" * 60 for n in range(10)]
    state = ",".join([*members[:2], "long=" + "y" * 200, *members[2:]])
    with (
        tracing.request_span("POST", {"traceparent": CALLER, "tracestate": state}),
        tracing.submission_span(["q"]) as kept,
    ):
        pass
    assert kept is not None
    assert kept.tracestate is not None
    assert len(kept.tracestate) <= MOST_STATE
    assert kept.tracestate == ",".join(members[:8])
    for broken in ("", "no member", "=", ",,,", "a=" + "z" * 5000):
        with (
            tracing.request_span("GET", {"traceparent": CALLER, "tracestate": broken}),
            tracing.submission_span(["q"]) as kept,
        ):
            pass
        assert kept is not None
        assert kept.tracestate is None


def test_off_unless_asked_for(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OTEL_EXPORTER_OTLP_ENDPOINT", raising=False)
    tracing.start("test")
    assert not tracing.wanted()
    with tracing.request_span("GET", {}) as span, tracing.submission_span(["q"]) as carried:
        tracing.note_message("id")
        assert span is None
        assert carried is None
    about: dict[str, Any] = {"waited": 1, "asked": 0, "worker": "w", "model": "m", "attempt": 1}
    assert job_trace.start_job("q", "id", Parent(CALLER), **about) is job_trace.UNTRACED
    with tracing.delivery_span(Parent(CALLER, STATE), {}) as (span, headers):
        assert span is None
        assert headers == {"traceparent": CALLER, "tracestate": STATE}, "the receiver hears of the job's submission"
    with tracing.delivery_span(None, {}) as (_, headers):
        assert headers == {}
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    assert tracing.wanted()
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    assert not tracing.wanted()


def test_what_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setitem(__import__("sys").modules, "opentelemetry.sdk.trace", None)
    with pytest.raises(ConfigurationError, match=r"tuwen\[tracing\]"):
        tracing.start("test")

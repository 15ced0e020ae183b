"""Traces through real processes: an API and a worker export to a receiver of OTLP over HTTP."""

from __future__ import annotations

import itertools
import threading
from collections import defaultdict
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from shared.settings import Settings
from shared.telemetry import tracing
from tests.support.api_server import serving
from tests.support.system import running_system
from tests.support.waiting import eventually
from tuwen.errors import ConfigurationError

CALLER = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


class Collector:
    """Keeps the spans it is sent: trace id → name → (service, span)."""

    def __init__(self) -> None:
        self.traces: dict[str, dict[str, tuple[str, Any]]] = defaultdict(dict)
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                collector._keep(ExportTraceServiceRequest.FromString(body))
                self.send_response(200)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *_: Any) -> None: ...

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def _keep(self, request: ExportTraceServiceRequest) -> None:
        for resource in request.resource_spans:
            [service] = [each.value.string_value for each in resource.resource.attributes if each.key == "service.name"]
            for scope in resource.scope_spans:
                for span in scope.spans:
                    self.traces[span.trace_id.hex()][span.name] = (service, span)

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


def test_one_trace_from_the_request_to_the_end_of_the_job(
    settings: Settings, tmp_path: Path, collector: Collector
) -> None:
    job = {"input": {"kind": "generate", "prompt": "a cat"}}
    with running_system(settings, tmp_path) as system, serving(system.settings) as url:
        worker = system.worker()
        headers = {"traceparent": CALLER, "Prefer": "wait=20", "X-Request-Id": "mine"}
        answer = httpx.post(f"{url}/v1/jobs", json=job, headers=headers)
        assert answer.json()["status"] == "succeeded"
        worker.terminate()
    trace = collector.traces[CALLER.split("-")[1]]
    wanted = {"POST /v1/jobs", "submit", "generate", "wait", "claim", "prepare", "batch", "store", "finish"}
    eventually(lambda: wanted <= trace.keys())
    services = {name: service for name, (service, _) in trace.items()}
    assert services["POST /v1/jobs"] == services["submit"] == "tuwen-api"
    assert services["generate"] == services["store"] == "tuwen-worker"
    spans = {name: span for name, (_, span) in trace.items()}
    assert spans["POST /v1/jobs"].parent_span_id.hex() == CALLER.split("-")[2]
    assert spans["submit"].parent_span_id == spans["POST /v1/jobs"].span_id
    assert spans["generate"].parent_span_id == spans["submit"].span_id
    stages = [spans[name] for name in ("wait", "claim", "prepare", "batch", "store", "finish")]
    assert {stage.parent_span_id for stage in stages} == {spans["generate"].span_id}
    for before, after in itertools.pairwise(stages):
        assert before.start_time_unix_nano <= before.end_time_unix_nano == after.start_time_unix_nano
    request = {each.key: each.value.string_value for each in spans["POST /v1/jobs"].attributes}
    assert request["tuwen.request_id"] == "mine"
    attributes = {each.key: each.value.string_value for each in spans["generate"].attributes}
    assert attributes["tuwen.job"] == answer.json()["id"]
    assert attributes["tuwen.status"] == "succeeded"


def test_off_unless_asked_for(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OTEL_EXPORTER_OTLP_ENDPOINT", raising=False)
    tracing.start("test")
    assert not tracing.wanted()
    with tracing.request_span("GET", {}) as span, tracing.submission_span(1) as carried:
        assert span is carried is None
    assert isinstance(tracing.start_job("generate", CALLER, waited=1, asked=0, attributes={}), tracing.Untraced)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    assert tracing.wanted()
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    assert not tracing.wanted()


def test_what_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setitem(__import__("sys").modules, "opentelemetry.sdk.trace", None)
    with pytest.raises(ConfigurationError, match=r"tuwen\[tracing\]"):
        tracing.start("test")

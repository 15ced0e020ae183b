"""Traces by OpenTelemetry: one trace from the request that submits a job to the statement that ends it.

Tracing is off unless `OTEL_EXPORTER_OTLP_ENDPOINT` or `OTEL_EXPORTER_OTLP_TRACES_ENDPOINT` says where to send spans;
OpenTelemetry's own variables configure everything else (headers, sampling, resource attributes). While tracing is off,
OpenTelemetry is not imported.

The context travels in the job's row, as W3C `traceparent`, so it outlives Redis and every retry.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from tuwen.errors import ConfigurationError

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Span, Tracer

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")

_provider: TracerProvider | None = None
_tracer: Tracer | None = None


def wanted() -> bool:
    """Whether the environment asks for traces."""
    off = os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true" or os.environ.get("OTEL_TRACES_EXPORTER") == "none"
    return not off and any(os.environ.get(name) for name in _ENDPOINTS)


def start(service: str) -> None:
    """Start tracing if the environment asks for it, with the name `service` unless `OTEL_SERVICE_NAME` is set.

    Raises:
        ConfigurationError: the environment asks for traces, but OpenTelemetry is not installed.
    """
    global _provider, _tracer
    if not wanted() or _tracer is not None:
        return
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise ConfigurationError("traces need OpenTelemetry: pip install 'tuwen[tracing]'") from error
    name = os.environ.get("OTEL_SERVICE_NAME") or service
    _provider = TracerProvider(resource=Resource.create({"service.name": name}), shutdown_on_exit=False)
    _provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    _tracer = _provider.get_tracer("tuwen")


def stop() -> None:
    """Send the remaining spans and stop tracing."""
    global _provider, _tracer
    if _provider is not None:
        _provider.shutdown()
    _provider = _tracer = None


@contextmanager
def request_span(name: str, headers: Mapping[str, str]) -> Iterator[Span | None]:
    """Record a span for a request that this process answers, in the caller's trace when the request names one."""
    if _tracer is None:
        yield None
        return
    from opentelemetry.trace import SpanKind

    with _tracer.start_as_current_span(name, _context(headers.get("traceparent")), SpanKind.SERVER) as span:
        yield span


@contextmanager
def submission_span(jobs: int) -> Iterator[str | None]:
    """Record a span for a submission; yields the `traceparent` that its jobs carry."""
    if _tracer is None:
        yield None
        return
    from opentelemetry.trace import SpanKind
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    with _tracer.start_as_current_span("submit", kind=SpanKind.PRODUCER, attributes={"tuwen.jobs": jobs}):
        carrier: dict[str, str] = {}
        TraceContextTextMapPropagator().inject(carrier)
        yield carrier.get("traceparent")


class JobTrace:
    """The spans of a job in a worker: one for the job, and one for each stage until the next begins."""

    __slots__ = ("_context", "_job", "_stage")

    def __init__(self, tracer: Tracer, name: str, parent: str | None, began: int, attributes: Mapping[str, Any]):
        from opentelemetry.trace import SpanKind, set_span_in_context

        self._job = tracer.start_span(
            name, _context(parent), SpanKind.CONSUMER, attributes=dict(attributes), start_time=began
        )
        self._context = set_span_in_context(self._job)
        self._stage: Span | None = None

    def stage(self, name: str, at: int | None = None) -> None:
        """Begin the stage `name`, now or at a time in nanoseconds since the epoch."""
        if _tracer is None:
            return
        at = time.time_ns() if at is None else at
        if self._stage is not None:
            self._stage.end(at)
        self._stage = _tracer.start_span(name, self._context, start_time=at)

    def end(self, status: str, error: str | None = None) -> None:
        """End the last stage and the job with its final status."""
        from opentelemetry.trace import StatusCode

        at = time.time_ns()
        if self._stage is not None:
            self._stage.end(at)
        self._job.set_attribute("tuwen.status", status)
        if error is not None:
            self._job.set_status(StatusCode.ERROR, error)
        self._job.end(at)


class Untraced:
    """Stands in for `JobTrace` while tracing is off."""

    def stage(self, name: str, at: int | None = None) -> None:
        pass

    def end(self, status: str, error: str | None = None) -> None:
        pass


_UNTRACED = Untraced()
AnyTrace = JobTrace | Untraced


def start_job(kind: str, parent: str | None, *, waited: float, asked: int, attributes: Mapping[str, Any]) -> AnyTrace:
    """Start the trace of a job that this worker has just claimed.

    Args:
        parent: `traceparent` of the submission; None when it was not traced.
        waited: seconds from when the job could have run until it was claimed.
        asked: when this worker asked for the job, in nanoseconds since the epoch.
    """
    if _tracer is None:
        return _UNTRACED
    began = min(asked, time.time_ns() - int(waited * 1e9))
    trace = JobTrace(_tracer, kind, parent, began, attributes)
    trace.stage("wait", began)
    trace.stage("claim", asked)
    return trace


def _context(traceparent: str | None) -> Context | None:
    if traceparent is None:
        return None
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    return TraceContextTextMapPropagator().extract({"traceparent": traceparent})

"""Traces by OpenTelemetry: one trace from the request that submits a job to the receiver of its webhook.

Tracing is off unless `OTEL_EXPORTER_OTLP_ENDPOINT` or `OTEL_EXPORTER_OTLP_TRACES_ENDPOINT` says where to send spans;
OpenTelemetry's own variables configure everything else (headers, sampling, resource attributes). While tracing is off,
OpenTelemetry is not imported.

The context travels in the job's row, as W3C `traceparent` and `tracestate`, so it outlives Redis and every retry. Names
of spans and attributes are those of OpenTelemetry's semantic conventions 1.44, for messaging and HTTP, and of its
conventions for generative AI; docs/operations.md has a table of them. `job_trace` has the spans of a job in a worker.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tuwen.errors import ConfigurationError, TuwenError

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Span, SpanKind, Tracer

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
_SCHEMA = "https://opentelemetry.io/schemas/1.44.0"

MOST_STATE = 512
"""Characters of `tracestate` that are kept, as W3C's Trace Context asks of everybody; members are left out whole."""

_provider: TracerProvider | None = None
_tracer: Tracer | None = None


@dataclass(frozen=True, slots=True)
class Parent:
    """The span that another process continues from: its W3C `traceparent`, and the `tracestate` beside it."""

    traceparent: str
    tracestate: str | None = None

    @classmethod
    def of(cls, traceparent: str | None, tracestate: str | None) -> Parent | None:
        """Return the parent that a row or the headers of a request name, if they name one."""
        return None if traceparent is None else cls(traceparent, tracestate or None)

    @property
    def headers(self) -> dict[str, str]:
        """Headers of a request that continues the trace."""
        state = {"tracestate": self.tracestate} if self.tracestate else {}
        return {"traceparent": self.traceparent, **state}


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
    _tracer = _provider.get_tracer("tuwen", schema_url=_SCHEMA)


def stop() -> None:
    """Send the remaining spans and stop tracing."""
    global _provider, _tracer
    if _provider is not None:
        _provider.shutdown()
    _provider = _tracer = None


def tracer() -> Tracer | None:
    """What makes spans; None while tracing is off."""
    return _tracer


def messaging(operation: str, queue: str | None, message_id: str | None = None) -> dict[str, Any]:
    """Attributes of a span about messages of `queue`: `operation` is `send` or `process`."""
    known = {"messaging.destination.name": queue, "messaging.message.id": message_id}
    return {
        "messaging.system": "celery",
        "messaging.operation.type": operation,
        "messaging.operation.name": operation,
        **{name: value for name, value in known.items() if value is not None},
    }


@contextmanager
def request_span(name: str, headers: Mapping[str, str]) -> Iterator[Span | None]:
    """Record a span for a request that this process answers, in the caller's trace when the request names one."""
    if _tracer is None:
        yield None
        return
    from opentelemetry.trace import SpanKind

    parent = Parent.of(headers.get("traceparent"), headers.get("tracestate"))
    with _tracer.start_as_current_span(name, context(parent), SpanKind.SERVER) as span:
        yield span


@contextmanager
def submission_span(queues: Sequence[str]) -> Iterator[Parent | None]:
    """Record a span for the submission of a job to each of these queues; yields the parent that the jobs carry."""
    if _tracer is None:
        yield None
        return
    from opentelemetry.trace import SpanKind
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    queue = queues[0] if len(set(queues)) == 1 else None
    attributes = messaging("send", queue)
    if len(queues) > 1:
        attributes["messaging.batch.message_count"] = len(queues)
    name = f"send {queue}" if queue else "send"
    with _tracer.start_as_current_span(name, kind=SpanKind.PRODUCER, attributes=attributes) as span:
        carrier: dict[str, str] = {}
        TraceContextTextMapPropagator().inject(carrier)
        traceparent, tracestate = carrier.get("traceparent"), carrier.get("tracestate")
        with _failing(span):
            yield Parent.of(traceparent, _shortened(tracestate))


def note_message(id: object) -> None:
    """Note in the span that goes on which message it is about."""
    if _tracer is not None:
        from opentelemetry.trace import get_current_span

        get_current_span().set_attribute("messaging.message.id", str(id))


@contextmanager
def delivery_span(parent: Parent | None, attributes: Mapping[str, Any]) -> Iterator[tuple[Span | None, dict[str, str]]]:
    """Record a span for the delivery of a webhook, in the trace of its job; yields it and headers for the receiver.

    Without tracing here, the receiver is told of the job's submission, where that was traced.
    """
    if _tracer is None:
        yield None, parent.headers if parent else {}
        return
    from opentelemetry.trace import SpanKind
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    with _tracer.start_as_current_span("POST", context(parent), SpanKind.CLIENT, attributes=dict(attributes)) as span:
        carrier: dict[str, str] = {}
        TraceContextTextMapPropagator().inject(carrier)
        with _failing(span):
            yield span, carrier


@contextmanager
def work_span(name: str, attributes: Mapping[str, Any] | None = None) -> Iterator[None]:
    """Record a span for work that this process begins by itself."""
    if _tracer is None:
        yield
        return
    with _tracer.start_as_current_span(name, attributes=dict(attributes or {})) as span, _failing(span):
        yield


@contextmanager
def round_span(name: str) -> Iterator[Counter[str]]:
    """Record a span for a round that did something; yields what it did, to be counted by the caller.

    A round in which nothing was counted leaves no span, unless it failed.
    """
    done: Counter[str] = Counter()
    began = time.time_ns()
    try:
        yield done
    except Exception as error:
        record(name, began, {f"tuwen.{what}": count for what, count in done.items()}, error=error)
        raise
    if done.total():
        record(name, began, {f"tuwen.{what}": count for what, count in done.items() if count})


def record(
    name: str,
    began: int,
    attributes: Mapping[str, Any],
    *,
    error: Exception | str | None = None,
    consumer: bool = False,
) -> None:
    """Record a span of its own trace from `began`, in nanoseconds since the epoch, until now.

    Args:
        error: what it failed with, in words or as raised.
        consumer: whether the span is about a message that was received.
    """
    if _tracer is None:
        return
    from opentelemetry.trace import SpanKind

    kind: SpanKind = SpanKind.CONSUMER if consumer else SpanKind.INTERNAL
    span = _tracer.start_span(name, kind=kind, attributes=dict(attributes), start_time=began)
    if error is not None:
        set_failed(span, error_type(error) if isinstance(error, Exception) else "failed", str(error))
    span.end()


def set_failed(span: Span, kind: str, description: str) -> None:
    """Mark a span as failed: `kind` is the error's code, of which there are few; `description` is for people."""
    from opentelemetry.trace import StatusCode

    span.set_attribute("error.type", kind)
    span.set_status(StatusCode.ERROR, description)


def error_type(error: BaseException) -> str:
    """The code of the project's own errors, and the class of any other."""
    return error.code if isinstance(error, TuwenError) else type(error).__qualname__


def context(parent: Parent | None) -> Context | None:
    """OpenTelemetry's context for a span that continues from `parent`."""
    if parent is None:
        return None
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    return TraceContextTextMapPropagator().extract(parent.headers)


@contextmanager
def _failing(span: Span) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        span.set_attribute("error.type", error_type(error))  # the span itself records the rest
        raise


def _shortened(tracestate: str | None) -> str | None:
    """Keep the first members, those of the systems that came last, up to the length that everybody keeps."""
    if tracestate is None:
        return None
    members = tracestate.split(",")
    while len(",".join(members)) > MOST_STATE:
        # The longest first, if it is long, as the specification advises; otherwise the oldest.
        longest = max(members, key=len)
        members.remove(longest if len(longest) > 128 else members[-1])
    return ",".join(members) or None

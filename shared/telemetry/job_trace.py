"""The spans of a job in a worker: one for the job, and below it one for each stage, from one to the next.

process tuwen.generate
├── wait             in the queue, from when it could have run
├── claim            PostgreSQL is asked for it
├── prepare          its input is read and decoded
├── batch            it waits for an engine
├── generate_content MODEL    the engine runs the batch that it is in
├── store            the image is encoded and stored
└── finish           PostgreSQL is told
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from shared.telemetry.tracing import Parent, context, messaging, set_failed, tracer
from tuwen.jobs import DescribeResult, Kind

if TYPE_CHECKING:
    from opentelemetry.trace import Span, SpanKind, Tracer

OPERATIONS: Mapping[Kind, tuple[str, str]] = {
    Kind.GENERATE: ("generate_content", "image"),
    Kind.DESCRIBE: ("generate_content", "text"),
    # The conventions have no names for these two.
    Kind.RECOGNIZE: ("recognize", "json"),
    Kind.MATCH: ("match", "json"),
}
"""`gen_ai.operation.name` and `gen_ai.output.type` of an engine's work."""


class JobTrace:
    """The spans of one job that a worker has claimed. One thread after the other uses it."""

    __slots__ = ("_context", "_job", "_stage", "_tracer")

    def __init__(self, tracer: Tracer, name: str, parent: Parent | None, began: int, attributes: Mapping[str, Any]):
        from opentelemetry.trace import SpanKind, set_span_in_context

        self._tracer = tracer
        self._job = tracer.start_span(
            name, context(parent), SpanKind.CONSUMER, attributes=dict(attributes), start_time=began
        )
        self._context = set_span_in_context(self._job)
        self._stage: Span | None = None

    def stage(self, name: str, at: int | None = None) -> None:
        """Begin the stage `name`, now or at a time in nanoseconds since the epoch."""
        self._begin(name, {}, at)

    def run(self, kind: Kind, model: str, batch_size: int, asked: Mapping[str, Any]) -> None:
        """Begin the stage in which an engine runs the batch of `batch_size` items that the job's item is in.

        Args:
            asked: what the request asks of the model, as attributes below `gen_ai.request.`.
        """
        from opentelemetry.trace import SpanKind

        operation, output = OPERATIONS[kind]
        attributes = {
            "gen_ai.operation.name": operation,
            "gen_ai.provider.name": "tuwen",
            "gen_ai.request.model": model,
            "gen_ai.output.type": output,
            "tuwen.batch_size": batch_size,
            **{f"gen_ai.request.{name}": value for name, value in asked.items() if value is not None},
        }
        self._begin(f"{operation} {model}", attributes, None, SpanKind.CLIENT)

    def answered(self, output: object) -> None:
        """Note what the engine said of its answer."""
        if isinstance(output, DescribeResult) and self._stage is not None:
            used = {"output_tokens": output.tokens, "input_tokens": output.prompt_tokens}
            for name, tokens in used.items():
                if tokens is not None:
                    self._stage.set_attribute(f"gen_ai.usage.{name}", tokens)

    def fail(self, code: str, detail: str) -> None:
        """Mark the stage that goes on as failed."""
        if self._stage is not None:
            set_failed(self._stage, code, detail)

    def end(self, status: str, code: str | None = None, detail: str = "") -> None:
        """End the last stage and the job with its final status, and the code of its error where it has one."""
        at = time.time_ns()
        if self._stage is not None:
            self._stage.end(at)
        self._job.set_attribute("tuwen.status", status)
        if code is not None:
            set_failed(self._job, code, detail)
        self._job.end(at)

    def _begin(self, name: str, attributes: dict[str, Any], at: int | None, kind: SpanKind | None = None) -> None:
        from opentelemetry.trace import SpanKind

        at = time.time_ns() if at is None else at
        if self._stage is not None:
            self._stage.end(at)
        kind = kind or SpanKind.INTERNAL
        self._stage = self._tracer.start_span(name, self._context, kind, attributes=attributes, start_time=at)


class Untraced:
    """Stands in for `JobTrace` while tracing is off."""

    def stage(self, name: str, at: int | None = None) -> None:
        pass

    def run(self, kind: Kind, model: str, batch_size: int, asked: Mapping[str, Any]) -> None:
        pass

    def answered(self, output: object) -> None:
        pass

    def fail(self, code: str, detail: str) -> None:
        pass

    def end(self, status: str, code: str | None = None, detail: str = "") -> None:
        pass


UNTRACED = Untraced()
AnyTrace = JobTrace | Untraced


def start_job(
    queue: str, id: object, parent: Parent | None, *, waited: float, asked: int, worker: str, model: str, attempt: int
) -> AnyTrace:
    """Start the trace of a job that this worker has just claimed.

    Args:
        queue: where its message was.
        parent: the span of its submission; None when that was not traced.
        waited: seconds from when the job could have run until it was claimed.
        asked: when this worker asked for the job, in nanoseconds since the epoch.
    """
    made_by = tracer()
    if made_by is None:
        return UNTRACED
    attributes = {
        **messaging("process", queue, str(id)),
        "messaging.client.id": worker,
        "gen_ai.request.model": model,
        "tuwen.queue_time": waited,
        "tuwen.attempt": attempt,
    }
    began = min(asked, time.time_ns() - int(waited * 1e9))
    trace = JobTrace(made_by, f"process {queue}", parent, began, attributes)
    trace.stage("wait", began)
    trace.stage("claim", asked)
    return trace

"""Log lines of every process, as text or, with `TUWEN_LOG=json`, as one JSON object a line.

Each object has `timestamp`, `level`, `logger`, `message` and `pid`, and where they are known `worker`, `job_id`,
`trace_id`, `span_id` and `request_id`, `exception` (the traceback), and for a request to the API `client`, `method`,
`path`, `status`. The libraries' own lines (Celery's, uvicorn's, tornado's), Python's warnings, and exceptions that
nobody caught take the same way.
"""

from __future__ import annotations

import json
import logging
import os
import re
import sys
import threading
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

_TEXT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
_OPTIONAL = ("worker", "job_id", "trace_id", "span_id", "request_id")
_CHILD = "TUWEN_LOG_OF_PARENT"
"""Environment variables that tell an engine process the form of its parent's lines, and whose process it is."""
_WORKER = "TUWEN_LOG_WORKER"
_JOB_PATH = re.compile(r"/v1/jobs/([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})")
_CHATTY = ("httpx", "httpcore")
"""Libraries that log a line for each request that we send."""


class JsonFormatter(logging.Formatter):
    """Formats a record as a JSON object in one line."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "timestamp": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            "pid": record.process,
            "worker": os.environ.get(_WORKER),
            **_current_trace(),
            **_request(record),
        }
        line |= {name: value for name in _OPTIONAL if (value := getattr(record, name, None))}
        if record.exc_info and record.exc_info[0]:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps({name: value for name, value in line.items() if value is not None}, ensure_ascii=False)


def configure(form: str, text: str = _TEXT) -> None:
    """Send the log lines of this process to standard error, in the form `text` (formatted by `text`) or `json`."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter() if form == "json" else logging.Formatter(text))
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    for chatty in _CHATTY:
        logging.getLogger(chatty).setLevel(logging.WARNING)
    logging.captureWarnings(capture=True)
    os.environ[_CHILD] = form
    if form == "json":
        sys.excepthook = lambda *uncaught: _log_uncaught(uncaught[1])
        threading.excepthook = lambda uncaught: _log_uncaught(uncaught.exc_value)
        sys.unraisablehook = lambda uncaught: _log_uncaught(uncaught.exc_value)


def configure_child() -> None:
    """The same in a process that such a process has started."""
    configure(os.environ.get(_CHILD, "text"))


def name_worker(name: str) -> None:
    """Name the worker or housekeeper that this process and its children are, in their lines."""
    os.environ[_WORKER] = name


def complain(message: str) -> None:
    """Say why this process ends: in JSON as a line of the log, otherwise as the plain sentence."""
    if os.environ.get("TUWEN_LOG") == "json":  # the settings themselves may be what is wrong
        configure("json")
        logging.getLogger("tuwen").critical(message)
    else:
        print(message, file=sys.stderr)  # noqa: T201 (a command's own words)


def of_job(id: UUID, traceparent: str | None) -> dict[str, str]:
    """What `extra` of a log line about a job has to be; `traceparent` is that of its submission."""
    trace = traceparent.split("-")[1:3] if traceparent else []
    return {"job_id": str(id), **dict(zip(("trace_id",), trace, strict=False))}


def _log_uncaught(error: BaseException | None) -> None:
    if isinstance(error, KeyboardInterrupt):
        return
    found = (type(error), error, error.__traceback__) if error else None
    logging.getLogger("tuwen").critical("an exception that nobody caught: %r", error, exc_info=found)


def _current_trace() -> dict[str, str]:
    """The span in which this thread is, where OpenTelemetry is in use."""
    trace = sys.modules.get("opentelemetry.trace")
    context = trace.get_current_span().get_span_context() if trace else None
    if context is None or not context.is_valid:
        return {}
    return {"trace_id": f"{context.trace_id:032x}", "span_id": f"{context.span_id:016x}"}


def _request(record: logging.LogRecord) -> dict[str, Any]:
    """The parts of uvicorn's access lines."""
    if record.name != "uvicorn.access" or not isinstance(record.args, tuple):
        return {}
    client, method, path, _, status = record.args
    job = _JOB_PATH.match(str(path))
    return {"client": client, "method": method, "path": path, "status": status, "job_id": job and job[1]}

"""Every error Tuwen raises on purpose.

TuwenError
├── InvalidRequest                 422  invalid_request
│   ├── UnknownModel               422  unknown_model
│   ├── IdempotencyMismatch        422  idempotency_mismatch
│   ├── ContentRefused             422  content_refused
│   ├── UrlForbidden               422  url_forbidden
│   ├── FetchRefused               422  fetch_refused
│   ├── SourceUnusable             422  source_unusable
│   ├── DestinationUnusable        422  destination_unusable
│   └── ImageRejected              422  image_rejected
│       ├── ImageCorrupt           422  image_corrupt
│       ├── ImageTooLarge          422  image_too_large
│       ├── TooManyFrames          422  too_many_frames
│       └── UnsupportedFormat      422  unsupported_format
├── Unauthorized                   401  unauthorized
├── Forbidden                      403  forbidden
├── NotFound                       404  not_found
├── Conflict                       409  conflict
├── PayloadTooLarge                413  payload_too_large
├── QuotaExceeded                  429  quota_exceeded
├── FetchFailed                    502  fetch_failed          retryable
├── Unavailable                    503  unavailable           retryable
│   ├── DatabaseUnavailable        503  database_unavailable  retryable
│   ├── QueueUnavailable           503  queue_unavailable     retryable
│   └── StorageUnavailable         503  storage_unavailable   retryable
├── EngineError                    500  engine_error
│   ├── EngineStartFailed          500  engine_start_failed
│   ├── EngineCrashed              500  engine_crashed        retryable
│   ├── EngineHung                 500  engine_hung           retryable
│   └── OutOfMemory                500  out_of_memory
└── ConfigurationError             500  configuration_error

`code` is public and stable; `status` is the HTTP status; `retryable` says whether the same job may
succeed when it is run again. Errors of libraries are translated to one of these once, where they enter;
unexpected errors are reported to clients as `internal_error` and logged in full.
"""

from __future__ import annotations

from functools import cache
from typing import ClassVar


class TuwenError(Exception):
    """Base of every error raised on purpose; `str(error)` is safe to show to the caller."""

    code: ClassVar[str] = "internal_error"
    status: ClassVar[int] = 500
    retryable: ClassVar[bool] = False

    def __init__(self, detail: str, *, field: str | None = None, retry_after: float | None = None):
        super().__init__(detail)
        self.detail = detail
        self.field = field
        """Dotted path of the invalid request field, if there is one."""
        self.retry_after = retry_after
        """Seconds after which another attempt makes sense, if known."""

    def __reduce__(self) -> tuple[object, ...]:
        # Keyword-only arguments do not survive the default pickling, and engine errors cross processes.
        return (_rebuild, (type(self), self.detail, self.field, self.retry_after))


def _rebuild(kind: type[TuwenError], detail: str, field: str | None, retry_after: float | None) -> TuwenError:
    return kind(detail, field=field, retry_after=retry_after)


class InvalidRequest(TuwenError):
    code, status = "invalid_request", 422


class UnknownModel(InvalidRequest):
    code = "unknown_model"


class IdempotencyMismatch(InvalidRequest):
    code = "idempotency_mismatch"


class ContentRefused(InvalidRequest):
    code = "content_refused"


class UrlForbidden(InvalidRequest):
    code = "url_forbidden"


class FetchRefused(InvalidRequest):
    code = "fetch_refused"


class SourceUnusable(InvalidRequest):
    code = "source_unusable"


class DestinationUnusable(InvalidRequest):
    code = "destination_unusable"


class ImageRejected(InvalidRequest):
    code = "image_rejected"


class ImageCorrupt(ImageRejected):
    code = "image_corrupt"


class ImageTooLarge(ImageRejected):
    code = "image_too_large"


class TooManyFrames(ImageRejected):
    code = "too_many_frames"


class UnsupportedFormat(ImageRejected):
    code = "unsupported_format"


class Unauthorized(TuwenError):
    code, status = "unauthorized", 401


class Forbidden(TuwenError):
    code, status = "forbidden", 403


class NotFound(TuwenError):
    code, status = "not_found", 404


class Conflict(TuwenError):
    code, status = "conflict", 409


class PayloadTooLarge(TuwenError):
    code, status = "payload_too_large", 413


class QuotaExceeded(TuwenError):
    code, status = "quota_exceeded", 429


class FetchFailed(TuwenError):
    code, status, retryable = "fetch_failed", 502, True


class Unavailable(TuwenError):
    code, status, retryable = "unavailable", 503, True


class DatabaseUnavailable(Unavailable):
    code = "database_unavailable"


class QueueUnavailable(Unavailable):
    code = "queue_unavailable"


class StorageUnavailable(Unavailable):
    code = "storage_unavailable"


class EngineError(TuwenError):
    code = "engine_error"


class EngineStartFailed(EngineError):
    code = "engine_start_failed"


class EngineCrashed(EngineError):
    code, retryable = "engine_crashed", True


class EngineHung(EngineError):
    code, retryable = "engine_hung", True


class OutOfMemory(EngineError):
    code = "out_of_memory"


class ConfigurationError(TuwenError):
    code = "configuration_error"


@cache
def by_code() -> dict[str, type[TuwenError]]:
    """Code → error class, to raise errors again that were stored or received."""
    found: dict[str, type[TuwenError]] = {}
    waiting: list[type[TuwenError]] = [TuwenError]
    while waiting:
        kind = waiting.pop()
        # A class without its own code is a detail of the module that raises it.
        if "code" in vars(kind):
            found[kind.code] = kind
        waiting += kind.__subclasses__()
    return found

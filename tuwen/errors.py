"""Every error Tuwen raises on purpose.

TuwenError
├── InvalidRequest                 422  invalid_request
│   ├── UnknownModel               422  unknown_model
│   ├── IdempotencyMismatch        422  idempotency_mismatch
│   ├── ContentRefused             422  content_refused
│   ├── UrlForbidden               422  url_forbidden
│   ├── FetchRefused               422  fetch_refused
│   ├── PathForbidden              422  path_forbidden
│   ├── SourceUnusable             422  source_unusable
│   ├── DestinationUnusable        422  destination_unusable
│   └── ImageRejected              422  image_rejected
│       ├── ImageCorrupt           422  image_corrupt
│       ├── ImageTooLarge          422  image_too_large
│       ├── TooManyFrames          422  too_many_frames
│       └── UnsupportedFormat      422  unsupported_format
├── Unauthorized                   401  unauthorized
├── Forbidden                      403  forbidden
│   └── StorageQuotaExceeded       403  storage_quota_exceeded
├── NotFound                       404  not_found
├── Conflict                       409  conflict
├── LinkExpired                    410  link_expired
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
        self.request_id: str | None = None
        """In a client: the server's name for the request, which its log lines have too."""

    def __reduce__(self) -> tuple[object, ...]:
        # Keyword-only arguments do not survive the default pickling, and engine errors cross processes.
        return (_rebuild, (type(self), self.detail, self.field, self.retry_after))


def _rebuild(kind: type[TuwenError], detail: str, field: str | None, retry_after: float | None) -> TuwenError:
    return kind(detail, field=field, retry_after=retry_after)


class InvalidRequest(TuwenError):
    """The request cannot be done as it stands; `field` names its invalid part."""

    code, status = "invalid_request", 422


class UnknownModel(InvalidRequest):
    """No model of this name is served for the kind of job."""

    code = "unknown_model"


class IdempotencyMismatch(InvalidRequest):
    """The idempotency key was used before, with another request."""

    code = "idempotency_mismatch"


class ContentRefused(InvalidRequest):
    """The safety filter refuses the prompt or the picture."""

    code = "content_refused"


class UrlForbidden(InvalidRequest):
    """The URL of an image leads to an address that may not be reached."""

    code = "url_forbidden"


class FetchRefused(InvalidRequest):
    """The URL of an image gives none, and another attempt would not help."""

    code = "fetch_refused"


class PathForbidden(InvalidRequest):
    """The path of a file, or a link in it, leads out of the folders that may be used."""

    code = "path_forbidden"


class SourceUnusable(InvalidRequest):
    """The source of a data set cannot be read, or does not have the form that it should."""

    code = "source_unusable"


class DestinationUnusable(InvalidRequest):
    """The destination of a data set cannot be written, or holds something else."""

    code = "destination_unusable"


class ImageRejected(InvalidRequest):
    """The image cannot be used; the subclasses say why."""

    code = "image_rejected"


class ImageCorrupt(ImageRejected):
    """The image cannot be decoded."""

    code = "image_corrupt"


class ImageTooLarge(ImageRejected):
    """The image has more bytes or pixels than are allowed."""

    code = "image_too_large"


class TooManyFrames(ImageRejected):
    """The image is animated, with more frames than are read."""

    code = "too_many_frames"


class UnsupportedFormat(ImageRejected):
    """The bytes are no image of a format that is read."""

    code = "unsupported_format"


class Unauthorized(TuwenError):
    """The API key is missing or not valid."""

    code, status = "unauthorized", 401


class Forbidden(TuwenError):
    """The caller may not do this."""

    code, status = "forbidden", 403


class StorageQuotaExceeded(Forbidden):
    """The API key has stored as many bytes as it may; waiting makes no room."""

    code = "storage_quota_exceeded"


class NotFound(TuwenError):
    """Nothing has this id, or it belongs to another tenant."""

    code, status = "not_found", 404


class Conflict(TuwenError):
    """The job, data set or batch is in a state that does not allow this."""

    code, status = "conflict", 409


class LinkExpired(TuwenError):
    """The time of this URL is over; the job or image that it leads to shows a new one."""

    code, status = "link_expired", 410


class PayloadTooLarge(TuwenError):
    """The body of the request is too large."""

    code, status = "payload_too_large", 413


class QuotaExceeded(TuwenError):
    """The API key has as many unfinished jobs, data sets or batches as it may have."""

    code, status = "quota_exceeded", 429

    policy: str = "unfinished-jobs"
    """What the quota is of, as `RateLimit` names it."""
    quota: int | None = None
    """How many the key may have at once."""
    left: int | None = None
    """How many more it may have now: fewer than it asked for."""


class FetchFailed(TuwenError):
    """The image of a URL could not be fetched; another attempt may succeed."""

    code, status, retryable = "fetch_failed", 502, True


class Unavailable(TuwenError):
    """Something that the request needs does not answer; another attempt may succeed."""

    code, status, retryable = "unavailable", 503, True


class DatabaseUnavailable(Unavailable):
    """PostgreSQL does not answer."""

    code = "database_unavailable"


class QueueUnavailable(Unavailable):
    """Redis does not answer."""

    code = "queue_unavailable"


class StorageUnavailable(Unavailable):
    """The object storage does not answer."""

    code = "storage_unavailable"


class EngineError(TuwenError):
    """The engine failed on this job."""

    code = "engine_error"


class EngineStartFailed(EngineError):
    """The engine cannot load its model or run its example."""

    code = "engine_start_failed"


class EngineCrashed(EngineError):
    """The engine's process died while it was running the job."""

    code, retryable = "engine_crashed", True


class EngineHung(EngineError):
    """The engine was silent for too long and was killed."""

    code, retryable = "engine_hung", True


class OutOfMemory(EngineError):
    """The job does not fit into memory, even in a batch of its own."""

    code = "out_of_memory"


class ConfigurationError(TuwenError):
    """A setting, or what it names, cannot work."""

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

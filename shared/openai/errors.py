"""Errors in OpenAI's shape: `{"error": {"message", "type", "param", "code"}}`, with status 400 where we use 422."""

from __future__ import annotations

from typing import Any

from tuwen.errors import InvalidRequest, QuotaExceeded, TuwenError, Unauthorized, UnknownModel, by_code
from tuwen.jobs import Job, Status


class WrongKind(InvalidRequest):
    """The model exists, but serves another kind of job."""


class UnsupportedParameter(InvalidRequest):
    """A parameter that would change the answer, but is not supported here."""


def status(error: TuwenError) -> int:
    """HTTP status of an error; 400 where our own is 422."""
    if isinstance(error, UnknownModel):
        return 404
    # OpenAI's API has no 422.
    return 400 if isinstance(error, InvalidRequest) else error.status


def body(error: TuwenError) -> dict[str, Any]:
    """The object under the key `error`."""
    return {"message": error.detail, "type": _type(error), "param": _param(error.field), "code": _code(error)}


def plain_body(status: int, code: str, message: str) -> dict[str, Any]:
    """The object under the key `error`, for what HTTP itself refuses."""
    return {"message": message, "type": _type_of(status), "param": None, "code": code}


def error_of_job(job: Job) -> TuwenError:
    """Why a job that is over has no result, as the error that its worker met."""
    if job.status is Status.CANCELLED:
        return by_code()["conflict"]("The request was cancelled.")
    if job.status is Status.EXPIRED:
        return by_code()["unavailable"]("The request was not finished before its deadline.")
    if job.error is None:
        return TuwenError(f"The job is {job.status} and has no result.")
    # The worker reported errors that it did not expect as `internal_error`, which is the base class.
    return by_code().get(job.error.code, TuwenError)(job.error.detail)


def _type(error: TuwenError) -> str:
    if isinstance(error, QuotaExceeded):
        return "rate_limit_error"
    return _type_of(error.status)


def _type_of(status: int) -> str:
    return "server_error" if status >= 500 else "invalid_request_error"


def _code(error: TuwenError) -> str:
    match error:
        case UnknownModel():
            return "model_not_found"
        case WrongKind():
            return "model_not_supported"
        case UnsupportedParameter():
            return "unsupported_parameter"
        case Unauthorized():
            return "invalid_api_key"
        case QuotaExceeded():
            return "rate_limit_exceeded"
    return error.code


def _param(field: str | None) -> str | None:
    """The parameter of OpenAI's request that a field of the job came from."""
    if field is None or not field.startswith("input."):
        return field
    name = field.removeprefix("input.")
    return "messages" if name.startswith("image.") else name

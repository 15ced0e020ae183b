"""Errors as OpenAI's clients know them: `{"error": {"message", "type", "param", "code"}}`, and 400 where we say 422."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, Response

from api.http.problems import invalid_fields
from tuwen.errors import InvalidRequest, QuotaExceeded, TuwenError, Unauthorized, UnknownModel, by_code
from tuwen.jobs import Job, Status

log = logging.getLogger(__name__)


class WrongKind(InvalidRequest):
    """The model exists, and does something else."""


class UnsupportedParameter(InvalidRequest):
    """A parameter that would change the answer, and that nothing here can follow."""


class ErrorDetail(BaseModel):
    message: str
    type: str = Field(examples=["invalid_request_error"])
    param: str | None = Field(examples=["size"])
    code: str | None = Field(description="stable name of the error, for programs", examples=["invalid_request"])


class OpenAIError(BaseModel):
    """What went wrong, in OpenAI's shape."""

    error: ErrorDetail


RESPONSES: dict[int | str, dict[str, Any]] = {"default": {"model": OpenAIError, "description": "Error"}}
"""`responses` of a router of such routes."""


class OpenAIRoute(APIRoute):
    """A route whose errors all have OpenAI's shape, those of its dependencies too."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def handle_and_translate(request: Request) -> Response:
            try:
                return await handle(request)
            except (ClientDisconnect, HTTPException):
                raise
            except RequestValidationError as error:
                return respond(invalid_fields(error.errors()))
            except TuwenError as error:
                if error.status >= 500:
                    log.warning("%s: %s", error.code, error.detail, exc_info=error)
                return respond(error)
            except Exception:
                log.exception("%s %s failed", request.method, request.url.path)
                return respond(TuwenError("Something unforeseen went wrong; it has been logged."))

        return handle_and_translate


def respond(error: TuwenError) -> Response:
    headers = {"Cache-Control": "no-store"}
    if error.retry_after is not None:
        headers["Retry-After"] = str(max(1, math.ceil(error.retry_after)))
    if isinstance(error, Unauthorized):
        headers["WWW-Authenticate"] = 'Bearer realm="tuwen"'
    return JSONResponse({"error": body(error)}, status(error), headers)


def status(error: TuwenError) -> int:
    if isinstance(error, UnknownModel):
        return 404
    # OpenAI knows no 422.
    return 400 if isinstance(error, InvalidRequest) else error.status


def body(error: TuwenError) -> dict[str, Any]:
    """What stands under `error`."""
    return {"message": error.detail, "type": _type(error), "param": _param(error.field), "code": _code(error)}


def of_job(job: Job) -> TuwenError:
    """Why a job that is over has no result, as the error that its worker met."""
    if job.status is Status.CANCELLED:
        return by_code()["conflict"]("The request was cancelled.")
    if job.status is Status.EXPIRED:
        return by_code()["unavailable"]("The request was not done before its deadline.")
    if job.error is None:
        return TuwenError(f"The job is {job.status}.")
    # What the worker could not foresee it told as `internal_error`, which is the base class.
    return by_code().get(job.error.code, TuwenError)(job.error.detail)


def _type(error: TuwenError) -> str:
    if isinstance(error, QuotaExceeded):
        return "rate_limit_error"
    return "server_error" if error.status >= 500 else "invalid_request_error"


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
    """The parameter of the request that a field of the job came from."""
    if field is None or not field.startswith("input."):
        return field
    name = field.removeprefix("input.")
    return "messages" if name.startswith("image.") else name

"""Routes whose errors all have OpenAI's shape."""

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

from api.http.revocation import hold_of
from shared.intake.validation import invalid_fields
from shared.openai.errors import body, status
from tuwen.errors import TuwenError, Unauthorized

log = logging.getLogger(__name__)


class ErrorDetail(BaseModel):
    """The fields of an error in OpenAI's shape."""

    message: str
    type: str = Field(examples=["invalid_request_error"])
    param: str | None = Field(examples=["size"])
    code: str | None = Field(description="stable name of the error, for programs", examples=["invalid_request"])


class OpenAIError(BaseModel):
    """What went wrong, in OpenAI's shape."""

    error: ErrorDetail


RESPONSES: dict[int | str, dict[str, Any]] = {"default": {"model": OpenAIError, "description": "Error"}}
"""`responses` of a router whose errors have OpenAI's shape."""


class OpenAIRoute(APIRoute):
    """A route whose errors all have OpenAI's shape, including those of its dependencies."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def handle_and_translate(request: Request) -> Response:
            hold_of(request).answer = respond
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
                return respond(TuwenError("An unexpected error occurred; it has been logged."))

        return handle_and_translate


def respond(error: TuwenError) -> Response:
    """Answer with an error in OpenAI's shape."""
    headers = {"Cache-Control": "no-store"}
    if error.retry_after is not None:
        headers["Retry-After"] = str(max(1, math.ceil(error.retry_after)))
    if isinstance(error, Unauthorized):
        headers["WWW-Authenticate"] = 'Bearer realm="tuwen"'
    return JSONResponse({"error": body(error)}, status(error), headers)

"""Every error leaves the API as problem details (RFC 9457), with a stable `code` and the invalid fields.

On the paths of OpenAI's API, and on those under `/v1` that are unknown, the same document also has OpenAI's `error`,
and OpenAI's status. So its clients read the errors of every path that they may ask for, and ours read the same answer.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping, Sequence
from http import HTTPStatus

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.http import request_ids
from api.http.rate_limits import exceeded_headers
from shared.intake.validation import InvalidFields, invalid_fields
from shared.openai import errors as openai_errors
from tuwen.errors import QuotaExceeded, TuwenError, Unauthorized
from tuwen.messages import FieldError

log = logging.getLogger(__name__)

MEDIA_TYPE = "application/problem+json"


OPENAI_MEDIA_TYPE = "application/json"
NATIVE = ("jobs", "datasets")
"""What follows `/v1/` on the paths that OpenAI's API does not have."""


def is_openai(path: str) -> bool:
    """Whether errors of this path have OpenAI's shape: its own paths, and unknown ones under `/v1`."""
    _, version, room, *_ = [*path.split("/"), "", ""]
    return version == "v1" and room not in NATIVE


def respond(
    status: int,
    code: str,
    detail: str,
    *,
    path: str = "",
    errors: Sequence[FieldError] = (),
    headers: Mapping[str, str] | None = None,
    openai_error: Mapping[str, object] | None = None,
    request_id: str | None = None,
) -> Response:
    """Answer with problem details; where `path` is one of OpenAI's API, in its shape as well.

    `request_id` is by default that of the current request.
    """
    problem: dict[str, object] = {
        "type": f"urn:tuwen:problem:{code}",
        "title": HTTPStatus(status).phrase,
        "status": status,
        "detail": detail,
        "code": code,
        "errors": [error.model_dump() for error in errors],
        "request_id": request_id or request_ids.current(),
    }
    media_type = MEDIA_TYPE
    if is_openai(path):
        problem = {"error": openai_error or openai_errors.plain_body(status, code, detail), **problem}
        media_type = OPENAI_MEDIA_TYPE
    # A lone surrogate quoted from the request becomes a question mark, because strict parsers refuse even an escaped
    # one.
    body = json.dumps(problem, ensure_ascii=False).encode("utf-8", "replace")
    return Response(body, status, {"Cache-Control": "no-store", **(headers or {})}, media_type)


def respond_to(error: TuwenError, path: str = "") -> Response:
    """Answer with the problem details of an error, where `path` is one of OpenAI's API in its shape and status."""
    headers = {}
    if error.retry_after is not None:
        headers["Retry-After"] = str(max(1, math.ceil(error.retry_after)))
    if isinstance(error, Unauthorized):
        headers["WWW-Authenticate"] = 'Bearer realm="tuwen"'
    if isinstance(error, QuotaExceeded):
        headers |= exceeded_headers(error)
    if isinstance(error, InvalidFields):
        errors = error.errors
    else:
        errors = [FieldError(field=error.field, detail=error.detail)] if error.field else []
    status = openai_errors.status(error) if is_openai(path) else error.status
    openai_error = openai_errors.body(error)
    return respond(
        status, error.code, error.detail, path=path, errors=errors, headers=headers, openai_error=openai_error
    )


def install(app: FastAPI) -> None:
    """Make `app` answer every error of its routes with problem details."""

    @app.exception_handler(TuwenError)
    async def _tuwen_error(request: Request, error: TuwenError) -> Response:
        if error.status >= 500:
            # Requests that were refused at once, possibly by the hundred, have no cause worth a traceback.
            log.warning("%s: %s", error.code, error.detail, exc_info=error if error.__cause__ else None)
        return respond_to(error, request.scope["path"])

    @app.exception_handler(RequestValidationError)
    async def _invalid(request: Request, error: RequestValidationError) -> Response:
        return respond_to(invalid_fields(error.errors()), request.scope["path"])

    @app.exception_handler(HTTPException)
    async def _http_error(request: Request, error: HTTPException) -> Response:
        status = HTTPStatus(error.status_code)
        code = "internal_error" if status >= 500 else status.phrase.lower().replace(" ", "_")
        detail = _DETAILS.get(status, str(error.detail))
        return respond(status, code, detail, path=request.scope["path"], headers=error.headers)

    @app.exception_handler(ClientDisconnect)
    async def _client_left(_: Request, __: ClientDisconnect) -> Response:
        return Response(status_code=400)  # counted in the metrics only: the client is gone


class LastResort:
    """ASGI middleware that answers unexpected errors: the client learns no details, and the log has all of them.

    A handler for Exception would suffice if Starlette did not raise the error again for the server, which then logs it
    a second time and drops the connection.
    """

    def __init__(self, app: ASGIApp):
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = False

        async def send_noted(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self._app(scope, receive, send_noted)
        except Exception:
            if started or scope["type"] != "http":
                raise
            log.exception("%s %s failed", scope["method"], scope["path"])
            detail = "An unexpected error occurred; it has been logged."
            problem = respond(500, "internal_error", detail, path=scope["path"])
            await problem(scope, receive, send)


NOT_ALLOWED = "This path does not support this method; the header Allow names those that it does."
_DETAILS = {
    HTTPStatus.NOT_FOUND: "There is nothing at this path.",
    HTTPStatus.METHOD_NOT_ALLOWED: NOT_ALLOWED,
}

"""Every error leaves the API as problem details (RFC 9457), with a stable `code` and the invalid fields."""

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

from shared.intake.validation import InvalidFields, invalid_fields
from tuwen.errors import TuwenError, Unauthorized
from tuwen.messages import FieldError

log = logging.getLogger(__name__)

MEDIA_TYPE = "application/problem+json"


def respond(
    status: int, code: str, detail: str, *, errors: Sequence[FieldError] = (), headers: Mapping[str, str] | None = None
) -> Response:
    """Answer with problem details."""
    problem = {
        "type": f"urn:tuwen:problem:{code}",
        "title": HTTPStatus(status).phrase,
        "status": status,
        "detail": detail,
        "code": code,
        "errors": [error.model_dump() for error in errors],
    }
    # A lone surrogate quoted from the request becomes a question mark, because strict parsers refuse even an escaped
    # one.
    body = json.dumps(problem, ensure_ascii=False).encode("utf-8", "replace")
    return Response(body, status, {"Cache-Control": "no-store", **(headers or {})}, MEDIA_TYPE)


def respond_to(error: TuwenError) -> Response:
    """Answer with the problem details of an error."""
    headers = {}
    if error.retry_after is not None:
        headers["Retry-After"] = str(max(1, math.ceil(error.retry_after)))
    if isinstance(error, Unauthorized):
        headers["WWW-Authenticate"] = 'Bearer realm="tuwen"'
    if isinstance(error, InvalidFields):
        errors = error.errors
    else:
        errors = [FieldError(field=error.field, detail=error.detail)] if error.field else []
    return respond(error.status, error.code, error.detail, errors=errors, headers=headers)


def install(app: FastAPI) -> None:
    """Make `app` answer every error of its routes with problem details."""

    @app.exception_handler(TuwenError)
    async def _tuwen_error(_: Request, error: TuwenError) -> Response:
        if error.status >= 500:
            # Requests that were refused at once, possibly by the hundred, have no cause worth a traceback.
            log.warning("%s: %s", error.code, error.detail, exc_info=error if error.__cause__ else None)
        return respond_to(error)

    @app.exception_handler(RequestValidationError)
    async def _invalid(_: Request, error: RequestValidationError) -> Response:
        return respond_to(invalid_fields(error.errors()))

    @app.exception_handler(HTTPException)
    async def _http_error(_: Request, error: HTTPException) -> Response:
        status = HTTPStatus(error.status_code)
        code = "internal_error" if status >= 500 else status.phrase.lower().replace(" ", "_")
        return respond(status, code, _DETAILS.get(status, str(error.detail)), headers=error.headers)

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
            problem = respond(500, "internal_error", "An unexpected error occurred; it has been logged.")
            await problem(scope, receive, send)


_DETAILS = {
    HTTPStatus.NOT_FOUND: "There is nothing at this path.",
    HTTPStatus.METHOD_NOT_ALLOWED: "This path does not support this method.",
}

"""Every error leaves the API as problem details (RFC 9457), with a stable `code` and the fields to blame."""

from __future__ import annotations

import json
import logging
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tuwen.errors import InvalidRequest, TuwenError, Unauthorized
from tuwen.jobs import Kind
from tuwen.messages import FieldError

log = logging.getLogger(__name__)

MEDIA_TYPE = "application/problem+json"
MOST_ERRORS = 20
_LONGEST_FIELD = 200
_ENUM_MEMBER = re.compile(r"<\w+\.\w+: ('\w+')>")
_KINDS = frozenset(kind.value for kind in Kind)


class InvalidFields(InvalidRequest):
    """Several fields of a request are wrong."""

    def __init__(self, errors: Sequence[FieldError]):
        first = errors[0]
        more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
        super().__init__(f"{first.field}: {first.detail}{more}", field=first.field)
        self.errors = list(errors)


def invalid_fields(errors: Iterable[Mapping[str, Any]]) -> InvalidFields:
    """pydantic's errors, in the caller's words: no echo of the input, which may be huge or secret."""
    named = [FieldError(field=field_path(error["loc"]), detail=_worded(str(error["msg"]))) for error in errors]
    return InvalidFields(named[:MOST_ERRORS])


def _worded(message: str) -> str:
    """Without what only Python programmers know: `Value error, …` and `<Kind.MATCH: 'match'>`."""
    return _ENUM_MEMBER.sub(r"\1", message.removeprefix("Value error, "))


def field_path(location: Sequence[str | int]) -> str:
    """`input.prompt` from pydantic's ("body", "input", "generate", "prompt").

    pydantic puts the name of the union's member between the field and what is below it; no caller wrote that.
    """
    parts = [str(part) for part in location]
    if parts[:1] in (["body"], ["query"], ["path"], ["header"]):
        parts = parts[1:]
    kept = [
        part for before, part in zip(["", *parts], parts, strict=False) if not (before == "input" and part in _KINDS)
    ]
    return ".".join(kept)[:_LONGEST_FIELD] or "body"


def respond(
    status: int, code: str, detail: str, *, errors: Sequence[FieldError] = (), headers: Mapping[str, str] | None = None
) -> Response:
    problem = {
        "type": f"urn:tuwen:problem:{code}",
        "title": HTTPStatus(status).phrase,
        "status": status,
        "detail": detail,
        "code": code,
        "errors": [error.model_dump() for error in errors],
    }
    # A lone surrogate quoted from the request becomes a question mark: strict parsers refuse even an escaped one.
    body = json.dumps(problem, ensure_ascii=False).encode("utf-8", "replace")
    return Response(body, status, {"Cache-Control": "no-store", **(headers or {})}, MEDIA_TYPE)


def respond_to(error: TuwenError) -> Response:
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
    """Make every error that routes of `app` raise a problem."""

    @app.exception_handler(TuwenError)
    async def _tuwen_error(_: Request, error: TuwenError) -> Response:
        if error.status >= 500:
            # Those that were turned away, at once and by the hundred, have no cause to show.
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
        return Response(status_code=400)  # for the figures only: nobody is there to read it


class LastResort:
    """ASGI middleware that answers for what nobody foresaw: nothing of it outside, everything in the log.

    A handler for Exception would do, if Starlette did not raise it again for the server, which then logs it once more
    and drops the connection.
    """

    def __init__(self, app: ASGIApp):
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = False

        async def noting(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self._app(scope, receive, noting)
        except Exception:
            if started or scope["type"] != "http":
                raise
            log.exception("%s %s failed", scope["method"], scope["path"])
            problem = respond(500, "internal_error", "Something unforeseen went wrong; it has been logged.")
            await problem(scope, receive, send)


_DETAILS = {
    HTTPStatus.NOT_FOUND: "There is nothing under this path.",
    HTTPStatus.METHOD_NOT_ALLOWED: "This path does not know this method.",
}

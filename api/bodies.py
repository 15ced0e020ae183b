"""Request bodies: bounded before anything reads them, and parsed to name the field that is wrong."""

from __future__ import annotations

import asyncio
import json
import math
import sys
from collections.abc import Awaitable, Callable
from typing import TypeVar

from pydantic import BaseModel, ValidationError
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.problems import invalid_fields, respond
from shared.errors import InvalidRequest, PayloadTooLarge

Model = TypeVar("Model", bound=BaseModel)

SILENCE = 30.0
"""Seconds without a byte of a body that was announced, after which the connection is given up."""
_LINGER_SECONDS = 2.0
_LINGER_BYTES = 16 * 2**20


class _TooMuch(Exception):
    pass


class _Silent(Exception):
    pass


class BodyLimit:
    """ASGI middleware that answers 413 as soon as a body is, or says it is, longer than `limit` bytes.

    What Content-Length says is believed only when it is too much; the bytes that really come are counted too. So
    memory stays flat whatever a client sends.
    """

    def __init__(self, app: ASGIApp, limit: int):
        self._app = app
        self._limit = limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = False

        async def remembering(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            if _declared_length(scope) > self._limit:
                raise _TooMuch
            await self._app(scope, self._counting(receive), remembering)
        except _TooMuch:
            if started:
                raise
            await _refuse(receive, send, PayloadTooLarge(f"The body is longer than {self._limit} bytes."))
        except _Silent:
            if started:
                raise
            await respond(408, "request_timeout", "The body did not arrive.", headers={"Connection": "close"})(
                scope, receive, send
            )

    def _counting(self, receive: Receive) -> Callable[[], Awaitable[Message]]:
        length, complete = 0, False

        async def counted() -> Message:
            nonlocal length, complete
            if complete:
                return await receive()  # waits for the disconnect, as long as the answer takes
            try:
                message = await asyncio.wait_for(receive(), SILENCE)
            except TimeoutError:
                raise _Silent from None
            length += len(message.get("body", b""))
            complete = not message.get("more_body", False)
            if length > self._limit:
                raise _TooMuch
            return message

        return counted


async def _refuse(receive: Receive, send: Send, error: PayloadTooLarge) -> None:
    """Answer while the client is still sending.

    Closing at once would reset the connection, and the reset may overtake the answer. So the answer is sent, then
    what comes is thrown away for a moment, then the connection is closed.
    """
    response = respond(error.status, error.code, error.detail, headers={"Connection": "close"})
    await send({"type": "http.response.start", "status": response.status_code, "headers": response.raw_headers})
    await send({"type": "http.response.body", "body": response.body, "more_body": True})
    try:
        async with asyncio.timeout(_LINGER_SECONDS):
            await _discard(receive)
    except TimeoutError:
        pass
    await send({"type": "http.response.body", "body": b""})


async def _discard(receive: Receive) -> None:
    length = 0
    while length < _LINGER_BYTES:
        message = await receive()
        if message["type"] == "http.disconnect" or not message.get("more_body", False):
            return
        length += len(message["body"])


def _declared_length(scope: Scope) -> int:
    for name, value in scope["headers"]:
        if name == b"content-length" and value.isdigit():
            return int(value[:20])
    return 0


def parse(model: type[Model], body: bytes) -> Model:
    """`body`, JSON, as `model`.

    Raises:
        InvalidRequest: naming the fields that are wrong, or the place where the JSON breaks.
    """
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        found = error.errors(include_url=False, include_context=False, include_input=False)
    if found[0]["type"] == "json_invalid":
        # The strict parser knows a line and a column; the lenient one lets a lone surrogate through to its field.
        raise _blame_field(model, body) or InvalidRequest(f"The body is not JSON: {found[0]['msg']}", field="body")
    raise invalid_fields(found)


def _blame_field(model: type[Model], body: bytes) -> InvalidRequest | None:
    try:
        model.model_validate(json.loads(body, parse_int=_integer))
    except ValidationError as error:
        return invalid_fields(error.errors(include_url=False, include_context=False, include_input=False))
    except (ValueError, RecursionError):
        return None
    return None


def _integer(digits: str) -> float:
    # Python refuses to convert more digits than this, without saying where they stood.
    return int(digits) if len(digits) <= sys.int_info.default_max_str_digits else math.inf

"""Request bodies: bounded before anything reads them, and parsed to name the field that is wrong."""

from __future__ import annotations

import asyncio
import json
import math
import sys
from contextlib import suppress
from typing import TypeVar

from pydantic import BaseModel, ValidationError
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.http.problems import invalid_fields, respond, respond_to
from tuwen.errors import InvalidRequest, PayloadTooLarge

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
        body = _Body(scope, receive, send, self._limit)
        too_much = PayloadTooLarge(f"The body is longer than {self._limit} bytes.")
        try:
            if body.declared > self._limit:
                raise _TooMuch
            await self._app(scope, body.receive, body.send)
        except _TooMuch:
            if body.answered:
                raise
            await respond_to(too_much)(scope, body.receive, body.send)
        except _Silent:
            if body.answered:
                raise
            problem = respond(408, "request_timeout", "The body did not arrive.", headers={"Connection": "close"})
            await problem(scope, receive, send)


class _Body:
    """One request's body on its way in, and the answer on its way out."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, limit: int):
        headers = Headers(scope=scope)
        length = headers.get("content-length", "0")
        self.declared = int(length[:20]) if length.isascii() and length.isdigit() else 0
        self.answered = False
        self._endless = "transfer-encoding" in headers or self.declared > limit
        self._receive = receive
        self._send = send
        self._limit = limit
        self._length = 0
        self._complete = False

    async def receive(self) -> Message:
        if self._complete:
            return await self._receive()  # waits for the disconnect, as long as the answer takes
        try:
            message = await asyncio.wait_for(self._receive(), SILENCE)
        except TimeoutError:
            raise _Silent from None
        self._count(message)
        if self._length > self._limit:
            raise _TooMuch
        return message

    async def send(self, message: Message) -> None:
        """Answer a client that may still be sending, without an end or without one that is worth waiting for.

        The connection is closed then. Closing at once would reset it, and the reset may overtake the answer; so what
        comes is thrown away for a moment before.
        """
        unread = self._endless and not self._complete
        if message["type"] == "http.response.start":
            self.answered = True
            if unread:
                MutableHeaders(scope=message)["Connection"] = "close"
        elif unread and not message.get("more_body", False):
            await self._send({**message, "more_body": True})
            await self._discard()
            message = {"type": "http.response.body", "body": b""}
        await self._send(message)

    async def _discard(self) -> None:
        most = self._length + _LINGER_BYTES
        with suppress(TimeoutError):
            async with asyncio.timeout(_LINGER_SECONDS):
                while not self._complete and self._length < most:
                    self._count(await self._receive())

    def _count(self, message: Message) -> None:
        self._length += len(message.get("body", b""))
        self._complete = not message.get("more_body", False)


def parse(model: type[Model], body: bytes) -> Model:
    """`body`, JSON, as `model`.

    Raises:
        InvalidRequest: naming the fields that are wrong, or the place where the JSON breaks.
    """
    try:
        return model.model_validate_json(body, strict=True)
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

"""Request bodies: limited in size before anything reads them. `api.http.connections` limits how long they may take."""

from __future__ import annotations

import asyncio
from contextlib import suppress

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.http.problems import respond_to
from tuwen.errors import PayloadTooLarge

_LINGER_SECONDS = 2.0
_LINGER_BYTES = 16 * 2**20


class _TooMuch(Exception):
    pass


class BodyLimit:
    """ASGI middleware that answers 413 as soon as a body is longer than `limit` bytes, or is announced to be.

    A Content-Length above the limit is enough to refuse; otherwise the bytes that arrive are counted. So memory use
    stays flat whatever a client sends.
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
            await respond_to(too_much, scope["path"])(scope, body.receive, body.send)


class _Body:
    """The incoming body of one request, and its outgoing answer."""

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
            return await self._receive()  # waits for the disconnect while the answer is sent
        message = await self._receive()
        self._count(message)
        if self._length > self._limit:
            raise _TooMuch
        return message

    async def send(self, message: Message) -> None:
        """Answer a client that may still be sending, and whose body may never end or end too late to wait for.

        The connection is closed afterwards. Closing at once would reset it, and the reset may overtake the answer; so
        incoming bytes are discarded for a moment first.
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

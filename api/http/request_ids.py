"""A name for each request: `x-request-id`, which client, log and trace have in common.

A client may choose it, as OpenAI's clients and most proxies do; a name that could not stand in a log line is replaced.
Every answer has it, and so have problem details, the log lines that are written for a request, and its span.
"""

from __future__ import annotations

import logging
import re
from contextvars import ContextVar
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uuid_utils.compat import uuid7

HEADER = "x-request-id"
LOG_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s%(request)s"
"""For loggers whose records come from `note_in_logs`."""
_SANE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/+=@~-]{0,127}", re.ASCII)

_current: ContextVar[str | None] = ContextVar("request_id", default=None)


def current() -> str | None:
    """Id of the request that this task or thread works for; None outside requests."""
    return _current.get()


def choose(given: str | None) -> str:
    """Return the id that the client gave, if it can be used: 1 to 128 letters, digits and `._:/+=@~-`; or a new one."""
    return given if given is not None and _SANE.fullmatch(given) else str(uuid7())


class RequestIds:
    """ASGI middleware that gives each request its id, and each answer the header."""

    def __init__(self, app: ASGIApp):
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        id = choose(Headers(scope=scope).get(HEADER))
        # Never reset: each request has a task, and so a context, of its own, which its threads copy.
        _current.set(id)

        async def send_named(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)[HEADER] = id
            await send(message)

        await self._app(scope, receive, send_named)


def note_in_logs() -> None:
    """Give every log record of this process `request_id`, and `request`: the same for the end of a line."""
    make = logging.getLogRecordFactory()

    def make_named(*args: Any, **kwargs: Any) -> logging.LogRecord:
        record = make(*args, **kwargs)
        id = current()
        vars(record).update(request_id=id, request=f" [request {id}]" if id else "")
        return record

    logging.setLogRecordFactory(make_named)

"""Requests of a key that is revoked while they are under way, such as streams, waits, uploads and downloads, end.

One look at PostgreSQL a second, for all requests of this process together, finds the keys that are not active any more,
whichever process revoked them. An event stream ends with an event that says why, a request that has not been answered
is answered with 401, and the connection of a download is closed before its end, which clients take for an error. While
PostgreSQL does not answer, nothing is known of any key, and everything goes on.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from anyio.to_thread import run_sync
from fastapi import Request
from fastapi.sse import format_sse_event
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.http.problems import respond_to
from shared.database import Database
from tuwen.errors import DatabaseUnavailable, TuwenError, Unauthorized

log = logging.getLogger(__name__)

LOOK = 1.0
"""Seconds between two looks."""
_HOLD = "tuwen.hold"


def _last_event(error: TuwenError) -> bytes:
    """The event `error`, whose data are the problem details."""
    return format_sse_event(event="error", data_str=bytes(respond_to(error).body).decode())


@dataclass(eq=False, slots=True)
class Hold:
    """A request under way, and how a stream tells its client of an error."""

    last_event: Callable[[TuwenError], bytes] = _last_event
    """Makes the event that ends a stream."""
    task: asyncio.Task[object] | None = field(default_factory=asyncio.current_task)
    revoked: bool = False
    forget: Callable[[], None] | None = None
    """What to call when it is over."""

    def release(self) -> None:
        """Note that it is over: nobody cancels its task any more, and a cancellation that was meant for it is over."""
        if self.forget is not None:
            self.forget()
        if self.revoked and self.task is not None:
            self.task.uncancel()


def hold_of(request: Request) -> Hold:
    """The hold of a request; one that is never ended in an open installation, which has no keys."""
    hold: Hold = request.scope.setdefault(_HOLD, Hold())
    return hold


class Holds:
    """The requests of one process that were made with keys; used in one event loop from `start` to `close`."""

    def __init__(self, database: Database, forget: Callable[[str], object]):
        """`forget` is called with the hash of each key that is found to be revoked."""
        self._database = database
        self._forget = forget
        self._held: dict[str, set[Hold]] = {}
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Start to look for revoked keys."""
        self._task = asyncio.create_task(self._look())

    async def close(self) -> None:
        """Stop looking."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def add(self, hold: Hold, key: str) -> None:
        """End this request when the key with this hash is revoked, unless it is over before."""
        self._held.setdefault(key, set()).add(hold)
        hold.forget = partial(self._discard, hold, key)

    def _discard(self, hold: Hold, key: str) -> None:
        held = self._held.get(key, set())
        held.discard(hold)
        if not held:
            self._held.pop(key, None)

    async def _look(self) -> None:
        while True:
            await asyncio.sleep(LOOK)
            if not self._held:
                continue
            keys = list(self._held)
            try:
                active = await run_sync(self._database.keys.active, keys)
            except DatabaseUnavailable as error:
                log.debug("cannot look for revoked keys: %s", error)
                continue
            except Exception:
                log.exception("looking for revoked keys failed")
                continue
            for key in keys:
                if key not in active:
                    self._end(key)

    def _end(self, key: str) -> None:
        self._forget(key)
        held = [hold for hold in self._held.get(key, ()) if not hold.revoked]
        if held:
            log.info("a key was revoked: %d requests made with it end", len(held))
        for hold in held:
            hold.revoked = True
            if hold.task is not None:
                hold.task.cancel()


class EndWhenRevoked:
    """ASGI middleware that ends a request whose key was revoked; the task of such a request is cancelled."""

    def __init__(self, app: ASGIApp):
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        hold = scope[_HOLD] = Hold()
        started: str | None = None

        async def send_noted(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = dict(message["headers"]).get(b"content-type", b"").decode("latin-1")
            await send(message)

        ended = False
        try:
            await self._app(scope, receive, send_noted)
        except asyncio.CancelledError:
            if not hold.revoked:
                raise  # the server stops
            ended = True
        finally:
            hold.release()
        if ended:
            await self._tell(hold, started, scope, receive, send)

    @staticmethod
    async def _tell(hold: Hold, started: str | None, scope: Scope, receive: Receive, send: Send) -> None:
        error = Unauthorized("This API key was revoked while the request was under way, so the request ends here.")
        if started is None:
            await respond_to(error, scope["path"])(scope, receive, send)
        elif started.startswith("text/event-stream"):
            await send({"type": "http.response.body", "body": hold.last_event(error)})
        else:
            # The body stays incomplete, so the server closes the connection.
            log.warning("%s %s was cut off: its key was revoked", scope["method"], scope["path"])

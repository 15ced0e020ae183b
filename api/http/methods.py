"""Methods: HEAD wherever GET is, 405 with every method that a path knows, and answers to OPTIONS."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from anyio import CancelScope
from starlette.datastructures import MutableHeaders
from starlette.responses import Response
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.http.problems import NOT_ALLOWED, respond


class HeadAsGet:
    """ASGI middleware that answers HEAD as it would GET, without the body.

    The application is stopped as soon as the header fields are sent: a body that is long or endless is never made.
    """

    def __init__(self, app: ASGIApp):
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "HEAD":
            await self._app(scope, receive, send)
            return
        # Ranges are defined for GET alone (RFC 9110, 14.2).
        headers = [(name, value) for name, value in scope["headers"] if name != b"range"]
        as_get: dict[str, Any] = {**scope, "method": "GET", "headers": headers}
        with CancelScope() as rest:

            async def send_head(message: Message) -> None:
                if message["type"] == "http.response.start":
                    scope["route"] = as_get.get("route")  # for the middleware outside this one
                    await send(message)
                    rest.cancel()

            await self._app(as_get, receive, send_head)
        await send({"type": "http.response.body", "body": b""})


class Methods:
    """ASGI middleware that knows the methods of each path.

    A path without parameters goes before those with: `GET /v1/jobs/batch` asks for no job with the id `batch`.
    """

    def __init__(self, app: ASGIApp, routes: Sequence[BaseRoute]):
        self._app = app
        self._routes = [route for route in routes if isinstance(route, Route)]
        self._literal: dict[str, set[str]] = {}
        for route in self._routes:
            if not route.param_convertors:
                self._literal.setdefault(route.path, set()).update(route.methods or ())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        path, method = scope["path"], scope["method"]
        if path != "/" and path.endswith("/") and not self.allowed(path) and self.allowed(path.rstrip("/")):
            await _without_slash(scope)(scope, receive, send)
            return
        if method == "OPTIONS" and (known := self.allowed(path)):
            await Response(status_code=204, headers={"Allow": known})(scope, receive, send)
            return
        if method not in self._literal.get(path, (method,)):
            await respond(405, "method_not_allowed", NOT_ALLOWED, path=path, headers={"Allow": self.allowed(path)})(
                scope, receive, send
            )
            return

        async def send_allowed(message: Message) -> None:
            if message["type"] == "http.response.start" and message["status"] == 405:
                # What is none of the routes are the files of the documentation.
                MutableHeaders(scope=message)["Allow"] = self.allowed(path) or "GET, HEAD"
            await send(message)

        await self._app(scope, receive, send_allowed)

    def allowed(self, path: str) -> str:
        """The value of `Allow` for a path; empty for an unknown one."""
        known = self._literal.get(path) or set().union(
            *(route.methods or () for route in self._routes if route.path_regex.match(path))
        )
        if not known:
            return ""
        return ", ".join(sorted(known | {"OPTIONS"} | ({"HEAD"} if "GET" in known else set())))


def _without_slash(scope: Scope) -> Response:
    """Redirect to the same path without the slash at its end; relative, so that no Host that is claimed is in it."""
    address = scope["raw_path"].rstrip(b"/") + (b"?" + scope["query_string"] if scope["query_string"] else b"")
    return Response(status_code=307, headers={"Location": address.decode("ascii", "replace")})

"""Spans for requests, when the environment asks for traces."""

from __future__ import annotations

from fastapi.routing import APIRoute
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.http import request_ids
from shared.telemetry import tracing


class Traced:
    """ASGI middleware that records a span for each request, in the caller's trace when the request names one."""

    def __init__(self, app: ASGIApp):
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status = 0

        async def send_noted(message: Message) -> None:
            nonlocal status
            status = message.get("status", status)
            await send(message)

        with tracing.request_span(scope["method"], Headers(scope=scope)) as span:
            await self._app(scope, receive, send_noted)
            if span is not None:
                span.set_attribute("tuwen.request_id", request_ids.current() or "")
                route = scope.get("route")
                if isinstance(route, APIRoute):
                    span.update_name(f"{scope['method']} {route.path}")
                    span.set_attribute("http.route", route.path)
                span.set_attribute("http.request.method", scope["method"])
                span.set_attribute("http.response.status_code", status)

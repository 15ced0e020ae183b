"""Server-sent events: what the routes that send them share.

A route that always streams is a generator of `ServerSentEvent` with the response class `EventSourceResponse`: FastAPI
encodes the events, and sends a comment whenever there was none for 15 seconds. A route of OpenAI's API streams only if
the body says so, which such a route cannot: it encodes its events with `format_sse_event` and answers with `stream`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute
from fastapi.sse import EventSourceResponse

EVENTS: dict[int | str, dict[str, Any]] = {200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}}}
"""`responses` of a route that always streams, for readers of OpenAPI 3.1, which do not know `itemSchema`."""


class StreamingRoute(APIRoute):
    """A route whose events no cache stores: the `no-cache` that FastAPI sends with them would allow it."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return FastAPI's handler, with one header of an event stream replaced."""
        handle = super().get_route_handler()

        async def handle_unstored(request: Request) -> Response:
            response = await handle(request)
            if response.media_type == EventSourceResponse.media_type:
                response.headers["Cache-Control"] = "no-store"
            return response

        return handle_unstored


def stream(events: AsyncIterator[bytes], headers: Mapping[str, str] | None = None) -> EventSourceResponse:
    """Answer with events that are encoded already. Caches do not store them, and proxies do not collect them."""
    unstored = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    return EventSourceResponse(events, headers={**unstored, **(headers or {})})

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
from pydantic import BaseModel

from api.http.reference import reference_to
from tuwen.messages import Problem


def event_stream(*events: dict[str, Any]) -> dict[str, Any]:
    """The media type of a stream of these events, as an entry of a response's `content`.

    OpenAPI 3.1 knows text only: that the text is a list of events, JSON Schema's `contentSchema` says.
    """
    schema = {
        "type": "string",
        "contentMediaType": "text/event-stream",
        "contentSchema": {"type": "array", "items": {"oneOf": list(events)}},
    }
    return {"text/event-stream": {"schema": schema}}


def event(data: type[BaseModel], name: str | None = None) -> dict[str, Any]:
    """The schema of an event whose data is `data` as JSON; nameless ones have no field `event`."""
    text = {"type": "string", "contentMediaType": "application/json", "contentSchema": reference_to(data)}
    named = {"event": {"const": name}} if name else {}
    return {"type": "object", "required": [*named, "data"], "properties": {**named, "data": text}}


def streaming(*events: dict[str, Any]) -> dict[int | str, dict[str, Any]]:
    """`responses` of a route that always streams these events, and at last perhaps why it ends early."""
    return {200: {"description": "Server-sent events", "content": event_stream(*events, event(Problem, "error"))}}


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

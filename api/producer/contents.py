"""Stored objects as answers: whole or in part, from a folder through the API, from a bucket by redirect."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from starlette.responses import RedirectResponse, Response, StreamingResponse

from api.http.headers import documented
from api.http.ranges import is_unchanged, requested_span
from api.producer.resources import Resources

_CACHING = {"Cache-Control": "private, max-age=31536000, immutable"}
# However a browser interprets these bytes, it runs no script in them.
_SANDBOX = {"Content-Security-Policy": "default-src 'none'; sandbox"}


def contents(*media_types: str, redirects: bool = True) -> dict[int | str, dict[str, Any]]:
    """`responses` of a route that answers with `serve`."""
    content: dict[str, Any] = {media_type: {} for media_type in media_types}
    described = documented("Accept-Ranges", "ETag", "Content-Length")
    found: dict[int | str, dict[str, Any]] = {
        200: {"description": "The bytes", "content": content, "headers": described},
        206: {
            "description": "The bytes of the range that was asked for",
            "content": content,
            "headers": {**described, **documented("Content-Range")},
        },
        304: {"description": "The client has these bytes already", "headers": documented("ETag")},
    }
    if redirects:
        found[307] = {"description": "Address of the bytes", "headers": documented("Location")}
    return found


def serve(
    resources: Resources,
    key: str,
    media_type: str,
    tag: str,
    headers: Mapping[str, str],
    *,
    redirects: bool = True,
) -> Response:
    """Answer with the bytes of an object whose key never gets other content, or redirect to them.

    Args:
        tag: text that no other content has.
        headers: of the request; `Range`, `If-Range` and `If-None-Match` are heeded.
        redirects: whether the client may be sent to a bucket.

    Raises:
        NotFound, StorageUnavailable
        HTTPException: 416, because the object has none of the bytes that were asked for.
    """
    url = resources.store.url(key, resources.settings.result_url_ttl) if redirects else None
    if url is not None:
        # Everybody who has the address can use it, so no cache on the way may store it. The bucket knows ranges.
        return RedirectResponse(url, 307, {"Cache-Control": "private, no-store"})
    etag = f'"{tag}"'
    caching = {"ETag": etag, "Accept-Ranges": "bytes", **_CACHING}
    if is_unchanged(headers.get("if-none-match", ""), etag):
        return Response(status_code=304, headers=caching)
    size = resources.store.head(key).size
    span = requested_span(headers, size, etag)
    first, end = span or (0, size)
    described = {**caching, **_SANDBOX, "Content-Length": str(end - first)}
    if span is not None:
        described["Content-Range"] = f"bytes {first}-{end - 1}/{size}"
    chunks = resources.store.stream(key, span)
    return StreamingResponse(chunks, 200 if span is None else 206, described, media_type)

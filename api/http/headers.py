"""Header fields of answers, described once for the OpenAPI document and for pages of other origins."""

from __future__ import annotations

from typing import Any

_DESCRIPTIONS = {
    "Accept-Ranges": "`bytes`: a part of the body may be asked for with `Range`",
    "Allow": "the methods that the path knows",
    "Content-Length": "bytes of the body",
    "Content-Range": "which bytes of how many these are",
    "ETag": "name of the content, for `If-None-Match` and `If-Range`",
    "Link": 'the next page as `rel="next"` (RFC 8288); on lists that go backwards too, the previous one as `prev`',
    "Location": "address of what was made, or of the bytes",
    "Preference-Applied": "the `Prefer` that was heeded",
    "RateLimit": "`r`: jobs that the API key may submit besides; `t`: seconds after which there may be more",
    "RateLimit-Policy": "`q`: unfinished jobs that the API key may have at once",
    "Retry-After": "seconds after which another attempt makes sense",
    "WWW-Authenticate": "how to send the API key",
    "X-Request-Id": "name of the request in the installation's logs; that of the request's own `x-request-id`, if sent",
}
EXPOSED = tuple(name for name in _DESCRIPTIONS if name != "Content-Length")
"""Fields that a page of another origin may read; browsers let it read a few others anyway."""
RATE_LIMIT = ("RateLimit", "RateLimit-Policy")


def documented(*names: str) -> dict[str, Any]:
    """`headers` of a response in the OpenAPI document."""
    return {name: {"description": _DESCRIPTIONS[name], "schema": {"type": "string"}} for name in names}


def declare_request_ids(document: dict[str, Any]) -> None:
    """Add `x-request-id`, which every answer has, to every response of an OpenAPI document."""
    for operations in document["paths"].values():
        for operation in operations.values():
            for response in operation["responses"].values():
                response.setdefault("headers", {}).update(documented("X-Request-Id"))

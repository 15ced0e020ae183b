"""`Link` (RFC 8288): the neighbours of a page, so that a client need not know how a list names its cursor."""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import urlencode

from fastapi import Request


def link_header(request: Request, base_url: str, **relations: Mapping[str, str | None] | None) -> dict[str, str]:
    """The field `Link` with the given relations, `next` say.

    Each is what its page has in other parameters than this one: a value, or None for one that is left out. A relation
    that is None does not exist. The field is left out when there is none.
    """
    links = [
        f'<{_address(request, base_url, changed)}>; rel="{relation}"'
        for relation, changed in relations.items()
        if changed is not None
    ]
    return {"Link": ", ".join(links)} if links else {}


def _address(request: Request, base_url: str, changed: Mapping[str, str | None]) -> str:
    kept = [(name, value) for name, value in request.query_params.multi_items() if name not in changed]
    new = [(name, value) for name, value in changed.items() if value is not None]
    query = urlencode([*kept, *new])
    return f"{base_url}{request.scope['path']}" + (f"?{query}" if query else "")

"""Parts of a body (RFC 9110, section 14): one range of bytes, and `If-Range`.

Several ranges at once are ignored, as the RFC allows: the whole body is sent.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from starlette.exceptions import HTTPException

_ONE = re.compile(r"bytes=(?P<first>\d{0,18})-(?P<last>\d{0,18})", re.ASCII | re.IGNORECASE)


def requested_span(headers: Mapping[str, str], size: int, etag: str) -> tuple[int, int] | None:
    """The bytes to send, from the first number up to but not including the second; None for the whole body.

    Args:
        headers: of a GET request.
        size: of the whole body, in bytes.
        etag: its strong entity tag, with the quotes.

    Raises:
        HTTPException: 416, because no byte of the body is in the range.
    """
    found = _ONE.fullmatch(headers.get("range", "").replace(" ", ""))
    if found is None or headers.get("if-range", etag) != etag:
        return None
    first, last = found["first"], found["last"]
    if not first and not last:
        return None
    # `bytes=-5` are the last five bytes.
    start = int(first) if first else max(0, size - int(last))
    end = min(size, int(last) + 1) if first and last else size
    if first and last and int(last) < int(first):
        return None  # a mistake rather than a range
    if start >= end:
        detail = f"The range lies outside the {size} bytes that there are."
        raise HTTPException(416, detail, {"Content-Range": f"bytes */{size}"})
    return start, end


def is_unchanged(if_none_match: str, etag: str) -> bool:
    """Whether a client that sends this `If-None-Match` has the body with this tag already."""
    known = [tag.strip().removeprefix("W/") for tag in if_none_match.split(",")]
    return etag in known or known == ["*"]

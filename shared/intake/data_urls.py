"""Base64 and data: URLs as clients send them: with line ends, without padding, percent-encoded, in upper case.

The rules are those of browsers: the data: URL processor of https://fetch.spec.whatwg.org/#data-urls and the
forgiving-base64 decode of https://infra.spec.whatwg.org/#forgiving-base64.
"""

from __future__ import annotations

import binascii
import re
from base64 import b64decode
from urllib.parse import unquote_to_bytes

_SCHEME = re.compile(r"[\x00-\x20]*data:", re.IGNORECASE)
_BASE64 = re.compile(r"; *base64[ \t]*$", re.IGNORECASE)
_WHITE = bytes(range(0x21))
"""Controls and blanks; a URL has none within, and base64 skips those that people wrap lines with."""


def is_data_url(text: str) -> bool:
    """Whether the text is a data: URL, in upper or lower case and after blanks."""
    return _SCHEME.match(text) is not None


def decode_data_url(url: str) -> bytes:
    """Decode the body of a data: URL, base64 or percent-encoded.

    Raises:
        ValueError: it is no data: URL, or its base64 is broken.
    """
    scheme = _SCHEME.match(url)
    kind, comma, body = url[scheme.end() :].partition(",") if scheme else ("", "", "")
    if not comma:
        raise ValueError("the data: URL has no comma before its data")
    if _BASE64.search(kind) is None:
        return unquote_to_bytes(body.rstrip().encode("ascii", "strict"))
    return decode_base64(body)


def decode_base64(text: str) -> bytes:
    """Decode base64 with or without padding, line ends and percent-encoding.

    Raises:
        ValueError: it holds something else, or ends within a byte.
    """
    raw = text.encode("ascii")
    try:
        return b64decode(raw, validate=True)  # as most is; the rest costs copies
    except binascii.Error:
        pass
    if b"%" in raw:
        raw = unquote_to_bytes(raw)
    raw = raw.translate(None, _WHITE)
    if len(raw) % 4 == 0:
        raw = raw.removesuffix(b"=").removesuffix(b"=")
    return b64decode(raw + b"=" * (-len(raw) % 4), validate=True)

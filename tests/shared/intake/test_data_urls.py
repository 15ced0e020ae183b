"""Base64 and data: URLs in the forms that clients send."""

from __future__ import annotations

from base64 import b64encode, encodebytes
from urllib.parse import quote

import pytest

from shared.intake.data_urls import decode_base64, decode_data_url, is_data_url

DATA = bytes(range(256)) + b"\xfb\xff"
PLAIN = b64encode(DATA).decode()


@pytest.mark.parametrize(
    "text",
    [PLAIN, PLAIN.rstrip("="), encodebytes(DATA).decode(), f"  {PLAIN}\r\n", quote(PLAIN), quote(encodebytes(DATA))],
)
def test_base64(text: str) -> None:
    assert decode_base64(text) == DATA


@pytest.mark.parametrize("text", ["猫", "AAAAA", "A===", "AA=A", PLAIN + "!", "AA\N{NO-BREAK SPACE}AA"])
def test_what_is_no_base64(text: str) -> None:
    with pytest.raises(ValueError):
        decode_base64(text)


@pytest.mark.parametrize(
    "url",
    [
        f"data:image/png;base64,{PLAIN}",
        f"DATA:image/png;BASE64,{PLAIN}",
        f" \n data:;charset=utf-8; base64,{PLAIN.rstrip('=')}",
        f"data:;base64,{quote(PLAIN)}",
        f"data:image/png,{quote(DATA)}",
    ],
)
def test_data_urls(url: str) -> None:
    assert is_data_url(url)
    assert decode_data_url(url) == DATA


@pytest.mark.parametrize("url", ["data:image/png;base64", "data:;base64,A", "http://example.com/", "data:,猫"])
def test_what_is_no_data_url(url: str) -> None:
    with pytest.raises(ValueError):
        decode_data_url(url)

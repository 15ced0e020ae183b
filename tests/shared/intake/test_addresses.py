"""The URLs and addresses that may be reached, tested without a network."""

from __future__ import annotations

import socket
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.intake.fetch import Fetcher, vet_url
from shared.settings import Settings
from tuwen.errors import FetchFailed, FetchRefused, UrlForbidden

SETTINGS = Settings()

PUBLIC = [
    "http://example.com/a.png",
    "https://example.com:8443/a.png?b=c#d",
    "HTTPS://EXAMPLE.COM./",
    "http://8.8.8.8/",
    "http://[2606:4700::1111]/",
    "http://[::ffff:8.8.8.8]/",
    "http://[64:ff9b::808:808]/",
    "https://例え.jp/图 片.png",
    "http://under_score.example.com/",
    "http://1password.com/",
    "http://10.example.com/",
]

FORBIDDEN_HOSTS = [
    "127.0.0.1",
    "127.1.2.3",
    "localhost",
    "LOCALHOST.",
    "a.localhost",
    "0.0.0.0",
    "10.1.2.3",
    "172.16.0.1",
    "172.31.255.255",
    "192.168.1.1",
    "169.254.169.254",
    "168.63.129.16",
    "100.64.0.1",
    "100.127.255.255",
    "192.0.0.192",
    "192.0.2.1",
    "192.88.99.1",
    "198.18.0.1",
    "198.19.255.255",
    "203.0.113.1",
    "224.0.0.1",
    "239.255.255.255",
    "240.0.0.1",
    "255.255.255.255",
    "[::]",
    "[::1]",
    "[::7f00:1]",
    "[fe80::1]",
    "[fe80::1%25eth0]",
    "[fc00::1]",
    "[fd00:ec2::254]",
    "[fec0::1]",
    "[ff02::1]",
    "[::ffff:127.0.0.1]",
    "[::ffff:a9fe:a9fe]",
    "[64:ff9b::7f00:1]",
    "[64:ff9b::10.0.0.1]",
    "[64:ff9b:1::808:808]",
    "[2002:7f00:1::]",
    "[2002:808:808::1]",
    "[2001:0:7f00:1::]",
    "[2001:db8::1]",
    "[2001:2::1]",
    "[3fff::1]",
    "[100::1]",
    "[5f00::1]",
    # IPv4 as only inet_aton reads it
    "2130706433",
    "134744072",
    "0177.0.0.1",
    "0x7f.1",
    "0x7f000001",
    "0x7f000001.",
    "127.1",
    "127.0.1",
    "127.0.0.1.",
    "010.0.0.1",
    "1.2.3.4.5",
    "256.1.1.1",
    "127。0。0。1",
    "１２７.0.0.1",
    # Not host names
    "",
    ".",
    "a..b",
    "%31%32%37.0.0.1",
    "127.0.0.1%00.example.com",
    "a" * 64 + ".com",
    "a." * 130 + "com",
]

FORBIDDEN_URLS = [
    "",
    "example.com",
    "//example.com/",
    "/etc/passwd",
    "file:///etc/passwd",
    "ftp://example.com/",
    "gopher://example.com/",
    "data:image/png;base64,AAAA",
    "javascript:alert(1)",
    "http:example.com",
    "http:///a",
    "http://user@example.com/",
    "http://user:secret@example.com/",
    "http://:@example.com/",
    "http://example.com\\@127.0.0.1/",
    "http://example.com:0/",
    "http://example.com:65536/",
    "http://example.com:-1/",
    "http://example.com:http/",
    "http://exa\nmple.com/",
    "http://example.com/\x00",
    "http://example.com/\udc80",
    "http://[::1/",
    "http://[1.2.3.4]/",
]


@pytest.mark.parametrize("url", PUBLIC)
def test_public_url(url: str) -> None:
    assert vet_url(url, SETTINGS).host


@pytest.mark.parametrize("url", [f"http://{host}/" for host in FORBIDDEN_HOSTS] + FORBIDDEN_URLS)
def test_forbidden_url(url: str) -> None:
    with pytest.raises(UrlForbidden):
        vet_url(url, SETTINGS)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::ffff:127.0.0.1]", "10.1.2.3", "[fd00::1]"])
def test_allowed_network(host: str) -> None:
    settings = Settings(fetch_allow_networks=("127.0.0.0/8", "10.0.0.0/8", "fd00::/8"))
    assert vet_url(f"http://{host}/", settings)
    with pytest.raises(UrlForbidden):
        vet_url("http://192.168.0.1/", settings)


@given(st.text())
def test_any_text_is_a_url_or_forbidden(text: str) -> None:
    for url in (text, f"http://{text}/", f"https://example.com/{text}"):
        with suppress(UrlForbidden):
            vet_url(url, SETTINGS)


@given(st.ip_addresses(v=4))
def test_every_way_to_embed_an_address_is_judged_alike(address: object) -> None:
    def forbidden(host: str) -> bool:
        try:
            vet_url(f"http://{host}/", SETTINGS)
        except UrlForbidden:
            return True
        return False

    assert forbidden(f"{address}") == forbidden(f"[::ffff:{address}]") == forbidden(f"[64:ff9b::{address}]")


def test_host_that_does_not_exist_is_not_tried_again() -> None:
    def resolve(host: str, port: int) -> list[str]:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    with Fetcher(Settings(), resolve=resolve) as fetcher, pytest.raises(FetchRefused):
        fetcher.get("http://nobody.example.com/")


def test_resolver_that_fails_is_tried_again() -> None:
    def resolve(host: str, port: int) -> list[str]:
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")

    with Fetcher(Settings(), resolve=resolve) as fetcher, pytest.raises(FetchFailed):
        fetcher.get("http://example.com/")
    with Fetcher(Settings(), resolve=lambda host, port: []) as fetcher, pytest.raises(FetchFailed):
        fetcher.get("http://example.com/")

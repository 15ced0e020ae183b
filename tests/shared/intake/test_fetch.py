"""Fetching over real sockets: what servers do to us, and what we never connect to."""

from __future__ import annotations

import gzip
import socket
import ssl
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import count
from threading import Event, Thread

import pytest
import trustme

from shared.intake.fetch import MAX_REDIRECTS, Fetcher
from shared.settings import Settings
from tuwen.errors import FetchFailed, FetchRefused, PayloadTooLarge, UrlForbidden

PNG = b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 100
LOCAL = Settings(fetch_allow_networks=("127.0.0.0/8",), fetch_timeout=20, max_image_bytes=1_000_000)
HURRIED = LOCAL.model_copy(update={"fetch_timeout": 0.5})
Talk = Callable[[socket.socket, bytes], None]

_connected: list[object] = []
sys.addaudithook(lambda event, details: _connected.append(details[1]) if event == "socket.connect" else None)


@pytest.fixture
def connected() -> list[object]:
    """The addresses this process connects to during the test, as the interpreter reports them."""
    _connected.clear()
    return _connected


class Server:
    """Hands each request's head to `talk`, once a connection unless `talk` leaves it open."""

    def __init__(self, talk: Talk, tls: ssl.SSLContext | None = None) -> None:
        self._talk = talk
        self._tls = tls
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.requests: list[bytes] = []
        self.connections = 0
        Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        try:
            with self._tls.wrap_socket(connection, server_side=True) if self._tls else connection as stream:
                while head := _head(stream):
                    self.requests.append(head)
                    self._talk(stream, head)
        except OSError:
            pass  # the client has hung up, as it should

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()


def _head(stream: socket.socket) -> bytes:
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        byte = stream.recv(1)
        if not byte:
            return b""
        head += byte
    return head


@contextmanager
def serving(talk: Talk, tls: ssl.SSLContext | None = None) -> Iterator[Server]:
    server = Server(talk, tls)
    try:
        yield server
    finally:
        server.close()


def answering(status: str, body: bytes = b"", *headers: str) -> Talk:
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *headers, "", ""]

    def talk(stream: socket.socket, _: bytes) -> None:
        stream.sendall("\r\n".join(lines).encode() + body)

    return talk


def endlessly(head: bytes, piece: bytes, pause: float = 0) -> Talk:
    def talk(stream: socket.socket, _: bytes) -> None:
        stream.sendall(head)
        while True:
            stream.sendall(piece)
            time.sleep(pause)

    return talk


def silent(stream: socket.socket, _: bytes) -> None:
    Event().wait(60)


def test_get() -> None:
    with serving(answering("200 OK", PNG)) as server, Fetcher(LOCAL) as fetcher:
        assert fetcher.get(server.url + "/图.png?a=b#c") == PNG
    (request,) = server.requests
    assert request.startswith(b"GET /%E5%9B%BE.png?a=b HTTP/1.1\r\n")
    assert f"Host: 127.0.0.1:{server.port}\r\n".encode() in request
    assert b"Accept-Encoding: identity\r\n" in request


def test_connections_are_kept_and_shared_by_threads() -> None:
    with serving(answering("200 OK", PNG)) as server, Fetcher(LOCAL) as fetcher:
        for _ in range(5):
            assert fetcher.get(server.url) == PNG
        assert server.connections == 1
        with ThreadPoolExecutor(8) as pool:
            assert set(pool.map(fetcher.get, [server.url] * 40)) == {PNG}
    assert len(server.requests) == 45


def test_proxies_of_the_environment_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(answering("200 OK", b"proxy")) as proxy, serving(answering("200 OK", PNG)) as server:
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, proxy.url)
        monkeypatch.delenv("no_proxy", raising=False)
        monkeypatch.delenv("NO_PROXY", raising=False)
        with Fetcher(LOCAL) as fetcher:
            assert fetcher.get(server.url) == PNG
    assert proxy.connections == 0


# ── what must not be reached ──────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "localhost", "[::1]", "[::ffff:127.0.0.1]", "2130706433", "0177.1", "0x7f.1", "0.0.0.0"]
)
def test_loopback_is_not_reached(host: str, connected: list[object]) -> None:
    with serving(answering("200 OK", PNG)) as server, Fetcher(Settings()) as fetcher:
        for call in (fetcher.get, lambda url: fetcher.post(url, b"", {})):
            with pytest.raises(UrlForbidden):
                call(f"http://{host}:{server.port}/")
    assert connected == []
    assert server.connections == 0


@pytest.mark.parametrize(
    "addresses",
    [
        ["127.0.0.1"],
        ["10.0.0.1"],
        ["169.254.169.254"],
        ["8.8.8.8", "127.0.0.1"],
        ["2606:4700::1111", "fe80::1%eth0"],
        ["::ffff:10.0.0.1"],
        ["64:ff9b::a00:1"],
        ["64:ff9b:1::a00:1"],
        ["2002:a00:1::"],
    ],
)
def test_name_with_a_forbidden_address_is_not_reached(addresses: list[str], connected: list[object]) -> None:
    with Fetcher(Settings(), resolve=lambda host, port: addresses) as fetcher:
        for call in (fetcher.get, lambda url: fetcher.post(url, b"", {})):
            with pytest.raises(UrlForbidden):
                call("http://images.example.com/")
    assert connected == []


def test_rebinding_changes_nothing(connected: list[object]) -> None:
    """The name is resolved once a connection, and what was vetted is what is dialled."""
    answers = count()

    def resolve(host: str, port: int) -> list[str]:
        return [["127.0.0.2"], ["10.0.0.1"]][min(next(answers), 1)]

    with serving(answering("200 OK", PNG, "Connection: close")) as server:
        server_on_2 = socket.create_server(("127.0.0.2", server.port))
        with server_on_2, Fetcher(HURRIED, resolve=resolve) as fetcher:
            with pytest.raises(FetchFailed):  # dialled, and nobody answers there
                fetcher.get(f"http://rebinding.example.com:{server.port}/")
            assert connected == [("127.0.0.2", server.port)]
            with pytest.raises(UrlForbidden):
                fetcher.get(f"http://rebinding.example.com:{server.port}/")
            assert connected == [("127.0.0.2", server.port)]


@pytest.mark.parametrize(
    "location",
    [
        "http://10.0.0.1/",
        "//192.168.0.1/",
        "http://[::1]/",
        "http://169.254.169.254/latest/meta-data/",
        "http://2130706433/",
        "file:///etc/passwd",
        "ftp://127.0.0.1/",
        "http://user:secret@127.0.0.1/",
        "http://inside.example.com/",
        "http://[",
    ],
)
@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirect_to_what_must_not_be_reached(status: int, location: str, connected: list[object]) -> None:
    def resolve(host: str, port: int) -> list[str]:
        return ["127.0.0.1" if host == "outside.example.com" else "10.0.0.1"]

    with (
        serving(answering(f"{status} Found", b"", f"Location: {location}")) as server,
        Fetcher(LOCAL, resolve=resolve) as fetcher,
        pytest.raises(UrlForbidden),
    ):
        fetcher.get(f"http://outside.example.com:{server.port}/")
    assert connected == [("127.0.0.1", server.port)]


# ── redirects ─────────────────────────────────────────────────────────────────────────────────────


def counting_down(stream: socket.socket, head: bytes) -> None:
    left = int(head.split()[1].strip(b"/"))
    talk = answering("302 Found", b"", f"Location: {left - 1}") if left else answering("200 OK", PNG)
    talk(stream, head)


def test_redirects_are_followed_and_counted() -> None:
    with serving(counting_down) as server, Fetcher(LOCAL) as fetcher:
        assert fetcher.get(f"{server.url}/{MAX_REDIRECTS}") == PNG
        with pytest.raises(FetchRefused, match="redirects more than"):
            fetcher.get(f"{server.url}/{MAX_REDIRECTS + 1}")


def test_redirect_to_nowhere() -> None:
    with serving(answering("302 Found")) as server, Fetcher(LOCAL) as fetcher, pytest.raises(FetchRefused):
        fetcher.get(server.url)


# ── servers that mean harm ────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "talk",
    [
        pytest.param(silent, id="silence"),
        pytest.param(endlessly(b"HTTP/1.1 200 OK\r\nX: ", b"x", 0.01), id="dripping head"),
        pytest.param(endlessly(b"", b"HTTP/1.1 103 Early Hints\r\n\r\n", 0.01), id="early hints"),
        pytest.param(endlessly(b"HTTP/1.1 200 OK\r\nContent-Length: 900\r\n\r\n", b"x", 0.01), id="dripping body"),
        pytest.param(
            endlessly(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n", 0.01), id="chunks"
        ),
    ],
)
def test_time_is_bounded_as_a_whole(talk: Talk) -> None:
    with serving(talk) as server, Fetcher(HURRIED) as fetcher, pytest.raises(FetchFailed, match="did not answer in"):
        fetcher.get(server.url)


def test_redirects_share_the_time() -> None:
    def talk(stream: socket.socket, head: bytes) -> None:
        time.sleep(0.15)
        answering("302 Found", b"", "Location: /again")(stream, head)

    with serving(talk) as server, Fetcher(HURRIED) as fetcher, pytest.raises(FetchFailed, match="did not answer in"):
        fetcher.get(server.url)


def test_slow_resolver_is_left_behind() -> None:
    def resolve(host: str, port: int) -> list[str]:
        Event().wait(60)
        return []

    with Fetcher(HURRIED, resolve=resolve) as fetcher, pytest.raises(FetchFailed, match="did not answer in"):
        fetcher.get("http://example.com/")


def test_tls_handshake_that_never_ends() -> None:
    with (
        serving(silent) as server,
        Fetcher(HURRIED) as fetcher,
        pytest.raises(FetchFailed, match="did not answer in"),
    ):
        fetcher.get(server.url.replace("http", "https"))


@pytest.mark.parametrize(
    "talk",
    [
        pytest.param(endlessly(b"HTTP/1.1 200 OK\r\n\r\n", bytes(65536)), id="no length"),
        pytest.param(
            endlessly(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"10000\r\n" + bytes(65536) + b"\r\n"),
            id="chunked",
        ),
        pytest.param(endlessly(b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n", bytes(9)), id="announced"),
    ],
)
def test_size_is_bounded(talk: Talk) -> None:
    with serving(talk) as server, Fetcher(LOCAL) as fetcher, pytest.raises(PayloadTooLarge):
        fetcher.get(server.url)


def test_largest_body_that_is_allowed() -> None:
    body = bytes(LOCAL.max_image_bytes)
    with serving(answering("200 OK", body)) as server, Fetcher(LOCAL) as fetcher:
        assert fetcher.get(server.url) == body
    with (
        serving(answering("200 OK", body + b"x")) as server,
        Fetcher(LOCAL) as fetcher,
        pytest.raises(PayloadTooLarge),
    ):
        fetcher.get(server.url)


def test_endless_head_is_cut() -> None:
    talk = endlessly(b"HTTP/1.1 200 OK\r\n", b"X-Filler: " + b"x" * 1000 + b"\r\n")
    with serving(talk) as server, Fetcher(LOCAL) as fetcher, pytest.raises(FetchFailed, match="connection"):
        fetcher.get(server.url)


def test_gzip_bomb_is_not_unpacked() -> None:
    bomb = gzip.compress(bytes(50_000_000))
    with (
        serving(answering("200 OK", bomb, "Content-Encoding: gzip")) as server,
        Fetcher(LOCAL) as fetcher,
        pytest.raises(FetchRefused, match="compresses"),
    ):
        fetcher.get(server.url)


def lying(stream: socket.socket, _: bytes) -> None:
    stream.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nonly this")
    stream.shutdown(socket.SHUT_WR)


@pytest.mark.parametrize(
    "talk",
    [
        pytest.param(lying, id="short body"),
        pytest.param(lambda stream, head: stream.shutdown(socket.SHUT_RDWR), id="hangs up"),
        pytest.param(lambda stream, head: stream.sendall(b"SSH-2.0-OpenSSH_9\r\n\r\n"), id="not HTTP"),
        pytest.param(answering("200 OK", PNG, "Content-Length: 1"), id="two lengths"),
        pytest.param(answering("500 Oops"), id="500"),
        pytest.param(answering("503 Busy"), id="503"),
    ],
)
def test_failures_that_may_pass(talk: Talk) -> None:
    with serving(talk) as server, Fetcher(LOCAL) as fetcher, pytest.raises(FetchFailed) as failure:
        fetcher.get(server.url)
    assert failure.value.retryable


def test_retry_after_is_passed_on() -> None:
    talk = answering("429 Too Many Requests", b"", "Retry-After: 7")
    with serving(talk) as server, Fetcher(LOCAL) as fetcher, pytest.raises(FetchFailed) as failure:
        fetcher.get(server.url)
    assert failure.value.retry_after == 7


@pytest.mark.parametrize("status", [204, 206, 304, 400, 401, 403, 404, 410])
def test_refusals_that_will_not_pass(status: int) -> None:
    with (
        serving(answering(f"{status} No")) as server,
        Fetcher(LOCAL) as fetcher,
        pytest.raises(FetchRefused) as refusal,
    ):
        fetcher.get(server.url)
    assert not refusal.value.retryable


def test_refused_connection_may_pass() -> None:
    with socket.socket() as unused, Fetcher(LOCAL) as fetcher:
        unused.bind(("127.0.0.1", 0))
        with pytest.raises(FetchFailed):
            fetcher.get(f"http://127.0.0.1:{unused.getsockname()[1]}/")


def test_second_address_is_tried(connected: list[object]) -> None:
    with (
        serving(answering("200 OK", PNG)) as server,
        Fetcher(LOCAL, resolve=lambda host, port: ["127.0.0.2", "127.0.0.1"]) as fetcher,
    ):
        assert fetcher.get(f"http://example.com:{server.port}/") == PNG
    assert connected == [("127.0.0.2", server.port), ("127.0.0.1", server.port)]


# ── TLS ───────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


def trusting(authority: trustme.CA) -> Fetcher:
    tls = ssl.create_default_context()
    authority.configure_trust(tls)
    return Fetcher(LOCAL, resolve=lambda host, port: ["127.0.0.1"], tls=tls)


def secured(authority: trustme.CA, name: str) -> ssl.SSLContext:
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(name).configure_cert(tls)
    return tls


def test_tls_verifies_the_name_though_an_address_is_dialled(authority: trustme.CA) -> None:
    with (
        serving(answering("200 OK", PNG), secured(authority, "images.example.com")) as server,
        trusting(authority) as fetcher,
    ):
        assert fetcher.get(f"https://images.example.com:{server.port}/") == PNG
        with pytest.raises(FetchFailed):
            fetcher.get(f"https://other.example.com:{server.port}/")
    assert len(server.requests) == 1


def test_unknown_authority_is_not_trusted(authority: trustme.CA) -> None:
    with (
        serving(answering("200 OK", PNG), secured(authority, "images.example.com")) as server,
        Fetcher(LOCAL, resolve=lambda host, port: ["127.0.0.1"]) as fetcher,
        pytest.raises(FetchFailed),
    ):
        fetcher.get(f"https://images.example.com:{server.port}/")
    assert server.requests == []


# ── webhooks ──────────────────────────────────────────────────────────────────────────────────────


def test_post() -> None:
    received: list[bytes] = []

    def talk(stream: socket.socket, head: bytes) -> None:
        received.append(stream.recv(100))
        answering("204 No Content")(stream, head)

    with serving(talk) as server, Fetcher(LOCAL) as fetcher:
        assert fetcher.post(server.url + "/hook", b'{"a": 1}', {"Content-Type": "application/json"}) == 204
    (head,) = server.requests
    assert head.startswith(b"POST /hook HTTP/1.1\r\n")
    assert b"Content-Type: application/json\r\n" in head
    assert received == [b'{"a": 1}']


@pytest.mark.parametrize("status", [200, 302, 404, 410, 500])
def test_post_returns_any_status_and_follows_nothing(status: int) -> None:
    with serving(answering(f"{status} X", b"", "Location: /other")) as server, Fetcher(LOCAL) as fetcher:
        assert fetcher.post(server.url, b"", {}) == status
    assert len(server.requests) == 1


def test_post_does_not_wait_for_the_body() -> None:
    talk = endlessly(b"HTTP/1.1 200 OK\r\n\r\n", b"x", 0.01)
    with serving(talk) as server, Fetcher(LOCAL) as fetcher:
        assert fetcher.post(server.url, b"", {}) == 200


def test_post_to_silence_fails_in_time() -> None:
    with serving(silent) as server, Fetcher(HURRIED) as fetcher, pytest.raises(FetchFailed, match="did not answer in"):
        fetcher.post(server.url, b"", {})

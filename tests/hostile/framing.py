"""Requests that are no proper HTTP: smuggling, oversize, slow ones, and connections that only stay."""

from __future__ import annotations

import resource
import selectors
import socket
import time
from contextlib import ExitStack, suppress

import httpx

from tests.hostile.target import Tally, Target, exchange, is_alive, statuses

_HOST = b"Host: 127.0.0.1\r\n"
_SECOND = b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
_POST = b"POST /v1/jobs HTTP/1.1\r\n" + _HOST

SMUGGLING = [
    _POST + b"Content-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    _POST + b"Transfer-Encoding: chunked\r\nContent-Length: 6\r\n\r\n0\r\n\r\n",
    _POST + b"Content-Length: 0\r\nContent-Length: 44\r\n\r\n",
    _POST + b"Content-Length: 0, 44\r\n\r\n",
    _POST + b"Content-Length: +0\r\n\r\n",
    _POST + b"Content-Length: 0x0\r\n\r\n",
    _POST + b"Content-Length: -1\r\n\r\n",
    _POST + b"Content-Length: 0\x00\r\n\r\n",
    _POST + b"Content-Length : 0\r\n\r\n",
    _POST + b"Content-Length: 1" + b"0" * 40 + b"\r\n\r\n",
    _POST + b"Transfer-Encoding: xchunked\r\n\r\n",
    _POST + b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
    _POST + b"Transfer-Encoding: identity\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    _POST + b"Transfer-Encoding:\x0bchunked\r\n\r\n0\r\n\r\n",
    _POST + b"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
    _POST + b"Transfer-Encoding\x00: chunked\r\n\r\n0\r\n\r\n",
    _POST + b"X: y\rTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    _POST + b"X: y\nTransfer-Encoding: chunked\r\nContent-Length: 6\r\n\r\n0\r\n\r\n",
    _POST + b"X: y\r\n Transfer-Encoding: chunked\r\nContent-Length: 6\r\n\r\n0\r\n\r\n",
    _POST + b"X: y\r\n\tfolded\r\n\r\n",
    _POST.replace(b"1.1", b"1.0") + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    _POST + b"Transfer-Encoding: chunked\r\n\r\n0\n\n",
    _POST + b"Transfer-Encoding: chunked\r\n\r\n-1\r\n\r\n",
    _POST + b"Transfer-Encoding: chunked\r\n\r\n0x0\r\n\r\n",
    _POST + b"Transfer-Encoding: chunked\r\n\r\nffffffffffffffffff\r\n\r\n",
    _POST + b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}XX0\r\n\r\n",
]
"""Each is followed by another request. Whoever stands in front may see its end elsewhere, so it has to be refused, or
the connection to end with its answer."""
PLAIN = [
    b"GET / HTTP/9.9\r\n" + _HOST + b"\r\n",
    b"GET /\r\n\r\n",
    b"get / HTTP/1.1\r\n" + _HOST + b"\r\n",
    b"G\x00T / HTTP/1.1\r\n" + _HOST + b"\r\n",
    b"A" * 20_000 + b" / HTTP/1.1\r\n" + _HOST + b"\r\n",
    b"GET  /healthz  HTTP/1.1\r\n" + _HOST + b"\r\n",
    b"GET http://169.254.169.254/ HTTP/1.1\r\n" + _HOST + b"\r\n",
    b"CONNECT 169.254.169.254:80 HTTP/1.1\r\n" + _HOST + b"\r\n",
    b"OPTIONS * HTTP/1.1\r\n" + _HOST + b"\r\n",
    b"TRACE /healthz HTTP/1.1\r\n" + _HOST + b"\r\n",
    b"GET /\xff\xfe HTTP/1.1\r\n" + _HOST + b"\r\n",
    b"GET /healthz HTTP/1.1\r\n\r\n",
    b"GET /healthz HTTP/1.1\r\n" + _HOST + b"Host: evil.example\r\n\r\n",
    b"GET /healthz HTTP/1.1\r\nHost: a\x00b\r\n\r\n",
    b"GET /healthz HTTP/1.1\r\n" + _HOST + b": nameless\r\n\r\n",
    b"GET /healthz HTTP/1.1\r\n" + _HOST + b"no colon\r\n\r\n",
    b"GET /healthz HTTP/1.1\r\n" + _HOST + b"X: \xff\xfe\r\n\r\n",
    b"GET /healthz HTTP/1.1\r\n" + _HOST + b"Upgrade: h2c\r\nConnection: Upgrade, HTTP2-Settings\r\n\r\n",
    b"GET /healthz HTTP/1.1\r\n" + _HOST + b"Upgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    b"\r\n" * 1000 + _SECOND,
    b"\x00" * 1000,
]


def smuggle(target: Target, tally: Tally) -> None:
    """Forms that two servers may read differently, and other requests that are no HTTP/1.1."""
    key = f"Authorization: Bearer {target.key}\r\n".encode()
    for request in SMUGGLING:
        request = request.replace(_HOST, _HOST + key)
        received = exchange(target, request + _SECOND, 1.0)
        found = statuses(received)
        for status in found or [None]:
            tally.count(status, request)
        if len(found) > 1 and found[0] < 400 and b"HTTP/1.0" not in request:
            tally.find(f"a second request was taken from behind an ambiguous one: {request!r:.200}")
    for request in PLAIN:
        for status in statuses(exchange(target, request, 1.0)) or [None]:
            tally.count(status, request)


def oversize(target: Target, tally: Tally) -> None:
    """Heads, bodies and chunks that are far too large; none may be kept in memory."""
    head = b"GET /healthz HTTP/1.1\r\n" + _HOST
    heads = [
        *(head + b"X: " + b"a" * size + b"\r\n\r\n" for size in (2**15, 2**20, 2**26)),
        head + b"".join(b"X-%d: y\r\n" % number for number in range(20_000)) + b"\r\n",
        b"GET /" + b"a" * 2**20 + b" HTTP/1.1\r\n" + _HOST + b"\r\n",
        b"GET /v1/jobs?" + b"status=queued&" * 50_000 + b" HTTP/1.1\r\n" + _HOST + b"\r\n",
    ]
    for request in heads:
        for status in statuses(exchange(target, request)) or [None]:
            tally.count(status, request[:100])
            if status == 200:
                tally.find(f"a head of {len(request)} bytes was accepted")
    key = f"Authorization: Bearer {target.key}\r\n".encode()
    chunk = b"10000\r\n" + b"a" * 2**16 + b"\r\n"
    for path in (b"/v1/jobs", b"/v1/files", b"/v1/chat/completions"):
        post = b"POST " + path + b" HTTP/1.1\r\n" + _HOST + key
        chunked = post + b"Transfer-Encoding: chunked\r\n\r\n"
        bodies = [
            post + b"Content-Length: 99999999999999\r\n\r\n" + b"a" * 2**20,
            chunked + chunk * 1100,
            chunked + b"1\r\na\r\n" * 100_000,
            chunked + b"1;" + b"x" * 2**20 + b"\r\na\r\n0\r\n\r\n",
            chunked + b"0\r\n" + b"X: y\r\n" * 100_000 + b"\r\n",
        ]
        for request in bodies:
            for status in statuses(exchange(target, request)) or [None]:
                tally.count(status, request[:100])
                if status is not None and status < 300:
                    tally.find(f"a body of {len(request)} bytes was accepted")


def linger(target: Target, tally: Tally) -> None:
    """Thousands of silent connections, and hundreds that drip: others are served meanwhile, and all of them end."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    head = b"GET /healthz HTTP/1.1\r\n" + _HOST
    body = _POST + f"Authorization: Bearer {target.key}\r\nContent-Length: 1000\r\n\r\n".encode()
    with ExitStack() as stack:
        silent = [stack.enter_context(target.connect()) for _ in range(2_000)]
        dripping = [(stack.enter_context(target.connect()), start) for start in (head, body) for _ in range(150)]
        for connection, start in dripping:
            connection.sendall(start)
        slowest = 0.0
        left = {connection for connection, _ in dripping} | set(silent)
        deadline = time.monotonic() + 90
        while left and time.monotonic() < deadline:
            for connection, start in dripping:
                with suppress(OSError):  # the API has had enough
                    connection.sendall(b"X" if start is head else b"")
            began = time.monotonic()
            with httpx.Client(timeout=30) as client:
                tally.count(client.get(f"{target.url}/healthz").status_code, "GET /healthz meanwhile")
            slowest = max(slowest, time.monotonic() - began)
            left -= _ended(left, tally)
            time.sleep(0.5)
        if left:
            tally.find(f"{len(left)} connections that asked for nothing are still open after 90 s")
        if slowest > 10:
            tally.find(f"others waited {slowest:.1f} s meanwhile")


def _ended(connections: set[socket.socket], tally: Tally) -> set[socket.socket]:
    """Those that the API has closed."""
    ended = set()
    with selectors.DefaultSelector() as selector:
        for connection in connections:
            selector.register(connection, selectors.EVENT_READ)
        for ready, _ in selector.select(0):
            connection = ready.fileobj
            assert isinstance(connection, socket.socket)
            received = b""
            with suppress(OSError):
                received = connection.recv(65536)
            found = statuses(received)
            tally.count(found[0] if found else None, "a connection that asked for nothing")
            ended.add(connection)
    return ended


def storm(target: Target, tally: Tally) -> None:
    """Requests that are dropped in the middle, by the hundred: of the head, of the body, of the answer."""
    whole = _POST + f"Authorization: Bearer {target.key}\r\nContent-Length: 60\r\n\r\n".encode()
    whole += b'{"input": {"kind": "generate", "prompt": "a cat"}}'.ljust(60)
    for _ in range(500):
        with target.connect() as connection:
            connection.sendall(whole[: target.dice.randrange(len(whole) + 1)])
        tally.count(None, "a request that was dropped")
    if not is_alive(target):
        tally.find("no answer after requests were dropped")

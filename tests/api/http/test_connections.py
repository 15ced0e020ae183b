"""Bounds for connections: a real uvicorn, sockets, and an application that answers with what it was sent."""

from __future__ import annotations

import asyncio
import json
import resource
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import httpx
import pytest
import uvicorn

from api.http.connections import MOST_CONNECTIONS, Limits, bounded_http, most_connections
from shared.open_files import raise_open_files
from shared.settings import Settings
from tests.support.api_server import serving
from tests.support.waiting import PATIENT, eventually

LIMIT = 32 * 2**10
GET = b"GET /one HTTP/1.1\r\nHost: localhost\r\n\r\n"


class Application:
    """Answers with method, path, number of header fields and length of the body; some paths do something else."""

    def __init__(self) -> None:
        self.go_on = threading.Event()
        self.disconnected = threading.Event()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["path"] == "/early":  # answers before it has read the body
            await self._answer(send, b"early")
        elif scope["path"] == "/stream":
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"begun\n", "more_body": True})
            while not self.go_on.is_set():
                await asyncio.sleep(0.01)
            await send({"type": "http.response.body", "body": b"ended\n"})
        else:
            body = b""
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    self.disconnected.set()
                    return
                body += message["body"]
                if not message["more_body"]:
                    break
            text = f"{scope['method']} {scope['path']} {len(scope['headers'])} {len(body)}"
            await self._answer(send, text.encode())

    async def _answer(self, send: Any, body: bytes) -> None:
        headers = [(b"content-length", b"%d" % len(body))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})


class Server:
    """A running server: its application, and connections to it."""

    def __init__(self, app: Application, server: uvicorn.Server, port: int):
        self.app = app
        self.port = port
        self._server = server

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=PATIENT)

    @property
    def open(self) -> int:
        return len(self._server.server_state.connections)

    def await_open(self, count: int) -> None:
        eventually(lambda: self.open == count, lambda: f"{self.open} connections in place of {count}")

    def serves(self) -> bool:
        """Whether a new connection is answered."""
        with self.connect() as client:
            client.sendall(GET)
            return read_answer(client) == (200, b"GET /one 1 0")


@contextmanager
def listening(limits: Limits, loop: str = "auto", keep_alive: int = 75) -> Iterator[Server]:
    app = Application()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        config = uvicorn.Config(
            app,
            http=bounded_http(limits),
            ws="none",
            loop=loop,
            lifespan="off",
            log_level="warning",
            timeout_keep_alive=keep_alive,
            timeout_graceful_shutdown=1,
        )
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        eventually(lambda: server.started, "the server to start")
        try:
            yield Server(app, server, listener.getsockname()[1])
        finally:
            app.go_on.set()
            server.should_exit = True
            thread.join(PATIENT)
            assert not thread.is_alive(), "the server did not stop"


@pytest.fixture(params=["uvloop", "asyncio"])
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    with listening(Limits(connections=100), request.param) as running:
        yield running


@pytest.fixture
def hasty() -> Iterator[Server]:
    """A server that waits half a second for a head."""
    with listening(Limits(connections=100, head_timeout=0.5)) as running:
        yield running


def read_head(client: socket.socket) -> tuple[int, dict[str, str]]:
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        byte = client.recv(1)
        assert byte, f"the connection ended after {head!r}"
        head += byte
    first, *lines = head.decode().strip().split("\r\n")
    return int(first.split()[1]), dict(line.lower().split(": ", 1) for line in lines)


def read_answer(client: socket.socket) -> tuple[int, bytes]:
    status, headers = read_head(client)
    body = b""
    while len(body) < int(headers["content-length"]):
        part = client.recv(int(headers["content-length"]) - len(body))
        assert part, "the body is short"
        body += part
    return status, body


def read_to_end(client: socket.socket) -> bytes:
    received = b""
    while part := client.recv(2**16):
        received += part
    return received


def read_until(client: socket.socket, end: bytes) -> None:
    received = b""
    while end not in received:
        part = client.recv(2**16)
        assert part, f"the connection ended after {received!r}"
        received += part


def problem(client: socket.socket) -> dict[str, Any]:
    """The problem details, after which the server ends the connection."""
    status, headers = read_head(client)
    assert headers["content-type"] == "application/problem+json"
    assert headers["connection"] == "close"
    answer = json.loads(read_to_end(client))
    assert answer["status"] == status
    return dict(answer)


def head_of(size: int, line: bytes = b"GET /one HTTP/1.1") -> bytes:
    head = line + b"\r\nHost: localhost\r\nX: "
    return head + b"x" * (size - len(head) - 4) + b"\r\n\r\n"


# ── the size of a head ────────────────────────────────────────────────────────────────────────────────


def test_a_head_of_the_limit_is_served_and_one_byte_more_is_not(server: Server) -> None:
    with server.connect() as client:
        client.sendall(head_of(LIMIT))
        assert read_answer(client) == (200, b"GET /one 2 0")
        client.sendall(head_of(LIMIT + 1))
        assert problem(client)["code"] == "request_header_fields_too_large"


@pytest.mark.parametrize(
    "endless",
    [
        b"GET /" + b"x" * LIMIT,
        b"GET / HTTP/1.1\r\nX: " + b"x" * LIMIT,
        b"GET / HTTP/1.1\r\n" + b"x" * LIMIT,
        b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * LIMIT,
        b"\r\n" * LIMIT,
    ],
    ids=["path", "value", "name", "fields", "empty lines"],
)
def test_a_head_without_end_is_refused(server: Server, endless: bytes) -> None:
    with server.connect() as client:
        client.sendall(endless)
        assert problem(client)["status"] == 431
    assert server.serves()


def test_a_trailer_without_end_is_refused_and_the_application_hears_of_it(server: Server) -> None:
    with server.connect() as client:
        client.sendall(b"POST /one HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\nX: ")
        client.sendall(b"x" * 3 * LIMIT)
        assert problem(client)["status"] == 431
    assert server.app.disconnected.wait(PATIENT)


def test_a_too_large_head_behind_a_request_lets_that_be_answered(server: Server) -> None:
    with server.connect() as client:
        client.sendall(b"GET /stream HTTP/1.1\r\nHost: x\r\n\r\n")
        status, _ = read_head(client)
        assert status == 200
        client.sendall(head_of(3 * LIMIT))
        assert server.serves()
        server.app.go_on.set()
        assert b"ended" in read_to_end(client)


def test_the_api_refuses_48_mib_without_a_key_and_goes_on(settings: Settings) -> None:
    with serving(settings) as url, httpx.Client(base_url=url, trust_env=False, timeout=PATIENT) as client:
        with socket.create_connection(("127.0.0.1", httpx.URL(url).port or 0), timeout=PATIENT) as attacker:
            attacker.sendall(b"GET /v1/jobs HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 48 * 2**20)
            answer = problem(attacker)
        assert answer["code"] == "request_header_fields_too_large"
        assert client.get("/healthz").status_code == 200


# ── what goes on working ──────────────────────────────────────────────────────────────────────────────


def test_requests_in_one_packet_are_answered_in_their_order(server: Server) -> None:
    many = [b"GET /%d HTTP/1.1\r\nHost: localhost\r\nX: %s\r\n\r\n" % (n, b"x" * 3000) for n in range(50)]
    with server.connect() as client:
        client.sendall(b"".join(many))
        for n in range(50):
            assert read_answer(client) == (200, b"GET /%d 2 0" % n)


def test_a_large_body_and_the_request_behind_it(server: Server) -> None:
    with server.connect() as client:
        size = 5 * 2**20 + 7
        client.sendall(b"POST /one HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % size + b"b" * size + GET)
        assert read_answer(client) == (200, b"POST /one 2 %d" % size)
        assert read_answer(client) == (200, b"GET /one 1 0")


def test_chunks_small_and_large_with_a_trailer(server: Server) -> None:
    chunks = [b"x"] * 5000 + [b"y" * 200_000] * 5
    body = b"".join(b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in chunks) + b"0\r\nChecksum: 7\r\n\r\n"
    with server.connect() as client:
        client.sendall(b"POST /one HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n" + body + GET)
        status, answer = read_answer(client)
        assert (status, answer.split()[-1]) == (200, b"%d" % sum(map(len, chunks)))
        assert read_answer(client) == (200, b"GET /one 1 0")


def test_a_head_that_comes_byte_by_byte(server: Server) -> None:
    with server.connect() as client:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in GET * 2:
            client.send(bytes([byte]))
        assert read_answer(client) == (200, b"GET /one 1 0")
        assert read_answer(client) == (200, b"GET /one 1 0")


def test_expect_100_continue(server: Server) -> None:
    with server.connect() as client:
        client.sendall(b"POST /one HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n")
        assert read_head(client)[0] == 100
        client.sendall(b"abc")
        assert read_answer(client) == (200, b"POST /one 3 3")


@pytest.mark.parametrize("protocol", [b"h2c", b"websocket"])
def test_an_upgrade_that_is_not_spoken_here_is_answered_in_http(server: Server, protocol: bytes) -> None:
    fields = b"Host: x\r\nConnection: Upgrade\r\nUpgrade: %s\r\nSec-WebSocket-Key: eA==\r\n" % protocol
    with server.connect() as client:
        client.sendall(b"GET /one HTTP/1.1\r\n" + fields + b"\r\n")
        status, headers = read_head(client)
        assert (status, headers["connection"]) == (200, "close")
        assert read_to_end(client) == b"GET /one 4 0"


def test_nonsense_is_400(server: Server) -> None:
    with server.connect() as client:
        client.sendall(b"nonsense\r\n\r\n" * 10_000)
        status, headers = read_head(client)
        assert (status, headers["content-type"]) == (400, "application/problem+json")
    assert server.serves()


# ── time ──────────────────────────────────────────────────────────────────────────────────────────────


def test_a_silent_connection_is_closed_without_a_word(hasty: Server) -> None:
    with hasty.connect() as client:
        assert read_to_end(client) == b""


@pytest.mark.parametrize("before", [b"", GET], ids=["first", "second"])
def test_a_head_that_does_not_end_is_408(hasty: Server, before: bytes) -> None:
    with hasty.connect() as client:
        if before:
            client.sendall(before)
            read_answer(client)
        client.sendall(GET[:-2])
        assert problem(client)["code"] == "request_timeout"


def test_a_body_that_was_answered_early_and_does_not_end_is_dropped(hasty: Server) -> None:
    with hasty.connect() as client:
        client.sendall(b"POST /early HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n")
        assert read_answer(client) == (200, b"early")
        client.sendall(b"12345678")
        assert read_to_end(client) == b""


def test_a_stream_a_slow_body_and_an_idle_connection_outlive_the_time_for_a_head(hasty: Server) -> None:
    with hasty.connect() as stream, hasty.connect() as upload, hasty.connect() as idle, hasty.connect() as silent:
        stream.sendall(b"GET /stream HTTP/1.1\r\nHost: x\r\n\r\n")
        assert read_head(stream)[0] == 200
        upload.sendall(b"POST /one HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n1")
        idle.sendall(GET)
        read_answer(idle)
        assert read_to_end(silent) == b""  # so the time is over
        with hasty.connect() as another:
            assert read_to_end(another) == b""  # and once again, for all that the three have sent
        idle.sendall(GET)
        assert read_answer(idle) == (200, b"GET /one 1 0")
        upload.sendall(b"2")
        assert read_answer(upload) == (200, b"POST /one 2 2")
        hasty.app.go_on.set()
        read_until(stream, b"ended")


# ── silent bodies ─────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def impatient() -> Iterator[Server]:
    """A server that waits half a second for the next byte of a body."""
    with listening(Limits(connections=100, body_timeout=0.5)) as running:
        yield running


@pytest.mark.parametrize("begun", [b"", b"1234"], ids=["nothing", "a part"])
@pytest.mark.parametrize("before", [b"", GET], ids=["first", "second"])
def test_a_body_that_is_announced_and_does_not_come_is_408(impatient: Server, begun: bytes, before: bytes) -> None:
    with impatient.connect() as client:
        if before:
            client.sendall(before)
            read_answer(client)
        client.sendall(b"POST /one HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n" + begun)
        assert problem(client)["code"] == "request_timeout"
    eventually(impatient.app.disconnected.is_set, "the application to hear of it")
    impatient.await_open(0)


def test_a_chunked_body_that_falls_silent_is_408(impatient: Server) -> None:
    with impatient.connect() as client:
        client.sendall(b"POST /one HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n")
        assert problem(client)["status"] == 408


def test_a_silent_body_that_nobody_reads_does_not_hold_the_connection(impatient: Server) -> None:
    with impatient.connect() as early, impatient.connect() as stream:
        early.sendall(b"POST /early HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n")
        assert read_answer(early) == (200, b"early")
        assert read_to_end(early) == b""
        stream.sendall(b"POST /stream HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n")
        assert read_head(stream)[0] == 200
        read_to_end(stream)  # which ends although the application would go on
    impatient.await_open(0)


def test_a_slow_body_is_waited_for() -> None:
    with listening(Limits(connections=100, body_timeout=3)) as server, server.connect() as silent:
        silent.sendall(b"POST /one HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n")
        with server.connect() as slow:
            slow.sendall(b"POST /one HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n")
            silent.settimeout(0.1)
            sent, over = 0, b""
            while not over:
                slow.sendall(b"x")
                sent += 1
                with suppress(TimeoutError):
                    over = silent.recv(12)
            assert over == b"HTTP/1.1 408"
            slow.sendall(b"x" * (100_000 - sent))
            assert read_answer(slow) == (200, b"POST /one 2 100000")


def test_a_client_that_is_not_listened_to_is_not_silent(impatient: Server) -> None:
    """While the application reads nothing, the server takes no more: that the client waits is not its fault."""
    with impatient.connect() as client, impatient.connect() as silent:
        client.sendall(b"POST /stream HTTP/1.1\r\nHost: x\r\nContent-Length: 200000\r\n\r\n" + b"x" * 150_000)
        assert read_head(client)[0] == 200
        for connection in (silent, impatient.connect()):
            connection.sendall(b"POST /one HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n")
            assert problem(connection)["status"] == 408  # so the time is over, twice
        impatient.app.go_on.set()
        read_until(client, b"ended")


def test_idle_connections_are_closed_by_keep_alive() -> None:
    with listening(Limits(connections=100), keep_alive=1) as server, server.connect() as client:
        client.sendall(GET)
        assert read_answer(client)[0] == 200
        assert read_to_end(client) == b""
        server.await_open(0)


# ── the number of connections ─────────────────────────────────────────────────────────────────────────


def test_more_silent_connections_than_the_limit_lock_nobody_out() -> None:
    with listening(Limits(connections=20)) as server:
        silent = [server.connect() for _ in range(50)]
        assert server.serves()
        assert silent[0].recv(1) == b""
        server.await_open(19)
        silent[-1].sendall(GET)
        assert read_answer(silent[-1]) == (200, b"GET /one 1 0")
        for client in silent:
            client.close()
        server.await_open(0)


def test_the_one_that_waits_longest_goes_first_and_those_at_work_stay() -> None:
    with listening(Limits(connections=4)) as server:
        stream, upload, old, new = (server.connect() for _ in range(4))
        stream.sendall(b"GET /stream HTTP/1.1\r\nHost: x\r\n\r\n")
        assert read_head(stream)[0] == 200
        upload.sendall(b"POST /one HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 1\r\n\r\n")
        assert read_head(upload)[0] == 100
        for client in (new, old, new):  # the server hears of `old` after `new`, and of `new` again
            client.sendall(GET)
            read_answer(client)
        with server.connect() as fifth, server.connect() as sixth:
            assert old.recv(1) == b""
            assert new.recv(1) == b""
            for client in (fifth, sixth):
                client.sendall(b"GET /stream HTTP/1.1\r\nHost: x\r\n\r\n")
                assert read_head(client)[0] == 200
            # Nobody waits for a request now, so that the one that waits for a body has to go.
            with server.connect() as seventh:
                assert upload.recv(1) == b""
                seventh.sendall(b"GET /stream HTTP/1.1\r\nHost: x\r\n\r\n")
                assert read_head(seventh)[0] == 200
                with server.connect() as eighth:
                    assert problem(eighth)["status"] == 503
                server.await_open(4)
                server.app.go_on.set()
                for client in (stream, fifth, sixth, seventh):
                    read_until(client, b"ended")
        for client in (stream, upload, old, new):
            client.close()
        eventually(server.serves, "free places to be used again")


def test_the_limit_of_open_files_is_raised_and_leaves_room() -> None:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    script = (
        "import resource; from shared.open_files import raise_open_files as r\n"
        "print(r(), r(), *resource.getrlimit(resource.RLIMIT_NOFILE))"
    )
    wanted = min(hard, 3000)
    limited = subprocess.run(
        ["sh", "-c", f'ulimit -Sn 256 && ulimit -Hn {wanted} && exec "$0" -c "$1"', sys.executable, script],
        capture_output=True,
        text=True,
        check=True,
    )
    assert limited.stdout.split() == [str(wanted)] * 4


@pytest.mark.parametrize(("files", "connections"), [(64, 1), (256, 192), (1024, 768), (10**6, MOST_CONNECTIONS)])
def test_connections_leave_files_for_the_rest(files: int, connections: int) -> None:
    assert most_connections(files) == connections
    assert most_connections(raise_open_files()) > 0

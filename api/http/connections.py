"""Bounds for connections, kept before a request reaches the application: uvicorn and its parser have none.

- The head of a request (request line and header fields) has at most `Limits.head_bytes`. The parser joins the pieces of
  a field in quadratic time, so that a head of 48 MiB would stop the whole process for seconds.
- A body that was announced must not be silent for `Limits.body_timeout` seconds, whether somebody reads it or not.
- A head must be complete `Limits.head_timeout` seconds after the connection was made or the head began.
- At most `Limits.connections` are open. One more closes the connection that has waited longest for its client: for a
  request, or else for the rest of a body. Connections whose request is being answered, such as event streams, stay;
  when there are no others, the new one is refused with 503.

uvicorn's documentation does not cover its protocol classes; tests/api/http/test_private_names.py lists what is used.
"""

from __future__ import annotations

from asyncio import BaseTransport, TimerHandle
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from typing import Any, cast

from starlette.responses import Response
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from api.http import request_ids
from api.http.problems import respond
from shared.open_files import raise_open_files

MOST_CONNECTIONS = 16_384


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of one server."""

    connections: int
    head_bytes: int = 32 * 2**10
    """Also for the trailer fields of a chunked body, and for the extensions of its chunks. A head that begins in the
    middle of a packet, behind another request, may have up to twice as many."""
    head_timeout: float = 30.0
    body_timeout: float = 30.0
    """Seconds without a byte of a body that the server is ready to take."""
    linger: float = 2.0
    """Seconds for which the rest of a refused request is read and dropped. If the connection were closed at once, many
    clients would report a broken connection and never read the answer."""


def bounded_http(limits: Limits | None = None) -> type[HttpToolsProtocol]:
    """The protocol of one server: `uvicorn.run(app, http=bounded_http(), ws="none")`.

    By default it raises the process's limit of open files and derives the limit of connections from it.
    """
    waiting = Waiting(limits or Limits(connections=most_connections(raise_open_files())))
    # uvicorn only calls it, with the arguments of a protocol class.
    return cast("type[HttpToolsProtocol]", partial(BoundedHttp, waiting))


def most_connections(open_files: int) -> int:
    """Connections for a process that may have `open_files`: the rest is for databases, images and libraries."""
    return max(1, min(MOST_CONNECTIONS, open_files - max(64, open_files // 4)))


class Waiting:
    """Connections of one server that wait for their clients, the longest wait first."""

    def __init__(self, limits: Limits):
        self.limits = limits
        self._for_request: OrderedDict[BoundedHttp, None] = OrderedDict()
        self._for_body: OrderedDict[BoundedHttp, None] = OrderedDict()

    def await_request(self, connection: BoundedHttp) -> None:
        self._for_body.pop(connection, None)
        self._for_request[connection] = None

    def await_body(self, connection: BoundedHttp) -> None:
        self._for_request.pop(connection, None)
        self._for_body[connection] = None

    def note_body(self, connection: BoundedHttp) -> None:
        """Another part of the body came in."""
        if connection in self._for_body:
            self._for_body.move_to_end(connection)

    def forget(self, connection: BoundedHttp) -> None:
        """The connection no longer waits."""
        self._for_request.pop(connection, None)
        self._for_body.pop(connection, None)

    def close_longest(self) -> bool:
        """Close the connection that has waited longest; False when none waits."""
        for connections in (self._for_request, self._for_body):
            if connections:
                connection, _ = connections.popitem(last=False)
                # Not `close`, which first waits until the client has read what it was sent.
                connection.transport.abort()
                return True
        return False


class BoundedHttp(HttpToolsProtocol):
    """uvicorn's HTTP/1.1 on one connection, within bounds."""

    def __init__(self, waiting: Waiting, **uvicorn: Any):
        super().__init__(**uvicorn)
        self._waiting = waiting
        self._limits = waiting.limits
        self._unproductive = 0
        """Bytes that were parsed since the last head ended or the last byte of a body came in."""
        self._timer: TimerHandle | None = None
        """For the rest of a head, or of what was refused."""
        self._body_timer: TimerHandle | None = None
        self._body_heard = 0.0
        """When the last byte of the body came in, by the loop's clock."""
        self._deaf = False
        """Whether further bytes are dropped."""

    @property
    def _busy(self) -> bool:
        # `cycle` is the request that was parsed last; pipelined ones before it are answered before it.
        return self.cycle is not None and not self.cycle.response_complete

    # ── the connection ────────────────────────────────────────────────────────────────────────────

    def connection_made(self, transport: BaseTransport) -> None:
        super().connection_made(transport)  # type: ignore[arg-type]
        if len(self.connections) > self._limits.connections and not self._waiting.close_longest():
            self._deaf = True
            detail = "The server has as many connections as it can serve; try again in a moment."
            self._write_problem(503, "unavailable", detail, {"Retry-After": "1"})
            self.transport.close()
            return
        self._waiting.await_request(self)
        self._start_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        self._stop_body_timer()
        self._waiting.forget(self)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._deaf:
            return
        if self._unproductive + len(data) <= self._limits.head_bytes:
            self._unproductive += len(data)
            super().data_received(data)
        else:
            self._feed_in_pieces(memoryview(data))
        if self._timer is None and not self._busy and not self._deaf:
            # The next head has begun, or the rest of a body that was answered early is coming in.
            self._start_timer()

    def _feed_in_pieces(self, data: memoryview) -> None:
        """Feed the parser no more than a head may have, until it has made something of it."""
        while data and not self.transport.is_closing():
            room = self._limits.head_bytes - self._unproductive
            if room <= 0:
                kib = self._limits.head_bytes // 2**10
                detail = f"The request line and header fields of a request may have {kib} KiB together."
                self._refuse(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, detail)
                return
            piece, data = data[:room], data[room:]
            self._unproductive += len(piece)
            super().data_received(piece)  # type: ignore[arg-type]  # the parser takes any buffer

    # ── the parser's callbacks ────────────────────────────────────────────────────────────────────

    def on_headers_complete(self) -> None:
        self._unproductive = 0
        self._stop_timer()
        super().on_headers_complete()
        self._waiting.await_body(self)
        self._body_heard = self.loop.time()
        self._body_timer = self.loop.call_later(self._limits.body_timeout, self._on_body_timeout)
        if self.parser.should_upgrade():
            # The parser leaves what follows to the other protocol, which nobody speaks here.
            self.cycle.keep_alive = False

    def on_body(self, body: bytes) -> None:
        self._unproductive = 0
        self._body_heard = self.loop.time()
        self._waiting.note_body(self)
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._unproductive = 0
        self._stop_body_timer()
        self._waiting.forget(self)
        super().on_message_complete()

    def _unsupported_upgrade_warning(self) -> None:
        """A client that offers HTTP/2 or WebSocket is answered in HTTP/1.1, which is not worth a warning."""

    # ── the end of a request ──────────────────────────────────────────────────────────────────────

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if not self._busy and not self.transport.is_closing():
            self._waiting.await_request(self)

    def _on_head_timeout(self) -> None:
        self._timer = None
        if self._unproductive:
            seconds = self._limits.head_timeout
            self._refuse(HTTPStatus.REQUEST_TIMEOUT, f"The request's head was not complete within {seconds:.0f} s.")
        else:
            self.transport.close()

    def _on_body_timeout(self) -> None:
        """Look whether the body was silent all the time. One timer serves a whole body: chunks may be many."""
        seconds = self._limits.body_timeout
        if self.flow.read_paused:
            self._body_heard = self.loop.time()  # the client is not silent: nobody listens to it now
        left = self._body_heard + seconds - self.loop.time()
        if left > 0:
            self._body_timer = self.loop.call_later(left, self._on_body_timeout)
            return
        self._body_timer = None
        if self._busy:
            self._refuse(HTTPStatus.REQUEST_TIMEOUT, f"Nothing of the request's body arrived for {seconds:.0f} s.")
        else:
            self.transport.close()  # the request was answered without its body

    def _refuse(self, status: HTTPStatus, detail: str) -> None:
        """Read nothing more on this connection, and answer with the status if no other answer is under way."""
        self._deaf = True
        self._stop_timer()
        self._stop_body_timer()
        self._waiting.forget(self)
        if self._busy and not self.cycle.more_body:
            # Behind complete requests: they are answered, and the last answer says that the connection ends.
            self.cycle.keep_alive = False
            return
        if self._busy:
            # In the trailer of a body: the application learns that it will not get the rest.
            self.cycle.disconnected = True
            self.cycle.message_event.set()
            if self.pipeline or self.cycle.response_started:
                self.transport.close()
                return
        self.flow.resume_reading()
        self._write_problem(status, status.phrase.lower().replace(" ", "_"), detail)
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self._timer = self.loop.call_later(self._limits.linger, self.transport.abort)

    def send_400_response(self, msg: str) -> None:
        self._write_problem(400, "bad_request", msg)
        self.transport.close()

    def _write_problem(self, status: int, code: str, detail: str, headers: Mapping[str, str] | None = None) -> None:
        """Answer in place of the application, with the id of the request as far as it is known, and in the shape that
        its path asks for."""
        url, fields = (self.url, self.headers) if self.scope is not None else (b"", [])
        id = request_ids.choose(next((v.decode("latin-1") for n, v in fields if n == b"x-request-id"), None))
        path = url.partition(b"?")[0].decode("ascii", "replace")
        named = {request_ids.HEADER: id, **(headers or {})}
        response = respond(status, code, detail, path=path, headers=named, request_id=id)
        self.transport.write(self._serialize(response))

    def _serialize(self, response: Response) -> bytes:
        phrase = HTTPStatus(response.status_code).phrase
        headers = [*self.server_state.default_headers, *response.raw_headers, (b"connection", b"close")]
        lines = [f"HTTP/1.1 {response.status_code} {phrase}".encode(), *(b": ".join(header) for header in headers)]
        return b"\r\n".join([*lines, b"", bytes(response.body)])

    def _start_timer(self) -> None:
        self._timer = self.loop.call_later(self._limits.head_timeout, self._on_head_timeout)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _stop_body_timer(self) -> None:
        if self._body_timer is not None:
            self._body_timer.cancel()
            self._body_timer = None

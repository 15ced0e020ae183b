"""What api/http/connections.py uses of uvicorn and httptools without a promise of theirs. An upgrade that changes it
fails here with a sentence."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest
from uvicorn import Config
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import Server, ServerState


def mentions(function: Callable[..., Any], code: str) -> bool:
    """Whether the function's source contains `code`, white space aside."""
    return "".join(code.split()) in "".join(inspect.getsource(function).split())


def takes(function: Callable[..., Any], *parameters: str) -> bool:
    return list(inspect.signature(function).parameters) == list(parameters)


USES: dict[str, Callable[[], bool]] = {
    "the server calls `http` with these arguments, and it may be any callable": lambda: (
        mentions(Server.startup, "return config.http_protocol_class(")
        and mentions(Server.startup, "config=config, server_state=self.server_state, app_state=self.lifespan.state,")
        and mentions(Config.load, "self.http_protocol_class = self.http")
    ),
    "every byte comes through data_received and goes to feed_data, whose errors are dealt with there": lambda: (
        takes(HttpToolsProtocol.data_received, "self", "data")
        and mentions(HttpToolsProtocol.data_received, "self.parser.feed_data(data)")
        and mentions(HttpToolsProtocol.data_received, "except httptools.HttpParserError:")
    ),
    "callbacks of the parser": lambda: (
        takes(HttpToolsProtocol.on_headers_complete, "self")
        and takes(HttpToolsProtocol.on_body, "self", "body")
        and takes(HttpToolsProtocol.on_message_complete, "self")
        and mentions(HttpToolsProtocol.on_headers_complete, "self.parser.should_upgrade()")
    ),
    "`cycle` is the request that was parsed last, and ends with on_response_complete": lambda: (
        mentions(HttpToolsProtocol.on_headers_complete, "self.cycle = RequestResponseCycle(")
        and mentions(HttpToolsProtocol.on_headers_complete, "on_response=self.on_response_complete")
        and mentions(HttpToolsProtocol.on_headers_complete, "self.pipeline.appendleft((self.cycle, app))")
        and mentions(RequestResponseCycle.send, "self.response_complete = True")
        and mentions(RequestResponseCycle.send, "self.on_response()")
    ),
    "`keep_alive` of a cycle makes its answer say that the connection ends": lambda: (
        mentions(
            RequestResponseCycle.send, 'if not self.keep_alive and not has_connection_close: content.append(b"conn'
        )
        and mentions(RequestResponseCycle.send, "if not self.keep_alive: self.transport.close()")
    ),
    "`disconnected` and `message_event` of a cycle tell the application that the client is gone": lambda: (
        mentions(HttpToolsProtocol.connection_lost, "self.cycle.disconnected = True")
        and mentions(HttpToolsProtocol.connection_lost, "self.cycle.message_event.set()")
        and mentions(RequestResponseCycle.__init__, "self.more_body = True")
        and mentions(RequestResponseCycle.__init__, "self.response_started = False")
    ),
    "open connections": lambda: (
        isinstance(ServerState().connections, set)
        and ServerState().default_headers == []
        and mentions(HttpToolsProtocol.connection_made, "self.connections.add(self)")
        and mentions(HttpToolsProtocol.connection_lost, "self.connections.discard(self)")
    ),
    "reading is paused and resumed by FlowControl, which tells": lambda: (
        takes(FlowControl.resume_reading, "self")
        and mentions(FlowControl.pause_reading, "self.read_paused = True")
        and mentions(FlowControl.resume_reading, "self.read_paused = False")
    ),
    "what is known of a request whose head is not complete": lambda: (
        mentions(HttpToolsProtocol.__init__, "self.scope: HTTPScope = None")
        and mentions(HttpToolsProtocol.on_message_begin, 'self.url = b""')
        and mentions(HttpToolsProtocol.on_message_begin, "self.headers = []")
        and mentions(HttpToolsProtocol.on_url, "self.url += url")
        and mentions(HttpToolsProtocol.on_header, "name = name.lower()")
        and mentions(HttpToolsProtocol.on_header, "self.headers.append((name, value))")
    ),
    "the answer to what is no HTTP": lambda: (
        takes(HttpToolsProtocol.send_400_response, "self", "msg")
        and mentions(HttpToolsProtocol.data_received, "self.send_400_response(msg)")
    ),
    "a warning about upgrades that may be left out": lambda: (
        mentions(HttpToolsProtocol.data_received, "self._unsupported_upgrade_warning()")
        and mentions(HttpToolsProtocol._unsupported_upgrade_warning, "self.logger.warning(")
    ),
}


@pytest.mark.parametrize("use", USES)
def test_uvicorn_and_httptools_are_what_we_rely_on(use: str) -> None:
    assert USES[use](), f"api/http/connections.py relies on this: {use}"

"""The client to await, driven by tests that block; and a way to the API on which answers are lost."""

from __future__ import annotations

import inspect
import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import partial
from typing import Any, cast
from urllib.parse import urlsplit

from anyio.from_thread import BlockingPortal, start_blocking_portal

from tuwen.client import AsyncClient, Client

Connect = Callable[..., AbstractContextManager[Client]]


@contextmanager
def connect_awaiting(*arguments: Any) -> Iterator[Client]:
    """An `AsyncClient` in an event loop of its own, whose methods look as if they blocked."""
    with start_blocking_portal("asyncio") as portal:
        client = portal.call(partial(AsyncClient, *arguments))
        with portal.wrap_async_context_manager(client):
            yield cast("Client", _Driven(client, portal))


class _Driven:
    def __init__(self, driven: Any, portal: BlockingPortal):
        self._driven = driven
        self._portal = portal

    def __getattr__(self, name: str) -> Any:
        attribute = getattr(self._driven, name)
        if inspect.iscoroutinefunction(attribute):
            return lambda *args, **kwargs: self._portal.call(partial(attribute, *args, **kwargs))
        if inspect.isasyncgenfunction(attribute):
            return lambda *args, **kwargs: _iterate(self._portal, attribute(*args, **kwargs))
        return _Driven(attribute, self._portal) if name == "datasets" else attribute


def _iterate(portal: BlockingPortal, items: AsyncIterator[Any]) -> Iterator[Any]:
    with suppress(StopAsyncIteration):
        while True:
            yield portal.call(partial(anext, items))


@contextmanager
def losing_first_answers(url: str, count: int) -> Iterator[str]:
    """The address of a way to the API at `url`: it passes every request on, but breaks before the first answers."""
    target = urlsplit(url)
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            left = count
            with suppress(OSError):  # the listener is closed: this is the end
                while True:
                    client, _ = listener.accept()
                    threading.Thread(target=_pass_on, args=(client, (target.hostname, target.port), left > 0)).start()
                    left -= 1

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        listener.shutdown(socket.SHUT_RDWR)
    thread.join()


def _pass_on(client: socket.socket, target: Any, losing: bool) -> None:
    """Pass on one connection: what the client sends, then, unless it is lost, what the API answers."""
    with client, socket.create_connection(target) as server, suppress(OSError):
        sending = threading.Thread(target=_copy, args=(client, server), daemon=True)
        sending.start()
        if losing:
            server.recv(65536)  # the API has done it and says so, which never arrives
            client.shutdown(socket.SHUT_RDWR)
        else:
            _copy(server, client)
        sending.join(10)


def _copy(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)

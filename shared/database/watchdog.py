"""A PostgreSQL that is there and says nothing, given up within seconds.

A frozen server, or one behind a network that swallows packets, closes no connection: whoever asked it something would
wait for ever, and no timeout that the server itself keeps is of any help. Silence alone proves nothing, since a large
statement or a lock may take minutes. So who has waited for `PATIENCE` seconds looks whether the server still greets
newcomers; where it does not, the statement is given up and its connection closed. Until the server greets again,
everybody else is turned away at once (a circuit breaker), but for one who looks now and then.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Generator
from typing import Any, TypeVar

import psycopg
from psycopg.errors import ConnectionTimeout

from tuwen.errors import DatabaseUnavailable

PATIENCE = 3
"""Seconds of silence before somebody looks, and seconds that a greeting may take."""
AWAY = 2.0
"""Seconds for which a silent server is not looked at again."""

RV = TypeVar("RV")


class Silent(psycopg.OperationalError):
    """The server did not answer, nor anybody else."""


class Watchdog:
    """Knows whether the server at `url` greets newcomers. Thread-safe."""

    def __init__(self, url: str):
        self._url = url
        self._turn = threading.Lock()
        self._looked = 0.0
        self._silent = False

    def connect(self, *arguments: Any, **options: Any) -> WatchedConnection:
        """As `psycopg.connect`; raises `Silent` when the server takes too long to greet."""
        try:
            connection = WatchedConnection.connect(*arguments, **options)
        except ConnectionTimeout as error:
            self._note(silent=True)
            # Its traceback holds the half-made connection, which would stay open as long as somebody keeps the error.
            raise Silent(str(error)) from error.with_traceback(None)
        connection.watchdog = self
        return connection

    def require_voice(self) -> None:
        """Turn away whoever would only wait.

        Raises:
            DatabaseUnavailable: the server was silent when it was last looked at, a moment ago or just now.
        """
        if self._silent and time.monotonic() - self._looked > AWAY and self._turn.acquire(blocking=False):
            try:
                self._look()
            finally:
                self._turn.release()
        if self._silent:
            raise unavailable()

    def is_silent(self) -> bool:
        """Whether the server greets nobody, asked by one who has waited for it in vain."""
        asked = time.monotonic()
        with self._turn:
            if self._looked < asked:
                self._look()
            return self._silent

    def _look(self) -> None:
        try:
            psycopg.connect(self._url, connect_timeout=PATIENCE).close()
        except psycopg.Error as error:
            # A refusal is no silence: connections to a server that is gone break by themselves.
            self._note(silent=isinstance(error, ConnectionTimeout))
        else:
            self._note(silent=False)

    def _note(self, *, silent: bool) -> None:
        self._silent = silent
        self._looked = time.monotonic()


class WatchedConnection(psycopg.Connection[Any]):
    """A connection on which a statement that waits for a silent server raises `Silent`."""

    watchdog: Watchdog

    def wait(self, gen: Generator[Any, Any, RV], *arguments: Any, **options: Any) -> RV:
        return super().wait(self._watched(gen), *arguments, **options)

    def _watched(self, gen: Generator[Any, Any, RV]) -> Generator[Any, Any, RV]:
        """psycopg waits between the steps of `gen`, and wakes it in vain several times a second."""
        ready, silent_since = None, None
        try:
            while True:
                ready = yield gen.send(ready)
                if ready:
                    silent_since = None
                elif silent_since is None:
                    silent_since = time.monotonic()
                elif time.monotonic() - silent_since > PATIENCE:
                    self._require_voice()
                    silent_since = None
        except StopIteration as end:
            answer: RV = end.value
            return answer

    def _require_voice(self) -> None:
        if self.watchdog.is_silent():
            self.close()
            raise Silent(f"the server has been silent for more than {PATIENCE} seconds, to others as well")


def unavailable() -> DatabaseUnavailable:
    return DatabaseUnavailable(
        "PostgreSQL is silent: it is frozen or overloaded, or the network swallows what it says. Try again.",
        retry_after=AWAY,
    )

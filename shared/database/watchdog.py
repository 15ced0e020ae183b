"""Detects within seconds a PostgreSQL that accepts connections but does not answer.

A frozen server, or one behind a network that drops packets, closes no connection: clients would wait forever, and
timeouts that the server itself enforces do not help. Silence alone proves nothing, since a large statement or a lock
may take minutes. So a thread that has waited for `PATIENCE` seconds checks whether the server still answers on a new
connection; if it does not, the statement is abandoned and its connection closed. Until the server answers again, all
other threads fail at once (a circuit breaker), except for one that checks from time to time. The check asks something,
because a pooler accepts connections for a server that is frozen.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Generator
from contextlib import suppress
from typing import Any, TypeVar

import psycopg
from psycopg.errors import ConnectionTimeout

from tuwen.errors import DatabaseUnavailable

PATIENCE = 3
"""Seconds of silence before a thread checks the server, and seconds that a new connection may take."""
AWAY = 2.0
"""Seconds for which a silent server is not checked again."""

RV = TypeVar("RV")


class Silent(psycopg.OperationalError):
    """The server answers neither the statement nor new connections."""


class Watchdog:
    """Tracks whether the server at `url` answers on new connections. Thread-safe."""

    def __init__(self, url: str):
        self._url = url
        self._turn = threading.Lock()
        self._looked = 0.0
        self._silent = False

    def connect(self, *arguments: Any, **options: Any) -> WatchedConnection:
        """Connect like `psycopg.connect`; raises `Silent` when the server takes too long."""
        try:
            connection = WatchedConnection.connect(*arguments, **options)
        except ConnectionTimeout as error:
            self._note(silent=True)
            # The traceback refers to the unfinished connection, which would stay open as long as the error is kept.
            raise Silent(str(error)) from error.with_traceback(None)
        connection.watchdog = self
        return connection

    def require_voice(self) -> None:
        """Fail at once when the server is silent, instead of waiting for it.

        Raises:
            DatabaseUnavailable: the server was silent when it was last checked, a moment ago or just now.
        """
        if self._silent and time.monotonic() - self._looked > AWAY and self._turn.acquire(blocking=False):
            try:
                self._look()
            finally:
                self._turn.release()
        if self._silent:
            raise unavailable()

    def is_silent(self) -> bool:
        """Check whether the server answers nobody; called by a thread that has waited without an answer."""
        asked = time.monotonic()
        with self._turn:
            if self._looked < asked:
                self._look()
            return self._silent

    def _look(self) -> None:
        try:
            with _Probe.connect(self._url, connect_timeout=PATIENCE, autocommit=True) as probe:
                probe.execute("SELECT")
        except psycopg.Error as error:
            # A refused connection is not silence: connections to a server that is down break by themselves.
            self._note(silent=isinstance(error, ConnectionTimeout))
        else:
            self._note(silent=False)

    def _note(self, *, silent: bool) -> None:
        self._silent = silent
        self._looked = time.monotonic()


class _Probe(psycopg.Connection[Any]):
    """A connection whose statements raise ConnectionTimeout when they take longer than `PATIENCE`."""

    def wait(self, gen: Generator[Any, Any, RV], *arguments: Any, **options: Any) -> RV:
        return super().wait(self._limit(gen), *arguments, **options)

    def _limit(self, gen: Generator[Any, Any, RV]) -> Generator[Any, Any, RV]:
        ready, began = None, time.monotonic()
        try:
            while True:
                ready = yield gen.send(ready)
                if time.monotonic() - began > PATIENCE:
                    self.close()
                    raise ConnectionTimeout(f"no answer within {PATIENCE} seconds")
        except StopIteration as end:
            answer: RV = end.value
            return answer


class WatchedConnection(psycopg.Connection[Any]):
    """A connection whose statements raise `Silent` when the server is silent."""

    watchdog: Watchdog
    longest: float | None = None
    """Seconds after which this end cancels a statement, where the server has not been told to."""

    def wait(self, gen: Generator[Any, Any, RV], *arguments: Any, **options: Any) -> RV:
        return super().wait(self._watch(gen), *arguments, **options)

    def _watch(self, gen: Generator[Any, Any, RV]) -> Generator[Any, Any, RV]:
        """Check the server between the steps of `gen`, which psycopg wakes several times a second without news."""
        ready, silent_since = None, None
        due = time.monotonic() + self.longest if self.longest else math.inf
        try:
            while True:
                ready = yield gen.send(ready)
                if not ready and time.monotonic() > due:
                    due = math.inf
                    with suppress(psycopg.Error):  # a server that is silent does not cancel either
                        self.cancel_safe(timeout=PATIENCE)
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
            raise Silent(f"the server has been silent for more than {PATIENCE} seconds, also to new connections")


def unavailable() -> DatabaseUnavailable:
    """The error for clients while PostgreSQL is silent."""
    return DatabaseUnavailable(
        "PostgreSQL is silent: it is frozen or overloaded, or the network drops its packets. Try again.",
        retry_after=AWAY,
    )

"""Requests to cancel, heard as they are made."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from uuid import UUID

from redis.exceptions import RedisError

from shared.queue import CANCEL_CHANNEL, connect
from shared.settings import Settings


class CancelListener:
    """Hears of requests to cancel on Redis's channel, so that nobody who cancels has to wait for the next heartbeat.

    Without Redis the next heartbeat sees the request in PostgreSQL.
    """

    def __init__(self, settings: Settings, on_cancel: Callable[[UUID], None]):
        """`on_cancel` is given the id of each job whose end is requested, on whatever worker it runs."""
        self._settings = settings
        self._on_cancel = on_cancel
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._listen, name="cancel-listener", daemon=True)

    def start(self) -> None:
        """Start to listen, in a thread."""
        self._thread.start()

    def close(self) -> None:
        """Stop listening; wait a few seconds for the thread to end."""
        self._closing.set()
        if self._thread.ident is not None:
            self._thread.join(timeout=5)

    def _listen(self) -> None:
        with connect(self._settings, decode=False) as client:
            while not self._closing.is_set():
                try:
                    with client.pubsub(ignore_subscribe_messages=True) as channel:
                        channel.subscribe(CANCEL_CHANNEL)
                        while not self._closing.is_set():
                            if message := channel.get_message(timeout=1.0):
                                # Anybody who reaches Redis can publish anything.
                                with suppress(ValueError):
                                    self._on_cancel(UUID(message["data"].decode()))
                except (RedisError, OSError):
                    self._closing.wait(2.0)

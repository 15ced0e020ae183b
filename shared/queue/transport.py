"""kombu's Redis transport, changed to survive invalid messages, to fetch many at a time, and to let none starve."""

from __future__ import annotations

import logging
from queue import Empty
from time import monotonic
from typing import Any

from kombu.transport import redis as kombu_redis
from kombu.utils.encoding import bytes_to_str
from kombu.utils.json import loads

from shared.fairness import Levels

log = logging.getLogger(__name__)

MOST_AT_ONCE = 16
"""Most messages that one round trip fetches; more of them would leave idle workers without work."""


class Channel(kombu_redis.Channel):
    """Receives messages with BLMPOP (Redis 7); kombu uses BRPOP, with a round trip for each message.

    kombu asks for the most urgent messages first, always; here `Levels` says which level a fetch begins with.
    """

    # kombu is untyped here, so mypy infers the types of the values that it sets first.
    _in_poll: Any
    _brpop_sent_at: Any
    _q_for_pri: Any

    def __init__(self, *arguments: Any, **options: Any):
        super().__init__(*arguments, **options)  # type: ignore[no-untyped-call]  # of kombu
        self._levels = Levels(self.priority_steps, monotonic())

    def _brpop_start(self, timeout: float | None = None) -> None:
        queues = self._queue_cycle.consume(len(self.active_queues))
        if not queues:
            return
        keys = [self._q_for_pri(queue, priority) for priority in self._levels.order(monotonic()) for queue in queues]
        places = self.qos.can_consume_max_estimate()
        count = self._levels.most(MOST_AT_ONCE if places is None else min(max(places, 1), MOST_AT_ONCE))
        timeout = self.brpop_timeout if timeout is None else timeout
        self._in_poll = self.client.connection
        self._brpop_sent_at = monotonic()
        self.client.connection.send_command("BLMPOP", timeout or 0, len(keys), *keys, "RIGHT", "COUNT", count)

    def _brpop_read(self, **options: object) -> bool:
        """Deliver the received messages, and drop entries that are not messages.

        In kombu, an entry that is not JSON, or lacks the shape of its envelope, ends the whole worker. A message is
        only a hint that a job may run, so nothing is lost by dropping it.
        """
        try:
            try:
                answer = self.client.parse_response(self.client.connection, "BLMPOP", **options)
            except self.connection_errors:
                self.client.connection.disconnect()  # so that the next round opens a new connection
                raise
        finally:
            self._in_poll = None
            self._flush_brpop_reauth()  # type: ignore[no-untyped-call]  # of kombu
        if not answer:
            self._levels.note(None, 0, monotonic())
            raise Empty
        key, messages = answer
        queue, _, priority = bytes_to_str(key).partition(self.sep)
        self._levels.note(int(priority or 0), len(messages), monotonic())
        self._queue_cycle.rotate(queue)
        for message in messages:
            try:
                self.connection._deliver(loads(bytes_to_str(message)), queue)
            except Exception:
                log.exception("dropped an entry of a queue that is not a message")
        return True


class Transport(kombu_redis.Transport):
    Channel = Channel


class SentinelChannel(Channel, kombu_redis.SentinelChannel):
    """The same on the master that sentinels know."""


class SentinelTransport(kombu_redis.SentinelTransport):
    Channel = SentinelChannel

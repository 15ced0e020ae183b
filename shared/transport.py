"""kombu's Redis transport, made to survive what anybody may have put into a queue."""

from __future__ import annotations

import logging
from queue import Empty
from typing import Any

from kombu.transport import redis as kombu_redis
from redis.exceptions import RedisError

log = logging.getLogger(__name__)


class Channel(kombu_redis.Channel):
    def _brpop_read(self, **options: Any) -> Any:
        """Receive one message; one that is no message is dropped.

        kombu lets what is not JSON, or not shaped like its envelope, end the whole worker. A message is only a
        hint that a job may run, so nothing is lost with it.
        """
        try:
            return super()._brpop_read(**options)  # type: ignore[no-untyped-call]
        except (Empty, RedisError, OSError):
            raise
        except Exception:
            log.exception("dropped something from a queue that is no message")
            raise Empty from None


class Transport(kombu_redis.Transport):
    Channel = Channel

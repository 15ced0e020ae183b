"""The one Celery application, and connections to Redis beside it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import redis
from celery import Celery
from kombu.entity import Queue
from kombu.transport.redis import Channel

from shared.queue.names import DATASETS_QUEUE, HOUSEKEEPING_QUEUE, queue_name, shard_kinds, shards_queue
from shared.settings import Settings
from tuwen.jobs import Kind


def connect(settings: Settings, *, decode: bool = True) -> redis.Redis:
    """A client that fails within seconds when Redis is frozen or down; it returns text, or bytes unless `decode`."""
    return redis.Redis.from_url(settings.redis_url, **_SOCKET, decode_responses=decode)


# Without these, publishing to a frozen Redis hangs for more than 40 s.
_SOCKET: dict[str, Any] = {
    "socket_timeout": 5,
    "socket_connect_timeout": 3,
    "socket_keepalive": True,
    "health_check_interval": 25,
}

_TRANSPORT: dict[str, Any] = {
    **_SOCKET,
    # Redis keeps no unacknowledged messages, which saves two round trips per message. Messages that a dead worker had
    # prefetched are lost messages like any others, and the housekeeper publishes those jobs again sooner than a
    # visibility timeout would.
    "ack_emulation": False,
    "priority_steps": list(range(10)),
    # Among equally urgent messages the kinds of jobs that a worker serves take turns.
    "queue_order_strategy": "round_robin",
    "max_connections": 200,
}


def celery_app(settings: Settings) -> Celery:
    """The Celery application that API, workers, housekeeper and Flower share.

    The reasons for the settings that differ from Celery's defaults stand beside them.
    """
    app = Celery("tuwen", broker=settings.redis_url, events="shared.queue.dispatcher:Events", set_as_current=False)
    app.conf.update(
        # No message is unpickled; results are in PostgreSQL.
        task_serializer="json",
        accept_content=["json"],
        event_serializer="json",
        result_backend=None,
        task_ignore_result=True,
        # There is no result backend, but without this each thread would search all installed packages for it at its
        # first task.
        result_backend_thread_safe=True,
        # A crash is noticed by the expired lease, within seconds.
        task_acks_late=False,
        worker_prefetch_multiplier=1,
        broker_transport_options=_TRANSPORT,
        broker_transport="shared.queue.transport:Transport",
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        # The lease, and with it the job, survives the loss of the connection to Redis.
        worker_cancel_long_running_tasks_on_connection_loss=False,
        # A misspelt queue raises an error.
        task_create_missing_queues=False,
        task_queues=[
            *(Queue(queue_name(kind)) for kind in Kind),
            *(Queue(shards_queue(kinds)) for kinds in shard_kinds(Kind)),
            Queue(DATASETS_QUEUE),
            Queue(HOUSEKEEPING_QUEUE),
        ],
        task_default_queue=HOUSEKEEPING_QUEUE,
        # Flower shows each job from the moment it is published.
        task_send_sent_event=True,
        worker_send_task_events=True,
        task_track_started=True,
        worker_hijack_root_logger=False,
        enable_utc=True,
    )
    return app


def priority_keys(queues: Sequence[str]) -> list[str]:
    """Redis lists in which kombu keeps the messages of these queues, the most urgent first, as arguments of BRPOP."""
    return [f"{name}{Channel.sep}{step}" if step else name for step in range(10) for name in queues]

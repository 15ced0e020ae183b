"""Redis as transport: Celery's configuration, publishing by name, and the channel of job events.

A message is a hint that a job may run; PostgreSQL knows whether it may. So a message can be lost,
doubled or late, and the only question left is how soon the housekeeper notices.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import combinations
from typing import Any
from uuid import UUID, uuid4

import redis
from celery import Celery
from kombu.entity import Queue
from kombu.exceptions import KombuError
from kombu.transport.redis import Channel
from redis.exceptions import RedisError

from shared.database import Dispatch
from shared.errors import QueueUnavailable
from shared.jobs import Kind, Progress
from shared.settings import Settings
from shared.shard_records import ShardDispatch, kinds_name

log = logging.getLogger(__name__)

JobEvent = tuple[UUID, Mapping[str, Any]]
"""`{"status": …}` or `{"progress": …}` of a job, what `shared.jobs.Progress` says."""

HOUSEKEEPING_QUEUE = "tuwen.housekeeping"
HOUSEKEEPING_TASK = "tuwen.housekeeping"
DATASETS_QUEUE = "tuwen.datasets"
"""Data sets to be planned or exported, for housekeepers."""
DATASET_TASK = "tuwen.dataset"
SHARD_TASK = "tuwen.shard"
PREVIEWS_LIST = "tuwen:previews"
"""Wishes for previews; no queue of Celery's, because Flower has no use for each picture that somebody scrolls past."""
WEBHOOKS_TASK = "tuwen.webhooks"
COLLECTION_TASK = "tuwen.collection"
GENERATION_KEY = "tuwen:generation"
"""Held by every Redis that has not lost its data since the housekeeper last looked."""
COLLECTED_KEY = "tuwen:collected"
"""How far the search for orphans has come; a Redis that forgets it makes it begin anew."""
CANCEL_CHANNEL = "tuwen:cancel"
"""Tells workers that a cancel was requested, so that they need not wait for the next heartbeat."""


def queue_name(kind: Kind) -> str:
    return f"tuwen.{kind.value}"


def task_name(kind: Kind) -> str:
    return f"tuwen.{kind.value}"


def shards_queue(kinds: str) -> str:
    """Of shards that need these models, named by `shared.shard_records.kinds_name`."""
    return f"tuwen.shards.{kinds}"


def shard_kinds(held: Iterable[Kind]) -> list[str]:
    """All sets of models that shards may need, of those a worker holds."""
    kinds = [kind for kind in Kind if kind in held and kind is not Kind.GENERATE]
    return [kinds_name(chosen) for size in range(1, len(kinds) + 1) for chosen in combinations(kinds, size)]


def event_channel(job_id: UUID | str) -> str:
    """Redis channel with one JSON message per state change or progress of the job."""
    return f"tuwen:job:{job_id}"


def progress_key(job_id: UUID | str) -> str:
    """Redis key that holds the last progress of a running job, for a minute."""
    return f"tuwen:progress:{job_id}"


def connect(settings: Settings, *, decode: bool = True) -> redis.Redis:
    """A client that gives up in seconds on a Redis that is frozen or gone; answers text, or bytes as they lie there."""
    return redis.Redis.from_url(settings.redis_url, **_SOCKET, decode_responses=decode)


# Without these, publishing to a frozen Redis hangs for more than 40 s.
_SOCKET: dict[str, Any] = {
    "socket_timeout": 5,
    "socket_connect_timeout": 3,
    "socket_keepalive": True,
    "health_check_interval": 25,
}


def celery_app(settings: Settings) -> Celery:
    """The Celery application that API, workers, housekeeper and Flower share.

    The reasons for the settings that differ from Celery's defaults stand beside them.
    """
    app = Celery("tuwen", broker=settings.redis_url, events="shared.dispatcher:Events", set_as_current=False)
    app.conf.update(
        # Nothing from the wire is unpickled; results live in PostgreSQL.
        task_serializer="json",
        accept_content=["json"],
        event_serializer="json",
        result_backend=None,
        task_ignore_result=True,
        # There is none, but else each thread would look through all installed packages for it at its first task.
        result_backend_thread_safe=True,
        # A crash is seen by the lease, in seconds.
        task_acks_late=False,
        worker_prefetch_multiplier=1,
        broker_transport_options={
            **_SOCKET,
            # No unacknowledged messages are kept in Redis: two round trips less for each. What a dead worker had
            # prefetched is a lost message like any other, and the housekeeper publishes those jobs again sooner
            # than a visibility timeout would have.
            "ack_emulation": False,
            "priority_steps": list(range(10)),
            "queue_order_strategy": "priority",
            "max_connections": 200,
        },
        broker_transport="shared.transport:Transport",
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        # A lease outlives a Redis that went away, and so does the job.
        worker_cancel_long_running_tasks_on_connection_loss=False,
        # A misspelt queue fails loudly.
        task_create_missing_queues=False,
        task_queues=[
            *(Queue(queue_name(kind)) for kind in Kind),
            *(Queue(shards_queue(kinds)) for kinds in shard_kinds(Kind)),
            Queue(DATASETS_QUEUE),
            Queue(HOUSEKEEPING_QUEUE),
        ],
        task_default_queue=HOUSEKEEPING_QUEUE,
        # Flower sees each job from the moment it is published.
        task_send_sent_event=True,
        worker_send_task_events=True,
        task_track_started=True,
        worker_hijack_root_logger=False,
        enable_utc=True,
    )
    return app


def priority_keys(queues: Sequence[str]) -> list[str]:
    """Redis lists in which kombu keeps the messages of these queues, the most urgent first: for BRPOP."""
    return [f"{name}{Channel.sep}{step}" if step else name for step in range(10) for name in queues]


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except (KombuError, RedisError, OSError) as error:
        raise QueueUnavailable("Redis does not answer; try again.", retry_after=2) from error


class JobQueue:
    """The publishing side. Thread-safe; make one per process.

    Raises:
        QueueUnavailable: from every method but `announce`, when Redis does not answer.
    """

    def __init__(self, settings: Settings):
        self._app = celery_app(settings)
        self.redis = connect(settings)

    def publish(self, jobs: Iterable[Dispatch]) -> None:
        """Hand job ids to the workers, most urgent first; the task id is the job id.

        When this raises, some may have been published: a duplicate message is harmless.
        """
        with _translated(), self._app.producer_pool.acquire(block=True, timeout=5) as producer, producer.batch():
            for job in sorted(jobs, key=lambda job: -job.priority):
                self._app.send_task(
                    task_name(job.kind),
                    args=[str(job.id)],
                    task_id=str(job.id),
                    queue=queue_name(job.kind),
                    # kombu's Redis transport serves the smallest number first.
                    priority=9 - job.priority,
                    producer=producer,
                    retry=False,
                )

    def announce(self, events: Iterable[JobEvent]) -> set[UUID]:
        """Tell whoever watches these jobs; returns those that somebody watches.

        Best effort: watchers also look at PostgreSQL, so an event that is lost is only late.
        """
        pipeline = self.redis.pipeline(transaction=False)
        published: dict[int, UUID] = {}
        for job_id, event in events:
            if progress := event.get("progress"):
                # For who comes late. Not the parts: there will be newer ones as soon as he watches.
                brief = {"step": progress["step"], "steps": progress["steps"]}
                pipeline.set(progress_key(job_id), json.dumps(brief), ex=60)
            published[len(pipeline)] = job_id
            pipeline.publish(event_channel(job_id), json.dumps(event))
        try:
            answers = pipeline.execute()
        except (RedisError, OSError):
            log.warning("Redis does not answer: events of %d jobs are late", len(set(published.values())))
            return set()
        return {job_id for place, job_id in published.items() if answers[place]}

    def progress(self, job_id: UUID) -> Progress | None:
        """The last progress announced, if any in the last minute."""
        with _translated():
            message = self.redis.get(progress_key(job_id))
        return Progress.model_validate_json(message) if message else None

    def request_cancel(self, job_id: UUID) -> None:
        """Wake the worker that runs this job; the request itself is in PostgreSQL."""
        with _translated():
            self.redis.publish(CANCEL_CHANNEL, str(job_id))

    def depth(self) -> dict[Kind, int]:
        """Messages per kind that no worker has started: those waiting, and those prefetched."""
        with _translated(), self._app.connection_for_read() as connection:
            channel = connection.default_channel
            return {kind: channel._size(queue_name(kind)) for kind in Kind}

    def publish_shards(self, shards: Iterable[ShardDispatch]) -> None:
        """Hand shards to the workers that hold the models they need; the task id is the shard's id.

        The message says at which priority it was sent: one that has changed since makes it void.
        """
        with _translated(), self._app.producer_pool.acquire(block=True, timeout=5) as producer, producer.batch():
            for shard in shards:
                self._app.send_task(
                    SHARD_TASK,
                    args=[str(shard.id), shard.priority],
                    task_id=str(shard.id),
                    queue=shards_queue(shard.kinds),
                    priority=9 - shard.priority,
                    producer=producer,
                    retry=False,
                )

    def publish_datasets(self, ids: Iterable[UUID]) -> None:
        """Have some housekeeper plan or export these data sets."""
        with _translated(), self._app.producer_pool.acquire(block=True, timeout=5) as producer:
            for id in ids:
                # Not under the data set's own id: it comes at least twice, to be planned and to be exported.
                self._app.send_task(DATASET_TASK, args=[str(id)], queue=DATASETS_QUEUE, producer=producer, retry=False)

    def ask_for_previews(self, dataset_id: UUID, images: Sequence[int]) -> None:
        """Have a housekeeper, which sees the source, make small pictures of these images."""
        with _translated():
            self.redis.lpush(PREVIEWS_LIST, json.dumps([str(dataset_id), list(images)]))
            self.redis.ltrim(PREVIEWS_LIST, 0, 9999)

    def dataset_depth(self) -> int:
        """Messages for data sets that no housekeeper has taken."""
        with _translated(), self._app.connection_for_read() as connection:
            depth: int = connection.default_channel._size(DATASETS_QUEUE)
            return depth

    def shard_depth(self) -> dict[str, int]:
        """Messages that no worker has taken, by the models that they need."""
        with _translated(), self._app.connection_for_read() as connection:
            channel = connection.default_channel
            return {kinds: channel._size(shards_queue(kinds)) for kinds in shard_kinds(Kind)}

    def generation(self) -> str:
        """Names this Redis's data: it changes when Redis restarts and when its data is wiped."""
        with _translated():
            self.redis.set(GENERATION_KEY, str(uuid4()), nx=True)
            return f"{self.redis.get(GENERATION_KEY)!s}@{self.redis.info('server')['run_id']}"

    def collected(self) -> str:
        """Storage key up to which orphans were looked for; empty at the beginning."""
        with _translated():
            return str(self.redis.get(COLLECTED_KEY) or "")

    def note_collected(self, key: str) -> None:
        with _translated():
            self.redis.set(COLLECTED_KEY, key)

    def sign_housekeeper(self, host: str, lifetime: float) -> None:
        """The housekeeper on `host` works; believed for `lifetime` seconds."""
        with _translated():
            self.redis.set(f"tuwen:housekeeper:{host}", "works", px=int(lifetime * 1000))

    def housekeeper_seen(self, host: str) -> bool:
        with _translated():
            return bool(self.redis.exists(f"tuwen:housekeeper:{host}"))

    def housekeepers(self) -> list[str]:
        """Hosts on which a housekeeper works."""
        prefix = "tuwen:housekeeper:"
        with _translated():
            return sorted(str(key).removeprefix(prefix) for key in self.redis.scan_iter(f"{prefix}*"))

    def check(self) -> None:
        """Readiness: Redis answers."""
        with _translated():
            self.redis.ping()

    def close(self) -> None:
        self.redis.close()
        self._app.close()

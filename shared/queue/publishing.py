"""What is put into Redis: ids of jobs, shards and data sets for workers and housekeepers, and events for watchers."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any
from uuid import UUID, uuid4

from kombu.exceptions import KombuError
from redis.exceptions import RedisError

from shared.database import Dispatch
from shared.database.shards import ShardDispatch
from shared.queue.app import celery_app, connect
from shared.queue.names import (
    CANCEL_CHANNEL,
    COLLECTED_KEY,
    DATASET_TASK,
    DATASETS_QUEUE,
    GENERATION_KEY,
    PREVIEWS_LIST,
    SHARD_TASK,
    event_channel,
    progress_key,
    queue_name,
    shard_kinds,
    shards_queue,
    task_name,
)
from shared.settings import Settings
from tuwen.errors import QueueUnavailable
from tuwen.jobs import Kind, Progress

log = logging.getLogger(__name__)

JobEvent = tuple[UUID, Mapping[str, Any]]
"""`{"status": …}` or `{"progress": …}` of a job, what `tuwen.jobs.Progress` says."""


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

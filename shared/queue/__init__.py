"""Redis as transport: names of queues, the Celery application, publishing, and what Celery is made to do differently.

A message is a hint that a job may run; PostgreSQL knows whether it may. So a message can be lost, duplicated or late,
and it only matters how soon the housekeeper notices. In come ids of rows that were committed; out go messages, and
events for those who watch a job.
"""

from shared.queue.app import celery_app, connect, priority_keys, queue_of
from shared.queue.names import (
    BATCHES_LIST,
    CANCEL_CHANNEL,
    COLLECTED_KEY,
    COLLECTION_TASK,
    DATASET_TASK,
    DATASETS_QUEUE,
    GENERATION_KEY,
    HOUSEKEEPER_PREFIX,
    HOUSEKEEPING_QUEUE,
    HOUSEKEEPING_TASK,
    MARK_TASK,
    PREVIEWS_LIST,
    RETENTION_TASK,
    SHARD_TASK,
    WEBHOOKS_TASK,
    event_channel,
    progress_key,
    queue_name,
    shard_kinds,
    shards_queue,
    task_name,
)
from shared.queue.publishing import Announcement, JobQueue

__all__ = [
    "BATCHES_LIST",
    "CANCEL_CHANNEL",
    "COLLECTED_KEY",
    "COLLECTION_TASK",
    "DATASETS_QUEUE",
    "DATASET_TASK",
    "GENERATION_KEY",
    "HOUSEKEEPER_PREFIX",
    "HOUSEKEEPING_QUEUE",
    "HOUSEKEEPING_TASK",
    "MARK_TASK",
    "PREVIEWS_LIST",
    "RETENTION_TASK",
    "SHARD_TASK",
    "WEBHOOKS_TASK",
    "Announcement",
    "JobQueue",
    "celery_app",
    "connect",
    "event_channel",
    "priority_keys",
    "progress_key",
    "queue_name",
    "queue_of",
    "shard_kinds",
    "shards_queue",
    "task_name",
]

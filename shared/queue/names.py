"""What queues, tasks, channels and keys in Redis are called."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import combinations
from uuid import UUID

from shared.database.shards import kinds_name
from tuwen.jobs import Kind

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
    """Of shards that need these models, named by `shared.database.shards.kinds_name`."""
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

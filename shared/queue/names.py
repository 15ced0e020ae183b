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
"""Queue of data sets to be planned or exported, for housekeepers."""
DATASET_TASK = "tuwen.dataset"
SHARD_TASK = "tuwen.shard"
PREVIEWS_LIST = "tuwen:previews"
"""Requests for previews; not a Celery queue, because Flower need not list each picture that a reviewer scrolls past."""
BATCHES_LIST = "tuwen:batches"
"""Calls for a housekeeper: a batch is due, which PostgreSQL names."""
WEBHOOKS_TASK = "tuwen.webhooks"
COLLECTION_TASK = "tuwen.collection"
RETENTION_TASK = "tuwen.retention"
MARK_TASK = "tuwen.mark"
GENERATION_KEY = "tuwen:generation"
"""Key that exists in Redis unless it has lost its data since the housekeeper last checked."""
COLLECTED_KEY = "tuwen:collected"
"""Position of the search for orphans; the search starts again when Redis loses it."""
CANCEL_CHANNEL = "tuwen:cancel"
"""Channel that tells workers of requested cancels, so that they need not wait for the next heartbeat."""
HOUSEKEEPER_PREFIX = "tuwen:housekeeper:"
"""Beginning of the keys that housekeepers sign in with; the host follows."""


def queue_name(kind: Kind) -> str:
    """Celery queue of the jobs of a kind."""
    return f"tuwen.{kind.value}"


def task_name(kind: Kind) -> str:
    """Celery task that runs the jobs of a kind."""
    return f"tuwen.{kind.value}"


def shards_queue(kinds: str) -> str:
    """Queue of shards that need these models; `kinds` comes from `shared.database.shards.kinds_name`."""
    return f"tuwen.shards.{kinds}"


def shard_kinds(held: Iterable[Kind]) -> list[str]:
    """All sets of models that a shard may need and that a worker with the models `held` can serve."""
    kinds = [kind for kind in Kind if kind in held and kind is not Kind.GENERATE]
    return [kinds_name(chosen) for size in range(1, len(kinds) + 1) for chosen in combinations(kinds, size)]


def event_channel(job_id: UUID | str) -> str:
    """Redis channel with one JSON message per state change or progress of the job."""
    return f"tuwen:job:{job_id}"


def progress_key(job_id: UUID | str) -> str:
    """Redis key that holds the latest progress of a running job, for a minute."""
    return f"tuwen:progress:{job_id}"

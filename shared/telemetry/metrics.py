"""Metrics that outlive the process that measured them: workers sum them up in Redis, the API shows them to Prometheus.

A worker may restart at any time and has no port to be scraped at, so it accumulates locally and adds the differences
to Redis hashes, with one hash per metric and one field per number. A Redis that lost its data starts again at zero,
which Prometheus handles as a counter reset.
"""

from __future__ import annotations

import logging
import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from threading import Lock

import redis
from redis.exceptions import RedisError

from tuwen.jobs import Kind, Status

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Histogram:
    """A distribution per kind; `bounds` are the upper ends of the buckets, without the last one, infinity."""

    name: str
    help: str
    bounds: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Counter:
    """A count per kind and status; `name` lacks the suffix `_total`."""

    name: str
    help: str


_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0)

JOB_WAIT = Histogram(
    "tuwen_job_wait_seconds", "Time from the moment a job might have run until a worker took it", _SECONDS
)
JOB_RUN = Histogram("tuwen_job_run_seconds", "Time from the claim of a job to its end", _SECONDS)
BATCH_SIZE = Histogram("tuwen_batch_size", "Jobs that shared one forward pass", (1, 2, 4, 8, 16, 32, 64, 128, 256))
BATCH_RUN = Histogram("tuwen_batch_seconds", "Time one forward pass took, whatever its size", _SECONDS)
JOBS_FINISHED = Counter("tuwen_jobs_finished", "Jobs that ended, by their final status")

HISTOGRAMS = (JOB_WAIT, JOB_RUN, BATCH_SIZE, BATCH_RUN)
COUNTERS = (JOBS_FINISHED,)


def redis_key(metric: Histogram | Counter) -> str:
    """Key of the hash that holds the metric. Its fields: `kind/upper bound` and `kind/sum`, or `kind/status`."""
    return f"tuwen:metrics:{metric.name}"


class Recorder:
    """Sums up metrics in memory, and adds them to Redis from time to time. Thread-safe; make one per process."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._pending: defaultdict[tuple[str, str], float] = defaultdict(float)

    def record_batch(self, kind: Kind, size: int, seconds: float) -> None:
        """Record a forward pass over `size` jobs."""
        self.observe(BATCH_SIZE, kind, size)
        self.observe(BATCH_RUN, kind, seconds)

    def record_end(self, kind: Kind, status: Status, *, wait: float, run: float) -> None:
        """Record that a job waited `wait` and ran `run` seconds, and came to `status`: over, or queued again."""
        self.observe(JOB_WAIT, kind, wait)
        self.observe(JOB_RUN, kind, run)
        if status.terminal:
            self.count(JOBS_FINISHED, kind, status)

    def observe(self, histogram: Histogram, kind: Kind, value: float) -> None:
        """Count `value` in its bucket; buckets become cumulative only when they are shown."""
        bound = next((bound for bound in histogram.bounds if value <= bound), math.inf)
        key = redis_key(histogram)
        with self._lock:
            self._pending[key, f"{kind}/{float(bound)}"] += 1
            self._pending[key, f"{kind}/sum"] += value

    def count(self, counter: Counter, kind: Kind, status: Status, by: int = 1) -> None:
        """Add `by` to a counter."""
        with self._lock:
            self._pending[redis_key(counter), f"{kind}/{status}"] += by

    def flush(self, client: redis.Redis) -> None:
        """Add the collected values to Redis; when Redis does not answer, keep them for the next time.

        Redis applies all of them or none. If an answer is lost, values count twice: rare, and acceptable for metrics.
        """
        with self._lock:
            pending, self._pending = self._pending, defaultdict(float)
        if not pending:
            return
        try:
            with client.pipeline(transaction=True) as pipeline:
                for (key, field), value in pending.items():
                    pipeline.hincrbyfloat(key, field, value)
                pipeline.execute()
        except (RedisError, OSError) as error:
            log.debug("figures stay here until Redis answers: %s", error)
            with self._lock:
                for entry, value in pending.items():
                    self._pending[entry] += value


@dataclass(frozen=True, slots=True)
class Distribution:
    """The histogram of one kind, as Prometheus expects it."""

    buckets: list[tuple[float, float]]
    """(upper bound, number of values up to it), ascending; the last bound is infinity."""
    total: float
    """Sum of all values."""


def distributions(histogram: Histogram, fields: Mapping[str, str]) -> dict[str, Distribution]:
    """Kind → distribution, from the fields of the metric's hash.

    Bounds of another version of the program are kept.
    """
    counts: defaultdict[str, dict[float, float]] = defaultdict(lambda: dict.fromkeys((*histogram.bounds, math.inf), 0))
    sums: dict[str, float] = {}
    for field, value in fields.items():
        kind, _, bound = field.partition("/")
        if bound == "sum":
            sums[kind] = float(value)
        else:
            counts[kind][float(bound)] = float(value)
    return {kind: Distribution(_cumulative(buckets), sums.get(kind, 0.0)) for kind, buckets in counts.items()}


def _cumulative(buckets: Mapping[float, float]) -> list[tuple[float, float]]:
    running, out = 0.0, []
    for bound in sorted(buckets):
        running += buckets[bound]
        out.append((bound, running))
    return out

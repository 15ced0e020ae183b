"""Index of the values that a data set's images are sorted and filtered by, nine bytes per image.

Results lie in object storage, one file per shard, and are a hundred times that size. So the first sorted or filtered
list of a run reads them once, and all later lists read memory. The file of a shard that is over never changes; nothing
is kept in memory of a shard that still runs.
"""

from __future__ import annotations

from collections import OrderedDict
from threading import Lock
from typing import Any
from uuid import UUID

import numpy as np
import numpy.typing as npt

from shared.database import Database
from shared.database.shards import Shard
from shared.objects.datasets import SHARDS_AT_ONCE, shard_images
from shared.objects.storage import ObjectStore
from tuwen.annotations import Annotation

ANNOTATED, FAILED, DROPPED, OUT_OF_DOMAIN = 1, 2, 4, 8

_ENTRY = np.dtype([("score", np.float32), ("confidence", np.float32), ("flags", np.uint8)])
Entries = npt.NDArray[Any]
"""One row per image; an unknown value is not-a-number."""

MOST_KEPT = 4_000_000
"""Most images of all data sets together; the entries least recently used are dropped first."""

_Key = tuple[str, str | None]


class DatasetIndex:
    """Thread-safe."""

    def __init__(self, database: Database, store: ObjectStore):
        self._database = database
        self._store = store
        self._lock = Lock()
        self._kept: OrderedDict[_Key, Entries] = OrderedDict()
        self._images = 0

    def dataset_entries(self, dataset_id: UUID) -> Entries:
        """Entries of all images planned so far, in order.

        Raises:
            NotFound, DatabaseUnavailable, StorageUnavailable
        """
        parts = [np.empty(0, _ENTRY)]
        first = 0
        while shards := self._database.shards.all(dataset_id, first=first, most=SHARDS_AT_ONCE):
            parts += [self.shard_entries(shard) for shard in shards]
            first = shards[-1].number + 1
        return np.concatenate(parts)

    def shard_entries(self, shard: Shard) -> Entries:
        """Entries of the images of one shard, in order; kept in memory once the shard is over."""
        key = (shard.plan_key, shard.results_key)
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        entries = np.array([_entry(annotation) for _, annotation in shard_images(self._store, shard)], _ENTRY)
        if shard.status.terminal:
            self._keep(key, entries)
        return entries

    def _keep(self, key: _Key, entries: Entries) -> None:
        with self._lock:
            if key not in self._kept:
                self._kept[key] = entries
                self._images += len(entries)
            while self._images > MOST_KEPT:
                _, forgotten = self._kept.popitem(last=False)
                self._images -= len(forgotten)


def _entry(annotation: Annotation) -> tuple[float, float, int]:
    return _or_nan(score(annotation)), _or_nan(confidence(annotation)), _flags(annotation)


def _or_nan(value: float | None) -> float:
    return np.nan if value is None else value


def score(annotation: Annotation) -> float | None:
    """Match score of the caption, written or existing, that fits worst; None when no caption has a score."""
    scores = [caption.score for caption in annotation.captions if caption.score is not None]
    if annotation.existing_score is not None:
        scores.append(annotation.existing_score)
    return min(scores, default=None)


def confidence(annotation: Annotation) -> float | None:
    """Lowest confidence of the captions and the recognition; None when there is neither."""
    found = [caption.confidence for caption in annotation.captions]
    if annotation.recognition is not None:
        found.append(annotation.recognition.confidence)
    return min(found, default=None)


def _flags(annotation: Annotation) -> int:
    said = [caption.out_of_domain for caption in annotation.captions]
    if annotation.recognition is not None:
        said.append(annotation.recognition.out_of_domain)
    end = FAILED if annotation.error is not None else DROPPED if annotation.drop is not None else ANNOTATED
    return end | (OUT_OF_DOMAIN if any(said) else 0)

"""What a data set's images are sorted and filtered by, nine bytes an image.

Results lie in object storage, a file a shard, and hold a hundred times that. So the first list of a run that is sorted
or filtered reads them once, and all that follow read memory. A shard that is over has a file which never changes; of
one that still runs nothing is kept.
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
from shared.objects.datasets import SHARDS_AT_ONCE, of_shard
from shared.objects.storage import ObjectStore
from tuwen.annotations import Annotation

ANNOTATED, FAILED, DROPPED, OUT_OF_DOMAIN = 1, 2, 4, 8

_ENTRY = np.dtype([("score", np.float32), ("confidence", np.float32), ("flags", np.uint8)])
Entries = npt.NDArray[Any]
"""Of images in a row; not-a-number is what is not known."""

MOST_KEPT = 4_000_000
"""Images of all data sets together; those that nobody has asked for longest are forgotten."""

_Key = tuple[str, str | None]


class DatasetIndex:
    """Thread-safe."""

    def __init__(self, database: Database, store: ObjectStore):
        self._database = database
        self._store = store
        self._lock = Lock()
        self._kept: OrderedDict[_Key, Entries] = OrderedDict()
        self._images = 0

    def whole(self, dataset_id: UUID) -> Entries:
        """Of all images that are planned so far, in order.

        Raises:
            NotFound, DatabaseUnavailable, StorageUnavailable
        """
        parts = [np.empty(0, _ENTRY)]
        first = 0
        while shards := self._database.shards.all(dataset_id, first=first, most=SHARDS_AT_ONCE):
            parts += [self.shard(shard) for shard in shards]
            first = shards[-1].number + 1
        return np.concatenate(parts)

    def shard(self, shard: Shard) -> Entries:
        key = (shard.plan_key, shard.results_key)
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        entries = np.array([_entry(annotation) for _, annotation in of_shard(self._store, shard)], _ENTRY)
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
    return _known(score(annotation)), _known(confidence(annotation)), _flags(annotation)


def _known(value: float | None) -> float:
    return np.nan if value is None else value


def score(annotation: Annotation) -> float | None:
    """Of the caption that fits worst."""
    scores = [caption.score for caption in annotation.captions if caption.score is not None]
    if annotation.existing_score is not None:
        scores.append(annotation.existing_score)
    return min(scores, default=None)


def confidence(annotation: Annotation) -> float | None:
    """Of what the models are least sure of."""
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

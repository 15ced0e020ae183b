"""From a source to shards: its entries are listed as a stream and cut into plans, so that no size is too large.

A planner that dies is followed by another, which goes on behind what is planned already. Each shard is a plan in object
storage first and a row second; the row is fenced by the planner's epoch, and the workers begin while planning goes on.
"""

from __future__ import annotations

import json
import logging
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from itertools import islice
from typing import Any
from uuid import UUID

from uuid_utils.compat import uuid7

from shared.database import Database
from shared.database.datasets import DatasetClaim
from shared.database.shards import ShardDispatch, kinds_name
from shared.leasing.endings import Stopped
from shared.objects.datasets import Planned, plan_key, read_plan, write_plan
from shared.objects.storage import ObjectStore
from shared.queue import JobQueue
from shared.settings import Settings
from tuwen.annotations import Annotation
from tuwen.errors import QueueUnavailable
from tuwen.jobs import JobError
from workers.datasets.access import open_allowed
from workers.datasets.duplicates import Duplicates, examined
from workers.datasets.earlier import Earlier
from workers.datasets.filters import after, before
from workers.datasets.sources import Entry, Source, SourceProblem
from workers.datasets.sources.seen import Seen

log = logging.getLogger(__name__)

SAMPLE = 128
"""Images that a dry run has annotated, to measure how long one takes."""

Judged = tuple[Entry, Mapping[str, Any] | None]
"""An entry, and fields of its annotation where its end is known already."""

PUBLISHED_AT_ONCE = 64
"""Shards that are published when they are planned; the others when their turn comes near, by the housekeeper."""


class Planner:
    """Plans one data set.

    Args:
        wanted: asked now and then whether to go on; raises when not.
    """

    def __init__(
        self,
        settings: Settings,
        database: Database,
        store: ObjectStore,
        queue: JobQueue,
        claim: DatasetClaim,
        wanted: Callable[[], None],
    ):
        self._settings = settings
        self._database = database
        self._store = store
        self._queue = queue
        self._claim = claim
        self._wanted = wanted
        self._next = 0

    def plan(self) -> None:
        """Plan what is not planned yet, to the end of the source; for a dry run a sample to measure.

        Raises:
            SourceUnusable: it cannot be listed, or there is nothing in it.
            Stopped: it is no longer this planner's.
            StorageUnavailable, DatabaseUnavailable, NotFound
        """
        request = self._claim.request
        with ExitStack() as open_things:
            source = open_things.enter_context(open_allowed(request, self._settings))
            earlier = None if request.dry_run else Earlier.of(self._settings, self._database, self._store, self._claim)
            if earlier is not None:
                open_things.enter_context(earlier)
            duplicates = open_things.enter_context(Duplicates())
            entries = self._unplanned(self._judged(source, duplicates))
            if request.dry_run:
                entries = islice(entries, SAMPLE)
            while lines := [self._line(*each, source, earlier) for each in islice(entries, self._size)]:
                self._wanted()
                self._add(lines)

    @property
    def _size(self) -> int:
        return SAMPLE if self._claim.request.dry_run else self._claim.request.shard_size

    def _judged(self, source: Source, duplicates: Duplicates) -> Iterator[Judged]:
        """Every entry, with what is known of it before a model sees it: an error, or that it came before."""
        how = self._claim.request.filters.duplicates
        if how == "keep":
            for entry in source.images():
                yield entry, _problem(entry)
            return
        for image in examined(source.images(), source.read, self._settings, how=how):
            found: dict[str, Any] = image.known
            if image.error is not None:
                found["error"] = image.error
            elif drop := duplicates.drop(image):
                found["drop"] = drop
            ended = image.error is not None or "drop" in found
            yield image.entry, found if ended else None

    def _line(self, entry: Entry, ended: Mapping[str, Any] | None, source: Source, earlier: Earlier | None) -> bytes:
        """Of the plan."""
        if isinstance(entry, SourceProblem):
            return Planned(None, Annotation(name=entry.name, **(ended or {}))).line()
        known = earlier.annotation(entry, source.read) if earlier is not None and ended is None else None
        if ended is None and known is None:
            # What `Planned.line` would answer, without a detour for each of millions.
            return f'{{"image": {entry.to_json()}, "annotation": null}}'.encode()
        planned = Planned(json.loads(entry.to_json()))
        annotation = planned.blank().model_copy(update=ended or known)
        if known is not None:
            drop = before(self._claim.request.filters, annotation) or after(self._claim.request.filters, annotation)
            annotation = annotation.model_copy(update={"drop": drop})
        return Planned(planned.image, annotation).line()

    def _add(self, lines: list[bytes]) -> None:
        claim, number = self._claim, self._next
        key = plan_key(claim.id, number, claim.epoch)
        write_plan(self._store, key, lines)
        shard, at_once = uuid7(), number < PUBLISHED_AT_ONCE
        due = self._settings.redispatch_after if at_once else 0.0
        if not self._database.datasets.add_shard(claim, shard, number, len(lines), key, due):
            # Cancelled, deleted, or another planner's by now, of which the heartbeat has yet to tell.
            self._store.delete(key)
            raise Stopped
        self._next += 1
        if at_once:
            self._publish(shard)

    def _publish(self, shard: UUID) -> None:
        request = self._claim.request
        try:
            self._queue.publish_shards([ShardDispatch(shard, kinds_name(request.kinds), request.priority)])
        except QueueUnavailable as error:
            log.warning("shard %s is left to the housekeeper: %s", shard, error)

    # ── going on where another planner stopped ────────────────────────────────────────────────────

    def _unplanned(self, entries: Iterator[Judged]) -> Iterator[Judged]:
        """Entries that no shard has yet."""
        planned = self._database.shards.all(self._claim.id)
        if not planned:
            return entries
        self._next = planned[-1].number + 1
        count = sum(shard.images for shard in planned)
        last = read_plan(self._store, planned[-1].plan_key)[-1].blank().name
        return self._after(entries, count, last)

    def _after(self, entries: Iterator[Judged], count: int, last: str) -> Iterator[Judged]:
        """Those behind the first `count`, where the last of these is the one that it was; else those of new names."""
        skipped = deque(islice(entries, count), maxlen=1)
        if skipped and skipped[0][0].name == last:
            yield from entries
            return
        log.warning("source %s has changed while it was planned", self._claim.request.source)
        yield from self._unseen()

    def _unseen(self) -> Iterator[Judged]:
        """Where positions do not help, because the source has changed: by name, from the start."""
        with Seen() as names, ExitStack() as open_things:
            for shard in self._database.shards.all(self._claim.id):
                for planned in read_plan(self._store, shard.plan_key):
                    names.add(planned.blank().name)
            source = open_things.enter_context(open_allowed(self._claim.request, self._settings))
            duplicates = open_things.enter_context(Duplicates())
            for entry, ended in self._judged(source, duplicates):
                if entry.name not in names:
                    yield entry, ended


def _problem(entry: Entry) -> Mapping[str, Any] | None:
    if isinstance(entry, SourceProblem):
        return {"error": JobError(code=entry.code, detail=entry.detail)}
    return None

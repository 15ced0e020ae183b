"""Planning: a source's entries are listed as a stream and cut into shards, so no source is too large.

A planner that dies is followed by another, which continues after what is planned. Each shard is a plan in object
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
from workers.datasets.access import open_allowed, vet_places
from workers.datasets.duplicates import Duplicates, examine
from workers.datasets.earlier import EarlierResults
from workers.datasets.filters import drop_after_models, drop_before_models
from workers.datasets.sources import Source, SourceEntry, SourceProblem
from workers.datasets.sources.seen import Seen

log = logging.getLogger(__name__)

SAMPLE = 128
"""Images that are annotated in a dry run, to measure how long one takes."""

JudgedEntry = tuple[SourceEntry, Mapping[str, Any] | None]
"""An entry, and fields of its annotation where its end is known already."""

PUBLISHED_AT_ONCE = 64
"""Shards that are published when they are planned; the housekeeper publishes the others when their turn is near."""


class DatasetPlanner:
    """Plans one data set.

    Args:
        require_wanted: called now and then; raises when the plan is no longer wanted.
    """

    def __init__(
        self,
        settings: Settings,
        database: Database,
        store: ObjectStore,
        queue: JobQueue,
        claim: DatasetClaim,
        require_wanted: Callable[[], None],
    ):
        self._settings = settings
        self._database = database
        self._store = store
        self._queue = queue
        self._claim = claim
        self._require_wanted = require_wanted
        self._next = 0

    def plan(self) -> None:
        """Plan what is not planned yet, to the end of the source; in a dry run only a sample to measure.

        Raises:
            SourceUnusable: it cannot be listed, or there is nothing in it.
            Forbidden, Conflict: as `vet_places`.
            Stopped: it is no longer this planner's.
            StorageUnavailable, DatabaseUnavailable, NotFound
        """
        request = self._claim.request
        vet_places(self._claim, self._settings, self._database)
        with ExitStack() as open_things:
            source = open_things.enter_context(self._open_source())
            earlier = (
                None
                if request.dry_run
                else EarlierResults.open_for(self._settings, self._database, self._store, self._claim)
            )
            if earlier is not None:
                open_things.enter_context(earlier)
            duplicates = open_things.enter_context(Duplicates())
            entries = self._skip_planned(self._judge_entries(source, duplicates))
            if request.dry_run:
                entries = islice(entries, SAMPLE)
            while lines := [self._plan_line(*each, source, earlier) for each in islice(entries, self._size)]:
                self._require_wanted()
                self._add(lines)

    def _open_source(self) -> Source:
        key_roots = self._database.dataset_places.key_roots(self._claim.id)
        return open_allowed(self._claim.request, self._settings, key_roots)

    @property
    def _size(self) -> int:
        return SAMPLE if self._claim.request.dry_run else self._claim.request.shard_size

    def _judge_entries(self, source: Source, duplicates: Duplicates) -> Iterator[JudgedEntry]:
        """Yield every entry with what is known before a model sees it: an error, or that it is a duplicate."""
        how = self._claim.request.filters.duplicates
        if how == "keep":
            for entry in source.images():
                yield entry, _problem(entry)
            return
        for image in examine(source.images(), source.read, self._settings, how=how):
            found: dict[str, Any] = image.known
            if image.error is not None:
                found["error"] = image.error
            elif drop := duplicates.check(image):
                found["drop"] = drop
            ended = image.error is not None or "drop" in found
            yield image.entry, found if ended else None

    def _plan_line(
        self, entry: SourceEntry, ended: Mapping[str, Any] | None, source: Source, earlier: EarlierResults | None
    ) -> bytes:
        """Return the entry's line of the plan."""
        if isinstance(entry, SourceProblem):
            return Planned(None, Annotation(name=entry.name, **(ended or {}))).line()
        known = earlier.annotation(entry, source.read) if earlier is not None and ended is None else None
        if ended is None and known is None:
            # The same as `Planned.line` returns, without a detour for each of millions.
            return f'{{"image": {entry.to_json()}, "annotation": null}}'.encode()
        planned = Planned(json.loads(entry.to_json()))
        annotation = planned.blank_annotation().model_copy(update=ended or known)
        if known is not None:
            drop = drop_before_models(self._claim.request.filters, annotation) or drop_after_models(
                self._claim.request.filters, annotation
            )
            annotation = annotation.model_copy(update={"drop": drop})
        return Planned(planned.image, annotation).line()

    def _add(self, lines: list[bytes]) -> None:
        claim, number = self._claim, self._next
        key = plan_key(claim.id, number, claim.epoch)
        write_plan(self._store, key, lines)
        shard, at_once = uuid7(), number < PUBLISHED_AT_ONCE
        due = self._settings.redispatch_after if at_once else 0.0
        if not self._database.datasets.add_shard(claim, shard, number, len(lines), key, due):
            # It was cancelled, deleted or taken by another planner, and the heartbeat has not said so yet.
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

    def _skip_planned(self, entries: Iterator[JudgedEntry]) -> Iterator[JudgedEntry]:
        """Return the entries that no shard has yet, and continue the numbers of the shards."""
        planned = self._database.shards.all(self._claim.id)
        if not planned:
            return entries
        self._next = planned[-1].number + 1
        count = sum(shard.images for shard in planned)
        last = read_plan(self._store, planned[-1].plan_key)[-1].blank_annotation().name
        return self._skip(entries, count, last)

    def _skip(self, entries: Iterator[JudgedEntry], count: int, last: str) -> Iterator[JudgedEntry]:
        """Yield the entries after the first `count`, if these still end with `last`; otherwise those of new names."""
        skipped = deque(islice(entries, count), maxlen=1)
        if skipped and skipped[0][0].name == last:
            yield from entries
            return
        log.warning("source %s has changed while it was planned", self._claim.request.source)
        yield from self._list_unseen()

    def _list_unseen(self) -> Iterator[JudgedEntry]:
        """Yield the entries whose names are new, from the start: the source has changed, so positions do not help."""
        with Seen() as names, ExitStack() as open_things:
            for shard in self._database.shards.all(self._claim.id):
                for planned in read_plan(self._store, shard.plan_key):
                    names.add(planned.blank_annotation().name)
            source = open_things.enter_context(self._open_source())
            duplicates = open_things.enter_context(Duplicates())
            for entry, ended in self._judge_entries(source, duplicates):
                if entry.name not in names:
                    yield entry, ended


def _problem(entry: SourceEntry) -> Mapping[str, Any] | None:
    if isinstance(entry, SourceProblem):
        return {"error": JobError(code=entry.code, detail=entry.detail)}
    return None

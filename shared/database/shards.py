"""Every state transition of a shard, each as one guarded statement from `shared.database.dataset_statements`.

The rules are those of jobs (`shared.database`): a guard checks the status and, for a running shard, the epoch of its
claim. There is a row for each shard, never for an image.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal
from uuid import UUID

from sqlalchemy import Row, func, select, update

from shared.database import dataset_statements as transitions
from shared.database.connections import Connections
from shared.database.tables import ShardRow
from shared.settings import Settings
from tuwen.datasets import DatasetRequest, ShardStatus
from tuwen.errors import NotFound
from tuwen.jobs import JobError, Kind, Tenant

MAX_ATTEMPTS = 50
"""Attempts of a shard. Images have separate attempts; a shard fails only when it cannot be read or stored at all."""


@dataclass(frozen=True, slots=True)
class ShardDispatch:
    """The content of a shard's message: which shard, which models it needs, at which priority."""

    id: UUID
    kinds: str
    priority: int


@dataclass(frozen=True, slots=True)
class ShardClaim:
    """A shard that a worker runs until it finishes it, gives it back, or loses the lease."""

    id: UUID
    epoch: int
    dataset_id: UUID
    number: int
    images: int
    plan_key: str
    results_key: str | None
    """Key of the results of earlier attempts."""
    again: bool
    """Whether the images that failed in those results are to be tried again."""
    attempts: int
    crashes: int
    tenant: Tenant
    request: DatasetRequest


@dataclass(frozen=True, slots=True)
class Shard:
    """The state of one shard."""

    number: int
    images: int
    status: ShardStatus
    plan_key: str
    results_key: str | None
    error: JobError | None


@dataclass(frozen=True, slots=True)
class ShardProgress:
    """Progress of a shard, in images."""

    done: int = 0
    failed: int = 0
    kept: int = 0
    """Number of those images that an earlier attempt had finished."""
    tokens: int = 0
    dropped: int = 0
    """Those of `done` that a filter dropped."""
    final: int = 0
    """Those of `failed` that fail again as long as the source is as it is."""


@dataclass(frozen=True, slots=True)
class Renewal:
    """The result of a heartbeat: what was cancelled, and whose lease was lost."""

    cancelled: frozenset[UUID]
    lost: frozenset[UUID]


@dataclass(frozen=True, slots=True)
class ShardOutline:
    """A shard as monitoring shows it; one that was deleted with its data set counts as cancelled."""

    id: UUID
    priority: int | None
    status: ShardStatus
    worker: str | None
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    error_code: str | None
    error_detail: str | None


class Shards:
    """Shards, as workers run them."""

    def __init__(self, connections: Connections, settings: Settings):
        self._run = connections.run
        self._fetch = connections.fetch
        self._settings = settings

    def all(self, dataset_id: UUID, *, first: int = 0, most: int | None = None) -> list[Shard]:
        """The shards of a data set from number `first` on, in order, at most `most`."""
        query = select(ShardRow.__table__).where(ShardRow.dataset_id == dataset_id, ShardRow.number >= first)
        return [_shard(row) for row in self._run(query.order_by(ShardRow.number).limit(most))]

    def locate(self, dataset_id: UUID, image: int) -> tuple[Shard, int]:
        """The shard that contains an image, and the number of the shard's first image. Raises NotFound."""
        rows = self._run(transitions.LOCATE, {"dataset_id": dataset_id, "image": image})
        if not rows:
            raise NotFound(f"There is no image {image} in this data set.")
        return _shard(rows[0]), int(rows[0].first)

    def rate(self, dataset_id: UUID) -> float | None:
        """Images per second that one worker annotated while it ran a shard; None when it annotated none."""
        seconds = func.extract("epoch", func.sum(ShardRow.finished_at - ShardRow.started_at))
        rate = func.sum(ShardRow.done - ShardRow.kept) / func.nullif(seconds, 0)
        rows = self._run(select(rate.label("rate")).where(ShardRow.dataset_id == dataset_id))
        return float(rows[0].rate) if rows[0].rate else None

    def claim(self, id: UUID, priority: int, worker: str) -> ShardClaim | None:
        """Claim this shard for the worker; None when it must not run, or not at this priority."""
        values = {"id": id, "priority": priority, "worker": worker, "lease": self._settings.lease}
        return next((_shard_claim(row) for row in self._run(transitions.CLAIM, values)), None)

    def renew(self, held: Mapping[UUID, tuple[int, ShardProgress]]) -> Renewal:
        """One heartbeat: renew the leases of `held` (id → epoch, progress) and note the progress."""
        ids = sorted(held)
        progress = [held[id][1] for id in ids]
        rows = self._run(
            transitions.RENEW_SHARDS,
            {
                "ids": ids,
                "epochs": [held[id][0] for id in ids],
                "done": [each.done for each in progress],
                "dropped": [each.dropped for each in progress],
                "failed": [each.failed for each in progress],
                "final": [each.final for each in progress],
                "kept": [each.kept for each in progress],
                "tokens": [each.tokens for each in progress],
                "lease": self._settings.lease,
            },
            relaxed=True,
        )
        return renewal(held, rows)

    def cancelled(self, id: UUID) -> bool:
        """Whether the shard was cancelled before it ran."""
        return bool(
            self._run(select(ShardRow.id).where(ShardRow.id == id, ShardRow.status == ShardStatus.CANCELLED.value))
        )

    def checkpoint(self, claim: ShardClaim, results_key: str) -> bool:
        """Note the key of the results so far, so that another worker can continue if this one dies."""
        values = {"id": claim.id, "epoch": claim.epoch, "results_key": results_key}
        return bool(self._run(transitions.CHECKPOINT, values))

    def finish(self, claim: ShardClaim, results_key: str, progress: ShardProgress) -> bool:
        """End a shard all of whose images have an outcome. False when it was no longer this worker's."""
        values = {
            "results_key": results_key,
            "done": progress.done,
            "dropped": progress.dropped,
            "failed": progress.failed,
            "final": progress.final,
            "kept": progress.kept,
            "tokens": progress.tokens,
        }
        return bool(self._run(transitions.FINISH, {"id": claim.id, "epoch": claim.epoch, **values}))

    def give_back(
        self, claim: ShardClaim, reason: Literal["released", "retry", "outage"], error: JobError | None = None
    ) -> ShardStatus | None:
        """Settle a shard that was not finished; returns its new state, None when it was no longer this worker's.

        Only `retry` costs an attempt; an `outage` has a pause, and what is `released` may run at once.
        """
        values = {
            "id": claim.id,
            "epoch": claim.epoch,
            "reason": reason,
            "code": error and error.code,
            "detail": error and error.detail,
        }
        rows = self._run(transitions.GIVE_BACK, {**values, **self._settling})
        return ShardStatus(rows[0].status) if rows else None

    # ── housekeeping ──────────────────────────────────────────────────────────────────────────────

    def rescue(self, now: datetime | None = None) -> dict[UUID, ShardStatus]:
        """Take back running shards whose lease has passed, by the time `now` that was checked, if given."""
        rows = self._run(transitions.RESCUE, {**self._settling, "now": now})
        return {row.id: ShardStatus(row.status) for row in rows}

    def ready(self) -> dict[str, int]:
        """Models needed → how many shards may run now."""
        return {row.kinds: row.ready for row in self._run(transitions.READY)}

    def take_due(self, kinds: str, most: int) -> list[ShardDispatch]:
        """Take up to `most` queued shards whose message is overdue; they count as published from now on."""
        rows = self._run(transitions.TAKE_DUE, {"kinds": kinds, "most": most, "again": self._settings.redispatch_after})
        return [ShardDispatch(row.id, row.kinds, row.priority) for row in rows]

    def mark_all_due(self) -> int:
        """Mark every queued shard as due, because Redis lost its messages. Returns how many."""
        waiting = update(ShardRow).where(ShardRow.status == ShardStatus.QUEUED.value)
        return len(
            self._run(
                waiting.values(dispatch_due_at=func.greatest(func.now(), ShardRow.available_at)).returning(ShardRow.id)
            )
        )

    def outlines(self, ids: Sequence[UUID], *, newest: int) -> list[ShardOutline]:
        """Those of these shards, the running ones and the `newest` to end that have not changed for some seconds."""
        return self._fetch(ShardOutline, transitions.OUTLINES, {"ids": list(ids), "newest": newest})

    def unreferenced(self, keys: Sequence[str]) -> list[str]:
        """Those of these object keys, all below `datasets/`, that no shard names; no shard names a preview."""
        rows = self._run(transitions.UNREFERENCED, {"keys": list(keys)})
        return [row.key for row in rows]

    @property
    def _settling(self) -> dict[str, float]:
        return {"max_attempts": MAX_ATTEMPTS, "backoff": self._settings.retry_backoff}


def kinds_name(kinds: Sequence[Kind]) -> str:
    """A set of kinds as one word, which names queues."""
    return "+".join(kind.value for kind in kinds)


def renewal(held: Mapping[UUID, object], rows: Sequence[Row[Any]]) -> Renewal:
    """The result of a heartbeat, from the rows that the statement returned."""
    return Renewal(
        cancelled=frozenset(row.id for row in rows if row.cancelled),
        lost=frozenset(held) - {row.id for row in rows},
    )


def _shard_claim(row: Row[Any]) -> ShardClaim:
    return ShardClaim(**{**row._mapping, "request": DatasetRequest.model_validate(row.request)})


def _shard(row: Row[Any]) -> Shard:
    error = row.error_code and JobError(code=row.error_code, detail=row.error_detail or "", retryable=True)
    return Shard(row.number, row.images, ShardStatus(row.status), row.plan_key, row.results_key, error or None)

"""Every state transition of a shard, each one guarded statement (`shared.database.dataset_statements` has them).

The rules are those of jobs (`shared.database`): a guard names the status and, for a running shard, the epoch that its
claim was given. There is a row for each shard, never for an image.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal
from uuid import UUID

from sqlalchemy import func, select, update

from shared.database import dataset_statements as transitions
from shared.database.connections import Connections
from shared.database.tables import ShardRow
from shared.settings import Settings
from tuwen.datasets import DatasetRequest, ShardStatus
from tuwen.errors import NotFound
from tuwen.jobs import JobError, Kind, Tenant

MAX_ATTEMPTS = 50
"""Of a shard. Its images have attempts of their own; a shard fails only where nothing of it can be read or stored."""


@dataclass(frozen=True, slots=True)
class ShardDispatch:
    """What a message needs: which shard, for a worker with which models, how urgent."""

    id: UUID
    kinds: str
    priority: int


@dataclass(frozen=True, slots=True)
class ShardClaim:
    """A shard that this worker runs until it finishes it, gives it back, or loses its lease."""

    id: UUID
    epoch: int
    dataset_id: UUID
    number: int
    images: int
    plan_key: str
    results_key: str | None
    """What earlier attempts have achieved."""
    again: bool
    """Somebody asked for another try of what has failed by that."""
    attempts: int
    crashes: int
    tenant: Tenant
    request: DatasetRequest


@dataclass(frozen=True, slots=True)
class Shard:
    """Where one shard stands."""

    number: int
    images: int
    status: ShardStatus
    plan_key: str
    results_key: str | None
    error: JobError | None


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a shard is, in images."""

    done: int = 0
    failed: int = 0
    kept: int = 0
    """Of those, how many an earlier attempt had done."""
    tokens: int = 0


@dataclass(frozen=True, slots=True)
class Renewal:
    """What a heartbeat learnt: what is to stop, and what is no longer this process's."""

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
    """Shards as workers run them."""

    def __init__(self, connections: Connections, settings: Settings):
        self._run = connections.run
        self._fetch = connections.fetch
        self._settings = settings

    def all(self, dataset_id: UUID, *, first: int = 0, most: int | None = None) -> list[Shard]:
        """Those of a data set from number `first` on, in order."""
        query = select(ShardRow.__table__).where(ShardRow.dataset_id == dataset_id, ShardRow.number >= first)
        return [_shard(row) for row in self._run(query.order_by(ShardRow.number).limit(most))]

    def locate(self, dataset_id: UUID, image: int) -> tuple[Shard, int]:
        """The shard that holds an image, and the number of the shard's first one. Raises NotFound."""
        rows = self._run(transitions.LOCATE, {"dataset_id": dataset_id, "image": image})
        if not rows:
            raise NotFound(f"There is no image {image} in this data set.")
        return _shard(rows[0]), int(rows[0].first)

    def rate(self, dataset_id: UUID) -> float | None:
        """Images per second that one worker annotated while it ran a shard; None when none was annotated."""
        seconds = func.extract("epoch", func.sum(ShardRow.finished_at - ShardRow.started_at))
        rate = func.sum(ShardRow.done - ShardRow.kept) / func.nullif(seconds, 0)
        rows = self._run(select(rate.label("rate")).where(ShardRow.dataset_id == dataset_id))
        return float(rows[0].rate) if rows[0].rate else None

    def claim(self, id: UUID, priority: int, worker: str) -> ShardClaim | None:
        """Make this shard this worker's; None when it is not to be run, or not at this priority."""
        values = {"id": id, "priority": priority, "worker": worker, "lease": self._settings.lease}
        return next((_shard_claim(row) for row in self._run(transitions.CLAIM, values)), None)

    def renew(self, held: Mapping[UUID, tuple[int, Progress]]) -> Renewal:
        """One heartbeat: renew the leases of `held` (id → epoch, progress) and note how far they are."""
        ids = sorted(held)
        progress = [held[id][1] for id in ids]
        rows = self._run(
            transitions.RENEW_SHARDS,
            {
                "ids": ids,
                "epochs": [held[id][0] for id in ids],
                "done": [each.done for each in progress],
                "failed": [each.failed for each in progress],
                "kept": [each.kept for each in progress],
                "tokens": [each.tokens for each in progress],
                "lease": self._settings.lease,
            },
            relaxed=True,
        )
        return renewal(held, rows)

    def cancelled(self, id: UUID) -> bool:
        """Whether it is over without having run."""
        return bool(
            self._run(select(ShardRow.id).where(ShardRow.id == id, ShardRow.status == ShardStatus.CANCELLED.value))
        )

    def checkpoint(self, claim: ShardClaim, results_key: str) -> bool:
        """What is done so far lies there, for whoever goes on if this worker cannot."""
        values = {"id": claim.id, "epoch": claim.epoch, "results_key": results_key}
        return bool(self._run(transitions.CHECKPOINT, values))

    def finish(self, claim: ShardClaim, results_key: str, progress: Progress) -> bool:
        """All images of it have ended. False when it was no longer this worker's."""
        values = {
            "results_key": results_key,
            "done": progress.done,
            "failed": progress.failed,
            "kept": progress.kept,
            "tokens": progress.tokens,
        }
        return bool(self._run(transitions.FINISH, {"id": claim.id, "epoch": claim.epoch, **values}))

    def give_back(
        self, claim: ShardClaim, reason: Literal["released", "retry"], error: JobError | None = None
    ) -> ShardStatus | None:
        """It was not done; what has become of it, None when it was no longer this worker's."""
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

    def rescue(self) -> dict[UUID, ShardStatus]:
        """Take back running shards whose lease has passed."""
        return {row.id: ShardStatus(row.status) for row in self._run(transitions.RESCUE, self._settling)}

    def ready(self) -> dict[str, int]:
        """Models needed → how many shards may run now."""
        return {row.kinds: row.ready for row in self._run(transitions.READY)}

    def take_due(self, kinds: str, most: int) -> list[ShardDispatch]:
        """Up to `most` queued shards whose message is overdue; they count as published from here on."""
        rows = self._run(transitions.TAKE_DUE, {"kinds": kinds, "most": most, "again": self._settings.redispatch_after})
        return [ShardDispatch(row.id, row.kinds, row.priority) for row in rows]

    def all_due(self) -> int:
        """Redis lost its messages: every queued shard is due. Returns how many."""
        waiting = update(ShardRow).where(ShardRow.status == ShardStatus.QUEUED.value)
        return len(
            self._run(
                waiting.values(dispatch_due_at=func.greatest(func.now(), ShardRow.available_at)).returning(ShardRow.id)
            )
        )

    def outlines(self, ids: Sequence[UUID], *, newest: int) -> list[ShardOutline]:
        """These shards, those that run and the `newest` to end, as far as they have not changed for some seconds."""
        return self._fetch(ShardOutline, transitions.OUTLINES, {"ids": list(ids), "newest": newest})

    def unreferenced(self, keys: Sequence[str]) -> list[str]:
        """Those of these object keys, all below `datasets/`, that no shard names; previews are named by none."""
        rows = self._run(transitions.UNREFERENCED, {"keys": list(keys)})
        return [row.key for row in rows]

    @property
    def _settling(self) -> dict[str, float]:
        return {"max_attempts": MAX_ATTEMPTS, "backoff": self._settings.retry_backoff}


def kinds_name(kinds: Sequence[Kind]) -> str:
    """A set of kinds as one word, by which queues are named."""
    return "+".join(kind.value for kind in kinds)


def renewal(held: Mapping[UUID, Any], rows: Sequence[Any]) -> Renewal:
    return Renewal(
        cancelled=frozenset(row.id for row in rows if row.cancelled),
        lost=frozenset(held) - {row.id for row in rows},
    )


def _shard_claim(row: Any) -> ShardClaim:
    return ShardClaim(**{**row._mapping, "request": DatasetRequest.model_validate(row.request)})


def _shard(row: Any) -> Shard:
    error = row.error_code and JobError(code=row.error_code, detail=row.error_detail or "", retryable=True)
    return Shard(row.number, row.images, ShardStatus(row.status), row.plan_key, row.results_key, error or None)

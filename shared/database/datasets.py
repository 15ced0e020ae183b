"""Every state transition of a data set, each as one guarded statement, and the reviews of its images.

The rules are those of jobs (`shared.database`): a guard checks the status and, while a housekeeper plans or exports the
data set, the epoch of its claim.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, Executable, Row, Select, delete, insert, select
from sqlalchemy.exc import IntegrityError
from uuid_utils.compat import uuid7

from shared.database import dataset_statements as transitions
from shared.database.connections import Connections
from shared.database.dataset_places import require_free
from shared.database.idempotency import Once, Outcome, deleted, run_once
from shared.database.shards import Renewal, kinds_name, renewal
from shared.database.tables import DatasetRow, ReviewRow
from shared.database.usage import require_dataset_place
from shared.settings import Settings
from tuwen.annotations import Review
from tuwen.datasets import (
    Dataset,
    DatasetProgress,
    DatasetRequest,
    DatasetStatus,
    ExportFormat,
    ReviewRequest,
    ShardStatus,
    WorkerProgress,
)
from tuwen.errors import Conflict, NotFound
from tuwen.jobs import JobError, Tenant

RATE_WINDOW = 60.0
"""Seconds over which images per second are averaged."""


@dataclass(frozen=True, slots=True)
class DatasetClaim:
    """A data set that a housekeeper plans or exports until it ends it, puts it off, or loses the lease."""

    id: UUID
    epoch: int
    tenant: Tenant
    request: DatasetRequest
    status: DatasetStatus
    attempts: int


@dataclass(frozen=True, slots=True)
class DatasetFigures:
    """Shards of data sets that are not over, by the state of both, in numbers."""

    dataset_status: DatasetStatus
    shard_status: ShardStatus
    shards: int
    done: int
    failed: int
    images_left: int
    images_paused: int
    """These four count images; those that are left in data sets that are paused are not counted as left."""


class Datasets:
    """Data sets, as their owners see them and as the housekeepers process them."""

    def __init__(self, connections: Connections, settings: Settings):
        self._connections = connections
        self._run = connections.run
        self._fetch = connections.fetch
        self._settings = settings

    # ── the client's side ─────────────────────────────────────────────────────────────────────────

    def submit(
        self,
        request: DatasetRequest,
        tenant: Tenant,
        *,
        most: int | None = None,
        key: UUID | None = None,
        once: Once | None = None,
    ) -> UUID:
        """Accept a data set; it is committed when this returns. The roots of `key` bound its places from now on.

        Returns its id, or that of the one that was made before under the same key of `once`.

        Args:
            most: unfinished data sets that the tenant may have at once; exact under concurrency, as in `retry` and
                `export`.

        Raises:
            IdempotencyMismatch: something else was asked for under the key of `once`.
            Conflict: another unfinished data set has the same destination, or what was made under the key was deleted.
            Forbidden: the destination is another tenant's.
            QuotaExceeded
        """
        id = uuid7()
        new = insert(DatasetRow).values(
            id=id,
            tenant=tenant,
            key_id=key,
            # None is each such field's default, and a process of the previous release refuses fields it does not know.
            request=request.model_dump(mode="json", exclude_none=True),
            destination=request.destination,
            kinds=kinds_name(request.kinds),
            priority=request.priority,
        )
        outcome = self._take(id, request.destination, tenant, most, once, new.returning(DatasetRow.id))
        if not outcome.before:
            return id
        try:
            return self.get(UUID(outcome.before[0]), tenant).id
        except NotFound:
            raise deleted("data set") from None

    def owner(self, id: UUID) -> Tenant:
        """The tenant of a data set, for who proves in another way that he may see it. Raises NotFound."""
        rows = self._run(select(DatasetRow.tenant).where(DatasetRow.id == id))
        if not rows:
            raise NotFound(f"There is no data set {id}.")
        return str(rows[0].tenant)

    def get(self, id: UUID, tenant: Tenant) -> Dataset:
        """The data set with its progress. Raises NotFound, also for another tenant's data set."""
        return self._to_dataset(self._row(id, tenant))

    def page(self, tenant: Tenant, *, before: UUID | None = None, limit: int = 50) -> list[Dataset]:
        """A page of data sets, newest first; `before` is the last id of the previous page."""
        query = _DATASETS.where(DatasetRow.tenant == tenant).order_by(DatasetRow.id.desc()).limit(limit)
        if before is not None:
            query = query.where(DatasetRow.id < before)
        return [self._to_dataset(row) for row in self._run(query)]

    def pause(self, id: UUID, tenant: Tenant) -> None:
        """Pause a data set: no further shard starts, and running shards are given back. Raises NotFound, Conflict."""
        self._change(id, tenant, transitions.PAUSE, "paused")

    def resume(self, id: UUID, tenant: Tenant) -> None:
        """Resume a data set that was paused. Raises NotFound, Conflict."""
        self._change(id, tenant, transitions.RESUME, "resumed")

    def cancel(self, id: UUID, tenant: Tenant) -> None:
        """Cancel a data set; annotations that are finished stay and can be exported. Raises NotFound, Conflict."""
        self._change(id, tenant, transitions.CANCEL, "cancelled")

    def prioritize(self, id: UUID, tenant: Tenant, priority: int) -> None:
        """Change the priority of a data set. Raises NotFound, Conflict."""
        self._change(id, tenant, transitions.PRIORITIZE, "given another priority", priority=priority)

    def retry(
        self,
        id: UUID,
        tenant: Tenant,
        *,
        failed_only: bool = False,
        most: int | None = None,
        key: UUID | None = None,
        once: Once | None = None,
    ) -> DatasetStatus:
        """Run only the images that failed again; unless `failed_only`, also those that a cancel left undone.

        Does nothing where it was done before under the same key.

        Raises:
            IdempotencyMismatch: something else was asked for under the key of `once`.
            NotFound: the tenant has no such data set.
            Conflict: the data set is not over, no image of it failed, or its destination is taken.
            Forbidden: its destination is another tenant's by now.
        """
        values = {"id": id, "tenant": tenant, "failed_only": failed_only, "key": key}
        destination = self._row(id, tenant).destination
        outcome = self._take(id, destination, tenant, most, once, transitions.RETRY, values)
        if not outcome.rows:
            status = self._row(id, tenant).status
            if outcome.before:
                return DatasetStatus(status)
            over = DatasetStatus(status).terminal
            why = "none of its images failed" if over else f"it is {status}; cancel it first, or wait"
            raise Conflict(f"Data set {id} cannot be retried: {why}.")
        return DatasetStatus(outcome.rows[0].status)

    def export(
        self,
        id: UUID,
        tenant: Tenant,
        destination: str,
        destination_format: ExportFormat,
        *,
        overwrite: bool,
        most: int | None = None,
        key: UUID | None = None,
        once: Once | None = None,
    ) -> None:
        """Export a data set that is over again, to the same or another destination.

        Does nothing where it was done before under the same key.

        Raises:
            NotFound, Conflict, QuotaExceeded
            Forbidden: the destination is another tenant's.
            IdempotencyMismatch: something else was asked for under the key of `once`.
        """
        changed = {"destination": destination, "destination_format": destination_format, "overwrite": overwrite}
        values = {"id": id, "tenant": tenant, "destination": destination, "changed": json.dumps(changed), "key": key}
        outcome = self._take(id, destination, tenant, most, once, transitions.EXPORT, values)
        if not outcome.rows and not outcome.before:
            raise self._unchangeable(id, tenant, "exported")

    def delete(self, id: UUID, tenant: Tenant) -> None:
        """Delete a data set that is over, with its shards and reviews; its objects become orphans.

        Raises:
            NotFound: the tenant has no such data set.
            Conflict: the data set is not over.
        """
        if not self._run(transitions.DELETE, {"id": id, "tenant": tenant}):
            status = self._row(id, tenant).status
            raise Conflict(f"Data set {id} is {status} and cannot be deleted; cancel it first, or wait.")

    def _take(
        self,
        id: UUID,
        destination: str | None,
        tenant: Tenant,
        most: int | None,
        once: Once | None,
        statement: Executable,
        values: Mapping[str, object] | None = None,
    ) -> Outcome:
        """Execute a statement with which a data set becomes unfinished and gets a destination that nobody else has.

        Raises:
            Conflict: another unfinished data set has it.
            Forbidden: it is another tenant's.
            QuotaExceeded: the tenant has `most` unfinished ones.
            IdempotencyMismatch: something else was asked for under the key of `once`.
        """

        def require(connection: Connection) -> None:
            require_dataset_place(connection, tenant, most)
            if destination is not None:
                require_free(connection, destination, tenant)

        try:
            return run_once(self._connections, tenant, once, str(id), statement, values, require=require)
        except IntegrityError as error:
            raise _destination_taken(destination) from error

    def _change(self, id: UUID, tenant: Tenant, statement: Executable, what: str, **values: object) -> None:
        if not self._run(statement, {"id": id, "tenant": tenant, **values}):
            raise self._unchangeable(id, tenant, what)

    def _unchangeable(self, id: UUID, tenant: Tenant, what: str) -> Conflict:
        status = self._row(id, tenant).status
        return Conflict(f"Data set {id} is {status} and cannot be {what} now.")

    def _row(self, id: UUID, tenant: Tenant) -> Row[Any]:
        rows = self._run(_DATASETS.where(DatasetRow.id == id, DatasetRow.tenant == tenant))
        if not rows:
            raise NotFound(f"There is no data set {id}.")
        return rows[0]

    def _to_dataset(self, row: Row[Any]) -> Dataset:
        error = row.error_code and JobError(code=row.error_code, detail=row.error_detail or "")
        return Dataset(
            id=row.id,
            status=row.status,
            paused=row.paused_at is not None,
            priority=row.priority,
            request=DatasetRequest.model_validate(row.request),
            progress=self._progress(row),
            estimate=row.estimate,
            error=error or None,
            created_at=row.created_at,
            started_at=row.started_at,
            finished_at=row.finished_at,
        )

    def _progress(self, row: Row[Any]) -> DatasetProgress:
        totals = self._run(transitions.TOTALS, {"id": row.id})[0]
        rates = self._run(transitions.RATES, {"id": row.id, "window": RATE_WINDOW}) if row.finished_at is None else []
        left = totals.images - totals.done - totals.failed
        speed = sum(rate.images for rate in rates)
        return DatasetProgress(
            images=totals.images,
            done=totals.done,
            dropped=totals.dropped,
            failed=totals.failed,
            final=totals.final,
            left=left,
            shards=totals.shards,
            shards_left=totals.shards_left,
            planned=row.planned_at is not None,
            images_per_second=speed,
            tokens_per_second=sum(rate.tokens for rate in rates),
            eta=left / speed if speed > 0 and row.planned_at is not None else None,
            workers=tuple(
                WorkerProgress(worker=rate.worker, shards=rate.shards, images_per_second=rate.images)
                for rate in rates
                if rate.worker
            ),
        )

    def figures(self) -> list[DatasetFigures]:
        """Totals of unfinished data sets."""
        return self._fetch(DatasetFigures, transitions.FIGURES)

    def speed(self) -> tuple[float, float]:
        """Images and tokens per second of all data sets together."""
        running = select(DatasetRow.id).where(DatasetRow.status == DatasetStatus.RUNNING.value)
        rates = [
            rate
            for row in self._run(running)
            for rate in self._run(transitions.RATES, {"id": row.id, "window": RATE_WINDOW})
        ]
        return sum(rate.images for rate in rates), sum(rate.tokens for rate in rates)

    # ── reviews of images ────────────────────────────────────────────────────────────────────────

    def review(
        self, id: UUID, image: int, said: ReviewRequest, *, tenant: Tenant = "", once: Once | None = None
    ) -> None:
        """Add a review of an image; the newest one counts, and older ones stay. Once only under a key of the tenant's.

        Raises:
            IdempotencyMismatch: something else was asked for under the key of `once`.
        """
        review_id = uuid7()
        new = insert(ReviewRow).values(id=review_id, dataset_id=id, image=image, **said.model_dump())
        run_once(self._connections, tenant, once, str(review_id), new.returning(ReviewRow.id))

    def withdraw(self, id: UUID, image: int, review: UUID, author: str | None) -> None:
        """Withdraw a review of an image that `author` (None: anybody) wrote. Raises NotFound."""
        said = delete(ReviewRow).where(ReviewRow.id == review, ReviewRow.dataset_id == id, ReviewRow.image == image)
        if author is not None:
            said = said.where(ReviewRow.author == author)
        if not self._run(said.returning(ReviewRow.id)):
            raise NotFound(f"Image {image} has no review {review} that you could withdraw.")

    def reviews(self, id: UUID, images: Sequence[int]) -> dict[int, list[Review]]:
        """Image → its reviews, the newest first, for those of these images that have any."""
        rows = self._run(
            select(ReviewRow.__table__)
            .where(ReviewRow.dataset_id == id, ReviewRow.image.in_(images))
            .order_by(ReviewRow.id.desc())
        )
        found: dict[int, list[Review]] = {}
        for row in rows:
            review = Review(
                id=row.id,
                author=row.author,
                created_at=row.created_at,
                verdict=row.verdict,
                text=row.text,
                language=row.language,
            )
            found.setdefault(row.image, []).append(review)
        return found

    def verdicts(self, id: UUID) -> dict[int, str | None]:
        """Image → newest verdict, for all images that have a review."""
        said = select(ReviewRow.image, ReviewRow.verdict).where(ReviewRow.dataset_id == id).order_by(ReviewRow.id)
        found: dict[int, str | None] = {}
        for row in self._run(said):
            found[row.image] = row.verdict or found.get(row.image)
        return found

    def edited_images(self, id: UUID) -> set[int]:
        """Images whose caption somebody improved."""
        said = select(ReviewRow.image).where(ReviewRow.dataset_id == id, ReviewRow.text.is_not(None)).distinct()
        return {row.image for row in self._run(said)}

    # ── the housekeeper's side ────────────────────────────────────────────────────────────────────

    def request(self, id: UUID) -> DatasetRequest:
        """The request of a data set of any tenant. Raises NotFound."""
        rows = self._run(select(DatasetRow.request).where(DatasetRow.id == id))
        if not rows:
            raise NotFound(f"There is no data set {id}.")
        return DatasetRequest.model_validate(rows[0].request)

    def awaiting(self, most: int) -> list[UUID]:
        """Data sets that are to be planned or exported and that no housekeeper works on."""
        return [row.id for row in self._run(transitions.AWAITING, {"most": most})]

    def take(self, id: UUID, worker: str) -> DatasetClaim | None:
        """Claim a data set in order to plan or export it; None when it cannot be claimed."""
        rows = self._run(transitions.TAKE, {"id": id, "worker": worker, "lease": self._settings.lease})
        return next((_dataset_claim(row) for row in rows), None)

    def renew(self, held: Mapping[UUID, int]) -> Renewal:
        """One heartbeat: renew the leases of `held` (id → epoch)."""
        ids = sorted(held)
        rows = self._run(
            transitions.RENEW_DATASETS,
            {"ids": ids, "epochs": [held[id] for id in ids], "lease": self._settings.lease},
            relaxed=True,
        )
        return renewal(held, rows)

    def add_shard(self, claim: DatasetClaim, shard: UUID, number: int, images: int, plan_key: str, due: float) -> bool:
        """Add a planned shard, which the housekeeper publishes in `due` seconds unless a worker claims it by then.

        False when the data set is no longer this housekeeper's, or already has a shard with this number.
        """
        values = {"shard": shard, "number": number, "images": images, "plan_key": plan_key, "due": due}
        return bool(self._run(transitions.ADD_SHARD, {"id": claim.id, "epoch": claim.epoch, **values}))

    def mark_planned(self, claim: DatasetClaim) -> bool:
        """Note that all shards are planned. False when the data set is no longer this housekeeper's."""
        return bool(self._run(transitions.PLANNED, {"id": claim.id, "epoch": claim.epoch}))

    def end(
        self, claim: DatasetClaim, error: JobError | None = None, *, estimate: Mapping[str, Any] | None = None
    ) -> bool:
        """End a data set: exported, or estimated, or failed for a reason that another attempt would not fix."""
        status = DatasetStatus.SUCCEEDED if error is None else DatasetStatus.FAILED
        values = {
            "status": status.value,
            "estimate": json.dumps(estimate) if estimate is not None else None,
            "code": error and error.code,
            "detail": error and error.detail,
        }
        return bool(self._run(transitions.END, {"id": claim.id, "epoch": claim.epoch, **values}))

    def stop(self, id: UUID, error: JobError) -> bool:
        """End an unfinished data set for good, in whatever state: what it needs was taken away from it."""
        return bool(self._run(transitions.STOP, {"id": id, "code": error.code, "detail": error.detail}))

    def put_off(self, claim: DatasetClaim, error: JobError | None = None, *, outage: bool = False) -> bool:
        """Give a data set back that was not finished: it was interrupted, or failed for a reason that may pass.

        Only an error that is no `outage` costs an attempt.
        """
        values = {"code": error and error.code, "detail": error and error.detail, "outage": outage}
        return bool(
            self._run(
                transitions.PUT_OFF,
                {"id": claim.id, "epoch": claim.epoch, "backoff": self._settings.retry_backoff, **values},
            )
        )

    def complete(self, id: UUID | None = None) -> list[UUID]:
        """Move data sets (all, or this one) whose last shard is over to the state exporting; returns their ids."""
        return [row.id for row in self._run(transitions.COMPLETE, {"id": id})]

    def earlier_runs(self, claim: DatasetClaim) -> list[UUID]:
        """Runs of this tenant over the same source with the same parameters for each image, the newest first."""
        rows = self._run(
            select(DatasetRow.id, DatasetRow.request)
            .where(DatasetRow.tenant == claim.tenant, DatasetRow.id < claim.id)
            .where(DatasetRow.request["source"].astext == claim.request.source)
            .order_by(DatasetRow.id.desc())
        )
        wanted = claim.request.parameters
        return [row.id for row in rows if DatasetRequest.model_validate(row.request).parameters == wanted]


_DATASETS: Select[Any] = select(DatasetRow.__table__)


def _destination_taken(destination: str | None) -> Conflict:
    return Conflict(
        f"Another data set is being written to {destination}; wait for it, cancel it, or choose another destination.",
        field="destination",
    )


def _dataset_claim(row: Row[Any]) -> DatasetClaim:
    request = DatasetRequest.model_validate(row.request)
    return DatasetClaim(row.id, row.epoch, row.tenant, request, DatasetStatus(row.status), row.attempts)

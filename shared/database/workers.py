"""What workers say of themselves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime
from uuid import UUID

from sqlalchemy import delete, func, select, text, update
from sqlalchemy.dialects.postgresql import insert as upsert

from shared.database.connections import Connections, seconds
from shared.database.tables import WorkerRow
from shared.settings import Settings
from tuwen.jobs import Kind
from tuwen.version import __version__

_TELL_RUNNING = text("""
    INSERT INTO running_batches (run, worker, jobs, epochs)
    VALUES (:run, :worker, CAST(:jobs AS uuid[]), CAST(:epochs AS int[]))
    ON CONFLICT (run) DO UPDATE SET jobs = EXCLUDED.jobs, epochs = EXCLUDED.epochs, told_at = now()
""")

# An idle worker tells nothing for hours: its row stays, unless the worker was started again since.
_FORGET_RUNNING = text("""
    DELETE FROM running_batches AS b WHERE told_at < now() - interval '1 hour' AND (
        NOT EXISTS (SELECT FROM workers WHERE name = b.worker)
        OR EXISTS (SELECT FROM running_batches AS later WHERE later.worker = b.worker AND later.told_at > b.told_at)
    )
""")


@dataclass(frozen=True, slots=True)
class ServedModel:
    """What a worker holds for one kind of job."""

    model: str
    """Name of its default model."""
    revision: str
    """Identifies that model's weights."""
    all: Mapping[str, str] = field(default_factory=dict)
    """Name → revision of every model that it holds for the kind; a worker of an early release tells none."""

    @property
    def revisions(self) -> dict[str, str]:
        """Name → revision of every model, the default one included."""
        return {self.model: self.revision} | dict(self.all)


@dataclass(frozen=True, slots=True)
class WorkerState:
    """A worker as it last said of itself."""

    name: str
    device: str
    models: Mapping[Kind, ServedModel]
    state: str
    """`ready`: it takes jobs."""
    started_at: datetime
    seen_at: datetime
    release: str | None = None
    """Version of its program; None for one that tells none."""


class Workers:
    """Workers, as they report themselves."""

    def __init__(self, connections: Connections, settings: Settings):
        self._run = connections.run
        self._fetch = connections.fetch
        self._lease = settings.lease

    def register(self, worker: str, device: str, models: Mapping[Kind, ServedModel]) -> None:
        """Note that a worker is ready and takes jobs; it replaces an earlier worker of the same name."""
        served = {kind.value: asdict(model) for kind, model in models.items()}
        said = {"device": device, "models": served, "release": __version__}
        self._run(
            upsert(WorkerRow)
            .values(name=worker, state="ready", **said)
            .on_conflict_do_update(
                index_elements=[WorkerRow.name],
                set_={"state": "ready", "started_at": func.now(), "seen_at": func.now(), **said},
            )
        )

    def unregister(self, worker: str) -> None:
        """Remove a worker that stops."""
        self._run(delete(WorkerRow).where(WorkerRow.name == worker))

    def alive(self) -> list[WorkerState]:
        """Workers that sent a heartbeat within the lease, by name."""
        alive = WorkerRow.seen_at > func.now() - seconds(self._lease)
        return self._fetch(WorkerState, select(WorkerRow.__table__).where(alive).order_by(WorkerRow.name))

    def tell_running(self, run: UUID, worker: str, jobs: Mapping[UUID, int]) -> None:
        """Note which jobs (id → epoch) this start of a worker is about to run in a batch, and that it runs no others.

        Need not wait for the disk: it is read when the worker dies, and matters only if PostgreSQL does not.
        """
        told = {"jobs": list(jobs), "epochs": list(jobs.values())}
        self._run(_TELL_RUNNING, {"run": run, "worker": worker, **told}, relaxed=True)

    def mark_seen(self, worker: str) -> None:
        """Note that the worker has just sent a heartbeat."""
        self._run(update(WorkerRow).where(WorkerRow.name == worker).values(seen_at=func.now()), relaxed=True)

    def forget(self) -> None:
        """Delete workers that died without unregistering, an hour after their last heartbeat."""
        self._run(delete(WorkerRow).where(WorkerRow.seen_at < func.now() - seconds(3600)))
        self._run(_FORGET_RUNNING)

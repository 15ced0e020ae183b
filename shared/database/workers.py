"""What workers say of themselves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import delete, func, select, update
from sqlalchemy.dialects.postgresql import insert as upsert

from shared.database.connections import Connections, seconds
from shared.database.tables import WorkerRow
from shared.settings import Settings
from tuwen.jobs import Kind


class Workers:
    """What workers say of themselves."""

    def __init__(self, connections: Connections, settings: Settings):
        self._run = connections.run
        self._lease = settings.lease

    def register(self, worker: str, device: str, models: Mapping[Kind, Mapping[str, Any]]) -> None:
        """A worker is warm and takes jobs; whatever ran under its name before is over.

        Of each kind: `model` and `revision` of its default model, and `all` its models' revisions by name.
        """
        said = {"device": device, "models": {kind.value: dict(model) for kind, model in models.items()}}
        self._run(
            upsert(WorkerRow)
            .values(name=worker, state="ready", **said)
            .on_conflict_do_update(
                index_elements=[WorkerRow.name],
                set_={"state": "ready", "started_at": func.now(), "seen_at": func.now(), **said},
            )
        )

    def unregister(self, worker: str) -> None:
        self._run(delete(WorkerRow).where(WorkerRow.name == worker))

    def alive(self) -> list[Any]:
        """Rows of `workers` that were heard of within the lease, with all columns."""
        alive = WorkerRow.seen_at > func.now() - seconds(self._lease)
        return self._run(select(WorkerRow.__table__).where(alive).order_by(WorkerRow.name))

    def seen(self, worker: str) -> None:
        """It has just been heard of."""
        self._run(update(WorkerRow).where(WorkerRow.name == worker).values(seen_at=func.now()), relaxed=True)

    def forget(self) -> None:
        """Drop workers that died without saying so, an hour after they were last heard of."""
        self._run(delete(WorkerRow).where(WorkerRow.seen_at < func.now() - seconds(3600)))

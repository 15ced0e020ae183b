"""Which tenant's data sets read and write where, so that none writes into another's source or export.

A place is a local path or an `s3://` prefix in its normal form; the housekeepers, who see the file systems, note real
paths. What one tenant has exported to stays its own, also when the data set is deleted, because the files stay; an
operator can release it. Every check happens under one lock, together with what it allows.
"""

from __future__ import annotations

from uuid import UUID

from sqlalchemy import Connection, Executable, delete, func, select, text
from sqlalchemy.dialects.postgresql import insert

from shared.database.connections import Connections
from shared.database.tables import DatasetPlaceRow
from tuwen.errors import Conflict, Forbidden, NotFound
from tuwen.jobs import Tenant

_LOCK = 0x7475_7765_6E02
"""Advisory lock of those who look for a free destination and take it."""

SOURCE, DESTINATION = "source", "destination"

# A place that another tenant reads from or has written to, in, at or around the one asked for. A source is another's as
# long as its data set exists, and keeps nobody from a destination that was his before.
_IN_THE_WAY = text("""
    WITH others AS (
        SELECT role, place, dataset_id FROM dataset_places
        WHERE tenant <> :tenant AND (place = ANY(:around) OR starts_with(place, :below))
    )
    SELECT role, false AS unfinished FROM others WHERE role = 'destination'
    UNION ALL
    SELECT 'destination', true FROM datasets
    WHERE tenant <> :tenant AND status IN ('planning', 'running', 'exporting')
        AND (destination = ANY(:around) OR starts_with(destination, :below))
    UNION ALL
    SELECT role, false FROM others
    WHERE role = 'source' AND EXISTS (SELECT FROM datasets WHERE id = dataset_id) AND NOT EXISTS (
        SELECT FROM dataset_places WHERE role = 'destination' AND tenant = :tenant AND place = ANY(:around)
    )
    LIMIT 1
""")

# The roots of the key that submitted the data set, or exported it last. One that was submitted before keys had roots is
# bounded by all active keys of its tenant; null is a tenant without a key, in an open installation.
_KEY_ROOTS = text("""
    SELECT CASE WHEN d.key_id IS NOT NULL THEN (SELECT dataset_roots FROM api_keys WHERE id = d.key_id)
        ELSE (
            SELECT array_agg(root) FILTER (WHERE root IS NOT NULL)
            FROM api_keys AS k LEFT JOIN LATERAL unnest(k.dataset_roots) AS root ON true
            WHERE k.tenant = d.tenant AND k.revoked_at IS NULL
        ) END AS roots,
        d.key_id IS NOT NULL OR EXISTS (SELECT FROM api_keys WHERE tenant = d.tenant) AS keyed
    FROM datasets AS d WHERE d.id = :id
""")


def require_free(connection: Connection, place: str, tenant: Tenant) -> None:
    """Require that a tenant may write to a place, until the transaction of `connection` ends.

    Raises:
        Conflict: an unfinished data set of another tenant is to be written there.
        Forbidden: another tenant's data set reads from there, or has been exported there.
    """
    # A process that is frozen while it holds the lock must not hold up everybody.
    connection.execute(text("SET LOCAL idle_in_transaction_session_timeout = '10s'"))
    connection.execute(select(func.pg_advisory_xact_lock(_LOCK)))
    values = {"tenant": tenant, "around": _around(place), "below": place.rstrip("/") + "/"}
    found = connection.execute(_IN_THE_WAY, values).first()
    if found is None:
        return
    if found.unfinished:
        raise Conflict(
            f"Another data set is being written to {place}, into it or around it; choose another destination.",
            field="destination",
        )
    what = "a source" if found.role == SOURCE else "an export"
    raise Forbidden(
        f"{place} is {what} of another tenant, or lies in one or around one; choose another destination.",
        field="destination",
    )


class DatasetPlaces:
    """The places of data sets."""

    def __init__(self, connections: Connections):
        self._run = connections.run
        self._transaction = connections.transaction

    def key_roots(self, dataset: UUID) -> tuple[str, ...] | None:
        """The roots that the key of a data set has now; None for a data set that nobody's key bounds.

        Raises:
            NotFound: there is no such data set.
        """
        rows = self._run(_KEY_ROOTS, {"id": dataset})
        if not rows:
            raise NotFound(f"There is no data set {dataset}.")
        return tuple(rows[0].roots or ()) if rows[0].keyed else None

    def note_source(self, place: str, tenant: Tenant, dataset: UUID) -> None:
        """Note that a data set reads from a place."""
        self._run(_noting(place, SOURCE, tenant, dataset))

    def require_free(self, place: str, tenant: Tenant) -> None:
        """As `require_free` of this module, for now."""
        with self._transaction() as connection:
            require_free(connection, place, tenant)

    def take(self, place: str, tenant: Tenant, dataset: UUID) -> bool:
        """Make a place this tenant's own before the first byte is written. Returns whether it was that before.

        Raises:
            Conflict, Forbidden: as `require_free`.
        """
        with self._transaction() as connection:
            require_free(connection, place, tenant)
            own = select(DatasetPlaceRow.place).where(
                DatasetPlaceRow.place == place, DatasetPlaceRow.role == DESTINATION, DatasetPlaceRow.tenant == tenant
            )
            before = connection.execute(own).first() is not None
            connection.execute(_noting(place, DESTINATION, tenant, dataset))
        return before

    def release(self, place: str, tenant: Tenant | None = None) -> None:
        """Forget who has exported to a place, or that this tenant has.

        Raises:
            NotFound: nobody has.
        """
        written = delete(DatasetPlaceRow).where(DatasetPlaceRow.place == place, DatasetPlaceRow.role == DESTINATION)
        if tenant is not None:
            written = written.where(DatasetPlaceRow.tenant == tenant)
        if not self._run(written.returning(DatasetPlaceRow.place)):
            raise NotFound(f"No tenant is known to have exported to {place}.")


def _noting(place: str, role: str, tenant: Tenant, dataset: UUID) -> Executable:
    new = insert(DatasetPlaceRow).values(place=place, role=role, tenant=tenant, dataset_id=dataset)
    return new.on_conflict_do_update(
        index_elements=["place", "role", "tenant"], set_={"dataset_id": dataset, "noted_at": func.now()}
    ).returning(DatasetPlaceRow.place)


def _around(place: str) -> list[str]:
    """The place itself and all that it lies in."""
    scheme = "s3://" if place.startswith("s3://") else "/"
    parts = place.removeprefix(scheme).split("/") if place != "/" else []
    return [*([scheme] if scheme == "/" else []), *(scheme + "/".join(parts[: n + 1]) for n in range(len(parts)))]

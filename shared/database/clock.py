"""PostgreSQL's clock, by which all times in the database are set, and what to do when it is set to another time.

A clock that was set back an hour leaves times that are an hour too far away: jobs that nobody may claim. Set forward,
it makes leases run out that were just renewed, and deadlines pass. So the housekeeper compares the clock with its own
monotonic one, and after a jump shifts the times of everything that is not over.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import text

from shared.database.connections import Connections
from shared.settings import Settings

# Rows are locked in the order of their ids, as by every statement for many of them.
#
# A wait that ends in the future was set before the clock went back, or is the short one of a new retry, which may end
# early. A lease goes on for as long as it had left; after a jump back, for a whole one. Deadlines keep their distance,
# but for what was created `since` the last look, by the clock as it is now: its times are already the new ones.
_SHIFTED_WAIT = """CASE WHEN :jump < 0 AND {column} > now()
            THEN GREATEST(now(), {column} + :jump * interval '1 second') ELSE {column} END"""
_SHIFTED_LEASE = """CASE
            WHEN lease_until IS NULL THEN NULL
            WHEN :jump < 0 THEN LEAST(lease_until, now() + :lease * interval '1 second')
            WHEN lease_until < now() THEN lease_until + :jump * interval '1 second'
            ELSE lease_until
        END"""
_SHIFTED_DEADLINE = """CASE WHEN created_at BETWEEN CAST(:since AS timestamptz) AND now()
            THEN {column} ELSE {column} + :jump * interval '1 second' END"""


def _shift(table: str, unfinished: str, **columns: str) -> str:
    assignments = ", ".join(f"{name} = {value.format(column=name)}" for name, value in columns.items())
    return f"""
        WITH locked AS MATERIALIZED (SELECT id FROM {table} WHERE {unfinished} ORDER BY id FOR UPDATE)
        UPDATE {table} SET {assignments} FROM locked WHERE {table}.id = locked.id
    """  # noqa: S608 (constants)


_SHIFT = [
    text(statement)
    for statement in (
        _shift(
            "jobs",
            "status IN ('queued', 'running')",
            available_at=_SHIFTED_WAIT,
            dispatch_due_at=_SHIFTED_WAIT,
            lease_until=_SHIFTED_LEASE,
            deadline_at=_SHIFTED_DEADLINE,
        ),
        _shift(
            "shards",
            "status IN ('queued', 'running')",
            available_at=_SHIFTED_WAIT,
            dispatch_due_at=_SHIFTED_WAIT,
            lease_until=_SHIFTED_LEASE,
        ),
        _shift("datasets", "finished_at IS NULL", available_at=_SHIFTED_WAIT, lease_until=_SHIFTED_LEASE),
        _shift(
            "batches",
            "finished_at IS NULL",
            due_at=_SHIFTED_WAIT,
            part_at=_SHIFTED_WAIT,
            expires_at=_SHIFTED_DEADLINE,
        ),
        _shift("webhooks", "due_at > now()", due_at=_SHIFTED_WAIT),
        "UPDATE workers SET seen_at = LEAST(seen_at, now()) WHERE seen_at > now()",
        "UPDATE clock SET shifted = shifted + :jump",
    )
]

# What is further away than any wait or lease was set by a clock that went back while no housekeeper looked.
_RECALL = [
    text(statement.format(table=table))
    for table in ("jobs", "shards")
    for statement in (
        """
        WITH far AS MATERIALIZED (
            SELECT id FROM {table}
            WHERE status = 'queued' AND dispatch_due_at > now() + :far * interval '1 second' ORDER BY id FOR UPDATE
        )
        UPDATE {table} SET available_at = LEAST(available_at, now()), dispatch_due_at = now()
        FROM far WHERE {table}.id = far.id
        """,
        """
        WITH far AS MATERIALIZED (
            SELECT id FROM {table}
            WHERE status = 'running' AND lease_until > now() + :far * interval '1 second' ORDER BY id FOR UPDATE
        )
        UPDATE {table} SET lease_until = now() + :lease * interval '1 second' FROM far WHERE {table}.id = far.id
        """,
    )
]


@dataclass(frozen=True, slots=True)
class ClockReading:
    """PostgreSQL's time."""

    now: datetime
    shifted: float
    """Seconds of all jumps that rows were shifted for, so that each jump that several housekeepers see counts once."""


class Clock:
    """PostgreSQL's clock, and the times that were set by it."""

    def __init__(self, connections: Connections, settings: Settings):
        self._connections = connections
        # Backoffs last 300 s at most. Settings of other processes may differ a little.
        self._far = {"far": 2 * max(300.0, settings.redispatch_after, settings.lease), "lease": settings.lease}

    def read(self) -> ClockReading:
        """The time now."""
        [row] = self._connections.run(text("SELECT now() AS now, shifted FROM clock"))
        return ClockReading(row.now, row.shifted)

    def shift(self, jump: float, since: datetime) -> None:
        """Shift the times of all that is not over by the seconds that the clock jumped.

        `since` is when the clock was last known not to have jumped, told by the clock as it is now.
        """
        values = {"jump": jump, "since": since, "lease": self._far["lease"]}
        with self._connections.transaction() as connection:
            for statement in _SHIFT:
                connection.execute(statement, {name: values[name] for name in statement.compile().params})

    def recall(self) -> None:
        """Make due what waits for a time that no rule sets, and shorten such leases."""
        for statement in _RECALL:
            self._connections.run(statement, self._far)

"""Lists of jobs that take as long after years as on the first day, whatever they are filtered by."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any
from uuid import UUID

from sqlalchemy import Select, SQLColumnExpression, func, literal, literal_column, select, union_all

from shared.database.tables import JobRow
from tuwen.jobs import Kind, Status, Tenant


def age(id: SQLColumnExpression[UUID]) -> SQLColumnExpression[bytes]:
    """The bytes of an id, which sort as the id does, and by which the indexes of lists are ordered.

    Ordered by the id itself, PostgreSQL would now and then rather walk through the primary key, since its rows lie side
    by side on the disk, and filter years of other jobs out.
    """
    return func.uuid_send(id)


def page(
    tenant: Tenant, statuses: Sequence[Status], kinds: Sequence[Kind], before: UUID | None, limit: int
) -> Select[Any]:
    """A page of jobs, the newest first; an empty sequence filters nothing.

    Of a filtered list, the newest of each state and kind are looked up, as an index has them in order; the newest of
    those make the page. So it reads a page for each state and kind at most, however many jobs there are.
    """
    jobs = JobRow.__table__
    own = select(jobs.c.id, age(jobs.c.id).label("age")).where(jobs.c.tenant == tenant)
    if before is not None:
        own = own.where(age(jobs.c.id) < age(literal(before)))
    newest = own.order_by(age(jobs.c.id).desc()).limit(limit)
    if statuses or kinds:
        # The states are constants: an index of finished jobs alone is used only where the state is known beforehand.
        parts = [
            newest.where(
                jobs.c.status == literal_column(f"'{status.value}'"), jobs.c.kind == literal_column(f"'{kind.value}'")
            )
            for status, kind in product(dict.fromkeys(statuses or Status), dict.fromkeys(kinds or Kind))
        ]
        merged = union_all(*(select(part.subquery()) for part in parts)).subquery()
        newest = select(merged).order_by(merged.c.age.desc()).limit(limit)
    found = newest.subquery()
    return select(jobs).join(found, found.c.id == jobs.c.id).order_by(found.c.age.desc())

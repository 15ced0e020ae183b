"""Which objects of the storage the rows name, page by page: what has to be there after a restore."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

from sqlalchemy import text

from shared.database.connections import Connections

PAGE = 1000
"""Rows that one statement reads."""


class Subject(StrEnum):
    """What an object belongs to."""

    RESULT = "result"
    UPLOAD = "upload"
    DOCUMENT = "document"
    PLAN = "plan"
    ANNOTATIONS = "annotations"


@dataclass(frozen=True, slots=True)
class Reference:
    """An object that a row names."""

    subject: Subject
    id: str
    """Id of the job, file, document or shard."""
    key: str
    size: int | None
    """Bytes, where the row knows."""


# A job keeps its image, and where it made several, all of them.
_STATEMENTS = {
    Subject.RESULT: """
        SELECT page.id::text AS place, page.id::text AS id, image.key, NULL AS size
        FROM (
            SELECT id, result_key, result FROM jobs
            WHERE result_key IS NOT NULL AND id > CAST(:after AS uuid) ORDER BY id LIMIT :most
        ) AS page, LATERAL (
            SELECT page.result_key AS key UNION
            SELECT candidate -> 'image' ->> 'key' FROM jsonb_array_elements(
                CASE jsonb_typeof(page.result -> 'candidates') WHEN 'array' THEN page.result -> 'candidates'
                ELSE '[]' END
            ) AS candidate
        ) AS image ORDER BY page.id
    """,
    Subject.UPLOAD: """
        SELECT key AS place, 'file ' || sha256 || ' of ' || tenant AS id, key, size FROM files
        WHERE key > :after ORDER BY key LIMIT :most
    """,
    Subject.DOCUMENT: """
        SELECT key AS place, id::text AS id, key, size FROM documents WHERE key > :after ORDER BY key LIMIT :most
    """,
    Subject.PLAN: """
        SELECT id::text AS place, dataset_id::text || ' shard ' || number AS id, plan_key AS key, NULL AS size
        FROM shards WHERE id > CAST(:after AS uuid) ORDER BY id LIMIT :most
    """,
    Subject.ANNOTATIONS: """
        SELECT id::text AS place, dataset_id::text || ' shard ' || number AS id, results_key AS key, NULL AS size
        FROM shards WHERE results_key IS NOT NULL AND id > CAST(:after AS uuid) ORDER BY id LIMIT :most
    """,
}
_FIRST_UUID = "00000000-0000-0000-0000-000000000000"


class References:
    """The objects that rows name."""

    def __init__(self, connections: Connections):
        self._run = connections.run

    def pages(self, subject: Subject) -> Iterator[list[Reference]]:
        """All of a subject, a page for each statement, so that none holds up the queue."""
        by_id = subject not in (Subject.UPLOAD, Subject.DOCUMENT)
        after = _FIRST_UUID if by_id else ""
        while rows := self._run(text(_STATEMENTS[subject]), {"after": after, "most": PAGE}):
            yield [Reference(subject, row.id, row.key, row.size) for row in rows]
            after = rows[-1].place

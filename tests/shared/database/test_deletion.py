"""Steps of deletion: what is due goes, and what somebody still waits for stays."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

import pytest
from sqlalchemy import create_engine, text

from shared.database import Database, Finish
from shared.database.batches import NewDocument
from shared.database.connections import driver_url
from shared.settings import Settings
from tests.support.plain_sql import Sql
from tuwen.errors import Conflict, NotFound
from tuwen.jobs import JobError, JobRequest, MatchResult, Status

DAY = timedelta(days=1)
BEGINNING = datetime.min.replace(tzinfo=UTC)


@pytest.fixture
def database(settings: Settings) -> Iterator[Database]:
    database = Database(settings)
    yield database
    database.close()


def over(
    database: Database,
    sql: Sql,
    *,
    days: float = 2,
    failed: bool = False,
    webhook: str | None = None,
    tenant: str = "t",
) -> UUID:
    """A job that ended so long ago."""
    request = JobRequest.model_validate({"input": {"kind": "generate", "prompt": "cat"}, "webhook": webhook})
    [id] = database.jobs.submit([request], tenant="t").ids
    epoch = database.jobs.claim([id], "w")[id].epoch
    error = JobError(code="engine_error", detail="it broke") if failed else None
    database.jobs.finish([Finish(id, epoch, None if failed else MatchResult(score=0.5), error=error)])
    sql("UPDATE jobs SET finished_at = finished_at - :age WHERE id = :id", age=timedelta(days=days), id=id)
    return id


def left(sql: Sql) -> set[UUID]:
    return {row.id for row in sql("SELECT id FROM jobs")}


def test_jobs_of_a_state_and_age(database: Database, sql: Sql) -> None:
    old = [over(database, sql, days=9 - number) for number in range(3)]
    young, failed = over(database, sql, days=0.5), over(database, sql, days=9, failed=True)
    assert database.deletion.due_jobs(Status.SUCCEEDED, DAY).count == 3
    first = database.deletion.old_jobs(Status.SUCCEEDED, DAY, 2, after=BEGINNING)
    assert (first.rows, set(first.ids)) == (2, set(old[:2])), "the oldest come first"
    assert first.last is not None
    assert database.deletion.old_jobs(Status.SUCCEEDED, DAY, 2, after=first.last).ids == old[2:]
    assert left(sql) == {young, failed}
    assert database.deletion.due_jobs(Status.SUCCEEDED, DAY).count == 0


def test_what_somebody_still_waits_for_stays(database: Database, sql: Sql) -> None:
    """A webhook that is owed, and the answer to a line of a batch."""
    owed, told, answered = over(database, sql, webhook="https://a.example/"), over(database, sql), over(database, sql)
    batch = uuid4()
    sql(
        "INSERT INTO batches (id, tenant, endpoint, input_id, completion_window, labels, base_url, expires_at) "
        "VALUES (:id, 't', '/v1/x', :id, '24h', '{}', '', now())",
        id=batch,
    )
    sql(
        "INSERT INTO batch_lines (batch_id, number, custom_id, job_id) VALUES (:batch, 1, 'a', :job)",
        batch=batch,
        job=answered,
    )
    assert database.deletion.old_jobs(Status.SUCCEEDED, DAY, 10, after=BEGINNING).ids == [told]
    sql("UPDATE webhooks SET due_at = NULL, delivered_at = now()")
    sql("DELETE FROM batch_lines")
    gone = database.deletion.old_jobs(Status.SUCCEEDED, DAY, 10, after=BEGINNING)
    assert (set(gone.ids), gone.webhooks) == ({owed, answered}, 1)
    assert sql("SELECT count(*) FROM webhooks") == [(0,)]


def test_what_another_transaction_holds_is_skipped_and_not_waited_for(
    database: Database, sql: Sql, settings: Settings
) -> None:
    held, free = over(database, sql), over(database, sql)
    engine = create_engine(driver_url(settings.database_url))
    with engine.connect() as other:
        other.execute(text("SELECT FROM jobs WHERE id = :id FOR UPDATE"), {"id": held})
        assert database.deletion.old_jobs(Status.SUCCEEDED, DAY, 10, after=BEGINNING).ids == [free]
    engine.dispose()
    assert left(sql) == {held}


def test_keys_of_the_image_and_of_its_candidates(database: Database, sql: Sql) -> None:
    id = over(database, sql)
    sql(
        "UPDATE jobs SET result_key = 'results/a', result = CAST(:result AS jsonb) WHERE id = :id",
        id=id,
        result='{"candidates": [{"image": {"key": "results/a"}}, {"image": {"key": "results/b"}}, {"image": null}]}',
    )
    assert sorted(database.deletion.job(id, "t").keys) == ["results/a", "results/b"]


def test_one_job_of_ones_own_that_is_over(database: Database, sql: Sql) -> None:
    id = over(database, sql, webhook="https://a.example/")
    with pytest.raises(NotFound):
        database.deletion.job(id, "another")
    request = JobRequest.model_validate({"input": {"kind": "generate", "prompt": "cat"}})
    queued, running = database.jobs.submit([request] * 2, tenant="t").ids
    database.jobs.claim([running], "w")
    for unfinished, state in ((queued, "queued"), (running, "running")):
        with pytest.raises(Conflict, match=f"is {state}; cancel it first"):
            database.deletion.job(unfinished, "t")
    assert database.deletion.job(id, "t").webhooks == 1
    assert left(sql) == {queued, running}
    with pytest.raises(NotFound):
        database.deletion.job(id, "t")


def test_uploads_that_nothing_uses(database: Database, sql: Sql) -> None:
    def upload(sha256: str) -> None:
        facts = {"media_type": "image/png", "width": 1, "height": 1, "size": 1}
        database.files.add(tenant="t", sha256=sha256, key=f"files/t/{sha256}", **facts)  # type: ignore[arg-type]

    waiting, unused, named, again = (digit * 64 for digit in "abcd")
    for sha256 in (waiting, unused, named, again):
        upload(sha256)
    request = {"input": {"kind": "recognize", "image": {"file_id": waiting}}}
    [id] = database.jobs.submit([JobRequest.model_validate(request)], tenant="t").ids
    sql("UPDATE files SET used_at = now() - interval '2 days', created_at = now() - interval '9 days'")
    assert database.files.known([named, unused, waiting], "another") == set()
    assert database.files.known([named], "t") == {named}, "a new job is about to name it"
    upload(again)
    assert database.deletion.old_uploads(DAY, 10).keys == [f"files/t/{unused}"]
    database.jobs.cancel(id, "t")
    assert database.deletion.old_uploads(DAY, 10).keys == [f"files/t/{waiting}"]


def test_batches_and_their_files(database: Database, sql: Sql) -> None:
    read, done, unread = uuid4(), uuid4(), uuid4()
    for id in (read, done, unread):
        database.documents.add(NewDocument(id, f"documents/t/{id.hex}.jsonl", "x", "batch", 1), "t")
    for input_id in (read, done):
        values = {"endpoint": "/v1/x", "completion_window": "24h", "labels": {}, "base_url": "", "quota": None}
        database.batches.add({"id": uuid4(), "tenant": "t", "input_id": input_id, **values}, 60)
    sql("UPDATE documents SET created_at = now() - interval '3 days'")
    sql(
        "UPDATE batches SET status = 'completed', due_at = NULL, finished_at = now() - interval '2 days' "
        "WHERE input_id = :id",
        id=done,
    )
    assert database.deletion.old_documents(DAY, 10).keys == [f"documents/t/{unread.hex}.jsonl"]
    assert database.deletion.old_batches(DAY, 10).rows == 1
    assert database.deletion.old_documents(DAY, 10).keys == [f"documents/t/{done.hex}.jsonl"]
    assert [row.id for row in sql("SELECT id FROM documents")] == [read], "a batch that is not over reads it"


def test_idempotency_keys_after_a_day(database: Database, sql: Sql) -> None:
    request = JobRequest.model_validate({"input": {"kind": "generate", "prompt": "cat"}})
    for key in ("a", "b", "c"):
        database.jobs.submit([request], tenant="t", idempotency_key=key, body_sha256="x")
    sql("UPDATE idempotency_keys SET created_at = now() - interval '25 hours' WHERE key <> 'c'")
    assert [database.deletion.old_idempotency_keys(1) for _ in range(3)] == [1, 1, 0]
    assert sql("SELECT key FROM idempotency_keys") == [("c",)]

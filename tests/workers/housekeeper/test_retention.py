"""What the housekeeper deletes for its age, with its objects, and what it leaves alone."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from uuid import UUID

import pytest

from shared.database import Database, Finish
from shared.objects.storage import ObjectStore, content_key
from shared.queue import RETENTION_TASK, JobQueue, celery_app
from shared.settings import Settings
from tests.support.plain_sql import Sql
from tuwen.errors import StorageUnavailable
from tuwen.jobs import GenerateResult, JobError, JobRequest, Status, StoredImage
from workers.datasets.housekeeping import DatasetKeeper
from workers.housekeeper import retention
from workers.housekeeper.collection import Collector
from workers.housekeeper.housekeeping import Housekeeper, define
from workers.housekeeper.retention import Retention

Make = Callable[..., UUID]


@pytest.fixture
def kept(settings: Settings) -> Settings:
    """Succeeded jobs are kept for thirty days, failed ones forever."""
    return settings.model_copy(update={"keep_jobs": "30d,failed=forever", "keep_uploads": "7d", "keep_batches": "7d"})


@pytest.fixture
def store(settings: Settings) -> ObjectStore:
    return ObjectStore.open(settings)


@pytest.fixture
def make(database: Database, store: ObjectStore, sql: Sql, tmp_path: Path) -> Make:
    """Makes a job that ended `days` ago with a picture, or failed."""

    def make(picture: bytes | None, *, days: float) -> UUID:
        request = JobRequest.model_validate({"input": {"kind": "generate", "prompt": "cat"}})
        [id] = database.jobs.submit([request], tenant="t").ids
        epoch = database.jobs.claim([id], "w")[id].epoch
        if picture is None:
            finish = Finish(id, epoch, error=JobError(code="engine_error", detail="it broke"))
        else:
            key = content_key("results", picture, ".png")
            store.put(key, picture, "image/png")
            os.utime(tmp_path / "objects" / key, (0, 0))
            image = StoredImage(key=key, sha256="0" * 64, width=8, height=8)
            finish = Finish(id, epoch, result=GenerateResult(image=image, seed=1), result_key=key)
        database.jobs.finish([finish])
        sql("UPDATE jobs SET finished_at = finished_at - :age WHERE id = :id", age=timedelta(days=days), id=id)
        return id

    return make


def stored(store: ObjectStore) -> set[str]:
    return {each.key for each in store.list()}


def jobs(sql: Sql) -> set[UUID]:
    return {row.id for row in sql("SELECT id FROM jobs")}


def test_what_is_old_goes_with_its_picture(
    make: Make, kept: Settings, database: Database, store: ObjectStore, sql: Sql, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "STEP", 2)
    for number in range(5):
        make(b"old %d" % number, days=31 + number)
    make(b"of two", days=40)
    young, again, failed = make(b"young", days=29), make(b"of two", days=1), make(None, days=400)
    Retention(kept, database, store).keep()
    assert jobs(sql) == {young, again, failed}
    assert stored(store) == {content_key("results", picture, ".png") for picture in (b"young", b"of two")}


def test_by_default_nothing_is_deleted(
    make: Make, settings: Settings, database: Database, store: ObjectStore, sql: Sql
) -> None:
    ids = {make(b"old", days=4000), make(None, days=4000)}
    Retention(settings, database, store).keep()
    assert jobs(sql) == ids


def test_a_storage_that_is_away_leaves_only_what_is_collected(
    make: Make, kept: Settings, database: Database, store: ObjectStore, sql: Sql, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As does a housekeeper that is killed between the rows and the objects."""
    make(b"old", days=31)

    def fail(_: object, key: str) -> None:
        raise StorageUnavailable("away")

    with monkeypatch.context() as away:
        away.setattr(ObjectStore, "head", fail)
        Retention(kept, database, store).keep()
    assert jobs(sql) == set()
    assert len(stored(store)) == 1
    queue = JobQueue(kept)
    Collector(kept, database, queue, store).collect()
    queue.close()
    assert stored(store) == set()


def test_a_picture_that_was_stored_lately_is_left_to_collection(
    make: Make, kept: Settings, database: Database, store: ObjectStore, sql: Sql
) -> None:
    """A worker may have found it there, and be about to write the row that names it."""
    make(b"old", days=31)
    store.put(content_key("results", b"old", ".png"), b"old", "image/png")
    Retention(kept, database, store).keep()
    assert jobs(sql) == set()
    assert len(stored(store)) == 1


def test_what_was_skipped_is_looked_at_again_later(
    make: Make, kept: Settings, database: Database, store: ObjectStore, sql: Sql, monkeypatch: pytest.MonkeyPatch
) -> None:
    waiting = make(b"a", days=50)
    sql("INSERT INTO webhooks (id, job_id, url) VALUES (:id, :id, 'https://a.example/')", id=waiting)
    make(b"b", days=40)
    keeper = Retention(kept, database, store)
    keeper.keep()
    assert jobs(sql) == {waiting}
    sql("UPDATE webhooks SET due_at = NULL, delivered_at = now()")
    keeper.keep()
    assert jobs(sql) == {waiting}, "it is behind the last one that was deleted"
    monkeypatch.setattr(retention, "LOOK_BACK", 0.0)
    keeper.keep()
    assert jobs(sql) == set()


def test_clocks_that_differ_delete_nothing(
    make: Make,
    kept: Settings,
    database: Database,
    store: ObjectStore,
    sql: Sql,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """One that is years ahead would make all of it old."""
    id = make(b"old", days=31)
    monkeypatch.setattr(retention, "TRUSTED", timedelta(0))
    with caplog.at_level(logging.ERROR):
        Retention(kept, database, store).keep()
    assert jobs(sql) == {id}
    assert "nothing is deleted for its age" in caplog.text


def test_one_that_stops_begins_no_further_step(
    make: Make, kept: Settings, database: Database, store: ObjectStore, sql: Sql
) -> None:
    make(b"old", days=31)
    keeper = Retention(kept, database, store)
    keeper.stop()
    keeper.keep()
    assert len(jobs(sql)) == 1


def test_the_housekeeper_does_so_every_minute(make: Make, kept: Settings, sql: Sql) -> None:
    make(b"old", days=31)
    app = celery_app(kept)
    define(app, Housekeeper(kept, app, DatasetKeeper(kept, app)), interval=5)
    assert app.conf.beat_schedule[RETENTION_TASK]["schedule"] == 60.0
    app.tasks[RETENTION_TASK]()
    assert jobs(sql) == set()


def test_parts_of_a_batch_that_is_gone_are_collected(
    kept: Settings, database: Database, store: ObjectStore, tmp_path: Path, sql: Sql
) -> None:
    """Its housekeeper wrote one when the batch had just been deleted."""
    gone, going_on = UUID(int=1), UUID(int=2)
    values = {"endpoint": "/v1/x", "completion_window": "24h", "labels": {}, "base_url": "", "quota": None}
    database.batches.add({"id": going_on, "tenant": "t", "input_id": going_on, **values}, 60)
    for id in (gone, going_on):
        key = f"batches/{id.hex}/output-00000.jsonl"
        store.put(key, b"{}", "application/jsonl")
        os.utime(tmp_path / "objects" / key, (0, 0))
    queue = JobQueue(kept)
    Collector(kept, database, queue, store).collect()
    queue.close()
    assert stored(store) == {f"batches/{going_on.hex}/output-00000.jsonl"}


def test_old_jobs_are_counted_for_people(make: Make, database: Database) -> None:
    make(b"old", days=31)
    due = database.deletion.due_jobs(Status.SUCCEEDED, timedelta(days=30))
    assert (due.count, due.oldest is not None) == (1, True)
    assert database.deletion.due_jobs(Status.FAILED, timedelta(days=30)).oldest is None

"""Backup and restore for real: pg_dump and a copy of the folder at different moments, restored into fresh servers."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from uuid import UUID, uuid4

import pytest
from celery import Celery
from typer.testing import CliRunner, Result

from api.cli import doctor
from api.cli.main import app
from api.embedded.addresses import as_environment
from shared.database import Database
from shared.database.batches import NewDocument
from shared.objects.mark import KEY, StorageMark
from shared.objects.storage import ObjectStore, file_key
from shared.queue import JobQueue, connect
from shared.settings import Settings
from tests.support.api_server import FakeWorker, png
from tests.support.plain_sql import Sql
from tests.support.servers import Postgres
from tests.support.system import TENANT
from tuwen.jobs import JobRequest, Kind
from workers.datasets.housekeeping import DatasetKeeper
from workers.housekeeper.housekeeping import Housekeeper


def dump(postgres: Postgres, settings: Settings, file: Path) -> None:
    command = [postgres._binary("pg_dump"), "--format=custom", f"--file={file}", settings.database_url]
    subprocess.run(command, check=True)


def restored(postgres: Postgres, dump: Path, objects: Path, folder: Path, redis_url: str) -> Settings:
    """Fresh servers with the dump and the copy: the same PostgreSQL has another database, and Redis is empty."""
    postgres.drop_database("restored")
    url = postgres.create_database("restored", template="template0")
    subprocess.run([postgres._binary("pg_restore"), "--no-owner", f"--dbname={url}", dump], check=True)
    places = {"database_url": url, "redis_url": redis_url, "storage_url": f"file://{objects}", "data_dir": folder}
    return Settings(**places, auth="open", orphan_age=0.0)


def copy(settings: Settings, target: Path) -> Path:
    """A copy of the objects, with their times, as `cp -a` and `rclone sync` make."""
    return Path(shutil.copytree(settings.storage_url.removeprefix("file://"), target))


def submit(database: Database, count: int = 1) -> list[UUID]:
    request = JobRequest.model_validate({"input": {"kind": "generate", "prompt": "a cat"}})
    return database.jobs.submit([request] * count, tenant=TENANT).ids


def draw(hand: FakeWorker, id: UUID, colour: str) -> str:
    hand.claim(id)
    return hand.succeed(id, png(colour))


def upload(database: Database, store: ObjectStore, colour: str) -> str:
    data = png(colour)
    digest = sha256(data).hexdigest()
    key = file_key(TENANT, digest)
    store.put(key, data, "image/png")
    said = {"media_type": "image/png", "width": 8, "height": 8, "size": len(data)}
    database.files.add(tenant=TENANT, sha256=digest, key=key, **said)
    return key


@pytest.fixture
def store(settings: Settings) -> ObjectStore:
    return ObjectStore.open(settings)


@contextmanager
def keeping(settings: Settings) -> Iterator[Housekeeper]:
    """A housekeeper whose tasks the test calls."""
    celery = Celery()
    housekeeper = Housekeeper(settings, celery, DatasetKeeper(settings, celery))
    yield housekeeper
    housekeeper.stop()


def tuwen(settings: Settings, *arguments: str) -> Result:
    """The command on the servers of these settings."""
    command = ["--data", str(settings.data_dir), *arguments]
    return CliRunner().invoke(app, command, env={**os.environ, **as_environment(settings)})


def keys(settings: Settings) -> set[str]:
    folder = Path(settings.storage_url.removeprefix("file://"))
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*.*") if path.is_file()} - {KEY}


def test_objects_newer_than_the_dump_stay_until_somebody_says_so(
    settings: Settings,
    postgres: Postgres,
    database: Database,
    store: ObjectStore,
    hand: FakeWorker,
    tmp_path: Path,
) -> None:
    done, waiting = submit(database, 2)
    old = {draw(hand, done, "red"), upload(database, store, "blue")}
    with keeping(settings) as housekeeper:
        housekeeper.mark()
        dump(postgres, settings, tmp_path / "dump")
        new = {draw(hand, waiting, "green"), upload(database, store, "white")}
        housekeeper.mark()  # a minute later
    objects = copy(settings, tmp_path / "copy")

    with connect(settings) as client:
        client.flushdb()  # Redis is not part of a backup
    after = restored(postgres, tmp_path / "dump", objects, tmp_path / "restored", settings.redis_url)
    verified = tuwen(after, "verify")
    assert verified.exit_code == 0, verified.output
    assert "of different times" in verified.output
    assert "backup" in {finding.subject for finding in doctor._storage(after)}
    with keeping(after) as housekeeper:
        housekeeper.housekeep()
        queue = JobQueue(after)
        assert queue.depth()[Kind.GENERATE] == 1  # what the dump has as queued is published to the empty Redis
        queue.close()
        housekeeper.collect()
        housekeeper.mark()
        housekeeper.collect()
        assert {key for key in old | new if (objects / key).exists()} == old | new
        assert tuwen(after, "verify", "--accept").exit_code == 0
        assert "backup" not in {finding.subject for finding in doctor._storage(after)}
        worker = FakeWorker(after)
        drawn_again = draw(worker, waiting, "green")
        worker.close()
        housekeeper.collect()  # now the upload that no row names is an orphan as any other
    assert drawn_again in new
    assert {key for key in old | new if (objects / key).exists()} == old | {drawn_again}


def test_what_the_copy_lacks_is_found_and_said(
    settings: Settings,
    postgres: Postgres,
    database: Database,
    store: ObjectStore,
    hand: FakeWorker,
    sql: Sql,
    tmp_path: Path,
) -> None:
    kept, lost = submit(database, 2)
    draw(hand, kept, "red")
    upload(database, store, "blue")
    objects = copy(settings, tmp_path / "copy")
    expected = {("result", str(lost), draw(hand, lost, "green"), "missing")}
    key = upload(database, store, "white")
    expected.add(("upload", f"file {key.rpartition('/')[2]} of {TENANT}", key, "missing"))
    document = NewDocument(uuid4(), "documents/t/x.jsonl", "batch.jsonl", "batch", 5)
    database.documents.add(document, TENANT)
    expected.add(("document", str(document.id), document.key, "missing"))
    expected |= shard_without_objects(sql)
    dump(postgres, settings, tmp_path / "dump")
    cut_off = upload(database, store, "blue")  # the same again
    (objects / cut_off).write_bytes(b"half")
    expected.add(
        (
            "upload",
            f"file {cut_off.rpartition('/')[2]} of {TENANT}",
            cut_off,
            f"has 4 bytes instead of {len(png('blue'))}",
        )
    )

    after = restored(postgres, tmp_path / "dump", objects, tmp_path / "restored", settings.redis_url)
    said = tuwen(after, "verify", "--json")
    found = [json.loads(line) for line in said.stdout.splitlines() if line.startswith("{")]
    assert {(each["subject"], each["id"], each["key"], each["problem"]) for each in found} == expected
    assert all(each["remedy"] for each in found)
    assert said.exit_code == 1
    assert "result: 2 looked for, 1 not as they should be" in said.output
    assert "submits the job again" in tuwen(after, "verify").output


def shard_without_objects(sql: Sql) -> set[tuple[str, str, str, str]]:
    """A data set with one shard, of which no object exists; what is to be said of it."""
    dataset, plan, results = uuid4(), "datasets/x/plan", "datasets/x/results"
    sql(
        "INSERT INTO datasets (id, tenant, request, kinds, priority, status, finished_at) "
        "VALUES (:id, 't', '{}', 'describe', 0, 'succeeded', now())",
        id=dataset,
    )
    sql(
        "INSERT INTO shards (id, dataset_id, number, images, plan_key, results_key, status, finished_at) "
        "VALUES (:id, :dataset, 3, 1, :plan, :results, 'done', now())",
        id=uuid4(),
        dataset=dataset,
        plan=plan,
        results=results,
    )
    id = f"{dataset} shard 3"
    return {("plan", id, plan, "missing"), ("annotations", id, results, "missing")}


class TestMark:
    @pytest.fixture
    def mark(self, database: Database, store: ObjectStore) -> StorageMark:
        return StorageMark(database, store)

    def test_each_renewal_makes_earlier_dumps_and_copies_old(
        self, mark: StorageMark, store: ObjectStore, database: Database
    ) -> None:
        assert mark.renew()
        before = store.get(KEY)
        assert mark.renew()
        assert store.get(KEY) != before
        store.put(KEY, before, "text/plain")  # the copy of a minute ago
        assert not mark.renew()
        assert store.get(KEY) == before
        mark.accept()
        assert mark.renew()

    @pytest.mark.parametrize("arrived", [False, True])
    def test_a_housekeeper_that_dies_between_both_writes_raises_no_alarm(
        self, mark: StorageMark, store: ObjectStore, database: Database, arrived: bool
    ) -> None:
        mark.renew()
        token = uuid4()
        database.storage_marks.announce(token)
        if arrived:
            store.put(KEY, str(token).encode(), "text/plain")
        assert mark.renew()
        assert database.storage_marks.read().pending is None

    @pytest.mark.parametrize("content", [b"", b"no mark", b"ab1b9f85-00c8-4c36-8569-ec887e67aeb8"])
    def test_a_new_database_leaves_the_objects_of_another_alone(
        self, mark: StorageMark, store: ObjectStore, content: bytes
    ) -> None:
        store.put(KEY, content, "text/plain")
        assert not mark.renew()

    def test_a_storage_that_lost_its_mark_is_another(self, mark: StorageMark, store: ObjectStore) -> None:
        mark.renew()
        store.delete(KEY)
        assert not mark.renew()

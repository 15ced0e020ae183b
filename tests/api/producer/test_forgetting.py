"""Forgetting a tenant: all of it, nothing of anybody else's, and again after being cut off."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from uuid import UUID, uuid4

import pytest

from api.embedded.addresses import as_environment
from api.producer import forgetting
from api.producer.forgetting import Forgetting
from shared.database import Database, Finish
from shared.database.batches import NewDocument
from shared.objects import datasets
from shared.objects.storage import ObjectStore, content_key, file_key
from shared.openai.documents import key_of
from shared.settings import Settings
from tests.support.plain_sql import Sql
from tests.support.waiting import PATIENT
from tuwen.datasets import DatasetRequest, ReviewRequest
from tuwen.errors import Conflict, StorageUnavailable
from tuwen.jobs import GenerateResult, JobRequest, StoredImage

GENERATE = JobRequest.model_validate(
    {"input": {"kind": "generate", "prompt": "a cat"}, "webhook": "https://a.example/hook"}
)
TABLES = ("jobs", "files", "documents", "batches", "datasets", "shards", "reviews", "webhooks", "idempotency_keys")

Fill = Callable[[str], None]


@pytest.fixture
def store(settings: Settings) -> ObjectStore:
    return ObjectStore.open(settings)


@pytest.fixture
def fill(database: Database, store: ObjectStore, tmp_path: Path) -> Fill:
    """Has a tenant store something of everything; its objects are old."""

    def put(key: str) -> str:
        store.put(key, b"x", "image/png")
        os.utime(tmp_path / "objects" / key, (0, 0))
        return key

    def fill(tenant: str) -> None:
        ids = database.jobs.submit([GENERATE] * 4, tenant=tenant, idempotency_key="k", body_sha256="x").ids
        for number, (id, claim) in enumerate(database.jobs.claim(ids[:2], "w").items()):
            key = put(content_key("results", f"{tenant} {number}".encode(), ".png"))
            result = GenerateResult(image=StoredImage(key=key, sha256="0" * 64, width=8, height=8), seed=1)
            database.jobs.finish([Finish(id, claim.epoch, result, key)])
        facts = {"media_type": "image/png", "width": 1, "height": 1, "size": 1}
        key = put(file_key(tenant, "a" * 64))
        database.files.add(tenant=tenant, sha256="a" * 64, key=key, **facts)  # type: ignore[arg-type]
        document, batch = uuid4(), uuid4()
        database.documents.add(NewDocument(document, put(key_of(document, tenant)), "x", "batch", 1), tenant)
        values = {"endpoint": "/v1/x", "completion_window": "24h", "labels": {}, "base_url": "", "quota": None}
        database.batches.add({"id": batch, "tenant": tenant, "input_id": document, **values}, 60)
        put(f"batches/{batch.hex}/output-00000.jsonl")
        run = database.datasets.submit(DatasetRequest(source="/s", destination=f"/out/{tenant}"), tenant)
        claim_ = database.datasets.take(run, "h")
        assert claim_ is not None
        assert database.datasets.add_shard(claim_, uuid4(), 0, 1, put(datasets.plan_key(run, 0, 1)), 0.0)
        database.datasets.review(run, 0, ReviewRequest(author="me", verdict="accepted"))

    return fill


def rows(sql: Sql) -> dict[str, int]:
    return {table: sql(f"SELECT count(*) FROM {table}")[0][0] for table in TABLES}


def keys(store: ObjectStore, holding: str = "") -> set[str]:
    return {stored.key for stored in store.list() if holding in stored.key}


def test_everything_of_one_and_nothing_of_another(
    fill: Fill, settings: Settings, database: Database, store: ObjectStore, sql: Sql
) -> None:
    fill("bob")
    of_bob, objects_of_bob = rows(sql), keys(store)
    assert all(of_bob.values())
    fill("alice")
    gone = Forgetting(settings, database, store).forget("alice", patience=0)
    assert rows(sql) == of_bob
    assert keys(store) == objects_of_bob
    assert gone.counts == {
        "batches": 1,
        "reviews of images": 1,
        "shards of data sets": 1,
        "data sets": 1,
        "jobs": 4,
        "webhooks": 4,
        "uploaded images": 1,
        "files of batches": 1,
        "idempotency keys": 1,
        "stored objects": 6,
    }
    assert Forgetting(settings, database, store).forget("alice", patience=0).counts.total() == 0


def test_what_still_runs_is_cancelled_and_refused_with_a_sentence(
    fill: Fill, settings: Settings, database: Database, store: ObjectStore
) -> None:
    fill("alice")
    [id] = database.jobs.submit([GENERATE], tenant="alice").ids
    epoch = database.jobs.claim([id], "w")[id].epoch
    with pytest.raises(Conflict, match="1 jobs and 0 data sets of alice are not over yet; they were asked to stop"):
        Forgetting(settings, database, store).forget("alice", patience=0)
    assert database.jobs.renew({id: epoch}, "w").cancelled == {id}
    assert database.jobs.get(id, "alice").cancel_requested
    database.jobs.finish([Finish(id, epoch, GenerateResult(image=_image(), seed=1), _image().key)])
    assert Forgetting(settings, database, store).forget("alice", patience=0).counts["jobs"] == 5


def _image() -> StoredImage:
    return StoredImage(key=content_key("results", b"late", ".png"), sha256="0" * 64, width=8, height=8)


class Killed(BaseException):
    """What cuts a process off between two of its statements."""


@pytest.mark.parametrize("step", [1, 4, 6, 8])
def test_it_goes_on_where_it_was_cut_off(
    fill: Fill,
    settings: Settings,
    database: Database,
    store: ObjectStore,
    sql: Sql,
    monkeypatch: pytest.MonkeyPatch,
    step: int,
) -> None:
    fill("alice")
    steps = 0

    def cut_off(_: float) -> None:
        nonlocal steps
        steps += 1
        if steps == step:
            raise Killed

    monkeypatch.setattr(forgetting, "STEP", 2)
    with monkeypatch.context() as cut:
        cut.setattr(forgetting, "time", SimpleNamespace(sleep=cut_off, monotonic=time.monotonic))
        with pytest.raises(Killed):
            Forgetting(settings, database, store).forget("alice", patience=0)
    assert steps == step
    Forgetting(settings, database, store).forget("alice", patience=0)
    assert not any(rows(sql).values())
    assert keys(store) == set()


def test_objects_of_a_storage_that_is_away_are_counted(
    fill: Fill, settings: Settings, database: Database, store: ObjectStore, sql: Sql, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill("alice")

    def fail(*_: object) -> None:
        raise StorageUnavailable("away")

    for name in ("head", "delete", "delete_folder", "list"):
        monkeypatch.setattr(ObjectStore, name, fail)
    gone = Forgetting(settings, database, store).forget("alice", patience=0)
    assert not any(rows(sql).values())
    assert (gone.counts["stored objects"], gone.unanswered) == (0, 8)


def test_the_command_asks_first_and_says_what_is_gone(
    fill: Fill, settings: Settings, database: Database, sql: Sql
) -> None:
    fill("alice")
    database.keys.add(name="alice", tenant="alice", sha256="x", quota=1)

    def command(*options: str) -> subprocess.CompletedProcess[str]:
        line = [sys.executable, "-m", "api.cli", "keys", "forget", "alice", *options]
        environment = os.environ | as_environment(settings)
        return subprocess.run(
            line, capture_output=True, text=True, timeout=PATIENT, check=False, env=environment, input="n\n"
        )

    asked = command()
    assert asked.returncode == 1
    assert "Delete everything that alice stored (2 jobs and 1 data sets of it are not over)?" in asked.stderr
    assert all(rows(sql).values())
    done = command("--yes")
    assert done.returncode == 0, done.stderr
    assert {"4 jobs", "1 data sets", "6 stored objects"} <= set(done.stdout.splitlines())
    assert "1 keys of alice still work; revoke them with: tuwen keys revoke" in done.stderr
    assert not any(rows(sql).values())
    again = command("--yes")
    assert (again.returncode, again.stdout) == (0, "")
    assert "nothing of alice is stored" in again.stderr


def test_ids_are_of_no_use_to_another(fill: Fill, settings: Settings, database: Database, store: ObjectStore) -> None:
    """A tenant whose name only begins alike is another tenant."""
    fill("alice-2")
    assert Forgetting(settings, database, store).forget("alice", patience=0).counts.total() == 0
    assert isinstance(database.jobs.page("alice-2")[0].id, UUID)

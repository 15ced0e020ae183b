"""The housekeeper's rounds, one at a time, on real servers."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
import redis
from celery import Celery
from kombu.exceptions import KombuError
from redis.exceptions import RedisError
from sqlalchemy import create_engine, text

from api.embedded.servers import Postgres, Valkey
from shared.database import Database, Finish
from shared.database.connections import driver_url
from shared.objects import mark
from shared.objects.datasets import plan_key, preview_key, results_key
from shared.objects.storage import ObjectStore, StoredObject, content_key, file_key
from shared.openai.documents import key_of
from shared.queue import WEBHOOKS_TASK, JobQueue, celery_app, event_channel
from shared.settings import Settings
from tests.support.waiting import PATIENT, eventually
from tuwen.datasets import DatasetRequest
from tuwen.errors import DatabaseUnavailable
from tuwen.jobs import JobRequest, Kind, MatchResult, Status
from workers.datasets.housekeeping import DatasetKeeper
from workers.housekeeper import collection
from workers.housekeeper.housekeeping import Housekeeper, define

TENANT = "t"


class House:
    """A housekeeper with its hands on a clock."""

    def __init__(self, settings: Settings):
        self.database = Database(settings)
        self.queue = JobQueue(settings)
        self.store = ObjectStore.open(settings)
        self.app = celery_app(settings)
        self.keeper = Housekeeper(settings, self.app, DatasetKeeper(settings, self.app))
        self._engine = create_engine(driver_url(settings.database_url), isolation_level="AUTOCOMMIT")

    def submit(self, count: int = 1, kind: str = "generate") -> list[UUID]:
        request = JobRequest.model_validate({"input": {"kind": kind, "prompt": "猫"}})
        return self.database.jobs.submit([request] * count, tenant=TENANT).ids

    def later(self, column: str, seconds: float = 3600) -> None:
        """Let time pass for one column of every job."""
        with self._engine.connect() as connection:
            statement = text(f"UPDATE jobs SET {column} = {column} - :by WHERE {column} IS NOT NULL")
            connection.execute(statement, {"by": timedelta(seconds=seconds)})

    def messages(self) -> int:
        return self.queue.depth()[Kind.GENERATE]

    def objects(self) -> list[StoredObject]:
        """All that is stored but the housekeeper's own mark."""
        return [stored for stored in self.store.list() if stored.key != mark.KEY]

    def status(self, id: UUID) -> Status:
        return self.database.jobs.get(id, TENANT).status

    def close(self) -> None:
        self.queue.close()
        self.database.close()
        self._engine.dispose()


@pytest.fixture
def house(settings: Settings) -> Iterator[House]:
    house = House(settings)
    house.keeper.housekeep()  # gets to know this Redis
    yield house
    house.close()


def test_jobs_that_end_without_a_worker_are_counted(house: House, settings: Settings) -> None:
    house.submit(2)
    house.later("deadline_at", seconds=10 * 86_400)
    house.keeper.housekeep()
    with redis.Redis.from_url(settings.redis_url, decode_responses=True) as client:
        assert client.hgetall("tuwen:metrics:tuwen_jobs_finished") == {"generate/expired": "2"}


class TestDispatch:
    def test_what_was_committed_and_never_published(self, house: House) -> None:
        house.submit(3)
        house.keeper.housekeep()
        assert house.messages() == 0, "not yet: its producer may be about to publish"
        house.later("dispatch_due_at")
        house.keeper.housekeep()
        assert house.messages() == 3
        house.keeper.housekeep()
        assert house.messages() == 3

    def test_a_deep_queue_is_no_loss(self, house: House) -> None:
        submission = house.database.jobs.submit(
            [JobRequest.model_validate({"input": {"kind": "generate", "prompt": "猫"}})] * 20, tenant=TENANT
        )
        house.queue.publish(submission.dispatches)
        for _ in range(3):
            house.later("dispatch_due_at")
            house.keeper.housekeep()
        assert house.messages() == 20

    def test_some_messages_lost_from_a_deep_queue(self, house: House, settings: Settings) -> None:
        submission = house.database.jobs.submit(
            [JobRequest.model_validate({"input": {"kind": "generate", "prompt": "猫"}})] * 20, tenant=TENANT
        )
        house.queue.publish(submission.dispatches)
        with redis.Redis.from_url(settings.redis_url) as client:
            assert client.rpop("tuwen.generate\x06\x164", 5)
        house.later("dispatch_due_at")
        house.keeper.housekeep()
        assert house.messages() == 20

    def test_a_wiped_redis_is_refilled_at_once(self, house: House, settings: Settings) -> None:
        house.submit(4)
        with redis.Redis.from_url(settings.redis_url) as client:
            client.flushdb()
        house.keeper.housekeep()
        assert house.messages() == 4

    def test_a_restarted_redis_is_refilled_at_once(self, house: House, valkey: Valkey) -> None:
        house.submit(4)
        valkey.kill()
        house.keeper.housekeep()  # nothing to publish to: no harm
        valkey.start()
        house.keeper.housekeep()
        assert house.messages() == 4

    def test_not_what_waits_out_a_backoff(self, house: House, settings: Settings) -> None:
        [id] = house.submit()
        house.database.jobs.claim([id], "w")
        house.later("lease_until")
        house.keeper.housekeep()
        assert house.status(id) is Status.QUEUED
        assert house.messages() == 0
        house.later("available_at", 6)
        house.later("dispatch_due_at", 6)
        house.keeper.housekeep()
        assert house.messages() == 1


@contextmanager
def flower_ear(app: Celery, client: redis.Redis) -> Iterator[list[dict[str, Any]]]:
    """Celery events as Flower receives them."""
    events: list[dict[str, Any]] = []
    with app.connection_for_read() as connection:
        receiver = app.events.Receiver(connection, handlers={"*": events.append})

        def listen() -> None:
            with suppress(OSError, RedisError, KombuError):  # the connection is closed under it
                receiver.capture(limit=None, timeout=None, wakeup=False)

        threading.Thread(target=listen, daemon=True).start()
        eventually(lambda: client.pubsub_numpat())
        yield events
        receiver.should_stop = True


def test_lost_jobs_are_announced_to_watchers_and_flower(house: House, settings: Settings) -> None:
    lost, late = house.submit(2)
    house.database.jobs.claim([lost], "w")
    house.later("lease_until")
    with redis.Redis.from_url(settings.redis_url, decode_responses=True) as client, client.pubsub() as watcher:
        watcher.subscribe(event_channel(lost))
        watcher.get_message(timeout=PATIENT)
        with flower_ear(house.app, client) as events:
            house.keeper.housekeep()
            eventually(lambda: events)
        message = watcher.get_message(timeout=PATIENT)
        assert message is not None
        assert message["data"] == '{"status": "queued"}'
    assert [(event["type"], event["uuid"]) for event in events] == [("task-retried", str(lost))]
    assert house.status(late) is Status.QUEUED


def test_only_one_housekeeper_acts(house: House, settings: Settings) -> None:
    [id] = house.submit()
    house.database.jobs.claim([id], "w")
    house.later("lease_until")
    with Database(settings).lead():
        house.keeper.housekeep()
        assert house.status(id) is Status.RUNNING
    house.keeper.housekeep()
    assert house.status(id) is Status.QUEUED


def test_leases_that_ran_out_while_postgresql_was_away_are_not_held_against_workers(
    settings: Settings, postgres: Postgres
) -> None:
    house = House(settings.model_copy(update={"lease": 1.0}))
    [id] = house.submit()
    house.database.jobs.claim([id], "w")
    postgres.kill()
    with pytest.raises(DatabaseUnavailable):
        house.keeper.housekeep()
    postgres.start()
    house.later("lease_until")
    house.keeper.housekeep()
    assert house.status(id) is Status.RUNNING, "its worker has not had the time to renew it"
    eventually(lambda: house.keeper.housekeep() or house.status(id) is Status.QUEUED)
    house.close()


def test_orphaned_objects_are_collected_and_nothing_else(house: House, tmp_path: Path) -> None:
    [id] = house.submit()
    claim = house.database.jobs.claim([id], "w")[id]
    kept = content_key("results", b"kept", ".png")
    house.database.jobs.finish([Finish(id, claim.epoch, MatchResult(score=0.5), kept)])
    uploaded = {"tenant": TENANT, "sha256": "0" * 64, "key": file_key(TENANT, "0" * 64)}
    house.database.files.add(**uploaded, media_type="image/png", width=1, height=1, size=1)
    orphans = [
        content_key("results", b"orphan", ".png"),
        file_key(TENANT, "1" * 64),
        key_of(uuid4(), TENANT),
        plan_key(uuid4(), 3, 1),
        results_key(uuid4(), 3, 12),
        preview_key(uuid4(), 7),
    ]
    # Somebody's own, in the same bucket.
    foreign = ["results/run-7/cat.png", "files/readme", "documents/thesis.jsonl", "datasets/cats/1.png", "mine/cat.png"]
    foreign += [f"datasets/{'0-' * 18}/00000000/plan-1.jsonl", f"results/00/{'0' * 64}.jpg"]
    for key in [kept, uploaded["key"], *orphans, *foreign]:
        orphan(house, tmp_path, key)
    fresh = content_key("results", b"fresh", ".png")
    house.store.put(fresh, b"x", "image/png")
    house.keeper.collect()
    assert {stored.key for stored in house.objects()} == {kept, uploaded["key"], fresh, *foreign}


def test_a_large_storage_is_collected_a_part_at_a_time(
    house: House, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each run looks at four of ten, and the third begins again: the next search finds what came meanwhile."""
    monkeypatch.setattr(collection, "AT_ONCE", 4)
    monkeypatch.setattr(collection, "PAGE", 2)
    keys = [file_key(TENANT, f"{number:064x}") for number in range(5)]
    keys += sorted(content_key("results", bytes([number]), ".png") for number in range(5))
    for key in keys:
        orphan(house, tmp_path, key)
    left = []
    for _ in range(3):
        house.keeper.collect()
        left.append([stored.key for folder in ("files", "results") for stored in house.store.walk(folder)])
    assert left == [keys[4:], keys[8:], []]
    orphan(house, tmp_path, keys[0])
    house.keeper.collect()
    assert house.objects() == []


def test_a_search_that_is_stopped_goes_on_elsewhere(
    house: House, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: Settings
) -> None:
    monkeypatch.setattr(collection, "PAGE", 1)
    for number in range(3):
        orphan(house, tmp_path, file_key(TENANT, f"{number:064x}"))
    house.keeper.stop()
    house.keeper.collect()
    assert len(house.objects()) == 2
    Housekeeper(settings, house.app, DatasetKeeper(settings, house.app)).collect()
    assert house.objects() == []


def test_a_redis_that_forgets_how_far_the_search_came(
    house: House, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(collection, "AT_ONCE", 1)
    monkeypatch.setattr(collection, "PAGE", 1)
    for number in range(2):
        orphan(house, tmp_path, file_key(TENANT, f"{number:064x}"))
    house.keeper.collect()
    with redis.Redis.from_url(settings.redis_url) as client:
        client.flushdb()
    house.keeper.collect()
    assert house.objects() == []


def orphan(house: House, folder: Path, key: str) -> None:
    """Stored long ago, and named by no row."""
    house.store.put(key, b"x", "image/png")
    os.utime(folder / "objects" / key, (0, 0))


def test_what_a_deletion_left_behind_is_collected(house: House, tmp_path: Path) -> None:
    """Its rows went first; then the API died, or a worker stored a result after it had lost the job."""
    gone, kept = (
        house.database.datasets.submit(DatasetRequest(source="/s", destination=f"/out/{name}"), TENANT)
        for name in ("gone", "kept")
    )
    keys = [plan_key(gone, 0, 1), results_key(gone, 0, 1), preview_key(gone, 0), plan_key(kept, 0, 1)]
    for key in keys:
        house.store.put(key, b"x", "application/jsonl")
        os.utime(tmp_path / "objects" / key, (0, 0))
    for id in (gone, kept):
        claim = house.database.datasets.take(id, "h")
        assert claim is not None
        assert house.database.datasets.add_shard(claim, uuid4(), 0, 1, plan_key(id, 0, 1), 0.0)
    house.database.datasets.cancel(gone, TENANT)
    house.database.datasets.delete(gone, TENANT)
    house.keeper.collect()
    assert [stored.key for stored in house.store.list("datasets")] == [plan_key(kept, 0, 1)]


def test_a_task_that_is_still_at_it_is_not_started_again(house: House) -> None:
    """Otherwise receivers of webhooks that answer late would take every thread, and leave none for lost jobs."""
    entered, release = threading.Event(), threading.Event()
    calls = []

    def deliver_slowly() -> None:
        calls.append(1)
        entered.set()
        release.wait(PATIENT)

    house.keeper.deliver_webhooks = deliver_slowly  # type: ignore[method-assign]
    define(house.app, house.keeper, interval=5)
    deliver = house.app.tasks[WEBHOOKS_TASK]
    first = threading.Thread(target=deliver)
    first.start()
    assert entered.wait(PATIENT)
    deliver()
    release.set()
    first.join(PATIENT)
    deliver()
    assert len(calls) == 2

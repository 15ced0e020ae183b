"""Housekeepers that work off batches while what they need, or they themselves, go away."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from uuid import UUID

import pytest
import redis
from openai import OpenAI
from openai.types import Batch

from api.embedded.servers import Postgres, Valkey
from api.openai.documents import document_id
from shared.database.batches import BatchClaim, StoredBatch
from shared.queue import BATCHES_LIST
from shared.settings import Settings
from tests.api.openai.test_batches import IMAGES, answers, chat_line, drawing_line, over, submit, working_off
from tests.support.api_server import serving
from tests.support.plain_sql import Sql
from tests.support.system import TENANT, System, gone, running_system
from tests.support.waiting import eventually
from tuwen.errors import DatabaseUnavailable, QueueUnavailable
from workers.housekeeper import batches
from workers.housekeeper.batches import BatchRunner


@pytest.fixture
def system(settings: Settings, tmp_path: Path) -> Iterator[System]:
    with running_system(settings, tmp_path) as system:
        yield system


@pytest.fixture
def client(system: System) -> Iterator[OpenAI]:
    with serving(system.settings) as url, OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        yield client


def row_of(system: System, batch: Batch) -> StoredBatch:
    return system.database.batches.get(_id(batch), TENANT)


def _id(batch: Batch) -> UUID:
    return document_id(batch.id.replace("batch_", "file-"))


def epoch_of(sql: Sql, batch: Batch) -> int:
    """How often a lease on the batch has begun or ended."""
    [[epoch]] = sql("SELECT epoch FROM batches WHERE id = :id", id=_id(batch))
    return int(epoch)


def end_leases(sql: Sql) -> None:
    """Let the time pass for which a housekeeper that was killed had a batch."""
    sql("UPDATE batches SET due_at = now() WHERE due_at > now()")


def test_a_line_whose_job_was_deleted_says_so(client: OpenAI, system: System, sql: Sql) -> None:
    with working_off(system.settings):
        batch = submit(client, [chat_line(number, number) for number in range(3)])
        system.wait_until(lambda: len(system.database.batches.jobs_under_way(_id(batch))) == 3, "the jobs")
        [[deleted]] = sql("SELECT job_id FROM batch_lines WHERE custom_id = 'request-1'")
        sql("DELETE FROM jobs WHERE id = :id", id=deleted)
        system.worker()
        batch = over(client, batch)
    assert batch.status == "completed"
    assert answers(client, batch.output_file_id).keys() == {"request-0", "request-2"}
    [line] = answers(client, batch.error_file_id).values()
    assert (line["custom_id"], line["error"]["code"]) == ("request-1", "job_deleted")


def test_a_housekeeper_is_killed_and_another_goes_on(client: OpenAI, system: System, sql: Sql) -> None:
    count = 400
    first = system.housekeeper()
    batch = submit(client, [chat_line(number, number % 256) for number in range(count)])
    # No worker yet, so that it cannot be over; some of its lines have become jobs, and others are about to.
    system.wait_until(lambda: system.database.batches.jobs_under_way(_id(batch)), "the first jobs")
    first.kill()
    assert row_of(system, batch).status == "in_progress"
    end_leases(sql)
    second = system.housekeeper()
    system.worker()
    system.wait_until(lambda: row_of(system, batch).completed, "the first answers")
    second.kill()
    end_leases(sql)
    third = system.housekeeper()
    batch = over(client, batch)
    assert batch.status == "completed"
    assert batch.request_counts
    assert batch.request_counts.model_dump() == {"total": count, "completed": count, "failed": 0}
    found = answers(client, batch.output_file_id)  # raises where one was answered twice
    for number in range(count):
        [choice] = found[f"request-{number}"]["response"]["body"]["choices"]
        assert choice["message"]["content"] == f"the colour 0-0-{number % 256}"
    assert len(found) == count
    assert sql("SELECT count(*) FROM jobs") == [(count,)], "a line became two jobs"
    assert third.terminate() == 0


def test_storage_is_away_for_a_while(client: OpenAI, system: System, sql: Sql) -> None:
    count = 300
    keeper = system.housekeeper()
    worker = system.worker()
    batch = submit(client, [chat_line(number, number % 256) for number in range(count)])
    system.wait_until(lambda: system.database.batches.jobs_under_way(_id(batch)), "the first jobs")
    with gone(system.settings):
        time.sleep(3 * system.settings.lease)
        assert row_of(system, batch).status in ("validating", "in_progress")
    batch = over(client, batch)
    assert batch.status == "completed"
    assert batch.request_counts
    assert batch.request_counts.model_dump() == {"total": count, "completed": count, "failed": 0}
    assert len(answers(client, batch.output_file_id)) == count
    assert sql("SELECT max(attempts) FROM jobs") == [(1,)]
    assert keeper.alive
    assert worker.alive


def test_the_api_calls_for_a_housekeeper(client: OpenAI, system: System) -> None:
    with redis.Redis.from_url(system.settings.redis_url) as calls:
        batch = submit(client, [chat_line(0, 0)])
        eventually(lambda: calls.llen(BATCHES_LIST) == 1)
        assert client.batches.retrieve(batch.id).status == "validating"
        assert client.batches.cancel(batch.id).status == "cancelling"
        submit(client, [chat_line(1, 1)])
        with working_off(system.settings):
            assert over(client, batch).status == "cancelled"
            eventually(lambda: calls.llen(BATCHES_LIST) == 0)


def test_a_call_is_answered_at_once(client: OpenAI, system: System, monkeypatch: pytest.MonkeyPatch) -> None:
    # Without a call nobody would look for a minute, which the client of Redis must not find too long.
    monkeypatch.setattr(batches, "_IDLE", 60.0)
    monkeypatch.setattr(batches, "connect", lambda settings: redis.Redis.from_url(settings.redis_url))
    with working_off(system.settings) as runner, redis.Redis.from_url(system.settings.redis_url) as observer:
        eventually(lambda: any(each["cmd"] == "blpop" for each in observer.client_list()))
        batch = submit(client, [chat_line(0, 0)])
        eventually(lambda: system.database.batches.jobs_under_way(_id(batch)))
        runner.stop()
        system.queue.call_for_batches()  # or it would wait until its minute is over


def test_a_step_under_way_comes_to_its_end(client: OpenAI, system: System, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, go_on = threading.Event(), threading.Event()
    steps = []
    step = BatchRunner._step

    def slow_step(self: BatchRunner, batch: BatchClaim) -> None:
        steps.append(batch.status)
        begun.set()
        assert go_on.wait(30)
        step(self, batch)

    monkeypatch.setattr(BatchRunner, "_step", slow_step)
    batch = submit(client, [chat_line(0, 0)])
    with working_off(system.settings) as runner:
        assert begun.wait(30)
        runner.stop()
        go_on.set()
        runner.close(30)
    assert steps == ["validating"]
    assert row_of(system, batch).status == "in_progress"


def test_a_housekeeper_that_is_told_to_stop_stops(client: OpenAI, system: System, sql: Sql) -> None:
    housekeeper = system.housekeeper()
    batch = submit(client, [chat_line(number, 0) for number in range(300)])
    system.wait_until(lambda: row_of(system, batch).status != "validating", "its start")
    housekeeper.signal(signal.SIGTERM)
    assert housekeeper.wait() == 0
    # Nobody has it: who comes next need not wait for the end of a lease.
    assert sql("SELECT due_at <= now() + interval '1 second' FROM batches") == [(True,)]


def test_redis_is_away(client: OpenAI, system: System, valkey: Valkey, sql: Sql) -> None:
    valkey.kill()
    with pytest.raises(QueueUnavailable):
        system.queue.check()
    batch = submit(client, [drawing_line(number) for number in range(3)], IMAGES)
    with working_off(system.settings):
        eventually(lambda: len(system.database.batches.jobs_under_way(_id(batch))) == 3)
        # Whichever housekeeper mends next publishes them.
        eventually(lambda: sql("SELECT bool_and(dispatch_due_at <= now()) FROM jobs") == [(True,)])
        valkey.start()
        system.worker()
        system.housekeeper()
        assert len(answers(client, over(client, batch).output_file_id)) == 3


def test_postgresql_is_away(client: OpenAI, system: System, postgres: Postgres) -> None:
    system.worker()
    with working_off(system.settings.model_copy(update={"lease": 2.0})):
        batch = submit(client, [chat_line(number, number % 256) for number in range(300)])
        system.wait_until(lambda: system.database.batches.jobs_under_way(_id(batch)), "the first jobs")
        postgres.kill()
        with pytest.raises(DatabaseUnavailable):
            system.database.check()
        postgres.start()
        system.housekeeper()
        assert len(answers(client, over(client, batch).output_file_id)) == 300


def test_the_storage_is_away(client: OpenAI, system: System, sql: Sql) -> None:
    system.worker()
    batch = submit(client, [chat_line(number, number) for number in range(5)])
    folder = Path(system.settings.storage_url.removeprefix("file://"))
    elsewhere = folder.with_name("elsewhere")
    folder.rename(elsewhere)
    # Opened before: who opens a store makes its folder.
    with working_off(system.settings.model_copy(update={"lease": 1.0})):
        folder.rmdir()
        eventually(lambda: epoch_of(sql, batch) > 1)  # tried, and tried again
        assert row_of(system, batch).status == "validating"
        elsewhere.rename(folder)
        batch = over(client, batch)
    assert batch.status == "completed"
    assert len(answers(client, batch.output_file_id)) == 5


def test_a_step_longer_than_its_lease_keeps_the_batch(
    client: OpenAI, system: System, monkeypatch: pytest.MonkeyPatch, sql: Sql
) -> None:
    """Its heartbeat renews the lease, and does not put off the step after it."""
    slow = threading.Event()
    step = BatchRunner._validate

    def take_long(self: BatchRunner, batch: BatchClaim) -> None:
        slow.wait(3.0)
        step(self, batch)

    monkeypatch.setattr(BatchRunner, "_validate", take_long)
    system.worker()
    impatient = {"lease": 1.0, "heartbeat": 0.2}
    batch = submit(client, [chat_line(number, number) for number in range(5)])
    with working_off(system.settings.model_copy(update=impatient)):
        eventually(lambda: epoch_of(sql, batch) == 1)
        for _ in range(8):
            assert system.database.batches.take(0.1) is None
            slow.wait(0.2)
        slow.set()
        assert len(answers(client, over(client, batch).output_file_id)) == 5

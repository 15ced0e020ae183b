"""No job is lost, whatever dies: real workers, real housekeepers, real servers, real signals.

Each fault ends with every job over, none lost, none done twice in effect: a job ends once, with the result that
its seed determines, and owes one webhook.
"""

from __future__ import annotations

import json
import pickle
import signal
import time
from uuid import uuid4

import redis
from sqlalchemy import create_engine, text

from api.embedded.servers import Postgres, Valkey
from shared.database.connections import driver_url
from shared.queue import queue_name
from tests.support.system import System, freeze
from tuwen.jobs import GenerateResult, Job, Kind, Status

SLOW = "sleep 1"


def assert_all_succeeded(system: System, jobs: list[Job]) -> None:
    """Assert that each job succeeded once, with its own seed's picture and one ending."""
    assert {job.status for job in jobs} == {Status.SUCCEEDED}, [(job.status, job.error) for job in jobs]
    for job in jobs:
        assert isinstance(job.result, GenerateResult)
        assert job.result.seed == job.id.int % 2**53
    engine = create_engine(driver_url(system.settings.database_url))
    with engine.connect() as connection:
        [owed] = connection.execute(text("SELECT count(*) FROM webhooks")).one()
    engine.dispose()
    assert owed == len(jobs)


def submit(system: System, *prompts: str) -> list:
    return system.submit(*prompts, webhook="https://example.com/hook")


def test_worker_is_killed_in_a_batch(system: System) -> None:
    system.housekeeper()
    worker = system.worker("first")
    ids = submit(system, *[SLOW] * 40)
    system.wait_until(lambda: any(map(system.queue.progress, ids)), "a batch that runs")
    worker.kill()
    system.worker("second")
    jobs = system.wait_until_finished(ids)
    assert_all_succeeded(system, jobs)
    assert max(job.attempts for job in jobs) > 1


def test_engine_process_is_killed(system: System) -> None:
    system.housekeeper()
    worker = system.worker()
    before = worker.engine.pid
    ids = submit(system, *[SLOW] * 20)
    system.wait_until_running(ids, at_least=8)
    worker.engine.kill()
    assert_all_succeeded(system, system.wait_until_finished(ids))
    assert worker.alive
    assert worker.engine.pid != before


def test_worker_sleeps_past_its_lease_and_wakes_up(system: System) -> None:
    system.housekeeper()
    sleeper = system.worker("sleeper")
    ids = submit(system, *[SLOW] * 8)
    system.wait_until_running(ids)
    sleeper.signal(signal.SIGSTOP)
    system.worker("other")
    jobs = system.wait_until_finished(ids)
    sleeper.signal(signal.SIGCONT)
    # It wakes up with results in its hands that nobody wants any more, and goes on working.
    more = submit(system, *["cat"] * 20)
    assert_all_succeeded(system, jobs + system.wait_until_finished(more))
    assert system.jobs(ids) == jobs
    assert sleeper.alive


def test_redis_is_killed_and_restarted(system: System, valkey: Valkey) -> None:
    system.housekeeper()
    worker = system.worker()
    before = submit(system, *[SLOW] * 40)
    system.wait_until_running(before)
    valkey.kill()
    during = submit(system, *["cat"] * 10)
    valkey.start()
    after = submit(system, *["cat"] * 10)
    assert_all_succeeded(system, system.wait_until_finished(before + during + after))
    assert worker.alive


def test_redis_forgets_everything(system: System) -> None:
    system.housekeeper()
    ids = submit(system, *["cat"] * 50)
    with redis.Redis.from_url(system.settings.redis_url) as client:
        system.wait_until(lambda: client.llen("tuwen.generate\x06\x164"), "messages")
        client.flushdb()
    system.worker()
    assert_all_succeeded(system, system.wait_until_finished(ids))


def test_postgres_is_restarted(system: System, postgres: Postgres) -> None:
    system.housekeeper()
    worker = system.worker()
    ids = submit(system, *[SLOW] * 40)
    system.wait_until_running(ids)
    postgres.kill()
    postgres.start()
    more = submit(system, *["cat"] * 10)
    assert_all_succeeded(system, system.wait_until_finished(ids + more))
    assert worker.alive


def test_postgres_is_silent_for_longer_than_a_lease(system: System, postgres: Postgres) -> None:
    """Frozen, or beyond a network that swallows everything: no connection breaks."""
    keeper, worker = system.housekeeper(), system.worker()
    ids = submit(system, *[SLOW] * 40)
    system.wait_until_running(ids, at_least=16)
    with freeze(postgres.pid):
        system.wait_until(lambda: not system.has_database(), "somebody who gives up")
        time.sleep(system.settings.lease)
    system.wait_until(system.has_database, "PostgreSQL")
    more = submit(system, *["cat"] * 10)
    assert_all_succeeded(system, system.wait_until_finished(ids + more))
    assert worker.alive
    assert keeper.alive


def test_worker_is_asked_to_stop_in_a_batch(system: System) -> None:
    system.housekeeper()
    worker = system.worker("first")
    ids = submit(system, *["sleep 2"] * 40)
    system.wait_until_running(ids, at_least=16)
    assert worker.terminate() == 0
    statuses = system.statuses(ids)
    assert Status.SUCCEEDED in statuses, "the running batch was finished"
    assert Status.QUEUED in statuses, "what waited went back"
    assert Status.RUNNING not in statuses, "nothing is left to its lease"
    assert system.database.workers.alive() == []
    system.worker("second")
    jobs = system.wait_until_finished(ids)
    assert_all_succeeded(system, jobs)
    assert {job.attempts for job in jobs} == {1}, "a stop costs no attempt"


def test_poison_is_quarantined_and_its_neighbours_unharmed(system: System) -> None:
    system.housekeeper()
    worker = system.worker()
    poison, *neighbours = submit(system, "crash", *["cat"] * 30)
    [dead] = system.wait_until_finished([poison])
    assert dead.status is Status.QUARANTINED
    assert dead.attempts == 3
    assert dead.error is not None
    assert dead.error.code == "engine_crashed"
    jobs = system.wait_until_finished(neighbours)
    assert {job.status for job in jobs} == {Status.SUCCEEDED}
    assert max(job.attempts for job in jobs) <= 2, "only the first crash was shared"
    assert worker.alive


def test_a_job_is_cancelled_while_it_runs(system: System) -> None:
    system.worker()
    [id] = submit(system, "sleep 30")
    system.wait_until_running([id])
    system.database.jobs.cancel(id, "local")
    system.queue.request_cancel(id)
    [job] = system.wait_until_finished([id])
    assert job.status is Status.CANCELLED


def test_garbage_in_redis(system: System) -> None:
    """Anybody who reaches Redis can waste a worker's time, and nothing else."""
    system.housekeeper()
    worker = system.worker()
    [over] = submit(system, "cat")
    system.wait_until_finished([over])
    queue = queue_name(Kind.GENERATE)
    with redis.Redis.from_url(system.settings.redis_url) as client:
        client.lpush(queue, b"garbage", b"{}", b"[]", pickle.dumps({"x": 1}))
        for headers, body, content_type in (
            ({"task": "os.system", "id": str(uuid4())}, [["echo"], {}, {}], "application/json"),
            ({"task": queue, "id": str(uuid4())}, [["not an id"], {}, {}], "application/json"),
            ({"task": queue, "id": str(uuid4())}, [[str(uuid4())], {}, {}], "application/json"),
            ({"task": queue, "id": str(over)}, [[str(over)], {}, {}], "application/json"),
            ({"task": queue, "id": str(uuid4())}, [[{"a": 1}, 2, 3], {"b": []}, {}], "application/json"),
            ({"task": queue, "id": str(uuid4())}, "cos\nsystem\n", "application/x-python-serialize"),
        ):
            client.lpush(queue, json.dumps(_envelope(headers, body, content_type, queue)))
    ids = submit(system, *["cat"] * 10)
    jobs = system.wait_until_finished([over, *ids])
    assert_all_succeeded(system, jobs)
    assert jobs[0].attempts == 1
    assert worker.alive


def _envelope(headers: dict, body: object, content_type: str, queue: str) -> dict:
    """A message as kombu's Redis transport writes it."""
    return {
        "body": body if isinstance(body, str) else json.dumps(body),
        "content-type": content_type,
        "content-encoding": "utf-8",
        "headers": {"lang": "py", "argsrepr": "", "kwargsrepr": "", **headers},
        "properties": {
            "correlation_id": headers["id"],
            "delivery_mode": 2,
            "delivery_info": {"exchange": "", "routing_key": queue},
            "priority": 0,
            "delivery_tag": str(uuid4()),
        },
    }


def test_a_job_that_kills_its_worker_condemns_no_other(system: System) -> None:
    """What was in the running batch is suspect and runs alone; all else goes back as if nothing had been."""
    system.housekeeper()
    worker = system.worker()
    ids = submit(system, *["cat"] * 50, "murder", *["cat"] * 50)
    poison = ids[50]
    deaths = 0
    while any(not status.terminal for status in system.statuses(ids)):
        if not worker.alive:
            deaths += 1
            worker = system.start("worker", "--name", "w")
        time.sleep(0.2)
    jobs = {job.id: job for job in system.jobs(ids)}
    dead = jobs.pop(poison)
    assert (dead.status, dead.attempts, deaths) == (Status.QUARANTINED, 3, 3)
    assert dead.error is not None
    assert dead.error.code == "worker_lost"
    assert {job.status for job in jobs.values()} == {Status.SUCCEEDED}
    charged = [job for job in jobs.values() if job.attempts > 1]
    assert len(charged) <= 15, "those that shared its first batch, which holds 16"
    assert {job.attempts for job in charged} <= {2}, "and they only once"

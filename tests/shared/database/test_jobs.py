"""Every transition of a job, against a real PostgreSQL."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from uuid import UUID, uuid4

import pytest
from alembic import command
from sqlalchemy import create_engine, text

from shared.database import Database, Finish, GiveBack, JobClaim, connections
from shared.database.connections import driver_url
from shared.database.jobs import MOST_LOSSES, SUSPICIOUS_LOSSES
from shared.database.workers import ServedModel
from shared.migrations import _config, is_current, migrate
from shared.settings import Settings
from tests.support.plain_sql import Sql, plain_sql
from tests.support.servers import Postgres
from tuwen.errors import (
    ConfigurationError,
    Conflict,
    DatabaseUnavailable,
    IdempotencyMismatch,
    InvalidRequest,
    NotFound,
    QuotaExceeded,
)
from tuwen.jobs import Candidate, GenerateResult, JobError, JobRequest, Kind, MatchResult, Status, StoredImage

BOOM = JobError(code="boom", detail="It broke.", retryable=True)
RESULT = MatchResult(score=0.5)
HOOK = "https://example.com/hook"


@pytest.fixture
def database(settings: Settings) -> Iterator[Database]:
    database = Database(settings.model_copy(update={"max_crashes": 3, "retry_backoff": 5.0}))
    yield database
    database.close()


def request(**fields: object) -> JobRequest:
    return JobRequest.model_validate({"input": {"kind": "generate", "prompt": "一只黑色的猫"}, **fields})


def submit(database: Database, count: int = 1, tenant: str = "t", **fields: object) -> list[UUID]:
    return database.jobs.submit([request(**fields)] * count, tenant=tenant).ids


def claim(database: Database, id: UUID, worker: str = "w") -> JobClaim:
    return database.jobs.claim([id], worker)[id]


def rewind(sql: Sql, id: UUID, column: str, by: float = 3600.0) -> None:
    sql(f"UPDATE jobs SET {column} = {column} - :by WHERE id = :id", by=timedelta(seconds=by), id=id)


class TestSchema:
    def test_older_jobs_learn_how_much_time_they_were_given(self, postgres: Postgres, settings: Settings) -> None:
        url = postgres.create_database("older", template="template0")
        command.upgrade(_config(url), "0004")
        with plain_sql(settings.model_copy(update={"database_url": url})) as sql:
            sql("""
                INSERT INTO jobs (
                    id, tenant, kind, model, priority, request, max_attempts, dispatch_due_at, deadline_at
                ) VALUES (
                    gen_random_uuid(), 't', 'generate', 'builtin', 5, '{}', 5, now(), now() + interval '90 seconds'
                )
            """)
            command.upgrade(_config(url), "0005")
            assert sql("SELECT deadline FROM jobs") == [(90.0,)]
        postgres.drop_database("older")

    def test_models_and_migrations_agree(self, settings: Settings) -> None:
        assert is_current(settings.database_url)
        command.check(_config(settings.database_url))

    def test_downgrade_and_upgrade_again(self, database: Database, settings: Settings) -> None:
        command.downgrade(_config(settings.database_url), "base")
        assert not is_current(settings.database_url)
        with pytest.raises(DatabaseUnavailable, match="tuwen migrate"):
            database.check()
        command.upgrade(_config(settings.database_url), "head")
        assert is_current(settings.database_url)

    def test_a_release_that_is_too_old_is_refused_by_all_that_would_use_it(
        self, settings: Settings, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(connections, "OLDEST_RELEASE", 99)
        said = r"This is PostgreSQL 1\d, and Tuwen needs 99 or newer"
        with pytest.raises(ConfigurationError, match=said):
            migrate(settings.database_url)
        with pytest.raises(ConfigurationError, match=said):
            connections.require_supported(settings.database_url)
        database = Database(settings)
        with pytest.raises(DatabaseUnavailable, match=said):  # what /readyz and a worker that starts ask
            database.check()
        database.close()
        connections.require_supported("postgresql://nobody@127.0.0.1:9/nothing")  # it may be supported when it comes

    @pytest.mark.parametrize(
        "broken",
        [
            "status = 'running'",
            "status = 'succeeded', finished_at = now()",
            "status = 'failed', finished_at = now()",
            "status = 'cancelled'",
            "finished_at = now()",
            "status = 'nonsense'",
            "kind = 'nonsense'",
            "priority = 10",
        ],
    )
    def test_states_that_cannot_be(self, database: Database, sql: Sql, broken: str) -> None:
        [id] = submit(database)
        with pytest.raises(Exception, match="violates check constraint"):
            sql(f"UPDATE jobs SET {broken} WHERE id = :id", id=id)

    def test_a_full_disk_is_said(self, database: Database) -> None:
        """With the SQLSTATE of a PostgreSQL that cannot extend a file."""
        full = text("DO $$ BEGIN RAISE EXCEPTION USING ERRCODE = '53100', MESSAGE = 'could not extend file'; END $$")
        with pytest.raises(DatabaseUnavailable, match="disk with PostgreSQL's data is full"):
            database._connections.run(full)

    def test_a_heartbeat_touches_no_index(self, database: Database, sql: Sql) -> None:
        """PostgreSQL can keep such an update heap-only."""
        indexes = [row.indexdef for row in sql("SELECT indexdef FROM pg_indexes WHERE tablename = 'jobs'")]
        assert len(indexes) > 3
        assert not [index for index in indexes if "lease_until" in index]


class TestSubmission:
    def test_a_new_job(self, database: Database) -> None:
        [id] = submit(database, priority=7, deadline=60.0)
        job = database.jobs.get(id, "t")
        assert (job.status, job.kind, job.model, job.priority) == (Status.QUEUED, Kind.GENERATE, "builtin", 7)
        assert job.deadline_at - job.created_at == timedelta(seconds=60)
        assert job.input["prompt"] == "一只黑色的猫"

    def test_many_keep_their_order(self, database: Database) -> None:
        submission = database.jobs.submit([request(priority=n % 10) for n in range(50)], tenant="t")
        jobs = database.jobs.get_many(submission.ids, "t")
        assert [job.priority for job in jobs] == [n % 10 for n in range(50)]
        assert [dispatch.id for dispatch in submission.dispatches] == submission.ids

    def test_idempotency(self, database: Database) -> None:
        first = database.jobs.submit([request()], tenant="t", idempotency_key="k", body_sha256="a")
        again = database.jobs.submit([request()], tenant="t", idempotency_key="k", body_sha256="a")
        assert (again.ids, again.replayed, again.dispatches) == (first.ids, True, [])
        with pytest.raises(IdempotencyMismatch):
            database.jobs.submit([request()], tenant="t", idempotency_key="k", body_sha256="b")
        other = database.jobs.submit([request()], tenant="other", idempotency_key="k", body_sha256="b")
        assert other.ids != first.ids

    def test_idempotency_under_concurrency(self, database: Database) -> None:
        def once(_: int) -> UUID:
            return database.jobs.submit([request()], tenant="t", idempotency_key="k", body_sha256="a").ids[0]

        with ThreadPoolExecutor(16) as pool:
            assert len(set(pool.map(once, range(40)))) == 1
        assert len(database.jobs.page("t")) == 1

    def test_a_refused_submission_leaves_its_key_unused(self, database: Database) -> None:
        with pytest.raises(QuotaExceeded):
            database.jobs.submit([request()] * 2, tenant="t", quota=1, idempotency_key="k", body_sha256="a")
        assert not database.jobs.submit([request()], tenant="t", quota=1, idempotency_key="k", body_sha256="b").replayed

    def test_quota_is_exact_under_concurrency(self, database: Database) -> None:
        def attempt(_: int) -> bool:
            try:
                database.jobs.submit([request()], tenant="t", quota=10)
            except QuotaExceeded:
                return False
            return True

        with ThreadPoolExecutor(16) as pool:
            assert sum(pool.map(attempt, range(50))) == 10
        database.jobs.submit([request()], tenant="other", quota=1)

    def test_finished_jobs_do_not_count(self, database: Database) -> None:
        for _ in range(3):
            [id] = database.jobs.submit([request()], tenant="t", quota=1).ids
            database.jobs.cancel(id, "t")


class TestClaim:
    def test_only_one_gets_it(self, database: Database) -> None:
        ids = submit(database, 20)

        def attempt(worker: int) -> int:
            return len(database.jobs.claim(ids, str(worker)))

        with ThreadPoolExecutor(8) as pool:
            assert sum(pool.map(attempt, range(8))) == 20

    def test_not_before_it_is_available(self, database: Database) -> None:
        [id] = submit(database)
        database.jobs.give_back([GiveBack(id, claim(database, id).epoch, "retry", BOOM)])
        assert database.jobs.claim([id], "w") == {}

    def test_not_what_is_over_unknown_or_past_its_deadline(self, database: Database, sql: Sql) -> None:
        cancelled, late = submit(database, 2)
        database.jobs.cancel(cancelled, "t")
        rewind(sql, late, "deadline_at", 2 * 86_400)
        assert database.jobs.claim([cancelled, late, uuid4()], "w") == {}

    def test_an_epoch_is_never_given_twice(self, database: Database, postgres: Postgres) -> None:
        """PostgreSQL is killed right after a claim, and its worker does not know."""
        [id] = submit(database)
        held = claim(database, id)
        postgres.kill()
        postgres.start()
        database.check()
        assert database.jobs.get(id, "t").status is Status.RUNNING
        assert database.jobs.renew({id: held.epoch}, "w").lost == frozenset()

    def test_what_the_worker_is_told(self, database: Database) -> None:
        [id] = submit(database)
        held = claim(database, id)
        assert (held.epoch, held.attempts, held.crashes, held.tenant) == (1, 1, 0, "t")
        assert held.request.items() >= {"kind": "generate", "prompt": "一只黑色的猫"}.items()
        assert held.waited >= 0


class TestEnding:
    def test_success(self, database: Database) -> None:
        [id] = submit(database)
        held = claim(database, id)
        assert database.jobs.finish([Finish(id, held.epoch, RESULT, "results/x")]) == {id: Status.SUCCEEDED}
        job = database.jobs.get(id, "t")
        assert (job.status, job.result, job.worker) == (Status.SUCCEEDED, RESULT, "w")
        assert job.finished_at is not None

    def test_failure(self, database: Database) -> None:
        [id] = submit(database)
        database.jobs.finish([Finish(id, claim(database, id).epoch, error=BOOM)])
        job = database.jobs.get(id, "t")
        assert (job.status, job.error) == (Status.FAILED, BOOM)

    def test_a_stale_worker_changes_nothing(self, database: Database) -> None:
        [id] = submit(database)
        stale = claim(database, id, "stale")
        database.jobs.give_back([GiveBack(id, stale.epoch, "released")])
        fresh = claim(database, id, "fresh")
        assert database.jobs.finish([Finish(id, stale.epoch, RESULT)]) == {}
        assert database.jobs.give_back([GiveBack(id, stale.epoch, "crash", BOOM)]) == {}
        assert database.jobs.renew({id: stale.epoch}, "stale").lost == {id}
        assert database.jobs.get(id, "t").worker == "fresh"
        assert database.jobs.finish([Finish(id, fresh.epoch, RESULT)]) == {id: Status.SUCCEEDED}
        assert database.jobs.finish([Finish(id, fresh.epoch, error=BOOM)]) == {}
        assert database.jobs.get(id, "t").result == RESULT

    def test_release_costs_nothing(self, database: Database) -> None:
        [id] = submit(database, max_attempts=1)
        for _ in range(3):
            assert database.jobs.give_back([GiveBack(id, claim(database, id).epoch, "released")]) == {id: Status.QUEUED}
        assert database.jobs.get(id, "t").attempts == 0

    def test_retries_back_off_and_are_spent(self, database: Database, sql: Sql) -> None:
        [id] = submit(database, max_attempts=3)
        for wait in (5, 10):
            assert database.jobs.give_back([GiveBack(id, claim(database, id).epoch, "retry", BOOM)]) == {
                id: Status.QUEUED
            }
            [[backoff]] = sql("SELECT available_at - now() FROM jobs WHERE id = :id", id=id)
            assert timedelta(seconds=wait - 2) < backoff <= timedelta(seconds=wait)
            rewind(sql, id, "available_at")
        assert database.jobs.give_back([GiveBack(id, claim(database, id).epoch, "retry", BOOM)]) == {id: Status.FAILED}
        assert database.jobs.get(id, "t").error == BOOM

    def test_third_crash_is_quarantine(self, database: Database, sql: Sql) -> None:
        [id] = submit(database)
        for expected in (Status.QUEUED, Status.QUEUED, Status.QUARANTINED):
            assert database.jobs.give_back([GiveBack(id, claim(database, id).epoch, "crash", BOOM)]) == {id: expected}
            rewind(sql, id, "available_at")

    def test_many_at_once(self, database: Database) -> None:
        ids = submit(database, 4)
        held = database.jobs.claim(ids, "w")
        endings = [Finish(id, held[id].epoch, RESULT) for id in ids[:2]]
        endings.append(Finish(ids[2], held[ids[2]].epoch, error=BOOM))
        endings.append(Finish(ids[3], held[ids[3]].epoch + 1, RESULT))
        assert database.jobs.finish(endings) == {
            ids[0]: Status.SUCCEEDED,
            ids[1]: Status.SUCCEEDED,
            ids[2]: Status.FAILED,
        }


class TestCancelAndRetry:
    def test_queued_is_cancelled_at_once(self, database: Database) -> None:
        [id] = submit(database)
        assert database.jobs.cancel(id, "t") is Status.CANCELLED
        with pytest.raises(Conflict, match="already cancelled"):
            database.jobs.cancel(id, "t")

    def test_running_is_flagged_and_its_worker_learns_it(self, database: Database) -> None:
        [id] = submit(database)
        held = claim(database, id)
        assert database.jobs.renew({id: held.epoch}, "w").cancelled == frozenset()
        assert database.jobs.cancel(id, "t") is Status.RUNNING
        assert database.jobs.get(id, "t").cancel_requested
        assert database.jobs.renew({id: held.epoch}, "w").cancelled == {id}
        assert database.jobs.give_back([GiveBack(id, held.epoch, "cancelled")]) == {id: Status.CANCELLED}

    def test_a_cancelled_job_is_not_tried_again(self, database: Database) -> None:
        [id] = submit(database)
        held = claim(database, id)
        database.jobs.cancel(id, "t")
        assert database.jobs.give_back([GiveBack(id, held.epoch, "retry", BOOM)]) == {id: Status.CANCELLED}

    def test_other_tenants_see_nothing(self, database: Database) -> None:
        [id] = submit(database)
        for act in (database.jobs.get, database.jobs.cancel, database.jobs.retry):
            with pytest.raises(NotFound):
                act(id, "other")
        assert database.jobs.page("other") == []

    def test_retry_starts_afresh(self, database: Database) -> None:
        [id] = submit(database)
        database.jobs.finish([Finish(id, claim(database, id).epoch, error=BOOM)])
        assert database.jobs.retry(id, "t").id == id
        job = database.jobs.get(id, "t")
        assert (job.status, job.attempts, job.error, job.finished_at) == (Status.QUEUED, 0, None, None)
        with pytest.raises(Conflict, match="is queued"):
            database.jobs.retry(id, "t")
        database.jobs.finish([Finish(id, claim(database, id).epoch, RESULT)])
        with pytest.raises(Conflict, match="is succeeded"):
            database.jobs.retry(id, "t")

    def test_each_retry_gives_as_much_time_as_the_first_submission(self, database: Database, sql: Sql) -> None:
        [id] = submit(database, deadline=60.0)
        for _ in range(2):
            rewind(sql, id, "deadline_at", 90)
            assert database.jobs.expire_queued() == [id]
            database.jobs.retry(id, "t")
            [[left]] = sql("SELECT deadline_at - now() FROM jobs WHERE id = :id", id=id)
            assert timedelta(seconds=50) < left <= timedelta(seconds=60)

    def test_retry_keeps_the_quota(self, database: Database) -> None:
        first, _ = submit(database, 2)
        database.jobs.cancel(first, "t")
        with pytest.raises(QuotaExceeded):
            database.jobs.retry(first, "t", quota=1)
        assert database.jobs.get(first, "t").status is Status.CANCELLED
        database.jobs.retry(first, "t", quota=2)

    def test_an_old_epoch_stays_stale_after_a_retry(self, database: Database) -> None:
        [id] = submit(database)
        stale = claim(database, id)
        database.jobs.finish([Finish(id, stale.epoch, error=BOOM)])
        database.jobs.retry(id, "t")
        claim(database, id)
        assert database.jobs.finish([Finish(id, stale.epoch, RESULT)]) == {}


class TestHousekeeping:
    def test_rescue_takes_back_expired_leases_only(self, database: Database, sql: Sql) -> None:
        dead, alive = submit(database, 2)
        database.jobs.claim([dead, alive], "w")
        rewind(sql, dead, "lease_until")
        assert database.jobs.rescue() == {dead: Status.QUEUED}
        job = database.jobs.get(dead, "t")
        assert job.error is not None
        assert job.error.code == "worker_lost"
        assert database.jobs.get(alive, "t").status is Status.RUNNING

    def test_rescue_ends_what_was_cancelled_or_is_late(self, database: Database, sql: Sql) -> None:
        cancelled, late = submit(database, 2)
        database.jobs.claim([cancelled, late], "w")
        database.jobs.cancel(cancelled, "t")
        rewind(sql, cancelled, "lease_until")
        rewind(sql, late, "deadline_at", 2 * 86_400)
        assert database.jobs.rescue() == {cancelled: Status.CANCELLED, late: Status.EXPIRED}
        assert database.jobs.get(late, "t").error is None, "its worker was there all the time"

    def test_rescue_leaves_alone_what_its_worker_is_just_changing(
        self, database: Database, sql: Sql, settings: Settings
    ) -> None:
        [id] = submit(database)
        claim(database, id)
        rewind(sql, id, "lease_until")
        engine = create_engine(driver_url(settings.database_url))
        with engine.begin() as connection:
            connection.execute(text("UPDATE jobs SET lease_until = now() + interval '1 minute'"))
            assert database.jobs.rescue() == {}
        engine.dispose()
        assert database.jobs.rescue() == {}

    def test_three_lost_workers_quarantine(self, database: Database, sql: Sql) -> None:
        [id] = submit(database)
        for expected in (Status.QUEUED, Status.QUEUED, Status.QUARANTINED):
            claim(database, id)
            rewind(sql, id, "lease_until")
            assert database.jobs.rescue() == {id: expected}
            rewind(sql, id, "available_at")

    def test_only_the_running_batch_of_a_dead_worker_is_suspect(self, database: Database, sql: Sql) -> None:
        ids = submit(database, 4, max_attempts=1)
        held = database.jobs.claim(ids, "w")
        run = uuid4()
        database.workers.tell_running(run, "w", {ids[0]: held[ids[0]].epoch})
        told = {ids[1]: held[ids[1]].epoch, ids[2]: held[ids[2]].epoch - 1}
        database.workers.tell_running(run, "w", told)
        # Its successor of the same name tells of another batch before anybody has noticed.
        database.workers.tell_running(uuid4(), "w", {})
        for id in ids:
            rewind(sql, id, "lease_until")
        assert set(database.jobs.rescue()) == set(ids)
        jobs = database.jobs.get_many(ids, "t")
        assert [job.status for job in jobs] == [Status.QUEUED, Status.FAILED, Status.QUEUED, Status.QUEUED]
        assert [job.attempts for job in jobs] == [0, 1, 0, 0], "the others wait as if nothing had been"
        again = database.jobs.claim(ids, "v")
        assert sorted(again) == [ids[0], ids[2], ids[3]], "they may run at once"
        assert {(claim.crashes, claim.losses) for claim in again.values()} == {(0, 1)}

    def test_who_is_there_whenever_a_worker_dies_becomes_a_suspect(self, database: Database, sql: Sql) -> None:
        """It may kill while it is prepared or stored, and never be in a batch."""
        [id] = submit(database)
        seen = []
        while database.jobs.get(id, "t").status is Status.QUEUED:
            held = claim(database, id)
            seen.append((held.losses, held.is_suspect))
            database.workers.tell_running(uuid4(), "w", {})
            rewind(sql, id, "lease_until")
            database.jobs.rescue()
            rewind(sql, id, "available_at")
        assert seen[: SUSPICIOUS_LOSSES + 1] == [(0, False), (1, False), (2, False), (3, True)]
        assert len(seen) == MOST_LOSSES + 3
        assert database.jobs.get(id, "t").status is Status.QUARANTINED
        database.jobs.retry(id, "t")
        assert not claim(database, id).is_suspect

    def test_what_was_told_is_forgotten_with_its_worker(self, database: Database, sql: Sql) -> None:
        database.workers.register("w", "cpu", {})
        earlier, now = uuid4(), uuid4()
        database.workers.tell_running(earlier, "w", {})
        sql("UPDATE running_batches SET told_at = now() - interval '3 hours'")
        database.workers.tell_running(now, "w", {})
        sql("UPDATE running_batches SET told_at = told_at - interval '2 hours' WHERE run = :run", run=now)
        database.workers.forget()
        assert sql("SELECT run FROM running_batches") == [(now,)], "it is only idle"
        database.workers.unregister("w")
        database.workers.forget()
        assert sql("SELECT run FROM running_batches") == []

    def test_queued_jobs_expire(self, database: Database, sql: Sql) -> None:
        late, timely = submit(database, 2)
        rewind(sql, late, "deadline_at", 2 * 86_400)
        assert database.jobs.expire_queued() == [late]
        assert database.jobs.get(timely, "t").status is Status.QUEUED

    def test_due_jobs_are_taken_once(self, database: Database) -> None:
        ids = submit(database, 5)
        assert database.jobs.take_due(Kind.GENERATE, 10) == []
        assert database.jobs.mark_all_due() == 5
        assert database.jobs.take_due(Kind.DESCRIBE, 10) == []
        taken = [job.id for most in (2, 10, 10) for job in database.jobs.take_due(Kind.GENERATE, most)]
        assert sorted(taken) == sorted(ids)

    def test_urgent_ones_are_taken_first(self, database: Database) -> None:
        submit(database, 3, priority=1)
        [urgent] = submit(database, priority=9)
        database.jobs.mark_all_due()
        assert [job.id for job in database.jobs.take_due(Kind.GENERATE, 1)] == [urgent]

    def test_one_that_is_overdue_for_longest_is_taken_before_more_urgent_ones(
        self, database: Database, sql: Sql
    ) -> None:
        """Behind a long queue of urgent jobs, which are due as well, a lost message must not be forgotten."""
        [lost] = submit(database, priority=0)
        urgent = submit(database, 20, priority=9)
        database.jobs.mark_all_due()
        rewind(sql, lost, "dispatch_due_at", 60)
        taken = [job.id for job in database.jobs.take_due(Kind.GENERATE, 5)]
        assert len(taken) == 5
        assert lost in taken
        assert set(taken) < {lost, *urgent}
        assert {job.id for job in database.jobs.take_due(Kind.GENERATE, 100)} == set(urgent) - set(taken)

    def test_dispatch_now(self, database: Database) -> None:
        [id] = submit(database)
        database.jobs.dispatch_now([id])
        assert [job.id for job in database.jobs.take_due(Kind.GENERATE, 10)] == [id]

    def test_queue_states(self, database: Database, sql: Sql) -> None:
        waiting, running, backing_off = submit(database, 3)
        claim(database, running)
        database.jobs.give_back([GiveBack(backing_off, claim(database, backing_off).epoch, "retry", BOOM)])
        rewind(sql, waiting, "available_at", 100)
        state = database.jobs.queues()[Kind.GENERATE]
        assert (state.queued, state.ready, state.running) == (2, 1, 1)
        assert 100 <= state.oldest_age < 200
        assert database.jobs.queues()[Kind.MATCH].queued == 0

    def test_one_housekeeper_leads(self, database: Database, settings: Settings) -> None:
        other = Database(settings)
        with database.lead() as first, other.lead() as second:
            assert (first, second) == (True, False)
        with other.lead() as later:
            assert later
        other.close()

    def test_unreferenced_objects(self, database: Database) -> None:
        [id] = submit(database)
        database.jobs.finish([Finish(id, claim(database, id).epoch, RESULT, "results/kept")])
        database.files.add(
            tenant="t", sha256="0" * 64, key="files/kept", media_type="image/png", width=1, height=1, size=1
        )
        assert database.jobs.unreferenced(["results/kept", "files/kept", "results/orphan"]) == ["results/orphan"]

    def test_all_images_of_the_candidates_are_referenced(self, database: Database) -> None:
        [id] = submit(database)
        images = [StoredImage(key=f"results/{name}", sha256=name, width=8, height=8) for name in "ab"]
        candidates = tuple(Candidate(seed=seed, score=0.5, image=image) for seed, image in enumerate(images))
        result = GenerateResult(image=images[0], seed=0, score=0.5, candidates=candidates)
        database.jobs.finish([Finish(id, claim(database, id).epoch, result, "results/a")])
        assert database.jobs.unreferenced(["results/a", "results/b", "results/c"]) == ["results/c"]


class TestWebhooks:
    def test_owed_when_the_job_ends_and_not_before(self, database: Database) -> None:
        [id] = submit(database, webhook=HOOK)
        submit(database)
        held = claim(database, id)
        assert database.webhooks.take(10) == []
        database.jobs.finish([Finish(id, held.epoch, RESULT)])
        [owed] = database.webhooks.take(10)
        assert (owed.job_id, owed.status, owed.attempts, owed.url) == (id, "succeeded", 1, HOOK)
        assert database.webhooks.take(10) == [], "taking one puts it off"

    def test_every_way_to_end_owes_one(self, database: Database, sql: Sql) -> None:
        cancelled, expired, lost = submit(database, 3, webhook=HOOK)
        database.jobs.cancel(cancelled, "t")
        rewind(sql, expired, "deadline_at", 2 * 86_400)
        database.jobs.expire_queued()
        claim(database, lost)
        rewind(sql, lost, "deadline_at", 2 * 86_400)
        database.jobs.rescue()
        assert {owed.job_id for owed in database.webhooks.take(10)} == {cancelled, expired, lost}

    def test_a_retried_job_owes_another_one_when_it_ends_again(self, database: Database) -> None:
        [id] = submit(database, webhook=HOOK)
        database.jobs.cancel(id, "t")
        database.jobs.retry(id, "t")
        assert database.webhooks.take(1) == [], "nothing to tell yet"
        [other] = submit(database, webhook=HOOK)
        database.jobs.cancel(other, "t")
        [owed] = database.webhooks.take(1)
        assert owed.job_id == other, "not held up by it"
        database.jobs.cancel(id, "t")
        [first] = database.webhooks.take(1)
        database.webhooks.mark_delivered(first.id)
        database.jobs.retry(id, "t")
        database.jobs.cancel(id, "t")
        [second] = database.webhooks.take(1)
        assert second.job_id == first.job_id == id
        assert second.id != first.id

    def test_until_delivered_or_given_up(self, database: Database, sql: Sql) -> None:
        ids = submit(database, 2, webhook="https://example.com/hook")
        for id in ids:
            database.jobs.cancel(id, "t")
        delivered, failed = database.webhooks.take(10)
        database.webhooks.mark_delivered(delivered.id)
        database.webhooks.mark_failed(failed.id, "answered 500", give_up=False)
        sql("UPDATE webhooks SET due_at = due_at - interval '1 hour'")
        [again] = database.webhooks.take(10)
        assert (again.id, again.attempts) == (failed.id, 2)
        database.webhooks.mark_failed(failed.id, "answered 500", give_up=True)
        sql("UPDATE webhooks SET due_at = due_at - interval '9 hours'")
        assert database.webhooks.take(10) == []


class TestKeysFilesWorkers:
    def test_keys(self, database: Database) -> None:
        id = database.keys.add(name="n", tenant="t", sha256="f" * 64, quota=5)
        key = database.keys.find("f" * 64)
        assert key is not None
        assert (key.id, key.tenant, key.quota) == (id, "t", 5)
        database.keys.revoke(id)
        assert database.keys.find("f" * 64) is None
        with pytest.raises(NotFound):
            database.keys.revoke(id)

    @pytest.mark.parametrize("tenant", ["", "..", "a/b", "租户", "a b", ".hidden", "x" * 65])
    def test_a_tenant_can_name_a_folder(self, database: Database, tenant: str) -> None:
        with pytest.raises(InvalidRequest):
            database.keys.add(name="n", tenant=tenant, sha256="f" * 64, quota=5)

    def test_files_belong_to_their_tenant(self, database: Database) -> None:
        file = {"sha256": "0" * 64, "key": "k", "media_type": "image/png", "width": 1, "height": 2, "size": 3}
        database.files.add(tenant="t", **file)
        database.files.add(tenant="t", **file)
        assert database.files.get("0" * 64, "t").height == 2
        with pytest.raises(NotFound):
            database.files.get("0" * 64, "other")

    def test_workers_come_and_go(self, database: Database, sql: Sql) -> None:
        models = {Kind.MATCH: ServedModel("builtin", "r")}
        database.workers.register("w1", "cpu", models)
        database.workers.register("w1", "cpu", models)
        database.workers.register("w2", "cuda:0", models)
        assert [row.name for row in database.workers.alive()] == ["w1", "w2"]
        sql("UPDATE workers SET seen_at = seen_at - interval '5 minutes' WHERE name = 'w2'")
        assert [row.name for row in database.workers.alive()] == ["w1"]
        database.jobs.renew({}, "w2")
        assert [row.name for row in database.workers.alive()] == ["w1", "w2"]
        database.workers.unregister("w1")
        assert [row.name for row in database.workers.alive()] == ["w2"]


def test_pages(database: Database) -> None:
    ids = submit(database, 5)
    first = database.jobs.page("t", limit=3)
    second = database.jobs.page("t", limit=3, before=first[-1].id)
    assert [job.id for job in first + second] == ids[::-1]
    assert database.jobs.page("t", kinds=[Kind.MATCH]) == []
    database.jobs.cancel(ids[0], "t")
    assert [job.id for job in database.jobs.page("t", statuses=[Status.CANCELLED])] == [ids[0]]

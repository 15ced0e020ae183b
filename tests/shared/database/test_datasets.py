"""Every transition of a data set and of its shards, against a real PostgreSQL."""

from __future__ import annotations

from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from pydantic import ValidationError

from shared.database import Database
from shared.database.datasets import DatasetClaim
from shared.database.shards import MAX_ATTEMPTS, ShardClaim, ShardProgress
from tests.support.plain_sql import Sql
from tuwen.datasets import DatasetRequest, DatasetStatus, Filters, ReviewRequest, ShardStatus
from tuwen.errors import Conflict, NotFound
from tuwen.jobs import JobError, Kind

BOOM = JobError(code="boom", detail="It broke.", retryable=True)
T = "tenant"


def request(**wishes: Any) -> DatasetRequest:
    return DatasetRequest.model_validate({"source": "/source", "destination": "/out", **wishes})


def submit(database: Database, **wishes: Any) -> UUID:
    return database.datasets.submit(request(**wishes), T)


def take(database: Database, id: UUID, worker: str = "h") -> DatasetClaim:
    claim = database.datasets.take(id, worker)
    assert claim is not None
    return claim


def plan(database: Database, *sizes: int, **wishes: Any) -> tuple[UUID, list[UUID]]:
    """A completely planned data set with shards of these sizes."""
    id = submit(database, **wishes)
    claim = take(database, id)
    shards = [uuid4() for _ in sizes]
    for number, (shard, size) in enumerate(zip(shards, sizes, strict=True)):
        assert database.datasets.add_shard(claim, shard, number, size, f"plan/{number}", 0.0)
    assert database.datasets.mark_planned(claim)
    return id, shards


def run(database: Database, shard: UUID, worker: str = "w", priority: int = 5) -> ShardClaim:
    claim = database.shards.claim(shard, priority, worker)
    assert claim is not None
    return claim


def finish(database: Database, shard: UUID, done: int, failed: int = 0) -> None:
    claim = run(database, shard)
    assert database.shards.finish(claim, f"results/{claim.number}", ShardProgress(done, failed))


def status(database: Database, id: UUID) -> DatasetStatus:
    return database.datasets.get(id, T).status


def forget_lease(sql: Sql, table: str, id: UUID) -> None:
    sql(f"UPDATE {table} SET lease_until = lease_until - :by WHERE id = :id", by=timedelta(hours=1), id=id)


class TestRequests:
    @pytest.mark.parametrize(
        "wishes",
        [
            {"destination": None},
            {"candidates": 3, "tasks": ["recognize"]},
            {"filters": {"min_score": 0.5}},
            {"tasks": ["generate"]},
            {"tasks": []},
            {"shard_size": 0},
            {"source": "a\x00b"},
            {"source": "\ud800"},
        ],
    )
    def test_what_makes_no_sense_is_refused(self, wishes: dict[str, Any]) -> None:
        with pytest.raises(ValidationError):
            request(**wishes)

    def test_candidates_need_the_matcher(self) -> None:
        assert request(candidates=4).kinds == (Kind.DESCRIBE, Kind.MATCH)
        assert request(tasks=["match", "describe"]).kinds == (Kind.DESCRIBE, Kind.MATCH)
        assert request(tasks=["recognize"]).kinds == (Kind.RECOGNIZE,)

    def test_filters_do_not_change_what_is_asked_of_an_image(self) -> None:
        assert request(filters=Filters(min_side=9)).parameters == request().parameters
        assert request(languages=["zh"]).parameters != request().parameters


class TestDatasets:
    def test_a_new_one_waits_to_be_planned(self, database: Database) -> None:
        id = submit(database, priority=3)
        dataset = database.datasets.get(id, T)
        assert (dataset.status, dataset.priority, dataset.paused) == (DatasetStatus.PLANNING, 3, False)
        assert database.datasets.awaiting(10) == [id]
        with pytest.raises(NotFound):
            database.datasets.get(id, "somebody else")

    def test_two_runs_into_one_destination(self, database: Database) -> None:
        first = submit(database)
        with pytest.raises(Conflict, match="/out"):
            submit(database)
        submit(database, destination="/elsewhere")
        database.datasets.cancel(first, T)
        submit(database)
        with pytest.raises(Conflict, match="/out"):
            database.datasets.retry(first, T)

    def test_dry_runs_take_no_destination(self, database: Database) -> None:
        for _ in range(2):
            database.datasets.submit(DatasetRequest(source="/source", dry_run=True), T)

    def test_only_one_housekeeper_works_on_it(self, database: Database, sql: Sql) -> None:
        id = submit(database)
        first = take(database, id)
        assert database.datasets.take(id, "other") is None
        forget_lease(sql, "datasets", id)
        second = take(database, id, "other")
        assert second.epoch == first.epoch + 1
        assert not database.datasets.add_shard(first, uuid4(), 0, 1, "plan", 0.0), "it was taken for dead"
        assert not database.datasets.mark_planned(first)
        assert not database.datasets.end(first)
        renewal = database.datasets.renew({id: first.epoch})
        assert renewal.lost == {id}
        assert database.datasets.renew({id: second.epoch}).lost == frozenset()
        assert database.datasets.add_shard(second, uuid4(), 0, 1, "plan", 0.0)

    def test_no_number_is_given_twice(self, database: Database) -> None:
        claim = take(database, submit(database))
        assert database.datasets.add_shard(claim, uuid4(), 0, 5, "plan", 0.0)
        assert not database.datasets.add_shard(claim, uuid4(), 0, 5, "plan", 0.0)

    def test_it_is_exported_when_its_last_shard_is_over(self, database: Database) -> None:
        id, shards = plan(database, 5, 5)
        finish(database, shards[0], 5)
        assert database.datasets.complete(id) == []
        finish(database, shards[1], 4, 1)
        assert database.datasets.complete(id) == [id]
        assert database.datasets.complete(id) == []
        claim = take(database, id)
        assert claim.status is DatasetStatus.EXPORTING
        assert database.datasets.end(claim)
        dataset = database.datasets.get(id, T)
        assert (dataset.status, dataset.progress.done, dataset.progress.failed) == (DatasetStatus.SUCCEEDED, 9, 1)
        assert dataset.finished_at is not None

    def test_shards_run_while_it_is_planned(self, database: Database) -> None:
        claim = take(database, submit(database))
        shard = uuid4()
        database.datasets.add_shard(claim, shard, 0, 5, "plan", 0.0)
        finish(database, shard, 5)
        assert database.datasets.complete() == [], "more may come"
        database.datasets.mark_planned(claim)
        assert database.datasets.complete() == [claim.id]

    def test_put_off_with_a_growing_pause(self, database: Database, sql: Sql) -> None:
        id = submit(database)
        assert database.datasets.put_off(take(database, id), BOOM)
        assert database.datasets.take(id, "h") is None, "its pause is not over"
        sql("UPDATE datasets SET available_at = now()")
        claim = take(database, id)
        assert claim.attempts == 2
        assert database.datasets.put_off(claim), "stopped, not failed"
        assert take(database, id).attempts == 2

    def test_a_failed_one_says_why(self, database: Database) -> None:
        id = submit(database)
        database.datasets.end(take(database, id), JobError(code="source_unusable", detail="there is no image in it"))
        dataset = database.datasets.get(id, T)
        assert dataset.status is DatasetStatus.FAILED
        assert dataset.error is not None
        assert dataset.error.code == "source_unusable"

    def test_pages(self, database: Database) -> None:
        ids = [submit(database, destination=f"/{n}") for n in range(5)]
        first = database.datasets.page(T, limit=3)
        assert [dataset.id for dataset in first] == ids[:1:-1]
        assert [dataset.id for dataset in database.datasets.page(T, before=first[-1].id)] == ids[1::-1]
        assert database.datasets.page("somebody else") == []


class TestSteering:
    def test_pause_and_resume(self, database: Database) -> None:
        id, shards = plan(database, 5, 5)
        running = run(database, shards[0])
        database.datasets.pause(id, T)
        assert database.datasets.get(id, T).paused
        assert database.shards.claim(shards[1], 5, "w") is None
        assert database.shards.take_due("describe", 10) == []
        assert database.shards.renew({running.id: (running.epoch, ShardProgress(2))}).cancelled == {running.id}
        assert database.shards.give_back(running, "released") is ShardStatus.QUEUED
        database.datasets.resume(id, T)
        assert {shard.id for shard in database.shards.take_due("describe", 10)} == set(shards)
        assert run(database, shards[0]).attempts == 1, "a pause costs no attempt"

    def test_a_changed_priority_makes_old_messages_void(self, database: Database) -> None:
        id, [shard] = plan(database, 5, priority=2)
        assert [sent.priority for sent in database.shards.take_due("describe", 10)] == [2]
        database.datasets.prioritize(id, T, 8)
        assert database.shards.claim(shard, 2, "w") is None
        assert [sent.priority for sent in database.shards.take_due("describe", 10)] == [8]
        run(database, shard, priority=8)

    def test_the_more_urgent_data_set_goes_first(self, database: Database) -> None:
        plan(database, 5, 5, destination="/slow", priority=1)
        _, urgent = plan(database, 5, destination="/fast", priority=9)
        assert [sent.id for sent in database.shards.take_due("describe", 1)] == urgent

    def test_cancel(self, database: Database) -> None:
        id, shards = plan(database, 5, 5)
        running = run(database, shards[0])
        database.datasets.cancel(id, T)
        assert status(database, id) is DatasetStatus.CANCELLED
        assert database.shards.claim(shards[1], 5, "w") is None
        assert database.shards.renew({running.id: (running.epoch, ShardProgress())}).cancelled == {running.id}
        assert database.shards.give_back(running, "released") is ShardStatus.CANCELLED
        for change in (database.datasets.cancel, database.datasets.pause, database.datasets.resume):
            with pytest.raises(Conflict, match="cancelled"):
                change(id, T)

    def test_a_cancelled_one_can_go_on(self, database: Database) -> None:
        id, shards = plan(database, 5, 5)
        finish(database, shards[0], 5)
        database.datasets.cancel(id, T)
        with pytest.raises(Conflict, match="none of its images failed"):
            database.datasets.retry(id, T, failed_only=True)
        assert database.datasets.retry(id, T) is DatasetStatus.RUNNING
        assert [sent.id for sent in database.shards.take_due("describe", 10)] == shards[1:]

    def test_retry_runs_only_shards_with_failures(self, database: Database) -> None:
        id, shards = plan(database, 5, 5)
        finish(database, shards[0], 5)
        finish(database, shards[1], 3, 2)
        with pytest.raises(Conflict, match="running"):
            database.datasets.retry(id, T)
        database.datasets.complete(id)
        database.datasets.end(take(database, id))
        assert database.datasets.retry(id, T, failed_only=True) is DatasetStatus.RUNNING
        assert database.shards.claim(shards[0], 5, "w") is None
        claim = run(database, shards[1])
        assert claim.again
        assert claim.results_key == "results/1"
        assert database.shards.checkpoint(claim, "results/1b")
        assert database.shards.give_back(claim, "released") is ShardStatus.QUEUED
        assert not run(database, shards[1]).again, "what the checkpoint says of failures is new"

    def test_an_export_that_failed_is_tried_again(self, database: Database) -> None:
        id, [shard] = plan(database, 5)
        finish(database, shard, 5)
        database.datasets.complete(id)
        database.datasets.end(take(database, id), JobError(code="storage_unavailable", detail="the disk is full"))
        assert database.datasets.retry(id, T) is DatasetStatus.EXPORTING

    def test_export_elsewhere(self, database: Database) -> None:
        id, [shard] = plan(database, 5)
        with pytest.raises(Conflict):
            database.datasets.export(id, T, "/other", "parquet", overwrite=False)
        finish(database, shard, 5)
        database.datasets.complete(id)
        database.datasets.end(take(database, id))
        database.datasets.export(id, T, "/other", "parquet", overwrite=True)
        claim = take(database, id)
        assert (claim.request.destination, claim.request.destination_format) == ("/other", "parquet")
        assert claim.request.overwrite

    def test_deleted_with_all_that_is_known_of_it(self, database: Database, sql: Sql) -> None:
        id, shards = plan(database, 5, 5)
        other, _ = plan(database, 5, destination="/other")
        finish(database, shards[0], 5)
        running = run(database, shards[1])
        for each in (id, other):
            database.datasets.review(each, 1, ReviewRequest(author="alice", verdict="accepted"))
        database.datasets.cancel(id, T)
        database.datasets.delete(id, T)
        for deed in (database.datasets.get, database.datasets.delete, database.datasets.retry):
            with pytest.raises(NotFound):
                deed(id, T)
        left = sql("SELECT dataset_id FROM shards UNION ALL SELECT dataset_id FROM reviews")
        assert [row.dataset_id for row in left] == [other, other]
        # The worker that still runs one of its shards learns that it is no longer leased to anyone.
        assert database.shards.renew({running.id: (running.epoch, ShardProgress(2))}).lost == {running.id}
        assert not database.shards.checkpoint(running, "results/1")
        assert not database.shards.finish(running, "results/1", ShardProgress(5))
        assert database.shards.give_back(running, "released") is None
        assert database.shards.claim(shards[0], 5, "w") is None

    def test_not_deleted_before_it_is_over(self, database: Database) -> None:
        id = submit(database)
        claim = take(database, id)
        for status_now in ("planning", "exporting"):
            with pytest.raises(Conflict, match=f"is {status_now} and cannot be deleted; cancel it first"):
                database.datasets.delete(id, T)
            assert database.datasets.mark_planned(claim) is (status_now == "planning")
            database.datasets.complete(id)
        exporting = take(database, id)
        assert database.datasets.end(exporting)
        database.datasets.delete(id, T)
        assert not database.datasets.end(exporting)

    def test_somebody_else_steers_nothing(self, database: Database) -> None:
        id = submit(database)
        for change in (
            database.datasets.cancel,
            database.datasets.pause,
            database.datasets.retry,
            database.datasets.delete,
        ):
            with pytest.raises(NotFound):
                change(id, "somebody else")
        with pytest.raises(NotFound):
            database.datasets.prioritize(id, "somebody else", 1)


class TestShards:
    def test_is_claimed_once(self, database: Database) -> None:
        _, [shard] = plan(database, 5)
        claim = run(database, shard)
        assert (claim.number, claim.images, claim.plan_key, claim.results_key) == (0, 5, "plan/0", None)
        assert database.shards.claim(shard, 5, "other") is None

    def test_a_worker_taken_for_dead_changes_nothing(self, database: Database, sql: Sql) -> None:
        id, [shard] = plan(database, 5)
        dead = run(database, shard, "dead")
        forget_lease(sql, "shards", shard)
        assert database.shards.rescue() == {shard: ShardStatus.QUEUED}
        sql("UPDATE shards SET available_at = now()")
        claim = run(database, shard, "alive")
        assert (claim.epoch, claim.attempts, claim.crashes) == (dead.epoch + 1, 2, 1)
        assert not database.shards.finish(dead, "stale", ShardProgress(5))
        assert not database.shards.checkpoint(dead, "stale")
        assert database.shards.give_back(dead, "retry", BOOM) is None
        assert database.shards.renew({shard: (dead.epoch, ShardProgress(5))}).lost == {shard}
        assert database.shards.finish(claim, "results", ShardProgress(5))
        [row] = database.shards.all(id)
        assert row.results_key == "results"

    def test_the_heartbeat_carries_the_progress(self, database: Database) -> None:
        id, [shard, _] = plan(database, 50, 50)
        claim = run(database, shard)
        renewal = database.shards.renew({shard: (claim.epoch, ShardProgress(20, 2, 0, 300))})
        assert (renewal.cancelled, renewal.lost) == (frozenset(), frozenset())
        progress = database.datasets.get(id, T).progress
        assert (progress.done, progress.failed, progress.left, progress.images) == (20, 2, 78, 100)
        assert (progress.shards, progress.shards_left, progress.planned) == (2, 2, True)

    def test_rates_count_the_last_minute_of_each_shard(self, database: Database, sql: Sql) -> None:
        id, shards = plan(database, 600, 600, 600)
        sql("UPDATE datasets SET started_at = now() - interval '10 minutes'")
        finish(database, shards[0], 600)
        claim = run(database, shards[1], "w2")
        database.shards.renew({shards[1]: (claim.epoch, ShardProgress(400, 0, 100, 3000))})
        # The first: 600 in 60 s, half of it within the last minute. The second: 300 in 100 s.
        times = "started_at = now() - interval '90 s', finished_at = now() - interval '30 s'"
        sql(f"UPDATE shards SET {times} WHERE id = :id", id=shards[0])
        sql("UPDATE shards SET started_at = now() - interval '100 s' WHERE id = :id", id=shards[1])
        progress = database.datasets.get(id, T).progress
        assert {each.worker: round(each.images_per_second, 1) for each in progress.workers} == {"w": 5.0, "w2": 3.0}
        assert progress.images_per_second == pytest.approx(8.0, rel=0.02)
        assert progress.tokens_per_second == pytest.approx(30.0, rel=0.02)
        assert progress.eta == pytest.approx(800 / 8.0, rel=0.02)

    def test_attempts_end(self, database: Database, sql: Sql) -> None:
        id, [shard] = plan(database, 5)
        sql("UPDATE shards SET attempts = :n", n=MAX_ATTEMPTS - 1)
        assert database.shards.give_back(run(database, shard), "retry", BOOM) is ShardStatus.FAILED
        progress = database.datasets.get(id, T).progress
        assert (progress.done, progress.failed, progress.left) == (0, 5, 0), "none of its images is forgotten"
        assert database.datasets.complete() == [id]

    def test_a_retry_waits_longer_each_time(self, database: Database, sql: Sql) -> None:
        _, [shard] = plan(database, 5)
        assert database.shards.give_back(run(database, shard), "retry", BOOM) is ShardStatus.QUEUED
        assert database.shards.claim(shard, 5, "w") is None
        assert database.shards.take_due("describe", 1) == []
        assert database.shards.ready() == {"describe": 0}

    def test_published_again_when_the_message_was_lost(self, database: Database, sql: Sql) -> None:
        _, shards = plan(database, 5, 5, tasks=["describe", "match"])
        assert database.shards.ready() == {"describe+match": 2}
        assert [sent.id for sent in database.shards.take_due("describe+match", 1)] == shards[:1]
        assert [sent.id for sent in database.shards.take_due("describe+match", 9)] == shards[1:]
        assert database.shards.take_due("describe+match", 9) == []
        assert database.shards.mark_all_due() == 2
        assert len(database.shards.take_due("describe+match", 9)) == 2

    def test_where_an_image_is(self, database: Database) -> None:
        id, _ = plan(database, 5, 5, 3)
        found = {image: database.shards.locate(id, image) for image in (0, 4, 5, 12)}
        assert {image: (shard.number, first) for image, (shard, first) in found.items()} == {
            0: (0, 0),
            4: (0, 0),
            5: (1, 5),
            12: (2, 10),
        }
        with pytest.raises(NotFound):
            database.shards.locate(id, 13)


class TestReviews:
    def test_the_newest_counts_and_the_older_ones_stay(self, database: Database) -> None:
        id, _ = plan(database, 5)
        database.datasets.review(id, 3, ReviewRequest(author="alice", verdict="rejected"))
        database.datasets.review(id, 3, ReviewRequest(author="bob", verdict="accepted", text="一只猫", language="zh"))
        database.datasets.review(id, 4, ReviewRequest(author="bob", text="a cat"))
        found = database.datasets.reviews(id, range(5))
        assert [(said.author, said.verdict) for said in found[3]] == [("bob", "accepted"), ("alice", "rejected")]
        assert database.datasets.verdicts(id) == {3: "accepted", 4: None}
        database.datasets.review(id, 3, ReviewRequest(author="bob", text="better still"))
        assert database.datasets.verdicts(id)[3] == "accepted", "other words take back no verdict"
        assert database.datasets.edited_images(id) == {3, 4}
        assert database.datasets.reviews(id, [0, 1]) == {}

    def test_saying_nothing_is_no_review(self) -> None:
        with pytest.raises(ValidationError):
            ReviewRequest(author="alice")


class TestEarlierRuns:
    def test_same_source_and_questions(self, database: Database) -> None:
        same = submit(database, destination="/1", filters={"min_side": 5})
        submit(database, destination="/2", languages=["zh"])
        submit(database, destination="/3", source="/elsewhere")
        database.datasets.submit(request(destination="/4"), "somebody else")
        id = submit(database, destination="/5")
        assert database.datasets.earlier_runs(take(database, id)) == [same]


@pytest.mark.parametrize(
    "broken",
    [
        "UPDATE datasets SET status = 'nonsense'",
        "UPDATE datasets SET status = 'failed', finished_at = now()",
        "UPDATE datasets SET status = 'succeeded'",
        "UPDATE datasets SET lease_until = now()",
        "UPDATE shards SET status = 'running'",
        "UPDATE shards SET status = 'done', finished_at = now()",
        "UPDATE shards SET status = 'failed', finished_at = now()",
        "UPDATE shards SET finished_at = now()",
        "INSERT INTO reviews (id, dataset_id, image, author) SELECT id, id, 0, 'a' FROM datasets",
    ],
)
def test_states_that_cannot_be(database: Database, sql: Sql, broken: str) -> None:
    plan(database, 5)
    with pytest.raises(Exception, match="violates check constraint"):
        sql(broken)

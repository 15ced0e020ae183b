"""PostgreSQL's clock is set back and forward an hour, under a real system."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from celery import beat

from shared.database import Database
from shared.queue import HOUSEKEEPING_TASK, celery_app
from shared.settings import Settings
from tests.support.clock import FakeClock
from tests.support.plain_sql import Sql
from tests.support.system import TENANT, running_system
from tests.support.waiting import PATIENT, eventually
from tuwen.jobs import JobRequest, Status
from workers.datasets.housekeeping import DatasetKeeper
from workers.housekeeper import housekeeping
from workers.housekeeper.beat import MonotonicScheduler
from workers.housekeeper.clock import ClockWatch

HOUR = 3600.0


@pytest.fixture
def clock(settings: Settings) -> FakeClock:
    return FakeClock(settings.database_url)


@pytest.mark.parametrize("jump", [-HOUR, HOUR, 40.0, -40.0])
def test_no_job_waits_or_is_charged_when_the_clock_is_set(
    clock: FakeClock, settings: Settings, tmp_path: Path, sql: Sql, jump: float
) -> None:
    """Jobs that wait, jobs that run, and jobs that are submitted just before and after: all run once, at once."""
    with running_system(settings, tmp_path, concurrency=4) as system:
        system.worker()
        system.housekeeper()
        # What it has never seen before a jump, it cannot compare.
        system.wait_until(system.queue.housekeepers, "the first round")
        ids = system.submit(*["sleep 0.3"] * 60, *["sleep 8"] * 2, deadline=1800.0)
        system.wait_until_running(ids)
        clock.set(jump)
        ids += system.submit(*["a cat"] * 20)
        began = time.monotonic()
        jobs = system.wait_until_finished(ids)
        assert time.monotonic() - began < PATIENT / 2
        assert {job.status for job in jobs} == {Status.SUCCEEDED}
        assert {job.attempts for job in jobs} == {1}
        assert sql("SELECT sum(crashes) FROM jobs") == [(0,)]


@pytest.fixture
def later(clock: FakeClock, settings: Settings) -> Iterator[Database]:
    database = Database(settings)
    yield database
    database.close()


def submit(database: Database, **fields: Any) -> Any:
    request = JobRequest.model_validate({"input": {"kind": "generate", "prompt": "猫"}, **fields})
    return database.jobs.submit([request], tenant=TENANT).ids[0]


class TestShift:
    """One look before the jump, and one after it."""

    @pytest.mark.parametrize("jump", [-HOUR, HOUR])
    def test_a_deadline_keeps_its_distance(self, clock: FakeClock, later: Database, jump: float) -> None:
        watch = ClockWatch(later)
        before = submit(later, deadline=900.0)
        watch.look()
        clock.set(jump)
        after = submit(later, deadline=900.0)
        now, jumped = watch.look()
        assert jumped
        for id in (before, after):
            left = (later.jobs.get(id, TENANT).deadline_at - now).total_seconds()
            assert 900 - PATIENT < left < 900 + PATIENT
        assert later.jobs.expire_queued(now) == []
        assert set(later.jobs.claim([before, after], "w")) == {before, after}

    def test_a_job_submitted_right_after_the_last_look_keeps_its_deadline_however_slow_the_shift_is(
        self, clock: FakeClock, later: Database, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        watch = ClockWatch(later)
        recall = later.clock.recall
        watch.look()
        clock.set(-HOUR)
        id = submit(later, deadline=900.0)
        deadline = later.jobs.get(id, TENANT).deadline_at
        monkeypatch.setattr(later.clock, "recall", lambda: (time.sleep(0.5), recall()))
        assert watch.look()[1]
        assert later.jobs.get(id, TENANT).deadline_at == deadline

    def test_a_lease_that_was_just_renewed_is_not_run_out(self, clock: FakeClock, later: Database) -> None:
        watch = ClockWatch(later)
        id = submit(later)
        later.jobs.claim([id], "w")
        now, _ = watch.look()
        clock.set(HOUR)
        assert later.jobs.rescue(now) == {}, "set just between the look and the rescue"
        now, jumped = watch.look()
        assert jumped
        assert later.jobs.rescue(now) == {}

    def test_a_worker_that_died_is_found_after_a_lease_although_the_clock_went_back(
        self, clock: FakeClock, later: Database, settings: Settings, sql: Sql
    ) -> None:
        watch = ClockWatch(later)
        id = submit(later)
        later.jobs.claim([id], "w")
        watch.look()
        clock.set(-HOUR)
        now, _ = watch.look()
        [(left,)] = sql("SELECT EXTRACT(EPOCH FROM lease_until - :now) FROM jobs WHERE id = :id", now=now, id=id)
        assert 0 < left <= settings.lease + 1

    def test_two_housekeepers_shift_for_a_jump_once(self, clock: FakeClock, later: Database) -> None:
        first, second = ClockWatch(later), ClockWatch(later)
        id = submit(later, deadline=900.0)
        first.look(), second.look()
        clock.set(HOUR)
        first.look()
        deadline = later.jobs.get(id, TENANT).deadline_at
        _, jumped = second.look()
        assert jumped, "workers get time all the same"
        assert later.jobs.get(id, TENANT).deadline_at == deadline
        assert second.look()[1] is False

    def test_a_clock_that_is_left_alone_shifts_nothing(self, later: Database) -> None:
        watch = ClockWatch(later)
        for _ in range(5):
            time.sleep(0.1)
            assert watch.look()[1] is False
        assert later.clock.read().shifted == 0

    def test_a_jump_that_no_housekeeper_saw_is_mended(self, clock: FakeClock, later: Database) -> None:
        queued, running = submit(later), submit(later)
        later.jobs.claim([running], "w")
        clock.set(-HOUR)
        assert later.jobs.claim([queued], "w") == {}
        ClockWatch(later).look()
        assert set(later.jobs.claim([queued], "w")) == {queued}
        assert later.jobs.rescue() == {}
        clock.set(-HOUR + 60)
        assert later.jobs.rescue() == {queued: Status.QUEUED, running: Status.QUEUED}


def test_batches_data_sets_and_webhooks_wait_no_longer(clock: FakeClock, later: Database, sql: Sql) -> None:
    watch = ClockWatch(later)
    later.jobs.cancel(submit(later, webhook="https://example.com/hook"), TENANT)
    watch.look()
    clock.set(-HOUR)
    assert later.webhooks.take(1) == []
    watch.look()
    assert len(later.webhooks.take(1)) == 1
    assert sql("SELECT shifted BETWEEN -3605 AND -3595 FROM clock") == [(True,)]


@pytest.mark.parametrize(("scheduler", "ticks"), [(MonotonicScheduler, True), (beat.Scheduler, False)])
def test_beat_goes_on_when_the_system_clock_is_set_back(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, scheduler: type[beat.Scheduler], ticks: bool
) -> None:
    """Celery's own stands still, which is why ours exists: should it ever go on, ours can go."""
    app = celery_app(settings)
    keeper = housekeeping.Housekeeper(settings, app, DatasetKeeper(settings, app))
    housekeeping.define(app, keeper, interval=0.2)
    sent: list[str] = []
    running = scheduler(app)
    monkeypatch.setattr(running, "apply_entry", lambda entry, **_: sent.append(entry.task))
    monkeypatch.setattr(running, "max_interval", 1)

    def go_on(seconds: float) -> int:
        """How many rounds of housekeeping have been sent by then."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            time.sleep(min(0.05, max(0.0, running.tick())))
        return sent.count(HOUSEKEEPING_TASK)

    eventually(lambda: go_on(0.2) > 2)
    monkeypatch.setattr(type(app), "now", lambda _: datetime.now(UTC) - timedelta(hours=1))
    sent.clear()
    assert (go_on(2.0) > 0) is ticks
    assert "tuwen.collection" not in sent

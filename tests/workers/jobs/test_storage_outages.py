"""Object storage goes away under a worker at work: its jobs wait for it, and none is charged for it."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from shared.intake.images import encode_png
from shared.objects.storage import ObjectStore, file_key
from shared.settings import Settings
from tests.support.disks import full, small_disk
from tests.support.fakes import painted
from tests.support.s3 import FickleS3, serve_s3
from tests.support.system import TENANT, Process, System, gone, running_system
from tuwen.jobs import JobRequest, Kind, Status

OUTAGE = 8.0
"""Seconds that an outage lasts: more than two leases of the quick system."""


def assert_unharmed(system: System, ids: list[UUID]) -> None:
    jobs = system.wait_until_finished(ids)
    assert {job.status for job in jobs} == {Status.SUCCEEDED}, [job.error for job in jobs if job.error]
    assert {job.attempts for job in jobs} == {1}, "an outage costs no attempt"


def folder_of(system: System) -> Path:
    return Path(system.settings.storage_url.removeprefix("file://"))


def test_a_folder_goes_away_and_comes_back(settings: Settings, tmp_path: Path) -> None:
    with running_system(settings, tmp_path, concurrency=32) as system:
        system.housekeeper()
        worker = system.worker()
        ids = system.submit(*["sleep 0.1"] * 250)
        system.wait_until(lambda: Status.SUCCEEDED in system.statuses(ids), "a first result")
        with gone(system.settings):
            system.wait_until(lambda: "storage is away" in worker.log.read_text(), "a worker that notices")
            time.sleep(OUTAGE)
            statuses = system.statuses(ids)
            assert 0 < statuses.count(Status.RUNNING) <= 32, "what was claimed waits, and no more is claimed"
            assert set(statuses) == {Status.RUNNING, Status.QUEUED, Status.SUCCEEDED}
            # Whether it is known to be away or not: more jobs are accepted, and wait.
            ids += system.submit("cat")
        assert_unharmed(system, ids)
        assert worker.alive


def test_inputs_that_cannot_be_read_cost_no_attempt(settings: Settings, tmp_path: Path) -> None:
    with running_system(settings, tmp_path) as system:
        system.housekeeper()
        data = encode_png(painted("nothing"))
        image = {"file_id": sha256(data).hexdigest()}
        ObjectStore.open(system.settings).put(file_key(TENANT, image["file_id"]), data, "image/png")
        worker = system.worker()
        request = JobRequest.model_validate({"input": {"kind": "describe", "image": image}, "max_attempts": 1})
        with gone(system.settings):
            submission = system.database.jobs.submit([request] * 40, tenant=TENANT)
            system.queue.publish(submission.dispatches)
            system.wait_until(lambda: "storage is away" in worker.log.read_text(), "a worker that notices")
            time.sleep(OUTAGE)
            assert set(system.statuses(submission.ids)) == {Status.QUEUED}
        assert_unharmed(system, submission.ids)


def test_one_file_that_cannot_be_read_is_no_outage(settings: Settings, tmp_path: Path) -> None:
    """The storage works: the job is to blame, and is tried as often as it may be."""
    with running_system(settings, tmp_path) as system:
        system.housekeeper()
        digest = "ab" * 32
        loop = folder_of(system) / file_key(TENANT, digest)
        loop.parent.mkdir(parents=True)
        loop.symlink_to(loop.name)  # whoever opens it goes in circles
        system.worker()
        request = {"input": {"kind": "describe", "image": {"file_id": digest}}, "max_attempts": 2}
        submission = system.database.jobs.submit([JobRequest.model_validate(request)], tenant=TENANT)
        system.queue.publish(submission.dispatches)
        [job] = system.wait_until_finished(submission.ids)
        assert job.error is not None
        assert (job.status, job.attempts, job.error.code) == (Status.FAILED, 2, "fetch_failed")


def test_a_worker_that_stops_without_storage_gives_its_jobs_back(settings: Settings, tmp_path: Path) -> None:
    with running_system(settings, tmp_path) as system:
        system.housekeeper()
        worker = system.worker("first")
        with gone(system.settings):
            ids = system.submit(*["cat"] * 20)
            system.wait_until(lambda: "storage is away" in worker.log.read_text(), "a worker that notices")
            assert worker.terminate() == 0
            assert set(system.statuses(ids)) == {Status.QUEUED}
            second = Process(system.settings, tmp_path / "second.log", "worker", "--name", "second")
            assert second.wait() == 1
            assert "configuration_error: the storage folder" in second.log.read_text()
        system.worker("third")
        assert_unharmed(system, ids)


def test_a_job_that_waits_for_storage_can_be_cancelled(settings: Settings, tmp_path: Path) -> None:
    with running_system(settings, tmp_path) as system:
        worker = system.worker()
        with gone(system.settings):
            [id] = system.submit("cat")
            system.wait_until(lambda: "storage is away" in worker.log.read_text(), "a worker that notices")
            system.database.jobs.cancel(id, TENANT)
            system.queue.request_cancel(id)
            system.wait_until(lambda: system.statuses([id]) == [Status.CANCELLED], "the job's end")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of two megabytes of its own."""
    with small_disk(tmp_path / "disk", megabytes=2) as mounted:
        if not mounted:
            pytest.skip("only root may mount a disk")
        yield tmp_path / "disk"


@contextmanager
def read_only(disk: Path) -> Iterator[None]:
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    try:
        yield
    finally:
        subprocess.run(["mount", "-o", "remount,rw", str(disk)], check=True)


@pytest.mark.parametrize(("trouble", "said"), [(full, "is full"), (read_only, "is read-only")])
def test_a_disk_that_takes_nothing(
    settings: Settings, tmp_path: Path, disk: Path, trouble: Callable[[Path], Any], said: str
) -> None:
    changed = settings.model_copy(update={"storage_url": f"file://{disk / 'objects'}"})
    with running_system(changed, tmp_path, kinds=(Kind.GENERATE,)) as system:
        system.housekeeper()
        worker = system.worker()
        with trouble(disk):
            ids = system.submit(*["cat"] * 200)
            system.wait_until(lambda: said in worker.log.read_text(), "a worker that says why")
            time.sleep(OUTAGE)
            assert Status.FAILED not in system.statuses(ids)
        assert_unharmed(system, ids)


@pytest.mark.parametrize("mood", [500, 503, "silent", "refused"])
def test_a_service_that_fails(settings: Settings, tmp_path: Path, mood: int | str) -> None:
    (tmp_path / "s3").mkdir()
    with serve_s3(tmp_path / "s3") as server:
        fickle = FickleS3(server)
        changed = fickle.server.settings("some", **settings.model_dump(exclude={"storage_url"}, exclude_unset=True))
        with running_system(changed, tmp_path, kinds=(Kind.GENERATE,), concurrency=32) as system:
            system.housekeeper()
            system.worker()
            ids = system.submit(*["sleep 0.1"] * 100)
            system.wait_until(lambda: Status.SUCCEEDED in system.statuses(ids), "a first result")
            fickle.mood = mood
            system.wait_until(lambda: fickle.asked, "somebody who asks")
            time.sleep(OUTAGE)
            assert Status.FAILED not in system.statuses(ids)
            fickle.mood = None
            assert_unharmed(system, ids)
        fickle.close()


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"s3_secret_access_key": "wrong"}, "correct TUWEN_S3_ACCESS_KEY_ID"),
        ({"storage_url": "s3://gone"}, "the bucket does not exist"),
    ],
)
def test_a_storage_that_refuses_us_is_said_at_the_start(
    settings: Settings, tmp_path: Path, wrong: dict[str, str], said: str
) -> None:
    (tmp_path / "s3").mkdir()
    with serve_s3(tmp_path / "s3") as server:
        values = settings.model_dump(exclude={"storage_url"}, exclude_unset=True)
        changed = server.settings("some", **values | wrong)
        with running_system(changed, tmp_path, kinds=(Kind.GENERATE,)) as system:
            worker = system.start("worker")
            assert worker.wait() == 1
            assert said in worker.log.read_text().strip().splitlines()[-1]

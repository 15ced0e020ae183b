"""Both clients against a real API: each test runs with the one that blocks and with the one to await."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from uuid import UUID

import pytest

from shared.settings import Settings
from tests.support.api_server import FakeWorker, png, serving
from tests.support.clients import Connect, connect_awaiting, losing_first_answers
from tuwen.client import Client
from tuwen.datasets import DatasetRequest, DatasetStatus
from tuwen.errors import Conflict, ImageRejected, InvalidRequest, NotFound, Unauthorized, Unavailable, UnsupportedFormat
from tuwen.jobs import GenerateInput, JobRequest, Kind, Progress, Status


@pytest.fixture(params=[Client, connect_awaiting], ids=["blocking", "awaiting"])
def connect(request: pytest.FixtureRequest) -> Connect:
    """Makes a client of either sort; the one to await is driven from here, so that one test does for both."""
    made: Connect = request.param
    return made


@pytest.fixture
def client(settings: Settings, connect: Connect) -> Iterator[Client]:
    with serving(settings) as url, connect(url) as client:
        yield client


def test_a_job_from_submission_to_its_image(client: Client, hand: FakeWorker) -> None:
    job = client.generate("一只黑色的猫\u2028在草地上跳跃", seed=7)
    assert job.status is Status.QUEUED
    seen = client.iter_events(job.id)
    assert next(seen) == job
    hand.claim(job.id)
    assert next(seen).status is Status.RUNNING
    hand.tell(job.id, 1, 2)
    assert next(seen).progress == Progress(step=1, steps=2)
    hand.succeed(job.id, png())
    (*_, last) = seen
    assert last.status is Status.SUCCEEDED
    assert last == client.get(job.id) == client.wait(job.id)
    assert client.result_bytes(last) == png()


def test_an_image_is_uploaded_once_and_named_by_jobs(client: Client, tmp_path: Path) -> None:
    path = tmp_path / "图.png"
    path.write_bytes(png())
    ids = {client.upload(path).id, client.upload(png()).id}
    for job in (client.describe(path, language="zh"), client.recognize(png()), client.match(path, "a cat")):
        assert {job.input["image"]["file_id"]} == ids


def test_the_list_follows_its_cursors(client: Client) -> None:
    jobs = client.submit_many([JobRequest(input=GenerateInput(prompt=str(number))) for number in range(403)])
    assert [job.input["prompt"] for job in jobs] == [str(number) for number in range(403)]
    assert [job.id for job in client.iter_jobs()] == [job.id for job in reversed(jobs)]
    assert client.list(limit=3) == jobs[:-4:-1]
    assert client.list(status=Status.RUNNING) == client.list(kind=Kind.MATCH) == []


def test_waiting_ends_when_the_job_does(client: Client, hand: FakeWorker) -> None:
    job = client.generate("a cat")
    with pytest.raises(TimeoutError):
        client.wait(job.id, timeout=0.2)
    hand.claim(job.id)
    failing = threading.Timer(0.3, hand.fail, [job.id])
    failing.start()
    over = client.wait(job.id)
    failing.join()
    assert over.status is Status.FAILED
    assert over.error
    assert over.error.code == "engine_error"
    assert client.retry(job.id).status is Status.QUEUED
    assert client.cancel(job.id).status is Status.CANCELLED
    with pytest.raises(Conflict):
        client.cancel(job.id)


def test_what_the_api_refuses_is_raised_as_the_api_raised_it(client: Client) -> None:
    with pytest.raises(NotFound):
        client.get(UUID(int=1))
    with pytest.raises(NotFound):
        next(client.iter_events(UUID(int=1)))
    with pytest.raises(UnsupportedFormat) as unsupported:
        client.upload(b"%PDF-1.7")
    assert isinstance(unsupported.value, ImageRejected)
    with pytest.raises(InvalidRequest) as invalid:
        client.submit(JobRequest(input=GenerateInput(prompt="a"), webhook="http://127.0.0.1/"))
    assert invalid.value.code == "url_forbidden"
    assert invalid.value.field == "webhook"
    with pytest.raises(Conflict):
        client.result_bytes(client.generate("a cat"))


def test_a_server_that_is_away_for_a_moment_is_waited_for(settings: Settings, connect: Connect) -> None:
    with serving(settings) as url:
        port = int(url.rpartition(":")[2])
        with connect(url) as client:
            first = client.generate("a cat")
    with connect(url) as client:
        got: list[UUID] = []
        asking = threading.Thread(target=lambda: got.append(client.get(first.id).id))
        asking.start()
        with serving(settings, port=port):
            asking.join()
    assert got == [first.id]


def test_a_stream_that_breaks_is_taken_up_again(settings: Settings, hand: FakeWorker, connect: Connect) -> None:
    with ExitStack() as stack:
        with serving(settings) as url:
            client = stack.enter_context(connect(url))
            job = client.generate("a cat")
            seen = client.iter_events(job.id)
            assert next(seen) == job
        hand.claim(job.id)  # while nobody serves
        stack.enter_context(serving(settings, port=int(url.rpartition(":")[2])))
        assert next(seen).status is Status.RUNNING
        hand.succeed(job.id, png())
        assert [each.status for each in seen] == [Status.SUCCEEDED]


def test_a_submission_whose_answer_was_lost_is_the_same_job(settings: Settings, connect: Connect) -> None:
    with serving(settings) as url, losing_first_answers(url, 1) as lossy, connect(lossy) as client:
        job = client.generate("a cat")
        assert [each.id for each in client.iter_jobs()] == [job.id]


def test_whatever_makes_something_is_repeated_under_its_key(settings: Settings, connect: Connect) -> None:
    request = DatasetRequest(source="/source", destination="/out")
    with serving(settings) as url, connect(url) as client:
        job = client.generate("a cat")
        client.cancel(job.id)
        with losing_first_answers(url, 1) as lossy, connect(lossy) as unlucky:
            assert unlucky.retry(job.id).status is Status.QUEUED
        with losing_first_answers(url, 1) as lossy, connect(lossy) as unlucky:
            dataset = unlucky.datasets.submit(request)
        assert [each.id for each in client.datasets.iter()] == [dataset.id]


def test_what_cannot_be_repeated_is_not(settings: Settings, connect: Connect) -> None:
    with serving(settings) as url, connect(url) as client:
        job = client.generate("a cat")
        with losing_first_answers(url, 1) as lossy, connect(lossy) as unlucky, pytest.raises(Unavailable):
            unlucky.cancel(job.id)
        assert client.get(job.id).status is Status.CANCELLED


def test_an_unlikely_key_is_refused_before_it_is_sent(connect: Connect) -> None:
    with pytest.raises(Unauthorized), connect("http://127.0.0.1:9", "图文"):
        pass


def test_data_sets_are_steered(client: Client) -> None:
    request = DatasetRequest(source="/source", destination="/out")
    dataset = client.datasets.submit(request)
    assert dataset.request == request
    with pytest.raises(Conflict):
        client.datasets.submit(request)
    assert client.datasets.pause(dataset.id).paused
    assert not client.datasets.resume(dataset.id).paused
    assert client.datasets.prioritize(dataset.id, 7).priority == 7
    other = client.datasets.submit(DatasetRequest(source="/source", destination="/elsewhere"))
    assert [each.id for each in client.datasets.iter()] == [other.id, dataset.id]
    assert [*client.datasets.iter_items(dataset.id, limit=5)] == []
    seen = client.datasets.iter_events(dataset.id)
    assert next(seen).status is DatasetStatus.PLANNING
    assert client.datasets.cancel(dataset.id).status is DatasetStatus.CANCELLED
    *_, last = seen
    assert last == client.datasets.get(dataset.id) == client.datasets.wait(dataset.id)
    client.datasets.delete(dataset.id)
    with pytest.raises(NotFound):
        client.datasets.get(dataset.id)


def test_a_server_that_stays_away_is_unavailable(monkeypatch: pytest.MonkeyPatch, connect: Connect) -> None:
    monkeypatch.setattr("tuwen.exchange.PAUSES", (0.01,))
    monkeypatch.setattr("tuwen.exchange.STREAM_PATIENCE", 0.0)
    with connect("http://127.0.0.1:9") as client:
        with pytest.raises(Unavailable):
            client.get(UUID(int=1))
        with pytest.raises(Unavailable):
            next(client.iter_events(UUID(int=1)))

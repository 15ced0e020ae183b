"""Bulk annotation as a whole: real processes, servers, HTTP and signals; every image exactly once, whatever dies."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
import pytest
import redis

from api.embedded.servers import Postgres, Valkey
from shared.objects.storage import ObjectStore
from shared.settings import Settings
from tests.chaos.deeds import Chaos
from tests.chaos_datasets import endure
from tests.support.annotation import annotate, dataset, failures, mistakes, paint, records, wait_until_over
from tests.support.api_server import serving
from tests.support.system import System
from tests.support.waiting import PATIENT
from tuwen.blocking import complete
from tuwen.client import Client
from tuwen.datasets import DatasetRequest, DatasetStatus, ExportRequest, ReviewRequest, ShardStatus
from tuwen.errors import Conflict, Forbidden, InvalidRequest, NotFound


def _send(client: Client, method: str, path: str, **options: Any) -> httpx.Response:
    """A request that the client has no method for; what the API refuses is raised as the client raises it."""
    return complete(client._operations._exchange.send(method, path, **options))


@pytest.fixture
def slow(system: System) -> None:
    """Describing takes so long that there is time to do harm before all is over."""
    changed = {**system.settings.model_dump(exclude_unset=True), "describe": "import:tests.support.fakes:SlowDescriber"}
    system.settings = Settings(**changed)


@pytest.mark.usefixtures("slow")
def test_every_image_once_though_everything_is_killed(
    system: System, tmp_path: Path, valkey: Valkey, postgres: Postgres
) -> None:
    """A small version of `make chaos-datasets`."""
    images = range(2000)
    source = paint(tmp_path / "source", images)
    chaos = Chaos(system, valkey, postgres, random.Random(2))
    ended = endure(system, chaos, source, tmp_path / "out", every=3.0, limit=240, unhurried=True)
    assert sum(chaos.deeds.values()) >= 2
    assert ended.status is DatasetStatus.SUCCEEDED, ended
    assert (ended.progress.done, ended.progress.failed) == (len(images), 0)
    assert mistakes(tmp_path / "out", images) == []


def test_over_http_and_the_command_line(system: System, tmp_path: Path) -> None:
    source = paint(tmp_path / "photos", range(60))
    (source / "broken.png").write_bytes(b"no image")
    system.housekeeper()
    system.worker()
    with serving(system.settings) as url, Client(url) as client:
        environment = os.environ | {"TUWEN_URL": url}

        def tuwen(*arguments: str) -> subprocess.CompletedProcess[str]:
            command = [sys.executable, "-m", "api.cli", *arguments]
            # Relative paths are those of where the user stands.
            return subprocess.run(
                command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=PATIENT
            )

        dry = tuwen("annotate", "photos", "--dry-run", "--json")
        assert dry.returncode == 0, dry.stderr
        estimate = json.loads(dry.stdout)["estimate"]
        assert (estimate["entries"], estimate["images"], estimate["to_annotate"]) == (61, 60, 60)
        assert estimate["broken"] == {"unsupported_format": 1}
        assert estimate["seconds"] == pytest.approx(60 / estimate["images_per_second"])
        assert not (tmp_path / "captions").exists()

        ran = tuwen("annotate", "photos", "--out", "captions", "-t", "describe", "-t", "match", "-l", "both", "--json")
        assert ran.returncode == 1, ran.stderr
        run = json.loads(ran.stdout)
        assert (run["status"], run["progress"]["done"], run["progress"]["failed"]) == ("succeeded", 60, 1)
        assert mistakes(tmp_path / "captions", range(60)) == []
        assert [failure["name"] for failure in failures(tmp_path / "captions")] == ["broken.png"]

        export = tuwen("datasets", "export", run["id"], "--out", "captions")
        assert export.returncode == 0, "what failed before it makes no export fail"
        assert "retry" not in export.stderr

        paint(tmp_path / "more", range(60, 61))
        (tmp_path / "more" / "000" / "000060.png").rename(source / "broken.png")
        again = tuwen("datasets", "retry", run["id"], "--failed")
        assert again.returncode == 0, again.stderr
        assert len(records(tmp_path / "captions")) == 61
        assert tuwen("datasets", "ls").stdout.count(run["id"]) == 1
        assert "device hours" in tuwen("datasets", "show", json.loads(dry.stdout)["id"]).stdout
        assert "61" in tuwen("datasets", "show", run["id"]).stdout

        dataset = client.datasets.get(UUID(run["id"]))
        items = list(client.datasets.iter_items(dataset.id, limit=25))
        assert [item.number for item in items] == list(range(61))
        ranked = list(client.datasets.iter_items(dataset.id, limit=25, sort="-score"))
        scores = [min(caption.score or 0 for caption in item.annotation.captions) for item in ranked]
        assert scores == sorted(scores, reverse=True)
        assert sorted(item.number for item in ranked) == list(range(61))

        client.datasets.review(dataset.id, 3, ReviewRequest(author="alice", text="a better caption", language="en"))
        client.datasets.review(dataset.id, 4, ReviewRequest(author="bob", verdict="rejected"))
        [rejected] = client.datasets.iter_items(dataset.id, only="rejected")
        assert (rejected.number, rejected.reviews[0].author) == (4, "bob")
        exported = ExportRequest(destination=str(tmp_path / "reviewed"))
        client.datasets.export(dataset.id, exported)
        assert client.datasets.wait(dataset.id).status is DatasetStatus.SUCCEEDED
        found = {record["name"]: record for record in records(tmp_path / "reviewed")}
        assert items[4].annotation.name not in found
        edited = json.dumps(found[items[3].annotation.name], ensure_ascii=False)
        assert "a better caption" in edited
        assert "alice" in edited
        assert items[3].annotation.captions[0].text in edited, "the model's words stay"

        preview = _send(client, "GET", f"/v1/datasets/{dataset.id}/items/5/preview")
        assert preview.headers["content-type"] == "image/jpeg"
        with pytest.raises(NotFound):
            _send(client, "GET", f"/v1/datasets/{dataset.id}/items/999/preview")

        files = sorted(path for place in ("photos", "captions", "reviewed") for path in (tmp_path / place).rglob("*"))
        removed = tuwen("datasets", "rm", run["id"])
        assert (removed.returncode, removed.stdout) == (0, f"{run['id']} deleted\n"), removed.stderr
        assert run["id"] in tuwen("datasets", "rm", run["id"]).stderr
        assert run["id"] not in tuwen("datasets", "ls").stdout
        assert files == sorted(
            path for place in ("photos", "captions", "reviewed") for path in (tmp_path / place).rglob("*")
        )
        store = ObjectStore.open(system.settings)
        system.wait_until(lambda: not list(store.list(f"datasets/{run['id']}")), "the removal of its objects")


def test_pause_resume_cancel_and_go_on(system: System, tmp_path: Path) -> None:
    source = paint(tmp_path / "source", range(400))
    slow = Settings(
        **{**system.settings.model_dump(exclude_unset=True), "describe": "import:tests.support.fakes:SlowDescriber"}
    )
    system.settings = slow
    system.housekeeper()
    system.worker()
    with serving(slow) as url, Client(url) as client:
        run = client.datasets.submit(
            DatasetRequest(source=str(source), destination=str(tmp_path / "out"), shard_size=100)
        )
        with pytest.raises(Conflict, match="out"):
            client.datasets.submit(DatasetRequest(source=str(source), destination=str(tmp_path / "out")))
        system.wait_until(lambda: client.datasets.get(run.id).progress.done > 0, "the first images")
        assert client.datasets.pause(run.id).paused

        def running() -> int:
            return sum(shard.status is ShardStatus.RUNNING for shard in system.database.shards.all(run.id))

        system.wait_until(lambda: running() == 0, "shards that were given back")
        done = client.datasets.get(run.id).progress.done
        client.datasets.prioritize(run.id, 9)
        client.datasets.resume(run.id)
        system.wait_until(lambda: client.datasets.get(run.id).progress.done > done, "progress after the pause")
        cancelled = client.datasets.cancel(run.id)
        assert cancelled.status is DatasetStatus.CANCELLED
        system.wait_until(lambda: running() == 0, "shards that were cancelled")
        assert client.datasets.retry(run.id).status is DatasetStatus.RUNNING
        ended = client.datasets.wait(run.id)
    assert (ended.status, ended.progress.done) == (DatasetStatus.SUCCEEDED, 400)
    assert mistakes(tmp_path / "out", range(400)) == []


def test_a_grown_source_costs_only_what_is_new(system: System, tmp_path: Path) -> None:
    source = paint(tmp_path / "source", range(200))
    system.housekeeper()
    system.worker()
    wait_until_over(system, annotate(system, source, tmp_path / "out", shard_size=64))
    first = {record["name"]: record for record in records(tmp_path / "out")}
    paint(source, range(200, 230))
    wait_until_over(system, annotate(system, source, tmp_path / "out", shard_size=64))
    assert mistakes(tmp_path / "out", range(230)) == []
    second = {record["name"]: record for record in records(tmp_path / "out")}
    same = [name for name, record in first.items() if second[name]["captions"] == record["captions"]]
    assert len(same) == 200, "they say when and by whom they were made: not now"


@pytest.mark.usefixtures("slow")
def test_a_worker_asked_to_stop_gives_its_shard_back(system: System, tmp_path: Path) -> None:
    source = paint(tmp_path / "source", range(300))
    system.housekeeper()
    worker = system.worker("first")
    id = annotate(system, source, tmp_path / "out", shard_size=300)
    system.wait_until(lambda: dataset(system, id).progress.done > 0, "the first images")
    assert worker.terminate() == 0
    [shard] = system.database.shards.all(id)
    assert shard.status is ShardStatus.QUEUED, "nothing is left to its lease"
    assert shard.results_key is not None, "what it has done is kept"
    system.worker("second")
    ended = wait_until_over(system, id)
    assert (ended.status, ended.progress.done) == (DatasetStatus.SUCCEEDED, 300)
    assert mistakes(tmp_path / "out", range(300)) == []
    workers = {record["captions"][0]["provenance"]["worker"].partition("@")[0] for record in records(tmp_path / "out")}
    assert workers == {"first", "second"}


def test_redis_forgets_every_shard(system: System, tmp_path: Path) -> None:
    source = paint(tmp_path / "source", range(300))
    system.housekeeper()
    id = annotate(system, source, tmp_path / "out", shard_size=30)
    system.wait_until(lambda: dataset(system, id).progress.planned, "the plan")
    with redis.Redis.from_url(system.settings.redis_url) as client:
        client.flushdb()
    system.worker()
    assert wait_until_over(system, id).status is DatasetStatus.SUCCEEDED
    assert mistakes(tmp_path / "out", range(300)) == []


@pytest.mark.usefixtures("slow")
def test_a_frozen_worker_wakes_up_with_results_that_nobody_wants(system: System, tmp_path: Path) -> None:
    source = paint(tmp_path / "source", range(100))
    system.housekeeper()
    sleeper = system.worker("sleeper")
    id = annotate(system, source, tmp_path / "out", shard_size=100)
    system.wait_until(lambda: dataset(system, id).progress.workers, "a running shard")
    sleeper.signal(signal.SIGSTOP)
    system.worker("other")
    ended = wait_until_over(system, id)
    sleeper.signal(signal.SIGCONT)
    assert (ended.status, ended.progress.done) == (DatasetStatus.SUCCEEDED, 100)
    assert mistakes(tmp_path / "out", range(100)) == []
    assert sleeper.alive


class TestBadInput:
    def test_what_is_refused_at_once(self, settings: Settings, tmp_path: Path) -> None:
        with serving(settings) as url, Client(url) as client:
            for source, destination, error in (
                ("relative/path", "/out", InvalidRequest),
                ("/source", "relative/path", InvalidRequest),
                ("/source", "/source/../source/", InvalidRequest),
                ("s3://bucket/../other", "/out", InvalidRequest),
            ):
                with pytest.raises(error):
                    client.datasets.submit(DatasetRequest(source=source, destination=destination))
            with pytest.raises(NotFound):
                _send(client, "GET", "/v1/datasets/no-id")
            with pytest.raises(InvalidRequest):
                _send(client, "POST", "/v1/datasets", content=b'{"source": 1}')

    def test_only_below_the_roots(self, settings: Settings, tmp_path: Path) -> None:
        limited = settings.model_copy(update={"dataset_roots": (str(tmp_path / "data"), "s3://bucket/data")})
        with serving(limited) as url, Client(url) as client:
            for place in (
                "/etc",
                str(tmp_path / "data" / ".." / "secret"),
                "s3://bucket/other",
                "s3://bucket/database",
            ):
                with pytest.raises(Forbidden):
                    client.datasets.submit(DatasetRequest(source=place, destination=str(tmp_path / "data" / "out")))
            client.datasets.submit(
                DatasetRequest(source=str(tmp_path / "data" / "in"), destination="s3://bucket/data/out")
            )

    def test_sources_that_are_none(self, system: System, tmp_path: Path) -> None:
        system.housekeeper()
        empty = tmp_path / "empty"
        empty.mkdir()
        ids = [
            annotate(system, empty, tmp_path / "1"),
            annotate(system, tmp_path / "missing", tmp_path / "2"),
        ]
        for id in ids:
            ended = wait_until_over(system, id)
            assert ended.status is DatasetStatus.FAILED
            assert ended.error is not None
            assert ended.error.code == "source_unusable"

    def test_a_symbolic_link_out_of_the_roots(self, system: System, tmp_path: Path) -> None:
        paint(tmp_path / "secret", range(3))
        (tmp_path / "data").mkdir()
        (tmp_path / "data" / "link").symlink_to(tmp_path / "secret")
        changed = {**system.settings.model_dump(exclude_unset=True), "dataset_roots": (str(tmp_path / "data"),)}
        system.settings = Settings(**changed)
        system.housekeeper()
        ended = wait_until_over(system, annotate(system, tmp_path / "data" / "link", tmp_path / "data" / "out"))
        assert ended.status is DatasetStatus.FAILED
        assert ended.error is not None
        assert ended.error.code == "forbidden"

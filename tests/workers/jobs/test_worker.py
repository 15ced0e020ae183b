"""One real worker process, from the message to the row: what becomes of each kind of job, good and bad."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from hashlib import sha256
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np
import pytest
import redis

from api.embedded.addresses import as_environment
from shared.intake.images import encode_png, pixels
from shared.objects.storage import ObjectStore, file_key
from shared.settings import Settings
from shared.telemetry.metrics import BATCH_SIZE, JOBS_FINISHED, redis_key
from tests.support.fakes import painted, seed_colour
from tests.support.system import TENANT, Process, System, running_system
from tests.support.waiting import PATIENT
from tuwen.jobs import (
    DescribeResult,
    GenerateResult,
    Job,
    JobRequest,
    Kind,
    MatchResult,
    Progress,
    RecognizeResult,
    Status,
)


@pytest.fixture
def system(settings: Settings, tmp_path: Path) -> Iterator[System]:
    with running_system(settings, tmp_path, fetch_allow_networks=("127.0.0.0/8",)) as system:
        system.worker()
        yield system


def upload(system: System, data: bytes) -> dict[str, str]:
    """Store a file as the API does; the image source that names it."""
    digest = sha256(data).hexdigest()
    ObjectStore.open(system.settings).put(file_key(TENANT, digest), data, "image/png")
    return {"file_id": digest}


def run(system: System, **fields: Any) -> Job:
    """Submit one job by its input's fields and wait for its end."""
    attempts = fields.pop("max_attempts", None)
    [id] = submit(system, [fields], max_attempts=attempts)
    [job] = system.wait_until_finished([id])
    return job


def submit(system: System, inputs: list[dict[str, Any]], **fields: Any) -> list[UUID]:
    requests = [JobRequest.model_validate({"input": one, **fields}) for one in inputs]
    submission = system.database.jobs.submit(requests, tenant=TENANT)
    system.queue.publish(submission.dispatches)
    return submission.ids


@contextmanager
def web_server(folder: Path) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None: ...


def test_each_kind(system: System, tmp_path: Path) -> None:
    image = upload(system, encode_png(painted("nothing")))

    drawn = run(system, kind="generate", prompt="一只黑色的猫", seed=7)
    assert isinstance(drawn.result, GenerateResult)
    data = ObjectStore.open(system.settings).get(drawn.result.image.key)
    assert drawn.result.image.sha256 == sha256(data).hexdigest()
    assert (drawn.result.image.width, drawn.result.image.height) == (8, 8)
    assert (pixels(data, system.settings) == np.array(seed_colour(7), np.uint8)).all()

    described = run(system, kind="describe", image=image, language="zh")
    assert isinstance(described.result, DescribeResult)
    assert described.result.text == "颜色 128-128-128"

    recognized = run(system, kind="recognize", image=image)
    assert isinstance(recognized.result, RecognizeResult)
    assert recognized.result.objects[0].name_zh == "猫"

    (tmp_path / "web").mkdir()
    (tmp_path / "web" / "cat.png").write_bytes(encode_png(painted("nothing")))
    with web_server(tmp_path / "web") as url:
        matched = run(system, kind="match", image={"url": f"{url}/cat.png"}, text="cat")
    assert isinstance(matched.result, MatchResult)
    assert matched.result.score == 0.25

    with redis.Redis.from_url(system.settings.redis_url, decode_responses=True) as client:
        system.wait_until(lambda: client.hget(redis_key(JOBS_FINISHED), "match/succeeded") == "1", "figures")
        assert client.hget(redis_key(BATCH_SIZE), "generate/1.0") == "1"


def test_the_same_job_again_makes_the_same_picture(system: System) -> None:
    [id] = submit(system, [{"kind": "generate", "prompt": "cat"}])
    [job] = system.wait_until_finished([id])
    assert isinstance(job.result, GenerateResult)
    assert job.result.seed == id.int % 2**53


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"not an image", "unsupported_format"),
        (encode_png(np.zeros((64, 64, 3), np.uint8))[:60], "image_corrupt"),
        (None, "not_found"),
    ],
)
def test_a_bad_image_fails_once_and_says_why(system: System, data: bytes | None, code: str) -> None:
    image = {"file_id": "0" * 64} if data is None else upload(system, data)
    job = run(system, kind="describe", image=image)
    assert job.status is Status.FAILED
    assert job.error is not None
    assert (job.error.code, job.attempts) == (code, 1)


def test_an_address_out_of_bounds_is_refused_by_the_worker_too(system: System) -> None:
    job = run(system, kind="describe", image={"url": "http://169.254.169.254/latest/meta-data"})
    assert job.error is not None
    assert (job.error.code, job.attempts) == ("url_forbidden", 1)


def test_a_failing_download_is_tried_again_until_attempts_are_spent(system: System) -> None:
    system.housekeeper()
    job = run(system, kind="describe", image={"url": "http://127.0.0.1:1/cat.png"}, max_attempts=3)
    assert job.status is Status.FAILED
    assert job.error is not None
    assert (job.error.code, job.attempts) == ("fetch_failed", 3)


def test_only_the_guilty_fail(system: System) -> None:
    """A first job waits in the engine while the others gather behind it to share a batch."""
    ids = system.submit("sleep 1", *["cat"] * 5, "reject", "fail", "nan", "oom", *["dog"] * 5, max_attempts=1)
    jobs = system.wait_until_finished(ids)
    failed = {job.input["prompt"]: job.error.code for job in jobs if job.error}
    assert failed == {
        "reject": "engine_error",
        "fail": "engine_error",
        "nan": "engine_error",
        "oom": "out_of_memory",
    }
    assert "secret" not in str([job.error for job in jobs])
    assert [job.status for job in jobs if job.input["prompt"] not in failed] == [Status.SUCCEEDED] * 11


def test_progress_can_be_watched(system: System) -> None:
    [id] = system.submit("sleep 5")
    system.wait_until(lambda: system.queue.progress(id), "progress")
    progress = system.queue.progress(id)
    assert isinstance(progress, Progress)
    assert 1 <= progress.step <= progress.steps == 10
    system.wait_until_finished([id])


def test_the_parent_process_has_no_torch(settings: Settings, tmp_path: Path) -> None:
    """Models live in the engine process alone: the parent stays small and never touches the GPU."""
    builtin = {kind.value: "builtin" for kind in Kind}
    with running_system(settings, tmp_path, **builtin) as system:
        worker = system.worker()
        assert "libtorch" in maps(worker.engine.pid)
        assert "libtorch" not in maps(worker.process.pid)
        assert "libtorch" not in maps(system.housekeeper().process.pid)


def maps(pid: int) -> str:
    return Path(f"/proc/{pid}/maps").read_text()


def test_memory_halving_keeps_every_job(settings: Settings, tmp_path: Path) -> None:
    """The fake promises batches of 16 and raises torch's own error above 3."""
    fake = "import:tests.support.fakes:MemoryHungryGenerator"
    with running_system(settings, tmp_path, generate=fake, kinds=(Kind.GENERATE,)) as system:
        ids = system.submit(*["cat"] * 40)
        system.worker()
        assert {job.status for job in system.wait_until_finished(ids)} == {Status.SUCCEEDED}


@pytest.mark.parametrize(
    ("engine", "said"),
    [
        ("import:tests.support.fakes:BrokenAtStart", "no weights for cpu"),
        ("import:tests.support.fakes:BrokenAtWarmUp", "generate"),
        ("import:tests.support.fakes:DeadAtStart", "SIGKILL"),
        ("import:tests.support.fakes:Missing", "Missing"),
        ("diffusers:some/model", "diffusers:some/model"),
    ],
)
def test_a_worker_that_cannot_be_warm_does_not_start(
    settings: Settings, tmp_path: Path, engine: str, said: str
) -> None:
    with running_system(settings, tmp_path, generate=engine, kinds=(Kind.GENERATE,)) as system:
        worker = Process(system.settings, tmp_path / "worker.log", "worker")
        assert worker.wait() == 1
        last_line = worker.log.read_text().strip().splitlines()[-1]
        assert last_line.startswith("engine_start_failed:")
        assert said in last_line
        assert system.database.workers.alive() == []


@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [
        ("TUWEN_DATABASE_URL", "postgresql://tuwen@127.0.0.1:1/tuwen", "database_unavailable"),
        ("TUWEN_STORAGE_URL", "ftp://somewhere", "TUWEN_STORAGE_URL"),
        ("TUWEN_LEASE", "soon", "TUWEN_LEASE"),
        ("TUWEN_DEVICE", "tpu", "tpu"),
    ],
)
def test_a_worker_with_a_wrong_setting_says_which(settings: Settings, variable: str, value: str, said: str) -> None:
    environment = os.environ | as_environment(settings) | {"TUWEN_GENERATE": "import:tests.support.fakes:NullGenerator"}
    command = [sys.executable, "-m", "workers", "worker", "--kinds", "generate"]
    process = subprocess.run(
        command, env=environment | {variable: value}, capture_output=True, text=True, timeout=PATIENT
    )
    assert process.returncode == 1
    assert said in process.stderr
    assert "Traceback" not in process.stderr


def test_messages_hold_the_job_id_alone(system: System) -> None:
    """What a person asked for is read from PostgreSQL, so Redis never holds a prompt."""
    with redis.Redis.from_url(system.settings.redis_url) as client, client.monitor() as monitor:
        seen: list[str] = []
        listener = threading.Thread(target=lambda: seen.extend(_commands(monitor, until="finished")), daemon=True)
        listener.start()
        system.wait_until_finished(system.submit("秘密 secret prompt"))
        client.publish("done", "finished")
        listener.join(PATIENT)
    assert any("tuwen.generate" in command for command in seen)
    assert not [command for command in seen if "secret prompt" in command or "秘密" in json.dumps(command)]


def _commands(monitor: Any, until: str) -> Iterator[str]:
    for command in monitor.listen():
        yield command["command"]
        if until in command["command"]:
            return

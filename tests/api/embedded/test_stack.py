"""`tuwen up` as a person runs it: a command in a terminal, engines that fake the GPU, everything else real."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from api.cli.demo import SAMPLE
from api.embedded.addresses import Addresses
from tests.support.waiting import PATIENT
from tuwen.client import Client
from tuwen.jobs import GenerateInput, JobRequest, Status

FAKES = {
    "TUWEN_GENERATE": "import:tests.support.fakes:NullGenerator",
    "TUWEN_DESCRIBE": "import:tests.support.fakes:NullDescriber",
    "TUWEN_RECOGNIZE": "import:tests.support.fakes:NullRecognizer",
    "TUWEN_MATCH": "import:tests.support.fakes:NullMatcher",
}
PNG = b"\x89PNG"


@dataclass
class Up:
    """A running `tuwen up`."""

    process: subprocess.Popen[bytes]
    data: Path
    output: Path

    @property
    def addresses(self) -> Addresses:
        found = Addresses.read(self.data)
        assert found, f"not running; it said:\n{self.said()}"
        return found

    def family(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)

    def member(self, *words: str) -> psutil.Process | None:
        """The child whose command line has all of `words`, while it lives."""
        for process in psutil.Process(self.process.pid).children():
            try:
                line = process.cmdline()
            except psutil.Error:
                continue
            if all(any(word in part for part in line) for word in words):
                return process
        return None

    def said(self) -> str:
        return self.output.read_text()


def until(condition: Callable[[], Any], up: Up) -> Any:
    deadline = time.monotonic() + PATIENT
    while not (value := condition()):
        assert time.monotonic() < deadline, f"timed out; the command said:\n{up.said()}"
        assert up.process.poll() is None, f"it ended; it said:\n{up.said()}"
        time.sleep(0.1)
    return value


@contextmanager
def tuwen_up(data: Path, *arguments: str, **environment: str) -> Iterator[Up]:
    output = data.parent / f"{data.name}.out"
    command = [sys.executable, "-m", "api.cli", "up", "--data", str(data), "--port", "0", "--flower-port", "0"]
    with output.open("wb") as file:
        process = subprocess.Popen(
            [*command, *arguments],
            stdout=file,
            stderr=subprocess.STDOUT,
            env=os.environ | FAKES | environment,
            start_new_session=True,
        )
    up = Up(process, data, output)
    try:
        until(lambda: Addresses.read(data), up)
        yield up
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    with tuwen_up(tmp_path_factory.mktemp("with space") / "图文 data") as running:
        yield running


def _lives(process: psutil.Process) -> bool:
    try:
        # Orphans may wait as zombies for an init that is slow to reap them.
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _all_end(family: list[psutil.Process]) -> bool:
    deadline = time.monotonic() + PATIENT
    while any(_lives(process) for process in family) and time.monotonic() < deadline:
        time.sleep(0.1)
    return not any(_lives(process) for process in family)


def _work(up: Up) -> None:
    with Client(up.addresses.url) as client:
        job = client.submit(JobRequest(input=GenerateInput(prompt="a cat")))
        assert client.wait(job.id, timeout=PATIENT).status is Status.SUCCEEDED


def test_everything_answers_and_does_a_job(up: Up) -> None:
    _work(up)
    said = up.said()
    for address in (up.addresses.url + "/docs", str(up.addresses.flower)):
        assert address in said
    for name in ("valkey", "postgres", "api", "worker", "housekeeper", "flower"):
        assert f"✓ {name}" in said
        assert (up.data / "logs" / f"{name}.log").exists()


def test_without_api_keys_flower_needs_no_password(up: Up) -> None:
    assert httpx.get(f"{up.addresses.flower}/api/tasks", trust_env=False).status_code == 200
    assert "TUWEN_FLOWER_PASSWORD" not in up.addresses.environment


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("worker", ["workers", "worker"]),
        ("api", ["-m", "api"]),
        ("housekeeper", ["workers", "housekeeper"]),
        ("flower", ["workers", "flower"]),
        ("valkey", ["valkey-server"]),
        ("postgres", ["postgres", "cluster"]),
    ],
)
def test_what_dies_is_started_again(up: Up, name: str, words: list[str]) -> None:
    before = up.member(*words)
    assert before
    before.kill()
    until(lambda: f"✗ {name} was killed by SIGKILL" in up.said(), up)
    until(lambda: up.said().rpartition(f"✗ {name}")[2].count(f"✓ {name}"), up)
    after = up.member(*words)
    assert after
    assert after.pid != before.pid
    _work(up)


def test_a_second_one_on_the_same_folder_is_refused(up: Up) -> None:
    command = [sys.executable, "-m", "api.cli", "up", "--data", str(up.data)]
    second = subprocess.run(command, capture_output=True, text=True, timeout=PATIENT, check=False)
    assert second.returncode == 1
    assert f"Tuwen already runs on {up.data} at {up.addresses.url} (process {up.process.pid})" in second.stderr
    assert "Traceback" not in second.stderr
    _work(up)


def tuwen(up: Up, *arguments: str, cwd: Path | None = None, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    """Another terminal on the same machine."""
    command = [sys.executable, "-m", "api.cli", "--data", str(up.data), *arguments]
    return subprocess.run(command, capture_output=True, timeout=PATIENT, check=False, cwd=cwd, input=stdin)


def test_doctor_finds_it_well(up: Up) -> None:
    doctor = tuwen(up, "doctor", "--json")
    findings = {finding["subject"]: finding for finding in map(json.loads, doctor.stdout.splitlines())}
    assert doctor.returncode == 0, findings
    assert {"redis", "postgres", "schema", "storage", "workers", "housekeeper", "api"} <= set(findings)


def test_keys_are_made_listed_and_revoked(up: Up) -> None:
    made = tuwen(up, "keys", "create", "me", "--quota", "7")
    assert made.stdout.startswith(b"tw_")
    (key,) = (json.loads(line) for line in tuwen(up, "keys", "ls", "--json").stdout.splitlines())
    assert (key["name"], key["quota"], key["revoked_at"]) == ("me", 7, None)
    assert "sha256" not in key
    assert tuwen(up, "keys", "revoke", key["id"]).returncode == 0
    assert b"There is no active key" in tuwen(up, "keys", "revoke", key["id"]).stderr


def test_images_are_generated_into_a_folder(up: Up, tmp_path: Path) -> None:
    made = tuwen(up, "generate", "一只猫", "a dog", "-o", "new folder/", "-n", "2", cwd=tmp_path)
    names = ["一只猫.png", "一只猫-2.png", "a-dog.png", "a-dog-2.png"]
    assert made.stdout.decode().splitlines() == [f"new folder/{name}" for name in names]
    assert all((tmp_path / "new folder" / name).read_bytes().startswith(PNG) for name in names)


def test_an_image_goes_through_pipes(up: Up) -> None:
    image = tuwen(up, "generate", "a cat", "--seed", "1", "-o", "-").stdout
    assert image.startswith(PNG)
    described = tuwen(up, "describe", "-", "--json", stdin=image)
    job = json.loads(described.stdout)
    assert (job["image"], job["kind"], job["status"]) == ("-", "describe", "succeeded")
    assert float(tuwen(up, "match", "a cat", "-", stdin=image).stdout) >= 0


def test_a_refused_image_does_not_keep_the_others_from_being_described(up: Up, tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_text("no image")
    (tmp_path / "good.png").write_bytes(SAMPLE.read_bytes())
    described = tuwen(up, "describe", "bad.png", "good.png", "-l", "both", cwd=tmp_path)
    assert described.returncode == 1
    assert described.stderr.startswith(b"refused bad.png: ")
    assert [line.split(b": ")[0] for line in described.stdout.splitlines()] == [b"good.png", b"good.png"]


def test_failed_job_is_told_and_can_be_retried(up: Up, tmp_path: Path) -> None:
    failed = tuwen(up, "generate", "fail", cwd=tmp_path)
    assert failed.returncode == 1
    assert failed.stderr.startswith(b"failed ")
    id = failed.stderr.split()[1].decode()
    assert tuwen(up, "jobs", "retry", id).stdout.decode() == f"{id} queued\n"
    watched = tuwen(up, "jobs", "watch", id)
    assert watched.returncode == 1
    assert b"engine_error" in watched.stdout


def test_jobs_are_listed_and_cancelled(up: Up) -> None:
    id = tuwen(up, "generate", "sleep 600", "--no-wait").stdout.decode().strip()
    listed = [json.loads(line) for line in tuwen(up, "jobs", "ls", "-n", "1", "--json").stdout.splitlines()]
    assert [job["id"] for job in listed] == [id]
    assert tuwen(up, "jobs", "cancel", id).returncode == 0
    assert tuwen(up, "jobs", "watch", id).returncode == 1
    assert b"cancelled" in tuwen(up, "jobs", "show", id).stdout


def test_interrupt_stops_all_of_it(up: Up) -> None:
    family = up.family()
    assert len(family) > 6
    up.process.send_signal(signal.SIGINT)
    assert up.process.wait(PATIENT) == 0
    assert not [process for process in family if _lives(process)]
    assert Addresses.read(up.data) is None
    assert "stopped; the data stay in" in up.said()


def test_nothing_is_left_when_it_is_killed_and_the_data_are_kept(tmp_path: Path) -> None:
    data = tmp_path / "data"
    with tuwen_up(data, "--no-flower") as up, Client(up.addresses.url) as client:
        job = client.submit(JobRequest(input=GenerateInput(prompt="a dog")))
        client.wait(job.id, timeout=PATIENT)
        family = up.family()
        up.process.kill()
        up.process.wait()
    assert _all_end(family)
    with tuwen_up(data, "--no-flower") as up, Client(up.addresses.url) as client:
        assert client.get(job.id).status is Status.SUCCEEDED
        assert client.result_bytes(job).startswith(PNG)


def await_words(words: str, up: Up) -> None:
    until(lambda: words in up.said(), up)


def test_with_api_keys_flower_has_a_password_that_is_printed_and_kept(tmp_path: Path) -> None:
    data = tmp_path / "data"
    passwords = []
    for _ in range(2):
        with tuwen_up(data, TUWEN_AUTH="keys") as up:
            password = up.addresses.environment["TUWEN_FLOWER_PASSWORD"]
            await_words(f"user tuwen, password {password}\n", up)
            tasks = f"{up.addresses.flower}/api/tasks"
            assert httpx.get(tasks, trust_env=False).status_code == 401
            assert httpx.get(tasks, auth=("tuwen", password), trust_env=False).status_code == 200
            passwords.append(password)
    assert passwords[0] == passwords[1]
    assert (data / "flower" / "password").stat().st_mode & 0o777 == 0o600
    assert len(passwords[0]) > 20


def test_a_password_of_the_users_own_is_not_printed(tmp_path: Path) -> None:
    with tuwen_up(tmp_path / "data", TUWEN_AUTH="keys", TUWEN_FLOWER_PASSWORD="correct horse") as up:
        await_words("Ctrl-C stops it", up)
        assert "correct horse" not in up.said()
        tasks = f"{up.addresses.flower}/api/tasks"
        assert httpx.get(tasks, auth=("tuwen", "correct horse"), trust_env=False).status_code == 200


@pytest.mark.parametrize("option", ["--port", "--flower-port", "--redis-port", "--postgres-port"])
def test_taken_port_is_named(option: str, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        command = [sys.executable, "-m", "api.cli", "up", "--data", str(tmp_path / "data"), "--port", "0"]
        command += ["--flower-port", "0", option, str(port)]
        refused = subprocess.run(command, capture_output=True, text=True, timeout=PATIENT, check=False)
    assert refused.returncode == 1
    assert f"port {port} is already in use; choose another with {option}" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_worker_that_cannot_start_is_reported(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "api.cli", "up", "--data", str(tmp_path / "data"), "--port", "0", "--no-flower"]
    broken = os.environ | FAKES | {"TUWEN_GENERATE": "import:tests.support.fakes:BrokenAtStart"}
    failed = subprocess.run(command, capture_output=True, text=True, timeout=PATIENT, check=False, env=broken)
    assert failed.returncode == 1
    assert "worker ended with exit code" in failed.stderr
    assert "engine_start_failed" in failed.stderr

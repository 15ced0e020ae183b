"""A revoked key's requests end wherever they are: two API processes, and a third process that revokes the key."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from base64 import b64encode
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID

import httpx
import pytest
from openai import APIError, AuthenticationError, OpenAI

from api.embedded.addresses import as_environment
from api.embedded.processes import choose_port
from api.http.auth import new_key
from shared.database import Database
from shared.settings import Settings
from tests.support.api_server import png
from tests.support.waiting import PATIENT, eventually
from tuwen.client import Client
from tuwen.errors import Unauthorized

GENERATE: dict[str, Any] = {"input": {"kind": "generate", "prompt": "a cat"}}
QUESTION: Any = [
    {
        "role": "user",
        "content": [{"type": "image_url", "image_url": {"url": f"data:image/png;base64,{b64encode(png()).decode()}"}}],
    }
]


@pytest.fixture(scope="module")
def locked(module_settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    folder = tmp_path_factory.mktemp("data sets")
    return module_settings.model_copy(update={"auth": "keys", "dataset_roots": (str(folder),)})


@pytest.fixture(scope="module")
def urls(locked: Settings) -> Iterator[list[str]]:
    """Two API processes. No worker runs, so that nothing they wait for ever ends."""
    ports = [choose_port(0, "--port"), choose_port(0, "--port")]
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "api"], env=os.environ | as_environment(locked) | {"TUWEN_PORT": str(port)}
        )
        for port in ports
    ]
    urls = [f"http://127.0.0.1:{port}" for port in ports]
    try:
        for url in urls:
            eventually(lambda url=url: _answers(url))
        yield urls
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.wait(PATIENT)


def _answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/healthz").is_success
    except httpx.TransportError:
        return False


class Tenant:
    """A key of its own, and clients that use it."""

    def __init__(self, database: Database, url: str):
        self._database = database
        self.url = url
        self.key, digest = new_key()
        self._id = database.keys.add(name="alice", tenant="alice", sha256=digest, quota=1000)
        self.headers = {"Authorization": f"Bearer {self.key}"}
        self.http = httpx.Client(base_url=url, headers=self.headers, timeout=PATIENT)
        self.openai = OpenAI(base_url=f"{url}/v1", api_key=self.key, max_retries=0, timeout=PATIENT)

    def submit(self) -> UUID:
        return UUID(self.http.post("/v1/jobs", json=GENERATE).json()["id"])

    def revoke(self) -> None:
        self._database.keys.revoke(self._id)


@pytest.fixture
def alice(locked: Settings, urls: list[str], request: pytest.FixtureRequest) -> Iterator[Tenant]:
    database = Database(locked)
    tenant = Tenant(database, urls[getattr(request, "param", 0)])
    yield tenant
    tenant.http.close()
    tenant.openai.close()
    database.close()


both = pytest.mark.parametrize("alice", [0, 1], indirect=True)


def last_event(lines: Iterator[str]) -> tuple[str, dict[str, Any]]:
    name, data = "", ""
    for line in lines:
        field, _, value = line.partition(": ")
        name, data = (value, data) if field == "event" else (name, value) if field == "data" else (name, data)
    return name, json.loads(data)


@both
def test_a_stream_of_a_job_ends_with_the_reason(alice: Tenant) -> None:
    with alice.http.stream("GET", f"/v1/jobs/{alice.submit()}/events") as answer:
        lines = answer.iter_lines()
        assert next(lines) == "event: state"
        alice.revoke()
        name, problem = last_event(lines)  # and the stream ends, cleanly
    assert (name, problem["status"], problem["code"]) == ("error", 401, "unauthorized")
    assert "revoked while the request was under way" in problem["detail"]
    assert alice.http.get("/v1/jobs").status_code == 401


def test_a_stream_of_a_data_set_ends_with_the_reason(alice: Tenant, locked: Settings) -> None:
    wanted = {"source": f"{locked.dataset_roots[0]}/photos", "dry_run": True}
    id = alice.http.post("/v1/datasets", json=wanted).json()["id"]
    with alice.http.stream("GET", f"/v1/datasets/{id}/events") as answer:
        lines = answer.iter_lines()
        assert next(lines) == "event: state"
        alice.revoke()
        name, problem = last_event(lines)
    assert (name, problem["code"]) == ("error", "unauthorized")


def test_our_client_raises_what_the_stream_says(alice: Tenant) -> None:
    with Client(alice.url, alice.key) as client:
        states = client.iter_events(alice.submit())
        next(states)
        alice.revoke()
        with pytest.raises(Unauthorized, match="revoked while"):
            next(states)


@both
@pytest.mark.parametrize("what", ["chat", "images"])
def test_openai_streams_end_with_their_error_and_cancel_their_job(alice: Tenant, what: str, locked: Settings) -> None:
    before = {job["id"] for job in alice.http.get("/v1/jobs").json()["jobs"]}
    stream: Any
    if what == "chat":
        stream = alice.openai.chat.completions.create(model="builtin", messages=QUESTION, stream=True)
        next(stream)
    else:
        stream = alice.openai.images.generate(prompt="a cat", stream=True)
    [job] = {job["id"] for job in alice.http.get("/v1/jobs").json()["jobs"]} - before
    alice.revoke()
    with pytest.raises(APIError, match="revoked while") as error:
        list(stream)
    assert error.value.code == "invalid_api_key"
    database = Database(locked)
    eventually(lambda: database.jobs.get(UUID(job), "alice").status == "cancelled")
    database.close()


def waiting(alice: Tenant, request: Callable[[], Any]) -> Future[Any]:
    """What comes of a request that waits for a job, whose key is revoked once the job is there."""
    count = len(alice.http.get("/v1/jobs", params={"limit": 200}).json()["jobs"])
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(request)
        eventually(lambda: len(alice.http.get("/v1/jobs", params={"limit": 200}).json()["jobs"]) > count)
        alice.revoke()
    return answer


def test_a_wait_ends_with_401_and_its_job_stays(alice: Tenant, locked: Settings) -> None:
    answer = waiting(alice, lambda: alice.http.post("/v1/jobs", json=GENERATE, headers={"Prefer": "wait=60"})).result()
    assert (answer.status_code, answer.json()["code"]) == (401, "unauthorized")
    assert answer.headers["www-authenticate"].startswith("Bearer")


def test_an_openai_request_that_waits_ends_in_its_shape(alice: Tenant) -> None:
    answer = waiting(alice, lambda: alice.openai.images.generate(prompt="a cat"))
    error = answer.exception()
    assert isinstance(error, AuthenticationError)
    assert error.code == "invalid_api_key"


def test_an_upload_that_drips_is_refused(alice: Tenant) -> None:
    where = urlsplit(alice.url)
    with socket.create_connection((where.hostname or "", where.port or 0), PATIENT) as connection:
        head = f"POST /v1/files HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {alice.key}\r\n"
        connection.sendall(f"{head}Content-Length: 1000\r\nExpect: 100-continue\r\n\r\nsome".encode())
        assert connection.recv(65536).startswith(b"HTTP/1.1 100 ")  # the key was good, and the body is being read
        alice.revoke()
        assert connection.recv(65536).startswith(b"HTTP/1.1 401 ")


def test_a_download_is_cut_off_and_never_looks_complete(alice: Tenant, tmp_path: Path) -> None:
    size = 24 * 2**20
    uploaded = alice.http.post("/v1/files", files={"file": ("b.jsonl", b"x" * size)}, data={"purpose": "batch"})
    id = uploaded.json()["id"]
    with (
        alice.http.stream("GET", f"/v1/files/{id}/content") as download,
        alice.http.stream("GET", f"/v1/jobs/{alice.submit()}/events") as events,
    ):
        chunks = download.iter_raw()
        received = [len(next(chunks))]
        alice.revoke()
        assert last_event(events.iter_lines())[0] == "error"
        with pytest.raises(httpx.RemoteProtocolError):
            received.extend(len(chunk) for chunk in chunks)
    assert sum(received) < size


def test_other_keys_go_on(alice: Tenant, locked: Settings) -> None:
    database = Database(locked)
    bob = Tenant(database, alice.url)
    with bob.http.stream("GET", f"/v1/jobs/{bob.submit()}/events") as stream:
        lines = stream.iter_lines()
        next(lines)
        with alice.http.stream("GET", f"/v1/jobs/{alice.submit()}/events") as other:
            alice.revoke()
            assert last_event(other.iter_lines())[0] == "error"
        assert bob.http.get("/v1/jobs").status_code == 200
        bob.revoke()
        assert last_event(lines)[0] == "error"  # so it had not ended before
    bob.http.close()
    database.close()

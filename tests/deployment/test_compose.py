"""The services of docker-compose.yml without Docker: their own commands and health checks on real servers."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis
from redis.backoff import ConstantBackoff
from redis.retry import Retry

from api.embedded.processes import choose_port
from shared.migrations import is_current
from tests.support.compose import ROOT, VARIABLES, seconds
from tests.support.s3 import S3Server, serve_s3
from tests.support.servers import Postgres, Valkey
from tests.support.waiting import PATIENT, eventually

FAKES = {
    "TUWEN_GENERATE": "import:tests.support.fakes:NullGenerator",
    "TUWEN_DESCRIBE": "import:tests.support.fakes:NullDescriber",
    "TUWEN_RECOGNIZE": "import:tests.support.fakes:NullRecognizer",
    "TUWEN_MATCH": "import:tests.support.fakes:NullMatcher",
}


class Container:
    """A service's command and health check, in this machine's processes with its addresses."""

    def __init__(self, service: dict[str, Any], environment: Mapping[str, str], ports: Mapping[int, int], folder: Path):
        self._service = service
        self._environment = environment
        self._ports = ports
        self.folder = folder / "work"
        self.folder.mkdir(parents=True)
        self._log = folder / "log"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def log(self) -> str:
        return self._log.read_text()

    def run(self, command: list[str]) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self._here(command),
            env=self._environment,
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=PATIENT,
            check=False,
        )

    def start(self) -> None:
        with self._log.open("ab") as out:
            command = self._here(self._service["command"])
            self._process = subprocess.Popen(command, env=self._environment, cwd=self.folder, stdout=out, stderr=out)

    def healthy(self) -> bool:
        kind, *check = self._service["healthcheck"]["test"]
        assert kind == "CMD"
        return self.run(check).returncode == 0

    def become_healthy(self) -> None:
        assert self._process
        process = self._process

        def healthy() -> bool:
            assert process.poll() is None, self.log
            return self.healthy()

        eventually(healthy, lambda: self.log)

    def stop(self) -> int:
        """Its exit status after SIGTERM, within the time that Docker would give it."""
        assert self._process
        self._process.terminate()
        return self._process.wait(seconds(self._service["stop_grace_period"]))

    def close(self) -> None:
        if self._process:
            self._process.kill()
            self._process.wait()

    def _here(self, command: list[str]) -> list[str]:
        text = "\0".join(command)
        for inside, here in self._ports.items():
            text = text.replace(f"127.0.0.1:{inside}/", f"127.0.0.1:{here}/")
        return text.split("\0")


@pytest.fixture
def storage(tmp_path: Path) -> Iterator[S3Server]:
    with serve_s3(tmp_path / "s3") as server:
        yield server


@pytest.fixture
def database(postgres: Postgres) -> Iterator[str]:
    """A new database, not migrated."""
    yield postgres.create_database("composed", template="template0")
    postgres.drop_database("composed")


class Project:
    """The services on this test's servers."""

    def __init__(self, services: dict[str, Any], addresses: Mapping[str, str], folder: Path):
        self.services = services
        self.ports = {8000: choose_port(0, ""), 5555: choose_port(0, "")}
        self._folder = folder
        self._addresses = {**addresses, "TUWEN_DATA_DIR": str(folder / "data")}
        self._everywhere = {name: value for name, value in os.environ.items() if not name.startswith("TUWEN_")} | {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "TUWEN_PORT": str(self.ports[8000]),
            "TUWEN_FLOWER_PORT": str(self.ports[5555]),
        }

    @contextmanager
    def container(self, name: str, **more: str) -> Iterator[Container]:
        given = {key: str(value) for key, value in self.services[name]["environment"].items() if value is not None}
        # Only what the service is given in the file is replaced: what it lacks there, it lacks here.
        addresses = {key: value for key, value in self._addresses.items() if key in given}
        environment = self._everywhere | given | addresses | more
        container = Container(self.services[name], environment, self.ports, self._folder / name)
        try:
            yield container
        finally:
            container.close()

    def _models(self, name: str) -> dict[str, str]:
        """The models for the services that are told of them: all must name the same."""
        return FAKES if FAKES.keys() <= self.services[name].get("environment", {}).keys() else {}

    @contextmanager
    def running(self) -> Iterator[dict[str, Container]]:
        """Those that stay, each healthy, and none of them before it was started."""
        with ExitStack() as stack:
            names = ("api", "worker-cpu", "housekeeper", "flower")
            containers = {name: stack.enter_context(self.container(name, **self._models(name))) for name in names}
            for name, container in containers.items():
                assert not container.healthy(), f"{name} is healthy before it runs"
            for container in containers.values():
                container.start()
            for container in containers.values():
                container.become_healthy()
            yield containers


@pytest.fixture
def project(services: dict[str, Any], database: str, redis_url: str, storage: S3Server, tmp_path: Path) -> Project:
    addresses = {
        "TUWEN_DATABASE_URL": database,
        "TUWEN_REDIS_URL": redis_url,
        "TUWEN_STORAGE_URL": f"s3://{storage.bucket}",
        "TUWEN_S3_ENDPOINT": storage.endpoint,
        "TUWEN_S3_PUBLIC_ENDPOINT": storage.endpoint,
        "TUWEN_S3_ACCESS_KEY_ID": storage.access_key_id,
        "TUWEN_S3_SECRET_ACCESS_KEY": storage.secret_access_key,
    }
    return Project(services, addresses, tmp_path)


def test_the_services_do_a_job_together(project: Project, database: str) -> None:
    with project.container("migrate") as migrate:
        migrated = migrate.run(project.services["migrate"]["command"])
        assert migrated.returncode == 0, migrated.stderr
    assert is_current(database)
    with project.running() as containers:
        created = containers["api"].run(["tuwen", "keys", "create", "somebody"])
        assert created.returncode == 0, created.stderr
        id = generate_something(project, created.stdout.strip())
        flower_knows(project, id)
        codes = {name: container.stop() for name, container in containers.items()}
        # uvicorn ends by the signal that it was sent.
        assert codes == {"api": -signal.SIGTERM, "worker-cpu": 0, "housekeeper": 0, "flower": 0}
        for name, container in containers.items():
            # The housekeeper's trace lasts a while, since it may be another's turn.
            assert name == "housekeeper" or not container.healthy(), f"{name} is healthy after its end"
            assert not list(container.folder.iterdir()), f"{name} writes where its container is read-only"


def generate_something(project: Project, key: str) -> str:
    """Submit a job as the file's introduction says, and fetch its image; the job's id."""
    body = {"input": {"kind": "generate", "prompt": "一只黑色的猫", "seed": 1}}
    with httpx.Client(base_url=f"http://127.0.0.1:{project.ports[8000]}", trust_env=False, timeout=PATIENT) as api:
        assert api.post("/v1/jobs", json=body).status_code == 401
        api.headers["Authorization"] = f"Bearer {key}"
        job = api.post("/v1/jobs", json=body, headers={"Prefer": "wait=30"}).json()
        assert job["status"] == "succeeded", job["error"]
        image = api.get(job["result_url"], follow_redirects=True)
        assert image.history, "the API serves by itself what object storage should"
        assert image.content.startswith(b"\x89PNG")
    return str(job["id"])


def flower_knows(project: Project, id: str) -> None:
    url = f"http://127.0.0.1:{project.ports[5555]}/api/task/info/{id}"
    assert httpx.get(url, trust_env=False).status_code == 401
    known = httpx.get(url, auth=("tuwen", VARIABLES["FLOWER_PASSWORD"]), trust_env=False)
    assert known.json()["uuid"] == id


def test_migration_says_when_there_is_no_database(project: Project) -> None:
    with project.container("migrate", TUWEN_DATABASE_URL="postgresql://tuwen@127.0.0.1:1/tuwen") as container:
        outcome = container.run(project.services["migrate"]["command"])
    assert outcome.returncode == 1
    assert outcome.stderr.startswith("database_unavailable: ")


def test_redis_takes_its_configuration_and_password(services: dict[str, Any], valkey: Valkey, tmp_path: Path) -> None:
    """The server of the tests, which is compatible, takes the place of redis-server."""
    service, port = services["redis"], choose_port(0, "")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/redis-server").symlink_to(valkey.executable)
    environment = {**service["environment"], "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"}
    [script] = service["command"]
    here = script.replace("dir /data", f"dir {tmp_path}\nport {port}")
    assert here != script
    process = subprocess.Popen([*service["entrypoint"], here], env=environment)
    try:
        password = VARIABLES["REDIS_PASSWORD"]
        with redis.Redis(port=port, password=password, retry=Retry(ConstantBackoff(0.1), 100)) as client:
            assert client.config_get("appendonly", "appendfsync", "maxmemory-policy") == {
                "appendonly": "yes",
                "appendfsync": "everysec",
                "maxmemory-policy": "noeviction",
            }
        with redis.Redis(port=port) as stranger, pytest.raises(redis.AuthenticationError):
            stranger.ping()
        assert password not in Path(f"/proc/{process.pid}/cmdline").read_text()
        process.terminate()
        assert process.wait(PATIENT) == 0  # the shell is gone, and the signal reaches the server
    finally:
        process.kill()
        process.wait()

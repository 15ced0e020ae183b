"""Flower beside a real worker: what its API and its page say of jobs, and what it refuses."""

from __future__ import annotations

import re
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
import pytest
from flower.urls import handlers
from PIL import Image
from tornado.routing import URLSpec

from api.embedded.processes import choose_port
from api.embedded.servers import Valkey
from shared.queue import SHARD_TASK
from shared.settings import Settings
from tests.support.annotation import annotate, paint, wait_until_over
from tests.support.browser import chromium, open_page
from tests.support.fakes import painted
from tests.support.plain_sql import Sql
from tests.support.system import TENANT, Process, System, running_system
from tests.support.waiting import PATIENT, eventually
from tuwen.datasets import ShardStatus
from tuwen.errors import ConfigurationError
from tuwen.jobs import Status
from workers.flower.app import run_flower

PASSWORD = "correct horse"


@pytest.fixture
def system(settings: Settings, tmp_path: Path) -> Iterator[System]:
    port = choose_port(0, "--flower-port")
    with running_system(settings, tmp_path, max_attempts=1, flower_port=port) as system:
        yield system


class Flower:
    """The real process, and a client of its pages."""

    def __init__(self, process: Process, settings: Settings):
        self.process = process
        self.url = f"http://127.0.0.1:{settings.flower_port}"
        self.auth = ("tuwen", PASSWORD) if settings.flower_password else None
        self._client = httpx.Client(base_url=self.url, trust_env=False, timeout=PATIENT)

    def get(self, path: str, **options: Any) -> httpx.Response:
        return self._client.get(path, **{"auth": self.auth, **options})

    def post(self, path: str, **options: Any) -> httpx.Response:
        return self._client.post(path, **{"auth": self.auth, **options})

    def task(self, id: object) -> dict[str, Any]:
        """What it knows of a task; nothing when it has not heard of it."""
        response = self.get(f"/api/task/info/{id}")
        return response.json() if response.is_success else {"state": None}

    def shows(self, id: object, state: str) -> None:
        eventually(lambda: self.task(id)["state"] == state, f"{id} as {state}, now {self.task(id)}")

    def close(self) -> None:
        self._client.close()


@contextmanager
def flower_beside(system: System, folder: Path, **changed: Any) -> Iterator[Flower]:
    settings = Settings.model_validate({**system.settings.model_dump(exclude_unset=True), **changed})
    process = Process(settings, folder / "flower.log", "flower")
    flower = Flower(process, settings)
    try:
        eventually(lambda: answers(flower) or not process.alive, "Flower to answer")
        assert process.alive, process.log.read_text()
        if system.database.workers.alive():
            # It answers a little before it listens to events; workers send one every two seconds.
            eventually(lambda: flower.get("/workers", params={"json": 1}).json()["data"], "a heartbeat")
        yield flower
        assert process.terminate() == 0, process.log.read_text()
    finally:
        flower.close()
        if process.alive:
            process.kill()


@pytest.fixture(scope="module")
def passwordless(module_settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Flower]:
    """Flower without a password, in an installation whose API has a public name."""
    folder = tmp_path_factory.mktemp("passwordless")
    port = choose_port(0, "--flower-port")
    with (
        running_system(module_settings, folder, flower_port=port, public_url="https://tuwen.example") as system,
        flower_beside(system, folder) as flower,
    ):
        yield flower


def answers(flower: Flower) -> bool:
    try:
        return flower.get("/healthcheck").is_success
    except httpx.TransportError:
        return False


def routes(method: str) -> list[str]:
    """A path for every route of Flower's that takes `method`, with something in place of its variables."""
    rules: list[Any] = list(handlers)
    specs = [rule if isinstance(rule, URLSpec) else URLSpec(*rule[:2]) for rule in rules]
    return [
        re.sub(r"\(.[+*]\)", "VARIABLE", spec.regex.pattern).rstrip("$?").removesuffix("/") or "/"
        for spec in specs
        if method in methods_of(spec.handler_class) and spec.regex.pattern != r".*$"
    ]


def methods_of(handler: type) -> set[str]:
    """Names that the handler or a base of its in Flower defines: Tornado itself refuses every other method."""
    return {name for base in handler.__mro__ if base.__module__.startswith("flower.") for name in vars(base)}


def test_jobs_have_their_true_state_run_time_worker_and_error(system: System, tmp_path: Path) -> None:
    worker = system.worker("gpu")
    with flower_beside(system, tmp_path) as flower:
        good, bad, broken = system.submit("a cat", "reject it", "fail badly")
        [running] = system.submit("sleep 20")
        system.wait_until_running([running])
        [waiting] = system.submit("sleep 0.1")
        flower.shows(running, "STARTED")
        system.database.jobs.cancel(running, TENANT)
        system.wait_until_finished([good, bad, broken, running, waiting])

        flower.shows(good, "SUCCESS")
        task = flower.task(good)
        assert task["name"] == "tuwen.generate"
        assert task["worker"].startswith("gpu@")
        assert task["runtime"] > 0

        flower.shows(bad, "FAILURE")
        assert "engine_error: rejected, as asked" in flower.task(bad)["exception"]
        flower.shows(broken, "FAILURE")
        assert "secret of the engine" not in str(flower.task(broken))
        flower.shows(running, "REVOKED")
        flower.shows(waiting, "SUCCESS")

        system.queue.publish([system.database.jobs.retry(running, TENANT)])
        flower.shows(running, "STARTED")

        listed = flower.get("/api/tasks", params={"limit": 100}).json()
        assert {str(id) for id in (good, bad, broken, running, waiting)} == set(listed)
        workers = flower.get("/api/workers", params={"refresh": True}).json()
        [name] = [name for name in workers if name.startswith("gpu@")]
        assert {queue["name"] for queue in workers[name]["active_queues"]} >= {"tuwen.generate", "tuwen.describe"}
    assert worker.alive


def test_jobs_that_run_at_once_are_all_heard_of(system: System, tmp_path: Path) -> None:
    system.worker("gpu")
    with flower_beside(system, tmp_path) as flower:
        ids = system.submit(*["a cat"] * 100)
        for id in ids:
            flower.shows(id, "SUCCESS")
        heard = ("received", "started", "succeeded", "runtime", "worker")
        silent = {id: missing for id in ids if (missing := [key for key in heard if flower.task(id)[key] is None])}
        assert not silent


def test_housekeeping_does_not_crowd_jobs_out(system: System, tmp_path: Path) -> None:
    [id] = system.submit("a cat")
    system.queue.redis.flushdb()
    with flower_beside(system, tmp_path) as flower:
        system.worker("gpu")
        system.housekeeper()
        system.wait_until_finished([id])  # so the housekeeper has worked: nobody else publishes it again
        flower.shows(id, "SUCCESS")
        names = {task["name"] for task in flower.get("/api/tasks").json().values()}
        assert names == {"tuwen.generate"}


def test_it_acts_on_nothing(system: System, tmp_path: Path) -> None:
    worker = system.worker("gpu")
    [name] = [row.name for row in system.database.workers.alive()]
    [id] = system.submit("a cat")
    with flower_beside(system, tmp_path) as flower:
        eventually(lambda: name in flower.get("/api/workers", params={"refresh": True}).json(), "the worker")
        paths = routes("post")
        assert len(paths) >= 14
        for path in paths:
            if path == "/tasks/datatable":  # only reads; a form because its query is long
                continue
            for argument in (name, str(id), "tuwen.generate"):
                options = {"workername": name, "queue": "x", "min": 1, "max": 2, "ratelimit": 1, "hard": 1, "soft": 1}
                bodies: list[dict[str, Any]] = [{"data": options}, {"json": {"args": []}}]
                for body in bodies:
                    refused = flower.post(path.replace("VARIABLE", argument), **body)
                    assert refused.status_code in (403, 404, 405), (path, argument, refused.status_code)
        for path in routes("get"):
            for method in ("PUT", "DELETE", "PATCH"):
                refused = httpx.request(method, flower.url + path, trust_env=False)
                assert refused.status_code in (403, 404, 405), (method, path, refused.status_code)
        page = flower.get(f"/worker/{name}").text
        assert "Shut Down" not in page
    assert worker.alive
    assert system.wait_until_finished([id])[0].status is Status.SUCCEEDED


def test_password_guards_everything_but_the_health_check(system: System, tmp_path: Path) -> None:
    [id] = system.submit("a cat")
    with flower_beside(system, tmp_path, flower_host="0.0.0.0", flower_password=PASSWORD) as flower:
        for path in routes("get"):
            if path in ("/healthcheck", "/static/VARIABLE", "/login", "/logout"):
                continue
            path = path.replace("VARIABLE", str(id))
            for wrong in (None, ("tuwen", "wrong"), ("", ""), ("tuwen", "密码")):
                refused = flower.get(path, auth=wrong)
                assert refused.status_code in (401, 500), (path, wrong, refused.status_code)
                assert "tuwen.generate" not in refused.text
        assert flower.get("/", auth=None).headers["WWW-Authenticate"].startswith("Basic")  # so that a browser asks
        for path in ("/", "/tasks", "/broker", "/metrics", "/api/workers", "/api/tasks"):
            assert flower.get(path).status_code == 200, path


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"flower_host": "0.0.0.0"}, "TUWEN_FLOWER_PASSWORD"),
        ({"flower_host": "192.0.2.1", "flower_password": ""}, "TUWEN_FLOWER_PASSWORD"),
        ({"flower_host": "192.0.2.1", "flower_password": "x"}, "cannot listen on 192.0.2.1"),
        ({"flower_password": "密码"}, "ASCII"),
        ({"data_dir": "/dev/null"}, "cannot keep its state"),
    ],
)
def test_it_refuses_to_start(settings: Settings, changed: dict[str, Any], message: str) -> None:
    values = {**settings.model_dump(exclude_unset=True), "flower_port": choose_port(0, ""), **changed}
    with pytest.raises(ConfigurationError, match=message):
        run_flower(Settings.model_validate(values))


def test_taken_port(system: System, tmp_path: Path) -> None:
    with flower_beside(system, tmp_path):
        second = Process(system.settings, tmp_path / "second.log", "flower")
        eventually(lambda: not second.alive, "the second Flower to give up")
        assert second.terminate() == 1
        assert "TUWEN_FLOWER_PORT" in second.log.read_text()
        assert "Traceback" not in second.log.read_text()


def test_other_web_sites_may_not_read_it(system: System, tmp_path: Path) -> None:
    with flower_beside(system, tmp_path) as flower:
        response = flower.get("/api/tasks", headers={"Origin": "https://example.com"})
        assert response.status_code == 200
        assert not [name for name in response.headers if name.lower().startswith("access-control-")]


@pytest.mark.parametrize(
    "path", ["/", "/api/tasks", "/metrics", "/healthcheck", "/static/css/bootstrap.min.css", "/none"]
)
def test_without_a_password_only_this_machine_by_name_is_answered(
    passwordless: Flower, path: str, subtests: pytest.Subtests
) -> None:
    for host in ("rebound.example", "127.0.0.1.example", "10.0.0.1:5555", "", "]["):
        with subtests.test(host=host):
            assert passwordless.get(path, headers={"Host": host}).status_code in (400, 403)
            assert passwordless.post(path, headers={"Host": host}).status_code in (400, 403)
    for host in ("localhost", "LOCALHOST:5555", "127.0.0.1:5555", "[::1]:5555", "tuwen.example"):
        with subtests.test(host=host):
            assert passwordless.get(path, headers={"Host": host}).status_code == (404 if path == "/none" else 200)


@pytest.mark.parametrize("path", ["/", "/api/tasks", "/healthcheck", "/static/css/bootstrap.min.css", "/none"])
@pytest.mark.parametrize("host", ["localhost", "rebound.example"])
def test_no_other_site_may_frame_it(passwordless: Flower, path: str, host: str) -> None:
    headers = passwordless.get(path, headers={"Host": host}).headers
    assert headers["X-Frame-Options"] == "DENY"
    assert headers["Content-Security-Policy"] == "frame-ancestors 'none'"


def test_with_a_password_it_has_any_name(system: System, tmp_path: Path) -> None:
    with flower_beside(system, tmp_path, flower_password=PASSWORD) as flower:
        assert flower.get("/", headers={"Host": "flower.example"}).status_code == 200
        assert flower.get("/", headers={"Host": "flower.example"}, auth=None).status_code == 401


def test_no_page_shows_the_password_of_redis(system: System, valkey: Valkey, tmp_path: Path) -> None:
    assert valkey.password in system.settings.redis_url
    system.worker("gpu")
    [name] = [row.name for row in system.database.workers.alive()]
    [id] = system.submit("a cat")
    system.wait_until_finished([id])
    with flower_beside(system, tmp_path) as flower:
        eventually(lambda: name in flower.get("/api/workers", params={"refresh": True}).json(), "the worker")
        for path in ("/", "/broker", "/tasks", f"/worker/{name}", "/api/workers?refresh=1", "/metrics"):
            page = flower.get(path)
            assert page.status_code == 200, path
            assert valkey.password not in page.text, path
        assert "tuwen.generate" in flower.get("/broker").text
    assert valkey.password not in flower.process.log.read_text()


def test_redis_restarts(system: System, valkey: Valkey, tmp_path: Path) -> None:
    system.worker("gpu")
    system.housekeeper()
    with flower_beside(system, tmp_path) as flower:
        [before] = system.submit("a cat")
        flower.shows(before, "SUCCESS")
        [meanwhile] = system.submit("sleep 5")
        system.wait_until_running([meanwhile])
        valkey.kill()
        # Its end is said to nobody but PostgreSQL.
        system.wait_until_finished([meanwhile])
        valkey.start()
        [after] = system.submit("a dog")
        flower.shows(after, "SUCCESS")
        flower.shows(meanwhile, "SUCCESS")
        flower.shows(before, "SUCCESS")


def test_flower_restarts(system: System, tmp_path: Path) -> None:
    system.worker("gpu")
    with flower_beside(system, tmp_path) as flower:
        [before] = system.submit("a cat")
        flower.shows(before, "SUCCESS")
        [meanwhile] = system.submit("sleep 8")
        flower.shows(meanwhile, "STARTED")
        worker = flower.task(before)["worker"]
    [unheard] = system.submit("reject it")
    system.wait_until_finished([meanwhile, unheard])
    with flower_beside(system, tmp_path) as flower:
        assert flower.task(before)["worker"] == worker
        flower.shows(meanwhile, "SUCCESS")
        flower.shows(unheard, "FAILURE")
        assert flower.task(unheard)["exception"] == "engine_error: rejected, as asked"
        for path in (f"/task/{unheard}", "/tasks", "/"):
            assert flower.get(path).status_code == 200


def sleepers(folder: Path, count: int) -> Path:
    """Images that take a fake engine half a second a batch."""
    folder.mkdir()
    for number in range(count):
        Image.fromarray(painted("sleep")).save(folder / f"{number:04d}.png")
    return folder


def test_flower_restarts_while_shards_run(settings: Settings, sql: Sql, tmp_path: Path) -> None:
    def shards(dataset_id: UUID) -> dict[str, ShardStatus]:
        rows = sql("SELECT id, status FROM shards WHERE dataset_id = :id ORDER BY number", id=dataset_id)
        return {str(row.id): ShardStatus(row.status) for row in rows}

    port = choose_port(0, "--flower-port")
    with running_system(settings, tmp_path, flower_port=port, shards_at_once=1) as system:
        system.worker("gpu")
        system.housekeeper()
        early = annotate(system, paint(tmp_path / "early", range(32)), tmp_path / "out-early", shard_size=16)
        wait_until_over(system, early)
        with flower_beside(system, tmp_path) as flower:
            for id in shards(early):  # ended before Flower was there
                flower.shows(id, "SUCCESS")
                assert flower.task(id)["name"] == SHARD_TASK
                assert flower.task(id)["worker"].startswith("gpu@")
                assert flower.task(id)["runtime"] > 0
            slow = annotate(system, sleepers(tmp_path / "slow", 288), tmp_path / "out-slow", shard_size=144)
            system.wait_until(lambda: ShardStatus.RUNNING in shards(slow).values(), "a running shard")
            first, second = shards(slow)
            flower.shows(first, "STARTED")
        system.wait_until(lambda: shards(slow)[second] is ShardStatus.RUNNING, "the other shard")
        system.database.datasets.cancel(slow, TENANT)
        system.wait_until(lambda: shards(slow)[second] is ShardStatus.CANCELLED, "the end of the other shard")
        with flower_beside(system, tmp_path) as flower:
            flower.shows(first, "SUCCESS")
            flower.shows(second, "REVOKED")


def test_it_is_killed(system: System, tmp_path: Path) -> None:
    system.worker("gpu")
    [id] = system.submit("a cat")
    system.wait_until_finished([id])
    with pytest.raises(AssertionError), flower_beside(system, tmp_path) as flower:
        flower.process.signal(signal.SIGKILL)
    with flower_beside(system, tmp_path) as flower:
        flower.shows(id, "SUCCESS")


@pytest.mark.needs("chromium")
def test_page(system: System, tmp_path: Path) -> None:
    system.worker("gpu")
    with flower_beside(system, tmp_path, flower_password=PASSWORD) as flower, chromium() as browser:
        good, bad = system.submit("a cat", "reject it")
        system.wait_until_finished([good, bad])
        flower.shows(good, "SUCCESS")
        flower.shows(bad, "FAILURE")
        page = open_page(
            browser,
            http_credentials={"username": "tuwen", "password": PASSWORD},
            viewport={"width": 1600, "height": 800},
        )
        problems: list[str] = []
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.goto(f"{flower.url}/tasks")
        row = page.get_by_role("row").filter(has_text=str(good))
        row.wait_for()
        assert "SUCCESS" in row.inner_text()
        assert "gpu@" in row.inner_text()
        failed = page.get_by_role("row").filter(has_text=str(bad))
        assert "FAILURE" in failed.inner_text()
        assert "rejected, as asked" in failed.inner_text()
        page.screenshot(path=tmp_path / "tasks.png")
        page.goto(f"{flower.url}/task/{bad}")
        assert "rejected, as asked" in page.inner_text("body")
        page.screenshot(path=tmp_path / "task.png")
        page.goto(f"{flower.url}/workers")
        page.get_by_role("row").filter(has_text="gpu@").first.wait_for()
        page.screenshot(path=tmp_path / "workers.png")
    assert not problems

"""Servers that are killed or frozen under the API."""

from __future__ import annotations

import threading
from typing import Self
from uuid import uuid4

import httpx

from api.embedded.servers import Postgres, Valkey
from shared.database import Database
from shared.settings import Settings
from tests.support.api_server import png, serving
from tests.support.plain_sql import Sql
from tests.support.system import freeze, ports_here
from tests.support.waiting import PATIENT, eventually
from tuwen.jobs import Kind

GENERATE = {"input": {"kind": "generate", "prompt": "一只黑色的猫在草地上跳跃"}}
FROZEN = 5.0
"""Seconds that a frozen Redis holds up a publisher (shared.queue): no request may be that one."""


def due(database: Database) -> int:
    """Take what the housekeeper would publish now."""
    return len(database.jobs.take_due(Kind.GENERATE, 1000))


def test_submissions_are_kept_while_redis_is_dead(api: httpx.Client, valkey: Valkey, database: Database) -> None:
    valkey.kill()
    answers = [api.post("/v1/jobs", json=GENERATE) for _ in range(5)]
    assert [answer.status_code for answer in answers] == [202] * 5
    # The housekeeper learns of them at once, instead of when a lost message would be noticed.
    taken = 0

    def all_due() -> bool:
        nonlocal taken
        taken += due(database)
        return taken == 5

    eventually(all_due)
    assert api.get("/readyz").json() == {
        "status": "degraded",
        "components": {"postgresql": "ok", "storage": "ok", "redis": "failed"},
    }
    id = answers[0].json()["id"]
    assert api.get(f"/v1/jobs/{id}").status_code == 200
    assert 'tuwen_up{component="redis"} 0.0' in api.get("/metrics").text
    assert api.post(f"/v1/jobs/{id}/cancel").json()["status"] == "cancelled"
    valkey.start()
    eventually(lambda: api.get("/readyz").json()["status"] == "ready")


def test_nobody_waits_for_a_frozen_redis(api: httpx.Client, valkey: Valkey, database: Database) -> None:
    running = api.post("/v1/jobs", json=GENERATE).json()["id"]
    eventually(lambda: due(database) == 0)
    with freeze(valkey.pid):
        api.timeout = httpx.Timeout(FROZEN)
        for _ in range(10):
            assert api.post("/v1/jobs", json=GENERATE).status_code == 202
        assert database.jobs.claim([running], "cpu@test")
        for _ in range(10):
            assert api.get(f"/v1/jobs/{running}").json()["status"] == "running"
        assert api.get("/readyz").json()["status"] == "degraded"
        assert 'tuwen_up{component="redis"} 0.0' in api.get("/metrics").text
        assert api.post(f"/v1/jobs/{running}/cancel").json()["cancel_requested"]
        taken = 0

        def all_due() -> bool:
            nonlocal taken
            taken += due(database)
            return taken == 10

        eventually(all_due)


def test_without_postgresql_nothing_is_accepted(api: httpx.Client, postgres: Postgres, database: Database) -> None:
    kept = api.post("/v1/jobs", json=GENERATE).json()["id"]
    postgres.kill()
    headers = {"Idempotency-Key": "once"}
    for answer in (
        api.post("/v1/jobs", json=GENERATE, headers=headers),
        api.post("/v1/jobs/batch", json={"jobs": [GENERATE, GENERATE]}),
        api.get("/v1/jobs"),
        api.get(f"/v1/jobs/{kept}"),
        api.get(f"/v1/jobs/{kept}/events"),
        api.post("/v1/files", content=png()),
    ):
        assert (answer.status_code, answer.json()["code"]) == (503, "database_unavailable")
        assert int(answer.headers["retry-after"]) > 0
    assert api.get("/healthz").status_code == 200
    ready = api.get("/readyz")
    assert (ready.status_code, ready.json()["components"]["postgresql"]) == (503, "failed")
    assert 'tuwen_up{component="postgresql"} 0.0' in api.get("/metrics").text
    postgres.start()
    eventually(lambda: api.get("/readyz").status_code == 200)
    assert [job["id"] for job in api.get("/v1/jobs").json()["jobs"]] == [kept]
    # The key of the attempt that failed is not taken.
    assert api.post("/v1/jobs", json={**GENERATE, "priority": 1}, headers=headers).status_code == 202


class Submitters:
    """People who submit one job after the other, each under a key of its own, from several threads."""

    def __init__(self, url: str, threads: int = 4):
        self._url = url
        self.accepted: dict[str, str] = {}
        self.refused: set[str] = set()
        self._done = threading.Event()
        self._threads = [threading.Thread(target=self._submit) for _ in range(threads)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        for thread in self._threads:
            thread.join()

    def _submit(self) -> None:
        with httpx.Client(base_url=self._url, timeout=PATIENT) as api:
            while not self._done.is_set():
                self.submit(api, str(uuid4()))

    def submit(self, api: httpx.Client, key: str) -> None:
        answer = api.post("/v1/jobs", json=GENERATE, headers={"Idempotency-Key": key})
        if answer.status_code == 202:
            self.accepted[key] = answer.json()["id"]
        else:
            assert (answer.status_code, answer.json()["code"]) == (503, "database_unavailable")
            self.refused.add(key)


def test_nobody_waits_for_a_frozen_postgresql(api: httpx.Client, postgres: Postgres, sql: Sql) -> None:
    others = ports_here(postgres)  # of this test, and of earlier ones
    kept = api.post("/v1/jobs", json=GENERATE).json()["id"]
    with Submitters(str(api.base_url)) as submitters:
        eventually(lambda: len(submitters.accepted) > 20)
        with freeze(postgres.pid):
            assert api.get("/healthz").status_code == 200
            ready = api.get("/readyz")
            assert (ready.status_code, ready.json()["components"]["postgresql"]) == (503, "failed")
            eventually(lambda: len(submitters.refused) > 4)
            for answer in (
                api.post("/v1/jobs/batch", json={"jobs": [GENERATE, GENERATE]}),
                api.get("/v1/jobs"),
                api.get(f"/v1/jobs/{kept}"),
                api.get(f"/v1/jobs/{kept}/events"),
                api.post(f"/v1/jobs/{kept}/cancel"),
                api.post("/v1/files", content=png()),
                api.get("/v1/models"),
                api.get("/v1/datasets"),
                api.get("/v1/batches"),
            ):
                assert answer.status_code == 503, answer.text
                assert int(answer.headers["retry-after"]) > 0
                assert "PostgreSQL is silent" in answer.text
            assert 'tuwen_up{component="postgresql"} 0.0' in api.get("/metrics").text
        eventually(lambda: api.get("/readyz").status_code == 200)
    # The key of a submission of which nobody knew what became of it makes the same job, or its first.
    for key in submitters.refused.copy():
        submitters.submit(api, key)
    assert submitters.accepted.keys() >= submitters.refused
    jobs = {str(id) for (id,) in sql("SELECT id FROM jobs")}
    assert jobs == {kept, *submitters.accepted.values()}
    assert len(jobs) == 1 + len(submitters.accepted)
    # Connections that were given up are closed at both ends: what is left are those of the pools.
    eventually(lambda: ports_here(postgres) - others <= ports_there(sql) <= ports_here(postgres))
    assert len(ports_there(sql)) <= 8 + 2


def ports_there(sql: Sql) -> set[int]:
    """Ports of the connections that the server has from our code, in this test's database."""
    query = "SELECT client_port FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'tuwen'"
    return {port for (port,) in sql(query)}


def test_a_watcher_outlives_postgresql(api: httpx.Client, postgres: Postgres) -> None:
    id = api.post("/v1/jobs", json=GENERATE).json()["id"]
    with api.stream("GET", f"/v1/jobs/{id}/events") as answer:
        lines = answer.iter_lines()
        assert next(lines) == "event: state"
        postgres.kill()
        postgres.start()
        eventually(lambda: api.post(f"/v1/jobs/{id}/cancel").status_code in (200, 409))
        assert any('"status":"cancelled"' in line for line in lines)


def test_without_storage_it_is_not_ready(api: httpx.Client, settings: Settings) -> None:
    (settings.data_dir / "objects").rename(settings.data_dir / "away")
    ready = api.get("/readyz")
    assert (ready.status_code, ready.json()["components"]["storage"]) == (503, "failed")
    assert ready.json()["problems"] == {"storage": "the storage folder is missing: mount or create it again"}


def test_a_storage_that_takes_nothing_is_not_ready(api: httpx.Client, settings: Settings) -> None:
    """It can be read as before: only a write shows it."""
    eventually(lambda: api.get("/readyz").json()["status"] == "ready")
    probe = settings.data_dir / "objects" / "readiness" / "probe"
    assert probe.read_bytes(), "a look at it wrote something"
    probe.unlink()
    probe.mkdir()
    (probe / "in the way").touch()
    eventually(lambda: api.get("/readyz").status_code == 503)
    assert api.get("/readyz").json()["problems"].keys() == {"storage"}
    (probe / "in the way").unlink()
    probe.rmdir()
    eventually(lambda: api.get("/readyz").status_code == 200)


def test_it_starts_before_its_servers(settings: Settings, valkey: Valkey, postgres: Postgres) -> None:
    valkey.kill()
    postgres.kill()
    with serving(settings) as url, httpx.Client(base_url=url, timeout=PATIENT) as api:
        assert api.get("/healthz").status_code == 200
        assert api.get("/readyz").status_code == 503
        postgres.start()
        valkey.start()
        eventually(lambda: api.get("/readyz").json()["status"] == "ready")
        assert api.post("/v1/jobs", json=GENERATE).status_code == 202

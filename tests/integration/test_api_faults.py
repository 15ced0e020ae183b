"""Servers that are killed or frozen under the API."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import httpx
import pytest

from api.servers import Postgres, Valkey
from shared.database import Database
from shared.jobs import Kind
from shared.settings import Settings
from tests.integration.api_server import eventually, png, serving

GENERATE = {"input": {"kind": "generate", "prompt": "一只黑色的猫在草地上跳跃"}}
FROZEN = 5.0
"""Seconds a frozen Redis holds up whoever publishes to it (shared.queue): no request may be that one."""


@pytest.fixture
def database(settings: Settings) -> Iterator[Database]:
    database = Database(settings)
    yield database
    database.close()


def due(database: Database) -> int:
    """Take what the housekeeper would publish now."""
    return len(database.take_due(Kind.GENERATE, 1000))


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
    os.kill(valkey.pid, signal.SIGSTOP)
    try:
        api.timeout = httpx.Timeout(FROZEN)
        for _ in range(10):
            assert api.post("/v1/jobs", json=GENERATE).status_code == 202
        assert database.claim([running], "cpu@test")
        for _ in range(10):
            assert api.get(f"/v1/jobs/{running}").json()["status"] == "running"
        assert api.get("/readyz").json()["status"] == "degraded"
        assert api.post(f"/v1/jobs/{running}/cancel").json()["cancel_requested"]
        taken = 0

        def all_due() -> bool:
            nonlocal taken
            taken += due(database)
            return taken == 10

        eventually(all_due)
    finally:
        os.kill(valkey.pid, signal.SIGCONT)


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


def test_it_starts_before_its_servers(settings: Settings, valkey: Valkey, postgres: Postgres) -> None:
    valkey.kill()
    postgres.kill()
    with serving(settings) as url, httpx.Client(base_url=url, timeout=30) as api:
        assert api.get("/healthz").status_code == 200
        assert api.get("/readyz").status_code == 503
        postgres.start()
        valkey.start()
        eventually(lambda: api.get("/readyz").json()["status"] == "ready")
        assert api.post("/v1/jobs", json=GENERATE).status_code == 202

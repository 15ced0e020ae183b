"""`tuwen doctor` beside real servers that are in a bad state: it says what, and what to do."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import psycopg
import pytest
import redis
from typer.testing import CliRunner

from api.cli import checks, doctor
from api.cli.finding import Finding
from api.cli.main import app
from shared.database import Database
from shared.database.workers import ServedModel
from shared.queue import JobQueue
from shared.settings import Settings
from shared.telemetry.metrics import JOBS_FINISHED, Recorder
from tests.support.clock import FakeClock
from tests.support.disks import small_disk
from tests.support.plain_sql import Sql
from tests.support.servers import Valkey
from tests.support.waiting import PATIENT
from tuwen.datasets import DatasetRequest
from tuwen.jobs import JobRequest, Kind, Status
from tuwen.version import __version__

Check = Callable[[Settings], Iterator[Finding]]
REQUEST = JobRequest.model_validate({"input": {"kind": "generate", "prompt": "a cat"}, "priority": 0})


def look(check: Check, settings: Settings) -> dict[str, Finding]:
    """The findings by their subject, as the command shows them when a server fails as well."""
    return {finding.subject: finding for finding in doctor._guard(check.__name__, lambda: check(settings))}


def test_nothing_is_wrong_with_servers_that_work(settings: Settings) -> None:
    for check in checks.RUNNING:
        wrong = {subject for subject, finding in look(check, settings).items() if not finding.fine}
        # The tests' PostgreSQL saves itself the wait for the disk.
        assert wrong <= {"postgres durability"}, check.__name__


# ── this process ──────────────────────────────────────────────────────────────────────────────────


def test_stray_variables_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    assert checks._variables(embedded=False).fine
    monkeypatch.setenv("TUWEN_LEESE", "5")
    monkeypatch.setenv("TUWEN_URL", "http://127.0.0.1:8000")
    monkeypatch.setenv("PGOPTIONS", "-c statement_timeout=1")
    monkeypatch.setenv("PGPASSWORD", "only completes the URL")
    finding = checks._variables(embedded=False)
    assert finding.found == "TUWEN_LEESE, PGOPTIONS set"
    assert "no setting is called so" in finding.advice
    assert "unset PGOPTIONS" in finding.advice
    assert checks._variables(embedded=True).found == "TUWEN_LEESE set", "tuwen up forgets those of libpq"


def test_too_few_open_files() -> None:
    """A limit can only be lowered, so another process does it, step by step."""
    program = """
import json, resource
from api.cli.checks import _open_files
for limit in (2000, 500, 200):
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
    found = _open_files()
    print(json.dumps([limit, found.fine, bool(found.advice) and found.serious]))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=PATIENT, check=True)
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert found == [[2000, True, False], [500, False, False], [200, False, True]]


def test_a_disk_that_is_nearly_full(settings: Settings, tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", megabytes=2) as mounted:
        if not mounted:
            pytest.skip("only root may mount a disk")
        changed = settings.model_copy(update={"storage_url": f"file://{tmp_path / 'disk' / 'objects'}"})
        found = {each.subject: each for each in checks.of_this_process(changed, embedded=False)}
    assert found["storage disk"].serious
    assert "make room" in found["storage disk"].advice


# ── PostgreSQL ────────────────────────────────────────────────────────────────────────────────────


def test_a_postgresql_that_takes_no_writes(settings: Settings) -> None:
    read_only = f"{settings.database_url}?options=-c%20default_transaction_read_only%3Don"
    found = look(checks.postgres_limits, settings.model_copy(update={"database_url": read_only}))
    assert found["postgres writes"].serious
    assert "not a standby" in found["postgres writes"].advice


def test_a_postgresql_that_may_lose_what_was_accepted(settings: Settings) -> None:
    durability = look(checks.postgres_limits, settings)["postgres durability"]
    assert durability.found == "fsync, full_page_writes off"
    assert "power cut" in durability.advice


def test_connections_run_out(settings: Settings) -> None:
    taken: list[psycopg.Connection] = []
    try:
        while look(checks.postgres_limits, settings)["connections"].fine:
            taken += [psycopg.connect(settings.database_url, application_name="tuwen") for _ in range(40)]
        finding = look(checks.postgres_limits, settings)["connections"]
    finally:
        for connection in taken:
            connection.close()
    assert len(taken) > 100
    assert f"{len(taken)} by Tuwen" in finding.found
    assert not finding.serious
    assert "raise max_connections" in finding.advice


@pytest.mark.parametrize(("ahead", "said"), [(3600.0, "ahead of"), (-3600.0, "behind")])
def test_clocks_that_differ(settings: Settings, ahead: float, said: str) -> None:
    FakeClock(settings.database_url).set(ahead)
    finding = look(checks.postgres_limits, settings)["clocks"]
    assert said in finding.found
    assert "NTP" in finding.advice


@pytest.mark.parametrize(
    ("revision", "said", "advice"),
    [("0001", "behind this release", "tuwen migrate"), ("9999", "of a newer release", "up to that release")],
)
def test_a_schema_of_another_release(settings: Settings, sql: Sql, revision: str, said: str, advice: str) -> None:
    sql("UPDATE alembic_version SET version_num = :revision", revision=revision)
    schema = look(doctor._postgres, settings)["schema"]
    assert (schema.found, schema.serious) == (said, True)
    assert advice in schema.advice


# ── Redis ─────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def own_valkey(settings: Settings, tmp_path: Path) -> Iterator[tuple[Settings, redis.Redis]]:
    """A server that a test may configure badly."""
    with Valkey(tmp_path / "valkey") as server, redis.Redis.from_url(server.url) as client:
        yield settings.model_copy(update={"redis_url": server.url}), client


def test_a_redis_that_is_full(own_valkey: tuple[Settings, redis.Redis]) -> None:
    settings, client = own_valkey
    for number in range(64):  # small ones, so that no buffer is given back between the two looks
        client.set(f"ballast {number}", bytes(2**16))
    client.config_set("maxmemory", int(client.info("memory")["used_memory"] * 1.1))
    nearly = look(checks.redis_limits, settings)["redis memory"]
    assert "raise maxmemory" in nearly.advice
    client.config_set("maxmemory", "1mb")
    full = look(checks.redis_limits, settings)["redis_limits"]
    assert full.serious
    assert "maxmemory" in full.found


def test_a_redis_that_drops_keys(own_valkey: tuple[Settings, redis.Redis]) -> None:
    settings, client = own_valkey
    client.set("message", bytes(4 * 2**20))
    client.config_set("maxmemory-policy", "allkeys-lru")
    client.config_set("maxmemory", int(client.info("memory")["used_memory"]) - 2**20)
    client.set("another", "1")
    assert "noeviction" in look(checks.redis_limits, settings)["redis eviction"].advice
    assert "noeviction" in look(doctor._redis, settings)["redis eviction"].advice


# ── work ──────────────────────────────────────────────────────────────────────────────────────────


def test_a_job_that_starves(settings: Settings, database: Database, sql: Sql) -> None:
    [old] = database.jobs.submit([REQUEST], tenant="t").ids
    database.jobs.submit([REQUEST.model_copy(update={"priority": 9})] * 3, tenant="t")
    sql("UPDATE jobs SET available_at = now() - interval '2 hours' WHERE id = :id", id=old)
    starving, fresh = checks.queue(settings)
    assert starving.found.startswith("1 generate jobs of priority 0, the oldest for 72")
    assert "more urgent" in starving.advice
    assert fresh.found.startswith("3 generate jobs of priority 9")
    assert fresh.fine


def test_what_took_workers_down_and_shards_that_failed(settings: Settings, database: Database, sql: Sql) -> None:
    recorder = Recorder()
    recorder.count(JOBS_FINISHED, Kind.MATCH, Status.QUARANTINED, by=2)
    with redis.Redis.from_url(settings.redis_url) as client:
        recorder.flush(client)
    id = database.datasets.submit(DatasetRequest.model_validate({"source": "/in", "destination": "/out"}), "t")
    claim = database.datasets.take(id, "h")
    assert claim
    assert database.datasets.add_shard(claim, id, 0, 8, "plan/0", 0.0)
    sql("UPDATE shards SET status = 'failed', finished_at = now(), error_code = 'x', dispatch_due_at = NULL")
    found = look(checks.quarantine, settings)
    assert found["quarantine"].found == "2 match jobs took workers down"
    assert "tuwen jobs ls --status quarantined" in found["quarantine"].advice
    assert found["data sets"].found == "1 shards failed"


def test_processes_of_another_release_and_models_of_other_weights(settings: Settings, database: Database) -> None:
    queue = JobQueue(settings)
    queue.sign_housekeeper("here", 60)
    assert look(checks.releases, settings)["releases"].fine
    queue.redis.set("tuwen:housekeeper:there", "0.0.1")
    queue.close()
    for worker, revision in (("w0@a", "r1"), ("w1@b", "r2")):
        database.workers.register(worker, "cuda:0", {Kind.GENERATE: ServedModel("xl", revision)})
    found = look(checks.releases, settings)
    assert found["releases"].found == f"this is {__version__}; housekeepers: there 0.0.1"
    assert "restart the workers" in found["models"].advice
    assert "w0@a have r1; w1@b have r2" in found["models"].found


def test_an_api_of_another_release() -> None:
    class Old(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b'{"status": "ok", "version": "0.0.1"}')

        def log_message(self, *_: Any) -> None: ...

    with HTTPServer(("127.0.0.1", 0), Old) as server:
        threading.Thread(target=server.handle_request).start()
        [finding] = checks.api_release(f"http://127.0.0.1:{server.server_port}")
    assert "0.0.1" in finding.found
    assert list(checks.api_release("http://127.0.0.1:9")) == []


def test_servers_that_are_away_end_the_command_with_status_1(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "_torch", lambda _: iter(()))  # takes seconds, and is not what this is about
    monkeypatch.setenv("TUWEN_DATABASE_URL", "postgresql://nobody@127.0.0.1:9/tuwen")
    monkeypatch.setenv("TUWEN_REDIS_URL", settings.redis_url)
    monkeypatch.setenv("TUWEN_STORAGE_URL", settings.storage_url)
    monkeypatch.setenv("TUWEN_DATA_DIR", str(settings.data_dir))
    outcome = CliRunner().invoke(app, ["--url", "http://127.0.0.1:9", "doctor", "--json"])
    findings = [json.loads(line) for line in outcome.stdout.splitlines()]
    assert outcome.exit_code == 1
    wrong = {finding["subject"]: finding["advice"] for finding in findings if finding["advice"] and finding["serious"]}
    assert {"postgres", "api", "housekeeper"} <= wrong.keys()
    assert "TUWEN_DATABASE_URL" in wrong["postgres"]

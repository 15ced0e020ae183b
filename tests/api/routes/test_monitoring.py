"""Health, models and figures."""

from __future__ import annotations

import re
import subprocess
import sys
from uuid import UUID, uuid4

import httpx
import pytest
import redis
from prometheus_client.parser import text_string_to_metric_families

from api.cli.doctor import _webhooks
from api.embedded.servers import Valkey
from shared.database import Database
from shared.database.workers import ServedModel
from shared.queue import JobQueue
from shared.settings import Settings
from shared.telemetry.metrics import Recorder
from tests.support.api_server import FakeWorker, serving
from tests.support.plain_sql import Sql
from tests.support.system import gone
from tests.support.waiting import PATIENT, eventually
from tuwen.datasets import DatasetRequest
from tuwen.jobs import JobRequest, Kind, Status
from tuwen.version import __version__

GENERATE = {"input": {"kind": "generate", "prompt": "a cat"}}


def figures(api: httpx.Client) -> dict[tuple[str, ...], float]:
    """(name, label values in the order of their names…) → value, as Prometheus reads it."""
    answer = api.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    return {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }


def test_webhooks_that_are_owed_and_given_up_are_counted(
    api: httpx.Client, settings: Settings, database: Database, sql: Sql
) -> None:
    hook = "https://example.com/hook"
    request = JobRequest.model_validate({"input": {"kind": "generate", "prompt": "a cat"}, "webhook": hook})
    ids = database.jobs.submit([request] * 4, tenant="t").ids
    for id in ids[:3]:
        database.jobs.cancel(id, "t")
    sql("UPDATE webhooks SET owed_at = now() - interval '5 minutes' WHERE job_id = :id", id=ids[0])
    sql("UPDATE webhooks SET due_at = NULL WHERE job_id = :id", id=ids[1])
    shown = figures(api)
    assert shown["tuwen_webhooks_waiting",] == 2
    assert shown["tuwen_webhooks_late",] == 1
    assert shown["tuwen_webhooks_given_up",] == 1
    assert 300 <= shown["tuwen_oldest_webhook_age_seconds",] < 300 + PATIENT
    [found] = _webhooks(settings)
    assert found.found == "2 to be delivered, 1 of them late; 1 given up"
    assert "TUWEN_WEBHOOK_SECRET" in found.advice


@pytest.mark.parametrize("page", ["/", "/docs", "/redoc"])
def test_pages_take_nothing_from_elsewhere(api: httpx.Client, page: str) -> None:
    html = api.get(page).raise_for_status().text
    loaded = re.findall(r'<(?:script|link|img)[^>]+(?:src|href)="([^"]+)"', html)
    assert page == "/" or loaded
    for address in loaded:
        assert not address.startswith(("http:", "https:", "//"))
        assert api.get(address).is_success


def test_health_and_readiness(api: httpx.Client) -> None:
    assert api.get("/healthz").json()["status"] == "ok"
    assert api.get("/readyz").json() == {
        "status": "ready",
        "components": {"postgresql": "ok", "storage": "ok", "redis": "ok"},
    }


def test_a_model_is_ready_while_a_worker_holds_it(api: httpx.Client, settings: Settings) -> None:
    database = Database(settings)
    held = {Kind.GENERATE: ServedModel("builtin", "r1"), Kind.MATCH: ServedModel("another", "r2")}
    database.workers.register("gpu0@host", "cuda:0", held)
    models = {model["kind"]: model for model in api.get("/v1/models").json()["models"]}
    assert list(models) == [kind.value for kind in Kind]
    assert models["generate"] == {
        "kind": "generate",
        "model": "builtin",
        "ready": True,
        "workers": [{"worker": "gpu0@host", "device": "cuda:0", "revision": "r1", "release": __version__}],
    }
    assert not any(models[kind]["ready"] for kind in ("describe", "recognize", "match"))
    assert figures(api)["tuwen_workers", "cuda:0"] == 1
    database.workers.unregister("gpu0@host")
    assert not api.get("/v1/models").json()["models"][0]["ready"]
    database.close()


def test_queues_are_counted(api: httpx.Client, hand: FakeWorker) -> None:
    ids = [api.post("/v1/jobs", json=GENERATE).json()["id"] for _ in range(3)]
    hand.claim(UUID(ids[0]))
    seen = figures(api)
    assert seen["tuwen_jobs_queued", "generate"] == 2
    assert seen["tuwen_jobs_running", "generate"] == 1
    assert seen["tuwen_oldest_job_age_seconds", "generate"] > 0
    assert seen["tuwen_jobs_queued", "match"] == seen["tuwen_oldest_job_age_seconds", "match"] == 0
    assert seen["tuwen_up", "postgresql"] == seen["tuwen_up", "redis"] == 1


def test_a_storage_that_is_away_and_a_housekeeper_that_is_missing_are_shown(settings: Settings) -> None:
    with serving(settings) as url, httpx.Client(base_url=url, timeout=PATIENT) as api:
        seen = figures(api)
        assert (seen["tuwen_up", "storage"], seen["tuwen_housekeepers",]) == (1, 0)
        queue = JobQueue(settings)
        queue.sign_housekeeper("here", PATIENT)
        queue.sign_housekeeper("there", PATIENT)
        queue.close()
        with gone(settings):
            eventually(lambda: figures(api)["tuwen_up", "storage"] == 0)  # a look counts for some seconds
        assert figures(api)["tuwen_housekeepers",] == 2


def test_every_end_of_a_job_is_a_series_from_the_beginning(api: httpx.Client) -> None:
    """Prometheus sees no growth in a series that begins with one."""
    seen = figures(api)
    ends = {key[1:]: value for key, value in seen.items() if key[0] == "tuwen_jobs_finished_total"}
    assert ends == {(kind.value, status.value): 0 for kind in Kind for status in Status if status.terminal}


def test_images_of_paused_data_sets_are_not_left_to_anybody(api: httpx.Client, database: Database) -> None:
    ids = []
    for name in "ab":
        wanted = {"source": f"/in/{name}", "destination": f"/out/{name}"}
        ids.append(database.datasets.submit(DatasetRequest.model_validate(wanted), "t"))
        claim = database.datasets.take(ids[-1], "h")
        assert claim
        assert database.datasets.add_shard(claim, uuid4(), 0, 8, "plan/0", 0.0)
    database.datasets.pause(ids[0], "t")
    seen = figures(api)
    assert (seen["tuwen_dataset_images", "left"], seen["tuwen_dataset_images", "paused"]) == (8, 8)


def test_what_workers_record_is_shown(api: httpx.Client, settings: Settings) -> None:
    with redis.Redis.from_url(settings.redis_url, decode_responses=True) as client:
        for recorder in (Recorder(), Recorder()):  # two workers
            recorder.record_end(Kind.MATCH, Status.SUCCEEDED, wait=0.02, run=3)
            recorder.record_end(Kind.MATCH, Status.FAILED, wait=7, run=10_000)
            recorder.record_end(Kind.MATCH, Status.QUEUED, wait=1, run=1)
            recorder.record_batch(Kind.MATCH, 16, 0.2)
            recorder.flush(client)
            recorder.flush(client)  # nothing is left to add
    seen = figures(api)
    assert seen["tuwen_jobs_finished_total", "match", "succeeded"] == 2
    assert seen["tuwen_jobs_finished_total", "match", "failed"] == 2
    assert ("tuwen_jobs_finished_total", "match", "queued") not in seen
    waits = {key[2]: value for key, value in seen.items() if key[:2] == ("tuwen_job_wait_seconds_bucket", "match")}
    assert (waits["0.01"], waits["0.025"], waits["1.0"], waits["5.0"], waits["10.0"], waits["+Inf"]) == (
        0,
        2,
        4,
        4,
        6,
        6,
    )
    assert seen["tuwen_job_wait_seconds_count", "match"] == 6
    assert seen["tuwen_job_wait_seconds_sum", "match"] == pytest.approx(2 * (0.02 + 7 + 1))
    assert seen["tuwen_job_run_seconds_count", "match"] == 6
    assert seen["tuwen_batch_size_sum", "match"] == 32


def test_figures_outlast_a_redis_that_is_away(settings: Settings, valkey: Valkey) -> None:
    recorder = Recorder()
    with redis.Redis.from_url(settings.redis_url, decode_responses=True) as client:
        valkey.kill()
        recorder.record_batch(Kind.MATCH, 4, 0.1)
        recorder.flush(client)
        recorder.record_batch(Kind.MATCH, 4, 0.1)
        valkey.start()
        recorder.flush(client)
        assert client.hgetall("tuwen:metrics:tuwen_batch_size") == {"match/4.0": "2", "match/sum": "8"}


def test_a_cancelled_job_is_counted_too(api: httpx.Client) -> None:
    id = api.post("/v1/jobs", json=GENERATE).json()["id"]
    api.post(f"/v1/jobs/{id}/cancel")
    eventually(lambda: figures(api).get(("tuwen_jobs_finished_total", "generate", "cancelled")) == 1)


def test_requests_are_counted_by_route_and_not_by_path(api: httpx.Client) -> None:
    for path in ("/v1/jobs/x", "/v1/jobs/y", "/a", "/b"):
        api.get(path)
    seen = figures(api)
    assert seen["tuwen_http_request_seconds_count", "GET", "/v1/jobs/{job_id}", "404"] == 2
    assert seen["tuwen_http_request_seconds_count", "any", "none", "404"] == 2


def test_the_front_page_leads_everywhere(api: httpx.Client) -> None:
    page = api.get("/").text
    links = set(re.findall(r'href="([^"]+)"', page))
    assert "http://127.0.0.1:5555/" in links
    for link in links - {"http://127.0.0.1:5555/"}:
        assert api.get(f"/{link}").status_code == 200
    assert "/v1/jobs/{job_id}/events" in page
    assert "://" not in re.sub(r'href="[^"]*"', "", page), "the front page needs nothing from elsewhere"


def test_the_api_never_imports_torch() -> None:
    check = (
        "import sys, api.app, tuwen.client; api.app.create_app();"
        "print(sorted(name for name in ('torch', 'workers', 'diffusers', 'transformers') if name in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"

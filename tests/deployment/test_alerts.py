"""deploy/prometheus and deploy/grafana: a real Prometheus scrapes a running system and evaluates all of it."""

from __future__ import annotations

import json
import re
import runpy
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest
import redis
import yaml
from grafana_foundation_sdk.models.dashboard import Dashboard

from shared.database import Database
from shared.database.workers import ServedModel
from shared.settings import Settings
from shared.telemetry.metrics import Recorder
from tests.support.api_server import FakeWorker, serving
from tests.support.prometheus import Prometheus, scraping
from tests.support.waiting import eventually
from tuwen.datasets import DatasetRequest
from tuwen.jobs import Kind, Status

ROOT = Path(__file__).parents[2]
RULES = ROOT / "deploy/prometheus"
DASHBOARD = ROOT / "deploy/grafana/tuwen.json"
OPERATIONS = (ROOT / "docs/operations.md").read_text()
METRIC = re.compile(r"\btuwen_\w+")

needs_prometheus = pytest.mark.needs("prometheus")  # promtool comes with it


def alerts() -> dict[str, dict[str, Any]]:
    document = yaml.safe_load((RULES / "alerts.yml").read_text())
    return {rule["alert"]: rule for group in document["groups"] for rule in group["rules"]}


def expressions() -> list[str]:
    """Every expression of the dashboard, with Grafana's own variables filled in."""
    dashboard = json.loads(DASHBOARD.read_text())
    found = [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", [])]
    return [re.sub(r"\$__(rate_interval|range)", "1m", expression) for expression in found]


# ── alerts ────────────────────────────────────────────────────────────────────────────────────────


@needs_prometheus
@pytest.mark.parametrize(
    "check", [("rules", "alerts.yml"), ("config", "--syntax-only", "prometheus.yml")], ids=lambda check: check[0]
)
def test_promtool_finds_nothing_wrong(check: tuple[str, ...]) -> None:
    done = subprocess.run(["promtool", "check", *check], cwd=RULES, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@needs_prometheus
def test_every_alert_fires_when_it_should_and_not_otherwise() -> None:
    done = subprocess.run(
        ["promtool", "test", "rules", "alerts_test.yml"], cwd=RULES, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_each_alert_is_tested_firing_and_quiet() -> None:
    fires: dict[str, set[bool]] = {}
    for test in yaml.safe_load((RULES / "alerts_test.yml").read_text())["tests"]:
        for case in test["alert_rule_test"]:
            fires.setdefault(case["alertname"], set()).add(bool(case["exp_alerts"]))
    assert fires == {name: {True, False} for name in alerts()}


@pytest.mark.parametrize("name", alerts())
def test_each_alert_leads_to_a_section_that_says_what_to_do(name: str) -> None:
    rule = alerts()[name]
    assert rule["labels"]["severity"] in ("critical", "warning")
    assert rule["annotations"]["runbook"] == f"docs/operations.md#{name.lower()}"
    section = re.search(rf"^#### {name}\n(.*?)(?=^#|\Z)", OPERATIONS, re.MULTILINE | re.DOTALL)
    assert section, f"{name} has no section"
    # The page's commands are checked by test_docs.py.
    for command in re.findall(r"tuwen (?:[a-z]+ ?)+", rule["annotations"]["summary"]):
        assert command.strip() in section[1], (name, command)


def test_no_section_is_left_of_an_alert_that_is_gone() -> None:
    assert re.findall(r"^#### (Tuwen\w+)$", OPERATIONS, re.MULTILINE) == list(alerts())


# ── the dashboard ─────────────────────────────────────────────────────────────────────────────────


def test_the_dashboard_is_the_one_that_is_built() -> None:
    built = runpy.run_path(str(DASHBOARD.with_name("build.py")))["build"]()
    assert built == DASHBOARD.read_text(), "run deploy/grafana/build.py"


def test_the_dashboard_is_one_of_grafanas() -> None:
    """Grafana's own types, made from its schema, read it without loss."""
    document = json.loads(DASHBOARD.read_text())
    dashboard = Dashboard.from_json(document)
    assert dashboard.uid == "tuwen"
    assert len(dashboard.panels or []) == len(document["panels"])
    numbers = [panel["id"] for panel in document["panels"]]
    assert len(numbers) == len(set(numbers))
    sources = {target["datasource"]["uid"] for panel in document["panels"] for target in panel.get("targets", [])}
    assert sources == {"${source}"}
    assert [variable["name"] for variable in document["templating"]["list"]] == ["source"]


# ── a real Prometheus ─────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def busy(settings: Settings) -> Iterator[str]:
    """The URL of an API that has something to tell of everything."""
    database = Database(settings)
    database.workers.register("gpu0@host", "cuda:0", {Kind.DESCRIBE: ServedModel("builtin", "r1")})
    id = database.datasets.submit(
        DatasetRequest.model_validate({"source": "/in", "destination": "/out"}), tenant="local"
    )
    claim = database.datasets.take(id, "h")
    assert claim
    assert database.datasets.add_shard(claim, uuid4(), 0, 8, "plan/0", 0.0)
    database.close()
    recorder = Recorder()
    for status in (Status.SUCCEEDED, Status.FAILED):
        recorder.record_end(Kind.GENERATE, status, wait=0.1, run=0.2)
    recorder.record_batch(Kind.GENERATE, 8, 0.1)
    with redis.Redis.from_url(settings.redis_url, decode_responses=True) as client:
        recorder.flush(client)
        client.set("tuwen:housekeeper:here", "works")
    with serving(settings) as url:
        job = httpx.post(f"{url}/v1/jobs", json={"input": {"kind": "generate", "prompt": "a cat"}}).json()
        assert job["status"] == "queued"
        yield url


@needs_prometheus
def test_a_real_prometheus_loads_the_rules_and_knows_every_figure(busy: str, tmp_path: Path) -> None:
    with scraping(busy, RULES / "prometheus.yml", tmp_path) as prometheus:
        # Rates need two scrapes.
        eventually(lambda: two_scrapes(prometheus), "two scrapes of the API")
        # The empty answer of a rule may be right, and so only its names are looked at.
        known = set(prometheus.ask("label/__name__/values"))
        used = {name for each in (*alerts().values(),) for name in METRIC.findall(each["expr"])}
        assert used - known == set()
        silent = [expression for expression in expressions() if not prometheus.query(expression)]
        assert silent == []
        assert {name for expression in expressions() for name in METRIC.findall(expression)} <= known
        assert rules(prometheus).keys() == alerts().keys()
        eventually(lambda: set(rules(prometheus).values()) == {"ok"}, lambda: str(rules(prometheus)))


def two_scrapes(prometheus: Prometheus) -> bool:
    found = prometheus.query('count_over_time(up{job="tuwen"}[1m])')
    return bool(found) and float(found[0]["value"][1]) >= 2 and bool(prometheus.query('up{job="tuwen"} == 1'))


def rules(prometheus: Prometheus) -> dict[str, str]:
    """Each alert, and whether its expression could be evaluated."""
    groups = prometheus.ask("rules")["groups"]
    return {rule["name"]: rule["health"] for group in groups for rule in group["rules"]}


@needs_prometheus
def test_an_alert_of_a_real_system_comes_through(settings: Settings, hand: FakeWorker, tmp_path: Path) -> None:
    """No housekeeper runs beside this API, and Prometheus says so."""
    with serving(settings) as url, scraping(url, RULES / "prometheus.yml", tmp_path) as prometheus:
        eventually(lambda: "TuwenNoHousekeeper" in pending(prometheus), lambda: str(pending(prometheus)))
        assert {"TuwenPostgresqlDown", "TuwenRedisDown", "TuwenStorageDown", "TuwenApiDown"} & pending(
            prometheus
        ) == set()


def pending(prometheus: Prometheus) -> set[str]:
    return {alert["labels"]["alertname"] for alert in prometheus.ask("alerts")["alerts"]}

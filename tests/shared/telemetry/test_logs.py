"""Log lines in JSON: those of a real run, and of a process that ends by an exception."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from shared.settings import Settings
from tests.support.waiting import PATIENT, eventually
from tests.support.whole_system import whole_system

TRACE = "0af7651916cd43dd8448eb211c80319c"


def parsed(log: Path) -> list[dict[str, Any]]:
    """Every line of a log, each of which has to be an object with the fields that all have."""
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    for line in lines:
        assert datetime.fromisoformat(line["timestamp"]).tzinfo
        assert {"level", "logger", "message", "pid"} <= line.keys()
    return lines


def test_every_line_of_every_process_is_json(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")  # traces are made, and cannot be sent
    puppet = "import:tests.support.fakes:Puppet"
    with whole_system(settings, tmp_path, log="json", access_log=True, generate=puppet) as system:
        prompt = "import logging; logging.getLogger('of the engine').warning('hello'); 1 / 0"
        answer = system.client.post(
            "/v1/jobs",
            json={"input": {"kind": "generate", "prompt": prompt}, "max_attempts": 1},
            headers={"traceparent": f"00-{TRACE}-b7ad6b7169203331-01"},
        )
        assert answer.status_code == 202, answer.text
        id = answer.json()["id"]
        system.wait([id])
        logs = {path.name.partition("-")[0]: path for path in tmp_path.glob("*.log")}
        assert logs.keys() == {"api", "flower", "housekeeper", "worker"}
        eventually(lambda: id in logs["worker"].read_text())
        eventually(lambda: '"celery.apps.worker"' in logs["housekeeper"].read_text())  # the last of its start
        lines = {name: parsed(log) for name, log in logs.items()}

    about = next(line for line in lines["worker"] if line.get("job_id") == id)
    assert about["trace_id"] == TRACE
    assert about["worker"].startswith("w@")
    assert {line["worker"] for line in lines["worker"][-3:]} == {about["worker"]}
    [hello] = [line for line in lines["worker"] if line["logger"] == "of the engine"]
    assert hello["worker"] == about["worker"]
    assert hello["pid"] != about["pid"]
    assert any(line["logger"].startswith("celery") for line in lines["worker"])
    assert any(line["logger"].startswith("celery") for line in lines["housekeeper"])
    assert any(line["worker"].startswith("housekeeper@") for line in lines["housekeeper"] if "worker" in line)
    assert any(line["logger"] == "workers.flower.app" for line in lines["flower"])
    requests = [line for line in lines["api"] if line["logger"] == "uvicorn.access"]
    assert {"POST"} == {line["method"] for line in requests if line["path"] == "/v1/jobs"}
    [accepted] = [line for line in requests if line["path"] == "/v1/jobs"]
    assert (accepted["status"], accepted["trace_id"]) == (202, TRACE)
    assert id in {line.get("job_id") for line in requests if line["path"].startswith("/v1/jobs/")}


@pytest.mark.parametrize("where", ["main", "thread"])
def test_an_exception_that_nobody_caught_is_one_line_with_its_traceback(where: str) -> None:
    run = "fail()" if where == "main" else "threading.Thread(target=fail).start()"
    code = f"import threading\nfrom shared.telemetry import logs\nlogs.configure('json')\ndef fail(): 1 / 0\n{run}"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=PATIENT)
    [line] = [json.loads(line) for line in ended.stderr.splitlines()]
    assert line["level"] == "critical"
    assert "ZeroDivisionError" in line["exception"]
    assert "in fail" in line["exception"]


def test_the_reason_why_a_process_does_not_start_is_json_too() -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "workers", "housekeeper"],
        env=os.environ | {"TUWEN_LOG": "json", "TUWEN_REDIS_URL": "http://127.0.0.1"},
        capture_output=True,
        text=True,
        timeout=PATIENT,
    )
    assert ended.returncode == 1
    assert "TUWEN_REDIS_URL: must begin with redis://" in json.loads(ended.stderr)["message"]

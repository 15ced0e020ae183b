"""Celery's own command line against a real worker and a real housekeeper: what looks, what cancels, what is off."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import pytest
from celery import Celery
from celery.bin.celery import celery
from celery.worker.control import Panel
from click.testing import CliRunner, Result

from api.embedded.addresses import as_environment
from shared.queue import celery_app, remote_control
from shared.settings import Settings
from tests.support.system import Process, System, running_system
from tests.support.waiting import PATIENT
from tuwen.jobs import Kind, Status
from workers import app as module

CHANGES = {"revoke", "terminate"}
NODES = 2
"""The worker and the housekeeper: both hear what is broadcast."""

LONG = "sleep 25"
"""A job that runs for as long as any test needs it, and looks every 2.5 s whether it is cancelled."""


@pytest.fixture(scope="module")
def system(module_settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    folder = tmp_path_factory.mktemp("celery_tools")
    with running_system(module_settings, folder, kinds=(Kind.GENERATE,), concurrency=1) as system:
        yield system


@pytest.fixture(scope="module")
def worker(system: System) -> Process:
    worker = system.worker()
    system.housekeeper()
    control = celery_app(system.settings).control
    system.wait_until(lambda: len(control.ping(timeout=1.0)) == NODES, "answers of both")
    return worker


@pytest.fixture
def app(system: System) -> Celery:
    return celery_app(system.settings)


@pytest.fixture(autouse=True)
def environment(system: System, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name, value in as_environment(system.settings).items():
        monkeypatch.setenv(name, value)
    module._command_line_app.cache_clear()
    yield
    module._command_line_app.cache_clear()


def run(*arguments: str) -> Result:
    """What the command `celery -A workers.app …` does, in this process; it waits for answers until its timeout."""
    return CliRunner().invoke(celery, ["-A", "workers.app", *arguments])


def answers(system: System, command: str, arguments: dict[str, Any] | None = None) -> list[Any]:
    """What worker and housekeeper answer to a command, the worker first."""
    app = celery_app(system.settings)
    [worker] = (row.name for row in system.database.workers.alive())
    found = []
    for node in (worker, f"housekeeper@{platform.node()}"):
        # Asked one by one: with a limit of two, Celery would wait for a third once both have come together.
        [reply] = app.control.broadcast(command, arguments, [node], reply=True, timeout=PATIENT, limit=1)
        found.append(reply[node])
    return found


def test_the_command_itself_and_no_torch(worker: Process) -> None:
    code = (
        "import sys\nfrom celery.__main__ import main\n"
        "sys.argv = ['celery', '-A', 'workers.app', 'status', '--timeout', '5']\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code, end.code\n"
        "assert not [name for name in sys.modules if name.split('.')[0] in ('torch', 'transformers')]"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "2 nodes online" in result.stdout
    assert worker.alive


def test_what_looks_works(worker: Process, system: System) -> None:
    [running] = system.submit(LONG)
    system.wait_until_running([running])
    try:
        shown = run("inspect", "--json", "active", "--timeout", "5")
        [name] = {row.name for row in system.database.workers.alive()}
        assert [task["id"] for task in json.loads(shown.output)[name]] == [str(running)]
        assert answers(system, "ping") == [{"ok": "pong"}] * 2
        assert answers(system, "query_task", {"ids": [str(running)]})[0][str(running)][0] == "active"
        assert answers(system, "active_queues")[0][0]["name"] == "tuwen.generate"
        assert "tuwen.generate" in answers(system, "registered")[0]
        assert answers(system, "stats")[0]["total"]["tuwen.generate"] >= 1
        assert "ok" in answers(system, "report")[0]
        for command in ("reserved", "scheduled", "revoked", "conf", "clock"):
            assert all("error" not in answer for answer in answers(system, command)), command
    finally:
        answers(system, "revoke", {"task_id": str(running)})
        system.wait_until_finished([running])
    assert worker.alive


def test_events_are_switched_off_and_on_and_heard(worker: Process, app: Celery, system: System) -> None:
    for command in ("disable_events", "enable_events"):
        assert all("ok" in answer for answer in answers(system, command))
    heard: list[dict[str, Any]] = []

    def hear(event: dict[str, Any]) -> None:
        heard.append(event)
        if event["type"] == "task-succeeded":
            receiver.should_stop = True

    with app.connection_for_read() as connection:
        receiver = app.events.Receiver(connection, handlers={"*": hear})
        [id] = system.submit("cat")
        receiver.capture(limit=None, timeout=60)
    assert {"task-received", "task-started", "task-succeeded"} <= {
        event["type"] for event in heard if event.get("uuid") == str(id)
    }
    assert worker.alive


def test_revoke_cancels_a_queued_job_and_a_running_one(worker: Process, system: System) -> None:
    running, queued = system.submit(LONG, "cat")
    system.wait_until_running([running])
    assert system.statuses([queued]) == [Status.QUEUED]
    told = run("control", "revoke", str(queued), "--timeout", "5")
    assert told.exit_code == 0
    assert f"job {queued} is cancelled" in told.output
    told = run("control", "terminate", "SIGKILL", str(running), "--timeout", "5")
    assert "stops at its next step" in told.output
    jobs = system.wait_until_finished([running, queued])
    assert {job.status for job in jobs} == {Status.CANCELLED}
    assert worker.alive
    assert answers(system, "revoke", {"task_id": str(running)}) == [{"ok": f"job {running} is already cancelled"}] * 2


@pytest.mark.parametrize("options", [{}, {"terminate": True, "signal": "SIGKILL"}])
def test_revoke_from_python_as_flower_calls_it(
    worker: Process, app: Celery, system: System, options: dict[str, Any]
) -> None:
    running, queued = system.submit(LONG, "cat")
    system.wait_until_running([running])
    app.control.revoke([str(running), str(queued)], **options)  # nobody waits for an answer
    jobs = system.wait_until_finished([running, queued])
    assert {job.status for job in jobs} == {Status.CANCELLED}
    [after] = system.wait_until_finished(system.submit("cat"))
    assert after.status is Status.SUCCEEDED
    assert worker.alive


def test_revoke_owes_the_webhook_as_a_cancel_does(worker: Process, system: System) -> None:
    running, queued = system.submit(LONG, "cat", webhook="http://127.0.0.1:9/hook")
    system.wait_until_running([running])
    assert f"job {queued} is cancelled" in answers(system, "revoke", {"task_id": [str(queued)]})[0]["ok"]
    assert {owed.job_id for owed in system.database.webhooks.undelivered(most=10)} == {queued}
    assert system.database.jobs.revoke(running) == (Kind.GENERATE, Status.RUNNING)
    system.wait_until_finished([running])
    assert system.database.jobs.revoke(running) is None
    assert worker.alive


def test_revoking_what_is_no_job_is_harmless_and_said(worker: Process, system: System) -> None:
    unknown = uuid4()
    for answer in answers(system, "revoke", {"task_id": str(unknown)}):
        assert f"there is no job {unknown}" in answer["error"]
    for nonsense in ("../../etc", "", {"a": 1}, [["x"], 3], None, 7):
        for answer in answers(system, "revoke", {"task_id": nonsense}):
            assert "error" in answer
    [job] = system.wait_until_finished(system.submit("cat"))
    assert job.status is Status.SUCCEEDED
    assert worker.alive


def test_every_other_command_is_refused_with_a_sentence(worker: Process, system: System) -> None:
    arguments: dict[str, dict[str, Any]] = {
        "add_consumer": {"queue": "tuwen.match"},
        "cancel_consumer": {"queue": "tuwen.generate"},
        "rate_limit": {"task_name": "tuwen.generate", "rate_limit": "1/h"},
        "time_limit": {"task_name": "tuwen.generate", "hard": 1.0},
        "pool_shrink": {"n": 1},
    }
    off = {name for name in Panel.meta if name not in remote_control.KEPT | CHANGES}
    assert off == set(remote_control.REFUSED), "Celery has other commands now: put each where it belongs"
    for command in sorted(off):
        for answer in answers(system, command, arguments.get(command, {})):
            assert answer == {"error": f"{command} is off: {remote_control.REFUSED[command]}"}
    assert "SIGTERM" in run("control", "shutdown", "--timeout", "5").output
    ids = system.submit(*["cat"] * 3)
    assert {job.status for job in system.wait_until_finished(ids)} == {Status.SUCCEEDED}
    assert worker.alive


def test_celerys_own_worker_says_what_to_type() -> None:
    for command in ("worker", "beat"):
        result = run(command)
        assert result.exit_code == 64
        assert "tuwen worker" in result.output + result.stderr


def test_a_purge_loses_nothing(worker: Process, system: System) -> None:
    [running, *queued] = system.submit("sleep 3", *["cat"] * 3)
    system.wait_until_running([running])
    assert run("purge", "-f").exit_code == 0
    assert {job.status for job in system.wait_until_finished([running, *queued])} == {Status.SUCCEEDED}
    assert worker.alive


def test_no_password_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUWEN_REDIS_URL", "redis://user:very-secret@127.0.0.1:1/0")
    module._command_line_app.cache_clear()
    assert "very-secret" not in run("report").output
    assert "very-secret" not in json.dumps(module.app.conf.table(with_defaults=True), default=str)

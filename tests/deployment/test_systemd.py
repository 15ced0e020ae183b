"""deploy/systemd: systemd's own checks, and each unit's command run for real with the limits that can be had here."""

from __future__ import annotations

import configparser
import ctypes
import os
import re
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
import pytest

from api.embedded.addresses import as_environment
from api.embedded.processes import choose_port
from shared.database import Database
from shared.queue import JobQueue
from shared.settings import Settings
from tests.support.compose import ROOT
from tests.support.system import QUICK
from tests.support.waiting import PATIENT, eventually
from workers.housekeeper.app import WEBHOOK_GRACE

FOLDER = ROOT / "deploy/systemd"
SERVICES = sorted(FOLDER.glob("*.service"))
INSTALLED = "/opt/tuwen/bin/python"
CLEAN = (0, -signal.SIGTERM)
"""Exit statuses of a stopped service that systemd calls a success."""
PR_SET_MDWE = 65
"""Number of the option of prctl(2) behind MemoryDenyWriteExecute=."""

needs_systemd = pytest.mark.needs("systemd")
services = pytest.mark.parametrize("service", SERVICES, ids=lambda path: path.name)


def unit(service: Path) -> configparser.ConfigParser:
    """The unit's sections; of an option that stands there several times, the last."""
    parser = configparser.ConfigParser(strict=False, interpolation=None)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read(service)
    return parser


@needs_systemd
def test_systemd_finds_nothing_wrong(tmp_path: Path) -> None:
    for file in FOLDER.iterdir():
        (tmp_path / file.name).write_text(file.read_text().replace(INSTALLED, sys.executable))
    check = ["systemd-analyze", "verify", "--man=no", *sorted(str(file) for file in tmp_path.iterdir())]
    done = subprocess.run(check, capture_output=True, text=True, check=False)
    # Units of the machine that runs the test are looked at, too.
    assert [line for line in done.stderr.splitlines() if "tuwen" in line] == []


@needs_systemd
@services
def test_every_service_is_confined(service: Path) -> None:
    """systemd rates the exposure from 0 to 10, and calls 2 OK; the threshold is ten times that."""
    check = ["systemd-analyze", "security", "--offline=true", "--threshold=20", "--no-pager", str(service)]
    done = subprocess.run(check, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@services
def test_they_are_confined_alike(service: Path) -> None:
    """But for workers, whose GPUs are devices, and whose kernels are compiled while they run."""
    options = dict(unit(service)["Service"])
    alone = {"PrivateDevices": "yes", "MemoryDenyWriteExecute": "yes"}
    expected = {} if "worker@" in service.name else alone
    assert {name: value for name, value in options.items() if name in alone} == expected
    [first, *others] = [
        text.partition("# Nothing of the machine")[2].split("\n\n")[0] for text in map(Path.read_text, SERVICES)
    ]
    for other in others:
        assert [line for line in other.splitlines() if line.split("=")[0] not in alone] == [
            line for line in first.splitlines() if line.split("=")[0] not in alone
        ]


def test_the_target_brings_all_of_them() -> None:
    wanted = unit(FOLDER / "tuwen.target")["Unit"]["Wants"].split()
    brought = {service.name for service in SERVICES} - {"tuwen-migrate.service", "tuwen-worker@.service"}
    assert set(wanted) == brought
    for service in SERVICES:
        assert unit(service)["Unit"]["PartOf"] == "tuwen.target"
        if service.name != "tuwen-migrate.service":
            assert "tuwen-migrate.service" in unit(service)["Unit"]["After"].split()
            assert unit(service)["Service"]["Restart"] == "always"
    assert unit(FOLDER / "tuwen-worker@.service")["Install"]["WantedBy"] == "tuwen.target"


def test_there_is_time_to_end_well() -> None:
    settings = Settings()
    patience = {each.name: float(unit(each)["Service"].get("TimeoutStopSec", "90")) for each in SERVICES}
    assert patience["tuwen-worker@.service"] > 2 * settings.shutdown_grace + settings.fetch_timeout + settings.lease
    assert patience["tuwen-housekeeper.service"] > settings.shutdown_grace + WEBHOOK_GRACE
    assert patience["tuwen-api.service"] > 5 + 3  # uvicorn's, and the outbox's


def test_every_variable_is_a_setting() -> None:
    known = {f"TUWEN_{name.upper()}" for name in Settings.model_fields}
    for service in SERVICES:
        assert set(re.findall(r"TUWEN_[A-Z_]+(?==)", service.read_text())) <= known


def _confine(options: dict[str, str]) -> Callable[[], None]:
    """What systemd does to the process before it becomes the command, as far as anybody may do it to himself."""
    libc = ctypes.CDLL(None, use_errno=True)

    def confine() -> None:
        files = int(options["LimitNOFILE"])
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(files, hard), min(files, hard)))
        os.umask(int(options["UMask"], 8))
        if options.get("MemoryDenyWriteExecute") == "yes":
            libc.prctl(PR_SET_MDWE, 1, 0, 0, 0)  # a kernel before 6.3 does not know it

    return confine


@contextmanager
def started(name: str, settings: Settings, folder: Path, instance: str = "") -> Iterator[subprocess.Popen[bytes]]:
    """Run the command of a unit as the unit says; at the end it gets SIGTERM, and must end by itself in its time."""
    options = dict(unit(FOLDER / name)["Service"])
    command = options["ExecStart"].replace(INSTALLED, sys.executable).replace("%i", instance).split()
    with (folder / f"{name}.log").open("wb") as log:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env=os.environ | as_environment(settings),
            stdout=log,
            stderr=log,
            preexec_fn=_confine(options),
        )
    try:
        yield process
        process.terminate()
        assert process.wait(PATIENT) in CLEAN, (folder / f"{name}.log").read_text()
    finally:
        process.kill()
        process.wait()


def _answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=PATIENT).is_success
    except httpx.TransportError:
        return False


def test_every_command_does_its_work_and_ends_well(settings: Settings, tmp_path: Path) -> None:
    changed = {
        **settings.model_dump(exclude_unset=True),
        **QUICK,
        "port": choose_port(0, "--port"),
        "flower_port": choose_port(0, "--port"),
    }
    ours = Settings(**changed)
    with ExitStack() as stack:
        migration = stack.enter_context(started("tuwen-migrate.service", ours, tmp_path))
        assert migration.wait(PATIENT) == 0
        for name in ("tuwen-api.service", "tuwen-housekeeper.service", "tuwen-flower.service"):
            stack.enter_context(started(name, ours, tmp_path))
        stack.enter_context(started("tuwen-worker@.service", ours, tmp_path, instance="cpu"))
        database, queue = Database(ours), JobQueue(ours)
        stack.callback(database.close)
        stack.callback(queue.close)
        eventually(lambda: _answers(f"http://127.0.0.1:{ours.port}/readyz"), "the API")
        eventually(lambda: _answers(f"http://127.0.0.1:{ours.flower_port}/healthcheck"), "Flower")
        eventually(lambda: [worker.device for worker in database.workers.alive()] == ["cpu"], "the worker")
        eventually(queue.housekeepers, "the housekeeper")
        body = {"input": {"kind": "generate", "prompt": "a cat"}}
        answer = httpx.post(
            f"http://127.0.0.1:{ours.port}/v1/jobs", json=body, headers={"Prefer": "wait=60"}, timeout=PATIENT
        )
        assert answer.json()["status"] == "succeeded", answer.text

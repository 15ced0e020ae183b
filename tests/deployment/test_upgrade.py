"""The previous release's processes beside this one's, before, while and after the schema is brought up to date."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from alembic import command

from api.embedded.addresses import as_environment
from api.embedded.processes import choose_port
from shared.migrations import _config, is_current, migrate
from shared.settings import Settings
from tests.support.plain_sql import plain_sql
from tests.support.previous_release import OldProcess, previous_release
from tests.support.servers import Postgres
from tests.support.system import QUICK, System
from tests.support.waiting import PATIENT, eventually
from tests.support.whole_system import INPUTS
from tuwen.version import __version__

pytestmark = pytest.mark.long

RELEASE = previous_release()


@pytest.fixture
def old_settings(postgres: Postgres, redis_url: str, tmp_path: Path) -> Iterator[Settings]:
    """An installation with the schema of the previous release, and its engines."""
    url = postgres.create_database("previous_release", template="template0")
    command.upgrade(_config(url), RELEASE.schema)
    yield Settings(**{**QUICK, **_places(url, redis_url, tmp_path), **_engines("tests.fakes")})
    postgres.drop_database("previous_release")


def _places(url: str, redis_url: str, folder: Path) -> dict[str, Any]:
    return {
        "database_url": url,
        "redis_url": redis_url,
        "storage_url": f"file://{folder / 'objects'}",
        "data_dir": folder / "data",
        "auth": "open",
        "port": choose_port(0, "--port"),
    }


def _engines(module: str) -> dict[str, str]:
    # A job names its model, which workers of both releases have under one name.
    names = {"generate": "NullGenerator", "describe": "NullDescriber", "recognize": "NullRecognizer"}
    return {kind: f"null=import:{module}:{name}" for kind, name in {**names, "match": "NullMatcher"}.items()}


class Upgrade:
    """Processes of both releases on one installation, and the jobs that were given to them."""

    def __init__(self, settings: Settings, source: Path, folder: Path):
        self.old_settings = settings
        self.new_settings = settings.model_copy(update={**_engines("tests.support.fakes"), "port": choose_port(0, "")})
        self._source = source
        self._folder = folder
        self._old: dict[str, OldProcess] = {}
        self.new = System(self.new_settings, folder)
        self.ids: list[str] = []

    def start_old(self) -> None:
        """Start the previous release's API, worker and housekeeper."""
        for role in ("api", "worker", "housekeeper"):
            arguments = [role] if role == "api" else ["workers", role]
            arguments += ["--name", "old"] if role == "worker" else []
            log = self._folder / f"old-{role}.log"
            self._old[role] = OldProcess(self._source, self.old_settings, log, *arguments)
        eventually(lambda: self._answers(self.old_settings.port), self._said)
        eventually(lambda: "old" in self._workers(), self._said)

    def stop_old(self) -> None:
        """Stop them."""
        assert {process.stop() for process in self._old.values()} <= {0, -15}, self._said()
        self._old.clear()

    def start_new(self) -> None:
        """Start this version's processes."""
        self._news = [self.new.start(module="api"), self.new.housekeeper(), self.new.worker("new")]
        eventually(lambda: self._answers(self.new_settings.port), self.new.last_lines)

    def stop_new(self) -> None:
        """Stop them."""
        for process in self._news:
            process.terminate()

    def submit(self, settings: Settings, times: int = 1) -> list[str]:
        """Have jobs of each kind accepted by the API at that port."""
        answer = httpx.post(
            f"http://127.0.0.1:{settings.port}/v1/jobs/batch",
            json={"jobs": [{"input": each} for each in INPUTS * times]},
            timeout=PATIENT,
        )
        assert answer.status_code == 202, answer.text
        ids = [job["id"] for job in answer.json()["jobs"]]
        self.ids += ids
        return ids

    def wait(self, ids: list[str]) -> set[str]:
        """Wait until these jobs are over, all of them well. Returns the names of the workers that ran them."""
        rows: list[Any] = []

        def over() -> bool:
            with plain_sql(self.new_settings) as sql:
                rows[:] = sql(
                    "SELECT status, split_part(worker, '@', 1), error_detail FROM jobs WHERE id::text = ANY(:ids)",
                    ids=ids,
                )
            return all(status not in ("queued", "running") for status, _, _ in rows)

        eventually(over, self._said)
        assert {status for status, _, _ in rows} == {"succeeded"}, rows
        assert len(rows) == len(ids)
        return {worker for _, worker, _ in rows}

    def close(self) -> None:
        for process in self._old.values():
            process.kill()
        self.new.close()

    def _workers(self) -> set[str]:
        with plain_sql(self.new_settings) as sql:
            return {name for (name,) in sql("SELECT split_part(name, '@', 1) FROM workers WHERE state = 'ready'")}

    def _answers(self, port: int) -> bool:
        try:
            return httpx.get(f"http://127.0.0.1:{port}/readyz").is_success
        except httpx.HTTPError:
            return False

    def _said(self) -> str:
        logs = [(name, process.log.read_text()[-3000:]) for name, process in self._old.items()]
        return "\n".join(f"== old {name}\n{log}" for name, log in logs) + self.new.last_lines()


@contextmanager
def upgrade(settings: Settings, source: Path, folder: Path) -> Iterator[Upgrade]:
    both = Upgrade(settings, source, folder)
    try:
        yield both
    finally:
        both.close()


def test_both_releases_side_by_side_and_back(old_settings: Settings, tmp_path: Path) -> None:
    source = RELEASE.source(tmp_path / "source")
    with upgrade(old_settings, source, tmp_path) as both:
        both.start_old()
        assert both.wait(both.submit(both.old_settings)) == {"old"}
        _assert_new_ones_refuse(both.new_settings)

        waiting = both.submit(both.old_settings, times=20)
        migrate(old_settings.database_url)  # while the old ones work
        assert is_current(old_settings.database_url)
        assert both.wait([*waiting, *both.submit(both.old_settings)]) == {"old"}

        both.start_new()
        assert both.wait(both.submit(both.old_settings, 20) + both.submit(both.new_settings, 20)) <= {"old", "new"}

        both.stop_old()
        assert both.wait(both.submit(both.new_settings)) == {"new"}

        both.start_old()  # and back
        both.stop_new()
        assert both.wait(both.submit(both.old_settings)) == {"old"}
        both.wait(both.ids)  # none was lost, none ran anew and failed


def _assert_new_ones_refuse(settings: Settings) -> None:
    for arguments in (["api"], ["workers", "worker"], ["workers", "housekeeper"], ["workers", "flower"]):
        ended = subprocess.run(
            [sys.executable, "-m", *arguments],
            env=os.environ | as_environment(settings),
            capture_output=True,
            text=True,
            timeout=PATIENT,
        )
        assert ended.returncode == 1, (arguments, ended)
        assert f"has the schema {RELEASE.schema}" in ended.stderr
        assert "Run: tuwen migrate" in ended.stderr


def test_the_version_is_another() -> None:
    assert __version__ != RELEASE.version

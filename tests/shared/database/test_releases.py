"""The whole system on the oldest release of PostgreSQL that is supported, as far as Debian has it."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest

from shared.settings import Settings
from tests.support.annotation import annotate, paint, wait_until_over
from tests.support.api_server import serving
from tests.support.plain_sql import Sql
from tests.support.system import running_system
from tests.support.waiting import PATIENT
from tuwen.datasets import DatasetStatus
from tuwen.jobs import Status


@pytest.mark.needs("postgresql")
@pytest.mark.parametrize("postgres", ["debian"], indirect=True)
def test_jobs_webhooks_and_data_sets(settings: Settings, tmp_path: Path, sql: Sql) -> None:
    assert int(sql("SHOW server_version_num")[0][0]) < 180_000
    with running_system(settings, tmp_path) as system, serving(system.settings) as url:
        system.worker()
        system.housekeeper()
        assert httpx.get(f"{url}/readyz", timeout=PATIENT).json()["status"] == "ready"
        good, bad = system.wait_until_finished(system.submit("a cat", "reject it", webhook="https://example.com/hook"))
        assert (good.status, bad.status) == (Status.SUCCEEDED, Status.FAILED)
        assert sql("SELECT count(*) FROM webhooks") == [(2,)]
        id = annotate(system, paint(tmp_path / "pictures", range(5)), tmp_path / "out")
        assert wait_until_over(system, id).status is DatasetStatus.SUCCEEDED

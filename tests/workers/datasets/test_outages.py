"""Data sets that are planned and exported while their storage is away: put off as long as it takes, and not charged."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from shared.database import Database
from shared.queue import celery_app
from shared.settings import Settings
from tests.support.annotation import paint
from tests.support.plain_sql import Sql
from tests.support.system import gone
from tests.support.waiting import eventually
from tuwen.datasets import DatasetRequest, DatasetStatus, ShardStatus
from workers.datasets.housekeeping import MAX_ATTEMPTS, DatasetKeeper

T = "tenant"


@pytest.fixture
def quick(settings: Settings, tmp_path: Path) -> Settings:
    return settings.model_copy(update={"retry_backoff": 0.001, "dataset_roots": (str(tmp_path),)})


@pytest.fixture
def keeper(quick: Settings) -> Iterator[DatasetKeeper]:
    keeper = DatasetKeeper(quick, celery_app(quick))
    yield keeper
    keeper.stop(5)


def work(keeper: DatasetKeeper, database: Database, id: UUID) -> Any:
    """Plan or export the data set, once its pause is over."""
    eventually(lambda: id in database.datasets.awaiting(most=10))
    return keeper.run(lambda: None, str(id))


def attempts(sql: Sql) -> tuple[int, str | None]:
    [row] = sql("SELECT attempts, error_code FROM datasets")
    return tuple(row)  # type: ignore[return-value]


def test_planning_and_export_are_put_off(
    keeper: DatasetKeeper, quick: Settings, database: Database, sql: Sql, tmp_path: Path
) -> None:
    source = paint(tmp_path / "source", range(5))
    request = {"source": str(source), "destination": str(tmp_path / "out")}
    id = database.datasets.submit(DatasetRequest.model_validate(request), T)
    keeper._consumer._heartbeat.start()
    with gone(quick):
        for _ in range(MAX_ATTEMPTS + 2):
            assert work(keeper, database, id).event == "task-retried"
    assert attempts(sql) == (0, "storage_unavailable")
    assert work(keeper, database, id).event == "task-succeeded"
    sql("UPDATE shards SET status = 'failed', finished_at = now(), error_code = 'boom', error_detail = 'It broke.'")
    assert database.datasets.complete(id) == [id]
    with gone(quick):
        for _ in range(MAX_ATTEMPTS + 2):
            assert work(keeper, database, id).event == "task-retried"
    assert attempts(sql) == (0, "storage_unavailable")
    assert work(keeper, database, id).event == "task-succeeded"
    assert database.datasets.get(id, T).status is DatasetStatus.SUCCEEDED
    assert database.shards.all(id)[0].status is ShardStatus.FAILED

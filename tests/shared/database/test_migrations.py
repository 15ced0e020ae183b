"""Migrations of an installation that goes on meanwhile."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from alembic import command
from sqlalchemy import create_engine, text

import shared.database
from shared.database import Database
from shared.database.connections import driver_url
from shared.migrations import _config, is_current
from shared.settings import Settings
from tests.support.plain_sql import Sql
from tests.support.waiting import PATIENT, eventually
from tuwen.jobs import JobRequest


def migrating(settings: Settings) -> subprocess.Popen[str]:
    environment = os.environ | {"TUWEN_DATABASE_URL": settings.database_url}
    line = [sys.executable, "-m", "shared.migrations"]
    return subprocess.Popen(line, env=environment, stderr=subprocess.PIPE, text=True)


def test_indexes_are_made_while_others_write_and_by_one_of_two_processes(settings: Settings, sql: Sql) -> None:
    """An index made under a lock would keep jobs from being accepted for as long as somebody's transaction lasts."""
    command.downgrade(_config(settings.database_url), "0013")
    engine = create_engine(driver_url(settings.database_url))
    with engine.connect() as writer:
        writer.execute(text("UPDATE jobs SET priority = 9"))
        processes = [migrating(settings) for _ in range(2)]
        eventually(
            lambda: sql(
                "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND "
                "query LIKE 'CREATE INDEX CONC%' AND wait_event_type = 'Lock'"
            ),
            "an index waits for the writer",
        )
        database = Database(settings)
        request = JobRequest.model_validate({"input": {"kind": "generate", "prompt": "cat"}})
        [id] = database.jobs.submit([request], tenant="t").ids
        assert database.jobs.claim([id], "w").keys() == {id}, "an earlier release's statements, and ours, go on"
        assert [process.poll() for process in processes] == [None, None]
    for process in processes:
        _, said = process.communicate(timeout=PATIENT)
        assert process.returncode == 0, said
    assert is_current(settings.database_url)
    assert [job.id for job in database.jobs.page("t")] == [id]
    database.close()
    engine.dispose()


def test_an_index_that_was_cut_off_is_made_again(settings: Settings, sql: Sql) -> None:
    """PostgreSQL leaves it behind as invalid, and uses it for nothing."""
    sql("UPDATE alembic_version SET version_num = '0013'")
    sql("UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'ix_jobs_finished'\\:\\:regclass")
    command.upgrade(_config(settings.database_url), "0014")
    assert sql("SELECT count(*) FROM pg_index WHERE NOT indisvalid") == [(0,)]


def test_each_lock_has_a_number_of_its_own() -> None:
    """A migration behind a pooler would otherwise keep data sets waiting, as one that lasts would."""
    folder = Path(shared.database.__file__).parents[1]
    numbers = [
        number
        for file in folder.rglob("*.py")
        for number in re.findall(r"^\w*LOCK = (0x[0-9A-F_]+)$", file.read_text(), re.MULTILINE)
    ]
    assert len(numbers) >= 4
    assert len(set(numbers)) == len(numbers)

"""What `tuwen doctor` says of retention."""

from __future__ import annotations

import pytest

from api.cli.doctor import Finding, _retention
from shared.settings import Settings
from tests.support.history import add_history
from tests.support.plain_sql import Sql


@pytest.fixture
def history(sql: Sql) -> None:
    """A hundred jobs of the last 200 days, the oldest of which failed."""
    add_history(sql, 100, tenant="t")


def findings(settings: Settings, keep_jobs: str) -> list[Finding]:
    return [*_retention(settings.model_copy(update={"keep_jobs": keep_jobs}))]


@pytest.mark.usefixtures("history")
def test_everything_is_kept_by_default(settings: Settings) -> None:
    [finding] = findings(settings, "forever")
    assert finding.fine
    assert finding.found.startswith("forever for succeeded, failed, cancelled, expired, quarantined jobs; forever for")


@pytest.mark.usefixtures("history")
def test_what_is_due_and_since_when(settings: Settings, sql: Sql) -> None:
    kept, due = findings(settings, "forever,failed=100d")
    assert "100 days for failed jobs" in kept.found
    [[count, oldest]] = sql("SELECT count(*), min(finished_at) FROM jobs WHERE status = 'failed'")
    assert due.found == f"{count} failed jobs are due, the oldest of {oldest:%Y-%m-%d %H:%M}"
    assert "see the log of the housekeeper" in due.advice, "they have been due for months"
    assert not due.serious


def test_what_has_just_become_due_is_in_order(settings: Settings, sql: Sql) -> None:
    add_history(sql, 10, tenant="t")
    sql("DELETE FROM jobs WHERE finished_at < now() - interval '60 days'")
    [[days]] = sql("SELECT extract(epoch FROM now() - min(finished_at)) / 86400 FROM jobs WHERE status = 'succeeded'")
    _, due = findings(settings, f"{float(days) - 0.5:.1f}d")
    assert due.fine

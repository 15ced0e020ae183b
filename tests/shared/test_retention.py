"""How long people may say that something is kept."""

from __future__ import annotations

from datetime import timedelta

import pytest

from shared.retention import parse_age, parse_job_ages, written
from shared.settings import Settings
from tuwen.errors import ConfigurationError
from tuwen.jobs import Status


@pytest.mark.parametrize(
    ("text", "age"),
    [
        ("90d", timedelta(days=90)),
        ("90 days", timedelta(days=90)),
        ("12h", timedelta(hours=12)),
        (" 1.5 Hours ", timedelta(minutes=90)),
        ("10m", timedelta(minutes=10)),
        ("2w", timedelta(days=14)),
        ("1y", timedelta(days=365)),
        ("forever", None),
    ],
)
def test_ages(text: str, age: timedelta | None) -> None:
    assert parse_age(text) == age


@pytest.mark.parametrize("text", ["90", "", "d", "-1d", "0d", "9m", "1s", "soon", "1e3d", "never ever"])
def test_what_is_no_age_or_dangerously_short(text: str) -> None:
    with pytest.raises(ValueError, match=r"write a number with its unit|too short"):
        parse_age(text)


def test_each_state_may_have_an_age_of_its_own() -> None:
    ages = parse_job_ages("30d, failed=1y, quarantined=forever")
    assert set(ages) == {status for status in Status if status.terminal}
    assert ages[Status.SUCCEEDED] == ages[Status.CANCELLED] == ages[Status.EXPIRED] == timedelta(days=30)
    assert (ages[Status.FAILED], ages[Status.QUARANTINED]) == (timedelta(days=365), None)


def test_states_that_are_not_named_are_kept_forever() -> None:
    ages = parse_job_ages("cancelled=12h")
    assert {status for status, age in ages.items() if age is not None} == {Status.CANCELLED}


@pytest.mark.parametrize("text", ["running=1d", "done=1d", "1d,2d", "failed=1d,failed=2d", "1d,", "failed="])
def test_what_cannot_be_meant_is_refused_by_the_name_of_its_variable(
    text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TUWEN_KEEP_JOBS", text)
    with pytest.raises(ConfigurationError, match=r"^TUWEN_KEEP_JOBS: "):
        Settings()


def test_by_default_everything_is_kept() -> None:
    settings = Settings()
    assert set(parse_job_ages(settings.keep_jobs).values()) == {None}
    assert parse_age(settings.keep_uploads) is parse_age(settings.keep_batches) is None


@pytest.mark.parametrize("text", ["forever", "90 days", "12 hours", "10 minutes", "1.5 days"])
def test_an_age_is_written_as_it_can_be_read(text: str) -> None:
    assert written(parse_age(text)) == text

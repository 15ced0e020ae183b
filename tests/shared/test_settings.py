"""Settings from the environment: what can be written there, and what is refused before anything starts."""

from __future__ import annotations

from base64 import b64encode

import pytest

from api.embedded.addresses import as_environment
from shared.settings import Settings
from tuwen.errors import ConfigurationError
from tuwen.jobs import Kind

SECRET = "whsec_" + b64encode(bytes(24)).decode()


def test_lists_are_separated_by_commas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUWEN_KINDS", "generate, match")
    monkeypatch.setenv("TUWEN_FETCH_ALLOW_NETWORKS", "10.0.0.0/8,fd00::/8")
    settings = Settings()
    assert settings.kinds == (Kind.GENERATE, Kind.MATCH)
    assert settings.fetch_allow_networks == ("10.0.0.0/8", "fd00::/8")


def test_an_empty_variable_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUWEN_WEBHOOK_SECRET", "")
    assert Settings().webhook_secret is None


def test_a_child_reads_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    networks = ("127.0.0.0/8", "::1/128")
    given = Settings(port=0, kinds=(Kind.MATCH,), fetch_allow_networks=networks, webhook_secret=SECRET)
    for name, value in as_environment(given).items():
        monkeypatch.setenv(name, value)
    assert Settings() == given


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("TUWEN_PORT", "many"),
        ("TUWEN_FLOWER_PORT", "65536"),
        ("TUWEN_DATABASE_URL", "mysql://127.0.0.1/tuwen"),
        ("TUWEN_DATABASE_URL", "postgresql://a:b@[::1/tuwen"),
        ("TUWEN_REDIS_URL", "127.0.0.1:6379"),
        ("TUWEN_REDIS_URL", "redis://127.0.0.1:many/0"),
        ("TUWEN_KINDS", "generate,paint"),
        ("TUWEN_KINDS", ","),
        ("TUWEN_FETCH_ALLOW_NETWORKS", "10.0.0.1/8"),
        ("TUWEN_WEBHOOK_SECRET", "secret"),
        ("TUWEN_WEBHOOK_SECRET", "whsec_c2hvcnQ="),
        ("TUWEN_DEFAULT_QUOTA", "99999999999"),
    ],
)
def test_what_cannot_be_is_refused_by_its_name(monkeypatch: pytest.MonkeyPatch, variable: str, value: str) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(ConfigurationError, match=f"^{variable}: "):
        Settings()


def test_a_refusal_names_every_variable_and_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUWEN_PORT", "many")
    monkeypatch.setenv("TUWEN_WEBHOOK_SECRET", "hunter2")
    with pytest.raises(ConfigurationError, match=r"TUWEN_PORT: .*; TUWEN_WEBHOOK_SECRET: ") as refusal:
        Settings()
    assert "hunter2" not in str(refusal.value)

"""API keys, and the doors of an installation without them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from hashlib import sha256

import httpx
import pytest

from api.app import create_app
from api.http.auth import new_key
from shared.database import Database
from shared.settings import Settings
from tests.support.api_server import serving
from tests.support.waiting import eventually
from tuwen.errors import ConfigurationError

GENERATE = {"input": {"kind": "generate", "prompt": "a cat"}}


@pytest.fixture
def locked(settings: Settings) -> Iterator[httpx.Client]:
    """A client without a key, of an API that asks for one."""
    with serving(settings.model_copy(update={"auth": "keys"})) as url, httpx.Client(base_url=url) as client:
        yield client


def test_every_door_but_three_asks_for_a_key(locked: httpx.Client) -> None:
    paths = locked.get("/openapi.json").json()["paths"]
    for path, operations in paths.items():
        for method in operations:
            answer = locked.request(method.upper(), re.sub(r"{\w+}", "x", path))
            if path in ("/healthz", "/readyz"):
                assert answer.status_code == 200
            else:
                # Not even whether a path makes sense is told to strangers.
                told = answer.json()
                code = told["error"]["code"] if "error" in told else told["code"]
                assert (answer.status_code, code in ("unauthorized", "invalid_api_key")) == (401, True), path
                assert answer.headers["www-authenticate"].startswith("Bearer")


def test_what_is_no_key(locked: httpx.Client, subtests: pytest.Subtests) -> None:
    for given in (
        "",
        "Bearer",
        "Basic dHc6dHc=",
        "Bearer tw_",
        f"Bearer tw_{'A' * 43}",
        "Bearer " + "A" * 9000,
        "Bearer ü",
    ):
        with subtests.test(authorization=given[:20]):
            answer = locked.get("/v1/jobs", headers={"Authorization": given.encode()})
            assert (answer.status_code, answer.json()["code"]) == (401, "unauthorized")


def test_a_key_works_until_it_is_revoked(locked: httpx.Client, database: Database) -> None:
    key, digest = new_key()
    id = database.keys.add(name="a", tenant="a", sha256=digest, quota=5)
    headers = {"Authorization": f"Bearer {key}"}
    assert locked.post("/v1/jobs", json=GENERATE, headers=headers).status_code == 202
    for path in ("/v1/models", "/metrics", "/v1/jobs"):
        assert locked.get(path, headers=headers).status_code == 200
    database.keys.revoke(id)
    eventually(lambda: locked.get("/v1/jobs", headers=headers).status_code == 401)


def test_only_the_hash_of_a_key_is_kept() -> None:
    key, digest = new_key()
    assert key.startswith("tw_")
    assert digest == sha256(key.encode()).hexdigest()
    assert new_key() != (key, digest)


# ── an open installation ──────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "example.com", ""])
def test_an_open_installation_is_not_for_others(settings: Settings, host: str) -> None:
    with pytest.raises(ConfigurationError):
        create_app(settings.model_copy(update={"host": host}))


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "::1", "localhost"])
def test_an_open_installation_is_for_this_machine(settings: Settings, host: str) -> None:
    create_app(settings.model_copy(update={"host": host}))


def test_a_page_from_elsewhere_gets_nothing_done(api: httpx.Client, subtests: pytest.Subtests) -> None:
    for name, value in [
        ("Host", "evil.example"),
        ("Host", "127.0.0.1.evil.example:8000"),
        ("Host", "[::1"),
        ("Host", ""),
        ("Origin", "https://evil.example"),
        ("Origin", "null"),
        ("Origin", "http://127.0.0.1:1"),
        ("Sec-Fetch-Site", "cross-site"),
        ("Sec-Fetch-Site", "same-site"),
    ]:
        with subtests.test(header=name, value=value):
            answer = api.post("/v1/jobs", json=GENERATE, headers={name: value})
            assert (answer.status_code, answer.json()["code"]) == (403, "forbidden")
            if name == "Host":
                assert api.get("/v1/jobs", headers={name: value}).status_code == 403
    assert api.get("/v1/jobs").json()["jobs"] == []


def test_a_page_of_our_own_gets_things_done(api: httpx.Client) -> None:
    own = str(api.base_url).rstrip("/")
    for headers in (
        {"Origin": own, "Sec-Fetch-Site": "same-origin"},
        {"Sec-Fetch-Site": "none"},
        {"Host": "localhost"},
    ):
        assert api.post("/v1/jobs", json=GENERATE, headers=headers).status_code == 202


def test_no_other_site_may_read(api: httpx.Client) -> None:
    answer = api.get("/v1/jobs", headers={"Origin": "https://evil.example"})
    assert "access-control-allow-origin" not in answer.headers

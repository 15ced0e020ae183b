"""Pages of other origins: shut out unless their origin is listed, and then able to read what they need."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest

from api.app import create_app
from shared.settings import Settings
from tests.support.api_server import serving
from tests.support.waiting import PATIENT
from tuwen.errors import ConfigurationError

APP, OTHER = "https://app.example", "https://evil.example"
GENERATE = {"input": {"kind": "generate", "prompt": "a cat"}}


@pytest.fixture(scope="module")
def api(module_settings: Settings) -> Iterator[httpx.Client]:
    settings = module_settings.model_copy(update={"cors_origins": (APP, "http://localhost:3000")})
    with serving(settings) as url, httpx.Client(base_url=url, timeout=PATIENT) as client:
        yield client


def preflight(api: httpx.Client, origin: str, method: str = "POST", headers: str = "authorization") -> httpx.Response:
    asked = {
        "Origin": origin,
        "Access-Control-Request-Method": method,
        "Access-Control-Request-Headers": headers,
    }
    return api.options("/v1/jobs", headers=asked)


def test_a_listed_page_submits_and_reads(api: httpx.Client) -> None:
    allowed = preflight(api, APP, headers="authorization,content-type,idempotency-key,prefer,x-request-id")
    assert (allowed.status_code, allowed.headers["access-control-allow-origin"]) == (200, APP)
    assert {"POST", "DELETE"} <= set(allowed.headers["access-control-allow-methods"].split(", "))
    answer = api.post("/v1/jobs", json=GENERATE, headers={"Origin": APP, "Sec-Fetch-Site": "cross-site"})
    assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (202, APP)
    exposed = set(answer.headers["access-control-expose-headers"].lower().split(", "))
    assert exposed >= {
        "x-request-id",
        "location",
        "retry-after",
        "ratelimit",
        "ratelimit-policy",
        "link",
        "etag",
        "content-range",
        "accept-ranges",
        "www-authenticate",
    }
    assert "origin" in answer.headers["vary"].lower()
    assert "access-control-allow-credentials" not in answer.headers


def test_it_reads_errors_as_well(api: httpx.Client) -> None:
    for method, path, status in [
        ("POST", "/v1/jobs", 422),
        ("GET", "/nowhere", 404),
        ("PUT", "/v1/jobs", 405),
        ("POST", "/v1/chat/completions", 400),
    ]:
        answer = api.request(method, path, headers={"Origin": APP})
        assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (status, APP)


def test_any_other_page_is_shut_out(api: httpx.Client) -> None:
    for origin in (OTHER, "null", "http://app.example", f"{APP}.evil.example", "http://localhost:3001"):
        assert preflight(api, origin).status_code == 400
        answer = api.get("/v1/jobs", headers={"Origin": origin})
        assert "access-control-allow-origin" not in answer.headers
        assert api.post("/v1/jobs", json=GENERATE, headers={"Origin": origin}).status_code == 403


def test_nobody_is_let_in_by_default(module_settings: Settings) -> None:
    with serving(module_settings) as url, httpx.Client(base_url=url, timeout=PATIENT) as api:
        assert preflight(api, APP).headers.get("access-control-allow-origin") is None
        assert "access-control-allow-origin" not in api.get("/v1/jobs", headers={"Origin": APP}).headers


@pytest.mark.parametrize("origin", ["app.example", "https://app.example/", "ftp://app.example", "https://"])
def test_what_is_no_origin(origin: str) -> None:
    with pytest.raises(ConfigurationError, match="TUWEN_CORS_ORIGINS"):
        Settings(cors_origins=origin)


def test_every_origin_only_with_keys() -> None:
    create_app(Settings(cors_origins="*", auth="keys"))
    with pytest.raises(ConfigurationError, match="TUWEN_CORS_ORIGINS"):
        create_app(Settings(cors_origins="*", auth="open"))

"""Requests that are wrong: refused with the field that is to blame, by an API that stays up."""

from __future__ import annotations

import json
import logging
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from api.http.problems import is_openai
from shared.database.jobs import Jobs

PROBLEM = "application/problem+json"


def generate(**fields: Any) -> bytes:
    return json.dumps({"input": {"kind": "generate", "prompt": "a cat", **fields}}).encode()


def request(**fields: Any) -> bytes:
    return json.dumps({"input": {"kind": "generate", "prompt": "a cat"}, **fields}).encode()


def image(**source: Any) -> bytes:
    return json.dumps({"input": {"kind": "recognize", "image": source}}).encode()


WRONG_JOBS: list[tuple[bytes, str]] = [
    (b"", "body"),
    (b"{", "body"),
    (b"null", "body"),
    (b"[]", "body"),
    (b"\xff\xfe\x00", "body"),
    (b"[" * 10_000, "body"),
    (b'{"input":' * 10_000, "body"),
    (b"{}", "input"),
    (b'{"input": {}}', "input"),
    (b'{"input": {"kind": "paint"}}', "input"),
    (b'{"input": {"kind": "generate"}}', "input.prompt"),
    (generate(prompt=""), "input.prompt"),
    (generate(prompt="x" * 4001), "input.prompt"),
    (generate(prompt="a\x00b"), "input.prompt"),
    (generate(prompt="a\ud800b"), "input.prompt"),
    (generate(prompt=7), "input.prompt"),
    (generate(prompt={"a": 1}), "input.prompt"),
    (generate(negative_prompt="\udfff"), "input.negative_prompt"),
    (generate(steps=-1), "input.steps"),
    (generate(steps=1.5), "input.steps"),
    (generate(width=10**9), "input.width"),
    (generate(height=0), "input.height"),
    (generate(seed=2**64), "input.seed"),
    (generate(seed=-1), "input.seed"),
    (b'{"input":{"kind":"generate","prompt":"a","seed":1' + b"0" * 5000 + b"}}", "input.seed"),
    (generate(guidance=float("nan")), "input.guidance"),
    (generate(guidance=float("inf")), "input.guidance"),
    (generate(guidance=1e999), "input.guidance"),
    (generate(kind="match"), "input.image"),
    (generate(colour="red"), "input.colour"),
    (generate(**{"x" * 100_000: 1}), "input." + "x" * 194),
    (request(priority=10), "priority"),
    (request(priority=True), "priority"),
    (request(deadline=float("nan")), "deadline"),
    (request(deadline=-1), "deadline"),
    (request(max_attempts=0), "max_attempts"),
    (request(model="nobody-has-this"), "model"),
    (request(model="a\x00"), "model"),
    (request(status="succeeded"), "status"),
    (request(webhook="ftp://example.com/"), "webhook"),
    (request(webhook="https://example.com/no-secret-is-set"), "webhook"),
    (request(webhook="http://169.254.169.254/latest/meta-data"), "webhook"),
    (image(), "input.image"),
    (image(url="https://example.com/a.png", file_id="a" * 64), "input.image"),
    (image(file_id="../../etc/passwd"), "input.image.file_id"),
    (image(file_id="a" * 64), "input.image.file_id"),
    (image(url="file:///etc/passwd"), "input.image.url"),
    (image(url="http://localhost/a.png"), "input.image.url"),
    (image(url="http://2130706433/"), "input.image.url"),
    (image(url="http://0177.0.0.1/"), "input.image.url"),
    (image(url="http://[::ffff:10.0.0.1]/"), "input.image.url"),
    (image(url="http://[64:ff9b::7f00:1]/"), "input.image.url"),
    (image(url="http://user:password@example.com/"), "input.image.url"),
    (image(base64="not base64!"), "input.image.base64"),
    (image(base64="猫"), "input.image.base64"),
    (image(base64=""), "input.image.base64"),
    (image(base64="AAAA"), "input.image.base64"),
]


def test_a_job_that_is_wrong(api: httpx.Client, subtests: pytest.Subtests) -> None:
    for body, field in WRONG_JOBS:
        with subtests.test(body=body[:100], field=field[:50]):
            answer = api.post("/v1/jobs", content=body)
            problem = answer.json()
            assert answer.status_code == (404 if problem["code"] == "not_found" else 422)
            assert answer.headers["content-type"] == PROBLEM
            assert field in [error["field"] for error in problem["errors"]]
            assert problem["detail"]
            assert (problem["status"], problem["type"]) == (answer.status_code, f"urn:tuwen:problem:{problem['code']}")
            assert len(answer.content) < 5000
    assert api.get("/v1/jobs").json()["jobs"] == []


def test_of_many_errors_the_first_are_named(api: httpx.Client) -> None:
    answer = api.post("/v1/jobs/batch", json={"jobs": [{"input": {"kind": "generate", "prompt": ""}}] * 500})
    assert answer.status_code == 422
    assert len(answer.json()["errors"]) == 20


WRONG_PATHS = [
    ("GET", "/nowhere", 404),
    ("DELETE", "/v1/jobs", 405),
    ("GET", "/v1/jobs/not-a-uuid", 404),
    ("GET", "/v1/jobs/..%2f..%2fetc%2fpasswd", 404),
    ("GET", "/v1/jobs/%2e%2e", 404),
    ("GET", "/v1/jobs/%00", 404),
    ("GET", "/v1/jobs/{01a1fb6b-eaa3-712d-99b9-6838c730dc0d}", 404),
    ("GET", "/v1/jobs/urn:uuid:01a1fb6b-eaa3-712d-99b9-6838c730dc0d", 404),
    ("POST", "/v1/jobs/not-a-uuid/cancel", 404),
    ("GET", "/v1/jobs?limit=many", 422),
    ("GET", "/v1/jobs?status=%00", 422),
    ("GET", "/v1/jobs?cursor=x", 422),
]


def test_a_path_that_is_wrong(api: httpx.Client, subtests: pytest.Subtests) -> None:
    for method, path, status in WRONG_PATHS:
        with subtests.test(method=method, path=path):
            answer = api.request(method, path)
            assert answer.status_code == answer.json()["status"] == status
            assert answer.headers["content-type"] == PROBLEM


def test_what_nobody_foresaw_says_nothing_outside_and_all_in_the_log(
    api: httpx.Client, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ZeroDivisionError("the secret of the house")

    monkeypatch.setattr(Jobs, "page", fail)
    with caplog.at_level(logging.ERROR):
        answer = api.get("/v1/jobs")
    assert (answer.status_code, answer.json()["code"]) == (500, "internal_error")
    assert answer.headers["content-type"] == PROBLEM
    assert "secret" not in answer.text
    assert "the secret of the house" in caplog.text
    figures = api.get("/metrics").text
    assert 'tuwen_http_request_seconds_count{method="GET",route="/v1/jobs",status="500"} 1.0' in figures


# ── anything at all ───────────────────────────────────────────────────────────────────────────────────

anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=8,
)


def spoilt(body: dict[str, Any]) -> st.SearchStrategy[dict[str, Any]]:
    """`body` with one value, at any depth, replaced by anything."""
    options = []
    for key, value in body.items():
        if isinstance(value, dict):
            options.append(spoilt(value).map(lambda inner, key=key: {**body, key: inner}))
        options.append(anything.map(lambda value, key=key: {**body, key: value}))
    return st.one_of(options)


WHOLE: list[dict[str, Any]] = [
    {
        "input": {
            "kind": "generate",
            "prompt": "猫",
            "negative_prompt": "",
            "width": 64,
            "height": 64,
            "steps": 4,
            "guidance": 1.0,
            "seed": 1,
        },
        "model": None,
        "priority": 5,
        "deadline": 60,
        "max_attempts": 3,
        "webhook": "https://example.com/",
    },
    {"input": {"kind": "describe", "image": {"url": "https://example.com/"}, "language": "zh", "max_tokens": 9}},
    {"input": {"kind": "match", "image": {"base64": "AAAA"}, "text": "猫"}},
]


def test_anything_is_accepted_or_refused_but_never_an_accident(api: httpx.Client) -> None:
    @hypothesis_settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck), database=None)
    @given(st.sampled_from(WHOLE).flatmap(spoilt) | anything)
    def submit(body: Any) -> None:
        answer = api.post("/v1/jobs", content=json.dumps(body).encode())
        assert answer.status_code in (202, 404, 422), answer.text
        if answer.status_code == 202:
            assert api.get(answer.headers["location"]).status_code == 200
        else:
            assert answer.headers["content-type"] == PROBLEM
            assert answer.json()["errors"]

    submit()


def test_any_path_and_query_is_answered(api: httpx.Client) -> None:
    document = api.get("/openapi.json").json()
    routes = [(method, path) for path, operations in document["paths"].items() for method in operations]

    @hypothesis_settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck), database=None)
    @given(
        st.sampled_from(routes),
        st.text(st.characters(), max_size=30),
        st.dictionaries(
            st.sampled_from(["limit", "cursor", "status", "kind"]),
            st.text(st.characters(exclude_categories=["Cs"]), max_size=20),
        ),
        st.binary(max_size=200),
    )
    def ask(route: tuple[str, str], part: str, query: dict[str, str], body: bytes) -> None:
        method, path = route
        segment = "".join(f"%{byte:02x}" for byte in part.encode("utf-8", "surrogatepass")) or "x"
        path = path.replace("{job_id}", segment).replace("{file_id}", segment)
        answer = api.request(method.upper(), path, params=query, content=body if method == "post" else None)
        assert answer.status_code < 500, answer.text
        if answer.status_code >= 400 and is_openai(route[1]):
            assert answer.json()["error"]["message"]
        elif answer.status_code >= 400:
            assert answer.headers["content-type"] == PROBLEM

    ask()

"""Errors as OpenAI's clients read them, on each of OpenAI's paths and on unknown ones."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import openai
import pytest
from openai import OpenAI

from api.http.auth import new_key
from api.http.problems import is_openai
from shared.database import Database
from shared.database.batches import Batches
from shared.settings import Settings
from tests.support.api_server import serving
from tests.support.waiting import PATIENT

LIMIT = 64 * 1024


@pytest.fixture(scope="module")
def url(module_settings: Settings) -> Iterator[str]:
    with serving(module_settings.model_copy(update={"max_body_bytes": LIMIT})) as url:
        yield url


@pytest.fixture(scope="module")
def client(url: str) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{url}/v1", api_key="none needed", max_retries=0, timeout=PATIENT) as client:
        yield client


def complaint(asked: Callable[[], Any], kind: type[openai.APIStatusError]) -> dict[str, Any]:
    """The `error` that a call of the client ends with, once it is known to be of this class and complete."""
    with pytest.raises(openai.APIStatusError) as raised:
        asked()
    error = raised.value
    assert type(error) is kind
    problem = error.response.json()
    assert error.body == problem["error"]
    assert set(problem["error"]) == {"message", "type", "param", "code"}
    assert (problem["status"], problem["detail"]) == (error.status_code, problem["error"]["message"])
    assert error.request_id == problem["request_id"] == error.response.headers["x-request-id"]
    assert (error.code, error.param) == (problem["error"]["code"], problem["error"]["param"])
    found: dict[str, Any] = problem["error"]
    return found


CALLS: list[tuple[str, Callable[[OpenAI], Any], type[openai.APIStatusError], str, str | None]] = [
    ("images", lambda c: c.images.generate(prompt=""), openai.BadRequestError, "invalid_request", "prompt"),
    (
        "a model that is not served",
        lambda c: c.images.generate(prompt="a", model="dall-e-9"),
        openai.NotFoundError,
        "model_not_found",
        "model",
    ),
    (
        "chat",
        lambda c: c.chat.completions.create(model="builtin", messages=[]),
        openai.BadRequestError,
        "invalid_request",
        "messages",
    ),
    ("a model", lambda c: c.models.retrieve("nothing"), openai.NotFoundError, "model_not_found", "model"),
    ("a file", lambda c: c.files.retrieve("file-nothing"), openai.NotFoundError, "not_found", None),
    ("a file's bytes", lambda c: c.files.content("file-nothing"), openai.NotFoundError, "not_found", None),
    ("files", lambda c: c.files.list(after="nothing"), openai.NotFoundError, "not_found", None),
    (
        "files, too many",
        lambda c: c.files.list(limit=10**6),
        openai.BadRequestError,
        "invalid_request",
        "query.limit",
    ),
    (
        "an upload",
        lambda c: c.files.create(file=b"no image", purpose="vision"),
        openai.BadRequestError,
        "unsupported_format",
        None,
    ),
    (
        "an upload that is too large",
        lambda c: c.files.create(file=b" " * 2 * LIMIT, purpose="batch"),
        openai.APIStatusError,
        "payload_too_large",
        None,
    ),
    ("a batch", lambda c: c.batches.retrieve("batch_nothing"), openai.NotFoundError, "not_found", None),
    ("batches", lambda c: c.batches.list(limit=1000), openai.BadRequestError, "invalid_request", "query.limit"),
    (
        "what is not here: embeddings",
        lambda c: c.embeddings.create(model="m", input="x"),
        openai.NotFoundError,
        "not_found",
        None,
    ),
    (
        "what is not here: responses",
        lambda c: c.responses.create(model="m", input="x"),
        openai.NotFoundError,
        "not_found",
        None,
    ),
    (
        "another method",
        lambda c: c.delete("/batches", cast_to=object),
        openai.APIStatusError,
        "method_not_allowed",
        None,
    ),
    (
        "models, another method",
        lambda c: c.post("/models", cast_to=object),
        openai.APIStatusError,
        "method_not_allowed",
        None,
    ),
]


@pytest.mark.parametrize(("what", "call", "kind", "code", "param"), CALLS, ids=[call[0] for call in CALLS])
def test_each_path(
    client: OpenAI,
    what: str,
    call: Callable[[OpenAI], Any],
    kind: type[openai.APIStatusError],
    code: str,
    param: str | None,
) -> None:
    error = complaint(lambda: call(client), kind)
    assert (error["type"], error["code"]) == ("invalid_request_error", code)
    if param is not None:
        assert error["param"].endswith(param.rpartition(".")[2])


def test_what_nobody_foresaw(client: OpenAI, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("secret")

    monkeypatch.setattr(Batches, "page", fail)
    error = complaint(client.batches.list, openai.InternalServerError)
    assert (error["type"], error["code"], "secret" in error["message"]) == ("server_error", "internal_error", False)


def test_no_key_and_no_quota(settings: Settings, database: Database) -> None:
    key, digest = new_key()
    database.keys.add(name="alice", tenant="alice", sha256=digest, quota=1)
    with serving(settings.model_copy(update={"auth": "keys"})) as url:
        with OpenAI(base_url=f"{url}/v1", api_key="wrong", max_retries=0) as stranger:
            for call in (stranger.models.list, stranger.files.list, stranger.batches.list):
                assert complaint(call, openai.AuthenticationError)["code"] == "invalid_api_key"
        headers = {"Authorization": f"Bearer {key}"}
        job = {"input": {"kind": "generate", "prompt": "a cat"}}
        assert httpx.post(f"{url}/v1/jobs", json=job, headers=headers).status_code == 202
        with OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0) as alice:
            error = complaint(lambda: alice.images.generate(prompt="a cat"), openai.RateLimitError)
            assert (error["type"], error["code"]) == ("rate_limit_error", "rate_limit_exceeded")


@pytest.mark.parametrize(("path", "shaped"), [("/v1/nothing", True), ("/v1/jobs", False)])
def test_a_head_that_is_too_large(url: str, path: str, shaped: bool) -> None:
    address = httpx.URL(url)
    with socket.create_connection((address.host, address.port or 0), timeout=PATIENT) as connection:
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nX: ".encode() + b"x" * 2**16)
        answer = b""
        while part := connection.recv(65536):
            answer += part
    assert answer.startswith(b"HTTP/1.1 431 ")
    problem = httpx.Response(431, content=answer.partition(b"\r\n\r\n")[2]).json()
    assert problem["status"] == 431
    assert ("error" in problem) == shaped


def test_a_page_of_another_site(client: OpenAI) -> None:
    options: Any = {"extra_headers": {"Origin": "https://evil.example"}}
    error = complaint(lambda: client.images.generate(prompt="a cat", **options), openai.PermissionDeniedError)
    assert error["code"] == "forbidden"


def test_our_own_paths_keep_their_own_shape(url: str) -> None:
    for path in ("/v1/jobs/nothing", "/v1/datasets/nothing", "/nowhere", "/v1jobs", "/v2/x"):
        answer = httpx.get(f"{url}{path}")
        assert (answer.status_code, answer.headers["content-type"]) == (404, "application/problem+json"), path
        assert "error" not in answer.json()
    assert is_openai("/v1")
    assert is_openai("/v1/")
    assert is_openai("/v1/job")
    assert not is_openai("")
    assert not is_openai("/v1/jobs/")

"""`x-request-id`: in and out, in problems, in logs and in spans."""

from __future__ import annotations

import io
import logging
import socket
from collections.abc import Iterator
from uuid import UUID

import httpx
import openai
import pytest

from api.http.connections import Limits
from api.http.request_ids import LOG_FORMAT, choose, note_in_logs
from shared.database.jobs import Jobs
from shared.settings import Settings
from tests.support.api_server import serving
from tests.support.waiting import PATIENT
from tuwen import Client
from tuwen.errors import NotFound

GENERATE = {"input": {"kind": "generate", "prompt": "a cat"}}


@pytest.fixture(scope="module")
def url(module_settings: Settings) -> Iterator[str]:
    with serving(module_settings, limits=Limits(connections=50, body_timeout=0.3)) as url:
        yield url


@pytest.fixture(scope="module")
def api(url: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=url, timeout=PATIENT) as client:
        yield client


@pytest.mark.parametrize("given", ["a", "req_0123", "7f0c:1/2+3=@-._~", "A" * 128])
def test_a_sane_id_is_kept(api: httpx.Client, given: str) -> None:
    assert api.get("/healthz", headers={"X-Request-Id": given}).headers["x-request-id"] == given


@pytest.mark.parametrize("given", ["", "a b", "ü".encode(), "A" * 129, "-a", 'a"b', "a\tb", "<script>"])
def test_any_other_is_replaced(api: httpx.Client, given: str | bytes) -> None:
    made = [api.get("/healthz", headers={"X-Request-Id": given}).headers["x-request-id"] for _ in range(2)]
    assert UUID(made[0]) != UUID(made[1])
    assert choose(None) != choose(None)


def test_every_answer_has_one(api: httpx.Client, subtests: pytest.Subtests) -> None:
    job = api.post("/v1/jobs", json=GENERATE).json()["id"]
    for method, path, status in [
        ("POST", "/v1/jobs", 422),
        ("GET", "/nowhere", 404),
        ("GET", "/v1/nowhere", 404),
        ("DELETE", "/v1/jobs", 405),
        ("HEAD", "/v1/jobs", 200),
        ("OPTIONS", "/v1/jobs", 204),
        ("GET", f"/v1/jobs/{job}/image", 409),
        ("GET", "/web/style.css", 200),
        ("GET", "/metrics", 200),
    ]:
        with subtests.test(method=method, path=path):
            answer = api.request(method, path, headers={"X-Request-Id": "mine"})
            assert (answer.status_code, answer.headers.get_list("x-request-id")) == (status, ["mine"])
            if status >= 400:
                assert answer.json()["request_id"] == "mine"
    refused = api.get("/v1/jobs", headers={"Host": "evil.example", "X-Request-Id": "mine"})
    assert (refused.status_code, refused.json()["request_id"]) == (403, "mine")
    with api.stream("GET", f"/v1/jobs/{job}/events", headers={"X-Request-Id": "mine"}) as stream:
        assert stream.headers["x-request-id"] == "mine"


@pytest.mark.parametrize(
    ("sent", "status", "id"),
    [
        (b"GET / HTTP/1.1\r\nX-Request-Id: mine\r\nX: " + b"x" * 2**16, 431, None),
        (
            b"POST /v1/files HTTP/1.1\r\nHost: localhost\r\nX-Request-Id: mine\r\nContent-Length: 9\r\n\r\n{",
            408,
            "mine",
        ),
        (b"rubbish\r\n\r\n", 400, None),
    ],
)
def test_what_never_reaches_the_application_has_one_too(
    api: httpx.Client, sent: bytes, status: int, id: str | None
) -> None:
    address = (api.base_url.host, api.base_url.port or 0)
    with socket.create_connection(address, timeout=PATIENT) as connection:
        connection.sendall(sent)
        answer = b""
        while part := connection.recv(65536):
            answer += part
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 %d " % status)
    said = httpx.Response(status, content=body).json()["request_id"]
    assert f"\r\nx-request-id: {said}\r\n".encode() in head.lower() + b"\r\n"
    assert said == id or (id is None and (said == "mine" or UUID(said)))


def test_openai_s_client_and_ours_tell_it(url: str) -> None:
    with openai_client(url) as client, pytest.raises(openai.NotFoundError) as raised:
        client.models.retrieve("nothing", extra_headers={"X-Request-Id": "mine"})
    assert raised.value.request_id == "mine"
    with Client(url) as ours, pytest.raises(NotFound) as missing:
        ours.get(UUID(int=0))
    assert UUID(missing.value.request_id)


def openai_client(url: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{url}/v1", api_key="none needed", max_retries=0)


def test_the_log_names_it_also_from_threads(api: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    before = logging.getLogRecordFactory()
    note_in_logs()
    lines = io.StringIO()
    handler = logging.StreamHandler(lines)
    handler.setFormatter(logging.Formatter(LOG_FORMAT))
    logging.getLogger().addHandler(handler)

    def fail(*_: object, **__: object) -> None:
        logging.getLogger("of.a.thread").warning("about to fail")
        raise RuntimeError("secret")

    monkeypatch.setattr(Jobs, "page", fail)
    try:
        assert api.get("/v1/jobs", headers={"X-Request-Id": "mine"}).status_code == 500
        logging.getLogger("of.nobody").warning("no request")
    finally:
        logging.getLogger().removeHandler(handler)
        logging.setLogRecordFactory(before)
    assert "WARNING of.a.thread: about to fail [request mine]\n" in lines.getvalue()
    assert "GET /v1/jobs failed [request mine]\n" in lines.getvalue()
    assert "of.nobody: no request\n" in lines.getvalue()

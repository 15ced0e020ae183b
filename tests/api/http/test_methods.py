"""HEAD, OPTIONS and 405: every path knows its methods, and says so."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from uuid import UUID

import httpx
import pytest

from shared.settings import Settings
from tests.support.api_server import FakeWorker, png, serving
from tests.support.waiting import PATIENT, eventually

GENERATE = {"input": {"kind": "generate", "prompt": "a cat"}}
VOLATILE = {"date", "x-request-id"}


@pytest.fixture(scope="module")
def api(module_settings: Settings) -> Iterator[httpx.Client]:
    with serving(module_settings) as url, httpx.Client(base_url=url, timeout=PATIENT) as client:
        yield client


@pytest.fixture(scope="module")
def job(api: httpx.Client, module_settings: Settings) -> str:
    """Id of a job that has an image."""
    id: str = api.post("/v1/jobs", json=GENERATE).json()["id"]
    hand = FakeWorker(module_settings)
    hand.claim(UUID(id))
    hand.succeed(UUID(id), png("red"))
    hand.close()
    return id


def exchange(api: httpx.Client, request: str) -> bytes:
    """All that the server sends for one request, over a socket of its own."""
    address = (api.base_url.host, api.base_url.port or 0)
    with socket.create_connection(address, timeout=PATIENT) as connection:
        connection.sendall(f"{request}\r\nHost: {address[0]}:{address[1]}\r\nConnection: close\r\n\r\n".encode())
        answer = b""
        while part := connection.recv(65536):
            answer += part
    return answer


def test_head_is_get_without_the_body(api: httpx.Client, job: str, subtests: pytest.Subtests) -> None:
    file = api.post("/v1/files", content=png()).json()["id"]
    document = api.post("/v1/files", files={"file": ("a.jsonl", b"{}\n")}, data={"purpose": "batch"}).json()["id"]
    for path in (
        "/v1/jobs",
        f"/v1/jobs/{job}",
        f"/v1/jobs/{job}/image",
        f"/v1/files/{file}",
        f"/v1/files/{file}/content",
        f"/v1/files/{document}/content",
        "/v1/files",
        "/v1/models",
        "/v1/batches",
        "/v1/datasets",
        "/healthz",
        "/readyz",
        "/",
        "/docs",
        "/redoc",
        "/openapi.json",
        "/datasets",
        "/web/style.css",
        "/v1/jobs/not-a-job",
        "/v1/nowhere",
        "/nowhere",
    ):
        with subtests.test(path=path):
            get, head = api.get(path), api.head(path)
            assert head.status_code == get.status_code
            assert head.content == b""
            told = {name: value for name, value in get.headers.items() if name not in VOLATILE}
            if get.headers["content-type"].startswith("application/") and "request_id" in get.text:
                assert head.headers["content-length"] == get.headers["content-length"]
            assert {name: value for name, value in head.headers.items() if name not in VOLATILE} == told
            assert int(head.headers["content-length"]) == len(get.content)
    assert exchange(api, f"HEAD /v1/jobs/{job}/image HTTP/1.1").endswith(b"\r\n\r\n"), "no byte of a body"


def test_head_of_figures_and_of_streams(api: httpx.Client) -> None:
    """What changes all the time has no length to compare, and a stream has none at all."""
    assert api.head("/metrics").headers["content-type"] == api.get("/metrics").headers["content-type"]
    assert int(api.head("/metrics").headers["content-length"]) > 1000
    waiting = api.post("/v1/jobs", json=GENERATE).json()["id"]
    answer = api.head(f"/v1/jobs/{waiting}/events")
    assert (answer.status_code, answer.content) == (200, b"")
    assert answer.headers["content-type"].startswith("text/event-stream")
    measured = 'tuwen_http_request_seconds_count{method="HEAD",route="/v1/jobs/{job_id}/events",status="200"} 1.0'
    eventually(lambda: measured in api.get("/metrics").text)


def test_head_ignores_ranges(api: httpx.Client, job: str) -> None:
    answer = api.head(f"/v1/jobs/{job}/image", headers={"Range": "bytes=0-3"})
    assert (answer.status_code, answer.headers["content-length"]) == (200, str(len(png("red"))))


ALLOWED = {
    "/v1/jobs": "GET, HEAD, OPTIONS, POST",
    "/v1/jobs/batch": "OPTIONS, POST",
    "/v1/jobs/00000000-0000-0000-0000-000000000000": "DELETE, GET, HEAD, OPTIONS",
    "/v1/jobs/x/cancel": "OPTIONS, POST",
    "/v1/files": "GET, HEAD, OPTIONS, POST",
    "/v1/files/x": "DELETE, GET, HEAD, OPTIONS",
    "/v1/files/x/content": "GET, HEAD, OPTIONS",
    "/v1/datasets/x": "DELETE, GET, HEAD, OPTIONS",
    "/v1/datasets/x/items/1/reviews/x": "DELETE, OPTIONS",
    "/v1/images/generations": "OPTIONS, POST",
    "/v1/chat/completions": "OPTIONS, POST",
    "/v1/batches": "GET, HEAD, OPTIONS, POST",
    "/v1/models": "GET, HEAD, OPTIONS",
    "/v1/models/a/b": "GET, HEAD, OPTIONS",
    "/metrics": "GET, HEAD, OPTIONS",
    "/docs": "GET, HEAD, OPTIONS",
    "/openapi.json": "GET, HEAD, OPTIONS",
    "/": "GET, HEAD, OPTIONS",
    "/datasets": "GET, HEAD, OPTIONS",
}


def test_every_path_names_all_its_methods(api: httpx.Client, subtests: pytest.Subtests) -> None:
    for path, allowed in ALLOWED.items():
        with subtests.test(path=path):
            options = api.options(path)
            assert (options.status_code, options.headers["allow"], options.content) == (204, allowed, b"")
            for method in {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"} - set(allowed.split(", ")):
                refused = api.request(method, path)
                assert (refused.status_code, refused.headers["allow"]) == (405, allowed), method
                if method != "HEAD":
                    assert refused.json()["code"] == "method_not_allowed"


def test_each_method_in_the_document_is_allowed(api: httpx.Client) -> None:
    for path, operations in api.get("/openapi.json").json()["paths"].items():
        allowed = api.options(path).headers["allow"].split(", ")
        assert {method.upper() for method in operations} <= set(allowed), path


def test_the_files_of_the_documentation_name_theirs(api: httpx.Client) -> None:
    refused = api.post("/static-offline-docs/swagger-ui.css")
    assert (refused.status_code, refused.headers["allow"]) == (405, "GET, HEAD")


def test_an_unknown_path_has_no_methods(api: httpx.Client) -> None:
    for method in ("OPTIONS", "DELETE", "GET"):
        assert api.request(method, "/v1/nowhere").status_code == 404
        assert "allow" not in api.request(method, "/nowhere").headers

"""Images in and out, and what is too much of them."""

from __future__ import annotations

import logging
import socket
import struct
import zlib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
import psutil
import pytest

from shared.settings import Settings
from tests.support.api_server import FakeWorker, png, serving
from tests.support.s3 import serve_s3
from tests.support.waiting import PATIENT, eventually


def test_the_same_bytes_are_one_file(api: httpx.Client, tmp_path: Path) -> None:
    data = png("red", (30, 20))
    as_body = api.post("/v1/files", content=data)
    as_form = api.post("/v1/files", files={"file": ("../../猫.exe", data, "text/html")})
    assert as_body.status_code == as_form.status_code == 201
    file = as_body.json()
    assert file == as_form.json()
    shown = {"id": file["id"], "media_type": "image/png", "width": 30, "height": 20, "size": len(data)}
    assert file.items() >= shown.items()
    assert as_body.headers["location"] == f"/v1/files/{file['id']}"
    assert api.get(f"/v1/files/{file['id']}").json() == file
    assert len([path for path in (tmp_path / "objects").rglob("*") if path.is_file()]) == 1


def test_a_file_is_served_as_what_it_is(api: httpx.Client) -> None:
    id = api.post("/v1/files", content=png()).json()["id"]
    answer = api.get(f"/v1/files/{id}/content")
    assert (answer.content, answer.headers["content-type"]) == (png(), "image/png")
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "sandbox" in answer.headers["content-security-policy"]
    assert api.get(f"/v1/files/{id}/content", headers={"If-None-Match": answer.headers["etag"]}).status_code == 304


def bomb() -> bytes:
    """A valid PNG header of 50,000 × 50,000 pixels, and hardly anything behind it."""
    size = struct.pack(">II", 50_000, 50_000)
    data = png()
    header = b"IHDR" + size + data[24:29]
    return data[:12] + header + struct.pack(">I", zlib.crc32(header)) + data[33:]


def test_what_is_no_image_is_refused_and_not_kept(api: httpx.Client, tmp_path: Path, subtests: pytest.Subtests) -> None:
    for data, code in [
        (b"", "image_corrupt"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "unsupported_format"),
        (b"%!PS-Adobe-3.0 EPSF-3.0", "unsupported_format"),
        (b"SIMPLE  =                    T", "unsupported_format"),
        (png()[:20], "image_corrupt"),
        (bomb(), "image_too_large"),
    ]:
        with subtests.test(code=code, data=data[:20]):
            for answer in (api.post("/v1/files", content=data), api.post("/v1/files", files={"file": data})):
                assert (answer.status_code, answer.json()["code"]) == (400, code)
    assert not [path for path in (tmp_path / "objects").rglob("*") if path.is_file()]


def test_a_form_without_one_file(api: httpx.Client, subtests: pytest.Subtests) -> None:
    forms: list[dict[str, Any]] = [
        {"files": {"picture": png()}},
        {"data": {"file": "not a file"}, "files": {"other": b""}},
        {"content": b"--x\r\nrubbish", "headers": {"Content-Type": "multipart/form-data; boundary=x"}},
        {"content": b"rubbish", "headers": {"Content-Type": "multipart/form-data"}},
        {"files": [("file", png()), ("file", png())]},
    ]
    for form in forms:
        with subtests.test(form=form):
            answer = api.post("/v1/files", **form)
            assert answer.status_code == answer.json()["status"] == 400
            assert answer.json()["error"]["type"] == "invalid_request_error"


def test_what_cannot_be_a_file_is_absent(api: httpx.Client, subtests: pytest.Subtests) -> None:
    for id in ("..%2f..%2fpassword", "%2e%2e", "A" * 64, "%00", "a" * 63):
        with subtests.test(id=id):
            for answer in (api.get(f"/v1/files/{id}"), api.get(f"/v1/files/{id}/content")):
                assert (answer.status_code, answer.json()["code"]) == (404, "not_found")


# ── too much ──────────────────────────────────────────────────────────────────────────────────────────

LIMIT = 4 * 2**20


@pytest.fixture
def small(settings: Settings) -> Iterator[httpx.Client]:
    limits = settings.model_copy(update={"max_body_bytes": LIMIT, "max_image_bytes": LIMIT // 2})
    with serving(limits) as url, httpx.Client(base_url=url, timeout=PATIENT) as client:
        yield client


def connect(api: httpx.Client) -> socket.socket:
    return socket.create_connection((api.base_url.host, api.base_url.port or 0), timeout=PATIENT)


def test_a_body_that_says_it_is_too_long(small: httpx.Client, subtests: pytest.Subtests) -> None:
    for path in ("/v1/jobs", "/v1/jobs/batch", "/v1/files", "/v1/jobs/x/cancel", "/nowhere"):
        with subtests.test(path=path):
            answer = small.post(path, content=b" " * (LIMIT + 1))
            assert (answer.status_code, answer.json()["code"]) == (413, "payload_too_large")


FORM = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'


def test_a_body_without_end_leaves_memory_flat(small: httpx.Client, subtests: pytest.Subtests) -> None:
    process = psutil.Process()
    chunk = b"%x\r\n%s\r\n" % (2**16, b" " * 2**16)
    before = peak = process.memory_info().rss
    for path, kind, start in [
        ("/v1/jobs", "application/json", b" "),
        ("/v1/jobs/batch", "application/json", b" "),
        ("/v1/files", "image/png", b" "),
        ("/v1/files", "multipart/form-data; boundary=x", FORM),
        ("/nowhere", "application/json", b" "),
    ]:
        with subtests.test(path=path, kind=kind), connect(small) as connection:
            head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: {kind}\r\n"
            connection.sendall(f"{head}Transfer-Encoding: chunked\r\n\r\n".encode())
            connection.sendall(b"%x\r\n%s\r\n" % (len(start), start))
            with suppress(OSError):  # hung up on
                for _ in range(4096):
                    connection.sendall(chunk)
                    peak = max(peak, process.memory_info().rss)
                pytest.fail("the API took 256 MiB")
            assert connection.recv(12) == (b"HTTP/1.1 404" if path == "/nowhere" else b"HTTP/1.1 413")
    assert peak - before < 8 * LIMIT


def test_a_content_length_that_lies(small: httpx.Client, subtests: pytest.Subtests) -> None:
    for said in (b"3", b"-1", b"99999999999999999999", b"1e3", b"0x10", b"3\r\nContent-Length: 4"):
        with subtests.test(said=said), connect(small) as connection:
            head = b"POST /v1/jobs HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: " + said
            connection.sendall(head + b"\r\n\r\n" + b"{}" * 50)
            assert connection.recv(12) in (b"HTTP/1.1 400", b"HTTP/1.1 413", b"HTTP/1.1 422")
    assert small.get("/healthz").status_code == 200


def test_who_leaves_in_the_middle_of_a_body_is_no_accident(
    small: httpx.Client, caplog: pytest.LogCaptureFixture
) -> None:
    for path in ("/v1/jobs", "/v1/files"):
        with connect(small) as connection:
            head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 100\r\n\r\n{{"
            connection.sendall(head.encode())
        left = f'tuwen_http_request_seconds_count{{method="POST",route="{path}",status="400"}} 1.0'
        eventually(lambda left=left: left in small.get("/metrics").text)  # type: ignore[misc]
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


def test_an_image_over_its_own_limit(small: httpx.Client) -> None:
    data = png() + b"\0" * (LIMIT // 2)
    for answer in (small.post("/v1/files", content=data), small.post("/v1/files", files={"file": data})):
        assert (answer.status_code, answer.json()["code"]) == (413, "payload_too_large")


# ── S3 ────────────────────────────────────────────────────────────────────────────────────────────────


def test_bytes_in_a_bucket_are_fetched_from_the_bucket(settings: Settings, tmp_path: Path) -> None:
    with serve_s3(tmp_path / "s3") as s3:
        bucket = settings.model_copy(update=s3.settings("objects").model_dump(exclude_unset=True))
        worker = FakeWorker(bucket)
        with serving(bucket) as url, httpx.Client(base_url=url, timeout=PATIENT) as api:
            file = api.post("/v1/files", content=png()).json()["id"]
            job = api.post("/v1/jobs", json={"input": {"kind": "generate", "prompt": "a cat"}}).json()["id"]
            worker.claim(UUID(job))
            worker.succeed(UUID(job), png("red"))
            for path, data in ((f"/v1/files/{file}/content", png()), (f"/v1/jobs/{job}/image", png("red"))):
                answer = api.get(path)
                assert (answer.status_code, answer.headers["cache-control"]) == (307, "private, no-store")
                assert httpx.get(answer.headers["location"]).content == data
        worker.close()

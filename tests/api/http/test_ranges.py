"""Parts of results and files: one range of bytes, over HTTP, and read as such from the storage."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from uuid import UUID

import httpx
import pytest

from api.http.ranges import requested_span
from shared.objects.storage import ObjectStore
from shared.settings import Settings
from tests.support.api_server import FakeWorker, png, serving
from tests.support.s3 import FickleS3, serve_s3
from tests.support.waiting import PATIENT

IMAGE = png("red", (64, 64))
LINES = b'{"custom_id": "a"}\n' * 100


@pytest.fixture(scope="module")
def api(module_settings: Settings) -> Iterator[httpx.Client]:
    with serving(module_settings) as url, httpx.Client(base_url=url, timeout=PATIENT) as client:
        yield client


@pytest.fixture(scope="module")
def bodies(api: httpx.Client, module_settings: Settings) -> dict[str, bytes]:
    """Paths of a result, an image and a document, and the bytes there."""
    job = api.post("/v1/jobs", json={"input": {"kind": "generate", "prompt": "a cat"}}).json()["id"]
    hand = FakeWorker(module_settings)
    hand.claim(UUID(job))
    hand.succeed(UUID(job), IMAGE)
    hand.close()
    file = api.post("/v1/files", content=IMAGE).json()["id"]
    document = api.post("/v1/files", files={"file": ("a.jsonl", LINES)}, data={"purpose": "batch"}).json()["id"]
    return {
        f"/v1/jobs/{job}/image": IMAGE,
        f"/v1/files/{file}/content": IMAGE,
        f"/v1/files/{document}/content": LINES,
    }


def test_a_range_is_sent_alone(api: httpx.Client, bodies: dict[str, bytes], subtests: pytest.Subtests) -> None:
    for path, body in bodies.items():
        size = len(body)
        whole = api.get(path)
        assert (whole.headers["accept-ranges"], whole.headers["content-length"]) == ("bytes", str(size))
        for asked, first, last in [
            ("bytes=0-0", 0, 0),
            ("bytes=5-9", 5, 9),
            ("bytes=10-", 10, size - 1),
            ("bytes=-7", size - 7, size - 1),
            ("bytes=0-999999", 0, size - 1),
            (f"bytes=-{size + 5}", 0, size - 1),
        ]:
            with subtests.test(path=path, range=asked):
                part = api.get(path, headers={"Range": asked, "If-Range": whole.headers["etag"]})
                assert (part.status_code, part.content) == (206, body[first : last + 1])
                assert part.headers["content-range"] == f"bytes {first}-{last}/{size}"
                assert part.headers["content-length"] == str(last - first + 1)
                assert part.headers["etag"] == whole.headers["etag"]


def test_what_is_no_single_range_is_the_whole(
    api: httpx.Client, bodies: dict[str, bytes], subtests: pytest.Subtests
) -> None:
    path, body = next(iter(bodies.items()))
    for headers in (
        {"Range": "bytes=0-1,3-4"},
        {"Range": "bytes=9-3"},
        {"Range": "bytes=-"},
        {"Range": "lines=0-1"},
        {"Range": "bytes=x"},
        {"Range": "bytes=0-1", "If-Range": '"another"'},
        {"Range": "bytes=0-1", "If-Range": "Sat, 01 Jan 2022 00:00:00 GMT"},
    ):
        with subtests.test(headers=headers):
            answer = api.get(path, headers=headers)
            assert (answer.status_code, answer.content) == (200, body)


def test_a_range_beyond_the_end(api: httpx.Client, bodies: dict[str, bytes]) -> None:
    for path, body in bodies.items():
        for asked in (f"bytes={len(body)}-", "bytes=-0"):
            refused = api.get(path, headers={"Range": asked})
            assert (refused.status_code, refused.headers["content-range"]) == (416, f"bytes */{len(body)}")
            assert refused.json()["status"] == 416


def test_a_download_that_broke_off_goes_on(api: httpx.Client, bodies: dict[str, bytes]) -> None:
    for path, body in bodies.items():
        with api.stream("GET", path) as answer:
            etag = answer.headers["etag"]
            begun = next(answer.iter_bytes(10))
        rest = api.get(path, headers={"Range": f"bytes={len(begun)}-", "If-Range": etag})
        assert begun + rest.content == body


def test_an_empty_body_has_no_range() -> None:
    assert requested_span({}, 0, '"x"') is None


@pytest.mark.parametrize("kind", ["folder", "bucket"])
def test_only_the_range_is_read_from_the_storage(kind: str, tmp_path: Path) -> None:
    data = bytes(range(256)) * 4096
    if kind == "folder":
        read_part(ObjectStore.open(Settings(storage_url=f"file://{tmp_path / 'objects'}")), data)
        return
    with serve_s3(tmp_path / "s3") as s3, closing(FickleS3(s3)) as front:
        read_part(ObjectStore.open(front.server.settings("objects")), data)


def read_part(store: ObjectStore, data: bytes) -> None:
    store.put("results/aa/x.png", data, "image/png")
    assert b"".join(store.stream("results/aa/x.png", (1000, 700_000))) == data[1000:700_000]
    assert store.read("results/aa/x.png", 1000, 5) == data[1000:1005]
    assert b"".join(store.stream("results/aa/x.png", (0, 1))) == data[:1]
    assert b"".join(store.stream("results/aa/x.png")) == data


def test_a_bucket_serves_ranges_itself(settings: Settings, tmp_path: Path) -> None:
    with serve_s3(tmp_path / "s3") as s3, closing(FickleS3(s3)) as front:
        bucket = settings.model_copy(update=front.server.settings("objects").model_dump(exclude_unset=True))
        with serving(bucket) as url, httpx.Client(base_url=url, timeout=PATIENT, follow_redirects=True) as api:
            file = api.post("/v1/files", content=IMAGE).json()["id"]
            part = api.get(f"/v1/files/{file}/content", headers={"Range": "bytes=5-9"})
            assert (part.status_code, part.content) == (206, IMAGE[5:10])
            assert part.headers["content-range"] == f"bytes 5-9/{len(IMAGE)}"

"""The S3 half of the object store, over HTTP against a server that checks signatures."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import urlsplit

import httpx
import pytest

from shared.objects.storage import ObjectStore, content_key
from shared.settings import Settings
from tests.support.s3 import S3Server, serve_s3
from tests.support.waiting import PATIENT
from tuwen.errors import ConfigurationError, NotFound, StorageUnavailable

DATA = os.urandom(300_000)


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "*")


@pytest.fixture(scope="module")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with serve_s3(tmp_path_factory.mktemp("s3 对象")) as server:
        yield server


@pytest.fixture
def prefix(request: pytest.FixtureRequest) -> str:
    return f"some/{request.node.name}"


@pytest.fixture
def folder(s3_server: S3Server, prefix: str) -> Path:
    """The folder with the objects of the test's store."""
    return s3_server.folder / s3_server.bucket / prefix


@pytest.fixture
def store(s3_server: S3Server, prefix: str) -> ObjectStore:
    return ObjectStore.open(s3_server.settings(prefix + "/"))


def test_put_get_head_stream_delete(store: ObjectStore, folder: Path) -> None:
    store.put("results/ab/1.png", DATA, "image/png")
    assert (folder / "results/ab/1.png").read_bytes() == DATA
    assert store.get("results/ab/1.png") == DATA
    assert b"".join(store.stream("results/ab/1.png")) == DATA
    assert store.head("results/ab/1.png").size == len(DATA)
    store.put("results/ab/1.png", b"replaced", "image/png")
    assert store.get("results/ab/1.png") == b"replaced"
    store.delete("results/ab/1.png")
    store.delete("results/ab/1.png")
    for absent in (store.get, store.head, store.stream):
        with pytest.raises(NotFound):
            absent("results/ab/1.png")


def test_delete_folder(store: ObjectStore) -> None:
    keys = [f"datasets/one/{number:08d}/plan-1.jsonl" for number in range(30)]
    for key in [*keys, "datasets/one-more/x", "datasets/two/x"]:
        store.put(key, b"x", "text/plain")
    store.delete_folder("datasets/one")
    assert {stored.key for stored in store.list()} == {"datasets/one-more/x", "datasets/two/x"}
    store.delete_folder("datasets/one")


def test_list_is_relative_to_the_prefix_and_complete(store: ObjectStore) -> None:
    keys = {f"results/{number % 7:02x}/{number}.png" for number in range(40)}
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda key: store.put(key, key.encode(), "image/png"), sorted(keys)))
    store.put("files/x", b"x", "text/plain")
    listed = {stored.key: stored for stored in store.list("results")}
    assert set(listed) == keys
    assert all(stored.size == len(key) for key, stored in listed.items())
    assert all(abs(stored.last_modified.timestamp() - time.time()) < 3600 for stored in listed.values())
    assert {stored.key for stored in store.list()} == keys | {"files/x"}
    assert list(store.list("nothing")) == []


def test_a_walk_goes_on_where_it_stopped(store: ObjectStore) -> None:
    keys = [f"results/{number % 3:02x}/{number}.png" for number in range(9)]
    for key in [*keys, "files/x", "tables/x"]:
        store.put(key, b"x", "image/png")
    order = [stored.key for stored in store.walk("results")]
    assert sorted(order) == sorted(keys)
    for number in (0, 4, 8):
        assert [stored.key for stored in store.walk("results", order[number])] == order[number + 1 :]
    assert [stored.key for stored in store.walk("results", "files/x")] == order
    assert list(store.walk("results", "tables/x")) == []


def test_put_once_sends_the_bytes_once(store: ObjectStore, folder: Path) -> None:
    key = content_key("files", DATA, ".png")
    store.put_once(key, DATA, "image/png")
    written = (folder / key).stat().st_mtime_ns
    store.put_once(key, DATA, "image/png")
    assert (folder / key).stat().st_mtime_ns == written


def test_put_once_renews_what_is_about_to_be_collected(s3_server: S3Server, prefix: str, folder: Path) -> None:
    store = ObjectStore.open(s3_server.settings(prefix, orphan_age=0))
    key = content_key("files", DATA, ".png")
    store.put_once(key, DATA, "image/png")
    written = (folder / key).stat().st_mtime_ns
    store.put_once(key, DATA, "image/png")
    assert (folder / key).stat().st_mtime_ns > written


def test_presigned_url_serves_the_object_with_its_type(store: ObjectStore) -> None:
    store.put("results/ab/1.png", DATA, "image/png")
    url = store.url("results/ab/1.png", ttl=60)
    assert url
    answer = httpx.get(url)
    assert answer.status_code == 200
    assert answer.content == DATA
    assert answer.headers["content-type"] == "image/png"


def test_presigned_url_opens_nothing_else(store: ObjectStore) -> None:
    store.put("results/ab/1.png", DATA, "image/png")
    store.put("results/ab/2.png", b"secret", "image/png")
    url = store.url("results/ab/1.png", ttl=60)
    assert url
    changed_signature = url[:-4] + ("0000" if url[-4:] != "0000" else "1111")
    longer_life = url.replace("X-Amz-Expires=60", "X-Amz-Expires=6000")
    other_object = url.replace("/1.png?", "/2.png?")
    for forged in (changed_signature, longer_life, other_object, url.partition("?")[0]):
        assert forged != url
        answer = httpx.get(forged)
        assert answer.status_code in (400, 403)
        assert b"secret" not in answer.content
    assert httpx.put(url, content=b"overwritten").status_code in (400, 403)
    assert store.get("results/ab/1.png") == DATA


def test_presigned_url_expires(store: ObjectStore) -> None:
    store.put("results/ab/1.png", DATA, "image/png")
    url = store.url("results/ab/1.png", ttl=0)  # lasts the shortest time there is, a second
    assert url
    deadline = time.monotonic() + PATIENT
    while (answer := httpx.get(url)).status_code == 200 and time.monotonic() < deadline:
        time.sleep(0.2)
    assert answer.status_code in (400, 403)
    assert DATA not in answer.content


def test_presigned_url_lives_at_most_seven_days(store: ObjectStore) -> None:
    url = store.url("results/ab/1.png", ttl=1e7)
    assert url
    assert "X-Amz-Expires=604800&" in url


def test_presigned_url_is_signed_for_the_public_endpoint(s3_server: S3Server, prefix: str) -> None:
    """Clients reach the service under another name than we do, and the name is part of what is signed."""
    public = s3_server.endpoint.replace("127.0.0.1", "localhost")
    store = ObjectStore.open(s3_server.settings(prefix, s3_public_endpoint=public))
    store.put("1.png", DATA, "image/png")
    url = store.url("1.png", ttl=60)
    assert url
    assert urlsplit(url).hostname == "localhost"
    assert httpx.get(url).content == DATA
    assert httpx.get(url.replace("localhost", "127.0.0.1")).status_code == 403


def test_wrong_secret_is_a_failure_not_a_missing_object(store: ObjectStore, s3_server: S3Server, prefix: str) -> None:
    store.put("1.png", DATA, "image/png")
    wrong = ObjectStore.open(s3_server.settings(prefix, s3_secret_access_key="wrong"))
    for broken in (
        lambda: wrong.get("1.png"),
        lambda: wrong.head("1.png"),
        lambda: wrong.put("2.png", DATA, "image/png"),
        lambda: wrong.put_once("2.png", DATA, "image/png"),
        lambda: wrong.delete("1.png"),
        lambda: list(wrong.list()),
        wrong.check,
    ):
        with pytest.raises(StorageUnavailable):
            broken()
    assert store.get("1.png") == DATA


def test_missing_bucket_is_a_failure_not_a_missing_object(s3_server: S3Server) -> None:
    ObjectStore.open(s3_server.settings("")).check()
    store = ObjectStore.open(s3_server.settings("", storage_url="s3://gone"))
    for broken in (store.check, lambda: store.get("1.png"), lambda: list(store.list())):
        with pytest.raises(StorageUnavailable):
            broken()


def test_service_that_is_down_is_a_failure() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # bound and not listening: refused
        store = ObjectStore.open(_settings(f"http://127.0.0.1:{unused.getsockname()[1]}"))
        for broken in (store.check, lambda: store.get("1.png"), lambda: store.put("1.png", DATA, "image/png")):
            with pytest.raises(StorageUnavailable):
                broken()


def test_404_of_something_that_is_not_s3_is_a_failure() -> None:
    class NotS3(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_error(404)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), NotS3) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        with pytest.raises(StorageUnavailable):
            ObjectStore.open(_settings(f"http://127.0.0.1:{server.server_address[1]}")).get("1.png")
        server.shutdown()


def test_half_a_credential_is_refused() -> None:
    with pytest.raises(ConfigurationError):
        ObjectStore.open(Settings(storage_url="s3://images", s3_access_key_id="only"))


def _settings(endpoint: str) -> Settings:
    return Settings.model_validate(
        {
            "storage_url": "s3://images",
            "s3_endpoint": endpoint,
            "s3_access_key_id": "id",
            "s3_secret_access_key": "secret",
        }
    )

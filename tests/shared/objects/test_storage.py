"""The object store on a local folder, and the rules for keys."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path

import pytest

from shared.objects.storage import ObjectStore, content_key
from shared.settings import Settings
from tuwen.errors import ConfigurationError, NotFound, StorageUnavailable

BAD_KEYS = [
    "",
    "/",
    "/etc/passwd",
    "a/",
    "a//b",
    ".",
    "..",
    "../a",
    "a/../b",
    "a/..",
    "a/.hidden",
    "a/./b",
    "%2e%2e/a",
    "a%2fb",
    "a\\b",
    "a\x00b",
    "a\nb",
    "a\n",
    "a b",
    "a#1",
    "a?b",
    "图",
    "\udc80",
    "C:/a",
    "a" * 200,
    "a/" * 300 + "a",
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "objects"


@pytest.fixture
def store(folder: Path) -> ObjectStore:
    return _open(folder)


def _open(folder: Path | str) -> ObjectStore:
    return ObjectStore.open(Settings(storage_url=f"file://{folder}"))


def test_put_get_head_stream_delete(store: ObjectStore, folder: Path) -> None:
    data = os.urandom(1_000_000)
    store.put("results/ab/1.png", data, "image/png")
    assert (folder / "results/ab/1.png").read_bytes() == data
    assert store.get("results/ab/1.png") == data
    chunks = list(store.stream("results/ab/1.png"))
    assert b"".join(chunks) == data
    assert len(chunks) > 1
    stored = store.head("results/ab/1.png")
    assert (stored.key, stored.size) == ("results/ab/1.png", len(data))
    assert abs((stored.last_modified - datetime.now(UTC)).total_seconds()) < 3600
    store.delete("results/ab/1.png")
    store.delete("results/ab/1.png")
    for absent in (store.get, store.head, store.stream):
        with pytest.raises(NotFound):
            absent("results/ab/1.png")


def test_parts_of_an_object(store: ObjectStore) -> None:
    store.put("a/b", b"0123456789", "text/plain")
    assert store.read("a/b", 2, 3) == b"234"
    assert store.read("a/b", 8, 5) == b"89"
    assert store.read("a/b", 10, 5) == store.read("a/b", 99, 5) == store.read("a/b", 0, 0) == b""
    with pytest.raises(NotFound):
        store.read("a/c", 0, 1)


def test_an_object_made_from_others(store: ObjectStore) -> None:
    store.put("parts/1", b"x" * 100_000, "text/plain")
    store.put("parts/2", b"y", "text/plain")
    size = store.put_stream("whole", (chunk for part in "12" for chunk in store.stream(f"parts/{part}")), "text/plain")
    assert size == 100_001
    assert store.get("whole") == b"x" * 100_000 + b"y"


def test_an_object_whose_source_fails_is_none(store: ObjectStore) -> None:
    def failing() -> Iterator[bytes]:
        yield b"x"
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        store.put_stream("whole", failing(), "text/plain")
    with pytest.raises(NotFound):
        store.get("whole")


def test_empty_object(store: ObjectStore) -> None:
    store.put("empty", b"", "text/plain")
    assert store.get("empty") == b""
    assert b"".join(store.stream("empty")) == b""


@pytest.mark.parametrize("name", ["with space", "测 试", "100%20 #?&", "a+b", "é~'\"", "-rf"])
def test_folder_of_any_name(tmp_path: Path, name: str) -> None:
    store = _open(tmp_path / name)
    store.put("a/b.txt", b"here", "text/plain")
    assert (tmp_path / name / "a/b.txt").read_bytes() == b"here"
    assert store.get("a/b.txt") == b"here"
    assert [stored.key for stored in store.list()] == ["a/b.txt"]


def test_relative_folder_stays_where_it_was_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    store = _open("数据/objects")
    monkeypatch.chdir("/")
    store.put("a", b"here", "text/plain")
    assert (tmp_path / "数据/objects/a").read_bytes() == b"here"


@pytest.mark.parametrize("url", ["", "objects", "file://", "s3://", "gs://bucket", "http://host/x"])
def test_url_that_names_no_store(url: str) -> None:
    with pytest.raises(ConfigurationError):
        ObjectStore.open(Settings(storage_url=url))


def test_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for place in (tmp_path / "file", tmp_path / "file/below", "a\x00b"):
        with pytest.raises(ConfigurationError):
            _open(place)


@pytest.mark.parametrize("key", BAD_KEYS)
def test_bad_key_is_absent_when_read_and_refused_when_written(store: ObjectStore, folder: Path, key: str) -> None:
    (folder.parent / "a").write_text("outside")
    reads: list[Callable[[str], object]] = [store.get, store.head, store.stream, lambda name: store.url(name, 60)]
    for read in reads:
        with pytest.raises(NotFound):
            read(key)
    writes: list[Callable[[], None]] = [lambda: store.put(key, b"", "text/plain"), lambda: store.delete(key)]
    for write in writes:
        with pytest.raises(ValueError, match="not a storage key"):
            write()
    assert list(store.list()) == []
    assert (folder.parent / "a").read_text() == "outside"


def test_folder_is_no_object(store: ObjectStore) -> None:
    store.put("results/ab/1.png", b"1", "image/png")
    for key in ("results", "results/ab", "results/ab/1.png/below"):
        with pytest.raises(NotFound):
            store.get(key)


def test_content_key_names_the_content() -> None:
    digest = sha256(b"data").hexdigest()
    assert content_key("results", b"data", ".png") == f"results/{digest[:2]}/{digest}.png"
    assert content_key("files", b"data") == f"files/{digest[:2]}/{digest}"


def test_put_once_writes_once(store: ObjectStore, folder: Path) -> None:
    key = content_key("files", b"data")
    store.put_once(key, b"data", "image/png")
    before = (folder / key).stat()
    store.put_once(key, b"data", "image/png")
    assert (folder / key).stat().st_ino == before.st_ino


def test_put_once_renews_what_is_about_to_be_collected(store: ObjectStore, folder: Path) -> None:
    key = content_key("files", b"data")
    store.put_once(key, b"data", "image/png")
    os.utime(folder / key, (0, 0))
    store.put_once(key, b"data", "image/png")
    assert time.time() - (folder / key).stat().st_mtime < 3600


def test_list_finds_all_and_no_unfinished_write(store: ObjectStore, folder: Path) -> None:
    keys = {f"results/{number % 16:02x}/{number}.png" for number in range(2500)}
    for key in keys:
        store.put(key, b"1", "image/png")
    store.put("results-other", b"1", "image/png")
    (folder / "results/00/0.png#1").write_bytes(b"left behind by a killed process")
    assert {stored.key for stored in store.list("results")} == keys
    assert {stored.key for stored in store.list()} == keys | {"results-other"}
    assert list(store.list("nothing")) == []
    assert {stored.key for stored in store.walk("results")} == keys


def test_a_walk_goes_on_where_it_stopped(store: ObjectStore) -> None:
    keys = ["d/2", "d/a.b/x", "d/a/1", "d/a/b/c", "d/a_b/x", "d/b/1/2/3", "d/z.png"]
    for key in [*keys, "c/x", "e/x"]:
        store.put(key, b"1", "image/png")
    order = [stored.key for stored in store.walk("d")]
    assert sorted(order) == sorted(keys)
    for number, key in enumerate(order):
        assert [stored.key for stored in store.walk("d", key)] == order[number + 1 :]
    assert [stored.key for stored in store.walk("d", "c/x")] == order
    assert list(store.walk("d", "e/x")) == []
    # Also after what is there no more, and into what came meanwhile.
    store.delete("d/a/1")
    store.put("d/a/2", b"1", "image/png")
    assert next(store.walk("d", "d/a/1")).key == "d/a/2"
    assert list(store.walk("nothing")) == []


def test_delete_folder(store: ObjectStore, folder: Path) -> None:
    for key in ("datasets/one/0/plan.jsonl", "datasets/one/previews/1.jpg", "datasets/one-more/x", "datasets/two/x"):
        store.put(key, b"x", "text/plain")
    store.delete_folder("datasets/one")
    assert {stored.key for stored in store.list()} == {"datasets/one-more/x", "datasets/two/x"}
    assert not (folder / "datasets/one").exists()
    store.delete_folder("datasets/one")
    for key in ("", "..", "datasets/../..", "/etc"):
        with pytest.raises(ValueError, match="not a storage key"):
            store.delete_folder(key)


def test_delete_folder_says_what_it_could_not_remove(store: ObjectStore, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "file").write_bytes(b"x")
    (folder / "datasets").mkdir(parents=True)
    (folder / "datasets" / "link").symlink_to(tmp_path / "precious")
    with pytest.raises(StorageUnavailable, match="datasets/link"):
        store.delete_folder("datasets/link")
    assert (tmp_path / "precious" / "file").exists()


def test_no_url_for_a_folder(store: ObjectStore) -> None:
    store.put("a", b"1", "text/plain")
    assert store.url("a", 60) is None


def test_vanished_folder_is_a_failure_not_a_missing_object(store: ObjectStore, folder: Path) -> None:
    store.put("a", b"1", "text/plain")
    store.check()
    shutil.rmtree(folder)
    for broken in (
        store.check,
        lambda: store.get("a"),
        lambda: store.head("a"),
        lambda: store.stream("a"),
        lambda: store.put("b", b"1", "text/plain"),
        lambda: store.put_once("b", b"1", "text/plain"),
        lambda: store.put_stream("b", iter([b"1"]), "text/plain"),
    ):
        with pytest.raises(StorageUnavailable, match="folder is missing"):
            broken()
    assert not folder.exists(), "a write must not begin another store beside the objects that are elsewhere"


def test_write_that_cannot_be_done_is_a_failure(store: ObjectStore) -> None:
    store.put("a/b", b"1", "text/plain")
    with pytest.raises(StorageUnavailable):
        store.put("a", b"1", "text/plain")  # a folder is in the way


def test_readers_see_whole_objects_while_writers_replace_them(store: ObjectStore) -> None:
    versions = [bytes([number]) * 500_000 for number in range(8)]
    store.put("a", versions[0], "text/plain")
    with ThreadPoolExecutor(4) as pool:
        writes = [pool.submit(store.put, "a", version, "text/plain") for version in versions * 8]
        seen = [store.get("a") for _ in range(50)]
        for write in writes:
            write.result()
    assert set(seen) <= set(versions)


def test_writer_killed_at_any_time_leaves_a_whole_object_or_none(folder: Path) -> None:
    size = 40_000_000
    program = (
        "import sys; from shared.settings import Settings; from shared.objects.storage import ObjectStore;"
        f"store = ObjectStore.open(Settings(storage_url='file://{folder}')); data = bytes({size});"
        "print('ready', flush=True)\n"
        "for number in range(10_000): store.put(f'a/{number}', data, 'text/plain')"
    )
    for delay in (0.0, 0.02, 0.05):
        process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)
        assert process.stdout
        process.stdout.readline()
        time.sleep(delay)
        process.kill()
        process.wait()
        process.stdout.close()
        assert all(stored.size == size for stored in _open(folder).list())
        shutil.rmtree(folder)

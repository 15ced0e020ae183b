"""Bulk annotation from a bucket and into one: a real S3 service that checks signatures."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterator
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import ClassVar

import httpx
import pytest

from shared.settings import Settings
from tests.support.pictures import picture
from tests.support.s3 import S3Server, serve_s3
from tests.support.sources import restore
from tuwen.annotations import Annotation, Caption, Provenance
from tuwen.errors import DestinationUnusable, Forbidden, NotFound, PayloadTooLarge, SourceUnusable, StorageUnavailable
from workers.datasets.exports import MARKER, Owner, Summary, write
from workers.datasets.sources import Reader, SourceImage, SourceProblem, open_source

A, B = picture(1), picture(2)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    folder = tmp_path_factory.mktemp("s3")
    bucket = folder / "tuwen"
    with serve_s3(folder) as running:
        for name, data in {
            "photos/b/2 猫.png": B, "photos/a.png": A, "photos/.hidden/x.png": A, "photos/empty.png": b"",
            "photos/notes.txt": b"x", "full/precious": b"x",
            "table/metadata.jsonl": b'{"file_name": "1.png", "text": "a cat"}',
            "table/1.png": A, "table/2.png": B, "lists/list.csv": b"path,caption\n../photos/a.png,one\n",
            "lists/rooted.txt": "a.png\ns3://tuwen/photos/b/2 猫.png\ns3://other/x.png\n../up.png".encode(),
        }.items():  # fmt: skip
            (bucket / name).parent.mkdir(parents=True, exist_ok=True)
            (bucket / name).write_bytes(data)
        (bucket / "tars").mkdir()
        for number in range(2):
            with tarfile.open(bucket / f"tars/{number:02d}.tar", "w") as tar:
                for name, data in (("0.png", picture(number)), ("0.txt", b"said")):
                    member = tarfile.TarInfo(name)
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
        yield running


@pytest.fixture
def settings(server: S3Server, tmp_path: Path) -> Settings:
    return server.settings("objects", data_dir=tmp_path)


class _Partial(BaseHTTPRequestHandler):
    """Makes rclone answer a range with the status 206, as AWS and most others do and rclone does not."""

    behind: ClassVar[str]
    partial: ClassVar[int] = 0

    def do_GET(self) -> None:
        with httpx.Client(trust_env=False) as client:
            answer = client.get(self.behind + self.path, headers=dict(self.headers))
        ranged = "content-range" in answer.headers
        type(self).partial += ranged
        self.send_response(206 if ranged else answer.status_code)
        for name in ("content-length", "content-range", "content-type", "etag", "last-modified"):
            if name in answer.headers:
                self.send_header(name, answer.headers[name])
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(answer.content)

    def do_HEAD(self) -> None:
        with httpx.Client(trust_env=False) as client:
            answer = client.head(self.behind + self.path, headers=dict(self.headers))
        self.send_response(answer.status_code)
        for name in ("content-length", "etag", "last-modified"):
            if name in answer.headers:
                self.send_header(name, answer.headers[name])
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def partial(server: S3Server, settings: Settings) -> Iterator[Settings]:
    """Settings of the same buckets, behind a service that knows ranges."""
    _Partial.behind, _Partial.partial = server.endpoint, 0
    with ThreadingHTTPServer(("127.0.0.1", 0), _Partial) as proxy:
        Thread(target=proxy.serve_forever, daemon=True).start()
        yield settings.model_copy(update={"s3_endpoint": f"http://127.0.0.1:{proxy.server_port}"})
        proxy.shutdown()


def read_all(
    uri: str, settings: Settings, **options: str
) -> tuple[dict[str, SourceImage], dict[str, bytes], list[str]]:
    with open_source(uri, settings, **options) as source:  # type: ignore[arg-type]
        entries = list(source.images())
        images = {entry.name: entry for entry in entries if isinstance(entry, SourceImage)}
        contents = {name: source.read(restore(image)) for name, image in images.items()}
    return images, contents, [entry.code for entry in entries if isinstance(entry, SourceProblem)]


def test_prefix_is_a_folder(settings: Settings) -> None:
    images, contents, problems = read_all("s3://tuwen/photos/", settings)
    assert contents == {"a.png": A, "b/2 猫.png": B}
    assert images["a.png"].size == len(A)
    assert images["a.png"].version
    assert problems == ["image_corrupt"]


def test_metadata_in_a_bucket(settings: Settings) -> None:
    images, contents, _ = read_all("s3://tuwen/table", settings)
    assert contents == {"1.png": A, "2.png": B}
    assert [images[name].captions for name in ("1.png", "2.png")] == [("a cat",), ()]


def test_ranges_are_read_where_the_service_knows_them(partial: Settings) -> None:
    _, contents, problems = read_all("s3://tuwen/tars", partial)
    assert contents == {"00/0.png": picture(0), "01/0.png": picture(1)}
    assert problems == []
    assert _Partial.partial >= 4  # two tars, and an image of each


def test_tars_in_a_bucket(settings: Settings) -> None:
    for uri in ("s3://tuwen/tars/{00..01}.tar", "s3://tuwen/tars"):
        images, contents, problems = read_all(uri, settings)
        assert contents == {"00/0.png": picture(0), "01/0.png": picture(1)}
        assert images["00/0.png"].captions == ("said",)
        assert problems == []


def test_lists_in_a_bucket_stay_below_their_root(settings: Settings) -> None:
    _, contents, problems = read_all("s3://tuwen/lists/rooted.txt", settings, root="s3://tuwen/photos")
    assert contents == {"a.png": A, "b/2 猫.png": B}
    assert problems == ["path_forbidden", "path_forbidden"]
    _, _, problems = read_all("s3://tuwen/lists/list.csv", settings)
    assert problems == ["path_forbidden"]


def test_what_is_not_there(settings: Settings) -> None:
    for uri in ("s3://tuwen/nowhere", "s3://nobucket/photos"):
        with pytest.raises((SourceUnusable, StorageUnavailable)):
            list(open_source(uri, settings).images())
    with Reader("s3://tuwen/photos", settings) as reader, pytest.raises(NotFound):
        reader.read(SourceImage("gone.png", "gone.png"))
    small = settings.model_copy(update={"max_image_bytes": 10})
    with Reader("s3://tuwen/photos", small) as reader, pytest.raises(PayloadTooLarge):
        reader.read(SourceImage("a.png", "a.png"))


def test_service_that_is_gone_is_unavailable(server: S3Server) -> None:
    gone = server.settings("objects", s3_endpoint="http://127.0.0.1:9")
    with pytest.raises(StorageUnavailable):
        open_source("s3://tuwen/photos", gone)


def test_export_into_a_bucket(settings: Settings, server: S3Server) -> None:
    made = Provenance(model="m", software="tuwen 1", created_at=datetime(2026, 11, 21, tzinfo=UTC))
    said = Caption(text="a cat", language="en", style="short", confidence=0.9, provenance=made)
    names = ["a.png", "b/2 猫.png"]

    def export(format: str, run: str) -> Summary:  # noqa: A002
        with open_source("s3://tuwen/photos", settings) as source:
            return write(
                ((Annotation(name=name, captions=(said,)), SourceImage(name, name)) for name in names),
                "s3://tuwen/out/set",
                settings,
                owner=Owner(run),
                destination_format=format,  # type: ignore[arg-type]
                read=source.read,
                source="s3://tuwen/photos",
            )

    assert export("imagefolder", "1") == Summary(2, 0, 0)
    images, contents, _ = read_all("s3://tuwen/out/set", settings)
    assert contents == {"a.png": A, "b/2 猫.png": B}
    assert {image.captions for image in images.values()} == {("a cat",)}
    with pytest.raises(DestinationUnusable, match="another data set"):
        export("jsonl", "2")
    assert export("jsonl", "1") == Summary(2, 0, 0)
    out = server.folder / "tuwen/out/set"
    assert {path.name for path in out.rglob("*") if path.is_file()} == {"annotations.jsonl", MARKER}
    assert json.loads((out / MARKER).read_text())["exported"] == 2
    with open_source("s3://tuwen/photos", settings) as source, pytest.raises(DestinationUnusable, match="not empty"):
        write(
            (), "s3://tuwen/full", settings, owner=Owner("1", overwrite=True), destination_format="jsonl",
            read=source.read, source="s3://tuwen/photos",
        )  # fmt: skip
    assert list((settings.data_dir / "exports").iterdir()) == []


def test_another_tenants_export_in_a_bucket_is_never_replaced(settings: Settings, server: S3Server) -> None:
    def export(tenant: str, destination: str) -> None:
        with open_source("s3://tuwen/photos", settings) as source:
            write(
                (), destination, settings, owner=Owner("1", tenant, overwrite=True), destination_format="jsonl",
                read=source.read, source="s3://tuwen/photos",
            )  # fmt: skip

    export("alice", "s3://tuwen/alice/set")
    marker = server.folder / "tuwen/alice/set" / MARKER
    before = marker.read_bytes()
    for destination in ("s3://tuwen/alice/set", "s3://tuwen/alice/set/"):
        with pytest.raises(Forbidden, match="another tenant"):
            export("bob", destination)
    with pytest.raises(DestinationUnusable, match="not empty"):
        export("bob", "s3://tuwen/alice")
    assert marker.read_bytes() == before
    export("alice", "s3://tuwen/alice/set")

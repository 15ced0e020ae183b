"""Sources of bulk annotation: what is listed, what is a problem, and that another process reads the same bytes."""

from __future__ import annotations

import base64
import io
import json
import os
import subprocess
import tarfile
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Thread
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

from shared.settings import Settings
from tests.support.pictures import picture
from tests.support.sources import restore
from tuwen.errors import (
    FetchRefused,
    ImageCorrupt,
    NotFound,
    PayloadTooLarge,
    SourceUnusable,
    TuwenError,
    UrlForbidden,
)
from workers.datasets.sources import RowProblem, SourceEntry, SourceImage, SourceProblem, open_source
from workers.datasets.sources.columns import path_below, safe_name
from workers.datasets.sources.recognition import expand_braces
from workers.datasets.sources.seen import Seen, SortedNames

SETTINGS = Settings()
A, B, C = picture(1), picture(2), picture(3)


def put(folder: Path, files: Mapping[str, bytes | str]) -> Path:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    return folder


def listed(uri: object, **options: Any) -> list[SourceEntry]:
    """All entries; the images read back by a source that has never listed anything, from a line of a plan."""
    with open_source(str(uri), SETTINGS, **options) as source:
        entries = list(source.images())
        assert list(source.images()) == entries  # a second look finds the same, in the same order
    return entries


def images(entries: list[SourceEntry]) -> dict[str, SourceImage]:
    return {entry.name: entry for entry in entries if isinstance(entry, SourceImage)}


def problems(entries: list[SourceEntry]) -> list[tuple[str, str]]:
    return [(entry.name, entry.code.value) for entry in entries if isinstance(entry, SourceProblem)]


def contents(uri: object, entries: list[SourceEntry], **options: Any) -> dict[str, bytes]:
    with open_source(str(uri), SETTINGS, **options) as source:
        return {image.name: source.read(restore(image)) for image in images(entries).values()}


# ── folders ───────────────────────────────────────────────────────────────────────────────────────


def test_folder_tree_in_a_stable_order(tmp_path: Path) -> None:
    put(tmp_path, {"b/2.png": B, "b/1.jpg": A, "a.png": C, "notes.txt": "no", ".hidden/x.png": A, "b/.x.png": A})
    entries = listed(tmp_path)
    assert [entry.name for entry in entries] == ["a.png", "b/1.jpg", "b/2.png"]
    assert contents(tmp_path, entries) == {"a.png": C, "b/1.jpg": A, "b/2.png": B}
    assert images(entries)["a.png"].size == len(C)


def test_names_in_any_script_with_spaces_newlines_and_bytes_that_are_no_text(tmp_path: Path) -> None:
    names = ["猫 和 狗.png", "new\nline.png", "кот.png", "🐈.png", "quote\"'.png", "-rf.png", "%2e%2e.png"]
    put(tmp_path, dict.fromkeys(names, A))
    (tmp_path / os.fsdecode(b"latin1-\xe9.png")).write_bytes(B)
    entries = listed(tmp_path)
    assert set(images(entries)) == {*names, "latin1-\\xe9.png"}
    assert contents(tmp_path, entries) == {**dict.fromkeys(names, A), "latin1-\\xe9.png": B}
    for image in images(entries).values():
        assert "\n" not in image.to_json()
        image.name.encode()


def test_captions_beside_images(tmp_path: Path) -> None:
    put(tmp_path, {"a.png": A, "a.txt": " a cat\n", "a.CAPTION": "one cat", "b.png": B, "b.TXT": "a dog", "c.png": C})
    found = images(listed(tmp_path))
    assert [found[name].captions for name in ("a.png", "b.png", "c.png")] == [("a cat", "one cat"), ("a dog",), ()]


def test_folder_of_more_names_than_are_sorted_in_memory() -> None:
    names = SortedNames(few=10)
    for number in (*range(50, 100), *range(50)):
        names.add(f"{number:03d}")
    assert list(names) == [f"{number:03d}" for number in range(100)]


def test_empty_and_huge_files_are_never_read(tmp_path: Path) -> None:
    put(tmp_path, {"empty.png": b"", "fine.png": A})
    with (tmp_path / "huge.png").open("wb") as file:
        file.truncate(2 * 2**30)
    entries = listed(tmp_path)
    assert problems(entries) == [("empty.png", "image_corrupt"), ("huge.png", "payload_too_large")]
    assert list(images(entries)) == ["fine.png"]
    with open_source(str(tmp_path), SETTINGS) as source:
        with pytest.raises(PayloadTooLarge):
            source.read(SourceImage("huge.png", "huge.png"))
        with pytest.raises(ImageCorrupt):
            source.read(SourceImage("empty.png", "empty.png"))
        with pytest.raises(NotFound):
            source.read(SourceImage("gone.png", "gone.png"))


def test_pipes_broken_links_and_links_to_folders_are_problems(tmp_path: Path) -> None:
    put(tmp_path, {"fine.png": A})
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "broken.png").symlink_to("nowhere")
    (tmp_path / "circle").symlink_to(tmp_path)
    (tmp_path / "linked.png").symlink_to("fine.png")
    entries = listed(tmp_path)
    assert sorted(problems(entries)) == [
        ("broken.png", "not_found"),
        ("circle", "unreadable"),
        ("pipe.png", "not_found"),
    ]
    assert sorted(images(entries)) == ["fine.png", "linked.png"]


def test_folder_without_permission_is_a_problem() -> None:
    with TemporaryDirectory() as name:  # pytest's own folders are for root alone, where it is root that runs it
        folder = Path(name)
        folder.chmod(0o755)
        put(folder, {"fine.png": A, "secret/x.png": B})
        (folder / "secret").chmod(0)
        with ordinary_user():
            assert problems(listed(folder)) == [("secret", "unreadable")]


@contextmanager
def ordinary_user() -> Iterator[None]:
    """Root, who may read everything, becomes `nobody` for a while."""
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(user)


def test_folder_that_cannot_be_listed_is_a_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path, {"fine.png": A, "secret/x.png": B})
    open_file = os.open

    def refusing(path: Any, *arguments: Any, **options: Any) -> int:
        if str(path).endswith("secret"):
            raise PermissionError(13, "Permission denied")
        return open_file(path, *arguments, **options)

    monkeypatch.setattr(os, "open", refusing)
    entries = listed(tmp_path)
    assert problems(entries) == [("secret", "unreadable")]
    assert list(images(entries)) == ["fine.png"]


@pytest.fixture
def deep(tmp_path: Path) -> Iterator[Path]:
    """A folder of 1,200 levels. It is removed here: pytest's own removal, a few runs later, recurses and fails."""
    before = Path.cwd()
    try:
        os.chdir(tmp_path)
        for _ in range(1200):
            Path("d").mkdir()
            os.chdir("d")
        Path("x.png").write_bytes(A)
    finally:
        os.chdir(before)
    yield tmp_path
    subprocess.run(["rm", "-rf", tmp_path / "d"], check=True)


def test_deeper_than_python_recurses(deep: Path) -> None:
    assert [entry.name for entry in listed(deep)] == ["d/" * 1200 + "x.png"]


def test_nothing_there_is_an_error(tmp_path: Path) -> None:
    for missing in (tmp_path / "nowhere", tmp_path / "a\x00b"):
        with pytest.raises(SourceUnusable):
            open_source(str(missing), SETTINGS)
    with open_source(str(tmp_path), SETTINGS) as source, pytest.raises(SourceUnusable, match="no image"):
        list(source.images())
    put(tmp_path, {"one.png": A})
    with pytest.raises(SourceUnusable, match="one image"):
        open_source(str(tmp_path / "one.png"), SETTINGS)


def test_first_images_come_before_the_list_is_read(tmp_path: Path) -> None:
    put(tmp_path, {"a.png": A})
    with (tmp_path / "list.txt").open("w") as file:
        file.writelines(f"a{number}.png\n" for number in range(100_000))
    with open_source(str(tmp_path / "list.txt"), SETTINGS) as source:
        assert len(list(islice(source.images(), 3))) == 3


# ── metadata ──────────────────────────────────────────────────────────────────────────────────────

ROWS = [
    {"file_name": "1.png", "text": "a cat", "seed": 7},
    {"file_name": "sub/2.png", "text": ["two", "deux"]},
    {"file_name": "missing.png", "text": "x"},
    {"file_name": "../outside.png", "text": "x"},
    {"file_name": "/etc/passwd", "text": "x"},
    {"file_name": 7},
]


@pytest.mark.parametrize("split", ["", "train/"])
def test_imagefolder_metadata_jsonl(tmp_path: Path, split: str) -> None:
    lines = "\n".join([*(json.dumps(row) for row in ROWS), "{broken", "", '"text"'])
    put(tmp_path, {f"{split}1.png": A, f"{split}sub/2.png": B, f"{split}3.png": C, f"{split}metadata.jsonl": lines})
    entries = listed(tmp_path)
    found = images(entries)
    assert found[f"{split}1.png"].captions == ("a cat",)
    assert found[f"{split}1.png"].metadata == {"seed": 7}
    assert found[f"{split}sub/2.png"].captions == ("two", "deux")
    assert found[f"{split}3.png"].captions == ()  # in no row, and still an image
    assert [code for _, code in problems(entries)] == [
        "not_found", "not_found" if split else "path_forbidden", "path_forbidden",
        "invalid_row", "invalid_row", "invalid_row",
    ]  # fmt: skip
    assert contents(tmp_path, entries) == {f"{split}1.png": A, f"{split}sub/2.png": B, f"{split}3.png": C}


def test_imagefolder_metadata_csv_and_parquet(tmp_path: Path) -> None:
    put(tmp_path / "csv", {"1.png": A, "metadata.csv": 'file_name,text\n1.png,"a, b\nc"\n'})
    assert images(listed(tmp_path / "csv"))["1.png"].captions == ("a, b\nc",)
    put(tmp_path / "parquet", {"1.png": A})
    parquet.write_table(
        pa.table({"file_name": ["1.png"], "text": ["a cat"]}), tmp_path / "parquet" / "metadata.parquet"
    )
    assert images(listed(tmp_path / "parquet"))["1.png"].captions == ("a cat",)
    with pytest.raises(SourceUnusable, match="no metadata") as caught:
        open_source(str(put(tmp_path / "none", {"1.png": A})), SETTINGS, format="imagefolder")
    assert caught.value.field == "format"


# ── lists ─────────────────────────────────────────────────────────────────────────────────────────


def test_list_of_paths_and_urls(tmp_path: Path) -> None:
    put(tmp_path, {"a 1.png": A, "猫.png": B})
    lines = [
        "a 1.png",
        "./猫.png",
        "https://example.org/pictures/cat.jpg?size=2",
        "https://example.org/pictures/cat.jpg?size=3",
        "gone.png",
        "a 1.png",
        "../up.png",
        "/etc/passwd",
        "http://127.0.0.1/x.png",
        f"{tmp_path}/猫.png",
        "",
    ]
    put(tmp_path, {"list.txt": "\r\n".join(lines)})
    entries = listed(tmp_path / "list.txt")
    found = images(entries)
    assert list(found)[:2] == ["a 1.png", "猫.png"]
    urls = [image for image in found.values() if image.held == "url"]
    assert [image.path for image in urls] == lines[2:4]
    assert urls[0].name != urls[1].name
    assert all(image.name.startswith("example.org/pictures/cat-") for image in urls)
    assert [code for _, code in problems(entries)] == [
        "not_found", "duplicate_row", "path_forbidden", "path_forbidden", "url_forbidden", "duplicate_row",
    ]  # fmt: skip
    local = [entry for entry in entries if entry not in urls]
    assert contents(tmp_path / "list.txt", local) == {"a 1.png": A, "猫.png": B}


def test_root_of_a_list(tmp_path: Path) -> None:
    put(tmp_path, {"pictures/a.png": A, "lists/list.txt": "a.png\n" + str(tmp_path / "pictures/a.png")})
    entries = listed(tmp_path / "lists/list.txt", root=str(tmp_path / "pictures"))
    assert problems(entries) == [("a.png", "duplicate_row")]
    assert contents(tmp_path / "lists/list.txt", entries, root=str(tmp_path / "pictures")) == {"a.png": A}


def test_forbidden_url_is_not_fetched_either(tmp_path: Path) -> None:
    put(tmp_path, {"a.png": A})
    with open_source(str(tmp_path), SETTINGS) as source, pytest.raises(UrlForbidden):
        source.read(SourceImage.from_fields({"name": "x", "path": "http://169.254.169.254/latest", "held": "url"}))


def test_urls_are_fetched_through_the_vetting_client(tmp_path: Path) -> None:
    put(tmp_path / "www", {"a.png": A, "猫 1.png": B})
    handler = partial(SimpleHTTPRequestHandler, directory=str(tmp_path / "www"))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        base = f"http://127.0.0.1:{server.server_port}"
        put(tmp_path, {"list.txt": f"{base}/a.png\n{base}/%E7%8C%AB%201.png\n{base}/gone.png"})
        settings = Settings(fetch_allow_networks=["127.0.0.0/8"])
        with open_source(str(tmp_path / "list.txt"), settings) as source:
            first, second, gone = (entry for entry in source.images() if isinstance(entry, SourceImage))
            assert (source.read(first), source.read(second)) == (A, B)
            assert second.name == "127.0.0.1/猫 1.png"
            with pytest.raises(FetchRefused):
                source.read(gone)
        server.shutdown()


def test_csv_of_flickr_has_several_captions_an_image(tmp_path: Path) -> None:
    put(tmp_path, {"1.jpg": A, "2.jpg": B})
    rows = ["image_name| comment_number| comment", "1.jpg| 0| Two men .", "1.jpg| 1| A pair .", "2.jpg| 0| A dog .",
            "2.jpg| 1| A dog .", "2.jpg 2 broken"]  # fmt: skip
    put(tmp_path, {"results.csv": "\n".join(rows)})
    entries = listed(tmp_path / "results.csv")
    assert {name: image.captions for name, image in images(entries).items()} == {
        "1.jpg": ("Two men .", "A pair ."),
        "2.jpg": ("A dog .",),
    }
    assert [code for _, code in problems(entries)] == ["duplicate_row", "invalid_row"]


def test_unclosed_quote_in_csv_is_a_problem_of_its_row(tmp_path: Path) -> None:
    put(tmp_path, {"1.jpg": A, "x.csv": 'image,caption\n1.jpg,fine\n1.jpg,"open\n'})
    assert problems(listed(tmp_path / "x.csv")) == [("x.csv, line 3", "invalid_row")]


def test_ambiguous_columns_name_the_option(tmp_path: Path) -> None:
    put(tmp_path, {"1.jpg": A, "x.csv": "path,url,caption\n1.jpg,https://example.org/1.jpg,one\n"})
    for options, field in (({}, "image_column"), ({"image_column": "nope"}, "image_column")):
        with open_source(str(tmp_path / "x.csv"), SETTINGS, **options) as source:
            with pytest.raises(SourceUnusable) as caught:
                list(source.images())
            assert caught.value.field == field
    entries = listed(tmp_path / "x.csv", image_column="path", caption_column="url")
    assert images(entries)["1.jpg"].captions == ("https://example.org/1.jpg",)


def test_jsonl_with_data_urls_and_custom_ids(tmp_path: Path) -> None:
    url = "data:image/png;base64," + base64.b64encode(A).decode()
    rows = [{"image": url, "custom_id": "n:1"}, {"image": "b.png"}, {"image": "data:image/png;base64,%%%"}]
    put(tmp_path, {"b.png": B, "x.jsonl": "\ufeff" + "\n".join(map(json.dumps, rows))})
    entries = listed(tmp_path / "x.jsonl")
    first, second, third = images(entries).values()
    assert (first.custom_id, first.name != "n:1", second.name) == ("n:1", True, "b.png")
    with open_source(str(tmp_path / "x.jsonl"), SETTINGS) as source:
        assert source.read(first) == A
        assert source.read(second) == B
        with pytest.raises(ImageCorrupt):
            source.read(third)


def test_parquet_with_paths_and_with_bytes(tmp_path: Path) -> None:
    put(tmp_path, {"b.png": B})
    rows = [{"bytes": A, "path": "x.png"}, {"bytes": C, "path": None}]
    table = pa.table({"image": rows, "caption": [["one", "uno"], None], "n": [1, 2], "nan": [float("nan"), 1.0]})
    parquet.write_table(table, tmp_path / "inline.parquet", row_group_size=1)
    entries = listed(tmp_path / "inline.parquet")
    found = list(images(entries).values())
    assert [image.captions for image in found] == [("one", "uno"), ()]
    assert [image.metadata for image in found] == [{"n": 1, "nan": None}, {"n": 2, "nan": 1.0}]
    assert list(contents(tmp_path / "inline.parquet", entries).values()) == [A, C]
    parquet.write_table(pa.table({"file_name": ["b.png", "../c.png"]}), tmp_path / "paths.parquet")
    entries = listed(tmp_path / "paths.parquet")
    assert contents(tmp_path / "paths.parquet", entries) == {"b.png": B}
    assert [code for _, code in problems(entries)] == ["path_forbidden"]
    put(tmp_path, {"cut.parquet": (tmp_path / "paths.parquet").read_bytes()[:-20]})
    with open_source(str(tmp_path / "cut.parquet"), SETTINGS) as source, pytest.raises(SourceUnusable):
        list(source.images())


def test_requests_of_the_openai_batch_api(tmp_path: Path) -> None:
    def request(custom_id: str, body: object) -> str:
        return json.dumps({"custom_id": custom_id, "method": "POST", "url": "/v1/chat/completions", "body": body})

    data_url = "data:image/png;base64," + base64.b64encode(A).decode()
    chat = [{"type": "text", "text": "What is it?"}, {"type": "image_url", "image_url": {"url": data_url}}]
    response = [{"type": "input_image", "image_url": "https://example.org/x.png"}]
    lines = [
        request("one", {"model": "m", "messages": [{"role": "user", "content": chat}]}),
        request("two", {"model": "m", "input": [{"role": "user", "content": response}]}),
        request("three", {"model": "m", "messages": [{"role": "user", "content": "hello"}]}),
        request("one", {"model": "m", "messages": [{"role": "user", "content": chat}]}),
        '{"body": {}}',
    ]
    put(tmp_path, {"batch.jsonl": "\n".join(lines)})
    entries = listed(tmp_path / "batch.jsonl")
    one, two = images(entries).values()
    assert (one.name, one.custom_id, one.metadata) == ("one", "one", {"prompt": "What is it?"})
    assert (two.custom_id, two.path) == ("two", "https://example.org/x.png")
    assert [code for _, code in problems(entries)] == ["invalid_row", "duplicate_row", "invalid_row"]
    with open_source(str(tmp_path / "batch.jsonl"), SETTINGS) as source:
        assert source.read(restore(one)) == A


# ── COCO ──────────────────────────────────────────────────────────────────────────────────────────


def test_coco_captions_and_instances(tmp_path: Path) -> None:
    coco = {
        "info": {},
        "annotations": [
            {"id": 1, "image_id": 9, "caption": "a cat"},
            {"id": 2, "image_id": 8, "caption": "a dog"},
            {"id": 3, "image_id": 9, "caption": "a feline"},
            {"id": 4, "image_id": 9, "category_id": 17, "bbox": [0, 0, 1.5, 1]},
        ],
        "images": [
            {"id": 9, "file_name": "1.png", "width": 16, "height": 12},
            {"id": 8, "file_name": "2.png"},
            {"id": 7, "coco_url": "https://example.org/7.png"},
            {"id": 6},
        ],
        "categories": [{"id": 17, "name": "cat"}],
    }
    put(tmp_path, {"images/1.png": A, "images/2.png": B, "captions.json": json.dumps(coco)})
    options = {"root": str(tmp_path / "images")}
    entries = listed(tmp_path / "captions.json", **options)
    found = images(entries)
    assert found["1.png"].captions == ("a cat", "a feline")
    assert found["1.png"].metadata == {"id": 9, "width": 16, "height": 12, "categories": ["cat"]}
    assert found["2.png"].captions == ("a dog",)
    assert found["example.org/7.png"].held == "url"
    assert [code for _, code in problems(entries)] == ["invalid_row"]
    local = [entry for entry in entries if entry.name.startswith(("1", "2"))]
    assert contents(tmp_path / "captions.json", local, **options) == {"1.png": A, "2.png": B}
    for broken in (json.dumps(coco)[:-20], "[]", "no json"):
        put(tmp_path, {"broken.json": broken})
        with open_source(str(tmp_path / "broken.json"), SETTINGS, **options) as source, pytest.raises(SourceUnusable):
            list(source.images())


# ── archives ──────────────────────────────────────────────────────────────────────────────────────


def zipped(path: Path, files: Mapping[str, bytes | str]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for number, (name, content) in enumerate(files.items()):
            archive.writestr(name, content, zipfile.ZIP_DEFLATED if number % 2 else zipfile.ZIP_STORED)
    return path


def test_zip_with_metadata_and_captions(tmp_path: Path) -> None:
    files: dict[str, bytes | str] = {
        "d/1.png": A, "d/1.txt": "beside", "2 猫.png": B,
        "__MACOSX/._2.png": b"x", "../evil.png": C, "3.bmp": bytes(9999),
        "d/metadata.jsonl": '{"file_name": "1.png", "text": "in the table"}', "empty.png": b"",
    }  # fmt: skip
    path = zipped(tmp_path / "x.zip", files)
    entries = listed(path)
    assert images(entries)["d/1.png"].captions == ("in the table",)
    assert contents(path, entries) == {"d/1.png": A, "2 猫.png": B, "3.bmp": bytes(9999)}
    assert sorted(problems(entries)) == [("../evil.png", "path_forbidden"), ("empty.png", "image_corrupt")]


def test_zip_that_is_cut_short_or_damaged(tmp_path: Path) -> None:
    path = zipped(tmp_path / "x.zip", {"1.png": A, "2.png": B * 20})
    whole = path.read_bytes()
    cut = tmp_path / "cut.zip"
    cut.write_bytes(whole[:-30])
    with pytest.raises(SourceUnusable, match="not a whole zip"):
        listed(cut)
    entries = listed(path)
    path.write_bytes(whole.replace(b"PK\3\4", b"XX\3\4"))
    for image in images(entries).values():
        with open_source(str(path), SETTINGS) as source, pytest.raises(ImageCorrupt):
            source.read(image)


def test_zip_bomb_is_refused_by_its_size_and_by_what_comes_out(tmp_path: Path) -> None:
    path = tmp_path / "x.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bomb.png", bytes(SETTINGS.max_image_bytes + 1))
        offset, length = archive.infolist()[0].header_offset, archive.infolist()[0].compress_size
    assert problems(listed(path)) == [("bomb.png", "payload_too_large")]
    lying = SourceImage.from_fields(
        {"name": "x", "path": "x.zip", "held": "zipped", "offset": offset, "length": length}
    )
    with open_source(str(path), SETTINGS) as source, pytest.raises(PayloadTooLarge):
        source.read(lying)


def tarred(path: Path, files: Mapping[str, bytes | str]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, content in files.items():
            data = content.encode() if isinstance(content, str) else content
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


def test_webdataset_tars_with_captions(tmp_path: Path) -> None:
    tarred(tmp_path / "d-08.tar", {"0.png": A, "0.txt": "a cat", "0.json": '{"caption": "a cat", "n": 1}', "1.png": B})
    tarred(tmp_path / "d-09.tar", {"x/0.caption": "first", "x/0.png": C, "../evil.png": C, "./2.png": A})
    tarred(tmp_path / "d-10.tar", {"0.json": "broken", "0.jpg": B, "1.jpg": B})
    for uri in (f"{tmp_path}/d-{{08..10}}.tar", str(tmp_path)):
        entries = listed(uri)
        found = images(entries)
        assert list(found) == ["d-08/0.png", "d-08/1.png", "d-09/x/0.png", "d-09/2.png", "d-10/1.jpg"]
        assert found["d-08/0.png"].captions == ("a cat",)
        assert found["d-08/0.png"].metadata == {"n": 1}
        assert found["d-09/x/0.png"].captions == ("first",)
        assert problems(entries) == [
            ("d-09.tar/../evil.png", "path_forbidden"),
            ("d-10/0.jpg", "caption_unreadable"),
        ]
        assert list(contents(uri, entries).values()) == [A, B, C, A, B]
    assert list(images(listed(tmp_path / "d-10.tar"))) == ["d-10/1.jpg"]


@pytest.mark.parametrize("lost", [600, 1023, 1024, 1500, 2560, 4000])
def test_tar_cut_short_keeps_what_is_whole_and_says_where_it_ends(tmp_path: Path, lost: int) -> None:
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w") as tar:
        for number in range(4):
            member = tarfile.TarInfo(f"{number}.png")
            member.size = len(picture(number))
            tar.addfile(member, io.BytesIO(picture(number)))
    data = path.read_bytes().rstrip(b"\0")
    end = -(-len(data) // 512) * 512 + 1024  # tarfile pads to 10 kB behind the two empty blocks that end a tar
    path.write_bytes(path.read_bytes()[: end - lost])
    entries = listed(path)
    read = contents(path, entries)
    assert read == {f"x/{number}.png": picture(number) for number in range(len(read))}
    assert len(problems(entries)) == 1
    assert problems(entries)[0][1] == "archive_damaged"


def test_missing_and_foreign_tars_among_many(tmp_path: Path) -> None:
    tarred(tmp_path / "0.tar", {"0.png": A})
    (tmp_path / "2.tar").write_bytes(b"no tar" * 1000)
    (tmp_path / "3.tar").write_bytes(b"")
    entries = listed(f"{tmp_path}/{{0..3}}.tar")
    assert list(images(entries)) == ["0/0.png"]
    assert problems(entries) == [(f"{number}.tar", "archive_damaged") for number in (1, 2, 3)]


def test_folder_of_images_and_tars_is_ambiguous(tmp_path: Path) -> None:
    tarred(tmp_path / "0.tar", {"0.png": A})
    put(tmp_path, {"1.png": B})
    with pytest.raises(SourceUnusable, match="images and tars") as caught:
        open_source(str(tmp_path), SETTINGS)
    assert caught.value.field == "format"
    assert list(images(listed(tmp_path, format="folder"))) == ["1.png"]
    assert list(images(listed(tmp_path, format="webdataset"))) == ["0/0.png"]
    put(tmp_path, {"x.tar.gz": b"1", "x.dat": b"1"})
    for name in ("x.tar.gz", "x.dat"):
        with pytest.raises(SourceUnusable):
            open_source(str(tmp_path / name), SETTINGS)


def test_braces() -> None:
    assert list(expand_braces("a-{08..10}.tar")) == ["a-08.tar", "a-09.tar", "a-10.tar"]
    assert list(expand_braces("{0..1}/{0..1}.tar")) == ["0/0.tar", "0/1.tar", "1/0.tar", "1/1.tar"]
    for wrong in ("{3..1}.tar", "{0..999999}{0..9}.tar"):
        with pytest.raises(SourceUnusable):
            list(expand_braces(wrong))


# ── the pieces ────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("value", "path"),
    [
        ("a.png", "base/a.png"),
        ("../a.png", "a.png"),
        ("../../a.png", None),
        ("..", None),
        ("/data/x/a.png", "x/a.png"),
        ("/data/../etc/passwd", None),
        ("/database/a.png", None),
        ("s3://bucket/a.png", None),
        ("x/..", "base"),
        (".", "base"),
    ],
)
def test_paths_stay_inside(value: str, path: str | None) -> None:
    assert path_below(value, "/data", "base") == path


def test_safe_names_stay_apart() -> None:
    assert safe_name("a/b c.png") == "a/b c.png"
    names = {safe_name(name) for name in ("a:b.png", "a?b.png", "/../a_b.png", "a_b.png", "../..", "")}
    assert len(names) == 6
    assert all(".." not in name and not name.startswith("/") for name in names)


def test_seen_is_by_name() -> None:
    with Seen() as seen:
        assert seen.add("a")
        assert not seen.add("a")
        assert "a" in seen
        assert "\udc80" not in seen
        assert seen.add("\udc80")


def test_every_problem_of_reading_has_the_code_of_its_error() -> None:
    def codes(kind: type[TuwenError]) -> Iterator[str]:
        yield kind.code
        for inner in kind.__subclasses__():
            yield from codes(inner)

    own = {RowProblem.OUTSIDE, RowProblem.DUPLICATE, RowProblem.INVALID, RowProblem.UNREADABLE, RowProblem.DAMAGED}
    own |= {RowProblem.ENCODING, RowProblem.CAPTION, RowProblem.ARCHIVE}
    assert {problem.value for problem in RowProblem if problem not in own} <= set(codes(TuwenError))

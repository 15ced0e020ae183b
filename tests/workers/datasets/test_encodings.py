"""Texts of sources in the encodings that people have: each caption is right, or its record is an error."""

from __future__ import annotations

import codecs
import json
import zipfile
from base64 import b64encode
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from tests.support.pictures import picture
from tests.workers.datasets.test_sources import contents, images, listed, problems, put, tarred
from workers.datasets.sources.encodings import detect

A, B, C = picture(1), picture(2), picture(3)
CHINESE = ("一只黑色的猫在草地上跳跃", "两只狗在海边奔跑", "红色的汽车停在路边")
TAIWANESE = ("一隻黑色的貓在草地上跳躍", "兩隻狗在海邊奔跑", "紅色的汽車停在路邊")
JAPANESE = ("草の上で跳ねる黒い猫", "海辺を走る二匹の犬", "道端に停まっている赤い車")
GERMAN = ("ein schöner Vogel über dem Fluss", "Mädchen mit einem grünen Hut", "zwei Hunde fröhlich im Schnee")
WRITTEN = [
    ("utf-8", CHINESE),
    ("utf-8-sig", CHINESE),
    ("utf-16", CHINESE),
    ("utf-16-be", CHINESE),
    ("gbk", CHINESE),
    ("gb18030", CHINESE),
    ("big5", TAIWANESE),
    ("cp932", JAPANESE),
    ("cp1252", GERMAN),
]
NAMES = ("a.png", "b.png", "c.png")
PICTURES: Mapping[str, bytes | str] = dict(zip(NAMES, (A, B, C), strict=True))


def as_csv(captions: tuple[str, ...]) -> str:
    return "file_name,caption\r\n" + "".join(f"{name},{text}\r\n" for name, text in zip(NAMES, captions, strict=True))


def as_json_lines(captions: tuple[str, ...]) -> str:
    rows = ({"file_name": name, "caption": text} for name, text in zip(NAMES, captions, strict=True))
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def as_coco(captions: tuple[str, ...]) -> str:
    return json.dumps(
        {
            "images": [{"id": number, "file_name": name} for number, name in enumerate(NAMES)],
            "annotations": [{"image_id": number, "caption": text} for number, text in enumerate(captions)],
        },
        ensure_ascii=False,
    )


def marked(text: str, encoding: str) -> bytes:
    """The text with a byte order mark where the order would not be known without it."""
    mark = codecs.BOM_UTF16_BE if encoding == "utf-16-be" else b""
    return mark + text.encode(encoding)


@pytest.mark.parametrize(("encoding", "captions"), WRITTEN)
@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("list.csv", as_csv),
        ("list.jsonl", as_json_lines),
        ("metadata.jsonl", as_json_lines),
        ("metadata.csv", as_csv),
        ("coco.json", as_coco),
    ],
)
def test_tables_in_any_common_encoding(
    tmp_path: Path, encoding: str, captions: tuple[str, ...], name: str, write: Callable[[tuple[str, ...]], str]
) -> None:
    put(tmp_path, {**PICTURES, name: marked(write(captions), encoding)})
    entries = listed(tmp_path if name.startswith("metadata") else tmp_path / name)
    assert problems(entries) == []
    assert [image.captions for image in images(entries).values()] == [(text,) for text in captions]


@pytest.mark.parametrize(("encoding", "captions"), WRITTEN)
@pytest.mark.parametrize("packed", ["folder", "zip", "tar"])
def test_sidecars_in_any_common_encoding(tmp_path: Path, encoding: str, captions: tuple[str, ...], packed: str) -> None:
    sidecars = {f"{name[0]}.txt": marked(text, encoding) for name, text in zip(NAMES, captions, strict=True)}
    entries = listed(pack(tmp_path, {**PICTURES, **sidecars}, packed))
    assert problems(entries) == []
    assert [image.captions for image in images(entries).values()] == [(text,) for text in captions]


def pack(folder: Path, files: Mapping[str, bytes | str], how: str) -> Path:
    if how == "folder":
        return put(folder / "pictures", files)
    path = folder / f"pictures.{how}"
    if how == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in files.items():
                archive.writestr(name, content)
        return path
    return tarred(path, files)


def test_what_cannot_be_decided_is_an_error_until_somebody_says_it(tmp_path: Path) -> None:
    put(tmp_path, {**PICTURES, "a.txt": "niño".encode("cp1252"), "b.txt": "a dog"})
    entries = listed(tmp_path)
    assert problems(entries) == [("a.png", "encoding_unknown")]
    assert [(image.name, image.captions) for image in images(entries).values()] == [
        ("b.png", ("a dog",)),
        ("c.png", ()),
    ]
    assert images(listed(tmp_path, encoding="cp1252"))["a.png"].captions == ("niño",)


def test_a_broken_line_costs_its_own_record(tmp_path: Path) -> None:
    lines = [f"{name},{text}".encode() for name, text in zip(NAMES, CHINESE, strict=True)]
    put(tmp_path, {**PICTURES, "list.csv": b"\n".join([b"image,caption", lines[0], lines[1][:-1], lines[2]])})
    entries = listed(tmp_path / "list.csv")
    assert [image.captions for image in images(entries).values()] == [(CHINESE[0],), (CHINESE[2],)]
    assert problems(entries) == [("b.png (list.csv, line 3)", "encoding_unknown")]


def test_two_letters_of_gbk_that_are_one_of_utf_8(tmp_path: Path) -> None:
    assert "猫".encode("gbk").decode() == "è"
    put(tmp_path, {**PICTURES, "a.txt": "猫".encode("gbk"), "b.txt": CHINESE[1].encode("gbk"), "c.txt": "two"})
    assert [image.captions for image in images(listed(tmp_path)).values()] == [("猫",), (CHINESE[1],), ("two",)]
    put(tmp_path, {"c.txt": CHINESE[2]})  # now somebody else's UTF-8 lies there, too
    assert problems(listed(tmp_path)) == [("a.png", "encoding_unknown")]
    put(tmp_path, {"b.txt": "un café"})
    assert images(listed(tmp_path))["b.png"].captions == ("un café",)


@pytest.mark.parametrize("encoding", ["mac_roman", "cp437"])
def test_encodings_nobody_uses_any_more_are_refused_and_not_misread(encoding: str) -> None:
    assert detect(text.encode(encoding) for text in GERMAN).name is None


def test_data_urls_in_json_lines_of_any_encoding(tmp_path: Path) -> None:
    rows = [
        {"image": f"data:image/png;base64,{b64encode(data).decode()}", "caption": f"{text}\\許"}
        for data, text in zip((A, B), CHINESE, strict=False)
    ]
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    for encoding in ("utf-8-sig", "utf-16", "gb18030", "big5"):
        written = text.translate(str.maketrans("猫狗红车", "貓狗紅車")) if encoding == "big5" else text
        path = tmp_path / f"{encoding}.jsonl"
        path.write_bytes(written.encode(encoding, "replace"))
        assert list(contents(path, listed(path)).values()) == [A, B]


def test_a_sidecar_too_long_for_a_caption_is_an_error(tmp_path: Path) -> None:
    put(tmp_path, {"a.png": A, "a.txt": "x" * 65_537, "b.png": B, "b.txt": "x" * 65_536})
    entries = listed(tmp_path)
    assert problems(entries) == [("a.png", "caption_unreadable")]
    assert len(images(entries)["b.png"].captions[0]) == 65_536


def test_coco_with_nan_and_ids_of_several_types(tmp_path: Path) -> None:
    text = """{"images": [{"id": 1, "file_name": "a.png", "score": NaN, "note": "NaN \\" -Infinity"},
        {"id": "2", "file_name": "b.png", "x": -Infinity}, {"id": 3.0, "file_name": "c.png"}, {"id": 1.0}],
        "annotations": [{"image_id": "1", "caption": "one"}, {"image_id": 2.0, "caption": "two"},
        {"image_id": 3, "caption": "three", "category_id": "7"}], "categories": [{"id": 7, "name": "cat"}]}"""
    put(tmp_path, {**PICTURES, "coco.json": text})
    entries = listed(tmp_path / "coco.json")
    found = images(entries)
    assert [found[name].captions for name in NAMES] == [("one",), ("two",), ("three",)]
    assert found["a.png"].metadata["note"] == 'NaN " -Infinity'
    assert "score" not in found["a.png"].metadata
    assert found["c.png"].metadata["categories"] == ["cat"]
    assert problems(entries) == [("coco.json, image 4", "duplicate_row")]


def test_a_quote_that_is_never_closed_costs_its_own_row(tmp_path: Path) -> None:
    rows = ["image,caption", 'a.png,"one', "b.png,two", 'c.png,"three, and more"', 'd.png,"four', "e.png,five"]
    put(tmp_path, {**PICTURES, "d.png": picture(4), "e.png": picture(5), "list.csv": "\n".join(rows) + "\n"})
    entries = listed(tmp_path / "list.csv")
    assert {name: image.captions for name, image in images(entries).items()} == {
        "b.png": ("two",),
        "c.png": ("three, and more",),
        "e.png": ("five",),
    }
    assert problems(entries) == [("list.csv, line 2", "invalid_row"), ("list.csv, line 5", "invalid_row")]


def test_a_value_of_several_lines_is_one_value(tmp_path: Path) -> None:
    put(tmp_path, {**PICTURES, "list.csv": 'image,caption\na.png,"one\ntwo"\nb.png,three\n'})
    assert [image.captions for image in images(listed(tmp_path / "list.csv")).values()] == [("one\ntwo",), ("three",)]

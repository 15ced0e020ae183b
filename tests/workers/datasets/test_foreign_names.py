"""Names and tables as other systems and programs write them: each image is found where exactly one file fits."""

from __future__ import annotations

import io
import os
import tarfile
import unicodedata
import zipfile
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from tests.support.pictures import picture
from tests.workers.datasets.test_encodings import pack
from tests.workers.datasets.test_sources import contents, images, listed, problems, put
from workers.datasets.sources import SourceProblem

A, B, C = picture(1), picture(2), picture(3)


def test_names_decomposed_by_macos(tmp_path: Path) -> None:
    decomposed = unicodedata.normalize("NFD", "été/café.png")
    assert decomposed != "été/café.png"
    put(tmp_path, {decomposed: A, "list.csv": "image,caption\nété/café.png,a cup\n"})
    entries = listed(tmp_path / "list.csv")
    assert problems(entries) == []
    assert list(contents(tmp_path / "list.csv", entries).values()) == [A]


def test_two_files_that_fit_equally_well_are_an_error(tmp_path: Path) -> None:
    composed, decomposed = (unicodedata.normalize(form, "café.png") for form in ("NFC", "NFD"))
    put(tmp_path, {composed: A, decomposed: B})
    put(tmp_path, {"list.csv": f"image\n{composed}\n"})
    assert list(contents(tmp_path / "list.csv", listed(tmp_path / "list.csv")).values()) == [A]  # as it is spelled
    put(tmp_path, {"list.csv": f"image\n{composed} \n"})  # with a blank that neither has
    (problem,) = listed(tmp_path / "list.csv")
    assert isinstance(problem, SourceProblem)
    assert problem.code == "not_found"
    assert "could be meant" in problem.detail


def test_backslashes_of_windows(tmp_path: Path) -> None:
    put(tmp_path, {"images/a.png": A, "list.csv": "image,caption\nimages\\a.png,a cat\n..\\..\\etc\\passwd.png,no\n"})
    entries = listed(tmp_path / "list.csv")
    assert [(image.name, image.captions) for image in images(entries).values()] == [("images/a.png", ("a cat",))]
    assert [code for _, code in problems(entries)] == ["not_found"]


def test_names_that_are_bytes_of_the_tables_own_encoding(tmp_path: Path) -> None:
    (tmp_path / os.fsdecode("黑猫.png".encode("gbk"))).write_bytes(A)
    (tmp_path / "红车.png").write_bytes(B)
    table = "image,caption\n黑猫.png,一只黑色的猫在草地上跳跃\n红车.png,红色的汽车停在路边\n"
    put(tmp_path, {"list.csv": table.encode("gbk")})
    entries = listed(tmp_path / "list.csv")
    assert problems(entries) == []
    assert list(contents(tmp_path / "list.csv", entries).values()) == [A, B]


def test_a_circle_of_links_costs_itself_alone(tmp_path: Path) -> None:
    put(tmp_path, {"x/a.png": A, "x/b.png": B})
    (tmp_path / "x/self").symlink_to("self")
    (tmp_path / "x/one.png").symlink_to("two.png")
    (tmp_path / "x/two.png").symlink_to("one.png")
    entries = listed(tmp_path)
    assert list(images(entries)) == ["x/a.png", "x/b.png"]
    assert sorted(problems(entries)) == [(f"x/{name}", "unreadable") for name in ("one.png", "self", "two.png")]


@pytest.mark.parametrize("kept", ["@eaDir", "#recycle", "$RECYCLE.BIN", "#snapshot", "__MACOSX", ".thumbnails"])
@pytest.mark.parametrize("packed", ["folder", "zip", "tar"])
def test_what_systems_keep_for_themselves_is_no_picture(tmp_path: Path, kept: str, packed: str) -> None:
    entries = listed(pack(tmp_path, {"a.png": A, f"{kept}/b.png": B, f"x/{kept}/c.png": C}, packed))
    assert [entry.name.rpartition("/")[2] for entry in entries] == ["a.png"]


def test_an_archive_in_a_folder_is_counted_as_what_it_is(tmp_path: Path) -> None:
    put(tmp_path, {"a.png": A, "more.zip": b"PK\5\6" + bytes(18)})
    entries = listed(tmp_path)
    assert list(images(entries)) == ["a.png"]
    assert problems(entries) == [("more.zip", "archive_in_folder")]


def test_zips_as_other_programs_pack_them(tmp_path: Path) -> None:
    path = tmp_path / "x.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("./a.png", A)
        archive.writestr("./a.txt", "a cat")
        for name in ("图片/黑猫.png", "图片/红色汽车.png"):
            archive.writestr(_OldName(name), B)
    entries = listed(path)
    assert problems(entries) == []
    assert images(entries)["a.png"].captions == ("a cat",)
    assert contents(path, entries) == {"a.png": A, "图片/黑猫.png": B, "图片/红色汽车.png": B}


class _OldName(zipfile.ZipInfo):
    """A member as old programs write it: its name in the code page of the system, without the mark of UTF-8."""

    def _encodeFilenameFlags(self) -> tuple[bytes, int]:  # noqa: N802 (zipfile's)
        return self.filename.encode("gbk"), self.flag_bits & ~0x800


def test_tars_that_are_not_sorted_and_keys_with_dots(tmp_path: Path) -> None:
    files: dict[str, bytes | str] = {
        "0.jpg": A, "1.jpg": B, "photo.v2.jpg": C, "1.txt": "second", "0.txt": "first", "photo.v2.txt": "third",
    }  # fmt: skip
    entries = listed(pack(tmp_path, files, "tar"))
    assert [image.captions for image in images(entries).values()] == [("first",), ("second",), ("third",)]


def test_keys_that_come_twice_in_a_tar(tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        for name, data in [("0.png", A), ("0.txt", b"first"), ("1.png", B), ("0.png", C), ("0.txt", b"again")]:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            member.pax_headers = {"comment": "猫" * 300}
            tar.addfile(member, io.BytesIO(data))
    entries = listed(path)
    assert {name: image.captions for name, image in images(entries).items()} == {"x/0.png": ("first",), "x/1.png": ()}
    assert problems(entries) == [("x/0.png", "duplicate_row")]
    assert contents(path, entries) == {"x/0.png": A, "x/1.png": B}


def test_parquet_as_other_programs_write_it(tmp_path: Path) -> None:
    struct = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    mapping = pa.map_(pa.string(), pa.binary())
    held = [{"bytes": A, "path": "a.png"}]
    tables = {
        "list": pa.array([held, [{"bytes": B, "path": "b.png"}], held * 2, []], type=pa.list_(struct)),
        "map": pa.array([[("a.png", A)], [("b.png", B)], [("a", A), ("b", B)], []], type=mapping),
        "plain": pa.array([A, B, None, None], type=pa.binary()),
    }
    for name, column in tables.items():
        path = tmp_path / f"{name}.parquet"
        captions = pa.array([b"one", "二".encode(), b"three", b"four"], type=pa.binary())
        beside = pa.array([b"\x89PNG\0"] * 4, type=pa.binary())
        parquet.write_table(pa.table({"image": column, "caption": captions, "mask": beside}), path)
        entries = listed(path)
        found = list(images(entries).values())
        assert [image.captions for image in found[:2]] == [("one",), ("二",)]
        assert [image.metadata for image in found[:2]] == [{}, {}]
        read = {image.name: image for image in found[:2]}
        assert [contents(path, [image])[key] for key, image in read.items()] == [A, B]
        if name != "plain":
            assert [code for _, code in problems(entries)] == ["invalid_row", "invalid_row"]


def test_parquet_with_names_as_bytes_and_a_column_with_a_dot(tmp_path: Path) -> None:
    put(tmp_path, {"a.png": A, "b.png": B})
    names = pa.array([b"a.png", b"b.png"], type=pa.binary())
    parquet.write_table(pa.table({"file_name": names}), tmp_path / "names.parquet")
    path = tmp_path / "names.parquet"
    assert contents(path, listed(path)) == {"a.png": A, "b.png": B}
    path = tmp_path / "dots.parquet"
    parquet.write_table(pa.table({"pic": pa.array(["x", "y"]), "pic.png": pa.array([B, A])}), path)
    entries = listed(path, image_column="pic.png")
    assert list(contents(path, entries, image_column="pic.png").values()) == [B, A]
    assert [image.metadata for image in images(entries).values()] == [{"pic": "x"}, {"pic": "y"}]

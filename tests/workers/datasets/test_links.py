"""Links in data sets: those that stay beneath the roots are followed, those that leave are errors of their records."""

from __future__ import annotations

import io
import json
import os
import stat
import tarfile
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

from shared.intake.beneath import Roots, kernel_can
from shared.settings import Settings
from tests.support.pictures import picture
from tests.support.sources import restore
from tuwen.annotations import Annotation, Caption, Provenance
from tuwen.datasets import ExportFormat
from tuwen.errors import Conflict, DestinationUnusable, Forbidden, PathForbidden, SourceUnusable, TuwenError
from workers.datasets.exports import MARKER, Owner, Summary, write
from workers.datasets.sources import SourceImage, SourceProblem, open_source

SETTINGS = Settings()
A, B = picture(1), picture(2)
SECRET = "root:x:0:0"


@pytest.fixture(params=["openat2", "walk"])
def openat2(request: pytest.FixtureRequest) -> bool:
    """Whether the kernel's call is used, or each component is opened here."""
    if request.param == "openat2" and not kernel_can():
        pytest.skip("this kernel has no openat2, or a filter forbids it")
    return bool(request.param == "openat2")


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """The folder of one tenant; `secret` and `other.png` beside it are nobody's business."""
    (tmp_path / "alice/photos").mkdir(parents=True)
    (tmp_path / "secret").write_text(SECRET)
    (tmp_path / "other.png").write_bytes(B)
    (tmp_path / "outside").mkdir()
    return tmp_path / "alice"


class Look:
    """What a source has: images with their bytes and captions, and problems."""

    def __init__(self, home: Path, uri: Path | str, openat2: bool, **options: Any):
        self.images: dict[str, bytes | str] = {}
        self.captions: dict[str, tuple[str, ...]] = {}
        self.problems: dict[str, tuple[str, str]] = {}
        with open_source(str(uri), SETTINGS, roots=Roots([str(home)], openat2=openat2), **options) as source:
            for entry in source.images():
                if isinstance(entry, SourceProblem):
                    self.problems[entry.name] = (entry.code.value, entry.detail)
                    continue
                try:
                    self.images[entry.name] = source.read(restore(entry))
                except TuwenError as error:
                    self.images[entry.name] = error.code
                self.captions[entry.name] = entry.captions

    @property
    def codes(self) -> dict[str, str]:
        return {name: code for name, (code, _) in self.problems.items()}


class TestFolders:
    def test_images_and_captions(self, home: Path, openat2: bool) -> None:
        photos, pool = home / "photos", home / "pool"
        pool.mkdir()
        (pool / "1.png").write_bytes(A)
        (pool / "said.txt").write_text("a cat")
        for name, target in {
            "inside.png": "../pool/1.png", "inside.txt": "../pool/said.txt", "absolute.png": str(pool / "1.png"),
            "absolute.txt": str(pool / "said.txt"), "out.png": "../../other.png",
            "far.png": str(home.parent / "other.png"),
            "plain.txt": "../../secret", "away": "../../outside", "inner": "../pool", "host.png": "/etc/hostname",
        }.items():  # fmt: skip
            (photos / name).symlink_to(target)
        (photos / "plain.png").write_bytes(A)
        found = Look(home, photos, openat2)
        assert found.images == {"inside.png": A, "absolute.png": A}
        assert found.captions == dict.fromkeys(found.images, ("a cat",))
        assert found.codes == {
            "out.png": "path_forbidden",
            "far.png": "path_forbidden",
            "host.png": "path_forbidden",
            "plain.png": "path_forbidden",
            "plain.txt": "path_forbidden",
            "away": "path_forbidden",
            "inner": "unreadable",
        }
        assert "caption" in found.problems["plain.png"][1]
        assert "leads out" in found.problems["out.png"][1]

    @pytest.mark.parametrize("table", ["metadata.jsonl", "metadata.csv", "metadata.parquet"])
    def test_tables_in_a_folder(self, home: Path, openat2: bool, table: str) -> None:
        (home / "photos/1.png").write_bytes(A)
        (home / "photos" / table).symlink_to("../../secret")
        found = Look(home, home / "photos", openat2)
        assert found.codes[table] == "path_forbidden"
        assert (found.images, found.captions) == ({"1.png": A}, {"1.png": ()})

    def test_a_folder_that_becomes_a_link_while_it_is_listed(self, home: Path, openat2: bool) -> None:
        for folder in ("a", "b"):
            (home / "photos" / folder).mkdir()
            (home / "photos" / folder / "1.png").write_bytes(A)
        (home.parent / "outside/1.png").write_bytes(B)
        with open_source(str(home / "photos"), SETTINGS, roots=Roots([str(home)], openat2=openat2)) as source:
            entries = source.images()
            first = next(entries)
            for folder in ("a", "b"):
                (home / "photos" / folder).rename(home / folder)
                (home / "photos" / folder).symlink_to(home.parent / "outside")
            [second] = entries
            assert isinstance(first, SourceImage)
            with pytest.raises(PathForbidden):
                source.read(restore(first))
        assert isinstance(second, SourceProblem)
        assert second.code == "path_forbidden"


class TestFilesThatNameFiles:
    @pytest.fixture(autouse=True)
    def links(self, home: Path) -> None:
        (home / "photos/1.png").write_bytes(A)
        (home / "photos/in.png").symlink_to("1.png")
        (home / "photos/out.png").symlink_to("../../other.png")
        (home / "photos/away").symlink_to("../../outside")
        (home.parent / "outside/x.png").write_bytes(B)

    NAMES = ("1.png", "in.png", "out.png", "away/x.png")

    def write(self, path: Path) -> None:
        rows = [{"file_name": name} for name in self.NAMES]
        match path.suffix:
            case ".txt":
                path.write_text("\n".join(self.NAMES))
            case ".csv":
                path.write_text("\n".join(("file_name", *self.NAMES)))
            case ".jsonl":
                path.write_text("\n".join(map(json.dumps, rows)))
            case ".parquet":
                parquet.write_table(pa.Table.from_pylist(rows), path)
            case ".json":
                path.write_text(json.dumps({"images": [row | {"id": n} for n, row in enumerate(rows)]}))

    @pytest.mark.parametrize("suffix", ["txt", "csv", "jsonl", "parquet", "json"])
    def test_what_they_name(self, home: Path, openat2: bool, suffix: str) -> None:
        self.write(home / f"photos/list.{suffix}")
        found = Look(home, home / f"photos/list.{suffix}", openat2)
        assert found.images == {"1.png": A, "in.png": A}
        assert sorted(found.codes.values()) == ["path_forbidden"] * 2
        assert all("leads out" in detail for _, detail in found.problems.values())

    @pytest.mark.parametrize("suffix", ["txt", "csv", "jsonl", "parquet", "json"])
    def test_themselves(self, home: Path, openat2: bool, suffix: str) -> None:
        self.write(home.parent / f"list.{suffix}")
        (home / f"photos/list.{suffix}").symlink_to(f"../../list.{suffix}")
        with pytest.raises(PathForbidden):
            Look(home, home / f"photos/list.{suffix}", openat2)
        (home.parent / f"list.{suffix}").rename(home / f"list.{suffix}")
        (home / f"photos/list.{suffix}").unlink()
        (home / f"photos/list.{suffix}").symlink_to(home / f"list.{suffix}")
        assert Look(home, home / f"photos/list.{suffix}", openat2).images == {"1.png": A, "in.png": A}

    def test_absolute_paths_of_the_same_root(self, home: Path, openat2: bool) -> None:
        (home / "list.txt").write_text(f"{home}/photos/1.png\n{home}/photos/out.png\n{home.parent}/other.png")
        found = Look(home, home / "list.txt", openat2)
        assert found.images == {"photos/1.png": A}
        assert list(found.codes.values()) == ["path_forbidden"] * 2


class TestArchives:
    def tar(self, path: Path) -> None:
        with tarfile.open(path, "w") as tar:
            for name, data in (("1.png", A), ("1.txt", b"a cat")):
                member = tarfile.TarInfo(name)
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
            for name, kind in (("2.png", tarfile.SYMTYPE), ("3.png", tarfile.LNKTYPE)):
                member = tarfile.TarInfo(name)
                member.type, member.linkname = kind, "/etc/passwd"
                tar.addfile(member)

    def zip(self, path: Path) -> None:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("1.png", A)
            archive.writestr("4.png", A)
            for name in ("1.txt", "2.png"):
                member = zipfile.ZipInfo(name)
                member.external_attr = (stat.S_IFLNK | 0o777) << 16
                archive.writestr(member, "/etc/passwd")

    def test_links_in_a_tar_are_said(self, home: Path, openat2: bool) -> None:
        self.tar(home / "photos/a.tar")
        found = Look(home, home / "photos/a.tar", openat2)
        assert (found.images, found.captions) == ({"a/1.png": A}, {"a/1.png": ("a cat",)})
        assert found.codes == {"a.tar/2.png": "unreadable", "a.tar/3.png": "unreadable"}

    def test_links_in_a_zip_are_said(self, home: Path, openat2: bool) -> None:
        self.zip(home / "photos/a.zip")
        found = Look(home, home / "photos/a.zip", openat2)
        assert (found.images, found.captions) == ({"4.png": A}, {"4.png": ()})
        assert found.codes == {"1.png": "path_forbidden", "1.txt": "unreadable", "2.png": "unreadable"}

    def test_tars_that_are_links(self, home: Path, openat2: bool) -> None:
        self.tar(home.parent / "outside.tar")
        self.tar(home / "inside.tar")
        for number, target in enumerate(("../inside.tar", "../../outside.tar", str(home / "inside.tar"))):
            (home / f"photos/{number}.tar").symlink_to(target)
        for uri in (home / "photos", home / "photos/{0..2}.tar"):
            found = Look(home, uri, openat2)
            assert found.images == {"0/1.png": A, "2/1.png": A}
            assert found.codes.get("1.tar") == "path_forbidden"

    def test_a_zip_that_is_a_link(self, home: Path, openat2: bool) -> None:
        self.zip(home.parent / "outside.zip")
        (home / "photos/a.zip").symlink_to("../../outside.zip")
        with pytest.raises(PathForbidden):
            Look(home, home / "photos/a.zip", openat2)

    @pytest.mark.parametrize("kind", ["tar", "zip"])
    def test_an_archive_that_becomes_a_link_after_it_was_planned(self, home: Path, openat2: bool, kind: str) -> None:
        getattr(self, kind)(home / f"photos/a.{kind}")
        getattr(self, kind)(home.parent / f"outside.{kind}")
        with open_source(str(home / f"photos/a.{kind}"), SETTINGS, roots=Roots([str(home)], openat2=openat2)) as source:
            images = [entry for entry in source.images() if isinstance(entry, SourceImage)]
            (home / f"photos/a.{kind}").unlink()
            (home / f"photos/a.{kind}").symlink_to(home.parent / f"outside.{kind}")
            for image in images:
                with pytest.raises(PathForbidden):
                    source.read(restore(image))


def test_a_source_that_is_a_link(home: Path, openat2: bool) -> None:
    (home / "photos/1.png").write_bytes(A)
    (home / "in").symlink_to(home / "photos")
    (home / "out").symlink_to(home.parent)
    assert Look(home, home / "in", openat2).images == {"1.png": A}
    with pytest.raises(PathForbidden):
        Look(home, home / "out", openat2)


def test_pipes_block_nobody(home: Path, openat2: bool) -> None:
    os.mkfifo(home / "photos/pipe.csv")
    (home / "photos/1.png").symlink_to("pipe.csv")
    assert Look(home, home / "photos", openat2).codes == {"1.png": "not_found", "pipe.csv": "not_found"}
    with pytest.raises((SourceUnusable, TuwenError)):
        Look(home, home / "photos/pipe.csv", openat2)


def test_in_an_open_installation_a_users_own_links_lead_anywhere(home: Path) -> None:
    (home / "photos/1.png").symlink_to(home.parent / "other.png")
    (home / "photos/1.txt").symlink_to("../../secret")
    with open_source(str(home / "photos"), SETTINGS) as source:
        [image] = source.images()
        assert isinstance(image, SourceImage)
        assert image.captions == (SECRET,)
        assert source.read(image) == B


# ── exports ───────────────────────────────────────────────────────────────────────────────────────

MADE = Provenance(model="m", software="tuwen 1", created_at=datetime(2026, 11, 29, tzinfo=UTC))
FORMATS: tuple[ExportFormat, ...] = ("jsonl", "imagefolder", "parquet", "webdataset", "kohya", "coco")


def annotated(*names: str) -> Iterator[Annotation]:
    said = Caption(text="a cat", language="en", style="short", confidence=0.9, provenance=MADE)
    yield from (Annotation(name=name, captions=(said,)) for name in names or ("1.png",))


def export(
    home: Path,
    out: Path,
    form: ExportFormat = "jsonl",
    known: Iterable[Annotation] | None = None,
    *,
    owner: Owner | None = None,
    openat2: bool = True,
) -> Summary:
    with (
        closing(Roots([str(home)], openat2=openat2)) as roots,
        open_source(str(home / "photos"), SETTINGS, roots=Roots([str(home)], openat2=openat2)) as source,
    ):
        return write(
            ((each, SourceImage(each.name, each.name)) for each in known or annotated()),
            str(out),
            SETTINGS,
            owner=owner or Owner("run", "alice"),
            destination_format=form,
            read=source.read,
            source=str(home / "photos"),
            roots=roots,
        )


@pytest.fixture
def photos(home: Path) -> Path:
    (home / "photos/1.png").write_bytes(A)
    return home / "photos"


@pytest.mark.usefixtures("photos")
class TestDestinations:
    @pytest.mark.parametrize("form", FORMATS)
    def test_every_format_beneath_the_roots(self, home: Path, openat2: bool, form: ExportFormat) -> None:
        (home / "real").mkdir()
        (home / "link").symlink_to(home / "real")
        for _ in range(2):
            assert export(home, home / "link/new/out", form, openat2=openat2) == Summary(1, 0, 0)
        assert json.loads((home / "real/new/out" / MARKER).read_text())["tenant"] == "alice"
        assert {path.name for path in (home / "real/new").iterdir()} == {"out"}
        with open_source(str(home / "photos"), SETTINGS) as source:
            assert len(list(source.images())) == 1

    @pytest.mark.parametrize("form", FORMATS)
    def test_a_link_that_leads_out(self, home: Path, openat2: bool, form: ExportFormat) -> None:
        (home / "away").symlink_to(home.parent / "outside")
        for out in ("away", "away/out", "away/new/out"):
            with pytest.raises(PathForbidden):
                export(home, home / out, form, openat2=openat2)
        assert list((home.parent / "outside").iterdir()) == []

    def test_a_destination_that_is_a_link_to_a_folder_inside(self, home: Path, openat2: bool) -> None:
        (home / "out").symlink_to("real")
        with pytest.raises(DestinationUnusable, match="a link that leads nowhere"):
            export(home, home / "out", openat2=openat2)
        (home / "real").mkdir()
        export(home, home / "out", openat2=openat2)
        assert (home / "out").is_symlink()
        assert (home / "real/annotations.jsonl").is_file()

    @pytest.mark.parametrize("form", FORMATS)
    def test_links_that_lie_in_wait_are_not_written_through(
        self, home: Path, openat2: bool, form: ExportFormat
    ) -> None:
        secret = home.parent / "secret"
        (home / ".out.run").symlink_to(home.parent / "outside")
        (home / ".out.old").symlink_to(home.parent / "outside")
        assert export(home, home / "out", form, openat2=openat2) == Summary(1, 0, 0)
        assert list((home.parent / "outside").iterdir()) == []
        (home / ".out.lock").symlink_to(secret)
        with pytest.raises(DestinationUnusable):
            export(home, home / "out", form, openat2=openat2)
        (home / ".out.lock").unlink()
        (home / "out" / MARKER).unlink()
        (home / "out" / MARKER).symlink_to(secret)
        with pytest.raises(DestinationUnusable, match="not empty"):
            export(home, home / "out", form, openat2=openat2)
        assert secret.read_text() == SECRET

    @pytest.mark.parametrize("form", FORMATS)
    def test_a_folder_that_becomes_a_link_while_it_is_written(
        self, home: Path, openat2: bool, form: ExportFormat
    ) -> None:
        (home / "around").mkdir()

        def swap() -> Iterator[Annotation]:
            (home / "around").rename(home / "moved")
            (home / "around").symlink_to(home.parent / "outside")
            yield from annotated()

        assert export(home, home / "around/out", form, swap(), openat2=openat2) == Summary(1, 0, 0)
        assert list((home.parent / "outside").iterdir()) == []
        assert (home / "moved/out" / MARKER).is_file()

    def test_the_folder_of_the_export_becomes_a_link_while_it_is_written(self, home: Path, openat2: bool) -> None:
        (home.parent / "outside/sub").mkdir()

        def swap() -> Iterator[Annotation]:
            (home / ".out.run").rename(home / "moved")
            (home / ".out.run").symlink_to(home.parent / "outside")
            (home / "moved/sub").symlink_to(home.parent / "outside/sub")
            yield from annotated("1.png", "sub/2.png")

        (home / "photos/sub").mkdir()
        (home / "photos/sub/2.png").write_bytes(B)
        export(home, home / "out", "imagefolder", swap(), openat2=openat2)
        assert [path.name for path in (home.parent / "outside").rglob("*")] == ["sub"]

    def test_a_root_that_does_not_exist(self, home: Path) -> None:
        with closing(Roots([str(home / "missing")])) as roots, pytest.raises(DestinationUnusable, match="root"):
            write(
                (), str(home / "missing/out"), SETTINGS, owner=Owner("run"), destination_format="jsonl",
                read=lambda image: b"", source="s3://bucket/photos", roots=roots,
            )  # fmt: skip

    def test_two_at_once(self, home: Path, openat2: bool) -> None:
        def meanwhile() -> Iterator[Annotation]:
            with pytest.raises(Conflict):
                export(home, home / "out", openat2=openat2)
            yield from annotated()

        export(home, home / "out", "jsonl", meanwhile(), openat2=openat2)


@pytest.mark.usefixtures("photos")
class TestOwners:
    def test_another_tenants_export_is_never_replaced(self, home: Path) -> None:
        export(home, home / "out")
        before = (home / "out/annotations.jsonl").read_bytes()
        for overwrite in (False, True):
            with pytest.raises(Forbidden, match="another tenant"):
                export(home, home / "out", owner=Owner("run", "bob", overwrite=overwrite))
        assert (home / "out/annotations.jsonl").read_bytes() == before
        export(home, home / "out", owner=Owner("run", "alice"))

    def test_what_does_not_say_whose_it_is(self, home: Path) -> None:
        export(home, home / "out")
        marker = json.loads((home / "out" / MARKER).read_text())
        del marker["tenant"]
        (home / "out" / MARKER).write_text(json.dumps(marker))
        with pytest.raises(DestinationUnusable, match="whose it is"):
            export(home, home / "out", owner=Owner("run", "alice", overwrite=True, adopts=False))
        export(home, home / "out", owner=Owner("run", "alice"))

    def test_sidecars_beside_another_tenants(self, home: Path) -> None:
        export(home, home / "photos", "kohya")
        with pytest.raises(Forbidden, match="another tenant"):
            export(home, home / "photos", "kohya", owner=Owner("run", "bob", overwrite=True))


@pytest.mark.usefixtures("photos")
class TestSidecarsInPlace:
    def test_links_among_the_images(self, home: Path, openat2: bool) -> None:
        photos, secret = home / "photos", home.parent / "secret"
        (home / "pool").mkdir()
        (photos / "inner").symlink_to("../pool")
        (photos / "away").symlink_to("../../outside")
        (photos / "linked.txt").symlink_to(secret)
        (photos / ".1.txt.tuwen").symlink_to(secret)
        names = ("1.png", "inner/2.png", "away/3.png", "linked.png")
        owner = Owner("run", "alice", overwrite=True)
        for _ in range(2):
            summary = export(home, photos, "kohya", annotated(*names), owner=owner, openat2=openat2)
            assert summary == Summary(3, 0, 1)
        errors = [json.loads(line) for line in (photos / ".tuwen/errors.jsonl").read_text().splitlines()]
        assert [(error["name"], error["code"]) for error in errors] == [("away/3.png", "path_forbidden")]
        assert list((home.parent / "outside").iterdir()) == []
        assert (home / "pool/2.txt").read_text() == "a cat"
        assert not (photos / "linked.txt").is_symlink()
        assert secret.read_text() == SECRET

    def test_the_folder_of_the_records_is_a_link(self, home: Path, openat2: bool) -> None:
        (home / "photos/.tuwen").symlink_to(home.parent / "outside")
        with pytest.raises(DestinationUnusable):
            export(home, home / "photos", "kohya", openat2=openat2)
        assert list((home.parent / "outside").iterdir()) == []

"""Tars, one or many: of webdataset, where files of one key are one sample, or of images alone.

Only the headers are read, and the small files beside an image: `.txt`, `.caption` and `.json`. The name of an image is
`<tar>/<member>`, since keys are unique within one tar only.
"""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from tuwen.errors import NotFound, PathForbidden, SourceUnusable
from workers.datasets.sources.columns import CAPTION_COLUMNS, path_below, texts
from workers.datasets.sources.images import HeldAs, RowProblem, SourceEntry, SourceImage, SourceProblem, is_image_name
from workers.datasets.sources.places import LINK_IN_ARCHIVE, Place, is_hidden

_LARGEST_TEXT = 2**20  # bytes
_TEXTS = ("txt", "caption", "text", "cap")
_BLOCK = 512


@dataclass(slots=True)
class _Sample:
    """Members that follow each other and have one key: the name up to the first dot after the last slash."""

    key: str
    images: list[SourceImage] = field(default_factory=list)
    captions: list[str] = field(default_factory=list)
    metadata: dict[str, Any] = field(default_factory=dict)

    def entries(self) -> Iterator[SourceImage]:
        for image in self.images:
            captions = tuple(dict.fromkeys(self.captions))
            yield replace(image, size=image.length, captions=captions, metadata=self.metadata)


def list_tars(place: Place, paths: Iterable[str | SourceProblem]) -> Iterator[SourceEntry]:
    """Yield the images of all tars, in order. A tar that is missing or cut short becomes a problem of its own."""
    for path in paths:
        if isinstance(path, SourceProblem):
            yield path
            continue
        try:
            yield from _list_tar(place, path)
        except PathForbidden as error:
            yield SourceProblem(path, RowProblem.OUTSIDE, str(error))
        except (NotFound, SourceUnusable) as error:
            yield SourceProblem(path, RowProblem.DAMAGED, str(error))


def _list_tar(place: Place, path: str) -> Iterator[SourceEntry]:
    sample = _Sample("")
    version = place.find(path).version
    for member in _read_members(place, path):
        if isinstance(member, SourceProblem):
            yield from sample.entries()
            sample = _Sample("")
            yield member
            continue
        key, suffix = _split(member.name)
        if key != sample.key:
            yield from sample.entries()
            sample = _Sample(key)
        if is_image_name(member.name):
            name = f"{path.removesuffix('.tar')}/{member.name}"
            sample.images.append(SourceImage(name, path, HeldAs.PART, member.offset, member.size, version=version))
        elif member.size <= _LARGEST_TEXT:
            _read_text(sample, suffix, place, path, member)
    yield from sample.entries()


@dataclass(frozen=True, slots=True)
class _Member:
    name: str
    offset: int
    size: int


def _read_members(place: Place, path: str) -> Iterator[_Member | SourceProblem]:
    """Yield the files of a tar. What follows a damaged header cannot be found, and is reported as one problem."""
    size = place.find(path).size or 0
    with place.open(path) as file:
        position = 0
        try:
            with tarfile.open(fileobj=file, mode="r:", errorlevel=0) as tar:
                while True:
                    tar.members.clear()  # type: ignore[attr-defined]  # tarfile remembers every one
                    try:
                        found = tar.next()
                    except tarfile.ReadError:
                        yield _cut_short(path, position)
                        return
                    if found is None:
                        break
                    position = tar.offset
                    name = path_below(found.name, "")
                    if any(map(is_hidden, found.name.removeprefix("./").split("/"))):
                        continue
                    if found.issym() or found.islnk():
                        yield SourceProblem(f"{path}/{found.name}", RowProblem.UNREADABLE, LINK_IN_ARCHIVE)
                        continue
                    if not found.isfile():
                        continue
                    if found.offset_data + found.size > size:
                        yield SourceProblem(f"{path}/{found.name}", RowProblem.DAMAGED, "the tar ends within this file")
                        return
                    if name is None:
                        yield SourceProblem(
                            f"{path}/{found.name}", RowProblem.OUTSIDE, "the name leads out of the archive"
                        )
                    else:
                        yield _Member(name, found.offset_data, found.size)
                file.seek(tar.offset - _BLOCK if tar.offset >= _BLOCK else 0)
                if _BLOCK * b"\0" not in (file.read(_BLOCK), file.read(_BLOCK)):
                    yield _cut_short(path, position)
        except tarfile.TarError as error:
            raise SourceUnusable(f"{path!r} is no tar: {error}", field="source") from error


def _cut_short(path: str, position: int) -> SourceProblem:
    return SourceProblem(path, RowProblem.DAMAGED, f"the tar is cut short or damaged after byte {position}")


def _split(name: str) -> tuple[str, str]:
    """Divide a name into key and suffix, as webdataset does."""
    folder, slash, base = name.rpartition("/")
    stem, _, suffix = base.partition(".")
    return f"{folder}{slash}{stem}", suffix.lower()


def _read_text(sample: _Sample, suffix: str, place: Place, path: str, member: _Member) -> None:
    if suffix in _TEXTS:
        sample.captions += texts(place.read(path, member.offset, member.size).decode(errors="replace"))
    elif suffix == "json":
        try:
            said = json.loads(place.read(path, member.offset, member.size))
        except (ValueError, RecursionError):
            return  # the image is still one
        if isinstance(said, dict):
            for column in CAPTION_COLUMNS:
                sample.captions += texts(said.pop(column, None))
            sample.metadata |= said

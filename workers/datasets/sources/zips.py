"""A zip as a place, so that its files are listed like those of a folder.

The central directory is in memory while the source is listed; readers need only the offset of their member.
"""

from __future__ import annotations

import stat
import zipfile
import zlib
from collections.abc import Iterator
from typing import BinaryIO, cast

from shared.settings import Settings
from tuwen.errors import NotFound, PathForbidden, SourceUnusable, StorageUnavailable
from workers.datasets.sources.columns import path_below
from workers.datasets.sources.encodings import UTF_8, Encoding, Undecodable, detect, named
from workers.datasets.sources.images import HeldAs, RowProblem, SourceProblem, require_size
from workers.datasets.sources.places import LINK_IN_ARCHIVE, Place, PlacedFile, is_hidden

_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_ENCRYPTED = 0x1  # general purpose bit 0
_UTF_8 = 0x800  # bit 11


class Zip:
    """The members of a zip, by their names in it."""

    near = True

    def __init__(self, place: Place, path: str, encoding: str | None = None) -> None:
        """Open the archive `path` of another place.

        Args:
            encoding: that of names which the archive does not mark as UTF-8, where a person says it.

        Raises:
            SourceUnusable: it is not a zip, or incomplete.
        """
        self._path = path
        try:
            self._archive = zipfile.ZipFile(place.open(path))
        except (zipfile.BadZipFile, NotImplementedError, ValueError) as error:
            raise SourceUnusable(f"{path!r} is not a whole zip: {error}", field="source") from error
        self._names = _decode_names(self._archive.infolist(), encoding)
        self._members = {
            name: member
            for member, written in zip(self._archive.infolist(), self._names, strict=True)
            if (name := path_below(written, "")) is not None and not member.is_dir()
        }
        self._folders: dict[str, list[str]] = {}
        for name in self._members:
            self._folders.setdefault(name.rpartition("/")[0], []).append(name)

    def walk(self) -> Iterator[PlacedFile | SourceProblem]:
        """Yield the members in the order of the central directory; problems stand for what cannot be read."""
        for member, written in zip(self._archive.infolist(), self._names, strict=True):
            if member.is_dir() or any(map(is_hidden, written.split("/"))):
                continue
            name = path_below(written, "")
            if name is None:
                yield SourceProblem(written, RowProblem.OUTSIDE, "the name leads out of the archive")
            elif _is_link(member):
                yield SourceProblem(name, RowProblem.UNREADABLE, LINK_IN_ARCHIVE)
            elif member.flag_bits & _ENCRYPTED:
                yield SourceProblem(name, RowProblem.UNREADABLE, "the member is encrypted")
            elif member.compress_type not in _METHODS:
                yield SourceProblem(name, RowProblem.UNREADABLE, "compressed, but not by deflate: pack it again")
            else:
                yield self._file(member, name)

    def names_in(self, folder: str) -> Iterator[str]:
        """Yield the names of the members directly below a folder."""
        return iter(self._folders.get(folder, ()))

    def above(self) -> Iterator[tuple[Place, str]]:
        """Yield nothing: no export writes into an archive."""
        return iter(())

    def find(self, path: str) -> PlacedFile:
        """Find a member."""
        return self._file(self._member(path), path)

    def load(self, path: str, settings: Settings) -> bytes:
        """Read a whole member."""
        member = self._member(path)
        require_size(member.file_size, settings)
        return self.read(path, 0, member.file_size)

    def read(self, path: str, offset: int, length: int) -> bytes:
        """Read a part of a member, which decompresses all that comes before it."""
        with self.open(path) as file:
            file.seek(offset)
            return file.read(length)

    def open(self, path: str) -> BinaryIO:
        """Open a member for reading."""
        member = self._member(path)
        if _is_link(member):  # its content is the name of another file
            raise PathForbidden(f"{path!r} in {self._path!r} is a link: {LINK_IN_ARCHIVE}")
        try:
            return cast("BinaryIO", self._archive.open(member))
        except (zipfile.BadZipFile, NotImplementedError, RuntimeError, zlib.error) as error:
            raise StorageUnavailable(f"{path!r} in {self._path!r} cannot be read: {error}") from error

    def _member(self, path: str) -> zipfile.ZipInfo:
        try:
            return self._members[path]
        except KeyError as error:
            raise NotFound(f"there is no {path!r} in {self._path!r}") from error

    def _file(self, member: zipfile.ZipInfo, name: str) -> PlacedFile:
        return PlacedFile(
            name,
            self._path,
            member.file_size,
            HeldAs.ZIPPED,
            member.header_offset,
            member.compress_size,
            version=f"{member.CRC:08x}",
        )


def _decode_names(members: list[zipfile.ZipInfo], encoding: str | None) -> list[str]:
    """The members' names. Those not marked as UTF-8 are mostly that nevertheless, or all in the code page of the system
    that packed them; zipfile reads them as code page 437, which loses no byte."""
    raw = [None if member.flag_bits & _UTF_8 else member.filename.encode("cp437") for member in members]
    found = named(encoding) if encoding is not None else detect(name for name in raw if name is not None)
    return [
        member.filename if name is None else _decode(name, found) for member, name in zip(members, raw, strict=True)
    ]


def _decode(name: bytes, encoding: Encoding) -> str:
    for each in (encoding, UTF_8):
        try:
            return each.decode(name)
        except Undecodable:
            continue
    return name.decode("utf-8", "surrogateescape")


def _is_link(member: zipfile.ZipInfo) -> bool:
    return stat.S_ISLNK(member.external_attr >> 16)  # APPNOTE.TXT 4.4.15: on Unix the mode

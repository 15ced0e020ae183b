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
from workers.datasets.sources.images import HeldAs, RowProblem, SourceProblem, require_size
from workers.datasets.sources.places import LINK_IN_ARCHIVE, Place, PlacedFile, is_hidden

_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_ENCRYPTED = 0x1  # general purpose bit 0


class Zip:
    """The members of a zip, by their names in it."""

    near = True

    def __init__(self, place: Place, path: str) -> None:
        """Open the archive `path` of another place.

        Raises:
            SourceUnusable: it is not a zip, or incomplete.
        """
        self._path = path
        try:
            self._archive = zipfile.ZipFile(place.open(path))
        except (zipfile.BadZipFile, NotImplementedError, ValueError) as error:
            raise SourceUnusable(f"{path!r} is not a whole zip: {error}", field="source") from error

    def walk(self) -> Iterator[PlacedFile | SourceProblem]:
        """Yield the members in the order of the central directory; problems stand for what cannot be read."""
        for member in self._archive.infolist():
            if member.is_dir() or any(map(is_hidden, member.filename.split("/"))):
                continue
            name = path_below(member.filename, "")
            if name is None:
                yield SourceProblem(member.filename, RowProblem.OUTSIDE, "the name leads out of the archive")
            elif _is_link(member):
                yield SourceProblem(name, RowProblem.UNREADABLE, LINK_IN_ARCHIVE)
            elif member.flag_bits & _ENCRYPTED:
                yield SourceProblem(name, RowProblem.UNREADABLE, "the member is encrypted")
            elif member.compress_type not in _METHODS:
                yield SourceProblem(name, RowProblem.UNREADABLE, "compressed, but not by deflate: pack it again")
            else:
                yield self._file(member, name)

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
            return self._archive.getinfo(path)
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


def _is_link(member: zipfile.ZipInfo) -> bool:
    return stat.S_ISLNK(member.external_attr >> 16)  # APPNOTE.TXT 4.4.15: on Unix the mode

"""Places that hold files: a local folder, the prefix of a bucket, or a zip; read in the same way.

Paths are relative to the place, with / between their parts. Names of local files need not be UTF-8; such bytes are
lone surrogates in the path, as everywhere in Python.
"""

from __future__ import annotations

import io
import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Protocol

import obstore
from obstore.exceptions import BaseError
from obstore.store import S3Store
from typing_extensions import Buffer

from shared.intake.beneath import EVERYWHERE, READ, Roots
from shared.objects.storage import open_bucket
from shared.settings import Settings
from tuwen.errors import NotFound, PathForbidden, StorageUnavailable
from workers.datasets.sources.images import HeldAs, RowProblem, SourceProblem, require_size
from workers.datasets.sources.seen import SortedNames

if TYPE_CHECKING:
    from obstore import ObjectMeta

LINK_IN_ARCHIVE = "links in archives are not followed: pack the file itself"
_BUFFER = 2**20
_OF_SYSTEMS = frozenset(("__MACOSX", "@eaDir", "#recycle", "#snapshot", "$RECYCLE.BIN", "System Volume Information"))
"""Folders that systems and network disks keep for themselves: thumbnails, what was deleted, earlier states."""


@dataclass(frozen=True, slots=True)
class PlacedFile:
    """A file of a place, and where its bytes are; the fields are those of `SourceImage`."""

    name: str
    path: str
    size: int | None
    held: HeldAs = HeldAs.FILE
    offset: int | None = None
    length: int | None = None
    column: str | None = None
    version: str | None = None


class Place(Protocol):
    """A place with files. Methods raise `NotFound` for a missing file, `PathForbidden` for one that a link puts outside
    the place's roots, and `StorageUnavailable` where the place fails."""

    near: bool
    """Whether looking at a file costs next to nothing."""

    def walk(self) -> Iterator[PlacedFile | SourceProblem]:
        """Yield all files below the place, in an order that does not change; hidden ones are left out."""

    def names_in(self, folder: str) -> Iterator[str]:
        """Yield the paths of what lies directly in a folder, in any order; nothing where it cannot be listed."""

    def above(self) -> Iterator[tuple[Place, str]]:
        """Yield the folders around the place, and the path from each to it, with a / at its end."""

    def find(self, path: str) -> PlacedFile:
        """Find the file at `path`, with its size and version."""

    def load(self, path: str, settings: Settings) -> bytes:
        """Read the whole file; raises what `require_size` raises before a byte is read."""

    def read(self, path: str, offset: int, length: int) -> bytes:
        """Read up to `length` bytes from `offset` on; fewer where the file ends."""

    def open(self, path: str) -> BinaryIO:
        """Open the file for reading, buffered and seekable."""


def open_place(uri: str, settings: Settings, roots: Roots = EVERYWHERE) -> Folder | Bucket:
    """Open the folder or `s3://BUCKET/PREFIX` that `uri` names, without checking that it exists.

    Files of a folder are opened beneath `roots` only.

    Raises:
        ConfigurationError: the S3 settings are wrong.
    """
    if uri.startswith("s3://"):
        return Bucket(open_bucket(uri.removeprefix("s3://"), settings, settings.s3_endpoint))
    return Folder(uri.removeprefix("file://"), roots)


def exists(place: Place, path: str) -> bool:
    """Whether the place has a file at `path`."""
    try:
        place.find(path)
    except NotFound:
        return False
    return True


class Folder:
    """A folder of this machine, of which only what lies beneath `roots` is opened, links followed."""

    near = True

    def __init__(self, root: str, roots: Roots = EVERYWHERE) -> None:
        self._root = str(Path(root or ".").absolute())
        self._roots = roots

    def walk(self) -> Iterator[PlacedFile | SourceProblem]:
        """Yield files folder by folder, in the order of their names' bytes; problems stand for what cannot be read."""
        # A stack of siblings instead of recursion: folders can be nested deeper than Python's stack.
        levels: list[Iterator[str]] = [iter(("",))]
        while levels:
            folder = next(levels[-1], None)
            if folder is None:
                levels.pop()
                continue
            files, folders = SortedNames(), SortedNames()
            try:
                opened = self._roots.open(self._whole(folder), os.O_RDONLY | os.O_DIRECTORY)
            except (OSError, PathForbidden) as error:
                yield _unlisted(folder or self._root, error)
                continue
            try:
                yield from self._list(opened, folder, files, folders)
            finally:
                os.close(opened)
            levels.append(iter(folders))

    def names_in(self, folder: str) -> Iterator[str]:
        """Yield the paths of what lies directly in a folder."""
        try:
            opened = self._roots.open(self._whole(folder), os.O_RDONLY | os.O_DIRECTORY)
        except (OSError, PathForbidden):
            return
        try:
            with os.scandir(opened) as entries:
                yield from (below(folder, entry.name) for entry in entries)
        finally:
            os.close(opened)

    def above(self) -> Iterator[tuple[Place, str]]:
        """Yield the folders around this one, the nearest first."""
        for folder in Path(self._root).parents:
            yield Folder(str(folder), self._roots), f"{Path(self._root).relative_to(folder)}/"

    def find(self, path: str) -> PlacedFile:
        """Find a regular file."""
        with _translate_errors(path):
            found = self._roots.stat(self._whole(path))
        return _regular(path, found)

    def load(self, path: str, settings: Settings) -> bytes:
        """Read a whole file."""
        with self._opened(path) as (opened, found):
            require_size(found.st_size, settings)
            return os.pread(opened, found.st_size, 0)

    def read(self, path: str, offset: int, length: int) -> bytes:
        """Read a part of a file with one system call."""
        with self._opened(path) as (opened, _):
            return os.pread(opened, length, offset)

    def open(self, path: str) -> BinaryIO:
        """Open a file for reading, buffered."""
        with self._opened(path) as (opened, _):
            return os.fdopen(os.dup(opened), "rb", buffering=_BUFFER)

    @contextmanager
    def _opened(self, path: str) -> Iterator[tuple[int, os.stat_result]]:
        """A regular file by its descriptor: what was looked at is what is read, and a pipe blocks nobody."""
        with _translate_errors(path):
            opened = self._roots.open(self._whole(path), READ)
            try:
                found = os.fstat(opened)
                _regular(path, found)
                yield opened, found
            finally:
                os.close(opened)

    def _list(
        self, opened: int, folder: str, files: SortedNames, folders: SortedNames
    ) -> Iterator[PlacedFile | SourceProblem]:
        """Yield the files of an open folder, and gather the folders in it."""
        try:
            with os.scandir(opened) as entries:
                for entry in entries:
                    if not is_hidden(entry.name):
                        (folders if entry.is_dir(follow_symlinks=False) else files).add(below(folder, entry.name))
        except OSError as error:
            yield _unlisted(folder or self._root, error)
        for path in files:
            yield self._find_listed(opened, path)

    def _find_listed(self, folder: int, path: str) -> PlacedFile | SourceProblem:
        try:
            with _translate_errors(path):
                # The name in the open folder: faster than its whole path, and no link can come in between.
                found = os.stat(path.rpartition("/")[2], dir_fd=folder, follow_symlinks=False)
                if stat.S_ISLNK(found.st_mode):
                    found = self._roots.stat(self._whole(path))
                    if stat.S_ISDIR(found.st_mode):  # it may lead in a circle
                        return SourceProblem(path, RowProblem.UNREADABLE, "links to folders are not followed")
            return _regular(path, found)
        except PathForbidden as error:
            return SourceProblem(path, RowProblem.OUTSIDE, str(error))
        except NotFound as error:
            return SourceProblem(path, RowProblem.NOT_FOUND, str(error))
        except StorageUnavailable as error:
            return SourceProblem(path, RowProblem.UNREADABLE, str(error))

    def _whole(self, path: str) -> str:
        return f"{self._root}/{path}" if path else self._root


def below(folder: str, name: str) -> str:
    """The path of what lies in a folder of a place; the place itself is the empty path."""
    return f"{folder}/{name}" if folder else name


def _regular(path: str, found: os.stat_result) -> PlacedFile:
    if not stat.S_ISREG(found.st_mode):
        raise NotFound(f"{path!r} is not a file")
    return PlacedFile(path, path, found.st_size, version=_version(found))


def _unlisted(folder: str, error: OSError | PathForbidden) -> SourceProblem:
    if isinstance(error, PathForbidden):
        return SourceProblem(folder, RowProblem.OUTSIDE, str(error))
    return SourceProblem(folder, RowProblem.UNREADABLE, f"cannot list the folder: {_why(error)}")


def _version(found: os.stat_result) -> str:
    """A sign of the content. Programs can set back the time of modification, but not that of change or the inode."""
    return f"{found.st_mtime_ns:x}-{found.st_ctime_ns:x}-{found.st_ino:x}"


class Bucket:
    """A bucket of an S3 service, or a prefix of it."""

    near = False

    def __init__(self, store: S3Store) -> None:
        self._store = store

    def walk(self) -> Iterator[PlacedFile | SourceProblem]:
        """Yield objects in the order of their keys' bytes."""
        # Services list in the order of the keys' bytes, page by page (ListObjectsV2).
        with _translate_errors("the bucket"):
            for page in obstore.list(self._store, chunk_size=1000):
                for meta in page:
                    path = meta["path"]
                    if not any(map(is_hidden, path.split("/"))):
                        yield _object(meta)

    def names_in(self, folder: str) -> Iterator[str]:
        """Yield the keys directly below a folder, with one listing of it."""
        with _translate_errors(folder or "the bucket"):
            yield from (meta["path"] for meta in obstore.list_with_delimiter(self._store, folder or None)["objects"])

    def above(self) -> Iterator[tuple[Place, str]]:
        """Yield nothing: no export writes beside the objects of a bucket."""
        return iter(())

    def find(self, path: str) -> PlacedFile:
        """Find an object with one HEAD request."""
        with _translate_errors(path):
            return _object(obstore.head(self._store, path))

    def load(self, path: str, settings: Settings) -> bytes:
        """Read a whole object with one GET request."""
        with _translate_errors(path):
            answer = obstore.get(self._store, path)
        require_size(answer.meta["size"], settings)
        with _translate_errors(path):
            return bytes(answer.bytes())

    def read(self, path: str, offset: int, length: int) -> bytes:
        """Read a part of an object with one request for a range."""
        if length == 0:
            return b""
        with _translate_errors(path):
            try:
                return bytes(obstore.get_range(self._store, path, start=offset, length=length))
            except BaseError as error:
                if "non-partial" not in str(error):
                    raise
            # A service that calls a range the whole (rclone does): then it is cut out of the whole here.
            return _cut(obstore.get(self._store, path).stream(), offset, length)

    def open(self, path: str) -> BinaryIO:
        """Open an object as a seekable file that asks for one range after the other."""
        return io.BufferedReader(_Object(self, path, self.find(path).size or 0), _BUFFER)


def _cut(chunks: Iterable[Buffer], offset: int, length: int) -> bytes:
    """Cut `length` bytes from `offset` on out of a stream of chunks; it fetches no more than that takes."""
    found, position = bytearray(), 0
    for chunk in chunks:
        view = memoryview(chunk)
        found += view[max(0, offset - position) : max(0, offset + length - position)]
        position += len(view)
        if position >= offset + length:
            break
    return bytes(found)


def _object(meta: ObjectMeta) -> PlacedFile:
    return PlacedFile(meta["path"], meta["path"], meta["size"], version=meta["e_tag"])


class _Object(io.RawIOBase):
    """An object of a bucket as a file: each read is one request for a range.

    obstore's own reader (`open_reader`) does not do the same: in the middle of a read it raises errors of its own, and
    it cannot read from a service that answers a range with the whole object, which `Bucket.read` can.
    """

    def __init__(self, bucket: Bucket, path: str, size: int) -> None:
        self._bucket = bucket
        self._path = path
        self._size = size
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        self._position = max(0, start + offset)
        return self._position

    def readinto(self, buffer: Buffer) -> int:
        view = memoryview(buffer).cast("B")
        length = max(0, min(len(view), self._size - self._position))
        view[:length] = self._bucket.read(self._path, self._position, length)
        self._position += length
        return length


def is_hidden(name: str) -> bool:
    """Whether the name is that of something kept for a program's own use."""
    return (name.startswith(".") and name not in (".", "..")) or name in _OF_SYSTEMS


@contextmanager
def _translate_errors(path: str) -> Iterator[None]:
    try:
        yield
    except (FileNotFoundError, NotADirectoryError) as error:
        raise NotFound(f"there is no file {path!r}") from error
    except (BaseError, OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise StorageUnavailable(f"{path!r} cannot be read: {_why(error)}") from error


def _why(error: Exception) -> str:
    """The error's reason in one line: a service may answer with a page of XML."""
    text = (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
    return text.splitlines()[0][:200]

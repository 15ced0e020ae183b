"""Tars, one or many: of webdataset, where files of one key are one sample, or of images alone.

Only the headers are read, and the small files beside an image: `.txt`, `.caption` and the like, and `.json`. The name
of an image is `<tar>/<member>`, since keys are unique within one tar only. The members of a sample need not follow each
other: they are listed in a temporary database first.
"""

from __future__ import annotations

import json
import sqlite3
import tarfile
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from typing import Any

from tuwen.errors import NotFound, PathForbidden, SourceUnusable, StorageUnavailable
from workers.datasets.sources.columns import CAPTION_COLUMNS, path_below, texts
from workers.datasets.sources.images import HeldAs, RowProblem, SourceEntry, SourceImage, SourceProblem, is_image_name
from workers.datasets.sources.places import LINK_IN_ARCHIVE, Place, is_hidden
from workers.datasets.sources.seen import temporary_database
from workers.datasets.sources.sidecars import LONGEST, SAMPLED, SUFFIXES, CaptionDecoder, CaptionUnusable

_LARGEST_JSON = 2**20  # bytes
_BLOCK = 512

_SCHEMA = (
    "CREATE TABLE entries (run INTEGER, key BLOB, stem BLOB, name BLOB, offset INTEGER, size INTEGER, problem TEXT)",
    "CREATE TABLE texts (run INTEGER, key BLOB, stem BLOB, suffix TEXT, offset INTEGER, size INTEGER)",
)
_INDEXES = (
    "CREATE INDEX entries_by_key ON entries (key) WHERE problem IS NULL",
    "CREATE INDEX texts_by_key ON texts (key)",
)
_TEXTS_OF = """
SELECT run, stem, suffix, offset, size FROM texts WHERE key = :key AND (
    run = :run OR NOT EXISTS (SELECT 1 FROM entries WHERE key = :key AND problem IS NULL AND run = texts.run)
) ORDER BY offset
"""


def list_tars(place: Place, paths: Iterable[str | SourceProblem], encoding: str | None = None) -> Iterator[SourceEntry]:
    """Yield the images of all tars, in order. A tar that is missing or cut short becomes a problem of its own.

    Args:
        encoding: that of the captions, where a person says it.
    """
    for path in paths:
        if isinstance(path, SourceProblem):
            yield path
            continue
        try:
            with closing(temporary_database()) as database:
                yield from _Tar(place, path, encoding, database).entries()
        except PathForbidden as error:
            yield SourceProblem(path, RowProblem.OUTSIDE, str(error))
        except (NotFound, SourceUnusable) as error:
            yield SourceProblem(path, RowProblem.DAMAGED, str(error))


class _Tar:
    """The samples of one tar: members of one key that follow each other, and those that lie apart, as long as images of
    the key are in one place only."""

    def __init__(self, place: Place, path: str, encoding: str | None, database: sqlite3.Connection) -> None:
        self._place = place
        self._path = path
        self._database = database
        self._decoder = CaptionDecoder(self._all_texts, encoding)
        self._version = place.find(path).version
        for statement in _SCHEMA:
            database.execute(statement)
        self._list()
        for statement in _INDEXES:
            database.execute(statement)

    def entries(self) -> Iterator[SourceEntry]:
        """Yield the images and problems in the order of the tar."""
        listed = self._database.execute("SELECT * FROM entries ORDER BY rowid")
        for run, key, stem, name, offset, size, problem in listed:
            if problem is not None:
                yield SourceProblem(_unpack(name), RowProblem(key), problem)
                continue
            name = _unpack(name)
            try:
                captions, metadata = self._read_texts(run, key, stem)
            except CaptionUnusable as error:
                yield error.problem(name)
                continue
            yield SourceImage(
                name, self._path, HeldAs.PART, offset, size, None, size, self._version, captions, metadata=metadata
            )

    def _list(self) -> None:
        """Write all members into the database."""
        run, last = 0, None
        for member in _read_members(self._place, self._path):
            if isinstance(member, SourceProblem):
                run, last = run + 1, None
                problem = (run, member.code, None, _pack(member.name), None, None, member.detail)
                self._database.execute("INSERT INTO entries VALUES (?, ?, ?, ?, ?, ?, ?)", problem)
                continue
            key, stem, suffix = _split(member.name)
            run, last = (run, last) if key == last else (run + 1, key)
            if is_image_name(member.name):
                name = f"{self._path.removesuffix('.tar')}/{member.name}"
                image = (run, *map(_pack, (key, stem, name)), member.offset, member.size, None)
                self._database.execute("INSERT INTO entries VALUES (?, ?, ?, ?, ?, ?, ?)", image)
            elif suffix == "json" or suffix in SUFFIXES:
                text = (run, _pack(key), _pack(stem), suffix, member.offset, member.size)
                self._database.execute("INSERT INTO texts VALUES (?, ?, ?, ?, ?, ?)", text)

    def _read_texts(self, run: int, key: bytes, stem: bytes) -> tuple[tuple[str, ...], dict[str, Any]]:
        """The captions and metadata of an image: of the texts with its own stem, if there are any, else of its key."""
        found = self._database.execute(_TEXTS_OF, {"key": key, "run": run}).fetchall()
        own = [text for text in found if text[1] == stem] or [text for text in found if text[1] == key]
        if any(text[0] != run for text in own) and self._runs(key) > 1:
            raise CaptionUnusable(
                f"several samples of {self._path} have the key {_unpack(key)!r}, and a text of it lies apart"
            )
        captions: list[str] = []
        metadata: dict[str, Any] = {}
        for _, _, suffix, offset, size in own:
            if suffix != "json":
                captions += texts(self._decoder.decode(self._read(offset, size, LONGEST)))
                continue
            said = self._read_json(offset, size)
            for column in CAPTION_COLUMNS:
                captions += texts(said.pop(column, None))
            metadata |= said
        return tuple(dict.fromkeys(captions)), metadata

    def _read_json(self, offset: int, size: int) -> dict[str, Any]:
        text = self._read(offset, size, _LARGEST_JSON)
        if len(text) > _LARGEST_JSON:
            raise CaptionUnusable(f"the JSON beside the image is longer than {_LARGEST_JSON} bytes")
        try:
            said = _parse(text)
        except UnicodeDecodeError:
            said = _parse(self._decoder.decode(text))
        return said if isinstance(said, dict) else {"json": said}

    def _read(self, offset: int, size: int, longest: int) -> bytes:
        """Read a text, up to one byte more than it may have."""
        try:
            return self._place.read(self._path, offset, min(size, longest + 1))
        except StorageUnavailable as error:
            raise CaptionUnusable(str(error)) from error

    def _runs(self, key: bytes) -> int:
        """How many samples with images have the key."""
        statement = "SELECT count(DISTINCT run) FROM entries WHERE key = ? AND problem IS NULL"
        return int(self._database.execute(statement, (key,)).fetchone()[0])

    def _all_texts(self) -> Iterator[bytes]:
        found = self._database.execute(
            "SELECT offset, size FROM texts WHERE suffix != 'json' ORDER BY rowid"
        ).fetchall()
        for offset, size in islice(found, SAMPLED):
            if size <= LONGEST:
                yield self._place.read(self._path, offset, size)


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


def _split(name: str) -> tuple[str, str, str]:
    """Divide a name as webdataset does, at the first dot of the last part: into key, stem and suffix in lower case.

    The stem goes on to the last dot: `a/b.left.TXT` has the key `a/b`, the stem `a/b.left` and the suffix `txt`.
    """
    folder, slash, base = name.rpartition("/")
    key = base.partition(".")[0]
    stem, _, suffix = base.rpartition(".")
    return f"{folder}{slash}{key}", f"{folder}{slash}{stem or key}", suffix.lower()


def _parse(text: str | bytes) -> object:
    """Parse JSON. Raises CaptionUnusable where it is none, UnicodeDecodeError where its bytes are no Unicode."""
    try:
        return json.loads(text)
    except UnicodeDecodeError:
        raise
    except (ValueError, RecursionError) as error:
        raise CaptionUnusable(f"the JSON beside the image is none: {error}") from error


def _pack(text: str) -> bytes:
    """A name as SQLite can hold it: names may have bytes that are no characters."""
    return text.encode("utf-8", "surrogatepass")


def _unpack(packed: bytes) -> str:
    return packed.decode("utf-8", "surrogatepass")

"""Captions in text files beside images, all of one folder or archive in one encoding."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Self

from tuwen.errors import NotFound, PathForbidden, StorageUnavailable
from workers.datasets.sources.encodings import (
    UNKNOWN,
    UTF_8,
    Encoding,
    Undecodable,
    detect,
    detect_mark,
    is_surely_utf_8,
    is_utf_8,
    named,
)
from workers.datasets.sources.images import RowProblem, SourceProblem
from workers.datasets.sources.own_words import OwnWords
from workers.datasets.sources.places import Place
from workers.datasets.sources.seen import temporary_database

SUFFIXES = ("txt", "caption", "text", "cap")
LONGEST = 64 * 1024
"""Bytes; a caption is no book."""
SAMPLED = 2000
"""Sidecars of a folder by which its encoding is judged."""


class CaptionUnusable(Exception):
    """An image has a caption that cannot be taken over. The message says why."""

    def __init__(self, detail: str, code: RowProblem = RowProblem.CAPTION) -> None:
        super().__init__(detail)
        self.code = code

    def problem(self, name: str) -> SourceProblem:
        """The image of this name as a problem of the source."""
        return SourceProblem(name, self.code, str(self))


class CaptionDecoder:
    """Decodes the captions of one folder or archive, whose encoding is detected when one of them is not surely UTF-8.

    Args:
        all_texts: yields the captions of the folder, to judge them together.
        asked: the encoding that a person names.
    """

    def __init__(self, all_texts: Callable[[], Iterable[bytes]], asked: str | None) -> None:
        self._all_texts = all_texts
        self._asked = named(asked) if asked is not None else None
        self._others: Encoding | None = None
        self._mixed = False

    def decode(self, text: bytes) -> str:
        """Decode one caption, without the white space around it.

        Raises:
            CaptionUnusable: it is too long, or not in the encoding of the folder.
        """
        if len(text) > LONGEST:
            raise CaptionUnusable(f"the caption is longer than {LONGEST} bytes")
        marked = detect_mark(text)
        if marked is not None:
            text = text.removeprefix(marked.mark)
        encoding = marked or self._encoding_of(text)
        try:
            return encoding.decode(text).strip()
        except Undecodable as error:
            raise CaptionUnusable(str(error), RowProblem.ENCODING) from error

    def _encoding_of(self, text: bytes) -> Encoding:
        if self._asked is not None:
            return self._asked
        if is_surely_utf_8(text):
            return UTF_8
        if self._others is None:
            self._others = self._judge_others()
        return UNKNOWN if self._mixed and is_utf_8(text) else self._others

    def _judge_others(self) -> Encoding:
        """Detect what those are in that are not UTF-8: a folder may be filled by several programs."""
        foreign = []
        for text in islice(self._all_texts(), SAMPLED):
            if not is_utf_8(text):
                foreign.append(text)
            elif is_surely_utf_8(text) and not text.isascii():
                self._mixed = True
        self._mixed = self._mixed and bool(foreign)
        return detect(foreign)


class Sidecars:
    """The captions beside the images of one folder after the other, but for those that this product's models wrote.

    `close` it, or use it in a `with`.

    Args:
        asked: the encoding that a person names.
    """

    def __init__(self, place: Place, asked: str | None) -> None:
        self._place = place
        self._asked = asked
        self._names = temporary_database()
        self._names.execute("CREATE TABLE sidecars (stem BLOB, name BLOB, PRIMARY KEY (stem, name)) WITHOUT ROWID")
        self._decoder: CaptionDecoder | None = None
        self._own = OwnWords()
        for above, below in place.above():
            self._own.load(above, below=below)

    def enter(self, folder: str) -> None:
        """Look which images of the folder have captions."""
        self._names.execute("DELETE FROM sidecars")
        names = (name for name in self._place.names_in(folder) if _suffix(name) in SUFFIXES)
        rows = ((_stem(name), os.fsencode(name)) for name in names)
        found = self._names.executemany("INSERT OR IGNORE INTO sidecars VALUES (?, ?)", rows).rowcount
        self._decoder = CaptionDecoder(self._read_all, self._asked) if found > 0 else None
        self._own.load(self._place, folder)

    def read(self, path: str) -> tuple[str, ...]:
        """Read the captions beside an image of the folder that was entered.

        Raises:
            CaptionUnusable: there is one that cannot be read.
        """
        if self._decoder is None:
            return ()
        texts = []
        for sidecar in self._beside(path):
            text = self._read(sidecar)
            if self._own.has(sidecar, text):
                continue
            try:
                texts.append(self._decoder.decode(text))
            except CaptionUnusable as error:
                raise CaptionUnusable(f"{sidecar}: {error}", error.code) from error
        return tuple(dict.fromkeys(text for text in texts if text))

    def close(self) -> None:
        """Delete the temporary databases."""
        self._names.close()
        self._own.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _beside(self, path: str) -> list[str]:
        found = self._names.execute("SELECT name FROM sidecars WHERE stem = ?", (_stem(path),))
        return sorted((os.fsdecode(name) for (name,) in found), key=lambda name: SUFFIXES.index(_suffix(name)))

    def _read_all(self) -> Iterator[bytes]:
        """Yield the sidecars of the folder that can be read, in the order of their names."""
        for (name,) in self._names.execute("SELECT name FROM sidecars ORDER BY name LIMIT ?", (SAMPLED,)).fetchall():
            try:
                text = self._read(os.fsdecode(name))
            except CaptionUnusable:
                continue
            if len(text) <= LONGEST:
                yield text

    def _read(self, sidecar: str) -> bytes:
        """Read a sidecar, or the start of one that is too long."""
        try:
            with self._place.open(sidecar) as file:
                return file.read(LONGEST + 1)
        except PathForbidden as error:
            raise CaptionUnusable(str(error), RowProblem.OUTSIDE) from error
        except (NotFound, StorageUnavailable) as error:
            raise CaptionUnusable(str(error)) from error


def _stem(name: str) -> bytes:
    return os.fsencode(name.rpartition(".")[0])


def _suffix(name: str) -> str:
    return name.rpartition(".")[2].lower()

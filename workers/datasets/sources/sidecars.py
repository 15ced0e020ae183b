"""Captions in text files beside images, all of one folder or archive in one encoding."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import islice

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
from workers.datasets.sources.places import Place

SUFFIXES = ("txt", "caption", "text", "cap")
LONGEST = 64 * 1024
"""Bytes; a caption is no book."""
_SPELLED = tuple(spelled for suffix in SUFFIXES for spelled in (suffix, suffix.upper()))
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


def read_captions(place: Place, path: str, decoder: CaptionDecoder) -> tuple[str, ...]:
    """Read the captions beside the image at `path`.

    Raises:
        CaptionUnusable: there is one that cannot be read.
    """
    texts = []
    for sidecar in sidecars_of(path):
        text = _read(place, sidecar)
        if text is None:
            continue
        try:
            texts.append(decoder.decode(text))
        except CaptionUnusable as error:
            raise CaptionUnusable(f"{sidecar}: {error}", error.code) from error
    return tuple(dict.fromkeys(text for text in texts if text))


def read_all(place: Place, folder: str) -> Iterator[bytes]:
    """Yield the sidecars of a folder that can be read, in the order of their names."""
    names = (name for name in place.names_in(folder) if name.rpartition(".")[2].lower() in SUFFIXES)
    for name in islice(sorted(names), SAMPLED):
        try:
            text = _read(place, name)
        except CaptionUnusable:
            continue
        if text is not None and len(text) <= LONGEST:
            yield text


def sidecars_of(path: str) -> list[str]:
    """The paths at which the captions of an image may be: its own with another suffix."""
    stem = path.rpartition(".")[0]
    return [f"{stem}.{suffix}" for suffix in _SPELLED]


def _read(place: Place, sidecar: str) -> bytes | None:
    """Read a sidecar, or the start of one that is too long; None where there is none."""
    try:
        with place.open(sidecar) as file:
            return file.read(LONGEST + 1)
    except NotFound:
        return None
    except PathForbidden as error:
        raise CaptionUnusable(str(error), RowProblem.OUTSIDE) from error
    except StorageUnavailable as error:
        raise CaptionUnusable(str(error)) from error

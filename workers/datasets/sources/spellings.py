"""Spellings of a path that may mean the same file: macOS decomposes accents, Windows divides with backslashes.

A table that was written on one system names files that lie on another. The path is taken as it stands where there is
such a file; otherwise where exactly one file has another spelling of it.
"""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Callable, Iterator
from itertools import product

from tuwen.errors import NotFound
from workers.datasets.sources.encodings import Encoding
from workers.datasets.sources.places import Place, PlacedFile

Below = Callable[[str], str | None]
"""The path below the root that a spelling names; None where it leads out."""


class SeveralFit(Exception):
    """More than one file has a spelling of the path. The message names two."""


def find_spelled(place: Place, value: str, below: Below, encoding: Encoding) -> PlacedFile | None:
    """Find the file that `value` names in one of its spellings; None where each of them leads out of the place.

    Args:
        below: makes a spelling a path below the root.
        encoding: that of the table, since file names may have been bytes of it.

    Raises:
        NotFound: no file has any of the spellings.
        SeveralFit: more than one has, and none is spelled as `value` is.
        StorageUnavailable, PathForbidden
    """
    missing: NotFound | None = None
    found: dict[str, PlacedFile] = {}
    for number, spelling in enumerate(_spellings(value, encoding)):
        path = below(spelling)
        if path is None:
            continue
        try:
            file = place.find(path)
        except NotFound as error:
            missing = missing or error
            continue
        if number == 0:
            return file
        found.setdefault(file.path, file)
    if len(found) > 1:
        one, other, *_ = found
        raise SeveralFit(f"both {one!r} and {other!r} could be meant")
    if not found and missing is not None:
        raise missing
    return next(iter(found.values()), None)


def _spellings(value: str, encoding: Encoding) -> Iterator[str]:
    """Spellings of a path, itself first, each once."""
    seen = set()
    separated = (value, value.replace("\\", "/")) if "\\" in value else (value,)
    for text, normalise in product(separated, (_keep, _compose, _decompose)):
        composed = normalise(text)
        for spelling in (composed, composed.strip(), _as_bytes(composed, encoding)):
            if spelling is not None and spelling not in seen:
                seen.add(spelling)
                yield spelling


def _keep(text: str) -> str:
    return text


def _compose(text: str) -> str:
    return unicodedata.normalize("NFC", text)


def _decompose(text: str) -> str:
    return unicodedata.normalize("NFD", text)


def _as_bytes(text: str, encoding: Encoding) -> str | None:
    """The name of a file whose bytes are the text's in the table's own encoding, as on an old system."""
    if text.isascii() or encoding.name in (None, "utf-8") or encoding.wide:
        return None
    try:
        return os.fsdecode(text.encode(encoding.name or "utf-8", "surrogateescape"))
    except UnicodeEncodeError:
        return None

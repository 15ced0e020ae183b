"""Which images are there twice, by their bytes or by their looks, found before a model's time is spent on them.

Looks are compared by a perceptual hash in the manner of pHash (Zauner, "Implementation and Benchmarking of Perceptual
Image Hash Functions", 2010): the signs, about their median, of the 16×16 lowest frequencies of a cosine transform.
Copies within a Hamming distance are found by their bands (Norouzi et al., "Fast Exact Search in Hamming Space with
Multi-Index Hashing", 2014): two hashes that differ in fewer bits than there are bands agree on one band entirely.

Measured on 600 pictures of the drawn world, 96 pixels wide: the nearest of two different ones are 56 bits apart; a
copy as JPEG of quality 50 at most 11, one reduced to half its size 22 in nine of ten. The limit is between.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, Literal, Self

import numpy as np
from PIL import Image

from shared.annotations import Drop, DropReason
from shared.errors import TuwenError
from shared.images import decode
from shared.jobs import JobError
from shared.settings import Settings
from workers.datasets.lookahead import mapped
from workers.datasets.sources.images import Entry, SourceImage
from workers.datasets.sources.seen import temporary_database

How = Literal["exact", "perceptual"]

LIMIT = 24
"""Bits, of 256, in which copies may differ. Up to 11 all are found, as there are 12 bands; beyond, most."""
_SIDE = 64
_FREQUENCIES = 16
_BANDS = 12
_FLATTEST = 1.0
"""Grey levels of deviation below which an image shows nothing that it could be known by."""


def _cosines() -> np.ndarray[Any, np.dtype[np.float32]]:
    """The transform of `_SIDE` values to the frequencies 1…16; the constant part tells images apart least."""
    angles = np.outer(np.arange(1, _FREQUENCIES + 1), (np.arange(_SIDE) + 0.5) * np.pi / _SIDE)
    return np.cos(angles).astype(np.float32)


_COSINES = _cosines()
# Low frequencies first: a band of them survives what blurs or sharpens the high ones.
_ORDER = np.argsort(np.add.outer(np.arange(_FREQUENCIES), np.arange(_FREQUENCIES)), axis=None, kind="stable")


def fingerprint(image: Image.Image) -> bytes | None:
    """256 bits of an RGB image's looks; None for one of a single colour, which looks like any other such."""
    grey = np.asarray(image.convert("L").resize((_SIDE, _SIDE), Image.Resampling.BOX), dtype=np.float32)
    if float(grey.std()) < _FLATTEST:
        return None
    frequencies = (_COSINES @ grey @ _COSINES.T).ravel()[_ORDER]
    return np.packbits(frequencies > np.median(frequencies)).tobytes()


@dataclass(frozen=True, slots=True)
class Examined:
    """An entry of a source and what its file is like."""

    entry: Entry
    sha256: str | None = None
    size: int | None = None
    width: int | None = None
    height: int | None = None
    looks: bytes | None = None
    error: JobError | None = None
    """Why the file cannot be read, or is no image that could be annotated."""

    @property
    def known(self) -> dict[str, Any]:
        """Fields of an `Annotation`."""
        fields = {"sha256": self.sha256, "size": self.size, "width": self.width, "height": self.height}
        return {name: value for name, value in fields.items() if value is not None}


def examined(
    entries: Iterable[Entry],
    read: Callable[[SourceImage], bytes],
    settings: Settings,
    *,
    how: How = "perceptual",
    threads: int = 4,
) -> Iterator[Examined]:
    """Each entry in its order, its file read; for its looks it is decoded as well."""
    return mapped(lambda entry: _examined(entry, read, settings, how), entries, threads=threads)


class Duplicates:
    """The images that came before, on disk as soon as they are many."""

    def __init__(self) -> None:
        self._database = temporary_database()
        self._database.execute("CREATE TABLE images (id INTEGER PRIMARY KEY, name TEXT, looks BLOB)")
        self._database.execute("CREATE TABLE digests (digest BLOB PRIMARY KEY, name TEXT) WITHOUT ROWID")
        self._database.execute(
            "CREATE TABLE bands (band INTEGER, image INTEGER, PRIMARY KEY (band, image)) WITHOUT ROWID"
        )

    def drop(self, image: Examined) -> Drop | None:
        """Why the image need not be annotated: it is one that came before. Otherwise it is remembered."""
        if image.sha256 is None:
            return None
        digest, name = bytes.fromhex(image.sha256), image.entry.name
        same = self._database.execute("SELECT name FROM digests WHERE digest = ?", (digest,)).fetchone()
        if same is not None:
            return Drop(reason=DropReason.DUPLICATE, detail=f"the same bytes as {same[0]}")
        self._database.execute("INSERT INTO digests VALUES (?, ?)", (digest, name))
        if image.looks is None:
            return None
        like = self._like(image.looks)
        if like is not None:
            return Drop(reason=DropReason.NEAR_DUPLICATE, detail=f"looks like {like[0]} ({like[1]} of 256 bits differ)")
        self._remember(name, image.looks)
        return None

    def close(self) -> None:
        self._database.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _like(self, looks: bytes) -> tuple[str, int] | None:
        """The name of the nearest image within the limit, and how far it is."""
        marks = ", ".join("?" * _BANDS)
        candidates = self._database.execute(
            f"SELECT name, looks FROM images WHERE id IN (SELECT image FROM bands WHERE band IN ({marks})) ORDER BY id",  # noqa: S608 (question marks)
            _bands(looks),
        )
        number = int.from_bytes(looks)
        nearest: tuple[str, int] | None = None
        for name, other in candidates:
            distance = (number ^ int.from_bytes(other)).bit_count()
            if distance <= LIMIT and (nearest is None or distance < nearest[1]):
                nearest = (name, distance)
        return nearest

    def _remember(self, name: str, looks: bytes) -> None:
        row = self._database.execute("INSERT INTO images (name, looks) VALUES (?, ?)", (name, looks)).lastrowid
        self._database.executemany("INSERT INTO bands VALUES (?, ?)", ((band, row) for band in _bands(looks)))


def _bands(looks: bytes) -> list[int]:
    """The 12 parts of a hash, 21 or 22 bits each, every one with its number so that all fit into one index."""
    number, bits = int.from_bytes(looks), 8 * len(looks)
    cuts = [bits * band // _BANDS for band in range(_BANDS + 1)]
    return [
        band << 32 | (number >> (bits - end)) & ((1 << (end - start)) - 1)
        for band, (start, end) in enumerate(zip(cuts, cuts[1:], strict=False))
    ]


def _examined(entry: Entry, read: Callable[[SourceImage], bytes], settings: Settings, how: How) -> Examined:
    if not isinstance(entry, SourceImage):
        return Examined(entry, error=JobError(code=entry.code, detail=entry.detail))
    try:
        data = read(entry)
    except TuwenError as error:
        return Examined(entry, error=_failure(error))
    digest = sha256(data).hexdigest()
    if how == "exact":
        return Examined(entry, digest, len(data))
    try:
        image = decode(data, settings)
    except TuwenError as error:
        return Examined(entry, digest, len(data), error=_failure(error))
    return Examined(entry, digest, len(data), image.width, image.height, fingerprint(image))


def _failure(error: TuwenError) -> JobError:
    return JobError(code=error.code, detail=str(error), retryable=error.retryable)

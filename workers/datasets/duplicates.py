"""Duplicate images, by their bytes or by their looks, found before a model's time is spent on them.

Looks are compared by a perceptual hash in the manner of pHash (Zauner, "Implementation and Benchmarking of Perceptual
Image Hash Functions", 2010): which of the 16×16 lowest frequencies of a cosine transform stand out. Two images are
alike when few of the bits that either has set differ, so that smooth images, which have few, have to agree more
closely. Copies are found by their bands (Norouzi et al., "Fast Exact Search in Hamming Space with Multi-Index Hashing",
2014): two hashes that differ in fewer bits than there are bands agree on one band entirely.

Measured on 300 pictures of the drawn world, 96 pixels wide: two different ones differ in 53 bits or more; a copy as
JPEG of quality 60 in 11 at most, one of half or twice the size in 25 at most in 19 of 20. The limit is about 22.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from hashlib import sha256
from itertools import pairwise
from typing import Any, Literal, Self

import numpy as np
from PIL import Image

from shared.intake.images import decode
from shared.settings import Settings
from tuwen.annotations import Drop, DropReason
from tuwen.errors import TuwenError
from tuwen.jobs import JobError
from workers.datasets.lookahead import map_ahead
from workers.datasets.sources.images import SourceEntry, SourceImage
from workers.datasets.sources.seen import temporary_database

How = Literal["exact", "perceptual"]

LIMIT = 0.18
"""Share of the bits set in either hash that may differ."""
_STANDS_OUT = 0.1
"""Share of the root mean square of all frequencies; what is weaker is noise in a smooth image."""
_MOST_CANDIDATES = 250
"""Images of one band that another is compared with, the earliest first. Many images agree in a band of plain sky: they
must not crowd out those that agree in a rarer band, nor make each image cost more than the one before."""
_HAVE_BAND = f"SELECT image FROM bands WHERE band = ? ORDER BY image LIMIT {_MOST_CANDIDATES}"  # noqa: S608
_CACHE = 64  # MB: each image puts 12 rows into places of the index that have nothing to do with each other
_SIDE = 64
_FREQUENCIES = 16
_BANDS = 12
_FLATTEST = 1.0
"""Standard deviation in grey levels below which an image shows nothing to recognise it by."""


def _cosines() -> np.ndarray[Any, np.dtype[np.float32]]:
    """Make the transform of `_SIDE` values to the frequencies 1…16; the constant part distinguishes images least."""
    angles = np.outer(np.arange(1, _FREQUENCIES + 1), (np.arange(_SIDE) + 0.5) * np.pi / _SIDE)
    return np.asarray(np.cos(angles), dtype=np.float32)


_COSINES = _cosines()
# Low frequencies first: a band of them survives what blurs or sharpens the high ones.
_ORDER = np.argsort(np.add.outer(np.arange(_FREQUENCIES), np.arange(_FREQUENCIES)), axis=None, kind="stable")


def fingerprint(image: Image.Image) -> bytes | None:
    """Compute 256 bits of an RGB image's looks; None for one of a single colour, which looks like any other such."""
    grey = np.asarray(image.convert("L").resize((_SIDE, _SIDE), Image.Resampling.BOX), dtype=np.float32)
    if float(grey.std()) < _FLATTEST:
        return None
    frequencies = (_COSINES @ grey @ _COSINES.T).ravel()[_ORDER]
    return np.packbits(frequencies > _STANDS_OUT * np.sqrt(np.mean(frequencies**2))).tobytes()


def difference(looks: bytes, other: bytes) -> int | None:
    """Count the bits in which two fingerprints differ; None if there are too many for copies of one image."""
    first, second = int.from_bytes(looks), int.from_bytes(other)
    bits = (first ^ second).bit_count()
    return bits if bits <= LIMIT * (first | second).bit_count() else None


@dataclass(frozen=True, slots=True)
class Examined:
    """An entry of a source and what its file is like."""

    entry: SourceEntry
    sha256: str | None = None
    size: int | None = None
    width: int | None = None
    height: int | None = None
    looks: bytes | None = None
    error: JobError | None = None
    """Why the file cannot be read, or is not an image that can be annotated."""

    @property
    def known(self) -> dict[str, Any]:
        """What is known of the file, as fields of an `Annotation`."""
        fields = {"sha256": self.sha256, "size": self.size, "width": self.width, "height": self.height}
        return {name: value for name, value in fields.items() if value is not None}


def examine(
    entries: Iterable[SourceEntry],
    read: Callable[[SourceImage], bytes],
    settings: Settings,
    *,
    how: How = "perceptual",
    threads: int = 4,
) -> Iterator[Examined]:
    """Yield each entry in its order, after reading its file and, for its looks, decoding it."""
    return map_ahead(lambda entry: _examine_one(entry, read, settings, how), entries, threads=threads)


class Duplicates:
    """The images that came before, on disk as soon as they are many."""

    def __init__(self) -> None:
        self._database = temporary_database(_CACHE)
        self._database.execute("CREATE TABLE images (id INTEGER PRIMARY KEY, name TEXT, looks BLOB)")
        self._database.execute("CREATE TABLE digests (digest BLOB PRIMARY KEY, name TEXT) WITHOUT ROWID")
        self._database.execute(
            "CREATE TABLE bands (band INTEGER, image INTEGER, PRIMARY KEY (band, image)) WITHOUT ROWID"
        )

    def check(self, image: Examined) -> Drop | None:
        """Return why the image need not be annotated: it came before. Otherwise remember it, and return None."""
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
        """Delete the temporary database."""
        self._database.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _like(self, looks: bytes) -> tuple[str, int] | None:
        """The name of the nearest image within the limit, and how far it is."""
        bands = _bands(looks)
        among = " UNION ALL ".join([f"SELECT * FROM ({_HAVE_BAND})"] * len(bands))  # noqa: S608 (question marks)
        candidates = self._database.execute(
            f"SELECT name, looks FROM images WHERE id IN ({among}) ORDER BY id",  # noqa: S608
            bands,
        )
        nearest: tuple[str, int] | None = None
        for name, other in candidates:
            bits = difference(looks, other)
            if bits is not None and (nearest is None or bits < nearest[1]):
                nearest = (name, bits)
        return nearest

    def _remember(self, name: str, looks: bytes) -> None:
        row = self._database.execute("INSERT INTO images (name, looks) VALUES (?, ?)", (name, looks)).lastrowid
        self._database.executemany("INSERT INTO bands VALUES (?, ?)", ((band, row) for band in _bands(looks)))


def _bands(looks: bytes) -> list[int]:
    """Return the 12 parts of a hash, 21 or 22 bits each, with their numbers, but for empty ones."""
    number, bits = int.from_bytes(looks), 8 * len(looks)
    cuts = [bits * band // _BANDS for band in range(_BANDS + 1)]
    values = [(number >> (bits - end)) & ((1 << (end - start)) - 1) for start, end in pairwise(cuts)]
    return [band << 32 | value for band, value in enumerate(values) if value]


def _examine_one(entry: SourceEntry, read: Callable[[SourceImage], bytes], settings: Settings, how: How) -> Examined:
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

"""Sources of images: one entry after the other, in a stable order, never all in memory.

`open_source` recognises what a path or S3 prefix is; `Source.images` lists it; `Reader` reads single images elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Self

from shared.intake.beneath import EVERYWHERE, Roots
from shared.settings import Settings
from tuwen.datasets import SourceFormat
from tuwen.errors import ImageCorrupt, PayloadTooLarge, SourceUnusable
from workers.datasets.sources.columns import clean, plain
from workers.datasets.sources.images import HeldAs, RowProblem, SourceEntry, SourceImage, SourceProblem, require_size
from workers.datasets.sources.reading import Reader
from workers.datasets.sources.recognition import Recognised, recognise
from workers.datasets.sources.seen import Seen

__all__ = ["HeldAs", "Reader", "RowProblem", "Source", "SourceEntry", "SourceImage", "SourceProblem", "open_source"]


class Source:
    """Images from one place. `close` it, or use it in a `with`."""

    def __init__(self, found: Recognised, settings: Settings, roots: Roots) -> None:
        self.format = found.format
        self._uri = found.uri
        self._list: Callable[[], Iterator[SourceEntry]] = found.entries
        self._settings = settings
        self._reader = found.reader
        self._roots = roots

    def images(self) -> Iterator[SourceEntry]:
        """All images, and all rows that cannot be one, in the same order at every call on an unchanged source.

        Raises:
            SourceUnusable: it is empty, or nothing in it can be read.
            StorageUnavailable: the place does not answer.
        """
        entries = 0
        with Seen() as names:
            for entry in self._list():
                entries += 1
                yield self._vet(entry, names)
        if not entries:
            raise SourceUnusable(f"there is no image in {self._uri}", field="source")

    def read(self, image: SourceImage) -> bytes:
        """Read one image, as `Reader.read` does in other processes."""
        return self._reader.read(image)

    def close(self) -> None:
        """Close the source's reader and the folders that it holds open."""
        self._reader.close()
        self._roots.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _vet(self, entry: SourceEntry, names: Seen) -> SourceEntry:
        if isinstance(entry, SourceProblem):
            return SourceProblem(clean(entry.name), entry.code, clean(entry.detail))
        name = clean(entry.name)
        if not names.add(name):
            return SourceProblem(name, RowProblem.DUPLICATE, "an image of this name came before")
        if entry.size is not None:
            try:
                require_size(entry.size, self._settings)
            except (ImageCorrupt, PayloadTooLarge) as error:
                return SourceProblem(name, RowProblem(error.code), str(error))
        if name == entry.name and not entry.captions and not entry.metadata:
            return entry  # as most are: copying costs more than looking
        return replace(entry, name=name, captions=tuple(map(clean, entry.captions)), metadata=plain(entry.metadata))


def open_source(
    uri: str,
    settings: Settings,
    *,
    format: SourceFormat = "auto",  # noqa: A002
    root: str | None = None,
    image_column: str | None = None,
    caption_column: str | None = None,
    encoding: str | None = None,
    roots: Roots = EVERYWHERE,
) -> Source:
    """Open the source that `uri` names: a file or folder of this machine, or `s3://BUCKET/PREFIX`.

    `root` is the folder or `s3://BUCKET/PREFIX` that the paths in a list or COCO file start from and must not leave,
    by default the file's own folder. The columns are those of a table, for tables whose column names are ambiguous.
    `encoding` is that of all texts; without it, it is detected for each file and folder.
    Local files are opened beneath `roots` only; the source closes them with itself.

    Raises:
        SourceUnusable: it does not exist, cannot be read, or its format is unclear; `field` is the
            argument that would make it clear.
        PathForbidden: it leads out of `roots`.
        ConfigurationError: S3 is not configured correctly.
        StorageUnavailable: the place does not answer.
    """
    found = recognise(uri, settings, format, root, image_column, caption_column, encoding, roots)
    return Source(found, settings, roots)

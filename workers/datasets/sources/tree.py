"""A folder tree, the prefix of a bucket, or a zip; with the captions that lie in it.

Where a folder has a metadata.jsonl, .csv or .parquet (Hugging Face's `imagefolder`: a row for each image, named by
`file_name` from there), its rows come first, with their captions, and then the images that no row names. Otherwise an
image's caption is the text file beside it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from tuwen.errors import PathForbidden, SourceUnusable
from workers.datasets.sources.columns import Lookup
from workers.datasets.sources.images import RowProblem, SourceEntry, SourceImage, SourceProblem, is_image_name
from workers.datasets.sources.places import PlacedFile, below, exists
from workers.datasets.sources.rows import read_rows
from workers.datasets.sources.seen import Seen
from workers.datasets.sources.sidecars import CaptionUnusable, Sidecars

_ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.zst", ".7z", ".rar")
TABLES = ("metadata.jsonl", "metadata.csv", "metadata.parquet")


def list_tree(lookup: Lookup) -> Iterator[SourceEntry]:
    """Yield every image below `lookup.place`, in a stable order."""
    place = lookup.place
    with Seen() as folders, Seen() as named, Sidecars(place, lookup.encoding) as sidecars:
        last, tables = None, False
        for found in place.walk():
            if isinstance(found, SourceProblem):
                yield found
                continue
            folder = found.name.rpartition("/")[0]
            if folder != last:
                last = folder
                if place.near:
                    sidecars.enter(folder)
                for ancestor in _ancestors(found.name):
                    if folders.add(ancestor):
                        for entry in _list_tables(lookup, ancestor, named):
                            tables = True
                            yield entry
            if _is_archive(found.name):
                yield SourceProblem(found.name, RowProblem.ARCHIVE, "archives in folders are not opened: name it alone")
            if is_image_name(found.name) and not (tables and found.name in named):
                yield _with_captions(found, sidecars)


def _is_archive(name: str) -> bool:
    return name.lower().endswith(_ARCHIVES)


def has_metadata(lookup: Lookup, folder: str = "") -> bool:
    """Whether `folder` has one of the files in `TABLES`."""
    return any(exists(lookup.place, below(folder, table)) for table in TABLES)


def _list_tables(lookup: Lookup, folder: str, named: Seen) -> Iterator[SourceEntry]:
    """Yield the rows of the tables in `folder`, and remember the names of their images in `named`."""
    for table in (below(folder, name) for name in TABLES):
        try:
            if not exists(lookup.place, table):
                continue
        except PathForbidden as error:
            yield SourceProblem(table, RowProblem.OUTSIDE, str(error))
            continue
        here = replace(lookup, base=folder, table=table, image_column=lookup.image_column or "file_name")
        try:
            for entry in here.entries(read_rows(lookup.place, table, lookup.encoding)):
                if isinstance(entry, SourceImage):
                    named.add(entry.name)
                yield entry
        except SourceUnusable as error:
            raise SourceUnusable(f"{table}: {error}", field=error.field) from error


def _ancestors(path: str) -> Iterator[str]:
    """The folders that a path lies in, the outermost first."""
    yield ""
    start = path.find("/")
    while start >= 0:
        yield path[:start]
        start = path.find("/", start + 1)


def _with_captions(file: PlacedFile, sidecars: Sidecars) -> SourceEntry:
    """The image with the captions beside it; an error where one cannot be read: nobody shall miss it."""
    try:
        return _image(file, sidecars.read(file.name))
    except CaptionUnusable as error:
        return error.problem(file.name)


def _image(file: PlacedFile, captions: tuple[str, ...]) -> SourceImage:
    return SourceImage(
        file.name, file.path, file.held, file.offset, file.length, file.column, file.size, file.version, captions
    )

"""Recognition of a source's format: by the name of the path or S3 prefix, then by its content where that is unclear."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import islice, product
from pathlib import Path

from shared.intake.beneath import Roots, opened
from shared.settings import Settings
from tuwen.datasets import SourceFormat
from tuwen.errors import NotFound, SourceUnusable
from workers.datasets.sources.coco import list_coco
from workers.datasets.sources.columns import Lookup
from workers.datasets.sources.encodings import HEAD, UTF_8, detect_head
from workers.datasets.sources.images import SourceEntry, SourceProblem, is_image_name
from workers.datasets.sources.labelstudio import list_tasks
from workers.datasets.sources.openai import list_requests
from workers.datasets.sources.places import Place, PlacedFile, open_place
from workers.datasets.sources.reading import Reader
from workers.datasets.sources.rows import parse_first_object, read_rows
from workers.datasets.sources.tars import list_tars
from workers.datasets.sources.tree import has_metadata, list_tree
from workers.datasets.sources.zips import Zip

_TABLES = ("txt", "csv", "tsv", "jsonl", "ndjson", "parquet")
_BY_SUFFIX: dict[str, SourceFormat] = {
    "zip": "zip",
    "tar": "webdataset",
    **dict.fromkeys(_TABLES, "list"),
}
_COMPRESSED = (".gz", ".tgz", ".bz2", ".xz", ".zst")
_BRACES = re.compile(r"\{(\d+)\.\.(\d+)\}")
_MOST_TARS = 1_000_000
_ENOUGH = 1000
"""Files by which a folder is judged."""


@dataclass(frozen=True, slots=True)
class Recognised:
    """A source whose format is known: how to list its entries, and how to read their images."""

    uri: str
    format: SourceFormat
    entries: Callable[[], Iterator[SourceEntry]]
    reader: Reader


def recognise(
    uri: str,
    settings: Settings,
    wanted: SourceFormat,
    root: str | None,
    image_column: str | None,
    caption_column: str | None,
    encoding: str | None,
    roots: Roots,
) -> Recognised:
    """Recognise what `uri` names. Raises what `workers.datasets.sources.open_source` raises."""
    uri = normalise(uri)
    if (numbered := _BRACES.search(uri)) is not None:
        return _recognise_tars(uri, numbered.start(), settings, encoding, roots)
    folder, name = _divide(uri, settings, roots)
    if name is None:
        found = _recognise_folder_format(open_place(folder, settings, roots), uri) if wanted == "auto" else wanted
        if found not in ("folder", "imagefolder", "webdataset"):
            raise SourceUnusable(f"{uri} is a folder: give the file that is of the format {found}", field="source")
        place = open_place(folder, settings, roots)
        lookup = Lookup(
            settings, place, folder, image_column=image_column, caption_column=caption_column, encoding=encoding
        )
        reader = Reader(folder, settings, roots=roots)
        if found == "webdataset":
            return Recognised(uri, found, lambda: list_tars(place, _list_tars_in(place), encoding), reader)
        if found == "imagefolder" and not has_metadata(lookup):
            raise SourceUnusable(f"{uri} has no metadata.jsonl, .csv or .parquet: set format to folder", field="format")
        return Recognised(uri, found, lambda: list_tree(lookup), reader)
    if name.lower().endswith(_COMPRESSED):
        raise SourceUnusable(
            f"{name} is compressed as a whole, so no single image can be read: unpack it", field="source"
        )
    home = open_place(folder, settings, roots)
    start = normalise(root) if root is not None else folder
    lookup = Lookup(
        settings,
        open_place(start, settings, roots),
        start,
        table=name,
        image_column=image_column,
        caption_column=caption_column,
        encoding=encoding,
    )
    return _recognise_file(uri, home, name, lookup, wanted, Reader(start, settings, home=folder, roots=roots))


def normalise(uri: str) -> str:
    """Return the URI in the form that paths are compared with: a local path is absolute, nothing ends with a slash."""
    if uri.startswith("s3://"):
        return uri.rstrip("/")
    return str(Path(uri.removeprefix("file://")).absolute())


def _recognise_file(
    uri: str, home: Place, name: str, lookup: Lookup, wanted: SourceFormat, reader: Reader
) -> Recognised:
    found = _recognise_file_format(home, name, lookup.encoding) if wanted == "auto" else wanted
    lists: dict[SourceFormat, Callable[[], Iterator[SourceEntry]]] = {
        "zip": lambda: list_tree(replace(lookup, place=Zip(home, name, lookup.encoding), root="")),
        "webdataset": lambda: list_tars(home, (name,), lookup.encoding),
        "coco": lambda: list_coco(lookup, home),
        "openai": lambda: list_requests(lookup, home),
        "labelstudio": lambda: list_tasks(lookup, home),
        "list": lambda: lookup.entries(read_rows(home, name, lookup.encoding)),
        "imagefolder": lambda: lookup.entries(read_rows(home, name, lookup.encoding)),
    }
    if found not in lists:
        raise SourceUnusable(f"{uri} is a file, not a folder: leave format out", field="format")
    return Recognised(uri, found, lists[found], reader)


def _divide(uri: str, settings: Settings, roots: Roots) -> tuple[str, str | None]:
    """Divide a URI into the place and the file in it; None where it is itself a folder, or a prefix with objects below.

    Raises:
        SourceUnusable: it names nothing that can be read.
    """
    parent, _, name = uri.rpartition("/")
    if not uri.startswith("s3://"):
        try:
            with opened(roots, uri) as found:
                if not stat.S_ISDIR(os.fstat(found).st_mode):
                    return parent or "/", name
                os.scandir(found).close()
                return uri, None
        except (OSError, ValueError) as error:
            reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
            raise SourceUnusable(f"{uri} cannot be read: {reason}", field="source") from error
    if name and parent != "s3:/":
        try:
            open_place(parent, settings, roots).find(name)
        except NotFound:
            pass
        else:
            return parent, name
    try:
        if next(open_place(uri, settings, roots).walk(), None) is None:
            raise SourceUnusable(f"there is nothing at {uri}", field="source")
    except NotFound as error:
        raise SourceUnusable(f"there is no bucket {uri}", field="source") from error
    return uri, None


def _recognise_folder_format(place: Place, uri: str) -> SourceFormat:
    """Recognise webdataset where the folder holds tars and no images; otherwise it is a folder of images."""
    tars = images = False
    for found in islice(place.walk(), _ENOUGH):
        if isinstance(found, PlacedFile):
            tars |= found.name.endswith(".tar")
            images |= is_image_name(found.name)
    if tars and images:
        raise SourceUnusable(f"{uri} holds images and tars: set format to folder or to webdataset", field="format")
    return "webdataset" if tars else "folder"


def _recognise_file_format(home: Place, name: str, encoding: str | None) -> SourceFormat:
    suffix = name.rpartition(".")[2].lower()
    if suffix in ("jsonl", "ndjson"):
        first = parse_first_object(home, name, encoding)
        return "openai" if isinstance(first.get("body"), dict) and "custom_id" in first else "list"
    if suffix == "json":
        with home.open(name) as file:
            head = file.read(HEAD)
        found = detect_head(head, encoding) or UTF_8
        text = head.removeprefix(found.mark).decode(found.name or "ascii", "replace")
        return "labelstudio" if text.lstrip().startswith("[") else "coco"
    if suffix in _BY_SUFFIX:
        return _BY_SUFFIX[suffix]
    if is_image_name(name):
        raise SourceUnusable(f"{name} is one image: `tuwen describe` takes single ones", field="source")
    raise SourceUnusable(f"the name of {name} does not say its format: set format", field="format")


def _list_tars_in(place: Place) -> Iterator[str | SourceProblem]:
    for found in place.walk():
        if isinstance(found, SourceProblem):
            yield found
        elif found.name.endswith(".tar"):
            yield found.path


def _recognise_tars(uri: str, first_brace: int, settings: Settings, encoding: str | None, roots: Roots) -> Recognised:
    folder, _, pattern = uri[:first_brace].rpartition("/")
    pattern += uri[first_brace:]
    if not pattern.endswith(".tar"):
        raise SourceUnusable("braces such as {000..012} number tars: the name must end with .tar", field="source")
    place = open_place(folder, settings, roots)
    reader = Reader(folder, settings, roots=roots)
    return Recognised(uri, "webdataset", lambda: list_tars(place, expand_braces(pattern), encoding), reader)


def expand_braces(pattern: str) -> Iterator[str]:
    """Expand `{08..10}` to 08, 09, 10, as in a shell; several braces count like digits.

    Raises:
        SourceUnusable: there are more than a million, or a range runs backwards.
    """
    literals = _BRACES.split(pattern)[::3]
    ranges = [(first, last) for first, last in _BRACES.findall(pattern)]
    total = 1
    for first, last in ranges:
        total *= int(last) - int(first) + 1
        if not 0 < total <= _MOST_TARS:
            raise SourceUnusable(f"{{{first}..{last}}} names no tars, or more than {_MOST_TARS}", field="source")
    numbers = ([f"{number:0{len(first)}d}" for number in range(int(first), int(last) + 1)] for first, last in ranges)
    for chosen in product(*numbers):
        yield "".join(part for pair in zip(literals, (*chosen, ""), strict=True) for part in pair)

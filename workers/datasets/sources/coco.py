"""COCO's JSON: `images`, and `annotations` that are captions or instances (https://cocodataset.org/#format-data).

The file is read twice as a stream and its annotations lie in a temporary database meanwhile, because they come in any
order and instances_train2017.json alone would take gigabytes of memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import BinaryIO

from tuwen.errors import ConfigurationError, SourceUnusable
from workers.datasets.sources.columns import Columns, Lookup, clean
from workers.datasets.sources.images import SourceEntry
from workers.datasets.sources.places import Place
from workers.datasets.sources.rows import Row
from workers.datasets.sources.seen import temporary_database


def list_coco(lookup: Lookup, home: Place) -> Iterator[SourceEntry]:
    """The entries of `images`, each with its captions and the names of the categories in it.

    Raises:
        SourceUnusable: the file is not COCO's JSON, or is incomplete.
    """
    path = lookup.table
    said = temporary_database()
    said.execute("CREATE TABLE said (image, number INTEGER, caption TEXT, category, PRIMARY KEY (image, number))")
    try:
        with home.open(path) as file:
            names = {_plain(item, "id"): item.get("name") for item in _read_items(file, "categories.item", path)}
        with home.open(path) as file:
            said.executemany(
                "INSERT INTO said VALUES (?, ?, ?, ?)",
                (
                    (_plain(item, "image_id"), number, _plain(item, "caption"), _plain(item, "category_id"))
                    for number, item in enumerate(_read_items(file, "annotations.item", path))
                ),
            )
        with home.open(path) as file:
            for number, image in enumerate(_read_items(file, "images.item", path)):
                key = _plain(image, "id")
                found = said.execute(
                    "SELECT caption, category FROM said WHERE image = ? ORDER BY number", (key,)
                ).fetchall()
                captions = [str(caption) for caption, _ in found if caption]
                categories = list(dict.fromkeys(names[category] for _, category in found if category in names))
                yield lookup.entry(
                    _value(image), _row(image, captions, categories, f"{path}, image {number + 1}"), _COLUMNS
                )
    finally:
        said.close()


_COLUMNS = Columns("file_name", "captions")


def _value(image: Mapping[str, object]) -> object:
    """The file name or the URL. COCO's own files have both; a local file is nearer than Flickr."""
    return image.get("file_name") or image.get("coco_url") or image.get("url")


def _plain(item: Mapping[str, object], field: str) -> str | int | None:
    """A field's value as SQLite can hold it; an id beyond 64 bits becomes text."""
    value = item.get(field)
    if isinstance(value, int) and abs(value) >= 2**63:
        return str(value)
    return clean(value) if isinstance(value, str) else value if isinstance(value, int) else None


def _row(image: Mapping[str, object], captions: list[str], categories: list[object], where: str) -> Row:
    kept = {key: value for key, value in image.items() if key not in ("captions", "custom_id")}
    return Row(kept | {"captions": captions} | ({"categories": categories} if categories else {}), where)


def _read_items(file: BinaryIO, prefix: str, path: str) -> Iterator[dict[str, object]]:
    try:
        import ijson
    except ImportError as error:
        raise ConfigurationError("COCO files need ijson: pip install 'tuwen[datasets]'") from error
    try:
        for item in ijson.items(file, prefix, use_float=True):
            if isinstance(item, dict):
                yield item
    except (ijson.JSONError, UnicodeDecodeError) as error:
        raise SourceUnusable(f"{path!r} is not whole JSON: {error}", field="source") from error

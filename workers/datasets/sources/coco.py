"""COCO's JSON: `images`, and `annotations` that are captions or instances (https://cocodataset.org/#format-data).

The file is read twice as a stream and its annotations lie in a temporary database meanwhile, because they come in any
order and instances_train2017.json alone would take gigabytes of memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import closing

from tuwen.errors import SourceUnusable
from workers.datasets.sources.columns import Columns, Lookup
from workers.datasets.sources.encodings import Encoding, detect_file
from workers.datasets.sources.images import RowProblem, SourceEntry, SourceProblem
from workers.datasets.sources.json_text import JsonText, read_items
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
    said.execute("CREATE TABLE listed (image PRIMARY KEY)")
    with closing(said), home.open(path) as file:
        text = JsonText(file, detect_file(file, lookup.encoding))
        names = _read_names(text, path)
        said.executemany(
            "INSERT INTO said VALUES (?, ?, ?, ?)",
            (
                (_key(item, "image_id"), number, _plain(item.get("caption")), _key(item, "category_id"))
                for number, item in enumerate(read_items(text, "annotations.item", path))
            ),
        )
        for number, image in enumerate(read_items(text, "images.item", path), 1):
            key = _key(image, "id")
            where = f"{path}, image {number}"
            if not said.execute("INSERT OR IGNORE INTO listed VALUES (?)", (key,)).rowcount:
                yield SourceProblem(where, RowProblem.DUPLICATE, f"an image with the id {key!r} came before")
                continue
            found = said.execute(
                "SELECT caption, category FROM said WHERE image = ? ORDER BY number", (key,)
            ).fetchall()
            captions = [str(caption) for caption, _ in found if caption]
            categories = list(dict.fromkeys(names[category] for _, category in found if category in names))
            yield lookup.entry(_value(image), _row(image, captions, categories, where, text.encoding), _COLUMNS)


def _read_names(text: JsonText, path: str) -> dict[object, object]:
    """The names of the categories by their ids. This reads the whole file, and so finds out whether it has NaN."""
    try:
        return {_key(item, "id"): item.get("name") for item in read_items(text, "categories.item", path)}
    except SourceUnusable:
        if text.lenient:
            raise
        text.lenient = True
        return _read_names(text, path)


_COLUMNS = Columns("file_name", "captions")


def _value(image: Mapping[str, object]) -> object:
    """The file name or the URL. COCO's own files have both; a local file is nearer than Flickr."""
    return image.get("file_name") or image.get("coco_url") or image.get("url")


def _key(item: Mapping[str, object], field: str) -> str | int | None:
    """An id as SQLite can compare it. 1, 1.0 and "1" are the same: programs pass ids through floats and text."""
    value = _plain(item.get(field))
    if isinstance(value, str) and value.removeprefix("-").isascii() and value.removeprefix("-").isdigit():
        return _plain(int(value)) if str(int(value)) == value else value
    return value


def _plain(value: object) -> str | int | None:
    """A value as SQLite can hold it; an integer beyond 64 bits becomes text."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, int):
        return value if abs(value) < 2**63 else str(value)
    return value if isinstance(value, str) else None


def _row(
    image: Mapping[str, object], captions: list[str], categories: list[object], where: str, encoding: Encoding
) -> Row:
    kept = {key: value for key, value in image.items() if key not in ("captions", "custom_id")}
    values = kept | {"captions": captions} | ({"categories": categories} if categories else {})
    return Row(values, where, encoding=encoding)

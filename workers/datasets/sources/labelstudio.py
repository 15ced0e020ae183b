"""Label Studio's exports, JSON and JSON-MIN: a task is an image, and what people wrote of it are its captions.

https://labelstud.io/guide/export. Predictions are a model's, and no captions.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any
from urllib.parse import parse_qs, urlsplit

from workers.datasets.sources.columns import CAPTION_COLUMNS, IMAGE_COLUMNS, Columns, Lookup, texts
from workers.datasets.sources.encodings import detect_file
from workers.datasets.sources.images import RowProblem, SourceEntry, SourceProblem, is_image_name
from workers.datasets.sources.json_text import JsonText, read_items
from workers.datasets.sources.places import Place
from workers.datasets.sources.rows import Row

_COLUMNS = Columns("image", "captions")
_UPLOADED = re.compile(r"/data/(upload/\d+/(?:[0-9a-f]{8}-)?([^/]+))$")
_OWN = frozenset(("id", "annotator", "annotation_id", "created_at", "updated_at", "lead_time"))
"""Fields that JSON-MIN adds to the data of a task."""


def list_tasks(lookup: Lookup, home: Place) -> Iterator[SourceEntry]:
    """Yield the image of each task.

    Raises:
        SourceUnusable: the file is no whole JSON.
    """
    path = lookup.table
    with home.open(path) as file:
        text = JsonText(file, detect_file(file, lookup.encoding))
        for number, task in enumerate(read_items(text, "item", path), 1):
            yield _entry(lookup, task, Row({}, f"{path}, task {number}", encoding=text.encoding))


def _entry(lookup: Lookup, task: Mapping[str, Any], row: Row) -> SourceEntry:
    whole = isinstance(task.get("data"), dict)
    data: Mapping[str, Any] = task["data"] if whole else task
    field = lookup.image_column or _find_image_field(data)
    if field is None:
        return SourceProblem(row.where, RowProblem.INVALID, "the task names no image: set image_column")
    captions = _written(task) if whole else _fields_of_text(data, field)
    kept = {key: value for key, value in data.items() if key != field and (whole or key not in _OWN | captions.keys())}
    said = [text for found in captions.values() for text in found]
    asked = replace(row, values=kept | {"captions": said})
    problem: SourceEntry | None = None
    for address in _addresses(data.get(field)):
        entry = lookup.entry(address, asked, _COLUMNS)
        if not isinstance(entry, SourceProblem):
            return entry
        problem = problem or entry
    return problem or SourceProblem(row.where, RowProblem.INVALID, "the task names no image")


def _find_image_field(data: Mapping[str, Any]) -> str | None:
    """The field of a task that is an image: by its usual names, or the only one whose value looks like one."""
    named = [name for name in data if name.lower() in IMAGE_COLUMNS]
    looking = [name for name, value in data.items() if isinstance(value, str) and is_image_name(value)]
    return named[0] if len(named) == 1 else looking[0] if len(looking) == 1 else None


def _addresses(value: object) -> Iterator[str]:
    """What the address of an image may mean here: Label Studio's own paths name a file below its folder of files."""
    if not isinstance(value, str):
        return
    parts = urlsplit(value)
    if not parts.scheme and parts.path == "/data/local-files/":
        yield from parse_qs(parts.query).get("d", ())
    elif (uploaded := _UPLOADED.search(value)) is not None:
        yield uploaded[1]  # as it lies in Label Studio's media folder
        yield uploaded[1].rpartition("/")[2]
        yield uploaded[2]  # as it was called before it was uploaded
    else:
        yield value


def _written(task: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    """The texts that people wrote, by the name of the field; annotations that were skipped have none."""
    found: dict[str, tuple[str, ...]] = {}
    for annotation in task.get("annotations") or task.get("completions") or ():
        if not isinstance(annotation, dict) or annotation.get("was_cancelled"):
            continue
        for result in annotation.get("result") or ():
            if isinstance(result, dict) and result.get("type") == "textarea":
                name = str(result.get("from_name"))
                said = texts((result.get("value") or {}).get("text"))
                found[name] = tuple(dict.fromkeys(found.get(name, ()) + said))
    return found


def _fields_of_text(data: Mapping[str, Any], image: str) -> dict[str, tuple[str, ...]]:
    """The texts of JSON-MIN, where each field of the form is one of the task: those whose names are usual for captions,
    or all of `{"text": …}`."""
    found = {}
    for name, value in data.items():
        said = value.get("text") if isinstance(value, dict) else value
        if name != image and (isinstance(value, dict) or name.lower() in CAPTION_COLUMNS) and (kept := texts(said)):
            found[name] = kept
    return found

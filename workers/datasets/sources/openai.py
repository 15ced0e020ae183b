"""Requests as the OpenAI Batch API takes them: a line of JSON each, with a `custom_id`.

The first image of a request is the one to annotate; its text goes along as `metadata["prompt"]`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from workers.datasets.sources.columns import Columns, Lookup, safe_name
from workers.datasets.sources.images import RowProblem, SourceEntry, SourceImage, SourceProblem
from workers.datasets.sources.places import Place
from workers.datasets.sources.rows import Row, read_rows

_COLUMNS = Columns("body", None)


def list_requests(lookup: Lookup, home: Place) -> Iterator[SourceEntry]:
    """Yield the image of each request, named by its `custom_id`."""
    for row in read_rows(home, lookup.table, lookup.encoding):
        yield row if isinstance(row, SourceProblem) else _entry(lookup, row)


def _entry(lookup: Lookup, row: Row) -> SourceEntry:
    custom_id, body = row.values.get("custom_id"), row.values.get("body")
    if not isinstance(custom_id, str) or not custom_id:
        return SourceProblem(row.where, RowProblem.INVALID, "the request has no custom_id")
    parts = list(_parts(body)) if isinstance(body, dict) else []
    address = next((address for part in parts if (address := _image_url(part))), None)
    if address is None:
        return SourceProblem(f"{custom_id} ({row.where})", RowProblem.INVALID, "the request has no image")
    prompt = "\n".join(part["text"] for part in parts if isinstance(part.get("text"), str))
    asked = Row(
        {"custom_id": custom_id} | ({"prompt": prompt} if prompt else {}),
        row.where,
        row.offset,
        row.length,
        row.encoding,
    )
    entry = lookup.entry(address, asked, _COLUMNS)
    return replace(entry, name=safe_name(custom_id)) if isinstance(entry, SourceImage) else entry


def _parts(body: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The content parts of all messages, of chat/completions (`messages`) or responses (`input`)."""
    messages = body.get("messages") or body.get("input")
    for message in messages if isinstance(messages, list) else ():
        content = message.get("content") if isinstance(message, dict) else None
        if isinstance(content, str):
            yield {"text": content}
        for part in content if isinstance(content, list) else ():
            if isinstance(part, dict):
                yield part


def _image_url(part: dict[str, Any]) -> str | None:
    """`{"image_url": {"url": …}}` in chat/completions, `{"image_url": …}` in responses."""
    value = part.get("image_url")
    address = value.get("url") if isinstance(value, dict) else value
    return address if isinstance(address, str) and address else None

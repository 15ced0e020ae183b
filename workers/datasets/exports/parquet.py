"""Parquet with the images in it, as `datasets` writes them: it shows an image where the column `image` is.

https://huggingface.co/docs/hub/datasets-image#parquet-format
"""

from __future__ import annotations

import json
from datetime import datetime
from typing import TYPE_CHECKING, Any, BinaryIO

from pydantic import TypeAdapter

from shared.intake.held_folder import HeldFolder
from tuwen.annotations import Annotation, Caption, Provenance, Review
from tuwen.errors import ConfigurationError
from workers.datasets.exports.splits import REST, find_split, write_card
from workers.datasets.exports.words import Words, flat
from workers.datasets.exports.writers import Exported

if TYPE_CHECKING:
    import pyarrow as pa
    from pyarrow import parquet

_LARGEST_GROUP = 64 * 2**20
"""Most bytes of images in a row group, which a reader holds at once."""
_MOST_ROWS = 1000
_LARGEST_FILE = 512 * 2**20
_NO_SPLIT = "part"


class Parquet:
    """Writes Parquet files into the subfolder data of a folder, for each split of the source apart."""

    wants_images = True

    def __init__(self, folder: HeldFolder) -> None:
        try:
            from pyarrow import parquet
        except ImportError as error:
            raise ConfigurationError("Parquet needs pyarrow: pip install 'tuwen[datasets]'") from error
        self._parquet = parquet
        self._schema = _schema()
        self._folder = folder
        self._splits: dict[str, _Files] = {}

    def write(self, exported: Exported) -> None:
        """Add an image and its columns to the row group of its split."""
        found = find_split(exported.annotation.name)
        self._split(found[0] if found is not None else _NO_SPLIT).add(exported)

    def close(self) -> None:
        """Write the last row groups and finish the files."""
        if not self._splits:
            self._split(_NO_SPLIT)
        for files in self._splits.values():
            files.close()
        if set(self._splits) != {_NO_SPLIT}:
            names = {split: REST if split == _NO_SPLIT else split for split in sorted(self._splits)}
            write_card(self._folder, {name: [f"data/{split}-*.parquet"] for split, name in names.items()})

    def _split(self, split: str) -> _Files:
        if split not in self._splits:
            self._splits[split] = _Files(self._parquet.ParquetWriter, self._schema, self._folder, split)
        return self._splits[split]


class _Files:
    """The files of one split, of which the last one is being written."""

    def __init__(
        self, open_writer: type[parquet.ParquetWriter], schema: pa.Schema, folder: HeldFolder, split: str
    ) -> None:
        self._open_writer = open_writer
        self._schema = schema
        self._folder = folder
        self._split = split
        self._rows: list[dict[str, Any]] = []
        self._group = self._file = self._files = 0
        self._writer: parquet.ParquetWriter | None = None
        self._opened: BinaryIO | None = None

    def add(self, exported: Exported) -> None:
        """Add an image and its columns to the current row group."""
        self._rows.append(_row(exported))
        self._group += len(exported.data)
        if self._group >= _LARGEST_GROUP or len(self._rows) >= _MOST_ROWS:
            self._flush()

    def close(self) -> None:
        """Write the last row group and finish the file."""
        if self._rows or self._writer is None:
            self._flush()
        self._close_file()

    def _close_file(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None
        if self._opened is not None:
            self._opened.close()
            self._opened = None

    def _flush(self) -> None:
        import pyarrow as pa

        if self._writer is not None and self._file >= _LARGEST_FILE:
            self._close_file()
        if self._writer is None:
            # In a folder of their own, which can be opened as one table.
            self._opened = self._folder.create(f"data/{self._split}-{self._files:05d}.parquet")
            self._writer = self._open_writer(self._opened, self._schema, compression="zstd")
            self._files, self._file = self._files + 1, 0
        self._writer.write_table(pa.Table.from_pylist(self._rows, schema=self._schema))
        self._file += self._group
        self._group = 0
        self._rows.clear()


def _schema() -> pa.Schema:
    import pyarrow as pa

    text, number, score, time = pa.string(), pa.int64(), pa.float64(), pa.timestamp("us", tz="UTC")
    made = {"model": text, "revision": text, "parameters": text, "software": text, "worker": text, "created_at": time}
    words = {"text": text, "language": text, "style": text, "confidence": score, "score": score}
    caption = pa.struct({**words, "out_of_domain": pa.bool_(), "chosen": pa.bool_(), **made})
    columns = {
        "image": pa.struct({"bytes": pa.binary(), "path": text}),
        "number": number,
        "name": text,
        **words,
        "author": text,
        **made,
        "sha256": text,
        "size": number,
        "width": number,
        "height": number,
        "custom_id": text,
        "captions": pa.list_(caption),
        "existing": pa.list_(text),
        "existing_score": score,
        "recognition": text,
        "reviews": text,
        "metadata": text,
    }
    # `datasets` cannot tell from the types that the bytes are an image.
    features = {name: _feature(kind) for name, kind in columns.items()} | {"image": {"_type": "Image"}}
    return pa.schema(columns, metadata={"huggingface": json.dumps({"info": {"features": features}})})


def _feature(kind: pa.DataType) -> object:
    """The type of a column in the words of `datasets`."""
    import pyarrow as pa

    if pa.types.is_struct(kind):
        return {field.name: _feature(field.type) for field in kind}
    if pa.types.is_list(kind):
        return {"_type": "List", "feature": _feature(kind.value_type)}
    names = {"double": "float64"}
    return {"_type": "Value", "dtype": names.get(str(kind), str(kind))}


def _row(exported: Exported) -> dict[str, Any]:
    known, words = exported.annotation, exported.words
    captions = [_caption(caption, words) for caption in (*known.captions, *known.others)]
    said = flat(known, words)
    made = {"created_at": words.provenance.created_at if words.provenance else None}
    return {
        "image": {"bytes": exported.data, "path": known.name},
        "number": exported.number,
        "name": known.name,
        **said,
        **made,
        **{name: getattr(known, name) for name in _KNOWN},
        "captions": captions,
        "existing": list(known.existing),
        **_as_json(known),
    }


_KNOWN = ("sha256", "size", "width", "height", "custom_id", "existing_score")


_REVIEWS = TypeAdapter(tuple[Review, ...])


def _as_json(known: Annotation) -> dict[str, str | None]:
    return {
        "recognition": known.recognition.model_dump_json(exclude_none=True) if known.recognition else None,
        "reviews": _REVIEWS.dump_json(known.reviews, exclude_none=True).decode() if known.reviews else None,
        "metadata": json.dumps(known.metadata, ensure_ascii=False) if known.metadata else None,
    }


def _caption(caption: Caption, words: Words) -> dict[str, Any]:
    said = {
        name: getattr(caption, name) for name in ("text", "language", "style", "confidence", "score", "out_of_domain")
    }
    return {**said, "chosen": caption is words.caption, **_provenance(caption.provenance)}


def _provenance(provenance: Provenance) -> dict[str, str | datetime]:
    fields = {name: getattr(provenance, name) for name in ("model", "revision", "software", "worker", "created_at")}
    return {**fields, "parameters": json.dumps(provenance.parameters, ensure_ascii=False)}

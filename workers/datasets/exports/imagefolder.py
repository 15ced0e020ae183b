"""Hugging Face's `imagefolder`: the images under their names, and metadata.jsonl with a row for each, for each split.

https://huggingface.co/docs/datasets/image_dataset
"""

from __future__ import annotations

import json
from collections import OrderedDict

from shared.intake.held_folder import HeldFolder
from workers.datasets.exports.files import Lines, file_name
from workers.datasets.exports.splits import REST, find_split, write_card
from workers.datasets.exports.words import flat, record
from workers.datasets.exports.writers import Exported, NameTaken

_OPEN = 32


class ImageFolder:
    """Writes images into a folder, and a metadata.jsonl for each folder of a split and for what is in none."""

    wants_images = True

    def __init__(self, folder: HeldFolder) -> None:
        self._folder = folder
        self._tables: OrderedDict[str, Lines] = OrderedDict()
        self._begun: set[str] = set()
        self._splits: dict[str, set[str]] = {}
        self._outside: set[str] = set()

    def write(self, exported: Exported) -> None:
        """Write an image and its row. Raises `NameTaken`."""
        name = file_name(exported.annotation.name, exported.format)
        write_image(self._folder, name, exported.data)
        found = find_split(name)
        if found is None:
            base = ""
            self._outside.add(name.partition("/")[0] + "/**" if "/" in name else f"*.{name.rpartition('.')[2]}")
        else:
            split, base = found
            self._splits.setdefault(split, set()).add(f"{base}/**")
        whole = record(exported.number, exported.annotation, exported.words)
        # The record is one string: readers take the columns from the first rows, and what differs there fails later.
        row = {"file_name": name.removeprefix(f"{base}/"), **flat(exported.annotation, exported.words)}
        self._table(base).write(row | {"annotation": json.dumps(whole, ensure_ascii=False)})

    def close(self) -> None:
        if not self._splits:
            self._table("")
            files = {"train": {"**"}}
        else:
            files = self._splits | ({REST: self._outside | {"metadata.jsonl"}} if self._outside else {})
        write_card(self._folder, {split: sorted(patterns) for split, patterns in files.items()})
        for table in self._tables.values():
            table.close()

    def _table(self, base: str) -> Lines:
        """The table of a folder. Few are open at once, and one that was closed is continued."""
        if base not in self._tables:
            begun = base in self._begun
            self._begun.add(base)
            table = f"{base}/metadata.jsonl" if base else "metadata.jsonl"
            self._tables[base] = Lines(self._folder, table, always=not begun, continued=begun)
            if len(self._tables) > _OPEN:
                self._tables.popitem(last=False)[1].close()
        self._tables.move_to_end(base)
        return self._tables[base]


def write_image(folder: HeldFolder, name: str, data: bytes) -> None:
    """Write an image under its name, unless another has it, as a file or as a folder.

    Raises:
        NameTaken
    """
    try:
        folder.write(name, data)
    except (FileExistsError, NotADirectoryError, IsADirectoryError) as error:
        raise NameTaken(f"another image is in the way of {name!r}") from error

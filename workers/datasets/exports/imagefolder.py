"""Hugging Face's `imagefolder`: the images under their names, and metadata.jsonl with a row for each.

https://huggingface.co/docs/datasets/image_dataset
"""

from __future__ import annotations

import json

from shared.intake.held_folder import HeldFolder
from workers.datasets.exports.files import Lines, file_name
from workers.datasets.exports.words import flat, record
from workers.datasets.exports.writers import Exported, NameTaken


class ImageFolder:
    """Writes images and metadata.jsonl into a folder."""

    wants_images = True

    def __init__(self, folder: HeldFolder) -> None:
        self._folder = folder
        self._lines = Lines(folder, "metadata.jsonl", always=True)

    def write(self, exported: Exported) -> None:
        """Write an image and its row. Raises `NameTaken`."""
        name = file_name(exported.annotation.name, exported.format)
        write_image(self._folder, name, exported.data)
        whole = record(exported.number, exported.annotation, exported.words)
        # The record is one string: readers take the columns from the first rows, and what differs there fails later.
        row = {"file_name": name, **flat(exported.annotation, exported.words)}
        self._lines.write(row | {"annotation": json.dumps(whole, ensure_ascii=False)})

    def close(self) -> None:
        self._lines.close()


def write_image(folder: HeldFolder, name: str, data: bytes) -> None:
    """Write an image under its name, unless another has it, as a file or as a folder.

    Raises:
        NameTaken
    """
    try:
        folder.write(name, data)
    except (FileExistsError, NotADirectoryError, IsADirectoryError) as error:
        raise NameTaken(f"another image is in the way of {name!r}") from error

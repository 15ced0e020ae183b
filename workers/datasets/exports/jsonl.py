"""annotations.jsonl: the whole record of each image, a line each."""

from __future__ import annotations

from shared.intake.held_folder import HeldFolder
from workers.datasets.exports.files import Lines
from workers.datasets.exports.words import record
from workers.datasets.exports.writers import Exported


class JsonLines:
    """Writes annotations.jsonl into a folder."""

    wants_images = False

    def __init__(self, folder: HeldFolder) -> None:
        self._lines = Lines(folder, "annotations.jsonl", always=True)

    def write(self, exported: Exported) -> None:
        """Write the record of one image."""
        self._lines.write(record(exported.number, exported.annotation, exported.words))

    def close(self) -> None:
        self._lines.close()

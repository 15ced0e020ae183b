"""Captions as kohya's sd-scripts read them: `<name>.txt` beside each image.

A sidecar holds nothing but the words, so annotations.jsonl beside them says where they come from.
"""

from __future__ import annotations

from shared.intake.beneath import Roots
from shared.intake.held_folder import HeldFolder
from workers.datasets.exports.files import file_name
from workers.datasets.exports.imagefolder import write_image
from workers.datasets.exports.jsonl import JsonLines
from workers.datasets.exports.writers import Exported, NameTaken
from workers.datasets.sources.seen import Seen


class Sidecars:
    """Images and sidecars in a folder of their own."""

    wants_images = True

    def __init__(self, folder: HeldFolder) -> None:
        self._folder = folder
        self._records = JsonLines(folder)

    def write(self, exported: Exported) -> None:
        """Write an image, its sidecar and its record. Raises `NameTaken`."""
        name = file_name(exported.annotation.name, exported.format)
        if self._folder.find(sidecar_name(name)) is not None:
            raise NameTaken(f"{sidecar_name(name)!r} is the caption of another image")
        write_image(self._folder, name, exported.data)
        self._folder.write(sidecar_name(name), one_line(exported.words.text).encode())
        self._records.write(exported)

    def close(self) -> None:
        self._records.close()


class SidecarsInPlace:
    """Sidecars beside the images of the source itself, each written whole; the records go to `folder`.

    A sidecar is written beneath the roots, however the folders around it are linked; one that is itself a link is
    replaced, and what it leads to is not touched.
    """

    wants_images = False

    def __init__(self, folder: HeldFolder, source: str, roots: Roots, *, overwrite: bool) -> None:
        self._source = source
        self._roots = roots
        self._overwrite = overwrite
        self._records = JsonLines(folder)
        self._written = Seen()

    def write(self, exported: Exported) -> None:
        """Write the sidecar, unless there is one that may not be replaced, and the record.

        Raises:
            NameTaken
            PathForbidden: its folder is a link that leads out of the roots.
        """
        name = sidecar_name(exported.annotation.name)
        if not self._written.add(name):
            raise NameTaken(f"{name!r} is the caption of another image")
        folder, _, sidecar = f"{self._source}/{name}".rpartition("/")
        with self._roots.folder(folder) as beside:
            if self._overwrite or beside.find(sidecar) is None:
                beside.replace(sidecar, one_line(exported.words.text).encode(), temporary=f".{sidecar}.tuwen")
        self._records.write(exported)

    def close(self) -> None:
        self._records.close()
        self._written.close()


def sidecar_name(name: str) -> str:
    """The name of an image's sidecar: its own with the suffix .txt."""
    return f"{name.rpartition('.')[0] or name}.txt"


def one_line(text: str) -> str:
    """Join the lines of a text, because sd-scripts read only the first line by default."""
    return " ".join(text.split())

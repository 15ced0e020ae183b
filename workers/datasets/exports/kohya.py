"""Captions as kohya's sd-scripts read them: `<name>.txt` beside each image.

A sidecar holds nothing but the words, so annotations.jsonl beside them says where they come from. dataset.toml is what
sd-scripts are given as `--dataset_config`.
"""

from __future__ import annotations

import errno
import json
from hashlib import sha256

from shared.intake.beneath import Roots
from shared.intake.held_folder import HeldFolder
from workers.datasets.exports.files import file_name
from workers.datasets.exports.imagefolder import write_image
from workers.datasets.exports.jsonl import JsonLines
from workers.datasets.exports.words import Words
from workers.datasets.exports.writers import Exported, NameTaken, NotWritten
from workers.datasets.sources.own_words import RECORDS, WRITTEN, OwnWords, one_line, sidecar_name
from workers.datasets.sources.seen import Seen
from workers.datasets.sources.sidecars import LONGEST

_CONFIG = "dataset.toml"
_ITS_OWN = (errno.ENAMETOOLONG, errno.EINVAL, errno.EILSEQ, errno.EACCES, errno.EPERM, errno.EISDIR, errno.ENOTDIR)
"""Errors that are those of one file, and not of the disk."""


class Sidecars:
    """Images and sidecars in a folder of their own."""

    wants_images = True

    def __init__(self, folder: HeldFolder, target: str) -> None:
        """`target` is where the folder will be."""
        self._folder = folder
        self._records = JsonLines(folder)
        self._places = _Places(folder, target)

    def write(self, exported: Exported) -> None:
        """Write an image, its sidecar and its record. Raises `NameTaken`."""
        name = file_name(exported.annotation.name, exported.format)
        if self._folder.find(sidecar_name(name)) is not None:
            raise NameTaken(f"{sidecar_name(name)!r} is the caption of another image")
        write_image(self._folder, name, exported.data)
        self._folder.write(sidecar_name(name), one_line(exported.words.text).encode())
        self._places.add(name)
        self._records.write(exported)

    def close(self) -> None:
        self._records.close()
        self._places.close()


class SidecarsInPlace:
    """Sidecars beside the images of the source itself, each written whole; the records go to `folder`.

    A sidecar is written beneath the roots, however the folders around it are linked; one that is itself a link is
    replaced, and what it leads to is not touched. Of those that are there already, only a model's are replaced, unless
    `overwrite` is set.
    """

    wants_images = False

    def __init__(self, folder: HeldFolder, source: str, roots: Roots, *, overwrite: bool) -> None:
        self._source = source
        self._roots = roots
        self._overwrite = overwrite
        self._written = Seen()
        self._own = OwnWords()
        for name, add in ((WRITTEN, self._own.add_noted), (RECORDS, self._own.add_recorded)):
            with folder.append(name) as lines:
                lines.seek(0)
                add(lines)
        folder.remove(RECORDS)
        self._notes = folder.append(WRITTEN)
        self._places = _Places(folder, source)
        self._records = JsonLines(folder)

    def write(self, exported: Exported) -> None:
        """Write the sidecar, unless there is one that may not be replaced, and the record.

        Raises:
            NotWritten: another image has it, somebody else wrote it, or the file system does not take its name.
            PathForbidden: its folder is a link that leads out of the roots.
        """
        name = sidecar_name(exported.annotation.name)
        if not self._written.add(name):
            raise NameTaken(f"{name!r} is the caption of another image")
        folder, _, sidecar = f"{self._source}/{name}".rpartition("/")
        try:
            with self._roots.folder(folder) as beside:
                self._write(beside, sidecar, name, exported.words)
        except OSError as error:
            if error.errno not in _ITS_OWN:
                raise
            raise NotWritten("caption_not_written", f"{name!r} cannot be written: {error.strerror}") from error
        self._places.add(name)
        self._records.write(exported)

    def _write(self, beside: HeldFolder, sidecar: str, name: str, words: Words) -> None:
        text = one_line(words.text).encode()
        if not self._overwrite and beside.find(sidecar) is not None:
            there = beside.read(sidecar, LONGEST + 1)
            if there is None or not self._own.has(name, there):
                if words.author != "source":
                    raise NotWritten("caption_kept", f"{name!r} was written by somebody, and is not replaced")
                return
        if words.author == "model" and (note := self._own.note(name, text)) is not None:
            self._notes.write(note)
            self._notes.flush()  # before the sidecar: a model's words without a note would be the author's
        beside.replace(sidecar, text, temporary=f".tuwen-{sha256(sidecar.encode()).hexdigest()[:16]}")

    def close(self) -> None:
        self._records.close()
        self._places.close()
        self._notes.close()
        self._written.close()
        self._own.close()


class _Places:
    """The folders that hold images, for dataset.toml: sd-scripts look into the folders it names, and not below them.

    https://github.com/kohya-ss/sd-scripts/blob/main/docs/config_README-en.md
    """

    def __init__(self, folder: HeldFolder, target: str) -> None:
        self._folder = folder
        self._target = target
        self._found: dict[str, None] = {}

    def add(self, name: str) -> None:
        self._found[name.rpartition("/")[0]] = None

    def close(self) -> None:
        lines = ["[general]", 'caption_extension = ".txt"', "", "[[datasets]]"]
        for place in self._found:
            path = "/".join(part for part in (self._target, place) if part)
            lines += ["", "  [[datasets.subsets]]", f"  image_dir = {json.dumps(path)}", "  num_repeats = 1"]
        self._folder.replace(_CONFIG, "\n".join([*lines, ""]).encode(), temporary=f".{_CONFIG}")

"""webdataset: tars of samples, each an image, its .txt and its .json under one key, the image's number.

All images have the suffix of the first one, also where they are of several formats.

https://github.com/webdataset/webdataset
"""

from __future__ import annotations

import io
import tarfile
from typing import BinaryIO

from shared.intake.held_folder import HeldFolder
from workers.datasets.exports.files import suffix_of, to_line
from workers.datasets.exports.words import record
from workers.datasets.exports.writers import Exported

_LARGEST = 256 * 2**20
"""Bytes after which the next tar begins: large enough to stream well, small enough to shuffle."""
_MOST = 10_000


class WebDataset:
    """Writes numbered tars into a folder."""

    wants_images = True

    def __init__(self, folder: HeldFolder) -> None:
        self._folder = folder
        self._tar: tarfile.TarFile | None = None
        self._file: BinaryIO | None = None
        self._tars = 0
        self._samples = 0
        self._suffix = ""

    def write(self, exported: Exported) -> None:
        """Write a sample: the image, its text and its record."""
        tar = self._open_tar_with_room()
        key = f"{exported.number:09d}"
        whole = record(exported.number, exported.annotation, exported.words)
        # Readers take the kinds of files of all samples from the first one, and the format from the bytes themselves.
        self._suffix = self._suffix or suffix_of(exported.format)
        _add(tar, f"{key}.{self._suffix}", exported.data)
        _add(tar, f"{key}.txt", exported.words.text.encode())
        _add(tar, f"{key}.json", to_line(whole).encode())
        self._samples += 1

    def close(self) -> None:
        if self._tar is not None:
            self._tar.close()
        if self._file is not None:
            self._file.close()

    def _open_tar_with_room(self) -> tarfile.TarFile:
        if self._tar is not None and self._tar.offset < _LARGEST and self._samples < _MOST:
            self._tar.members.clear()  # type: ignore[attr-defined]  # tarfile remembers every one
            return self._tar
        self.close()
        self._file = self._folder.create(f"{self._tars:06d}.tar")
        self._tar = tarfile.open(fileobj=self._file, mode="w", format=tarfile.USTAR_FORMAT)  # noqa: SIM115
        self._tars += 1
        self._samples = 0
        return self._tar


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    member.mode = 0o644
    tar.addfile(member, io.BytesIO(data))

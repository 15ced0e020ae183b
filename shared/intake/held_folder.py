"""A folder held open: what is done in it stays in it, whatever its name, or a name around it, comes to mean meanwhile.

Names are relative to the folder, with / between their parts. No part of them is followed where it is a link.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import BinaryIO, Self

DIRECTORY = os.O_RDONLY | os.O_DIRECTORY
"""Flags to open a folder."""
_APPENDED = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW
_NEW = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW


class HeldFolder:
    """A folder by its descriptor. `close` it, or use it in a `with`; methods raise OSError."""

    def __init__(self, fd: int, path: str):
        """Take over the descriptor of the folder; `path` is for messages only."""
        self.fd = fd
        self.path = path

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Give the descriptor back."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def enter(self, name: str, *, make: bool = False, mode: int = 0o777) -> HeldFolder:
        """Hold the folder `name` in this one open; with `make`, after making it if it is missing."""
        if make:
            with suppress(FileExistsError):
                os.mkdir(name, mode, dir_fd=self.fd)
        return HeldFolder(os.open(name, DIRECTORY | os.O_NOFOLLOW, dir_fd=self.fd), f"{self.path}/{name}")

    def find(self, name: str) -> os.stat_result | None:
        """What `name` is, a link for itself; None where there is nothing."""
        try:
            with self._parent(name) as (at, last):
                return os.stat(last, dir_fd=at, follow_symlinks=False)
        except (FileNotFoundError, NotADirectoryError):
            return None

    def names(self) -> Iterator[str]:
        """The names in this folder."""
        with os.scandir(self.fd) as entries:
            for entry in entries:
                yield entry.name

    def create(self, name: str) -> BinaryIO:
        """Create a file to write and to read again, in folders that are made if they are missing.

        Raises:
            FileExistsError, NotADirectoryError, IsADirectoryError: something has this name, or is in its way.
        """
        with self._parent(name, make=True) as (at, last):
            return os.fdopen(os.open(last, _NEW, 0o666, dir_fd=at), "w+b")

    def append(self, name: str) -> BinaryIO:
        """Open a file to read it and to write at its end; it is made if it is missing."""
        with self._parent(name, make=True) as (at, last):
            return os.fdopen(os.open(last, _APPENDED, 0o666, dir_fd=at), "a+b")

    def write(self, name: str, content: bytes) -> None:
        """Create a file with this content. Raises what `create` raises."""
        with (
            self._parent(name, make=True) as (at, last),
            os.fdopen(os.open(last, _NEW, 0o666, dir_fd=at), "wb") as file,
        ):
            file.write(content)

    def read(self, name: str, most: int = 2**20) -> bytes | None:
        """The first bytes of a regular file; None where there is none."""
        try:
            with self._parent(name) as (at, last):
                opened = os.open(last, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW, dir_fd=at)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            if error.errno == errno.ELOOP:
                return None
            raise
        with os.fdopen(opened, "rb") as file:
            return file.read(most) if stat.S_ISREG(os.fstat(opened).st_mode) else None

    def replace(self, name: str, content: bytes, *, temporary: str) -> None:
        """Write a file whole: what has its name, a link too, is replaced at once by `temporary` beside it."""
        with self._parent(name, make=True) as (at, last):
            with suppress(FileNotFoundError):
                os.unlink(temporary, dir_fd=at)
            with os.fdopen(os.open(temporary, _NEW, 0o666, dir_fd=at), "wb") as file:
                file.write(content)
            os.rename(temporary, last, src_dir_fd=at, dst_dir_fd=at)

    def rename(self, old: str, new: str) -> None:
        """Rename something in this folder."""
        os.rename(old, new, src_dir_fd=self.fd, dst_dir_fd=self.fd)

    def remove(self, name: str) -> None:
        """Remove what has this name, with all that is in it; a link alone. Failures are left for the next time."""
        with suppress(FileNotFoundError, NotADirectoryError):
            found = os.stat(name, dir_fd=self.fd, follow_symlinks=False)
            if stat.S_ISDIR(found.st_mode):
                shutil.rmtree(name, ignore_errors=True, dir_fd=self.fd)
            else:
                os.unlink(name, dir_fd=self.fd)

    @contextmanager
    def _parent(self, name: str, *, make: bool = False) -> Iterator[tuple[int, str]]:
        """The descriptor of the folder that `name` lies in, and its last part."""
        *folders, last = name.split("/")
        if not last or {"", ".", ".."} & {*folders, last}:
            raise OSError(errno.EINVAL, "not a name in a folder", name)
        here = self
        try:
            for folder in folders:
                inner = here.enter(folder, make=make)
                if here is not self:
                    here.close()
                here = inner
            yield here.fd, last
        finally:
            if here is not self:
                here.close()

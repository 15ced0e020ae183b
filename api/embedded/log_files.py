"""Logs of child processes: what they write goes through a pipe into a file that is rotated between two lines.

A child that wrote to the file itself would have to be told when it is rotated, and would lose what it wrote meanwhile.
Here it writes into a pipe, and a thread of this process into the file: `NAME.log`, and `NAME.log.1` before it.
"""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import ClassVar

LIMIT = 10 * 2**20
"""Bytes after which a file is rotated; there are two of each."""
_CHUNK = 2**16


class LogFile:
    """A log that any number of processes write, one after the other or at once. Thread-safe."""

    _open: ClassVar[dict[Path, LogFile]] = {}
    _opening: ClassVar[threading.Lock] = threading.Lock()

    def __init__(self, path: Path, limit: int = LIMIT):
        self.path = path
        self._limit = limit
        self._lock = threading.Lock()
        self._readers: list[threading.Thread] = []
        self._unwritten = 0

    @classmethod
    def at(cls, path: Path) -> LogFile:
        """The one log of this process at that path."""
        with cls._opening:
            return cls._open.setdefault(path.absolute(), cls(path.absolute()))

    def pipe(self) -> int:
        """A descriptor for a child to write to; the caller closes it once the child has it."""
        reading, writing = os.pipe()
        reader = threading.Thread(target=self._copy, args=(reading,), name=f"log of {self.path.name}", daemon=True)
        self._readers = [*filter(threading.Thread.is_alive, self._readers), reader]
        reader.start()
        return writing

    def settle(self, timeout: float = 1.0) -> None:
        """Wait until what processes that have ended wrote is in the file, `timeout` seconds at most."""
        for reader in self._readers:
            reader.join(timeout)

    def write(self, data: bytes) -> None:
        """Append to the file, and rotate it after a line once it is full."""
        with self._lock:
            try:
                self._append(data)
            except OSError:  # the disk is full: the child must not wait for it
                self._unwritten += len(data)

    def _copy(self, reading: int) -> None:
        with os.fdopen(reading, "rb", buffering=0) as pipe:
            while data := pipe.read(_CHUNK):
                self.write(data)

    def _append(self, data: bytes) -> None:
        if self._unwritten:
            data = f"{self._unwritten} bytes of this log could not be written\n".encode() + data
        with self.path.open("ab", buffering=0) as file:
            before = file.tell()
            head, newline, tail = data.rpartition(b"\n")
            if before + len(data) <= self._limit or not (newline or before > self._limit):
                file.write(data)
                rest = None
            elif newline:
                file.write(head + newline)
                rest = tail
            else:  # a line that fills a whole file is cut
                rest = data
        if rest is not None:
            self.path.replace(self.path.with_name(f"{self.path.name}.1"))
            self.path.write_bytes(rest)
        self._unwritten = 0

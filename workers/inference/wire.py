"""The connection between the worker and its engine process: pickles over a pipe, pixels through memory.

A pipe moves a batch of large images at a few hundred megabytes a second, in 200 kB sips, and the device waits
meanwhile. So large buffers travel out of band (PEP 574) through a file in memory that both processes hold open.
"""

from __future__ import annotations

import os
import pickle
import socket
import struct
import tempfile
from multiprocessing import reduction
from multiprocessing.connection import Connection
from multiprocessing.context import BaseContext
from typing import Generic, Protocol, TypeVar

import numpy as np

from workers.inference.messages import Message, Request

LARGE = 64 * 1024
"""Bytes from which a buffer goes through the file; below, the pipe is as fast."""

Received = TypeVar("Received")
"""The messages that the other end sends."""


class Wire(Generic[Received]):
    """One end of the connection. The two ends take turns with large messages, so the file holds one at a time.

    Reading a message empties the file: it costs memory only while a message is under way.
    """

    def __init__(self, pipe: Connection, file: int):
        self.pipe = pipe
        self.file = file

    def __reduce__(self) -> tuple[object, ...]:
        """Pass this end on to a process that is being spawned; it cannot be pickled otherwise."""
        return _rebuild, (self.pipe, reduction.DupFd(self.file))

    def send(self, message: object) -> None:
        """Send one message. An error other than OSError means that it cannot be pickled and nothing was sent."""
        large: list[memoryview] = []

        def in_band(buffer: pickle.PickleBuffer) -> bool:
            raw = buffer.raw()
            if raw.nbytes >= LARGE:
                large.append(raw)
            return raw.nbytes < LARGE

        data = pickle.dumps(message, protocol=5, buffer_callback=in_band)
        offset = 0
        for raw in large:
            offset += self._write(raw, offset)
        self.pipe.send_bytes(pickle.dumps((data, [raw.nbytes for raw in large]), protocol=5))

    def receive(self) -> Received:
        """Receive the next message. Its arrays are the receiver's own, writable where the sender's were."""
        data, sizes = pickle.loads(self.pipe.recv_bytes())  # noqa: S301  # from our own child or parent
        buffers = [np.empty(size, np.uint8) for size in sizes]  # unlike a bytearray not zeroed first: twice as fast
        offset = 0
        for buffer in buffers:
            offset += self._read(buffer.data, offset)
        if buffers:
            os.ftruncate(self.file, 0)
        message: Received = pickle.loads(data, buffers=buffers)  # noqa: S301
        return message

    def poll(self, seconds: float = 0.0) -> bool:
        """Whether a message, or the end of the wire, is there to be received, at the latest `seconds` from now."""
        return self.pipe.poll(seconds)

    def set_timeout(self, seconds: float) -> None:
        """Make `send` and `receive` fail with BlockingIOError when the other end does nothing for `seconds`.

        A stopped process would otherwise block this one in the middle of a message, where `poll` does not help.
        """
        interval = struct.pack("@ll", int(seconds), round(seconds % 1 * 1e6))
        with socket.socket(fileno=os.dup(self.pipe.fileno())) as end:
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, interval)
            end.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, interval)

    def close(self) -> None:
        """Close the pipe and the file, which ends the connection for the other end."""
        self.pipe.close()
        os.close(self.file)

    def _write(self, raw: memoryview, offset: int) -> int:
        done = 0
        while done < raw.nbytes:  # one call moves 2 GiB at most
            done += os.pwrite(self.file, raw[done:], offset + done)
        return done

    def _read(self, buffer: memoryview, offset: int) -> int:
        done = 0
        while done < buffer.nbytes:
            count = os.preadv(self.file, [buffer[done:]], offset + done)
            if count == 0:
                raise EOFError("the message is shorter than it says")
            done += count
        return done


def open_wire(context: BaseContext) -> tuple[Wire[Message], Wire[Request]]:
    """Open two connected ends: the worker keeps the first, and passes the other to a process of `context`."""
    ours, theirs = context.Pipe()
    file = _open_nameless_file()
    return Wire(ours, file), Wire(theirs, os.dup(file))


def _open_nameless_file() -> int:
    """Open a file in memory; where the system has none, on disk, whose cache mostly holds it."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("tuwen-wire")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


class _Handle(Protocol):
    """A file that is passed on to a process that is being spawned."""

    def detach(self) -> int: ...


def _rebuild(pipe: Connection, file: _Handle) -> Wire[Received]:
    return Wire(pipe, file.detach())

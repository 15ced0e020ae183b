"""The data folder is private: other users of the machine can read neither uploads nor logs.

PostgreSQL reaches its cluster as another user when we are root; see `servers.Postgres`.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

SUBFOLDERS = ("objects", "postgres", "valkey", "flower", "exports", "logs")
_OWN = {*SUBFOLDERS, "lock", "system.json", "images", "demo"}
"""Everything that a data folder of ours may contain; `images` and `demo` are those of `tuwen demo`."""


def make_private(data: Path) -> None:
    """Make the data folder and those in it, closed to other users; `close` those that exist.

    Raises:
        OSError: a folder cannot be made, or belongs to somebody else.
    """
    close(data)
    for name in SUBFOLDERS:
        (data / name).mkdir(mode=0o700, exist_ok=True)


def close(data: Path) -> None:
    """Close a data folder to other users, also one that an earlier version left open; make it if it does not exist.

    A folder that holds other things too (somebody's home, /tmp) keeps its mode, and only our folders in it are closed.

    Raises:
        OSError: the folder cannot be made, or one in it belongs to somebody else.
    """
    data.mkdir(mode=0o700, parents=True, exist_ok=True)
    entries = {entry.name for entry in data.iterdir()}
    for name in entries.intersection(SUBFOLDERS):
        (data / name).chmod(0o700)
    if entries <= _OWN:
        with suppress(PermissionError):  # somebody else's folder, in which we may write
            data.chmod(0o700)

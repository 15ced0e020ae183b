"""Opening files beneath the folders that somebody may use, wherever links lead and however names change meanwhile.

A path is never checked first and opened afterwards. Where the kernel has openat2 (Linux 5.6, unless a container
forbids it), it opens beneath the root's own descriptor with RESOLVE_BENEATH and refuses what leads out. Otherwise, and
for links that RESOLVE_BENEATH refuses although they stay, such as absolute ones, each component is opened on the
descriptor of the one before, and the target of each link is looked up beneath the roots again. libpathrs does something
else: it takes a link to /etc/passwd for one to ROOT/etc/passwd, and here it must be an error that people see.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
import sys
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress

from shared.intake.held_folder import HeldFolder
from tuwen.errors import PathForbidden

LOOK = getattr(os, "O_PATH", os.O_RDONLY | os.O_NONBLOCK)
"""Flags to look at a file without opening its content."""
WAY = LOOK | os.O_DIRECTORY
"""Flags to pass through a folder, which need not be readable."""
READ = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY
"""Flags to read a regular file; a pipe in its place does not block."""

_OPENAT2 = 437  # on every architecture since Linux 5.6
_NO_MAGICLINKS, _BENEATH = 0x02, 0x08
_REFUSED = (errno.EXDEV, errno.ELOOP, errno.EAGAIN)
_MOST_LINKS = 40  # as the kernel
_MOST_STEPS = 10_000
_TEXT = "surrogateescape"


class _OpenHow(ctypes.Structure):
    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


def openat2_beneath(at: int, path: str, flags: int) -> int:
    """Open `path` beneath the folder `at` by the system call of that name. Raises OSError."""
    how = _OpenHow(flags | os.O_CLOEXEC, 0, _BENEATH | _NO_MAGICLINKS)
    raw = path.encode(sys.getfilesystemencoding(), _TEXT) or b"."
    if b"\0" in raw:
        raise ValueError("embedded null byte")
    while True:
        opened = int(
            _libc.syscall(ctypes.c_long(_OPENAT2), ctypes.c_int(at), raw, ctypes.byref(how), ctypes.c_size_t(24))
        )
        if opened >= 0:
            return opened
        number = ctypes.get_errno()
        if number != errno.EINTR:
            raise OSError(number, os.strerror(number), path)


def kernel_can() -> bool:
    """Whether openat2 works here: kernels before 5.6 lack it, and older container runtimes forbid it."""
    if sys.platform != "linux":
        return False
    at = os.open("/", WAY)
    try:
        os.close(openat2_beneath(at, ".", WAY))
    except OSError:
        return False
    finally:
        os.close(at)
    return True


class _Root:
    """A folder that the operator named, held open from its first use; it may itself be a link."""

    def __init__(self, path: str, excluded: str | None):
        self.path = path
        self.real = os.path.realpath(path)
        self.excluded = excluded if excluded is not None and _below(excluded, self.real) is not None else None
        self._folder: HeldFolder | None = None
        self._guard = threading.Lock()

    @property
    def fd(self) -> int:
        with self._guard:
            if self._folder is None:
                self._folder = HeldFolder(os.open(self.path, WAY), self.path)
            return self._folder.fd

    def close(self) -> None:
        with self._guard:
            if self._folder is not None:
                self._folder.close()
                self._folder = None


class Roots:
    """Folders that may be used, with all that lies beneath them. Thread-safe; `close` it after use.

    Paths are absolute. Methods raise OSError as `os.open` does, and `PathForbidden` where a path leads out.
    """

    def __init__(
        self, folders: Iterable[str] | None = None, *, excluded: str | None = None, openat2: bool | None = None
    ):
        """`folders` None means every folder of this machine; `excluded` is one that never counts as beneath them.

        `openat2`: whether to use the system call; by default where it works.
        """
        excluded = os.path.realpath(excluded) if excluded is not None else None
        self._roots = None if folders is None else [_Root(folder, excluded) for folder in folders]
        self._openat2 = _KERNEL_CAN if openat2 is None else openat2

    @property
    def confining(self) -> bool:
        """Whether there is anything that may not be used."""
        return self._roots is not None

    def open(self, path: str, flags: int = READ) -> int:
        """Open a file or folder that exists. Returns its descriptor, which programs started later do not inherit."""
        if self._roots is None:
            return os.open(path, flags)
        root, below = self._find(path)
        opened = self._open_beneath(root, below, flags, path)
        if root.excluded is not None:
            try:
                self._require_not_excluded(opened, root.excluded, path)
            except BaseException:
                os.close(opened)
                raise
        return opened

    def stat(self, path: str) -> os.stat_result:
        """What the path leads to."""
        if self._roots is None:
            return os.stat(path)  # noqa: PTH116 - a Path for each of 100 million files costs
        opened = self.open(path, LOOK)
        try:
            return os.fstat(opened)
        finally:
            os.close(opened)

    def real_path(self, path: str) -> str:
        """The path without links, as far as it exists; the rest is appended as it is."""
        if self._roots is None:
            return os.path.realpath(path)
        rest: list[str] = []
        while True:
            try:
                opened = self.open(path, LOOK)
            except (FileNotFoundError, NotADirectoryError):
                if self._is_root(path):
                    raise
                path, _, name = path.rpartition("/")
                rest.append(name)
                continue
            try:
                return "/".join((_path_of(opened).rstrip("/"), *reversed(rest))) or "/"
            finally:
                os.close(opened)

    def folder(self, path: str, *, make: bool = False) -> HeldFolder:
        """Hold a folder open; with `make`, after making it and those around it that are missing, but for a root."""
        missing: list[str] = []
        while True:
            try:
                held = HeldFolder(self.open(path, WAY), path)
                break
            except FileNotFoundError:
                above, _, name = path.rpartition("/")
                if not make or not above or self._is_root(path):
                    raise
                missing.append(name)
                path = above
        for name in reversed(missing):
            with held:
                held = held.enter(name, make=True)
        return held

    def close(self) -> None:
        """Close the descriptors of the roots."""
        for root in self._roots or ():
            root.close()

    def _is_root(self, path: str) -> bool:
        return any(path in (root.path, root.real) for root in self._roots or ())

    def _find(self, path: str) -> tuple[_Root, str]:
        """The innermost root that the path lies beneath by its name, and the way from there."""
        found: tuple[_Root, str] | None = None
        for root in self._roots or ():
            for name in (root.path, root.real):
                below = _below(path, name)
                if below is not None and (found is None or len(below) < len(found[1])):
                    found = (root, below)
        if found is None:
            raise _leads_out(path)
        return found

    def _open_beneath(self, root: _Root, below: str, flags: int, path: str) -> int:
        if self._openat2:
            try:
                return openat2_beneath(root.fd, below, flags)
            except OSError as error:
                if error.errno not in _REFUSED:
                    raise
        with _Walk(root.fd) as walk:
            return self._walk(walk, root, below, flags, path)

    def _walk(self, walk: _Walk, root: _Root, below: str, flags: int, path: str) -> int:
        """Open the path component by component; links lead beneath the roots again, or are refused."""
        todo, links = deque(_parts(below)), 0
        while todo:
            name = todo.popleft()
            if name == ".." and walk.names:
                walk.back()
                continue
            if name == "..":
                # Out of the root, perhaps back into one: its own real path has no links, so names are enough.
                target: str | None = os.path.dirname(root.real)  # noqa: PTH120
                while todo and todo[0] == "..":
                    target = os.path.dirname(target or "/")  # noqa: PTH120
                    todo.popleft()
            else:
                target = walk.step(name, flags if not todo else None)
                links += target is not None
                if links > _MOST_LINKS:
                    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
            if target is None:
                continue
            if target.startswith("/"):
                root, below = self._reenter(target, todo, path)
                walk.restart(root.fd)
                todo = deque(_parts(below))
            else:
                todo.extendleft(reversed(_parts(target)))
        return walk.finish(flags)

    def _reenter(self, target: str, rest: Iterable[str], path: str) -> tuple[_Root, str]:
        """Find the root of an absolute target and of what follows it."""
        whole = "/".join((target.rstrip("/"), *rest))
        for way in (whole, os.path.normpath(whole)):
            with suppress(PathForbidden):
                return self._find(way)
        raise _leads_out(path)

    def _require_not_excluded(self, opened: int, excluded: str, path: str) -> None:
        if _below(_path_of(opened), excluded) is not None:
            raise _leads_out(path)


class _Walk:
    """A walk from a root downwards, of which only the place where it is now is held open."""

    def __init__(self, start: int):
        self._start = start
        self._at = os.dup(start)
        self._ended = False
        self._steps = 0
        self.names: list[str] = []
        """The way from the root to here; none of them is a link."""

    def __enter__(self) -> _Walk:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._at)

    def step(self, name: str, last: int | None) -> str | None:
        """Go on to `name`: with the flags `last` at the end of the way, otherwise as a folder. The target of a link."""
        self._steps += 1
        if self._steps > _MOST_STEPS:
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), name)
        flags = WAY if last is None else last
        try:
            found = os.open(name, flags | os.O_NOFOLLOW, dir_fd=self._at)
        except OSError as error:
            if error.errno not in (errno.ELOOP, errno.ENOTDIR, errno.EMLINK):
                raise
            return _target(name, self._at, error)
        if last == LOOK and stat.S_ISLNK(os.fstat(found).st_mode):  # O_PATH opens the link itself
            os.close(found)
            return _target(name, self._at, OSError(errno.ELOOP, os.strerror(errno.ELOOP), name))
        self._move(found)
        self.names.append(name)
        self._ended = last is not None
        return None

    def back(self) -> None:
        """Go back by one folder, on the same way from the root: the folder may have been moved since."""
        names, self.names = self.names[:-1], []
        self._move(os.dup(self._start))
        for name in names:
            if self.step(name, None) is not None:
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), name)

    def restart(self, start: int) -> None:
        """Begin anew at another root."""
        self._start, self.names = start, []
        self._move(os.dup(start))

    def finish(self, flags: int) -> int:
        """The descriptor of the end, opened with these flags."""
        return os.dup(self._at) if self._ended else os.open(".", flags, dir_fd=self._at)

    def _move(self, to: int) -> None:
        os.close(self._at)
        self._at, self._ended = to, False


def _target(name: str, at: int, error: OSError) -> str:
    """The target of a link; raises `error` where it is none."""
    with suppress(OSError):
        return os.readlink(name, dir_fd=at)
    raise error


def _parts(path: str) -> list[str]:
    return [part for part in path.split("/") if part not in ("", ".")]


def _below(path: str, root: str) -> str | None:
    """The way from `root` to a path beneath it, by their names; None where it lies elsewhere."""
    if path == root:
        return ""
    start = root.rstrip("/") + "/"
    return path[len(start) :] if path.startswith(start) else None


def _path_of(opened: int) -> str:
    """The path of an open file, without links, as the kernel knows it now."""
    if sys.platform == "linux":
        return os.readlink(f"/proc/self/fd/{opened}")  # noqa: PTH115
    import fcntl

    return os.fsdecode(fcntl.fcntl(opened, fcntl.F_GETPATH, bytes(1024)).rstrip(b"\0"))


def _leads_out(path: str) -> PathForbidden:
    return PathForbidden(f"{path!r} leads out of the folders that may be used: a link in it, or its own name")


@contextmanager
def opened(roots: Roots, path: str, flags: int = READ) -> Iterator[int]:
    """The descriptor of a file within the block."""
    found = roots.open(path, flags)
    try:
        yield found
    finally:
        os.close(found)


_KERNEL_CAN = kernel_can()
EVERYWHERE = Roots()
"""Every folder of this machine: for its own user, who follows links of his own."""

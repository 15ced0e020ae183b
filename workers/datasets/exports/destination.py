"""The destination of an export: a folder that appears complete or not at all, or the prefix of a bucket.

All is written to a folder beside the destination, which then takes its name. `tuwen.json` in it says which run it
holds and whose it is, so that no run overwrites another's files. The folder around the destination is held open, so
nothing that is done there goes elsewhere when somebody puts a link into the way.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import obstore
from obstore.exceptions import BaseError
from obstore.store import S3Store

from shared.intake.beneath import Roots
from shared.intake.held_folder import DIRECTORY, HeldFolder
from shared.objects.storage import open_bucket
from shared.settings import Settings
from tuwen.errors import Conflict, DestinationUnusable, Forbidden, StorageUnavailable
from workers.datasets.sources.recognition import normalise

MARKER = "tuwen.json"
_IN_THE_WAY = (errno.ELOOP, errno.ENOTDIR)
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclass(frozen=True, slots=True)
class Owner:
    """The run and the tenant that an export belongs to, and what it may replace."""

    run: str
    tenant: str | None = None
    overwrite: bool = False
    """Whether it may replace another run's export, and captions that came with the images."""
    adopts: bool = True
    """Whether exports that do not say whose they are count as this tenant's: earlier releases did not note it."""

    def require(self, marker: bytes, target: str) -> None:
        """Refuse to take the place of what another tenant or another run has written.

        Raises:
            Forbidden, DestinationUnusable
        """
        self.require_tenant(marker, target)
        found = _parse(marker)
        if not self.overwrite and self.run != found.get("run"):
            source = found.get("source", "an unknown source")
            detail = f"{target} holds another data set, of {source}: name another folder, or ask to overwrite it"
            raise DestinationUnusable(detail, field="destination")

    def require_tenant(self, marker: bytes, target: str) -> None:
        """Refuse what another tenant has written, or what may be another's.

        Raises:
            Forbidden, DestinationUnusable
        """
        tenant = _parse(marker).get("tenant")
        if tenant is None and not self.adopts:
            detail = f"{target} holds an export that does not say whose it is: move it away, or name another folder"
            raise DestinationUnusable(detail, field="destination")
        if tenant is not None and tenant != self.tenant:
            raise Forbidden(f"{target} holds an export of another tenant: name another folder", field="destination")


def _parse(marker: bytes) -> dict[str, object]:
    try:
        found = json.loads(marker)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


@contextmanager
def stage(target: str, source: str, owner: Owner, settings: Settings, roots: Roots) -> Iterator[HeldFolder]:
    """Make a new folder to write the export into; when the block succeeds, it becomes the destination.

    `target` and `source` are as `real` returns them.

    Raises:
        DestinationUnusable: it lies in the source, is not a folder, or holds files of another run.
        Forbidden: it holds files of another tenant.
        PathForbidden: it lies outside `roots`.
        Conflict: another export into it is under way.
        StorageUnavailable: the disk is full, or the bucket does not answer.
    """
    require_apart(target, source)
    with translate_errors(target):
        if target.startswith("s3://"):
            yield from _stage_bucket(target, owner, settings)
        else:
            yield from _stage_folder(target, owner, roots)


def real(place: str, roots: Roots) -> str:
    """The form of a place that is compared with others: an absolute path without links, or a prefix.

    Raises:
        OSError
        DestinationUnusable: the root that it lies in does not exist.
    """
    place = normalise(place)
    try:
        return place if place.startswith("s3://") else roots.real_path(place)
    except FileNotFoundError as error:
        detail = f"the root that {place} lies in does not exist on this machine"
        raise DestinationUnusable(detail, field="destination") from error


def require_apart(target: str, source: str) -> None:
    """Refuse a destination in the source, which the next run would annotate, or around it, which it would replace.

    Raises:
        DestinationUnusable
    """
    below, around = f"{target}/".startswith(f"{source}/"), f"{source}/".startswith(f"{target}/")
    if below or around:
        raise DestinationUnusable(f"{target} and the source {source} lie within each other", field="destination")


def write_marker(folder: HeldFolder, **marker: object) -> None:
    """Write into `folder` which run and tenant it belongs to; `Owner` reads `run`, `tenant` and `source`."""
    text = json.dumps(marker, indent=2, ensure_ascii=False) + "\n"
    folder.replace(MARKER, text.encode(), temporary=f".{MARKER}.new")


def _stage_folder(target: str, owner: Owner, roots: Roots) -> Iterator[HeldFolder]:
    around, _, name = target.rpartition("/")
    staging = f".{name}.{owner.run}"
    with roots.folder(around or "/", make=True) as parent:
        _require_usable(parent, name, owner)
        with _lock(parent, f".{name}.lock", target):
            parent.remove(staging)  # of an export that was killed
            try:
                with parent.enter(staging, make=True) as folder:
                    yield folder
                _require_usable(parent, name, owner)
                _replace(parent, name, staging)
            finally:
                parent.remove(staging)


def _require_usable(parent: HeldFolder, name: str, owner: Owner) -> None:
    found, target = parent.find(name), f"{parent.path}/{name}"
    if found is None:
        return
    if not stat.S_ISDIR(found.st_mode):
        what = "a link that leads nowhere" if stat.S_ISLNK(found.st_mode) else "a file"
        raise DestinationUnusable(f"{target} is {what}: name a folder", field="destination")
    with parent.enter(name) as folder:
        marker = folder.read(MARKER)
        if marker is not None:
            owner.require(marker, target)
        elif next(folder.names(), None) is not None:
            raise DestinationUnusable(f"{target} is not empty: name a new folder", field="destination")


def _replace(parent: HeldFolder, name: str, staging: str) -> None:
    """Put `staging` in the place of the destination, which is missing only between two renames."""
    old = f".{name}.old"
    parent.remove(old)
    if parent.find(name) is not None:
        parent.rename(name, old)
    parent.rename(staging, name)
    parent.remove(old)


@contextmanager
def _lock(parent: HeldFolder, name: str, target: str) -> Iterator[None]:
    """Allow one export at a time; the lock of a killed one is released with its process."""
    file = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW, 0o666, dir_fd=parent.fd)
    try:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise Conflict(f"another export into {target} is under way: wait for its end") from error
        try:
            yield
        finally:
            parent.remove(name)
    finally:
        os.close(file)


def _stage_bucket(target: str, owner: Owner, settings: Settings) -> Iterator[HeldFolder]:
    store = open_bucket(target.removeprefix("s3://"), settings, settings.s3_endpoint)
    _require_usable_prefix(store, target, owner)
    folder = settings.data_dir / "exports"
    folder.mkdir(parents=True, exist_ok=True)
    # The operator's own folder, where nobody else makes links.
    staging = folder / owner.run
    with (
        HeldFolder(os.open(folder, DIRECTORY), str(folder)) as parent,
        _lock(parent, f"{owner.run}.lock", str(staging)),
    ):
        parent.remove(owner.run)
        try:
            with parent.enter(owner.run, make=True) as held:
                yield held
            _upload(staging, store)
        finally:
            shutil.rmtree(staging, ignore_errors=True)


def _require_usable_prefix(store: S3Store, target: str, owner: Owner) -> None:
    try:
        marker = bytes(obstore.get(store, MARKER).bytes())
    except FileNotFoundError:
        if next(iter(obstore.list(store, chunk_size=1)), None):
            raise DestinationUnusable(f"{target} is not empty: name a new prefix", field="destination") from None
        return
    owner.require(marker, target)


def _upload(staging: Path, store: S3Store) -> None:
    """Delete the marker first and write the new one last: a prefix without a marker is incomplete."""
    obstore.delete(store, MARKER)
    fresh = sorted(path for path in staging.rglob("*") if path.is_file() and path.name != MARKER)
    names = set()
    for path in fresh:
        name = path.relative_to(staging).as_posix()
        names.add(name)
        obstore.put(store, name, path)
    for page in obstore.list(store):
        stale = [meta["path"] for meta in page if meta["path"] not in names]
        if stale:
            obstore.delete(store, stale)
    obstore.put(store, MARKER, staging / MARKER)


@contextmanager
def translate_errors(target: str) -> Iterator[None]:
    """Translate errors of writing to `target` into the project's own."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise StorageUnavailable(f"the disk of {target} is full: free some space, then export again") from error
        if isinstance(error, PermissionError) or error.errno in _IN_THE_WAY:
            raise DestinationUnusable(f"{target} cannot be written: {error.strerror}", field="destination") from error
        raise StorageUnavailable(f"{target} cannot be written: {error.strerror or error}") from error
    except BaseError as error:
        raise StorageUnavailable(f"{target} cannot be written: {str(error).splitlines()[0][:200]}") from error

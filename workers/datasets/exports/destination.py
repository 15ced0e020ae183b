"""The destination of an export: a folder that appears complete or not at all, or the prefix of a bucket.

All is written to a folder beside the destination, which then takes its name. `tuwen.json` in it says which run it
holds, so that no run overwrites another's files.
"""

from __future__ import annotations

import errno
import fcntl
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import obstore
from obstore.exceptions import BaseError
from obstore.store import S3Store

from shared.objects.storage import open_bucket
from shared.settings import Settings
from tuwen.errors import Conflict, DestinationUnusable, StorageUnavailable
from workers.datasets.sources.recognition import normalise

MARKER = "tuwen.json"
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def stage(destination: str, source: str, run: str, settings: Settings, *, overwrite: bool) -> Iterator[Path]:
    """Make a new folder to write the export into; when the block succeeds, it becomes the destination.

    Raises:
        DestinationUnusable: it lies in the source, is not a folder, or holds files of another run.
        Conflict: another export into it is under way.
        StorageUnavailable: the disk is full, or the bucket does not answer.
    """
    target = normalise(destination)
    require_apart(target, normalise(source))
    owner = Owner(run, overwrite)
    with translate_errors(target):
        if target.startswith("s3://"):
            yield from _stage_bucket(target, owner, settings)
        else:
            yield from _stage_folder(Path(target), owner)


@dataclass(frozen=True, slots=True)
class Owner:
    """The run that an export belongs to, and whether it may replace another's."""

    run: str
    overwrite: bool

    def require(self, marker: bytes, target: str) -> None:
        """Refuse to take the place of what another run has written.

        Raises:
            DestinationUnusable
        """
        try:
            found = json.loads(marker)
            run, source = found["run"], found["source"]
        except (ValueError, KeyError, TypeError):
            run, source = None, "an unknown source"
        if not self.overwrite and self.run != run:
            detail = f"{target} holds another data set, of {source}: name another folder, or ask to overwrite it"
            raise DestinationUnusable(detail, field="destination")


def require_apart(target: str, source: str) -> None:
    """Refuse a destination in the source, which the next run would annotate, or around it, which it would replace.

    Raises:
        DestinationUnusable
    """
    below, around = f"{target}/".startswith(f"{source}/"), f"{source}/".startswith(f"{target}/")
    if below or around:
        raise DestinationUnusable(f"{target} and the source {source} lie within each other", field="destination")


def write_marker(folder: Path, **marker: object) -> None:
    """Write into `folder` which run it belongs to; `Owner` reads `run` and `source`."""
    (folder / MARKER).write_text(json.dumps(marker, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _stage_folder(target: Path, owner: Owner) -> Iterator[Path]:
    _require_usable(target, owner)
    target.parent.mkdir(parents=True, exist_ok=True)
    staging = target.parent / f".{target.name}.{owner.run}"
    with _lock(target.parent / f".{target.name}.lock", target):
        shutil.rmtree(staging, ignore_errors=True)  # of an export that was killed
        staging.mkdir()
        try:
            yield staging
            _require_usable(target, owner)
            _replace(target, staging)
        finally:
            shutil.rmtree(staging, ignore_errors=True)


def _require_usable(target: Path, owner: Owner) -> None:
    if not target.exists():
        return
    if not target.is_dir():
        raise DestinationUnusable(f"{target} is a file: name a folder", field="destination")
    if (target / MARKER).is_file():
        owner.require((target / MARKER).read_bytes(), str(target))
    elif next(target.iterdir(), None) is not None:
        raise DestinationUnusable(f"{target} is not empty: name a new folder", field="destination")


def _replace(target: Path, staging: Path) -> None:
    """Put `staging` in the place of `target`, which is missing only between two renames."""
    old = target.parent / f".{target.name}.old"
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        target.rename(old)
    staging.rename(target)
    shutil.rmtree(old, ignore_errors=True)


@contextmanager
def _lock(path: Path, target: Path) -> Iterator[None]:
    """Allow one export at a time; the lock of a killed one is released with its process."""
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise Conflict(f"another export into {target} is under way: wait for its end") from error
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def _stage_bucket(target: str, owner: Owner, settings: Settings) -> Iterator[Path]:
    store = open_bucket(target.removeprefix("s3://"), settings, settings.s3_endpoint)
    _require_usable_prefix(store, target, owner)
    folder = settings.data_dir / "exports"
    folder.mkdir(parents=True, exist_ok=True)
    staging = folder / owner.run
    with _lock(folder / f"{owner.run}.lock", staging):
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir()
        try:
            yield staging
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
        if isinstance(error, PermissionError):
            raise DestinationUnusable(f"{target} cannot be written: {error.strerror}", field="destination") from error
        raise StorageUnavailable(f"{target} cannot be written: {error.strerror or error}") from error
    except BaseError as error:
        raise StorageUnavailable(f"{target} cannot be written: {str(error).splitlines()[0][:200]}") from error

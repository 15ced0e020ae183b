"""Places that data sets may lie in: clients name paths on the servers, so not every path may be named.

An installation without keys serves this machine only, and its user may name any folder of it and follow links of his
own, unless `TUWEN_DATASET_ROOTS` sets bounds. With keys, a key may name only folders and `s3://` prefixes below its own
roots (`tuwen keys create NAME --datasets …`), and none where it has none; `TUWEN_DATASET_ROOTS` bounds the roots of all
keys. Nobody with bounds may name the object storage, which holds the data of all tenants.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from shared.intake.beneath import EVERYWHERE, Roots
from shared.settings import Settings
from tuwen.errors import Forbidden, InvalidRequest, PathForbidden

S3 = "s3://"


def normalize(place: str) -> str:
    """Remove empty parts, `.` and `..`, so that two spellings of a place become equal. `..` of a prefix stays."""
    if place.startswith(S3):
        return S3 + "/".join(part for part in place.removeprefix(S3).split("/") if part)
    path = place.removeprefix("file://")
    return os.path.normpath(f"/{path.lstrip('/')}" if path.startswith("/") else path)  # POSIX keeps //


@dataclass(frozen=True, slots=True)
class Permission:
    """Where the data sets of one caller may lie."""

    roots: tuple[str, ...] | None
    """Folders and prefixes in their normal form; None means anywhere."""
    storage: str
    """The object storage, which is never among them."""
    whose: str
    """What sets these bounds, for messages."""

    @classmethod
    def of(cls, settings: Settings, key_roots: tuple[str, ...] | None) -> Permission:
        """The permission of a key with these roots; None is a caller without a key, bounded by the settings alone."""
        storage = normalize(settings.storage_url)
        storage = storage if storage.startswith(S3) else str(Path(storage).absolute())
        bounds = tuple(map(normalize, settings.dataset_roots))
        if key_roots is None:
            everywhere = settings.auth == "open" and not bounds
            return cls(None if everywhere else bounds, storage, "TUWEN_DATASET_ROOTS")
        roots = tuple(map(normalize, key_roots))
        return cls(_meet(roots, bounds) if bounds else roots, storage, "the roots of this API key")

    def require(self, place: str, field: str) -> str:
        """Check that a place may be named, and return its normal form. This is about names: links are not followed.

        Raises:
            InvalidRequest: the place is neither an absolute path nor a prefix of a bucket.
            Forbidden: the place may not be named here.
        """
        place = normalize(place)
        if not place.startswith((S3, "/")):
            raise InvalidRequest("Give an absolute path on the workers' machines, or s3://BUCKET/PREFIX.", field=field)
        if place.startswith(S3) and {".", ".."} & set(place.split("/")):
            raise InvalidRequest("A prefix cannot contain '.' or '..'.", field=field)
        if self.roots is None:
            return place
        if not any(within(place, root) for root in self.roots):
            raise Forbidden(f"{place} lies outside {self.whose} ({', '.join(self.roots) or 'none'}).", field=field)
        if within(place, self.storage) or within(self.storage, place):
            raise Forbidden("Data sets may lie neither in the object storage nor around it.", field=field)
        return place

    def require_destination(self, place: str, field: str = "destination") -> str:
        """As `require`, for an export in a folder of its own: it replaces the folder, which no root may lose.

        Raises:
            InvalidRequest: the destination is a root itself, besides what `require` raises.
        """
        place = self.require(place, field)
        if self.roots is not None and place in self.roots and not place.startswith(S3):
            raise InvalidRequest(f"{place} is a root of data sets itself: name a folder in it.", field=field)
        return place

    def require_root(self, root: str) -> None:
        """Check that a key may get a root: it may lie around the object storage, which is no part of it, but not in it.

        Raises:
            InvalidRequest, Forbidden
        """
        around = self.storage != root and within(self.storage, root)
        (replace(self, storage="/no storage") if around else self).require(root, "datasets")

    def require_followed(self, place: str, field: str, opened: Roots) -> str:
        """Check a place where its file system can be seen. Returns its real path, which has no links.

        What is done with the path later has to go through `opened` again, since links may change.

        Raises:
            InvalidRequest, Forbidden: as `require`, and where a link in the place leads out.
        """
        place = self.require(place, field)
        if place.startswith(S3):
            return place
        try:
            real = opened.real_path(place)
        except PathForbidden as error:
            raise Forbidden(f"{place} lies outside {self.whose}: a link in it leads out.", field=field) from error
        except (OSError, ValueError):
            return place  # whoever opens it says what is wrong with it
        if self.roots is not None:
            self._real().require(real, field)
        return real

    def open(self) -> Roots:
        """Hold the local folders open; files of data sets are opened beneath them only. `close` it after use."""
        if self.roots is None:
            return EVERYWHERE
        local = [root for root in self.roots if not root.startswith(S3)]
        return Roots(local, excluded=None if self.storage.startswith(S3) else self.storage)

    def _real(self) -> Permission:
        """The same with real paths."""
        return replace(self, roots=tuple(map(_real, self.roots or ())), storage=_real(self.storage))


def within(place: str, root: str) -> bool:
    """Whether a place in its normal form is `root` or lies below it, by their names."""
    if root.startswith(S3) or place.startswith(S3):
        return place == root or place.startswith(root + "/")
    return PurePosixPath(place).is_relative_to(root)


def _real(place: str) -> str:
    return place if place.startswith(S3) else os.path.realpath(place)


def _meet(roots: tuple[str, ...], bounds: tuple[str, ...]) -> tuple[str, ...]:
    """What lies both below one of the roots and below one of the bounds."""
    inner = [root for root in roots if any(within(root, bound) for bound in bounds)]
    return (*inner, *(bound for bound in bounds if any(within(bound, root) for root in roots) and bound not in inner))

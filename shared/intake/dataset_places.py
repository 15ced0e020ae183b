"""Places that data sets may lie in: clients name paths on the servers, so not every path may be named.

An installation without keys serves this machine only, and its user may name any folder of it. With keys, clients may
name only folders and `s3://` prefixes that `TUWEN_DATASET_ROOTS` allows, and never the object storage, which holds the
data of all tenants.
"""

from __future__ import annotations

import os
from pathlib import Path, PurePosixPath

from shared.settings import Settings
from tuwen.errors import Forbidden, InvalidRequest

S3 = "s3://"


def normalize(place: str) -> str:
    """Remove trailing slashes, `.` and `..`, so that two spellings of a place become equal."""
    if place.startswith(S3):
        return S3 + place.removeprefix(S3).strip("/")
    return os.path.normpath(place.removeprefix("file://"))


def require_allowed(place: str, settings: Settings, field: str, *, followed: bool = False) -> str:
    """Check that a place may be named, and return its normal form.

    Args:
        field: the field of the request to name in errors.
        followed: resolve symbolic links first; for callers that see the file system of the path.

    Raises:
        InvalidRequest: the place is neither an absolute path nor a prefix of a bucket.
        Forbidden: the place may not be named here.
    """
    place = normalize(place)
    if not place.startswith((S3, "/")):
        raise InvalidRequest("Give an absolute path on the workers' machines, or s3://BUCKET/PREFIX.", field=field)
    if place.startswith(S3) and ".." in place.split("/"):
        raise InvalidRequest("A prefix cannot contain '..'.", field=field)
    real = os.path.realpath(place) if followed and place.startswith("/") else place
    if settings.auth == "open" and not settings.dataset_roots:
        return place
    if not any(_within(real, root, followed=followed) for root in settings.dataset_roots):
        allowed = ", ".join(settings.dataset_roots) or "none"
        raise Forbidden(f"Data sets may lie below TUWEN_DATASET_ROOTS only ({allowed}).", field=field)
    objects = normalize(settings.storage_url)
    objects = objects if objects.startswith(S3) else str(Path(objects).absolute())
    if _within(real, objects, followed=followed) or _within(objects, real, followed=followed):
        raise Forbidden("Data sets may lie neither in the object storage nor around it.", field=field)
    return place


def _within(place: str, root: str, *, followed: bool) -> bool:
    root = normalize(root)
    if root.startswith(S3) or place.startswith(S3):
        return place == root or place.startswith(root + "/")
    root = os.path.realpath(root) if followed else root
    return PurePosixPath(place).is_relative_to(root)

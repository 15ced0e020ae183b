"""Where data sets may lie: what a stranger names is a path of the servers, so not every path may be named.

An installation without keys serves this machine only, and its user may name any folder of it. With keys, only what
`TUWEN_DATASET_ROOTS` allows, folders and `s3://` prefixes; and never the object storage, which holds what is others'.
"""

from __future__ import annotations

import os
from pathlib import Path, PurePosixPath

from shared.settings import Settings
from tuwen.errors import Forbidden, InvalidRequest

S3 = "s3://"


def normal(place: str) -> str:
    """The place without a trailing slash, `.` or `..`: two ways to write one place are one."""
    if place.startswith(S3):
        return S3 + place.removeprefix(S3).strip("/")
    return os.path.normpath(place.removeprefix("file://"))


def require_allowed(place: str, settings: Settings, field: str, *, followed: bool = False) -> str:
    """The place in its normal form.

    Args:
        field: of the request, to blame.
        followed: go by where symbolic links lead; for those who see the file system that is meant.

    Raises:
        InvalidRequest: it is no absolute path and no prefix of a bucket.
        Forbidden: it may not be named here.
    """
    place = normal(place)
    if not place.startswith((S3, "/")):
        raise InvalidRequest("Give an absolute path of the workers' machines, or s3://BUCKET/PREFIX.", field=field)
    if place.startswith(S3) and ".." in place.split("/"):
        raise InvalidRequest("A prefix cannot contain '..'.", field=field)
    real = os.path.realpath(place) if followed and place.startswith("/") else place
    if settings.auth == "open" and not settings.dataset_roots:
        return place
    if not any(_within(real, root, followed=followed) for root in settings.dataset_roots):
        allowed = ", ".join(settings.dataset_roots) or "none"
        raise Forbidden(f"Data sets may lie below TUWEN_DATASET_ROOTS only ({allowed}).", field=field)
    objects = normal(settings.storage_url)
    objects = objects if objects.startswith(S3) else str(Path(objects).absolute())
    if _within(real, objects, followed=followed) or _within(objects, real, followed=followed):
        raise Forbidden("Data sets may lie neither in the object storage nor around it.", field=field)
    return place


def _within(place: str, root: str, *, followed: bool) -> bool:
    root = normal(root)
    if root.startswith(S3) or place.startswith(S3):
        return place == root or place.startswith(root + "/")
    root = os.path.realpath(root) if followed else root
    return PurePosixPath(place).is_relative_to(root)

"""Images that callers send, kept under the SHA-256 of their bytes."""

from __future__ import annotations

from hashlib import sha256

from api.http.auth import Caller
from api.producer.resources import Resources
from shared.intake.images import inspect
from shared.objects.storage import file_key
from tuwen.messages import File


def keep(resources: Resources, caller: Caller, data: bytes) -> File:
    """Store an image that a caller sent, once it is known to be one.

    Raises:
        ImageRejected: it is none, or none that is wanted.
        StorageUnavailable, DatabaseUnavailable
    """
    image = inspect(data, resources.settings)
    digest = sha256(data).hexdigest()
    key = file_key(caller.tenant, digest)
    # The object first: a row must never name an object that is not there.
    resources.store.put_once(key, data, image.media_type)
    created_at = resources.database.files.add(
        tenant=caller.tenant,
        sha256=digest,
        key=key,
        media_type=image.media_type,
        width=image.width,
        height=image.height,
        size=len(data),
    )
    return File(
        id=digest,
        media_type=image.media_type,
        width=image.width,
        height=image.height,
        size=len(data),
        created_at=int(created_at.timestamp()),
    )

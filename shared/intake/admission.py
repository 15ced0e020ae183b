"""What is checked before a job exists, and images that callers send, kept under the SHA-256 of their bytes."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from hashlib import sha256

from shared.database import Database
from shared.database.idempotency import Once
from shared.database.usage import storage_full
from shared.intake.data_urls import decode_base64, decode_data_url, is_data_url
from shared.intake.fetch import vet_url
from shared.intake.images import inspect
from shared.objects.storage import ObjectStore, file_key
from shared.settings import Settings
from tuwen.errors import ImageCorrupt, ImageTooLarge, InvalidRequest, NotFound, UnknownModel
from tuwen.jobs import GenerateInput, ImageSource, JobRequest, Tenant
from tuwen.messages import File

_REMEMBERED = 1.0
_MOST_REMEMBERED = 10_000


class Admission:
    """Checks requests for jobs against this installation. Thread-safe."""

    def __init__(self, settings: Settings, database: Database, store: ObjectStore):
        self._settings = settings
        self._database = database
        self._store = store
        self._stored: dict[Tenant, tuple[float, int]] = {}
        """Tenant → when its stored bytes were looked up, and how many they were."""

    def admit(
        self,
        requests: Sequence[JobRequest],
        tenant: Tenant,
        paths: Sequence[str] | None = None,
        *,
        most_stored: int | None = None,
        signed: bool = False,
    ) -> list[JobRequest]:
        """Check the requests, and keep every image in them as a file of the tenant's.

        Args:
            paths: for each request what stands before its fields' names in errors, such as `jobs.3.`; default: nothing.
            most_stored: bytes that the tenant may have stored; None means no bound.
            signed: whether webhooks are signed by a secret of the caller's key.

        Returns:
            The requests in the same order, naming files in place of base64.

        Raises:
            InvalidRequest: or a kind of it, naming the field.
            NotFound: a file that is not this tenant's, naming the field.
            StorageQuotaExceeded: the tenant has no room for an image in a request, or for any result.
            StorageUnavailable, DatabaseUnavailable
        """
        paths = [""] * len(requests) if paths is None else paths
        for path, request in zip(paths, requests, strict=True):
            self._require_model(request, path)
            self._vet_addresses(request, path, signed=signed)
        if most_stored is not None and any(isinstance(request.input, GenerateInput) for request in requests):
            self._require_any_room(tenant, most_stored)
        return self._store_images(requests, tenant, paths, most_stored)

    def keep(self, data: bytes, tenant: Tenant, most_stored: int | None = None, once: Once | None = None) -> File:
        """Store an image that a caller sent, once it is known to be one.

        Raises:
            IdempotencyMismatch: something else was asked for under the key of `once`.
            ImageRejected: it is none, or none that is wanted.
            StorageQuotaExceeded: with it, the tenant would have more than `most_stored` bytes.
            StorageUnavailable, DatabaseUnavailable
        """
        image = inspect(data, self._settings)
        digest = sha256(data).hexdigest()
        key = file_key(tenant, digest)
        self._database.usage.require_room(tenant, most_stored, len(data), digest)
        # The object first: a row must never name an object that is not there.
        self._store.put_once(key, data, image.media_type)
        created_at = self._database.files.add(
            tenant=tenant,
            sha256=digest,
            key=key,
            media_type=image.media_type,
            width=image.width,
            height=image.height,
            size=len(data),
            most=most_stored,
            once=once,
        )
        return File(
            id=digest,
            media_type=image.media_type,
            width=image.width,
            height=image.height,
            size=len(data),
            created_at=int(created_at.timestamp()),
        )

    def _require_model(self, request: JobRequest, path: str) -> None:
        served = [model.name for model in self._settings.models_for(request.input.kind)]
        if request.model is not None and request.model not in served:
            raise UnknownModel(
                f"This installation does {request.input.kind} with the model {' or '.join(served)}.",
                field=f"{path}model",
            )

    def _require_any_room(self, tenant: Tenant, most: int) -> None:
        """Refuse pictures to a tenant that has no byte left for them. What was looked up counts for a moment, since
        the sizes of pictures are known only when they are drawn: what is accepted by then may pass the bound."""
        looked, used = self._stored.get(tenant, (float("-inf"), 0))
        if used >= most or looked <= time.monotonic() - _REMEMBERED:
            used = self._database.usage.stored_bytes(tenant)
            if len(self._stored) >= _MOST_REMEMBERED:
                self._stored.clear()
            self._stored[tenant] = (time.monotonic(), used)
        if used >= most:
            raise storage_full(used, most, 0)

    def _vet_addresses(self, request: JobRequest, path: str, *, signed: bool) -> None:
        image = _image(request)
        if image is not None and image.url is not None:
            with _blame(f"{path}input.image.url"):
                vet_url(image.url, self._settings)
        if request.webhook is not None:
            with _blame(f"{path}webhook"):
                vet_url(request.webhook, self._settings)
                if self._settings.webhook_secret is None and not signed:
                    raise InvalidRequest(
                        "Nothing signs webhooks here: TUWEN_WEBHOOK_SECRET is not set, and the caller has no API key "
                        "with a secret of its own (`tuwen keys rotate-webhook-secret` gives it one). Leave webhook out."
                    )

    def _store_images(
        self, requests: Sequence[JobRequest], tenant: Tenant, paths: Sequence[str], most_stored: int | None
    ) -> list[JobRequest]:
        """Check that every named file is the tenant's, and store every image in a request as a file."""
        images = [_image(request) for request in requests]
        named = {image.file_id for image in images if image and image.file_id}
        known = self._database.files.known(sorted(named), tenant) if named else set()
        for path, image in zip(paths, images, strict=True):
            if image and image.file_id and image.file_id not in known:
                raise NotFound(
                    "There is no file with this id; upload it with POST /v1/files.", field=f"{path}input.image.file_id"
                )
        return [
            self._store_image(request, image, tenant, path, most_stored)
            if image and image.base64 is not None
            else request
            for path, request, image in zip(paths, requests, images, strict=True)
        ]

    def _store_image(
        self, request: JobRequest, image: ImageSource, tenant: Tenant, path: str, most_stored: int | None
    ) -> JobRequest:
        with _blame(f"{path}input.image.base64"):
            file = self.keep(_decode(image.base64 or "", self._settings), tenant, most_stored)
        stored = request.input.model_copy(update={"image": ImageSource(file_id=file.id)})
        return request.model_copy(update={"input": stored})


def _decode(text: str, settings: Settings) -> bytes:
    try:
        data = decode_data_url(text) if is_data_url(text) else decode_base64(text)
    except ValueError as error:
        raise ImageCorrupt("The image is not valid base64.") from error
    if len(data) > settings.max_image_bytes:
        raise ImageTooLarge(f"The image is larger than {settings.max_image_bytes} bytes.")
    return data


def _image(request: JobRequest) -> ImageSource | None:
    return None if isinstance(request.input, GenerateInput) else request.input.image


@contextmanager
def _blame(field: str) -> Iterator[None]:
    """Name `field` in errors that are raised inside the block."""
    try:
        yield
    except InvalidRequest as error:
        error.field = field
        raise

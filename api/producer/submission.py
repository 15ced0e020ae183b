"""From the bytes of a request to committed jobs: everything that is checked before a job exists."""

from __future__ import annotations

import binascii
from base64 import b64decode
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from hashlib import sha256

from api.http.auth import Caller
from api.producer.files import keep
from api.producer.resources import Resources
from shared.intake.fetch import vet_url
from shared.settings import Settings
from shared.telemetry import tracing
from tuwen.errors import ImageCorrupt, ImageTooLarge, InvalidRequest, NotFound, UnknownModel
from tuwen.jobs import GenerateInput, ImageSource, Job, JobRequest

_LONGEST_KEY = 255


def submit(
    resources: Resources,
    caller: Caller,
    requests: Sequence[JobRequest],
    idempotency_key: str | None,
    *,
    in_batch: bool = False,
) -> list[Job]:
    """Check `requests`, make them jobs, all or none, and have them published. With a known key: the jobs it made.

    Raises:
        InvalidRequest: or a kind of it, naming the field.
        NotFound: a file that is not this caller's, naming the field.
        QuotaExceeded, DatabaseUnavailable, StorageUnavailable
    """
    if idempotency_key is not None:
        _require_sendable(idempotency_key)
    paths = [f"jobs.{index}." if in_batch else "" for index in range(len(requests))]
    admitted = admit(resources, caller, requests, paths)
    with tracing.submission(len(admitted)) as trace:
        submission = resources.database.jobs.submit(
            admitted,
            tenant=caller.tenant,
            quota=caller.quota,
            idempotency_key=idempotency_key,
            body_sha256=_body_hash(admitted) if idempotency_key is not None else "",
            trace=trace,
        )
    if submission.dispatches:
        resources.outbox.publish(submission.dispatches)
    if submission.replayed:
        return resources.database.jobs.get_many(submission.ids, caller.tenant)
    return submission.jobs


def admit(
    resources: Resources, caller: Caller, requests: Sequence[JobRequest], paths: Sequence[str] = ("",)
) -> list[JobRequest]:
    """The requests, checked against this installation, every image in them kept as a file; `paths` blame their fields.

    Raises:
        InvalidRequest, NotFound, StorageUnavailable, DatabaseUnavailable: as `submit` does.
    """
    for path, request in zip(paths, requests, strict=True):
        _require_model(request, path, resources.settings)
        _vet_addresses(request, path, resources.settings)
    return _with_files(resources, caller, paths, requests)


def _body_hash(requests: Sequence[JobRequest]) -> str:
    """Of what was asked for, not of how it was written: white space, order and omitted defaults do not matter."""
    return sha256(b"\n".join(request.model_dump_json().encode() for request in requests)).hexdigest()


def _require_sendable(key: str) -> None:
    if not (0 < len(key) <= _LONGEST_KEY and key.isascii() and key.isprintable()):
        raise InvalidRequest(
            f"Idempotency-Key must be 1 to {_LONGEST_KEY} printable ASCII characters.", field="Idempotency-Key"
        )


def _require_model(request: JobRequest, path: str, settings: Settings) -> None:
    served = [model.name for model in settings.models_for(request.input.kind)]
    if request.model is not None and request.model not in served:
        raise UnknownModel(
            f"This installation does {request.input.kind} with the model {' or '.join(served)}.", field=f"{path}model"
        )


def _vet_addresses(request: JobRequest, path: str, settings: Settings) -> None:
    image = _image(request)
    if image is not None and image.url is not None:
        with _blaming(f"{path}input.image.url"):
            vet_url(image.url, settings)
    if request.webhook is not None:
        with _blaming(f"{path}webhook"):
            vet_url(request.webhook, settings)
            if settings.webhook_secret is None:
                raise InvalidRequest("This installation sends no webhooks; its TUWEN_WEBHOOK_SECRET is not set.")


def _with_files(
    resources: Resources, caller: Caller, paths: Sequence[str], requests: Sequence[JobRequest]
) -> list[JobRequest]:
    """Every file named is known to be the caller's, and every image in a request becomes a file."""
    images = [_image(request) for request in requests]
    named = {image.file_id for image in images if image and image.file_id}
    known = resources.database.files.known(sorted(named), caller.tenant) if named else set()
    for path, image in zip(paths, images, strict=True):
        if image and image.file_id and image.file_id not in known:
            raise NotFound("There is no such file; upload it with POST /v1/files.", field=f"{path}input.image.file_id")
    return [
        _with_file(resources, caller, path, request, image) if image and image.base64 is not None else request
        for path, request, image in zip(paths, requests, images, strict=True)
    ]


def _with_file(resources: Resources, caller: Caller, path: str, request: JobRequest, image: ImageSource) -> JobRequest:
    with _blaming(f"{path}input.image.base64"):
        file = keep(resources, caller, _decoded(image.base64 or "", resources.settings))
    stored = request.input.model_copy(update={"image": ImageSource(file_id=file.id)})
    return request.model_copy(update={"input": stored})


def _decoded(text: str, settings: Settings) -> bytes:
    if len(text) // 4 * 3 > settings.max_image_bytes + 2:
        raise ImageTooLarge(f"The image is larger than {settings.max_image_bytes} bytes.")
    try:
        return b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ImageCorrupt("This is not base64.") from error


def _image(request: JobRequest) -> ImageSource | None:
    return None if isinstance(request.input, GenerateInput) else request.input.image


@contextmanager
def _blaming(field: str) -> Iterator[None]:
    """What is refused inside the block is the fault of `field`."""
    try:
        yield
    except InvalidRequest as error:
        error.field = field
        raise

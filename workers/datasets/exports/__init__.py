"""Exports of a data set: files that training programs read, written as a stream, complete or not at all.

Beside every export, errors.jsonl and dropped.jsonl list each image that is not in it, with the reason.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from shared.intake.beneath import EVERYWHERE, Roots
from shared.intake.held_folder import HeldFolder
from shared.intake.images import inspect
from shared.settings import Settings
from tuwen.annotations import Annotation
from tuwen.datasets import ExportFormat
from tuwen.errors import NotFound, PathForbidden, TuwenError
from tuwen.jobs import JobError
from tuwen.version import __version__
from workers.datasets.exports.coco import Coco
from workers.datasets.exports.destination import MARKER, Owner, real, stage, translate_errors, write_marker
from workers.datasets.exports.files import Lines
from workers.datasets.exports.imagefolder import ImageFolder
from workers.datasets.exports.jsonl import JsonLines
from workers.datasets.exports.kohya import Sidecars, SidecarsInPlace
from workers.datasets.exports.labelstudio import LabelStudio
from workers.datasets.exports.parquet import Parquet
from workers.datasets.exports.webdataset import WebDataset
from workers.datasets.exports.words import chosen_words, drop_of, failure_of
from workers.datasets.exports.writers import Exported, NotWritten, Writer
from workers.datasets.lookahead import map_ahead
from workers.datasets.sources.images import SourceImage
from workers.datasets.sources.own_words import FOLDER

__all__ = ["MARKER", "Owner", "Summary", "write"]

Annotated = tuple[Annotation, SourceImage | None]
Read = Callable[[SourceImage], bytes]

_LISTS = ("errors.jsonl", "dropped.jsonl")
_READERS = 4
_PAUSES = (0.5, 2.0)  # seconds


@dataclass(frozen=True, slots=True)
class Summary:
    """Numbers of images."""

    exported: int
    dropped: int
    failed: int


@dataclass(frozen=True, slots=True)
class _Loaded:
    """An image to export, with its file where the format needs it."""

    annotation: Annotation
    failure: JobError | None
    """Why the image is not exported."""
    data: bytes = b""
    format: str = ""


def write(
    annotated: Iterable[Annotated],
    destination: str,
    settings: Settings,
    *,
    owner: Owner,
    destination_format: ExportFormat,
    read: Read,
    source: str,
    roots: Roots = EVERYWHERE,
) -> Summary:
    """Write all images of a run, in their order, to a folder or `s3://BUCKET/PREFIX`.

    `source` is where the images are. `owner.overwrite` lets the model's words take the place of captions that came with
    the images, and the export that of another run. kohya's sidecars may go into the source itself; everything else
    needs a place of its own. Local files are written beneath `roots` only.

    Raises:
        DestinationUnusable: it lies in the source, or holds files of another run.
        Forbidden: it holds files of another tenant.
        PathForbidden: a link in the destination leads out of `roots`.
        Conflict: another export into it is under way.
        StorageUnavailable: the disk is full, or the place does not answer; the destination is unchanged.
    """
    with translate_errors(destination):
        target, origin = real(destination, roots), real(source, roots)
    if destination_format == "kohya" and target == origin and not target.startswith("s3://"):
        return _write_in_place(annotated, target, settings, owner, read, roots)
    with stage(target, origin, owner, settings, roots) as folder:
        summary = _write(
            annotated, folder, _open_writer(destination_format, folder, target, origin), settings, read, owner.overwrite
        )
        write_marker(
            folder,
            run=owner.run,
            tenant=owner.tenant,
            source=origin,
            format=destination_format,
            exported=summary.exported,
            dropped=summary.dropped,
            failed=summary.failed,
            software=f"tuwen {__version__}",
        )
    return summary


def _open_writer(form: ExportFormat, folder: HeldFolder, target: str, source: str) -> Writer:
    """Open the writer of a format into `folder`, which will be `target`."""
    match form:
        case "jsonl":
            return JsonLines(folder)
        case "imagefolder":
            return ImageFolder(folder)
        case "parquet":
            return Parquet(folder)
        case "webdataset":
            return WebDataset(folder)
        case "kohya":
            return Sidecars(folder, target)
        case "coco":
            return Coco(folder)
        case "labelstudio":
            return LabelStudio(folder, source)


def _write_in_place(
    annotated: Iterable[Annotated], source: str, settings: Settings, owner: Owner, read: Read, roots: Roots
) -> Summary:
    """Write sidecars into the source, and the records of them into a folder that no run lists."""
    with translate_errors(source), roots.folder(source) as whole, whole.enter(FOLDER, make=True) as records:
        marker = records.read(MARKER)
        if marker is not None:
            owner.require_tenant(marker, source)
        for name in _LISTS:
            records.remove(name)
        writer = SidecarsInPlace(records, source, roots, overwrite=owner.overwrite)
        summary = _write(annotated, records, writer, settings, read, owner.overwrite)
        write_marker(records, run=owner.run, tenant=owner.tenant, source=source, format="kohya")
    return summary


def _write(
    annotated: Iterable[Annotated], folder: HeldFolder, writer: Writer, settings: Settings, read: Read, overwrite: bool
) -> Summary:
    number = dropped = failed = 0

    def load(pair: Annotated) -> _Loaded:
        annotation, image = pair
        failure = failure_of(annotation)
        if failure is None and drop_of(annotation) is None and writer.wants_images:
            return _load(annotation, image, settings, read)
        return _Loaded(annotation, failure)

    errors_name, drops_name = _LISTS
    with Lines(folder, errors_name) as errors, Lines(folder, drops_name) as drops:
        try:
            for each in map_ahead(load, annotated, threads=_READERS):
                annotation = each.annotation
                drop = drop_of(annotation)
                if each.failure is not None:
                    failed += 1
                    errors.write(_failure(annotation, each.failure))
                    continue
                if drop is not None:
                    dropped += 1
                    drops.write({"name": annotation.name, **drop.model_dump(mode="json")})
                    continue
                words = chosen_words(annotation, overwrite=overwrite)
                try:
                    writer.write(Exported(number, annotation, words, each.data, each.format))
                except NotWritten as error:
                    failed += 1
                    errors.write(_failure(annotation, JobError(code=error.code, detail=str(error))))
                except PathForbidden as error:
                    failed += 1
                    errors.write(_failure(annotation, JobError(code=error.code, detail=f"not exported: {error}")))
                else:
                    number += 1
        finally:
            writer.close()
    return Summary(number, dropped, failed)


def _load(annotation: Annotation, image: SourceImage | None, settings: Settings, read: Read) -> _Loaded:
    """Read the image's file and its format; or say why it cannot be read any more."""
    try:
        if image is None:
            raise NotFound("the source has no such image")
        data = _retry_read(lambda: read(image))
        return _Loaded(annotation, None, data, inspect(data, settings).format)
    except TuwenError as error:
        failure = JobError(code=error.code, detail=f"not exported: {error}", retryable=error.retryable)
        return _Loaded(annotation, failure)


def _retry_read(read: Callable[[], bytes]) -> bytes:
    """Read, and retry a few times where that may help: the image was there a while ago."""
    for pause in _PAUSES:
        try:
            return read()
        except TuwenError as error:
            if not error.retryable:
                raise
            time.sleep(pause)
    return read()


def _failure(annotation: Annotation, error: JobError) -> dict[str, object]:
    known = {"name": annotation.name, "custom_id": annotation.custom_id, "attempts": annotation.attempts}
    return {key: value for key, value in known.items() if value is not None} | error.model_dump(mode="json")

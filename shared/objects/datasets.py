"""Objects of data sets in object storage: the plan and the results of each shard, both files of JSON lines.

Line *i* of the results is the outcome of line *i* of the plan. Every writer has its own key, which contains its epoch,
so that a writer that was presumed dead overwrites nothing; the shard's row says which file counts.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from shared.database import Database
from shared.database.shards import Shard
from shared.objects.storage import ObjectStore
from tuwen.annotations import Annotation
from tuwen.errors import NotFound
from tuwen.jobs import JobError

MEDIA_TYPE = "application/jsonl"
SHARDS_AT_ONCE = 100
"""Rows fetched at a time when all shards are read."""

NOT_DONE = JobError(code="not_annotated", detail="The run ended before this image had its turn.", retryable=True)


@dataclass(frozen=True, slots=True)
class Planned:
    """One entry of a source: an image to be annotated, or one whose outcome is already known."""

    image: dict[str, Any] | None
    """Where the image is, as the source describes it; None for a row of the source that is not an image."""
    annotation: Annotation | None = None
    """What was known at planning: an error, a reason to drop the image, or the annotation of an earlier run."""

    def line(self) -> bytes:
        annotation = self.annotation.model_dump_json(exclude_defaults=True) if self.annotation else "null"
        return f'{{"image": {json.dumps(self.image)}, "annotation": {annotation}}}'.encode()

    @classmethod
    def parse(cls, line: bytes) -> Planned:
        """Read a line of a plan."""
        found = json.loads(line)
        annotation = found["annotation"]
        return cls(found["image"], None if annotation is None else Annotation.model_validate(annotation))

    def blank_annotation(self) -> Annotation:
        """The annotation before any model has seen the image."""
        if self.annotation is not None:
            return self.annotation
        image = self.image or {"name": ""}
        return Annotation(
            name=image["name"],
            size=image.get("size"),
            custom_id=image.get("custom_id"),
            existing=tuple(image.get("captions", ())),
            metadata=image.get("metadata", {}),
        )


@dataclass(frozen=True, slots=True)
class AtRisk:
    """Stands for a result: the image was in progress when this was written, in a shard that had crashed before."""

    alone: bool
    """Whether no other image was in progress: if the worker dies now, this image is almost certainly the cause."""
    strikes: int = 0
    """How often a worker has died with this image before."""

    def line(self) -> bytes:
        return json.dumps({"at_risk": {"alone": self.alone, "strikes": self.strikes}}).encode()


Line = bytes | AtRisk | None
"""A line of results: an `Annotation` as JSON, or a note that the image is at risk, or nothing."""


def folder(dataset_id: UUID) -> str:
    """Key prefix of all objects of a data set."""
    return f"datasets/{dataset_id}"


def plan_key(dataset_id: UUID, number: int, epoch: int) -> str:
    """Key of a shard's plan."""
    return f"{folder(dataset_id)}/{number:08d}/plan-{epoch}.jsonl"


def results_key(dataset_id: UUID, number: int, epoch: int) -> str:
    """Key of a shard's results."""
    return f"{folder(dataset_id)}/{number:08d}/results-{epoch}.jsonl"


def write_plan(store: ObjectStore, key: str, lines: Sequence[bytes]) -> None:
    """Write the plan of a shard, one line per image."""
    store.put(key, b"\n".join(lines), MEDIA_TYPE)


def read_plan(store: ObjectStore, key: str) -> list[Planned]:
    """Read the plan of a shard."""
    return [Planned.parse(line) for line in store.get(key).split(b"\n")]


def write_results(store: ObjectStore, key: str, lines: Sequence[Line]) -> None:
    """Write all results of a shard at once: readers see these or the previous ones, never a part."""
    store.put(key, b"\n".join(_encode(line) for line in lines), MEDIA_TYPE)


def read_results(store: ObjectStore, key: str | None, images: int) -> list[Line]:
    """Read the results of a shard, one line per image; all are None when nothing was written yet."""
    if key is None:
        return [None] * images
    lines = [_decode(line) for line in store.get(key).split(b"\n")]
    return lines + [None] * (images - len(lines))


def all_images(
    database: Database, store: ObjectStore, dataset_id: UUID, *, first_shard: int = 0
) -> Iterator[tuple[Planned, Annotation]]:
    """Yield all images of a data set, in order, shard by shard, each with its annotation.

    Raises:
        NotFound: an object of the data set is gone.
        DatabaseUnavailable, StorageUnavailable
    """
    while shards := database.shards.all(dataset_id, first=first_shard, most=SHARDS_AT_ONCE):
        for shard in shards:
            yield from shard_images(store, shard)
        first_shard = shards[-1].number + 1


def shard_images(
    store: ObjectStore, shard: Shard, places: Iterable[int] | None = None
) -> Iterator[tuple[Planned, Annotation]]:
    """Yield the images of a shard, or those at these places in it; images without a result have the reason as error."""
    plan = store.get(shard.plan_key).split(b"\n")
    try:
        lines = read_results(store, shard.results_key, len(plan))
    except NotFound:
        # Either a worker has just replaced the file, or it was lost; reading the row again shows which.
        lines = [None] * len(plan)
    for place in range(len(plan)) if places is None else places:
        planned, line = Planned.parse(plan[place]), lines[place]
        if isinstance(line, bytes):
            yield planned, Annotation.model_validate_json(line)
        elif planned.annotation is not None:
            yield planned, planned.annotation
        else:
            yield planned, planned.blank_annotation().model_copy(update={"error": shard.error or NOT_DONE})


def _encode(line: Line) -> bytes:
    if isinstance(line, AtRisk):
        return line.line()
    return b"null" if line is None else line


def _decode(line: bytes) -> Line:
    if line == b"null":
        return None
    if line.startswith(b'{"at_risk"'):
        return AtRisk(**json.loads(line)["at_risk"])
    return line


def preview_key(dataset_id: UUID, image: int) -> str:
    """Key of the preview of an image, for people who review a data set."""
    return f"{folder(dataset_id)}/previews/{image}.jpg"

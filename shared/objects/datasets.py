"""What data sets keep in object storage: of each shard its plan and its results, each a file of JSON lines.

Line *i* of the results is what became of line *i* of the plan. Every writer has a key of its own, made of its epoch, so
that one that was taken for dead overwrites nothing; the shard's row says which file counts.
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
"""Rows fetched at a time where all shards are gone through."""

NOT_DONE = JobError(code="not_annotated", detail="The run ended before this image had its turn.", retryable=True)


@dataclass(frozen=True, slots=True)
class Planned:
    """One entry of a source: an image to be annotated, or one whose end is known already."""

    image: dict[str, Any] | None
    """Where it is, as the source says; none for a row of the source that is no image."""
    annotation: Annotation | None = None
    """Known when it was planned: an error, a reason to drop it, or the words of an earlier run."""

    def line(self) -> bytes:
        annotation = self.annotation.model_dump_json(exclude_defaults=True) if self.annotation else "null"
        return f'{{"image": {json.dumps(self.image)}, "annotation": {annotation}}}'.encode()

    @classmethod
    def of(cls, line: bytes) -> Planned:
        found = json.loads(line)
        annotation = found["annotation"]
        return cls(found["image"], None if annotation is None else Annotation.model_validate(annotation))

    def blank(self) -> Annotation:
        """What is known of it before anybody has looked at it."""
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
    """In place of a result: the image was under way when this was written, in a shard that had crashed before."""

    alone: bool
    """No other image was under way: if the worker dies now, it is this one's doing, or a strange coincidence."""
    strikes: int = 0
    """How often that has happened before."""

    def line(self) -> bytes:
        return json.dumps({"at_risk": {"alone": self.alone, "strikes": self.strikes}}).encode()


Line = bytes | AtRisk | None
"""Of results: an `Annotation` as JSON, or a note that there is none yet, or nothing."""


def folder(dataset_id: UUID) -> str:
    """In which all that is kept of a data set lies."""
    return f"datasets/{dataset_id}"


def plan_key(dataset_id: UUID, number: int, epoch: int) -> str:
    return f"{folder(dataset_id)}/{number:08d}/plan-{epoch}.jsonl"


def results_key(dataset_id: UUID, number: int, epoch: int) -> str:
    return f"{folder(dataset_id)}/{number:08d}/results-{epoch}.jsonl"


def write_plan(store: ObjectStore, key: str, lines: Sequence[bytes]) -> None:
    store.put(key, b"\n".join(lines), MEDIA_TYPE)


def read_plan(store: ObjectStore, key: str) -> list[Planned]:
    return [Planned.of(line) for line in store.get(key).split(b"\n")]


def write_results(store: ObjectStore, key: str, lines: Sequence[Line]) -> None:
    """All of a shard's results at once: readers see these or those before, never a part."""
    store.put(key, b"\n".join(_written(line) for line in lines), MEDIA_TYPE)


def read_results(store: ObjectStore, key: str | None, images: int) -> list[Line]:
    """One for each image; all none where nothing was written yet."""
    if key is None:
        return [None] * images
    lines = [_read(line) for line in store.get(key).split(b"\n")]
    return lines + [None] * (images - len(lines))


def all_images(
    database: Database, store: ObjectStore, dataset_id: UUID, *, first_shard: int = 0
) -> Iterator[tuple[Planned, Annotation]]:
    """All images of a data set, in order, shard by shard: each with what became of it.

    Raises:
        NotFound: a file of it is gone.
        DatabaseUnavailable, StorageUnavailable
    """
    while shards := database.shards.all(dataset_id, first=first_shard, most=SHARDS_AT_ONCE):
        for shard in shards:
            yield from of_shard(store, shard)
        first_shard = shards[-1].number + 1


def of_shard(
    store: ObjectStore, shard: Shard, places: Iterable[int] | None = None
) -> Iterator[tuple[Planned, Annotation]]:
    """Its images, or those in these places of it; those that have no result with the reason for that."""
    plan = store.get(shard.plan_key).split(b"\n")
    try:
        lines = read_results(store, shard.results_key, len(plan))
    except NotFound:
        # A worker has just replaced it, or it was lost; which of them, the next look at the row says.
        lines = [None] * len(plan)
    for place in range(len(plan)) if places is None else places:
        planned, line = Planned.of(plan[place]), lines[place]
        if isinstance(line, bytes):
            yield planned, Annotation.model_validate_json(line)
        elif planned.annotation is not None:
            yield planned, planned.annotation
        else:
            yield planned, planned.blank().model_copy(update={"error": shard.error or NOT_DONE})


def _written(line: Line) -> bytes:
    if isinstance(line, AtRisk):
        return line.line()
    return b"null" if line is None else line


def _read(line: bytes) -> Line:
    if line == b"null":
        return None
    if line.startswith(b'{"at_risk"'):
        return AtRisk(**json.loads(line)["at_risk"])
    return line


def preview_key(dataset_id: UUID, image: int) -> str:
    """Of a small picture for people who look through a data set."""
    return f"{folder(dataset_id)}/previews/{image}.jpg"

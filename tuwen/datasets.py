"""Bulk annotation of data sets: requests and states. Pure types, no I/O.

A *dataset* here is one run: a source, what to say about each of its images, and a destination. It is planned into
*shards* of some hundred images; a shard is one row and one message. What is known of an image is one
`tuwen.annotations.Annotation`.
"""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any, Literal, Self
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field, model_validator

from tuwen.annotations import Annotation, Review
from tuwen.jobs import JobError, Kind, Label, Language, Score, Style, Text, Word


class DatasetStatus(StrEnum):
    PLANNING = "planning"
    """The source is being listed; shards that are planned already run."""
    RUNNING = "running"
    EXPORTING = "exporting"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def terminal(self) -> bool:
        return self in (DatasetStatus.SUCCEEDED, DatasetStatus.FAILED, DatasetStatus.CANCELLED)


class ShardStatus(StrEnum):
    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def terminal(self) -> bool:
        return self not in (ShardStatus.QUEUED, ShardStatus.RUNNING)


SourceFormat = Literal["auto", "folder", "zip", "webdataset", "list", "imagefolder", "coco", "openai"]
ExportFormat = Literal["jsonl", "imagefolder", "parquet", "webdataset", "kohya", "coco"]
Task = Literal[Kind.DESCRIBE, Kind.RECOGNIZE, Kind.MATCH]
Place = Annotated[Word, Field(min_length=1, max_length=4096)]
"""An absolute path on the workers' machines, or `s3://BUCKET/PREFIX` of the configured service."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


# ── requests ──────────────────────────────────────────────────────────────────────────────────────


class Filters(_Strict):
    """Which images stay. Whatever is dropped is listed with its reason. None means any."""

    min_side: int | None = Field(None, ge=1, description="pixels of the shorter side")
    max_side: int | None = Field(None, ge=1, description="pixels of the longer side")
    max_aspect: float | None = Field(None, ge=1, le=1000, description="longer side over shorter side")
    duplicates: Literal["keep", "exact", "perceptual"] = Field(
        "keep", description="which copies are dropped before a model sees them; the first one stays"
    )
    min_confidence: Score | None = None
    min_score: Score | None = Field(None, description="of the caption by `match`")
    in_domain: bool = Field(False, description="drop images that are unlike what the model learnt from")


_PARAMETERS = frozenset(("tasks", "languages", "styles", "prompt", "max_tokens", "candidates"))


class DatasetRequest(_Strict):
    """What a client asks for."""

    source: Place
    source_format: SourceFormat = "auto"
    source_root: Place | None = Field(
        None, description="where the paths in a list or COCO file start from; by default the file's own folder"
    )
    image_column: Label | None = Field(None, description="of a table, where the names of its columns leave a doubt")
    caption_column: Label | None = None
    destination: Place | None = Field(None, description="none is only for a dry run")
    destination_format: ExportFormat = "jsonl"
    tasks: tuple[Task, ...] = Field((Kind.DESCRIBE,), min_length=1, max_length=3)
    languages: tuple[Language, ...] = Field(("en",), min_length=1, max_length=2)
    styles: tuple[Style, ...] = Field(("short",), min_length=1, max_length=3)
    prompt: Annotated[Word, Field(max_length=4000)] = Field(
        "", description="what to say of each image, for models that take a prompt"
    )
    max_tokens: int = Field(64, ge=1, le=2048)
    candidates: int = Field(1, ge=1, le=16, description="captions written of each image; the best by `match` is kept")
    filters: Filters = Filters()
    dry_run: bool = Field(
        False, description="only count, look for what is broken or twice there, and estimate what it would take"
    )
    overwrite: bool = Field(False, description="replace captions that the destination has already")
    priority: int = Field(5, ge=0, le=9, description="among data sets; any single job goes before all of them")
    shard_size: int = Field(500, ge=1, le=10_000, description="images of a shard")
    max_attempts: int = Field(3, ge=1, le=20, description="of each image, where trying again makes sense")

    @model_validator(mode="after")
    def _makes_sense(self) -> Self:
        if self.destination is None and not self.dry_run:
            raise ValueError("destination is missing: only a dry run needs none")
        if self.candidates > 1 and Kind.DESCRIBE not in self.tasks:
            raise ValueError("candidates are captions: add the task describe")
        if self.filters.min_score is not None and not self.scored:
            raise ValueError("filters.min_score needs the task match")
        return self

    @property
    def scored(self) -> bool:
        """Whether `match` measures the captions."""
        return Kind.MATCH in self.tasks or self.candidates > 1

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """Models that a worker must hold for this, in alphabetical order."""
        wanted = {*self.tasks, *((Kind.MATCH,) if self.scored else ())}
        return tuple(kind for kind in Kind if kind in wanted)

    @property
    def parameters(self) -> dict[str, Any]:
        """What an image's annotation depends on, besides the image and the models."""
        return self.model_dump(mode="json", include=set(_PARAMETERS))


# ── what the API shows ────────────────────────────────────────────────────────────────────────────


class WorkerProgress(_Strict):
    worker: str
    shards: int = Field(description="that it runs now")
    images_per_second: float


class DatasetProgress(_Strict):
    """Of what is planned so far; `planned` says whether that is all."""

    images: int
    done: int = Field(description="annotated or dropped by a filter")
    failed: int
    left: int
    shards: int
    shards_left: int
    planned: bool
    images_per_second: float = Field(description="over the last minute")
    tokens_per_second: float
    eta: float | None = Field(None, description="seconds, once there is a rate to go by")
    workers: tuple[WorkerProgress, ...] = ()


class Dataset(_Strict):
    """A data set as the API shows it."""

    id: UUID
    status: DatasetStatus
    paused: bool
    priority: int
    request: DatasetRequest
    progress: DatasetProgress
    estimate: dict[str, Any] | None = Field(None, description="what a dry run has found out")
    error: JobError | None = None
    created_at: datetime
    started_at: datetime | None = None
    finished_at: datetime | None = None


class Item(_Strict):
    """One image of a data set as the API shows it."""

    number: int = Field(description="place in the data set, from 0, without gaps; names the image in addresses")
    annotation: Annotation
    reviews: tuple[Review, ...] = Field((), description="all that people said of it, the newest first")


class DatasetPage(_Strict):
    """Data sets, newest first."""

    datasets: tuple[Dataset, ...]
    next: str | None = Field(description="cursor of the next page; none when this is the last")


class ItemPage(_Strict):
    items: tuple[Item, ...]
    next: str | None = Field(description="cursor of the next page; none when this is the last")
    before: int | None = Field(None, description="images of the list before this page; none where that is not known")
    total: int | None = Field(None, description="images of the whole list; none where that is not known")


class ExportRequest(_Strict):
    """Where else what is known is to be written."""

    destination: Place
    destination_format: ExportFormat = "jsonl"
    overwrite: bool = Field(False, description="replace captions that the destination has already")


class PriorityRequest(_Strict):
    priority: int = Field(ge=0, le=9, description="among data sets; 9 is most urgent")


class ReviewRequest(_Strict):
    """What a person says of an image: it stands beside the model's words and never replaces them."""

    author: Label | None = Field(None, description="where there are API keys, the key's own name stands in its place")
    verdict: Literal["accepted", "rejected"] | None = None
    text: Text | None = None
    language: Language | None = Field(None, description="of the text")

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if self.verdict is None and self.text is None:
            raise ValueError("give a verdict, a text, or both")
        return self
